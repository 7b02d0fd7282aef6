//! What came of it.

use std::{collections::BTreeMap, fmt, sync::PoisonError, sync::atomic::Ordering, time::Duration};

use serde_json::json;
use tokio::time::Instant;

use super::{LoadArgs, session::Counters};

/// The counters at one moment.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    at: Instant,
    deliveries: u64,
    acks: u64,
    refused: u64,
    cpu: Option<Duration>,
}

impl Snapshot {
    pub(super) fn take(counters: &Counters, cpu: Option<Duration>) -> Self {
        Self {
            at: Instant::now(),
            deliveries: counters.deliveries.load(Ordering::Relaxed),
            acks: counters.acks.load(Ordering::Relaxed),
            refused: counters.refused.lock().unwrap_or_else(PoisonError::into_inner).values().sum(),
            cpu,
        }
    }

    /// One line about the time since `last`.
    pub(super) fn since(&self, last: &Self, counters: &Counters) -> String {
        let seconds = (self.at - last.at).as_secs_f64();
        format!(
            "{:>9.0} deliveries/s  {:>8.0} acks/s  p50 {:>7} µs  p99 {:>7} µs  {} refused",
            per(self.deliveries - last.deliveries, seconds),
            per(self.acks - last.acks, seconds),
            micros(counters.latency.quantile(0.5)),
            micros(counters.latency.quantile(0.99)),
            self.refused - last.refused,
        )
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn per(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds
}

fn micros(value: Option<u64>) -> String {
    value.map_or_else(|| "–".into(), |value| value.to_string())
}

/// The whole measurement.
#[derive(Debug)]
pub(super) struct Report {
    args: LoadArgs,
    seconds: f64,
    deliveries: u64,
    acks: u64,
    /// p50, p99, p99.9, maximum, in microseconds.
    latency: [Option<u64>; 4],
    cpu_micros_per_delivery: Option<f64>,
    refused: BTreeMap<&'static str, u64>,
    lost: u64,
}

impl Report {
    pub(super) fn new(args: &LoadArgs, start: &Snapshot, end: &Snapshot, counters: &Counters) -> Self {
        let deliveries = end.deliveries - start.deliveries;
        let cpu = end.cpu.zip(start.cpu).map(|(end, start)| end.saturating_sub(start));
        Self {
            args: args.clone(),
            seconds: (end.at - start.at).as_secs_f64(),
            deliveries,
            acks: end.acks - start.acks,
            latency: [0.5, 0.99, 0.999, 1.0].map(|share| counters.latency.quantile(share)),
            cpu_micros_per_delivery: cpu.filter(|_| deliveries > 0).map(|cpu| 1.0 / per(deliveries, cpu.as_secs_f64() * 1e6)),
            refused: counters.refused.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            lost: counters.lost.load(Ordering::Relaxed),
        }
    }

    pub(super) fn to_json(&self) -> serde_json::Value {
        let [p50, p99, p999, max] = self.latency;
        json!({
            "connections": self.args.connections,
            "rooms": self.args.rooms,
            "publishers": self.args.publishers(),
            "rate": self.args.rate,
            "payload_bytes": self.args.payload,
            "transport": self.args.transport,
            "seconds": self.seconds,
            "deliveries": self.deliveries,
            "deliveries_per_s": per(self.deliveries, self.seconds),
            "acks": self.acks,
            "acks_per_s": per(self.acks, self.seconds),
            "publish_to_deliver_us": { "p50": p50, "p99": p99, "p999": p999, "max": max },
            "server_cpu_us_per_delivery": self.cpu_micros_per_delivery,
            "refused": self.refused,
            "connections_lost": self.lost,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99, p999, max] = self.latency.map(micros);
        let args = &self.args;
        writeln!(
            f,
            "{} connections in {} rooms over {}, {} bytes, {:.1} s",
            args.connections, args.rooms, args.transport, args.payload, self.seconds
        )?;
        writeln!(f, "  deliveries         {:.0}/s ({})", per(self.deliveries, self.seconds), self.deliveries)?;
        writeln!(f, "  acks               {:.0}/s ({})", per(self.acks, self.seconds), self.acks)?;
        writeln!(f, "  publish to deliver p50 {p50} µs, p99 {p99} µs, p99.9 {p999} µs, max {max} µs")?;
        if let Some(cpu) = self.cpu_micros_per_delivery {
            writeln!(f, "  server CPU         {cpu:.2} µs per delivery")?;
        }
        for (why, count) in &self.refused {
            writeln!(f, "  refused            {count} × {why}")?;
        }
        if self.refused.contains_key("rate_limited") {
            writeln!(f, "  (more needs limits.publishes_per_second_max and publish_burst_max raised at the server)")?;
        }
        if self.lost > 0 {
            writeln!(f, "  connections lost   {}", self.lost)?;
        }
        Ok(())
    }
}
