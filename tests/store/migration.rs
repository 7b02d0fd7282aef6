//! A store of the first format becomes one of the present one.
//!
//! `tests/fixtures/format-1.blocks` is a file that the first format's engine wrote: a list of (block number, u32 little-endian;
//! the block's 128 bytes) without the blocks that are zero, and first the file's length, u64. To make it again:
//! `cargo test --test store -- --ignored make_the_fixture`.

use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

use waxwing::engine::{
    Engine, Request,
    embedded::ops::{self, Error, KEPT, Migrated, OLD},
    redb::{Config, RedbEngine},
};

use crate::{
    driver::{Driver, Log, meta, room},
    operations::{config, go_on, open},
};

const BLOCK: usize = 128;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-1.blocks")
}

/// What is in it: number of the log, records, and their bytes.
const LOGS: [(u8, usize, usize); 4] = [(1, 0, 0), (2, 3, 70), (3, 60, 150), (4, 1, 5_000)];

/// Bytes that are the same in every run, and hardly compress.
fn envelope(log: u8, number: usize, len: usize) -> Vec<u8> {
    let mut state = u32::from(log) * 1_000 + u32::try_from(number).unwrap();
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    };
    (0..len).map(|_| next()).collect()
}

pub(crate) fn logs() -> Vec<Log> {
    let log = |(number, count, len)| {
        let mut log = Log::new(room(number));
        for at in 0..count {
            log.next(envelope(number, at, len));
        }
        log.acked = count as u64;
        log
    };
    LOGS.into_iter().map(log).collect()
}

#[test]
#[ignore = "it writes the fixture"]
fn make_the_fixture() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(OLD);
    let engine = Arc::new(RedbEngine::open(&path, Config { disk_reserve_bytes: 0, ..Config::default() }, Arc::new(())).unwrap());
    let mut driver = Driver::new(Arc::clone(&engine) as Arc<dyn Engine>);
    for log in logs() {
        driver.done(Request::Create { room: log.room, meta: meta(log.room.0[0]) }).unwrap();
        // Together, so that few pages are written twice.
        let tokens: Vec<_> = log.appends.into_iter().map(|append| driver.submit(Request::Append(append)).unwrap()).collect();
        for token in tokens {
            let completion = driver.next();
            assert!(completion.token == token && completion.result.is_ok());
        }
    }
    engine.shutdown();
    drop((driver, engine));
    let file = fs::read(path).unwrap();
    let mut bytes = (file.len() as u64).to_le_bytes().to_vec();
    for (number, block) in (0_u32..).zip(file.chunks(BLOCK)) {
        if block.iter().any(|byte| *byte != 0) {
            bytes.extend(number.to_le_bytes());
            bytes.extend(block);
        }
    }
    fs::create_dir_all(fixture().parent().unwrap()).unwrap();
    fs::write(fixture(), bytes).unwrap();
}

/// A data directory with the fixture's file in it.
pub(crate) fn old_data() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let bytes = fs::read(fixture()).unwrap();
    let (len, blocks) = bytes.split_first_chunk().unwrap();
    let mut file = vec![0; usize::try_from(u64::from_le_bytes(*len)).unwrap()];
    for block in blocks.chunks(4 + BLOCK) {
        let (number, block) = block.split_first_chunk().unwrap();
        let at = usize::try_from(u32::from_le_bytes(*number)).unwrap() * BLOCK;
        file[at..at + block.len()].copy_from_slice(block);
    }
    fs::write(directory.path().join(OLD), file).unwrap();
    directory
}

fn check(data: &Path) {
    let engine = open(data, config());
    let mut driver = Driver::new(Arc::clone(&engine) as Arc<dyn Engine>);
    for mut log in logs() {
        log.check(&mut driver);
        assert_eq!(driver.load(log.room).unwrap().meta, meta(log.room.0[0]), "its id too");
        for _ in 0..20 {
            driver.done(Request::Append(log.next(vec![9; 800]))).unwrap();
        }
        assert!(engine.checkpoint());
        log.check(&mut driver);
    }
    engine.shutdown();
}

#[test]
fn the_first_format_is_brought_over_whole() {
    let data = old_data();
    let bytes = LOGS.iter().map(|(_, count, len)| (count * len) as u64).sum();
    let mut last = 0;
    let done = ops::migrate(data.path(), "store", &mut |progress| {
        last = progress.bytes;
        ControlFlow::Continue(())
    });
    assert_eq!(done.unwrap(), Some(Migrated { logs: 4, records: 64, bytes }));
    assert_eq!(last, bytes);
    assert!(!data.path().join(OLD).exists() && data.path().join(KEPT).exists());
    assert!(ops::check(&data.path().join("store"), &mut go_on).unwrap().is_whole());
    check(data.path());
    assert_eq!(ops::migrate(data.path(), "store", &mut go_on).unwrap(), None);
}

#[test]
fn it_is_done_or_not_done_whenever_the_process_ends() {
    let data = old_data();
    let whole = fs::read(data.path().join(OLD)).unwrap();
    let stopped = ops::migrate(data.path(), "store", &mut |progress| {
        if progress.records > 20 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(Error::Stopped)));
    // As if it had not even taken back what it began.
    fs::write(data.path().join("store/history.redb.migrating"), b"half").unwrap();
    ops::migrate(data.path(), "store", &mut go_on).unwrap().unwrap();
    // Between the new name and the old file's.
    fs::remove_file(data.path().join(KEPT)).unwrap();
    fs::write(data.path().join(OLD), &whole).unwrap();
    assert_eq!(ops::migrate(data.path(), "store", &mut go_on).unwrap(), None);
    assert!(data.path().join(KEPT).exists());
    check(data.path());
    // From then on it is a store of its own: another one of the first format is not taken for what it was made from.
    fs::remove_file(data.path().join(KEPT)).unwrap();
    fs::write(data.path().join(OLD), &whole).unwrap();
    let both = ops::migrate(data.path(), "store", &mut go_on);
    assert!(matches!(both, Err(Error::TwoStores { .. })), "{both:?}");
}

#[test]
fn what_cannot_be_brought_over_stays_as_it_is() {
    // A store that does not come from it.
    let data = old_data();
    open(data.path(), config()).shutdown();
    let both = ops::migrate(data.path(), "store", &mut go_on).unwrap_err().to_string();
    assert!(both.contains("move one of them away"), "{both}");
    assert!(data.path().join(OLD).exists());
    // One that is open.
    let data = old_data();
    let engine = RedbEngine::open(&data.path().join(OLD), Config::default(), Arc::new(())).unwrap();
    let locked = ops::migrate(data.path(), "store", &mut go_on).unwrap_err().to_string();
    assert!(locked.contains("is in use by another process"), "{locked}");
    engine.shutdown();
    // A newer one, under the old name.
    let data = old_data();
    fs::remove_file(data.path().join(OLD)).unwrap();
    open(data.path(), config()).shutdown();
    fs::rename(data.path().join("store/history.redb"), data.path().join(OLD)).unwrap();
    let newer = ops::migrate(data.path(), "store", &mut go_on).unwrap_err().to_string();
    assert!(newer.contains("has format 2; this build reads up to 1"), "{newer}");
    // A damaged one.
    let data = old_data();
    let path = data.path().join(OLD);
    let mut bytes = fs::read(&path).unwrap();
    let record = envelope(3, 40, 150);
    let at = bytes.windows(record.len()).position(|bytes| bytes == record).unwrap();
    bytes[at + 5] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let damaged = ops::migrate(data.path(), "store", &mut go_on).unwrap_err().to_string();
    assert!(damaged.contains("the hash chain breaks at record 41") && damaged.contains(&room(3).to_string()), "{damaged}");
    assert!(path.exists() && !data.path().join("store/history.redb").exists());
}
