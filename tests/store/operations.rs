//! Backup, restore, check and compact on real files.

use std::{
    fs,
    ops::ControlFlow,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use bytes::Bytes;
use waxwing::{
    core::{
        frame::{KeyPackage, LogKind},
        handshake::{TRAILER_LEN, Trailer},
        id::{AccessKey, DeviceKey, RoomId},
        limits::Limits,
        log::LogMeta,
        packages::Packages,
    },
    engine::{
        Answer, Engine, Failure, Request,
        embedded::{
            Config, EmbeddedEngine,
            ops::{self, Error, Progress},
        },
    },
};

use crate::driver::{Driver, Log, meta, room};

pub(crate) fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

pub(crate) fn config() -> Config {
    Config { disk_reserve_bytes: 0, apply_bytes: 64 << 10, slice_bytes: 16 << 10, ..Config::default() }
}

/// A store in a directory of its own, and what must be in it.
pub(crate) struct Store {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) engine: Arc<EmbeddedEngine>,
    pub(crate) driver: Driver,
    pub(crate) logs: Vec<Log>,
}

impl Store {
    pub(crate) fn new(config: Config) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let engine = open(directory.path(), config);
        let driver = Driver::new(Arc::clone(&engine) as Arc<dyn Engine>);
        Self { directory, engine, driver, logs: Vec::new() }
    }

    pub(crate) fn data(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.data().join("store")
    }

    /// A new log with so many records of so many bytes.
    pub(crate) fn fill(&mut self, number: u8, count: u64, len: usize) {
        let kind = if number >= 200 { LogKind::Inbox } else { LogKind::Room };
        self.driver.done(Request::Create { room: room(number), meta: LogMeta { kind, ..meta(number) } }).unwrap();
        let mut log = Log::new(room(number));
        append(&mut self.driver, &mut log, count, len);
        self.logs.push(log);
    }

    /// Ends the engine; the directory stays.
    pub(crate) fn stop(self) -> (tempfile::TempDir, Vec<Log>) {
        let Self { directory, engine, driver, logs } = self;
        engine.shutdown();
        drop((driver, engine));
        (directory, logs)
    }
}

pub(crate) fn open(data: &Path, config: Config) -> Arc<EmbeddedEngine> {
    Arc::new(EmbeddedEngine::open(&data.join("store"), config, Arc::new(())).unwrap())
}

pub(crate) fn append(driver: &mut Driver, log: &mut Log, count: u64, len: usize) {
    for _ in 0..count {
        let mut envelope = vec![0; len];
        let name = format!("{}/{:06}|", log.room.0[0], log.appends.len() + 1);
        let named = name.len().min(len);
        envelope[..named].copy_from_slice(&name.as_bytes()[..named]);
        if log.appends.len() % 7 == 3 && len > 200 {
            // A handshake record, which brings an access key.
            envelope.rotate_right(4);
            envelope[..4].copy_from_slice(&[1, 4, 1, 0]);
            let access = Some(AccessKey([log.room.0[0]; 32]));
            let trailer = Trailer { after: 0, access, welcome_len: 0, group_info_len: 9, beside_len: 1, is_outline: false };
            envelope[len - TRAILER_LEN..].copy_from_slice(&trailer.to_bytes());
        }
        driver.done(Request::Append(log.next(envelope))).unwrap();
        log.acked += 1;
    }
}

/// Rooms of every shape: empty, tiny, many pages, large records; and an inbox.
fn varied() -> Store {
    let mut store = Store::new(config());
    store.fill(1, 0, 0);
    store.fill(2, 3, 40);
    store.fill(3, 700, 300);
    store.fill(4, 40, 9_000);
    store.fill(5, 2, 300_000);
    store.fill(200, 1, 1_500);
    store
}

fn check_all(data: &Path, logs: &[Log], same_ids: bool) {
    let engine = open(data, config());
    let mut driver = Driver::new(Arc::clone(&engine) as Arc<dyn Engine>);
    for log in logs {
        log.check(&mut driver);
        let loaded = driver.load(log.room).unwrap();
        assert_eq!(loaded.meta.log == meta(log.room.0[0]).log, same_ids);
    }
    engine.shutdown();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_backup_while_messages_come_restores_as_another_life() {
    let mut store = varied();
    let backup = store.data().join("backups/today");
    // Somebody publishes all the while.
    store.fill(9, 1, 100);
    let mut busy = store.logs.pop().unwrap();
    let engine = Arc::clone(&store.engine);
    let publisher = thread::spawn(move || {
        let mut driver = Driver::new(engine as Arc<dyn Engine>);
        append(&mut driver, &mut busy, 400, 200);
        busy
    });
    let mut seen = Progress::default();
    let (manifest, left_out) = store
        .engine
        .backup(&backup, 1_700_000_000_000, &mut |progress| {
            assert!(progress.logs >= seen.logs && progress.bytes >= seen.bytes, "it only grows");
            seen = progress;
            ControlFlow::Continue(())
        })
        .unwrap();
    let busy = publisher.join().unwrap();
    assert!(left_out.is_empty());
    assert_eq!((seen.logs, seen.logs_total, manifest.logs), (7, 7, 7));
    assert_eq!((seen.bytes, seen.bytes_total), (manifest.bytes, manifest.bytes));
    assert_eq!((mode(&backup), mode(&backup.join("history.redb")), mode(&backup.join("manifest.toml"))), (0o700, 0o600, 0o600));
    assert_eq!(ops::verify(&backup, &mut go_on).unwrap(), manifest);

    let data = tempfile::tempdir().unwrap();
    let restored = ops::restore(&backup, data.path(), "store", &mut go_on).unwrap();
    assert_eq!(restored.manifest, manifest);
    let (_old, logs) = store.stop();
    check_all(data.path(), &logs, false);
    // Of what came during the backup, a beginning is there: none that was acked before is missing.
    let engine = open(data.path(), config());
    let mut driver = Driver::new(Arc::clone(&engine) as Arc<dyn Engine>);
    let mut busy = Log { acked: 1, ..busy };
    let head = busy.check(&mut driver);
    busy.appends.truncate(usize::try_from(head).unwrap());
    busy.chain = busy.appends.last().unwrap().chain;
    append(&mut driver, &mut busy, 3, 50);
    busy.check(&mut driver);
    engine.shutdown();
}

#[test]
fn what_is_not_a_whole_backup_is_refused() {
    let store = varied();
    let target = store.data().join("b");
    let stopped = store.engine.backup(&target, 1, &mut |progress| {
        if progress.records > 100 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(Error::Stopped)));
    assert!(!target.exists(), "what was made for it is gone");

    store.engine.backup(&target, 1, &mut go_on).unwrap();
    assert!(matches!(store.engine.backup(&target, 1, &mut go_on), Err(Error::NotEmpty { .. })));
    let (manifest, history) = (target.join("manifest.toml"), target.join("history.redb"));
    let whole = fs::read(&history).unwrap();
    let text = fs::read_to_string(&manifest).unwrap();
    let why = || ops::verify(&target, &mut go_on).unwrap_err().to_string();
    let mut bytes = whole.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&history, &bytes).unwrap();
    assert!(why().contains("history.redb is not the file that manifest.toml describes"), "{}", why());
    fs::write(&history, &whole).unwrap();
    fs::write(&manifest, text.replace("format = 1", "format = 9")).unwrap();
    assert!(why().contains("has format 9; this build reads up to 1"), "{}", why());
    fs::write(&manifest, text.replace("records = ", "records = 1")).unwrap();
    assert!(why().contains("logs with"), "{}", why());
    fs::remove_file(&manifest).unwrap();
    assert!(why().contains("it was interrupted, or is none"), "{}", why());
    fs::write(&manifest, &text).unwrap();
    ops::verify(&target, &mut go_on).unwrap();

    let refused = ops::restore(&target, store.data(), "store", &mut go_on).unwrap_err().to_string();
    assert!(refused.contains("a backup is restored only where no store is"), "{refused}");
    let (directory, logs) = store.stop();
    check_all(directory.path(), &logs, true);
}

/// Changes one byte of the record that holds `name`, in the file of a store that nobody has open.
fn damage(data: &Path, name: &str) {
    let path = data.join("store/history.redb");
    let mut bytes = fs::read(&path).unwrap();
    let mut found = 0;
    for at in 0..bytes.len() - name.len() {
        if &bytes[at..at + name.len()] == name.as_bytes() {
            bytes[at + 1] ^= 4;
            found += 1;
        }
    }
    assert!(found > 0, "the record lies in the file as it is");
    fs::write(&path, bytes).unwrap();
}

/// What came from the file is compared with its checksum then, and is what is read as long as it is remembered.
#[test]
fn what_was_read_lately_is_read_without_the_file() {
    for (read_cache_bytes, remembers) in [(4 << 20, true), (0, false)] {
        let (directory, logs) = varied().stop();
        // redb itself remembers next to nothing.
        let engine = open(directory.path(), Config { cache_bytes: 16 << 10, read_cache_bytes, ..config() });
        let mut driver = Driver::new(Arc::clone(&engine) as Arc<dyn Engine>);
        let log = &logs[2];
        log.check(&mut driver);
        // Nothing is written now, so that the file can be changed under its user's hands.
        damage(directory.path(), "3/000400|");
        let read = driver.after(log.room, 380, 1 << 20).map(|page| page.records.len());
        assert_eq!(read, if remembers { Ok(320) } else { Err(Failure::Read) });
        // Who looks at the file finds it.
        engine.shutdown();
        drop((driver, engine));
        assert!(!ops::check(&directory.path().join("store"), &mut go_on).unwrap().is_whole());
    }
}

#[test]
fn a_damaged_room_is_named_and_the_others_go_on() {
    let (directory, logs) = varied().stop();
    let data = directory.path();
    let whole = ops::check(&data.join("store"), &mut go_on).unwrap();
    assert!(whole.is_whole(), "{whole:?}");
    assert_eq!((whole.logs, whole.records, whole.unapplied), (6, 746, 0));
    damage(data, "3/000400|");
    let before = fs::read(data.join("store/history.redb")).unwrap();
    let found = ops::check(&data.join("store"), &mut go_on).unwrap();
    assert_eq!(fs::read(data.join("store/history.redb")).unwrap(), before, "a check changes nothing");
    let told: Vec<_> = found.problems.iter().map(ToString::to_string).collect();
    let named = told.iter().find(|text| text.starts_with(&format!("room {}: ", room(3)))).unwrap_or_else(|| panic!("{told:?}"));
    assert!(named.contains("checksum"), "{named}");
    assert!(!told.iter().any(|text| text.starts_with("room") && text != named), "{told:?}");
    assert_eq!(found.logs, 5);

    // A backup has all the others, and says what it lacks.
    let engine = open(data, config());
    let backup = data.join("backup");
    let (manifest, left_out) = engine.backup(&backup, 1, &mut go_on).unwrap();
    assert_eq!((manifest.logs, manifest.left_out.as_slice()), (5, [room(3).to_string()].as_slice()));
    assert_eq!(left_out[0].room, room(3));
    engine.shutdown();
    drop(engine);
    let other = tempfile::tempdir().unwrap();
    ops::restore(&backup, other.path(), "store", &mut go_on).unwrap();
    let others: Vec<Log> = logs.into_iter().filter(|log| log.room != room(3)).collect();
    check_all(other.path(), &others, false);

    // Compacting leaves it as it is.
    let compacted = ops::compact(&data.join("store"), &config(), &mut go_on).unwrap();
    assert_eq!(compacted.damaged[0].room, room(3));
    check_all(data, &others, true);
    let engine = open(data, config());
    let mut driver = Driver::new(Arc::clone(&engine) as Arc<dyn Engine>);
    assert_eq!(driver.after(room(3), 0, 3_000).unwrap().records[0].seq, 1, "what is whole of it is read");
    engine.shutdown();
}

#[test]
fn what_a_damaged_room_could_not_take_is_told() {
    let (directory, mut logs) = varied().stop();
    let data = directory.path();
    damage(data, "2/000003|");
    let engine = open(data, config());
    let mut driver = Driver::new(Arc::clone(&engine) as Arc<dyn Engine>);
    append(&mut driver, &mut logs[1], 4, 100);
    assert!(engine.checkpoint(), "one room's damage does not hold the others up");
    assert_eq!(engine.status().damaged, 1);
    engine.shutdown();
    drop((driver, engine));
    let checked = ops::check(&data.join("store"), &mut go_on).unwrap();
    let [stranded] = checked.stranded.as_slice() else { panic!("{checked:?}") };
    assert_eq!((stranded.room, stranded.first, stranded.records), (Some(room(2)), 4, 4));
    assert!(stranded.why.contains("checksum"), "{}", stranded.why);
    // It stays through a compacting.
    ops::compact(&data.join("store"), &config(), &mut go_on).unwrap();
    assert_eq!(ops::check(&data.join("store"), &mut go_on).unwrap().stranded, checked.stranded);
}

#[test]
fn a_row_that_cannot_be_read_costs_its_room_only() {
    let (directory, logs) = varied().stop();
    let data = directory.path();
    let database = redb::Database::open(data.join("store/history.redb")).unwrap();
    let txn = database.begin_write().unwrap();
    let table = redb::TableDefinition::<&[u8; 16], &[u8]>::new("logs");
    txn.open_table(table).unwrap().insert(&room(2).0, &[0xff; 3][..]).unwrap();
    txn.commit().unwrap();
    drop(database);
    let checked = ops::check(&data.join("store"), &mut go_on).unwrap();
    assert!(checked.problems[0].to_string().starts_with(&format!("room {}: ", room(2))), "{checked:?}");
    assert_eq!((checked.logs, checked.problems.len()), (5, 1));
    let engine = open(data, config());
    let (manifest, left_out) = engine.backup(&data.join("backup"), 1, &mut go_on).unwrap();
    assert_eq!((manifest.logs, left_out.len(), left_out[0].room), (5, 1, room(2)));
    engine.shutdown();
    drop(engine);
    let other = tempfile::tempdir().unwrap();
    ops::restore(&data.join("backup"), other.path(), "store", &mut go_on).unwrap();
    let others: Vec<Log> = logs.into_iter().filter(|log| log.room != room(2)).collect();
    check_all(other.path(), &others, false);
    // Nobody knows which chunks are the room's, so a copy would lose them.
    let refused = ops::compact(&data.join("store"), &config(), &mut go_on);
    assert!(matches!(&refused, Err(Error::Damaged { rooms }) if rooms[0].room == room(2)), "{refused:?}");
}

#[test]
fn two_restores_at_once_make_one_whole_store() {
    let store = varied();
    let backup = store.data().join("backup");
    store.engine.backup(&backup, 1, &mut go_on).unwrap();
    let data = tempfile::tempdir().unwrap();
    let mut second = None;
    // The second begins when the first is at its work, and everything is over when it ends.
    ops::restore(&backup, data.path(), "store", &mut |progress| {
        if progress.records > 100 && second.is_none() {
            second = Some(ops::restore(&backup, data.path(), "store", &mut go_on));
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    let refused = second.unwrap().unwrap_err().to_string();
    assert!(refused.contains("is in use by another process"), "{refused}");
    assert!(ops::check(&data.path().join("store"), &mut go_on).unwrap().is_whole());
    let (_old, logs) = store.stop();
    check_all(data.path(), &logs, false);
}

#[test]
fn what_interrupted_operations_left_goes_when_the_store_is_opened() {
    let (directory, logs) = varied().stop();
    let store = directory.path().join("store");
    let leave = || {
        for name in ["migrating", "compacting", "restoring", "restoring.0011223344556677", "new.1"] {
            fs::write(store.join(format!("history.redb.{name}")), b"half").unwrap();
        }
        fs::write(store.join("history.redb.mine"), b"kept").unwrap();
    };
    let left = || {
        let names = fs::read_dir(&store).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("history.redb.")).collect::<Vec<_>>()
    };
    leave();
    check_all(directory.path(), &logs, true);
    assert_eq!(left(), ["history.redb.mine"]);
    leave();
    ops::compact(&store, &Config { disk_reserve_bytes: u64::MAX, ..config() }, &mut go_on).unwrap();
    assert_eq!(left(), ["history.redb.mine"]);
}

#[test]
fn nothing_is_left_of_a_large_room_that_a_backup_leaves_out() {
    let mut store = varied();
    store.fill(7, 80, 300_000);
    let (directory, logs) = store.stop();
    damage(directory.path(), "7/000080|");
    let engine = open(directory.path(), config());
    let backup = directory.path().join("backup");
    let (manifest, left_out) = engine.backup(&backup, 1, &mut go_on).unwrap();
    engine.shutdown();
    assert_eq!((left_out.len(), left_out[0].room), (1, room(7)));
    let other = tempfile::tempdir().unwrap();
    ops::restore(&backup, other.path(), "store", &mut go_on).unwrap();
    assert!(ops::check(&other.path().join("store"), &mut go_on).unwrap().is_whole());
    assert!(manifest.file_bytes > 0);
    check_all(other.path(), &logs[..6], false);
    // In the backup's own file there is nothing either.
    fs::create_dir(directory.path().join("as-store")).unwrap();
    fs::copy(backup.join("history.redb"), directory.path().join("as-store/history.redb")).unwrap();
    let checked = ops::check(&directory.path().join("as-store"), &mut go_on).unwrap();
    assert!(checked.is_whole(), "{checked:?}");
}

#[test]
fn compacting_gives_the_disk_back() {
    let mut store = varied();
    for number in 20..40 {
        store.fill(number, 20, 20_000);
    }
    for log in store.logs.split_off(6) {
        store.driver.done(Request::Delete { room: log.room }).unwrap();
    }
    assert!(store.engine.checkpoint());
    let refused = ops::compact(&store.store(), &config(), &mut go_on).unwrap_err().to_string();
    assert!(refused.contains("is in use by another process"), "{refused}");
    let (directory, logs) = store.stop();
    let path = directory.path().join("store");
    let stopped = ops::compact(&path, &config(), &mut |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(Error::Stopped)));
    let done = ops::compact(&path, &config(), &mut go_on).unwrap();
    assert!(done.after < done.before / 2, "{done:?}");
    assert_eq!((done.logs, done.in_place), (6, false));
    // Where the disk has no room for a copy.
    let done = ops::compact(&path, &Config { disk_reserve_bytes: u64::MAX, ..config() }, &mut go_on).unwrap();
    assert!(done.in_place && done.after <= done.before, "{done:?}");
    let names: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().all(|name| name == "history.redb" || name.starts_with("wal-")), "{names:?}");
    assert!(ops::check(&path, &mut go_on).unwrap().is_whole());
    check_all(directory.path(), &logs, true);
    // And it is written to as before.
    let engine = open(directory.path(), config());
    let mut driver = Driver::new(Arc::clone(&engine) as Arc<dyn Engine>);
    for mut log in logs {
        append(&mut driver, &mut log, 30, 700);
        log.check(&mut driver);
    }
    engine.shutdown();
}

#[test]
fn what_only_the_write_ahead_log_has_is_checked_too() {
    let directory = tempfile::tempdir().unwrap();
    let (store, kept) = (directory.path().join("store"), directory.path().join("kept"));
    let engine = open(directory.path(), Config::default());
    let mut driver = Driver::new(Arc::clone(&engine) as Arc<dyn Engine>);
    driver.done(Request::Create { room: room(1), meta: meta(1) }).unwrap();
    let mut log = Log::new(room(1));
    append(&mut driver, &mut log, 10, 100);
    assert!(engine.checkpoint());
    append(&mut driver, &mut log, 20, 100);
    // As after a power cut: the files as they are now.
    fs::create_dir(&kept).unwrap();
    for entry in fs::read_dir(&store).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), kept.join(entry.file_name())).unwrap();
    }
    engine.shutdown();
    let checked = ops::check(&kept, &mut go_on).unwrap();
    assert!(checked.is_whole(), "{checked:?}");
    assert_eq!((checked.records, checked.unapplied), (10, 20));
    let path = fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().path()).find(|path| {
        path.file_name().unwrap().to_str().unwrap().starts_with("wal-")
            && fs::read(path).unwrap().windows(9).any(|bytes| bytes == b"1/000015|")
    });
    let path = path.unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(9).position(|bytes| bytes == b"1/000015|").unwrap();
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    let damaged = ops::check(&kept, &mut go_on).unwrap();
    let told: Vec<_> = damaged.problems.iter().map(ToString::to_string).collect();
    assert!(told[0].starts_with("the write-ahead log: the log is damaged: in wal-"), "{told:?}");
    assert!(told[0].contains(&RoomId([1; 16]).to_string()), "{told:?}");
    let missing = ops::check(&directory.path().join("nowhere"), &mut go_on).unwrap_err().to_string();
    assert!(missing.starts_with("there is no store in "), "{missing}");
}

fn packages_of(driver: &mut Driver, number: u8) -> Bytes {
    match driver.ask(Request::LoadPackages { device: DeviceKey([number; 32]) }) {
        Ok(Answer::Packages(bytes)) => bytes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn key_packages_are_copied_and_a_restored_store_has_the_last_resorts_only() {
    let mut store = Store::new(config());
    store.fill(1, 3, 100);
    let package = |number: u8, last_resort| KeyPackage { expires_ms: 9, last_resort, bytes: vec![number; 400].into() };
    let encoded = |packages: &[KeyPackage]| {
        let mut all = Packages::default();
        all.publish(packages, true, 0, &Limits::default()).unwrap();
        all.encode()
    };
    let with_last = encoded(&[package(1, false), package(2, true), package(3, false)]);
    let (without, last) = (encoded(&[package(4, false)]), encoded(&[package(2, true)]));
    for (number, packages) in [(1, &with_last), (2, &without), (3, &with_last), (3, &Bytes::new())] {
        let (device, packages) = (DeviceKey([number; 32]), packages.clone());
        store.driver.done(Request::StorePackages { device, packages }).unwrap();
    }
    let (directory, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let backup = directory.path().join("backup");
    store.engine.backup(&backup, 1, &mut go_on).unwrap();
    ops::restore(&backup, other.path(), "store", &mut go_on).unwrap();
    let (data, _) = store.stop();
    ops::compact(&data.path().join("store"), &config(), &mut go_on).unwrap();
    for (data, expected) in [(&data, [with_last, without, Bytes::new()]), (&other, [last, Bytes::new(), Bytes::new()])] {
        assert!(ops::check(&data.path().join("store"), &mut go_on).unwrap().is_whole());
        let engine = open(data.path(), config());
        let mut driver = Driver::new(Arc::clone(&engine) as Arc<dyn Engine>);
        assert_eq!([1, 2, 3].map(|number| packages_of(&mut driver, number)), expected);
        engine.shutdown();
    }
}
