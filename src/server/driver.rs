//! One connection: its session, what it reads and what it writes. The same for every transport.
//!
//! One task on the connection's home reads. Writing is mostly done elsewhere, at the end of a shard's turn (see `link`); the
//! task looks after it when the transport does not take everything at once. Reading stops while the outbox, or what was asked
//! and not yet answered, exceeds its limit; so a peer that does not read stops being heard, and nobody waits for it.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::timeout;

use super::{
    Serving, Shared, admission, clock,
    home::{Home, Lodging},
    link::{Heard, Link},
    service::Service,
};
use crate::{
    core::{
        close::CloseCode,
        frame::{ClientFrame, ServerFrame},
        id::{DeviceKey, Digest},
        limits::Limits,
        session::{Action, PackagesAction, Session, Setup, Step},
    },
    router::{
        Conn, DeviceSession, Stopped,
        outbox::{IN_FLIGHT_BYTES_MAX, Outbox, Permit, ShardSet},
        shard::Message,
    },
    transport::{Connection, Error, FrameReader, FrameWriter},
};

/// How long the last frames of a connection may take to leave.
const FAREWELL: Duration = Duration::from_secs(1);
/// Nobody takes what is sent.
const STALLED: End = End { code: CloseCode::Idle, tell: false };

/// Why a connection ends.
#[derive(Debug, Clone, Copy)]
struct End {
    code: CloseCode,
    /// Whether there is somebody to tell.
    tell: bool,
}

impl From<CloseCode> for End {
    fn from(code: CloseCode) -> Self {
        Self { code, tell: true }
    }
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self { code: error.close_code(), tell: !matches!(error, Error::Closed(_) | Error::Lost(_)) }
    }
}

/// Serves one connection until it ends, on the thread that is its home.
///
/// Nearly all connections of a server are waiting at any time, so what one of them holds meanwhile is kept small: all of it is in one
/// place, which what waits only borrows, and what is needed for a moment only is boxed for that moment.
pub fn drive(connection: Connection, permit: admission::Permit, shared: Arc<Shared>, service: Arc<Service>) -> Serving {
    let Connection { info, reader, writer } = connection;
    let home = Home::here().expect("connections are served on a home").lodge();
    shared.metrics.early.inc_by(reader.is_early().into());
    let wire = Wire { reader, permit, used: 0 };
    let setup = Setup {
        limits: shared.config.limits.clone(),
        nonce: service.nonce(),
        exporter: info.exporter,
        agent: concat!("waxwing/", env!("CARGO_PKG_VERSION")).into(),
    };
    let session = Session::new(setup, home.now_ms());
    let driver =
        Driver { wire, session, writer: Some(Box::new(writer)), open: None, asking: None, telling: None, shared, service, home };
    Box::pin(driven(driver))
}

#[expect(clippy::manual_async_fn, reason = "the future of an async function holds its arguments twice")]
fn driven(mut driver: Driver) -> impl Future<Output = ()> {
    async move {
        let end = match Box::pin(driver.open()).await {
            Ok(()) => poll_fn(|cx| driver.poll_serve(cx)).await,
            Err(end) => end,
        };
        Box::pin(driver.finish_in_time(end)).await;
    }
}

struct Driver {
    shared: Arc<Shared>,
    service: Arc<Service>,
    wire: Wire,
    session: Session,
    /// Lent to the link while somebody is logged in.
    writer: Option<Box<FrameWriter>>,
    open: Option<Open>,
    /// What reading waits for.
    asking: Option<Waiting>,
    /// Shards that are told that there is room.
    telling: Option<Waiting>,
    home: Lodging,
}

/// The reading side of a connection.
struct Wire {
    reader: FrameReader,
    permit: admission::Permit,
    /// Shards that know the connection.
    used: ShardSet,
}

/// What a connection has once it is logged in.
struct Open {
    link: Rc<Link>,
    _device: DeviceSession,
}

/// Something that is there at times only.
type Waiting = Pin<Box<dyn Future<Output = Result<(), Stopped>>>>;

/// Drives it, if it is there.
fn poll_waiting(waiting: &mut Option<Waiting>, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
    if let Some(future) = waiting {
        ready!(future.as_mut().poll(cx)).map_err(|_| CloseCode::GoingAway)?;
        *waiting = None;
    }
    Poll::Ready(Ok(()))
}

impl Driver {
    /// Until somebody is logged in.
    async fn open(&mut self) -> Result<(), End> {
        let stopping = self.shared.stopping.clone();
        let (conn, device) = tokio::select! {
            biased;
            () = stopping.cancelled() => Err(CloseCode::GoingAway.into()),
            opened = self.log_in() => opened,
        }?;
        let link = Link::new(conn, self.writer.take().ok_or(CloseCode::Internal)?);
        link.set_deadline(self.session.poll_timeout());
        self.home.links.insert(&link);
        self.shared.metrics.sessions.inc();
        self.open = Some(Open { link, _device: device });
        // It may have been too late to be told.
        if stopping.is_cancelled() { Err(CloseCode::GoingAway.into()) } else { Ok(()) }
    }

    /// Hello, challenge, authentication: one frame at a time, answered before the next is read.
    async fn log_in(&mut self) -> Result<(Arc<Conn>, DeviceSession), End> {
        loop {
            let late = Duration::from_millis(self.session.poll_timeout().saturating_sub(self.home.now_ms()));
            let Ok(frame) = timeout(late, self.wire.receive()).await else {
                self.session.handle_timeout(self.home.now_ms())?;
                continue;
            };
            let frame = frame?;
            if self.wire.reader.received_bytes() > self.shared.config.limits.unauthenticated_bytes_max.into() {
                return Err(CloseCode::Handshake.into());
            }
            match self.step(&frame)? {
                Step::Send(frame) => self.send(frame.encode()).await?,
                Step::Open { device, binding, welcome } => {
                    let opened = self.logged_in(device, binding)?;
                    self.send(welcome.encode()).await?;
                    return Ok(opened);
                }
                Step::Goodbye => return Err(CloseCode::Normal.into()),
                // Behind a resume that was not accepted.
                Step::Nothing => {}
                Step::Route(_) | Step::Packages(_) => return Err(CloseCode::Protocol.into()),
            }
        }
    }

    fn step(&mut self, frame: &[u8]) -> Result<Step, End> {
        let frame = ClientFrame::decode(frame).map_err(|error| error.close_code())?;
        let gate = self.service.gate(&self.shared);
        Ok(self.session.handle(frame, self.home.now_ms(), clock::unix_millis(), &gate)?)
    }

    /// Sends a frame that the peer may take its time for.
    async fn send(&mut self, frame: Bytes) -> Result<(), End> {
        let writer = self.writer.as_mut().ok_or(CloseCode::Internal)?;
        match timeout(self.shared.config.stall_timeout(), writer.send(&[frame])).await {
            Ok(sent) => Ok(sent?),
            Err(_) => Err(STALLED),
        }
    }

    fn logged_in(&mut self, device: DeviceKey, binding: Digest) -> Result<(Arc<Conn>, DeviceSession), End> {
        let (router, limits) = (&self.service.router, &self.shared.config.limits);
        let lodging = router.devices().open(device, clock::unix_millis(), limits)?;
        let outbox = Outbox::new(limits.outbox_bytes_max);
        let conn = Conn::new(router.next_conn(), device, binding, outbox, lodging.usage()).at_home(self.home.index);
        self.wire.reader.authenticated(limits.frame_bytes_max, Arc::clone(&self.shared.large_frames));
        self.wire.permit.authenticated();
        Ok((Arc::new(conn), lodging))
    }

    /// Serves who is logged in. What was read is answered before anything else is looked at.
    fn poll_serve(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let Some(open) = &self.open else { return Poll::Ready(CloseCode::Internal.into()) };
        let link = Rc::clone(&open.link);
        let Err(end) = ready!(match self.poll_read(cx, &link) {
            Poll::Pending => self.poll_look_after(cx, &link),
            ended => ended,
        });
        Poll::Ready(end)
    }

    /// Receives and carries out frames, as long as the connection may read on and no shard that is asked is so busy that it must be
    /// waited for.
    fn poll_read(&mut self, cx: &mut Context<'_>, link: &Link) -> Poll<Result<Infallible, End>> {
        loop {
            ready!(poll_waiting(&mut self.asking, cx))?;
            ready!(link.conn().outbox.poll_relieved(cx));
            let frame = ready!(self.poll_receive(cx, link))?;
            if let Some((shard, message)) = self.request(&frame, link)?
                && let Err(message) = self.service.router.try_send(shard, message)
            {
                let service = Arc::clone(&self.service);
                self.asking = Some(Box::pin(async move { service.router.send(shard, *message).await }));
            }
        }
    }

    /// The next frame. Bytes of one that is not complete count as a sign of life, too, unless it is large: that one must be there
    /// in time.
    fn poll_receive(&mut self, cx: &mut Context<'_>, link: &Link) -> Poll<Result<Bytes, End>> {
        let before = self.wire.reader.received_bytes();
        // Receiving holds nothing between two polls.
        let polled = pin!(self.wire.receive()).poll(cx);
        if self.wire.reader.received_bytes() != before && !self.wire.reader.is_within_large() {
            self.session.bytes_heard(self.home.now_ms());
            link.set_deadline(self.session.poll_timeout());
        }
        polled
    }

    /// A frame that came: answered, or what it asks of which shard.
    fn request(&mut self, frame: &[u8], link: &Link) -> Result<Option<(usize, Message)>, End> {
        let step = self.step(frame)?;
        let (router, conn) = (&self.service.router, link.conn());
        match step {
            Step::Send(frame) => {
                if let ServerFrame::Refused { why, .. } | ServerFrame::Failed { why, .. } = &frame {
                    self.shared.metrics.refused(why);
                }
                link.answer(frame.encode());
            }
            Step::Route(request) => {
                let shard = router.shard_of(request.room);
                let permit = Permit::new(conn, weight(&request.action, &self.shared.config.limits));
                self.wire.used |= 1 << shard;
                return Ok(Some((shard, Message::Request { conn: Arc::clone(conn), request, permit })));
            }
            Step::Packages(request) => {
                let shard = router.shard_of_device(request.device);
                let permit = Permit::new(conn, packages_weight(&request.action));
                return Ok(Some((shard, Message::Packages { conn: Arc::clone(conn), request, permit })));
            }
            Step::Goodbye => return Err(CloseCode::Normal.into()),
            Step::Nothing | Step::Open { .. } => {}
        }
        Ok(None)
    }

    /// Looks after the writing side and the deadline: shards that wait for room are told, and a peer that takes nothing, or says
    /// nothing, is given up.
    fn poll_look_after(&mut self, cx: &mut Context<'_>, link: &Link) -> Poll<Result<Infallible, End>> {
        loop {
            ready!(poll_waiting(&mut self.telling, cx))?;
            match ready!(link.poll_heard(cx)) {
                Heard::Relieved(shards) => {
                    let (service, id) = (Arc::clone(&self.service), link.conn().id);
                    self.telling = Some(Box::pin(async move { service.router.drained(shards, id).await }));
                }
                Heard::Deadline => {
                    self.session.handle_timeout(self.home.now_ms())?;
                    link.set_deadline(self.session.poll_timeout());
                }
                Heard::Stalled => return Poll::Ready(Err(STALLED)),
                Heard::Stop => return Poll::Ready(Err(CloseCode::GoingAway.into())),
                Heard::Failed(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// As [`Self::finish`], as long as the server waits for it.
    async fn finish_in_time(&mut self, end: End) {
        let abort = self.shared.abort.clone();
        tokio::select! {
            () = self.finish(end) => {}
            () = abort.cancelled() => {}
        }
    }

    /// Leaves the rooms, tells the peer why it ends, and closes.
    async fn finish(&mut self, end: End) {
        if let Some(open) = self.open.take() {
            self.home.links.remove(open.link.conn().id);
            self.writer = self.leave(open.link, end).await;
        }
        let Self { shared, wire, writer, .. } = self;
        shared.metrics.closed(end.code);
        tracing::debug!(transport = wire.permit.transport(), code = end.code.name(), "connection ended");
        let Some(mut writer) = writer.take() else { return };
        if end.tell {
            let closing = ServerFrame::Closing { code: end.code, retry_after_ms: retry_after_ms(end.code) };
            // Whoever does not take it in time learns the code from the transport, or not at all.
            let _ = timeout(FAREWELL, writer.send(&[closing.encode()])).await;
        }
        wire.permit.count_bytes(wire.reader.received_bytes(), writer.sent_bytes());
        if end.tell {
            tokio::join!((*writer).close(end.code), wire.reader.linger());
        } else {
            (*writer).close(end.code).await;
        }
    }

    /// Who was logged in leaves. Gives the writer back.
    async fn leave(&self, link: Rc<Link>, end: End) -> Option<Box<FrameWriter>> {
        let conn = Arc::clone(link.conn());
        conn.outbox.close();
        if end.tell {
            // Whoever does not take the rest in time does without.
            let _ = timeout(FAREWELL, link.drained()).await;
        }
        self.shared.metrics.sessions.dec();
        // A router that has stopped has no rooms to leave.
        let _ = self.service.router.closed(self.wire.used, &conn).await;
        link.into_writer()
    }
}

impl Wire {
    async fn receive(&mut self) -> Result<Bytes, End> {
        match self.reader.recv().await {
            Ok(Some(frame)) => Ok(frame),
            Ok(None) => Err(End { code: CloseCode::Normal, tell: false }),
            Err(error) => Err(error.into()),
        }
    }
}

/// Bytes that a request and its largest answer count until it is answered.
fn weight(action: &Action, limits: &Limits) -> usize {
    /// More than any answer without payload takes.
    const ANSWER: usize = 256;
    ANSWER
        + match action {
            Action::Fetch { .. } => limits.page_bytes_max as usize,
            Action::Handshake { .. } => limits.handshake_bytes_max as usize,
            Action::Subscribe { .. } => 32 * limits.presence_sessions_max as usize,
            Action::Publish(publish) => publish.envelope.len(),
            Action::Ephemeral { envelope } => envelope.len(),
            Action::PutDropBox { offer } => 2 * offer.as_ref().map_or(0, |offer| offer.announcement.len()),
            _ => 0,
        }
}

/// As [`weight`]. Who takes a package has the owner look at all that the device has: one at a time.
fn packages_weight(action: &PackagesAction) -> usize {
    match action {
        PackagesAction::Publish { packages, .. } => 256 + packages.iter().map(|package| package.bytes.len()).sum::<usize>(),
        PackagesAction::Take => IN_FLIGHT_BYTES_MAX,
    }
}

/// How long a client shall wait before it comes back.
const fn retry_after_ms(code: CloseCode) -> u32 {
    match code {
        CloseCode::GoingAway => 1000,
        CloseCode::Overloaded | CloseCode::Internal => 5000,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::Usage;

    /// Nearly all connections wait. Who makes one of these larger says so here, and looks at `wax-bench fanout w3`.
    #[test]
    fn a_connection_that_waits_is_small() {
        const fn future<F>(_: &impl FnOnce(Driver) -> F) -> usize {
            size_of::<F>()
        }
        let sizes = [
            ("the driver", size_of::<Driver>(), 296),
            ("the same while it is driven", future(&driven), 312),
            ("the link", size_of::<Link>(), 112),
            ("the writer", size_of::<FrameWriter>(), 64),
            ("what shards know", size_of::<Conn>(), 144),
            ("the outbox", size_of::<Outbox>(), 56),
            ("what its device uses", size_of::<Usage>(), 80),
        ];
        for (name, size, max) in sizes {
            assert!(size <= max, "{name} has {size} bytes, more than {max}");
        }
    }
}
