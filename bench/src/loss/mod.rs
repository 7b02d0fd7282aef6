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
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::MissedTickBehavior};
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
use link::{Conditions, Count, End, Way};

const ROOM: RoomId = RoomId([0x1a; 16]);

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
    /// Messages of a run, at 50 a second.
    #[arg(long, default_value_t = 500)]
    messages: u64,
    /// Bytes of a message.
    #[arg(long, default_value_t = 200)]
    bytes: usize,
    /// Readers beside the publisher.
    #[arg(long, default_value_t = 3)]
    readers: u64,
    /// Where results are written.
    #[arg(long, value_name = "DIR", default_value = "target/results")]
    out: PathBuf,
    /// What the results are called.
    #[arg(long, default_value = "loss")]
    name: String,
}

const KINDS: [Kind; 3] = [Kind::WebSocket, Kind::WebTransport, Kind::Quic];
/// One message each.
const EVERY: Duration = Duration::from_millis(20);

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
            "seeds": self.seeds, "first_seed": self.seed, "messages": self.messages, "per_second": 50, "bytes": self.bytes,
            "readers": self.readers,
        })
    }
}

pub fn run(args: &LossArgs) -> anyhow::Result<()> {
    let mut table =
        Table::new(&["loss", "transport", "p50 ms", "p90 ms", "p99 ms", "max ms", "p99 of seeds, ms", "bytes per delivery"]);
    let mut rounds = Vec::new();
    let mut bars: Vec<(Kind, [Vec<f64>; 2])> = KINDS.iter().map(|kind| (*kind, [Vec::new(), Vec::new()])).collect();
    for percent in &args.loss {
        for (index, kind) in KINDS.into_iter().enumerate() {
            let runs = cell(args, *percent, kind)?;
            let all = sorted(runs.iter().flat_map(|run| run.micros.iter().copied()));
            let p99: Vec<f64> = runs.iter().map(|run| at(&sorted(run.micros.iter().copied()), 99)).collect();
            let span = (p99.iter().copied().fold(f64::MAX, f64::min), p99.iter().copied().fold(0.0, f64::max));
            let down: u64 = runs.iter().map(|run| run.down.bytes).sum();
            table.row([
                format!("{percent} %"),
                kind.name().into(),
                number(at(&all, 50)),
                number(at(&all, 90)),
                number(at(&all, 99)),
                number(at(&all, 100)),
                format!("{} – {}", number(span.0), number(span.1)),
                number(down as f64 / all.len() as f64),
            ]);
            bars[index].1[0].push(at(&all, 50));
            bars[index].1[1].push(at(&all, 99));
            rounds.extend(runs.iter().map(|run| round(*percent, kind, run)));
        }
    }
    table.publish(&args.out, &args.name, args.settings(), Value::Array(rounds))?;
    let title = format!("Lateness of messages, {} ms each way, 50 a second, {} readers", args.delay_ms, args.readers);
    let names: Vec<String> = bars.iter().flat_map(|(kind, _)| ["p50", "p99"].map(|p| format!("{kind} {p}"))).collect();
    let values = bars.into_iter().flat_map(|(_, values)| values);
    let plot = Bars {
        title: &title,
        unit: "ms from publisher to reader, both over the link; packets lost each way",
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
    let edge = match Edge::start(seed, args.conditions(percent)) {
        Ok(edge) => edge,
        Err(why) => bail!("no laboratory here (root, iproute2 and /dev/net/tun are needed): {why}"),
    };
    let (readers, messages, bytes) = (args.readers, args.messages, args.bytes);
    let micros = edge.clients(move |reach| steady(reach, kind, readers, messages, bytes))?;
    Ok(Run { seed, micros, up: edge.lab.count(End::Client), down: edge.lab.count(End::Server) })
}

async fn enter(reach: &Reach, kind: Kind, seed: u64) -> anyhow::Result<Client> {
    let connection = transport::connect(&reach.target, kind).await.context("connect")?;
    let mut client = Client::new(connection, key(seed));
    client.log_in().await;
    Ok(client)
}

/// One publishes at a steady rate, the others read; how late each message was at each, from when it was due.
async fn steady(reach: Reach, kind: Kind, readers: u64, messages: u64, bytes: usize) -> anyhow::Result<Vec<u64>> {
    let mut publisher = enter(&reach, kind, 1).await?;
    publisher.create(ROOM, LogKind::Room).await;
    publisher.enter_room(ROOM).await;
    let epoch = Instant::now();
    let reading = Arc::new(tokio::sync::Barrier::new(usize::try_from(readers)? + 1));
    let mut running = JoinSet::new();
    for reader in 0..readers {
        let mut client = enter(&reach, kind, 2 + reader).await?;
        client.enter_room(ROOM).await;
        client.subscribe(ROOM, 0).await;
        client.until(|frame| matches!(frame, ServerFrame::Subscribed { .. })).await;
        let reading = Arc::clone(&reading);
        running.spawn(async move {
            reading.wait().await;
            let mut micros = Vec::new();
            while (micros.len() as u64) < messages {
                let ServerFrame::Deliver(page) = client.recv().await else { continue };
                let now = elapsed(epoch);
                for item in &page.items {
                    let payload = payload(&item.envelope);
                    let due = payload.first_chunk().map_or(0, |due| u64::from_le_bytes(*due));
                    micros.push(now.saturating_sub(due));
                }
            }
            micros
        });
    }
    reading.wait().await;
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut sent, mut acked) = (0, 0);
    while acked < messages {
        tokio::select! {
            tick = ticks.tick(), if sent < messages => {
                sent += 1;
                // A tick that comes late was due before; lateness counts from there.
                let due = u64::try_from(tick.into_std().saturating_duration_since(epoch).as_micros())?;
                let mut bytes = vec![0x77; bytes.max(8)];
                bytes[..8].copy_from_slice(&due.to_le_bytes());
                publisher.publish(ROOM, sent, &bytes).await;
            }
            frame = publisher.recv() => match frame {
                ServerFrame::Ack { .. } => acked += 1,
                ServerFrame::Refused { why, .. } => bail!("refused: {why}"),
                _ => {}
            }
        }
    }
    Ok(running.join_all().await.into_iter().flatten().collect())
}

fn elapsed(epoch: Instant) -> u64 {
    u64::try_from(epoch.elapsed().as_micros()).unwrap_or(u64::MAX)
}
