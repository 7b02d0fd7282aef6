//! Retention in an engine at work.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use waxwing::{
    core::{chain, id::RoomId},
    engine::{
        Answer, Engine, Observer, Request,
        embedded::{Clock, Config, EmbeddedEngine, Keep, Retention, ops},
    },
};

use crate::{
    driver::{Driver, Log, filled, meta, room},
    operations::{Store, config, go_on},
};

/// Records of 300 bytes in a chunk at most: so many more than were asked for may be kept.
const CHUNK: u64 = 210;

struct Trims(SyncSender<(RoomId, u64)>);

impl Observer for Trims {
    fn trimmed(&self, room: RoomId, floor: u64) {
        let _ = self.0.send((room, floor));
    }
}

/// Waits until each of these rooms has a floor of at least so much.
fn wait(trims: &Receiver<(RoomId, u64)>, wanted: &[(u8, u64)]) -> BTreeMap<RoomId, u64> {
    let mut floors = BTreeMap::new();
    while !wanted.iter().all(|(number, floor)| floors.get(&room(*number)).is_some_and(|found| found >= floor)) {
        let (room, floor) = trims.recv_timeout(Duration::from_secs(30)).expect("what may go goes");
        floors.insert(room, floor);
    }
    floors
}

#[test]
fn rooms_are_trimmed_after_they_were_applied_to_and_in_a_sweep() {
    // Written without limits; then opened with some.
    let mut store = Store::new(config());
    for number in [1, 2, 3, 200] {
        store.fill(number, 600, 300);
    }
    let (directory, logs) = store.stop();
    let now = Arc::new(AtomicU64::new(0));
    let clock = Arc::clone(&now);
    let retention = Retention {
        default: Keep { count: Some(300), ..Keep::default() },
        rooms: BTreeMap::from([
            (room(2), Keep { bytes: Some(100 * 300), ..Keep::default() }),
            (room(3), Keep { age_ms: Some(50), ..Keep::default() }),
        ]),
        clock: Clock(Arc::new(move || clock.load(Ordering::Relaxed))),
        sweep_every_ms: 10,
    };
    let (sender, trims) = sync_channel(10_000);
    let config = Config { retention, ..config() };
    let engine = EmbeddedEngine::open(&directory.path().join("store"), config, Arc::new(Trims(sender))).unwrap();
    let engine = Arc::new(engine);
    let mut driver = Driver::new(Arc::clone(&engine) as Arc<dyn Engine>);
    // The records have the times 1,001 to 1,600.
    let floors = wait(&trims, &[(1, 301 - CHUNK), (2, 501 - CHUNK)]);
    assert!(floors[&room(1)] <= 301 && floors[&room(2)] <= 501, "{floors:?}");
    assert!(!floors.contains_key(&room(3)), "nothing is old when time stands still");
    now.store(1_500, Ordering::Relaxed);
    let floors = wait(&trims, &[(3, 451 - CHUNK)]);
    assert!(floors[&room(3)] <= 451, "{floors:?}");

    for log in &logs {
        let loaded = driver.load(log.room).unwrap();
        let first = loaded.state.floor;
        assert!(log.room != room(200) || first == 1, "inboxes keep everything");
        let page = driver.after(log.room, 0, u32::MAX).unwrap();
        assert_eq!((page.records[0].seq, page.records.len() as u64), (first, 601 - first));
        let before = usize::try_from(first).unwrap().checked_sub(2).map(|at| log.appends[at].chain);
        assert!(before.is_none_or(|chain| chain == page.before && chain == loaded.state.floor_chain), "the anchor moves along");
        assert_eq!(loaded.state.bytes, (601 - first) * 300);
    }
    // What is published trims its room as soon as it is applied.
    let mut log: Log = logs.into_iter().next().unwrap();
    for _ in 0..300 {
        driver.done(Request::Append(log.next(vec![7; 300]))).unwrap();
    }
    assert!(engine.checkpoint());
    wait(&trims, &[(1, 601 - CHUNK)]);
    engine.shutdown();
}

/// The newest handshake record, as it is asked for by its place; nothing if it is not kept.
fn handshake(driver: &mut Driver, log: &Log) -> Option<Vec<u8>> {
    let seq = driver.load(log.room).unwrap().state.handshake;
    let Answer::Records(page) = driver.ask(Request::ReadHandshake { room: log.room, seq }).unwrap() else { panic!("no page") };
    let index = usize::try_from(seq).unwrap().checked_sub(1)?;
    let record = page.records.first()?;
    assert_eq!((record.seq, record.time_ms), (seq, log.appends[index].time_ms));
    assert_eq!(chain::next(log.room, page.before, seq, &record.envelope), log.appends[index].chain, "it stands in its chain");
    Some(record.envelope.to_vec())
}

#[test]
fn the_newest_handshake_record_outlives_what_lies_around_it() {
    let (sender, trims) = sync_channel(10_000);
    let retention =
        Retention { default: Keep { count: Some(50), ..Keep::default() }, sweep_every_ms: 3_600_000, ..Retention::default() };
    let limited = Config { retention, ..config() };
    let directory = tempfile::tempdir().unwrap();
    let open = |data: &Path, sender: &SyncSender<_>| {
        let observer = Arc::new(Trims(sender.clone()));
        let engine = Arc::new(EmbeddedEngine::open(&data.join("store"), limited.clone(), observer).unwrap());
        let driver = Driver::new(Arc::clone(&engine) as Arc<dyn Engine>);
        (engine, driver)
    };
    let (mut engine, mut driver) = open(directory.path(), &sender);
    let mut log = Log::new(room(1));
    driver.done(Request::Create { room: log.room, meta: meta(1) }).unwrap();
    assert_eq!(handshake(&mut driver, &log), None);
    // Twice: the second one takes the place of the first. The larger one is a chunk of its own.
    for (turn, len) in [(1_u64, 300), (2, 200_000)] {
        let change = filled(16, len);
        driver.done(Request::Append(log.next(change.clone()))).unwrap();
        assert_eq!(handshake(&mut driver, &log).as_ref(), Some(&change), "while it is only in the write-ahead log");
        for _ in 0..400 {
            driver.done(Request::Append(log.next(vec![7; 300]))).unwrap();
        }
        assert!(engine.checkpoint());
        wait(&trims, &[(1, 401 * turn - 49 - CHUNK)]);
        for _ in 0..2 {
            let state = driver.load(log.room).unwrap().state;
            assert!(state.floor > state.handshake && state.handshake == 401 * (turn - 1) + 1);
            assert_eq!(handshake(&mut driver, &log).as_ref(), Some(&change));
            engine.shutdown();
            drop((driver, engine));
            assert!(ops::check(&directory.path().join("store"), &mut go_on).unwrap().is_whole());
            (engine, driver) = open(directory.path(), &sender);
        }
    }
    let change = handshake(&mut driver, &log);
    engine.backup(&directory.path().join("backup"), 1, &mut go_on).unwrap();
    let other = tempfile::tempdir().unwrap();
    ops::restore(&directory.path().join("backup"), other.path(), "store", &mut go_on).unwrap();
    let (restored, mut in_restored) = open(other.path(), &sender);
    assert_eq!(handshake(&mut in_restored, &log), change);
    restored.shutdown();
    // Nothing of it shows in the next life of the room.
    driver.done(Request::Delete { room: log.room }).unwrap();
    driver.done(Request::Create { room: log.room, meta: meta(2) }).unwrap();
    assert_eq!(handshake(&mut driver, &Log::new(log.room)), None);
    engine.shutdown();
    drop((driver, engine));
    let store = directory.path().join("store");
    ops::compact(&store, &config(), &mut go_on).unwrap();
    assert!(ops::check(&store, &mut go_on).unwrap().is_whole());
}
