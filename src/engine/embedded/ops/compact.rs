//! Compacting: the history is copied into a new file, log by log, and takes its place.

use std::{fs, path::Path, sync::Arc};

use super::{
    Damaged, Error, HISTORY, Report, Unfinished,
    copy::{self, Copier, OnDamage, Source, Target},
    sync_directory,
};
use crate::engine::{
    Observer,
    embedded::{Config, EmbeddedEngine, tables::APPLIED_ROW},
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
}

/// Gives the disk back that the store in `directory` does not need any more. While it works, the disk holds both files.
///
/// # Errors
/// [`Error`]: a store that another process has open is refused. Then nothing was changed.
pub fn compact(directory: &Path, config: Config, report: Report<'_>) -> Result<Compacted, Error> {
    let history = directory.join(HISTORY);
    if !history.try_exists().map_err(|error| Error::read(&history, &error))? {
        return Err(Error::NoStore { path: directory.into() });
    }
    let engine = EmbeddedEngine::open(directory, config, Arc::new(()) as Arc<dyn Observer>)?;
    if !engine.checkpoint() {
        return Err(Error::Checkpoint);
    }
    let len = |path: &Path| fs::metadata(path).map(|meta| meta.len()).map_err(|error| Error::read(path, &error));
    let before = len(&history)?;
    let partial = directory.join("history.redb.compacting");
    super::remove(&partial)?;
    let unfinished = Unfinished(Some(partial.clone()));
    let target = Target::create(&partial)?;
    let copied = engine.database.snapshot(|txn| {
        let applied = copy::applied(txn).map_err(|error| Error::read(&history, &error))?;
        let mut copier = Copier::new(Source::History(txn), &history, target, report);
        copier.on_damage = OnDamage::AsItIs;
        Ok::<_, Error>((copier.run()?, applied))
    });
    let ((copied, target), applied) = copied.map_err(|error| Error::read(&history, &error))??;
    target.finish(&[(APPLIED_ROW, applied.to_le_bytes().to_vec())])?;
    // The engine holds the file's lock until this is done, and writes nothing meanwhile: nobody submits anything.
    fs::rename(&partial, &history).map_err(Error::write(&history))?;
    unfinished.keep();
    sync_directory(directory)?;
    engine.shutdown();
    Ok(Compacted { before, after: len(&history)?, logs: copied.logs, damaged: copied.damaged })
}
