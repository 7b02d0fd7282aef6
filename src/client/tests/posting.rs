//! The drop-box's keys on a virtual clock.

use super::world::{Rng, WS, World};
use crate::{
    client::{Choice, Client, view::Command},
    core::id::RoomId,
    seal::dropbox::{Announcement, LIFE_MS, READ_ON_MS},
};

const DAY_MS: u64 = 24 * 3600 * 1000;

/// Somebody alone in a room, whose drop-box is open.
fn host() -> (World, RoomId) {
    let mut world = World::only_websocket(40);
    world.rooms = Some(std::collections::BTreeMap::new());
    world.client.command(Command::CreateRoom { title: "Harbour".into() }, world.now_ms);
    world.settle();
    let room = *world.rooms.as_ref().unwrap().keys().next().unwrap();
    world.client.command(Command::OpenDropBox { room: room.to_string() }, world.now_ms);
    world.settle();
    (world, room)
}

fn announced(world: &World) -> Vec<Announcement> {
    let open = world.offers.iter().flatten();
    open.map(|offer| Announcement::decode(&offer.announcement).unwrap()).collect()
}

#[test]
fn the_next_key_is_announced_a_day_before_the_former_is_over_and_that_is_forgotten_a_day_after() {
    let (mut world, room) = host();
    assert_eq!(announced(&world).len(), 1, "the server is told once the key is in the log");
    let keys = |world: &World| world.stored[&format!("posting/{room}")].clone();
    let first = keys(&world);
    world.pass(LIFE_MS - DAY_MS - 60_000);
    assert_eq!((announced(&world).len(), &first), (1, &keys(&world)));
    world.pass(120_000);
    let [one, two] = &announced(&world)[..] else { panic!("{:?}", world.offers.len()) };
    assert_eq!((one.counter, two.counter, one.opening, two.opening), (1, 2, 1, 1));
    assert_eq!((one.poster, one.host()), (two.poster, two.host()), "the address stays");
    assert_ne!(one.encode(), two.encode());
    let seed = |keys: &[u8], of: &Announcement| keys.windows(of.encode().len()).any(|bytes| bytes == of.encode());
    assert!(seed(&keys(&world), one) && seed(&keys(&world), two), "posts that are on their way are read");
    world.pass(DAY_MS + READ_ON_MS);
    assert!(!seed(&keys(&world), one) && seed(&keys(&world), two));
    // On the next connection the server is told again what it may have lost.
    world.lose(WS);
    world.pass(60_000);
    let said = announced(&world);
    assert_eq!(said.last(), Some(&said[1]));
    assert_eq!(said.len(), 3);
}

#[test]
fn a_host_that_was_away_for_long_goes_on_with_the_same_address() {
    let (world, room) = host();
    let mut again = Client::new("http://localhost:8433", bytes::Bytes::new(), Box::new(Rng(41)));
    again.choose(Choice::Only(WS));
    for (key, value) in &world.stored {
        again.load(key, value).unwrap();
    }
    let mut next = World::with(again);
    (next.rooms, next.stored, next.now_ms) = (world.rooms, world.stored, world.now_ms + LIFE_MS + 3 * DAY_MS);
    next.client.start(next.now_ms);
    next.settle();
    next.pass(60_000);
    let [renewed] = &announced(&next)[..] else { panic!("{}", next.offers.len()) };
    assert_eq!((renewed.counter, renewed.opening), (2, 1));
    // Closed, it stays closed; and the next one is another.
    next.client.command(Command::CloseDropBox { room: room.to_string() }, next.now_ms);
    next.settle();
    next.pass(3 * DAY_MS);
    assert_eq!(next.offers.len(), 2);
    assert_eq!(next.offers[1], None);
    next.client.command(Command::OpenDropBox { room: room.to_string() }, next.now_ms);
    next.settle();
    let reopened = announced(&next).pop().unwrap();
    assert_eq!((reopened.counter, reopened.opening), (3, 3));
    assert_ne!(reopened.poster, renewed.poster);
}
