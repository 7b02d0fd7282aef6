//! The least that durable appending costs here: bytes appended to a file that was allocated and written before (so that a
//! sync has no metadata to write), and one `fdatasync` a batch. And the least that a log with a history behind it costs: the
//! messages are written to a second file as well, because a log is written over and a history is not; or to redb, in pieces as
//! large as most of Waxwing's chunks, one after the other.

use std::{
    fs::{self, File, OpenOptions},
    mem,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use redb::{Database, ReadableDatabase as _, TableDefinition};
use waxwing::{
    core::log::Append,
    engine::{Busy, Complete, Engine, Observer, Request, Token},
};

use super::queue::Worker;

/// Bytes that Waxwing's log writes with each envelope: a record's head (20), its kind, log, device, producer, three
/// numbers (about 12), and what fills it up to a multiple of 8.
pub const RECORD_OVERHEAD: usize = 20 + 1 + 16 + 32 + 16 + 12 + 3;
/// Bytes of the file, which is written over from its beginning once it is full.
const FILE_BYTES: u64 = 128 << 20;

/// Appends of a batch, from which on none is added.
const BATCH_MAX: usize = 8 << 10;

/// Bytes that are handed to the history's thread at once.
const HANDED_BYTES: usize = 4 << 20;
/// So many of them may wait: as much as Waxwing's memtables hold.
const WAITING_MAX: usize = 2 * 96 / 4;
/// Bytes of the history between its syncs, as Waxwing's applier has them.
const SLICE_BYTES: u64 = 16 << 20;
/// Bytes of a piece in redb: it fills a page of 64 KiB.
const PIECE_BYTES: usize = 65_000;
/// Of redb's cache, as Waxwing has it.
const CACHE_BYTES: usize = 64 << 20;
const PIECES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("pieces");

/// A file that is appended to.
struct Log {
    file: File,
    at: u64,
    buffer: Vec<u8>,
}

impl Log {
    fn open(dir: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(dir.join("log"))?;
        if file.metadata()?.len() < FILE_BYTES {
            let zeros = vec![0; 1 << 20];
            for at in (0..FILE_BYTES).step_by(zeros.len()) {
                file.write_all_at(&zeros, at)?;
            }
            file.sync_all()?;
        }
        Ok(Self { file, at: 0, buffer: Vec::new() })
    }

    fn push(&mut self, append: &Append) {
        let Append { room, seq, producer, envelope, .. } = append;
        self.buffer.extend_from_slice(&[0x11; RECORD_OVERHEAD - 16 - 32 - 16 - 8]);
        self.buffer.extend_from_slice(&room.0);
        self.buffer.extend_from_slice(&producer.device.0);
        self.buffer.extend_from_slice(&producer.id.0);
        self.buffer.extend_from_slice(&seq.to_le_bytes());
        self.buffer.extend_from_slice(envelope);
    }

    fn commit(&mut self) -> anyhow::Result<()> {
        let len = self.buffer.len() as u64;
        if self.at + len > FILE_BYTES {
            self.at = 0;
        }
        self.file.write_all_at(&self.buffer, self.at)?;
        self.file.sync_data()?;
        self.at += len;
        Ok(())
    }
}

/// What the log wrote, and how many bytes of it are kept.
type Batch = (Vec<u8>, usize);

/// What keeps the messages alone: no order by rooms, no index of them, nothing in memory; written by a thread of its own from the
/// log's buffers.
struct History {
    send: Option<SyncSender<Vec<Batch>>>,
    used: Receiver<Vec<u8>>,
    batches: Vec<Batch>,
    bytes: usize,
    thread: Option<JoinHandle<()>>,
}

impl History {
    fn open(dir: &Path, place: Place) -> anyhow::Result<Self> {
        let mut kept: Box<dyn Keep> = match place {
            Place::File => {
                let file = OpenOptions::new().write(true).create(true).truncate(true).open(dir.join("history"))?;
                Box::new(Plain { file, at: 0, synced: 0 })
            }
            Place::Redb => {
                let path = dir.join("history.redb");
                drop(fs::remove_file(&path));
                let database = Database::builder().set_cache_size(CACHE_BYTES).create(path)?;
                Box::new(Pieces { database, slice: Vec::new(), piece: Vec::new(), next: 0 })
            }
        };
        let (send, batches) = sync_channel(WAITING_MAX);
        let (again, used) = channel();
        let thread = thread::spawn(move || {
            if let Err(error) = keep(&mut *kept, &batches, &again) {
                eprintln!("history was not stored: {error:#}");
            }
        });
        Ok(Self { send: Some(send), used, batches: Vec::new(), bytes: 0, thread: Some(thread) })
    }

    /// Takes a batch, and gives back memory for the next one.
    fn take(&mut self, batch: Vec<u8>, kept: usize) -> Vec<u8> {
        self.bytes += kept;
        self.batches.push((batch, kept));
        if self.bytes >= HANDED_BYTES {
            self.bytes = 0;
            let batches = mem::take(&mut self.batches);
            // When its thread has ended, it has said why.
            self.send.as_ref().map(|send| send.send(batches));
        }
        self.used.try_recv().unwrap_or_default()
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.send = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Where a history is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In a file that grows.
    File,
    /// In redb.
    Redb,
}

/// What is kept, and synced from time to time.
trait Keep: Send {
    fn append(&mut self, bytes: &[u8]) -> anyhow::Result<()>;

    fn finish(&mut self) -> anyhow::Result<()>;
}

struct Plain {
    file: File,
    at: u64,
    synced: u64,
}

impl Keep for Plain {
    fn append(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.file.write_all_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        if self.at - self.synced >= SLICE_BYTES {
            self.file.sync_data()?;
            self.synced = self.at;
        }
        Ok(())
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        Ok(self.file.sync_data()?)
    }
}

struct Pieces {
    database: Database,
    /// Those of the next transaction.
    slice: Vec<Vec<u8>>,
    piece: Vec<u8>,
    next: u64,
}

impl Keep for Pieces {
    fn append(&mut self, mut bytes: &[u8]) -> anyhow::Result<()> {
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(PIECE_BYTES - self.piece.len()));
            self.piece.extend_from_slice(now);
            bytes = rest;
            if self.piece.len() == PIECE_BYTES {
                self.slice.push(mem::replace(&mut self.piece, Vec::with_capacity(PIECE_BYTES)));
                if (self.slice.len() * PIECE_BYTES) as u64 >= SLICE_BYTES {
                    self.finish()?;
                }
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        if !self.piece.is_empty() {
            self.slice.push(mem::take(&mut self.piece));
        }
        // As Waxwing does it, so that no page is written twice.
        let _pinned = self.database.begin_read()?;
        let mut txn = self.database.begin_write()?;
        txn.set_quick_repair(true);
        {
            let mut table = txn.open_table(PIECES)?;
            for piece in self.slice.drain(..) {
                table.insert(self.next, piece.as_slice())?;
                self.next += 1;
            }
        }
        Ok(txn.commit()?)
    }
}

/// Keeps of each batch as many bytes as are to be kept.
fn keep(kept: &mut dyn Keep, batches: &Receiver<Vec<Batch>>, again: &Sender<Vec<u8>>) -> anyhow::Result<()> {
    for (mut batch, len) in batches.iter().flatten() {
        kept.append(&batch[..len])?;
        batch.clear();
        // Nobody takes it when the store is being closed.
        drop(again.send(batch));
    }
    kept.finish()
}

/// The floor with group commit.
pub struct Floor(Worker);

impl Floor {
    /// With a place for it, as much is written to a history as Waxwing's takes of the disk: 1.05 × what is in the envelopes.
    pub fn open(dir: &Path, observer: Arc<dyn Observer>, kept: Option<Place>) -> anyhow::Result<Self> {
        let mut log = Log::open(dir)?;
        let mut history = kept.map(|place| History::open(dir, place)).transpose()?;
        Ok(Self(Worker::start(move |batch, queue| {
            let begin = Instant::now();
            log.buffer.clear();
            let mut pushed = 0;
            while pushed < batch.len() {
                batch.iter().skip(pushed).for_each(|job| log.push(&job.append));
                pushed = batch.len();
                // As Waxwing's log does: what has queued meanwhile comes along, up to as many.
                if pushed < BATCH_MAX {
                    queue.take_more(batch);
                }
            }
            log.commit()?;
            if let Some(history) = &mut history {
                let kept = batch.iter().map(|job| job.append.envelope.len()).sum::<usize>() * 21 / 20;
                log.buffer = history.take(mem::take(&mut log.buffer), kept);
            }
            observer.committed(batch.len(), 0, begin.elapsed());
            Ok(())
        })))
    }
}

impl Engine for Floor {
    fn submit(&self, request: Request, token: Token, to: &Arc<dyn Complete>) -> Result<(), Busy> {
        self.0.queue.submit(request, token, to)
    }

    fn is_healthy(&self) -> bool {
        true
    }
}

/// The floor without any queue or thread: batches of one size, one after the other.
pub struct Bare(Log);

impl Bare {
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        Log::open(dir).map(Self)
    }

    /// Stores one batch.
    pub fn batch(&mut self, count: usize, payload: &[u8]) -> anyhow::Result<()> {
        self.0.buffer.clear();
        for _ in 0..count {
            self.0.buffer.extend_from_slice(&[0x11; RECORD_OVERHEAD]);
            self.0.buffer.extend_from_slice(payload);
        }
        self.0.commit()
    }
}
