//! A room's drop-box at its shard: members open and close it, strangers ask what it is and post. It is loaded when it is first
//! asked for; requests are carried out one after the other, and a change is stored before it is answered.

use std::{collections::VecDeque, mem, sync::Arc};

use bytes::Bytes;

use super::{
    Conn,
    context::{Context, Op},
    outbox::Permit,
    room::{Asked, Room, fail, refusal},
};
use crate::{
    core::{
        chain,
        close::Refusal,
        dropbox::{self, ANNOUNCEMENT_LEN_MAX, DropBox},
        frame::{DropBoxOffer, LogKind, Operation, Publish, ServerFrame},
        id::Signature,
        room::Verdict,
        session::Action,
    },
    engine::{Answer, Failure, Request},
};

/// Requests that may wait for one room's drop-box.
const WAITING_MAX: usize = 64;

/// What a room knows of its drop-box, which most rooms do not have.
#[derive(Debug, Default)]
pub(super) struct Slot {
    state: State,
    waiting: VecDeque<Asked>,
}

#[derive(Debug, Default)]
enum State {
    /// Nobody has asked yet, or nobody knows what became of a change.
    #[default]
    Unknown,
    Loading,
    Known(Option<Box<DropBox>>),
    Storing(Option<Box<DropBox>>, Arc<Conn>, Permit),
}

/// Answers a request about a drop-box that was not done.
pub(super) fn refuse(ctx: &mut Context, conn: &Conn, room: crate::core::id::RoomId, action: &Action, why: Refusal) {
    match action {
        Action::Post { .. } => {
            let producer = dropbox::producer(room).id;
            let post = Publish { room, producer, client_seq: 0, handshake: 0, envelope: Bytes::new() };
            super::room::refuse(ctx, conn, &post, why);
        }
        _ => fail(ctx, conn, room, Operation::DropBox, why),
    }
}

impl Room {
    fn slot(&mut self) -> &mut Slot {
        self.drop_box.get_or_insert_default()
    }

    /// Somebody asks.
    pub(super) fn ask_drop_box(&mut self, asked: Asked, ctx: &mut Context) {
        let why = match () {
            () if self.log.meta().kind != LogKind::Room => Refusal::NoAccess,
            () if self.slot().waiting.len() >= WAITING_MAX => Refusal::Overloaded,
            () => {
                self.slot().waiting.push_back(asked);
                return self.tend_drop_box(ctx);
            }
        };
        refuse(ctx, &asked.0, self.id, &asked.1, why);
    }

    fn tend_drop_box(&mut self, ctx: &mut Context) {
        while !self.slot().waiting.is_empty() {
            match self.slot().state {
                State::Loading | State::Storing(..) => return,
                State::Unknown => {
                    let request = Request::LoadPackages { device: dropbox::kept_under(self.id) };
                    match ctx.submit(request, Op::DropBox { room: self.id, life: self.life }) {
                        Ok(()) => {
                            self.in_flight += 1;
                            self.slot().state = State::Loading;
                        }
                        Err(_) => self.refuse_waiting(Refusal::Overloaded, ctx),
                    }
                }
                State::Known(_) => {
                    let Some((conn, action, permit)) = self.slot().waiting.pop_front() else { return };
                    match action {
                        Action::PutDropBox { offer } => self.put_drop_box(&conn, offer, permit, ctx),
                        Action::Post { proof, envelope } => self.post(&conn, proof, envelope, permit, ctx),
                        _ => self.show_drop_box(&conn, ctx),
                    }
                }
            }
        }
    }

    fn refuse_waiting(&mut self, why: Refusal, ctx: &mut Context) {
        for (conn, action, _permit) in self.drop_box.as_mut().map(|slot| mem::take(&mut slot.waiting)).unwrap_or_default() {
            refuse(ctx, &conn, self.id, &action, why);
        }
    }

    /// It was loaded or stored, or not.
    pub(super) fn drop_box_done(&mut self, result: Result<Answer, Failure>, ctx: &mut Context) {
        self.in_flight -= 1;
        match (mem::take(&mut self.slot().state), result) {
            (State::Storing(next, conn, _permit), Ok(_)) => {
                let announcement = next.as_ref().map(|open| open.offer.announcement.clone());
                ctx.answer(&conn, &ServerFrame::DropBox { room: self.id, announcement });
                self.slot().state = State::Known(next);
            }
            // It may be on disk all the same: how it is is looked at before anything else is done.
            (State::Storing(_, conn, _permit), Err(failure)) => {
                fail(ctx, &conn, self.id, Operation::DropBox, refusal(failure));
            }
            (_, Ok(Answer::Packages(bytes))) => {
                let log = self.log.meta().log;
                self.slot().state = State::Known(DropBox::decode(&bytes).filter(|kept| kept.log == log).map(Box::new));
            }
            (_, Ok(_)) => self.refuse_waiting(Refusal::Internal, ctx),
            (_, Err(failure)) => self.refuse_waiting(refusal(failure), ctx),
        }
        self.tend_drop_box(ctx);
    }

    /// The drop-box, if there is one that was opened by the access key that is in force.
    fn open_drop_box(&self) -> Option<&DropBox> {
        let State::Known(Some(open)) = &self.drop_box.as_ref()?.state else { return None };
        (open.since == self.log.opened_at()).then_some(open)
    }

    fn put_drop_box(&mut self, conn: &Arc<Conn>, offer: Option<DropBoxOffer>, permit: Permit, ctx: &mut Context) {
        let refused = match &offer {
            _ if !self.may(conn.id) => Some(Refusal::NoAccess),
            Some(offer) if offer.announcement.len() > ANNOUNCEMENT_LEN_MAX => {
                Some(Refusal::TooLarge { max: u32::try_from(ANNOUNCEMENT_LEN_MAX).unwrap_or(u32::MAX) })
            }
            // What is stored counts as what is published does.
            _ => conn.usage.publish(false, ctx.now_ms, &ctx.limits).err(),
        };
        if let Some(why) = refused {
            return fail(ctx, conn, self.id, Operation::DropBox, why);
        }
        let (log, since, device) = (self.log.meta().log, self.log.opened_at(), dropbox::kept_under(self.id));
        let next = offer.map(|offer| Box::new(DropBox { log, since, offer }));
        if matches!(&self.slot().state, State::Known(now) if *now == next) {
            let announcement = next.map(|open| open.offer.announcement);
            return ctx.answer(conn, &ServerFrame::DropBox { room: self.id, announcement });
        }
        let packages = next.as_deref().map_or_else(Bytes::new, DropBox::encode);
        match ctx.submit(Request::StorePackages { device, packages }, Op::DropBox { room: self.id, life: self.life }) {
            Ok(()) => {
                self.in_flight += 1;
                self.slot().state = State::Storing(next, Arc::clone(conn), permit);
            }
            Err(_) => fail(ctx, conn, self.id, Operation::DropBox, Refusal::Overloaded),
        }
    }

    fn show_drop_box(&self, conn: &Conn, ctx: &mut Context) {
        let announcement = self.open_drop_box().map(|open| open.offer.announcement.clone());
        ctx.answer(conn, &ServerFrame::DropBox { room: self.id, announcement });
    }

    fn post(&mut self, conn: &Arc<Conn>, proof: Signature, envelope: Bytes, permit: Permit, ctx: &mut Context) {
        let producer = dropbox::producer(self.id).id;
        let asked = (self.id, producer, 0);
        let Some(Slot { state: State::Known(Some(kept)), .. }) = self.drop_box.as_deref() else {
            return self.decided(conn, permit, asked, Verdict::Refused(Refusal::NoAccess), ctx);
        };
        if !proof.verifies(&kept.offer.poster.0, &dropbox::post_message(self.id, chain::digest(&envelope))) {
            return self.decided(conn, permit, asked, Verdict::Refused(Refusal::BadProof), ctx);
        }
        let epoch = self.open_drop_box().map(|open| open.offer.epoch);
        let verdict = self.log.post(envelope, epoch, ctx.now_ms, &ctx.limits);
        self.decided(conn, permit, asked, verdict, ctx);
    }

    /// The log is gone: so is what was kept beside it. Should this not come to be, it is of a log that does not exist any more.
    pub(super) fn forget_drop_box(&mut self, ctx: &mut Context) {
        self.refuse_waiting(Refusal::NoAccess, ctx);
        let request = Request::StorePackages { device: dropbox::kept_under(self.id), packages: Bytes::new() };
        let _ = ctx.submit(request, Op::Forget);
    }
}
