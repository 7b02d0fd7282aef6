//! The contract, scenario by scenario.

use waxwing::{
    core::{
        close::Refusal,
        envelope::Kind,
        frame::{LogKind, Operation, Page, Publish, ServerFrame},
        id::{Digest, LogId, ProducerId},
        limits::Limits,
        session::Action,
    },
    engine::Failure,
    router::shard::Message,
};

use crate::{
    common::{device_of, envelope, key, proof},
    world::{ROOMS, World, limits, one_room, publish, why},
};

#[test]
fn nothing_is_acked_or_shown_before_it_is_durable() {
    let (mut world, conn) = one_room(limits());
    world.ask(&conn, ROOMS[0], Action::Subscribe { after: 0 });
    assert!(matches!(world.read_all(&conn)[..], [ServerFrame::Subscribed { after: 0, .. }, ServerFrame::Presence { .. }]));
    world.ask(&conn, ROOMS[0], publish(ROOMS[0], 1, b"a"));
    world.ask(&conn, ROOMS[0], publish(ROOMS[0], 1, b"a"));
    world.turn();
    assert_eq!(conn.outbox.bytes(), 0);
    let frames = world.read_all(&conn);
    assert!(
        matches!(&frames[..], [
            ServerFrame::Ack { client_seq: 1, seq: 1, .. },
            ServerFrame::Ack { client_seq: 1, seq: 1, .. },
            ServerFrame::Deliver(Page { first: 1, items, .. })
        ] if items.len() == 1),
        "a retry in flight is acked with the first: {frames:?}"
    );
}

#[test]
fn a_read_that_is_ahead_of_its_appends_shows_nothing_early() {
    let (mut world, conn) = one_room(limits());
    for n in 1..=3 {
        world.ask(&conn, ROOMS[0], publish(ROOMS[0], n, b"a"));
        world.read_all(&conn);
    }
    world.crash();
    let conn = world.connect(device_of(&key(1)));
    world.enter(&conn, ROOMS[0]);
    world.read_all(&conn);
    world.ask(&conn, ROOMS[0], publish(ROOMS[0], 4, b"b"));
    world.ask(&conn, ROOMS[0], Action::Subscribe { after: 0 });
    world.turn();
    assert_eq!(world.engine.step(2), 2, "the append, and the read");
    world.turn_with(1);
    let shown = |frames: &[ServerFrame]| {
        let items = |frame: &ServerFrame| if let ServerFrame::Deliver(page) = frame { page.items.len() } else { 0 };
        frames.iter().map(items).sum::<usize>()
    };
    let (frames, _) = world.take(&conn, 10_000);
    assert_eq!(shown(&frames), 3, "{frames:?}");
    let frames = world.read_all(&conn);
    assert!(matches!(frames[..], [ServerFrame::Ack { seq: 4, .. }, ServerFrame::Deliver(_)]), "{frames:?}");
}

#[test]
fn one_turn_is_one_page_and_a_refusal_stops_what_was_pipelined() {
    let (mut world, conn) = one_room(Limits::default());
    world.ask(&conn, ROOMS[0], Action::Subscribe { after: 0 });
    world.read_all(&conn);
    for n in [1, 2, 4, 5, 3] {
        world.ask(&conn, ROOMS[0], publish(ROOMS[0], n, &[0; 8]));
    }
    let frames = world.read_all(&conn);
    assert_eq!(why(&frames), [(None, Refusal::OutOfOrder { expected: 3 }), (None, Refusal::OutOfOrder { expected: 3 })]);
    assert!(matches!(frames.last(), Some(ServerFrame::Deliver(page)) if page.items.len() == 3), "{frames:?}");
}

#[test]
fn who_has_not_proved_access_gets_nothing() {
    let (mut world, _creator) = one_room(limits());
    let conn = world.connect(device_of(&key(2)));
    let room = ROOMS[0];
    world.ask(&conn, room, publish(room, 1, b"x"));
    world.ask(&conn, room, Action::Subscribe { after: 0 });
    world.ask(&conn, room, Action::Fetch { request: 1, before: u64::MAX, count_max: 9 });
    world.ask(&conn, room, Action::Ephemeral { envelope: envelope(Kind::Ephemeral, room, b"") });
    world.ask(&conn, room, Action::Delete);
    world.ask(&conn, room, Action::Enter { handshake: 0, proof: proof(room, Digest([0; 32])) });
    world.ask(&conn, ROOMS[1], Action::Enter { handshake: 0, proof: proof(ROOMS[1], conn.binding) });
    world.ask(&conn, ROOMS[1], publish(ROOMS[1], 1, b"x"));
    let frames = world.read_all(&conn);
    let no = |what| (Some(what), Refusal::NoAccess);
    assert_eq!(
        why(&frames),
        [
            (None, Refusal::NoAccess),
            no(Operation::Subscribe),
            no(Operation::Fetch),
            no(Operation::Ephemeral),
            no(Operation::Delete),
            (Some(Operation::Enter), Refusal::BadProof),
            no(Operation::Enter),
            (None, Refusal::NoAccess)
        ]
    );
}

#[test]
fn creating_again_is_idempotent_for_the_same_device_and_refused_otherwise() {
    let (mut world, conn) = one_room(limits());
    world.create(&conn, ROOMS[0], LogKind::Room);
    assert!(matches!(world.read_all(&conn)[..], [ServerFrame::Created { log: LogId([1, ..]), .. }]));
    world.create(&conn, ROOMS[0], LogKind::Inbox);
    let other = world.connect(device_of(&key(2)));
    world.create(&other, ROOMS[0], LogKind::Room);
    let exists = [(Some(Operation::Create), Refusal::RoomExists)];
    assert_eq!((why(&world.read_all(&conn)), why(&world.read_all(&other))), (exists.to_vec(), exists.to_vec()));
    // Also after the room was let go and must be loaded.
    world.shard.handle(Message::Closed { conn: conn.id }, 0);
    world.settle();
    assert_eq!(world.shard.rooms_len(), 0, "a room without members leaves memory");
    let again = world.connect(device_of(&key(1)));
    world.create(&again, ROOMS[0], LogKind::Room);
    assert!(matches!(world.read_all(&again)[..], [ServerFrame::Created { log: LogId([1, ..]), .. }]));
}

#[test]
fn anybody_posts_keyrings_into_an_inbox_and_only_its_owner_reads() {
    let mut world = World::new(limits());
    let owner = world.connect(device_of(&key(1)));
    let poster = world.connect(device_of(&key(2)));
    world.create(&owner, ROOMS[0], LogKind::Inbox);
    world.enter(&owner, ROOMS[0]);
    world.ask(&owner, ROOMS[0], Action::Subscribe { after: 0 });
    world.read_all(&owner);
    let post = |kind, client_seq| {
        Action::Publish(Publish {
            room: ROOMS[0],
            producer: ProducerId([1; 16]),
            client_seq,
            handshake: 0,
            envelope: envelope(kind, ROOMS[0], b"k"),
        })
    };
    world.ask(&poster, ROOMS[0], post(Kind::Room, 1));
    world.ask(&poster, ROOMS[0], post(Kind::Keyring, 1));
    world.ask(&poster, ROOMS[0], Action::Subscribe { after: 0 });
    let frames = world.read_all(&poster);
    assert_eq!(why(&frames), [(None, Refusal::BadEnvelope), (Some(Operation::Subscribe), Refusal::NoAccess)]);
    assert!(matches!(frames.last(), Some(ServerFrame::Ack { seq: 1, .. })));
    assert!(matches!(&world.read_all(&owner)[..], [ServerFrame::Deliver(page)] if page.items.len() == 1));
}

#[test]
fn a_cursor_beyond_the_head_is_told_and_fetch_pages_backwards() {
    let (mut world, conn) = one_room(limits());
    for n in 1..=20 {
        world.ask(&conn, ROOMS[0], publish(ROOMS[0], n, &[0; 50]));
        world.read_all(&conn);
    }
    world.ask(&conn, ROOMS[0], Action::Subscribe { after: 21 });
    assert_eq!(why(&world.read_all(&conn)), [(Some(Operation::Subscribe), Refusal::CursorAhead { head: 20 })]);
    let log = world.engine.log(ROOMS[0]).unwrap();
    let mut before = u64::MAX;
    while before > 1 {
        world.ask(&conn, ROOMS[0], Action::Fetch { request: 3, before, count_max: 100 });
        let frames = world.read_all(&conn);
        let [ServerFrame::Fetched { request: 3, page }] = &frames[..] else { panic!("{frames:?}") };
        let first = usize::try_from(page.first).unwrap();
        let expected: Vec<_> = log.records[first - 1..first - 1 + page.items.len()].iter().map(|r| &r.envelope).collect();
        assert_eq!(page.items.iter().map(|item| &item.envelope).collect::<Vec<_>>(), expected);
        assert!(!page.items.is_empty() && page.items.iter().map(|item| item.envelope.len()).sum::<usize>() <= 600);
        assert_eq!(page.first + page.items.len() as u64, before.min(21));
        before = page.first;
    }
    world.ask(&conn, ROOMS[0], Action::Fetch { request: 4, before: 1, count_max: 100 });
    assert!(matches!(&world.read_all(&conn)[..], [ServerFrame::Fetched { request: 4, page }] if page.items.is_empty()));
}

#[test]
fn only_the_creator_deletes_and_everybody_hears_it() {
    let (mut world, creator) = one_room(limits());
    let other = world.connect(device_of(&key(2)));
    world.enter(&other, ROOMS[0]);
    world.ask(&other, ROOMS[0], Action::Delete);
    assert_eq!(why(&world.read_all(&other)), [(Some(Operation::Delete), Refusal::NotCreator)]);
    world.ask(&creator, ROOMS[0], publish(ROOMS[0], 1, b"last"));
    world.ask(&creator, ROOMS[0], Action::Delete);
    world.ask(&creator, ROOMS[0], publish(ROOMS[0], 2, b"too late"));
    let frames = world.read_all(&creator);
    assert!(
        matches!(
            frames[..],
            [ServerFrame::Refused { why: Refusal::NoAccess, .. }, ServerFrame::Ack { seq: 1, .. }, ServerFrame::Deleted { .. }]
        ),
        "what was submitted before is decided first: {frames:?}"
    );
    assert!(matches!(world.read_all(&other)[..], [ServerFrame::Deleted { .. }]));
    assert_eq!((world.shard.rooms_len(), world.engine.log(ROOMS[0]).is_none()), (0, true));
}

#[test]
fn presence_is_of_devices_and_coalesced() {
    let (mut world, a) = one_room(limits());
    let (device_a, device_b) = (a.device, device_of(&key(2)));
    world.ask(&a, ROOMS[0], Action::Subscribe { after: 0 });
    world.read_all(&a);
    let b = [world.connect(device_b), world.connect(device_b)];
    for conn in &b {
        world.enter(conn, ROOMS[0]);
        world.ask(conn, ROOMS[0], Action::Subscribe { after: 0 });
    }
    let heard = |frames: Vec<ServerFrame>| {
        let presence = |frame| match frame {
            ServerFrame::Presence { online, offline, .. } => Some((online, offline)),
            _ => None,
        };
        frames.into_iter().filter_map(presence).collect::<Vec<_>>()
    };
    assert_eq!(heard(world.read_all(&a)), [(vec![device_b], vec![])]);
    let mut both = vec![device_a, device_b];
    both.sort();
    for conn in &b {
        assert_eq!(heard(world.read_all(conn)), [(both.clone(), vec![])]);
    }
    world.shard.handle(Message::Closed { conn: b[0].id }, 7);
    assert_eq!(heard(world.read_all(&a)), [], "another session of it is still there");
    world.ask(&b[1], ROOMS[0], Action::Unsubscribe);
    assert_eq!(heard(world.read_all(&a)), [(vec![], vec![device_b])]);
}

#[test]
fn ephemerals_reach_the_others_who_are_there_and_are_dropped_when_full() {
    let (mut world, a) = one_room(limits());
    let b = world.connect(device_of(&key(2)));
    world.enter(&b, ROOMS[0]);
    for conn in [&a, &b] {
        world.ask(conn, ROOMS[0], Action::Subscribe { after: 0 });
        world.read_all(conn);
    }
    world.read_all(&a);
    let typing = envelope(Kind::Ephemeral, ROOMS[0], &[1; 300]);
    for _ in 0..5 {
        world.ask(&a, ROOMS[0], Action::Ephemeral { envelope: typing.clone() });
    }
    world.turn();
    assert!(b.outbox.bytes() <= 900);
    assert_eq!(world.read_all(&b), vec![ServerFrame::Ephemeral { envelope: typing }; 2]);
    assert_eq!(world.read_all(&a), []);
    assert_eq!(world.shard.take_stats().ephemerals_dropped, 3);
}

#[test]
fn a_full_disk_is_told_and_the_room_goes_on_when_there_is_space() {
    let (mut world, conn) = one_room(limits());
    world.ask(&conn, ROOMS[0], Action::Subscribe { after: 0 });
    world.read_all(&conn);
    world.engine.fail_next(Failure::DiskFull);
    world.ask(&conn, ROOMS[0], publish(ROOMS[0], 1, b"a"));
    assert_eq!(why(&world.read_all(&conn)), [(None, Refusal::DiskFull)]);
    world.ask(&conn, ROOMS[0], publish(ROOMS[0], 1, b"a"));
    assert!(matches!(world.read_all(&conn)[..], [ServerFrame::Ack { seq: 1, .. }, ServerFrame::Deliver(_)]));
}

#[test]
fn an_unknown_outcome_is_told_and_what_was_stored_after_all_is_shown() {
    let (mut world, conn) = one_room(limits());
    world.ask(&conn, ROOMS[0], Action::Subscribe { after: 0 });
    world.ask(&conn, ROOMS[0], publish(ROOMS[0], 1, b"a"));
    world.read_all(&conn);
    world.engine.fail_next(Failure::OutcomeUnknown);
    for n in 2..=4 {
        world.ask(&conn, ROOMS[0], publish(ROOMS[0], n, b"b"));
    }
    let frames = world.read_all(&conn);
    assert_eq!(why(&frames), [(None, Refusal::OutcomeUnknown); 3]);
    assert!(matches!(frames.last(), Some(ServerFrame::Deliver(page)) if page.first == 2 && page.items.len() == 1));
    for n in 2..=4 {
        world.ask(&conn, ROOMS[0], publish(ROOMS[0], n, b"b"));
    }
    let acks: Vec<_> = world.read_all(&conn).into_iter().filter(|frame| matches!(frame, ServerFrame::Ack { .. })).collect();
    assert!(matches!(
        acks[..],
        [
            ServerFrame::Ack { client_seq: 2, seq: 2, .. },
            ServerFrame::Ack { client_seq: 3, seq: 3, .. },
            ServerFrame::Ack { client_seq: 4, seq: 4, .. }
        ]
    ));
}

#[test]
fn a_busy_engine_refuses_publishes_and_only_delays_readers() {
    // A reader far behind, while the queue has no place: it is fed once there is.
    let mut small = World::with_queue(limits(), 2);
    let conn = small.connect(device_of(&key(1)));
    small.create(&conn, ROOMS[0], LogKind::Room);
    small.enter(&conn, ROOMS[0]);
    small.read_all(&conn);
    for n in 1..=3 {
        small.ask(&conn, ROOMS[0], publish(ROOMS[0], n, &[0; 300]));
    }
    let frames = small.read_all(&conn);
    assert_eq!(why(&frames), [(None, Refusal::Overloaded)], "{frames:?}");
    small.ask(&conn, ROOMS[0], publish(ROOMS[0], 3, &[0; 300]));
    assert!(matches!(small.read_all(&conn)[..], [ServerFrame::Ack { client_seq: 3, seq: 3, .. }]));
    // Two other reads fill the queue; the subscription's waits for the next tick.
    for request in 0..2 {
        small.ask(&conn, ROOMS[0], Action::Seek { request, time_ms: 0 });
    }
    small.ask(&conn, ROOMS[0], Action::Subscribe { after: 1 });
    small.turn();
    let frames = small.read_all(&conn);
    let seqs: Vec<_> = frames.iter().filter_map(|f| if let ServerFrame::Deliver(p) = f { Some(p.first) } else { None }).collect();
    assert_eq!(seqs, [2, 3], "{frames:?}");
}
