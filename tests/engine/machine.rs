//! A machine with files in memory, which loses, tears and refuses what a real one may: the log's segments, the history, and
//! whatever lies beside them on one disk, so that a power cut strikes all of it at the same moment.

#[path = "place.rs"]
mod place;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use redb::StorageBackend;
use waxwing::engine::{
    embedded::{OpenError, Storage, ops::Disk},
    wal::SegmentFile,
};

use self::place::Place;
use crate::disk::{Op, Rng};

/// Sectors are written whole or not at all.
const SECTOR: u64 = 512;
const HISTORY: &str = "history.redb";

#[derive(Debug, Default, Clone)]
struct File {
    durable: Vec<u8>,
    now: Vec<u8>,
    unsynced: Vec<Op>,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Directory,
    File(u64),
}

type Names = BTreeMap<PathBuf, Node>;
/// Done to names all together or not at all.
type NameOp = Vec<(PathBuf, Option<Node>)>;

fn apply(op: &NameOp, names: &mut Names) {
    for (path, node) in op {
        match node {
            Some(node) => names.insert(path.clone(), *node),
            None => names.remove(path),
        };
    }
}

/// How many operations of a kind go well before one fails, and whether all that follow do too.
#[derive(Debug, Default, Clone, Copy)]
struct Fuse {
    left: Option<u64>,
    for_ever: bool,
}

impl Fuse {
    fn blows(&mut self) -> bool {
        match &mut self.left {
            Some(0) => {
                if !self.for_ever {
                    self.left = None;
                }
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    files: BTreeMap<u64, File>,
    names: Names,
    durable_names: Names,
    /// What was done to names since their directory was synced.
    unsynced: Vec<NameOp>,
    locked: BTreeSet<PathBuf>,
    /// What lies below cannot be changed.
    read_only: Option<PathBuf>,
    power: Fuse,
    syncs: Fuse,
    writes: Fuse,
    reads: Fuse,
    named: Fuse,
    full: Fuse,
    /// Only the history's operations fail.
    history_only: bool,
    /// Whether a fault has struck.
    struck: bool,
    /// Whether the power has failed.
    dark: bool,
    free: Option<u64>,
}

/// Clones share the machine.
#[derive(Debug, Clone, Default)]
pub(crate) struct Machine(Arc<Mutex<Inner>>);

/// What fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// From then on everything that changes the disk.
    Power,
    /// One sync.
    Sync,
    /// One write, of which a part is done.
    Write,
    /// One read of the history.
    Read,
    /// One change of names, or one sync of a directory.
    Name,
    /// From then on everything that takes more of the disk.
    Full,
}

fn injected() -> io::Error {
    io::Error::other("injected")
}

impl Inner {
    fn strikes(&mut self, path: &Path, fuse: fn(&mut Self) -> &mut Fuse) -> bool {
        let spared = self.history_only && path.file_name() != Some(HISTORY.as_ref());
        let strikes = !spared && fuse(self).blows();
        self.struck |= strikes;
        strikes
    }

    /// Whether there is no power for this; and whether it was on its way as the power failed.
    fn goes_dark(&mut self, path: &Path) -> Option<bool> {
        let under_way = !self.dark;
        self.dark |= self.strikes(path, |inner| &mut inner.power);
        self.dark.then_some(under_way)
    }

    fn node(&self, path: &Path) -> Option<Node> {
        // What is relative lies where the machine began.
        if path.as_os_str().is_empty() || path == Path::new(".") || path == Path::new("/") {
            Some(Node::Directory)
        } else {
            self.names.get(path).copied()
        }
    }

    fn number(&self, path: &Path) -> io::Result<u64> {
        match self.node(path) {
            Some(Node::File(number)) => Ok(number),
            Some(Node::Directory) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        match self.node(directory) {
            Some(Node::Directory) => {}
            Some(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
            None => return Err(io::ErrorKind::NotFound.into()),
        }
        let within = self.names.keys().filter(|path| path.parent() == Some(directory));
        Ok(within.filter_map(|path| Some(path.file_name()?.to_owned())).collect())
    }

    /// A file without a name yet.
    fn add(&mut self, file: File) -> u64 {
        let number = self.files.keys().next_back().map_or(0, |last| last + 1);
        self.files.insert(number, file);
        number
    }

    /// Changes names, not durably.
    fn rename(&mut self, path: &Path, op: NameOp) -> io::Result<()> {
        self.writable(path)?;
        if let Some(under_way) = self.goes_dark(path) {
            self.unsynced.extend(under_way.then_some(op));
            return Err(injected());
        }
        if self.strikes(path, |inner| &mut inner.named) {
            return Err(injected());
        }
        apply(&op, &mut self.names);
        self.unsynced.push(op);
        Ok(())
    }

    fn writable(&self, path: &Path) -> io::Result<()> {
        let read_only = self.read_only.as_ref().is_some_and(|below| path.starts_with(below));
        if read_only { Err(io::ErrorKind::ReadOnlyFilesystem.into()) } else { Ok(()) }
    }

    /// Where a path may be made.
    fn vacant(&self, path: &Path) -> io::Result<()> {
        match (self.node(path), path.parent().and_then(|parent| self.node(parent))) {
            (Some(_), _) => Err(io::ErrorKind::AlreadyExists.into()),
            (None, Some(Node::Directory)) => Ok(()),
            (None, _) => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

impl Machine {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// After `good` operations of its kind, the fault strikes.
    pub(crate) fn fail(&self, fault: Fault, good: u64) {
        let mut inner = self.lock();
        let for_ever = matches!(fault, Fault::Power | Fault::Full);
        let fuse = Fuse { left: Some(good), for_ever };
        match fault {
            Fault::Power => inner.power = fuse,
            Fault::Sync => inner.syncs = fuse,
            Fault::Write => inner.writes = fuse,
            Fault::Read => inner.reads = fuse,
            Fault::Name => inner.named = fuse,
            Fault::Full => inner.full = fuse,
        }
    }

    /// Nothing fails any more. Whether something did.
    pub(crate) fn heal(&self) -> bool {
        let inner = &mut *self.lock();
        let Inner { power, syncs, writes, reads, named, full, .. } = inner;
        for fuse in [power, syncs, writes, reads, named, full] {
            *fuse = Fuse::default();
        }
        std::mem::take(&mut inner.struck)
    }

    /// Faults strike the history only, not the log.
    pub(crate) fn spare_the_log(&self) {
        self.lock().history_only = true;
    }

    /// From now on what lies below `path` cannot be changed, nor opened to be changed.
    pub(crate) fn mount_read_only(&self, path: &Path) {
        self.lock().read_only = Some(path.to_owned());
    }

    pub(crate) fn set_free(&self, bytes: u64) {
        self.lock().free = Some(bytes);
    }

    /// The machine as it starts again after the power failed now: all that was synced, and of the rest each operation
    /// whole, torn or lost, as `rng` says; with none, nothing of the rest.
    pub(crate) fn crashed(&self, mut rng: Option<&mut Rng>) -> Self {
        let inner = self.lock();
        let mut names = inner.durable_names.clone();
        if let Some(rng) = &mut rng {
            inner.unsynced.iter().filter(|_| rng.below(2) == 0).for_each(|op| apply(op, &mut names));
        }
        // What lies in a directory that is not there is not there.
        let whole = |path: &Path| path.ancestors().skip(1).all(|above| above.parent().is_none() || names.contains_key(above));
        let lost: Vec<PathBuf> = names.keys().filter(|path| !whole(path)).cloned().collect();
        names.retain(|path, _| !lost.contains(path));
        let mut files: BTreeMap<u64, Vec<u8>> =
            inner.files.iter().map(|(number, file)| (*number, file.durable.clone())).collect();
        if let Some(rng) = rng {
            for (number, file) in &inner.files {
                let image = files.get_mut(number).unwrap();
                file.unsynced.iter().for_each(|op| op.tear(image, rng));
            }
        }
        Self::with(names, files)
    }

    /// The machine after a stop of the process: what it wrote is there.
    pub(crate) fn stopped(&self) -> Self {
        let inner = self.lock();
        Self::with(inner.names.clone(), inner.files.iter().map(|(number, file)| (*number, file.now.clone())).collect())
    }

    fn with(names: Names, mut files: BTreeMap<u64, Vec<u8>>) -> Self {
        files.retain(|number, _| names.values().any(|node| *node == Node::File(*number)));
        let whole = |bytes: Vec<u8>| File { durable: bytes.clone(), now: bytes, unsynced: Vec::new() };
        let files = files.into_iter().map(|(number, bytes)| (number, whole(bytes))).collect();
        let durable_names = names.clone();
        Self(Arc::new(Mutex::new(Inner { files, names, durable_names, ..Inner::default() })))
    }

    /// Puts a file there, durably, and the directories above it.
    pub(crate) fn put(&self, path: &Path, bytes: Vec<u8>) {
        let mut inner = self.lock();
        let number = inner.add(File { durable: bytes.clone(), now: bytes, unsynced: Vec::new() });
        let above = path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty());
        let mut op: NameOp = above.map(|above| (above.to_owned(), Some(Node::Directory))).collect();
        op.push((path.to_owned(), Some(Node::File(number))));
        apply(&op, &mut inner.names);
        apply(&op, &mut inner.durable_names);
    }

    /// The paths of its files, and their lengths.
    pub(crate) fn files(&self) -> Vec<(PathBuf, usize)> {
        let inner = self.lock();
        let file = |(path, node): (&PathBuf, &Node)| match node {
            Node::File(number) => Some((path.clone(), inner.files.get(number)?.now.len())),
            Node::Directory => None,
        };
        inner.names.iter().filter_map(file).collect()
    }

    /// Flips one bit.
    pub(crate) fn flip(&self, path: &Path, bit: usize) {
        let mut inner = self.lock();
        let number = inner.number(path).unwrap();
        let file = inner.files.get_mut(&number).unwrap();
        for bytes in [&mut file.durable, &mut file.now] {
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    /// The directory `store`, for an engine; not locked.
    pub(crate) fn place(&self) -> Arc<Place> {
        if self.lock().node("store".as_ref()).is_none() {
            self.make_directory("store".as_ref()).unwrap();
            Disk::sync(self, "".as_ref()).unwrap();
        }
        Arc::new(Place::new(self, "store".as_ref(), false))
    }

    fn handle(&self, path: &Path, writable: bool) -> io::Result<Handle> {
        let number = self.lock().number(path)?;
        Ok(Handle { machine: self.clone(), number, path: path.to_owned(), writable })
    }
}

/// One open file of a machine, whatever its name is by now.
#[derive(Debug)]
struct Handle {
    machine: Machine,
    number: u64,
    path: PathBuf,
    writable: bool,
}

impl Handle {
    fn change(&self, op: Op) -> io::Result<()> {
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut inner = self.machine.lock();
        if let Some(under_way) = inner.goes_dark(&self.path) {
            // What was on its way to the disk may be there.
            if let Some(file) = inner.files.get_mut(&self.number).filter(|_| under_way) {
                file.unsynced.push(op);
            }
            return Err(injected());
        }
        let len = inner.files.get(&self.number).map_or(0, |file| file.now.len() as u64);
        let end = match &op {
            Op::Write(offset, data) => offset + data.len() as u64,
            Op::SetLen(len) => *len,
        };
        let full = end > len && inner.strikes(&self.path, |inner| &mut inner.full);
        let refused = full || (matches!(op, Op::Write(..)) && inner.strikes(&self.path, |inner| &mut inner.writes));
        let op = match op {
            Op::Write(offset, mut data) if refused => {
                // A short write: some of its sectors.
                let end = ((offset + data.len() as u64 / 2) / SECTOR * SECTOR).max(offset);
                data.truncate(usize::try_from(end - offset).unwrap());
                Op::Write(offset, data)
            }
            Op::SetLen(_) if refused => Op::SetLen(len),
            op => op,
        };
        let file = inner.files.get_mut(&self.number).ok_or(io::ErrorKind::NotFound)?;
        op.apply(&mut file.now);
        file.unsynced.push(op);
        if full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if refused { Err(injected()) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.machine.lock();
        if inner.goes_dark(&self.path).is_some() || inner.strikes(&self.path, |inner| &mut inner.syncs) {
            return Err(injected());
        }
        let file = inner.files.get_mut(&self.number).ok_or(io::ErrorKind::NotFound)?;
        for op in std::mem::take(&mut file.unsynced) {
            op.apply(&mut file.durable);
        }
        Ok(())
    }

    fn read_exact(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut inner = self.machine.lock();
        if self.path.file_name() == Some(HISTORY.as_ref()) && inner.strikes(&self.path, |inner| &mut inner.reads) {
            return Err(injected());
        }
        let file = inner.files.get(&self.number).ok_or(io::ErrorKind::NotFound)?;
        let start = usize::try_from(offset).unwrap();
        out.copy_from_slice(file.now.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn length(&self) -> u64 {
        self.machine.lock().files.get(&self.number).map_or(0, |file| file.now.len() as u64)
    }
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.length())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.read_exact(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Op::SetLen(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Op::Write(offset, data.to_vec()))
    }
}

impl SegmentFile for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.length())
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact(offset, out)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.change(Op::Write(offset, data.to_vec()))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }
}

impl Disk for Machine {
    fn exists(&self, path: &Path) -> io::Result<bool> {
        Ok(self.lock().node(path).is_some())
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        Ok(self.handle(path, false)?.length())
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        self.lock().list(directory)
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        let missing: Vec<_> = path.ancestors().filter(|above| inner.node(above).is_none()).collect();
        for path in missing.into_iter().rev() {
            inner.rename(path, vec![(path.to_owned(), Some(Node::Directory))])?;
        }
        Ok(())
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        if !inner.list(path)?.is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        inner.rename(path, vec![(path.to_owned(), None)])
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>> {
        let mut inner = self.lock();
        inner.vacant(path)?;
        if inner.strikes(path, |inner| &mut inner.full) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let number = inner.add(File::default());
        inner.rename(path, vec![(path.to_owned(), Some(Node::File(number)))])?;
        drop(inner);
        Disk::open(self, path)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>> {
        self.lock().writable(path)?;
        Ok(Box::new(self.handle(path, true)?))
    }

    fn open_read_only(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>> {
        Ok(Box::new(self.handle(path, false)?))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        let number = inner.number(from)?;
        inner.vacant(to)?;
        inner.rename(to, vec![(to.to_owned(), Some(Node::File(number)))])
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        let number = inner.number(from)?;
        inner.rename(to, vec![(from.to_owned(), None), (to.to_owned(), Some(Node::File(number)))])
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        inner.number(path)?;
        inner.rename(path, vec![(path.to_owned(), None)])
    }

    fn sync(&self, directory: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        inner.list(directory)?;
        if inner.goes_dark(directory).is_some() || inner.strikes(directory, |inner| &mut inner.named) {
            return Err(injected());
        }
        let directory = directory.strip_prefix(".").unwrap_or(directory);
        let here = |op: &NameOp| op.iter().any(|(path, _)| path.parent() == Some(directory));
        let (synced, rest): (Vec<NameOp>, _) = std::mem::take(&mut inner.unsynced).into_iter().partition(here);
        inner.unsynced = rest;
        for op in synced {
            apply(&op, &mut inner.durable_names);
        }
        Ok(())
    }

    fn free_space(&self, _: &Path) -> io::Result<u64> {
        Ok(self.lock().free.unwrap_or(u64::MAX))
    }

    fn store(&self, directory: &Path) -> Result<Arc<dyn Storage>, OpenError> {
        let failed = |source| waxwing::engine::redb::OpenError::Io { path: directory.into(), source };
        let missing: Vec<_> = directory.ancestors().take_while(|above| self.lock().node(above).is_none()).collect();
        self.make_directory(directory).map_err(failed)?;
        for made in missing {
            Disk::sync(self, made.parent().unwrap_or(made)).map_err(failed)?;
        }
        if !self.lock().locked.insert(directory.to_owned()) {
            return Err(waxwing::engine::redb::OpenError::Locked { path: directory.into() }.into());
        }
        Ok(Arc::new(Place::new(self, directory, true)))
    }
}
