//! The native client's storage: one redb file per profile, readable by its owner only, and sealed under a passphrase if its person wants
//! that.
//!
//! A plain profile has the table `entries`. A sealed one has `sealed`, whose rows a [`Vault`] makes, and `lock` with the vault's wrapped key. There is
//! never one with both: whoever changes the passphrase writes a new file with a new key, which then takes the old one's place.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use rand_core::UnwrapErr;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, TableError, backends::FileBackend};
use zeroize::Zeroizing;

use crate::seal::{
    backup::BackupError,
    vault::{EntryError, Vault},
};

const ENTRIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("entries");
const SEALED: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("sealed");
/// One row: the wrapped key.
const LOCK: TableDefinition<'_, (), &[u8]> = TableDefinition::new("lock");

/// Entries that one transaction copies into a new file.
const COPIED_AT_ONCE: usize = 1024;

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process has it open.
    #[error("the profile {0} is in use by another waxwing: end it, or choose another one with --profile NAME")]
    InUse(PathBuf),
    /// The directory or file cannot be made or opened.
    #[error("cannot open the profile {path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Other users of this machine may read or write the file.
    #[error("others can read the keys in {0}: chmod 600 it, and if somebody did read it, begin with a new profile")]
    Exposed(PathBuf),
    /// Other users of this machine may put another file in its place.
    #[error("anybody can replace files in {0}, where the profile lies: chmod 700 it")]
    Directory(PathBuf),
    /// It wants a passphrase, and none was given.
    #[error("the profile {0} wants its passphrase: give it with --passphrase-file FILE or in WAXWING_CLIENT_PROFILE_PASSPHRASE")]
    Locked(PathBuf),
    /// The passphrase does not open it.
    #[error("wrong passphrase for the profile {0}")]
    Passphrase(PathBuf),
    /// A passphrase was given for a profile that has none.
    #[error("the profile {0} has no passphrase yet: give it one with `waxwing passphrase`")]
    NotLocked(PathBuf),
    /// The key cannot be wrapped, or what wraps it is unreadable.
    #[error("cannot use the passphrase of the profile {path}: {source}")]
    Lock {
        /// The file.
        path: PathBuf,
        /// Why.
        source: BackupError,
    },
    /// An entry does not open with the profile's key.
    #[error("an entry of the profile {0} was changed: by a fault of the disk, or by somebody")]
    Entry(PathBuf),
    /// The file is damaged, or a write failed.
    #[error("the profile {path} cannot be read or written: {source}")]
    Database {
        /// The file.
        path: PathBuf,
        /// Why.
        source: redb::Error,
    },
}

/// Which profile, and what opens it.
#[derive(Clone)]
pub struct Profile {
    /// The file.
    pub path: PathBuf,
    /// The passphrase, if it has one; a new profile is made with it.
    pub passphrase: Option<Zeroizing<String>>,
}

impl core::fmt::Debug for Profile {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Profile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl<P: AsRef<Path> + ?Sized> From<&P> for Profile {
    fn from(path: &P) -> Self {
        Self { path: path.as_ref().to_owned(), passphrase: None }
    }
}

/// A profile's storage.
#[derive(Debug)]
pub struct FileStore {
    path: PathBuf,
    database: Database,
    vault: Option<Vault>,
}

/// What goes wrong inside a transaction.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Database(#[from] redb::Error),
    #[error(transparent)]
    Entry(#[from] EntryError),
}

/// redb has an error for each step.
macro_rules! steps {
    ($($step:ty),*) => {$(
        impl From<$step> for Failure {
            fn from(error: $step) -> Self {
                Self::Database(error.into())
            }
        }
    )*};
}
steps!(redb::TransactionError, TableError, redb::StorageError, redb::CommitError);

impl Failure {
    fn at(self, path: &Path) -> StoreError {
        match self {
            Self::Database(source) => StoreError::Database { path: path.to_owned(), source },
            Self::Entry(EntryError) => StoreError::Entry(path.to_owned()),
        }
    }
}

/// Opens or makes the file, for its owner alone.
fn open_file(path: &Path) -> Result<File, StoreError> {
    let failed = |source| StoreError::Open { path: path.to_owned(), source };
    if let Some(directory) = directory(path) {
        let mut builder = DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(directory).map_err(failed)?;
        // In a directory with the sticky bit everybody replaces their own files only.
        #[cfg(unix)]
        if mode(&fs::metadata(directory).map_err(failed)?) & 0o1002 == 0o0002 {
            return Err(StoreError::Directory(directory.to_owned()));
        }
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path).map_err(failed)?;
    #[cfg(unix)]
    if mode(&file.metadata().map_err(failed)?) & 0o077 != 0 {
        return Err(StoreError::Exposed(path.to_owned()));
    }
    Ok(file)
}

/// The directory, unless it is the current one.
fn directory(path: &Path) -> Option<&Path> {
    path.parent().filter(|directory| !directory.as_os_str().is_empty())
}

#[cfg(unix)]
fn mode(metadata: &fs::Metadata) -> u32 {
    std::os::unix::fs::MetadataExt::mode(metadata)
}

/// Whether the profile at `path` wants a passphrase.
///
/// # Errors
/// [`StoreError`].
pub fn is_locked(path: &Path) -> Result<bool, StoreError> {
    if !path.exists() {
        return Ok(false);
    }
    let database = open_database(path)?;
    Ok(lock(&database).map_err(|failure| failure.at(path))?.is_some())
}

/// Gives the profile this passphrase in the place of the one that it has, or none. The entries are written anew under a new key, so that the old
/// passphrase opens nothing any more; whatever interrupts it, the old file or the new one is there, whole.
///
/// # Errors
/// [`StoreError`]: the profile is as it was.
pub fn change_passphrase(profile: &Profile, new: Option<Zeroizing<String>>) -> Result<(), StoreError> {
    let path = &profile.path;
    let failed = |source| StoreError::Open { path: path.clone(), source };
    // Held until the end, so that no other process uses it meanwhile.
    let old = FileStore::open(profile)?;
    let beside = beside(path);
    let store = FileStore::open(&Profile { path: beside.clone(), passphrase: new })?;
    let mut entries = Vec::new();
    old.entries(|name, value| entries.push((name.to_owned(), Some(value.to_owned()))))?;
    entries.chunks(COPIED_AT_ONCE).try_for_each(|some| store.write(some))?;
    drop(store);
    fs::rename(&beside, path).map_err(failed)?;
    let directory = directory(path).unwrap_or_else(|| Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
}

/// Where a new file is written until it takes the place of the old one.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

fn open_database(path: &Path) -> Result<Database, StoreError> {
    let file = open_file(path)?;
    let failed = |error| match error {
        redb::DatabaseError::DatabaseAlreadyOpen => StoreError::InUse(path.to_owned()),
        other => StoreError::Database { path: path.to_owned(), source: other.into() },
    };
    let backend = FileBackend::new(file).map_err(failed)?;
    Database::builder().set_cache_size(8 << 20).create_with_backend(backend).map_err(failed)
}

/// The wrapped key of a sealed profile.
fn lock(database: &Database) -> Result<Option<Vec<u8>>, Failure> {
    match database.begin_read()?.open_table(LOCK) {
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        table => Ok(table?.get(())?.map(|wrapped| wrapped.value().to_vec())),
    }
}

impl FileStore {
    /// Opens or makes the file.
    ///
    /// # Errors
    /// [`StoreError`] says what to do.
    pub fn open(profile: &Profile) -> Result<Self, StoreError> {
        let Profile { path, passphrase } = profile;
        let database = open_database(path)?;
        // Left by a change of passphrase that was interrupted: nobody else can be at it while this file is held.
        match fs::remove_file(beside(path)) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::Open { path: path.clone(), source });
            }
            _ => {}
        }
        let mut store = Self { path: path.clone(), database, vault: None };
        let failed = |source| match source {
            BackupError::Passphrase => StoreError::Passphrase(path.clone()),
            source => StoreError::Lock { path: path.clone(), source },
        };
        let wrapped = lock(&store.database).map_err(|failure| failure.at(path))?;
        store.vault = match (wrapped, passphrase) {
            (None, None) => None,
            (Some(_), None) => return Err(StoreError::Locked(path.clone())),
            (Some(wrapped), Some(passphrase)) => Some(Vault::unwrap(&wrapped, passphrase).map_err(failed)?),
            (None, Some(passphrase)) => {
                let mut count = 0;
                store.entries(|_, _| count += 1)?;
                if count > 0 {
                    return Err(StoreError::NotLocked(path.clone()));
                }
                let rng = &mut UnwrapErr(getrandom::SysRng);
                let vault = Vault::new(rng);
                let wrapped = vault.wrap(passphrase, rng).map_err(failed)?;
                store.set_lock(&wrapped).map_err(|failure| failure.at(path))?;
                Some(vault)
            }
        };
        Ok(store)
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn set_lock(&self, wrapped: &[u8]) -> Result<(), Failure> {
        let transaction = self.database.begin_write()?;
        transaction.open_table(LOCK)?.insert((), wrapped)?;
        Ok(transaction.commit()?)
    }

    /// Every entry, by name.
    ///
    /// # Errors
    /// [`StoreError::Database`], [`StoreError::Entry`].
    pub fn entries(&self, each: impl FnMut(&str, &[u8])) -> Result<(), StoreError> {
        let read = match &self.vault {
            Some(vault) => self.sealed_entries(vault, each),
            None => self.plain_entries(each),
        };
        read.map_err(|failure| failure.at(&self.path))
    }

    fn plain_entries(&self, mut each: impl FnMut(&str, &[u8])) -> Result<(), Failure> {
        let table = match self.database.begin_read()?.open_table(ENTRIES) {
            Err(TableError::TableDoesNotExist(_)) => return Ok(()),
            other => other?,
        };
        for entry in table.iter()? {
            let (name, value) = entry?;
            each(name.value(), value.value());
        }
        Ok(())
    }

    fn sealed_entries(&self, vault: &Vault, mut each: impl FnMut(&str, &[u8])) -> Result<(), Failure> {
        let table = match self.database.begin_read()?.open_table(SEALED) {
            Err(TableError::TableDoesNotExist(_)) => return Ok(()),
            other => other?,
        };
        let mut entries = Vec::new();
        for entry in table.iter()? {
            let (row, sealed) = entry?;
            entries.push(vault.open(row.value(), sealed.value())?);
        }
        // Rows lie in no order that means anything.
        entries.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        entries.iter().for_each(|(name, value)| each(name, value));
        Ok(())
    }

    /// Makes these changes, all or none; they are on disk when it returns. A value of `None` forgets its key.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn write(&self, changes: &[(String, Option<Vec<u8>>)]) -> Result<(), StoreError> {
        self.commit(changes).map_err(|failure| failure.at(&self.path))
    }

    fn commit(&self, changes: &[(String, Option<Vec<u8>>)]) -> Result<(), Failure> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_quick_repair(true);
        match &self.vault {
            Some(vault) => {
                let mut table = transaction.open_table(SEALED)?;
                let rng = &mut UnwrapErr(getrandom::SysRng);
                for (name, value) in changes {
                    match value {
                        Some(value) => {
                            let (row, sealed) = vault.seal(name, value, rng)?;
                            table.insert(&row, sealed.as_slice())?;
                        }
                        None => drop(table.remove(&vault.row(name))?),
                    }
                }
            }
            None => {
                let mut table = transaction.open_table(ENTRIES)?;
                for (name, value) in changes {
                    match value {
                        Some(value) => drop(table.insert(name.as_str(), value.as_slice())?),
                        None => drop(table.remove(name.as_str())?),
                    }
                }
            }
        }
        Ok(transaction.commit()?)
    }
}
