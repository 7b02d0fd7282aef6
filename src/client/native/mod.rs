//! The native shell of the client: a task that owns the pure client, its storage and its connection.

pub mod store;

use std::{
    collections::VecDeque,
    io,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use rand_core::UnwrapErr;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use self::store::{FileStore, StoreError};
use super::{
    Client, Connected, ImportError, LoadError, Output,
    view::{Command, Event, Identity},
};
use crate::transport::{self, Connection, FrameReader, FrameWriter, Kind, Target, Trust};

/// Commands and events that wait; a shell that does not read its events holds the client up.
const QUEUE: usize = 1024;
/// Frames on their way to the writer.
const FRAMES: usize = 256;
/// How long WebTransport is tried alone before WebSocket is tried beside it.
const HEAD_START: Duration = Duration::from_millis(400);
/// How long an attempt to connect may take.
const CONNECT_MAX: Duration = Duration::from_secs(8);

/// Which transport to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// WebTransport, or WebSocket where that does not answer soon.
    Auto,
    /// This one.
    Only(Kind),
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
    /// Loads the profile at `path` and starts. Stops when the handle is dropped or [`Handle::stop`] is called.
    ///
    /// # Errors
    /// [`StoreError`]; an entry that cannot be read is reported as an event and skipped.
    pub fn start(path: &Path, options: Options) -> Result<Self, StoreError> {
        let store = FileStore::open(path)?;
        let mut client = Client::new(&options.origin, options.token.clone(), Box::new(UnwrapErr(getrandom::SysRng)));
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

/// The person and the rooms of the profile at `path`, as an encrypted file's bytes.
///
/// # Errors
/// [`BackupError`].
pub fn export(path: &Path, passphrase: &str) -> Result<Vec<u8>, BackupError> {
    let (_, mut client) = open_offline(path, "")?;
    Ok(client.export_identity(passphrase).map_err(ImportError::from)?)
}

/// Makes the fresh profile at `path` a device of the person in an encrypted file.
///
/// # Errors
/// [`BackupError`]; then nothing was kept.
pub fn import(path: &Path, origin: &str, file: &[u8], passphrase: &str) -> Result<(), BackupError> {
    let (store, mut client) = open_offline(path, origin)?;
    client.import_identity(file, passphrase, now_ms())?;
    let mut changes = Vec::new();
    while let Some(output) = client.poll() {
        if let Output::Persist { key, value } = output {
            changes.push((key, value));
        }
    }
    Ok(store.write(&changes)?)
}

/// Who the profile at `path` is; a fresh one becomes a person of this name.
///
/// # Errors
/// [`BackupError`].
pub fn identity(path: &Path, name: &str) -> Result<Identity, BackupError> {
    let (store, mut client) = open_offline(path, "")?;
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
fn open_offline(path: &Path, origin: &str) -> Result<(FileStore, Client), BackupError> {
    let store = FileStore::open(path)?;
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

type Connecting = JoinSet<Result<Connection, String>>;

/// The task.
struct Runner {
    client: Client,
    store: FileStore,
    options: Options,
    events: mpsc::Sender<Event>,
    damaged: Vec<String>,
    connecting: Connecting,
    /// A better transport than the one in use, being tried.
    moving_up: Connecting,
    link: Option<Link>,
    timer_ms: Option<u64>,
}

/// An open connection: its reader, and the task that writes.
struct Link {
    reader: FrameReader,
    frames: mpsc::Sender<Bytes>,
    backlog: VecDeque<Bytes>,
    writing: JoinSet<Result<(), String>>,
}

enum Happened {
    Command(Option<Command>),
    Connected(Result<Connection, String>),
    MovedUp(Option<Connection>),
    Frame(Result<Option<Bytes>, transport::Error>),
    Writer(String),
    Backlog,
    Timer,
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
        let (connecting, moving_up) = (JoinSet::new(), JoinSet::new());
        Self { client, store, options, events, damaged, connecting, moving_up, link: None, timer_ms: None }
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
                Happened::Connected(Ok(connection)) => self.open(connection),
                // Where WebSocket is all that gets through, it stays.
                Happened::MovedUp(better) => {
                    if let Some(connection) = better.filter(|_| self.link.is_some()) {
                        self.open(connection);
                    }
                }
                Happened::Connected(Err(error)) => self.client.disconnected(&error, now_ms()),
                Happened::Frame(Ok(Some(frame))) => self.client.received_frame(&frame, now_ms()),
                Happened::Frame(Ok(None)) => self.lost("the server closed the connection"),
                Happened::Frame(Err(error)) => self.lost(&error.to_string()),
                Happened::Writer(error) => self.lost(&error),
                Happened::Backlog => {}
                Happened::Timer => {
                    self.timer_ms = None;
                    self.client.tick(now_ms());
                }
            }
        }
        self.perform().await?;
        self.goodbye().await;
        Ok(())
    }

    /// Waits for whatever is next. Each branch may be dropped without losing anything.
    async fn next(&mut self, commands: &mut mpsc::Receiver<Command>) -> Happened {
        let timer = self.timer_ms.map(deadline);
        let Self { connecting, moving_up, link, .. } = self;
        tokio::select! {
            command = commands.recv() => Happened::Command(command),
            Some(result) = connecting.join_next(), if !connecting.is_empty() => {
                Happened::Connected(result.unwrap_or_else(|_| Err("the attempt to connect was given up".to_owned())))
            }
            Some(result) = moving_up.join_next(), if !moving_up.is_empty() => {
                Happened::MovedUp(result.ok().and_then(Result::ok))
            }
            happened = async {
                match link {
                    Some(link) => link.next().await,
                    None => core::future::pending().await,
                }
            } => happened,
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
        // Losing a connection is a turn of its own.
        loop {
            let outputs: Vec<_> = core::iter::from_fn(|| self.client.poll()).collect();
            if outputs.is_empty() {
                break;
            }
            let mut changes = Vec::new();
            let mut rest = Vec::new();
            for output in outputs {
                match output {
                    Output::Persist { key, value } => changes.push((key, value)),
                    other => rest.push(other),
                }
            }
            if !changes.is_empty() {
                tokio::task::block_in_place(|| self.store.write(&changes))?;
            }
            for output in rest {
                self.carry_out(output).await;
            }
        }
        if let Some(link) = &mut self.link {
            link.pass_on();
        }
        Ok(())
    }

    async fn carry_out(&mut self, output: Output) {
        match output {
            Output::Persist { .. } => {}
            Output::Send(frame) => {
                if let Some(link) = &mut self.link {
                    link.backlog.push_back(frame);
                }
            }
            Output::Event(event) => {
                // A shell that is gone has closed its commands as well.
                let _ = self.events.send(event).await;
            }
            Output::Connect => {
                let options = self.options.clone();
                self.connecting.abort_all();
                self.connecting = JoinSet::new();
                self.connecting.spawn(dial(options));
            }
            Output::Disconnect => self.lost("the connection was given up"),
            Output::Timer { at_ms } => self.timer_ms = Some(at_ms),
        }
    }

    fn open(&mut self, connection: Connection) {
        let Connection { info, mut reader, writer } = connection;
        reader.set_frame_max(16 << 20);
        let (frames, queue) = mpsc::channel(FRAMES);
        let mut writing = JoinSet::new();
        writing.spawn(write(writer, queue));
        self.link = Some(Link { reader, frames, backlog: VecDeque::new(), writing });
        self.moving_up = JoinSet::new();
        if self.options.choice == Choice::Auto && info.kind == Kind::WebSocket {
            self.moving_up.spawn(dial(Options { choice: Choice::Only(Kind::WebTransport), ..self.options.clone() }));
        }
        self.client.connected(Connected { transport: info.kind.name(), exporter: info.exporter }, now_ms());
    }

    fn lost(&mut self, reason: &str) {
        if self.link.take().is_some() {
            self.client.disconnected(reason, now_ms());
        }
    }

    async fn goodbye(mut self) {
        let Some(mut link) = self.link.take() else { return };
        link.backlog.push_back(crate::core::frame::ClientFrame::Close.encode());
        let Link { frames, backlog, mut writing, .. } = link;
        let rest = async {
            for frame in backlog {
                if frames.send(frame).await.is_err() {
                    break;
                }
            }
            drop(frames);
            writing.join_next().await
        };
        // A server that does not read any more is left without a goodbye.
        let _ = tokio::time::timeout(Duration::from_secs(2), rest).await;
    }
}

impl Link {
    /// Hands as many frames to the writer as it takes now.
    fn pass_on(&mut self) {
        while let Some(frame) = self.backlog.pop_front() {
            if let Err(mpsc::error::TrySendError::Full(frame)) = self.frames.try_send(frame) {
                self.backlog.push_front(frame);
                return;
            }
        }
    }

    async fn next(&mut self) -> Happened {
        let Self { reader, frames, backlog, writing } = self;
        tokio::select! {
            frame = reader.recv() => Happened::Frame(frame),
            Some(result) = writing.join_next() => Happened::Writer(match result {
                Ok(Err(error)) => error,
                _ => "the connection's writer ended".to_owned(),
            }),
            _ = frames.reserve(), if !backlog.is_empty() => Happened::Backlog,
        }
    }
}

/// Sends what comes, several frames at a time when several wait; closes the connection at the end.
async fn write(mut writer: FrameWriter, mut queue: mpsc::Receiver<Bytes>) -> Result<(), String> {
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, FRAMES).await > 0 {
        writer.send(&batch).await.map_err(|error| error.to_string())?;
        batch.clear();
    }
    writer.close(crate::core::close::CloseCode::Normal).await;
    Ok(())
}

fn deadline(at_ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(at_ms.saturating_sub(now_ms()))
}

/// Finds the edge and connects, within the time allowed.
async fn dial(options: Options) -> Result<Connection, String> {
    let dialling = async {
        let target =
            transport::discover::discover(&options.origin, options.trust.clone()).await.map_err(|error| error.to_string())?;
        match options.choice {
            Choice::Only(kind) => transport::connect(&target, kind).await.map_err(|error| error.to_string()),
            Choice::Auto => race(&target).await,
        }
    };
    let late = || io::Error::from(io::ErrorKind::TimedOut).to_string();
    tokio::time::timeout(CONNECT_MAX, dialling).await.unwrap_or_else(|_| Err(late()))
}

/// WebTransport with a head start, then WebSocket beside it; the first that is ready wins.
async fn race(target: &Target) -> Result<Connection, String> {
    if target.quic.is_none() {
        return transport::connect(target, Kind::WebSocket).await.map_err(|error| error.to_string());
    }
    let webtransport = transport::connect(target, Kind::WebTransport);
    let websocket = async {
        tokio::time::sleep(HEAD_START).await;
        transport::connect(target, Kind::WebSocket).await
    };
    tokio::pin!(webtransport, websocket);
    tokio::select! {
        result = &mut webtransport => match result {
            Ok(connection) => Ok(connection),
            Err(_) => websocket.await.map_err(|error| error.to_string()),
        },
        result = &mut websocket => match result {
            Ok(connection) => Ok(connection),
            Err(_) => webtransport.await.map_err(|error| error.to_string()),
        },
    }
}
