//! From the first format, one file with a row for each record, to this one.

use std::{fs, io, path::Path};

use super::{
    Error, HISTORY, Report, Unfinished,
    copy::{self, Copier, Source, Target},
    sync_directory,
};
use crate::engine::{
    embedded::tables::{META, MIGRATED_ROW},
    redb::{OldStore, make_directory},
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
    let (old, store) = (data.join(OLD), data.join(store));
    if !old.try_exists().map_err(|error| Error::read(&old, &error))? {
        return Ok(None);
    }
    let history = store.join(HISTORY);
    if history.try_exists().map_err(|error| Error::read(&history, &error))? {
        // The process ended between the two names. A store that was opened since has diverged, and does not say so any more.
        return if is_migrated(&history)? { set_aside(data, &old).map(|()| None) } else { Err(Error::TwoStores { old, store }) };
    }
    let source = OldStore::open(&old, super::backup::CACHE_BYTES).map_err(super::OpenError::from)?;
    make_directory(&store).map_err(Error::write(&store))?;
    sync_directory(data)?;
    let partial = store.join("history.redb.migrating");
    super::remove(&partial)?;
    let unfinished = Unfinished(Some(partial.clone()));
    let (copied, target) = Copier::new(Source::First(&source), &old, Target::create(&partial)?, report).run()?;
    if !copied.damaged.is_empty() {
        return Err(Error::Damaged { rooms: copied.damaged });
    }
    target.finish(&[(MIGRATED_ROW, vec![1])])?;
    fs::hard_link(&partial, &history).map_err(Error::write(&history))?;
    drop(unfinished);
    sync_directory(&store)?;
    set_aside(data, &old)?;
    drop(source);
    Ok(Some(Migrated { logs: copied.logs, records: copied.records, bytes: copied.bytes }))
}

fn is_migrated(history: &Path) -> Result<bool, Error> {
    let database = copy::open_unchanged(history, super::backup::CACHE_BYTES)?;
    let txn = copy::begin(&database, history)?;
    let meta = txn.open_table(META).map_err(|error| Error::read(history, &error))?;
    let row = meta.get(MIGRATED_ROW).map_err(|error| Error::read(history, &error))?;
    Ok(row.is_some())
}

fn set_aside(data: &Path, old: &Path) -> Result<(), Error> {
    let kept = data.join(KEPT);
    if kept.try_exists().map_err(Error::write(&kept))? {
        return Err(Error::write(&kept)(io::ErrorKind::AlreadyExists.into()));
    }
    fs::rename(old, &kept).map_err(Error::write(&kept))?;
    sync_directory(data)
}
