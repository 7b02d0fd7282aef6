//! `loss`: how late messages come over a link that loses some, by transport. The link is the tests' loss laboratory.

#[path = "../../../tests/lab/edge.rs"]
#[allow(dead_code, reason = "the tests use all of it")]
mod edge;
#[path = "../../../tests/lab/link.rs"]
#[allow(dead_code, reason = "the tests use all of it")]
mod link;
#[path = "../../../tests/lab/nets.rs"]
#[allow(dead_code, reason = "the tests use all of it")]
mod nets;

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::{Value, json};
use tokio::{
    sync::{Barrier, oneshot},
    task::JoinSet,
};
use waxwing::{
    core::{
        frame::{LogKind, ServerFrame},
        id::RoomId,
    },
    transport::{self, Kind},
};

use crate::{
    common::{client::Client, key, payload},
    plot::Bars,
    report::{Table, number},
};
use edge::{Edge, Reach};
use link::{Conditions, Count, End, Random, Way};
use nets::Lab;

/// Arguments of `loss`.
#[derive(Debug, Clone, Args)]
pub struct LossArgs {
    /// Shares of packets lost, in percent, each way.
    #[arg(long, value_delimiter = ',', default_value = "0,1,2,5")]
    loss: Vec<f64>,
    /// Packets lost in a row on average.
    #[arg(long, default_value_t = 1.0)]
    burst: f64,
    /// Milliseconds that a packet takes, each way.
    #[arg(long, default_value_t = 20)]
    delay_ms: u64,
    /// Milliseconds more that it takes at most, at random.
    #[arg(long, default_value_t = 0)]
    jitter_ms: u64,
    /// Kilobytes per second, each way; 0 is without limit.
    #[arg(long, default_value_t = 0)]
    rate_kb: u64,
    /// Runs of each cell, each with a seed of its own.
    #[arg(long, default_value_t = 10)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seeds that run side by side.
    #[arg(long, default_value_t = 10)]
    beside: usize,
    /// Messages of a run, in all rooms together.
    #[arg(long, default_value_t = 500)]
    messages: u64,
    /// Messages a second, in all rooms together.
    #[arg(long, default_value_t = 50)]
    per_second: u64,
    /// Rooms, each with a publisher of its own; whose turn it is, is drawn from the seed.
    #[arg(long, default_value_t = 1)]
    rooms: u64,
    /// Publishers are near the server: only the way to the readers is over the link.
    #[arg(long)]
    near: bool,
    /// Bytes of a message.
    #[arg(long, default_value_t = 200)]
    bytes: usize,
    /// Readers beside the publishers, each in all rooms.
    #[arg(long, default_value_t = 3)]
    readers: u64,
    /// TCP's congestion control, at both ends: the system's if not given.
    #[arg(long, value_name = "NAME")]
    tcp: Option<String>,
    /// Where results are written.
    #[arg(long, value_name = "DIR", default_value = "target/results")]
    out: PathBuf,
    /// What the results are called.
    #[arg(long, default_value = "loss")]
    name: String,
}

/// The first one is what the others are compared with.
const KINDS: [Kind; 3] = [Kind::WebSocket, Kind::WebTransport, Kind::Quic];

/// One run: the lateness of every message at every reader.
#[derive(Debug)]
struct Run {
    seed: u64,
    micros: Vec<u64>,
    up: Count,
    down: Count,
}

impl LossArgs {
    fn conditions(&self, percent: f64) -> Conditions {
        let way = Way {
            loss: percent / 100.0,
            burst: self.burst,
            delay: Duration::from_millis(self.delay_ms),
            jitter: Duration::from_millis(self.jitter_ms),
            rate: self.rate_kb * 1000,
            ..Way::default()
        };
        Conditions { way, ..Conditions::default() }
    }

    fn settings(&self) -> Value {
        json!({
            "burst": self.burst, "delay_ms_each_way": self.delay_ms, "jitter_ms": self.jitter_ms, "rate_kb": self.rate_kb,
            "seeds": self.seeds, "first_seed": self.seed, "messages": self.messages, "per_second": self.per_second,
            "bytes": self.bytes, "rooms": self.rooms, "near": self.near, "readers": self.readers, "tcp": self.tcp,
        })
    }

    /// When each message is due, from the first one on, and in which room.
    fn plan(&self, seed: u64) -> Vec<(Duration, u64)> {
        let mut random = Random(seed);
        let due = |n| Duration::from_micros(n * 1_000_000 / self.per_second.max(1));
        (0..self.messages).map(|n| (due(n), random.next() % self.rooms.max(1))).collect()
    }
}

pub fn run(args: &LossArgs) -> anyhow::Result<()> {
    let mut table = Table::new(&[
        "loss",
        "transport",
        "p50 ms",
        "p90 ms",
        "of ws",
        "p99 ms",
        "of ws",
        "max ms",
        "p99 of seeds, ms",
        "bytes per delivery",
    ]);
    let mut rounds = Vec::new();
    let mut bars: Vec<(Kind, [Vec<f64>; 2])> = KINDS.iter().map(|kind| (*kind, [Vec::new(), Vec::new()])).collect();
    for percent in &args.loss {
        let mut first = None;
        for (index, kind) in KINDS.into_iter().enumerate() {
            let runs = cell(args, *percent, kind)?;
            let all = sorted(runs.iter().flat_map(|run| run.micros.iter().copied()));
            let of_seeds: Vec<f64> = runs.iter().map(|run| at(&sorted(run.micros.iter().copied()), 99)).collect();
            let span = (of_seeds.iter().copied().fold(f64::MAX, f64::min), of_seeds.iter().copied().fold(0.0, f64::max));
            let (p90, p99) = (at(&all, 90), at(&all, 99));
            let (first_p90, first_p99) = *first.get_or_insert((p90, p99));
            let down: u64 = runs.iter().map(|run| run.down.bytes).sum();
            table.row([
                format!("{percent} %"),
                kind.name().into(),
                number(at(&all, 50)),
                number(p90),
                number(p90 / first_p90),
                number(p99),
                number(p99 / first_p99),
                number(at(&all, 100)),
                format!("{} – {}", number(span.0), number(span.1)),
                number(down as f64 / all.len() as f64),
            ]);
            bars[index].1[0].push(at(&all, 50));
            bars[index].1[1].push(p99);
            rounds.extend(runs.iter().map(|run| round(*percent, kind, run)));
        }
    }
    table.publish(&args.out, &args.name, args.settings(), Value::Array(rounds))?;
    let rooms = if args.rooms == 1 { "one room".to_owned() } else { format!("{} rooms", args.rooms) };
    let title = format!("Lateness of messages, {} ms each way, {} a second in {rooms}", args.delay_ms, args.per_second);
    let names: Vec<String> = bars.iter().flat_map(|(kind, _)| ["p50", "p99"].map(|p| format!("{kind} {p}"))).collect();
    let values = bars.into_iter().flat_map(|(_, values)| values);
    let plot = Bars {
        title: &title,
        unit: if args.near {
            "ms from a publisher at the server to a reader over the link; packets lost each way"
        } else {
            "ms from publisher to reader, both over the link; packets lost each way"
        },
        groups: args.loss.iter().map(|percent| format!("{percent} %")).collect(),
        series: names.iter().map(String::as_str).zip(values).collect(),
        log: true,
        mark: None,
    };
    plot.write(&args.out, &args.name)
}

fn round(percent: f64, kind: Kind, run: &Run) -> Value {
    let micros = sorted(run.micros.iter().copied());
    let count = |count: &Count| json!({"packets": count.packets, "bytes": count.bytes, "lost": count.lost, "overflowed": count.overflowed});
    json!({
        "loss_percent": percent, "transport": kind.name(), "seed": run.seed, "deliveries": micros.len(),
        "p50_ms": at(&micros, 50), "p90_ms": at(&micros, 90), "p99_ms": at(&micros, 99), "max_ms": at(&micros, 100),
        "up": count(&run.up), "down": count(&run.down),
    })
}

fn sorted(values: impl IntoIterator<Item = u64>) -> Vec<u64> {
    let mut values: Vec<u64> = values.into_iter().collect();
    values.sort_unstable();
    values
}

/// A percentile of sorted microseconds, in milliseconds: the smallest value that so many are not above.
fn at(sorted: &[u64], percent: usize) -> f64 {
    let index = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(index).map_or(f64::NAN, |micros| *micros as f64 / 1000.0)
}

/// All seeds of one cell.
fn cell(args: &LossArgs, percent: f64, kind: Kind) -> anyhow::Result<Vec<Run>> {
    let seeds: Vec<u64> = (args.seed..args.seed + args.seeds).collect();
    let mut runs = Vec::new();
    for some in seeds.chunks(args.beside.max(1)) {
        let started: Vec<_> = some
            .iter()
            .map(|seed| {
                let (args, seed) = (args.clone(), *seed);
                std::thread::spawn(move || once(&args, percent, kind, seed))
            })
            .collect();
        for run in started {
            runs.push(run.join().map_err(|_| anyhow::anyhow!("a run panicked"))??);
        }
    }
    eprintln!("{percent} % loss over {kind}: {} runs", runs.len());
    Ok(runs)
}

fn once(args: &LossArgs, percent: f64, kind: Kind, seed: u64) -> anyhow::Result<Run> {
    let started = Lab::new(seed, args.conditions(percent)).and_then(|lab| {
        args.tcp.iter().try_for_each(|name| lab.set_tcp_congestion(name))?;
        Edge::behind(lab)
    });
    let edge = match started {
        Ok(edge) => edge,
        Err(why) => bail!("no laboratory here (root, iproute2 and /dev/net/tun are needed): {why}"),
    };
    let load = Arc::new(Load {
        kind,
        rooms: args.rooms,
        readers: args.readers,
        bytes: args.bytes,
        plan: args.plan(seed),
        reading: Barrier::new(usize::try_from(args.readers + args.rooms)?),
        epoch: Instant::now(),
    });
    let (made, told) = oneshot::channel();
    let publishing = {
        let load = Arc::clone(&load);
        edge.at(if args.near { End::Server } else { End::Client }, move |reach| publishers(reach, load, made))
    };
    let micros = edge.clients(move |reach| readers(reach, load, told))?;
    publishing.join().map_err(|_| anyhow::anyhow!("a publisher panicked"))??;
    Ok(Run { seed, micros, up: edge.lab.count(End::Client), down: edge.lab.count(End::Server) })
}

/// What happens in a run.
#[derive(Debug)]
struct Load {
    kind: Kind,
    rooms: u64,
    readers: u64,
    bytes: usize,
    plan: Vec<(Duration, u64)>,
    /// Everybody is in the rooms.
    reading: Barrier,
    epoch: Instant,
}

impl Load {
    fn elapsed(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

fn room(number: u64) -> RoomId {
    let mut id = [0x1a; 16];
    id[..8].copy_from_slice(&number.to_le_bytes());
    RoomId(id)
}

async fn enter(reach: &Reach, kind: Kind, seed: u64) -> anyhow::Result<Client> {
    let connection = transport::connect(&reach.target, kind).await.context("connect")?;
    let mut client = Client::new(connection, key(seed));
    client.log_in().await;
    Ok(client)
}

/// Each publishes in a room of its own, at a steady rate all together. Tells when the rooms are there.
async fn publishers(reach: Reach, load: Arc<Load>, made: oneshot::Sender<()>) -> anyhow::Result<()> {
    let mut clients = Vec::new();
    for number in 0..load.rooms {
        let mut client = enter(&reach, load.kind, 1000 + number).await?;
        client.create(room(number), LogKind::Room).await;
        client.enter_room(room(number)).await;
        clients.push(client);
    }
    let _ = made.send(());
    let mut running = JoinSet::new();
    for (number, client) in (0..).zip(clients) {
        running.spawn(publish(client, number, Arc::clone(&load)));
    }
    running.join_all().await.into_iter().collect()
}

async fn publish(mut client: Client, number: u64, load: Arc<Load>) -> anyhow::Result<()> {
    load.reading.wait().await;
    let begun = load.epoch.elapsed();
    let mine = load.plan.iter().filter(|(_, room)| *room == number);
    let mut due: VecDeque<Duration> = mine.map(|(due, _)| begun + *due).collect();
    let (mut sent, mut acked) = (0, 0);
    loop {
        let next = due.front().copied();
        if next.is_none() && acked == sent {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep_until((load.epoch + next.unwrap_or_default()).into()), if next.is_some() => {
                // Whoever comes late was due before; lateness counts from there.
                let due = due.pop_front().unwrap_or_default();
                sent += 1;
                let mut bytes = vec![0x77; load.bytes.max(8)];
                bytes[..8].copy_from_slice(&u64::try_from(due.as_micros())?.to_le_bytes());
                client.publish(room(number), sent, &bytes).await;
            }
            frame = client.recv() => match frame {
                ServerFrame::Ack { .. } => acked += 1,
                ServerFrame::Refused { why, .. } => bail!("refused: {why}"),
                _ => {}
            }
        }
    }
}

/// How late each message was at each reader, from when it was due.
async fn readers(reach: Reach, load: Arc<Load>, made: oneshot::Receiver<()>) -> anyhow::Result<Vec<u64>> {
    made.await.context("the rooms could not be made")?;
    let mut running = JoinSet::new();
    for reader in 0..load.readers {
        let mut client = enter(&reach, load.kind, 1 + reader).await?;
        for number in 0..load.rooms {
            client.enter_room(room(number)).await;
            client.subscribe(room(number), 0).await;
            client.until(|frame| matches!(frame, ServerFrame::Subscribed { .. })).await;
        }
        running.spawn(read(client, Arc::clone(&load)));
    }
    Ok(running.join_all().await.into_iter().flatten().collect())
}

async fn read(mut client: Client, load: Arc<Load>) -> Vec<u64> {
    load.reading.wait().await;
    let mut micros = Vec::new();
    while micros.len() < load.plan.len() {
        let ServerFrame::Deliver(page) = client.recv().await else { continue };
        let now = load.elapsed();
        for item in &page.items {
            let payload = payload(&item.envelope);
            let due = payload.first_chunk().map_or(0, |due| u64::from_le_bytes(*due));
            micros.push(now.saturating_sub(due));
        }
    }
    micros
}
