//! Delivery of one room to those who are there: each page encoded once for all, ephemerals, subscriptions.
//!
//! The one invariant: a member was given everything up to its cursor, each record once, in order. A cursor moves only when
//! a page has entered the outbox. A live member's cursor is `shown`, or where `shown` was when the broadcast that is under
//! way began; no member that is behind is given anything beyond `shown`. So whoever reaches `shown` may become live at any
//! moment, and a broadcast may stop between any two members and go on in a later turn.
//!
//! A record may bring another access key. Pages end with such a record, and who has proved a former key is put out after it was
//! given the one that replaced it.

use std::{
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    Conn, ConnId,
    context::{Context, work_of_bytes},
    presence::Knows,
    room::{Cursor, Member, Room, fail},
};
use crate::core::{
    close::Refusal,
    frame::{Operation, Page, ServerFrame},
    id::{Digest, RoomId, Seq},
    lane::Lane,
};

/// Ephemeral envelopes of one room that wait for their broadcast; more are dropped.
const EPHEMERALS_MAX: usize = 256;
/// Pages that the recent tail may hold of what live members have not been given yet. What is older they read from the engine.
const UNSHOWN_PAGES: usize = 16;
/// A room with so many live members gathers what goes to them: telling them takes longer than a sync.
const GATHERING_MEMBERS: usize = 128;
/// It gathers no longer once so many bytes are ready: a write of more costs by its bytes, and not by the call.
const GATHERING_BYTES: usize = 8 << 10;

/// The seq of the last item of `page`; the one before its first if it has none.
pub(super) const fn last(page: &Page) -> Seq {
    page.first + page.items.len() as u64 - 1
}

/// Something on its way to the live members, in the order of their connections.
#[derive(Debug)]
pub(super) struct Broadcast {
    what: What,
    /// Everybody up to here had it.
    passed: Option<ConnId>,
}

#[derive(Debug)]
enum What {
    /// A page, encoded.
    Page { frame: Bytes, last: Seq, items: u64 },
    /// Memory lacks what follows: live members turn into ones that are behind.
    Lost,
    /// Ephemeral envelopes, and whom they are from.
    Ephemerals(Vec<(ConnId, Bytes)>),
}

impl Member {
    /// Queues a page, or notes that the member is to be fed when there is room.
    pub(super) fn push_page(&mut self, lane: Lane, frame: &Bytes, room: RoomId, ctx: &mut Context) -> bool {
        let pushed = ctx.send_page(&self.conn, lane, frame);
        if !pushed {
            self.stall(room, ctx);
        }
        pushed
    }

    pub(super) fn stall(&mut self, room: RoomId, ctx: &mut Context) {
        if !self.stalled {
            self.stalled = true;
            ctx.stalled(self.conn.id, room);
        }
    }

    pub(super) fn is_subscribed(&self) -> bool {
        self.cursor != Cursor::Off
    }
}

impl Room {
    pub(super) fn subscribe(&mut self, conn: &Arc<Conn>, after: Seq, ctx: &mut Context) {
        let state = *self.log.durable();
        if after > state.head {
            return fail(ctx, conn, self.id, Operation::Subscribe, Refusal::CursorAhead { head: state.head });
        }
        let Some(member) = self.members.get_mut(&conn.id) else { return };
        match member.cursor {
            Cursor::Off => {
                self.presence.came(conn.device);
                member.knows = Knows::Nothing;
            }
            Cursor::Live(_) => self.live -= 1,
            Cursor::Behind(_) => {}
        }
        member.cursor = Cursor::Behind(after.max(state.floor - 1));
        member.announced = false;
        member.knows.begin_anew();
        self.hunger(conn.id);
    }

    pub(super) fn unsubscribe(&mut self, conn: ConnId) {
        let Some(member) = self.members.get_mut(&conn) else { return };
        if member.is_subscribed() {
            if matches!(member.cursor, Cursor::Live(_)) {
                self.live -= 1;
            }
            member.cursor = Cursor::Off;
            self.presence.went(member.conn.device);
        }
    }

    /// Has a member fed in its turn, unless it waits for something already.
    pub(super) fn hunger(&mut self, id: ConnId) {
        if let Some(member) = self.members.get_mut(&id)
            && !member.waits
        {
            member.waits = true;
            self.hungry.push_back(id);
        }
    }

    /// Takes an envelope of kind 7 for every other live subscriber that will have room for it.
    pub(super) fn ephemeral(&mut self, from: ConnId, envelope: Bytes, ctx: &mut Context) {
        if self.ephemerals.len() < EPHEMERALS_MAX {
            self.ephemerals.push((from, ServerFrame::Ephemeral { envelope }.encode()));
        } else {
            ctx.stats.ephemerals_dropped += 1;
        }
    }

    /// What the recent tail may hold now: what is not yet shown is kept, within limits.
    pub(super) fn tail_bytes_max(&self, next: usize, ctx: &Context) -> u32 {
        let unshown = (self.unshown_bytes + next).min(UNSHOWN_PAGES * ctx.limits.page_bytes_max as usize);
        ctx.tail_bytes_max().max(u32::try_from(unshown).unwrap_or(u32::MAX))
    }

    /// Members may be given everything up to `seq`.
    fn show(&mut self, seq: Seq, bytes: usize) {
        self.shown = seq;
        self.unshown_bytes = if seq == self.log.durable().head { 0 } else { self.unshown_bytes.saturating_sub(bytes) };
        if let Some(feeding) = &mut self.feeding {
            feeding.forget_encoded();
        }
        self.hungry.append(&mut self.parked);
    }

    /// Gives the live members what became durable, and ephemerals, one slice of it. Who has no room falls behind.
    pub(super) fn broadcast(&mut self, ctx: &mut Context) {
        let end = ctx.slice_end();
        while ctx.work < end {
            let Some(broadcast) = self.broadcast.take().or_else(|| self.next_broadcast(ctx)) else { return };
            self.broadcast = self.pass_on(broadcast, end, ctx);
        }
    }

    fn next_broadcast(&mut self, ctx: &mut Context) -> Option<Broadcast> {
        if self.live == 0 {
            ctx.stats.ephemerals_dropped += std::mem::take(&mut self.ephemerals).len() as u64;
            if self.shown < self.log.durable().head {
                self.show(self.log.durable().head, 0);
            }
            return None;
        }
        // They take turns, so that neither waits for ever.
        let ephemerals_first = !std::mem::take(&mut self.ephemerals_last);
        let what = match () {
            () if ephemerals_first && !self.ephemerals.is_empty() => self.next_ephemerals(),
            () if self.shown < self.log.durable().head && !self.gathers() => self.next_page(ctx),
            () if !self.ephemerals.is_empty() => self.next_ephemerals(),
            () => return None,
        };
        Some(Broadcast { what, passed: None })
    }

    /// Whether what became durable waits for what was with the engine by then, so that many members are told of both with one
    /// write each: a busy room would else fall into halves, one of which is synced while the other is told.
    fn gathers(&mut self) -> bool {
        if self.gathering.is_none() && self.live >= GATHERING_MEMBERS && self.unshown_bytes < GATHERING_BYTES {
            self.gathering = Some(self.log.durable().head + self.waiters.len() as u64);
        }
        let gathers = self.is_gathering();
        if !gathers {
            self.gathering = None;
        }
        gathers
    }

    /// An append that is with the engine comes back, one way or the other, and then the room has its turn.
    fn is_gathering(&self) -> bool {
        let more = |upto| self.log.durable().head < upto && !self.log.is_quiet() && !self.log.has_failed();
        self.gathering.is_some_and(more)
    }

    fn next_ephemerals(&mut self) -> What {
        self.ephemerals_last = true;
        What::Ephemerals(std::mem::take(&mut self.ephemerals))
    }

    fn next_page(&mut self, ctx: &mut Context) -> What {
        let upto = self.log.durable().head.min(self.log.page_end(self.shown));
        let page = self.log.recent_between(self.shown, upto, ctx.limits.page_bytes_max).filter(|page| !page.items.is_empty());
        let Some(page) = page else {
            self.show(self.log.durable().head, 0);
            return What::Lost;
        };
        let (last, items) = (last(&page), page.items.len() as u64);
        let bytes = page.items.iter().map(|item| item.envelope.len()).sum();
        let frame = ServerFrame::Deliver(page).encode();
        ctx.work += work_of_bytes(frame.len());
        self.show(last, bytes);
        self.log.shrink_recent(self.tail_bytes_max(0, ctx));
        What::Page { frame, last, items }
    }

    /// Passes it on until the slice ends. Returns it if there are more members to come.
    fn pass_on(&mut self, mut broadcast: Broadcast, end: u64, ctx: &mut Context) -> Option<Broadcast> {
        let from = broadcast.passed.map_or(Unbounded, Excluded);
        let (mut out, mut more) = (Vec::new(), false);
        for (id, member) in self.members.range_mut((from, Unbounded)) {
            if ctx.work >= end {
                more = true;
                break;
            }
            ctx.work += 1;
            broadcast.passed = Some(*id);
            let Cursor::Live(at) = member.cursor else { continue };
            match &broadcast.what {
                What::Page { frame, last, items } if at < *last => {
                    if member.push_page(Lane::Live, frame, self.id, ctx) {
                        member.cursor = Cursor::Live(*last);
                        ctx.stats.delivered(*items, frame.len());
                        if *last >= self.log.until(member.since) {
                            out.push(*id);
                        }
                    } else {
                        member.cursor = Cursor::Behind(at);
                        self.live -= 1;
                        ctx.stats.catch_ups += 1;
                    }
                }
                What::Lost if at < self.shown => {
                    member.cursor = Cursor::Behind(at);
                    self.live -= 1;
                    if !member.waits {
                        member.waits = true;
                        self.hungry.push_back(*id);
                    }
                }
                What::Page { .. } | What::Lost => {}
                What::Ephemerals(frames) => {
                    for (_, frame) in frames.iter().filter(|(from, _)| from != id) {
                        ctx.send_ephemeral(&member.conn, frame);
                    }
                    ctx.work += frames.len() as u64;
                }
            }
        }
        for id in out {
            self.put_out(id, ctx);
        }
        more.then_some(broadcast)
    }

    /// Whether there is something for the next slice.
    pub(super) fn has_more(&self) -> bool {
        let (live, unshown) = (self.live > 0, self.shown < self.log.durable().head);
        self.broadcast.is_some()
            || (live && ((unshown && !self.is_gathering()) || !self.ephemerals.is_empty()))
            // The last live member fell behind just as the slice ended: nothing else shows them what they wait for.
            || (unshown && !self.parked.is_empty())
            || !self.hungry.is_empty()
            || self.feeding.as_ref().is_some_and(|feeding| feeding.has_held())
            || !self.inbox.is_empty()
    }

    /// The connection has room again: everything that waits for it here is tried anew.
    pub(super) fn relieved(&mut self, conn: ConnId) {
        if let Some(member) = self.members.get_mut(&conn) {
            member.stalled = false;
            self.uninformed.push(conn);
            self.hunger(conn);
        }
    }

    /// Tells a subscriber where its delivery begins. The list of who is there follows at the end of the slice.
    pub(super) fn announce(&mut self, id: ConnId, after: Seq, chain: Digest, ctx: &mut Context) {
        let position = self.log.position();
        if let Some(member) = self.members.get_mut(&id) {
            member.announced = true;
            self.uninformed.push(id);
            ctx.answer(&member.conn, &ServerFrame::Subscribed { room: self.id, after, chain, position });
        }
    }

    /// Delivery cannot go on: says so, and ends the subscriptions.
    pub(super) fn stop(&mut self, waiting: &[ConnId], why: Refusal, ctx: &mut Context) {
        for id in waiting {
            self.unsubscribe(*id);
            if let Some(member) = self.members.get_mut(id) {
                member.waits = false;
                fail(ctx, &member.conn, self.id, Operation::Subscribe, why);
            }
        }
    }
}
