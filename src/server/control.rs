//! The control socket: how `waxwing backup` speaks to a server at work. A Unix socket in the data directory, for its owner
//! alone; no network reaches it.
//!
//! Each side sends frames: a length, u32 little-endian, at most [`FRAME_MAX`], and postcard. The client sends one
//! [`Request`]; the server answers with [`Reply`]s until one that is final, and closes. Whoever hangs up stops what runs.

use std::{
    fs, io,
    ops::ControlFlow,
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc},
};

use super::{Shared, clock};
use crate::engine::embedded::ops::{Manifest, Progress};

/// The socket's name within the data directory.
pub const SOCKET: &str = "control.sock";
/// The version of the requests and replies.
pub const VERSION: u16 = 1;
/// Bytes of a frame at most.
pub const FRAME_MAX: u32 = 64 << 10;
/// Bytes of a path in the address of a socket, at most.
const PATH_MAX: usize = 107;
/// Connections at a time.
const CONNECTIONS_MAX: usize = 4;
/// How long a request may take to arrive.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a reply may take to be taken.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);
/// How often progress is told at most.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// What the server is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Write a backup. First of all the version, so that a newer client can be told.
    Backup {
        /// [`VERSION`].
        version: u16,
        /// The directory: absolute, new or empty.
        directory: PathBuf,
    },
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// How far it is; more follows.
    Progress(Progress),
    /// The backup is there. Final.
    Done {
        /// What it holds.
        manifest: Manifest,
        /// Rooms that were left out because they are damaged, each with what was found.
        left_out: Vec<(String, String)>,
    },
    /// It was not done. Final.
    Failed {
        /// Which sort of failure.
        failure: Failure,
        /// In words.
        why: String,
    },
}

/// Sorts of failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// The request is none that this server knows.
    Request,
    /// Another backup is being written.
    Busy,
    /// The server is stopping.
    Stopping,
    /// The backup failed.
    Backup,
}

/// Why the control socket did not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The connection failed or ended.
    #[error("the control socket: {0}")]
    Io(#[from] io::Error),
    /// A frame that is too long or none of these.
    #[error("the other side of the control socket does not speak this version's language")]
    Malformed,
}

/// Sends one frame.
///
/// # Errors
/// [`ControlError`].
pub async fn send(to: &mut (impl AsyncWrite + Unpin), frame: &impl Serialize) -> Result<(), ControlError> {
    let body = postcard::to_allocvec(frame).map_err(|_| ControlError::Malformed)?;
    let len = u32::try_from(body.len()).ok().filter(|len| *len <= FRAME_MAX).ok_or(ControlError::Malformed)?;
    to.write_all(&[&len.to_le_bytes(), body.as_slice()].concat()).await?;
    Ok(to.flush().await?)
}

/// Sends a reply to a client, who may have stopped to read.
async fn reply(to: &mut (impl AsyncWrite + Unpin), reply: &Reply) -> Result<(), ControlError> {
    tokio::time::timeout(REPLY_TIMEOUT, send(to, reply)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Receives one frame.
///
/// # Errors
/// [`ControlError`]; also at the end of the connection.
pub async fn receive<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin)) -> Result<T, ControlError> {
    let mut len = [0; 4];
    from.read_exact(&mut len).await?;
    let len = u32::from_le_bytes(len);
    if len > FRAME_MAX {
        return Err(ControlError::Malformed);
    }
    let mut body = vec![0; usize::try_from(len).map_err(|_| ControlError::Malformed)?];
    from.read_exact(&mut body).await?;
    postcard::from_bytes(&body).map_err(|_| ControlError::Malformed)
}

/// The socket in a data directory, by a path that fits a socket's address: a longer one leads through the open directory,
/// where the system has names for what a process has open.
struct Address {
    path: PathBuf,
    _directory: Option<fs::File>,
}

impl Address {
    fn of(data: &Path) -> io::Result<Self> {
        let path = data.join(SOCKET);
        if path.as_os_str().len() <= PATH_MAX || cfg!(not(target_os = "linux")) {
            return Ok(Self { path, _directory: None });
        }
        let directory = fs::File::open(data)?;
        let path = format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()).into();
        Ok(Self { path, _directory: Some(directory) })
    }
}

/// Connects to the server that serves the store in `data`.
///
/// # Errors
/// Those of the system: `NotFound` and `ConnectionRefused` when none does.
pub async fn connect(data: &Path) -> io::Result<UnixStream> {
    let address = Address::of(data)?;
    UnixStream::connect(&address.path).await
}

/// The socket in `data`. Whoever has the store open owns it: one that is left over is replaced.
pub(super) fn bind(data: &Path) -> io::Result<Listener> {
    let path = data.join(SOCKET);
    match fs::symlink_metadata(&path) {
        Ok(meta) if meta.file_type().is_socket() => fs::remove_file(&path)?,
        Ok(_) => return Err(io::ErrorKind::AlreadyExists.into()),
        Err(_) => {}
    }
    let address = Address::of(data)?;
    let listener = UnixListener::bind(&address.path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    // Who connected before the mode was set is asked who he is.
    let owner = fs::metadata(&path)?.uid();
    Ok(Listener { listener, path, owner })
}

/// Its file goes when it is dropped.
pub(super) struct Listener {
    listener: UnixListener,
    path: PathBuf,
    owner: u32,
}

impl Drop for Listener {
    fn drop(&mut self) {
        // A socket that is left over is replaced by the next server.
        let _ = fs::remove_file(&self.path);
    }
}

/// Serves the socket until the server stops.
pub(super) async fn serve(listener: Listener, shared: Arc<Shared>) {
    let (slots, backups) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), Arc::new(Semaphore::new(1)));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.listener.accept() => accepted,
            () = shared.stopping.cancelled() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the control socket accepts nobody now");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let allowed = |uid: u32| uid == listener.owner || uid == 0;
        if !stream.peer_cred().is_ok_and(|peer| allowed(peer.uid())) {
            tracing::warn!("somebody else's process was turned away from the control socket");
            continue;
        }
        let (serving, backups) = (Arc::clone(&shared), Arc::clone(&backups));
        shared.spawn(async move {
            if let Err(error) = answer(stream, &serving, &backups).await {
                tracing::debug!(%error, "a control connection ended");
            }
            drop(slot);
        });
    }
}

async fn answer(mut stream: UnixStream, shared: &Arc<Shared>, backups: &Semaphore) -> Result<(), ControlError> {
    let (mut from, mut to) = stream.split();
    let request =
        tokio::time::timeout(REQUEST_TIMEOUT, receive(&mut from)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
    let failed = |failure, why: &str| Reply::Failed { failure, why: why.to_owned() };
    let answer = match request {
        Ok(Request::Backup { version: VERSION, directory }) if directory.is_absolute() => match backups.try_acquire() {
            Ok(_only) => backup(directory, shared, &mut from, &mut to).await?,
            Err(_) => failed(Failure::Busy, "another backup is being written"),
        },
        Ok(Request::Backup { version: VERSION, .. }) => failed(Failure::Request, "the directory's path is not absolute"),
        Ok(Request::Backup { .. }) | Err(ControlError::Malformed) => {
            failed(Failure::Request, "the server is of another version than this command")
        }
        Err(error) => return Err(error),
    };
    reply(&mut to, &answer).await
}

/// Stops the thread that writes, when whoever waits for it goes away.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

async fn backup(
    directory: PathBuf,
    shared: &Arc<Shared>,
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> Result<Reply, ControlError> {
    let stopping = || Reply::Failed { failure: Failure::Stopping, why: "the server is stopping".to_owned() };
    let Some(store) = shared.store.upgrade() else { return Ok(stopping()) };
    tracing::info!(directory = %directory.display(), "a backup begins");
    let stop = Stop(Arc::default());
    let stopped = Arc::clone(&stop.0);
    let (told, mut progress) = mpsc::channel(8);
    let shown = directory.clone();
    let mut writing = shared.tasks.spawn_blocking(move || {
        let result = store.backup(&directory, clock::unix_millis(), &mut |progress| {
            // What the channel does not take now is told with the next.
            let _ = told.try_send(progress);
            if stopped.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        drop(store);
        result
    });
    let mut tick = tokio::time::interval(TELL_EVERY);
    let mut latest = None;
    let mut nothing = [0; 1];
    let result = loop {
        tokio::select! {
            result = &mut writing => break result,
            Some(now) = progress.recv() => latest = Some(now),
            _ = tick.tick() => {
                if let Some(now) = latest.take() {
                    let now = Reply::Progress(now);
                    tokio::select! {
                        sent = reply(to, &now) => sent?,
                        () = shared.stopping.cancelled() => return Ok(stopping()),
                    }
                }
            }
            // The client says nothing more: this is its end.
            _ = from.read(&mut nothing) => return Err(io::Error::from(io::ErrorKind::ConnectionAborted).into()),
            () = shared.stopping.cancelled() => return Ok(stopping()),
        }
    };
    let result = match result {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the thread that writes it panicked".to_owned()),
    };
    Ok(match result {
        Ok((manifest, damaged)) => {
            tracing::info!(directory = %shown.display(), records = manifest.records, bytes = manifest.bytes, "a backup is done");
            for room in &damaged {
                tracing::error!(room = %room.room, why = room.why, "a damaged room is not in the backup");
            }
            let left_out = damaged.into_iter().take(128).map(|room| (room.room.to_string(), room.why)).collect();
            // The list in the file is whole.
            let manifest = Manifest { left_out: manifest.left_out.into_iter().take(128).collect(), ..manifest };
            Reply::Done { manifest, left_out }
        }
        Err(why) => {
            tracing::error!(directory = %shown.display(), why, "a backup failed");
            Reply::Failed { failure: Failure::Backup, why }
        }
    })
}
