//! The outbox alone: what an older copy of itself does, and how it finds out that it is one.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::super::{
    outbox::{Outbox, Persist, Pumped, Settled, ToSeal},
    records::{Letter, OutRecord, OutboxRecord},
};
use crate::{
    core::{
        chain,
        close::Refusal,
        frame::Publish,
        id::{Digest, MessageId, ProducerId, RoomId},
    },
    seal::{
        body::{Content, Message},
        message::SealError,
    },
};

const LOG: RoomId = RoomId([1; 16]);
const BEFORE: ProducerId = ProducerId([2; 16]);
const FRESH: ProducerId = ProducerId([3; 16]);

fn letter(number: u8) -> OutRecord {
    let letter = Letter::Content(Content::new(&Message::Text(format!("message {number}"))));
    OutRecord { message: MessageId([number; 16]), time_ms: 0, letter, sealed: None, failed: None }
}

/// Seals whatever may be sealed; what comes out names the message, its number and what it follows.
fn pump(outbox: &mut Outbox, form: u8) -> Vec<Publish> {
    pump_for(outbox, 0, form)
}

/// The same, after this change of the group.
fn pump_for(outbox: &mut Outbox, handshake: u64, form: u8) -> Vec<Publish> {
    let (Pumped { publish, .. }, failed) = outbox.pump(handshake, |to_seal| {
        let bytes = [&[form][..], &to_seal.message.0, &to_seal.counter.to_le_bytes(), &to_seal.previous.0].concat();
        Ok::<_, SealError>(Some(Bytes::from(bytes)))
    });
    assert!(failed.is_empty());
    publish
}

/// What a storage has of an outbox in which these messages were sealed, and the outbox that is loaded from it.
fn copy(sealed: u8) -> (Vec<Publish>, Outbox) {
    let mut outbox = Outbox::new(LOG, LOG, BEFORE);
    let persisted: Vec<_> = (1..=sealed).flat_map(|number| outbox.push(letter(number), false)).collect();
    assert_eq!(persisted.len(), 2 * usize::from(sealed));
    let publish = pump(&mut outbox, 0);
    let items = outbox.iter().cloned().zip(1..).map(|(out, number)| (number, out)).collect::<Vec<_>>();
    let record = OutboxRecord { producer: BEFORE, next: 1, previous: Digest([0; 32]), acked: Digest([0; 32]), acked_seq: 0 };
    (publish, Outbox::load(LOG, LOG, record, items))
}

fn numbers(publish: &[Publish]) -> Vec<u64> {
    publish.iter().map(|publish| publish.client_seq).collect()
}

#[test]
fn what_was_loaded_is_sent_one_by_one_until_something_new_is_acked() {
    let (sent, mut outbox) = copy(3);
    assert_eq!(numbers(&sent), [1, 2, 3], "an outbox that was not loaded has all of them under way");
    outbox.push(letter(4), false);
    outbox.push(letter(5), false);
    outbox.push(letter(6), false);
    for number in 1..=4 {
        assert_eq!(numbers(&pump(&mut outbox, 0)), [number]);
        assert!(pump(&mut outbox, 0).is_empty());
        outbox.acked(BEFORE, number).unwrap();
    }
    assert_eq!(numbers(&pump(&mut outbox, 0)), [5, 6], "the fourth was new, and the log took it");
}

#[test]
fn an_older_copy_knows_itself_by_what_the_log_has_of_it() {
    let (sent, outbox) = copy(2);
    let hashes: Vec<_> = sent.iter().map(|publish| chain::digest(&publish.envelope)).collect();
    let other = Digest([9; 32]);
    let second = MessageId([2; 16]);
    // The log has just what it sent.
    assert!(!outbox.is_outrun(MessageId([1; 16]), Some((BEFORE, 1)), hashes[0]));
    assert!(!outbox.is_outrun(second, Some((BEFORE, 2)), hashes[1]));
    assert!(!outbox.is_outrun(MessageId([7; 16]), Some((FRESH, 9)), other), "another session says nothing");
    // More than it sent; other bytes under its newest number; the same message in other bytes, whether or not it can be opened.
    assert!(outbox.is_outrun(MessageId([3; 16]), Some((BEFORE, 3)), other));
    assert!(outbox.is_outrun(MessageId([7; 16]), Some((BEFORE, 2)), other));
    assert!(outbox.is_outrun(second, Some((FRESH, 1)), other));
    assert!(outbox.is_outrun(second, None, other));
}

#[test]
fn what_was_sealed_anew_before_the_copy_was_made_conflicts_and_nothing_follows_it() {
    let (_, mut outbox) = copy(2);
    assert_eq!(numbers(&pump(&mut outbox, 0)), [1]);
    outbox.refused(BEFORE, 1, Refusal::Conflict);
    assert!(pump(&mut outbox, 0).is_empty(), "the second follows bytes that the log does not have");
    assert_eq!(outbox.settle(FRESH).0, Settled::Outdated);
    let again = pump(&mut outbox, 1);
    assert!(again.iter().all(|publish| publish.producer == FRESH));
    assert_eq!(numbers(&again), [1, 2], "a new session follows nothing");
}

#[test]
fn an_outbox_that_gave_up_what_it_asked_with_sends_on() {
    let (_, mut outbox) = copy(1);
    outbox.push(letter(2), false);
    assert_eq!(numbers(&pump(&mut outbox, 0)), [1]);
    outbox.acked(BEFORE, 1).unwrap();
    assert_eq!(numbers(&pump(&mut outbox, 0)), [2]);
    outbox.abandon(FRESH);
    outbox.push(letter(3), false);
    assert_eq!(numbers(&pump(&mut outbox, 0)), [1]);
}

#[test]
fn what_was_sealed_for_an_older_change_is_decided_before_anything_is_sealed_for_a_newer_one() {
    let mut outbox = Outbox::new(LOG, LOG, BEFORE);
    outbox.push(letter(1), false);
    outbox.push(letter(2), false);
    assert_eq!(numbers(&pump_for(&mut outbox, 3, 0)), [1, 2]);
    outbox.push(letter(3), false);
    // On the next connection a change is read before the answer comes: what is sent may be under way on the former link as well.
    outbox.disconnected();
    assert_eq!(numbers(&pump_for(&mut outbox, 5, 1)), [1, 2], "as they were");
    outbox.acked(BEFORE, 1).unwrap();
    assert!(pump_for(&mut outbox, 5, 1).is_empty());
    outbox.refused(BEFORE, 2, Refusal::StaleEpoch { handshake: 5 });
    assert_eq!(outbox.settle(FRESH).0, Settled::Reseal(5));
    let again = pump_for(&mut outbox, 5, 2);
    assert_eq!(numbers(&again), [2, 3]);
    assert!(again.iter().all(|publish| publish.handshake == 5 && publish.producer == BEFORE && publish.envelope[0] == 2));
    // Of this change, more may follow at once.
    outbox.push(letter(4), false);
    assert_eq!(numbers(&pump_for(&mut outbox, 5, 3)), [4]);
}

/// An outbox as it is kept, and a log that takes its messages in order, for the change that it has.
struct Kept {
    stored: BTreeMap<String, Vec<u8>>,
    taken: Vec<MessageId>,
    numbers: BTreeMap<ProducerId, u64>,
}

impl Kept {
    fn keep(&mut self, persist: impl IntoIterator<Item = Persist>) {
        for (key, value) in persist {
            match value {
                Some(value) => drop(self.stored.insert(key, value)),
                None => drop(self.stored.remove(&key)),
            }
        }
    }

    fn load(&self) -> Outbox {
        let record = self.stored.iter().find(|(key, _)| key.starts_with("outbox/")).unwrap().1;
        let items = self.stored.iter().filter(|(key, _)| key.starts_with("out/"));
        let number = |key: &str| u64::from_str_radix(key.rsplit('/').next().unwrap(), 16).unwrap();
        let items = items.map(|(key, value)| (number(key), postcard::from_bytes(value).unwrap()));
        Outbox::load(LOG, LOG, postcard::from_bytes(record).unwrap(), items)
    }

    /// Everything is sent until the log has it.
    fn send(&mut self, mut outbox: Outbox, handshake: u64) {
        for round in 0..20 {
            let sent = pump_for(&mut outbox, handshake, round);
            for Publish { producer, client_seq, handshake: sealed_for, envelope, .. } in sent {
                let last = self.numbers.entry(producer).or_default();
                let next = *last + 1;
                if client_seq != next {
                    outbox.refused(producer, client_seq, Refusal::OutOfOrder { expected: next });
                } else if sealed_for < handshake {
                    outbox.refused(producer, client_seq, Refusal::StaleEpoch { handshake });
                } else {
                    *last = next;
                    self.taken.push(MessageId(envelope[1..17].try_into().unwrap()));
                    outbox.acked(producer, client_seq).unwrap();
                }
            }
            while outbox.settle(FRESH).0 != Settled::Nothing {}
        }
        assert!(outbox.is_empty());
    }
}

#[test]
fn a_crash_while_all_of_it_is_sealed_again_leaves_no_gap() {
    for crash in 0..=4 {
        let mut outbox = Outbox::new(LOG, LOG, BEFORE);
        let mut kept = Kept { stored: BTreeMap::new(), taken: Vec::new(), numbers: BTreeMap::new() };
        (1..=3).for_each(|number| kept.keep(outbox.push(letter(number), false)));
        let seal = |to_seal: ToSeal<'_>| Ok::<_, SealError>(Some(Bytes::from([&[9][..], &to_seal.message.0].concat())));
        kept.keep(outbox.pump(3, seal).0.persist);
        outbox.refused(BEFORE, 1, Refusal::StaleEpoch { handshake: 5 });
        let (settled, persist) = outbox.settle(FRESH);
        assert_eq!((settled, persist.len()), (Settled::Reseal(5), 4));
        kept.keep(persist.into_iter().take(crash));
        let again = kept.load();
        let sealed: Vec<_> = again.iter().map(|out| out.sealed.is_some()).collect();
        assert!(sealed.is_sorted_by(|one, other| one >= other), "{sealed:?}");
        kept.send(again, 5);
        assert_eq!(kept.taken, [1, 2, 3].map(|number| MessageId([number; 16])));
    }
}

#[test]
fn what_is_acked_is_counted_before_it_is_forgotten() {
    let (_, mut outbox) = copy(2);
    let (_, persist) = outbox.acked(BEFORE, 1).unwrap();
    let keys: Vec<_> = persist.iter().map(|(key, value)| (key.split('/').next().unwrap(), value.is_some())).collect();
    assert_eq!(keys, [("outbox", true), ("out", false)]);
}
