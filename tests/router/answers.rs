//! The answers that make publishing exactly-once, each as a client hears it; and what a log that is trimmed answers.

use std::sync::Arc;

use waxwing::{
    core::{
        close::Refusal,
        envelope::Kind,
        frame::{LogKind, Operation, Publish, ServerFrame},
        id::ProducerId,
        limits::Limits,
        log::PRODUCER_RING,
        session::Action,
    },
    engine::Failure,
    router::{Conn, shard::Message},
};

use crate::{
    common::{self, device_of, envelope, key},
    world::{ROOMS, World, limits, one_room, publish, why},
};

const ROOM: waxwing::core::id::RoomId = ROOMS[0];

/// Publishes, and what came back.
fn say(world: &mut World, conn: &Arc<Conn>, client_seq: u64, payload: &[u8]) -> Result<u64, Refusal> {
    answer(world, conn, publish(ROOM, client_seq, payload))
}

fn answer(world: &mut World, conn: &Arc<Conn>, action: Action) -> Result<u64, Refusal> {
    assert!(world.ask(conn, ROOM, action));
    let frames = world.read_all(conn);
    let result = frames.iter().find_map(|frame| match frame {
        ServerFrame::Ack { seq, .. } => Some(Ok(*seq)),
        ServerFrame::Refused { why, .. } => Some(Err(*why)),
        _ => None,
    });
    result.unwrap_or_else(|| panic!("no answer: {frames:?}"))
}

/// The same device on another connection, which has entered.
fn again(world: &mut World) -> Arc<Conn> {
    let conn = world.connect(device_of(&key(1)));
    world.enter(&conn, ROOM);
    world.read_all(&conn);
    conn
}

#[test]
fn a_duplicate_gets_the_first_seq_on_any_connection_and_after_a_crash() {
    let (mut world, conn) = one_room(limits());
    assert_eq!(say(&mut world, &conn, 1, b"a"), Ok(1));
    assert_eq!(say(&mut world, &conn, 2, b"b"), Ok(2));
    assert_eq!(say(&mut world, &conn, 1, b"a"), Ok(1));
    let other = again(&mut world);
    assert_eq!(say(&mut world, &other, 1, b"a"), Ok(1));
    world.crash();
    let conn = again(&mut world);
    assert_eq!(say(&mut world, &conn, 2, b"b"), Ok(2));
    world.shard.handle(Message::Closed { conn: conn.id }, 0);
    world.settle();
    assert_eq!(world.shard.rooms_len(), 0);
    let conn = again(&mut world);
    assert_eq!(say(&mut world, &conn, 1, b"a"), Ok(1), "also once the room was let go");
    assert_eq!(world.engine.log(ROOM).unwrap().state.head, 2);
}

#[test]
fn another_message_under_a_used_number_is_a_conflict_and_not_stored() {
    let (mut world, conn) = one_room(limits());
    assert_eq!(say(&mut world, &conn, 1, b"a"), Ok(1));
    assert_eq!(say(&mut world, &conn, 1, b"x"), Err(Refusal::Conflict));
    world.crash();
    let conn = again(&mut world);
    assert_eq!(say(&mut world, &conn, 1, b"x"), Err(Refusal::Conflict));
    assert_eq!(world.engine.log(ROOM).unwrap().state.head, 1);
    // Also while the first one is still being stored.
    world.ask(&conn, ROOM, publish(ROOM, 2, b"b"));
    world.ask(&conn, ROOM, publish(ROOM, 2, b"y"));
    let frames = world.read_all(&conn);
    assert_eq!(why(&frames), [(None, Refusal::Conflict)]);
    assert!(frames.iter().any(|frame| matches!(frame, ServerFrame::Ack { client_seq: 2, seq: 2, .. })));
}

#[test]
fn a_number_that_is_not_the_next_one_is_out_of_order() {
    let (mut world, conn) = one_room(limits());
    assert_eq!(say(&mut world, &conn, 2, b"b"), Err(Refusal::OutOfOrder { expected: 1 }));
    assert_eq!(say(&mut world, &conn, 0, b"b"), Err(Refusal::OutOfOrder { expected: 1 }));
    assert_eq!(say(&mut world, &conn, 1, b"a"), Ok(1));
    assert_eq!(say(&mut world, &conn, 3, b"c"), Err(Refusal::OutOfOrder { expected: 2 }));
    assert_eq!(say(&mut world, &conn, 2, b"b"), Ok(2));
}

#[test]
fn a_number_too_old_to_tell_is_expired_and_never_stored_again() {
    let (mut world, conn) = one_room(Limits { publish_burst_max: 1000, ..limits() });
    let count = PRODUCER_RING as u64 + 5;
    for n in 1..=count {
        assert_eq!(say(&mut world, &conn, n, b"a"), Ok(n));
    }
    assert_eq!(say(&mut world, &conn, 5, b"a"), Err(Refusal::Expired));
    assert_eq!(say(&mut world, &conn, 6, b"a"), Ok(6));
    world.crash();
    let conn = again(&mut world);
    assert_eq!(say(&mut world, &conn, 5, b"a"), Err(Refusal::Expired));
    assert_eq!(world.engine.log(ROOM).unwrap().state.head, count);
}

#[test]
fn a_stale_publish_proves_that_nothing_was_stored_and_a_stored_one_is_still_recognised() {
    let (mut world, conn) = one_room(limits());
    assert_eq!(say(&mut world, &conn, 1, b"a"), Ok(1));
    let publish = |client_seq, handshake, envelope| {
        Action::Publish(Publish { room: ROOM, producer: ProducerId([9; 16]), client_seq, handshake, envelope })
    };
    let change = |after| common::handshake(ROOM, after, None, b"change", (3, 5));
    assert_eq!(answer(&mut world, &conn, publish(2, 0, change(0))), Ok(2));
    let stale = Err(Refusal::StaleEpoch { handshake: 2 });
    assert_eq!(answer(&mut world, &conn, publish(3, 0, envelope(Kind::Room, ROOM, b"b"))), stale);
    assert_eq!(answer(&mut world, &conn, publish(3, 1, change(1))), stale, "who names another record lost the race");
    assert_eq!(answer(&mut world, &conn, publish(2, 0, change(0))), Ok(2), "a retry is older than that");
    assert_eq!(answer(&mut world, &conn, publish(3, 2, change(0))), Err(Refusal::BadEnvelope), "record and frame differ");
    assert_eq!(answer(&mut world, &conn, publish(3, 2, change(2))), Ok(3), "sealed again under the same number");
    assert_eq!(answer(&mut world, &conn, publish(4, 3, envelope(Kind::Room, ROOM, b"c"))), Ok(4));
}

#[test]
fn an_unknown_outcome_is_decided_by_the_same_bytes() {
    for first in 1..=2 {
        let (mut world, conn) = one_room(limits());
        for n in 1..first {
            assert_eq!(say(&mut world, &conn, n, b"a"), Ok(n));
        }
        // The model engine stores even seqs in spite of its failure, and odd ones not.
        world.engine.fail_next(Failure::OutcomeUnknown);
        assert_eq!(say(&mut world, &conn, first, b"b"), Err(Refusal::OutcomeUnknown));
        let stored = world.engine.log(ROOM).unwrap().state.head == first;
        assert_eq!(stored, first == 2);
        assert_eq!(say(&mut world, &conn, first, b"b"), Ok(first));
        assert_eq!(world.engine.log(ROOM).unwrap().state.head, first, "exactly once");
        assert_eq!(say(&mut world, &conn, first, b"x"), Err(Refusal::Conflict));
    }
}

#[test]
fn a_full_room_that_was_trimmed_accepts_again_and_the_engine_is_asked_seldom() {
    let size = envelope(Kind::Room, ROOM, &[0; 50]).len() as u64;
    let (mut world, conn) = one_room(Limits { room_bytes_max: 20 * size, ..limits() });
    world.ask(&conn, ROOM, Action::Subscribe { after: 0 });
    for n in 1..=20 {
        assert_eq!(say(&mut world, &conn, n, &[0; 50]), Ok(n));
    }
    world.engine.take_reads();
    world.now_ms += 10_000;
    for _ in 0..5 {
        assert_eq!(say(&mut world, &conn, 21, &[0; 50]), Err(Refusal::RoomFull));
    }
    assert_eq!(world.engine.take_reads().get(&ROOM), Some(&1), "once in a while");
    world.engine.trim(ROOM, 15);
    assert_eq!(say(&mut world, &conn, 21, &[0; 50]), Err(Refusal::RoomFull), "it has not heard of it");
    world.now_ms += 2_000;
    assert_eq!(say(&mut world, &conn, 21, &[0; 50]), Err(Refusal::RoomFull), "now it asks");
    for n in 21..=25 {
        assert_eq!(say(&mut world, &conn, n, &[0; 50]), Ok(n));
    }
    assert_eq!(say(&mut world, &conn, 26, &[0; 50]), Err(Refusal::RoomFull));
    // Who comes later begins at the floor.
    let late = again(&mut world);
    world.ask(&late, ROOM, Action::Subscribe { after: 0 });
    let frames = world.read_all(&late);
    let [ServerFrame::Subscribed { after: 5, position, .. }, ..] = &frames[..] else { panic!("{frames:?}") };
    assert_eq!((position.floor, position.head), (6, 25));
    let seen: usize = frames.iter().map(|frame| if let ServerFrame::Deliver(page) = frame { page.items.len() } else { 0 }).sum();
    assert_eq!(seen, 20);
}

#[test]
fn a_time_is_found_in_the_log() {
    let (mut world, conn) = one_room(limits());
    for n in 1..=5 {
        world.now_ms = 1000 * n;
        assert_eq!(say(&mut world, &conn, n, b"a"), Ok(n));
    }
    let seek = |world: &mut World, time_ms| {
        world.ask(&conn, ROOM, Action::Seek { request: 3, time_ms });
        let frames = world.read_all(&conn);
        let [ServerFrame::Sought { request: 3, room: ROOM, seq }] = frames[..] else { panic!("{frames:?}") };
        seq
    };
    assert_eq!([0, 1000, 1001, 5000, 5001].map(|time_ms| seek(&mut world, time_ms)), [1, 1, 2, 5, 6]);
    world.engine.trim(ROOM, 2);
    assert_eq!(seek(&mut world, 0), 4);
    let stranger = world.connect(device_of(&key(2)));
    world.ask(&stranger, ROOM, Action::Seek { request: 3, time_ms: 0 });
    assert_eq!(why(&world.read_all(&stranger)), [(Some(Operation::Seek), Refusal::NoAccess)]);
}

#[test]
fn a_room_that_nobody_has_entered_takes_no_memory() {
    let (mut world, conn) = one_room(limits());
    for n in 1..=5 {
        assert_eq!(say(&mut world, &conn, n, &[0; 50]), Ok(n));
    }
    assert!(world.shard.recent_bytes() > 0);
    world.ask(&conn, ROOM, Action::Leave);
    world.settle();
    assert_eq!((world.shard.rooms_len(), world.shard.recent_bytes()), (0, 0));
    // Somebody posts into an inbox: it is loaded, and let go of.
    world.create(&conn, ROOMS[1], LogKind::Inbox);
    world.read_all(&conn);
    let poster = world.connect(device_of(&key(2)));
    let envelope = envelope(Kind::Keyring, ROOMS[1], b"k");
    let publish = Publish { room: ROOMS[1], producer: ProducerId([1; 16]), client_seq: 1, handshake: 0, envelope };
    world.ask(&poster, ROOMS[1], Action::Publish(publish));
    assert!(matches!(world.read_all(&poster)[..], [ServerFrame::Ack { seq: 1, .. }]));
    world.settle();
    assert_eq!((world.shard.rooms_len(), world.shard.recent_bytes()), (0, 0));
    // Who asks without having entered loads nothing either.
    for action in [Action::Subscribe { after: 0 }, Action::Fetch { request: 1, before: 9, count_max: 9 }] {
        world.ask(&poster, ROOM, action);
        world.settle();
        assert_eq!(world.shard.rooms_len(), 0);
    }
}
