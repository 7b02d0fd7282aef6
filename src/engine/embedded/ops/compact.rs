//! Compacting: the history is copied into a new file, log by log, and that takes its place. A disk that has no room for the
//! copy leaves redb's own way: it moves pages within the file, without checking what is in them.

use std::{path::Path, sync::Arc};

use redb::Builder;

use super::{
    Damaged, Disk, Error, HISTORY, Report, System, Unfinished,
    copy::{self, Copier, OnDamage, Source},
    target::Target,
};
use crate::engine::{
    Observer,
    embedded::{Config, EmbeddedEngine, tables::APPLIED_ROW},
    redb as direct,
};

/// What it brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compacted {
    /// The history file's bytes before.
    pub before: u64,
    /// And after.
    pub after: u64,
    /// Logs in it.
    pub logs: u64,
    /// Rooms that are damaged; they are as they were.
    pub damaged: Vec<Damaged>,
    /// Whether pages were moved within the file, because the disk had no room for a copy. Then nothing was checked.
    pub in_place: bool,
}

/// Gives the disk back that the store in `directory` does not need any more. While it works, the disk holds both files, and keeps
/// `disk_reserve_bytes` free beside them; if it has no room for that, the file is compacted in place.
///
/// # Errors
/// [`Error`]: a store that another process has open is refused. Then nothing was changed.
pub fn compact(directory: &Path, config: &Config, report: Report<'_>) -> Result<Compacted, Error> {
    compact_on(&System, directory, config, report)
}

/// As [`compact`], on any disk.
///
/// # Errors
/// As [`compact`].
pub fn compact_on(disk: &dyn Disk, directory: &Path, config: &Config, report: Report<'_>) -> Result<Compacted, Error> {
    let history = directory.join(HISTORY);
    if !super::exists(disk, &history)? {
        return Err(Error::NoStore { path: directory.into() });
    }
    // Held to the end: nobody opens the store in between.
    let storage = disk.store(directory)?;
    let engine = EmbeddedEngine::open_in(Arc::clone(&storage), config.clone(), Arc::new(()) as Arc<dyn Observer>)?;
    if !engine.checkpoint() {
        return Err(Error::Checkpoint);
    }
    let len = |path: &Path| disk.len(path).map_err(|error| Error::read(path, &error));
    let before = len(&history)?;
    if !has_room(disk, &engine, directory, config.disk_reserve_bytes)? {
        engine.shutdown();
        drop(engine);
        in_place(disk, &history)?;
        return Ok(Compacted { before, after: len(&history)?, logs: 0, damaged: Vec::new(), in_place: true });
    }
    let partial = directory.join("history.redb.compacting");
    super::remove(disk, &partial)?;
    let unfinished = Unfinished::new(disk, &partial);
    let target = Target::create(disk, &partial)?;
    let copied = engine.database.snapshot(|txn| {
        let applied = copy::applied(txn).map_err(|error| Error::read(&history, &error))?;
        let mut copier = Copier::new(Source::History(txn), &history, target, report);
        copier.on_damage = OnDamage::AsItIs;
        Ok::<_, Error>((copier.run()?, applied))
    });
    let ((copied, target), applied) = copied.map_err(|error| Error::read(&history, &error))??;
    target.finish(&[(APPLIED_ROW, applied.to_le_bytes().to_vec())])?;
    // The engine holds the file's lock until this is done, and writes nothing meanwhile: nobody submits anything.
    disk.rename(&partial, &history).map_err(Error::write(&history))?;
    unfinished.keep();
    super::sync(disk, directory)?;
    engine.shutdown();
    Ok(Compacted { before, after: len(&history)?, logs: copied.logs, damaged: copied.damaged, in_place: false })
}

/// Whether the disk can hold a copy beside the reserve.
fn has_room(disk: &dyn Disk, engine: &EmbeddedEngine, directory: &Path, reserve: u64) -> Result<bool, Error> {
    let bytes = engine.database.snapshot(copy::envelope_bytes).and_then(|bytes| bytes);
    let bytes = bytes.map_err(|error| Error::read(directory, &error))?;
    let needed = bytes.saturating_add(bytes / 8).saturating_add(16 << 20).saturating_add(reserve);
    Ok(disk.free_space(directory).map_err(|error| Error::read(directory, &error))? >= needed)
}

fn in_place(disk: &dyn Disk, history: &Path) -> Result<(), Error> {
    let file = disk.open(history).map_err(|error| Error::read(history, &error))?;
    let mut database = match Builder::new().create_with_backend(direct::guarded(file)) {
        Ok(database) => database,
        Err(error) => return Err(super::OpenError::from(direct::OpenError::from_redb(history, error)).into()),
    };
    database.compact().map_err(|error| Error::Write { path: history.into(), why: error.to_string() })?;
    Ok(())
}
