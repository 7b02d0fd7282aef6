//! What happens where slices and turns end: nobody is forgotten, nothing is asked without end, all work is counted.

use std::{collections::BTreeSet, sync::Arc};

use waxwing::{
    core::{
        frame::{LogKind, ServerFrame},
        id::DeviceKey,
        limits::Limits,
        session::{Action, RoomRequest},
    },
    engine::Failure,
    router::{
        outbox::Permit,
        shard::{Message, Slices},
    },
};

use crate::{
    common::{device_of, key},
    world::{ROOMS, Size, World, limits, one_room, publish},
};

/// The last live member falls behind in the middle of a broadcast, while somebody whose cursor is ahead of what was shown
/// has come: whichever step ends the slice, the newcomer is given the rest.
#[test]
fn who_is_ahead_of_a_broadcast_is_fed_when_its_last_hearer_falls_behind() {
    for (room, turns) in (1..60).flat_map(|room| (1..4).map(move |turns| (room, turns))) {
        let slices = Slices { turn: 1, room, intake: 1000 };
        let mut world = World::with_size(limits(), 1000, Size { slices, ..Size::default() });
        let writer = world.connect(device_of(&key(1)));
        world.create(&writer, ROOMS[0], LogKind::Room);
        world.enter(&writer, ROOMS[0]);
        let newcomer = world.connect(device_of(&key(2)));
        world.enter(&newcomer, ROOMS[0]);
        let slow = world.connect(device_of(&key(3)));
        world.enter(&slow, ROOMS[0]);
        world.ask(&slow, ROOMS[0], Action::Subscribe { after: 0 });
        for conn in [&writer, &newcomer, &slow] {
            world.read_all(conn);
        }
        for n in 1..=6 {
            world.ask(&writer, ROOMS[0], publish(ROOMS[0], n, &[0; 200]));
            world.engine.step(1);
        }
        (0..turns).for_each(|_| world.turn());
        world.ask(&newcomer, ROOMS[0], Action::Subscribe { after: 5 });
        world.settle();
        let frames = world.read_all(&newcomer);
        let fed = frames.iter().any(|frame| matches!(frame, ServerFrame::Deliver(page) if page.first == 6));
        assert!(fed, "slices of {room}, after {turns} turns: {frames:?}");
    }
}

#[test]
fn a_log_that_cannot_be_read_after_a_failure_is_asked_for_once_per_tick() {
    let (mut world, conn) = one_room(limits());
    world.engine.fail_next(Failure::DiskFull);
    world.engine.fail_loads(3);
    world.ask(&conn, ROOMS[0], publish(ROOMS[0], 1, b"a"));
    world.engine.step(1);
    for _ in 0..4 {
        // The failure of the append, then those of the loads.
        for _ in 0..5 {
            world.shard.handle(Message::Completed(world.mailbox.take()), world.now_ms);
            // Others ask meanwhile.
            world.ask(&conn, ROOMS[0], publish(ROOMS[0], 1, b"a"));
            world.shard.end_turn();
            assert!(world.engine.queue_len() <= 1);
        }
        assert_eq!(world.engine.step(10), usize::from(!world.shard.wants_tick()), "one load, unless it waits for the tick");
        world.shard.handle(Message::Completed(world.mailbox.take()), world.now_ms);
        for _ in 0..5 {
            world.shard.end_turn();
            assert_eq!(world.engine.queue_len(), 0);
        }
        if world.shard.wants_tick() {
            world.shard.tick();
            world.shard.end_turn();
        }
    }
    world.read_all(&conn);
    world.ask(&conn, ROOMS[0], publish(ROOMS[0], 1, b"a"));
    assert!(matches!(world.read_all(&conn)[..], [ServerFrame::Ack { seq: 1, .. }]));
}

#[test]
fn pages_from_memory_are_counted_as_what_they_cost() {
    let slices = Slices { turn: 1 << 14, room: 1 << 10, intake: 100 };
    let mut world =
        World::with_size(Limits { page_bytes_max: 12_000, ..Limits::default() }, 1000, Size { slices, ..Size::default() });
    let conn = world.connect(device_of(&key(1)));
    world.create(&conn, ROOMS[0], LogKind::Room);
    world.enter(&conn, ROOMS[0]);
    for n in 1..=5 {
        world.ask(&conn, ROOMS[0], publish(ROOMS[0], n, &[0; 2000]));
    }
    world.read_all(&conn);
    world.shard.take_stats();
    // Each page is about 80 units.
    for request in 0..10 {
        assert!(world.ask(&conn, ROOMS[0], Action::Fetch { request, before: 6, count_max: 5 }));
    }
    assert_eq!(world.take(&conn, usize::MAX).0.len(), 2, "more than the intake is queued, for slices");
    world.turn();
    assert_eq!(world.take(&conn, usize::MAX).0.len(), 8);
    let work = world.shard.take_stats().work;
    assert!((800..1200).contains(&work), "{work}: all of it is counted");
}

/// Who a reader of presence frames believes to be there.
fn hear(there: &mut BTreeSet<DeviceKey>, frames: Vec<ServerFrame>) {
    for frame in frames {
        if let ServerFrame::Presence { online, offline, .. } = frame {
            there.extend(online);
            there.retain(|device| !offline.contains(device));
        }
    }
}

/// A slow reader misses a departure, and must then be given the whole list: because it subscribed anew, or because the room
/// had grown too large for presence meanwhile.
#[test]
fn a_slow_reader_hears_of_departures_with_the_next_list() {
    for grows in [false, true] {
        let (mut world, slow) = one_room(limits());
        let gone = world.connect(device_of(&key(2)));
        world.enter(&gone, ROOMS[0]);
        for conn in [&gone, &slow] {
            world.ask(conn, ROOMS[0], Action::Subscribe { after: 0 });
        }
        let mut there = BTreeSet::new();
        hear(&mut there, world.read_all(&slow));
        assert_eq!(there, BTreeSet::from([slow.device, gone.device]));
        world.home.answer(&slow, vec![0; 1000].into());
        world.ask(&gone, ROOMS[0], Action::Unsubscribe);
        world.settle();
        if grows {
            let others: Vec<_> = (3..7).map(|n| world.connect(device_of(&key(n)))).collect();
            for conn in &others {
                world.enter(conn, ROOMS[0]);
                world.ask(conn, ROOMS[0], Action::Subscribe { after: 0 });
                world.settle();
            }
            others.iter().for_each(|conn| world.shard.handle(Message::Closed { conn: conn.id }, 7));
            world.settle();
        } else {
            let permit = Permit::new(&slow, 1);
            let request = RoomRequest { room: ROOMS[0], action: Action::Subscribe { after: 0 } };
            world.shard.handle(Message::Request { conn: Arc::clone(&slow), request, permit }, 7);
            world.settle();
        }
        // What filled the outbox is no frame.
        let mut filler = Vec::new();
        world.home.accept(&mut world.shard);
        world.home.take(&slow, 1, &mut filler);
        if world.home.take(&slow, 1, &mut filler) != 0 {
            world.shard.handle(Message::Drained { conn: slow.id }, 7);
        }
        hear(&mut there, filler.iter().map(|frame| ServerFrame::decode(frame).unwrap()).collect());
        hear(&mut there, world.read_all(&slow));
        assert_eq!(there, BTreeSet::from([slow.device]), "grows: {grows}");
    }
}
