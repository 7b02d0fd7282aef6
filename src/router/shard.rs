//! One shard: the owner of its rooms. Pure: messages in, frames into outboxes and requests to the engine out.
//!
//! The shell calls [`Shard::handle`] for all that has come, then [`Shard::end_turn`] once: what became durable in one turn
//! travels to each room's members in one frame. While [`Shard::wants_tick`], the shell also ends a turn after a short while
//! without messages.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    fmt,
    sync::Arc,
};

use super::{
    Conn, ConnId,
    outbox::Permit,
    room::{Fate, Room, answer, fail, refusal, refuse},
};
use crate::{
    core::{
        close::Refusal,
        frame::{Operation, ServerFrame},
        id::{LogId, RoomId, Seq, UnixMillis},
        limits::Limits,
        log::{LoadedLog, LogMeta, LogState},
        session::{Action, RoomRequest},
    },
    engine::{Answer, Busy, Complete, Completion, Engine, Failure, Request, Token},
};

/// Requests that may wait for one room to be loaded or made.
const WAITING_MAX: usize = 16 << 10;

/// What comes to a shard.
#[derive(Debug)]
pub enum Message {
    /// A session asks.
    Request {
        /// Who.
        conn: Arc<Conn>,
        /// What.
        request: RoomRequest,
        /// Lives until it is answered.
        permit: Permit,
    },
    /// An outbox that had refused a page of this shard has room.
    Drained {
        /// Whose.
        conn: ConnId,
    },
    /// A connection is gone; its outbox was closed before this was sent.
    Closed {
        /// Which.
        conn: ConnId,
    },
    /// From the engine.
    Completed(Vec<Completion>),
}

/// What a shard starts from.
pub struct Setup {
    /// Its number: at most 63.
    pub index: usize,
    /// What everybody may use.
    pub limits: Arc<Limits>,
    /// What keeps its logs.
    pub engine: Arc<dyn Engine>,
    /// Brings the engine's completions back, as [`Message::Completed`].
    pub complete: Arc<dyn Complete>,
    /// Makes random log ids.
    pub log_id: Box<dyn FnMut() -> LogId + Send>,
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

/// Why the engine was asked.
#[derive(Debug)]
pub(super) enum Op {
    Load { room: RoomId },
    Create { room: RoomId, meta: LogMeta, conn: Arc<Conn>, permit: Permit },
    Append { room: RoomId },
    ReadAfter { room: RoomId, life: u64, after: Seq },
    ReadBefore { room: RoomId, life: u64, conn: Arc<Conn>, request: u32, permit: Permit },
    Delete { room: RoomId },
}

/// Everything of a shard but its rooms.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) index: usize,
    pub(super) limits: Arc<Limits>,
    pub(super) now_ms: UnixMillis,
    pub(super) stats: Stats,
    setup: Setup,
    ops: HashMap<Token, Op>,
    next_token: Token,
    next_life: u64,
    conns: HashMap<ConnId, InRooms>,
    retry: Vec<RoomId>,
}

/// Where a connection is known.
#[derive(Debug, Default)]
struct InRooms {
    entered: BTreeSet<RoomId>,
    /// Rooms that wait for its outbox to have room.
    stalled: Vec<RoomId>,
}

impl Context {
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
        self.conns.entry(conn).or_default().entered.insert(room);
    }

    pub(super) fn left(&mut self, conn: ConnId, room: RoomId) {
        if let Some(rooms) = self.conns.get_mut(&conn) {
            rooms.entered.remove(&room);
            rooms.stalled.retain(|stalled| *stalled != room);
            if rooms.entered.is_empty() {
                self.conns.remove(&conn);
            }
        }
    }

    pub(super) fn stalled(&mut self, conn: ConnId, room: RoomId) {
        self.conns.entry(conn).or_default().stalled.push(room);
    }

    /// The engine was busy, or failed: the room is looked after again at the next tick.
    pub(super) fn retry(&mut self, room: RoomId) {
        self.retry.push(room);
    }

    const fn life(&mut self) -> u64 {
        self.next_life += 1;
        self.next_life
    }
}

#[derive(Debug)]
enum Slot {
    /// The engine was asked for it, or to make it.
    Loading(VecDeque<(Arc<Conn>, Action, Permit)>),
    Ready(Box<Room>),
}

/// The owner of some rooms.
#[derive(Debug)]
pub struct Shard {
    rooms: HashMap<RoomId, Slot>,
    /// Rooms to be looked after at the end of the turn.
    touched: Vec<RoomId>,
    ctx: Context,
}

impl Shard {
    /// A shard without rooms.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        debug_assert!(setup.index < 64, "a shard is a bit of a ShardSet");
        let ctx = Context {
            index: setup.index,
            limits: Arc::clone(&setup.limits),
            now_ms: 0,
            stats: Stats::default(),
            setup,
            ops: HashMap::new(),
            next_token: 0,
            next_life: 0,
            conns: HashMap::new(),
            retry: Vec::new(),
        };
        Self { rooms: HashMap::new(), touched: Vec::new(), ctx }
    }

    /// One message, at this wall-clock time.
    pub fn handle(&mut self, message: Message, now_ms: UnixMillis) {
        self.ctx.now_ms = now_ms;
        match message {
            Message::Request { conn, request, permit } => self.request(conn, request, permit),
            Message::Drained { conn } => self.drained(conn),
            Message::Closed { conn } => self.closed(conn),
            Message::Completed(batch) => batch.into_iter().for_each(|completion| self.completed(completion)),
        }
    }

    /// Everything that has come was handled: delivers, and lets go of rooms that nobody needs.
    pub fn end_turn(&mut self) {
        for id in std::mem::take(&mut self.touched) {
            if let Some(Slot::Ready(room)) = self.rooms.get_mut(&id)
                && room.end_turn(&mut self.ctx) == Fate::Drop
            {
                self.rooms.remove(&id);
            }
        }
    }

    /// Whether some room waits for the engine to be less busy: the shell calls [`Shard::tick`] after some 10 ms.
    #[must_use]
    pub const fn wants_tick(&self) -> bool {
        !self.ctx.retry.is_empty()
    }

    /// Tries again what the engine was too busy for. A turn ends after it.
    pub fn tick(&mut self) {
        for id in std::mem::take(&mut self.ctx.retry) {
            self.room(id);
        }
    }

    /// Rooms in memory.
    #[must_use]
    pub fn rooms_len(&self) -> usize {
        self.rooms.len()
    }

    /// What happened since this was last called.
    pub fn take_stats(&mut self) -> Stats {
        std::mem::take(&mut self.ctx.stats)
    }

    /// A loaded room, to be looked after at the end of the turn.
    fn room(&mut self, id: RoomId) -> Option<&mut Room> {
        match self.rooms.get_mut(&id)? {
            Slot::Ready(room) => {
                if !room.touched {
                    room.touched = true;
                    self.touched.push(id);
                }
                Some(room)
            }
            Slot::Loading(_) => None,
        }
    }

    fn request(&mut self, conn: Arc<Conn>, RoomRequest { room: id, action }: RoomRequest, permit: Permit) {
        match self.rooms.get_mut(&id) {
            Some(Slot::Ready(room)) => {
                if !room.touched {
                    room.touched = true;
                    self.touched.push(id);
                }
                room.request(&conn, action, permit, &mut self.ctx);
            }
            Some(Slot::Loading(waiting)) if waiting.len() < WAITING_MAX => waiting.push_back((conn, action, permit)),
            Some(Slot::Loading(_)) => reject(&mut self.ctx, &conn, id, &action, Refusal::Overloaded),
            None => {
                // Only these mean anything in a room that the session has not entered.
                if matches!(action, Action::Create { .. } | Action::Enter { .. } | Action::Publish(_)) {
                    self.load(conn, id, action, permit);
                } else {
                    reject(&mut self.ctx, &conn, id, &action, Refusal::NoAccess);
                }
            }
        }
    }

    fn load(&mut self, conn: Arc<Conn>, id: RoomId, action: Action, permit: Permit) {
        if self.ctx.submit(Request::Load { room: id }, Op::Load { room: id }).is_err() {
            return reject(&mut self.ctx, &conn, id, &action, Refusal::Overloaded);
        }
        self.rooms.insert(id, Slot::Loading(VecDeque::from([(conn, action, permit)])));
    }

    fn drained(&mut self, conn: ConnId) {
        let stalled = self.ctx.conns.get_mut(&conn).map(|rooms| std::mem::take(&mut rooms.stalled));
        for id in stalled.unwrap_or_default() {
            if let Some(room) = self.room(id) {
                room.relieved(conn);
            }
        }
    }

    fn closed(&mut self, conn: ConnId) {
        let entered = self.ctx.conns.get_mut(&conn).map(|rooms| std::mem::take(&mut rooms.entered));
        for id in entered.unwrap_or_default() {
            self.room(id);
            if let Some(Slot::Ready(room)) = self.rooms.get_mut(&id) {
                room.leave(conn, &mut self.ctx);
            }
        }
        self.ctx.conns.remove(&conn);
    }

    fn completed(&mut self, Completion { token, result }: Completion) {
        match self.ctx.ops.remove(&token) {
            None => {}
            Some(Op::Load { room }) => {
                let loaded = result.and_then(|answer| match answer {
                    Answer::Loaded(loaded) => Ok(loaded),
                    _ => Err(Failure::Read),
                });
                self.loaded(room, loaded);
            }
            Some(Op::Create { room, meta, conn, permit }) => self.created(room, meta, &conn, permit, result.map(drop)),
            Some(Op::Append { room }) => self.with(room, None, |room, ctx| {
                room.appended(result.map(drop), ctx);
                Fate::Keep
            }),
            Some(Op::ReadAfter { room, life, after }) => self.with(room, Some(life), |room, ctx| {
                room.read_done(after, result.and_then(records), ctx);
                Fate::Keep
            }),
            Some(Op::ReadBefore { room: id, life, conn, request, permit }) => {
                self.with(id, Some(life), |room, ctx| {
                    room.fetched(&conn, request, result.and_then(records), ctx);
                    Fate::Keep
                });
                drop(permit);
            }
            Some(Op::Delete { room }) => self.with(room, None, |room, ctx| room.deleted(result.map(drop), ctx)),
        }
    }

    /// Does something with a loaded room, if it is still the one that was meant.
    fn with(&mut self, id: RoomId, life: Option<u64>, act: impl FnOnce(&mut Room, &mut Context) -> Fate) {
        self.room(id);
        if let Some(Slot::Ready(room)) = self.rooms.get_mut(&id)
            && life.is_none_or(|life| room.life == life)
            && act(room, &mut self.ctx) == Fate::Drop
        {
            self.rooms.remove(&id);
        }
    }

    fn loaded(&mut self, id: RoomId, result: Result<Option<Box<LoadedLog>>, Failure>) {
        if let Some(Slot::Ready(_)) = self.rooms.get(&id) {
            return self.with(id, None, |room, ctx| room.reloaded(result, ctx));
        }
        match result {
            Ok(Some(loaded)) => self.ready(id, *loaded),
            Ok(None) => self.absent(id),
            Err(failure) => {
                for (conn, action, _permit) in self.take_waiting(id) {
                    reject(&mut self.ctx, &conn, id, &action, refusal(failure));
                }
            }
        }
    }

    /// Removes a slot that is being loaded.
    fn take_waiting(&mut self, id: RoomId) -> VecDeque<(Arc<Conn>, Action, Permit)> {
        match self.rooms.remove(&id) {
            Some(Slot::Loading(waiting)) => waiting,
            Some(ready) => {
                self.rooms.insert(id, ready);
                VecDeque::new()
            }
            None => VecDeque::new(),
        }
    }

    /// A room has been loaded, or made: what waited for it goes on.
    fn ready(&mut self, id: RoomId, loaded: LoadedLog) {
        let waiting = self.take_waiting(id);
        let life = self.ctx.life();
        self.rooms.insert(id, Slot::Ready(Box::new(Room::new(id, life, loaded))));
        self.room(id);
        for (conn, action, permit) in waiting {
            self.request(conn, RoomRequest { room: id, action }, permit);
        }
    }

    /// There is no such log. The first creation that waits makes it; what came before that is refused.
    fn absent(&mut self, id: RoomId) {
        let mut waiting = self.take_waiting(id);
        while let Some((conn, action, permit)) = waiting.pop_front() {
            let Action::Create { access, kind, epoch } = action else {
                reject(&mut self.ctx, &conn, id, &action, Refusal::NoAccess);
                continue;
            };
            let log = (self.ctx.setup.log_id)();
            let meta = LogMeta { log, kind, access, creator: conn.device, epoch, created_ms: self.ctx.now_ms };
            match self.make(id, meta, &conn, permit) {
                Ok(()) => {
                    self.rooms.insert(id, Slot::Loading(waiting));
                    return;
                }
                Err(why) => fail(&mut self.ctx, &conn, id, Operation::Create, why),
            }
        }
    }

    fn make(&mut self, room: RoomId, meta: LogMeta, conn: &Arc<Conn>, permit: Permit) -> Result<(), Refusal> {
        conn.usage.create(self.ctx.now_ms, &self.ctx.limits)?;
        let op = Op::Create { room, meta: meta.clone(), conn: Arc::clone(conn), permit };
        self.ctx.submit(Request::Create { room, meta }, op).map_err(|Busy| Refusal::Overloaded)
    }

    fn created(&mut self, id: RoomId, meta: LogMeta, conn: &Arc<Conn>, permit: Permit, result: Result<(), Failure>) {
        match result {
            Ok(()) => {
                answer(conn, &ServerFrame::Created { room: id, log: meta.log });
                self.ready(id, LoadedLog { meta, state: LogState::empty(id), producers: Vec::new() });
            }
            Err(failure) => {
                fail(&mut self.ctx, conn, id, Operation::Create, refusal(failure));
                // What waited behind it is decided by what is there: nothing, or a log that another owner made.
                let waiting = self.take_waiting(id);
                for (conn, action, permit) in waiting {
                    self.request(conn, RoomRequest { room: id, action }, permit);
                }
            }
        }
        drop(permit);
    }
}

fn records(answer: Answer) -> Result<crate::core::log::Records, Failure> {
    match answer {
        Answer::Records(records) => Ok(records),
        _ => Err(Failure::Read),
    }
}

/// Answers a request that no room takes.
fn reject(ctx: &mut Context, conn: &Conn, room: RoomId, action: &Action, why: Refusal) {
    let what = match action {
        Action::Create { .. } => Operation::Create,
        Action::Enter { .. } => Operation::Enter,
        Action::Subscribe { .. } => Operation::Subscribe,
        Action::Fetch { .. } => Operation::Fetch,
        Action::Ephemeral { .. } => Operation::Ephemeral,
        Action::Delete => Operation::Delete,
        Action::Publish(publish) => return refuse(ctx, conn, publish, why),
        // They have no answer, and nothing to undo.
        Action::Leave | Action::Unsubscribe => return,
    };
    fail(ctx, conn, room, what, why);
}
