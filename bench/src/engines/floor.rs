//! The least that durable appending costs here: bytes appended to a file that was allocated and written before (so that a
//! sync has no metadata to write), and one `fdatasync` a batch.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt as _,
    path::Path,
    sync::Arc,
    time::Instant,
};

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
        self.buffer.clear();
        Ok(())
    }
}

/// The floor with group commit.
pub struct Floor(Worker);

impl Floor {
    pub fn open(dir: &Path, observer: Arc<dyn Observer>) -> anyhow::Result<Self> {
        let mut log = Log::open(dir)?;
        Ok(Self(Worker::start(move |batch| {
            let begin = Instant::now();
            batch.iter().for_each(|job| log.push(&job.append));
            log.commit()?;
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
        for _ in 0..count {
            self.0.buffer.extend_from_slice(&[0x11; RECORD_OVERHEAD]);
            self.0.buffer.extend_from_slice(payload);
        }
        self.0.commit()
    }
}
