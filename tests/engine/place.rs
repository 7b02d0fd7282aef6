//! A directory of a machine, with a store in it.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use redb::StorageBackend;
use waxwing::engine::{
    embedded::{Storage, ops::Disk},
    wal::{Files, SegmentFile},
};

use super::{File, HISTORY, Machine, Node, injected};

/// What a store removes when it is opened.
const UNFINISHED: [&str; 4] =
    ["history.redb.new.", "history.redb.migrating", "history.redb.compacting", "history.redb.restoring"];

/// See the module.
#[derive(Debug)]
pub(crate) struct Place {
    machine: Machine,
    directory: PathBuf,
    /// The history that was opened last.
    opened: Mutex<Option<u64>>,
    locked: bool,
}

impl Place {
    pub(super) fn new(machine: &Machine, directory: &Path, locked: bool) -> Self {
        Self { machine: machine.clone(), directory: directory.into(), opened: Mutex::default(), locked }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.locked {
            self.machine.lock().locked.remove(&self.directory);
        }
    }
}

/// The log's segments in a directory.
#[derive(Debug)]
struct Segments(Machine, PathBuf);

impl Files for Segments {
    fn list(&self) -> io::Result<Vec<String>> {
        let names = self.0.lock().list(&self.1)?.into_iter().filter_map(|name| name.into_string().ok());
        Ok(names.filter(|name| name.starts_with("wal-")).collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn SegmentFile>> {
        Ok(Box::new(self.0.handle(&self.1.join(name), true)?))
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn SegmentFile>> {
        let path = self.1.join(name);
        let mut inner = self.0.lock();
        inner.vacant(&path)?;
        if inner.goes_dark(&path).is_some() || inner.strikes(&path, |inner| &mut inner.writes) {
            return Err(injected());
        }
        if inner.strikes(&path, |inner| &mut inner.full) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let zeros = vec![0; usize::try_from(len).unwrap()];
        let number = inner.add(File { durable: zeros.clone(), now: zeros, unsynced: Vec::new() });
        inner.unsynced.retain(|op| op.iter().all(|(of, _)| *of != path));
        inner.names.insert(path.clone(), Node::File(number));
        inner.durable_names.insert(path, Node::File(number));
        drop(inner);
        self.open(name)
    }

    /// It may come back after a crash.
    fn remove(&self, name: &str) -> io::Result<()> {
        let mut inner = self.0.lock();
        let path = self.1.join(name);
        inner.number(&path)?;
        if inner.goes_dark(&path).is_some() {
            return Err(injected());
        }
        inner.names.remove(&path);
        inner.unsynced.push(vec![(path, None)]);
        Ok(())
    }
}

impl Storage for Place {
    fn files(&self) -> io::Result<Arc<dyn Files>> {
        Ok(Arc::new(Segments(self.machine.clone(), self.directory.clone())))
    }

    fn history(&self, make: bool) -> Result<Box<dyn StorageBackend>, redb::DatabaseError> {
        let path = self.directory.join(HISTORY);
        let failed = |error: io::Error| redb::DatabaseError::Storage(error.into());
        let mut inner = self.machine.lock();
        if make && inner.node(&path).is_none() {
            let number = inner.add(File::default());
            inner.names.insert(path.clone(), Node::File(number));
            inner.durable_names.insert(path.clone(), Node::File(number));
        }
        *self.opened.lock().unwrap() = inner.number(&path).ok();
        drop(inner);
        Ok(Box::new(self.machine.handle(&path, true).map_err(failed)?))
    }

    fn tidy(&self) {
        for name in Disk::names(&self.machine, &self.directory).unwrap_or_default() {
            if name.to_str().is_some_and(|name| UNFINISHED.iter().any(|begin| name.starts_with(begin))) {
                let _ = Disk::remove(&self.machine, &self.directory.join(name));
            }
        }
    }

    fn free_space(&self) -> io::Result<u64> {
        Disk::free_space(&self.machine, &self.directory)
    }

    fn is_current(&self) -> bool {
        self.machine.lock().number(&self.directory.join(HISTORY)).ok() == *self.opened.lock().unwrap()
    }

    fn path(&self) -> &Path {
        &self.directory
    }
}
