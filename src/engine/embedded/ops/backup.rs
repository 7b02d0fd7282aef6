//! Backups: a directory with a history file and, written last, a manifest that says what must be in it.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    Damaged, Disk, Error, HISTORY, Report, System, Unfinished,
    copy::{self, Copied, Copier, Ids, Source},
    exists, sync,
    target::Target,
};
use crate::{
    core::id::UnixMillis,
    engine::embedded::{EmbeddedEngine, tables},
};

/// The manifest's name. A directory without it is not a backup.
pub const MANIFEST: &str = "manifest.toml";
/// The format of the manifest that this build writes and reads.
const FORMAT: u32 = 1;
/// Bytes of a manifest at most: it names the rooms that were left out, 26 letters each.
const MANIFEST_MAX: u64 = 64 << 20;
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
        self.backup_on(&System, directory, made_ms, report)
    }

    /// As [`EmbeddedEngine::backup`], on any disk.
    ///
    /// # Errors
    /// As [`EmbeddedEngine::backup`].
    pub fn backup_on(
        &self,
        disk: &dyn Disk,
        directory: &Path,
        made_ms: UnixMillis,
        report: Report<'_>,
    ) -> Result<(Manifest, Vec<Damaged>), Error> {
        let made = prepare(disk, directory)?;
        let result = self.write_backup(disk, directory, made_ms, report);
        if result.is_err() && made {
            // It was made here, and is empty again.
            let _ = disk.remove_directory(directory);
        }
        result
    }

    fn write_backup(
        &self,
        disk: &dyn Disk,
        directory: &Path,
        made_ms: UnixMillis,
        report: Report<'_>,
    ) -> Result<(Manifest, Vec<Damaged>), Error> {
        if !self.checkpoint() {
            return Err(Error::Checkpoint);
        }
        let history = directory.join(HISTORY);
        let partial = directory.join("history.redb.partial");
        let target = Target::create(disk, &partial)?;
        // Not before: the file of another backup into this directory is not ours to remove.
        let unfinished = Unfinished::new(disk, &partial);
        let snapshot =
            |txn: &redb::ReadTransaction| Copier::new(Source::History(txn), Path::new("the history"), target, &mut *report).run();
        let copied = self.database.snapshot(snapshot).map_err(|error| Error::read(Path::new("the history"), &error))?;
        let (copied, target) = copied?;
        let mut go_on = || if report(copied.progress).is_break() { Err(Error::Stopped) } else { Ok(()) };
        go_on()?;
        target.finish(&[])?;
        disk.rename(&partial, &history).map_err(Error::write(&history))?;
        unfinished.keep();
        let unfinished = Unfinished::new(disk, &history);
        sync(disk, directory)?;
        let manifest = manifest(disk, &history, made_ms, &copied, &mut go_on)?;
        go_on()?;
        write_manifest(disk, directory, &manifest)?;
        unfinished.keep();
        Ok((manifest, copied.damaged))
    }
}

/// Makes the directory, or finds it empty. Whether it made it.
fn prepare(disk: &dyn Disk, directory: &Path) -> Result<bool, Error> {
    let there = disk.exists(directory).map_err(Error::write(directory))?;
    if there && !disk.names(directory).map_err(Error::write(directory))?.is_empty() {
        return Err(Error::NotEmpty { path: directory.into() });
    }
    if !there {
        super::make_directory(disk, directory)?;
    }
    Ok(!there)
}

/// Says whether to go on.
type GoOn<'a> = &'a mut dyn FnMut() -> Result<(), Error>;

fn manifest(disk: &dyn Disk, history: &Path, made_ms: UnixMillis, copied: &Copied, go_on: GoOn<'_>) -> Result<Manifest, Error> {
    let (file_bytes, sha256) = digest(disk, history, go_on)?;
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

fn write_manifest(disk: &dyn Disk, directory: &Path, manifest: &Manifest) -> Result<(), Error> {
    let path = directory.join(MANIFEST);
    let partial = directory.join("manifest.toml.partial");
    let text = toml::to_string(manifest).map_err(|error| Error::Write { path: path.clone(), why: error.to_string() })?;
    let unfinished = Unfinished::new(disk, &partial);
    let write = || -> io::Result<()> {
        let file = disk.create(&partial)?;
        file.write(0, text.as_bytes())?;
        file.sync_data()?;
        disk.rename(&partial, &path)
    };
    write().map_err(Error::write(&path))?;
    unfinished.keep();
    // Nobody knows whether it is durable until its directory is.
    let unfinished = Unfinished::new(disk, &path);
    sync(disk, directory)?;
    unfinished.keep();
    Ok(())
}

/// A file's length and SHA-256.
fn digest(disk: &dyn Disk, path: &Path, go_on: GoOn<'_>) -> Result<(u64, String), Error> {
    let failed = |error: io::Error| Error::read(path, &error);
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    let file = disk.open_read_only(path).map_err(failed)?;
    let len = file.len().map_err(failed)?;
    let mut at = 0;
    while at < len {
        go_on()?;
        let count = usize::try_from(len - at).map_or(buffer.len(), |rest| rest.min(buffer.len()));
        let part = buffer.get_mut(..count).unwrap_or_default();
        file.read(at, part).map_err(failed)?;
        hash.update(&*part);
        at += count as u64;
    }
    let hex = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((len, hex))
}

fn read_manifest(disk: &dyn Disk, directory: &Path) -> Result<Manifest, Error> {
    let not = |why: String| Error::NotABackup { path: directory.into(), why };
    let read = || -> io::Result<String> {
        let file = disk.open_read_only(&directory.join(MANIFEST))?;
        let len = file.len()?;
        if len > MANIFEST_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        file.read(0, &mut bytes)?;
        String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    };
    let text = read().map_err(|error| match error.kind() {
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
    verify_on(&System, directory, report)
}

/// As [`verify`], on any disk.
///
/// # Errors
/// As [`verify`].
pub fn verify_on(disk: &dyn Disk, directory: &Path, report: Report<'_>) -> Result<Manifest, Error> {
    let manifest = check_file(disk, directory)?;
    read_backup(disk, directory, &manifest, Target::nothing(), Ids::Same, report)?;
    Ok(manifest)
}

/// Makes a new store from the backup in `directory`, in the data directory `data`, where none may be. All of it is checked
/// before it gets its name; the backup need not be writable. Every log has a new id, so clients that knew the old ones are
/// told.
///
/// # Errors
/// [`Error`]; then no store was made.
pub fn restore(directory: &Path, data: &Path, store: &str, report: Report<'_>) -> Result<Restored, Error> {
    restore_on(&System, directory, data, store, report)
}

/// As [`restore`], on any disk.
///
/// # Errors
/// As [`restore`].
pub fn restore_on(disk: &dyn Disk, directory: &Path, data: &Path, store: &str, report: Report<'_>) -> Result<Restored, Error> {
    let store = data.join(store);
    refuse_store(disk, data, &store)?;
    let manifest = check_file(disk, directory)?;
    let storage = disk.store(&store)?;
    sync(disk, data)?;
    // Somebody may have made one until it was locked.
    refuse_store(disk, data, &store)?;
    storage.tidy();
    let history = store.join(HISTORY);
    // A name of its own: some file systems lock no directories.
    let mut unique = [0; 8];
    getrandom::fill(&mut unique).map_err(|error| Error::read(Path::new("the system's randomness"), &error))?;
    let partial = store.join(format!("history.redb.restoring.{:016x}", u64::from_le_bytes(unique)));
    let unfinished = Unfinished::new(disk, &partial);
    let target = read_backup(disk, directory, &manifest, Target::create(disk, &partial)?, Ids::New, report)?;
    target.finish(&[])?;
    // A link, and not a rename, so that a store which was made meanwhile is not replaced.
    disk.link(&partial, &history).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Error::StoreExists { path: store.clone() },
        _ => Error::write(&history)(error),
    })?;
    drop(unfinished);
    sync(disk, &store)?;
    Ok(Restored { manifest, store })
}

fn refuse_store(disk: &dyn Disk, data: &Path, store: &Path) -> Result<(), Error> {
    let old = data.join(super::OLD);
    if exists(disk, &old)? {
        return Err(Error::StoreExists { path: old });
    }
    let names = match disk.names(store) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        names => names.map_err(|error| Error::read(store, &error))?,
    };
    let is_store = |name: &std::ffi::OsString| name.to_str().is_none_or(|name| name == HISTORY || name.starts_with("wal-"));
    if names.iter().any(is_store) { Err(Error::StoreExists { path: store.into() }) } else { Ok(()) }
}

/// Reads the manifest and compares the file with it.
fn check_file(disk: &dyn Disk, directory: &Path) -> Result<Manifest, Error> {
    let manifest = read_manifest(disk, directory)?;
    let history = directory.join(HISTORY);
    if !exists(disk, &history)? {
        return Err(Error::NotABackup { path: directory.into(), why: format!("it has no {HISTORY}") });
    }
    let (len, sha256) = digest(disk, &history, &mut || Ok(()))?;
    if (len, &sha256) != (manifest.file_bytes, &manifest.sha256) {
        let why = format!("{HISTORY} is not the file that {MANIFEST} describes: it was changed or damaged");
        return Err(Error::NotABackup { path: directory.into(), why });
    }
    Ok(manifest)
}

/// Reads all of the backup, and compares the counts.
fn read_backup<'a>(
    disk: &dyn Disk,
    directory: &Path,
    manifest: &Manifest,
    target: Target<'a>,
    ids: Ids,
    report: Report<'_>,
) -> Result<Target<'a>, Error> {
    let path = directory.join(HISTORY);
    let database = copy::open_unchanged(disk, &path, CACHE_BYTES)?;
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
