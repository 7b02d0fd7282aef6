//! The store as a file: how it is made, locked, refused, batched, swept and drained.

use std::{
    os::unix::fs::PermissionsExt as _,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
};

use redb::{Database, ReadableDatabase as _, ReadableTableMetadata as _, TableDefinition};
use waxwing::{
    core::log::PRODUCER_RING,
    engine::{
        Busy, Complete, Completion, Engine as _, Request,
        redb::{Config, OpenError, RedbEngine},
    },
};

use crate::{
    conformance,
    driver::{Driver, Log, meta, producer, room},
};

const RECORDS: TableDefinition<'_, (&[u8; 16], u64), &[u8]> = TableDefinition::new("records");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

fn config() -> Config {
    Config { disk_reserve_bytes: 0, ..Config::default() }
}

fn open(path: &std::path::Path) -> Result<RedbEngine, OpenError> {
    RedbEngine::open(path, config(), Arc::new(()))
}

#[test]
fn it_conforms_on_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new").join("waxwing.redb");
    conformance::suite(3 << 20, &|| Arc::new(open(&path).unwrap()));
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    assert_eq!(path.parent().unwrap().read_dir().unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn what_cannot_be_opened_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("waxwing.redb");
    let engine = open(&path).unwrap();
    assert!(matches!(open(&path), Err(OpenError::Locked { .. })));
    drop(engine);

    let db = Database::open(&path).unwrap();
    let txn = db.begin_write().unwrap();
    txn.open_table(META).unwrap().insert("format", 7_u32.to_le_bytes().as_slice()).unwrap();
    txn.commit().unwrap();
    drop(db);
    let error = open(&path).unwrap_err();
    assert!(matches!(error, OpenError::NewerFormat { found: 7, supported: 1, .. }));
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");

    let foreign = directory.path().join("foreign.redb");
    let db = Database::create(&foreign).unwrap();
    let txn = db.begin_write().unwrap();
    txn.open_table(RECORDS).unwrap();
    txn.commit().unwrap();
    drop(db);
    assert!(matches!(open(&foreign), Err(OpenError::NotAStore { .. })));

    let text = directory.path().join("text");
    std::fs::write(&text, vec![b'a'; 5_000]).unwrap();
    assert!(matches!(open(&text), Err(OpenError::NotAStore { .. })));
    assert!(matches!(open(directory.path()), Err(OpenError::Io { .. } | OpenError::Permission { .. })));
    assert!(matches!(open(&text.join("below")), Err(OpenError::Io { .. })));
}

/// Holds the engine's writer in its first completion until told to go on.
struct Gate {
    entered: Sender<usize>,
    go: Mutex<Receiver<()>>,
}

impl Complete for Gate {
    fn complete(&self, batch: Vec<Completion>) {
        assert!(batch.iter().all(|completion| completion.result.is_ok()));
        let _ = self.entered.send(batch.len());
        let _ = self.go.lock().unwrap().recv();
    }
}

#[test]
fn what_queued_during_a_commit_is_the_next_batch_and_a_full_queue_refuses() {
    let directory = tempfile::tempdir().unwrap();
    let config = Config { queue_requests_max: 300, batch_requests_max: 200, ..config() };
    let engine = RedbEngine::open(&directory.path().join("s"), config, Arc::new(())).unwrap();
    let (entered, batches) = channel();
    let (go, gate) = channel();
    let gate: Arc<dyn Complete> = Arc::new(Gate { entered, go: Mutex::new(gate) });
    let mut log = Log::new(room(1));
    engine.submit(Request::Create { room: log.room, meta: meta(1) }, 0, &gate).unwrap();
    assert_eq!(batches.recv().unwrap(), 1);
    for token in 1..=300 {
        engine.submit(Request::Append(log.next(vec![1; 10])), token, &gate).unwrap();
    }
    assert_eq!(engine.submit(Request::Append(log.next(vec![1; 10])), 301, &gate), Err(Busy));
    go.send(()).unwrap();
    assert_eq!(batches.recv().unwrap(), 200, "one call carries the batch");
    // What is queued is still done when the engine is shut down.
    drop(go);
    engine.shutdown();
    assert_eq!(batches.recv().unwrap(), 100);
    assert_eq!(engine.submit(Request::Load { room: log.room }, 302, &gate), Err(Busy));
}

#[test]
fn a_deleted_log_is_swept_in_slices_over_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let records = || {
        let db = Database::open(&path).unwrap();
        let txn = db.begin_read().unwrap();
        txn.open_table(RECORDS).unwrap().len().unwrap()
    };
    let mut driver = Driver::new(Arc::new(open(&path).unwrap()));
    let mut log = Log::new(room(1));
    driver.done(Request::Create { room: log.room, meta: meta(1) }).unwrap();
    for _ in 0..3_500 {
        let append = log.next(vec![1; 10]);
        driver.submit(Request::Append(append)).unwrap();
    }
    (0..3_500).for_each(|_| assert!(driver.next().result.is_ok()));
    driver.done(Request::Delete { room: room(1) }).unwrap();
    drop(driver);
    let mut driver = Driver::new(Arc::new(open(&path).unwrap()));
    let mut other = Log::new(room(2));
    driver.done(Request::Create { room: other.room, meta: meta(2) }).unwrap();
    // Each turn of the writer sweeps one slice, so after these there is nothing left to sweep.
    for _ in 0..5 {
        let append = other.next(vec![2; 10]);
        driver.done(Request::Append(append)).unwrap();
    }
    drop(driver);
    assert_eq!(records(), 5);
}

#[test]
fn outboxes_idle_for_30_days_are_forgotten_when_another_begins() {
    let directory = tempfile::tempdir().unwrap();
    let mut driver = Driver::new(Arc::new(open(&directory.path().join("s")).unwrap()));
    let mut log = Log::new(room(1));
    driver.done(Request::Create { room: log.room, meta: meta(1) }).unwrap();
    let day = 24 * 60 * 60 * 1000;
    for (number, at) in [(1, 1), (2, 5), (3, 30), (4, 32)] {
        for client_seq in 1..=70 {
            let mut append = log.next(vec![number; 10]);
            append.producer = producer(number);
            append.client_seq = client_seq;
            append.time_ms = at * day;
            driver.submit(Request::Append(append)).unwrap();
        }
        (0..70).for_each(|_| assert!(driver.next().result.is_ok()));
    }
    let producers = driver.load(room(1)).unwrap().producers;
    let known: Vec<_> = producers.iter().map(|(producer, state)| (producer.id.0[0], state.last, state.ring.len())).collect();
    assert_eq!(known, [(2, 70, PRODUCER_RING), (3, 70, PRODUCER_RING), (4, 70, PRODUCER_RING)]);
    // One that comes back goes on with its own number, and what came before is not recognised.
    let mut append = log.next(vec![1; 10]);
    append.client_seq = 71;
    append.time_ms = 32 * day;
    driver.done(Request::Append(append)).unwrap();
    let producers = driver.load(room(1)).unwrap().producers;
    let back = &producers.iter().find(|(name, _)| *name == producer(1)).unwrap().1;
    assert_eq!((back.last, back.ring.len(), back.find(70)), (71, 1, None));
}
