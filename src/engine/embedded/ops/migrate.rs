//! From the first format, one file with a row for each record, to this one.

use std::{io, path::Path};

use super::{
    Disk, Error, HISTORY, Report, System, Unfinished,
    copy::{self, Copier, Source},
    exists, sync,
    target::Target,
};
use crate::engine::{
    embedded::tables::{META, MIGRATED_ROW},
    redb::{OldStore, OpenError},
};

/// The first format's file within a data directory.
pub const OLD: &str = "waxwing.redb";
/// The name under which it is kept when it was brought over.
pub const KEPT: &str = "waxwing.redb.format-1";

/// What was brought over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// Logs.
    pub logs: u64,
    /// Their records.
    pub records: u64,
    /// The records' envelopes, in bytes.
    pub bytes: u64,
}

/// Brings a store of the first format in the data directory `data` over into the directory `store` within it; nothing, if
/// there is none. Logs keep their ids; the old file is kept under the name [`KEPT`].
///
/// # Errors
/// [`Error`]; then the old file is as it was, and there is no new store.
pub fn migrate(data: &Path, store: &str, report: Report<'_>) -> Result<Option<Migrated>, Error> {
    migrate_on(&System, data, store, report)
}

/// As [`migrate`], on any disk.
///
/// # Errors
/// As [`migrate`].
pub fn migrate_on(disk: &dyn Disk, data: &Path, store: &str, report: Report<'_>) -> Result<Option<Migrated>, Error> {
    let (old, store) = (data.join(OLD), data.join(store));
    if !exists(disk, &old)? {
        return Ok(None);
    }
    let history = store.join(HISTORY);
    if exists(disk, &history)? {
        // The process ended between the two names. A store that was opened since has diverged, and does not say so any more.
        return if is_migrated(disk, &history)? {
            set_aside(disk, data, &old).map(|()| None)
        } else {
            Err(Error::TwoStores { old, store })
        };
    }
    let source = disk
        .open(&old)
        .map_err(|error| OpenError::from_io(&old, error))
        .and_then(|file| OldStore::open(&old, file, super::backup::CACHE_BYTES))
        .map_err(super::OpenError::from)?;
    super::make_directory(disk, &store)?;
    let partial = store.join("history.redb.migrating");
    super::remove(disk, &partial)?;
    let unfinished = Unfinished::new(disk, &partial);
    let (copied, target) = Copier::new(Source::First(&source), &old, Target::create(disk, &partial)?, report).run()?;
    if !copied.damaged.is_empty() {
        return Err(Error::Damaged { rooms: copied.damaged });
    }
    target.finish(&[(MIGRATED_ROW, vec![1])])?;
    disk.link(&partial, &history).map_err(Error::write(&history))?;
    drop(unfinished);
    sync(disk, &store)?;
    set_aside(disk, data, &old)?;
    drop(source);
    Ok(Some(Migrated { logs: copied.logs, records: copied.records, bytes: copied.bytes }))
}

fn is_migrated(disk: &dyn Disk, history: &Path) -> Result<bool, Error> {
    let database = copy::open_unchanged(disk, history, super::backup::CACHE_BYTES)?;
    let txn = copy::begin(&database, history)?;
    let meta = txn.open_table(META).map_err(|error| Error::read(history, &error))?;
    let row = meta.get(MIGRATED_ROW).map_err(|error| Error::read(history, &error))?;
    Ok(row.is_some())
}

fn set_aside(disk: &dyn Disk, data: &Path, old: &Path) -> Result<(), Error> {
    let kept = data.join(KEPT);
    if exists(disk, &kept)? {
        return Err(Error::write(&kept)(io::ErrorKind::AlreadyExists.into()));
    }
    disk.rename(old, &kept).map_err(Error::write(&kept))?;
    sync(disk, data)
}
