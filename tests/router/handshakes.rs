//! Handshake records: who asks for one gets it without reading the log, and whoever floods a room with them is slowed down.

use std::sync::Arc;

use bytes::Bytes;
use waxwing::{
    core::{
        access::FORMER_KEYS_MAX,
        chain,
        close::Refusal,
        envelope::Kind,
        frame::{LogKind, Operation, Publish, ServerFrame},
        handshake::{RECORD_LEN_MAX, outline},
        id::{ProducerId, RoomId, Seq},
        limits::Limits,
        session::Action,
    },
    engine::Failure,
    router::Conn,
};

use crate::{
    common::{access_of, device_of, envelope, handshake, key, room_key},
    world::{ROOMS, World, limits, one_room, why},
};

const ROOM: RoomId = ROOMS[0];

fn publish(client_seq: u64, after: Seq, envelope: Bytes) -> Action {
    Action::Publish(Publish { room: ROOM, producer: ProducerId([9; 16]), client_seq, handshake: after, envelope })
}

fn change(client_seq: u64, after: Seq) -> Action {
    publish(client_seq, after, handshake(ROOM, after, None, &client_seq.to_le_bytes(), (7, 0)))
}

fn message(client_seq: u64, after: Seq) -> Action {
    publish(client_seq, after, envelope(Kind::Room, ROOM, &client_seq.to_le_bytes()))
}

/// All answers to one request, and nothing else.
fn ask(world: &mut World, conn: &Arc<Conn>, action: Action) -> Vec<ServerFrame> {
    assert!(world.ask(conn, ROOM, action));
    world.read_all(conn)
}

/// The seq of the record that is answered; `None` for an empty page.
fn newest(world: &mut World, conn: &Arc<Conn>, before: Seq) -> Option<Seq> {
    let frames = ask(world, conn, Action::Handshake { request: 4, before, whole: true });
    let [ServerFrame::Fetched { request: 4, page }] = &frames[..] else { panic!("{frames:?}") };
    let log = world.engine.log(ROOM).unwrap();
    assert_eq!(page.chain, log.chain_at(page.first - 1), "the chain value before it");
    let [item] = &page.items[..] else {
        assert_eq!((page.items.len(), page.first), (0, page.position.floor));
        return None;
    };
    assert_eq!(item.envelope, log.records[usize::try_from(page.first).unwrap() - 1].envelope);
    Some(page.first)
}

fn acked(world: &mut World, conn: &Arc<Conn>, action: Action) -> Seq {
    match ask(world, conn, action)[..] {
        [ServerFrame::Ack { seq, .. }] => seq,
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn the_newest_one_is_answered_and_those_before_it_by_their_places() {
    let (mut world, conn) = one_room(limits());
    assert_eq!(newest(&mut world, &conn, u64::MAX), None, "there is none");
    assert_eq!(acked(&mut world, &conn, message(1, 0)), 1);
    assert_eq!(acked(&mut world, &conn, change(2, 0)), 2);
    assert_eq!(acked(&mut world, &conn, message(3, 2)), 3);
    assert_eq!(acked(&mut world, &conn, change(4, 2)), 4);
    for n in 5..=20 {
        acked(&mut world, &conn, message(n, 4));
    }
    // From the engine, as memory has let go of them; and as the room is loaded anew.
    for _ in 0..2 {
        for (before, found) in [(u64::MAX, Some(4)), (5, Some(4)), (21, Some(4)), (4, None), (3, Some(2)), (2, None), (0, None)] {
            assert_eq!(newest(&mut world, &conn, before), found, "before {before}");
        }
        world.crash();
        let other = world.connect(device_of(&key(1)));
        world.enter(&other, ROOM);
        let frames = world.read_all(&other);
        assert!(matches!(frames[..], [ServerFrame::Entered { handshake: 4, .. }]), "{frames:?}");
        assert_eq!(newest(&mut world, &other, u64::MAX), Some(4));
        world.shard.handle(waxwing::router::shard::Message::Closed { conn: other.id }, 0);
        world.enter(&conn, ROOM);
        world.read_all(&conn);
    }
    world.engine.trim(ROOM, 3);
    assert_eq!([u64::MAX, 5, 3].map(|before| newest(&mut world, &conn, before)), [Some(4), Some(4), None], "the newest is kept");
    let stranger = world.connect(device_of(&key(2)));
    let frames = ask(&mut world, &stranger, Action::Handshake { request: 1, before: u64::MAX, whole: true });
    assert_eq!(why(&frames), [(Some(Operation::Handshake), Refusal::NoAccess)]);
}

#[test]
fn of_two_that_race_one_is_told_and_what_was_not_stored_decides_nothing() {
    let (mut world, conn) = one_room(limits());
    let rival = world.connect(device_of(&key(2)));
    world.enter(&rival, ROOM);
    world.read_all(&rival);
    // Both are under way at once.
    world.ask(&conn, ROOM, change(1, 0));
    world.ask(&rival, ROOM, change(1, 0));
    world.ask(&rival, ROOM, message(1, 0));
    assert!(matches!(world.read_all(&conn)[..], [ServerFrame::Ack { seq: 1, .. }]));
    let stale = (None, Refusal::StaleEpoch { handshake: 1 });
    assert_eq!(why(&world.read_all(&rival)), [stale, stale]);
    // One that fails is not the newest.
    world.engine.fail_next(Failure::DiskFull);
    world.ask(&conn, ROOM, change(2, 1));
    world.ask(&rival, ROOM, message(1, 1));
    assert_eq!(why(&world.read_all(&conn)), [(None, Refusal::DiskFull)]);
    assert_eq!(why(&world.read_all(&rival)), [(None, Refusal::StaleEpoch { handshake: 2 })]);
    assert_eq!(acked(&mut world, &rival, message(1, 1)), 2);
    assert_eq!(acked(&mut world, &conn, change(2, 1)), 3);
}

#[test]
fn large_ones_reach_those_who_are_there_and_those_who_come() {
    let (mut world, conn) = one_room(Limits { ..limits() });
    let live = world.connect(device_of(&key(2)));
    world.enter(&live, ROOM);
    world.ask(&live, ROOM, Action::Subscribe { after: 0 });
    world.read_all(&live);
    let largest = handshake(ROOM, 0, None, b"", (1 << 20, (2 << 20) - 48 - 48 - 52));
    assert_eq!(largest.len(), RECORD_LEN_MAX);
    let over = handshake(ROOM, 0, None, b"x", (1 << 20, (2 << 20) - 48 - 48 - 52));
    let frames = ask(&mut world, &conn, publish(1, 0, over));
    assert_eq!(why(&frames), [(None, Refusal::TooLarge { max: 3 << 20 })]);
    assert_eq!(acked(&mut world, &conn, publish(1, 0, largest.clone())), 1);
    assert_eq!(acked(&mut world, &conn, message(2, 1)), 2);
    let late = world.connect(device_of(&key(3)));
    world.enter(&late, ROOM);
    world.ask(&late, ROOM, Action::Subscribe { after: 0 });
    for reader in [&live, &late] {
        let frames = world.read_all(reader);
        let pages = frames.iter().filter_map(|frame| if let ServerFrame::Deliver(page) = frame { Some(page) } else { None });
        let items: Vec<_> = pages.flat_map(|page| &page.items).collect();
        assert_eq!(
            (items.len(), &items[0].envelope),
            (2, &outline(&largest)),
            "what only who comes in needs is not brought to members"
        );
    }
    let Some(ServerFrame::Fetched { page, .. }) =
        ask(&mut world, &conn, Action::Handshake { request: 1, before: u64::MAX, whole: true }).pop()
    else {
        panic!("no answer")
    };
    assert_eq!((page.first, &page.items[0].envelope), (1, &largest), "all of it for who asks");
    let value = chain::next(ROOM, page.chain, 1, &largest);
    assert_eq!(value, chain::next(ROOM, page.chain, 1, &outline(&largest)), "and both are the chain's record");
}

#[test]
fn a_flood_of_them_is_slowed_down_and_messages_are_not() {
    let (mut world, conn) = one_room(Limits { handshakes_per_minute_max: 3, ..limits() });
    for n in 1..=3 {
        assert_eq!(acked(&mut world, &conn, change(n, n - 1)), n);
    }
    let limited = [(None, Refusal::RateLimited { retry_after_ms: 20_000 })];
    assert_eq!(why(&ask(&mut world, &conn, change(4, 3))), limited);
    assert_eq!(acked(&mut world, &conn, message(4, 3)), 4);
    world.now_ms += 20_000;
    assert_eq!(acked(&mut world, &conn, change(5, 3)), 5);
}

#[test]
fn an_inbox_takes_none() {
    let (mut world, conn) = one_room(limits());
    world.create(&conn, ROOMS[1], LogKind::Inbox);
    world.enter(&conn, ROOMS[1]);
    world.read_all(&conn);
    let envelope = handshake(ROOMS[1], 0, None, b"k", (0, 0));
    let publish = Publish { room: ROOMS[1], producer: ProducerId([1; 16]), client_seq: 1, handshake: 0, envelope };
    world.ask(&conn, ROOMS[1], Action::Publish(publish));
    assert_eq!(why(&world.read_all(&conn)), [(None, Refusal::BadEnvelope)]);
}

/// A handshake record that brings the access key `number`.
fn rotation(client_seq: u64, after: Seq, number: u64) -> Action {
    publish(client_seq, after, handshake(ROOM, after, Some(access_of(&key(number))), &client_seq.to_le_bytes(), (0, 0)))
}

/// The seqs that were delivered, and how it ended.
fn delivered(frames: &[ServerFrame]) -> (Vec<Seq>, Vec<(Option<Operation>, Refusal)>) {
    let pages = frames.iter().filter_map(|frame| if let ServerFrame::Deliver(page) = frame { Some(page) } else { None });
    (pages.flat_map(|page| (page.first..).zip(&page.items).map(|(seq, _)| seq)).collect(), why(frames))
}

const OUT: (Option<Operation>, Refusal) = (Some(Operation::Subscribe), Refusal::NoAccess);

#[test]
fn who_entered_by_a_former_key_is_given_the_record_that_replaced_it_and_put_out() {
    let (mut world, conn) = one_room(limits());
    let live = world.connect(device_of(&key(2)));
    let idle = world.connect(device_of(&key(3)));
    for conn in [&live, &idle] {
        world.enter(conn, ROOM);
    }
    for conn in [&live, &conn] {
        world.ask(conn, ROOM, Action::Subscribe { after: 0 });
        world.read_all(conn);
    }
    // All in one batch: the page ends where the key changes, and who made the change enters again as everybody does.
    for action in [message(1, 0), rotation(2, 0, 50)] {
        world.ask(&conn, ROOM, action);
    }
    let (seqs, ended) = delivered(&world.read_all(&live));
    assert_eq!((seqs, ended), (vec![1, 2], vec![OUT]));
    assert_eq!(delivered(&world.read_all(&conn)), (vec![1, 2], vec![OUT]));
    for action in [message(3, 2), Action::Fetch { request: 1, before: 9, count_max: 9 }] {
        assert_eq!(why(&ask(&mut world, &conn, action.clone())).len(), 1);
        assert_eq!(why(&ask(&mut world, &idle, action)).len(), 1, "nor one that was not subscribed");
    }
    // The first one goes on under the new key from its cursor, and nothing is missing.
    world.enter_by(&conn, ROOM, 2, &key(50));
    world.read_all(&conn);
    assert_eq!(acked(&mut world, &conn, message(3, 2)), 3);
    world.enter_by(&live, ROOM, 2, &key(50));
    world.ask(&live, ROOM, Action::Subscribe { after: 2 });
    assert_eq!(delivered(&world.read_all(&live)), (vec![3], vec![]));
    assert_eq!(acked(&mut world, &conn, message(4, 2)), 4);
    assert_eq!(delivered(&world.read_all(&live)), (vec![4], vec![]));
    // Who has only the former key reads up to the record, also after a crash, and nothing else.
    for crash in [false, true] {
        if crash {
            world.crash();
        }
        let former = world.connect(device_of(&key(4)));
        world.enter_by(&former, ROOM, 2, &room_key(ROOM));
        assert_eq!(why(&world.read_all(&former)), [(Some(Operation::Enter), Refusal::BadProof)]);
        world.enter_by(&former, ROOM, 0, &key(50));
        assert_eq!(why(&world.read_all(&former)), [(Some(Operation::Enter), Refusal::BadProof)]);
        world.enter_by(&former, ROOM, 1, &room_key(ROOM));
        let frames = world.read_all(&former);
        assert!(matches!(frames[..], [ServerFrame::Entered { handshake: 2, .. }]), "{frames:?}");
        // Changes too, one by one, up to the one that replaced the key.
        assert_eq!([3, 2, 1, 0].map(|before| newest(&mut world, &former, before)), [Some(2), None, None, None]);
        for (action, what) in [
            (Action::Handshake { request: 1, before: 4, whole: true }, Operation::Handshake),
            (Action::Fetch { request: 1, before: 2, count_max: 9 }, Operation::Fetch),
            (Action::Handshake { request: 1, before: u64::MAX, whole: true }, Operation::Handshake),
            (Action::Seek { request: 1, time_ms: 0 }, Operation::Seek),
            (Action::Ephemeral { envelope: envelope(Kind::Ephemeral, ROOM, b"e") }, Operation::Ephemeral),
            (Action::Delete, Operation::Delete),
        ] {
            assert_eq!(why(&ask(&mut world, &former, action)), [(Some(what), Refusal::NoAccess)]);
        }
        assert_eq!(why(&ask(&mut world, &former, message(1, 2))), [(None, Refusal::NoAccess)]);
        world.ask(&former, ROOM, Action::Subscribe { after: 0 });
        assert_eq!(delivered(&world.read_all(&former)), (vec![1, 2], vec![OUT]));
        assert_eq!(delivered(&ask(&mut world, &former, Action::Subscribe { after: 0 })), (vec![], vec![OUT]), "it has left");
        world.enter_by(&former, ROOM, 2, &key(50));
        world.ask(&former, ROOM, Action::Subscribe { after: 2 });
        assert_eq!(delivered(&world.read_all(&former)), (vec![3, 4], vec![]));
    }
    // Once that record was trimmed, nobody comes in by the key that it replaced: the first attempt shows that it was.
    world.engine.trim(ROOM, 2);
    let late = world.connect(device_of(&key(5)));
    for expected in [(Operation::Subscribe, Refusal::NoAccess), (Operation::Enter, Refusal::BadProof)] {
        world.enter_by(&late, ROOM, 0, &room_key(ROOM));
        if expected.0 == Operation::Subscribe {
            world.ask(&late, ROOM, Action::Subscribe { after: 0 });
        }
        let (seqs, ended) = delivered(&world.read_all(&late));
        assert_eq!((seqs, ended), (vec![], vec![(Some(expected.0), expected.1)]));
    }
    // Making the same room again is answered as ever.
    let conn = world.connect(device_of(&key(1)));
    world.create(&conn, ROOM, LogKind::Room);
    assert!(matches!(world.read_all(&conn)[..], [ServerFrame::Created { .. }]));
}

#[test]
fn who_made_a_room_puts_back_a_key_that_was_replaced_and_nobody_else_does() {
    let (mut world, conn) = one_room(limits());
    let other = world.connect(device_of(&key(2)));
    world.enter(&other, ROOM);
    world.read_all(&other);
    let back = |after: Seq| publish(1, after, handshake(ROOM, after, Some(access_of(&room_key(ROOM))), b"back", (0, 0)));
    assert_eq!(acked(&mut world, &other, rotation(1, 0, 66)), 1);
    world.read_all(&conn);
    for crash in [true, false] {
        if crash {
            world.crash();
        }
        let (maker, other) = (world.connect(device_of(&key(1))), world.connect(device_of(&key(2))));
        assert_eq!(why(&ask(&mut world, &other, back(1))), [(None, Refusal::NoAccess)], "it may have been removed");
        // Nothing else, nor behind what it has not heard of.
        for action in [publish(1, 1, handshake(ROOM, 1, None, b"", (0, 0))), message(1, 1)] {
            assert_eq!(why(&ask(&mut world, &maker, action)), [(None, Refusal::NoAccess)]);
        }
        assert_eq!(why(&ask(&mut world, &maker, back(0))), [(None, Refusal::StaleEpoch { handshake: 1 })]);
    }
    let maker = world.connect(device_of(&key(1)));
    assert_eq!(acked(&mut world, &maker, back(1)), 2);
    // What it put back is in force, for everybody, over crashes; and what was in force between is not.
    for crash in [false, true] {
        if crash {
            world.crash();
        }
        let third = world.connect(device_of(&key(3)));
        world.enter_by(&third, ROOM, u64::MAX, &key(66));
        assert_eq!(why(&world.read_all(&third)), [(Some(Operation::Enter), Refusal::BadProof)]);
        world.enter_by(&third, ROOM, u64::MAX, &room_key(ROOM));
        world.ask(&third, ROOM, Action::Subscribe { after: 0 });
        let (seqs, ended) = delivered(&world.read_all(&third));
        assert_eq!((seqs, ended), (vec![1, 2], vec![]));
    }
}

#[test]
fn a_slow_reader_with_a_former_key_gets_no_further_however_many_follow() {
    let (mut world, conn) = one_room(limits());
    let slow = world.connect(device_of(&key(2)));
    world.enter(&slow, ROOM);
    world.ask(&slow, ROOM, Action::Subscribe { after: 0 });
    world.read_all(&slow);
    let (mut n, mut newest) = (0, 0);
    let mut say = |world: &mut World, is_rotation: bool| {
        n += 1;
        let action = if is_rotation { rotation(n, newest, n) } else { message(n, newest) };
        assert!(world.ask(&conn, ROOM, action));
        let answers = why(&world.read_all(&conn));
        assert_eq!(answers, []);
        if is_rotation {
            newest = n;
            world.enter_by(&conn, ROOM, newest, &key(n));
            world.read_all(&conn);
        }
        n
    };
    for _ in 0..20 {
        say(&mut world, false);
    }
    let replaced = say(&mut world, true);
    for turn in 0..30 {
        say(&mut world, turn % 5 == 0);
    }
    let (seqs, ended) = delivered(&world.read_all(&slow));
    assert_eq!((seqs, ended), ((1..=replaced).collect(), vec![OUT]));
    // Another one that sleeps over more changes than are remembered.
    world.enter_by(&slow, ROOM, 0, &room_key(ROOM));
    world.read_all(&slow);
    for _ in 0..=FORMER_KEYS_MAX {
        say(&mut world, true);
    }
    assert_eq!(delivered(&ask(&mut world, &slow, Action::Subscribe { after: 0 })), (vec![], vec![OUT]));
    world.enter_by(&slow, ROOM, 0, &room_key(ROOM));
    assert_eq!(why(&world.read_all(&slow)), [(Some(Operation::Enter), Refusal::BadProof)]);
}
