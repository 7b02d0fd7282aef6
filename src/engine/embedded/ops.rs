//! What operators do with a store: back it up, restore it, check it, compact it, bring an older one up to date.
//!
//! All of it is one mechanism, a copier (`copy`): it reads one snapshot of a store log by log, checks everything on the way
//! (checksums, that no record is missing, the hash chain from the floor's anchor to the head, the sums), and writes a fresh
//! history file, or nothing when only the check is wanted. The hash chain does not depend on a log's id, so a copy may give
//! every log a new one.
//!
//! Whatever is made is written under another name, made durable, and given its name last: what has its name is whole.
//!
//! Each of them works on the system's files, or on those of any [`Disk`] (`…_on`), as tests do that cut its power.

mod backup;
mod check;
mod compact;
mod copy;
mod disk;
mod migrate;
mod target;

use std::{
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use self::{
    backup::{MANIFEST, Manifest, Restored, restore, restore_on, verify, verify_on},
    check::{Checked, Problem, Stranded, check, check_on},
    compact::{Compacted, compact, compact_on},
    disk::{Disk, System},
    migrate::{KEPT, Migrated, OLD, migrate, migrate_on},
};
use super::OpenError;
use crate::core::id::RoomId;

/// The history's name in a store and in a backup.
pub const HISTORY: &str = "history.redb";

/// How far it has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Logs done.
    pub logs: u64,
    /// Of so many.
    pub logs_total: u64,
    /// Records done.
    pub records: u64,
    /// Their envelopes' bytes.
    pub bytes: u64,
    /// Of so many.
    pub bytes_total: u64,
}

/// Hears of progress, often; and says whether to go on.
pub type Report<'a> = &'a mut dyn FnMut(Progress) -> ControlFlow<()>;

/// A room whose log is damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// The room.
    pub room: RoomId,
    /// What was found.
    pub why: String,
}

/// Why it was not done. Nothing that was there before was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Whoever heard the progress said so.
    #[error("it was stopped")]
    Stopped,
    /// The store cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What was logged cannot be brought into the history.
    #[error("what was logged cannot be brought into the history file now; the server's log says why")]
    Checkpoint,
    /// The history cannot be read.
    #[error("cannot read {}: {why}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// Something cannot be written.
    #[error("cannot write {}: {why}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's words, or redb's.
        why: String,
    },
    /// There is no store.
    #[error("there is no store in {}", path.display())]
    NoStore {
        /// Where one was looked for.
        path: PathBuf,
    },
    /// A store is in place.
    #[error("{} is there already: a backup is restored only where no store is; move it away, or choose another directory with --data", path.display())]
    StoreExists {
        /// What is there.
        path: PathBuf,
    },
    /// The directory of a backup must be new.
    #[error("{} is not empty: a backup needs a new directory, or an empty one", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// It is no whole backup.
    #[error("{} is not a whole backup: {why}", path.display())]
    NotABackup {
        /// The directory.
        path: PathBuf,
        /// What is missing or wrong.
        why: String,
    },
    /// A newer build made the backup.
    #[error("the backup {} has format {found}; this build reads up to {supported}: use a newer build", path.display())]
    NewerBackup {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest that this build knows.
        supported: u32,
    },
    /// Rooms are damaged, and that cannot be passed over here.
    #[error("{} of the rooms are damaged, the first is {}: {}", rooms.len(), rooms.first().map_or(RoomId([0; 16]), |d| d.room), rooms.first().map_or("", |d| &d.why))]
    Damaged {
        /// Which.
        rooms: Vec<Damaged>,
    },
    /// There are two stores.
    #[error(
        "{} is a store of the first format, and {} is there beside it, which does not come from it: move one of them away",
        old.display(), store.display()
    )]
    TwoStores {
        /// The older one.
        old: PathBuf,
        /// The other.
        store: PathBuf,
    },
}

impl Error {
    fn write(path: &Path) -> impl Fn(io::Error) -> Self {
        move |error| Self::Write { path: path.into(), why: error.to_string() }
    }

    fn read(path: &Path, why: &impl ToString) -> Self {
        Self::Read { path: path.into(), why: why.to_string() }
    }
}

/// Makes what was written to a directory's entries durable.
fn sync(disk: &dyn Disk, directory: &Path) -> Result<(), Error> {
    disk.sync(directory).map_err(Error::write(directory))
}

/// Whether something has this name.
fn exists(disk: &dyn Disk, path: &Path) -> Result<bool, Error> {
    disk.exists(path).map_err(|error| Error::read(path, &error))
}

/// Makes a directory, and those above it that are missing, so that a power cut takes none of them away.
fn make_directory(disk: &dyn Disk, path: &Path) -> Result<(), Error> {
    let mut missing = Vec::new();
    for above in path.ancestors().filter(|above| !above.as_os_str().is_empty()) {
        if exists(disk, above)? {
            break;
        }
        missing.push(above);
    }
    disk.make_directory(path).map_err(Error::write(path))?;
    missing.into_iter().try_for_each(|made| sync(disk, parent(made)))
}

/// The directory in which `path` lies.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Removes a file that may not be there.
fn remove(disk: &dyn Disk, path: &Path) -> Result<(), Error> {
    match disk.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::write(path)(error)),
        _ => Ok(()),
    }
}

/// A file that is removed when it was not given its name.
struct Unfinished<'a>(&'a dyn Disk, Option<PathBuf>);

impl<'a> Unfinished<'a> {
    fn new(disk: &'a dyn Disk, path: &Path) -> Self {
        Self(disk, Some(path.into()))
    }

    fn keep(mut self) {
        self.1 = None;
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(path) = &self.1 {
            // What is left over is removed by the next attempt, or when the store is opened.
            let _ = self.0.remove(path);
        }
    }
}
