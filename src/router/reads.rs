//! Catching up, and history: from memory where it has them, else from the engine, with one read for everybody who is near.
//!
//! Members that memory cannot serve wait by cursor. A read begins at the lowest cursor that waits and that no read in
//! flight is expected to cover; what it brings is held until everybody whose cursor lies within it has been fed from it, each
//! distinct beginning encoded once. Who begins to wait while a round of reads is under way has its turn in the next round, so
//! that nobody who reads long stretches keeps others waiting.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    sync::Arc,
};

use bytes::Bytes;

use super::{
    Conn, ConnId,
    context::{Context, Op, work_of_bytes},
    delivery::last,
    outbox::Permit,
    room::{Cursor, Room, fail, refusal},
};
use crate::{
    core::{
        chain,
        close::Refusal,
        frame::{Operation, Page, ServerFrame},
        id::{Digest, RoomId, Seq, UnixMillis},
        lane::Lane,
        log::{Record, Records},
    },
    engine::{self, Failure},
};

/// Reads of one room for its subscribers, in flight or held, at a time.
const READS_MAX: usize = 4;
/// Bytes of pages that are kept encoded while members who may want the same ones are fed.
const ENCODED_BYTES_MAX: usize = 1 << 20;

/// Who waits for the engine.
#[derive(Debug, Default)]
pub(super) struct Reads {
    /// This round, by cursor.
    now: BTreeMap<Seq, Vec<ConnId>>,
    /// The next one.
    next: BTreeMap<Seq, Vec<ConnId>>,
    /// In flight: where they begin, and where they are expected to end.
    flying: Vec<(Seq, Seq)>,
}

impl Reads {
    fn wait(&mut self, after: Seq, id: ConnId) {
        self.next.entry(after).or_default().push(id);
    }

    /// Where to read next.
    fn cursor(&mut self) -> Option<Seq> {
        if self.now.is_empty() {
            mem::swap(&mut self.now, &mut self.next);
        }
        let mut from = 0;
        loop {
            let cursor = *self.now.range(from..).next()?.0;
            match self.flying.iter().find(|(start, end)| (*start..*end).contains(&cursor)) {
                None => return Some(cursor),
                Some((_, end)) => from = *end,
            }
        }
    }

    /// Everybody whose cursor is in `from..=to`, by cursor.
    fn take(&mut self, from: Seq, to: Seq) -> VecDeque<ConnId> {
        let mut taken: BTreeMap<Seq, Vec<ConnId>> = BTreeMap::new();
        for round in [&mut self.now, &mut self.next] {
            let mut middle = round.split_off(&from);
            let mut above = to.checked_add(1).map(|beyond| middle.split_off(&beyond)).unwrap_or_default();
            round.append(&mut above);
            for (cursor, waiting) in middle {
                taken.entry(cursor).or_default().extend(waiting);
            }
        }
        taken.into_values().flatten().collect()
    }
}

/// Members that are fed history, and what they are fed.
#[derive(Debug, Default)]
pub(super) struct Feeding {
    /// Pages of the recent tail, encoded, by the cursor that they follow: for those who are fed in this slice.
    encoded: BTreeMap<Seq, Encoded>,
    /// Members that wait for the engine, and what it has read for them.
    reads: Reads,
    held: VecDeque<Held>,
}

impl Feeding {
    /// Whether there is something that a read has brought.
    pub(super) fn has_held(&self) -> bool {
        !self.held.is_empty()
    }

    /// More is shown: what was encoded may go on.
    pub(super) fn forget_encoded(&mut self) {
        self.encoded.clear();
    }

    fn is_over(&self) -> bool {
        let Reads { now, next, flying } = &self.reads;
        self.encoded.is_empty() && self.held.is_empty() && now.is_empty() && next.is_empty() && flying.is_empty()
    }
}

/// What a read has brought, until everybody who waited for it was fed.
#[derive(Debug)]
pub(super) struct Held {
    /// The lowest cursor that it serves: that of the read, or 0 when what precedes the first record was trimmed.
    from: Seq,
    /// The seq before the first record.
    after: Seq,
    /// The chain value there.
    before: Digest,
    records: Vec<Record>,
    /// The chain values of the first of them, as far as somebody began behind them.
    chains: Vec<Digest>,
    waiting: VecDeque<ConnId>,
    /// The page that was fed last, by its cursor.
    encoded: Option<(Seq, Encoded)>,
}

/// A page, encoded.
#[derive(Debug, Clone)]
pub(super) struct Encoded {
    frame: Bytes,
    last: Seq,
    items: u64,
}

impl Encoded {
    fn new(page: Page, ctx: &mut Context) -> Self {
        let (last, items) = (last(&page), page.items.len() as u64);
        let frame = ServerFrame::Deliver(page).encode();
        ctx.work += work_of_bytes(frame.len());
        ctx.stats.pages_encoded += 1;
        Self { frame, last, items }
    }
}

impl Held {
    /// The seq of the last record; the one before the first if there is none.
    const fn last(&self) -> Seq {
        self.after + self.records.len() as u64
    }

    /// Whether it can serve a member at this cursor.
    const fn serves(&self, cursor: Seq) -> bool {
        cursor >= self.from && (cursor <= self.after || cursor < self.last())
    }

    fn skip(&self, cursor: Seq) -> usize {
        usize::try_from(cursor.saturating_sub(self.after)).unwrap_or(usize::MAX)
    }

    /// The chain value at `cursor`. Each is computed once.
    fn chain_at(&mut self, room: RoomId, cursor: Seq, ctx: &mut Context) -> Digest {
        let (skip, known) = (self.skip(cursor), self.chains.len());
        let missing = self.records.get(known..skip).unwrap_or_default();
        let last = self.chains.last().copied().unwrap_or(self.before);
        ctx.work += missing.iter().map(|record| 2 + work_of_bytes(record.envelope.len())).sum::<u64>();
        self.chains.extend(chain::along(room, last, missing));
        skip.checked_sub(1).and_then(|index| self.chains.get(index)).copied().unwrap_or(self.before)
    }
}

impl Room {
    /// Feeds who is behind, one slice: a page each, and then it is the next one's turn.
    pub(super) fn feed(&mut self, ctx: &mut Context) {
        let end = ctx.slice_end();
        while ctx.work < end {
            ctx.work += 1;
            if let Some(mut held) = self.feeding.as_mut().and_then(|feeding| feeding.held.pop_front()) {
                if let Some(id) = held.waiting.pop_front() {
                    self.feed_held(id, &mut held, ctx);
                    self.feeding().held.push_front(held);
                }
            } else if let Some(id) = self.hungry.pop_front() {
                self.feed_recent(id, ctx);
            } else {
                if let Some(feeding) = &mut self.feeding {
                    feeding.forget_encoded();
                }
                break;
            }
        }
        self.read_more(ctx);
        self.feeding.take_if(|feeding| feeding.is_over());
    }

    fn feeding(&mut self) -> &mut Feeding {
        self.feeding.get_or_insert_default()
    }

    /// Whether the engine is reading for its members.
    pub(super) fn is_reading(&self) -> bool {
        self.feeding.as_ref().is_some_and(|feeding| !feeding.reads.flying.is_empty())
    }

    /// The cursor of a member that is behind and has room for a page. It waits for nothing now.
    fn ready(&mut self, id: ConnId, ctx: &mut Context) -> Option<Seq> {
        let member = self.members.get_mut(&id)?;
        member.waits = false;
        let Cursor::Behind(after) = member.cursor else { return None };
        // Records behind the cursor were trimmed: the subscription begins anew where the log begins.
        let after = after.max(self.log.durable().floor - 1);
        if after >= self.log.until(member.since) {
            self.put_out(id, ctx);
            return None;
        }
        if !member.conn.outbox.has_room(ctx.index) {
            member.stall(self.id, ctx);
            return None;
        }
        self.move_to(id, after);
        Some(after)
    }

    /// Moves a cursor on, over what is not there any more.
    fn move_to(&mut self, id: ConnId, after: Seq) {
        if let Some(member) = self.members.get_mut(&id)
            && member.cursor != Cursor::Behind(after)
        {
            member.cursor = Cursor::Behind(after);
            member.announced = false;
        }
    }

    fn is_announced(&self, id: ConnId) -> bool {
        self.members.get(&id).is_some_and(|member| member.announced)
    }

    /// Gives a member that is behind one page from memory, or has it wait for the engine.
    fn feed_recent(&mut self, id: ConnId, ctx: &mut Context) {
        let Some(after) = self.ready(id, ctx) else { return };
        if !self.is_announced(id) {
            match self.log.chain_at(after) {
                Some(chain) => self.announce(id, after, chain, ctx),
                None => return self.wait(id, after),
            }
        }
        if after >= self.shown {
            return self.arrived(id, after);
        }
        match self.encoded_recent(after, ctx) {
            Some(page) => self.give(id, &page, ctx),
            None => self.wait(id, after),
        }
    }

    /// It has everything that was shown: it is live, or what it has already is about to be shown.
    fn arrived(&mut self, id: ConnId, after: Seq) {
        let Some(member) = self.members.get_mut(&id) else { return };
        if after == self.shown {
            member.cursor = Cursor::Live(after);
            self.live += 1;
        } else {
            member.waits = true;
            self.parked.push_back(id);
        }
    }

    fn wait(&mut self, id: ConnId, after: Seq) {
        if let Some(member) = self.members.get_mut(&id) {
            member.waits = true;
            self.feeding().reads.wait(after, id);
        }
    }

    fn give(&mut self, id: ConnId, page: &Encoded, ctx: &mut Context) {
        let Some(member) = self.members.get_mut(&id) else { return };
        if member.push_page(Lane::History, &page.frame, self.id, ctx) {
            member.cursor = Cursor::Behind(page.last);
            ctx.stats.delivered(page.items, page.frame.len());
            self.hunger(id);
        }
    }

    /// What follows `after` in memory, encoded once for all who are there.
    fn encoded_recent(&mut self, after: Seq, ctx: &mut Context) -> Option<Encoded> {
        if let Some(page) = self.feeding.as_ref().and_then(|feeding| feeding.encoded.get(&after)) {
            return Some(page.clone());
        }
        let upto = self.shown.min(self.log.page_end(after));
        let page = self.log.recent_between(after, upto, ctx.catch_up_bytes_max()).filter(|page| !page.items.is_empty())?;
        let page = Encoded::new(page, ctx);
        let encoded = &mut self.feeding().encoded;
        if encoded.values().map(|page| page.frame.len()).sum::<usize>() > ENCODED_BYTES_MAX {
            encoded.clear();
        }
        encoded.insert(after, page.clone());
        Some(page)
    }

    /// As [`Room::feed_recent`], from what a read has brought.
    fn feed_held(&mut self, id: ConnId, held: &mut Held, ctx: &mut Context) {
        let Some(mut after) = self.ready(id, ctx) else { return };
        if !held.serves(after) {
            return self.hunger(id); // It subscribed anew meanwhile.
        }
        if after < held.after {
            after = held.after; // Trimmed, and this room has not heard of it yet.
            self.move_to(id, after);
            if self.members.get(&id).is_some_and(|member| after >= self.log.until(member.since)) {
                return self.put_out(id, ctx);
            }
        }
        if !self.is_announced(id) {
            let chain = held.chain_at(self.id, after, ctx);
            self.announce(id, after, chain, ctx);
        }
        if after >= self.shown || after >= held.last() {
            return self.hunger(id);
        }
        let page = match &held.encoded {
            Some((cursor, page)) if *cursor == after => page.clone(),
            _ => {
                let upto = usize::try_from(self.shown.min(self.log.page_end(after)) - after).unwrap_or(usize::MAX);
                let items = held.records.iter().skip(held.skip(after)).take(upto).map(Record::item).collect();
                let (position, chain) = (self.log.position(), held.chain_at(self.id, after, ctx));
                let page = Encoded::new(Page { room: self.id, position, first: after + 1, chain, items }, ctx);
                held.encoded = Some((after, page.clone()));
                page
            }
        };
        self.give(id, &page, ctx);
    }

    /// Has the engine read for those who wait.
    fn read_more(&mut self, ctx: &mut Context) {
        while let Some(feeding) = &mut self.feeding
            && feeding.reads.flying.len() + feeding.held.len() < READS_MAX
        {
            let Some(after) = feeding.reads.cursor() else { return };
            let (room, bytes_max) = (self.id, ctx.catch_up_bytes_max());
            let request = engine::Request::ReadAfter { room, after, bytes_max };
            if ctx.submit(request, Op::ReadAfter { room, life: self.life, after }).is_err() {
                return ctx.retry(room);
            }
            ctx.stats.history_reads += 1;
            let state = self.log.durable();
            let record_bytes = (state.bytes / (state.head + 1 - state.floor).max(1)).max(1);
            feeding.reads.flying.push((after, after + (u64::from(bytes_max) / record_bytes).max(1)));
        }
    }

    /// What follows `after` was read, or not.
    pub(super) fn read_done(&mut self, after: Seq, result: Result<Records, Failure>, ctx: &mut Context) {
        let reads = &mut self.feeding().reads;
        reads.flying.retain(|(start, _)| *start != after);
        let mut read = match result {
            Ok(read) => read,
            Err(failure) => {
                let waiting: Vec<ConnId> = reads.take(after, after).into();
                return self.stop(&waiting, refusal(failure), ctx);
            }
        };
        self.adopt(&mut read, ctx);
        let Records { before, records, .. } = read;
        let first = records.first().map_or_else(|| after.max(self.log.durable().floor - 1), |record| record.seq - 1);
        let before = if records.is_empty() { self.log.chain_at(first).unwrap_or(before) } else { before };
        // Who waits before the first record was overtaken by the floor.
        let from = if first > after { 0 } else { after };
        let mut held = Held { from, after: first, before, records, chains: Vec::new(), waiting: VecDeque::new(), encoded: None };
        if held.records.is_empty() && first == after && after < self.shown {
            let waiting: Vec<ConnId> = self.feeding().reads.take(after, after).into();
            return self.stop(&waiting, Refusal::Internal, ctx);
        }
        held.waiting = self.feeding().reads.take(from, first.max(held.last().saturating_sub(1)));
        if !held.waiting.is_empty() {
            self.feeding().held.push_back(held);
        }
    }

    /// What a read tells of the log: where it begins now, and records that memory may keep.
    fn adopt(&mut self, read: &mut Records, ctx: &Context) {
        self.log.adopt(&read.state);
        // What is on disk but not yet acked here is shown when it is.
        let head = self.log.durable().head;
        read.records.truncate(read.records.partition_point(|record| record.seq <= head));
        self.log.remember(read, ctx.limits.recent_bytes_max);
    }

    pub(super) fn fetch(
        &mut self,
        conn: &Arc<Conn>,
        request: u32,
        before: Seq,
        count_max: u32,
        permit: Permit,
        ctx: &mut Context,
    ) {
        let (room, bytes_max, count_max) = (self.id, ctx.limits.page_bytes_max, count_max.max(1));
        if let Some(page) = self.log.recent_before(before, count_max, bytes_max) {
            return self.fetched_page(conn, request, page, ctx);
        }
        let read = engine::Request::ReadBefore { room, before, count_max, bytes_max };
        let op = Op::ReadBefore { room, life: self.life, conn: Arc::clone(conn), request, permit };
        match ctx.submit(read, op) {
            Ok(()) => self.in_flight += 1,
            Err(engine::Busy) => fail(ctx, conn, room, Operation::Fetch, Refusal::Overloaded),
        }
    }

    pub(super) fn fetched_page(&self, conn: &Conn, request: u32, page: Page, ctx: &mut Context) {
        let frame = ServerFrame::Fetched { request, page }.encode();
        ctx.work += work_of_bytes(frame.len());
        ctx.send(conn, Lane::History, frame);
    }

    /// A page before some seq was read, or not.
    pub(super) fn fetched(&mut self, conn: &Conn, request: u32, result: Result<Records, Failure>, ctx: &mut Context) {
        self.in_flight -= 1;
        if !self.may(conn.id) {
            return fail(ctx, conn, self.id, Operation::Fetch, Refusal::NoAccess);
        }
        match result {
            Ok(records) => {
                self.log.adopt(&records.state);
                self.log.remember(&records, ctx.limits.recent_bytes_max);
                let page = self.page_of(&records);
                self.fetched_page(conn, request, page, ctx);
            }
            Err(failure) => fail(ctx, conn, self.id, Operation::Fetch, refusal(failure)),
        }
    }

    /// Records as a page. The engine may be ahead of the completions that have arrived here.
    pub(super) fn page_of(&self, records: &Records) -> Page {
        let mut page = self.empty_page();
        page.position.head = page.position.head.max(records.state.head);
        if let Some(first) = records.records.first() {
            (page.first, page.chain) = (first.seq, records.before);
            page.items = records.records.iter().map(Record::item).collect();
        }
        page
    }

    /// Nothing, as an answer.
    pub(super) fn empty_page(&self) -> Page {
        let state = self.log.durable();
        Page { room: self.id, position: self.log.position(), first: state.floor, chain: state.floor_chain, items: Vec::new() }
    }

    pub(super) fn seek(&mut self, conn: &Arc<Conn>, request: u32, time_ms: UnixMillis, permit: Permit, ctx: &mut Context) {
        let room = self.id;
        let op = Op::Seek { room, life: self.life, conn: Arc::clone(conn), request, permit };
        match ctx.submit(engine::Request::Seek { room, time_ms }, op) {
            Ok(()) => self.in_flight += 1,
            Err(engine::Busy) => fail(ctx, conn, room, Operation::Seek, Refusal::Overloaded),
        }
    }

    /// A time was looked for.
    pub(super) fn sought(&mut self, conn: &Conn, request: u32, result: Result<Seq, Failure>, ctx: &mut Context) {
        self.in_flight -= 1;
        let room = self.id;
        match result {
            _ if !self.may(conn.id) => fail(ctx, conn, room, Operation::Seek, Refusal::NoAccess),
            // The engine may be ahead of what is visible here.
            Ok(seq) => ctx.answer(conn, &ServerFrame::Sought { request, room, seq: seq.min(self.log.durable().head + 1) }),
            Err(failure) => fail(ctx, conn, room, Operation::Seek, refusal(failure)),
        }
    }
}
