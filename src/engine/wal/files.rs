//! Where segments lie. The log sees files only through [`Files`], so that tests can lose, tear and refuse what a disk may.

use std::{
    fmt, fs, io,
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// What the names of segment files begin with.
const PREFIX: &str = "wal-";
/// Zeros are written in pieces of this many bytes.
const ZEROS: usize = 1 << 20;

/// A place for segment files.
pub trait Files: fmt::Debug + Send + Sync {
    /// The names of the segment files, in any order.
    ///
    /// # Errors
    /// Those of the file system.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Opens a segment file for reading and writing.
    ///
    /// # Errors
    /// Those of the file system.
    fn open(&self, name: &str) -> io::Result<Box<dyn SegmentFile>>;

    /// Makes a file of `len` zero bytes that is durable, and whose blocks are written: a later sync of its data has no
    /// metadata to write.
    ///
    /// # Errors
    /// Those of the file system; then nothing of that name should be left.
    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn SegmentFile>>;

    /// Removes a file, durably.
    ///
    /// # Errors
    /// Those of the file system.
    fn remove(&self, name: &str) -> io::Result<()>;
}

/// One segment file. Reads and writes are whole or fail.
pub trait SegmentFile: fmt::Debug + Send {
    /// Fills `into` from `offset`.
    ///
    /// # Errors
    /// Those of the file system, and an end of the file before `into` is full.
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `from` at `offset`.
    ///
    /// # Errors
    /// Those of the file system: any part may have been written.
    fn write_at(&self, from: &[u8], offset: u64) -> io::Result<()>;

    /// Makes what was written durable.
    ///
    /// # Errors
    /// Those of the file system: what was written since the last sync may or may not be durable, for ever.
    fn sync_data(&self) -> io::Result<()>;

    /// The file's length in bytes.
    ///
    /// # Errors
    /// Those of the file system.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file has no bytes.
    ///
    /// # Errors
    /// As [`SegmentFile::len`].
    fn is_empty(&self) -> io::Result<bool> {
        self.len().map(|len| len == 0)
    }
}

/// A directory of the file system. Only this process may use it: whoever owns the log holds a lock of its own.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// The directory at `path`, made (for its owner alone) if there is none.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(path: &Path) -> io::Result<Self> {
        if !path.is_dir() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
            if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                fs::File::open(parent)?.sync_all()?;
            }
        }
        Ok(Self { path: path.to_owned() })
    }

    fn sync(&self) -> io::Result<()> {
        fs::File::open(&self.path)?.sync_all()
    }
}

impl Files for Directory {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name().into_string();
            names.extend(name.ok().filter(|name| number(name).is_some()));
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn SegmentFile>> {
        let file = fs::OpenOptions::new().read(true).write(true).open(self.path.join(name))?;
        Ok(Box::new(OnDisk(file)))
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn SegmentFile>> {
        let path = self.path.join(name);
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        match fill(&file, len).and_then(|()| self.sync()) {
            Ok(()) => Ok(Box::new(OnDisk(file))),
            Err(error) => {
                // A file that is left all the same has no header, and is removed when the log is opened.
                let _ = fs::remove_file(&path);
                Err(error)
            }
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))?;
        self.sync()
    }
}

fn fill(file: &fs::File, len: u64) -> io::Result<()> {
    let zeros = vec![0; ZEROS];
    let mut at = 0;
    while at < len {
        let piece = usize::try_from(len - at).map_or(ZEROS, |rest| rest.min(ZEROS));
        file.write_all_at(zeros.get(..piece).unwrap_or_default(), at)?;
        at += piece as u64;
    }
    file.sync_all()
}

#[derive(Debug)]
struct OnDisk(fs::File);

impl SegmentFile for OnDisk {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(into, offset)
    }

    fn write_at(&self, from: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(from, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}

/// The name of the segment file with this number.
pub(super) fn name(number: u64) -> String {
    format!("{PREFIX}{number:04}")
}

/// The number in the name of a segment file.
pub(super) fn number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(PREFIX)?;
    digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse().ok())?
}
