//! The key packages that a device leaves at the server.

use super::world::{Rng, WS, World};
use crate::{
    client::{
        Choice, Client,
        records::{PACKAGES_KEY, PackagesRecord},
    },
    core::frame::{ClientFrame, KeyPackage},
    group::KeyPackages,
};
use bytes::Bytes;
use std::sync::atomic::{AtomicU64, Ordering};

const DAY_MS: u64 = 24 * 3600 * 1000;

/// What was published since the last call, and whether in the place of what was there.
fn published(world: &mut World) -> Vec<(Vec<KeyPackage>, bool)> {
    let frames = core::mem::take(&mut world.arrived).into_iter();
    let packages = frames.filter_map(|(_, frame)| match frame {
        ClientFrame::PublishKeyPackages { packages, replace, .. } if !packages.is_empty() => Some((packages, replace)),
        _ => None,
    });
    packages.collect()
}

fn counts(published: &[(Vec<KeyPackage>, bool)]) -> Vec<(usize, usize, bool)> {
    let resorts = |packages: &[KeyPackage]| packages.iter().filter(|package| package.last_resort).count();
    published.iter().map(|(packages, replace)| (packages.len() - resorts(packages), resorts(packages), *replace)).collect()
}

fn kept(world: &World) -> usize {
    let record: PackagesRecord = postcard::from_bytes(&world.stored[PACKAGES_KEY]).unwrap();
    KeyPackages::restore(&record.keys).unwrap().count()
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
    (next.stored, next.packages, next.now_ms) = (world.stored, world.packages, world.now_ms);
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
