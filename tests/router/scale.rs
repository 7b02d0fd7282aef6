//! What large rooms, floods and storms cost, counted in turns, units of work and requests to the engine.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use waxwing::{
    core::{
        envelope::Kind,
        frame::{LogKind, Publish, ServerFrame},
        id::{ProducerId, RoomId, Seq},
        limits::Limits,
        room::ITEM_BYTES,
        session::Action,
    },
    engine::Failure,
    router::{Conn, shard::Message, shard::Slices},
};

use crate::{
    common::{device_of, envelope, key, proof},
    world::{ROOMS, Size, World, publish},
};

const BIG: RoomId = ROOMS[0];
const SMALL: RoomId = ROOMS[1];

fn limits() -> Limits {
    Limits { rooms_created_per_hour_max: 1000, publish_burst_max: 100_000, ..Limits::default() }
}

fn room(number: u8) -> RoomId {
    RoomId([number; 16])
}

/// Connects so many sessions of their own devices, and lets them into `room`.
fn enter_many(world: &mut World, room: RoomId, count: u64) -> Vec<Arc<Conn>> {
    let device = |n: u64| {
        let mut device = device_of(&key(1));
        device.0[..8].copy_from_slice(&n.to_le_bytes());
        device
    };
    let conns: Vec<_> = (0..count).map(|n| world.connect(device(n))).collect();
    let mut proofs = BTreeMap::new(); // Signing takes its time, and few logins differ here.
    for (index, conn) in conns.iter().enumerate() {
        let proof = *proofs.entry(conn.binding.0).or_insert_with(|| proof(room, conn.binding));
        world.ask(conn, room, Action::Enter { handshake: 0, proof });
        if index == 0 {
            world.settle(); // The room is loaded.
        }
    }
    world.settle();
    conns
}

fn subscribe(world: &mut World, room: RoomId, conns: &[Arc<Conn>], after: Seq) {
    conns.iter().for_each(|conn| assert!(world.ask(conn, room, Action::Subscribe { after })));
    world.settle();
}

/// Takes all that waits for a connection.
fn read(world: &mut World, conn: &Conn) -> Vec<ServerFrame> {
    world.take(conn, usize::MAX).0
}

fn drain(world: &mut World, conns: &[Arc<Conn>]) {
    conns.iter().for_each(|conn| drop(read(world, conn)));
}

/// The most that one turn may take: its budget, and one last room's slice of each kind with a page and presence.
fn turn_work_max(slices: Slices) -> u64 {
    u64::from(slices.turn + 3 * slices.room) + 2048
}

/// A room with that many live subscribers and one with two.
fn big_and_small(count: u64) -> (World, Vec<Arc<Conn>>, Vec<Arc<Conn>>) {
    let mut world = World::with_size(limits(), 1 << 20, Size::default());
    let creator = world.connect(device_of(&key(1)));
    world.create(&creator, BIG, LogKind::Room);
    world.create(&creator, SMALL, LogKind::Room);
    let big = enter_many(&mut world, BIG, count);
    let small = enter_many(&mut world, SMALL, 2);
    subscribe(&mut world, BIG, &big, 0);
    subscribe(&mut world, SMALL, &small, 0);
    drain(&mut world, &big);
    drain(&mut world, &small);
    world.shard.take_stats();
    (world, big, small)
}

#[test]
fn a_large_room_is_told_of_what_will_soon_be_durable_together_with_what_is() {
    let shown = |world: &mut World, conn: &Conn| {
        let items = |frame: ServerFrame| if let ServerFrame::Deliver(page) = frame { page.items.len() } else { 0 };
        read(world, conn).into_iter().map(items).collect::<Vec<_>>()
    };
    let (mut world, big, small) = big_and_small(200);
    for (room, conns) in [(BIG, &big), (SMALL, &small)] {
        for n in 1..=2 {
            world.ask(&conns[0], room, publish(room, n, b"soon"));
        }
        world.turn();
        world.engine.step(1);
        world.turn();
        let acked = matches!(read(&mut world, &conns[0])[0], ServerFrame::Ack { seq: 1, .. });
        assert!(acked && !world.shard.wants_turn(), "nothing is done until the engine answers");
        // What comes now is not waited for as well.
        world.ask(&conns[0], room, publish(room, 3, b"later"));
        world.turn();
        let first = shown(&mut world, &conns[1]);
        world.engine.step(1);
        world.turn();
        let second = shown(&mut world, &conns[1]);
        world.settle();
        let third = shown(&mut world, &conns[1]);
        let parts = [first, second, third];
        assert_eq!(parts, if room == BIG { [vec![], vec![2], vec![1]] } else { [vec![1], vec![1], vec![1]] });
    }
    // Nobody waits for what failed.
    for n in 4..=5 {
        world.ask(&big[0], BIG, publish(BIG, n, b"soon"));
    }
    world.engine.step(1);
    world.turn();
    assert!(shown(&mut world, &big[1]).is_empty());
    world.engine.fail_next(Failure::DiskFull);
    world.settle();
    assert_eq!(shown(&mut world, &big[1]), [1]);
}

#[test]
fn a_room_of_many_subscribers_does_not_stall_its_shard() {
    let count: usize = std::env::var("WAXWING_TEST_SUBSCRIBERS").ok().and_then(|count| count.parse().ok()).unwrap_or(100_000);
    let (mut world, big, small) = big_and_small(count as u64);
    let slices = Slices::default();
    world.ask(&big[0], BIG, publish(BIG, 1, b"to everybody"));
    world.engine.step(1);
    world.turn();
    assert!(world.shard.wants_turn(), "the large room is not done");
    world.ask(&small[0], SMALL, publish(SMALL, 1, b"to one"));
    world.ask(&big[0], BIG, Action::Ephemeral { envelope: envelope(Kind::Ephemeral, BIG, b"typing") });
    world.engine.step(1);
    world.turn();
    assert!(
        matches!(read(&mut world, &small[1])[..], [ServerFrame::Deliver(_)]),
        "the small one is, in the turn in which its message is durable"
    );
    // More for everybody comes before the first was told to all.
    for n in 2..=4 {
        world.ask(&big[0], BIG, publish(BIG, n, b"more"));
    }
    world.engine.step(10);
    let mut turns = 2;
    while world.shard.wants_turn() {
        world.turn();
        turns += 1;
    }
    let stats = world.shard.take_stats();
    assert!(stats.work <= turns * turn_work_max(slices), "{} in {turns} turns", stats.work);
    assert!(turns <= 4 + 4 * count as u64 / u64::from(slices.turn), "{turns} turns");
    assert_eq!(stats.deliveries, 4 * count as u64 + 2);
    for conn in &big[1..] {
        let (mut next, mut ephemerals) = (1, 0);
        for frame in read(&mut world, conn) {
            match frame {
                ServerFrame::Deliver(page) => {
                    assert_eq!(page.first, next);
                    next += page.items.len() as u64;
                }
                ServerFrame::Ephemeral { .. } => ephemerals += 1,
                other => panic!("unexpected {other:?}"),
            }
        }
        assert_eq!((next, ephemerals), (5, 1));
    }
    drain(&mut world, &big);
    one_more_costs_little(&mut world, &big);
    deletion_is_sliced(&mut world, &big, &small);
}

/// Coming and going in a large room is not told, and not paid for by its size.
fn one_more_costs_little(world: &mut World, big: &[Arc<Conn>]) {
    world.shard.take_stats();
    for _ in 0..3 {
        world.ask(&big[7], BIG, Action::Unsubscribe);
        world.settle();
        world.ask(&big[7], BIG, Action::Subscribe { after: 4 });
        world.settle();
    }
    let work = world.shard.take_stats().work;
    assert!(work < 200, "{work} units for three who left and came");
    assert!(matches!(
        read(world, &big[7])[..],
        [ServerFrame::Subscribed { .. }, ServerFrame::Subscribed { .. }, ServerFrame::Subscribed { .. }]
    ));
}

fn deletion_is_sliced(world: &mut World, big: &[Arc<Conn>], small: &[Arc<Conn>]) {
    let creator = world.connect(device_of(&key(1)));
    world.enter(&creator, BIG);
    world.settle();
    world.ask(&creator, BIG, Action::Delete);
    world.turn();
    world.engine.step(1);
    world.turn();
    assert!(world.shard.wants_turn() || big.len() < 10_000, "not everybody has heard of it");
    // What comes meanwhile waits until everybody has, and finds no room then.
    world.enter(&big[0], BIG);
    world.ask(&small[0], SMALL, publish(SMALL, 2, b"meanwhile"));
    world.settle();
    assert!(matches!(read(world, &small[1])[..], [ServerFrame::Deliver(_)]));
    assert!(matches!(read(world, &big[0])[..], [ServerFrame::Deleted { .. }, ServerFrame::Failed { .. }]));
    for conn in &big[1..] {
        assert!(matches!(read(world, conn)[..], [ServerFrame::Deleted { .. }]));
    }
    assert_eq!(world.shard.rooms_len(), 1);
}

#[test]
fn a_flood_in_one_room_leaves_its_place_to_others() {
    let (mut world, big, small) = big_and_small(4);
    let flood = |number| {
        let (producer, envelope) = (ProducerId([9; 16]), envelope(Kind::Room, BIG, b"flood"));
        Action::Publish(Publish { room: BIG, producer, client_seq: number, handshake: 0, envelope })
    };
    let flooders = 20;
    let publishers = enter_many(&mut world, BIG, flooders);
    for number in 1..=400 {
        publishers.iter().for_each(|conn| assert!(world.ask(conn, BIG, flood(number))));
    }
    world.ask(&small[0], SMALL, publish(SMALL, 1, b"quiet"));
    let queued = world.engine.queued_appends();
    let place = queued.iter().position(|(room, _)| *room == SMALL).unwrap();
    let share = Slices::default().intake as usize / 4;
    assert!(place <= share, "behind {place} messages of the flood");
    while world.shard.wants_turn() {
        world.turn();
    }
    let seqs: Vec<_> = world.engine.queued_appends().into_iter().filter(|(room, _)| *room == BIG).map(|(_, seq)| seq).collect();
    assert_eq!(seqs, (1..=400 * flooders).collect::<Vec<_>>(), "all of it is accepted in the end, in order");
    world.settle();
    assert!(matches!(read(&mut world, &small[1])[..], [ServerFrame::Deliver(_)]));
    drop(big);
}

/// So many rooms with 60 messages each, and nothing of them in memory.
fn rooms_with_history(rooms: u8) -> World {
    let mut world = World::with_size(limits(), 1 << 20, Size { recent_bytes_max: 64 << 20, ..Size::default() });
    let creator = world.connect(device_of(&key(1)));
    for number in 1..=rooms {
        world.create(&creator, room(number), LogKind::Room);
        world.enter(&creator, room(number));
        world.settle();
        drain(&mut world, &[Arc::clone(&creator)]);
        for n in 1..=60 {
            world.ask(&creator, room(number), publish(room(number), n, &[number; 200]));
            world.settle();
            drain(&mut world, &[Arc::clone(&creator)]);
        }
    }
    world.crash();
    world
}

#[test]
fn a_storm_of_cursors_reads_each_page_once() {
    let mut world = rooms_with_history(100);
    let storm = |world: &mut World, per_room: u64, spread: bool| {
        let mut conns = BTreeMap::new();
        for number in 1..=100 {
            conns.insert(number, enter_many(world, room(number), per_room));
        }
        conns.values().for_each(|conns| drain(world, conns));
        world.engine.take_reads();
        world.shard.take_stats();
        // All at once, in no order, up to 50 behind.
        let after = |index: u64| if spread { 10 + index * 37 % 50 } else { 10 };
        for index in 0..per_room {
            for (number, conns) in &conns {
                let conn = &conns[usize::try_from(index).unwrap()];
                assert!(world.ask(conn, room(*number), Action::Subscribe { after: after(index) }));
            }
        }
        world.settle();
        for conns in conns.values() {
            for (index, conn) in conns.iter().enumerate() {
                let mut next = after(index as u64) + 1;
                for frame in read(world, conn) {
                    if let ServerFrame::Deliver(page) = frame {
                        assert_eq!(page.first, next);
                        next += page.items.len() as u64;
                    }
                }
                assert_eq!(next, 61);
            }
        }
        (world.engine.take_reads(), world.shard.take_stats(), conns)
    };
    let (reads, stats, conns) = storm(&mut world, 100, true);
    assert!(reads.len() == 100 && reads.values().all(|reads| *reads <= 2), "{reads:?}");
    assert!(stats.pages_encoded <= 100 * 50, "{} pages, each distinct beginning once", stats.pages_encoded);
    conns.values().flatten().for_each(|conn| world.shard.handle(Message::Closed { conn: conn.id }, 7));
    world.settle();
    let (reads, stats, first) = storm(&mut world, 20, false);
    assert!(reads.values().all(|reads| *reads <= 1), "{reads:?}");
    assert_eq!(stats.pages_encoded, 100);
    // What was read is in memory now, and serves whoever comes next.
    let (reads, ..) = storm(&mut world, 20, true);
    assert_eq!(reads, BTreeMap::new());
    drop(first);
}

#[test]
fn recent_messages_have_a_budget_and_the_room_unused_for_longest_pays() {
    let one = envelope(Kind::Room, room(1), &[1; 200]).len() + ITEM_BYTES;
    let size = Size { recent_bytes_max: 35 * one, ..Size::default() };
    let mut world = World::with_size(limits(), 1 << 20, size);
    let creator = world.connect(device_of(&key(1)));
    let mut conns = BTreeMap::new();
    for number in 1..=4 {
        world.create(&creator, room(number), LogKind::Room);
        conns.insert(number, enter_many(&mut world, room(number), 1).remove(0));
    }
    let mut counted = 0;
    let mut fill = |world: &mut World, number: u8, from: u64| {
        let conn = &conns[&number];
        for n in from..from + 10 {
            world.ask(conn, room(number), publish(room(number), n, &[number; 200]));
            world.settle();
            assert!(world.shard.recent_bytes() <= 35 * one);
            read(world, conn);
        }
        counted += world.shard.take_stats().recent_bytes;
        assert_eq!(usize::try_from(counted).unwrap(), world.shard.recent_bytes());
    };
    (1..=3).for_each(|number| fill(&mut world, number, 1));
    fill(&mut world, 1, 11);
    // 40 were published, and 35 fit: the room that was used least recently has none.
    let mut reads = BTreeSet::new();
    for number in 1..=3 {
        world.engine.take_reads();
        world.ask(&conns[&number], room(number), Action::Fetch { request: 1, before: u64::MAX, count_max: 5 });
        world.settle();
        assert!(matches!(&read(&mut world, &conns[&number])[..], [ServerFrame::Fetched { page, .. }] if page.items.len() == 5));
        if !world.engine.take_reads().is_empty() {
            reads.insert(number);
        }
    }
    assert_eq!(reads, BTreeSet::from([2]));
}

#[test]
fn recent_messages_that_nobody_looked_after_for_long_go_bit_by_bit() {
    let mut world = World::with_size(
        Limits { recent_bytes_max: 64 << 10, ..limits() },
        1 << 20,
        Size { recent_bytes_max: 64 << 20, ..Size::default() },
    );
    let creator = world.connect(device_of(&key(1)));
    let mut told = 0;
    let mut conns = Vec::new();
    for number in 1..=90 {
        world.create(&creator, room(number), LogKind::Room);
        let conn = enter_many(&mut world, room(number), 1).remove(0);
        for n in 1..=150 {
            world.ask(&conn, room(number), publish(room(number), n, &[number; 200]));
            world.settle();
        }
        conns.push(conn);
        read(&mut world, &creator);
    }
    let all = world.shard.recent_bytes();
    let one = envelope(Kind::Room, room(1), &[1; 200]).len() + ITEM_BYTES;
    assert_eq!(all, 90 * 150 * one);
    let mut rest = |world: &mut World, seconds: u64| {
        world.now_ms += seconds * 1000;
        world.shard.rest(world.now_ms);
        world.turn();
        told += world.shard.take_stats().recent_bytes;
        assert_eq!(usize::try_from(told).unwrap(), world.shard.recent_bytes());
        world.shard.recent_bytes()
    };
    assert_eq!(rest(&mut world, 29), all, "who comes back soon finds them");
    // One room is used: its messages stay.
    world.ask(&conns[0], room(1), publish(room(1), 151, &[1; 200]));
    world.settle();
    let mut left = vec![all + one];
    while let before = left[left.len() - 1]
        && let now = rest(&mut world, 1)
        && now < before
    {
        left.push(now);
    }
    assert!(left.len() > 1 && left.windows(2).all(|two| two[0] - two[1] < 5 << 20), "a part at a time: {left:?}");
    assert_eq!(left[left.len() - 1], 151 * one);
    assert_eq!(rest(&mut world, 30), 0);
    // They are not gone, only read.
    world.engine.take_reads();
    world.ask(&conns[9], room(10), Action::Fetch { request: 1, before: u64::MAX, count_max: 5 });
    world.settle();
    let fetched = read(&mut world, &conns[9]);
    assert!(matches!(fetched.last(), Some(ServerFrame::Fetched { page, .. }) if page.items.len() == 5), "{fetched:?}");
    assert_eq!(world.engine.take_reads().len(), 1);
}
