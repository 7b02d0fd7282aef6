//! The log in front of redb: power cuts, failing disks and flipped bits, with limits so small that every seed freezes,
//! applies, recycles and replays.

use std::{
    collections::BTreeSet,
    io,
    path::Path,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use redb::StorageBackend;
use waxwing::{
    core::chain,
    engine::{
        Failure, Observer, Request,
        embedded::{Config, EmbeddedEngine, OpenError, Storage},
        wal,
    },
};

use crate::{
    conformance,
    disk::Rng,
    driver::{Driver, Log, filled, meta, room},
    faults::SEEDS,
    machine::{Fault, Machine},
    seeds::seeded,
};

/// Small enough that some records fill a segment, a memtable and a slice.
fn small() -> Config {
    Config {
        wal: wal::Config { segment_bytes: 64 << 10, bytes_max: 1 << 20, ..wal::Config::default() },
        cache_bytes: 64 << 10,
        read_cache_bytes: 64 << 10,
        batch_bytes_max: 16 << 10,
        batch_requests_max: 64,
        apply_bytes: 24 << 10,
        apply_retry_ms: 1,
        slice_bytes: 4 << 10,
        readers: 1,
        disk_reserve_bytes: 1_000,
        ..Config::default()
    }
}

fn try_open(machine: &Machine) -> Result<Driver, OpenError> {
    let engine = EmbeddedEngine::open_in(machine.place(), small(), Arc::new(()))?;
    Ok(Driver::new(Arc::new(engine)))
}

pub(crate) fn open(machine: &Machine) -> Driver {
    try_open(machine).unwrap()
}

#[test]
fn it_conforms_with_limits_of_any_size() {
    let tiny = Config { apply_after_ms: 0, ..small() };
    for (len_max, config) in [(6 << 10, small()), (3 << 20, Config::default()), (6 << 10, tiny)] {
        let machine = Machine::default();
        let open = || EmbeddedEngine::open_in(machine.place(), config.clone(), Arc::new(())).unwrap();
        conformance::suite(len_max, &|| Arc::new(open()));
    }
}

#[test]
fn it_conforms_on_files_and_replays_what_a_killed_process_left() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    conformance::suite(6 << 10, &|| {
        Arc::new(EmbeddedEngine::open(&path, Config { disk_reserve_bytes: 0, ..small() }, Arc::new(())).unwrap())
    });
    let again = EmbeddedEngine::open(&path, Config { disk_reserve_bytes: 0, ..small() }, Arc::new(())).unwrap();
    let second = EmbeddedEngine::open(&path, small(), Arc::new(()));
    assert!(second.is_err_and(|error| error.to_string().contains("in use by another process")));
    drop(again);
}

/// A store that stops when its writer has taken a batch and asks for free space, as long as somebody waits for that.
struct Stops {
    inner: Arc<dyn Storage>,
    stopped: Mutex<Option<(Sender<()>, Receiver<()>)>>,
}

impl Storage for Stops {
    fn files(&self) -> io::Result<Arc<dyn wal::Files>> {
        self.inner.files()
    }

    fn history(&self, make: bool) -> Result<Box<dyn StorageBackend>, redb::DatabaseError> {
        self.inner.history(make)
    }

    fn free_space(&self) -> io::Result<u64> {
        if let Some((stopped, go)) = self.stopped.lock().unwrap().take() {
            stopped.send(()).unwrap();
            go.recv().unwrap();
        }
        self.inner.free_space()
    }

    fn path(&self) -> &Path {
        self.inner.path()
    }
}

/// How many writes each batch has.
struct Batches(Sender<usize>);

impl Observer for Batches {
    fn committed(&self, requests: usize, _: usize, _: Duration) {
        let _ = self.0.send(requests);
    }
}

#[test]
fn what_queues_while_a_batch_is_made_is_in_it_up_to_the_limits() {
    let stops = Arc::new(Stops { inner: Machine::default().place(), stopped: Mutex::default() });
    let (sender, batches) = channel();
    let engine = EmbeddedEngine::open_in(Arc::clone(&stops) as _, small(), Arc::new(Batches(sender))).unwrap();
    let mut driver = Driver::new(Arc::new(engine));
    let mut log = Log::new(room(1));
    driver.done(Request::Create { room: log.room, meta: meta(1) }).unwrap();
    assert_eq!(batches.recv().unwrap(), 1);
    for (len, expected) in [(10, [64, 37]), (1_000, [17, 17])] {
        let ((stopped, entered), (go, goes)) = (channel(), channel());
        *stops.stopped.lock().unwrap() = Some((stopped, goes));
        driver.submit(Request::Append(log.next(vec![1; len]))).unwrap();
        entered.recv().unwrap();
        for _ in 1..expected.iter().sum() {
            driver.submit(Request::Append(log.next(vec![1; len]))).unwrap();
        }
        go.send(()).unwrap();
        for batch in expected {
            assert_eq!(batches.recv().unwrap(), batch);
            (0..batch).for_each(|_| assert!(driver.next().result.is_ok()));
        }
    }
}

/// Random bursts to random logs, now and then deleted and made anew, until the power fails; what then was acked is there.
struct Run {
    rng: Rng,
    logs: Vec<Log>,
    lives: u8,
}

impl Run {
    fn new(seed: u64, driver: &mut Driver) -> Self {
        let mut rng = Rng(seed);
        let count = 1 + u8::try_from(rng.below(4)).unwrap();
        let logs: Vec<Log> = (1..=count).map(|number| Log::new(room(number))).collect();
        for (number, log) in (1..).zip(&logs) {
            driver.done(Request::Create { room: log.room, meta: meta(number) }).unwrap();
        }
        Self { rng, logs, lives: 100 }
    }

    /// Whether everything was acked.
    fn burst(&mut self, driver: &mut Driver) -> bool {
        let mut submitted = Vec::new();
        for _ in 0..1 + self.rng.below(24) {
            let index = usize::try_from(self.rng.below(self.logs.len() as u64)).unwrap();
            let len = usize::try_from(self.rng.below(2_000)).unwrap();
            let append = self.logs[index].next(filled(u8::try_from(self.rng.below(256)).unwrap(), len));
            submitted.push((index, append.seq));
            driver.submit(Request::Append(append)).unwrap();
        }
        let mut failed = BTreeSet::new();
        for (index, seq) in submitted {
            match driver.next().result {
                Ok(_) => {
                    assert!(!failed.contains(&index), "nothing is acked after a failure");
                    self.logs[index].acked = seq;
                }
                // Where no segment could be made nothing was stored; else nobody knows.
                Err(Failure::OutcomeUnknown | Failure::DiskFull | Failure::Gap) => drop(failed.insert(index)),
                Err(other) => panic!("unexpected {other:?}"),
            }
        }
        failed.is_empty()
    }

    /// Deletes a log and makes it anew. Whether both were acked; if not, the log is given up.
    fn renew(&mut self, driver: &mut Driver) -> bool {
        let index = usize::try_from(self.rng.below(self.logs.len() as u64)).unwrap();
        let room = self.logs[index].room;
        self.lives += 1;
        let deleted = driver.done(Request::Delete { room }).is_ok();
        let done = deleted && driver.done(Request::Create { room, meta: meta(self.lives) }).is_ok();
        self.logs[index] = Log::new(room);
        if !done {
            self.logs.remove(index);
        }
        done
    }

    /// Everything acked is there, and the logs go on from where they are.
    fn check(&mut self, driver: &mut Driver) {
        for log in &mut self.logs {
            let head = log.check(driver);
            log.appends.truncate(usize::try_from(head).unwrap());
            log.chain = log.appends.last().map_or_else(|| chain::start(log.room), |append| append.chain);
            log.acked = head;
        }
    }
}

fn power_cut(seed: u64) {
    let mut machine = Machine::default();
    let mut driver = open(&machine);
    let mut run = Run::new(seed, &mut driver);
    // Several lives of the process, so that replay meets what replay left.
    for _ in 0..1 + run.rng.below(3) {
        machine.fail(Fault::Power, run.rng.below(150));
        while run.burst(&mut driver) {
            if run.rng.below(6) == 0 && run.logs.len() > 1 && !run.renew(&mut driver) {
                break;
            }
        }
        for log in &run.logs {
            assert_eq!(log.check(&mut driver), log.acked, "readers go on, and see what was acked");
        }
        let crashed = match run.rng.below(6) {
            0 => machine.crashed(None),
            1 => machine.stopped(),
            _ => machine.crashed(Some(&mut run.rng)),
        };
        drop(driver);
        machine = crashed;
        if run.rng.below(3) == 0 {
            // The power fails again while the store opens.
            machine.fail(Fault::Power, run.rng.below(30));
            drop(try_open(&machine));
            machine = machine.crashed(Some(&mut run.rng));
        }
        driver = open(&machine);
        run.check(&mut driver);
    }
    assert!(run.burst(&mut driver), "a store that opened takes writes");
    run.check(&mut driver);
}

#[test]
fn after_a_power_cut_every_acked_record_is_there() {
    seeded(SEEDS, 1_000, power_cut);
}

/// One sync or write fails, of the log or of the history: what is acked stays, what follows is acked or told as unknown.
fn one_failure(seed: u64) {
    let machine = Machine::default();
    let mut driver = open(&machine);
    let mut run = Run::new(seed, &mut driver);
    let fault = if run.rng.below(2) == 0 { Fault::Sync } else { Fault::Write };
    machine.fail(fault, run.rng.below(60));
    for _ in 0..30 {
        if !run.burst(&mut driver) {
            break;
        }
    }
    for log in &run.logs {
        assert_eq!(log.check(&mut driver), log.acked);
    }
    drop(driver);
    let machine = if run.rng.below(2) == 0 { machine.stopped() } else { machine.crashed(Some(&mut run.rng)) };
    let mut driver = open(&machine);
    run.check(&mut driver);
    assert!(run.burst(&mut driver));
    run.check(&mut driver);
}

#[test]
fn after_one_failing_sync_or_write_nothing_acked_is_lost() {
    seeded(SEEDS, 300, one_failure);
}

/// The history fails and works again: nobody who publishes notices.
fn failing_history(seed: u64) {
    let machine = Machine::default();
    let mut driver = open(&machine);
    let mut run = Run::new(seed, &mut driver);
    machine.spare_the_log();
    let fault = [Fault::Sync, Fault::Write, Fault::Read][usize::try_from(run.rng.below(3)).unwrap()];
    machine.fail(fault, run.rng.below(40));
    for _ in 0..12 {
        assert!(run.burst(&mut driver), "the log goes on without the history");
    }
    for log in &run.logs {
        assert_eq!(log.check(&mut driver), log.acked);
    }
    drop(driver);
    let mut driver = open(&machine.stopped());
    run.check(&mut driver);
}

#[test]
fn a_history_that_fails_for_a_while_costs_nobody_an_ack() {
    seeded(SEEDS, 100, failing_history);
}

#[test]
fn at_the_disk_reserve_nothing_is_stored_but_reads_and_deletions_go_on() {
    let machine = Machine::default();
    let mut driver = open(&machine);
    let mut log = Log::new(room(1));
    driver.done(Request::Create { room: log.room, meta: meta(1) }).unwrap();
    let (first, second) = (log.next(vec![1; 10]), log.next(vec![2; 10]));
    driver.done(Request::Append(first)).unwrap();
    log.acked = 1;
    machine.set_free(999);
    assert_eq!(driver.done(Request::Append(second.clone())), Err(Failure::DiskFull));
    assert_eq!(driver.done(Request::Create { room: room(2), meta: meta(2) }), Err(Failure::DiskFull));
    assert_eq!(log.check(&mut driver), 1);
    assert!(driver.engine.is_healthy());
    machine.set_free(1_000);
    assert_eq!(driver.done(Request::Append(second)), Ok(()));
    machine.set_free(0);
    assert_eq!(driver.done(Request::Delete { room: room(1) }), Ok(()));
    assert_eq!(driver.load(room(1)), None);
}

#[test]
fn a_scan_shows_what_pages_show() {
    let machine = Machine::default();
    let engine = Arc::new(EmbeddedEngine::open_in(machine.place(), small(), Arc::new(())).unwrap());
    let mut driver = Driver::new(Arc::clone(&engine) as Arc<dyn waxwing::engine::Engine>);
    let mut log = Log::new(room(1));
    assert_eq!(engine.scan(log.room, &mut |_, _, _| panic!()), Ok(None));
    driver.done(Request::Create { room: log.room, meta: meta(1) }).unwrap();
    // Part of it is applied, part is not.
    for turn in 0..120_usize {
        driver.done(Request::Append(log.next(vec![7; 100 + 10 * turn]))).unwrap_or_else(|failure| panic!("{failure}"));
    }
    let mut seen = Vec::new();
    let state = engine.scan(log.room, &mut |seq, time_ms, envelope| seen.push((seq, time_ms, envelope.to_vec()))).unwrap();
    let stored = log.appends.iter().map(|append| (append.seq, append.time_ms, append.envelope.to_vec()));
    assert_eq!(seen, stored.collect::<Vec<_>>());
    assert_eq!(state, driver.load(log.room).map(|loaded| loaded.state));
}

/// A flipped bit in what is proven durable is refused by name, or fails the reads of one room; it never changes what is read.
fn flipped_bit(seed: u64) {
    let machine = Machine::default();
    let mut driver = open(&machine);
    let mut run = Run::new(seed, &mut driver);
    for _ in 0..8 {
        assert!(run.burst(&mut driver));
    }
    // A crash leaves a tail in the log; a stop leaves none.
    let machine = if run.rng.below(2) == 0 { machine.crashed(None) } else { machine.stopped() };
    drop(driver);
    let files = machine.files();
    let (name, len) = &files[usize::try_from(run.rng.below(files.len() as u64)).unwrap()];
    machine.flip(name, usize::try_from(run.rng.below(*len as u64 * 8)).unwrap());
    let Ok(mut driver) = try_open(&machine) else { return };
    let mut damaged = BTreeSet::new();
    for log in &run.logs {
        let mut seq = 0;
        loop {
            let page = match driver.after(log.room, seq, 3_000) {
                Ok(page) if page.records.is_empty() => {
                    // The last batch of a log is not proven: it may be missing, with all that it holds.
                    break;
                }
                Ok(page) => page,
                Err(Failure::Read | Failure::NotFound) => {
                    damaged.insert(log.room);
                    break;
                }
                Err(other) => panic!("unexpected {other:?}"),
            };
            for record in page.records {
                seq += 1;
                let append = &log.appends[usize::try_from(seq).unwrap() - 1];
                assert_eq!((record.seq, &record.envelope), (seq, &append.envelope), "a changed record was read");
            }
        }
    }
    assert!(damaged.len() <= run.logs.len());
}

#[test]
fn a_flipped_bit_is_never_read_as_a_record() {
    seeded(SEEDS, 300, flipped_bit);
}
