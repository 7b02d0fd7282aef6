//! The redb file, and how it is opened again after it failed.
//!
//! redb latches after any I/O error. What was logged is safe without it, so the file is simply opened again: that is what a
//! restart would do.

use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicU64, Ordering},
};

use redb::{Builder, Durability, ReadTransaction, ReadableDatabase as _, WriteTransaction};

use super::{Storage, tables::Error};

pub(super) struct Database {
    storage: Arc<dyn Storage>,
    cache_bytes: usize,
    /// Those who use it hold it shared; opening it again waits for them, as the old one must have let go of the file.
    open: RwLock<Option<redb::Database>>,
    /// How often it was opened.
    generation: AtomicU64,
}

impl Database {
    pub(super) fn open(storage: Arc<dyn Storage>, cache_bytes: usize) -> Result<Self, redb::DatabaseError> {
        let database = open(&*storage, cache_bytes)?;
        Ok(Self { storage, cache_bytes, open: RwLock::new(Some(database)), generation: AtomicU64::new(0) })
    }

    /// Reads from one snapshot. After a failure of the storage, once more from the file opened anew.
    pub(super) fn read<T>(&self, read: impl Fn(&ReadTransaction) -> Result<T, Error>) -> Result<T, Error> {
        let attempt = || self.with(|database| read(&database.begin_read()?));
        let generation = self.generation.load(Ordering::Acquire);
        match attempt() {
            Err(error) if is_latching(&error) => {
                self.reopen(generation)?;
                attempt()
            }
            result => result,
        }
    }

    /// Writes in one transaction, durably. A failure leaves the file to be opened anew by whoever comes next.
    pub(super) fn write<T>(&self, write: impl FnOnce(&WriteTransaction) -> Result<T, Error>) -> Result<T, Error> {
        let generation = self.generation.load(Ordering::Acquire);
        let result = self.with(|database| {
            let mut txn = database.begin_write()?;
            txn.set_durability(Durability::Immediate).map_err(|error| Error::Storage(error.into()))?;
            // Opens after a crash without a scan of the whole file.
            txn.set_quick_repair(true);
            let done = write(&txn)?;
            txn.commit()?;
            Ok(done)
        });
        if result.as_ref().is_err_and(is_latching) {
            self.reopen(generation)?;
        }
        result
    }

    fn with<T>(&self, act: impl FnOnce(&redb::Database) -> Result<T, Error>) -> Result<T, Error> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        match &*open {
            Some(database) => act(database),
            None => Err(Error::Storage(redb::Error::PreviousIo)),
        }
    }

    /// Opens the file anew, unless somebody has done so since `failed`.
    fn reopen(&self, failed: u64) -> Result<(), Error> {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if self.generation.load(Ordering::Acquire) == failed {
            *open = None;
            *open = Some(self::open(&*self.storage, self.cache_bytes).map_err(|error| Error::Storage(error.into()))?);
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
        Ok(())
    }
}

fn open(storage: &dyn Storage, cache_bytes: usize) -> Result<redb::Database, redb::DatabaseError> {
    let backend = storage.history().map_err(redb::StorageError::from)?;
    Builder::new().set_cache_size(cache_bytes).create_with_backend(backend)
}

/// A damaged page fails who asks for it; a failed operation ends the use of this opening of the file.
fn is_latching(error: &Error) -> bool {
    matches!(error, Error::Storage(error) if !matches!(error, redb::Error::Corrupted(_)))
}
