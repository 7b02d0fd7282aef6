//! One connection: its session, what it reads and what it writes. The same for every transport.
//!
//! One task on the connection's home reads. Writing is mostly done elsewhere, at the end of a shard's turn (see `link`); the
//! task looks after it when the transport does not take everything at once. Reading stops while the outbox, or what was asked
//! and not yet answered, exceeds its limit; so a peer that does not read stops being heard, and nobody waits for it.

use std::{rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::{Instant, timeout};

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
        session::{Action, Session, Setup, Step},
    },
    metrics::Metrics,
    router::{
        Conn, DeviceSession,
        outbox::{Outbox, Permit, ShardSet},
        shard::Message,
    },
    transport::{Connection, Error, FrameReader, FrameWriter, Info},
};

/// A peer that takes nothing for so long is given up.
const STALL: Duration = Duration::from_secs(60);
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
    let wire = Wire { reader, permit, epoch: Instant::now(), used: 0 };
    let place = Home::here().map(|home| home.place());
    let mut driver = Box::new(Driver { wire, info: Box::new(info), writer: Some(writer), shared, service, _place: place });
    Box::pin(async move { driver.run().await })
}

struct Driver {
    shared: Arc<Shared>,
    service: Arc<Service>,
    info: Box<Info>,
    wire: Wire,
    /// Lent to the link while somebody is logged in.
    writer: Option<FrameWriter>,
    _place: Option<Place>,
}

/// The reading side of a connection.
struct Wire {
    reader: FrameReader,
    permit: admission::Permit,
    epoch: Instant,
    /// Shards that know the connection.
    used: ShardSet,
}

/// What a connection has once it is logged in.
struct Opened {
    session: Box<Session>,
    conn: Arc<Conn>,
    _device: DeviceSession,
}

/// Sends a frame that the peer may take its time for.
async fn send(writer: &mut FrameWriter, frame: Bytes) -> Result<(), End> {
    match timeout(STALL, writer.send(&[frame])).await {
        Ok(sent) => Ok(sent?),
        Err(_) => Err(STALLED),
    }
}

impl Driver {
    async fn run(&mut self) {
        let end = match Box::pin(self.open()).await {
            Ok(opened) => self.serve(opened).await,
            Err(end) => end,
        };
        Box::pin(self.finish(end)).await;
    }

    /// Until somebody is logged in.
    async fn open(&mut self) -> Result<Opened, End> {
        let Self { shared, service, info, wire, writer, .. } = self;
        let setup = Setup {
            limits: shared.config.limits.clone(),
            nonce: service.nonce(),
            exporter: info.exporter,
            agent: concat!("waxwing/", env!("CARGO_PKG_VERSION")).into(),
        };
        let writer = writer.as_mut().ok_or(CloseCode::Internal)?;
        tokio::select! {
            biased;
            () = shared.stopping.cancelled() => Err(CloseCode::GoingAway.into()),
            opened = wire.log_in(Box::new(Session::new(setup, 0)), writer, shared, service) => opened,
        }
    }

    /// Serves who is logged in.
    async fn serve(&mut self, opened: Opened) -> End {
        let Self { shared, service, wire, writer, .. } = self;
        let Opened { mut session, conn, _device } = opened;
        let (Some(home), Some(lent)) = (Home::here(), writer.take()) else { return CloseCode::Internal.into() };
        let link = Link::new(conn, lent);
        home.links.insert(&link);
        let end = {
            // What was read is answered before anything else is looked at.
            let (read, write) = (wire.read(&mut session, &link, shared, service), write(shared, service, &link));
            tokio::select! {
                biased;
                Err(end) = read => end,
                Err(end) = write => end,
                () = shared.stopping.cancelled() => CloseCode::GoingAway.into(),
            }
        };
        home.links.remove(link.conn().id);
        *writer = Box::pin(leave(wire, link, end, shared, service)).await;
        end
    }

    /// Tells the peer why it ends, and closes.
    async fn finish(&mut self, end: End) {
        let Self { shared, info, wire, writer, .. } = self;
        shared.metrics.closed(end.code);
        tracing::debug!(transport = info.kind.name(), code = end.code.name(), "connection ended");
        let Some(mut writer) = writer.take() else { return };
        if end.tell {
            let closing = ServerFrame::Closing { code: end.code, retry_after_ms: retry_after_ms(end.code) };
            // Whoever does not take it in time learns the code from the transport, or not at all.
            let _ = timeout(FAREWELL, writer.send(&[closing.encode()])).await;
        }
        wire.permit.count_bytes(wire.reader.received_bytes(), writer.sent_bytes());
        if end.tell {
            tokio::join!(writer.close(end.code), wire.reader.linger());
        } else {
            writer.close(end.code).await;
        }
    }
}

/// Who was logged in leaves. Gives the writer back.
async fn leave(wire: &Wire, link: Rc<Link>, end: End, shared: &Shared, service: &Service) -> Option<FrameWriter> {
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

impl Wire {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Hello, challenge, authentication: one frame at a time, answered before the next is read.
    async fn log_in(
        &mut self,
        mut session: Box<Session>,
        writer: &mut FrameWriter,
        shared: &Shared,
        service: &Service,
    ) -> Result<Opened, End> {
        loop {
            let frame = self.receive(&mut session).await?;
            if self.reader.received_bytes() > shared.config.limits.unauthenticated_bytes_max.into() {
                return Err(CloseCode::Handshake.into());
            }
            match self.step(&mut session, &frame, shared, service)? {
                Step::Send(frame) => send(writer, frame.encode()).await?,
                Step::Open(frame) => {
                    let opened = self.logged_in(session, shared, service)?;
                    send(writer, frame.encode()).await?;
                    return Ok(opened);
                }
                Step::Goodbye => return Err(CloseCode::Normal.into()),
                Step::Route(_) | Step::Nothing => return Err(CloseCode::Protocol.into()),
            }
        }
    }

    fn logged_in(&mut self, session: Box<Session>, shared: &Shared, service: &Service) -> Result<Opened, End> {
        let (device, binding) = session.principal().ok_or(CloseCode::Internal)?;
        let (router, limits) = (&service.router, &shared.config.limits);
        let lodging = router.devices().open(device, clock::unix_millis(), limits)?;
        let outbox = Arc::new(Outbox::new(limits.outbox_bytes_max));
        let home = Home::here().map_or(0, |home| home.index);
        let conn = Conn::new(router.next_conn(), device, binding, outbox, lodging.usage()).at_home(home);
        self.reader.set_frame_max(limits.frame_bytes_max);
        shared.metrics.sessions.inc();
        self.permit.authenticated();
        Ok(Opened { session, conn: Arc::new(conn), _device: lodging })
    }

    async fn read(
        &mut self,
        session: &mut Session,
        link: &Link,
        shared: &Shared,
        service: &Service,
    ) -> Result<std::convert::Infallible, End> {
        loop {
            link.conn().outbox.relieved().await;
            let frame = self.receive(session).await?;
            if let Some((shard, message)) = self.request(session, &frame, link, shared, service)? {
                // Only a shard that is very busy is waited for.
                let sent = service.router.try_send(shard, message);
                if let Err(message) = sent {
                    Box::pin(service.router.send(shard, message)).await.map_err(|_| CloseCode::GoingAway)?;
                }
            }
        }
    }

    /// A frame that came: answered, or what it asks of which shard.
    fn request(
        &mut self,
        session: &mut Session,
        frame: &[u8],
        link: &Link,
        shared: &Shared,
        service: &Service,
    ) -> Result<Option<(usize, Message)>, End> {
        match self.step(session, frame, shared, service)? {
            Step::Send(frame) => {
                if let ServerFrame::Refused { why, .. } | ServerFrame::Failed { why, .. } = &frame {
                    shared.metrics.refused(why);
                }
                link.answer(frame.encode());
            }
            Step::Route(request) => {
                let conn = link.conn();
                let shard = service.router.shard_of(request.room);
                let permit = Permit::new(&conn.outbox, weight(&request.action, &shared.config.limits));
                self.used |= 1 << shard;
                return Ok(Some((shard, Message::Request { conn: Arc::clone(conn), request, permit })));
            }
            Step::Goodbye => return Err(CloseCode::Normal.into()),
            Step::Nothing | Step::Open(_) => {}
        }
        Ok(None)
    }

    /// The next frame, unless the session's deadline comes first.
    async fn receive(&mut self, session: &mut Session) -> Result<Bytes, End> {
        let mut received = self.reader.received_bytes();
        loop {
            let deadline = self.epoch + Duration::from_millis(session.poll_timeout());
            tokio::select! {
                biased;
                frame = self.reader.recv() => return match frame {
                    Ok(Some(frame)) => Ok(frame),
                    Ok(None) => Err(End { code: CloseCode::Normal, tell: false }),
                    Err(error) => Err(error.into()),
                },
                () = tokio::time::sleep_until(deadline) => {
                    if self.reader.received_bytes() != received {
                        received = self.reader.received_bytes();
                        session.bytes_heard(self.now_ms());
                    }
                    session.handle_timeout(self.now_ms())?;
                }
            }
        }
    }

    fn step(&self, session: &mut Session, frame: &[u8], shared: &Shared, service: &Service) -> Result<Step, End> {
        let frame = ClientFrame::decode(frame).map_err(|error| error.close_code())?;
        let (now_ms, wall_ms) = (self.now_ms(), clock::unix_millis());
        Ok(session.handle(frame, now_ms, wall_ms, &service.gate(shared))?)
    }
}

/// Looks after the writing side: shards that wait for room are told, and a peer that takes nothing is given up.
async fn write(shared: &Shared, service: &Service, link: &Link) -> Result<std::convert::Infallible, End> {
    let mut gauge = OutboxGauge { metrics: &shared.metrics, counted: 0 };
    let mut patience = Instant::now() + STALL;
    loop {
        let heard = tokio::select! {
            biased;
            heard = link.heard() => heard,
            () = tokio::time::sleep_until(patience), if link.is_blocked() => return Err(STALLED),
        };
        gauge.set(if link.is_blocked() { link.conn().outbox.bytes() } else { 0 });
        match heard {
            Heard::Relieved(shards) => {
                let told = Box::pin(service.router.drained(shards, link.conn().id)).await;
                told.map_err(|_| CloseCode::GoingAway)?;
            }
            Heard::Blocked => {}
            Heard::Failed(error) => return Err(error.into()),
        }
        patience = Instant::now() + STALL;
    }
}

/// This connection's share of the metric.
struct OutboxGauge<'a> {
    metrics: &'a Metrics,
    counted: i64,
}

impl OutboxGauge<'_> {
    fn set(&mut self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        if bytes != self.counted {
            self.metrics.outbox_bytes.inc_by(bytes - self.counted);
            self.counted = bytes;
        }
    }
}

impl Drop for OutboxGauge<'_> {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Bytes that a request and its largest answer count until it is answered.
fn weight(action: &Action, limits: &Limits) -> usize {
    /// More than any answer without payload takes.
    const ANSWER: usize = 256;
    ANSWER
        + match action {
            Action::Fetch { .. } => limits.page_bytes_max as usize,
            Action::Subscribe { .. } => 32 * limits.presence_sessions_max as usize,
            Action::Publish(publish) => publish.envelope.len(),
            Action::Ephemeral { envelope } => envelope.len(),
            _ => 0,
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
