//! A member of a room that publishes, reads, and comes back by another transport when a connection is dead; and the audit of what
//! all of them saw.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::timeout};
use waxwing::{
    core::{
        frame::{ClientFrame, LogKind, ServerFrame},
        id::RoomId,
        login::Transcript,
    },
    transport::{self, Error, Kind},
};

use super::{
    common::{
        client::{Client, Seen, hello},
        key, proof, sign,
    },
    edge::Reach,
};

pub const ROOM: RoomId = RoomId([0x1a; 16]);
/// Publishes under way at once.
const WINDOW: u64 = 8;
/// Who has heard nothing for so long asks: QUIC learns of a new address only from a packet that comes from there.
const PROBE: Duration = Duration::from_millis(300);
/// Who hears nothing all the same takes the connection for dead.
const DEAD: Duration = Duration::from_millis(1500);

/// What everybody shares: how much was acked in all, and how many attempts to connect came to nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    pub acked: u64,
    pub failures: u64,
    /// Connections that were made.
    pub connections: u64,
}

/// What is wanted of a member.
#[derive(Debug, Clone)]
pub struct Plan {
    pub id: u64,
    /// Transports, one after the other; the first is tried again after the last.
    pub kinds: Vec<Kind>,
    /// Messages to publish.
    pub publishes: u64,
    /// Messages to read, of everybody.
    pub reads: u64,
    /// Bytes of a message beside 16 that name it.
    pub padding: usize,
}

/// What became of it.
#[derive(Debug)]
pub struct Outcome {
    pub plan: Plan,
    pub seen: Seen,
    /// The seq of each message, by its number.
    pub acked: BTreeMap<u64, u64>,
    /// The connections that came about.
    pub used: Vec<Kind>,
    /// The longest time without a message or an ack.
    pub gap: Duration,
}

pub fn payload(id: u64, n: u64, padding: usize) -> Vec<u8> {
    let mut bytes = [id.to_le_bytes(), n.to_le_bytes()].concat();
    bytes.resize(16 + padding, 0x77);
    bytes
}

/// Makes the room.
pub async fn create(reach: &Reach) {
    let mut client = Client::new(transport::connect(&reach.target, Kind::WebSocket).await.expect("a connection"), key(0));
    client.log_in().await;
    client.create(ROOM, LogKind::Room).await;
}

/// Logs in and enters the room, unless the connection breaks.
async fn enter(client: &mut Client, exporter: Option<[u8; 32]>) -> Result<(), Error> {
    let hello = waxwing::core::frame::Hello { exporter: exporter.is_some(), ..hello(&client.key) };
    client.try_send(&ClientFrame::Hello(hello.clone())).await?;
    let Some(ServerFrame::Challenge { nonce }) = client.try_recv().await? else { panic!("no challenge") };
    let transcript = Transcript { hello: &hello, challenge: nonce, exporter: exporter.as_ref() };
    client.binding = transcript.binding();
    let signature = sign(&client.key, &transcript.message());
    client.try_send(&ClientFrame::Authenticate { signature }).await?;
    client.try_send(&ClientFrame::Enter { room: ROOM, handshake: 0, proof: proof(ROOM, client.binding) }).await
}

/// Does what the plan says.
pub async fn run(plan: Plan, reach: Reach, progress: watch::Sender<Progress>) -> Outcome {
    let (seen, now) = (Seen::new(ROOM), Instant::now());
    let (acked, used, gap) = (BTreeMap::new(), Vec::new(), Duration::ZERO);
    let mut member = Member { plan, seen, acked, used, gap, last_heard: now, last_served: now, progress };
    for attempt in 0.. {
        let kind = member.plan.kinds[attempt % member.plan.kinds.len()];
        let Ok(Ok(connection)) = timeout(2 * DEAD, transport::connect(&reach.target, kind)).await else {
            member.progress.send_modify(|progress| progress.failures += 1);
            continue;
        };
        let exporter = connection.info.exporter;
        let mut client = Client::new(connection, key(member.plan.id));
        if !matches!(timeout(2 * DEAD, enter(&mut client, exporter)).await, Ok(Ok(()))) {
            member.progress.send_modify(|progress| progress.failures += 1);
            continue;
        }
        member.used.push(kind);
        member.progress.send_modify(|progress| progress.connections += 1);
        // A connection that is dead is left behind without a word.
        if let Ok(()) = member.session(&mut client).await {
            break;
        }
    }
    let Member { plan, seen, acked, used, gap, .. } = member;
    Outcome { plan, seen, acked, used, gap }
}

struct Member {
    plan: Plan,
    seen: Seen,
    acked: BTreeMap<u64, u64>,
    used: Vec<Kind>,
    gap: Duration,
    last_heard: Instant,
    /// When the last message or ack came.
    last_served: Instant,
    progress: watch::Sender<Progress>,
}

/// A connection that broke, or went silent.
struct Broken;

impl From<Error> for Broken {
    fn from(_: Error) -> Self {
        Self
    }
}

impl Member {
    fn done(&self) -> bool {
        self.acked.len() as u64 == self.plan.publishes && self.seen.head() >= self.plan.reads
    }

    /// From login to the end of the plan.
    async fn session(&mut self, client: &mut Client) -> Result<(), Broken> {
        client.try_send(&ClientFrame::Subscribe { room: ROOM, after: self.seen.head() }).await?;
        let first = self.acked.keys().last().map_or(1, |last| last + 1);
        let mut next = first;
        self.last_heard = Instant::now();
        while !self.done() {
            let unacked = self.acked.keys().last().map_or(1, |last| last + 1);
            while next < (unacked + WINDOW).min(self.plan.publishes + 1) {
                client.try_publish(ROOM, next, &payload(self.plan.id, next, self.plan.padding)).await?;
                next += 1;
            }
            match timeout(PROBE, client.try_recv()).await {
                Err(_) if self.last_heard.elapsed() > DEAD => return Err(Broken),
                Err(_) => client.try_send(&ClientFrame::Ping { token: 7 }).await?,
                Ok(frame) => self.heard(frame?.ok_or(Broken)?),
            }
        }
        Ok(())
    }

    fn heard(&mut self, frame: ServerFrame) {
        self.last_heard = Instant::now();
        if matches!(frame, ServerFrame::Ack { .. } | ServerFrame::Deliver(_)) {
            self.gap = self.gap.max(self.last_heard - self.last_served);
            self.last_served = self.last_heard;
        }
        match frame {
            ServerFrame::Ack { client_seq, seq, .. } => {
                assert_eq!(*self.acked.entry(client_seq).or_insert(seq), seq, "the same answer every time");
                self.progress.send_modify(|progress| progress.acked += 1);
            }
            ServerFrame::Deliver(page) => self.seen.take(&page),
            ServerFrame::Refused { why, .. } => panic!("{why}"),
            ServerFrame::Closing { code, .. } => panic!("closed: {code}"),
            _ => {}
        }
    }
}

/// Nothing lost, doubled or reordered: all saw the same, each publisher's messages are there once and in its order, and each ack
/// named its message's place.
pub fn audit(outcomes: &[Outcome]) {
    let total: u64 = outcomes.iter().map(|outcome| outcome.plan.publishes).sum();
    for outcome in outcomes {
        assert_eq!(outcome.seen.head(), total, "member {}", outcome.plan.id);
        assert_eq!(outcome.seen.chain, outcomes[0].seen.chain);
        assert_eq!(outcome.seen.payloads, outcomes[0].seen.payloads, "all saw the same");
        let Plan { id, publishes, padding, .. } = outcome.plan;
        let own = outcomes[0].seen.payloads.iter().filter(|bytes| bytes[..8] == id.to_le_bytes());
        assert!(own.eq((1..=publishes).map(|n| payload(id, n, padding)).collect::<Vec<_>>().iter()), "each once, in order");
        for (n, seq) in &outcome.acked {
            let there = &outcomes[0].seen.payloads[usize::try_from(*seq).expect("a small log") - 1];
            assert_eq!(*there, payload(id, *n, padding), "acked, and there");
        }
    }
}
