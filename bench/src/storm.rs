//! `storm`: everybody reconnects at once, each some messages behind. What it costs the server, against delivering the same
//! messages live.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;
use tokio::{sync::Semaphore, task::JoinSet};
use waxwing::{
    core::{
        frame::{LogKind, ServerFrame},
        id::RoomId,
    },
    transport::{Kind, connect},
};

use crate::{
    Common,
    common::{audit::Server, client::Client, key},
    meter,
    report::{Table, median, number},
    server,
};

/// Arguments of `storm`.
#[derive(Debug, Clone, Args)]
pub struct StormArgs {
    #[command(flatten)]
    common: Common,
    /// Subscribers.
    #[arg(long, default_value_t = 10_000)]
    subscribers: usize,
    /// Rooms that they are spread over.
    #[arg(long, default_value_t = 100)]
    storm_rooms: usize,
    /// Messages that each is behind.
    #[arg(long, default_value_t = 50)]
    behind: u64,
    /// Seconds over which the messages that are delivered live are spread.
    #[arg(long, default_value_t = 10.0)]
    live_seconds: f64,
    /// Seconds after the last message until they come back: after 30 Waxwing has no recent messages in memory any more.
    #[arg(long, default_value_t = 0.0)]
    away_seconds: f64,
    /// Rounds; the median is reported.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How to connect.
    #[arg(long, default_value = "ws", value_parser = ["ws", "wt", "quic"])]
    transport: String,
}

/// CPU time of the server and time that passed, in seconds.
#[derive(Debug, Clone, Copy)]
struct Cost {
    cpu: f64,
    wall: f64,
}

struct Round {
    live: Cost,
    storm: Cost,
    /// The same reconnecting with nothing to catch up.
    logins: Cost,
}

pub fn run(args: &StormArgs) -> anyhow::Result<()> {
    let dir = args.common.dir.join("storm");
    drop(fs::remove_dir_all(&dir));
    meter::check_disk(&dir)?;
    meter::raise_file_limit();
    let more = [
        "connections_per_address_max=50000",
        "limits.handshake_timeout_ms=60000",
        "limits.idle_timeout_ms=600000",
        "log_level=error",
    ];
    let command = server::command(&dir, &more)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let rounds = runtime.block_on(async {
        let server = Arc::new(Server::start(&mut command()).await);
        let mut storm = Storm::new(args, server).await?;
        let mut rounds = Vec::new();
        for number in 1..=args.rounds.max(1) {
            eprintln!("round {number}/{}", args.rounds);
            rounds.push(storm.round().await?);
        }
        anyhow::Ok(rounds)
    })?;
    drop(runtime);
    drop(fs::remove_dir_all(&dir));
    report(args, &rounds)
}

struct Storm {
    args: StormArgs,
    server: Arc<Server>,
    kind: Kind,
    rooms: Vec<RoomId>,
    publishers: Vec<Client>,
    /// Messages in each room.
    head: u64,
}

impl Storm {
    async fn new(args: &StormArgs, server: Arc<Server>) -> anyhow::Result<Self> {
        let kind = match args.transport.as_str() {
            "wt" => Kind::WebTransport,
            "quic" => Kind::Quic,
            _ => Kind::WebSocket,
        };
        let (mut rooms, mut publishers) = (Vec::new(), Vec::new());
        for index in 0..args.storm_rooms {
            let mut id = [0x77; 16];
            id[..8].copy_from_slice(&(index as u64).to_le_bytes());
            let mut client = server.login(Kind::WebSocket, (1 << 40) + index as u64).await;
            client.create(RoomId(id), LogKind::Room).await;
            client.enter_room(RoomId(id)).await;
            rooms.push(RoomId(id));
            publishers.push(client);
        }
        Ok(Self { args: args.clone(), server, kind, rooms, publishers, head: 0 })
    }

    async fn round(&mut self) -> anyhow::Result<Round> {
        let behind = self.args.behind;
        // Everybody is there, and messages come.
        let (mut subscribers, _) = self.connect(self.head, 0, 64).await?;
        self.quiet().await?;
        let (begin, cpu) = (Instant::now(), self.cpu()?);
        let seen = Arc::new(AtomicU64::new(0));
        let mut readers = JoinSet::new();
        for client in subscribers.drain(..) {
            readers.spawn(read(client, behind, Arc::clone(&seen)));
        }
        self.publish(Duration::from_secs_f64(self.args.live_seconds) / u32::try_from(behind.max(1))?).await?;
        let clients = all(readers).await?;
        let live = Cost { cpu: self.cpu()? - cpu, wall: begin.elapsed().as_secs_f64() };
        eprintln!("  live:    {:>6} s CPU in {} s", number(live.cpu), number(live.wall));
        self.leave(clients).await?;
        // Nobody is there, messages come, and then everybody.
        self.publish(Duration::ZERO).await?;
        tokio::time::sleep(Duration::from_secs_f64(self.args.away_seconds)).await;
        self.quiet().await?;
        let cpu = self.cpu()?;
        let (clients, wall) = self.connect(self.head - behind, behind, usize::MAX).await?;
        let storm = Cost { cpu: self.cpu()? - cpu, wall };
        eprintln!("  storm:   {:>6} s CPU in {} s", number(storm.cpu), number(storm.wall));
        self.leave(clients).await?;
        // The same, with nothing to catch up.
        let cpu = self.cpu()?;
        let (clients, wall) = self.connect(self.head, 0, usize::MAX).await?;
        let logins = Cost { cpu: self.cpu()? - cpu, wall };
        eprintln!("  logins:  {:>6} s CPU in {} s", number(logins.cpu), number(logins.wall));
        self.leave(clients).await?;
        Ok(Round { live, storm, logins })
    }

    /// CPU time of the server so far, in seconds.
    fn cpu(&self) -> anyhow::Result<f64> {
        Ok(meter::ticks(self.server.id())?.as_secs_f64())
    }

    /// Waits until the server does nothing any more.
    async fn quiet(&self) -> anyhow::Result<()> {
        let mut last = self.cpu()?;
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let now = self.cpu()?;
            if now - last < 0.011 {
                return Ok(());
            }
            last = now;
        }
    }

    /// Everybody says goodbye.
    async fn leave(&self, clients: Vec<Client>) -> anyhow::Result<()> {
        drop(clients);
        self.quiet().await
    }

    /// Logs all subscribers in, `at_once` at a time; each subscribes after `after` and reads `count` messages.
    async fn connect(&self, after: u64, count: u64, at_once: usize) -> anyhow::Result<(Vec<Client>, f64)> {
        let begin = Instant::now();
        let gate = Arc::new(Semaphore::new(at_once.min(Semaphore::MAX_PERMITS)));
        let seen = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for index in 0..self.args.subscribers {
            let (server, gate, seen) = (Arc::clone(&self.server), Arc::clone(&gate), Arc::clone(&seen));
            let (kind, room) = (self.kind, self.rooms[index % self.rooms.len()]);
            tasks.spawn(async move {
                let permit = gate.acquire().await?;
                let connection = connect(&server.target, kind).await?;
                let mut client = Client::new(connection, key(index as u64));
                client.log_in().await;
                client.enter_room(room).await;
                client.subscribe(room, after).await;
                client.until(|frame| matches!(frame, ServerFrame::Subscribed { .. })).await;
                drop(permit);
                read(client, count, seen).await
            });
        }
        Ok((all(tasks).await?, begin.elapsed().as_secs_f64()))
    }

    /// Publishes `behind` messages in each room, `pause` apart, and waits for their acks.
    async fn publish(&mut self, pause: Duration) -> anyhow::Result<()> {
        let ciphertext = vec![0x5a; self.args.common.payload.saturating_sub(96)];
        let mut due = tokio::time::Instant::now();
        for _ in 0..self.args.behind {
            self.head += 1;
            for (client, room) in self.publishers.iter_mut().zip(&self.rooms) {
                client.try_publish(*room, self.head, &ciphertext).await?;
            }
            for client in &mut self.publishers {
                let answer = |frame: &ServerFrame| matches!(frame, ServerFrame::Ack { .. } | ServerFrame::Refused { .. });
                if let ServerFrame::Refused { why, .. } = client.until(answer).await {
                    bail!("a publish was refused: {why}");
                }
            }
            due += pause;
            tokio::time::sleep_until(due).await;
        }
        Ok(())
    }
}

/// Reads so many messages.
async fn read(mut client: Client, count: u64, seen: Arc<AtomicU64>) -> anyhow::Result<Client> {
    let mut own = 0;
    while own < count {
        let ServerFrame::Deliver(page) = client.until(|frame| matches!(frame, ServerFrame::Deliver(_))).await else {
            bail!("no page")
        };
        own += page.items.len() as u64;
        seen.fetch_add(page.items.len() as u64, Ordering::Relaxed);
    }
    Ok(client)
}

async fn all(mut tasks: JoinSet<anyhow::Result<Client>>) -> anyhow::Result<Vec<Client>> {
    let mut clients = Vec::with_capacity(tasks.len());
    while let Some(done) = tasks.join_next().await {
        clients.push(done.context("a client failed")??);
    }
    Ok(clients)
}

/// What a round took of one kind.
type Figure = fn(&Round) -> Cost;

fn report(args: &StormArgs, rounds: &[Round]) -> anyhow::Result<()> {
    let mut table = Table::new(&["what the server does", "CPU s", "of live", "wall s", "CPU-µs/delivery"]);
    #[expect(clippy::cast_precision_loss, reason = "a number of messages")]
    let deliveries = args.subscribers as f64 * args.behind as f64;
    let rows: [(&str, Figure); 3] = [
        ("delivers live", |round| round.live),
        ("takes everybody back, each behind", |round| round.storm),
        ("takes everybody back, nobody behind", |round| round.logins),
    ];
    for (what, of) in rows {
        let cpu = median(rounds.iter().map(|round| of(round).cpu));
        let ratio = median(rounds.iter().map(|round| of(round).cpu / round.live.cpu));
        let wall = median(rounds.iter().map(|round| of(round).wall));
        let each = if what.ends_with("nobody behind") { f64::NAN } else { cpu / deliveries * 1e6 };
        table.row([what.to_owned(), number(cpu), number(ratio), number(wall), number(each)]);
    }
    let cost = |cost: Cost| json!({ "cpu_s": cost.cpu, "wall_s": cost.wall });
    let all =
        rounds.iter().map(|round| json!({ "live": cost(round.live), "storm": cost(round.storm), "logins": cost(round.logins) }));
    let settings = json!({
        "subscribers": args.subscribers, "rooms": args.storm_rooms, "behind": args.behind, "payload": args.common.payload,
        "live_seconds": args.live_seconds, "transport": args.transport, "rounds": args.rounds,
    });
    table.publish(&args.common.out, "storm", settings, all.collect())
}
