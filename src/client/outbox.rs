//! The outbox of one log: messages that are not acked, in order, with the very bytes that a retry sends.
//!
//! Contract 3 from the client's side. A message is numbered and sealed when it comes into the window, and kept sealed; it is
//! sent until it is acked or refused for good. Only a refusal that proves that nothing was stored lets it be sealed again.

use std::collections::VecDeque;

use bytes::Bytes;

use super::records::{Letter, OutRecord, OutboxRecord, Sealed, encode, out_key, outbox_key};
use crate::{
    core::{
        close::Refusal,
        frame::Publish,
        handshake,
        id::{Digest, MessageId, ProducerId, RoomId, Seq},
    },
    seal::body::Content,
};

/// Publishes in flight at once: below what the server can recognise.
const WINDOW: usize = 16;
/// Where the storage numbers begin, so that a join can be put before what waits already.
const NUMBER_START: u64 = 1 << 32;

/// An outbox.
#[derive(Debug)]
pub struct Outbox {
    /// Its name in storage.
    name: RoomId,
    log: RoomId,
    record: OutboxRecord,
    items: VecDeque<Item>,
    /// The newest number that was acked on this connection.
    acked_here: u64,
    /// It was found on this connection to be older than what the log has: once, because a new producer has sent nothing before.
    outdated: bool,
    proof: Proof,
}

/// Whether this outbox is known to be the newest form of itself, and not one that a storage was put back to. An older form would give
/// numbers that are taken to other messages, or say that it follows bytes which were never stored; the server says so of the first one,
/// but takes what was pipelined behind it. So until it is known one message is under way at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proof {
    /// It is.
    Given,
    /// It was loaded, and what it has numbered since, if anything, is not acked: from this number on.
    Owed(u64),
}

#[derive(Debug)]
struct Item {
    number: u64,
    out: OutRecord,
    /// In flight on this connection.
    sent: bool,
    /// Refused on this connection; acted on once it is the oldest in flight.
    refused: Option<Refusal>,
}

/// What sealing needs to know.
#[derive(Debug, Clone, Copy)]
pub struct ToSeal<'a> {
    /// What it says.
    pub content: &'a Content,
    /// Its message id.
    pub message: MessageId,
    /// The session.
    pub session: ProducerId,
    /// Its number there.
    pub counter: u64,
    /// The hash of the envelope before it.
    pub previous: Digest,
}

/// A change of storage: `None` deletes.
pub type Persist = (String, Option<Vec<u8>>);

/// What a pump makes: first persist, then send.
#[derive(Debug, Default)]
pub struct Pumped {
    /// To be durable before anything is sent.
    pub persist: Vec<Persist>,
    /// To be sent, in order.
    pub publish: Vec<Publish>,
}

/// What a refusal leads to.
#[derive(Debug, PartialEq, Eq)]
pub enum Settled {
    /// Wait for what is older.
    Nothing,
    /// Send again after this many milliseconds.
    RetryAfter(u32),
    /// This message will not be sent.
    Failed(MessageId),
    /// The log has this change of the group, which sealing did not know: it can be sealed again.
    Reseal(Seq),
    /// The log has other bytes under this number: this outbox is older than what it once sent. Before anything is sealed again, under a new
    /// producer, the log must be read to its end, because it may have these very messages.
    Outdated,
}

impl Outbox {
    /// An empty outbox towards `log`, kept under `name`.
    #[must_use]
    pub fn new(name: RoomId, log: RoomId, producer: ProducerId) -> Self {
        Self {
            name,
            log,
            record: new_record(producer),
            items: VecDeque::new(),
            acked_here: 0,
            outdated: false,
            proof: Proof::Given,
        }
    }

    /// As stored; the messages in the order of their numbers.
    pub fn load(name: RoomId, log: RoomId, mut record: OutboxRecord, items: impl IntoIterator<Item = (u64, OutRecord)>) -> Self {
        let items: VecDeque<_> =
            items.into_iter().map(|(number, out)| Item { number, out, sent: false, refused: None }).collect();
        // A message is kept sealed before the record that counts it: a crash may have come between.
        if let Some(last) = items.iter().filter_map(|item| item.out.sealed.as_ref()).max_by_key(|sealed| sealed.client_seq)
            && last.client_seq >= record.next
        {
            (record.next, record.previous) = (last.client_seq.saturating_add(1), handshake::entry(&last.envelope));
        }
        let proof = Proof::Owed(record.next);
        Self { name, log, record, items, acked_here: 0, outdated: false, proof }
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// What waits or failed, in order.
    pub fn iter(&self) -> impl Iterator<Item = &OutRecord> {
        self.items.iter().map(|item| &item.out)
    }

    /// Adds a message at the end, or, for a join, before all that is not sealed.
    pub fn push(&mut self, out: OutRecord, first: bool) -> Vec<Persist> {
        let sealed = self.items.iter().filter(|item| item.out.sealed.is_some()).count();
        let number = if first && sealed == 0 {
            self.items.front().map_or(NUMBER_START, |item| item.number - 1)
        } else {
            self.items.back().map_or(NUMBER_START, |item| item.number + 1)
        };
        let item = Item { number, out, sent: false, refused: None };
        let persist = vec![self.persist_item(&item), self.persist_record()];
        if first && sealed == 0 {
            self.items.push_front(item)
        } else {
            self.items.push_back(item)
        }
        persist
    }

    /// The connection is gone: everything is to be sent again.
    pub fn disconnected(&mut self) {
        self.acked_here = 0;
        self.outdated = false;
        self.send_again();
    }

    /// Everything in flight is to be sent again on this connection.
    fn send_again(&mut self) {
        for item in &mut self.items {
            item.sent = false;
            item.refused = None;
        }
    }

    /// Seals what comes into the window, once nothing waits that was sealed for an older change, and returns what is to be sent. `seal` returns `None`
    /// for "not yet"; `handshake` is the newest change of the group that sealing knows.
    pub fn pump<E>(
        &mut self,
        handshake: Seq,
        mut seal: impl FnMut(ToSeal<'_>) -> Result<Option<Bytes>, E>,
    ) -> (Pumped, Vec<(MessageId, E)>) {
        let mut pumped = Pumped::default();
        let mut failed = Vec::new();
        let mut index = 0;
        let mut window = if self.proof == Proof::Given { WINDOW } else { 1 };
        // What was sealed for an older change is decided first. If it is refused, all that follows is sealed again under the same numbers; and what
        // was sealed for this change already might still arrive over another link, and be taken between the new ones.
        let is_older = |sealed: &Sealed| sealed.handshake < handshake;
        let waits = self.iter().any(|out| out.failed.is_none() && out.sealed.as_ref().is_some_and(is_older));
        while let Some(item) = self.items.get_mut(index) {
            index += 1;
            if item.out.failed.is_some() {
                continue;
            }
            if item.refused.is_some() || window == 0 {
                break;
            }
            if item.out.sealed.is_none() && waits {
                // What waits may be behind it.
                continue;
            }
            if item.out.sealed.is_none() {
                let next = self.record.next;
                let envelope = match &item.out.letter {
                    Letter::Envelope(envelope) => Ok(Some(envelope.clone())),
                    Letter::Content(content) => seal(ToSeal {
                        content,
                        message: item.out.message,
                        session: self.record.producer,
                        counter: next,
                        previous: self.record.previous,
                    }),
                };
                match envelope {
                    Ok(Some(envelope)) => {
                        self.record.previous = handshake::entry(&envelope);
                        self.record.next += 1;
                        item.out.sealed = Some(Sealed { client_seq: next, handshake, envelope });
                    }
                    // A join may wait behind what waits for it.
                    Ok(None) => continue,
                    Err(error) => {
                        failed.push((item.out.message, error));
                        continue;
                    }
                }
                pumped.persist.push((out_key(self.name, item.number), Some(encode(&item.out))));
                pumped.persist.push((outbox_key(self.name), Some(encode(&self.record))));
            }
            window -= 1;
            if let (false, Some(sealed)) = (item.sent, item.out.sealed.clone()) {
                item.sent = true;
                let Sealed { client_seq, handshake, envelope } = sealed;
                let producer = self.record.producer;
                pumped.publish.push(Publish { room: self.log, producer, client_seq, handshake, envelope });
            }
        }
        (pumped, failed)
    }

    /// The message that was sent under this number, if it waits for an answer.
    #[must_use]
    pub fn named(&self, producer: ProducerId, client_seq: u64) -> Option<MessageId> {
        self.items.get(self.position(producer, client_seq)?).map(|item| item.out.message)
    }

    /// A publish is on the server's disk. Returns its message id and what to persist.
    pub fn acked(&mut self, producer: ProducerId, client_seq: u64) -> Option<(MessageId, Vec<Persist>)> {
        let index = self.position(producer, client_seq)?;
        self.remove_stored(index)
    }

    fn remove_stored(&mut self, index: usize) -> Option<(MessageId, Vec<Persist>)> {
        let item = self.items.remove(index)?;
        let mut persist = Vec::new();
        if let Some(Sealed { client_seq, envelope, .. }) = &item.out.sealed {
            self.acked_here = self.acked_here.max(*client_seq);
            if matches!(self.proof, Proof::Owed(first) if *client_seq >= first) {
                self.proof = Proof::Given;
            }
            if *client_seq > self.record.acked_seq {
                (self.record.acked, self.record.acked_seq) = (handshake::entry(envelope), *client_seq);
            }
            // First, so that a crash between the two leaves a message that is sent again, and none that the next one does not know of.
            persist.push(self.persist_record());
        }
        persist.push((out_key(self.name, item.number), None));
        Some((item.out.message, persist))
    }

    /// A publish was refused.
    pub fn refused(&mut self, producer: ProducerId, client_seq: u64, why: Refusal) {
        let Some(index) = self.position(producer, client_seq) else { return };
        let item = self.items.get_mut(index);
        // A refusal of what is to be sent again anyway says nothing any more; nor does one of bytes that were sealed before.
        let former = |item: &&mut Item| match (why, &item.out.sealed) {
            (Refusal::StaleEpoch { handshake }, Some(sealed)) => handshake <= sealed.handshake,
            _ => false,
        };
        if let Some(item) = item.filter(|item| item.sent).filter(|item| !former(item)) {
            item.refused = Some(why);
        }
    }

    /// A publish came too early; it is to be sent again.
    pub fn not_taken(&mut self, producer: ProducerId, client_seq: u64) {
        let Some(index) = self.position(producer, client_seq) else { return };
        self.items.get_mut(index).into_iter().for_each(|item| item.sent = false);
    }

    /// Whether something is sealed: the server may have it, and answers to the same bytes whether it does.
    #[must_use]
    pub fn has_sealed(&self) -> bool {
        self.items.iter().any(|item| item.out.failed.is_none() && item.out.sealed.is_some())
    }

    /// Acts on the refusal of the oldest message in flight, if there is one. `fresh` names a new producer, should it need
    /// one. Call it again until it returns [`Settled::Nothing`].
    pub fn settle(&mut self, fresh: ProducerId) -> (Settled, Vec<Persist>) {
        let in_flight = |item: &&mut Item| item.out.failed.is_none() && item.out.sealed.is_some();
        let Some(item) = self.items.iter_mut().find(in_flight) else { return (Settled::Nothing, vec![]) };
        let Some(why) = item.refused.take() else { return (Settled::Nothing, vec![]) };
        let oldest = item.out.sealed.as_ref().map_or(0, |sealed| sealed.client_seq);
        match why {
            // Also when the server answered before it acked what this client knows to be acked by now.
            Refusal::OutOfOrder { expected } if expected >= oldest || expected <= self.acked_here => {
                self.send_again();
                (Settled::RetryAfter(0), vec![])
            }
            // The server knows less of this producer than was acked (a restored log): nothing of it is stored, begin anew.
            Refusal::OutOfOrder { .. } => (Settled::RetryAfter(0), self.restart(fresh)),
            Refusal::RateLimited { retry_after_ms } => self.later(retry_after_ms),
            Refusal::Overloaded | Refusal::OutcomeUnknown | Refusal::Internal => self.later(1000),
            Refusal::DiskFull => self.later(5000),
            Refusal::StaleEpoch { handshake } => (Settled::Reseal(handshake), self.reseal()),
            Refusal::Conflict | Refusal::Expired if !core::mem::replace(&mut self.outdated, true) => {
                (Settled::Outdated, self.restart(fresh))
            }
            final_refusal => {
                item.out.failed = Some(final_refusal.to_string());
                item.out.sealed = None;
                let message = item.out.message;
                let mut persist = vec![(out_key(self.name, item.number), Some(encode(&item.out)))];
                persist.extend(self.restart(fresh));
                (Settled::Failed(message), persist)
            }
        }
    }

    fn later(&mut self, after_ms: u32) -> (Settled, Vec<Persist>) {
        self.send_again();
        (Settled::RetryAfter(after_ms.max(50)), vec![])
    }

    /// Nothing from the oldest message on is stored: number and seal everything again, under a new producer and session.
    pub fn restart(&mut self, fresh: ProducerId) -> Vec<Persist> {
        self.renumber(fresh);
        self.unseal()
    }

    /// A new producer has sent nothing before.
    const fn renumber(&mut self, fresh: ProducerId) {
        self.record = new_record(fresh);
        self.acked_here = 0;
        self.proof = Proof::Given;
    }

    /// The epoch is stale, which proves that nothing from the oldest message on is stored: seal again, same numbers.
    fn reseal(&mut self) -> Vec<Persist> {
        self.record.previous = self.record.acked;
        let first = self.items.iter().find_map(|item| item.out.sealed.as_ref().map(|sealed| sealed.client_seq));
        self.record.next = first.unwrap_or(self.record.next);
        self.unseal()
    }

    fn unseal(&mut self) -> Vec<Persist> {
        self.send_again();
        if let Proof::Owed(first) = &mut self.proof {
            *first = self.record.next;
        }
        let mut persist = Vec::new();
        let name = self.name;
        // The newest first, so that a crash leaves the oldest as they were sent: what is sealed has no gap.
        for item in self.items.iter_mut().rev().filter(|item| item.out.sealed.is_some()) {
            item.out.sealed = None;
            persist.push((out_key(name, item.number), Some(encode(&item.out))));
        }
        // Last, so that a crash before it leaves no number that belongs to another producer.
        persist.push(self.persist_record());
        persist
    }

    /// A message cannot be sealed: it will not be sent.
    pub fn fail(&mut self, message: MessageId, why: String) -> Vec<Persist> {
        let name = self.name;
        let Some(item) = self.items.iter_mut().find(|item| item.out.message == message) else { return vec![] };
        item.out.failed = Some(why);
        vec![(out_key(name, item.number), Some(encode(&item.out)))]
    }

    /// Takes a failed message out. Returns it and what to forget.
    pub fn take_failed(&mut self, message: MessageId) -> Option<(OutRecord, Persist)> {
        let index = self.items.iter().position(|item| item.out.message == message && item.out.failed.is_some())?;
        let item = self.items.remove(index)?;
        Some((item.out, (out_key(self.name, item.number), None)))
    }

    /// Takes out all that is not sealed. Returns what to forget.
    pub fn clear_unsealed(&mut self) -> Vec<Persist> {
        let name = self.name;
        let (gone, kept): (VecDeque<_>, _) = self.items.drain(..).partition(|item| item.out.sealed.is_none());
        self.items = kept;
        gone.into_iter().map(|item| (out_key(name, item.number), None)).collect()
    }

    /// Gives up all that waits, and goes on under a new producer. Returns what to persist.
    pub fn abandon(&mut self, fresh: ProducerId) -> Vec<Persist> {
        self.renumber(fresh);
        let name = self.name;
        let gone = self.items.drain(..).map(|item| (out_key(name, item.number), None)).collect::<Vec<_>>();
        core::iter::once(self.persist_record()).chain(gone).collect()
    }

    /// Whether the log's record of this message, of this session and number, shows the outbox to be an older copy of itself: the log has more of it,
    /// or other bytes. Whatever it has sent is in the log before that, or was never stored, since numbers are taken in order.
    #[must_use]
    pub fn is_outrun(&self, message: MessageId, named: Option<(ProducerId, u64)>, digest: Digest) -> bool {
        let OutboxRecord { producer, next, previous, .. } = self.record;
        let by_number = named
            .filter(|(session, _)| *session == producer)
            .is_some_and(|(_, counter)| counter >= next || (counter.checked_add(1) == Some(next) && digest != previous));
        let is_it = |item: &&Item| item.out.message == message;
        let sealed = self.items.iter().find(is_it).and_then(|item| item.out.sealed.as_ref());
        by_number || sealed.is_some_and(|sealed| handshake::entry(&sealed.envelope) != digest)
    }

    /// Takes out a message that is in the log already. Returns what to persist.
    pub fn found_in_log(&mut self, message: MessageId) -> Option<Vec<Persist>> {
        let index = self.items.iter().position(|item| item.out.message == message)?;
        self.remove_stored(index).map(|(_, persist)| persist)
    }

    /// Everything of this outbox in storage, to be forgotten with its room.
    #[must_use]
    pub fn forget(&self) -> Vec<Persist> {
        let mut persist = vec![(outbox_key(self.name), None)];
        persist.extend(self.items.iter().map(|item| (out_key(self.name, item.number), None)));
        persist
    }

    fn position(&self, producer: ProducerId, client_seq: u64) -> Option<usize> {
        if producer != self.record.producer {
            return None;
        }
        self.items.iter().position(|item| item.out.sealed.as_ref().is_some_and(|sealed| sealed.client_seq == client_seq))
    }

    fn persist_item(&self, item: &Item) -> Persist {
        (out_key(self.name, item.number), Some(encode(&item.out)))
    }

    fn persist_record(&self) -> Persist {
        (outbox_key(self.name), Some(encode(&self.record)))
    }
}

const fn new_record(producer: ProducerId) -> OutboxRecord {
    OutboxRecord { producer, next: 1, previous: Digest([0; 32]), acked: Digest([0; 32]), acked_seq: 0 }
}
