//! Files: how many there are, how they are used again, and what their limits do.

use std::{os::unix::fs::PermissionsExt as _, sync::Arc};

use waxwing::{
    core::id::{LogId, RoomId},
    engine::wal::{CommitError, Config, Directory, Files as _, Full, OpenError, Wal},
};

use crate::{
    disk::{Disk, Fault, Rng},
    model::{CONFIG, Model, append},
};

#[test]
fn a_log_in_a_directory_is_found_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new").join("log");
    let entries: Vec<_> = (1..=300).map(|lsn| append(RoomId([1; 16]), LogId([1; 16]), lsn, vec![2; 200])).collect();
    let open = |applied| {
        let files = Arc::new(Directory::create(&path).unwrap());
        let mut found = Vec::new();
        let wal = Wal::open(files, CONFIG, applied, || 5, |_, entry| found.push(entry)).unwrap();
        (wal, found)
    };
    let (mut wal, found) = open(0);
    assert!(found.is_empty());
    std::fs::write(path.join("wal-x"), "not a segment").unwrap();
    for batch in entries[..40].chunks(3) {
        batch.iter().for_each(|entry| assert!(wal.push(entry).is_ok()));
        wal.commit().unwrap();
    }
    assert_eq!((wal.durable_lsn(), wal.next_lsn(), wal.batch_len()), (40, 41, 0));
    drop(wal);
    let (mut wal, found) = open(0);
    assert_eq!(found, entries[..40]);
    for (at, entry) in entries.iter().enumerate().skip(40) {
        wal.recycler().release(at as u64).unwrap();
        wal.push(entry).unwrap();
        wal.commit().unwrap();
    }
    drop(wal);
    let (wal, found) = open(290);
    assert_eq!(found, entries[290..]);
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    let files = Directory::create(&path).unwrap();
    for name in files.list().unwrap() {
        assert_eq!((mode(&path.join(&name)), files.open(&name).unwrap().len().unwrap()), (0o600, CONFIG.segment_bytes));
    }
    assert_eq!(mode(&path), 0o700);
    assert!(wal.recycler().bytes() <= CONFIG.bytes_max);
}

#[test]
fn a_full_log_takes_no_more_until_entries_are_applied() {
    let disk = Disk::new(1);
    let mut model = Model::default();
    let mut wal = model.reopen(&disk).unwrap();
    let mut rng = Rng(2);
    while model.push(&mut wal, &mut rng, 1) {
        wal.commit().unwrap();
        model.committed();
    }
    assert_eq!(disk.bytes(), CONFIG.bytes_max);
    let large = append(RoomId([1; 16]), LogId([1; 16]), wal.next_lsn(), vec![0; 3_000]);
    assert_eq!(wal.push(&large), Err(Full::Log));
    let recycler = wal.recycler();
    assert!(!recycler.wants_preparation());
    recycler.prepare().unwrap();
    assert_eq!((wal.batch_len(), recycler.bytes(), disk.bytes()), (0, CONFIG.bytes_max, CONFIG.bytes_max));
    // Opening a full log takes a segment more, and nothing is pushed before that is free again.
    drop(wal);
    let mut wal = model.reopen(&disk.killed()).unwrap();
    assert_eq!(wal.recycler().bytes(), CONFIG.bytes_max + CONFIG.segment_bytes);
    assert_eq!(wal.push(&append(RoomId([1; 16]), LogId([1; 16]), 1, Vec::new())), Err(Full::Log));
    model.applied = model.acked;
    wal.recycler().release(model.applied).unwrap();
    assert!(wal.recycler().bytes() <= CONFIG.segment_bytes * (1 + CONFIG.spares_max as u64));
    assert!(model.push(&mut wal, &mut rng, 1));
    wal.commit().unwrap();
    model.committed();
}

#[test]
fn a_batch_lies_in_one_segment_and_what_fits_none_is_refused() {
    let disk = Disk::new(1);
    let mut wal = Model::default().reopen(&disk).unwrap();
    let of = |lsn, len| append(RoomId([1; 16]), LogId([1; 16]), lsn, vec![8; len]);
    let max = usize::try_from(wal.batch_bytes_max()).unwrap();
    let overhead = Wal::encoded_len(&of(1, 0));
    assert!((88..=120).contains(&overhead), "{overhead}");
    assert_eq!(wal.push(&of(1, max)), Err(Full::TooLarge));
    assert_eq!(wal.push(&of(1, max - overhead)), Ok(1));
    assert_eq!(wal.push(&of(2, 0)), Err(Full::Batch));
    wal.commit().unwrap();
    assert_eq!(wal.push(&of(2, max / 2)), Ok(2));
    assert_eq!(wal.push(&of(3, max / 2)), Err(Full::Batch));
    assert_eq!((wal.batch_len(), wal.next_lsn(), wal.durable_lsn()), (1, 3, 1));
    wal.commit().unwrap();
    assert_eq!(disk.names().len(), 2);
}

#[test]
fn without_space_for_a_segment_a_batch_is_not_stored_and_the_log_goes_on() {
    let disk = Disk::new(1);
    let mut model = Model::default();
    let mut wal = model.reopen(&disk).unwrap();
    disk.arm(Fault::Create(0));
    let mut rng = Rng(3);
    assert!(model.push(&mut wal, &mut rng, 3));
    assert!(matches!(wal.commit(), Err(CommitError::NotStored(_))));
    model.not_stored();
    assert_eq!((wal.next_lsn(), wal.batch_len(), wal.recycler().bytes()), (1, 0, 0));
    assert!(model.push(&mut wal, &mut rng, 3));
    wal.commit().unwrap();
    model.committed();
    model.reopen(&disk.power_cut()).unwrap();
}

#[test]
fn a_file_is_made_ahead_and_full_ones_are_used_again() {
    let disk = Disk::new(1);
    let mut model = Model::default();
    let mut wal = model.reopen(&disk).unwrap();
    let recycler = wal.recycler();
    assert!(recycler.wants_preparation());
    recycler.prepare().unwrap();
    recycler.prepare().unwrap();
    assert_eq!((disk.names().len(), recycler.wants_preparation()), (1, false));
    let mut rng = Rng(4);
    for _ in 0..400 {
        assert!(model.push(&mut wal, &mut rng, 2));
        wal.commit().unwrap();
        model.committed();
        recycler.release(model.acked).unwrap();
    }
    assert!(disk.names().len() <= 2, "{:?}", disk.names());
    model.applied = model.acked;
    model.reopen(&disk.power_cut()).unwrap();
}

/// With the same salt the generation alone tells what is old.
#[test]
fn what_a_file_held_before_never_replays() {
    let disk = Disk::new(1);
    let config = Config { bytes_max: 16 << 10, spares_max: 1, ..CONFIG };
    let open = |applied| {
        let mut found = Vec::new();
        let wal = Wal::open(disk.files(), config.clone(), applied, || 1, |lsn, entry| found.push((lsn, entry)));
        wal.map(|wal| (wal, found))
    };
    let of = |lsn| append(RoomId([1; 16]), LogId([1; 16]), lsn, vec![8; 200]);
    let (mut wal, _) = open(0).unwrap();
    for lsn in 1..=100 {
        assert_eq!(wal.push(&of(lsn)), Ok(lsn));
        wal.commit().unwrap();
        wal.recycler().release(lsn).unwrap();
    }
    drop(wal);
    let (_, found) = open(95).unwrap();
    assert_eq!(found, (96..=100).map(|lsn| (lsn, of(lsn))).collect::<Vec<_>>());
}

#[test]
fn segments_of_another_length_are_read_and_then_replaced() {
    let disk = Disk::new(1);
    let mut model = Model::default();
    let mut wal = model.reopen(&disk).unwrap();
    let mut rng = Rng(5);
    let large = append(RoomId([1; 16]), LogId([1; 16]), 1, vec![8; 100]);
    let open = |segment_bytes, applied| {
        let config = Config { segment_bytes, bytes_max: 10 * segment_bytes, spares_max: 2 };
        let mut last = applied;
        (Wal::open(disk.files(), config, applied, || 9, |lsn, _| last = lsn).unwrap(), last)
    };
    assert!(model.push(&mut wal, &mut rng, 3));
    wal.commit().unwrap();
    drop(wal);
    let (mut wal, last) = open(64 << 10, 0);
    assert_eq!(last, 3);
    // A batch larger than a segment will be.
    for _ in 0..200 {
        wal.push(&large).unwrap();
    }
    wal.commit().unwrap();
    drop(wal);
    let (wal, last) = open(8 << 10, 0);
    assert_eq!(last, 203);
    drop(wal);
    let (wal, last) = open(8 << 10, 203);
    assert_eq!((last, wal.next_lsn()), (203, 204));
    assert!(disk.bytes() <= 2 * (8 << 10), "{}", disk.bytes());
}

#[test]
fn what_is_not_a_log_of_this_format_is_not_touched() {
    let disk = Disk::new(1);
    let mut model = Model::default();
    let mut wal = model.reopen(&disk).unwrap();
    assert!(model.push(&mut wal, &mut Rng(5), 3));
    wal.commit().unwrap();
    model.committed();
    drop(wal);
    let name = disk.names().pop().unwrap();
    let good = disk.alter(&name, |bytes| bytes.clone());
    for at in [0, 512] {
        disk.alter(&name, |bytes| {
            bytes[at + 8] = 2;
            let crc = crc_fast::crc32_iscsi(&bytes[at..at + 40]).to_le_bytes();
            bytes[at + 40..at + 44].copy_from_slice(&crc);
        });
        let ops = disk.ops();
        assert!(matches!(model.open(&disk), Err(OpenError::NewerFormat { found: 2, supported: 1, .. })));
        assert_eq!(disk.ops(), ops);
    }
    disk.alter(&name, |bytes| bytes.clone_from(&good));
    model.reopen(&disk).unwrap();
}
