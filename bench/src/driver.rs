//! Publishers in a closed loop: so many in flight, each waits for its ack and publishes again. One thread plays them all,
//! as one shard of the router does.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use waxwing::{
    core::{
        frame::LogKind,
        id::{AccessKey, DeviceKey, Digest, LogId, ProducerId, RoomId},
        log::{Append, LogMeta, Producer},
    },
    engine::{Answer, Complete, Completion, Engine, Failure, Request},
};

use crate::histogram::Histogram;

/// Nothing here takes so long; it ends a run that hangs.
const PATIENCE: Duration = Duration::from_secs(120);

struct Sink(SyncSender<Vec<Completion>>);

impl Complete for Sink {
    fn complete(&self, batch: Vec<Completion>) {
        // Nobody listens any more when the run has failed.
        let _ = self.0.send(batch);
    }
}

/// The rooms, as far as they were written.
#[derive(Debug, Clone)]
pub struct Rooms {
    heads: Vec<u64>,
    payload: usize,
    random: Random,
}

/// Numbers that are the same in every run (xorshift).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub const fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    /// One below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from((self.0 >> 32) % end as u64).unwrap_or_default()
    }
}

/// When a run ends.
#[derive(Debug, Clone, Copy)]
pub struct Until {
    /// After so many acks at most.
    pub acks: u64,
    /// After that time at most.
    pub time: Duration,
}

/// What came of a run.
#[derive(Debug)]
pub struct Run {
    /// Appends acked.
    pub acks: u64,
    /// From the first publish to the last ack.
    pub wall: Duration,
    /// From publish to ack.
    pub latency: Histogram,
}

impl Rooms {
    /// So many empty ones.
    pub fn new(count: usize, payload: usize) -> Self {
        Self { heads: vec![0; count], payload, random: Random::new() }
    }

    /// The id of a room.
    pub fn id(index: usize) -> RoomId {
        let mut id = [0x5a; 16];
        id[..8].copy_from_slice(&(index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        RoomId(id)
    }

    /// Messages in all of them.
    pub fn total(&self) -> u64 {
        self.heads.iter().sum()
    }

    /// One of them, at random.
    fn pick(&mut self) -> usize {
        self.random.below(self.heads.len())
    }

    /// The next record of a room. Its chain value is a stand-in: the engine stores what it is given.
    fn append(&mut self, room: usize) -> Request {
        self.heads[room] += 1;
        let (id, seq) = (Self::id(room), self.heads[room]);
        // As a message begins: version, kind, suite, flags, room.
        let mut envelope = vec![0x5a; self.payload];
        envelope[..4].copy_from_slice(&[1, 1, 1, 0]);
        envelope[4..20].copy_from_slice(&id.0);
        envelope[32..40].copy_from_slice(&seq.to_le_bytes());
        let mut chain = [0x11; 32];
        chain[..16].copy_from_slice(&id.0);
        chain[16..24].copy_from_slice(&seq.to_le_bytes());
        let mut device = [0x22; 32];
        device[..16].copy_from_slice(&id.0);
        Request::Append(Append {
            room: id,
            seq,
            chain: Digest(chain),
            time_ms: 1_800_000_000_000 + seq,
            producer: Producer { device: DeviceKey(device), id: ProducerId(id.0) },
            client_seq: seq,
            hash: [0x33; 8],
            envelope: Bytes::from(envelope),
        })
    }
}

/// Speaks to one engine.
pub struct Driver {
    engine: Arc<dyn Engine>,
    sink: Arc<dyn Complete>,
    completions: Receiver<Vec<Completion>>,
}

impl Driver {
    /// For an engine that is open.
    pub fn new(engine: Arc<dyn Engine>) -> Self {
        let (sender, completions) = sync_channel(1 << 16);
        Self { engine, sink: Arc::new(Sink(sender)), completions }
    }

    fn submit(&self, request: Request, token: u64) -> anyhow::Result<()> {
        self.engine.submit(request, token, &self.sink).context("the engine refused a request")
    }

    fn batch(&self) -> anyhow::Result<Vec<Completion>> {
        self.completions.recv_timeout(PATIENCE).context("the engine does not answer")
    }

    /// One request and its answer.
    pub fn ask(&self, request: Request) -> anyhow::Result<Result<Answer, Failure>> {
        self.submit(request, 0)?;
        let completion = self.batch()?.pop().context("an empty batch")?;
        Ok(completion.result)
    }

    /// Makes every room that is not there.
    pub fn create(&self, rooms: &Rooms) -> anyhow::Result<()> {
        let mut open = 0;
        for (index, _) in rooms.heads.iter().enumerate() {
            let room = Rooms::id(index);
            let meta = LogMeta {
                log: LogId(room.0),
                kind: LogKind::Room,
                access: AccessKey([1; 32]),
                creator: DeviceKey([1; 32]),
                created_ms: 0,
            };
            self.submit(Request::Create { room, meta }, 0)?;
            open += 1;
            while open >= 1024 || (open > 0 && index + 1 == rooms.heads.len()) {
                for completion in self.batch()? {
                    open -= 1;
                    match completion.result {
                        Ok(_) | Err(Failure::Exists) => {}
                        Err(failure) => bail!("a room could not be made: {failure}"),
                    }
                }
            }
        }
        Ok(())
    }

    /// Asks the engine how far every room was written.
    pub fn load(&self, rooms: &mut Rooms) -> anyhow::Result<()> {
        for (index, head) in rooms.heads.iter_mut().enumerate() {
            match self.ask(Request::Load { room: Rooms::id(index) })?? {
                Answer::Loaded(Some(log)) => *head = log.state.head,
                other => bail!("room {index} is not there: {other:?}"),
            }
        }
        Ok(())
    }

    /// Publishes with `in_flight` under way, into rooms at random.
    pub fn run(&self, rooms: &mut Rooms, in_flight: usize, until: Until) -> anyhow::Result<Run> {
        self.run_with(rooms, in_flight, until, Rooms::pick)
    }

    /// As [`Driver::run`], into the rooms that `pick` says.
    pub fn run_with(
        &self,
        rooms: &mut Rooms,
        in_flight: usize,
        until: Until,
        mut pick: impl FnMut(&mut Rooms) -> usize,
    ) -> anyhow::Result<Run> {
        let begin = Instant::now();
        let latency = Histogram::default();
        let first = u64::try_from(in_flight).unwrap_or(u64::MAX).min(until.acks);
        let mut since = vec![begin; in_flight];
        let (mut sent, mut acks) = (first, 0);
        for token in 0..first {
            let room = pick(rooms);
            self.submit(rooms.append(room), token)?;
        }
        let mut now = begin;
        while acks < sent {
            let batch = self.batch()?;
            now = Instant::now();
            let more = now - begin < until.time;
            for Completion { token, result } in batch {
                result.context("an append failed")?;
                acks += 1;
                let slot = usize::try_from(token).ok().and_then(|token| since.get_mut(token)).context("a foreign token")?;
                latency.add(now - *slot);
                if more && sent < until.acks {
                    *slot = now;
                    let room = pick(rooms);
                    self.submit(rooms.append(room), token)?;
                    sent += 1;
                }
            }
        }
        Ok(Run { acks, wall: now - begin, latency })
    }
}
