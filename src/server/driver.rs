//! One connection: its session, what it reads and what it writes. The same for every transport.
//!
//! One task on the connection's home reads. Writing is mostly done elsewhere, at the end of a shard's turn (see `link`); the
//! task looks after it when the transport does not take everything at once. Reading stops while the outbox, or what was asked
//! and not yet answered, exceeds its limit; so a peer that does not read stops being heard, and nobody waits for it.

use std::{
    cell::RefCell,
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
    home::{Home, Place},
    link::{Heard, Link},
    service::Service,
};
use crate::{
    core::{
        close::CloseCode,
        frame::{ClientFrame, ServerFrame},
        limits::Limits,
        session::{Action, PackagesAction, Session, Setup, Step},
    },
    router::{
        Conn, DeviceSession, Stopped,
        outbox::{IN_FLIGHT_BYTES_MAX, Outbox, Permit, ShardSet},
        shard::Message,
    },
    transport::{Connection, Error, FrameReader, FrameWriter, Kind},
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
/// Nearly all connections of a server are waiting at any time, so what one of them holds meanwhile is kept small: everything is
/// in one place, which the futures only borrow, and what is needed for a moment only is boxed for that moment.
pub fn drive(connection: Connection, permit: admission::Permit, shared: Arc<Shared>, service: Arc<Service>) -> Serving {
    let Connection { info, reader, writer } = connection;
    let home = Home::here().expect("connections are served on a home");
    let _place = home.place();
    shared.metrics.early.inc_by(reader.is_early().into());
    let wire = Wire { reader, permit, used: 0 };
    let setup = Setup {
        limits: shared.config.limits.clone(),
        nonce: service.nonce(),
        exporter: info.exporter,
        agent: concat!("waxwing/", env!("CARGO_PKG_VERSION")).into(),
    };
    let session = RefCell::new(Session::new(setup, home.now_ms()));
    let mut driver =
        Box::new(Driver { kind: info.kind, wire, session, writer: Some(Box::new(writer)), shared, service, home, _place });
    Box::pin(async move { driver.run().await })
}

struct Driver {
    shared: Arc<Shared>,
    service: Arc<Service>,
    kind: Kind,
    wire: Wire,
    session: RefCell<Session>,
    /// Lent to the link while somebody is logged in.
    writer: Option<Box<FrameWriter>>,
    home: Rc<Home>,
    _place: Place,
}

/// The reading side of a connection.
struct Wire {
    reader: FrameReader,
    permit: admission::Permit,
    /// Shards that know the connection.
    used: ShardSet,
}

/// What a connection has once it is logged in.
struct Opened {
    conn: Arc<Conn>,
    _device: DeviceSession,
}

/// Sends a frame that the peer may take its time for.
async fn send(writer: &mut FrameWriter, frame: Bytes, shared: &Shared) -> Result<(), End> {
    match timeout(shared.config.stall_timeout(), writer.send(&[frame])).await {
        Ok(sent) => Ok(sent?),
        Err(_) => Err(STALLED),
    }
}

impl Driver {
    async fn run(&mut self) {
        let opened = Box::pin(self.open()).await;
        let end = match opened {
            Ok(opened) => self.serve(opened).await,
            Err(end) => end,
        };
        Box::pin(self.finish(end)).await;
    }

    /// Until somebody is logged in.
    async fn open(&mut self) -> Result<Opened, End> {
        let Self { shared, service, session, wire, writer, home, .. } = self;
        let writer = writer.as_mut().ok_or(CloseCode::Internal)?;
        let at = At { shared, service, home };
        tokio::select! {
            biased;
            () = shared.stopping.cancelled() => Err(CloseCode::GoingAway.into()),
            opened = wire.log_in(session.get_mut(), writer, &at) => opened,
        }
    }

    /// Serves who is logged in.
    async fn serve(&mut self, opened: Opened) -> End {
        let Opened { conn, _device } = opened;
        let Some(lent) = self.writer.take() else { return CloseCode::Internal.into() };
        let link = Link::new(conn, lent);
        link.set_deadline(self.session.borrow().poll_timeout());
        self.home.links.insert(&link);
        // It may have been too late to be told.
        let end = if self.shared.stopping.is_cancelled() {
            CloseCode::GoingAway.into()
        } else {
            // Borrowed here, so that what waits holds no more of them than `open`.
            let Self { shared, service, session, wire, home, .. } = &mut *self;
            let open = Open { at: At { shared, service, home }, session, link: &link };
            // What was read is answered before anything else is looked at.
            tokio::select! {
                biased;
                Err(end) = wire.read(&open) => end,
                Err(end) = open.look_after() => end,
            }
        };
        self.home.links.remove(link.conn().id);
        self.writer = Box::pin(leave(&self.wire, link, end, &self.shared, &self.service)).await;
        end
    }

    /// Tells the peer why it ends, and closes.
    async fn finish(&mut self, end: End) {
        let Self { shared, kind, wire, writer, .. } = self;
        shared.metrics.closed(end.code);
        tracing::debug!(transport = kind.name(), code = end.code.name(), "connection ended");
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
}

/// Who was logged in leaves. Gives the writer back.
async fn leave(wire: &Wire, link: Rc<Link>, end: End, shared: &Shared, service: &Service) -> Option<Box<FrameWriter>> {
    let conn = Arc::clone(link.conn());
    conn.outbox.close();
    if end.tell {
        // Whoever does not take the rest in time does without.
        let _ = timeout(FAREWELL, link.drained()).await;
    }
    shared.metrics.sessions.dec();
    // A router that has stopped has no rooms to leave.
    let _ = service.router.closed(wire.used, &conn).await;
    link.into_writer()
}

/// A message on its way to a shard whose mailbox is full.
type Waiting<'a> = Pin<Box<dyn Future<Output = Result<(), Stopped>> + 'a>>;

/// What a connection is served with.
#[derive(Clone, Copy)]
struct At<'a> {
    shared: &'a Shared,
    service: &'a Service,
    home: &'a Home,
}

/// The same once somebody is logged in. One borrow of it is all that the futures have.
struct Open<'a> {
    at: At<'a>,
    session: &'a RefCell<Session>,
    link: &'a Link,
}

impl At<'_> {
    fn step(&self, session: &mut Session, frame: &[u8]) -> Result<Step, End> {
        let frame = ClientFrame::decode(frame).map_err(|error| error.close_code())?;
        Ok(session.handle(frame, self.home.now_ms(), clock::unix_millis(), &self.service.gate(self.shared))?)
    }
}

impl Wire {
    /// Hello, challenge, authentication: one frame at a time, answered before the next is read.
    async fn log_in(&mut self, session: &mut Session, writer: &mut FrameWriter, at: &At<'_>) -> Result<Opened, End> {
        loop {
            let late = Duration::from_millis(session.poll_timeout().saturating_sub(at.home.now_ms()));
            let Ok(frame) = timeout(late, self.receive()).await else {
                session.handle_timeout(at.home.now_ms())?;
                continue;
            };
            let frame = frame?;
            if self.reader.received_bytes() > at.shared.config.limits.unauthenticated_bytes_max.into() {
                return Err(CloseCode::Handshake.into());
            }
            match at.step(session, &frame)? {
                Step::Send(frame) => send(writer, frame.encode(), at.shared).await?,
                Step::Open(frame) => {
                    let opened = self.logged_in(session, at)?;
                    send(writer, frame.encode(), at.shared).await?;
                    return Ok(opened);
                }
                Step::Goodbye => return Err(CloseCode::Normal.into()),
                // Behind a resume that was not accepted.
                Step::Nothing => {}
                Step::Route(_) | Step::Packages(_) => return Err(CloseCode::Protocol.into()),
            }
        }
    }

    fn logged_in(&mut self, session: &Session, at: &At<'_>) -> Result<Opened, End> {
        let (device, binding) = session.principal().ok_or(CloseCode::Internal)?;
        let (router, limits) = (&at.service.router, &at.shared.config.limits);
        let lodging = router.devices().open(device, clock::unix_millis(), limits)?;
        let outbox = Arc::new(Outbox::new(limits.outbox_bytes_max));
        let conn = Conn::new(router.next_conn(), device, binding, outbox, lodging.usage()).at_home(at.home.index);
        self.reader.authenticated(limits.frame_bytes_max, Arc::clone(&at.shared.large_frames));
        at.shared.metrics.sessions.inc();
        self.permit.authenticated();
        Ok(Opened { conn: Arc::new(conn), _device: lodging })
    }

    async fn read(&mut self, open: &Open<'_>) -> Result<Infallible, End> {
        loop {
            if !open.link.conn().outbox.may_read() {
                Box::pin(open.link.conn().outbox.relieved()).await;
            }
            if let Some(busy) = poll_fn(|cx| self.poll_request(cx, open)).await? {
                busy.await.map_err(|_| CloseCode::GoingAway)?;
            }
        }
    }

    /// Receives and carries out frames, until a shard that is asked is so busy that it must be waited for.
    fn poll_request<'a>(&mut self, cx: &mut Context<'_>, open: &Open<'a>) -> Poll<Result<Option<Waiting<'a>>, End>> {
        let router = &open.at.service.router;
        loop {
            let frame = ready!(self.poll_receive(cx, open))?;
            if let Some((shard, message)) = self.request(&frame, open)?
                && let Err(message) = router.try_send(shard, message)
            {
                return Poll::Ready(Ok(Some(Box::pin(router.send(shard, *message)))));
            }
            if !open.link.conn().outbox.may_read() {
                return Poll::Ready(Ok(None));
            }
        }
    }

    /// The next frame. Bytes of one that is not complete count as a sign of life, too, unless it is large: that one must be there
    /// in time.
    fn poll_receive(&mut self, cx: &mut Context<'_>, open: &Open<'_>) -> Poll<Result<Bytes, End>> {
        let before = self.reader.received_bytes();
        // Receiving holds nothing between two polls.
        let polled = pin!(self.receive()).poll(cx);
        if self.reader.received_bytes() != before && !self.reader.is_within_large() {
            let mut session = open.session.borrow_mut();
            session.bytes_heard(open.at.home.now_ms());
            open.link.set_deadline(session.poll_timeout());
        }
        polled
    }

    async fn receive(&mut self) -> Result<Bytes, End> {
        match self.reader.recv().await {
            Ok(Some(frame)) => Ok(frame),
            Ok(None) => Err(End { code: CloseCode::Normal, tell: false }),
            Err(error) => Err(error.into()),
        }
    }

    /// A frame that came: answered, or what it asks of which shard.
    fn request(&mut self, frame: &[u8], open: &Open<'_>) -> Result<Option<(usize, Message)>, End> {
        let Open { at, session, link } = open;
        match at.step(&mut session.borrow_mut(), frame)? {
            Step::Send(frame) => {
                if let ServerFrame::Refused { why, .. } | ServerFrame::Failed { why, .. } = &frame {
                    at.shared.metrics.refused(why);
                }
                link.answer(frame.encode());
            }
            Step::Route(request) => {
                let conn = link.conn();
                let shard = at.service.router.shard_of(request.room);
                let permit = Permit::new(&conn.outbox, weight(&request.action, &at.shared.config.limits));
                self.used |= 1 << shard;
                return Ok(Some((shard, Message::Request { conn: Arc::clone(conn), request, permit })));
            }
            Step::Packages(request) => {
                let conn = link.conn();
                let shard = at.service.router.shard_of_device(request.device);
                let permit = Permit::new(&conn.outbox, packages_weight(&request.action));
                return Ok(Some((shard, Message::Packages { conn: Arc::clone(conn), request, permit })));
            }
            Step::Goodbye => return Err(CloseCode::Normal.into()),
            Step::Nothing | Step::Open(_) => {}
        }
        Ok(None)
    }
}

impl Open<'_> {
    /// Looks after the writing side and the deadline: shards that wait for room are told, and a peer that takes nothing, or says
    /// nothing, is given up.
    async fn look_after(&self) -> Result<Infallible, End> {
        loop {
            // Nothing of what was heard is kept while shards are told.
            let shards = match self.link.heard().await {
                Heard::Relieved(shards) => shards,
                Heard::Deadline => {
                    let session = self.session.borrow();
                    session.handle_timeout(self.at.home.now_ms())?;
                    self.link.set_deadline(session.poll_timeout());
                    continue;
                }
                Heard::Stalled => return Err(STALLED),
                Heard::Stop => return Err(CloseCode::GoingAway.into()),
                Heard::Failed(error) => return Err(error.into()),
            };
            let told = Box::pin(self.at.service.router.drained(shards, self.link.conn().id)).await;
            told.map_err(|_| CloseCode::GoingAway)?;
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
        const fn future<F>(_: &impl FnOnce(&'static mut Driver) -> F) -> usize {
            size_of::<F>()
        }
        let sizes = [
            ("the driver", size_of::<Driver>(), 304),
            ("its future", future(&Driver::run), 328),
            ("the link", size_of::<Link>(), 136),
            ("the writer", size_of::<FrameWriter>(), 64),
            ("what shards know", size_of::<Conn>(), 104),
            ("the outbox", size_of::<Outbox>(), 72),
            ("what its device uses", size_of::<Usage>(), 80),
        ];
        for (name, size, max) in sizes {
            assert!(size <= max, "{name} has {size} bytes, more than {max}");
        }
    }
}
