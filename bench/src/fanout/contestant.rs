//! Who is compared, and how each is started.

use std::{
    env, fmt, fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    str::FromStr,
    sync::Arc,
    thread,
};

use anyhow::{Context as _, bail};
use rustls::ClientConfig;
use waxwing::transport::{Kind, Target, Trust, connect::Dial, trust};

use crate::{
    count::{Counts, Shared},
    engines::process,
    rivals::{self, Rival},
    server,
};

use super::{
    session::{Dialect, Endpoint, PUSHER_SECRET},
    workload::Workload,
};

/// What a contestant speaks to its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Wire {
    Ws,
    Wss,
    Wt,
    Quic,
}

/// Whose server it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Who {
    Floor,
    /// The floor, which stores before it passes on.
    FloorDurable,
    /// The floor, with whom who sends does not hear it, as ephemeral messages are.
    FloorOthers,
    Lean,
    Tutorial,
    /// WebTransport without anything around it.
    Toy,
    Nats,
    Sockudo,
    Waxwing,
    /// Waxwing whose syncs return at once.
    WaxwingNoSync,
    /// Waxwing with one shard.
    WaxwingOneShard,
    /// Waxwing with two shards.
    WaxwingTwoShards,
    /// Waxwing with ephemeral messages, which are not stored.
    WaxwingEphemeral,
}

/// A server and a way to reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Contestant {
    pub who: Who,
    pub wire: Wire,
}

const WHO: [(&str, &str, Who); 13] = [
    ("floor", "floor", Who::Floor),
    ("floor-durable", "floor, durable", Who::FloorDurable),
    ("floor-others", "floor, to the others", Who::FloorOthers),
    ("lean", "tokio-tungstenite, lean", Who::Lean),
    ("tutorial", "tokio-tungstenite, tutorial", Who::Tutorial),
    ("toy", "wtransport, toy", Who::Toy),
    ("nats", "NATS", Who::Nats),
    ("sockudo", "Sockudo", Who::Sockudo),
    ("waxwing", "Waxwing", Who::Waxwing),
    ("waxwing-nosync", "Waxwing without syncs", Who::WaxwingNoSync),
    ("waxwing-1shard", "Waxwing, one shard", Who::WaxwingOneShard),
    ("waxwing-2shards", "Waxwing, two shards", Who::WaxwingTwoShards),
    ("waxwing-ephemeral", "Waxwing, ephemeral", Who::WaxwingEphemeral),
];
const WIRES: [(&str, Wire); 4] = [("ws", Wire::Ws), ("wss", Wire::Wss), ("wt", Wire::Wt), ("quic", Wire::Quic)];

impl Contestant {
    /// Everybody, the floors first.
    pub const ALL: [Self; 28] = {
        const fn of(who: Who, wire: Wire) -> Contestant {
            Contestant { who, wire }
        }
        [
            of(Who::Floor, Wire::Ws),
            of(Who::Floor, Wire::Wss),
            of(Who::FloorDurable, Wire::Ws),
            of(Who::FloorDurable, Wire::Wss),
            of(Who::FloorOthers, Wire::Ws),
            of(Who::FloorOthers, Wire::Wss),
            of(Who::Lean, Wire::Ws),
            of(Who::Lean, Wire::Wss),
            of(Who::Tutorial, Wire::Ws),
            of(Who::Tutorial, Wire::Wss),
            of(Who::Toy, Wire::Wt),
            of(Who::Nats, Wire::Ws),
            of(Who::Nats, Wire::Wss),
            of(Who::Sockudo, Wire::Ws),
            of(Who::Sockudo, Wire::Wss),
            of(Who::Waxwing, Wire::Ws),
            of(Who::Waxwing, Wire::Wss),
            of(Who::Waxwing, Wire::Wt),
            of(Who::Waxwing, Wire::Quic),
            of(Who::WaxwingNoSync, Wire::Ws),
            of(Who::WaxwingNoSync, Wire::Wss),
            of(Who::WaxwingNoSync, Wire::Wt),
            of(Who::WaxwingOneShard, Wire::Ws),
            of(Who::WaxwingTwoShards, Wire::Ws),
            of(Who::WaxwingEphemeral, Wire::Ws),
            of(Who::WaxwingEphemeral, Wire::Wss),
            of(Who::WaxwingEphemeral, Wire::Wt),
            of(Who::WaxwingEphemeral, Wire::Quic),
        ]
    };

    fn parts(self) -> (&'static str, &'static str, &'static str) {
        let who = WHO.iter().find(|(_, _, who)| *who == self.who);
        let wire = WIRES.iter().find(|(_, wire)| *wire == self.wire);
        let (short, long, _) = who.expect("everybody is in the list");
        (short, long, wire.expect("every wire is in the list").0)
    }

    /// As tables name it.
    pub fn title(self) -> String {
        let (_, long, wire) = self.parts();
        format!("{long}, {wire}")
    }

    /// By whom it is measured: who hears of a message what this one's members do.
    pub const fn floor(self) -> Self {
        let wire = if matches!(self.wire, Wire::Ws) { Wire::Ws } else { Wire::Wss };
        Self { who: if self.echoes() { Who::Floor } else { Who::FloorOthers }, wire }
    }

    pub const fn is_ephemeral(self) -> bool {
        matches!(self.who, Who::WaxwingEphemeral)
    }

    /// Whether who publishes hears it too.
    pub const fn echoes(self) -> bool {
        !matches!(self.who, Who::WaxwingEphemeral | Who::FloorOthers | Who::Sockudo)
    }

    /// The program that must be installed, if it is not this one.
    pub fn program(self, setup: &Setup) -> Option<&Path> {
        match self.who {
            Who::Nats => Some(&setup.nats),
            Who::Sockudo => Some(&setup.sockudo),
            _ => None,
        }
    }

    /// Whether the workload says something about it.
    pub fn plays(self, workload: Workload) -> bool {
        use Who::{
            Floor, FloorDurable, FloorOthers, Waxwing, WaxwingEphemeral, WaxwingNoSync, WaxwingOneShard, WaxwingTwoShards,
        };
        match workload {
            Workload::W4 => matches!(self.who, Floor | Waxwing | WaxwingNoSync | WaxwingOneShard | WaxwingTwoShards),
            Workload::W3 => !matches!(
                self.who,
                FloorDurable | FloorOthers | WaxwingNoSync | WaxwingOneShard | WaxwingTwoShards | WaxwingEphemeral
            ),
            Workload::W1 | Workload::W1Saturation | Workload::W2 => true,
        }
    }

    /// Its transport, if it is one that the product's own client speaks.
    pub const fn quic(self) -> Option<Kind> {
        match self.wire {
            Wire::Wt => Some(Kind::WebTransport),
            Wire::Quic => Some(Kind::Quic),
            Wire::Ws | Wire::Wss => None,
        }
    }
}

impl fmt::Display for Contestant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (short, _, wire) = self.parts();
        write!(f, "{short}-{wire}")
    }
}

impl FromStr for Contestant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Self::ALL.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        Self::ALL.into_iter().find(|contestant| contestant.to_string() == text).ok_or_else(|| format!("one of {}", names()))
    }
}

/// How contestants are started.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Where each has its files.
    pub dir: PathBuf,
    pub nats: PathBuf,
    pub sockudo: PathBuf,
    /// More settings of Waxwing's.
    pub settings: Vec<String>,
    /// Whether the floor stores before it passes on.
    pub durable: bool,
    pub count_allocations: bool,
}

/// A running server. Killed when dropped.
#[derive(Debug)]
pub struct Served {
    process: Child,
    pub endpoint: Endpoint,
    /// Waxwing, as its own client reaches it.
    pub target: Option<Target>,
    /// The same without TLS.
    pub plain: Option<Target>,
    counts: Option<&'static Shared>,
}

impl Served {
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// What it counted so far, if it counts.
    pub fn counts(&self) -> Counts {
        self.counts.map(Shared::read).unwrap_or_default()
    }

    /// Starts the contestant's server.
    pub fn start(contestant: Contestant, setup: &Setup) -> anyhow::Result<Self> {
        let dir = setup.dir.join(contestant.to_string());
        drop(fs::remove_dir_all(&dir));
        fs::create_dir_all(&dir)?;
        let dir = fs::canonicalize(dir)?;
        match contestant.who {
            Who::Floor | Who::FloorDurable | Who::FloorOthers => Self::rival(Rival::Floor, contestant, setup, &dir),
            Who::Lean => Self::rival(Rival::Lean, contestant, setup, &dir),
            Who::Tutorial => Self::rival(Rival::Tutorial, contestant, setup, &dir),
            Who::Toy => Self::toy(&dir),
            Who::Nats => Self::nats(contestant, setup, &dir),
            Who::Sockudo => Self::sockudo(contestant, setup, &dir),
            _ => Self::waxwing(contestant, setup, &dir),
        }
        .with_context(|| format!("cannot start {contestant}"))
    }

    fn rival(rival: Rival, contestant: Contestant, setup: &Setup, dir: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(env::current_exe()?);
        command.args(["rival", rival.name()]).current_dir(dir);
        let tls = contestant.wire == Wire::Wss;
        if tls {
            command.args(["--tls", "certs"]);
        }
        if setup.durable || contestant.who == Who::FloorDurable {
            command.args(["--durable", "log"]);
        }
        if contestant.who == Who::FloorOthers {
            command.arg("--others");
        }
        let (process, lines) = start(&mut command, "listening")?;
        let address = address(&lines, "listening")?;
        let endpoint = Endpoint { address, dialect: Dialect::Raw, tls: tls.then(|| client_tls(&dir.join("certs"))).transpose()? };
        Ok(Self { process, endpoint, target: None, plain: None, counts: None })
    }

    fn toy(dir: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(env::current_exe()?);
        command.args(["rival", Rival::Toy.name(), "--tls", "certs"]).current_dir(dir);
        let (process, lines) = start(&mut command, "listening")?;
        let address = address(&lines, "listening")?;
        let fingerprint = rivals::identity(&dir.join("certs"))?.fingerprint();
        let endpoint = Endpoint { address, dialect: Dialect::Raw, tls: None };
        Ok(Self { process, endpoint, target: Some(target(address, true, address, fingerprint)), plain: None, counts: None })
    }

    fn nats(contestant: Contestant, setup: &Setup, dir: &Path) -> anyhow::Result<Self> {
        let (port, ws) = (process::free_port()?, process::free_port()?);
        let tls = contestant.wire == Wire::Wss;
        let security = if tls {
            rivals::identity(&dir.join("certs"))?;
            let (cert, key) = ("certs/development-cert.pem", "certs/development-key.pem");
            format!("tls {{ cert_file: \"{cert}\", key_file: \"{key}\" }}")
        } else {
            "no_tls: true".to_owned()
        };
        let config = format!(
            "listen: \"127.0.0.1:{port}\"\nmax_connections: 100000\nwrite_deadline: \"60s\"\nwebsocket {{ listen: \"127.0.0.1:{ws}\"\n{security}\ncompression: false }}\n"
        );
        fs::write(dir.join("nats.conf"), config)?;
        let mut command = Command::new(fs::canonicalize(&setup.nats)?);
        command.args(["-c", "nats.conf"]).current_dir(dir);
        let address = SocketAddr::from(([127, 0, 0, 1], ws));
        Self::silent(&mut command, address, Dialect::Nats, tls.then(|| client_tls(&dir.join("certs"))).transpose()?)
    }

    fn sockudo(contestant: Contestant, setup: &Setup, dir: &Path) -> anyhow::Result<Self> {
        let (port, tls) = (process::free_port()?, contestant.wire == Wire::Wss);
        let mut command = Command::new(fs::canonicalize(&setup.sockudo)?);
        command.current_dir(dir).envs([
            ("HOST", "127.0.0.1"),
            ("METRICS_ENABLED", "false"),
            ("RATE_LIMITER_ENABLED", "false"),
            ("SOCKUDO_DEFAULT_APP_ID", "app"),
            ("SOCKUDO_DEFAULT_APP_KEY", "key"),
            ("SOCKUDO_DEFAULT_APP_SECRET", PUSHER_SECRET),
            ("SOCKUDO_DEFAULT_APP_ENABLED", "true"),
            ("SOCKUDO_DEFAULT_APP_ENABLE_CLIENT_MESSAGES", "true"),
            ("SOCKUDO_DEFAULT_APP_MAX_CLIENT_EVENTS_PER_SECOND", "1000000"),
            ("SOCKUDO_DEFAULT_APP_MAX_CONNECTIONS", "100000"),
            ("LOG_LEVEL", "error"),
            ("RUST_LOG", "error"),
        ]);
        command.env("PORT", port.to_string());
        if tls {
            rivals::identity(&dir.join("certs"))?;
            command.env("SSL_ENABLED", "true").env("SSL_CERT_PATH", "certs/development-cert.pem");
            command.env("SSL_KEY_PATH", "certs/development-key.pem");
        }
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Self::silent(&mut command, address, Dialect::Pusher, tls.then(|| client_tls(&dir.join("certs"))).transpose()?)
    }

    /// A server that prints nothing of interest.
    fn silent(
        command: &mut Command,
        address: SocketAddr,
        dialect: Dialect,
        tls: Option<Arc<ClientConfig>>,
    ) -> anyhow::Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let mut process = Reaped(Some(child));
        process::await_listener(address, || process.is_running())?;
        Ok(Self {
            process: process.keep(),
            endpoint: Endpoint { address, dialect, tls },
            target: None,
            plain: None,
            counts: None,
        })
    }

    fn waxwing(contestant: Contestant, setup: &Setup, dir: &Path) -> anyhow::Result<Self> {
        let mut more = vec![
            "limits.idle_timeout_ms=600000",
            "limits.handshake_timeout_ms=60000",
            "limits.ephemerals_per_second_max=1000000",
            "connections_per_address_max=50000",
            "log_level=error",
            "--count=count",
        ];
        match contestant.who {
            Who::WaxwingNoSync => more.push("--no-sync"),
            Who::WaxwingOneShard => more.push("shards=1"),
            Who::WaxwingTwoShards => more.push("shards=2"),
            _ => {}
        }
        if setup.count_allocations {
            more.push("--count-allocations");
        }
        more.extend(setup.settings.iter().map(String::as_str));
        let (process, lines) = start(&mut server::command(dir, &more)?(), "Without TLS")?;
        let process = Reaped(Some(process));
        let (plain, over_tls) = (address(&lines, "Without TLS")?, address(&lines, "TLS and QUIC")?);
        let fingerprint = rivals::identity(&dir.join("certs"))?.fingerprint();
        let tls = contestant.wire != Wire::Ws;
        let chosen = if tls { over_tls } else { plain };
        let tls = tls.then(|| pinned(fingerprint)).transpose()?;
        let counts = Shared::map(&dir.join("count"))?;
        let endpoint = Endpoint { address: chosen, dialect: Dialect::Waxwing, tls };
        Ok(Self {
            process: process.keep(),
            endpoint,
            target: Some(target(over_tls, true, over_tls, fingerprint)),
            plain: Some(target(plain, false, over_tls, fingerprint)),
            counts: Some(counts),
        })
    }
}

/// As the product's own client reaches a server.
fn target(address: SocketAddr, tls: bool, quic: SocketAddr, fingerprint: [u8; 32]) -> Target {
    let dial = |address: SocketAddr| Dial { host: address.ip().to_string(), port: address.port() };
    Target {
        authority: address.to_string(),
        tls,
        tcp: dial(address),
        quic: Some(dial(quic)),
        ws_path: "/ws".into(),
        wt_path: "/wt".into(),
        trust: Trust::Pinned(fingerprint),
        quic_trust: Trust::Pinned(fingerprint),
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Killed when dropped, unless kept.
struct Reaped(Option<Child>);

impl Reaped {
    fn keep(mut self) -> Child {
        self.0.take().expect("it is there until kept")
    }

    fn is_running(&mut self) -> bool {
        self.0.as_mut().is_some_and(|process| matches!(process.try_wait(), Ok(None)))
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        if let Some(process) = &mut self.0 {
            drop(process.kill());
            drop(process.wait());
        }
    }
}

/// Starts a server and reads what it prints until a line that begins with `last`.
fn start(command: &mut Command, last: &str) -> anyhow::Result<(Child, Vec<String>)> {
    let mut process = Reaped(Some(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?));
    let out = process.0.as_mut().and_then(|process| process.stdout.take()).context("no output")?;
    let (mut out, mut lines) = (BufReader::new(out).lines(), Vec::new());
    for line in &mut out {
        let line = line?.trim().to_owned();
        let done = line.starts_with(last);
        lines.push(line);
        if done {
            // It prints nothing more of interest; what it may print must not block it.
            thread::spawn(move || out.for_each(drop));
            return Ok((process.keep(), lines));
        }
    }
    bail!("it ended before it listened")
}

fn address(lines: &[String], name: &str) -> anyhow::Result<SocketAddr> {
    let line = lines.iter().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no line {name}"))?;
    Ok(line.trim().parse()?)
}

fn client_tls(certs: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    pinned(rivals::identity(certs)?.fingerprint())
}

fn pinned(fingerprint: [u8; 32]) -> anyhow::Result<Arc<ClientConfig>> {
    Ok(Arc::new(trust::config(&Trust::Pinned(fingerprint), &[b"http/1.1"])?))
}
