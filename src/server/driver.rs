//! One connection: its session, what it reads and what it writes. The same for every transport.
//!
//! One task on the connection's home reads. Writing is mostly done elsewhere, at the end of a shard's turn (see `link`); the
//! task looks after it when the transport does not take everything at once. Reading stops while the outbox, or what was asked
//! and not yet answered, exceeds its limit; so a peer that does not read stops being heard, and nobody waits for it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::{Instant, timeout};

use super::{
    Shared, admission, clock,
    home::Home,
    link::{Heard, Link},
    service::Service,
};
use crate::{
    core::{
        close::CloseCode,
        frame::{ClientFrame, ServerFrame},
        limits::Limits,
        session::{Action, RoomRequest, Session, Setup, Step},
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
pub async fn drive(connection: Connection, permit: admission::Permit, shared: Arc<Shared>, service: Arc<Service>) {
    let Connection { info, reader, mut writer } = connection;
    let mut driver = Driver { shared: &shared, service: &service, reader, permit, epoch: Instant::now(), used: 0 };
    // What a login needs is let go before the connection settles down to wait.
    let opened = Box::pin(driver.open(&info, &mut writer)).await;
    let (end, mut writer) = match opened {
        Ok(opened) => driver.serve(opened, writer).await,
        Err(end) => (end, writer),
    };
    Box::pin(driver.finish(&info, &mut writer, end)).await;
    if end.tell {
        tokio::join!(writer.close(end.code), driver.reader.linger());
    } else {
        writer.close(end.code).await;
    }
}

struct Driver<'a> {
    shared: &'a Shared,
    service: &'a Service,
    reader: FrameReader,
    permit: admission::Permit,
    epoch: Instant,
    /// Shards that know the connection.
    used: ShardSet,
}

/// What a connection has once it is logged in.
struct Opened {
    session: Session,
    conn: Arc<Conn>,
    _device: DeviceSession,
}

/// Sends frames that the peer may take its time for, as long as it takes some.
async fn send(writer: &mut FrameWriter, frame: Bytes) -> Result<(), End> {
    match timeout(STALL, writer.send(&[frame])).await {
        Ok(sent) => Ok(sent?),
        Err(_) => Err(STALLED),
    }
}

impl Driver<'_> {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Until somebody is logged in.
    async fn open(&mut self, info: &Info, writer: &mut FrameWriter) -> Result<Opened, End> {
        let setup = Setup {
            limits: self.shared.config.limits.clone(),
            nonce: self.service.nonce(),
            exporter: info.exporter,
            agent: concat!("waxwing/", env!("CARGO_PKG_VERSION")).into(),
        };
        let stopping = self.shared.stopping.clone();
        tokio::select! {
            biased;
            () = stopping.cancelled() => Err(CloseCode::GoingAway.into()),
            opened = self.log_in(Session::new(setup, 0), writer) => opened,
        }
    }

    /// Serves who is logged in. Gives the writer back.
    async fn serve(&mut self, opened: Opened, writer: FrameWriter) -> (End, FrameWriter) {
        let Opened { mut session, conn, _device } = opened;
        let home = Home::here().expect("connections are served on a home");
        let link = Link::new(Arc::clone(&conn), writer);
        home.links.insert(&link);
        let (shared, service) = (self.shared, self.service);
        let end = {
            // What was read is answered before anything else is looked at.
            let (read, write) = (self.read(&mut session, &link), write(shared, service, &link));
            tokio::select! {
                biased;
                Err(end) = read => end,
                Err(end) = write => end,
                () = shared.stopping.cancelled() => CloseCode::GoingAway.into(),
            }
        };
        conn.outbox.close();
        home.links.remove(conn.id);
        if end.tell {
            // Whoever does not take the rest in time does without.
            let _ = timeout(FAREWELL, link.drained()).await;
        }
        self.shared.metrics.sessions.dec();
        // A router that has stopped has no rooms to leave.
        let _ = self.service.router.closed(self.used, &conn).await;
        (end, link.into_writer().expect("a link that is not among its home's has one owner"))
    }

    /// Tells the peer why it ends.
    async fn finish(&mut self, info: &Info, writer: &mut FrameWriter, end: End) {
        self.shared.metrics.closed(end.code);
        tracing::debug!(transport = info.kind.name(), code = end.code.name(), "connection ended");
        if end.tell {
            let closing = ServerFrame::Closing { code: end.code, retry_after_ms: retry_after_ms(end.code) };
            // Whoever does not take it in time learns the code from the transport, or not at all.
            let _ = timeout(FAREWELL, writer.send(&[closing.encode()])).await;
        }
        self.permit.count_bytes(self.reader.received_bytes(), writer.sent_bytes());
    }

    /// Hello, challenge, authentication: one frame at a time, answered before the next is read.
    async fn log_in(&mut self, mut session: Session, writer: &mut FrameWriter) -> Result<Opened, End> {
        loop {
            let frame = self.receive(&mut session).await?;
            if self.reader.received_bytes() > self.shared.config.limits.unauthenticated_bytes_max.into() {
                return Err(CloseCode::Handshake.into());
            }
            match self.step(&mut session, &frame)? {
                Step::Send(frame) => send(writer, frame.encode()).await?,
                Step::Open(frame) => {
                    let opened = self.logged_in(session)?;
                    send(writer, frame.encode()).await?;
                    return Ok(opened);
                }
                Step::Goodbye => return Err(CloseCode::Normal.into()),
                Step::Route(_) | Step::Nothing => return Err(CloseCode::Protocol.into()),
            }
        }
    }

    fn logged_in(&mut self, session: Session) -> Result<Opened, End> {
        let (device, binding) = session.principal().ok_or(CloseCode::Internal)?;
        let (router, limits) = (&self.service.router, &self.shared.config.limits);
        let lodging = router.devices().open(device, clock::unix_millis(), limits)?;
        let outbox = Arc::new(Outbox::new(limits.outbox_bytes_max));
        let home = Home::here().map_or(0, |home| home.index);
        let conn = Conn::new(router.next_conn(), device, binding, outbox, lodging.usage()).at_home(home);
        self.reader.authenticated(limits.frame_bytes_max);
        self.shared.metrics.sessions.inc();
        self.permit.authenticated();
        Ok(Opened { session, conn: Arc::new(conn), _device: lodging })
    }

    async fn read(&mut self, session: &mut Session, link: &Link) -> Result<std::convert::Infallible, End> {
        loop {
            link.conn().outbox.relieved().await;
            let frame = self.receive(session).await?;
            match self.step(session, &frame)? {
                Step::Send(frame) => {
                    if let ServerFrame::Refused { why, .. } | ServerFrame::Failed { why, .. } = &frame {
                        self.shared.metrics.refused(why);
                    }
                    link.answer(frame.encode());
                }
                Step::Route(request) => self.route(link.conn(), request).await?,
                Step::Goodbye => return Err(CloseCode::Normal.into()),
                Step::Nothing | Step::Open(_) => {}
            }
        }
    }

    async fn route(&mut self, conn: &Arc<Conn>, request: RoomRequest) -> Result<(), End> {
        let shard = self.service.router.shard_of(request.room);
        let permit = Permit::new(&conn.outbox, weight(&request.action, &self.shared.config.limits));
        self.used |= 1 << shard;
        let message = Message::Request { conn: Arc::clone(conn), request, permit };
        self.service.router.send(shard, message).await.map_err(|_| CloseCode::GoingAway.into())
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

    fn step(&self, session: &mut Session, frame: &[u8]) -> Result<Step, End> {
        let frame = ClientFrame::decode(frame).map_err(|error| error.close_code())?;
        let (now_ms, wall_ms) = (self.now_ms(), clock::unix_millis());
        Ok(session.handle(frame, now_ms, wall_ms, &self.service.gate(self.shared))?)
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
                service.router.drained(shards, link.conn().id).await.map_err(|_| CloseCode::GoingAway)?;
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
