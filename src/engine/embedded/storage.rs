//! Where a store lies, and how it is opened.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use redb::{Builder, DatabaseError, StorageBackend, backends::FileBackend};

use super::{
    Config, clock,
    database::Database,
    memtable::{Memtable, RoomTail},
    read,
    tables::{self, Error},
};
use crate::core::{
    id::{LogId, RoomId},
    log::LogState,
};
use crate::engine::{
    redb::{self as direct, free_bytes, make_directory},
    rows::{self, Contents},
    wal,
};

/// Where a store lies: the segments of its log, and its history.
pub trait Storage: Send + Sync {
    /// The log's segments.
    ///
    /// # Errors
    /// When they cannot be reached.
    fn files(&self) -> io::Result<Arc<dyn wal::Files>>;

    /// The history's file; if there is none and `make` says so, an empty database is made first: whole or not at all.
    ///
    /// # Errors
    /// Whatever redb says.
    fn history(&self, make: bool) -> Result<Box<dyn StorageBackend>, DatabaseError>;

    /// Removes what interrupted operations left beside the history. The store is locked.
    fn tidy(&self) {}

    /// Bytes that may still be written.
    ///
    /// # Errors
    /// When nobody knows.
    fn free_space(&self) -> io::Result<u64>;

    /// Whether the history that was opened last is still the one that has its name: another process may have put a
    /// compacted one in its place before this one had its lock.
    fn is_current(&self) -> bool {
        true
    }

    /// Its name, for messages.
    fn path(&self) -> &Path;
}

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The history cannot be opened.
    #[error(transparent)]
    History(#[from] direct::OpenError),
    /// The write-ahead log cannot be opened.
    #[error("the write-ahead log in {}: {source}", path.display())]
    Log {
        /// The store.
        path: PathBuf,
        /// What is wrong.
        source: wal::OpenError,
    },
    /// A thread could not be started.
    #[error("the store cannot be started: {0}")]
    Start(io::Error),
}

/// What a disk can take in that time is far less than what is kept free of it, and asking costs as much as a small batch does.
const FREE_SPACE_HOLDS: Duration = Duration::from_millis(10);

/// A store in a directory: `history.redb`, and the log's segments beside it.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// How much space was free, and when.
    free: Mutex<Option<(Instant, u64)>>,
    /// Device and number of the history file that was opened.
    opened: Mutex<Option<(u64, u64)>>,
    /// Locked, so that the store is ours also while redb's file is opened anew.
    _lock: fs::File,
}

impl Directory {
    /// The directory at `path`, made (mode 0700) if it is not there.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        make_durably(path).map_err(|source| direct::OpenError::from_io(path, source))?;
        let directory = fs::File::open(path).map_err(|source| direct::OpenError::from_io(path, source))?;
        match directory.try_lock() {
            Err(fs::TryLockError::WouldBlock) => return Err(direct::OpenError::Locked { path: path.into() }.into()),
            // Some file systems lock no directories; redb's own lock is left then.
            Ok(()) | Err(fs::TryLockError::Error(_)) => {}
        }
        Ok(Self { path: path.to_owned(), free: Mutex::default(), opened: Mutex::default(), _lock: directory })
    }

    fn history_path(&self) -> PathBuf {
        self.path.join("history.redb")
    }

    /// Makes an empty history under another name first, so that a crash leaves either none or a whole one.
    fn make_history(&self) -> Result<(), DatabaseError> {
        let failed = |error: io::Error| DatabaseError::Storage(error.into());
        let fresh = self.path.join(format!("history.redb.new.{}", std::process::id()));
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(&fresh).map_err(failed)?;
        drop(Builder::new().create_with_backend(FileBackend::new(file)?)?);
        // A link, and not a rename, so that a store which another process makes meanwhile is not replaced.
        let linked = fs::hard_link(&fresh, self.history_path());
        fs::remove_file(&fresh).map_err(failed)?;
        match linked {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        fs::File::open(&self.path).and_then(|directory| directory.sync_all()).map_err(failed)
    }
}

impl Storage for Directory {
    fn files(&self) -> io::Result<Arc<dyn wal::Files>> {
        Ok(Arc::new(wal::Directory::create(&self.path)?))
    }

    fn history(&self, make: bool) -> Result<Box<dyn StorageBackend>, DatabaseError> {
        let path = self.history_path();
        let failed = |error: io::Error| DatabaseError::Storage(error.into());
        if make && !path.try_exists().map_err(failed)? {
            self.make_history()?;
        }
        let file = fs::OpenOptions::new().read(true).write(true).open(&path).map_err(failed)?;
        *self.opened.lock().unwrap_or_else(PoisonError::into_inner) = file.metadata().ok().and_then(|meta| identity(&meta));
        Ok(Box::new(FileBackend::new(file)?))
    }

    fn is_current(&self) -> bool {
        let named = fs::metadata(self.history_path()).ok().and_then(|meta| identity(&meta));
        named == *self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tidy(&self) {
        // What cannot be removed only takes disk; the next one who opens the store tries again.
        let _ = remove_leftovers(&self.path);
    }

    fn free_space(&self) -> io::Result<u64> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock();
        match *free {
            Some((then, bytes)) if now.saturating_duration_since(then) < FREE_SPACE_HOLDS => Ok(bytes),
            _ => {
                let bytes = free_bytes(&self.path)?;
                *free = Some((now, bytes));
                Ok(bytes)
            }
        }
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// Makes a directory, and those above it that are missing, so that a power cut takes none of them away.
fn make_durably(path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|above| !above.as_os_str().is_empty() && !above.exists()).collect();
    make_directory(path)?;
    for made in missing {
        let above = made.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        fs::File::open(above)?.sync_all()?;
    }
    Ok(())
}

/// How the names of files begin that get the history's name when they are whole. One that kept its own name too would hold
/// the disk of a history that was replaced since.
const UNFINISHED: [&str; 4] =
    ["history.redb.new.", "history.redb.migrating", "history.redb.compacting", "history.redb.restoring"];

/// Removes unfinished files. The store's lock must be held.
fn remove_leftovers(store: &Path) -> io::Result<()> {
    for entry in fs::read_dir(store)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| UNFINISHED.iter().any(|begin| name.starts_with(begin))) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// What tells one file from another.
#[cfg(unix)]
fn identity(meta: &fs::Metadata) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    Some((meta.dev(), meta.ino()))
}

#[cfg(not(unix))]
const fn identity(_: &fs::Metadata) -> Option<(u64, u64)> {
    None
}

/// Opens the history, checks its format, and makes its tables where there are none.
pub(super) fn open_database(storage: &Arc<dyn Storage>, cache_bytes: usize) -> Result<Database, OpenError> {
    let path = storage.path();
    let database = Database::open(Arc::clone(storage), cache_bytes).map_err(|error| direct::OpenError::from_redb(path, error))?;
    if !storage.is_current() {
        return Err(direct::OpenError::Locked { path: path.into() }.into());
    }
    match database.read(rows::contents).map_err(|error| damaged_file(path, &error))? {
        Contents::Store(tables::FORMAT) => forget_origin(&database),
        Contents::Store(found) if found > tables::FORMAT => {
            return Err(direct::OpenError::NewerFormat { path: path.into(), found, supported: tables::FORMAT }.into());
        }
        Contents::Empty => database.write(tables::make).map_err(|error| damaged_file(path, &error))?,
        Contents::Store(_) | Contents::Foreign => return Err(direct::OpenError::NotAStore { path: path.into() }.into()),
    }
    Ok(database)
}

/// From now on the store is another one than that from which it was made.
fn forget_origin(database: &Database) {
    let migrated = database.read(|txn| Ok(txn.open_table(tables::META)?.get(tables::MIGRATED_ROW)?.is_some()));
    if migrated.unwrap_or(false) {
        // If that fails, the next opening tries again.
        let _ = database.write(|txn| {
            txn.open_table(tables::META)?.remove(tables::MIGRATED_ROW)?;
            Ok(())
        });
    }
}

fn damaged_file(path: &Path, error: &Error) -> OpenError {
    direct::OpenError::Corrupted { path: path.into(), why: error.to_string() }.into()
}

/// Opens the log, and puts into `table` what is not known to be applied.
pub(super) fn open_log(
    storage: &Arc<dyn Storage>,
    config: &Config,
    database: &Database,
    table: &mut Memtable,
) -> Result<wal::Wal, OpenError> {
    let applied = database
        .read(|txn| tables::applied(&txn.open_table(tables::META)?))
        .map_err(|error| damaged_file(storage.path(), &error))?;
    let failed = |source| OpenError::from(direct::OpenError::from_io(storage.path(), source));
    let replay = |lsn, entry| table.insert(lsn, entry);
    wal::Wal::open(storage.files().map_err(failed)?, config.wal.clone(), applied, random, replay)
        .map_err(|source| OpenError::Log { path: storage.path().into(), source })
}

/// Segments are salted, so that nobody can choose envelopes that look like records.
fn random() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the system has random numbers, or nothing here could begin");
    u64::from_le_bytes(bytes)
}

/// The logs that are damaged, as far as that has been found.
pub(super) fn damaged(database: &Database) -> Result<HashSet<LogId>, OpenError> {
    database.read(read::damaged).map_err(|error| damaged_file(Path::new("the history"), &error))
}

/// Completes what was replayed: forgets records that redb has already, those of slices that were applied when the process
/// ended, and computes the chain values, which are not logged.
pub(super) fn complete(database: &Database, table: &mut Memtable) -> Result<(), OpenError> {
    let path = Path::new("the history");
    let stored = |txn: &redb::ReadTransaction| {
        let find = |(room, tail): (&RoomId, &RoomTail)| {
            let row = match read::row(txn, *room) {
                Err(Error::Storage(error)) => return Err(Error::Storage(error)),
                // The room is damaged; applying will put aside what was logged of it.
                Err(_) => return Ok(None),
                Ok(row) => row.filter(|row| tail.log == Some(row.meta.log)),
            };
            Ok(Some((*room, row.map_or_else(|| LogState::empty(*room), |row| row.state))))
        };
        table.rooms.iter().filter_map(|room| find(room).transpose()).collect::<Result<Vec<_>, Error>>()
    };
    for (room, state) in database.read(stored).map_err(|error| damaged_file(path, &error))? {
        table.complete(room, &state);
    }
    Ok(())
}
