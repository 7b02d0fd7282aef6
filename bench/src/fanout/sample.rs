//! One measurement: what is read before and after, and what comes of it.

use std::{
    fs::OpenOptions,
    os::unix::fs::FileExt as _,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    count::Counts,
    meter::{self, Thread},
    report::number,
};

use super::{
    contestant::Served,
    tally::Tally,
    workload::{Shape, Workload},
};

/// Everything that is read of a server at one moment, or between two.
#[derive(Debug, Clone)]
pub struct Marks {
    at: Instant,
    pub wall: Duration,
    pub cpu: Duration,
    pub threads: Vec<Thread>,
    pub counts: Counts,
    own_cpu: Duration,
}

impl Marks {
    pub fn take(served: &Served) -> anyhow::Result<Self> {
        let pid = served.id();
        Ok(Self {
            at: Instant::now(),
            wall: Duration::ZERO,
            cpu: meter::process_cpu(pid)?,
            threads: meter::threads(pid)?,
            counts: served.counts(),
            own_cpu: meter::process_cpu(std::process::id())?,
        })
    }

    /// What was used since `before`.
    pub fn since(&self, before: &Self) -> Self {
        let threads = self.threads.iter().map(|thread| {
            let Some(before) = before.threads.iter().find(|before| before.id == thread.id) else { return thread.clone() };
            Thread {
                cpu: thread.cpu.saturating_sub(before.cpu),
                sleeps: thread.sleeps - before.sleeps,
                preempted: thread.preempted - before.preempted,
                ..thread.clone()
            }
        });
        Self {
            at: self.at,
            wall: self.at - before.at,
            cpu: self.cpu.saturating_sub(before.cpu),
            threads: threads.collect(),
            counts: self.counts.since(&before.counts),
            own_cpu: self.own_cpu.saturating_sub(before.own_cpu),
        }
    }

    /// CPU time of the threads whose names begin so.
    pub fn cpu_of(&self, prefix: &str) -> Duration {
        self.threads.iter().filter(|thread| thread.name.starts_with(prefix)).map(|thread| thread.cpu).sum()
    }
}

/// What one measurement of one contestant found. What was not measured is NaN.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The round: what is compared was measured in the same one.
    pub round: usize,
    pub deliveries: u64,
    /// A second.
    pub rate: f64,
    /// Server's CPU microseconds for each delivery (W4: for each ack), without the store's.
    pub cpu_us: f64,
    /// The same of the threads that store.
    pub store_us: f64,
    /// Publish to delivery, microseconds: p50, p99, p99.9.
    pub latency_us: [f64; 3],
    /// Publish to durable ack, microseconds: the same.
    pub ack_us: [f64; 3],
    /// One sync, microseconds: the same.
    pub sync_us: [f64; 3],
    /// Messages that one sync stored.
    pub per_sync: f64,
    /// Sleeps of the server's threads for each delivery.
    pub sleeps: f64,
    pub idle_kib: f64,
    pub after_kib: f64,
    /// The same of a connection that is added to many.
    pub next_idle_kib: f64,
    pub next_after_kib: f64,
    /// Syncs a second of a raw file, beside it.
    pub syncs_per_second: f64,
    /// The generator's own CPU, as a share of one core.
    pub generator: f64,
}

impl Default for Sample {
    fn default() -> Self {
        let none = f64::NAN;
        Self {
            round: 0,
            deliveries: 0,
            rate: none,
            cpu_us: none,
            store_us: none,
            latency_us: [none; 3],
            ack_us: [none; 3],
            sync_us: [none; 3],
            per_sync: none,
            sleeps: none,
            idle_kib: none,
            after_kib: none,
            next_idle_kib: none,
            next_after_kib: none,
            syncs_per_second: none,
            generator: none,
        }
    }
}

const SHARES: [f64; 3] = [0.5, 0.99, 0.999];

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
impl Sample {
    pub fn fill(&mut self, workload: Workload, marks: &Marks, tally: &Tally) {
        let seconds = marks.wall.as_secs_f64();
        let of = |histogram: &crate::histogram::Histogram| {
            SHARES.map(|share| histogram.quantile(share).map_or(f64::NAN, |us| us as f64))
        };
        self.ack_us = of(&tally.ack_latency);
        self.latency_us = of(&tally.latency);
        self.deliveries = if workload == Workload::W4 { tally.acks.max(tally.deliveries) } else { tally.deliveries };
        let count = self.deliveries as f64;
        self.rate = count / seconds;
        let store = marks.cpu_of("store-").as_secs_f64() * 1e6;
        self.store_us = store / count;
        self.cpu_us = (marks.cpu.as_secs_f64() * 1e6 - store) / count;
        self.sync_us = SHARES.map(|share| marks.counts.sync_quantile(share));
        self.per_sync = if marks.counts.syncs == 0 { f64::NAN } else { tally.published as f64 / marks.counts.syncs as f64 };
        self.sleeps = marks.threads.iter().map(|thread| thread.sleeps).sum::<u64>() as f64 / count;
        self.generator = marks.own_cpu.as_secs_f64() / seconds;
    }

    /// One line, for who waits.
    pub fn line(&self) -> String {
        let three = |values: [f64; 3]| values.map(number).join("/");
        let mut text = String::new();
        let mut add = |name: &str, value: f64| {
            if value.is_finite() {
                text += &format!("{} {name}  ", number(value));
            }
        };
        add("/s", self.rate);
        add("CPU-µs", self.cpu_us);
        add("µs store", self.store_us);
        add("KiB idle", self.idle_kib);
        add("KiB after", self.after_kib);
        add("KiB idle of the next", self.next_idle_kib);
        add("after", self.next_after_kib);
        add("sleeps", self.sleeps);
        add("syncs/s raw", self.syncs_per_second);
        add("of a core here", self.generator);
        if self.latency_us[0].is_finite() {
            text += &format!("latency {}  ", three(self.latency_us));
        }
        if self.ack_us[0].is_finite() {
            text += &format!("acks {}  ", three(self.ack_us));
        }
        if self.sync_us[0].is_finite() {
            text += &format!("syncs {} of {}", three(self.sync_us), number(self.per_sync));
        }
        text
    }

    pub fn to_json(&self) -> Value {
        json!({
            "round": self.round, "deliveries": self.deliveries, "rate": self.rate, "cpu_us": self.cpu_us, "store_us": self.store_us,
            "latency_us": self.latency_us, "ack_us": self.ack_us, "sync_us": self.sync_us, "per_sync": self.per_sync,
            "sleeps": self.sleeps, "idle_kib": self.idle_kib, "after_kib": self.after_kib,
            "next_idle_kib": self.next_idle_kib, "next_after_kib": self.next_after_kib,
            "syncs_per_second": self.syncs_per_second, "generator_cores": self.generator,
        })
    }

    /// As [`Sample::to_json`] wrote it, and as the first versions did, which left the round to the place in the list.
    pub fn from_json((place, value): (usize, &Value)) -> Self {
        let number = |name: &str| value[name].as_f64().unwrap_or(f64::NAN);
        let three = |name: &str| [0, 1, 2].map(|index| value[name][index].as_f64().unwrap_or(f64::NAN));
        Self {
            round: value["round"].as_u64().and_then(|round| round.try_into().ok()).unwrap_or(place),
            deliveries: value["deliveries"].as_u64().unwrap_or_default(),
            rate: number("rate"),
            cpu_us: number("cpu_us"),
            store_us: number("store_us"),
            latency_us: three("latency_us"),
            ack_us: three("ack_us"),
            sync_us: three("sync_us"),
            per_sync: number("per_sync"),
            sleeps: number("sleeps"),
            idle_kib: number("idle_kib"),
            after_kib: number("after_kib"),
            next_idle_kib: number("next_idle_kib"),
            next_after_kib: number("next_after_kib"),
            syncs_per_second: number("syncs_per_second"),
            generator: number("generator_cores"),
        }
    }
}

/// Memory of a server above what it was when empty, for each connection, in KiB.
#[expect(clippy::cast_precision_loss, reason = "kibibytes")]
pub fn per_connection(pid: u32, empty: u64, shape: &Shape) -> anyhow::Result<f64> {
    Ok((meter::memory_kib(pid)? as f64 - empty as f64) / shape.connections as f64)
}

/// What each connection more takes, where so few take so much each, and so many so much.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub fn slope((few, each): (usize, f64), (many, each_of_many): (usize, f64)) -> f64 {
    (many as f64 * each_of_many - few as f64 * each) / (many as f64 - few as f64)
}

/// How often this disk syncs one message, one after the other, in so much time. It varies, so that it wants as long as what it is
/// compared with.
pub fn syncs_per_second(dir: &Path, time: Duration) -> anyhow::Result<f64> {
    std::fs::create_dir_all(dir)?;
    let path = dir.join("syncs");
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(&path)?;
    file.write_all_at(&vec![0; 4 << 20], 0)?;
    file.sync_all()?;
    let (begin, mut count) = (Instant::now(), 0_u32);
    while begin.elapsed() < time {
        file.write_all_at(&[0x5a; 256], u64::from(count % 16_000) * 256)?;
        file.sync_data()?;
        count += 1;
    }
    let rate = f64::from(count) / begin.elapsed().as_secs_f64();
    drop(std::fs::remove_file(path));
    Ok(rate)
}
