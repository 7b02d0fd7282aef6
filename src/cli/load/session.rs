//! One connection of the load: logged in, in its room, listening, and perhaps publishing.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use ed25519_dalek::{Signer as _, SigningKey};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::histogram::Histogram;
use crate::{
    core::{
        close::Refusal,
        envelope::{HEADER_LEN, Header, Kind as EnvelopeKind, Suite},
        frame::{ClientFrame, Hello, LogKind, PROTOCOL_VERSION, Page, Publish, ServerFrame},
        id::{AccessKey, DeviceKey, MessageId, Nonce, ProducerId, RoomId, Signature},
        login::{self, Transcript},
    },
    transport::{self, Connection, FrameReader, FrameWriter, Kind, Target},
};

/// A connection that says nothing else says this so often.
const PING: Duration = Duration::from_secs(20);
const EPOCH: u64 = 1;
/// Where the time stamp is: at the beginning of what would be ciphertext.
const STAMP: usize = HEADER_LEN + Suite::X25519Psk.enc_len();

/// What all sessions count.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) deliveries: AtomicU64,
    pub(super) acks: AtomicU64,
    pub(super) refused: Mutex<BTreeMap<&'static str, u64>>,
    /// From the moment that a message was due to the moment that a subscriber had it.
    pub(super) latency: Histogram,
    pub(super) open: AtomicU64,
    pub(super) lost: AtomicU64,
}

/// How a session publishes.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// Time between messages; `None`: as fast as they are acked.
    pub(super) interval: Option<Duration>,
    /// Time before the first.
    pub(super) offset: Duration,
    /// Messages under way at most.
    pub(super) window: usize,
    /// Bytes of an envelope.
    pub(super) payload: usize,
}

/// One logged-in connection.
pub(super) struct Session {
    pub(super) index: usize,
    room: RoomId,
    producer: ProducerId,
    reader: FrameReader,
    writer: FrameWriter,
}

fn sign(key: &SigningKey, message: &[u8]) -> Signature {
    key.sign(message).to_bytes().into()
}

async fn expect(reader: &mut FrameReader, wanted: impl Fn(&ServerFrame) -> bool) -> anyhow::Result<ServerFrame> {
    loop {
        let bytes = reader.recv().await?.context("the server closed the connection")?;
        let frame = ServerFrame::decode(&bytes)?;
        match frame {
            frame if wanted(&frame) => return Ok(frame),
            ServerFrame::Failed { what, why, .. } => bail!("{what:?} was refused: {why}"),
            ServerFrame::Closing { code, .. } => bail!("the server closed the connection: {code}"),
            _ => {}
        }
    }
}

impl Session {
    /// Connects, logs in, makes the room if it is the one to do so, enters it and subscribes.
    pub(super) async fn open(
        target: &Target,
        kind: Kind,
        index: usize,
        key: [u8; 32],
        room: RoomId,
        room_key: [u8; 32],
        makes_room: bool,
    ) -> anyhow::Result<Self> {
        let connection = transport::connect(target, kind).await?;
        let (key, access) = (SigningKey::from_bytes(&key), SigningKey::from_bytes(&room_key));
        let Connection { info, mut reader, mut writer } = connection;
        let hello = Hello {
            version: PROTOCOL_VERSION,
            nonce: Nonce(super::random()?),
            device: DeviceKey(key.verifying_key().to_bytes()),
            authority: target.authority.clone(),
            exporter: info.exporter.is_some(),
            token: Bytes::new(),
            agent: "waxwing load".into(),
        };
        writer.send(&[ClientFrame::Hello(hello.clone()).encode()]).await?;
        let challenge = expect(&mut reader, |frame| matches!(frame, ServerFrame::Challenge { .. })).await?;
        let ServerFrame::Challenge { nonce: challenge } = challenge else { bail!("no challenge") };
        let transcript = Transcript { hello: &hello, challenge, exporter: info.exporter.as_ref() };
        writer.send(&[ClientFrame::Authenticate { signature: sign(&key, &transcript.message()) }.encode()]).await?;
        expect(&mut reader, |frame| matches!(frame, ServerFrame::Welcome { .. })).await?;
        if makes_room {
            let access = AccessKey(access.verifying_key().to_bytes());
            writer.send(&[ClientFrame::Create { room, access, kind: LogKind::Room }.encode()]).await?;
            expect(&mut reader, |frame| matches!(frame, ServerFrame::Created { .. })).await?;
        }
        let proof = sign(&access, &login::access_message(transcript.binding(), room));
        let enter =
            [ClientFrame::Enter { room, handshake: 0, proof }.encode(), ClientFrame::Subscribe { room, after: 0 }.encode()];
        writer.send(&enter).await?;
        expect(&mut reader, |frame| matches!(frame, ServerFrame::Subscribed { .. })).await?;
        Ok(Self { index, room, producer: ProducerId(super::random()?), reader, writer })
    }

    /// Listens and publishes until told to stop. Stamps count from `epoch`.
    pub(super) fn start(
        self,
        plan: Option<Plan>,
        epoch: Instant,
        counters: &Arc<Counters>,
        stop: CancellationToken,
        tasks: &mut JoinSet<()>,
    ) {
        let Self { room, producer, reader, writer, .. } = self;
        // Every publish has one answer, so this holds all that can be under way: the reader never waits for the writer.
        let (answers, answered) = mpsc::channel(plan.as_ref().map_or(1, |plan| plan.window));
        counters.open.fetch_add(1, Ordering::Relaxed);
        let (ended, counted) = (stop.clone(), Arc::clone(counters));
        tasks.spawn(async move {
            let listened = ended.run_until_cancelled(listen(reader, &answers, epoch, &counted)).await;
            counted.open.fetch_sub(1, Ordering::Relaxed);
            if listened.is_some() {
                counted.lost.fetch_add(1, Ordering::Relaxed);
            }
        });
        tasks.spawn(async move {
            match plan {
                Some(plan) => {
                    let publisher =
                        Publisher { room, producer, writer, answered, plan, epoch, pending: VecDeque::new(), next: 1 };
                    // That the connection is gone is counted by the one who listens.
                    stop.run_until_cancelled(publisher.run()).await;
                }
                None => {
                    stop.run_until_cancelled(ping(writer)).await;
                }
            }
        });
    }
}

/// The answer to a publish.
enum Answer {
    Stored,
    /// Not stored; come back after so many milliseconds.
    Refused(u32),
}

/// Counts what comes, until the connection ends.
async fn listen(mut reader: FrameReader, answers: &mpsc::Sender<Answer>, epoch: Instant, counters: &Counters) {
    while let Ok(Some(bytes)) = reader.recv().await {
        let answer = match ServerFrame::decode(&bytes) {
            Ok(ServerFrame::Deliver(page)) => {
                delivered(&page, epoch, counters);
                continue;
            }
            Ok(ServerFrame::Ack { .. }) => {
                counters.acks.fetch_add(1, Ordering::Relaxed);
                Answer::Stored
            }
            Ok(ServerFrame::Refused { why, .. }) => {
                *counters.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(why.name()).or_default() += 1;
                Answer::Refused(if let Refusal::RateLimited { retry_after_ms } = why { retry_after_ms } else { 10 })
            }
            Ok(ServerFrame::Closing { .. }) | Err(_) => return,
            Ok(_) => continue,
        };
        // The writer is gone only when the connection is.
        let _ = answers.try_send(answer);
    }
}

fn delivered(page: &Page, epoch: Instant, counters: &Counters) {
    let now = epoch.elapsed();
    counters.deliveries.fetch_add(page.items.len() as u64, Ordering::Relaxed);
    for item in &page.items {
        let stamp = item.envelope.get(STAMP..).and_then(|rest| rest.first_chunk()).map(|bytes| u64::from_le_bytes(*bytes));
        if let Some(stamp) = stamp {
            counters.latency.add(now.saturating_sub(Duration::from_nanos(stamp)));
        }
    }
}

/// Keeps a connection that only listens.
async fn ping(mut writer: FrameWriter) {
    loop {
        tokio::time::sleep(PING).await;
        if writer.send(&[ClientFrame::Ping { token: 0 }.encode()]).await.is_err() {
            return;
        }
    }
}

/// Publishes. After a refusal it waits until everything under way is answered, and sends what was not stored again.
struct Publisher {
    room: RoomId,
    producer: ProducerId,
    writer: FrameWriter,
    answered: mpsc::Receiver<Answer>,
    plan: Plan,
    epoch: Instant,
    /// Sent and not acked, in order.
    pending: VecDeque<(u64, Bytes)>,
    next: u64,
}

impl Publisher {
    /// `None` when the connection is gone.
    async fn run(mut self) -> Option<()> {
        let mut template = self.template();
        let mut due = Instant::now() + self.plan.offset;
        let mut idle = Instant::now() + PING;
        loop {
            let full = self.pending.len() >= self.plan.window;
            tokio::select! {
                biased;
                answer = self.answered.recv() => self.hear(answer?).await?,
                () = sleep_until(due), if !full => {
                    // A message that is sent late is late: its latency counts from when it was due.
                    let stamp = if self.plan.interval.is_some() { due } else { Instant::now() };
                    let envelope = self.stamp(&mut template, stamp);
                    self.pending.push_back((self.next, envelope));
                    self.send(self.pending.len() - 1).await?;
                    self.next += 1;
                    due = self.plan.interval.map_or(due, |interval| due + interval);
                    idle = Instant::now() + PING;
                }
                () = sleep_until(idle) => {
                    self.writer.send(&[ClientFrame::Ping { token: 0 }.encode()]).await.ok()?;
                    idle = Instant::now() + PING;
                }
            }
        }
    }

    async fn hear(&mut self, answer: Answer) -> Option<()> {
        let Answer::Refused(mut wait_ms) = answer else {
            self.pending.pop_front();
            return Some(());
        };
        // Answers come in the order of the publishes, and a refusal refuses all that follows it, so that what is stored is
        // always the beginning of what is pending.
        for _ in 1..self.pending.len() {
            if let Answer::Refused(other) = self.answered.recv().await? {
                wait_ms = wait_ms.max(other);
            } else {
                self.pending.pop_front();
            }
        }
        // One is allowed after that time; all of them after as many times it.
        let all = Duration::from_millis(wait_ms.into()) * u32::try_from(self.pending.len()).unwrap_or(u32::MAX);
        tokio::time::sleep(all.min(Duration::from_secs(1))).await;
        for index in 0..self.pending.len() {
            self.send(index).await?;
        }
        Some(())
    }

    async fn send(&mut self, index: usize) -> Option<()> {
        let (client_seq, envelope) = self.pending.get(index)?.clone();
        let publish = Publish { room: self.room, producer: self.producer, client_seq, handshake: 0, envelope };
        self.writer.send(&[ClientFrame::Publish(publish).encode()]).await.ok()
    }

    /// An envelope as far as the server reads it.
    fn template(&self) -> Vec<u8> {
        let header = Header {
            kind: EnvelopeKind::Room,
            suite: Suite::X25519Psk,
            room: self.room,
            epoch: EPOCH,
            leaf: 1,
            message: MessageId(self.producer.0),
        };
        let mut bytes = header.to_bytes().to_vec();
        bytes.resize(self.plan.payload, 0x5a);
        bytes
    }

    fn stamp(&self, template: &mut [u8], at: Instant) -> Bytes {
        let nanos = u64::try_from(at.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX);
        if let Some(place) = template.get_mut(STAMP..STAMP + 8) {
            place.copy_from_slice(&nanos.to_le_bytes());
        }
        if let Some(place) = template.get_mut(32..40) {
            place.copy_from_slice(&self.next.to_le_bytes());
        }
        Bytes::copy_from_slice(template)
    }
}
