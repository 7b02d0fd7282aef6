//! Stops at any moment, of the process or the machine, and files that fail: what was committed is there afterwards.

use waxwing::engine::wal::{CommitError, OpenError, Wal};

use crate::{
    disk::{Disk, Fault, Rng},
    model::{CONFIG, Model},
    seeds::seeded,
};

/// How many schedules of each kind, or which.
pub(crate) const SEEDS: &str = "WAXWING_TEST_WAL_SEEDS";

/// Applies some of what is committed.
fn apply(wal: &Wal, model: &mut Model, rng: &mut Rng, all: bool) {
    let more = usize::try_from(model.acked - model.applied).unwrap();
    model.applied += if all { more } else { rng.below(more + 1) } as u64;
    // A file that cannot be removed is no harm.
    let _ = wal.recycler().release(model.applied);
}

/// Writes batches until something fails, or for `steps`. Whether nothing failed for good.
fn work(wal: &mut Wal, model: &mut Model, rng: &mut Rng, disk: &Disk, steps: usize) -> bool {
    for _ in 0..steps {
        let count = 1 + if rng.one_in(4) { rng.below(30) } else { rng.below(4) };
        let taken = model.push(wal, rng, count);
        match wal.commit() {
            Ok(()) => model.committed(),
            Err(CommitError::NotStored(_)) => {
                model.not_stored();
                assert_eq!(wal.next_lsn(), model.acked + 1);
            }
            Err(CommitError::Failed(_)) => {
                assert_eq!(wal.durable_lsn(), model.acked);
                assert!(matches!(wal.commit(), Err(CommitError::Failed(_))), "a failure is final");
                return false;
            }
            Err(other) => panic!("{other}"),
        }
        assert!(disk.bytes() <= CONFIG.bytes_max + 2 * CONFIG.segment_bytes);
        if !taken || rng.one_in(3) {
            apply(wal, model, rng, !taken);
        }
        if rng.one_in(3) {
            let _ = wal.recycler().prepare();
        }
    }
    true
}

fn stop(disk: &Disk, rng: &mut Rng) -> Disk {
    if rng.one_in(3) { disk.killed() } else { disk.power_cut() }
}

fn schedule(seed: u64) {
    let mut rng = Rng(seed);
    let mut disk = Disk::new(rng.next());
    let mut model = Model::default();
    for _ in 0..2 + rng.below(5) {
        let left = rng.below(25);
        disk.arm(match rng.below(9) {
            0 => Fault::None,
            1 => Fault::Write(left),
            2 => Fault::Sync(left),
            3 => Fault::Create(rng.below(3)),
            4 => Fault::Remove(0),
            5 => Fault::Power(rng.below(6)),
            _ => Fault::Power(left),
        });
        match model.reopen(&disk) {
            Ok(mut wal) => {
                let steps = 1 + rng.below(30);
                work(&mut wal, &mut model, &mut rng, &disk, steps);
            }
            Err(OpenError::Io(_)) => {}
            Err(other) => panic!("{other}"),
        }
        disk = stop(&disk, &mut rng);
    }
    finish(&disk, &mut model, &mut rng);
}

/// With nothing going wrong any more, the log opens and goes on.
fn finish(disk: &Disk, model: &mut Model, rng: &mut Rng) {
    let mut wal = model.reopen(disk).unwrap();
    assert!(work(&mut wal, model, rng, disk, 3));
    drop(wal);
    model.reopen(&disk.power_cut()).unwrap();
}

#[test]
fn what_was_committed_is_replayed_whatever_stops() {
    seeded(SEEDS, 2_000, schedule);
}

/// One run with the power failing at its `op`-th operation, and again at the first operations of the next; false when it
/// was over before.
fn power_cut_at(seed: u64, op: usize) -> bool {
    let mut rng = Rng(seed);
    let disk = Disk::new(seed ^ op as u64);
    let mut model = Model::default();
    disk.arm(Fault::Power(op));
    work(&mut model.reopen(&disk).unwrap(), &mut model, &mut rng, &disk, 25);
    for op in 0..6 {
        for stopped in [disk.power_cut(), disk.killed()] {
            let mut model = model.clone();
            stopped.arm(Fault::Power(op));
            match model.reopen(&stopped) {
                Ok(mut wal) => drop(work(&mut wal, &mut model, &mut rng, &stopped, 2)),
                Err(OpenError::Io(_)) => {}
                Err(other) => panic!("{other}"),
            }
            finish(&stopped.power_cut(), &mut model, &mut rng);
        }
    }
    disk.is_dead()
}

#[test]
fn the_power_may_fail_at_every_write_and_sync() {
    for seed in 0..3 {
        let ops = (0..).take_while(|op| power_cut_at(seed, *op)).count();
        assert!(ops > 30, "there are operations to fail at: {ops}");
    }
}
