//! The native shell of the client: a task that owns the pure client, its storage and its links.

mod links;
mod network;
pub mod store;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rand_core::UnwrapErr;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use self::{
    links::{Links, News},
    network::Network,
    store::{FileStore, Profile, StoreError},
};
use super::{
    Client, ImportError, LoadError, Output, Transport, link,
    view::{Command, Event, Identity},
};
use crate::{
    core::id::RoomId,
    transport::{Kind, Trust},
};

/// Commands and events that wait; a shell that does not read its events holds the client up.
const QUEUE: usize = 1024;

/// Which transport to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// WebTransport where it gets through, else WebSocket.
    Auto,
    /// This one.
    Only(Kind),
}

impl From<Choice> for link::Choice {
    fn from(choice: Choice) -> Self {
        match choice {
            Choice::Auto | Choice::Only(Kind::Memory) => Self::Auto,
            Choice::Only(Kind::WebSocket) => Self::Only(Transport::WebSocket),
            Choice::Only(Kind::WebTransport) => Self::Only(Transport::WebTransport),
            Choice::Only(Kind::Quic) => Self::Only(Transport::Quic),
        }
    }
}

/// What a native client needs.
#[derive(Clone)]
pub struct Options {
    /// Scheme and authority of the edge.
    pub origin: String,
    /// How to reach it.
    pub choice: Choice,
    /// Whom to trust.
    pub trust: Trust,
    /// What the deployment's token check wants.
    pub token: Bytes,
}

impl core::fmt::Debug for Options {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Options").field("origin", &self.origin).field("choice", &self.choice).finish_non_exhaustive()
    }
}

/// A running client.
#[derive(Debug)]
pub struct Handle {
    /// Commands.
    pub commands: mpsc::Sender<Command>,
    /// Events.
    pub events: mpsc::Receiver<Event>,
    task: JoinSet<Result<(), StoreError>>,
}

impl Handle {
    /// Loads the profile and starts. Stops when the handle is dropped or [`Handle::stop`] is called.
    ///
    /// # Errors
    /// [`StoreError`]; an entry that cannot be read is reported as an event and skipped.
    pub fn start(profile: impl Into<Profile>, options: Options) -> Result<Self, StoreError> {
        let store = FileStore::open(&profile.into())?;
        let mut client = Client::new(&options.origin, options.token.clone(), Box::new(UnwrapErr(getrandom::SysRng)));
        client.choose(options.choice.into());
        let mut damaged = Vec::new();
        store.entries(|key, value| {
            if let Err(error) = client.load(key, value) {
                damaged.push(error.to_string());
            }
        })?;
        let (commands, commands_in) = mpsc::channel(QUEUE);
        let (events_out, events) = mpsc::channel(QUEUE);
        let mut task = JoinSet::new();
        let runner = Runner::new(client, store, options, events_out, damaged);
        task.spawn(runner.run(commands_in));
        Ok(Self { commands, events, task })
    }

    /// Says goodbye to the server, keeps everything, and ends.
    ///
    /// # Errors
    /// What ended the client, if something did.
    pub async fn stop(mut self) -> Result<(), StoreError> {
        drop(self.commands);
        // Events that nobody reads any more must not hold the task up.
        self.events.close();
        match self.task.join_next().await {
            Some(Ok(result)) => result,
            _ => Ok(()),
        }
    }
}

/// Why a backup was not made or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The profile cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file cannot be made or read.
    #[error(transparent)]
    Backup(#[from] ImportError),
    /// Nobody can be called that.
    #[error("a name needs at least one letter")]
    NoName,
    /// The profile has an entry that this version cannot read.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// The person and the rooms of the profile, as an encrypted file's bytes.
///
/// # Errors
/// [`BackupError`].
pub fn export(profile: &Profile, passphrase: &str) -> Result<Vec<u8>, BackupError> {
    let (_, mut client) = open_offline(profile, "")?;
    Ok(client.export_identity(passphrase).map_err(ImportError::from)?)
}

/// Makes the fresh profile a device of the person in an encrypted file.
///
/// # Errors
/// [`BackupError`]; then nothing was kept.
pub fn import(profile: &Profile, origin: &str, file: &[u8], passphrase: &str) -> Result<(), BackupError> {
    let (store, mut client) = open_offline(profile, origin)?;
    client.import_identity(file, passphrase, now_ms())?;
    let mut changes = Vec::new();
    while let Some(output) = client.poll() {
        if let Output::Persist { key, value } = output {
            changes.push((key, value));
        }
    }
    Ok(store.write(&changes)?)
}

/// What the profile can show others of a room, if it has something of it ([`Client::evidence`]).
///
/// # Errors
/// [`BackupError`].
pub fn evidence(profile: &Profile, room: RoomId) -> Result<Option<Vec<u8>>, BackupError> {
    let (_, client) = open_offline(profile, "")?;
    Ok(client.evidence(room, now_ms()))
}

/// Who the profile is at the edge `origin`; a fresh one becomes a person of this name.
///
/// # Errors
/// [`BackupError`].
pub fn identity(profile: &Profile, origin: &str, name: &str) -> Result<Identity, BackupError> {
    let (store, mut client) = open_offline(profile, origin)?;
    client.command(Command::Start { name: name.to_owned() }, now_ms());
    let mut changes = Vec::new();
    let mut found = None;
    while let Some(output) = client.poll() {
        match output {
            Output::Persist { key, value } => changes.push((key, value)),
            Output::Event(Event::Identity { identity: Some(identity) }) => found = Some(identity),
            _ => {}
        }
    }
    store.write(&changes)?;
    found.ok_or(BackupError::NoName)
}

/// A profile's client that stays offline.
fn open_offline(profile: &Profile, origin: &str) -> Result<(FileStore, Client), BackupError> {
    let store = FileStore::open(profile)?;
    let mut client = Client::new(origin, Bytes::new(), Box::new(UnwrapErr(getrandom::SysRng)));
    let mut damaged = Ok(());
    store.entries(|key, value| {
        if let Err(error) = client.load(key, value) {
            damaged = Err(error);
        }
    })?;
    damaged?;
    client.start(now_ms());
    Ok((store, client))
}

/// The task.
struct Runner {
    client: Client,
    store: FileStore,
    events: mpsc::Sender<Event>,
    damaged: Vec<String>,
    links: Links,
    network: Network,
    timer_ms: Option<u64>,
}

enum Happened {
    Command(Option<Command>),
    Link(News),
    /// This machine is in another network.
    Network,
    Timer,
}

/// The system's randomness.
#[must_use]
pub const fn random() -> impl rand_core::CryptoRng {
    UnwrapErr(getrandom::SysRng)
}

/// The wall clock, as the client sees it: Unix milliseconds.
#[expect(clippy::disallowed_methods, reason = "the native shell reads the clock here and nowhere else")]
#[must_use]
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Runner {
    fn new(client: Client, store: FileStore, options: Options, events: mpsc::Sender<Event>, damaged: Vec<String>) -> Self {
        let network = Network::new(&options.origin);
        Self { client, store, events, damaged, links: Links::new(options), network, timer_ms: None }
    }

    async fn run(mut self, mut commands: mpsc::Receiver<Command>) -> Result<(), StoreError> {
        for text in core::mem::take(&mut self.damaged) {
            let notice = Event::Notice { level: super::view::Level::Warn, text, room: None };
            // A shell that is gone is noticed below.
            let _ = self.events.send(notice).await;
        }
        self.client.start(now_ms());
        loop {
            self.perform().await?;
            match self.next(&mut commands).await {
                Happened::Command(Some(command)) => self.client.command(command, now_ms()),
                Happened::Command(None) => break,
                Happened::Link(News::Opened { link, exporter }) => self.client.opened(link, exporter, now_ms()),
                Happened::Link(News::OpenedResuming { link }) => self.client.opened_resuming(link, now_ms()),
                Happened::Link(News::Frame { link, frame }) => self.client.received_frame(link, &frame, now_ms()),
                Happened::Link(News::Lost { link, reason }) => self.client.lost(link, &reason, now_ms()),
                Happened::Link(News::Room) => {}
                Happened::Network => self.client.network_changed(now_ms()),
                Happened::Timer => self.timer_came(),
            }
        }
        self.perform().await?;
        self.links.goodbye().await;
        Ok(())
    }

    /// A link on which a part of a frame came meanwhile is not silent.
    fn timer_came(&mut self) {
        self.timer_ms = None;
        for link in self.links.heard() {
            self.client.heard(link, now_ms());
        }
        self.client.tick(now_ms());
    }

    /// Waits for whatever is next. Each branch may be dropped without losing anything.
    async fn next(&mut self, commands: &mut mpsc::Receiver<Command>) -> Happened {
        let timer = self.timer_ms.map(deadline);
        tokio::select! {
            command = commands.recv() => Happened::Command(command),
            news = self.links.next() => Happened::Link(news),
            () = self.network.changed() => Happened::Network,
            () = async {
                match timer {
                    Some(at) => sleep_until(at).await,
                    None => core::future::pending().await,
                }
            } => Happened::Timer,
        }
    }

    /// Carries out what the client asks for. What one turn wants kept is written all or none, before anything leaves.
    async fn perform(&mut self) -> Result<(), StoreError> {
        let mut changes = Vec::new();
        let mut rest = Vec::new();
        while let Some(output) = self.client.poll() {
            match output {
                Output::Persist { key, value } => changes.push((key, value)),
                other => rest.push(other),
            }
        }
        if !changes.is_empty() {
            tokio::task::block_in_place(|| self.store.write(&changes))?;
        }
        for output in rest {
            match output {
                Output::Persist { .. } => {}
                Output::Open { link, transport, early } => self.links.open(link, transport, early),
                Output::Send { link, frame } => self.links.send(link, frame),
                Output::Close { link } => self.links.close(link),
                Output::Event(event) => {
                    // A shell that is gone has closed its commands as well.
                    let _ = self.events.send(event).await;
                }
                Output::Timer { at_ms } => self.timer_ms = Some(at_ms),
            }
        }
        self.links.pass_on();
        Ok(())
    }
}

/// A timer of the wall clock, looked at every few seconds: this machine may sleep, and its clock may be set.
fn deadline(at_ms: u64) -> Instant {
    const LOOK_MAX: Duration = Duration::from_secs(5);
    Instant::now() + Duration::from_millis(at_ms.saturating_sub(now_ms())).min(LOOK_MAX)
}
