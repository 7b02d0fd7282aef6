//! The native client's storage: one redb file per profile, readable by its owner only.

use std::{
    fs::{self, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, backends::FileBackend};

const ENTRIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("entries");

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
    /// The file is damaged, or a write failed.
    #[error("the profile {path} cannot be read or written: {source}")]
    Database {
        /// The file.
        path: PathBuf,
        /// Why.
        source: redb::Error,
    },
}

/// A profile's storage.
#[derive(Debug)]
pub struct FileStore {
    path: PathBuf,
    database: Database,
}

impl FileStore {
    /// Opens or makes the file.
    ///
    /// # Errors
    /// [`StoreError`] says what to do.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Open { path: path.to_owned(), source };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(path).map_err(failed)?;
        let open_failed = |error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => StoreError::InUse(path.to_owned()),
            other => StoreError::Database { path: path.to_owned(), source: other.into() },
        };
        let database =
            match Database::builder().set_cache_size(8 << 20).create_with_backend(FileBackend::new(file).map_err(open_failed)?) {
                Ok(database) => database,
                Err(error) => return Err(StoreError::Database { path: path.to_owned(), source: error.into() }),
            };
        Ok(Self { path: path.to_owned(), database })
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every entry.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn entries(&self, mut each: impl FnMut(&str, &[u8])) -> Result<(), StoreError> {
        let mut read = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_read()?;
            let table = match transaction.open_table(ENTRIES) {
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(()),
                other => other?,
            };
            for entry in table.iter()? {
                let (key, value) = entry?;
                each(key.value(), value.value());
            }
            Ok(())
        };
        read().map_err(|source| StoreError::Database { path: self.path.clone(), source })
    }

    /// Makes these changes, all or none; they are on disk when it returns. A value of `None` forgets its key.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn write(&self, changes: &[(String, Option<Vec<u8>>)]) -> Result<(), StoreError> {
        let write = || -> Result<(), redb::Error> {
            let mut transaction = self.database.begin_write()?;
            transaction.set_quick_repair(true);
            {
                let mut table = transaction.open_table(ENTRIES)?;
                for (key, value) in changes {
                    match value {
                        Some(value) => drop(table.insert(key.as_str(), value.as_slice())?),
                        None => drop(table.remove(key.as_str())?),
                    }
                }
            }
            transaction.commit()?;
            Ok(())
        };
        write().map_err(|source| StoreError::Database { path: self.path.clone(), source })
    }
}
