//! Backups: a directory with a history file and, written last, a manifest that says what must be in it.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    Damaged, Error, HISTORY, Report, Unfinished,
    copy::{self, Copied, Copier, Ids, Source, Target},
    private, sync_directory,
};
use crate::{
    core::id::UnixMillis,
    engine::{
        embedded::{EmbeddedEngine, storage::remove_leftovers, tables},
        redb::make_directory,
    },
};

/// The manifest's name. A directory without it is not a backup.
pub const MANIFEST: &str = "manifest.toml";
/// The format of the manifest that this build writes and reads.
const FORMAT: u32 = 1;
/// Bytes of redb's cache while a backup is read.
pub(super) const CACHE_BYTES: usize = 64 << 20;

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The format of the backup, 1.
    pub format: u32,
    /// The format of its history file.
    pub store_format: u32,
    /// When its snapshot was taken, in milliseconds since the Unix epoch.
    pub made_ms: UnixMillis,
    /// Logs: rooms and inboxes.
    pub logs: u64,
    /// Their records.
    pub records: u64,
    /// The records' envelopes, in bytes.
    pub bytes: u64,
    /// The history file's bytes.
    pub file_bytes: u64,
    /// The history file's SHA-256, in hexadecimal digits.
    pub sha256: String,
    /// Rooms that were left out because they are damaged.
    pub left_out: Vec<String>,
}

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The backup's manifest, all of which was found to be true.
    pub manifest: Manifest,
    /// The new store.
    pub store: PathBuf,
}

impl EmbeddedEngine {
    /// Writes all that is durable now into `directory`, which must be new or empty, while the engine works on. Tells what it
    /// wrote, and which rooms it had to leave out because they are damaged.
    ///
    /// # Errors
    /// [`Error`]; then no manifest is there.
    pub fn backup(&self, directory: &Path, made_ms: UnixMillis, report: Report<'_>) -> Result<(Manifest, Vec<Damaged>), Error> {
        let made = prepare(directory)?;
        let result = self.write_backup(directory, made_ms, report);
        if result.is_err() && made {
            // It was made here, and is empty again.
            let _ = fs::remove_dir(directory);
        }
        result
    }

    fn write_backup(&self, directory: &Path, made_ms: UnixMillis, report: Report<'_>) -> Result<(Manifest, Vec<Damaged>), Error> {
        if !self.checkpoint() {
            return Err(Error::Checkpoint);
        }
        let history = directory.join(HISTORY);
        let partial = directory.join("history.redb.partial");
        let target = Target::create(&partial)?;
        // Not before: the file of another backup into this directory is not ours to remove.
        let unfinished = Unfinished(Some(partial.clone()));
        let snapshot =
            |txn: &redb::ReadTransaction| Copier::new(Source::History(txn), Path::new("the history"), target, &mut *report).run();
        let copied = self.database.snapshot(snapshot).map_err(|error| Error::read(Path::new("the history"), &error))?;
        let (copied, target) = copied?;
        let mut go_on = || if report(copied.progress).is_break() { Err(Error::Stopped) } else { Ok(()) };
        go_on()?;
        target.finish(&[])?;
        fs::rename(&partial, &history).map_err(Error::write(&history))?;
        unfinished.keep();
        let unfinished = Unfinished(Some(history.clone()));
        sync_directory(directory)?;
        let manifest = manifest(&history, made_ms, &copied, &mut go_on)?;
        go_on()?;
        write_manifest(directory, &manifest)?;
        unfinished.keep();
        Ok((manifest, copied.damaged))
    }
}

/// Makes the directory, or finds it empty. Whether it made it.
fn prepare(directory: &Path) -> Result<bool, Error> {
    let there = directory.try_exists().map_err(Error::write(directory))?;
    if there && fs::read_dir(directory).map_err(Error::write(directory))?.next().is_some() {
        return Err(Error::NotEmpty { path: directory.into() });
    }
    if !there {
        make_directory(directory).map_err(Error::write(directory))?;
        sync_directory(super::parent(directory))?;
    }
    Ok(!there)
}

/// Says whether to go on.
type GoOn<'a> = &'a mut dyn FnMut() -> Result<(), Error>;

fn manifest(history: &Path, made_ms: UnixMillis, copied: &Copied, go_on: GoOn<'_>) -> Result<Manifest, Error> {
    let (file_bytes, sha256) = digest(history, go_on)?;
    Ok(Manifest {
        format: FORMAT,
        store_format: tables::FORMAT,
        made_ms,
        logs: copied.logs,
        records: copied.records,
        bytes: copied.bytes,
        file_bytes,
        sha256,
        left_out: copied.damaged.iter().map(|damaged| damaged.room.to_string()).collect(),
    })
}

fn write_manifest(directory: &Path, manifest: &Manifest) -> Result<(), Error> {
    let path = directory.join(MANIFEST);
    let partial = directory.join("manifest.toml.partial");
    let text = toml::to_string(manifest).map_err(|error| Error::Write { path: path.clone(), why: error.to_string() })?;
    let unfinished = Unfinished(Some(partial.clone()));
    let write = || -> io::Result<()> {
        let mut file = private().open(&partial)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&partial, &path)
    };
    write().map_err(Error::write(&path))?;
    unfinished.keep();
    sync_directory(directory)
}

/// A file's length and SHA-256.
fn digest(path: &Path, go_on: GoOn<'_>) -> Result<(u64, String), Error> {
    let (mut hash, mut len, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    let mut file = fs::File::open(path).map_err(|error| Error::read(path, &error))?;
    loop {
        go_on()?;
        let count = file.read(&mut buffer).map_err(|error| Error::read(path, &error))?;
        if count == 0 {
            break;
        }
        hash.update(buffer.get(..count).unwrap_or_default());
        len += count as u64;
    }
    let hex = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((len, hex))
}

fn read_manifest(directory: &Path) -> Result<Manifest, Error> {
    let not = |why: String| Error::NotABackup { path: directory.into(), why };
    let text = fs::read_to_string(directory.join(MANIFEST)).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => not(format!("it has no {MANIFEST}, which is written last: it was interrupted, or is none")),
        _ => Error::read(&directory.join(MANIFEST), &error),
    })?;
    let broken = |error: toml::de::Error| not(format!("{MANIFEST}: {}", error.message()));
    let format = text.parse::<toml::Table>().map_err(broken)?.get("format").and_then(toml::Value::as_integer);
    match format.and_then(|format| u32::try_from(format).ok()) {
        Some(FORMAT) => toml::from_str(&text).map_err(broken),
        Some(found) if found > FORMAT => Err(Error::NewerBackup { path: directory.into(), found, supported: FORMAT }),
        _ => Err(not(format!("{MANIFEST} says no format"))),
    }
}

/// Checks the backup in `directory`: that its file is what the manifest says, and every log in it.
///
/// # Errors
/// [`Error`] names what is missing or wrong.
pub fn verify(directory: &Path, report: Report<'_>) -> Result<Manifest, Error> {
    let manifest = check_file(directory)?;
    read_backup(directory, &manifest, Target::nothing(), Ids::Same, report)?;
    Ok(manifest)
}

/// Makes a new store from the backup in `directory`, in the data directory `data`, where none may be. All of it is checked
/// before it gets its name. Every log has a new id, so clients that knew the old ones are told.
///
/// # Errors
/// [`Error`]; then no store was made.
pub fn restore(directory: &Path, data: &Path, store: &str, report: Report<'_>) -> Result<Restored, Error> {
    let store = data.join(store);
    refuse_store(data, &store)?;
    let manifest = check_file(directory)?;
    make_directory(&store).map_err(Error::write(&store))?;
    sync_directory(data)?;
    let _lock = super::lock(&store)?;
    // Somebody may have made one until it was locked.
    refuse_store(data, &store)?;
    remove_leftovers(&store).map_err(Error::write(&store))?;
    let history = store.join(HISTORY);
    // A name of its own: some file systems lock no directories.
    let mut unique = [0; 8];
    getrandom::fill(&mut unique).map_err(|error| Error::read(Path::new("the system's randomness"), &error))?;
    let partial = store.join(format!("history.redb.restoring.{:016x}", u64::from_le_bytes(unique)));
    let unfinished = Unfinished(Some(partial.clone()));
    let target = read_backup(directory, &manifest, Target::create(&partial)?, Ids::New, report)?;
    target.finish(&[])?;
    // A link, and not a rename, so that a store which was made meanwhile is not replaced.
    fs::hard_link(&partial, &history).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Error::StoreExists { path: store.clone() },
        _ => Error::write(&history)(error),
    })?;
    drop(unfinished);
    sync_directory(&store)?;
    Ok(Restored { manifest, store })
}

fn refuse_store(data: &Path, store: &Path) -> Result<(), Error> {
    let old = data.join(super::OLD);
    if old.try_exists().map_err(Error::write(&old))? {
        return Err(Error::StoreExists { path: old });
    }
    let Ok(entries) = fs::read_dir(store) else { return Ok(()) };
    for entry in entries {
        let entry = entry.map_err(Error::write(store))?;
        let name = entry.file_name();
        if name.to_str().is_none_or(|name| name == HISTORY || name.starts_with("wal-")) {
            return Err(Error::StoreExists { path: store.into() });
        }
    }
    Ok(())
}

/// Reads the manifest and compares the file with it.
fn check_file(directory: &Path) -> Result<Manifest, Error> {
    let manifest = read_manifest(directory)?;
    let (len, sha256) = digest(&directory.join(HISTORY), &mut || Ok(()))?;
    if (len, &sha256) != (manifest.file_bytes, &manifest.sha256) {
        let why = format!("{HISTORY} is not the file that {MANIFEST} describes: it was changed or damaged");
        return Err(Error::NotABackup { path: directory.into(), why });
    }
    Ok(manifest)
}

/// Reads all of the backup, and compares the counts.
fn read_backup(directory: &Path, manifest: &Manifest, target: Target, ids: Ids, report: Report<'_>) -> Result<Target, Error> {
    let path = directory.join(HISTORY);
    let database = copy::open_unchanged(&path, CACHE_BYTES)?;
    let txn = copy::begin(&database, &path)?;
    let mut copier = Copier::new(Source::History(&txn), &path, target, report);
    copier.ids = ids;
    let (copied, target) = copier.run()?;
    if !copied.damaged.is_empty() {
        return Err(Error::Damaged { rooms: copied.damaged });
    }
    let counts = (copied.logs, copied.records, copied.bytes);
    if counts != (manifest.logs, manifest.records, manifest.bytes) {
        let why = format!("it has {} logs with {} records, not {} with {}", counts.0, counts.1, manifest.logs, manifest.records);
        return Err(Error::NotABackup { path: directory.into(), why });
    }
    Ok(target)
}
