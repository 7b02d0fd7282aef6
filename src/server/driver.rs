//! One connection: its session, what it reads and what it writes. The same for every transport.
//!
//! Reading and writing run side by side in one task. Reading stops while the outbox, or what was asked and not yet
//! answered, exceeds its limit; so a peer that does not read stops being heard, and nobody waits for it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::{Instant, timeout};

use super::{Shared, admission, clock, service::Service};
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

/// Bytes that are handed to the transport at once, if the frames are not larger.
const SLICE: usize = 16 << 10;
/// A peer that takes no slice for so long is given up.
const STALL: Duration = Duration::from_secs(60);
/// How long the last frames of a connection may take to leave.
const FAREWELL: Duration = Duration::from_secs(1);

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

/// Serves one connection until it ends.
pub async fn drive(connection: Connection, permit: admission::Permit, shared: Arc<Shared>, service: Arc<Service>) {
    let Connection { info, reader, writer } = connection;
    let mut driver = Driver::new(&shared, &service, &info, reader, permit);
    let mut writer = Writer { inner: writer, frames: Vec::new() };
    let end = driver.run(&mut writer).await;
    shared.metrics.closed(end.code);
    tracing::debug!(transport = info.kind.name(), code = end.code.name(), "connection ended");
    farewell(driver.opened.as_ref(), &mut writer, end).await;
    driver.leave().await;
    driver.permit.count_bytes(driver.reader.received_bytes(), writer.inner.sent_bytes());
    if end.tell {
        tokio::join!(writer.inner.close(end.code), driver.reader.linger());
    } else {
        writer.inner.close(end.code).await;
    }
}

struct Driver<'a> {
    shared: &'a Shared,
    service: &'a Service,
    session: Session,
    reader: FrameReader,
    permit: admission::Permit,
    epoch: Instant,
    opened: Option<Opened>,
}

/// What a connection has once it is logged in.
struct Opened {
    conn: Arc<Conn>,
    _device: DeviceSession,
    /// Shards that know the connection.
    used: ShardSet,
}

struct Writer {
    inner: FrameWriter,
    frames: Vec<Bytes>,
}

impl Writer {
    /// Writes frames that the peer may take its time for, as long as it takes some.
    async fn send(&mut self) -> Result<(), End> {
        let len: usize = self.frames.iter().map(Bytes::len).sum();
        let patience = STALL * u32::try_from(len.div_ceil(SLICE).max(1)).unwrap_or(u32::MAX);
        match timeout(patience, self.inner.send(&self.frames)).await {
            Ok(sent) => Ok(sent?),
            Err(_) => Err(End { code: CloseCode::Idle, tell: false }),
        }
    }
}

impl<'a> Driver<'a> {
    fn new(shared: &'a Shared, service: &'a Service, info: &Info, reader: FrameReader, permit: admission::Permit) -> Self {
        let setup = Setup {
            limits: shared.config.limits.clone(),
            nonce: service.nonce(),
            exporter: info.exporter,
            agent: concat!("waxwing/", env!("CARGO_PKG_VERSION")).into(),
        };
        Self { shared, service, session: Session::new(setup, 0), reader, permit, epoch: Instant::now(), opened: None }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn run(&mut self, writer: &mut Writer) -> End {
        let stopping = self.shared.stopping.clone();
        let serve = async {
            let Err(end) = self.serve(writer).await;
            end
        };
        tokio::select! {
            biased;
            () = stopping.cancelled() => CloseCode::GoingAway.into(),
            end = serve => end,
        }
    }

    async fn serve(&mut self, writer: &mut Writer) -> Result<std::convert::Infallible, End> {
        let conn = self.log_in(writer).await?;
        let (shared, service) = (self.shared, self.service);
        let read = self.read(&conn);
        let write = write(shared, service, &conn, writer);
        tokio::select! {
            end = read => end,
            end = write => end,
        }
    }

    /// Hello, challenge, authentication: one frame at a time, answered before the next is read.
    async fn log_in(&mut self, writer: &mut Writer) -> Result<Arc<Conn>, End> {
        loop {
            let frame = self.receive().await?;
            if self.reader.received_bytes() > self.shared.config.limits.unauthenticated_bytes_max.into() {
                return Err(CloseCode::Handshake.into());
            }
            let (frame, opens) = match self.step(&frame)? {
                Step::Send(frame) => (frame, false),
                Step::Open(frame) => (frame, true),
                Step::Goodbye => return Err(CloseCode::Normal.into()),
                // Behind a resume that was not accepted.
                Step::Nothing => continue,
                Step::Route(_) => return Err(CloseCode::Protocol.into()),
            };
            let conn = if opens { Some(self.open()?) } else { None };
            writer.frames = vec![frame.encode()];
            writer.send().await?;
            if let Some(conn) = conn {
                return Ok(conn);
            }
        }
    }

    /// The session is logged in.
    fn open(&mut self) -> Result<Arc<Conn>, End> {
        let (device, binding) = self.session.principal().ok_or(CloseCode::Internal)?;
        let (router, limits) = (&self.service.router, &self.shared.config.limits);
        let session = router.devices().open(device, clock::unix_millis(), limits)?;
        let outbox = Arc::new(Outbox::new(limits.outbox_bytes_max));
        let conn = Arc::new(Conn::new(router.next_conn(), device, binding, outbox, session.usage()));
        self.opened = Some(Opened { conn: Arc::clone(&conn), _device: session, used: 0 });
        self.reader.set_frame_max(limits.frame_bytes_max);
        self.shared.metrics.sessions.inc();
        self.permit.authenticated();
        Ok(conn)
    }

    async fn read(&mut self, conn: &Arc<Conn>) -> Result<std::convert::Infallible, End> {
        loop {
            conn.outbox.relieved().await;
            let frame = self.receive().await?;
            match self.step(&frame)? {
                Step::Send(frame) => {
                    if let ServerFrame::Refused { why, .. } | ServerFrame::Failed { why, .. } = &frame {
                        self.shared.metrics.refused(why);
                    }
                    conn.outbox.push_control(frame.encode());
                }
                Step::Route(request) => self.route(conn, request).await?,
                Step::Goodbye => return Err(CloseCode::Normal.into()),
                Step::Nothing | Step::Open(_) => {}
            }
        }
    }

    async fn route(&mut self, conn: &Arc<Conn>, request: RoomRequest) -> Result<(), End> {
        let shard = self.service.router.shard_of(request.room);
        let permit = Permit::new(&conn.outbox, weight(&request.action, &self.shared.config.limits));
        if let Some(opened) = &mut self.opened {
            opened.used |= 1 << shard;
        }
        let message = Message::Request { conn: Arc::clone(conn), request, permit };
        self.service.router.send(shard, message).await.map_err(|_| CloseCode::GoingAway.into())
    }

    /// The next frame, unless the session's deadline comes first.
    async fn receive(&mut self) -> Result<Bytes, End> {
        let mut received = self.reader.received_bytes();
        loop {
            let deadline = self.epoch + Duration::from_millis(self.session.poll_timeout());
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
                        self.session.bytes_heard(self.now_ms());
                    }
                    self.session.handle_timeout(self.now_ms())?;
                }
            }
        }
    }

    fn step(&mut self, frame: &[u8]) -> Result<Step, End> {
        let frame = ClientFrame::decode(frame).map_err(|error| error.close_code())?;
        let (now_ms, wall_ms) = (self.now_ms(), clock::unix_millis());
        Ok(self.session.handle(frame, now_ms, wall_ms, &self.service.gate(self.shared))?)
    }

    /// Tells the shards that the connection is gone.
    async fn leave(&mut self) {
        let Some(Opened { conn, used, .. }) = self.opened.take() else { return };
        self.shared.metrics.sessions.dec();
        // A router that has stopped has no rooms to leave.
        let _ = self.service.router.closed(used, &conn).await;
    }
}

/// What is still queued, and why the connection ends.
async fn farewell(opened: Option<&Opened>, writer: &mut Writer, end: End) {
    if !end.tell {
        return;
    }
    let last = async {
        if let Some(opened) = opened {
            opened.conn.outbox.close();
            loop {
                opened.conn.outbox.take(SLICE, &mut writer.frames);
                if writer.frames.is_empty() {
                    break;
                }
                writer.inner.send(&writer.frames).await?;
            }
        }
        let closing = ServerFrame::Closing { code: end.code, retry_after_ms: retry_after_ms(end.code) };
        writer.inner.send(&[closing.encode()]).await
    };
    // Whoever does not take it in time learns the code from the transport, or not at all.
    let _ = timeout(FAREWELL, last).await;
}

/// Writes what the shards put into the outbox.
async fn write(shared: &Shared, service: &Service, conn: &Conn, writer: &mut Writer) -> Result<std::convert::Infallible, End> {
    let mut gauge = OutboxGauge { metrics: &shared.metrics, counted: 0 };
    loop {
        let relieved = conn.outbox.take(SLICE, &mut writer.frames);
        gauge.set(conn.outbox.bytes());
        if relieved != 0 {
            service.router.drained(relieved, conn.id).await.map_err(|_| CloseCode::GoingAway)?;
        }
        if writer.frames.is_empty() {
            conn.outbox.filled().await;
        } else {
            writer.send().await?;
        }
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
