//! The embedded engine: a write-ahead log that acks, and a redb file that keeps history in chunks.
//!
//! **Durable** means: in the log, one `fdatasync` per batch ([`wal`]). A second thread applies what was logged to
//! redb, much at a time and sorted by room; until then it lies in a memtable, from which readers complete what redb has.
//! What redb has is replayed from the log no more, and what it has of a room is skipped when the log has it too.
//!
//! **A failed write or sync of the log is final**: its batch and all later ones answer
//! [`Failure::OutcomeUnknown`], [`Engine::is_healthy`] turns false, and what was durable before
//! is read on. **A failure of redb is not**: it is opened and applied to again; meanwhile the log grows to its limit, and then
//! appends are refused as if the disk were full. Only a panic of redb over what it wrote to is not tried again before a restart.
//!
//! | | what it holds | its limit |
//! |---|---|---|
//! | queue | submitted writes | `queue_requests_max`, `queue_bytes_max` |
//! | active memtable | logged, readable | `apply_bytes`, then it is frozen |
//! | frozen memtable | being applied | the same |
//! | spare blocks | space of tables that were applied, and what a flood will ask for next | `apply_bytes` and an eighth, half as much again for what goes with envelopes |
//! | redb's cache | pages of history | `cache_bytes` |
//! | chunk cache | chunks that were read lately, checked | `read_cache_bytes` |

mod applier;
mod apply;
pub mod chunk;
mod chunk_cache;
mod database;
mod hash;
mod layers;
mod layout;
mod memtable;
pub mod ops;
mod read;
mod reader;
mod retain;
mod retention;
mod spare;
mod storage;
mod tables;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    collections::HashSet,
    fmt, io,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use self::{
    applier::Applier,
    chunk_cache::ChunkCache,
    database::Database,
    layers::Layers,
    memtable::{Memtable, Space},
    retention::Schedule,
    writer::Writer,
};
pub use self::{
    retention::{Clock, Keep, Retention},
    storage::{Directory, OpenError, Storage},
};
use super::{Busy, Complete, Engine, Failure, Observer, Request, Token, clock, jobs::Jobs, wal};
use crate::core::{
    id::{LogId, RoomId, Seq, UnixMillis},
    log::LogState,
};

/// Settings of the embedded engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The write-ahead log's own.
    pub wal: wal::Config,
    /// Bytes of memory for redb's cache. Default 64 MiB.
    pub cache_bytes: usize,
    /// Bytes of memory for chunks of history that were read lately. Default 64 MiB; 0 keeps none.
    pub read_cache_bytes: usize,
    /// Requests that may wait to be written, and as many to be read; above it they are refused as busy. Default 16,384.
    pub queue_requests_max: usize,
    /// Envelope bytes that may wait to be written. Default 64 MiB.
    pub queue_bytes_max: usize,
    /// Writes under one sync at most. Default 8,192.
    pub batch_requests_max: usize,
    /// Envelope bytes under one sync at most (one request may exceed it). Default 4 MiB.
    pub batch_bytes_max: usize,
    /// Microseconds to wait for more after the first write of a batch, 0 to 2,000. Default 0: what queues while the last
    /// sync runs, and until all of that is checked, is the next batch.
    pub commit_wait_us: u32,
    /// Memory of logged writes, in bytes, at which they are applied to redb; twice as much may be held. The more of
    /// a room is applied at once, the less each message costs. Default 96 MiB.
    pub apply_bytes: usize,
    /// Milliseconds after which the oldest logged write is applied at the latest. Default 60,000.
    pub apply_after_ms: u32,
    /// Milliseconds to wait before a failed applying is tried again. Default 1,000.
    pub apply_retry_ms: u32,
    /// Envelope bytes that one redb transaction applies, roughly. Default 16 MiB: what it writes then fits the half of redb's cache
    /// that holds unwritten pages, so that none is written twice.
    pub slice_bytes: usize,
    /// Free bytes of the file system below which nothing is stored; reading and deleting go on. Default 512 MiB.
    pub disk_reserve_bytes: u64,
    /// Threads that read. Default 2; 0 counts as 1.
    pub readers: usize,
    /// What is kept. Default: everything.
    pub retention: Retention,
}

/// How the engine stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Memory of what was logged and is not in the history file, in bytes.
    pub backlog_bytes: u64,
    /// Bytes of the write-ahead log's files.
    pub wal_bytes: u64,
    /// Logs known to be damaged.
    pub damaged: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            wal: wal::Config::default(),
            cache_bytes: 64 << 20,
            read_cache_bytes: 64 << 20,
            queue_requests_max: 16 << 10,
            queue_bytes_max: 64 << 20,
            batch_requests_max: 8 << 10,
            batch_bytes_max: 4 << 20,
            commit_wait_us: 0,
            apply_bytes: 96 << 20,
            apply_after_ms: 60_000,
            apply_retry_ms: 1_000,
            slice_bytes: 16 << 20,
            disk_reserve_bytes: 512 << 20,
            readers: 2,
            retention: Retention::default(),
        }
    }
}

/// Whether writes can succeed.
#[derive(Debug)]
struct Health {
    logging: AtomicBool,
    applying: AtomicBool,
    /// Whether there is a damaged log, and which: they take no more.
    any_damaged: AtomicBool,
    damaged: Mutex<HashSet<LogId>>,
}

impl Health {
    fn new(damaged: HashSet<LogId>) -> Self {
        let (logging, applying) = (AtomicBool::new(true), AtomicBool::new(true));
        Self { logging, applying, any_damaged: AtomicBool::new(!damaged.is_empty()), damaged: Mutex::new(damaged) }
    }

    fn is_damaged(&self, log: LogId) -> bool {
        self.any_damaged.load(Ordering::Acquire) && self.damaged.lock().unwrap_or_else(PoisonError::into_inner).contains(&log)
    }

    fn damaged(&self, log: Option<LogId>) {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner).extend(log);
        self.any_damaged.store(true, Ordering::Release);
    }

    fn can_log(&self) -> bool {
        self.logging.load(Ordering::Acquire)
    }

    fn latch(&self, why: &str, observer: &dyn Observer) {
        if self.logging.swap(false, Ordering::AcqRel) {
            observer.latched(why);
        }
    }

    fn applying(&self, succeeds: bool) {
        self.applying.store(succeeds, Ordering::Release);
    }

    fn can_apply(&self) -> bool {
        self.applying.load(Ordering::Acquire)
    }

    fn is_healthy(&self) -> bool {
        self.can_log() && self.can_apply()
    }
}

/// The engine on one directory. Dropping it shuts it down.
pub struct EmbeddedEngine {
    layers: Arc<Layers>,
    database: Arc<Database>,
    cache: Option<Arc<ChunkCache>>,
    health: Arc<Health>,
    jobs: Arc<Jobs>,
    recycler: wal::Recycler,
    threads: Mutex<Threads>,
}

/// The applier ends after the writer, which ends when its queue is closed.
#[derive(Debug, Default)]
struct Threads {
    queues: Vec<JoinHandle<()>>,
    applier: Option<JoinHandle<()>>,
}

impl fmt::Debug for EmbeddedEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedEngine").field("health", &self.health).finish_non_exhaustive()
    }
}

impl EmbeddedEngine {
    /// Opens the store in `directory`, and makes it (mode 0700) if it is not there.
    ///
    /// # Errors
    /// [`OpenError`], which names the path.
    pub fn open(directory: &Path, config: Config, observer: Arc<dyn Observer>) -> Result<Self, OpenError> {
        Self::open_in(Arc::new(Directory::open(directory)?), config, observer)
    }

    /// Opens the store that lies in `storage`.
    ///
    /// # Errors
    /// [`OpenError`].
    #[expect(clippy::needless_pass_by_value, reason = "its threads keep all of it")]
    pub fn open_in(storage: Arc<dyn Storage>, config: Config, observer: Arc<dyn Observer>) -> Result<Self, OpenError> {
        let database = Arc::new(storage::open_database(&storage, config.cache_bytes)?);
        storage.tidy();
        let mut table = Memtable::default();
        let wal = storage::open_log(&storage, &config, &database, &mut table)?;
        storage::complete(&database, &mut table)?;
        let layers = Arc::new(Layers::new(table));
        let health = Arc::new(Health::new(storage::damaged(&database)?));
        let jobs = Arc::new(Jobs::new(config.queue_requests_max, config.queue_bytes_max));
        let cache = (config.read_cache_bytes > 0).then(|| Arc::new(ChunkCache::new(config.read_cache_bytes)));
        let engine = Self { layers, database, cache, health, jobs, recycler: wal.recycler(), threads: Mutex::default() };
        engine.start(wal, storage, &config, &observer).map_err(OpenError::Start)?;
        Ok(engine)
    }

    fn start(&self, wal: wal::Wal, storage: Arc<dyn Storage>, config: &Config, observer: &Arc<dyn Observer>) -> io::Result<()> {
        let mut threads = Threads::default();
        let recycler = wal.recycler();
        let space = Space::new(config.apply_bytes);
        for number in 0..config.readers.max(1) {
            let (layers, database, cache) = (Arc::clone(&self.layers), Arc::clone(&self.database), self.cache.clone());
            let (jobs, observer) = (Arc::clone(&self.jobs), Arc::clone(observer));
            let serve =
                move || jobs.serve_reads(&*observer, |subject| reader::answer(&layers, &database, cache.as_deref(), subject));
            threads.queues.push(self.spawn(&format!("store-read-{number}"), serve)?);
        }
        let writer = Writer {
            wal,
            recycler: recycler.clone(),
            layers: Arc::clone(&self.layers),
            database: Arc::clone(&self.database),
            jobs: Arc::clone(&self.jobs),
            storage,
            health: Arc::clone(&self.health),
            config: config.clone(),
            observer: Arc::clone(observer),
            known: hash::RoomMap::default(),
            space: space.clone(),
        };
        threads.queues.push(self.spawn("store-log", move || writer.run())?);
        let applier = Applier {
            layers: Arc::clone(&self.layers),
            database: Arc::clone(&self.database),
            recycler,
            health: Arc::clone(&self.health),
            config: config.clone(),
            observer: Arc::clone(observer),
            sweeping: true,
            cached: 0,
            space,
            schedule: Schedule::new(config.retention.clone()),
        };
        threads.applier = Some(self.spawn("store-apply", move || applier.run())?);
        *self.threads.lock().unwrap_or_else(PoisonError::into_inner) = threads;
        Ok(())
    }

    fn spawn(&self, name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
        let exit = Exit { health: Arc::clone(&self.health), layers: Arc::clone(&self.layers), jobs: Arc::clone(&self.jobs) };
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _exit = exit;
            run();
        })
    }

    /// Brings all that is durable now into the history file, and waits until it is there. False when that fails: the engine
    /// tries on by itself, and tells its observer why.
    pub fn checkpoint(&self) -> bool {
        self.layers.checkpoint(&self.health)
    }

    /// Shows every record of a room (seq, time, envelope) to `visit`, ascending, without copying any of it; for exports and
    /// scans. How the log stands, or `None` if there is none.
    ///
    /// # Errors
    /// [`Failure::Read`]; what was shown before is as it was stored.
    pub fn scan(&self, room: RoomId, visit: &mut dyn FnMut(Seq, UnixMillis, &[u8])) -> Result<Option<LogState>, Failure> {
        reader::scan(&self.layers, &self.database, self.cache.as_deref(), room, visit)
    }

    /// How it stands.
    pub fn status(&self) -> Status {
        let damaged = self.health.damaged.lock().unwrap_or_else(PoisonError::into_inner).len();
        Status { backlog_bytes: self.layers.bytes() as u64, wal_bytes: self.recycler.bytes(), damaged: damaged as u64 }
    }

    /// Whether the write-ahead log can take writes. Once it cannot, only opening the store anew helps; a history that fails is
    /// tried again by itself.
    pub fn can_log(&self) -> bool {
        self.health.can_log()
    }

    /// Refuses new requests, completes those that wait, applies what was logged, and ends the threads. Blocks until that is
    /// done.
    pub fn shutdown(&self) {
        self.jobs.close();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        // Only who has the threads waits for them; the tables are closed when no writer can follow.
        let Some(applier) = threads.applier else { return };
        threads.queues.into_iter().for_each(join);
        self.layers.close();
        join(applier);
    }
}

/// A completion may drop the last handle to the engine: that thread ends by itself.
fn join(handle: JoinHandle<()>) {
    if handle.thread().id() != thread::current().id() {
        drop(handle.join());
    }
}

impl Drop for EmbeddedEngine {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl Engine for EmbeddedEngine {
    fn submit(&self, request: Request, token: Token, to: &Arc<dyn Complete>) -> Result<(), Busy> {
        self.jobs.submit(request, token, to)
    }

    fn is_healthy(&self) -> bool {
        self.health.is_healthy()
    }
}

/// Sees a thread end by panic: nobody would take what is queued, so the engine must not look healthy, and who waits for
/// that thread must not wait for ever.
struct Exit {
    health: Arc<Health>,
    layers: Arc<Layers>,
    jobs: Arc<Jobs>,
}

impl Drop for Exit {
    fn drop(&mut self) {
        if thread::panicking() {
            self.health.latch("a thread of the engine panicked", &());
            self.jobs.close_writes();
            self.layers.close();
        }
    }
}
