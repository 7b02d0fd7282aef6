//! What the rooms of one shard share: the way to the engine, what connections wait for, what is counted.

use std::{
    collections::{BTreeSet, HashMap, hash_map},
    fmt,
    sync::Arc,
};

use bytes::Bytes;

use super::{Conn, ConnId, outbox::Permit};
use crate::{
    core::{
        close::Refusal,
        frame::ServerFrame,
        id::{DeviceKey, LogId, RoomId, Seq, UnixMillis},
        lane::{Lane, Outgoing},
        limits::Limits,
        log::LogMeta,
        session::Action,
    },
    engine::{Busy, Complete, Engine, Request, Token},
};

/// How much is done at once, in units of work: one is about an outbox looked at, some 100 ns.
///
/// What is left goes to the back of the queue, and the next turn goes on: so no room, however large or loud, holds up the
/// others for longer than a few slices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slices {
    /// Of one shard in one turn, all rooms together. Default 16,384.
    pub turn: u32,
    /// Of one room, before the next one has its share: as much for its queued requests, for what goes to everybody, and for
    /// those who catch up. Default 1,024.
    pub room: u32,
    /// Of one room's requests, as they come within one turn; what exceeds it is queued. Default 4,096.
    pub intake: u32,
}

impl Default for Slices {
    fn default() -> Self {
        Self { turn: 16 << 10, room: 1 << 10, intake: 4 << 10 }
    }
}

/// Units of work for so many bytes that are hashed or copied.
pub(super) const fn work_of_bytes(bytes: usize) -> u64 {
    bytes as u64 / 128
}

/// Units of work for a request.
pub(super) fn work_of(action: &Action) -> u64 {
    match action {
        // A signature is verified.
        Action::Enter { .. } => 512,
        Action::Publish(publish) => 4 + work_of_bytes(publish.envelope.len()),
        Action::Post { envelope, .. } => 512 + work_of_bytes(envelope.len()),
        _ => 4,
    }
}

/// What a shard starts from.
pub struct Setup {
    /// Its number: at most 63.
    pub index: usize,
    /// What everybody may use.
    pub limits: Arc<Limits>,
    /// What keeps its logs.
    pub engine: Arc<dyn Engine>,
    /// Brings the engine's completions back, as [`Message::Completed`](super::shard::Message::Completed).
    pub complete: Arc<dyn Complete>,
    /// Makes random log ids.
    pub log_id: Box<dyn FnMut() -> LogId + Send>,
    /// How much is done at once.
    pub slices: Slices,
    /// Bytes of recent messages that its rooms keep in memory together. The room that was not looked at for longest lets go
    /// of its first.
    pub recent_bytes_max: usize,
}

impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setup").field("index", &self.index).field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// What happened since the shell last took it.
#[derive(Debug, Default)]
pub struct Stats {
    /// Records put into outboxes, once for each receiver.
    pub deliveries: u64,
    /// Bytes of the frames that carried them.
    pub delivered_bytes: u64,
    /// Publishes acked.
    pub acks: u64,
    /// Members that fell behind.
    pub catch_ups: u64,
    /// Pages of history read from the engine for subscribers.
    pub history_reads: u64,
    /// Ephemeral envelopes passed on, once for each receiver.
    pub ephemerals: u64,
    /// Ephemeral envelopes that a full outbox dropped.
    pub ephemerals_dropped: u64,
    /// Key packages handed out that are gone now.
    pub packages_taken: u64,
    /// Key packages of the last resort handed out.
    pub last_resorts: u64,
    /// Requests for a key package of a device that had none.
    pub packages_missing: u64,
    /// Pages encoded for those who catch up.
    pub pages_encoded: u64,
    /// Change of the bytes of recent messages in memory.
    pub recent_bytes: i64,
    /// Units of work done, as [`Slices`] counts them.
    pub work: u64,
    /// Refusals, by [`Refusal::name`].
    pub refusals: HashMap<&'static str, u64>,
}

impl Stats {
    pub(super) fn refused(&mut self, why: Refusal) {
        *self.refusals.entry(why.name()).or_default() += 1;
    }

    pub(super) const fn delivered(&mut self, records: u64, bytes: usize) {
        self.deliveries += records;
        self.delivered_bytes += bytes as u64;
    }
}

/// A frame, and the connection that it is for.
pub type Sent = (ConnId, Outgoing);

/// Why the engine was asked.
#[derive(Debug)]
pub(super) enum Op {
    Load {
        room: RoomId,
    },
    Create {
        room: RoomId,
        meta: LogMeta,
        conn: Arc<Conn>,
        permit: Permit,
    },
    Append {
        room: RoomId,
    },
    ReadAfter {
        room: RoomId,
        life: u64,
        after: Seq,
    },
    Refresh {
        room: RoomId,
        life: u64,
    },
    Seek {
        room: RoomId,
        life: u64,
        conn: Arc<Conn>,
        request: u32,
        permit: Permit,
    },
    ReadBefore {
        room: RoomId,
        life: u64,
        conn: Arc<Conn>,
        request: u32,
        permit: Permit,
    },
    Handshake {
        room: RoomId,
        life: u64,
        conn: Arc<Conn>,
        request: u32,
        seq: Seq,
        whole: bool,
        permit: Permit,
    },
    Delete {
        room: RoomId,
    },
    Packages {
        device: DeviceKey,
    },
    DropBox {
        room: RoomId,
        life: u64,
    },
    /// Nobody waits for it.
    Forget,
}

/// Everything of a shard but its rooms.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) index: usize,
    pub(super) limits: Arc<Limits>,
    pub(super) now_ms: UnixMillis,
    pub(super) stats: Stats,
    /// Units of work done since the turn ended before.
    pub(super) work: u64,
    /// Requests that wait for a slice of their rooms.
    pub(super) queued: usize,
    pub(super) setup: Setup,
    pub(super) ops: HashMap<Token, Op>,
    next_token: Token,
    next_life: u64,
    /// Which rooms a connection has entered, in their order.
    entered: HashMap<ConnId, Vec<RoomId>>,
    /// In which of them it is stalled; of few connections.
    stalled: HashMap<ConnId, Vec<RoomId>>,
    /// Rooms to be looked after at the next tick.
    pub(super) retry: BTreeSet<RoomId>,
    /// What was sent since the shell took it, by the homes of the connections.
    pub(super) sent: Vec<Vec<Sent>>,
}

impl Context {
    pub(super) fn new(setup: Setup) -> Self {
        debug_assert!(setup.index < 64, "a shard is a bit of a ShardSet");
        Self {
            index: setup.index,
            limits: Arc::clone(&setup.limits),
            now_ms: 0,
            stats: Stats::default(),
            work: 0,
            queued: 0,
            setup,
            ops: HashMap::new(),
            next_token: 0,
            next_life: 0,
            entered: HashMap::new(),
            stalled: HashMap::new(),
            retry: BTreeSet::new(),
            sent: Vec::new(),
        }
    }

    /// Sends an answer. One that is ending is told nothing.
    pub(super) fn answer(&mut self, conn: &Conn, frame: &ServerFrame) {
        self.send_control(conn, frame.encode());
    }

    pub(super) fn send_control(&mut self, conn: &Conn, frame: Bytes) {
        self.send(conn, Lane::Control, frame);
    }

    /// Sends what a connection asked for, whatever waits already.
    pub(super) fn send(&mut self, conn: &Conn, lane: Lane, frame: Bytes) {
        if !conn.outbox.is_closed() {
            conn.outbox.push(frame.len());
            self.put(conn, lane, frame);
        }
    }

    /// Sends a page if it fits; if not, the connection is told of when there is room.
    pub(super) fn send_page(&mut self, conn: &Conn, lane: Lane, frame: &Bytes) -> bool {
        let fits = conn.outbox.is_closed() || conn.outbox.push_page(frame.len(), self.index).is_ok();
        if fits {
            self.put(conn, lane, frame.clone());
        }
        fits
    }

    /// Sends what is worth nothing later, if it fits.
    pub(super) fn send_ephemeral(&mut self, conn: &Conn, frame: &Bytes) {
        if !conn.outbox.is_closed() && conn.outbox.push_droppable(frame.len()).is_ok() {
            self.stats.ephemerals += 1;
            self.put(conn, Lane::Ephemeral, frame.clone());
        } else {
            self.stats.ephemerals_dropped += 1;
        }
    }

    fn put(&mut self, conn: &Conn, lane: Lane, frame: Bytes) {
        if self.sent.len() <= conn.home() {
            self.sent.resize_with(conn.home() + 1, Vec::new);
        }
        if let Some(sent) = self.sent.get_mut(conn.home()) {
            sent.push((conn.id, Outgoing { lane, frame }));
        }
    }

    /// Where a slice that begins now ends.
    pub(super) const fn slice_end(&self) -> u64 {
        self.work + self.setup.slices.room as u64
    }

    /// Envelope bytes that the recent tail of a room may hold; at least a page.
    pub(super) fn tail_bytes_max(&self) -> u32 {
        self.limits.recent_bytes_max.max(self.limits.page_bytes_max)
    }

    pub(super) fn submit(&mut self, request: Request, op: Op) -> Result<(), Busy> {
        self.setup.engine.submit(request, self.next_token, &self.setup.complete)?;
        self.ops.insert(self.next_token, op);
        self.next_token += 1;
        Ok(())
    }

    /// Envelope bytes of one page of history: it fits an outbox that is half full.
    pub(super) fn catch_up_bytes_max(&self) -> u32 {
        self.limits.page_bytes_max.min(self.limits.outbox_bytes_max / 2)
    }

    pub(super) fn entered(&mut self, conn: ConnId, room: RoomId) {
        let entered = self.entered.entry(conn).or_default();
        if let Err(place) = entered.binary_search(&room) {
            if entered.capacity() == 0 {
                // Many connections are in one room, and idle there.
                entered.reserve_exact(1);
            }
            entered.insert(place, room);
        }
    }

    pub(super) fn left(&mut self, conn: ConnId, room: RoomId) {
        if let hash_map::Entry::Occupied(mut entered) = self.entered.entry(conn) {
            if let Ok(place) = entered.get().binary_search(&room) {
                entered.get_mut().remove(place);
            }
            if entered.get().is_empty() {
                entered.remove();
            }
        }
        if let hash_map::Entry::Occupied(mut stalled) = self.stalled.entry(conn) {
            stalled.get_mut().retain(|stalled| *stalled != room);
            if stalled.get().is_empty() {
                stalled.remove();
            }
        }
    }

    pub(super) fn stalled(&mut self, conn: ConnId, room: RoomId) {
        self.stalled.entry(conn).or_default().push(room);
    }

    /// The rooms in which the connection was stalled, and is no more.
    pub(super) fn relieved(&mut self, conn: ConnId) -> Vec<RoomId> {
        self.stalled.remove(&conn).unwrap_or_default()
    }

    /// The rooms that the connection had entered: it is gone.
    pub(super) fn gone(&mut self, conn: ConnId) -> Vec<RoomId> {
        self.stalled.remove(&conn);
        self.entered.remove(&conn).unwrap_or_default()
    }

    /// The engine was busy, or failed: the room is looked after again at the next tick.
    pub(super) fn retry(&mut self, room: RoomId) {
        self.retry.insert(room);
    }

    pub(super) const fn life(&mut self) -> u64 {
        self.next_life += 1;
        self.next_life
    }
}
