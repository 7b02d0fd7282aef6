//! One room at its shard: its log, its members, what waits for the engine. Requests and appends are here, delivery is in
//! `delivery` and `reads`.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    sync::Arc,
};

use super::{
    Conn, ConnId,
    context::{Context, Op, Slices, work_of},
    delivery::Broadcast,
    outbox::Permit,
    presence::{Knows, Presence},
    reads::Feeding,
};
use crate::{
    core::{
        close::Refusal,
        envelope,
        frame::{LogKind, Operation, Publish, ServerFrame},
        id::{AccessKey, ClientSeq, ProducerId, RoomId, Seq, Signature, UnixMillis},
        log::{Append, LoadedLog, LogMeta, Records},
        login,
        room::{RoomLog, Verdict},
        session::Action,
    },
    engine::{self, Failure},
};

/// A loaded room.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) id: RoomId,
    /// Tells this room from another one that has the same id after this one was deleted.
    pub(super) life: u64,
    pub(super) log: RoomLog,
    pub(super) members: Members,
    /// How many of them are live.
    pub(super) live: usize,
    /// Requests that wait for the room's next slice, and the work of those that did not wait, in which turn.
    pub(super) inbox: VecDeque<Asked>,
    taken: (u64, u64),
    /// Who waits for each pending append, in the order of their seqs.
    pub(super) waiters: VecDeque<Vec<(Arc<Conn>, Permit)>>,
    /// Members may have been given everything up to here, and nothing beyond.
    pub(super) shown: Seq,
    /// Envelope bytes that are durable and not yet shown.
    pub(super) unshown_bytes: usize,
    /// What is not yet shown waits until the log is durable up to here.
    pub(super) gathering: Option<Seq>,
    /// What is on its way to the live members.
    pub(super) broadcast: Option<Broadcast>,
    /// Ephemeral envelopes to be passed on, and whom they are from.
    pub(super) ephemerals: Vec<(ConnId, bytes::Bytes)>,
    /// The last broadcast was of these.
    pub(super) ephemerals_last: bool,
    /// Members to be fed, and those that wait for `shown` to reach their cursor.
    pub(super) hungry: VecDeque<ConnId>,
    pub(super) parked: VecDeque<ConnId>,
    /// While members are fed history.
    pub(super) feeding: Option<Box<Feeding>>,
    pub(super) presence: Presence,
    /// Subscribers that may have to be told of who is there, besides what changes.
    pub(super) uninformed: Vec<ConnId>,
    /// Requests to the engine that are not answered, besides appends and reads.
    pub(super) in_flight: u32,
    /// Whether the engine is asked where the log stands, and when that was last asked.
    refreshing: bool,
    refreshed_ms: Option<UnixMillis>,
    /// Who asked for the deletion, which waits until no append is pending.
    deleting: Vec<(Arc<Conn>, Permit)>,
    submitted: Submitted,
    /// Whether the shard will give it a slice.
    pub(super) touched: bool,
    /// Its place among the shard's recent tails.
    pub(super) tail: super::tails::Place,
    /// Once somebody has asked for it.
    pub(super) drop_box: Option<Box<super::dropbox::Slot>>,
}

/// Members of a room. Boxed, because a node of the tree has places for eleven, and most rooms have fewer.
pub(super) type Members = BTreeMap<ConnId, Box<Member>>;

/// A request and its connection.
pub(super) type Asked = (Arc<Conn>, Action, Permit);

/// The engine is asked where a full log stands at most so often.
const REFRESH_MS: u64 = 2_000;

/// Which request that concerns the whole log is with the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Submitted {
    Nothing,
    Reload,
    Delete,
    /// The reload failed: nothing is asked before the next tick.
    Paused,
}

/// A session that has entered.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) conn: Arc<Conn>,
    /// The record that brought the access key that it has proved; 0 if the room was made with it.
    pub(super) since: Seq,
    pub(super) cursor: Cursor,
    /// Whether `Subscribed` was sent for this cursor.
    pub(super) announced: bool,
    /// Whether it is in one of the room's queues.
    pub(super) waits: bool,
    /// Whether the shard will come back to it when its outbox has room.
    pub(super) stalled: bool,
    pub(super) knows: Knows,
}

/// Where delivery to a member stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cursor {
    /// Not subscribed.
    Off,
    /// It was given everything up to here, and is part of every broadcast of what follows.
    Live(Seq),
    /// It was given everything up to here, and is fed at its own pace.
    Behind(Seq),
}

impl Member {
    const fn new(conn: Arc<Conn>, since: Seq) -> Self {
        Self { conn, since, cursor: Cursor::Off, announced: false, waits: false, stalled: false, knows: Knows::Nothing }
    }
}

/// What becomes of a room after its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It stays in memory.
    Keep,
    /// It stays, and wants another slice.
    More,
    /// Nobody needs it there.
    Drop,
    /// Its log is gone, and its members must hear it.
    Close,
}

pub(super) fn fail(ctx: &mut Context, conn: &Conn, room: RoomId, what: Operation, why: Refusal) {
    ctx.stats.refused(why);
    ctx.answer(conn, &ServerFrame::Failed { room, what, why });
}

pub(super) fn refuse(ctx: &mut Context, conn: &Conn, publish: &Publish, why: Refusal) {
    let Publish { room, producer, client_seq, .. } = *publish;
    ctx.stats.refused(why);
    ctx.answer(conn, &ServerFrame::Refused { room, producer, client_seq, why });
}

pub(super) const fn refusal(failure: Failure) -> Refusal {
    match failure {
        Failure::NotFound => Refusal::NoAccess,
        Failure::Exists => Refusal::RoomExists,
        Failure::DiskFull => Refusal::DiskFull,
        Failure::OutcomeUnknown => Refusal::OutcomeUnknown,
        // Nothing of this record was stored; what precedes it was refused for its own reason.
        Failure::Gap => Refusal::Overloaded,
        Failure::Read => Refusal::Internal,
    }
}

impl Room {
    pub(super) fn new(id: RoomId, life: u64, loaded: LoadedLog) -> Self {
        let shown = loaded.state.head;
        Self {
            id,
            life,
            log: RoomLog::new(id, loaded),
            members: Members::new(),
            live: 0,
            inbox: VecDeque::new(),
            taken: (0, 0),
            waiters: VecDeque::new(),
            shown,
            unshown_bytes: 0,
            gathering: None,
            broadcast: None,
            ephemerals: Vec::new(),
            ephemerals_last: false,
            hungry: VecDeque::new(),
            parked: VecDeque::new(),
            feeding: None,
            presence: Presence::new(),
            uninformed: Vec::new(),
            in_flight: 0,
            refreshing: false,
            refreshed_ms: None,
            deleting: Vec::new(),
            submitted: Submitted::Nothing,
            touched: false,
            tail: super::tails::Place::default(),
            drop_box: None,
        }
    }

    /// A request comes: it is carried out, unless the room had its share of this turn, or others wait already.
    pub(super) fn ask(&mut self, conn: Arc<Conn>, action: Action, permit: Permit, turn: u64, ctx: &mut Context) -> Option<Asked> {
        if self.taken.0 != turn {
            self.taken = (turn, 0);
        }
        let Slices { intake, .. } = ctx.setup.slices;
        if self.inbox.is_empty() && self.taken.1 < intake.into() {
            let (known, before) = (work_of(&action), ctx.work);
            self.request(&conn, action, permit, ctx);
            // What it cost besides is known only now: a page from memory, say, is encoded at once.
            self.taken.1 += known + (ctx.work - before);
        } else if self.inbox.len() < super::shard::WAITING_MAX {
            self.inbox.push_back((conn, action, permit));
            ctx.queued += 1;
        } else {
            return Some((conn, action, permit));
        }
        None
    }

    /// Requests that waited, one slice of them.
    fn answer_waiting(&mut self, ctx: &mut Context) {
        let end = ctx.slice_end();
        while ctx.work < end
            && let Some((conn, action, permit)) = self.inbox.pop_front()
        {
            ctx.work += work_of(&action);
            ctx.queued -= 1;
            self.request(&conn, action, permit, ctx);
        }
    }

    /// One request of a session. The permit lives until it is answered.
    pub(super) fn request(&mut self, conn: &Arc<Conn>, action: Action, permit: Permit, ctx: &mut Context) {
        match action {
            Action::Create { access, kind } => self.created(conn, access, kind, ctx),
            Action::Enter { handshake, proof } => self.enter(conn, handshake, proof, ctx),
            Action::Leave => self.leave(conn.id, ctx),
            Action::Publish(publish) => self.publish(conn, publish, permit, ctx),
            Action::Unsubscribe => self.unsubscribe(conn.id),
            Action::Subscribe { after } => match self.members.contains_key(&conn.id) {
                true => self.subscribe(conn, after, ctx),
                false => fail(ctx, conn, self.id, Operation::Subscribe, Refusal::NoAccess),
            },
            Action::Fetch { request, before, count_max } => match self.may(conn.id) {
                true => self.fetch(conn, request, before, count_max, permit, ctx),
                false => fail(ctx, conn, self.id, Operation::Fetch, Refusal::NoAccess),
            },
            Action::Ephemeral { envelope } => match self.may(conn.id) {
                true => self.ephemeral(conn.id, envelope, ctx),
                false => fail(ctx, conn, self.id, Operation::Ephemeral, Refusal::NoAccess),
            },
            Action::Delete => self.delete(conn, permit, ctx),
            Action::Seek { request, time_ms } => match self.may(conn.id) {
                true => self.seek(conn, request, time_ms, permit, ctx),
                false => fail(ctx, conn, self.id, Operation::Seek, Refusal::NoAccess),
            },
            Action::Handshake { request, before, whole } => match self.may_read(conn.id, before.saturating_sub(1)) {
                true => self.handshake(conn, (request, before, whole), permit, ctx),
                false => fail(ctx, conn, self.id, Operation::Handshake, Refusal::NoAccess),
            },
            action @ (Action::PutDropBox { .. } | Action::ShowDropBox | Action::Post { .. }) => {
                self.ask_drop_box((Arc::clone(conn), action, permit), ctx);
            }
        }
    }

    /// A creation of what exists: the same one again, or another one.
    fn created(&self, conn: &Conn, access: AccessKey, kind: LogKind, ctx: &mut Context) {
        let LogMeta { log, kind: made, creator, .. } = *self.log.meta();
        let opened = self.log.opening(0).map(|(_, key)| key);
        if (opened, made, creator) == (Some(access), kind, conn.device) {
            ctx.answer(conn, &ServerFrame::Created { room: self.id, log });
        } else {
            fail(ctx, conn, self.id, Operation::Create, Refusal::RoomExists);
        }
    }

    fn enter(&mut self, conn: &Arc<Conn>, handshake: Seq, proof: Signature, ctx: &mut Context) {
        if conn.outbox.is_closed() {
            return; // Its end was announced already, or will be: nobody would remove it again.
        }
        let message = login::access_message(conn.binding, self.id);
        let opening = self.log.opening(handshake).filter(|(_, key)| proof.verifies(&key.0, &message));
        // Where the record that replaced the key was trimmed, the key leads nowhere any more.
        let floor = self.log.durable().floor;
        let Some((since, _)) = opening.filter(|(since, _)| self.log.until(*since) >= floor) else {
            return fail(ctx, conn, self.id, Operation::Enter, Refusal::BadProof);
        };
        if let Some(member) = self.members.get_mut(&conn.id) {
            member.since = member.since.max(since);
        } else {
            if let Err(why) = conn.enter(&ctx.limits) {
                return fail(ctx, conn, self.id, Operation::Enter, why);
            }
            self.members.insert(conn.id, Box::new(Member::new(Arc::clone(conn), since)));
            ctx.entered(conn.id, self.id);
        }
        let (position, handshake) = (self.log.position(), self.log.durable().handshake);
        ctx.answer(conn, &ServerFrame::Entered { room: self.id, position, handshake });
    }

    /// Whether the session has entered by the access key that is in force: who did by a former one only reads on, up to the record
    /// that replaced it.
    pub(super) fn may(&self, conn: ConnId) -> bool {
        self.members.get(&conn).is_some_and(|member| self.log.until(member.since) == Seq::MAX)
    }

    /// Whether the session may have the record at `seq`, wherever it has read to.
    pub(super) fn may_read(&self, conn: ConnId, seq: Seq) -> bool {
        self.members.get(&conn).is_some_and(|member| seq <= self.log.until(member.since))
    }

    /// Has a session leave that was given the record which replaced the access key that it had proved.
    pub(super) fn put_out(&mut self, conn: ConnId, ctx: &mut Context) {
        let Some(conn) = self.members.get(&conn).map(|member| Arc::clone(&member.conn)) else { return };
        self.leave(conn.id, ctx);
        fail(ctx, &conn, self.id, Operation::Subscribe, Refusal::NoAccess);
    }

    pub(super) fn leave(&mut self, conn: ConnId, ctx: &mut Context) {
        self.unsubscribe(conn);
        if let Some(member) = self.members.remove(&conn) {
            member.conn.leave();
            ctx.left(conn, self.id);
        }
    }

    fn publish(&mut self, conn: &Arc<Conn>, publish: Publish, permit: Permit, ctx: &mut Context) {
        let may =
            self.may(conn.id) || self.log.meta().kind == LogKind::Inbox || self.log.puts_key_back(conn.device, &publish.envelope);
        if !may || !self.deleting.is_empty() {
            return refuse(ctx, conn, &publish, Refusal::NoAccess);
        }
        if let Err(why) = conn.usage.publish(envelope::is_handshake(&publish.envelope), ctx.now_ms, &ctx.limits) {
            return refuse(ctx, conn, &publish, why);
        }
        let asked = (publish.room, publish.producer, publish.client_seq);
        let verdict = self.log.publish(conn.device, publish, ctx.now_ms, &ctx.limits);
        self.decided(conn, permit, asked, verdict, ctx);
    }

    /// Carries out what the log has decided about a publish.
    pub(super) fn decided(
        &mut self,
        conn: &Arc<Conn>,
        permit: Permit,
        (room, producer, client_seq): (RoomId, ProducerId, ClientSeq),
        verdict: Verdict,
        ctx: &mut Context,
    ) {
        let refused = |ctx: &mut Context, why| {
            ctx.stats.refused(why);
            ctx.answer(conn, &ServerFrame::Refused { room, producer, client_seq, why });
        };
        match verdict {
            Verdict::Refused(why) => {
                if why == Refusal::RoomFull {
                    self.refresh(ctx);
                }
                refused(ctx, why);
            }
            Verdict::Stored(seq) => {
                ctx.stats.acks += 1;
                ctx.answer(conn, &ServerFrame::Ack { room, producer, client_seq, seq });
            }
            Verdict::Pending(seq) => {
                let index = seq.checked_sub(self.log.durable().head + 1).and_then(|index| usize::try_from(index).ok());
                if let Some(waiters) = index.and_then(|index| self.waiters.get_mut(index)) {
                    waiters.push((Arc::clone(conn), permit));
                }
            }
            Verdict::Append(append) => match ctx.submit(engine::Request::Append(append), Op::Append { room }) {
                Ok(()) => self.waiters.push_back(vec![(Arc::clone(conn), permit)]),
                Err(engine::Busy) => {
                    self.log.unpublish_last();
                    refused(ctx, Refusal::Overloaded);
                }
            },
        }
    }

    /// The oldest pending append is done, one way or the other.
    pub(super) fn appended(&mut self, result: Result<(), Failure>, ctx: &mut Context) {
        let waiters = self.waiters.pop_front().unwrap_or_default();
        let why = match result {
            Ok(()) if !self.log.has_failed() => None,
            // A failure fails all behind it: an engine that then reports success has broken the seam.
            Ok(()) => Some(Refusal::OutcomeUnknown),
            Err(failure) => Some(refusal(failure)),
        };
        if let Some(why) = why {
            if let Some(append) = self.log.failed() {
                let Append { room, producer, client_seq, .. } = append;
                let frame = ServerFrame::Refused { room, producer: producer.id, client_seq, why };
                for (conn, _permit) in waiters {
                    ctx.stats.refused(why);
                    ctx.answer(&conn, &frame);
                }
            }
            return;
        }
        let bytes_max = self.tail_bytes_max(self.log.next_pending_bytes().unwrap_or(0), ctx);
        let Some(append) = self.log.persisted(bytes_max) else { return };
        self.unshown_bytes += append.envelope.len();
        if self.is_nearly_full(ctx) {
            self.refresh(ctx);
        }
        let Append { room, producer, client_seq, seq, .. } = append;
        let frame = ServerFrame::Ack { room, producer: producer.id, client_seq, seq };
        for (conn, _permit) in waiters {
            ctx.stats.acks += 1;
            ctx.answer(&conn, &frame);
        }
    }

    fn delete(&mut self, conn: &Arc<Conn>, permit: Permit, ctx: &mut Context) {
        let why = match () {
            () if !self.may(conn.id) => Refusal::NoAccess,
            () if self.log.meta().creator != conn.device => Refusal::NotCreator,
            () => return self.deleting.push((Arc::clone(conn), permit)),
        };
        fail(ctx, conn, self.id, Operation::Delete, why);
    }

    /// Whether the room keeps almost as many bytes as it may.
    fn is_nearly_full(&self, ctx: &Context) -> bool {
        let bytes_max = match self.log.meta().kind {
            LogKind::Room => ctx.limits.room_bytes_max,
            LogKind::Inbox => ctx.limits.inbox_bytes_max,
        };
        self.log.durable().bytes > bytes_max - bytes_max / 16
    }

    /// Asks the engine where the log stands: it may have trimmed it, so that there is room again.
    fn refresh(&mut self, ctx: &mut Context) {
        let recent = self.refreshed_ms.is_some_and(|at_ms| ctx.now_ms.saturating_sub(at_ms) < REFRESH_MS);
        if self.refreshing || recent {
            return;
        }
        let (room, after) = (self.id, self.log.durable().head);
        let request = engine::Request::ReadAfter { room, after, bytes_max: 1 };
        // An engine that is busy is asked at the next refusal.
        if ctx.submit(request, Op::Refresh { room, life: self.life }).is_ok() {
            self.refreshing = true;
            self.refreshed_ms = Some(ctx.now_ms);
            self.in_flight += 1;
        }
    }

    pub(super) fn refreshed(&mut self, result: Result<Records, Failure>) {
        self.in_flight -= 1;
        self.refreshing = false;
        if let Ok(records) = result {
            self.log.adopt(&records.state);
        }
    }

    /// The deletion is done, or not.
    pub(super) fn deleted(&mut self, result: Result<(), Failure>, ctx: &mut Context) -> Fate {
        self.in_flight -= 1;
        self.submitted = Submitted::Nothing;
        let asked = mem::take(&mut self.deleting);
        match result {
            Ok(()) | Err(Failure::NotFound) => {
                if self.log.meta().kind == LogKind::Room {
                    self.forget_drop_box(ctx);
                }
                Fate::Close
            }
            Err(failure) => {
                for (conn, _permit) in asked {
                    fail(ctx, &conn, self.id, Operation::Delete, refusal(failure));
                }
                Fate::Keep
            }
        }
    }

    /// The log as it is on disk after a failed append.
    pub(super) fn reloaded(&mut self, result: Result<Option<Box<LoadedLog>>, Failure>, ctx: &mut Context) -> Fate {
        self.in_flight -= 1;
        self.submitted = Submitted::Nothing;
        match result {
            Ok(Some(loaded)) => {
                self.log = RoomLog::new(self.id, *loaded);
                Fate::Keep
            }
            Ok(None) => Fate::Close,
            Err(_) => {
                self.submitted = Submitted::Paused;
                ctx.retry(self.id);
                Fate::Keep
            }
        }
    }

    /// Time has passed: what failed is tried again.
    pub(super) fn ticked(&mut self) {
        if self.submitted == Submitted::Paused {
            self.submitted = Submitted::Nothing;
        }
    }

    /// One slice of everything that waits.
    pub(super) fn work(&mut self, ctx: &mut Context) -> Fate {
        self.touched = false;
        self.answer_waiting(ctx);
        self.broadcast(ctx);
        self.feed(ctx);
        self.tell_presence(ctx);
        if self.log.is_quiet() && self.submitted == Submitted::Nothing {
            self.submit_whole(ctx);
        }
        if self.has_more() {
            return Fate::More;
        }
        let idle = self.in_flight == 0 && !self.is_reading() && self.log.is_quiet();
        if idle && self.members.is_empty() && self.deleting.is_empty() { Fate::Drop } else { Fate::Keep }
    }

    /// What it leaves behind when its log is gone: members, and requests that came after.
    pub(super) fn into_rest(self) -> (Members, VecDeque<Asked>) {
        (self.members, self.inbox)
    }

    /// What must wait until no append is pending.
    fn submit_whole(&mut self, ctx: &mut Context) {
        let room = self.id;
        let (request, op, submitted) = if self.log.has_failed() {
            (engine::Request::Load { room }, Op::Load { room }, Submitted::Reload)
        } else if !self.deleting.is_empty() {
            (engine::Request::Delete { room }, Op::Delete { room }, Submitted::Delete)
        } else {
            return;
        };
        if ctx.submit(request, op).is_ok() {
            self.submitted = submitted;
            self.in_flight += 1;
        } else {
            ctx.retry(room);
        }
    }
}
