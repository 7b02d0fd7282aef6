//! The native shell's links: numbered connections that are opened, written to, read from and closed as the client says.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::select_all};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};

use super::{Options, Transport};
use crate::{
    client::LinkId,
    core::{
        close::CloseCode,
        frame::{ClientFrame, Resume},
    },
    transport::{self, Connection, FrameReader, FrameWriter, Kind, Target},
};

/// Frames on their way to a writer.
const FRAMES: usize = 256;
/// How long an attempt to open a link may take.
const OPEN_MAX: Duration = Duration::from_secs(8);
/// How long what was sent over a closed link may take to leave.
const FAREWELL: Duration = Duration::from_secs(2);
/// Closed links that are still writing; of more, the rest is cut off.
const CLOSING_MAX: usize = 4;
/// The largest frame taken from the edge, in bytes: far above its limit for one, and what a broken one can make this hold.
const FRAME_BYTES_MAX: u32 = 16 << 20;

/// What happened to a link.
pub(super) enum News {
    Opened {
        link: LinkId,
        exporter: Option<[u8; 32]>,
    },
    /// It is open, and the early resume was said.
    OpenedResuming {
        link: LinkId,
    },
    Frame {
        link: LinkId,
        frame: Bytes,
    },
    Lost {
        link: LinkId,
        reason: String,
    },
    /// A writer takes frames again.
    Room,
}

type Dialled = (LinkId, Result<Found, String>);

/// The edge, connected to.
struct Found {
    connection: Connection,
    target: Target,
    /// The early resume was said.
    resuming: bool,
}

/// The links.
pub(super) struct Links {
    options: Options,
    /// Where the edge was found, until a link to there fails.
    target: Option<Target>,
    dialling: JoinSet<Dialled>,
    dials: BTreeMap<LinkId, AbortHandle>,
    open: BTreeMap<LinkId, Link>,
    closing: JoinSet<()>,
}

/// An open link: its reader, and the task that writes.
struct Link {
    reader: FrameReader,
    /// Bytes of the reader that the client knows of.
    received: u64,
    frames: mpsc::Sender<Bytes>,
    backlog: VecDeque<Bytes>,
    writing: JoinSet<Result<(), String>>,
}

impl Links {
    pub(super) fn new(options: Options) -> Self {
        Self {
            options,
            target: None,
            dialling: JoinSet::new(),
            dials: BTreeMap::new(),
            open: BTreeMap::new(),
            closing: JoinSet::new(),
        }
    }

    pub(super) fn open(&mut self, link: LinkId, transport: Transport, early: Option<Box<Resume>>) {
        let dialling = dial(self.options.clone(), self.target.clone(), kind(transport), early);
        let handle = self.dialling.spawn(async move { (link, dialling.await) });
        self.dials.insert(link, handle);
    }

    pub(super) fn send(&mut self, link: LinkId, frame: Bytes) {
        if let Some(link) = self.open.get_mut(&link) {
            link.backlog.push_back(frame);
        }
    }

    pub(super) fn close(&mut self, link: LinkId) {
        if let Some(handle) = self.dials.remove(&link) {
            handle.abort();
        }
        let Some(link) = self.open.remove(&link) else { return };
        while self.closing.try_join_next().is_some() {}
        if self.closing.len() >= CLOSING_MAX {
            self.closing.abort_all();
        }
        self.closing.spawn(link.finish());
    }

    /// Hands as many frames to the writers as they take now.
    pub(super) fn pass_on(&mut self) {
        self.open.values_mut().for_each(Link::pass_on);
    }

    /// The links over which bytes have come since their last frame, and since this was asked last.
    pub(super) fn heard(&mut self) -> Vec<LinkId> {
        let heard = |link: &mut Link| core::mem::replace(&mut link.received, link.reader.received_bytes()) != link.received;
        self.open.iter_mut().filter_map(|(id, link)| heard(link).then_some(*id)).collect()
    }

    /// What is next. May be dropped without losing anything.
    pub(super) async fn next(&mut self) -> News {
        let Self { target, dialling, dials, open, .. } = self;
        let reading = async {
            if open.is_empty() {
                return core::future::pending().await;
            }
            let links = open.iter_mut().map(|(id, link)| async move { (*id, link.next().await) }.boxed());
            select_all(links).await.0
        };
        let (link, news) = tokio::select! {
            Some(dialled) = dialling.join_next(), if !dialling.is_empty() => {
                // One that was given up is known to be.
                let Ok((link, dialled)) = dialled else { return News::Room };
                if dials.remove(&link).is_none() {
                    return News::Room;
                }
                return match dialled {
                    Ok(found) => {
                        *target = Some(found.target);
                        let exporter = found.connection.info.exporter;
                        open.insert(link, Link::new(found.connection));
                        if found.resuming { News::OpenedResuming { link } } else { News::Opened { link, exporter } }
                    }
                    Err(reason) => {
                        *target = None;
                        News::Lost { link, reason }
                    }
                };
            }
            (link, news) = reading => (link, news),
        };
        let reason = match news {
            Ok(Some(frame)) => return News::Frame { link, frame },
            Ok(None) => return News::Room,
            Err(reason) => reason,
        };
        open.remove(&link);
        News::Lost { link, reason }
    }

    /// Says goodbye over every link, and waits a moment for that to leave.
    pub(super) async fn goodbye(mut self) {
        for (_, mut link) in core::mem::take(&mut self.open) {
            link.backlog.push_back(ClientFrame::Close.encode());
            self.closing.spawn(link.finish());
        }
        while self.closing.join_next().await.is_some() {}
    }
}

const fn kind(transport: Transport) -> Kind {
    match transport {
        Transport::WebSocket => Kind::WebSocket,
        Transport::WebTransport => Kind::WebTransport,
        Transport::Quic => Kind::Quic,
    }
}

impl Link {
    fn new(connection: Connection) -> Self {
        let Connection { mut reader, writer, .. } = connection;
        reader.set_frame_max(FRAME_BYTES_MAX);
        let (frames, queue) = mpsc::channel(FRAMES);
        let mut writing = JoinSet::new();
        writing.spawn(write(writer, queue));
        Self { received: reader.received_bytes(), reader, frames, backlog: VecDeque::new(), writing }
    }

    fn pass_on(&mut self) {
        while let Some(frame) = self.backlog.pop_front() {
            if let Err(mpsc::error::TrySendError::Full(frame)) = self.frames.try_send(frame) {
                self.backlog.push_front(frame);
                return;
            }
        }
    }

    /// A frame, `None` when the writer takes frames again, or why the link is gone.
    async fn next(&mut self) -> Result<Option<Bytes>, String> {
        let Self { reader, received, frames, backlog, writing } = self;
        tokio::select! {
            // What the server said before it closed, its reason above all, comes before the writer's complaint that it did.
            biased;
            _ = frames.reserve(), if !backlog.is_empty() => Ok(None),
            frame = reader.recv() => match frame {
                Ok(Some(frame)) => {
                    *received = reader.received_bytes();
                    Ok(Some(frame))
                }
                Ok(None) => Err("the server closed the connection".to_owned()),
                Err(error) => Err(error.to_string()),
            },
            Some(result) = writing.join_next() => Err(match result {
                Ok(Err(error)) => error,
                _ => "the connection's writer ended".to_owned(),
            }),
        }
    }

    /// Writes what waits and closes. A server that does not read any more is left without.
    async fn finish(self) {
        let Self { frames, backlog, mut writing, reader, .. } = self;
        let rest = async {
            for frame in backlog {
                if frames.send(frame).await.is_err() {
                    break;
                }
            }
            drop(frames);
            writing.join_next().await
        };
        let _ = tokio::time::timeout(FAREWELL, rest).await;
        drop(reader);
    }
}

/// Sends what comes, several frames at a time when several wait; closes the connection at the end.
async fn write(mut writer: FrameWriter, mut queue: mpsc::Receiver<Bytes>) -> Result<(), String> {
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, FRAMES).await > 0 {
        writer.send_requests(&batch).await.map_err(|error| error.to_string())?;
        batch.clear();
    }
    writer.close(CloseCode::Normal).await;
    Ok(())
}

/// Finds the edge, unless it is known where it is, and connects, within the time allowed.
async fn dial(options: Options, target: Option<Target>, kind: Kind, early: Option<Box<Resume>>) -> Result<Found, String> {
    let dialling = async {
        let target = match target {
            Some(target) => target,
            None => transport::discover::discover(&options.origin, options.trust).await.map_err(|error| error.to_string())?,
        };
        let connected = match early {
            Some(resume) => transport::connect_resuming(&target, &resume).await,
            None => transport::connect(&target, kind).await.map(|connection| (connection, false)),
        };
        let (connection, resuming) = connected.map_err(|error| error.to_string())?;
        Ok(Found { connection, target, resuming })
    };
    let late = || io::Error::from(io::ErrorKind::TimedOut).to_string();
    tokio::time::timeout(OPEN_MAX, dialling).await.unwrap_or_else(|_| Err(late()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        client::native::Choice,
        transport::{Trust, memory},
    };

    #[tokio::test]
    async fn bytes_that_came_with_a_frame_are_not_heard_later() {
        let options = Options { origin: String::new(), choice: Choice::Auto, trust: Trust::WebPki, token: Bytes::new() };
        let mut links = Links::new(options);
        let (client, mut server) = memory::pair(64, 1 << 10);
        links.open.insert(LinkId(1), Link::new(client));
        server.writer.send(&[Bytes::from_static(b"a frame")]).await.unwrap();
        assert!(matches!(links.next().await, News::Frame { link: LinkId(1), .. }));
        assert!(links.heard().is_empty(), "the client knows since the frame came");
        let large = [Bytes::from(vec![7; 1000])];
        tokio::select! {
            biased;
            _ = server.writer.send(&large) => panic!("it is larger than what fits between the two"),
            _ = links.next() => panic!("it has not come yet"),
            () = tokio::task::yield_now() => {}
        }
        assert_eq!((links.heard(), links.heard()), (vec![LinkId(1)], Vec::new()), "a part of a frame is a sign of life, once");
    }
}
