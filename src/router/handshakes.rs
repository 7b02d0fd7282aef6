//! Handshake records of one room, for those who ask for them without reading the log.
//!
//! The room knows its newest one, and every record names the one before it, so that nothing is ever searched for: what is asked
//! for is at the seq that was asked for, or nowhere. The newest one is kept where retention drops everything around it: who comes in
//! begins with it.

use std::sync::Arc;

use super::{
    Conn,
    context::{Context, Op},
    outbox::Permit,
    room::{Room, fail, refusal},
};
use crate::{
    core::{
        close::Refusal,
        envelope,
        frame::{Operation, Page},
        id::Seq,
        log::Records,
    },
    engine::{self, Failure},
};

impl Room {
    pub(super) fn handshake(&mut self, conn: &Arc<Conn>, request: u32, before: Seq, permit: Permit, ctx: &mut Context) {
        let newest = self.log.durable().handshake;
        let seq = if before > newest { newest } else { before.saturating_sub(1) };
        let (room, life, before) = (self.id, self.life, seq + 1);
        // Trimmed or not: the engine may have done that without this room's having heard of it.
        let is_newest = seq != 0 && seq == newest;
        let is_kept = is_newest && seq < self.log.durable().floor;
        if !is_kept && let Some(page) = self.log.recent_before(before, 1, 1) {
            return self.fetched_page(conn, request, self.only(seq, page), ctx);
        }
        let read = match is_newest {
            true => engine::Request::ReadHandshake { room, seq },
            false => engine::Request::ReadBefore { room, before, count_max: 1, bytes_max: 1 },
        };
        match ctx.submit(read, Op::Handshake { room, life, conn: Arc::clone(conn), request, seq, permit }) {
            Ok(()) => self.in_flight += 1,
            Err(engine::Busy) => fail(ctx, conn, room, Operation::Handshake, Refusal::Overloaded),
        }
    }

    /// A record was read, or not.
    pub(super) fn handshake_read(
        &mut self,
        conn: &Conn,
        request: u32,
        seq: Seq,
        result: Result<Records, Failure>,
        ctx: &mut Context,
    ) {
        self.in_flight -= 1;
        match result {
            _ if !self.may_read(conn.id, seq) => fail(ctx, conn, self.id, Operation::Handshake, Refusal::NoAccess),
            Ok(records) => {
                self.log.adopt(&records.state);
                let page = self.only(seq, self.page_of(&records));
                self.fetched_page(conn, request, page, ctx);
            }
            Err(failure) => fail(ctx, conn, self.id, Operation::Handshake, refusal(failure)),
        }
    }

    /// The page, if it is the handshake record `seq`; else an empty one.
    fn only(&self, seq: Seq, page: Page) -> Page {
        let [item] = page.items.as_slice() else { return self.empty_page() };
        if page.first == seq && envelope::is_handshake(&item.envelope) { page } else { self.empty_page() }
    }
}
