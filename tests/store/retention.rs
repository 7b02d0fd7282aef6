//! Retention in an engine at work.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use waxwing::{
    core::id::RoomId,
    engine::{
        Engine, Observer, Request,
        embedded::{Clock, Config, EmbeddedEngine, Keep, Retention},
    },
};

use crate::{
    driver::{Driver, Log, room},
    operations::{Store, config},
};

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
    let floors = wait(&trims, &[(1, 240), (2, 440)]);
    assert!(floors[&room(1)] <= 301 && floors[&room(2)] <= 501, "{floors:?}");
    assert!(!floors.contains_key(&room(3)), "nothing is old when time stands still");
    now.store(1_500, Ordering::Relaxed);
    let floors = wait(&trims, &[(3, 390)]);
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
    wait(&trims, &[(1, 540)]);
    engine.shutdown();
}
