//! The key packages that a device leaves at the server.

use super::world::{Rng, WS, World};
use crate::{
    client::{
        Choice, Client,
        records::{PACKAGES_KEY, PackagesRecord},
    },
    core::{
        frame::{ClientFrame, KeyPackage},
        packages::{Suite, Taken},
    },
    group::{self, KeyPackages},
};
use bytes::Bytes;
use std::sync::atomic::{AtomicU64, Ordering};

const DAY_MS: u64 = 24 * 3600 * 1000;

/// What was published for rooms of this suite since the last call, and whether in the place of what was there.
fn published_for(wanted: Suite, world: &mut World) -> Vec<(Vec<KeyPackage>, bool)> {
    let frames = core::mem::take(&mut world.arrived).into_iter();
    let packages = frames.filter_map(|(_, frame)| match frame {
        ClientFrame::PublishKeyPackages { suite, packages, replace, .. } if suite == wanted && !packages.is_empty() => {
            Some((packages, replace))
        }
        _ => None,
    });
    packages.collect()
}

fn published(world: &mut World) -> Vec<(Vec<KeyPackage>, bool)> {
    published_for(Suite::XWing, world)
}

fn counts(published: &[(Vec<KeyPackage>, bool)]) -> Vec<(usize, usize, bool)> {
    let resorts = |packages: &[KeyPackage]| packages.iter().filter(|package| package.last_resort).count();
    published.iter().map(|(packages, replace)| (packages.len() - resorts(packages), resorts(packages), *replace)).collect()
}

fn kept_for(suite: Suite, world: &World) -> usize {
    let record: PackagesRecord = postcard::from_bytes(&world.stored[PACKAGES_KEY]).unwrap();
    let shelf = record.shelves.iter().find(|shelf| shelf.suite == suite).unwrap();
    KeyPackages::restore(&shelf.keys).unwrap().count()
}

fn kept(world: &World) -> usize {
    kept_for(Suite::XWing, world)
}

/// The device starts again with what it has stored, and the server with what it has.
fn again(world: World) -> World {
    // Other keys each time.
    static STARTS: AtomicU64 = AtomicU64::new(1_000);
    let seed = STARTS.fetch_add(1, Ordering::Relaxed);
    let mut client = Client::new("http://localhost:8433", Bytes::new(), Box::new(Rng(seed)));
    client.choose(Choice::Only(WS));
    for (key, value) in &world.stored {
        client.load(key, value).unwrap();
    }
    let mut next = World::with(client);
    (next.stored, next.packages, next.classical, next.now_ms) = (world.stored, world.packages, world.classical, world.now_ms);
    next.client.start(next.now_ms);
    next.settle();
    next
}

fn take(world: &mut World, count: usize) {
    for _ in 0..count {
        assert!(world.packages.take(world.now_ms).is_some());
    }
}

#[test]
fn packages_are_made_when_few_are_left_and_all_anew_before_they_expire() {
    let mut world = World::only_websocket(1);
    assert_eq!(counts(&published(&mut world)), [(12, 1, true)]);
    let mut world = again(world);
    assert_eq!(counts(&published(&mut world)), [], "there are enough");
    take(&mut world, 6);
    let mut world = again(world);
    assert_eq!(counts(&published(&mut world)), []);
    take(&mut world, 1);
    let mut world = again(world);
    assert_eq!(counts(&published(&mut world)), [(7, 1, false)]);
    assert_eq!((world.packages.left(world.now_ms), kept(&world)), (12, 20), "what was handed out may still be used");
    world.now_ms += 21 * DAY_MS;
    let mut world = again(world);
    assert_eq!(counts(&published(&mut world)), [(12, 1, true)]);
    assert_eq!(kept(&world), 33);
    world.now_ms += 40 * DAY_MS;
    let mut world = again(world);
    assert_eq!(counts(&published(&mut world)), [(12, 1, true)]);
    assert_eq!(kept(&world), 26, "what expired a month ago is forgotten");
    // A device that stays connected looks by itself.
    take(&mut world, 12);
    world.pass(DAY_MS);
    assert_eq!(counts(&published(&mut world)), [(12, 1, false)]);
}

#[test]
fn what_may_have_been_handed_out_is_not_published_again_and_what_nobody_can_open_is_replaced() {
    let mut world = World::new(2);
    world.client.choose(Choice::Only(WS));
    world.silent = true;
    world.begin();
    let first = published(&mut world);
    assert_eq!((counts(&first), world.packages.left(world.now_ms)), (vec![(12, 1, true)], 12));
    // The server has taken them, and the answer was lost: the last resort alone may come again, and is the same.
    let mut world = again(world);
    let second = published(&mut world);
    assert_eq!((counts(&second), &second[0].0[0]), (vec![(0, 1, false)], first[0].0.last().unwrap()));
    assert_eq!(counts(&published(&mut again(world))), []);
    // A storage that has lost what opens the welcomes.
    let mut world = World::only_websocket(2);
    let lost = published(&mut world);
    world.stored.remove(PACKAGES_KEY);
    let mut world = again(world);
    assert_eq!(counts(&published(&mut world)), [(12, 1, true)]);
    let taken = |world: &mut World| world.packages.take(world.now_ms).unwrap().bytes;
    for _ in 0..14 {
        let taken = taken(&mut world);
        assert!(lost[0].0.iter().all(|package| package.bytes != taken), "nobody could open that");
    }
}

#[test]
fn whoever_takes_them_all_makes_the_device_no_work_without_end() {
    let mut world = World::only_websocket(3);
    for _ in 0..30 {
        take(&mut world, 13);
        world = again(world);
    }
    assert!((100..=128).contains(&kept(&world)), "{}", kept(&world));
    assert!(world.packages.take(world.now_ms).is_some_and(|taken| !taken.is_gone), "the last resort is still there");
}

#[test]
fn large_rooms_have_a_shelf_of_their_own_that_is_looked_after_like_the_other() {
    let mut world = World::only_websocket(4);
    let published = published_for(Suite::X25519, &mut world);
    assert_eq!(counts(&published), [(12, 1, true)]);
    // What is on it adds the device to a large room, and to no other.
    let rng = &mut Rng(5);
    for package in &published[0].0 {
        let offer = crate::client::packages::Offer::decode(&package.bytes).unwrap();
        let package = group::KeyPackage(offer.package);
        assert_eq!(package.verify(Suite::XWing, rng).map(|_| ()), Err(group::KeyPackageError::Suite));
        assert!(package.verify(Suite::X25519, rng).is_ok());
    }
    take(&mut world, 7);
    let mut world = again(world);
    assert_eq!(counts(&published_for(Suite::X25519, &mut world)), [], "only the other one was emptied");
    let mut taken: Vec<Taken> = (0..7).map(|_| world.classical.take(world.now_ms).unwrap()).collect();
    let mut world = again(world);
    let more = published_for(Suite::X25519, &mut world);
    assert_eq!((counts(&more), kept_for(Suite::X25519, &world), kept(&world)), (vec![(7, 1, false)], 20, 20));
    world.now_ms += 21 * DAY_MS;
    let mut world = again(world);
    assert_eq!(counts(&published_for(Suite::X25519, &mut world)), [(12, 1, true)], "before they expire");
    taken.extend((0..14).map(|_| world.classical.take(world.now_ms).unwrap()));
    let resorts: Vec<_> = taken.iter().filter(|taken| !taken.is_gone).collect();
    assert!(resorts.len() == 2 && resorts[0] == resorts[1], "the last resort is handed out when there is no other");
    assert!((0..taken.len() - 1).all(|one| !taken[one + 1..taken.len() - 1].contains(&taken[one])), "and all others once");
}
