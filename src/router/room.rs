//! One room at its shard: its log, its members, what waits for the engine. Requests and appends are here, delivery is in
//! `delivery`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use super::{
    Conn, ConnId,
    outbox::Permit,
    presence::Presence,
    shard::{Context, Op},
};
use crate::{
    core::{
        close::Refusal,
        frame::{Item, LogKind, Operation, Page, Publish, ServerFrame},
        id::{AccessKey, DeviceKey, RoomId, Seq, Signature},
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
    pub(super) members: BTreeMap<ConnId, Member>,
    /// Who waits for each pending append, in the order of their seqs.
    waiters: VecDeque<Vec<(Arc<Conn>, Permit)>>,
    /// What live members have been given: everything up to here.
    pub(super) shown: Seq,
    /// Envelope bytes that are durable and not yet shown.
    pub(super) unshown_bytes: usize,
    /// Members to be fed at the end of the turn.
    pub(super) hungry: Vec<ConnId>,
    /// Reads in flight, by cursor, and who waits for each.
    pub(super) reads: HashMap<Seq, Vec<ConnId>>,
    pub(super) presence: Presence,
    /// Whether some subscriber may have to be told of who is there, besides what changes.
    pub(super) presence_due: bool,
    /// Requests to the engine that are not answered, besides appends and reads.
    pub(super) in_flight: u32,
    /// Who asked for the deletion, which waits until no append is pending.
    deleting: Vec<(Arc<Conn>, Permit)>,
    submitted: Submitted,
    /// Whether the shard looks after this room at the end of the turn.
    pub(super) touched: bool,
}

/// Which request that concerns the whole log is with the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Submitted {
    Nothing,
    Reload,
    Delete,
}

/// A session that has entered.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) conn: Arc<Conn>,
    pub(super) cursor: Cursor,
    /// Whether `Subscribed` was sent for this cursor.
    pub(super) announced: bool,
    /// The cursor of the read it waits for.
    pub(super) reading: Option<Seq>,
    /// Whether the shard will come back to it when its outbox has room.
    pub(super) stalled: bool,
    pub(super) knows: Knows,
}

/// Where delivery to a member stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cursor {
    /// Not subscribed.
    Off,
    /// It was given everything that the room has shown.
    Live,
    /// It was given everything up to here, and is fed at its own pace.
    Behind(Seq),
}

/// What a subscriber knows of who is there.
#[derive(Debug)]
pub(super) enum Knows {
    /// Nothing: it must be given the whole list.
    Nothing,
    /// Everything.
    All,
    /// All but what became of these devices.
    AllBut(BTreeSet<DeviceKey>),
}

impl Member {
    const fn new(conn: Arc<Conn>) -> Self {
        Self { conn, cursor: Cursor::Off, announced: false, reading: None, stalled: false, knows: Knows::Nothing }
    }
}

/// What becomes of a room after its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It stays in memory.
    Keep,
    /// Nobody needs it there.
    Drop,
}

pub(super) fn answer(conn: &Conn, frame: &ServerFrame) {
    conn.outbox.push_control(frame.encode());
}

pub(super) fn fail(ctx: &mut Context, conn: &Conn, room: RoomId, what: Operation, why: Refusal) {
    ctx.stats.refused(why);
    answer(conn, &ServerFrame::Failed { room, what, why });
}

pub(super) fn refuse(ctx: &mut Context, conn: &Conn, publish: &Publish, why: Refusal) {
    let Publish { room, producer, client_seq, .. } = *publish;
    ctx.stats.refused(why);
    answer(conn, &ServerFrame::Refused { room, producer, client_seq, why });
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
            members: BTreeMap::new(),
            waiters: VecDeque::new(),
            shown,
            unshown_bytes: 0,
            hungry: Vec::new(),
            reads: HashMap::new(),
            presence: Presence::new(),
            presence_due: false,
            in_flight: 0,
            deleting: Vec::new(),
            submitted: Submitted::Nothing,
            touched: false,
        }
    }

    /// One request of a session. The permit lives until it is answered.
    pub(super) fn request(&mut self, conn: &Arc<Conn>, action: Action, permit: Permit, ctx: &mut Context) {
        match action {
            Action::Create { access, kind, epoch } => self.created(conn, access, kind, epoch, ctx),
            Action::Enter { proof } => self.enter(conn, proof, ctx),
            Action::Leave => self.leave(conn.id, ctx),
            Action::Publish(publish) => self.publish(conn, publish, permit, ctx),
            Action::Unsubscribe => self.unsubscribe(conn.id),
            Action::Subscribe { after } => match self.members.contains_key(&conn.id) {
                true => self.subscribe(conn, after, ctx),
                false => fail(ctx, conn, self.id, Operation::Subscribe, Refusal::NoAccess),
            },
            Action::Fetch { request, before, count_max } => match self.members.contains_key(&conn.id) {
                true => self.fetch(conn, request, before, count_max, permit, ctx),
                false => fail(ctx, conn, self.id, Operation::Fetch, Refusal::NoAccess),
            },
            Action::Ephemeral { envelope } => match self.members.contains_key(&conn.id) {
                true => self.ephemeral(conn.id, envelope, ctx),
                false => fail(ctx, conn, self.id, Operation::Ephemeral, Refusal::NoAccess),
            },
            Action::Delete => self.delete(conn, permit, ctx),
        }
    }

    /// A creation of what exists: the same one again, or another one.
    fn created(&self, conn: &Conn, access: AccessKey, kind: LogKind, epoch: u64, ctx: &mut Context) {
        let LogMeta { log, .. } = *self.log.meta();
        let asked = LogMeta { access, kind, epoch, creator: conn.device, ..self.log.meta().clone() };
        if *self.log.meta() == asked {
            answer(conn, &ServerFrame::Created { room: self.id, log });
        } else {
            fail(ctx, conn, self.id, Operation::Create, Refusal::RoomExists);
        }
    }

    fn enter(&mut self, conn: &Arc<Conn>, proof: Signature, ctx: &mut Context) {
        if conn.outbox.is_closed() {
            return; // Its end was announced already, or will be: nobody would remove it again.
        }
        if !proof.verifies(&self.log.meta().access.0, &login::access_message(conn.binding, self.id)) {
            return fail(ctx, conn, self.id, Operation::Enter, Refusal::BadProof);
        }
        if !self.members.contains_key(&conn.id) {
            if let Err(why) = conn.enter(&ctx.limits) {
                return fail(ctx, conn, self.id, Operation::Enter, why);
            }
            self.members.insert(conn.id, Member::new(Arc::clone(conn)));
            ctx.entered(conn.id, self.id);
        }
        let (position, epoch) = (self.log.position(), self.log.meta().epoch);
        answer(conn, &ServerFrame::Entered { room: self.id, position, epoch });
    }

    pub(super) fn leave(&mut self, conn: ConnId, ctx: &mut Context) {
        self.unsubscribe(conn);
        if let Some(member) = self.members.remove(&conn) {
            member.conn.leave();
            ctx.left(conn, self.id);
        }
    }

    fn publish(&mut self, conn: &Arc<Conn>, publish: Publish, permit: Permit, ctx: &mut Context) {
        let may = self.members.contains_key(&conn.id) || self.log.meta().kind == LogKind::Inbox;
        if !may || !self.deleting.is_empty() {
            return refuse(ctx, conn, &publish, Refusal::NoAccess);
        }
        if let Err(why) = conn.usage.publish(ctx.now_ms, &ctx.limits) {
            return refuse(ctx, conn, &publish, why);
        }
        let Publish { room, producer, client_seq, .. } = publish;
        let refused = |ctx: &mut Context, why| {
            ctx.stats.refused(why);
            answer(conn, &ServerFrame::Refused { room, producer, client_seq, why });
        };
        match self.log.publish(conn.device, publish, ctx.now_ms, &ctx.limits) {
            Verdict::Refused(why) => refused(ctx, why),
            Verdict::Stored(seq) => {
                ctx.stats.acks += 1;
                answer(conn, &ServerFrame::Ack { room, producer, client_seq, seq });
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
                    answer(&conn, &frame);
                }
            }
            return;
        }
        // The recent tail keeps at least what one page holds, so what is not yet shown is still there.
        if self.unshown_bytes + self.log.next_pending_bytes().unwrap_or(0) > ctx.limits.page_bytes_max as usize {
            self.show(ctx);
        }
        let Some(append) = self.log.persisted(ctx.limits.recent_bytes_max.max(ctx.limits.page_bytes_max)) else { return };
        self.unshown_bytes += append.envelope.len();
        let Append { room, producer, client_seq, seq, .. } = append;
        let frame = ServerFrame::Ack { room, producer: producer.id, client_seq, seq };
        for (conn, _permit) in waiters {
            ctx.stats.acks += 1;
            answer(&conn, &frame);
        }
    }

    fn fetch(&mut self, conn: &Arc<Conn>, request: u32, before: Seq, count_max: u32, permit: Permit, ctx: &mut Context) {
        let (room, bytes_max) = (self.id, ctx.limits.page_bytes_max);
        let read = engine::Request::ReadBefore { room, before, count_max: count_max.max(1), bytes_max };
        let op = Op::ReadBefore { room, life: self.life, conn: Arc::clone(conn), request, permit };
        match ctx.submit(read, op) {
            Ok(()) => self.in_flight += 1,
            Err(engine::Busy) => fail(ctx, conn, room, Operation::Fetch, Refusal::Overloaded),
        }
    }

    /// A page before some seq was read, or not.
    pub(super) fn fetched(&mut self, conn: &Conn, request: u32, result: Result<Records, Failure>, ctx: &mut Context) {
        self.in_flight -= 1;
        if !self.members.contains_key(&conn.id) {
            return fail(ctx, conn, self.id, Operation::Fetch, Refusal::NoAccess);
        }
        match result {
            Ok(records) => {
                let page = self.page(&records, records.state.floor);
                answer(conn, &ServerFrame::Fetched { request, page });
            }
            Err(failure) => fail(ctx, conn, self.id, Operation::Fetch, refusal(failure)),
        }
    }

    /// Records as a page. The engine may be ahead of the completions that have arrived here.
    pub(super) fn page(&self, records: &Records, first: Seq) -> Page {
        let mut position = self.log.position();
        position.head = position.head.max(records.state.head);
        let first = records.records.first().map_or(first, |record| record.seq);
        let item = |record: &crate::core::log::Record| Item { time_ms: record.time_ms, envelope: record.envelope.clone() };
        Page { room: self.id, position, first, chain: records.before, items: records.records.iter().map(item).collect() }
    }

    fn delete(&mut self, conn: &Arc<Conn>, permit: Permit, ctx: &mut Context) {
        let why = match () {
            () if !self.members.contains_key(&conn.id) => Refusal::NoAccess,
            () if self.log.meta().creator != conn.device => Refusal::NotCreator,
            () => return self.deleting.push((Arc::clone(conn), permit)),
        };
        fail(ctx, conn, self.id, Operation::Delete, why);
    }

    /// The deletion is done, or not.
    pub(super) fn deleted(&mut self, result: Result<(), Failure>, ctx: &mut Context) -> Fate {
        self.in_flight -= 1;
        self.submitted = Submitted::Nothing;
        let asked = std::mem::take(&mut self.deleting);
        match result {
            Ok(()) | Err(Failure::NotFound) => {
                self.close(ctx);
                Fate::Drop
            }
            Err(failure) => {
                for (conn, _permit) in asked {
                    fail(ctx, &conn, self.id, Operation::Delete, refusal(failure));
                }
                Fate::Keep
            }
        }
    }

    /// The log is gone: tells every member, and forgets them.
    pub(super) fn close(&mut self, ctx: &mut Context) {
        let frame = ServerFrame::Deleted { room: self.id }.encode();
        for (id, member) in std::mem::take(&mut self.members) {
            member.conn.outbox.push_control(frame.clone());
            member.conn.leave();
            ctx.left(id, self.id);
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
            Ok(None) => {
                self.close(ctx);
                Fate::Drop
            }
            Err(_) => {
                ctx.retry(self.id);
                Fate::Keep
            }
        }
    }

    /// Everything that waits for the end of a turn.
    pub(super) fn end_turn(&mut self, ctx: &mut Context) -> Fate {
        self.touched = false;
        self.show(ctx);
        self.feed_hungry(ctx);
        self.tell_presence(ctx);
        if self.log.is_quiet() && self.submitted == Submitted::Nothing {
            self.submit_whole(ctx);
        }
        let idle = self.in_flight == 0 && self.reads.is_empty() && self.log.is_quiet();
        if idle && self.members.is_empty() && self.deleting.is_empty() { Fate::Drop } else { Fate::Keep }
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
