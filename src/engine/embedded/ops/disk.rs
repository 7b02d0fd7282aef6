//! The file system, as far as operators' commands use it. They see it only through [`Disk`], so that tests can lose, tear and
//! refuse what a real one may, between any two steps.

use std::{ffi::OsString, fs, io, path::Path, sync::Arc};

use redb::{StorageBackend, backends::FileBackend};

use crate::engine::{
    embedded::{Directory, OpenError, Storage},
    redb::{free_bytes, make_directory},
};

/// A file system. Names that were made, moved or removed are durable when their directory was synced, bytes when their file
/// was.
pub trait Disk: Send + Sync {
    /// Whether something has this name.
    ///
    /// # Errors
    /// Those of the file system.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// A file's length in bytes.
    ///
    /// # Errors
    /// Those of the file system.
    fn len(&self, path: &Path) -> io::Result<u64>;

    /// The names in a directory, in any order.
    ///
    /// # Errors
    /// Those of the file system.
    fn names(&self, directory: &Path) -> io::Result<Vec<OsString>>;

    /// Makes a directory for its owner alone (mode 0700), and those above it that are missing; it may be there already.
    ///
    /// # Errors
    /// Those of the file system.
    fn make_directory(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty directory.
    ///
    /// # Errors
    /// Those of the file system.
    fn remove_directory(&self, path: &Path) -> io::Result<()>;

    /// Makes an empty file for its owner alone (mode 0600), of a name that is not there.
    ///
    /// # Errors
    /// Those of the file system.
    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>>;

    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// Those of the file system.
    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>>;

    /// Opens a file that need not be writable; whoever writes to what this returns is refused.
    ///
    /// # Errors
    /// Those of the file system.
    fn open_read_only(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>>;

    /// Gives a file a second name, which must not be there.
    ///
    /// # Errors
    /// Those of the file system.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives a file another name, and takes that from whoever has it.
    ///
    /// # Errors
    /// Those of the file system.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Takes a file's name.
    ///
    /// # Errors
    /// Those of the file system.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes durable what was done to the names in a directory.
    ///
    /// # Errors
    /// Those of the file system.
    fn sync(&self, directory: &Path) -> io::Result<()>;

    /// Bytes that may still be written where `path` is.
    ///
    /// # Errors
    /// When nobody knows.
    fn free_space(&self, path: &Path) -> io::Result<u64>;

    /// The store in a directory, which is made if it is not there. Nobody else has it until this is dropped.
    ///
    /// # Errors
    /// [`OpenError`].
    fn store(&self, directory: &Path) -> Result<Arc<dyn Storage>, OpenError>;
}

/// The system's own.
#[derive(Debug, Clone, Copy)]
pub struct System;

impl Disk for System {
    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        Ok(fs::metadata(path)?.len())
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect()
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        make_directory(path)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>> {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        backend(options.open(path)?)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>> {
        backend(fs::OpenOptions::new().read(true).write(true).open(path)?)
    }

    fn open_read_only(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>> {
        backend(fs::File::open(path)?)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync(&self, directory: &Path) -> io::Result<()> {
        fs::File::open(directory)?.sync_all()
    }

    fn free_space(&self, path: &Path) -> io::Result<u64> {
        free_bytes(path)
    }

    fn store(&self, directory: &Path) -> Result<Arc<dyn Storage>, OpenError> {
        Ok(Arc::new(Directory::open(directory)?))
    }
}

fn backend(file: fs::File) -> io::Result<Box<dyn StorageBackend>> {
    Ok(Box::new(FileBackend::new(file).map_err(io::Error::other)?))
}
