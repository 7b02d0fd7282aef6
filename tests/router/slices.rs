//! What happens where slices and turns end: nobody is forgotten, nothing is asked without end, all work is counted.

use waxwing::{
    core::{
        frame::{LogKind, ServerFrame},
        limits::Limits,
        session::Action,
    },
    engine::Failure,
    router::shard::{Message, Slices},
};

use crate::{
    common::{device_of, key},
    world::{ROOMS, Size, World, limits, one_room, publish, take},
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
    let mut world = World::with_size(Limits::default(), 1000, Size { slices, ..Size::default() });
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
    assert_eq!(take(&conn, usize::MAX).0.len(), 2, "more than the intake is queued, for slices");
    world.turn();
    assert_eq!(take(&conn, usize::MAX).0.len(), 8);
    let work = world.shard.take_stats().work;
    assert!((800..1200).contains(&work), "{work}: all of it is counted");
}
