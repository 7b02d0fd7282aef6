//! Tables and plots of the workloads.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};

use crate::{
    plot::Bars,
    report::{Table, median, number},
};

use super::{FanoutArgs, Results, contestant::Contestant, sample::Sample, workload::Workload};

/// The file of a workload's results.
pub fn file(workload: Workload) -> String {
    format!("fanout-{}", workload.name())
}

/// What an earlier run found.
pub fn read(out: &Path, workload: Workload) -> BTreeMap<Contestant, Vec<Sample>> {
    let text = fs::read_to_string(out.join(file(workload) + ".json")).unwrap_or_default();
    let all: Value = serde_json::from_str(&text).unwrap_or_default();
    let rounds = all["rounds"].as_object().into_iter().flatten();
    let samples = |list: &Value| list.as_array().into_iter().flatten().enumerate().map(Sample::from_json).collect();
    rounds.filter_map(|(name, list)| Some((name.parse().ok()?, samples(list)))).collect()
}

/// The median of a figure over a contestant's rounds.
pub fn middle(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    median(samples.iter().map(of).filter(|value| value.is_finite()))
}

type Column = (&'static str, fn(&Sample) -> f64);

fn columns(workload: Workload) -> Vec<Column> {
    let count: [Column; 3] = [("deliveries/s", |s| s.rate), ("CPU-µs", |s| s.cpu_us), ("+ store's", |s| s.store_us)];
    let latency: [Column; 3] = [("p50 µs", |s| s.latency_us[0]), ("p99", |s| s.latency_us[1]), ("p99.9", |s| s.latency_us[2])];
    let sleeps: [Column; 1] = [("sleeps", |s| s.sleeps)];
    let after: [Column; 1] = [("after KiB", |s| s.after_kib)];
    let syncs: [Column; 3] = [("sync p50 µs", |s| s.sync_us[0]), ("p99 ", |s| s.sync_us[1]), ("p99.9 ", |s| s.sync_us[2])];
    match workload {
        Workload::W3 => {
            vec![
                ("idle KiB", |s| s.idle_kib),
                ("after traffic", |s| s.after_kib),
                ("grown", |s| s.after_kib - s.idle_kib),
                ("the next one: idle KiB", |s| s.next_idle_kib),
                ("after traffic ", |s| s.next_after_kib),
                ("grown ", |s| s.next_after_kib - s.next_idle_kib),
            ]
        }
        Workload::W4 => vec![
            ("acks/s", |s| s.rate),
            ("× syncs/s", |s| s.rate / s.syncs_per_second),
            ("CPU-µs", |s| s.cpu_us),
            ("+ store's", |s| s.store_us),
            ("p50 ms", |s| s.ack_us[0] / 1e3),
            ("p99", |s| s.ack_us[1] / 1e3),
            ("p99.9", |s| s.ack_us[2] / 1e3),
            ("acks/sync", |s| s.per_sync),
        ],
        Workload::W1Saturation => count.into_iter().chain(sleeps).chain(after).collect(),
        Workload::W1 | Workload::W2 => count.into_iter().chain(latency).chain(syncs).chain(sleeps).collect(),
    }
}

pub fn publish(args: &FanoutArgs, workload: Workload, results: &Results) -> anyhow::Result<()> {
    let out = &args.common.out;
    let mut all = if args.add { read(out, workload) } else { BTreeMap::new() };
    for ((_, contestant), samples) in results {
        all.insert(*contestant, samples.clone());
    }
    let columns = columns(workload);
    let header: Vec<&'static str> = ["server"]
        .into_iter()
        .chain(columns.iter().map(|(name, _)| *name))
        .chain((workload != Workload::W3).then_some("of the floor"))
        .collect();
    let mut table = Table::new(&header);
    for (contestant, samples) in &all {
        let mut cells = vec![contestant.title()];
        cells.extend(columns.iter().map(|(_, of)| number(middle(samples, of))));
        if workload != Workload::W3 {
            cells.push(number(ratio(&all, *contestant)));
        }
        table.row(cells);
    }
    let rounds: BTreeMap<String, Vec<Value>> =
        all.iter().map(|(contestant, samples)| (contestant.to_string(), samples.iter().map(Sample::to_json).collect())).collect();
    let settings = json!({
        "seconds": args.seconds, "rounds": args.rounds, "window": args.window, "w3_connections": args.connections, "set": args.settings,
    });
    table.publish(out, &file(workload), settings, serde_json::to_value(rounds)?)?;
    draw(out, workload, &all)
}

/// CPU time against the floor's of the same round (the same transport's, or TLS's): its own, without the store's.
fn ratio(all: &BTreeMap<Contestant, Vec<Sample>>, contestant: Contestant) -> f64 {
    let (Some(own), Some(floor)) = (all.get(&contestant), all.get(&contestant.floor())) else { return f64::NAN };
    of_floor(own, floor)
}

/// The median of the ratios of CPU time, over the rounds in which both were measured: what the machine does meanwhile happens to both.
pub fn of_floor(own: &[Sample], floor: &[Sample]) -> f64 {
    let beside = |own: &Sample| floor.iter().find(|floor| floor.round == own.round);
    median(own.iter().filter_map(|own| Some(own.cpu_us / beside(own)?.cpu_us)))
}

fn draw(out: &Path, workload: Workload, all: &BTreeMap<Contestant, Vec<Sample>>) -> anyhow::Result<()> {
    let (title, unit, of): (&str, &str, fn(&Sample) -> f64) = match workload {
        Workload::W1 => {
            ("A room of 1,000, 30 messages a second", "server's CPU-µs a delivery, without the store's", |s| s.cpu_us)
        }
        Workload::W1Saturation => {
            ("A room of 1,000, saturated", "server's CPU-µs a delivery, without the store's; logarithmic", |s| s.cpu_us)
        }
        Workload::W2 => {
            ("1,000 rooms of 5, 2,000 messages a second", "server's CPU-µs a delivery, without the store's", |s| s.cpu_us)
        }
        Workload::W3 => ("Memory of an idle connection", "KiB; logarithmic", |s| s.idle_kib),
        Workload::W4 => {
            ("Durable acks, 200 publishers", "acks a second, as a multiple of syncs a second", |s| s.rate / s.syncs_per_second)
        }
    };
    let mut titles: Vec<(String, f64)> =
        all.iter().map(|(contestant, samples)| (contestant.title(), middle(samples, of))).collect();
    titles.retain(|(_, value)| value.is_finite());
    let series = titles.iter().map(|(title, value)| (title.as_str(), vec![*value])).collect();
    let log = matches!(workload, Workload::W1Saturation | Workload::W3);
    Bars { title, unit, groups: vec![String::new()], series, log, mark: None }.write(out, &file(workload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_compared_with_themselves() {
        let sample = |round, cpu_us| Sample { round, cpu_us, ..Sample::default() };
        let floor = [sample(0, 1.0), sample(1, 10.0), sample(2, 2.0)];
        // The ratio of the medians is 12 / 2.
        assert_eq!(of_floor(&[sample(0, 2.0), sample(1, 12.0), sample(2, 30.0)], &floor), 2.0);
        assert_eq!(of_floor(&[sample(1, 12.0)], &floor), 1.2, "one that failed twice");
        assert!(of_floor(&[sample(3, 1.0)], &floor).is_nan() && of_floor(&[], &floor).is_nan());
    }

    #[test]
    fn what_a_server_has_anyway_is_not_the_next_connections() {
        // 10,000 KiB, and 2 for each.
        assert!((super::super::sample::slope((5_000, 4.0), (10_000, 3.0)) - 2.0).abs() < 1e-9);
    }

    #[test]
    fn samples_are_read_as_they_were_written() {
        let sample = Sample { round: 4, deliveries: 7, cpu_us: 1.5, sync_us: [1.0, 2.0, 3.0], ..Sample::default() };
        let written = sample.to_json();
        let read = Sample::from_json((0, &written));
        assert_eq!((read.round, read.deliveries, read.cpu_us, read.sync_us), (4, 7, 1.5, [1.0, 2.0, 3.0]));
        assert!(read.rate.is_nan(), "what was not measured");
        assert_eq!(read.to_json(), written);
    }
}
