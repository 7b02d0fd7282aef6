//! Power cuts and failing disks in the middle of what operators do: it was done, or what was there before is whole and it can
//! be done again.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

use waxwing::engine::{
    Engine, Request,
    embedded::{
        Config, EmbeddedEngine,
        ops::{self, Disk as _, Error},
    },
    wal,
};

use crate::{
    disk::Rng,
    driver::{Driver, Log, meta, room},
    machine::{Fault, Machine},
    migration,
    operations::{append, go_on},
    seeds::seeded,
};

/// How many schedules of each kind, or which.
const SEEDS: &str = "WAXWING_TEST_ENGINE_SEEDS";

const DATA: &str = "data";
const STORE: &str = "data/store";
const BACKUP: &str = "backups/today";
/// Two directories that are not there.
const OTHER: &str = "later/backup";

/// Small files, so that a machine is quickly copied.
fn config() -> Config {
    Config {
        wal: wal::Config { segment_bytes: 64 << 10, bytes_max: 1 << 20, ..wal::Config::default() },
        cache_bytes: 64 << 10,
        apply_bytes: 24 << 10,
        slice_bytes: 8 << 10,
        apply_retry_ms: 1,
        readers: 1,
        disk_reserve_bytes: 0,
        ..Config::default()
    }
}

fn open(machine: &Machine, store: &str) -> (Arc<EmbeddedEngine>, Driver) {
    let storage = machine.store(store.as_ref()).unwrap();
    let engine = Arc::new(EmbeddedEngine::open_in(storage, config(), Arc::new(())).unwrap());
    let driver = Driver::new(Arc::clone(&engine) as Arc<dyn Engine>);
    (engine, driver)
}

/// A machine with a store that a killed process left, a backup of it, and what must be in both.
fn world() -> &'static (Machine, Vec<Log>) {
    static WORLD: OnceLock<(Machine, Vec<Log>)> = OnceLock::new();
    WORLD.get_or_init(|| {
        let machine = Machine::default();
        let (engine, mut driver) = open(&machine, STORE);
        let mut fill = |number: u8, count: u64, len: usize| {
            driver.done(Request::Create { room: room(number), meta: meta(number) }).unwrap();
            let mut log = Log::new(room(number));
            append(&mut driver, &mut log, count, len);
            log
        };
        let mut logs = vec![fill(1, 0, 0), fill(2, 3, 40), fill(3, 120, 300), fill(4, 5, 9_000)];
        let gone = fill(5, 20, 3_000);
        driver.done(Request::Delete { room: gone.room }).unwrap();
        assert!(engine.checkpoint());
        // Some of it is in the write-ahead log only.
        append(&mut driver, &mut logs[1], 2, 500);
        engine.backup_on(&machine, BACKUP.as_ref(), 1, &mut go_on).unwrap();
        append(&mut driver, &mut logs[1], 1, 600);
        let killed = machine.stopped();
        engine.shutdown();
        (killed, logs)
    })
}

/// Everything is there. `late` is what came after the backup was made.
fn check_all(machine: &Machine, store: &str, logs: &[Log], late: bool) {
    {
        let (engine, mut driver) = open(machine, store);
        for log in logs {
            let missing = u64::from(!late && log.room == room(2));
            let acked = log.acked - missing;
            let head = Log { acked, appends: log.appends.clone(), ..Log::new(log.room) }.check(&mut driver);
            assert_eq!(head, acked);
        }
        engine.shutdown();
    }
    let checked = ops::check_on(machine, store.as_ref(), &mut go_on).unwrap();
    assert!(checked.is_whole(), "{checked:?}");
    let names = machine.names(store.as_ref()).unwrap();
    let known = |name: &str| name == "history.redb" || name.starts_with("wal-");
    assert!(names.iter().all(|name| name.to_str().is_some_and(known)), "nothing is left over: {names:?}");
}

/// Arms a fault, at one of so many operations of its kind.
fn arm(machine: &Machine, rng: &mut Rng) -> Fault {
    let kinds =
        [(Fault::Power, 200), (Fault::Sync, 30), (Fault::Write, 120), (Fault::Read, 60), (Fault::Name, 8), (Fault::Full, 40)];
    let (fault, within) = kinds[usize::try_from(rng.below(kinds.len() as u64)).unwrap()];
    machine.fail(fault, rng.below(within));
    fault
}

/// The machine as it is when somebody looks at it again: after a power cut, or with a disk that works.
fn settle(machine: Machine, fault: Fault, rng: &mut Rng) -> Machine {
    match rng.below(4) {
        0 => machine.crashed(None),
        1 if fault != Fault::Power => {
            machine.heal();
            machine
        }
        _ => machine.crashed(Some(rng)),
    }
}

fn compacting(machine: &Machine, in_place: bool) -> Result<ops::Compacted, Error> {
    let disk_reserve_bytes = if in_place { u64::MAX } else { 0 };
    ops::compact_on(machine, STORE.as_ref(), &Config { disk_reserve_bytes, ..config() }, &mut go_on)
}

fn after_compacting(machine: &Machine) {
    let (_, logs) = world();
    check_all(machine, STORE, logs, true);
    compacting(machine, false).unwrap();
    check_all(machine, STORE, logs, true);
}

fn restoring(machine: &Machine) -> Result<ops::Restored, Error> {
    ops::restore_on(machine, BACKUP.as_ref(), "new".as_ref(), "store", &mut go_on)
}

fn after_restoring(machine: &Machine, done: bool) {
    let (_, logs) = world();
    ops::verify_on(machine, BACKUP.as_ref(), &mut go_on).unwrap();
    if !machine.exists("new/store/history.redb".as_ref()).unwrap() {
        assert!(!done, "what was told as restored is there");
        restoring(machine).unwrap();
    }
    check_all(machine, "new/store", logs, false);
}

fn old_world() -> &'static Machine {
    static WORLD: OnceLock<Machine> = OnceLock::new();
    WORLD.get_or_init(|| {
        let machine = Machine::default();
        let data = migration::old_data();
        machine.put(&Path::new(DATA).join(ops::OLD), std::fs::read(data.path().join(ops::OLD)).unwrap());
        machine
    })
}

fn migrating(machine: &Machine) -> Result<Option<ops::Migrated>, Error> {
    ops::migrate_on(machine, DATA.as_ref(), "store", &mut go_on)
}

fn after_migrating(machine: &Machine, done: bool) {
    let again = migrating(machine).unwrap();
    assert!(!done || again.is_none(), "what was told as done is done");
    let there = [ops::OLD, ops::KEPT].map(|name| machine.exists(&Path::new(DATA).join(name)).unwrap());
    assert_eq!(there, [false, true]);
    check_all(machine, STORE, &migration::logs(), true);
}

fn after_backing_up(machine: &Machine, done: bool) {
    let (_, logs) = world();
    match ops::verify_on(machine, OTHER.as_ref(), &mut go_on) {
        Ok(manifest) => assert_eq!(manifest.records, logs.iter().map(|log| log.acked).sum::<u64>()),
        Err(error) => assert!(!done && matches!(error, Error::NotABackup { .. }), "{error}"),
    }
    check_all(machine, STORE, logs, true);
}

#[test]
fn a_compacting_that_fails_anywhere_leaves_the_store_whole() {
    seeded(SEEDS, 150, |seed| {
        let mut rng = Rng(seed);
        let machine = world().0.stopped();
        let fault = arm(&machine, &mut rng);
        let in_place = rng.below(4) == 0;
        // Whether it was done or not, everything is there.
        drop(compacting(&machine, in_place));
        after_compacting(&settle(machine, fault, &mut rng));
    });
}

#[test]
fn a_restore_that_fails_anywhere_is_done_or_can_be_done_again() {
    seeded(SEEDS, 150, |seed| {
        let mut rng = Rng(seed);
        let machine = world().0.stopped();
        let fault = arm(&machine, &mut rng);
        let done = restoring(&machine).is_ok();
        after_restoring(&settle(machine, fault, &mut rng), done);
    });
}

#[test]
fn a_migration_that_fails_anywhere_is_done_or_can_be_done_again() {
    seeded(SEEDS, 150, |seed| {
        let mut rng = Rng(seed);
        let machine = old_world().stopped();
        let fault = arm(&machine, &mut rng);
        let done = migrating(&machine).is_ok();
        after_migrating(&settle(machine, fault, &mut rng), done);
    });
}

#[test]
fn a_backup_that_fails_anywhere_is_whole_or_none() {
    seeded(SEEDS, 150, |seed| {
        let mut rng = Rng(seed);
        let machine = world().0.stopped();
        let (engine, driver) = open(&machine, STORE);
        let fault = arm(&machine, &mut rng);
        let done = engine.backup_on(&machine, OTHER.as_ref(), 2, &mut go_on).is_ok();
        let crashed = settle(machine, fault, &mut rng);
        engine.shutdown();
        drop((engine, driver));
        after_backing_up(&crashed, done);
    });
}

/// The power fails at the first step, at the second, and so on until it is done before.
fn at_every_step<T>(
    world: &Machine,
    begin: impl Fn(&Machine) -> T,
    act: impl Fn(&Machine, T) -> bool,
    check: impl Fn(&Machine, bool),
) {
    let mut steps = 0;
    loop {
        let machine = world.stopped();
        let begun = begin(&machine);
        machine.fail(Fault::Power, steps);
        let done = act(&machine, begun);
        for seed in 0..2 {
            check(&machine.crashed(Some(&mut Rng(steps << 8 | seed))), done);
        }
        check(&machine.crashed(None), done);
        if !machine.heal() {
            break;
        }
        steps += 1;
    }
    assert!(steps > 20, "there are steps to fail at: {steps}");
}

#[test]
fn the_power_may_fail_at_every_step_of_a_compacting() {
    at_every_step(&world().0, |_| (), |machine, ()| compacting(machine, false).is_ok(), |machine, _| after_compacting(machine));
}

#[test]
fn the_power_may_fail_at_every_step_of_a_restore() {
    at_every_step(&world().0, |_| (), |machine, ()| restoring(machine).is_ok(), after_restoring);
}

#[test]
fn the_power_may_fail_at_every_step_of_a_migration() {
    at_every_step(old_world(), |_| (), |machine, ()| migrating(machine).is_ok(), after_migrating);
}

#[test]
fn the_power_may_fail_at_every_step_of_a_backup() {
    let backing_up = |machine: &Machine, (engine, driver): (Arc<EmbeddedEngine>, Driver)| {
        let done = engine.backup_on(machine, OTHER.as_ref(), 2, &mut go_on).is_ok();
        drop((engine, driver));
        done
    };
    at_every_step(&world().0, |machine| open(machine, STORE), backing_up, after_backing_up);
}

#[test]
fn a_backup_that_cannot_be_written_to_is_verified_and_restored() {
    let machine = world().0.stopped();
    machine.mount_read_only("backups".as_ref());
    assert!(machine.open(&Path::new(BACKUP).join("history.redb")).is_err());
    ops::verify_on(&machine, BACKUP.as_ref(), &mut go_on).unwrap();
    restoring(&machine).unwrap();
    check_all(&machine, "new/store", &world().1, false);
}
