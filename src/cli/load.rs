//! `waxwing load`: many connections, some of which publish, and what came of it. It speaks bare frames: its envelopes have
//! a valid header and random bytes where the ciphertext would be, because a blind server cannot tell and sealing would be
//! measured instead.

mod histogram;
mod report;
mod session;

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use self::{
    report::{Report, Snapshot},
    session::{Counters, Plan, Session},
};
use crate::{
    core::{
        envelope::{HEADER_LEN, Suite, TAG_LEN},
        id::RoomId,
        log::PRODUCER_RING,
    },
    transport::{Kind, Trust, discover::discover, tls},
};

/// Logins under way at a time.
const LOGINS_MAX: usize = 32;
/// What an envelope needs beside its ciphertext, and the time stamp in that.
const PAYLOAD_MIN: usize = HEADER_LEN + Suite::X25519Psk.enc_len() + TAG_LEN + 8;

/// Arguments of `waxwing load`.
#[derive(Debug, Clone, Args)]
pub(super) struct LoadArgs {
    /// The edge.
    #[arg(long, default_value = "http://localhost:8433", env = "WAXWING_CLIENT_EDGE")]
    edge: String,
    /// Connections; each enters one room and subscribes.
    #[arg(long, default_value_t = 100)]
    connections: usize,
    /// Rooms, over which the connections are spread evenly.
    #[arg(long, default_value_t = 10)]
    rooms: usize,
    /// Connections that publish too, spread over the rooms [default: one for each room].
    #[arg(long)]
    publishers: Option<usize>,
    /// Messages per second, of all publishers together; 0: each publishes as fast as its window is acked.
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// Publishes that one publisher has under way at most.
    #[arg(long, default_value_t = 16)]
    window: usize,
    /// Bytes of a whole envelope.
    #[arg(long, default_value_t = 256)]
    payload: usize,
    /// How to connect.
    #[arg(long, default_value = "ws", value_parser = ["ws", "wt", "quic"])]
    transport: String,
    /// Seconds to measure, after one second of warming up.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Process id of the server, on this machine: tells its CPU time per delivery.
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    /// Trust this PEM certificate (or authority) instead of the public ones.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Prints the result as one JSON object.
    #[arg(long)]
    json: bool,
}

impl LoadArgs {
    fn publishers(&self) -> usize {
        self.publishers.unwrap_or(self.rooms)
    }

    fn check(&self) -> anyhow::Result<()> {
        if self.rooms == 0 || self.rooms > self.connections {
            bail!("--rooms must be between 1 and --connections ({})", self.connections);
        }
        if self.publishers() > self.connections {
            bail!("--publishers must be at most --connections ({})", self.connections);
        }
        if self.window == 0 || self.window > PRODUCER_RING {
            bail!("--window must be between 1 and {PRODUCER_RING}, which is what a server recognises");
        }
        if self.payload < PAYLOAD_MIN {
            bail!("--payload must be at least {PAYLOAD_MIN}");
        }
        if !self.rate.is_finite() || self.rate < 0.0 {
            bail!("--rate must be 0 or more");
        }
        Ok(())
    }

    fn kind(&self) -> Kind {
        match self.transport.as_str() {
            "wt" => Kind::WebTransport,
            "quic" => Kind::Quic,
            _ => Kind::WebSocket,
        }
    }
}

/// Random bytes.
fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    tls::provider().secure_random.fill(&mut bytes).map_err(|_| anyhow::anyhow!("the system has no randomness"))?;
    Ok(bytes)
}

/// Connects, publishes, listens, reports.
pub(super) async fn run(args: &LoadArgs) -> anyhow::Result<()> {
    args.check()?;
    let counters = Arc::new(Counters::default());
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    connect(args, &counters, &stop, &mut tasks).await?;
    super::complain(&format!("{} connections over {} are subscribed; measuring", args.connections, args.transport));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let report = measure(args, &counters).await?;
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    if args.json { super::print(format_args!("{}\n", report.to_json())) } else { super::print(&report) }.map_err(Into::into)
}

/// Logs every connection in, makes the rooms, and starts the sessions.
async fn connect(
    args: &LoadArgs,
    counters: &Arc<Counters>,
    stop: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<()> {
    let trust = args.ca.clone().map_or(Trust::WebPki, Trust::File);
    let target = Arc::new(discover(&args.edge, trust).await.context("cannot reach the edge")?);
    let (rooms_seed, epoch) = (random::<32>()?, Instant::now());
    let rooms: Vec<RoomId> = (0..args.rooms).map(|_| random().map(RoomId)).collect::<anyhow::Result<_>>()?;
    // The first connection of each room makes it, so the rooms come first.
    let mut sessions = Vec::with_capacity(args.connections);
    let mut logins: JoinSet<anyhow::Result<Session>> = JoinSet::new();
    for index in 0..args.connections {
        let room = rooms.get(index % args.rooms).copied().context("there is a room for every connection")?;
        let (target, kind, key) = (Arc::clone(&target), args.kind(), random()?);
        if logins.len() >= LOGINS_MAX || index == args.rooms {
            // All rooms are there before anybody else enters one.
            let left = if index == args.rooms { 0 } else { LOGINS_MAX - 1 };
            while logins.len() > left {
                sessions.extend(logins.join_next().await.transpose()?.transpose()?);
            }
        }
        let makes_room = index < args.rooms;
        logins.spawn(async move { Session::open(&target, kind, index, key, room, rooms_seed, makes_room).await });
    }
    while let Some(session) = logins.join_next().await {
        sessions.push(session??);
    }
    let publishers = args.publishers();
    #[expect(clippy::cast_precision_loss, reason = "a number of publishers is small")]
    let each = args.rate / publishers.max(1) as f64;
    for session in sessions {
        let plan = (session.index < publishers).then(|| Plan {
            interval: (args.rate > 0.0).then(|| Duration::from_secs_f64(1.0 / each)),
            // Publishers do not all begin in the same instant.
            offset: Duration::from_secs_f64(if args.rate > 0.0 { fraction(session.index, publishers) / each } else { 0.0 }),
            window: args.window,
            payload: args.payload,
        });
        session.start(plan, epoch, counters, stop.clone(), tasks);
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "numbers of connections are small")]
fn fraction(index: usize, of: usize) -> f64 {
    index as f64 / of.max(1) as f64
}

/// Watches the counters for as long as asked, telling how it goes every second.
async fn measure(args: &LoadArgs, counters: &Counters) -> anyhow::Result<Report> {
    let start = Snapshot::take(counters, cpu(args.server_pid)?);
    counters.latency.clear();
    let mut last = start.clone();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick.tick().await;
    for second in 1..=args.seconds.max(1) {
        tick.tick().await;
        let now = Snapshot::take(counters, None);
        super::complain(&format!("{second:>4} s  {}", now.since(&last, counters)));
        last = now;
        if counters.open.load(Ordering::Relaxed) == 0 {
            bail!("every connection is gone");
        }
    }
    let end = Snapshot::take(counters, cpu(args.server_pid)?);
    Ok(Report::new(args, &start, &end, counters))
}

/// CPU time of a process, user and system, all threads (proc(5): fields 14 and 15 of `stat`, in hundredths of a second).
fn cpu(pid: Option<u32>) -> anyhow::Result<Option<Duration>> {
    let Some(pid) = pid else { return Ok(None) };
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("cannot read /proc/{pid}/stat"))?;
    // The second field is a name in parentheses that may hold anything.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields: Vec<u64> = rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    let [user, system] = fields[..] else { bail!("/proc/{pid}/stat is not understood") };
    Ok(Some(Duration::from_millis((user + system) * 10)))
}
