//! `store acks`: durable appends.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::{Value, json};

use crate::{
    Common, count,
    driver::{Driver, Rooms, Run, Until},
    engines::{Bare, Kind, RECORD_OVERHEAD, Store},
    histogram::Histogram,
    meter::{self, Usage},
    plot::Bars,
    report::{Table, median, number},
};

/// Arguments of `store acks`.
#[derive(Debug, Clone, Args)]
pub struct AcksArgs {
    #[command(flatten)]
    common: Common,
    /// Publishers in flight; a list is measured one after the other.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 256, 4096])]
    in_flight: Vec<usize>,
    /// Seconds that each cell is measured in each round.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Rounds; the median is reported.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// What is compared [default: everything that is installed].
    #[arg(long, value_delimiter = ',', value_enum, hide_default_value = true, default_values_t = Kind::ALL)]
    engines: Vec<Kind>,
}

/// One measurement.
#[derive(Debug, Clone)]
struct Cell {
    rate: f64,
    p50_ms: f64,
    p99_ms: f64,
    cpu_us: f64,
    per_batch: f64,
    syncs_per_batch: f64,
}

type Key = (usize, Kind);

pub fn run(args: &AcksArgs) -> anyhow::Result<()> {
    let dir = args.common.dir.join("acks");
    drop(fs::remove_dir_all(&dir));
    meter::check_disk(&dir)?;
    // The floor is always there: all ratios are to it.
    let mut kinds = args.common.available(&args.engines);
    if !kinds.contains(&Kind::Floor) {
        kinds.insert(0, Kind::Floor);
    }
    let mut rooms: BTreeMap<Kind, Rooms> =
        kinds.iter().map(|kind| (*kind, Rooms::new(args.common.rooms, args.common.payload))).collect();
    let mut cells: BTreeMap<Key, Vec<Cell>> = BTreeMap::new();
    for round in 0..args.rounds.max(1) {
        for in_flight in &args.in_flight {
            for step in 0..kinds.len() {
                // Nobody always comes after the same neighbour.
                let kind = kinds[(step + round) % kinds.len()];
                let Some(rooms) = rooms.get_mut(&kind) else { continue };
                let cell = measure(args, kind, &dir, rooms, *in_flight)?;
                eprintln!(
                    "round {}/{}  {in_flight:>5} in flight  {:<24} {:>9} acks/s  p99 {:>7} ms",
                    round + 1,
                    args.rounds,
                    kind.name(),
                    number(cell.rate),
                    number(cell.p99_ms)
                );
                cells.entry((*in_flight, kind)).or_default().push(cell);
            }
        }
    }
    drop(fs::remove_dir_all(&dir));
    report(args, &kinds, &cells)
}

fn measure(args: &AcksArgs, kind: Kind, dir: &Path, rooms: &mut Rooms, in_flight: usize) -> anyhow::Result<Cell> {
    let dir = dir.join(format!("{kind:?}"));
    fs::create_dir_all(&dir)?;
    meter::settle_disk();
    let time = Duration::from_secs_f64(args.seconds);
    if kind == Kind::Bare {
        return bare(&dir, &vec![0x5a; args.common.payload], in_flight, time);
    }
    let store = Store::open(kind, &dir, &args.common.tools())?;
    let driver = Driver::new(store.engine.clone());
    driver.create(rooms)?;
    driver.run(rooms, in_flight, Until { acks: u64::MAX, time: time.mul_f64(0.1) })?;
    let (usage, syncs, batches) = (Usage::of(store.pid())?, count::syncs(), store.batches.count());
    let run = driver.run(rooms, in_flight, Until { acks: u64::MAX, time })?;
    let used = Usage::of(store.pid())?.since(usage);
    let (syncs, batches) = (count::syncs() - syncs, store.batches.count() - batches);
    Ok(cell(&run, used.cpu, syncs, batches))
}

fn bare(dir: &Path, payload: &[u8], in_flight: usize, time: Duration) -> anyhow::Result<Cell> {
    let mut log = Bare::open(dir)?;
    let latency = Histogram::default();
    let cpu = meter::thread_cpu();
    let (begin, syncs, mut acks) = (Instant::now(), count::syncs(), 0);
    let mut last = begin;
    while last - begin < time {
        log.batch(in_flight, payload)?;
        acks += in_flight as u64;
        let now = Instant::now();
        latency.add(now - last);
        last = now;
    }
    let syncs = count::syncs() - syncs;
    Ok(cell(&Run { acks, wall: last - begin, latency }, meter::thread_cpu() - cpu, syncs, syncs))
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn cell(run: &Run, cpu: Duration, syncs: u64, batches: u64) -> Cell {
    let quantile = |share| run.latency.quantile(share).map_or(f64::NAN, |micros| micros as f64 / 1000.0);
    let per = |value: f64, of: u64| if of == 0 { f64::NAN } else { value / of as f64 };
    Cell {
        rate: run.acks as f64 / run.wall.as_secs_f64(),
        p50_ms: quantile(0.5),
        p99_ms: quantile(0.99),
        cpu_us: per(cpu.as_secs_f64() * 1e6, run.acks),
        per_batch: per(run.acks as f64, batches),
        syncs_per_batch: per(syncs as f64, batches),
    }
}

impl Cell {
    fn to_json(&self, in_flight: usize, kind: Kind, round: usize) -> Value {
        json!({
            "round": round, "in_flight": in_flight, "engine": kind.name(), "acks_per_second": self.rate, "p50_ms": self.p50_ms,
            "p99_ms": self.p99_ms, "cpu_us_per_ack": self.cpu_us, "acks_per_batch": self.per_batch,
            "syncs_per_batch": self.syncs_per_batch,
        })
    }
}

/// The median of a column, and of its ratio to the floor of the same round.
fn medians(cells: &BTreeMap<Key, Vec<Cell>>, key: Key, of: fn(&Cell) -> f64) -> (f64, f64) {
    let (Some(own), Some(floor)) = (cells.get(&key), cells.get(&(key.0, Kind::Floor))) else { return (f64::NAN, f64::NAN) };
    (median(own.iter().map(of)), median(own.iter().zip(floor).map(|(own, floor)| of(own) / of(floor))))
}

fn report(args: &AcksArgs, kinds: &[Kind], cells: &BTreeMap<Key, Vec<Cell>>) -> anyhow::Result<()> {
    let mut table = Table::new(&[
        "engine",
        "in flight",
        "acks/s",
        "of the floor",
        "p50 ms",
        "p99 ms",
        "CPU-µs/ack",
        "acks/batch",
        "syncs/batch",
    ]);
    for in_flight in &args.in_flight {
        for kind in kinds {
            let column = |of| medians(cells, (*in_flight, *kind), of);
            let (rate, ratio) = column(|cell| cell.rate);
            let rest: [fn(&Cell) -> f64; 5] =
                [|cell| cell.p50_ms, |cell| cell.p99_ms, |cell| cell.cpu_us, |cell| cell.per_batch, |cell| cell.syncs_per_batch];
            let head = [kind.name().to_owned(), in_flight.to_string(), number(rate), number(ratio)];
            table.row(head.into_iter().chain(rest.map(|of| number(column(of).0))));
        }
    }
    let rounds: Vec<Value> = cells
        .iter()
        .flat_map(|((in_flight, kind), cells)| {
            cells.iter().enumerate().map(|(round, cell)| cell.to_json(*in_flight, *kind, round + 1))
        })
        .collect();
    let settings = json!({
        "payload": args.common.payload, "floor_record_overhead": RECORD_OVERHEAD, "rooms": args.common.rooms,
        "seconds": args.seconds, "rounds": args.rounds,
    });
    let out = &args.common.out;
    table.publish(out, "store-acks", settings, rounds.into())?;
    let series = |of: fn(&Cell) -> f64, pick: fn((f64, f64)) -> f64| {
        kinds
            .iter()
            .map(|kind| {
                let value = |in_flight: &usize| pick(medians(cells, (*in_flight, *kind), of));
                (kind.name(), args.in_flight.iter().map(value).collect())
            })
            .collect::<Vec<_>>()
    };
    let groups: Vec<String> = args.in_flight.iter().map(|count| format!("{count} in flight")).collect();
    Bars {
        title: "Durable acks a second",
        unit: "300-byte messages in 1,000 rooms; logarithmic",
        groups: groups.clone(),
        series: series(|cell| cell.rate, |(rate, _)| rate),
        log: true,
        mark: None,
    }
    .write(out, "store-acks")?;
    Bars {
        title: "Time from publish to durable ack, 99th percentile",
        unit: "milliseconds; logarithmic",
        groups: groups.clone(),
        series: series(|cell| cell.p99_ms, |(p99, _)| p99),
        log: true,
        mark: None,
    }
    .write(out, "store-acks-p99")?;
    Bars {
        title: "Durable acks, as a share of the floor",
        unit: "the floor: append and fdatasync with the same group commit, in the same round",
        groups,
        series: series(|cell| cell.rate, |(_, ratio)| ratio),
        log: false,
        mark: Some((0.7, "target: 0.7")),
    }
    .write(out, "store-acks-ratio")
}
