//! What is compared: each behind the same `dyn Engine`, so that one driver measures them all.

mod floor;
mod nats;
pub mod process;
mod queue;
mod redis;
mod sqlite;

use std::{
    env,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use clap::ValueEnum;
use waxwing::engine::{Engine, Observer, embedded, redb};

use self::process::Process;

pub use floor::{Bare, RECORD_OVERHEAD};

/// A contestant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// Append and fdatasync, without a queue.
    Bare,
    /// Append and fdatasync, with group commit.
    Floor,
    /// The floor, whose messages are written to a second file as well.
    FloorKept,
    /// The floor, whose messages are written to redb as well.
    FloorRedb,
    /// Waxwing, every batch a transaction of redb.
    Redb,
    /// Waxwing, a write-ahead log before redb.
    Embedded,
    /// SQLite in WAL mode, `synchronous = FULL`, with group commit.
    Sqlite,
    /// NATS JetStream, `sync_interval: always`.
    Nats,
    /// Redis, `appendfsync always`.
    Redis,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Bare,
        Self::Floor,
        Self::FloorKept,
        Self::FloorRedb,
        Self::Redb,
        Self::Embedded,
        Self::Sqlite,
        Self::Nats,
        Self::Redis,
    ];
    /// Our own.
    pub const OURS: [Self; 2] = [Self::Redb, Self::Embedded];
    /// Those that are engines.
    pub const WITH_QUEUE: [Self; 6] = [Self::Floor, Self::Redb, Self::Embedded, Self::Sqlite, Self::Nats, Self::Redis];

    /// As tables and plots name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bare => "floor, bare loop",
            Self::Floor => "floor",
            Self::FloorKept => "floor, and kept",
            Self::FloorRedb => "floor, kept in redb",
            Self::Redb => "Waxwing, redb direct",
            Self::Embedded => "Waxwing, log and redb",
            Self::Sqlite => "SQLite WAL FULL",
            Self::Nats => "JetStream, sync always",
            Self::Redis => "Redis, fsync always",
        }
    }
}

/// Programs that contestants need.
#[derive(Debug, Clone)]
pub struct Tools {
    pub nats: PathBuf,
    pub redis: PathBuf,
    /// Waxwing's.
    pub settings: embedded::Config,
}

impl Tools {
    /// Whether the contestant can run here.
    pub fn has(&self, kind: Kind) -> bool {
        match kind {
            Kind::Nats => found(&self.nats),
            Kind::Redis => found(&self.redis),
            _ => true,
        }
    }
}

fn found(program: &Path) -> bool {
    let on_path = || env::split_paths(&env::var_os("PATH").unwrap_or_default()).any(|dir| dir.join(program).is_file());
    program.is_file() || (program.components().count() == 1 && on_path())
}

/// Counts batches, as engines tell of them.
#[derive(Debug, Default)]
pub struct Batches {
    count: AtomicU64,
}

impl Batches {
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl Observer for Batches {
    fn committed(&self, _requests: usize, _bytes: usize, _took: Duration) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }
}

/// An open contestant. Dropping it closes it.
pub struct Store {
    pub engine: Arc<dyn Engine>,
    pub batches: Arc<Batches>,
    process: Option<Process>,
    embedded: Option<Arc<embedded::EmbeddedEngine>>,
}

impl Store {
    /// The process that stores, if it is not this one.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// The engine with a log, if it is that one.
    pub fn embedded(&self) -> Option<&embedded::EmbeddedEngine> {
        self.embedded.as_deref()
    }

    /// Does at once what was put off for what was acked; nothing can be stored after it.
    pub fn settle(&self) {
        if let Some(embedded) = &self.embedded {
            embedded.shutdown();
        }
    }

    /// Opens the store in `dir`, or makes it.
    pub fn open(kind: Kind, dir: &Path, tools: &Tools) -> anyhow::Result<Self> {
        let batches = Arc::new(Batches::default());
        let observer = Arc::clone(&batches) as Arc<dyn Observer>;
        let (mut process, mut embedded) = (None, None);
        let engine: Arc<dyn Engine> = match kind {
            Kind::Bare => anyhow::bail!("the bare loop is no engine"),
            Kind::Floor => Arc::new(floor::Floor::open(dir, observer, None)?),
            Kind::FloorKept => Arc::new(floor::Floor::open(dir, observer, Some(floor::Place::File))?),
            Kind::FloorRedb => Arc::new(floor::Floor::open(dir, observer, Some(floor::Place::Redb))?),
            Kind::Redb => Arc::new(redb::RedbEngine::open(&dir.join("rooms.redb"), redb::Config::default(), observer)?),
            Kind::Embedded => {
                let engine = embedded::EmbeddedEngine::open(&dir.join("embedded"), tools.settings.clone(), observer)?;
                let engine = Arc::new(engine);
                embedded = Some(Arc::clone(&engine));
                engine
            }
            Kind::Sqlite => Arc::new(sqlite::Sqlite::open(dir, observer)?),
            Kind::Nats => {
                let (server, address) = nats::start(&tools.nats, dir)?;
                process = Some(server);
                Arc::new(nats::Nats::connect(address)?)
            }
            Kind::Redis => {
                let (server, address) = redis::start(&tools.redis, dir)?;
                process = Some(server);
                Arc::new(redis::Redis::connect(address)?)
            }
        };
        Ok(Self { engine, batches, process, embedded })
    }
}
