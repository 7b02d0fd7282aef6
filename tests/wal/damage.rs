//! Bits that change on the disk: what is proven is never lost in silence.

use waxwing::{
    core::id::{LogId, RoomId},
    engine::wal::{OpenError, Wal},
};

use crate::{
    crashes::SEEDS,
    disk::{Disk, Rng},
    model::{CONFIG, Model, append, room},
    seeds::seeded,
};

/// Writes some batches and stops.
fn written(rng: &mut Rng) -> (Disk, Model) {
    let disk = Disk::new(rng.next());
    let mut model = Model::default();
    let mut wal = model.reopen(&disk).unwrap();
    for _ in 0..1 + rng.below(25) {
        let count = 1 + rng.below(6);
        if !model.push(&mut wal, rng, count) {
            break;
        }
        wal.commit().unwrap();
        model.committed();
        if rng.one_in(4) {
            model.applied =
                rng.below(usize::try_from(model.acked).unwrap() + 1).max(usize::try_from(model.applied).unwrap()) as u64;
            wal.recycler().release(model.applied).unwrap();
        }
    }
    (disk, model)
}

fn flipped(seed: u64) {
    let mut rng = Rng(seed);
    let (disk, model) = written(&mut rng);
    let names = disk.names();
    let name = &names[rng.below(names.len())];
    let flips = 1 + rng.below(3) as u64;
    for _ in 0..flips {
        disk.alter(name, |bytes| {
            // Most of a file is likely to be zeros: its beginning is worth more.
            let end = if rng.one_in(2) { bytes.len() } else { 6_000 };
            let at = rng.below(end);
            bytes[at] ^= 1 << rng.below(8);
        });
    }
    match model.open(&disk) {
        Ok((_, last)) => {
            // Any one entry of a later batch proves that what comes before was there.
            let proof = model.batches.iter().find(|first| **first > last + 1).map_or(0, |first| model.acked + 1 - first);
            assert!(proof < flips, "{last} of {} are there, and {proof} entries say that more were", model.acked);
        }
        Err(OpenError::Corrupted { segment, lsn, until, rooms, .. }) => {
            assert_eq!(segment, *name);
            assert!((1..=model.acked).contains(&lsn) && until.is_none_or(|until| until > lsn && until <= model.acked + 1));
            assert!(rooms.len() <= 16);
        }
        Err(OpenError::Header { segment }) => assert!(segment == *name && flips > 1, "one copy is left"),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn changed_bits_are_noticed_or_do_no_harm() {
    seeded(SEEDS, 2_000, flipped);
}

fn three_batches() -> (Disk, Model) {
    let disk = Disk::new(1);
    let mut model = Model::default();
    let mut wal = model.reopen(&disk).unwrap();
    for lsn in 1..=6_u8 {
        let mut envelope = vec![200 + lsn; 100];
        envelope[4..20].copy_from_slice(&[lsn; 16]);
        let entry = append(RoomId([lsn; 16]), LogId([9; 16]), lsn.into(), envelope);
        wal.push(&entry).unwrap();
        model.entries.push(entry);
        if lsn % 2 == 0 {
            wal.commit().unwrap();
        }
    }
    model.acked = 6;
    (disk, model)
}

/// Where the envelope of entry `lsn` lies.
fn envelope_at(bytes: &[u8], lsn: u8) -> usize {
    bytes.windows(50).position(|window| window.iter().all(|byte| *byte == 200 + lsn)).unwrap()
}

#[test]
fn damage_names_the_file_the_entry_and_the_room() {
    for lsn in 1..=6_u8 {
        let (disk, mut model) = three_batches();
        let name = disk.names().pop().unwrap();
        disk.alter(&name, |bytes| {
            let at = envelope_at(bytes, lsn);
            bytes[at] ^= 1;
        });
        let found = model.open(&disk);
        if lsn <= 4 {
            let Err(OpenError::Corrupted { segment, lsn: first, until, rooms, offset }) = found else { panic!("{found:?}") };
            assert_eq!((&segment, first, until), (&name, u64::from(lsn), Some(u64::from(lsn) + 1)));
            assert_eq!(rooms, [RoomId([lsn; 16])]);
            assert!(offset >= 4096 && offset % 8 == 0);
            let text = model.open(&disk).unwrap_err().to_string();
            assert!(text.contains(&name) && text.contains(&RoomId([lsn; 16]).to_string()), "{text}");
            // What is applied already is not needed.
            model.applied = u64::from(lsn);
            assert_eq!(model.open(&disk.killed()).unwrap().1, 6);
            model.applied = u64::from(lsn) - 1;
            assert!(model.open(&disk.killed()).is_err());
        } else {
            // The last batch may as well have been torn.
            assert_eq!(found.unwrap().1, u64::from(lsn) - 1);
        }
    }
}

#[test]
fn every_room_of_a_damaged_stretch_is_named() {
    let (disk, model) = three_batches();
    let name = disk.names().pop().unwrap();
    disk.alter(&name, |bytes| {
        for lsn in [2, 3, 4] {
            let at = envelope_at(bytes, lsn);
            bytes[at] ^= 1;
        }
    });
    let Err(OpenError::Corrupted { lsn: 2, until: Some(5), rooms, .. }) = model.open(&disk) else { panic!() };
    assert_eq!(rooms, [2, 3, 4].map(|lsn| room(&model.entries[lsn - 1]).unwrap()));
}

/// Fills several segments with entries of one size.
fn segments(count: usize) -> (Disk, Model) {
    let disk = Disk::new(1);
    let mut model = Model::default();
    let mut wal = model.reopen(&disk).unwrap();
    while disk.names().len() < count || model.acked % 3 > 0 {
        let lsn = wal.next_lsn();
        let entry = append(RoomId([1; 16]), LogId([9; 16]), lsn, vec![5; 500]);
        assert_eq!(wal.push(&entry), Ok(lsn));
        wal.commit().unwrap();
        model.entries.push(entry);
        model.acked = lsn;
    }
    (disk, model)
}

#[test]
fn a_missing_segment_is_noticed() {
    let (disk, model) = segments(4);
    let names = disk.names();
    assert_eq!(model.open(&disk.killed()).unwrap().1, model.acked);
    for (at, name) in names[..3].iter().enumerate() {
        let disk = disk.killed();
        let removed = disk.files();
        removed.remove(name).unwrap();
        let found = model.open(&disk);
        assert!(matches!(found, Err(OpenError::Gap { .. })), "{at}: {found:?}");
    }
    // With all that it held applied, nobody misses it.
    let disk = disk.killed();
    disk.files().remove(&names[0]).unwrap();
    let applied = Model { applied: 7, ..model };
    assert_eq!(applied.open(&disk).unwrap().1, applied.acked);
}

#[test]
fn files_of_two_logs_are_not_mixed() {
    let (disk, model) = segments(3);
    let (other, _) = segments(2);
    let copy = other.alter(&other.names()[1], |bytes| bytes.clone());
    disk.alter("wal-9999", |bytes| *bytes = copy);
    assert!(matches!(model.open(&disk), Err(OpenError::Disordered { .. })));
}

#[test]
fn a_cut_file_is_noticed_where_it_held_proven_entries() {
    let (disk, model) = segments(3);
    for name in &disk.names()[..2] {
        for len in [4096, 4100, 5000, 7600] {
            let disk = disk.killed();
            disk.alter(name, |bytes| bytes.truncate(len));
            let found = model.open(&disk);
            assert!(matches!(found, Err(OpenError::Corrupted { .. })), "{len}: {found:?}");
        }
    }
    disk.alter("wal-9998", |bytes| bytes.resize(1_000, 0));
    let (wal, _) = model.open(&disk).unwrap();
    assert!(!disk.names().contains(&"wal-9998".to_owned()), "a file that was never used goes, if it has another length");
    drop::<Wal>(wal);
    assert_eq!(CONFIG.segment_bytes, 8 << 10);
}
