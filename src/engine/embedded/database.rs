//! The redb file, and how it is opened again after it failed.
//!
//! redb latches after any I/O error. What was logged is safe without it, so the file is simply opened again, as a restart
//! would do. Where even that cannot be written, what was durable is read on through an overlay.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use redb::{
    Builder, DatabaseError, Durability, ReadTransaction, ReadableDatabase as _, StorageBackend, StorageError, WriteTransaction,
};

use super::{Storage, tables::Error};
use crate::engine::redb::guard::{Guard, Guarded, Overlay};

pub(super) struct Database {
    storage: Arc<dyn Storage>,
    cache_bytes: usize,
    /// Those who use it hold it shared; opening it again waits for them, as the old one must have let go of the file.
    open: RwLock<Option<Opened>>,
    /// Whether an operation failed since it was opened.
    failed: AtomicBool,
    /// Whether redb panicked over what it found when it wrote. That is not tried again: what redb drops while it unwinds may
    /// panic as well, which would end the process, and after a restart again.
    broken: AtomicBool,
}

struct Opened {
    database: redb::Database,
    /// Whether it writes to the file, and not to an overlay.
    writes: bool,
}

impl Database {
    pub(super) fn open(storage: Arc<dyn Storage>, cache_bytes: usize) -> Result<Self, DatabaseError> {
        let database = create(cache_bytes, Guarded(Guard::new(storage.history(true)?)))?;
        let open = RwLock::new(Some(Opened { database, writes: true }));
        Ok(Self { storage, cache_bytes, open, failed: AtomicBool::new(false), broken: AtomicBool::new(false) })
    }

    /// Reads from one snapshot. After a failure of the storage, once more from the file opened anew.
    pub(super) fn read<T>(&self, read: impl Fn(&ReadTransaction) -> Result<T, Error>) -> Result<T, Error> {
        let attempt = || self.with(|opened| read(&opened.database.begin_read()?));
        self.usable()?;
        let first = attempt();
        if !first.as_ref().is_err_and(is_latching) {
            return first;
        }
        self.usable()?;
        attempt()
    }

    /// Reads from one snapshot, once, however long it takes. Meanwhile the file cannot be opened anew.
    pub(super) fn snapshot<T>(&self, read: impl FnOnce(&ReadTransaction) -> T) -> Result<T, Error> {
        self.with(|opened| Ok(read(&opened.database.begin_read()?)))
    }

    /// Writes in one transaction, durably. After a failure the file is opened anew when it is used next.
    pub(super) fn write<T>(&self, write: impl FnOnce(&WriteTransaction) -> Result<T, Error>) -> Result<T, Error> {
        if self.broken.load(Ordering::Acquire) {
            let why = "redb panicked when it wrote, and is not made to write again before a restart".to_owned();
            return Err(Error::Storage(redb::Error::Corrupted(why)));
        }
        if !self.with(|opened| Ok(opened.writes)).unwrap_or(false) {
            self.failed.store(true, Ordering::Release);
        }
        self.usable()?;
        self.with(|opened| {
            if !opened.writes {
                return Err(Error::Storage(redb::Error::PreviousIo));
            }
            catch_unwind(AssertUnwindSafe(|| commit(&opened.database, write))).unwrap_or_else(|panic| {
                self.broken.fetch_or(!is_of_a_lock(&*panic), Ordering::AcqRel);
                resume_unwind(panic)
            })
        })
    }

    fn with<T>(&self, act: impl FnOnce(&Opened) -> Result<T, Error>) -> Result<T, Error> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let unusable = || Err(Error::Storage(redb::Error::PreviousIo));
        let Some(opened) = &*open else { return unusable() };
        let result = catch_unwind(AssertUnwindSafe(|| act(opened))).unwrap_or_else(|_| unusable());
        if result.as_ref().is_err_and(is_latching) {
            // Noted while it is held: whoever opens it anew has waited for this.
            self.failed.store(true, Ordering::Release);
        }
        result
    }

    /// Opens the file anew if it has failed.
    fn usable(&self) -> Result<(), Error> {
        if !self.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if self.failed.load(Ordering::Acquire) {
            close(open.take());
            *open = Some(self.open_again().map_err(|error| Error::Storage(error.into()))?);
            self.failed.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// Lets go of the pages that redb keeps in memory, if nobody uses it now. redb lets go of them only when it is closed. Whether it did.
    pub(super) fn let_go(&self) -> bool {
        if self.failed.load(Ordering::Acquire) || self.broken.load(Ordering::Acquire) {
            return false;
        }
        let Ok(mut open) = self.open.try_write() else { return false };
        close(open.take());
        *open = self.open_again().ok();
        // As after any failure: whoever uses it next tries to open it.
        self.failed.store(open.is_none(), Ordering::Release);
        true
    }

    fn open_again(&self) -> Result<Opened, DatabaseError> {
        let guard = Guard::new(self.storage.history(false)?);
        if let Ok(database) = create(self.cache_bytes, Guarded(Arc::clone(&guard))) {
            return Ok(Opened { database, writes: true });
        }
        let overlay = Overlay::new(guard).map_err(StorageError::from)?;
        Ok(Opened { database: create(self.cache_bytes, overlay)?, writes: false })
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        close(self.open.get_mut().unwrap_or_else(PoisonError::into_inner).take());
    }
}

fn commit<T>(database: &redb::Database, write: impl FnOnce(&WriteTransaction) -> Result<T, Error>) -> Result<T, Error> {
    // While this is there, redb frees the pages that are given up with the next commit. Else it would free them in a transaction of its own
    // after this one, which it does not write to the file; and as long as there is such a one, redb 4.6 makes room in a full cache
    // by writing out what the next transaction has not finished, which is then read and written once more.
    let _pinned = database.begin_read()?;
    let mut txn = database.begin_write()?;
    txn.set_durability(Durability::Immediate).map_err(|error| Error::Storage(error.into()))?;
    // Opens after a crash without a scan of the whole file.
    txn.set_quick_repair(true);
    let done = write(&txn)?;
    txn.commit()?;
    Ok(done)
}

/// Whether it is over a lock that another thread left in a panic, which says nothing of the file.
fn is_of_a_lock(panic: &(dyn Any + Send)) -> bool {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.is_some_and(|text| text.contains("PoisonError"))
}

/// redb panics over some damages of the file, also when it is closed after that.
fn close(opened: Option<Opened>) {
    drop(catch_unwind(AssertUnwindSafe(|| drop(opened))));
}

fn create(cache_bytes: usize, backend: impl StorageBackend) -> Result<redb::Database, DatabaseError> {
    let create = || Builder::new().set_cache_size(cache_bytes).create_with_backend(backend);
    let damaged = || DatabaseError::Storage(StorageError::Corrupted("it cannot be made sense of".to_owned()));
    catch_unwind(AssertUnwindSafe(create)).unwrap_or_else(|_| Err(damaged()))
}

/// A damaged page fails who asks for it; a failed operation ends the use of this opening of the file.
fn is_latching(error: &Error) -> bool {
    matches!(error, Error::Storage(error) if !matches!(error, redb::Error::Corrupted(_)))
}

#[cfg(test)]
mod tests {
    use std::{io, path::Path, sync::atomic::AtomicUsize};

    use redb::TableDefinition;

    use super::*;
    use crate::engine::{
        embedded::{storage::Directory, tables},
        rows::{self, Contents},
        wal::Files,
    };

    const TABLE: TableDefinition<'_, u64, u64> = TableDefinition::new("some");

    /// A directory that counts how often the history is closed, and whose disk may be gone.
    struct Counted(Directory, Arc<AtomicUsize>, Arc<AtomicBool>);

    #[derive(Debug)]
    struct CountedFile(Box<dyn StorageBackend>, Arc<AtomicUsize>);

    impl Storage for Counted {
        fn files(&self) -> io::Result<Arc<dyn Files>> {
            self.0.files()
        }

        fn history(&self, make: bool) -> Result<Box<dyn StorageBackend>, DatabaseError> {
            if self.2.load(Ordering::Relaxed) {
                return Err(DatabaseError::Storage(io::Error::from(io::ErrorKind::NotFound).into()));
            }
            Ok(Box::new(CountedFile(self.0.history(make)?, Arc::clone(&self.1))))
        }

        fn free_space(&self) -> io::Result<u64> {
            self.0.free_space()
        }

        fn path(&self) -> &Path {
            self.0.path()
        }
    }

    impl StorageBackend for CountedFile {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.0.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.0.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.0.write(offset, data)
        }

        fn close(&self) -> io::Result<()> {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.close()
        }
    }

    #[test]
    fn what_redb_keeps_is_let_go_of_when_nobody_uses_it() {
        let (directory, closed, gone) = (tempfile::tempdir().unwrap(), Arc::default(), Arc::new(AtomicBool::new(false)));
        let counted = Counted(Directory::open(directory.path()).unwrap(), Arc::clone(&closed), Arc::clone(&gone));
        let storage: Arc<dyn Storage> = Arc::new(counted);
        let database = Database::open(storage, 1 << 20).unwrap();
        let write = |value: u64| database.write(|txn| Ok(txn.open_table(TABLE)?.insert(1, value).map(|_| ())?));
        let read = || database.read(|txn| Ok(txn.open_table(TABLE)?.get(1)?.map(|value| value.value()))).unwrap();
        write(7).unwrap();
        let while_read = database.snapshot(|_| database.let_go()).unwrap();
        let while_written = database.write(|_| Ok(database.let_go())).unwrap();
        assert!(!while_read && !while_written && closed.load(Ordering::Relaxed) == 0);
        for value in 8..10 {
            assert!(database.let_go());
            assert_eq!(read(), Some(value - 1));
            write(value).unwrap();
            assert_eq!(read(), Some(value));
        }
        assert_eq!(closed.load(Ordering::Relaxed), 2);
        gone.store(true, Ordering::Relaxed);
        assert!(database.let_go());
        write(10).unwrap_err();
        gone.store(false, Ordering::Relaxed);
        assert_eq!(read(), Some(9), "it is opened by whoever needs it");
        write(10).unwrap();
        // Nor is a file closed over which redb panicked.
        database.write(|_| -> Result<(), Error> { panic!("over the file") }).unwrap_err();
        assert!(!database.let_go() && read() == Some(10));
    }

    #[test]
    fn a_panic_over_the_file_ends_writing_and_one_over_a_lock_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let storage: Arc<dyn Storage> = Arc::new(Directory::open(directory.path()).unwrap());
        let database = Database::open(storage, 1 << 20).unwrap();
        database.write(tables::make).unwrap();
        let panic = |text: &str| database.write(|_| -> Result<(), Error> { panic!("{text}") }).unwrap_err();
        panic("called `Result::unwrap()` on an `Err` value: PoisonError { .. }");
        database.write(|_| Ok(())).unwrap();
        panic("assertion failed: bit < self.len");
        assert!(database.write(|_| Ok(())).unwrap_err().to_string().contains("before a restart"));
        assert!(matches!(database.read(rows::contents), Ok(Contents::Store(tables::FORMAT))), "it is read on");
    }
}
