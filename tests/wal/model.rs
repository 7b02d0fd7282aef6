//! What the log was given, and what it may say after a stop.

use bytes::Bytes;
use waxwing::{
    core::{
        chain,
        frame::LogKind,
        id::{AccessKey, DeviceKey, LogId, ProducerId, RoomId},
        log::{Append, LogMeta, Producer},
    },
    engine::wal::{Config, Entry, Full, Lsn, OpenError, Wal},
};

use crate::disk::{Disk, Rng};

pub(crate) const CONFIG: Config = Config { segment_bytes: 8 << 10, bytes_max: 40 << 10, spares_max: 2 };

/// An entry of any kind and size, unlike all others.
pub(crate) fn entry(rng: &mut Rng, lsn: Lsn) -> Entry {
    let room = RoomId([u8::try_from(rng.below(5)).unwrap(); 16]);
    let log = LogId([7; 16]);
    match rng.below(13) {
        0 => {
            let (access, creator) = (AccessKey([1; 32]), DeviceKey([2; 32]));
            Entry::Create { room, meta: LogMeta { log, kind: LogKind::Room, access, creator, created_ms: lsn } }
        }
        1 => Entry::Delete { room, log },
        2 => {
            let packages: Vec<u8> = (0..rng.below(900)).map(|_| rng.next().to_le_bytes()[0]).collect();
            Entry::Packages { device: DeviceKey([room.0[0]; 32]), packages: packages.into() }
        }
        _ => {
            let len = if rng.one_in(8) { rng.below(3_000) } else { rng.below(400) };
            // No two alike in any sector: what is left of one never completes another.
            let mut envelope: Vec<u8> = (0..len).map(|_| rng.next().to_le_bytes()[0]).collect();
            if let Some(named) = envelope.get_mut(4..20).filter(|_| rng.below(4) > 0) {
                named.copy_from_slice(&room.0);
            }
            append(room, log, lsn, envelope)
        }
    }
}

pub(crate) fn append(room: RoomId, log: LogId, lsn: Lsn, envelope: Vec<u8>) -> Entry {
    let append = Append {
        room,
        seq: lsn,
        chain: chain::digest(&envelope),
        time_ms: 1_800_000_000_000 + lsn,
        producer: Producer { device: DeviceKey([3; 32]), id: ProducerId([4; 16]) },
        client_seq: lsn * 1000,
        hash: *chain::digest(&envelope).0.first_chunk().unwrap(),
        envelope: Bytes::from(envelope),
    };
    Entry::Append { log, append }
}

pub(crate) fn room(entry: &Entry) -> Option<RoomId> {
    match entry {
        Entry::Create { room, .. } | Entry::Delete { room, .. } => Some(*room),
        Entry::Append { append, .. } => Some(append.room),
        Entry::Packages { .. } => None,
    }
}

#[derive(Debug, Default, Clone)]
pub(crate) struct Model {
    /// All that was pushed and not refused, by number; what a failed commit had is the end of it.
    pub(crate) entries: Vec<Entry>,
    /// Of these, what was committed.
    pub(crate) acked: Lsn,
    /// Of these, what the store has.
    pub(crate) applied: Lsn,
    /// The first entries of the batches that were begun.
    pub(crate) batches: Vec<Lsn>,
}

impl Model {
    /// Opens the log and collects what it replays: dense from `applied + 1`, and what was pushed.
    pub(crate) fn open(&self, disk: &Disk) -> Result<(Wal, Lsn), OpenError> {
        let mut next = self.applied + 1;
        let salts = disk.clone();
        let wal = Wal::open(
            disk.files(),
            CONFIG,
            self.applied,
            move || salts.salt(),
            |lsn, entry| {
                assert_eq!(lsn, next, "entries come in order, and without a gap");
                assert_eq!(self.entries.get(usize::try_from(lsn - 1).unwrap()), Some(&entry), "nothing is invented");
                next += 1;
            },
        )?;
        assert_eq!((wal.durable_lsn(), wal.next_lsn()), (next - 1, next));
        Ok((wal, next - 1))
    }

    /// Opens the log and checks that it has what was acked; what it has is acked by that.
    pub(crate) fn reopen(&mut self, disk: &Disk) -> Result<Wal, OpenError> {
        let (wal, last) = self.open(disk)?;
        assert!(last >= self.acked, "{last} of {} acked entries are left", self.acked);
        self.acked = last;
        self.entries.truncate(usize::try_from(last).unwrap());
        Ok(wal)
    }

    /// Pushes up to `count` entries; whether any was taken.
    pub(crate) fn push(&mut self, wal: &mut Wal, rng: &mut Rng, count: usize) -> bool {
        let begun = self.entries.len();
        for _ in 0..count {
            let lsn = wal.next_lsn();
            let entry = entry(rng, lsn);
            let before = wal.batch_bytes();
            match wal.push(&entry) {
                Ok(given) => {
                    assert_eq!((given, wal.batch_bytes() - before), (lsn, Wal::encoded_len(&entry) as u64));
                    self.entries.push(entry);
                }
                Err(Full::Batch | Full::Log) => break,
                Err(other) => panic!("{other}"),
            }
        }
        if self.entries.len() > begun {
            self.batches.push(begun as u64 + 1);
        }
        self.entries.len() > begun
    }

    pub(crate) fn committed(&mut self) {
        self.acked = self.entries.len() as u64;
    }

    pub(crate) fn not_stored(&mut self) {
        self.entries.truncate(usize::try_from(self.acked).unwrap());
    }
}
