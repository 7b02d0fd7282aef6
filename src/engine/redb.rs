//! The first engine: one redb file, every batch a transaction of its own. One thread writes, with group commit; a few read. It is
//! what the engine in use is compared with, and reads stores of the first format.
//!
//! **Durable** means: redb's two-phase commit, two `fdatasync`s per batch; after a crash the file opens without a scan
//! (quick repair). **A failed write or sync is final**: its batch and all later ones answer
//! [`Failure::OutcomeUnknown`](super::Failure::OutcomeUnknown), [`Engine::is_healthy`] turns false, and what was durable
//! before is read on from a view of the file that cannot write (see `guard`). An error while reading ends writing too,
//! because redb accepts nothing after any I/O error; the way out is to start again.
//!
//! The rows are described in `tables`.

mod batch;
pub(super) mod guard;
mod old;
mod read;
mod store;
mod tables;
mod write;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

pub(super) use self::{old::OldStore, store::make_directory};
use serde::{Deserialize, Serialize};

use self::{
    store::Store,
    write::{FreeSpace, Writer},
};
use super::{Busy, Complete, Engine, Observer, Request, Token, clock, jobs::Jobs};

/// Settings of the embedded engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Bytes of memory for redb's cache. Default 64 MiB.
    pub cache_bytes: usize,
    /// Requests that may wait to be written, and as many to be read; above it they are refused as busy. Default 16,384.
    pub queue_requests_max: usize,
    /// Envelope bytes that may wait to be written. Default 64 MiB.
    pub queue_bytes_max: usize,
    /// Writes in one transaction at most. Default 1,024.
    pub batch_requests_max: usize,
    /// Envelope bytes in one transaction at most (one request may exceed it). Default 4 MiB.
    pub batch_bytes_max: usize,
    /// Free bytes of the file system below which nothing is stored; reading and deleting go on. Default 512 MiB.
    pub disk_reserve_bytes: u64,
    /// Threads that read. Default 2; 0 counts as 1.
    pub readers: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cache_bytes: 64 << 20,
            queue_requests_max: 16 << 10,
            queue_bytes_max: 64 << 20,
            batch_requests_max: 1 << 10,
            batch_bytes_max: 4 << 20,
            disk_reserve_bytes: 512 << 20,
            readers: 2,
        }
    }
}

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process has it open.
    #[error("the store {} is in use by another process", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// A newer version of the software wrote it.
    #[error("the store {} has format {found}; this build reads up to {supported}: use a newer build", path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// The format of the file.
        found: u32,
        /// The newest format that this build knows.
        supported: u32,
    },
    /// The file is something else.
    #[error("{} is not a Waxwing store", path.display())]
    NotAStore {
        /// The file.
        path: PathBuf,
    },
    /// The file is damaged.
    #[error("the store {} is damaged: {why}", path.display())]
    Corrupted {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// The file or its directory may not be read and written.
    #[error("no permission to read and write the store {}: {source}", path.display())]
    Permission {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The system failed otherwise.
    #[error("cannot open the store {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
}

/// The engine on one redb file. Dropping it shuts it down.
pub struct RedbEngine {
    store: Arc<Store>,
    jobs: Arc<Jobs>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl fmt::Debug for RedbEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbEngine").field("healthy", &self.store.is_healthy()).finish_non_exhaustive()
    }
}

impl RedbEngine {
    /// Opens the store at `path`, and makes it (mode 0600, its directory 0700) if it is not there.
    ///
    /// # Errors
    /// [`OpenError`], which names the path.
    pub fn open(path: &Path, config: Config, observer: Arc<dyn Observer>) -> Result<Self, OpenError> {
        let backend = store::open_file(path)?;
        let file = path.to_owned();
        Self::start(path, backend, config, observer, Box::new(move || free_bytes(&file)))
    }

    /// Opens a store on any storage; `free_space` tells how many bytes its file system has left.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_with_backend(
        backend: impl redb::StorageBackend,
        free_space: impl Fn() -> io::Result<u64> + Send + 'static,
        config: Config,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, OpenError> {
        Self::start(Path::new("(storage backend)"), backend, config, observer, Box::new(free_space))
    }

    fn start(
        path: &Path,
        backend: impl redb::StorageBackend,
        config: Config,
        observer: Arc<dyn Observer>,
        free_space: FreeSpace,
    ) -> Result<Self, OpenError> {
        let store = Arc::new(Store::open(path, backend, config.cache_bytes, Arc::clone(&observer))?);
        let sweeping = write::interrupted_sweeps(&store)
            .map_err(|error| OpenError::Corrupted { path: path.into(), why: error.to_string() })?;
        let jobs = Arc::new(Jobs::new(config.queue_requests_max, config.queue_bytes_max));
        let engine = Self { store, jobs, threads: Mutex::new(Vec::new()) };
        let failed = |source| OpenError::Io { path: path.into(), source };
        for number in 0..config.readers.max(1) {
            let (store, jobs, observer) = (Arc::clone(&engine.store), Arc::clone(&engine.jobs), Arc::clone(&observer));
            let serve = move || jobs.serve_reads(&*observer, |subject| read::read(&store, subject));
            engine.spawn(&format!("store-read-{number}"), serve).map_err(failed)?;
        }
        let (store, jobs) = (Arc::clone(&engine.store), Arc::clone(&engine.jobs));
        let writer = Writer { store, jobs, config, observer, free_space, sweeping };
        engine.spawn("store-write", move || writer.run()).map_err(failed)?;
        Ok(engine)
    }

    fn spawn(&self, name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let exit = Exit { store: Arc::clone(&self.store), jobs: Arc::clone(&self.jobs) };
        let handle = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _exit = exit;
            run();
        })?;
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(handle);
        Ok(())
    }

    /// Refuses new requests, completes those that wait, and ends the threads. Blocks until that is done.
    pub fn shutdown(&self) {
        self.jobs.close();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for handle in threads {
            // A completion may drop the last handle to the engine: that thread ends by itself.
            if handle.thread().id() != thread::current().id() {
                drop(handle.join());
            }
        }
    }
}

impl Drop for RedbEngine {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl Engine for RedbEngine {
    fn submit(&self, request: Request, token: Token, to: &Arc<dyn Complete>) -> Result<(), Busy> {
        self.jobs.submit(request, token, to)
    }

    fn is_healthy(&self) -> bool {
        self.store.is_healthy()
    }
}

/// Sees a thread end by panic: nobody would take what is queued, so the engine must not look healthy.
struct Exit {
    store: Arc<Store>,
    jobs: Arc<Jobs>,
}

impl Drop for Exit {
    fn drop(&mut self) {
        if thread::panicking() {
            self.store.latch("a thread of the engine panicked");
            self.jobs.close_writes();
        }
    }
}

/// A file as redb takes it, locks and all.
pub(super) fn guarded(backend: Box<dyn redb::StorageBackend>) -> guard::Guarded {
    guard::Guarded(guard::Guard::new(backend))
}

/// What lies in a file, with all that is written kept in memory.
pub(super) fn overlay(backend: Box<dyn redb::StorageBackend>) -> io::Result<guard::Overlay> {
    guard::Overlay::new(guard::Guard::new(backend))
}

#[cfg(unix)]
pub(super) fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(not(unix))]
pub(super) fn free_bytes(_path: &Path) -> io::Result<u64> {
    Err(io::ErrorKind::Unsupported.into())
}
