//! The database, and how it is opened, made, and read on after a failure.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use redb::{
    Builder, Database, DatabaseError, Durability, ReadTransaction, ReadableDatabase as _, StorageBackend, StorageError,
    WriteTransaction, backends::FileBackend,
};

use super::{
    super::{
        Observer,
        rows::{Contents, contents},
    },
    OpenError,
    guard::{Guard, Guarded, Overlay},
    tables::{self, Error, FORMAT, FORMAT_ROW},
};

/// The database in use. The first one reads and writes; those after a failure only read.
pub(super) struct Store {
    guard: Arc<Guard>,
    cache_bytes: usize,
    current: RwLock<(u32, Arc<Database>)>,
    recovering: Mutex<()>,
    healthy: AtomicBool,
    observer: Arc<dyn Observer>,
}

impl Store {
    pub(super) fn open(
        path: &Path,
        backend: impl StorageBackend,
        cache_bytes: usize,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, OpenError> {
        let guard = Guard::new(Box::new(backend));
        let db = Builder::new()
            .set_cache_size(cache_bytes)
            .create_with_backend(Guarded(Arc::clone(&guard)))
            .map_err(|error| OpenError::from_redb(path, error))?;
        prepare(&db, path)?;
        let current = RwLock::new((0, Arc::new(db)));
        Ok(Self { guard, cache_bytes, current, recovering: Mutex::new(()), healthy: AtomicBool::new(true), observer })
    }

    fn current(&self) -> (u32, Arc<Database>) {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a write can succeed.
    pub(super) fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Acquire)
    }

    /// Nothing is written from now on.
    pub(super) fn latch(&self, why: &str) {
        if self.healthy.swap(false, Ordering::AcqRel) {
            self.observer.latched(why);
        }
        self.guard.latch();
    }

    /// Begins a durable write that leaves the file quick to open after a crash.
    pub(super) fn begin_write(&self) -> Result<WriteTransaction, Error> {
        begin_write(&self.current().1)
    }

    /// Begins to read from one snapshot.
    pub(super) fn begin_read(&self) -> Result<ReadTransaction, Error> {
        Ok(self.current().1.begin_read()?)
    }

    /// Reads from one snapshot; if the storage fails, from the last durable state of the file.
    pub(super) fn read<T>(&self, read: impl Fn(&ReadTransaction) -> Result<T, Error>) -> Result<T, Error> {
        let attempt = |db: &Database| read(&db.begin_read()?);
        let (generation, db) = self.current();
        match attempt(&db) {
            // A damaged page fails who asks for it; a failed operation ends the use of this database.
            Err(Error::Storage(error)) if !matches!(error, redb::Error::Corrupted(_)) => {
                drop(db);
                self.latch(&error.to_string());
                self.recover(generation)?;
                attempt(&self.current().1)
            }
            result => result,
        }
    }

    /// Opens the last durable state in place of the failed database `generation`, unless somebody has done so.
    fn recover(&self, generation: u32) -> Result<(), Error> {
        let _one = self.recovering.lock().unwrap_or_else(PoisonError::into_inner);
        if self.current().0 != generation {
            return Ok(());
        }
        let overlay = Overlay::new(Arc::clone(&self.guard)).map_err(|error| Error::Storage(redb::Error::Io(error)))?;
        let opened = Builder::new().set_cache_size(self.cache_bytes).create_with_backend(overlay);
        let db = opened.map_err(|error| Error::Storage(error.into()))?;
        let fresh = (generation.wrapping_add(1), Arc::new(db));
        let old = std::mem::replace(&mut *self.current.write().unwrap_or_else(PoisonError::into_inner), fresh);
        drop(old);
        Ok(())
    }
}

fn begin_write(db: &Database) -> Result<WriteTransaction, Error> {
    let mut txn = db.begin_write()?;
    txn.set_durability(Durability::Immediate).map_err(|error| Error::Storage(error.into()))?;
    txn.set_quick_repair(true);
    Ok(txn)
}

/// Checks the format; makes the tables, in one commit, where there are none.
fn prepare(db: &Database, path: &Path) -> Result<(), OpenError> {
    let failed = |error: Error| OpenError::from_error(path, error);
    let stored = db.begin_read().map_err(Error::from).and_then(|txn| contents(&txn));
    match stored.map_err(failed)? {
        Contents::Store(FORMAT) => Ok(()),
        Contents::Store(found) if found > FORMAT => Err(OpenError::NewerFormat { path: path.into(), found, supported: FORMAT }),
        Contents::Empty => make_tables(db).map_err(failed),
        Contents::Store(_) | Contents::Foreign => Err(OpenError::NotAStore { path: path.into() }),
    }
}

fn make_tables(db: &Database) -> Result<(), Error> {
    let txn = begin_write(db)?;
    txn.open_table(tables::META)?.insert(FORMAT_ROW, FORMAT.to_le_bytes().as_slice())?;
    txn.open_table(tables::LOGS)?;
    txn.open_table(tables::RECORDS)?;
    txn.open_table(tables::PRODUCERS)?;
    txn.open_table(tables::DELETING)?;
    txn.commit()?;
    Ok(())
}

/// Opens the file at `path`, and makes it first if it is not there: whole, under another name, so that a crash leaves
/// either no store or an empty one.
pub(super) fn open_file(path: &Path) -> Result<FileBackend, OpenError> {
    let failed = |source| OpenError::from_io(path, source);
    if !path.try_exists().map_err(failed)? {
        make_file(path)?;
    }
    let file = fs::OpenOptions::new().read(true).write(true).open(path).map_err(failed)?;
    FileBackend::new(file).map_err(|error| OpenError::from_redb(path, error))
}

fn make_file(path: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::from_io(path, source);
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    make_directory(directory).map_err(failed)?;
    let mut fresh = PathBuf::from(path).into_os_string();
    fresh.push(format!(".new.{}", std::process::id()));
    let fresh = PathBuf::from(fresh);
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(&fresh).map_err(failed)?;
    let backend = FileBackend::new(file).map_err(|error| OpenError::from_redb(path, error))?;
    let db = Builder::new().create_with_backend(backend).map_err(|error| OpenError::from_redb(path, error))?;
    make_tables(&db).map_err(|error| OpenError::from_error(path, error))?;
    drop(db);
    // A link, and not a rename, so that a store which another process makes meanwhile is not replaced.
    let linked = fs::hard_link(&fresh, path);
    fs::remove_file(&fresh).map_err(failed)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
}

pub(in crate::engine) fn make_directory(directory: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)
}

impl OpenError {
    pub(in crate::engine) fn from_io(path: &Path, source: io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::Permission { path, source },
            io::ErrorKind::InvalidData => Self::NotAStore { path },
            _ => Self::Io { path, source },
        }
    }

    pub(in crate::engine) fn from_redb(path: &Path, error: DatabaseError) -> Self {
        match error {
            DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => Self::Locked { path: path.into() },
            DatabaseError::Storage(StorageError::Io(source)) => Self::from_io(path, source),
            other => Self::Corrupted { path: path.into(), why: other.to_string() },
        }
    }

    fn from_error(path: &Path, error: Error) -> Self {
        match error {
            Error::Storage(redb::Error::Io(source)) => Self::from_io(path, source),
            other => Self::Corrupted { path: path.into(), why: other.to_string() },
        }
    }
}
