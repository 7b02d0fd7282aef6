//! A write-ahead log whose files anybody may have written.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use waxwing::{
    core::{
        chain,
        id::{DeviceKey, LogId, ProducerId, RoomId},
        log::{Append, Producer},
    },
    engine::wal::{Config, Entry, Files, OpenError, SegmentFile, Wal},
};

const CONFIG: Config = Config { segment_bytes: 8 << 10, bytes_max: 64 << 10, spares_max: 1 };
/// Bytes before a segment's first record.
const HEADER_LEN: usize = 4096;

type Contents = BTreeMap<String, Vec<u8>>;

#[derive(Debug, Clone, Default)]
struct Memory(Arc<Mutex<Contents>>);

impl Memory {
    fn with<T>(&self, f: impl FnOnce(&mut Contents) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[derive(Debug)]
struct File(Memory, String);

impl File {
    fn with<T>(&self, offset: u64, len: usize, f: impl FnOnce(&mut [u8]) -> T) -> io::Result<T> {
        self.0.with(|files| {
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            let file = files.get_mut(&self.1).ok_or(io::ErrorKind::NotFound)?;
            let part = start.checked_add(len).and_then(|end| file.get_mut(start..end));
            Ok(f(part.ok_or(io::ErrorKind::UnexpectedEof)?))
        })
    }
}

impl SegmentFile for File {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.with(offset, into.len(), |bytes| into.copy_from_slice(bytes))
    }

    fn write_at(&self, from: &[u8], offset: u64) -> io::Result<()> {
        self.with(offset, from.len(), |bytes| bytes.copy_from_slice(from))
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        self.0.with(|files| Ok(files.get(&self.1).ok_or(io::ErrorKind::NotFound)?.len() as u64))
    }
}

impl Files for Memory {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.with(|files| files.keys().cloned().collect()))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn SegmentFile>> {
        Ok(Box::new(File(self.clone(), name.to_owned())))
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn SegmentFile>> {
        let zeros = vec![0; usize::try_from(len).unwrap_or_default()];
        assert!(self.with(|files| files.insert(name.to_owned(), zeros)).is_none(), "a name is given once");
        self.open(name)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.with(|files| files.remove(name)).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn entry(lsn: u64, len: usize) -> Entry {
    let room = RoomId([lsn.to_le_bytes()[0] % 4; 16]);
    let mut envelope = vec![lsn.to_le_bytes()[0]; len];
    if let Some(named) = envelope.get_mut(4..20) {
        named.copy_from_slice(&room.0);
    }
    let producer = Producer { device: DeviceKey([3; 32]), id: ProducerId([4; 16]) };
    // As a replayed one is: the digest in the place of the chain value.
    let chain = chain::digest(&envelope);
    let hash = chain.0.first_chunk().copied().unwrap_or_default();
    let envelope = Bytes::from(envelope);
    let append = Append { room, seq: lsn, chain, time_ms: lsn, producer, client_seq: lsn, hash, envelope };
    Entry::Append { log: LogId([7; 16]), append }
}

/// Opens what lies there twice: it says the same, and after the first time it is in order. Gives the entries.
fn open(files: &Memory, applied: u64) -> Result<Vec<(u64, Entry)>, OpenError> {
    let mut first = Vec::new();
    let wal = Wal::open(Arc::new(files.clone()), CONFIG, applied, || 5, |lsn, entry| first.push((lsn, entry)))?;
    assert!(first.iter().map(|(lsn, _)| *lsn).eq(applied + 1..wal.next_lsn()), "dense");
    drop(wal);
    let mut second = Vec::new();
    let wal = Wal::open(Arc::new(files.clone()), CONFIG, applied, || 6, |lsn, entry| second.push((lsn, entry)));
    assert!(wal.is_ok() && first == second, "what was said once stays so");
    Ok(first)
}

/// The first byte chooses: a log that was written by entries of chosen sizes, with bytes then changed; or a segment whose
/// header is good and whose records are the input; or a file that is the input.
pub(crate) fn wal(data: &[u8]) {
    let Some((mode, data)) = data.split_first() else { return };
    let files = Memory::default();
    match mode % 3 {
        0 => changed(&files, data),
        1 => {
            let Ok(mut wal) = Wal::open(Arc::new(files.clone()), CONFIG, 0, || 5, |_, _| {}) else { panic!("it is empty") };
            assert_eq!(wal.push(&entry(1, 1)), Ok(1));
            assert!(wal.commit().is_ok());
            files.with(|files| {
                let records = files.values_mut().filter_map(|file| file.get_mut(HEADER_LEN..));
                records.for_each(|records| records.iter_mut().zip(data).for_each(|(to, from)| *to = *from));
            });
            drop(open(&files, 0));
        }
        _ => {
            files.with(|files| files.insert("wal-0001".to_owned(), data.to_vec()));
            drop(open(&files, u64::from(*mode)));
        }
    }
}

/// Groups of four bytes: 0, size, size, whether to commit: an entry; else a place in a file, and its new byte.
fn changed(files: &Memory, data: &[u8]) {
    let Ok(mut wal) = Wal::open(Arc::new(files.clone()), CONFIG, 0, || 5, |_, _| {}) else { panic!("it is empty") };
    let mut pushed = Vec::new();
    let (groups, _) = data.as_chunks::<4>();
    let (mut applied, mut durable, mut last_batch, mut changes) = (0, 0, 1, 0);
    for [kind, a, b, c] in groups {
        let number = usize::from(u16::from_le_bytes([*a, *b]));
        if kind % 8 == 0 {
            let entry = entry(wal.next_lsn(), number % 2_000);
            if wal.push(&entry).is_ok() {
                pushed.push((wal.next_lsn() - 1, entry));
            }
            if c % 2 == 1 && wal.batch_len() > 0 {
                last_batch = wal.durable_lsn() + 1;
                assert!(wal.commit().is_ok());
                durable = wal.durable_lsn();
            }
            if c % 32 == 31 {
                applied = durable;
                assert!(wal.recycler().release(applied).is_ok());
            }
        } else {
            changes += 1;
            files.with(|files| {
                let count = files.len().max(1);
                let file = files.values_mut().nth(usize::from(*kind) % count);
                if let Some(byte) = file.and_then(|file| file.get_mut(number % 8192)) {
                    *byte = *c;
                }
            });
        }
    }
    drop(wal);
    match open(files, applied) {
        Ok(found) => {
            let expected = pushed.iter().filter(|(lsn, _)| *lsn > applied);
            assert!(found.iter().zip(expected).all(|(found, pushed)| found == pushed), "nothing is invented");
            // Several changes may take away all signs of what was there.
            let last = found.last().map_or(applied, |(lsn, _)| *lsn);
            assert!(changes > 1 || last + 1 >= last_batch, "{last} is before the last batch at {last_batch}");
            assert!(changes > 0 || last == durable, "all of {durable} is there");
        }
        Err(error) => assert!(changes > 0, "{error}"),
    }
}
