//! Handshake records of one room, for those who ask for them without reading the log.
//!
//! The room knows its newest one, and every record names the one before it, so that nothing is ever searched for: what is asked
//! for is at the seq that was asked for, or nowhere. The newest one is kept where retention drops everything around it: who comes in
//! begins with it. They are read from the engine, which has all of them: memory has their outlines.

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
    pub(super) fn handshake(
        &mut self,
        conn: &Arc<Conn>,
        (request, before, whole): (u32, Seq, bool),
        permit: Permit,
        ctx: &mut Context,
    ) {
        let newest = self.log.durable().handshake;
        let seq = if before > newest { newest } else { before.saturating_sub(1) };
        if seq == 0 {
            return self.fetched_page(conn, request, self.empty_page(), ctx);
        }
        let (room, life) = (self.id, self.life);
        let read = match seq == newest {
            // Trimmed or not.
            true => engine::Request::ReadHandshake { room, seq },
            false => engine::Request::ReadBefore { room, before: seq + 1, count_max: 1, bytes_max: 1 },
        };
        match ctx.submit(read, Op::Handshake { room, life, conn: Arc::clone(conn), request, seq, whole, permit }) {
            Ok(()) => self.in_flight += 1,
            Err(engine::Busy) => fail(ctx, conn, room, Operation::Handshake, Refusal::Overloaded),
        }
    }

    /// A record was read, or not.
    pub(super) fn handshake_read(
        &mut self,
        conn: &Conn,
        (request, seq, whole): (u32, Seq, bool),
        result: Result<Records, Failure>,
        ctx: &mut Context,
    ) {
        self.in_flight -= 1;
        match result {
            _ if !self.may_read(conn.id, seq) => fail(ctx, conn, self.id, Operation::Handshake, Refusal::NoAccess),
            Ok(records) => {
                self.log.adopt(&records.state);
                self.fetched_page(conn, request, self.only(seq, whole, &records), ctx);
            }
            Err(failure) => fail(ctx, conn, self.id, Operation::Handshake, refusal(failure)),
        }
    }

    /// The handshake record `seq`, whole or in outline, if that is what was read; else nothing.
    fn only(&self, seq: Seq, whole: bool, records: &Records) -> Page {
        let mut page = self.page_of(records);
        let read = records.records.first().filter(|record| record.seq == seq && envelope::is_handshake(&record.envelope));
        match (page.items.as_mut_slice(), read) {
            ([item], Some(record)) if whole => item.envelope = record.envelope.clone(),
            ([_], Some(_)) => {}
            _ => return self.empty_page(),
        }
        page
    }
}
