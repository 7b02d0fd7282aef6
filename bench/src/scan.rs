//! `store scan`: reading. A whole room against the memory's bandwidth, and the newest messages of a warm room.

use std::{
    fs,
    hint::black_box,
    time::{Duration, Instant},
};

use anyhow::bail;
use clap::Args;
use crc_fast::CrcAlgorithm;
use serde_json::json;
use waxwing::{
    core::{id::RoomId, limits::Limits, room::RoomLog},
    engine::{Answer, Request},
};

use crate::{
    Common,
    driver::{Driver, Rooms, Until},
    engines::{Kind, Store},
    meter,
    report::{Table, median, number},
};

/// Arguments of `store scan`.
#[derive(Debug, Clone, Args)]
pub struct ScanArgs {
    #[command(flatten)]
    common: Common,
    /// Messages in the room; by default the room fits the cache of history.
    #[arg(long, default_value_t = 120_000)]
    messages: u64,
    /// Bytes of a page; a list is measured one after the other.
    #[arg(long, value_delimiter = ',', default_values_t = [64 << 10, 1 << 20])]
    page: Vec<u32>,
    /// Rounds; the median is reported.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How often the last 50 are read in each round.
    #[arg(long, default_value_t = 2000)]
    reads: usize,
    /// What is compared.
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Kind::OURS)]
    engines: Vec<Kind>,
}

struct Candidate {
    kind: Kind,
    driver: Driver,
    /// Closes with it.
    store: Store,
    /// By page size, then by round: MB/s.
    scans: Vec<Vec<f64>>,
    /// Without copying, by round: MB/s.
    visits: Vec<f64>,
    /// Microseconds, by round.
    last: Vec<f64>,
    owned: Vec<f64>,
    hop: Vec<f64>,
}

pub fn run(args: &ScanArgs) -> anyhow::Result<()> {
    let dir = args.common.dir.join("scan");
    drop(fs::remove_dir_all(&dir));
    meter::check_disk(&dir)?;
    let mut candidates = Vec::new();
    for kind in args.common.available(&args.engines) {
        let dir = dir.join(format!("{kind:?}"));
        fs::create_dir_all(&dir)?;
        eprintln!("{}: writing {} messages", kind.name(), args.messages);
        let mut rooms = Rooms::new(1, args.common.payload);
        let store = Store::open(kind, &dir, &args.common.tools())?;
        let driver = Driver::new(store.engine.clone());
        driver.create(&rooms)?;
        driver.run(&mut rooms, 4096, Until { acks: args.messages, time: Duration::MAX })?;
        store.settle();
        drop((driver, store));
        let store = Store::open(kind, &dir, &args.common.tools())?;
        let driver = Driver::new(store.engine.clone());
        let scans = vec![Vec::new(); args.page.len()];
        candidates.push(Candidate {
            kind,
            driver,
            store,
            scans,
            visits: Vec::new(),
            last: Vec::new(),
            owned: Vec::new(),
            hop: Vec::new(),
        });
    }
    let mut floor = Floor::new(args);
    for round in 1..=args.rounds.max(1) {
        floor.round();
        for candidate in &mut candidates {
            candidate.round(args)?;
        }
        eprintln!("round {round}/{}", args.rounds);
    }
    let result = report(args, &floor, &candidates);
    drop(candidates);
    drop(fs::remove_dir_all(&dir));
    result
}

/// The sum of a message's bytes, eight at a time.
fn sum(message: &[u8]) -> u64 {
    let (words, rest) = message.as_chunks::<8>();
    let sum = words.iter().fold(0_u64, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)));
    rest.iter().fold(sum, |sum, byte| sum.wrapping_add(u64::from(*byte)))
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn megabytes_per_second(bytes: u64, took: Duration) -> f64 {
    bytes as f64 / 1e6 / took.as_secs_f64()
}

/// The same messages, one after the other in memory.
struct Floor {
    bytes: Vec<u8>,
    payload: usize,
    rates: Vec<f64>,
    /// With a checksum before they are used, as whoever reads what may be damaged must.
    checked: Vec<f64>,
}

/// About what a checksum of history covers.
const BLOCK: usize = 16 << 10;

impl Floor {
    fn new(args: &ScanArgs) -> Self {
        let count = usize::try_from(args.messages).unwrap_or_default();
        let (rates, checked) = (Vec::new(), Vec::new());
        Self { bytes: vec![0x5a; args.common.payload * count], payload: args.common.payload, rates, checked }
    }

    fn round(&mut self) {
        let begin = Instant::now();
        let total = self.bytes.chunks_exact(self.payload).fold(0_u64, |total, message| total.wrapping_add(sum(message)));
        black_box(total);
        self.rates.push(megabytes_per_second(self.bytes.len() as u64, begin.elapsed()));
        let (begin, mut total) = (Instant::now(), 0_u64);
        for block in self.bytes.chunks(BLOCK.next_multiple_of(self.payload)) {
            black_box(crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, block));
            total = block.chunks_exact(self.payload).fold(total, |total, message| total.wrapping_add(sum(message)));
        }
        black_box(total);
        self.checked.push(megabytes_per_second(self.bytes.len() as u64, begin.elapsed()));
    }
}

impl Candidate {
    fn round(&mut self, args: &ScanArgs) -> anyhow::Result<()> {
        for (page, rates) in args.page.iter().zip(&mut self.scans) {
            rates.push(scan(&self.driver, args.messages, *page)?);
        }
        if let Some(engine) = self.store.embedded() {
            let (begin, mut bytes, mut total) = (Instant::now(), 0, 0_u64);
            engine.scan(Rooms::id(0), &mut |_, _, envelope| {
                total = total.wrapping_add(sum(envelope));
                bytes += envelope.len() as u64;
            })?;
            black_box(total);
            self.visits.push(megabytes_per_second(bytes, begin.elapsed()));
        }
        let last = || Request::ReadBefore { room: Rooms::id(0), before: u64::MAX, count_max: 50, bytes_max: 1 << 16 };
        self.last.push(times(&self.driver, args.reads, last)?);
        self.owned.push(owned(&self.driver, args.reads)?);
        // What the way there and back costs alone: a room that is not there.
        self.hop.push(times(&self.driver, args.reads, || Request::Load { room: RoomId([0xee; 16]) })?);
        Ok(())
    }
}

fn scan(driver: &Driver, messages: u64, bytes_max: u32) -> anyhow::Result<f64> {
    let (begin, mut after, mut bytes, mut total) = (Instant::now(), 0, 0, 0_u64);
    while after < messages {
        let Answer::Records(page) = driver.ask(Request::ReadAfter { room: Rooms::id(0), after, bytes_max })?? else {
            bail!("no page")
        };
        for record in &page.records {
            total = total.wrapping_add(sum(&record.envelope));
            bytes += record.envelope.len() as u64;
            after = record.seq;
        }
        anyhow::ensure!(!page.records.is_empty(), "an empty page after {after}");
    }
    black_box(total);
    Ok(megabytes_per_second(bytes, begin.elapsed()))
}

/// As a shard serves the last 50 of a room in use: from what its owner keeps of it.
fn owned(driver: &Driver, count: usize) -> anyhow::Result<f64> {
    let (room, limits) = (Rooms::id(0), Limits::default());
    let Answer::Loaded(Some(loaded)) = driver.ask(Request::Load { room })?? else { bail!("no room") };
    let last = Request::ReadBefore { room, before: u64::MAX, count_max: 50, bytes_max: limits.page_bytes_max };
    let Answer::Records(records) = driver.ask(last)?? else { bail!("no page") };
    let mut log = RoomLog::new(room, *loaded);
    log.remember(&records, limits.recent_bytes_max);
    let mut taken = Vec::with_capacity(count);
    for _ in 0..count {
        let begin = Instant::now();
        let page = black_box(log.recent_before(u64::MAX, 50, limits.page_bytes_max));
        taken.push(begin.elapsed().as_secs_f64() * 1e6);
        anyhow::ensure!(page.is_some_and(|page| page.items.len() == 50), "its owner does not have them");
    }
    Ok(median(taken))
}

/// The median time of a request, in microseconds.
fn times(driver: &Driver, count: usize, request: impl Fn() -> Request) -> anyhow::Result<f64> {
    let mut taken = Vec::with_capacity(count);
    for _ in 0..count {
        let begin = Instant::now();
        black_box(driver.ask(request())??);
        taken.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    Ok(median(taken))
}

fn report(args: &ScanArgs, floor: &Floor, candidates: &[Candidate]) -> anyhow::Result<()> {
    let mut table = Table::new(&["engine", "reading", "MB/s or µs", "of the sum loop in memory"]);
    table.row([
        "memory, sum loop".into(),
        "the whole room".into(),
        format!("{} MB/s", number(median(floor.rates.clone()))),
        "1".into(),
    ]);
    let of_floor = |rates: &[f64]| median(rates.iter().zip(&floor.rates).map(|(rate, floor)| rate / floor));
    table.row([
        "memory, checksum, then sum loop".into(),
        "the whole room".into(),
        format!("{} MB/s", number(median(floor.checked.clone()))),
        number(of_floor(&floor.checked)),
    ]);
    let mut rounds = vec![
        json!({ "engine": "memory", "megabytes_per_second": floor.rates }),
        json!({ "engine": "memory", "what": "with a checksum", "megabytes_per_second": floor.checked }),
    ];
    for candidate in candidates {
        let name = candidate.kind.name();
        for (page, rates) in args.page.iter().zip(&candidate.scans) {
            let ratio = of_floor(rates);
            table.row([
                name.to_owned(),
                format!("the whole room, pages of {} KiB", page >> 10),
                format!("{} MB/s", number(median(rates.clone()))),
                number(ratio),
            ]);
            rounds.push(json!({ "engine": name, "page": page, "megabytes_per_second": rates }));
        }
        if !candidate.visits.is_empty() {
            let ratio = of_floor(&candidate.visits);
            let rate = format!("{} MB/s", number(median(candidate.visits.clone())));
            table.row([name.to_owned(), "the whole room, scanned in place".into(), rate, number(ratio)]);
            rounds.push(json!({ "engine": name, "what": "scan", "megabytes_per_second": candidate.visits }));
        }
        for (what, values) in [
            ("last 50, through the queue", &candidate.last),
            ("last 50, from its owner's memory", &candidate.owned),
            ("no such room, through the queue", &candidate.hop),
        ] {
            table.row([name.to_owned(), what.into(), format!("{} µs", number(median(values.clone()))), "–".into()]);
            rounds.push(json!({ "engine": name, "what": what, "microseconds": values }));
        }
    }
    let settings =
        json!({ "messages": args.messages, "payload": args.common.payload, "rounds": args.rounds, "reads": args.reads });
    table.publish(&args.common.out, "store-scan", settings, rounds.into())
}
