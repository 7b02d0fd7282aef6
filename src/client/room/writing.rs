//! What this person says in a room: the outbox, its refusals, ephemeral messages.

use super::place::{Place, Seat};
use super::{DEVICE_KIND, Room, TYPING_EVERY_MS};
use crate::client::devices::DEVICES_KIND;
use crate::client::outbox::{Persist, Settled, ToSeal};
use crate::client::records::{Letter, OutRecord, Stage};
use crate::client::view::{Event, Level};
use crate::client::{Client, ClientRandom, Output};
use crate::core::close::Refusal;
use crate::core::envelope::Kind;
use crate::core::frame::{ClientFrame, Publish};
use crate::core::id::{Digest, LogId, MessageId, ProducerId, RoomId, Seq};
use crate::seal::Random as _;
use crate::seal::body::{Body, Content, Message, Seen, TEXT_LEN_MAX};
use crate::seal::identity::Identity;
use crate::seal::message::{self, SealError};
use bytes::Bytes;

impl Client {
    /// Seals and sends what may be sent.
    pub(in crate::client) fn pump(&mut self, id: RoomId, now_ms: u64) {
        self.settle(id, now_ms);
        // The change that was in the way may have been read before its refusal, or its ack, was heard.
        self.commit_wanted(id, now_ms);
        let attached = self.wire.is_attached();
        let (Some(me), Some(room)) = (&self.me, self.rooms.get_mut(&id)) else { return };
        if !attached || room.retry_at_ms.is_some_and(|at_ms| now_ms < at_ms) {
            return;
        }
        room.retry_at_ms = None;
        let mut persist = Vec::new();
        let mut publish = Vec::new();
        let mut failed = Vec::new();
        let may_repeat = !room.wire.stopped && !room.wire.too_early;
        let is_there = match room.record.stage {
            Stage::Joined => true,
            Stage::Invited => matches!(room.place, Place::Joining(_)),
            _ => false,
        };
        if is_there && may_repeat {
            let after = match &room.place {
                Place::Joining(joining) => joining.record().after,
                _ => room.timeline.handshake(),
            };
            let (pumped, _) = room.handshakes.pump(after, |_| Ok::<_, SealError>(None));
            persist.extend(pumped.persist);
            publish.extend(pumped.publish);
        }
        let read = room.up_to_date();
        if room.record.stage == Stage::Joined && may_repeat && room.reborn == read {
            // What is sealed is sent without waiting: the server knows the bytes if it has them.
            let (pumped, _) = room.outbox.pump(0, |_| Ok::<_, SealError>(None));
            persist.extend(pumped.persist);
            publish.extend(pumped.publish);
        }
        let handshake = room.timeline.handshake();
        let ready = read && !room.reborn && handshake >= room.gate;
        // While a change of this device is on its way, nothing is sealed to the epoch that it ends; nor to one that lacks the only one
        // for whom it is meant.
        let seat = room.place.seat().filter(|seat| ready && !seat.group.is_waiting() && !room.awaits_peer(seat));
        if let (Some(seat), Some(log)) = (seat, room.record.log) {
            let seen = room.timeline.seen(log);
            let rng = &mut self.rng;
            let (pumped, failures) = room.outbox.pump(handshake, |to_seal| seal(seat, seen, &me.identity, to_seal, rng));
            persist.extend(pumped.persist);
            publish.extend(pumped.publish);
            failed = failures;
        }
        for (message, error) in failed {
            persist.extend(room.outbox.fail(message, error.to_string()));
        }
        self.persist_all(persist);
        if !publish.is_empty() {
            self.wire.asks(now_ms);
        }
        for publish in publish {
            self.send(&ClientFrame::Publish(publish));
        }
    }

    /// A message will not be sent. A join is dropped: the next connection makes another one.
    fn gave_up(&mut self, id: RoomId, message: MessageId) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let Some(out) = room.outbox.iter().find(|out| out.message == message) else { return };
        let why = out.failed.clone().unwrap_or_default();
        match &out.letter {
            Letter::Content(content) if content.kind == DEVICE_KIND => {
                let forget = room.outbox.take_failed(message).map(|(_, forget)| forget);
                self.persist_all(forget.into_iter().collect());
                self.notice(Level::Warn, &format!("your other devices were not told of this one: {why}"), Some(id));
            }
            Letter::Content(content) if content.kind == DEVICES_KIND => {
                let forget = room.outbox.take_failed(message).map(|(_, forget)| forget);
                self.persist_all(forget.into_iter().collect());
            }
            Letter::Content(_) => self.tell_out(id, message),
            Letter::Envelope(_) => {}
        }
    }

    /// Acts on refusals.
    pub(in crate::client) fn settle(&mut self, id: RoomId, now_ms: u64) {
        loop {
            let fresh = ProducerId(self.rng.bytes());
            let Some(room) = self.rooms.get_mut(&id) else { return };
            let (settled, persist, commit) = match room.handshakes.settle(fresh) {
                (Settled::Nothing, _) => {
                    let (settled, persist) = room.outbox.settle(fresh);
                    (settled, persist, false)
                }
                (settled, persist) => (settled, persist, true),
            };
            match &settled {
                Settled::RetryAfter(0) | Settled::Nothing | Settled::Failed(_) => {}
                Settled::RetryAfter(wait) => room.retry_at_ms = Some(now_ms + u64::from(*wait)),
                Settled::Reseal(handshake) => room.gate = *handshake,
                Settled::Outdated => {}
            }
            let retry = room.retry_at_ms;
            self.persist_all(persist);
            match settled {
                Settled::Nothing => return,
                Settled::Failed(message) if commit => {
                    let failed = self.rooms.get(&id).and_then(|room| room.handshakes.iter().find(|out| out.message == message));
                    let why = failed.and_then(|out| out.failed.clone()).unwrap_or_default();
                    self.on_commit_failed(id, &why, now_ms);
                }
                Settled::Failed(message) => self.gave_up(id, message),
                Settled::Reseal(_) | Settled::Outdated if commit => self.on_overtaken(id, now_ms),
                Settled::Outdated => self.enter_anew(id),
                _ => {}
            }
            retry.into_iter().for_each(|at_ms| self.outputs.push_back(Output::Timer { at_ms }));
        }
    }

    pub(in crate::client) fn on_ack(&mut self, log: RoomId, producer: ProducerId, client_seq: u64, seq: Seq, now_ms: u64) {
        let id = log;
        let Some(room) = self.rooms.get_mut(&id) else { return self.on_post_ack(log, producer, client_seq) };
        let Some(me) = &self.me else { return };
        if let Some((_, persist)) = room.handshakes.acked(producer, client_seq) {
            room.wire.acked_commit = true;
            // That it is in first: after a crash between the two, the same bytes are acked again.
            self.on_let_in(id, seq);
            self.persist_all(persist);
        } else {
            // The message stays in sight until it comes back in the log; after a crash it may be there already.
            let Some(message) = room.outbox.named(producer, client_seq) else { return self.key_is_back(id, producer) };
            // It may have before: a crash came between the log's record and forgetting the message, which was sent again.
            let read = room.message_view(&me.identity, seq);
            let view = read.or_else(|| room.sent_view(&me.identity, &me.record.name, message, seq));
            let acked = room.outbox.acked(producer, client_seq);
            self.persist_all(acked.map(|(_, persist)| persist).unwrap_or_default());
            if let Some(message) = view {
                self.outputs.push_back(Output::Event(Event::Message { room: id.to_string(), message }));
            }
        }
        self.decided(id, now_ms);
        if self.rooms.get(&id).is_some_and(Room::settled) {
            self.tell_room(id);
        }
    }

    pub(in crate::client) fn on_refused(&mut self, publish: &Publish, why: Refusal, now_ms: u64) {
        let id = publish.room;
        let Some(room) = self.rooms.get_mut(&id) else { return self.on_post_refused(publish, why) };
        for outbox in [&mut room.outbox, &mut room.handshakes] {
            if why == Refusal::NoAccess {
                // It came before this device was let in, or anew by another key: it is sent again when it is.
                outbox.not_taken(publish.producer, publish.client_seq);
                room.wire.too_early = true;
            } else {
                outbox.refused(publish.producer, publish.client_seq, why);
            }
        }
        self.key_not_back(id, publish, why);
        self.decided(id, now_ms);
    }

    /// Something of the outbox was decided: what waited for it goes on.
    fn decided(&mut self, id: RoomId, now_ms: u64) {
        if self.rooms.get(&id).is_some_and(|room| room.reborn) {
            self.settle(id, now_ms);
            self.up_to_date(id, now_ms);
        } else {
            self.pump(id, now_ms);
        }
    }

    /// Puts a message into the outbox and shows it.
    pub(in crate::client) fn post(&mut self, id: RoomId, message: &Message, now_ms: u64) {
        let letter = self.letter(Letter::Content(Content::new(message)), now_ms);
        let key = letter.message;
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let persist = room.outbox.push(letter, false);
        self.persist_all(persist);
        self.tell_out(id, key);
        self.pump(id, now_ms);
    }

    pub(in crate::client) fn send_text(&mut self, id: RoomId, text: &str, now_ms: u64) {
        let text = text.trim_end();
        if text.is_empty() {
            return;
        }
        if text.len() > TEXT_LEN_MAX {
            let text = format!("the message has {} bytes; {TEXT_LEN_MAX} fit", text.len());
            return self.notice(Level::Warn, &text, Some(id));
        }
        self.post(id, &Message::Text(text.to_owned()), now_ms);
    }

    pub(in crate::client) fn retry(&mut self, id: RoomId, key: &str, now_ms: u64) {
        let Some((out, persist)) = self.take_failed(id, key) else { return };
        self.persist_all(vec![persist]);
        self.outputs.push_back(Output::Event(Event::MessageRemoved { room: id.to_string(), key: key.to_owned() }));
        if let Letter::Content(content) = &out.letter {
            self.post(id, &content.message(), now_ms);
        }
    }

    pub(in crate::client) fn discard(&mut self, id: RoomId, key: &str) {
        if let Some((_, persist)) = self.take_failed(id, key) {
            self.persist_all(vec![persist]);
            self.outputs.push_back(Output::Event(Event::MessageRemoved { room: id.to_string(), key: key.to_owned() }));
        }
    }

    pub(in crate::client) fn take_failed(&mut self, id: RoomId, key: &str) -> Option<(OutRecord, Persist)> {
        let message = key.parse().ok()?;
        self.rooms.get_mut(&id)?.outbox.take_failed(message)
    }

    pub(in crate::client) fn typing(&mut self, id: RoomId, now_ms: u64) {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get_mut(&id)) else { return };
        let Some(seat) = room.place.seat() else { return };
        if now_ms < room.typed_ms + TYPING_EVERY_MS || !room.wire.entered {
            return;
        }
        room.typed_ms = now_ms;
        room.ephemerals.1 += 1;
        let body = Body {
            session: room.ephemerals.0,
            counter: room.ephemerals.1,
            previous: Digest([0; 32]),
            seen: room.timeline.seen(room.record.log.unwrap_or(LogId([0; 16]))),
            content: Content::new(&Message::Typing),
        };
        let message = MessageId(self.rng.bytes());
        let sealed =
            message::seal(seat.group.epoch(), Kind::Ephemeral, seat.group.leaf(), message, &me.identity, &body, &mut self.rng);
        if let Ok(envelope) = sealed {
            self.send(&ClientFrame::Ephemeral { envelope });
        }
    }

    pub(in crate::client) fn tell_out(&mut self, id: RoomId, message: MessageId) {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get(&id)) else { return };
        let out = room.outbox.iter().find(|out| out.message == message);
        if let Some(message) = out.and_then(|out| room.out_view(&me.identity, &me.record.name, out)) {
            self.outputs.push_back(Output::Event(Event::Message { room: id.to_string(), message }));
        }
    }
}

/// Seals one message of the outbox.
fn seal(
    seat: &Seat,
    seen: Seen,
    identity: &Identity,
    to_seal: ToSeal<'_>,
    rng: &mut ClientRandom,
) -> Result<Option<Bytes>, SealError> {
    let ToSeal { content, message, session, counter, previous } = to_seal;
    let body = Body { session, counter, previous, seen, content: content.clone() };
    message::seal(seat.group.epoch(), Kind::Room, seat.group.leaf(), message, identity, &body, rng).map(Some)
}
