//! Power cuts, failing syncs, writes and reads, a full disk.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use waxwing::engine::{
    Failure, Request,
    redb::{Config, RedbEngine},
};

use crate::{
    conformance,
    disk::{Disk, Rng},
    driver::{Driver, Log, filled, meta, room},
    seeds::seeded,
};

/// How many schedules of each kind, or which.
pub(crate) const SEEDS: &str = "WAXWING_TEST_ENGINE_SEEDS";

/// No cache to speak of, so that reads reach the disk.
fn config() -> Config {
    Config { cache_bytes: 64 << 10, readers: 1, ..Config::default() }
}

fn open(disk: &Disk) -> RedbEngine {
    RedbEngine::open_with_backend(disk.clone(), || Ok(u64::MAX), config(), Arc::new(())).unwrap()
}

fn driver(disk: &Disk) -> Driver {
    Driver::new(Arc::new(open(disk)))
}

#[test]
fn it_conforms() {
    let disk = Disk::default();
    conformance::suite(3 << 20, &|| Arc::new(open(&disk)));
}

/// Appends random bursts to random logs until the power fails; what then was acked must be there.
fn power_cut(seed: u64) {
    let mut rng = Rng(seed);
    let disk = Disk::default();
    let mut before = driver(&disk);
    let mut logs: Vec<Log> = (1..=1 + u8::try_from(rng.below(4)).unwrap()).map(|number| Log::new(room(number))).collect();
    for (number, log) in (1..).zip(&logs) {
        before.done(Request::Create { room: log.room, meta: meta(number) }).unwrap();
    }
    disk.cut_power_after(rng.below(120));
    let mut alive = true;
    while alive {
        let burst = 1 + rng.below(12);
        let mut submitted = Vec::new();
        for _ in 0..burst {
            let index = usize::try_from(rng.below(logs.len() as u64)).unwrap();
            let envelope = filled(u8::try_from(rng.below(256)).unwrap(), usize::try_from(rng.below(3_000)).unwrap());
            let append = logs[index].next(envelope);
            submitted.push((index, append.seq));
            before.submit(Request::Append(append)).unwrap();
        }
        for (index, seq) in submitted {
            match before.next().result {
                Ok(_) => {
                    assert!(alive, "nothing is acked after a failure");
                    logs[index].acked = seq;
                }
                Err(failure) => {
                    assert_eq!(failure, Failure::OutcomeUnknown);
                    alive = false;
                }
            }
        }
    }
    assert!(!before.engine.is_healthy());
    // Readers go on, and see exactly what was acked.
    for log in &logs {
        assert_eq!(log.check(&mut before), log.acked);
    }
    let image = if rng.below(4) == 0 { disk.crash_image(None) } else { disk.crash_image(Some(&mut rng)) };
    drop(before);
    let mut after = driver(&Disk::new(image));
    for log in &mut logs {
        let head = log.check(&mut after);
        // The log goes on from there.
        log.appends.truncate(usize::try_from(head).unwrap());
        log.chain = log.appends.last().map_or_else(|| waxwing::core::chain::start(log.room), |append| append.chain);
        let append = log.next(vec![9; 10]);
        after.done(Request::Append(append)).unwrap();
        assert_eq!(log.check(&mut after), head + 1);
    }
}

#[test]
fn after_a_power_cut_every_acked_record_is_there() {
    seeded(SEEDS, 300, power_cut);
}

#[test]
fn after_a_failing_sync_or_write_nothing_is_acked_and_readers_go_on() {
    for step in 0..40 {
        for which in ["sync", "write"] {
            let disk = Disk::default();
            let mut driver = driver(&disk);
            let mut log = Log::new(room(1));
            driver.done(Request::Create { room: log.room, meta: meta(1) }).unwrap();
            match which {
                "sync" => disk.fail_sync_after(step),
                _ => disk.fail_write_after(step),
            }
            while driver.engine.is_healthy() {
                let append = log.next(vec![1; 2_000]);
                match driver.done(Request::Append(append.clone())) {
                    Ok(()) => log.acked = append.seq,
                    Err(failure) => assert_eq!(failure, Failure::OutcomeUnknown),
                }
            }
            for _ in 0..3 {
                let append = log.next(vec![2; 10]);
                assert_eq!(driver.done(Request::Append(append)), Err(Failure::OutcomeUnknown));
            }
            assert_eq!(driver.done(Request::Delete { room: room(1) }), Err(Failure::OutcomeUnknown));
            assert_eq!(log.check(&mut driver), log.acked, "{which} {step}");
            drop(driver);
            for image in [disk.crash_image(None), disk.image()] {
                let mut reopened = self::driver(&Disk::new(image));
                log.check(&mut reopened);
            }
        }
    }
}

#[test]
fn a_failing_read_ends_writing_but_not_reading() {
    let disk = Disk::default();
    let mut driver = driver(&disk);
    let mut log = Log::new(room(1));
    driver.done(Request::Create { room: log.room, meta: meta(1) }).unwrap();
    for _ in 0..200 {
        let append = log.next(vec![3; 4_000]);
        driver.done(Request::Append(append)).unwrap();
    }
    log.acked = 200;
    disk.fail_one_read_after(3);
    assert_eq!(log.check(&mut driver), 200);
    assert!(!driver.engine.is_healthy());
    let append = log.next(vec![4; 10]);
    assert_eq!(driver.done(Request::Append(append)), Err(Failure::OutcomeUnknown));
}

#[test]
fn at_the_disk_reserve_nothing_is_stored_but_reads_and_deletions_go_on() {
    let free = Arc::new(AtomicU64::new(u64::MAX));
    let told = Arc::clone(&free);
    let config = Config { disk_reserve_bytes: 1_000, ..config() };
    let space = move || Ok(told.load(Ordering::Relaxed));
    let engine = RedbEngine::open_with_backend(Disk::default(), space, config, Arc::new(())).unwrap();
    let mut driver = Driver::new(Arc::new(engine));
    let mut log = Log::new(room(1));
    driver.done(Request::Create { room: log.room, meta: meta(1) }).unwrap();
    let (first, second) = (log.next(vec![1; 10]), log.next(vec![2; 10]));
    driver.done(Request::Append(first)).unwrap();
    log.acked = 1;
    free.store(999, Ordering::Relaxed);
    assert_eq!(driver.done(Request::Append(second.clone())), Err(Failure::DiskFull));
    assert_eq!(driver.done(Request::Create { room: room(2), meta: meta(2) }), Err(Failure::DiskFull));
    assert_eq!(log.check(&mut driver), 1);
    assert!(driver.engine.is_healthy());
    free.store(1_000, Ordering::Relaxed);
    assert_eq!(driver.done(Request::Append(second)), Ok(()));
    free.store(0, Ordering::Relaxed);
    assert_eq!(driver.done(Request::Delete { room: room(1) }), Ok(()));
    assert_eq!(driver.load(room(1)), None);
}
