//! Our targets, and how far the latest runs are from them.

use std::{collections::BTreeMap, path::Path};

use serde_json::json;

use crate::report::{Table, number};

use super::{
    contestant::{Contestant, Who, Wire},
    report::{middle, of_floor, read},
    sample::Sample,
    workload::Workload,
};

type Found = BTreeMap<(Workload, Contestant), Vec<Sample>>;

/// One figure: what it is, the target, how it is found.
struct Row {
    what: &'static str,
    target: f64,
    stretch: f64,
    /// More is better.
    at_least: bool,
    /// What the floor took where the target was set, and how to find how much of the floor it is here. With it, figures of two machines
    /// compare.
    floor: Option<(f64, Find)>,
    find: Find,
}

/// The p50, p99 and p99.9 of a delivery.
const LATENCIES: [fn(&Sample) -> f64; 3] =
    [|sample| sample.latency_us[0], |sample| sample.latency_us[1], |sample| sample.latency_us[2]];

/// By the floor it is compared in acks: both have the same disk, whose syncs are counted at another moment.
const ACKS_A_SYNC: &str = "W4, ws, acks a sync of the raw disk";

/// Finds a figure.
type Find = Box<dyn Fn(&Found) -> f64>;

fn of(workload: Workload, who: Who, wire: Wire, figure: fn(&Sample) -> f64) -> impl Fn(&Found) -> f64 {
    move |found| found.get(&(workload, Contestant { who, wire })).map_or(f64::NAN, |samples| middle(samples, figure))
}

fn rows() -> Vec<Row> {
    use Workload::{W1, W1Saturation, W2, W3, W4};
    let mut rows = Vec::new();
    let mut row =
        |what, target, stretch, find: Find| rows.push(Row { what, target, stretch, at_least: false, floor: None, find });
    let cpu: fn(&Sample) -> f64 = |sample| sample.cpu_us;
    let waxwing = |workload, wire, figure| Box::new(of(workload, Who::Waxwing, wire, figure)) as Find;
    let ephemeral = |workload, wire| Box::new(of(workload, Who::WaxwingEphemeral, wire, cpu)) as Find;
    row("W1 rate, ws, CPU-µs", 9.0, 8.5, waxwing(W1, Wire::Ws, cpu));
    row("W1 rate, wss, CPU-µs", 10.3, 9.3, waxwing(W1, Wire::Wss, cpu));
    row("W1 saturation, ws, CPU-µs", 1.2, 1.0, waxwing(W1Saturation, Wire::Ws, cpu));
    row("W1 saturation, wss, CPU-µs", 1.6, 1.3, waxwing(W1Saturation, Wire::Wss, cpu));
    row("W2 rate, ws, CPU-µs", 15.0, 13.5, waxwing(W2, Wire::Ws, cpu));
    row("W2 rate, wss, CPU-µs", 18.0, 16.5, waxwing(W2, Wire::Wss, cpu));
    let latency = |who, index: usize| Box::new(of(W2, who, Wire::Ws, LATENCIES[index])) as Find;
    row("W2 latency, ws, without syncs, p50 µs", 115.0, 96.0, latency(Who::WaxwingNoSync, 0));
    row("W2 latency, ws, without syncs, p99 µs", 200.0, 154.0, latency(Who::WaxwingNoSync, 1));
    row("W2 latency, ws, without syncs, p99.9 µs", 500.0, 356.0, latency(Who::WaxwingNoSync, 2));
    row("W2 rate, ws, without a commit, CPU-µs", 15.0, 13.5, ephemeral(W2, Wire::Ws));
    row("W2 rate, wss, without a commit, CPU-µs", 18.0, 16.5, ephemeral(W2, Wire::Wss));
    row("W2 latency, ws, without a commit, p50 µs", 115.0, 96.0, latency(Who::WaxwingEphemeral, 0));
    row("W2 latency, ws, without a commit, p99 µs", 200.0, 154.0, latency(Who::WaxwingEphemeral, 1));
    row("W2 latency, ws, without a commit, p99.9 µs", 500.0, 356.0, latency(Who::WaxwingEphemeral, 2));
    let idle = |wire| waxwing(W3, wire, |sample| sample.idle_kib);
    let grown = |wire| waxwing(W3, wire, |sample| sample.after_kib - sample.idle_kib);
    let next_idle = |wire| waxwing(W3, wire, |sample| sample.next_idle_kib);
    let next_grown = |wire| waxwing(W3, wire, |sample| sample.next_after_kib - sample.next_idle_kib);
    row("idle, ws, KiB", 3.0, 1.5, idle(Wire::Ws));
    row("idle, ws, of the next connection, KiB", 3.0, 1.5, next_idle(Wire::Ws));
    row("idle, wss, KiB", 10.0, 5.0, idle(Wire::Wss));
    row("idle, wss, of the next connection, KiB", 10.0, 5.0, next_idle(Wire::Wss));
    row("after traffic, ws, KiB more", 2.0, 2.0, grown(Wire::Ws));
    row("after traffic, ws, of the next connection, KiB more", 2.0, 2.0, next_grown(Wire::Ws));
    row("after traffic, wss, KiB more", 2.0, 2.0, grown(Wire::Wss));
    row("after traffic, wss, of the next connection, KiB more", 2.0, 2.0, next_grown(Wire::Wss));
    row("WebTransport, W1 rate, CPU-µs", 24.0, 18.0, waxwing(W1, Wire::Wt, cpu));
    row("WebTransport, W1 saturation, CPU-µs", 2.6, 1.9, waxwing(W1Saturation, Wire::Wt, cpu));
    row("WebTransport, W2 rate, CPU-µs", 54.0, 44.0, waxwing(W2, Wire::Wt, cpu));
    row("WebTransport datagrams, W1 rate, CPU-µs", 22.0, 16.0, ephemeral(W1, Wire::Wt));
    row("WebTransport datagrams, W1 saturation, CPU-µs", 3.0, 1.8, ephemeral(W1Saturation, Wire::Wt));
    let wt_latency: fn(usize) -> Find = |index| match index {
        0 => Box::new(of(W2, Who::WaxwingNoSync, Wire::Wt, |sample| sample.latency_us[0])),
        _ => Box::new(of(W2, Who::WaxwingNoSync, Wire::Wt, |sample| sample.latency_us[1])),
    };
    row("WebTransport, W2 latency without syncs, p50 µs", 230.0, 200.0, wt_latency(0));
    row("WebTransport, W2 latency without syncs, p99 µs", 1500.0, 450.0, wt_latency(1));
    row("idle, raw QUIC, KiB", 44.0, 25.0, idle(Wire::Quic));
    row("idle, raw QUIC, of the next connection, KiB", 44.0, 25.0, next_idle(Wire::Quic));
    row("idle, WebTransport, KiB", 64.0, 32.0, idle(Wire::Wt));
    row("idle, WebTransport, of the next connection, KiB", 64.0, 32.0, next_idle(Wire::Wt));
    row("after traffic, raw QUIC, KiB more", 64.0, 16.0, grown(Wire::Quic));
    row("after traffic, WebTransport, KiB more", 64.0, 16.0, grown(Wire::Wt));
    row("W4, ws, p99 ms", 7.0, 3.6, waxwing(W4, Wire::Ws, |sample| sample.ack_us[1] / 1e3));
    row("W4, ws, CPU-µs, with the store's", 16.0, 10.5, waxwing(W4, Wire::Ws, |sample| sample.cpu_us + sample.store_us));
    rows.push(Row {
        what: ACKS_A_SYNC,
        target: 9.0,
        stretch: 12.0,
        at_least: true,
        floor: None,
        find: waxwing(W4, Wire::Ws, |sample| sample.rate / sample.syncs_per_second),
    });
    for row in &mut rows {
        row.floor = floor(row.what);
    }
    rows
}

/// For some rows: see [`Row::floor`].
fn floor(what: &str) -> Option<(f64, Find)> {
    use Workload::{W1, W1Saturation, W2, W4};
    // Over UDP by the library's toy, whose figures the targets were set beside.
    let beside = |who, wire| match wire {
        Wire::Wt => Contestant { who: Who::Toy, wire },
        _ => Contestant { who, wire }.floor(),
    };
    let cpu = |there, who, workload, wire| {
        let find = move |found: &Found| {
            let samples = |contestant| found.get(&(workload, contestant)).map_or(&[][..], Vec::as_slice);
            of_floor(samples(Contestant { who, wire }), samples(beside(who, wire)))
        };
        Some((there, Box::new(find) as Find))
    };
    let latency = |there, who, wire, index: usize| {
        let Contestant { who: floor, wire: same } = beside(who, wire);
        let [ours, floor] = [(who, wire), (floor, same)].map(|(who, wire)| of(W2, who, wire, LATENCIES[index]));
        Some((there, Box::new(move |found: &Found| ours(found) / floor(found)) as Find))
    };
    let durable = |there, figure: fn(&Sample) -> f64| {
        let [ours, floor] = [Who::Waxwing, Who::Floor].map(|who| of(W4, who, Wire::Ws, figure));
        Some((there, Box::new(move |found: &Found| ours(found) / floor(found)) as Find))
    };
    match what {
        "W1 rate, ws, CPU-µs" => cpu(8.0, Who::Waxwing, W1, Wire::Ws),
        "W1 rate, wss, CPU-µs" => cpu(9.5, Who::Waxwing, W1, Wire::Wss),
        "W1 saturation, ws, CPU-µs" => cpu(0.87, Who::Waxwing, W1Saturation, Wire::Ws),
        "W1 saturation, wss, CPU-µs" => cpu(1.49, Who::Waxwing, W1Saturation, Wire::Wss),
        "W2 rate, ws, CPU-µs" => cpu(12.2, Who::Waxwing, W2, Wire::Ws),
        "W2 rate, wss, CPU-µs" => cpu(15.1, Who::Waxwing, W2, Wire::Wss),
        "W2 rate, ws, without a commit, CPU-µs" => cpu(12.2, Who::WaxwingEphemeral, W2, Wire::Ws),
        "W2 rate, wss, without a commit, CPU-µs" => cpu(15.1, Who::WaxwingEphemeral, W2, Wire::Wss),
        "W2 latency, ws, without syncs, p50 µs" => latency(96.0, Who::WaxwingNoSync, Wire::Ws, 0),
        "W2 latency, ws, without syncs, p99 µs" => latency(154.0, Who::WaxwingNoSync, Wire::Ws, 1),
        "W2 latency, ws, without syncs, p99.9 µs" => latency(356.0, Who::WaxwingNoSync, Wire::Ws, 2),
        "W2 latency, ws, without a commit, p50 µs" => latency(96.0, Who::WaxwingEphemeral, Wire::Ws, 0),
        "W2 latency, ws, without a commit, p99 µs" => latency(154.0, Who::WaxwingEphemeral, Wire::Ws, 1),
        "W2 latency, ws, without a commit, p99.9 µs" => latency(356.0, Who::WaxwingEphemeral, Wire::Ws, 2),
        "WebTransport, W1 rate, CPU-µs" => cpu(24.3, Who::Waxwing, W1, Wire::Wt),
        "WebTransport, W1 saturation, CPU-µs" => cpu(3.0, Who::Waxwing, W1Saturation, Wire::Wt),
        "WebTransport, W2 rate, CPU-µs" => cpu(53.8, Who::Waxwing, W2, Wire::Wt),
        "WebTransport, W2 latency without syncs, p50 µs" => latency(203.0, Who::WaxwingNoSync, Wire::Wt, 0),
        "WebTransport, W2 latency without syncs, p99 µs" => latency(1311.0, Who::WaxwingNoSync, Wire::Wt, 1),
        "W4, ws, p99 ms" => durable(3.6, |sample| sample.ack_us[1]),
        "W4, ws, CPU-µs, with the store's" => durable(10.5, |sample| sample.cpu_us + sample.store_us),
        ACKS_A_SYNC => durable(12.7, |sample| sample.rate),
        _ => None,
    }
}

/// Writes the table, from all results that are there.
pub fn publish(out: &Path) -> anyhow::Result<()> {
    let found: Found = Workload::ALL
        .into_iter()
        .flat_map(|workload| read(out, workload).into_iter().map(move |(contestant, samples)| ((workload, contestant), samples)))
        .collect();
    let mut table = Table::new(&[
        "target",
        "measured",
        "asked",
        "measured/asked",
        "stretch",
        "reached",
        "of the floor",
        "asked of the floor",
    ]);
    let mut all = Vec::new();
    for row in rows() {
        let measured = (row.find)(&found);
        let good = |asked: f64| if row.at_least { measured >= asked } else { measured <= asked };
        let reached = match () {
            () if measured.is_nan() => "not measured",
            () if good(row.stretch) => "yes, and the stretch",
            () if good(row.target) => "yes",
            () => "no",
        };
        let sign = if row.at_least { "≥" } else { "≤" };
        let asked = format!("{sign} {}", number(row.target));
        let (of_floor, asked_of_floor) =
            row.floor.map_or((f64::NAN, f64::NAN), |(there, find)| (find(&found), row.target / there));
        table.row([
            row.what.to_owned(),
            number(measured),
            asked,
            number(measured / row.target),
            number(row.stretch),
            reached.to_owned(),
            number(of_floor),
            number(asked_of_floor),
        ]);
        all.push(json!({
            "what": row.what, "measured": measured, "target": row.target, "stretch": row.stretch, "reached": reached,
            "of_floor": of_floor, "asked_of_floor": asked_of_floor,
        }));
    }
    table.write(out, "fanout-targets", json!({}), all.into())
}
