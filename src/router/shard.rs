//! One shard: the owner of its rooms. Pure: messages in, frames and requests to the engine out.
//!
//! The shell calls [`Shard::handle`] for what has come, then [`Shard::end_turn`] once: what became durable in one turn
//! travels to each room's members in one frame. A turn does a bounded amount of work, in slices, one room after the other;
//! while [`Shard::wants_turn`], the shell begins the next one at once, without waiting for messages. While
//! [`Shard::wants_tick`], it also ends a turn after a short while without messages.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::Arc,
};

use bytes::Bytes;

pub use super::context::{Sent, Setup, Slices, Stats};
use super::{
    Conn, ConnId,
    context::{Context, Op},
    outbox::Permit,
    packages::Directory,
    room::{Asked, Fate, Members, Room, fail, refusal, refuse},
    tails::Tails,
};
use crate::{
    core::{
        access::FormerKeys,
        close::Refusal,
        frame::{Operation, ServerFrame},
        id::{RoomId, UnixMillis},
        log::{LoadedLog, LogMeta, LogState},
        session::{Action, PackagesRequest, RoomRequest},
    },
    engine::{Answer, Busy, Completion, Failure, Request},
};

/// Requests that may wait for one room: to be loaded or made, or for its next slice.
pub(super) const WAITING_MAX: usize = 16 << 10;
/// What is let go of at once because it rests, in bytes, or a room's more, and of how many rooms: about a millisecond's work.
const REST_BYTES: usize = 4 << 20;
const REST_ROOMS: usize = 4096;

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
    /// A session asks for key packages, or has some.
    Packages {
        /// Who.
        conn: Arc<Conn>,
        /// What.
        request: PackagesRequest,
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

#[derive(Debug)]
enum Slot {
    /// The engine was asked for it, or to make it.
    Loading(VecDeque<Asked>),
    Ready(Box<Room>),
    /// It was deleted, and its members are being told.
    Closing(Box<Closing>),
}

/// What is left of a deleted room.
#[derive(Debug)]
struct Closing {
    members: Members,
    /// What they are told.
    frame: Bytes,
    /// Requests that came after.
    waiting: VecDeque<Asked>,
}

/// The owner of some rooms.
#[derive(Debug)]
pub struct Shard {
    rooms: HashMap<RoomId, Slot>,
    directory: Directory,
    /// Rooms that want a slice, in the order of their turns.
    ready: VecDeque<RoomId>,
    /// Counts turns.
    turn: u64,
    tails: Tails,
    /// Bytes of recent messages that the shell knows of.
    told_bytes: usize,
    ctx: Context,
}

impl Shard {
    /// A shard without rooms.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        let tails = Tails::new(setup.recent_bytes_max);
        let (rooms, ready) = (HashMap::new(), VecDeque::new());
        let directory = Directory::default();
        Self { rooms, directory, ready, turn: 1, tails, told_bytes: 0, ctx: Context::new(setup) }
    }

    /// One message, at this wall-clock time.
    pub fn handle(&mut self, message: Message, now_ms: UnixMillis) {
        self.ctx.now_ms = now_ms;
        match message {
            Message::Request { conn, request, permit } => self.request(conn, request, permit),
            Message::Packages { conn, request, permit } => self.directory.ask((conn, request, permit), &mut self.ctx),
            Message::Drained { conn } => self.drained(conn),
            Message::Closed { conn } => self.closed(conn),
            Message::Completed(batch) => batch.into_iter().for_each(|completion| self.completed(completion)),
        }
    }

    /// What has come was handled: delivers, a bounded part of it, and lets go of rooms that nobody needs.
    pub fn end_turn(&mut self) {
        self.turn += 1;
        // What requests have cost already counts, but half of the turn is left to deliver in.
        let turn = u64::from(self.ctx.setup.slices.turn);
        let end = turn.max(self.ctx.work + turn.div_ceil(2));
        while self.ctx.work < end
            && let Some(id) = self.ready.pop_front()
        {
            self.ctx.work += 1;
            self.slice(id);
        }
        self.ctx.stats.work += mem::take(&mut self.ctx.work);
        self.forget_tails();
    }

    /// One room's slice.
    fn slice(&mut self, id: RoomId) {
        match self.rooms.get_mut(&id) {
            Some(Slot::Ready(room)) => {
                let fate = room.work(&mut self.ctx);
                self.tails.touch(id, &mut room.tail, room.log.recent_bytes(), self.ctx.now_ms);
                if fate == Fate::More && !room.touched {
                    room.touched = true;
                    self.ready.push_back(id);
                }
                self.settle(id, fate);
            }
            Some(Slot::Closing(_)) => self.say_farewell(id),
            Some(Slot::Loading(_)) | None => {}
        }
    }

    /// What becomes of a room.
    fn settle(&mut self, id: RoomId, fate: Fate) {
        if matches!(fate, Fate::Keep | Fate::More) {
            return;
        }
        let Some(Slot::Ready(mut room)) = self.rooms.remove(&id) else { return };
        self.tails.count(&mut room.tail, 0);
        if fate == Fate::Close {
            let (members, waiting) = room.into_rest();
            self.ctx.queued -= waiting.len();
            let frame = ServerFrame::Deleted { room: id }.encode();
            self.rooms.insert(id, Slot::Closing(Box::new(Closing { members, frame, waiting })));
            self.say_farewell(id);
        }
    }

    /// Tells one slice of the members that their room is gone, and forgets them.
    fn say_farewell(&mut self, id: RoomId) {
        let Some(Slot::Closing(closing)) = self.rooms.get_mut(&id) else { return };
        let end = self.ctx.slice_end();
        while let Some((conn, member)) = closing.members.pop_first() {
            self.ctx.send_control(&member.conn, closing.frame.clone());
            member.conn.leave();
            self.ctx.left(conn, id);
            self.ctx.work += 1;
            if self.ctx.work >= end {
                return self.ready.push_back(id);
            }
        }
        let waiting = mem::take(&mut closing.waiting);
        self.rooms.remove(&id);
        self.again(id, waiting);
    }

    /// Carries on with requests that waited.
    fn again(&mut self, room: RoomId, waiting: VecDeque<Asked>) {
        for (conn, action, permit) in waiting {
            self.request(conn, RoomRequest { room, action }, permit);
        }
    }

    /// Keeps to the budget of recent messages. What live members have not been given yet stays.
    fn forget_tails(&mut self) {
        let mut entries = self.tails.len();
        while self.tails.exceeds() && entries > 0 {
            entries -= 1;
            let Some((id, stamp)) = self.tails.oldest() else { break };
            self.forget_tail(id, stamp);
        }
        let rooms = &self.rooms;
        self.tails.tidy(rooms.len(), |id, stamp| matches!(rooms.get(id), Some(Slot::Ready(room)) if room.tail.is(stamp)));
        let (bytes, told) = (self.tails.bytes(), mem::replace(&mut self.told_bytes, self.tails.bytes()));
        self.ctx.stats.recent_bytes += bytes.cast_signed() as i64 - told.cast_signed() as i64;
    }

    /// Forgets a room's recent messages, if this entry of it counts.
    fn forget_tail(&mut self, id: RoomId, stamp: u64) {
        if let Some(Slot::Ready(room)) = self.rooms.get_mut(&id)
            && room.tail.is(stamp)
        {
            room.log.forget_recent(room.shown);
            room.tail.leave();
            self.tails.touch(id, &mut room.tail, room.log.recent_bytes(), self.ctx.now_ms);
        }
    }

    /// Lets go of recent messages that nobody has looked after for long, a bounded part of them. A turn ends after it. The shell calls
    /// this about once a second, as long as there are any.
    pub fn rest(&mut self, now_ms: UnixMillis) {
        self.ctx.now_ms = now_ms;
        let enough = self.tails.bytes().saturating_sub(REST_BYTES);
        for _ in 0..REST_ROOMS {
            let Some((id, stamp)) = self.tails.rested(now_ms) else { return };
            self.forget_tail(id, stamp);
            if self.tails.bytes() <= enough {
                return;
            }
        }
    }

    /// Whether some room wants another slice: the shell ends another turn, having handled what has come meanwhile.
    #[must_use]
    pub fn wants_turn(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether some room waits for the engine to be less busy, or to work again: the shell calls [`Shard::tick`] after some
    /// 10 ms.
    #[must_use]
    pub fn wants_tick(&self) -> bool {
        !self.ctx.retry.is_empty()
    }

    /// Whether so many requests wait for their rooms that the shell lets further messages wait in the mailbox, and so their
    /// connections.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.ctx.queued >= WAITING_MAX
    }

    /// Tries again what the engine was too busy for, or failed at. A turn ends after it.
    pub fn tick(&mut self) {
        for id in mem::take(&mut self.ctx.retry) {
            if let Some(room) = self.room(id) {
                room.ticked();
            }
        }
    }

    /// Rooms in memory.
    #[must_use]
    pub fn rooms_len(&self) -> usize {
        self.rooms.len()
    }

    /// Devices in memory whose key packages are asked for.
    #[must_use]
    pub fn directory_len(&self) -> usize {
        self.directory.len()
    }

    /// What was sent and not yet taken: for each home, its connections' frames in order. The shell empties the lists at the end
    /// of each turn.
    pub fn sent(&mut self) -> &mut [Vec<Sent>] {
        &mut self.ctx.sent
    }

    /// What happened since this was last called.
    pub fn take_stats(&mut self) -> Stats {
        mem::take(&mut self.ctx.stats)
    }

    /// Bytes of recent messages in memory.
    #[must_use]
    pub const fn recent_bytes(&self) -> usize {
        self.tails.bytes()
    }

    /// A loaded room, to be looked after at the end of the turn.
    fn room(&mut self, id: RoomId) -> Option<&mut Room> {
        match self.rooms.get_mut(&id)? {
            Slot::Ready(room) => {
                if !room.touched {
                    room.touched = true;
                    self.ready.push_back(id);
                }
                Some(room)
            }
            Slot::Loading(_) | Slot::Closing(_) => None,
        }
    }

    fn request(&mut self, conn: Arc<Conn>, RoomRequest { room: id, action }: RoomRequest, permit: Permit) {
        match self.rooms.get_mut(&id) {
            Some(Slot::Ready(room)) => {
                if !room.touched {
                    room.touched = true;
                    self.ready.push_back(id);
                }
                if let Some((conn, action, _permit)) = room.ask(conn, action, permit, self.turn, &mut self.ctx) {
                    reject(&mut self.ctx, &conn, id, &action, Refusal::Overloaded);
                }
            }
            Some(Slot::Loading(waiting)) if waiting.len() < WAITING_MAX => waiting.push_back((conn, action, permit)),
            Some(Slot::Closing(closing)) if closing.waiting.len() < WAITING_MAX => {
                closing.waiting.push_back((conn, action, permit))
            }
            Some(Slot::Loading(_) | Slot::Closing(_)) => reject(&mut self.ctx, &conn, id, &action, Refusal::Overloaded),
            None => {
                // Only these mean anything in a room that the session has not entered.
                if matches!(
                    action,
                    Action::Create { .. } | Action::Enter { .. } | Action::Publish(_) | Action::ShowDropBox | Action::Post { .. }
                ) {
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
        for id in self.ctx.relieved(conn) {
            if let Some(room) = self.room(id) {
                room.relieved(conn);
            }
        }
    }

    fn closed(&mut self, conn: ConnId) {
        for id in self.ctx.gone(conn) {
            self.room(id);
            match self.rooms.get_mut(&id) {
                Some(Slot::Ready(room)) => room.leave(conn, &mut self.ctx),
                Some(Slot::Closing(closing)) => {
                    if let Some(member) = closing.members.remove(&conn) {
                        member.conn.leave();
                    }
                }
                Some(Slot::Loading(_)) | None => {}
            }
        }
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
            Some(Op::Refresh { room, life }) => self.with(room, Some(life), |room, _| {
                room.refreshed(result.and_then(records));
                Fate::Keep
            }),
            Some(Op::Seek { room: id, life, conn, request, permit }) => {
                self.with(id, Some(life), |room, ctx| {
                    room.sought(&conn, request, result.and_then(|answer| sought(&answer)), ctx);
                    Fate::Keep
                });
                drop(permit);
            }
            Some(Op::Handshake { room: id, life, conn, request, seq, whole, permit }) => {
                self.with(id, Some(life), |room, ctx| {
                    room.handshake_read(&conn, (request, seq, whole), result.and_then(records), ctx);
                    Fate::Keep
                });
                drop(permit);
            }
            Some(Op::DropBox { room, life }) => self.with(room, Some(life), |room, ctx| {
                room.drop_box_done(result, ctx);
                Fate::Keep
            }),
            Some(Op::Forget) => {}
            Some(Op::Packages { device }) => self.directory.completed(device, result, &mut self.ctx),
            Some(Op::Delete { room }) => self.with(room, None, |room, ctx| room.deleted(result.map(drop), ctx)),
        }
    }

    /// Does something with a loaded room, if it is still the one that was meant.
    fn with(&mut self, id: RoomId, life: Option<u64>, act: impl FnOnce(&mut Room, &mut Context) -> Fate) {
        self.room(id);
        if let Some(Slot::Ready(room)) = self.rooms.get_mut(&id)
            && life.is_none_or(|life| room.life == life)
        {
            let fate = act(room, &mut self.ctx);
            self.settle(id, fate);
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
    fn take_waiting(&mut self, id: RoomId) -> VecDeque<Asked> {
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
        self.again(id, waiting);
    }

    /// There is no such log. The first creation that waits makes it; what came before that is refused.
    fn absent(&mut self, id: RoomId) {
        let mut waiting = self.take_waiting(id);
        while let Some((conn, action, permit)) = waiting.pop_front() {
            let Action::Create { access, kind } = action else {
                reject(&mut self.ctx, &conn, id, &action, Refusal::NoAccess);
                continue;
            };
            let log = (self.ctx.setup.log_id)();
            let meta = LogMeta { log, kind, access, creator: conn.device, created_ms: self.ctx.now_ms };
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
                self.ctx.answer(conn, &ServerFrame::Created { room: id, log: meta.log });
                self.ready(
                    id,
                    LoadedLog { meta, state: LogState::empty(id), former: FormerKeys::default(), producers: Vec::new() },
                );
            }
            Err(failure) => {
                fail(&mut self.ctx, conn, id, Operation::Create, refusal(failure));
                // What waited behind it is decided by what is there: nothing, or a log that another owner made.
                let waiting = self.take_waiting(id);
                self.again(id, waiting);
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

const fn sought(answer: &Answer) -> Result<crate::core::id::Seq, Failure> {
    match answer {
        Answer::Sought(seq) => Ok(*seq),
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
        Action::Seek { .. } => Operation::Seek,
        Action::Handshake { .. } => Operation::Handshake,
        Action::Publish(publish) => return refuse(ctx, conn, publish, why),
        Action::PutDropBox { .. } | Action::ShowDropBox | Action::Post { .. } => {
            return super::dropbox::refuse(ctx, conn, room, action, why);
        }
        // They have no answer, and nothing to undo.
        Action::Leave | Action::Unsubscribe => return,
    };
    fail(ctx, conn, room, what, why);
}
