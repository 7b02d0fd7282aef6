use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::core::{
    envelope::{HEADER_LEN, Suite, TAG_LEN},
    id::{AccessKey, LogId, MessageId, ProducerId},
};

const ROOM: RoomId = RoomId([1; 16]);
const DEVICE: DeviceKey = DeviceKey([2; 32]);

fn room() -> RoomLog {
    let meta = LogMeta { log: LogId([3; 16]), kind: LogKind::Room, access: AccessKey([4; 32]), creator: DEVICE, created_ms: 0 };
    RoomLog::new(ROOM, LoadedLog { meta, state: LogState::empty(ROOM), former: FormerKeys::default(), producers: Vec::new() })
}

fn envelope(tag: u8, epoch: u64) -> Bytes {
    let header = Header { kind: Kind::Room, suite: Suite::X25519Psk, room: ROOM, epoch, leaf: 1, message: MessageId([tag; 16]) };
    let mut bytes = header.to_bytes().to_vec();
    bytes.resize(HEADER_LEN + 32 + TAG_LEN, tag);
    bytes.into()
}

fn publish(client_seq: u64, envelope: Bytes) -> Publish {
    Publish { room: ROOM, producer: ProducerId([5; 16]), client_seq, handshake: 0, envelope }
}

/// A handshake record that follows the one at `after`, with a welcome and a group info of so many bytes.
fn change(tag: u8, after: Seq, beside: (u32, u32)) -> Bytes {
    let mut bytes = envelope(tag, 1).to_vec();
    bytes[1] = Kind::Handshake as u8;
    bytes.resize(bytes.len() + (beside.0 + beside.1) as usize, tag);
    bytes.extend_from_slice(&trailer(after, beside).to_bytes());
    bytes.into()
}

fn trailer(after: Seq, (welcome_len, group_info_len): (u32, u32)) -> Trailer {
    Trailer { after, access: None, welcome_len, group_info_len, beside_len: 0, is_outline: false }
}

/// As [`go`], of whoever has processed the handshake record at `after`; a handshake record if `is_change`.
fn go_after(room: &mut RoomLog, client_seq: u64, tag: u8, after: Seq, is_change: bool) -> Verdict {
    let envelope = if is_change { change(tag, after, (2, 3)) } else { envelope(tag, 1) };
    let publish = Publish { handshake: after, ..publish(client_seq, envelope) };
    room.publish(DEVICE, publish, 0, &Limits::default())
}

fn go(room: &mut RoomLog, client_seq: u64, tag: u8) -> Verdict {
    room.publish(DEVICE, publish(client_seq, envelope(tag, 1)), 0, &Limits::default())
}

#[test]
fn a_retry_gets_the_first_seq_and_other_bytes_are_refused() {
    let mut room = room();
    assert!(matches!(go(&mut room, 1, 1), Verdict::Append(append) if append.seq == 1));
    assert_eq!(go(&mut room, 1, 1), Verdict::Pending(1), "not yet on disk");
    assert_eq!(room.position().head, 0, "nothing is visible before it is on disk");
    room.persisted(1000);
    assert_eq!(go(&mut room, 1, 1), Verdict::Stored(1));
    assert_eq!(go(&mut room, 1, 2), Verdict::Refused(Refusal::Conflict));
    assert_eq!(go(&mut room, 3, 3), Verdict::Refused(Refusal::OutOfOrder { expected: 2 }));
    assert_eq!(go(&mut room, 0, 3), Verdict::Refused(Refusal::OutOfOrder { expected: 2 }));
    assert!(matches!(go(&mut room, 2, 3), Verdict::Append(append) if append.seq == 2));
}

#[test]
fn a_refusal_refuses_what_was_pipelined_behind_it() {
    let mut room = room();
    assert_eq!(go_after(&mut room, 1, 1, 9, false), Verdict::Refused(Refusal::StaleEpoch { handshake: 0 }));
    assert_eq!(go(&mut room, 2, 2), Verdict::Refused(Refusal::OutOfOrder { expected: 1 }));
    assert!(matches!(go(&mut room, 1, 3), Verdict::Append(_)), "sealed again under the same number");
}

#[test]
fn deduplication_comes_before_the_newest_handshake() {
    let mut room = room();
    go(&mut room, 1, 1);
    assert!(matches!(go_after(&mut room, 2, 2, 0, true), Verdict::Append(append) if append.seq == 2));
    room.persisted(1000);
    assert_eq!(go(&mut room, 1, 1), Verdict::Stored(1));
    assert_eq!(go_after(&mut room, 2, 2, 0, true), Verdict::Pending(2));
    assert_eq!(
        go(&mut room, 3, 3),
        Verdict::Refused(Refusal::StaleEpoch { handshake: 2 }),
        "it counts as soon as it is assigned"
    );
    assert_eq!(room.durable().handshake, 0);
    room.persisted(1000);
    assert_eq!(room.durable().handshake, 2);
    assert!(matches!(go_after(&mut room, 3, 3, 2, false), Verdict::Append(_)));
}

#[test]
fn handshakes_are_compared_and_swapped_and_what_is_taken_back_does_not_count() {
    let mut room = room();
    let stale = |handshake| Verdict::Refused(Refusal::StaleEpoch { handshake });
    assert!(matches!(go_after(&mut room, 1, 1, 0, true), Verdict::Append(_)));
    assert_eq!(go_after(&mut room, 2, 2, 0, true), stale(1), "lost the race");
    assert_eq!(go_after(&mut room, 2, 2, 9, true), stale(1), "from another life, or invented");
    assert!(matches!(go_after(&mut room, 2, 2, 1, false), Verdict::Append(_)));
    assert!(matches!(go_after(&mut room, 3, 3, 1, true), Verdict::Append(_)));
    assert_eq!(go_after(&mut room, 4, 4, 1, true), stale(3));
    room.unpublish_last();
    assert_eq!(go_after(&mut room, 3, 3, 3, true), stale(1));
    room.unpublish_last();
    assert!(matches!(go_after(&mut room, 2, 4, 1, true), Verdict::Append(_)));
    room.unpublish_last();
    room.unpublish_last();
    assert_eq!(go_after(&mut room, 1, 1, 1, false), stale(0));
}

#[test]
fn handshakes_that_do_not_fit_together_are_refused() {
    let mut room = room();
    let limits = Limits { envelope_bytes_max: 100, handshake_bytes_max: 400, ..Limits::default() };
    let mut refused = |handshake, envelope: Bytes| {
        let publish = Publish { handshake, ..publish(1, envelope) };
        match room.publish(DEVICE, publish, 0, &limits) {
            Verdict::Refused(why) => why,
            other => panic!("{other:?}"),
        }
    };
    let cut = |by: usize| {
        let whole = change(1, 0, (20, 30));
        whole.slice(..whole.len() - by)
    };
    assert_eq!(refused(0, cut(1)), Refusal::BadEnvelope);
    assert_eq!(refused(0, cut(48)), Refusal::BadEnvelope);
    assert_eq!(refused(1, change(1, 0, (2, 3))), Refusal::BadEnvelope, "the frame says something else");
    assert_eq!(refused(0, change(1, 0, (200, 200))), Refusal::TooLarge { max: 400 });
    assert_eq!(refused(0, vec![0; 101].into()), Refusal::TooLarge { max: 100 }, "no handshake, no larger limit");
    let mut lengths = change(1, 0, (20, 30)).to_vec();
    let end = lengths.len();
    lengths[end - 12..].fill(0xff);
    assert_eq!(refused(0, lengths.into()), Refusal::BadEnvelope, "lengths beyond all");
    assert_eq!(refused(0, outline(&change(1, 0, (20, 300)))), Refusal::BadEnvelope, "an outline");
    let large = Limits { handshake_bytes_max: 3 << 20, ..Limits::default() };
    let mut commit = envelope(1, 1).to_vec();
    commit[1] = Kind::Handshake as u8;
    commit.resize(COMMIT_LEN_MAX + 1, 1);
    commit.extend_from_slice(&trailer(0, (0, 0)).to_bytes());
    let why = room.publish(DEVICE, publish(1, commit.into()), 0, &large);
    assert_eq!(why, Verdict::Refused(Refusal::TooLarge { max: 1 << 20 }));
    assert!(matches!(room.publish(DEVICE, publish(1, change(1, 0, (1 << 20, 1 << 20))), 0, &large), Verdict::Append(_)));
}

proptest! {
    /// Whatever is published, persisted, taken back and failed: a publish is stored exactly if it names the newest handshake
    /// record of all that were assigned before it.
    #[test]
    fn only_who_names_the_newest_handshake_is_stored(ops in proptest::collection::vec((0..8_u8, 0..4_u64, any::<bool>()), 0..80)) {
        let mut room = room();
        // Whether each record is a handshake record; so many of them are durable.
        let (mut records, mut durable): (Vec<bool>, usize) = (Vec::new(), 0);
        let newest = |records: &[bool]| records.iter().rposition(|is| *is).map_or(0, |at| at as u64 + 1);
        for (op, back, is_change) in ops {
            match op {
                0..=4 => {
                    let (newest, next) = (newest(&records), records.len() as u64 + 1);
                    let named = newest.saturating_sub(if op == 4 { back } else { 0 });
                    let verdict = go_after(&mut room, next, 1, named, is_change);
                    if named == newest {
                        prop_assert!(matches!(verdict, Verdict::Append(append) if append.seq == next));
                        records.push(is_change);
                    } else {
                        prop_assert_eq!(verdict, Verdict::Refused(Refusal::StaleEpoch { handshake: newest }));
                    }
                }
                5 => durable += usize::from(room.persisted(1000).is_some()),
                6 => drop(room.unpublish_last().map(|_| records.pop())),
                _ => {
                    while room.failed().is_some() {}
                    records.truncate(durable);
                    let mut state = *room.durable();
                    state.handshake = newest(&records);
                    let producers = room.producers.iter().map(|(producer, state)| (*producer, state.clone()));
                    let producers = producers.map(|(producer, mut state)| {
                        state.ring.retain(|stored| stored.seq <= durable as u64);
                        state.last = durable as u64;
                        (producer, state)
                    });
                    let producers = producers.collect();
                    room = RoomLog::new(ROOM, LoadedLog { meta: room.meta.clone(), state, former: FormerKeys::default(), producers });
                }
            }
            prop_assert_eq!(room.durable().handshake, newest(&records[..durable]));
        }
    }
}

#[test]
fn too_old_to_decide_is_expired_and_never_stored() {
    let mut room = room();
    for n in 1..=100 {
        assert!(matches!(go(&mut room, n, 1), Verdict::Append(_)));
        room.persisted(1000);
    }
    assert_eq!(go(&mut room, 36, 1), Verdict::Refused(Refusal::Expired));
    assert_eq!(go(&mut room, 37, 1), Verdict::Stored(37));
}

#[test]
fn a_failed_append_stops_the_log_until_it_is_loaded_anew() {
    let mut room = room();
    go(&mut room, 1, 1);
    go(&mut room, 2, 2);
    assert_eq!(room.failed().map(|append| append.seq), Some(1));
    assert!(!room.is_quiet());
    assert_eq!(go(&mut room, 3, 3), Verdict::Refused(Refusal::OutcomeUnknown));
    assert_eq!(room.failed().map(|append| append.seq), Some(2));
    assert!(room.is_quiet() && room.has_failed());
    assert_eq!(room.position().head, 0);
}

#[test]
fn what_was_not_submitted_is_taken_back() {
    let mut room = room();
    go(&mut room, 1, 1);
    let before = format!("{room:?}");
    go(&mut room, 2, 2);
    assert_eq!(room.unpublish_last().map(|append| append.seq), Some(2));
    assert_eq!(format!("{room:?}"), before);
    assert!(matches!(go(&mut room, 2, 3), Verdict::Append(append) if append.seq == 2), "with other bytes, even");
    room.unpublish_last();
    room.unpublish_last();
    assert_eq!((room.is_quiet(), room.unpublish_last(), room.producers.len()), (true, None, 0));
    let Verdict::Append(append) = go(&mut room, 1, 9) else { panic!() };
    assert_eq!(append.chain, chain::next(ROOM, chain::start(ROOM), 1, &envelope(9, 1)));
}

#[test]
fn producers_are_limited_and_idle_ones_make_way() {
    let mut room = room();
    let limits = Limits { producers_per_device_max: 2, ..Limits::default() };
    let mut from = |id: u8, now| {
        let publish = Publish { producer: ProducerId([id; 16]), ..publish(1, envelope(id, 1)) };
        room.publish(DEVICE, publish, now, &limits)
    };
    assert!(matches!(from(1, 0), Verdict::Append(_)));
    assert!(matches!(from(2, 5), Verdict::Append(_)));
    assert_eq!(from(3, 5), Verdict::Refused(Refusal::TooManyProducers));
    assert!(matches!(from(3, PRODUCER_IDLE_MAX_MS), Verdict::Append(_)));
}

#[test]
fn foreign_malformed_and_oversized_envelopes_are_refused() {
    let mut room = room();
    let mut refused = |envelope: Bytes| {
        let limits = Limits { envelope_bytes_max: 200, ..Limits::default() };
        match room.publish(DEVICE, publish(1, envelope), 0, &limits) {
            Verdict::Refused(why) => why,
            other => panic!("{other:?}"),
        }
    };
    let mut foreign = envelope(1, 1).to_vec();
    foreign[4] ^= 1;
    assert_eq!(refused(foreign.into()), Refusal::BadEnvelope);
    assert_eq!(refused(Bytes::from_static(b"short")), Refusal::BadEnvelope);
    assert_eq!(refused(vec![0; 201].into()), Refusal::TooLarge { max: 200 });
}

#[test]
fn the_recent_tail_is_bounded_in_bytes_and_proves_its_chain() {
    let mut room = room();
    let size = u32::try_from(envelope(1, 1).len()).unwrap();
    let mut chains = vec![chain::start(ROOM)];
    for n in 1..=5 {
        let Verdict::Append(append) = go(&mut room, n, 1) else { panic!() };
        chains.push(append.chain);
        room.persisted(3 * size);
    }
    assert_eq!(room.recent_after(1, u32::MAX), None, "only the last three are in memory");
    for (after, chain) in chains.iter().copied().enumerate().skip(2) {
        let page = room.recent_after(after as u64, u32::MAX).unwrap();
        assert_eq!((page.first, page.chain, page.items.len()), (after as u64 + 1, chain, 5 - after));
    }
    assert_eq!(room.recent_after(2, 1).unwrap().items.len(), 1, "at least one");
    assert_eq!([0, 1, 2, 5, 6].map(|seq| room.chain_at(seq)), [Some(chains[0]), None, Some(chains[2]), Some(chains[5]), None]);
    assert_eq!(room.recent_after(6, 1), None);
}

#[test]
fn pages_backwards_come_from_memory_only_when_it_has_all_that_fits() {
    let mut room = room();
    let size = u32::try_from(envelope(1, 1).len()).unwrap();
    for n in 1..=5 {
        go(&mut room, n, 1);
        room.persisted(3 * size);
    }
    let page = |before, count, bytes| {
        let page = room.recent_before(before, count, bytes)?;
        Some((page.first, page.items.len(), room.chain_at(page.first - 1) == Some(page.chain)))
    };
    assert_eq!(page(u64::MAX, 2, u32::MAX), Some((4, 2, true)));
    assert_eq!(page(5, 100, 2 * size), Some((3, 2, true)), "cut by bytes");
    assert_eq!(page(5, 100, 1), Some((4, 1, true)), "at least one");
    assert_eq!(page(u64::MAX, 3, u32::MAX), Some((3, 3, true)));
    assert_eq!(page(u64::MAX, 4, u32::MAX), None, "the engine has one more");
    assert_eq!(page(3, 1, u32::MAX), None);
    assert_eq!(page(1, 9, u32::MAX), Some((1, 0, true)));
    assert_eq!(page(0, 9, u32::MAX), Some((1, 0, true)));
}

#[test]
fn what_was_read_is_kept_in_front_of_the_tail() {
    let (mut room, mut read, mut chains) = (room(), Vec::new(), Vec::new());
    let size = u32::try_from(envelope(1, 1).len()).unwrap();
    for n in 1..=6 {
        let Verdict::Append(Append { seq, chain, time_ms, envelope, .. }) = go(&mut room, n, 1) else { panic!() };
        chains.push(chain);
        read.push(super::super::log::Record { seq, time_ms, envelope });
        room.persisted(size);
    }
    let before = chain::start(ROOM);
    let records = |end| Records { state: room.durable, before, records: read[..end].to_vec() };
    let (apart, whole) = (records(4), records(5));
    room.remember(&apart, u32::MAX);
    assert_eq!(room.recent_after(4, 1), None, "a gap");
    room.remember(&whole, 4 * size);
    assert_eq!(
        (room.recent_bytes(), room.recent_after(1, 1)),
        (4 * (size as usize + ITEM_BYTES), None),
        "as many as may be kept"
    );
    let page = room.recent_after(2, u32::MAX).unwrap();
    assert_eq!((page.first, page.chain, page.items.len()), (3, chains[1], 4));
    room.shrink_recent(2 * size);
    assert!(room.recent_covers(4) && !room.recent_covers(3));
}

#[test]
fn a_floor_that_the_engine_raised_is_adopted_and_makes_room() {
    let mut room = room();
    let size = envelope(1, 1).len() as u64;
    let limits = Limits { room_bytes_max: 4 * size, ..Limits::default() };
    let mut chains = vec![chain::start(ROOM)];
    for n in 1..=4 {
        let Verdict::Append(append) = room.publish(DEVICE, publish(n, envelope(1, 1)), 0, &limits) else { panic!() };
        chains.push(append.chain);
        if n < 4 {
            room.persisted(1000);
        }
    }
    assert_eq!(room.publish(DEVICE, publish(5, envelope(1, 1)), 0, &limits), Verdict::Refused(Refusal::RoomFull));
    // The engine is ahead by the pending one.
    let state = LogState { head: 4, chain: chains[4], floor: 3, floor_chain: chains[2], bytes: 2 * size, handshake: 0 };
    room.adopt(&state);
    assert_eq!((room.durable.floor, room.durable.bytes, room.assigned.bytes), (3, size, 2 * size));
    assert_eq!((room.recent_after(1, 1), room.chain_at(2)), (None, Some(chains[2])));
    assert_eq!(room.recent_after(2, 1000).map(|page| page.items.len()), Some(1));
    room.persisted(1000);
    assert_eq!((room.durable.head, room.durable.bytes), (4, 2 * size));
    assert!(matches!(room.publish(DEVICE, publish(5, envelope(1, 1)), 0, &limits), Verdict::Append(_)));
    // An older view changes nothing.
    room.adopt(&LogState { head: 3, chain: chains[3], floor: 1, floor_chain: chains[0], bytes: 3 * size, handshake: 0 });
    assert_eq!((room.durable.floor, room.assigned.bytes), (3, 3 * size));
    // A floor beyond what is visible here.
    room.adopt(&LogState { head: 5, chain: chains[0], floor: 6, floor_chain: chains[0], bytes: 0, handshake: 0 });
    assert_eq!((room.durable.floor, room.chain_at(4)), (5, Some(chains[4])));
}

/// A post of the epoch, as the drop-box takes them.
fn a_post(tag: u8, epoch: u64) -> Bytes {
    let header = Header {
        kind: Kind::DropBox,
        suite: Suite::XWing,
        room: ROOM,
        epoch,
        leaf: envelope::NOT_A_MEMBER,
        message: MessageId([tag; 16]),
    };
    let mut bytes = header.to_bytes().to_vec();
    bytes.resize(HEADER_LEN + 1120 + TAG_LEN, tag);
    bytes.into()
}

#[test]
fn a_post_is_known_by_its_bytes_before_anything_else_is_looked_at() {
    let (mut room, limits) = (room(), Limits::default());
    assert!(matches!(room.post(a_post(1, 7), Some(7), 0, &limits), Verdict::Append(append) if append.seq == 1));
    assert_eq!(room.post(a_post(1, 7), Some(7), 0, &limits), Verdict::Pending(1));
    room.persisted(1000);
    assert_eq!(room.post(a_post(1, 7), None, 0, &limits), Verdict::Stored(1), "also where the drop-box is closed");
    for tag in 2..66 {
        assert!(matches!(room.post(a_post(tag, 8), Some(8), 0, &limits), Verdict::Append(_)));
        room.persisted(1000);
    }
    let stale = Verdict::Refused(Refusal::StaleEpoch { handshake: 0 });
    assert_eq!(room.post(a_post(1, 7), Some(8), 0, &limits), stale, "of the last 64 only");
    assert_eq!(room.post(a_post(2, 8), Some(8), 0, &limits), Verdict::Stored(2));
    // A member's own outbox has nothing to do with it.
    assert!(matches!(go(&mut room, 1, 1), Verdict::Append(_)));
}

#[test]
fn a_post_is_refused_where_it_does_not_belong() {
    let mut room = room();
    let limits = Limits { room_bytes_max: 1600, envelope_bytes_max: 2000, ..Limits::default() };
    let mut refused = |bytes: Bytes, epoch| match room.post(bytes, epoch, 0, &limits) {
        Verdict::Refused(why) => why,
        verdict => panic!("{verdict:?}"),
    };
    let with = |at: usize, value: u8| {
        let mut bytes = a_post(1, 7).to_vec();
        bytes[at] = value;
        Bytes::from(bytes)
    };
    let stale = Refusal::StaleEpoch { handshake: 0 };
    assert_eq!((refused(a_post(1, 7), None), refused(a_post(1, 7), Some(8))), (stale, stale));
    assert_eq!(refused(with(4, 9), Some(7)), Refusal::BadEnvelope, "another room");
    assert_eq!(refused(with(28, 0), Some(7)), Refusal::BadEnvelope, "a member's leaf");
    assert_eq!(refused(with(1, Kind::Keyring as u8), Some(7)), Refusal::BadEnvelope);
    assert_eq!(refused(envelope(1, 7), Some(7)), Refusal::BadEnvelope, "a member's message");
    assert_eq!(refused(vec![0; 2001].into(), Some(7)), Refusal::TooLarge { max: 2000 });
    let full = Limits { room_bytes_max: 1300, ..limits.clone() };
    assert_eq!(room.post(a_post(1, 7), Some(7), 0, &full), Verdict::Refused(Refusal::RoomFull), "the last eighth is for members");
    assert!(matches!(room.post(a_post(1, 7), Some(7), 0, &limits), Verdict::Append(_)));
}

#[test]
fn while_somebody_is_taken_out_no_post_is_taken() {
    let (mut room, limits) = (room(), Limits::default());
    let mut out = change(9, 0, (2, 3)).to_vec();
    let at = out.len() - 44;
    out[at..at + 32].fill(6);
    assert_eq!(room.opened_at(), 0);
    let publish = Publish { handshake: 0, ..publish(1, out.into()) };
    assert!(matches!(room.publish(DEVICE, publish, 0, &limits), Verdict::Append(_)));
    let stale = Verdict::Refused(Refusal::StaleEpoch { handshake: 1 });
    assert_eq!(room.post(a_post(1, 7), Some(7), 0, &limits), stale, "the change is not on disk yet, and comes first");
    room.persisted(1000);
    assert_eq!(room.opened_at(), 1, "what was opened before is not open any more");
    assert!(matches!(room.post(a_post(1, 8), Some(8), 0, &limits), Verdict::Append(_)));
}
