//! Delivery of one room: live pages encoded once for all, catch-up at each member's own pace, presence, ephemerals.
//!
//! The one invariant: a member that is live was given everything up to `shown`, and one that is behind everything up to
//! its cursor, each record once, in order. Cursors move only when a page has entered the outbox.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    Conn, ConnId,
    presence::Change,
    room::{Cursor, Knows, Member, Room, answer, fail, refusal},
    shard::{Context, Op},
};
use crate::{
    core::{
        close::Refusal,
        frame::{Operation, Page, ServerFrame},
        id::{DeviceKey, Digest, Seq},
        log::Records,
    },
    engine::{self, Failure},
};

/// The seq of the last item of `page`; the one before its first if it has none.
const fn last(page: &Page) -> Seq {
    page.first + page.items.len() as u64 - 1
}

impl Member {
    /// Queues a page, or notes that the member is to be fed when there is room.
    fn push_page(&mut self, frame: &Bytes, room: &RoomOf, ctx: &mut Context) -> bool {
        let pushed = self.conn.outbox.push_page(frame, ctx.index).is_ok();
        if !pushed {
            self.stall(room, ctx);
        }
        pushed
    }

    fn stall(&mut self, room: &RoomOf, ctx: &mut Context) {
        if !self.stalled {
            self.stalled = true;
            ctx.stalled(self.conn.id, room.0);
        }
    }

    fn is_subscribed(&self) -> bool {
        self.cursor != Cursor::Off
    }
}

/// Names the room while its members are borrowed.
struct RoomOf(crate::core::id::RoomId);

impl Room {
    pub(super) fn subscribe(&mut self, conn: &Arc<Conn>, after: Seq, ctx: &mut Context) {
        let state = *self.log.durable();
        if after > state.head {
            return fail(ctx, conn, self.id, Operation::Subscribe, Refusal::CursorAhead { head: state.head });
        }
        let Some(member) = self.members.get_mut(&conn.id) else { return };
        if !member.is_subscribed() {
            self.presence.came(conn.device);
        }
        member.cursor = Cursor::Behind(after.max(state.floor - 1));
        member.announced = false;
        member.knows = Knows::Nothing;
        self.presence_due = true;
        self.hungry.push(conn.id);
    }

    pub(super) fn unsubscribe(&mut self, conn: ConnId) {
        let Some(member) = self.members.get_mut(&conn) else { return };
        if member.is_subscribed() {
            member.cursor = Cursor::Off;
            self.presence.went(member.conn.device);
        }
    }

    /// Passes an envelope of kind 7 to every other live subscriber that has room for it.
    pub(super) fn ephemeral(&self, from: ConnId, envelope: Bytes, ctx: &mut Context) {
        let frame = ServerFrame::Ephemeral { envelope }.encode();
        for (id, member) in &self.members {
            if *id != from && member.cursor == Cursor::Live {
                match member.conn.outbox.push_droppable(&frame) {
                    Ok(()) => ctx.stats.ephemerals += 1,
                    Err(_) => ctx.stats.ephemerals_dropped += 1,
                }
            }
        }
    }

    /// Gives the live members what became durable since the last time. Who has no room falls behind.
    pub(super) fn show(&mut self, ctx: &mut Context) {
        self.unshown_bytes = 0;
        let head = self.log.durable().head;
        while self.shown < head {
            if !self.members.values().any(|member| member.cursor == Cursor::Live) {
                self.shown = head;
                return;
            }
            let page = self.log.recent_after(self.shown, ctx.limits.page_bytes_max).filter(|page| !page.items.is_empty());
            match page {
                Some(page) => self.show_page(page, ctx),
                None => self.lose_live(head),
            }
        }
    }

    fn show_page(&mut self, page: Page, ctx: &mut Context) {
        let (before, last, items) = (self.shown, last(&page), page.items.len() as u64);
        let frame = ServerFrame::Deliver(page).encode();
        let room = RoomOf(self.id);
        for member in self.members.values_mut().filter(|member| member.cursor == Cursor::Live) {
            if member.push_page(&frame, &room, ctx) {
                ctx.stats.delivered(items, frame.len());
            } else {
                member.cursor = Cursor::Behind(before);
                ctx.stats.catch_ups += 1;
            }
        }
        self.shown = last;
    }

    /// Memory lacks what follows `shown` (the log was loaded anew, further on): live members read it from the engine.
    fn lose_live(&mut self, head: Seq) {
        for (id, member) in &mut self.members {
            if member.cursor == Cursor::Live {
                member.cursor = Cursor::Behind(self.shown);
                self.hungry.push(*id);
            }
        }
        self.shown = head;
    }

    /// The connection has room again: everything that waits for it here is tried anew.
    pub(super) fn relieved(&mut self, conn: ConnId) {
        if let Some(member) = self.members.get_mut(&conn) {
            member.stalled = false;
            self.presence_due = true;
            self.hungry.push(conn);
        }
    }

    /// Feeds who asked for it in this turn. Live members have been given everything when this is called.
    pub(super) fn feed_hungry(&mut self, ctx: &mut Context) {
        // Members at the same cursor are given the same bytes.
        let mut encoded: Option<(Page, Bytes)> = None;
        for id in std::mem::take(&mut self.hungry) {
            while self.feed(id, &mut encoded, ctx) {}
        }
    }

    /// Gives a member that is behind one page from memory, or asks the engine for one. Whether to go on.
    fn feed(&mut self, id: ConnId, encoded: &mut Option<(Page, Bytes)>, ctx: &mut Context) -> bool {
        let room = RoomOf(self.id);
        let Some(member) = self.members.get_mut(&id) else { return false };
        let Cursor::Behind(after) = member.cursor else { return false };
        if member.reading.is_some() {
            return false;
        }
        if !member.conn.outbox.has_room(ctx.index) {
            member.stall(&room, ctx);
            return false;
        }
        if !member.announced
            && let Some(chain) = self.log.chain_at(after)
        {
            self.announce(id, after, chain);
            return true;
        }
        if after == self.shown && member.announced {
            member.cursor = Cursor::Live;
            return false;
        }
        if encoded.as_ref().is_none_or(|(page, _)| page.first != after + 1) {
            *encoded = self.log.recent_after(after, ctx.catch_up_bytes_max()).map(|page| {
                let frame = ServerFrame::Deliver(page.clone()).encode();
                (page, frame)
            });
        }
        match encoded {
            Some((page, frame)) if member.announced && !page.items.is_empty() => {
                let pushed = member.push_page(frame, &room, ctx);
                if pushed {
                    member.cursor = Cursor::Behind(last(page));
                    ctx.stats.delivered(page.items.len() as u64, frame.len());
                }
                pushed
            }
            _ => {
                self.read(id, after, ctx);
                false
            }
        }
    }

    /// Tells a subscriber where its delivery begins. The list of who is there follows at the end of the turn.
    fn announce(&mut self, id: ConnId, after: Seq, chain: Digest) {
        let position = self.log.position();
        if let Some(member) = self.members.get_mut(&id) {
            member.announced = true;
            self.presence_due = true;
            answer(&member.conn, &ServerFrame::Subscribed { room: self.id, after, chain, position });
        }
    }

    /// Has the engine read what follows `after`, once for all who are there.
    fn read(&mut self, id: ConnId, after: Seq, ctx: &mut Context) {
        if let Some(waiting) = self.reads.get_mut(&after) {
            if !waiting.contains(&id) {
                waiting.push(id);
            }
        } else {
            let request = engine::Request::ReadAfter { room: self.id, after, bytes_max: ctx.catch_up_bytes_max() };
            if ctx.submit(request, Op::ReadAfter { room: self.id, life: self.life, after }).is_err() {
                self.hungry.push(id);
                ctx.retry(self.id);
                return;
            }
            ctx.stats.history_reads += 1;
            self.reads.insert(after, vec![id]);
        }
        if let Some(member) = self.members.get_mut(&id) {
            member.reading = Some(after);
        }
    }

    /// What follows `after` was read, or not.
    pub(super) fn read_done(&mut self, after: Seq, result: Result<Records, Failure>, ctx: &mut Context) {
        let mut waiting = self.reads.remove(&after).unwrap_or_default();
        waiting.retain(|id| {
            let Some(member) = self.members.get_mut(id).filter(|member| member.reading == Some(after)) else { return false };
            member.reading = None;
            let wanted = member.cursor == Cursor::Behind(after);
            if !wanted {
                // It subscribed anew meanwhile: one read at a time, so the next one begins now.
                self.hungry.push(*id);
            }
            wanted
        });
        let page = result.map(|mut records| {
            // What is on disk but not yet acked here is shown when it is.
            records.records.retain(|record| record.seq <= self.log.durable().head);
            self.page(&records, after + 1)
        });
        match page {
            Ok(page) if !page.items.is_empty() => self.give(&waiting, after, &page, ctx),
            Ok(_) => self.stop(&waiting, Refusal::Internal, ctx),
            Err(failure) => self.stop(&waiting, refusal(failure), ctx),
        }
    }

    fn give(&mut self, waiting: &[ConnId], after: Seq, page: &Page, ctx: &mut Context) {
        let frame = ServerFrame::Deliver(page.clone()).encode();
        let room = RoomOf(self.id);
        for id in waiting {
            let Some(member) = self.members.get_mut(id) else { continue };
            // Records behind the cursor were trimmed meanwhile: the subscription begins anew where the log begins.
            let trimmed = page.first != after + 1;
            if !member.announced || trimmed {
                member.cursor = Cursor::Behind(page.first - 1);
                self.announce(*id, page.first - 1, page.chain);
            }
            let Some(member) = self.members.get_mut(id) else { continue };
            if member.push_page(&frame, &room, ctx) {
                member.cursor = Cursor::Behind(last(page));
                ctx.stats.delivered(page.items.len() as u64, frame.len());
                self.hungry.push(*id);
            }
        }
    }

    /// Delivery cannot go on: says so, and ends the subscriptions.
    fn stop(&mut self, waiting: &[ConnId], why: Refusal, ctx: &mut Context) {
        for id in waiting {
            self.unsubscribe(*id);
            if let Some(member) = self.members.get(id) {
                fail(ctx, &member.conn, self.id, Operation::Subscribe, why);
            }
        }
    }

    /// Tells the subscribers who came and went, once per turn.
    pub(super) fn tell_presence(&mut self, ctx: &mut Context) {
        let delta = match self.presence.turn(ctx.limits.presence_sessions_max) {
            Change::Nothing => None,
            Change::Delta { online, offline } => {
                let devices: Vec<DeviceKey> = online.iter().chain(&offline).copied().collect();
                Some((devices, ServerFrame::Presence { room: self.id, online, offline }.encode()))
            }
            Change::Restart => {
                self.members.values_mut().for_each(|member| member.knows = Knows::Nothing);
                self.presence_due = true;
                None
            }
        };
        if !std::mem::take(&mut self.presence_due) && delta.is_none() {
            return;
        }
        let room = RoomOf(self.id);
        let mut all: Option<Bytes> = None;
        for member in self.members.values_mut().filter(|member| member.is_subscribed() && member.announced) {
            match &mut member.knows {
                Knows::Nothing if self.presence.is_on() => {
                    let list = || ServerFrame::Presence { room: room.0, online: self.presence.online(), offline: Vec::new() };
                    let frame = all.get_or_insert_with(|| list().encode()).clone();
                    if member.push_page(&frame, &room, ctx) {
                        member.knows = Knows::All;
                    }
                }
                Knows::Nothing => {}
                Knows::All => {
                    if let Some((devices, frame)) = &delta
                        && !member.push_page(frame, &room, ctx)
                    {
                        member.knows = Knows::AllBut(devices.iter().copied().collect());
                    }
                }
                Knows::AllBut(missed) => {
                    missed.extend(delta.iter().flat_map(|(devices, _)| devices));
                    // Best effort beyond this: a reader that slow learns of these when they change again.
                    while missed.len() > 2 * ctx.limits.presence_sessions_max as usize {
                        missed.pop_first();
                    }
                    if member.stalled {
                        continue;
                    }
                    let (online, offline) = missed.iter().partition(|device| self.presence.is_online(device));
                    let frame = ServerFrame::Presence { room: room.0, online, offline }.encode();
                    if member.push_page(&frame, &room, ctx) {
                        member.knows = Knows::All;
                    }
                }
            }
        }
    }
}
