//! Key packages: each is handed out once, whatever fails and whoever asks at once.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use proptest::prelude::*;
use waxwing::{
    core::{
        close::Refusal,
        frame::{KeyPackage, ServerFrame},
        id::DeviceKey,
        limits::Limits,
        packages::Suite,
        session::{PackagesAction, PackagesRequest},
    },
    engine::Failure,
    router::{Conn, outbox::Permit, shard::Message},
};

use crate::{
    common::{device_of, key},
    world::{World, limits},
};

fn package(number: u8) -> KeyPackage {
    KeyPackage { expires_ms: 1_000_000, last_resort: number == 99, bytes: Bytes::from(vec![number; 10]) }
}

fn ask(world: &mut World, conn: &Arc<Conn>, device: DeviceKey, request: u32, action: PackagesAction) {
    ask_for(Suite::XWing, world, conn, device, request, action);
}

fn ask_for(suite: Suite, world: &mut World, conn: &Arc<Conn>, device: DeviceKey, request: u32, action: PackagesAction) {
    let (conn, permit) = (Arc::clone(conn), Permit::new(conn, 10));
    let request = PackagesRequest { device, suite, request, action };
    world.shard.handle(Message::Packages { conn, request, permit }, world.now_ms);
}

fn publish(world: &mut World, conn: &Arc<Conn>, numbers: &[u8], replace: bool) -> Result<u32, Refusal> {
    let packages = numbers.iter().map(|number| package(*number)).collect();
    ask(world, conn, conn.device, 1, PackagesAction::Publish { packages, replace });
    let frames = world.read_all(conn);
    let [ServerFrame::KeyPackages { request: 1, result }] = frames[..] else { panic!("{frames:?}") };
    result
}

/// The first byte of each package that comes.
fn taken(frames: &[ServerFrame]) -> Vec<Result<Option<u8>, Refusal>> {
    let result = |frame: &ServerFrame| match frame {
        ServerFrame::KeyPackage { result, .. } => result.clone().map(|package| package.map(|bytes| bytes[0])),
        other => panic!("{other:?}"),
    };
    frames.iter().map(result).collect()
}

fn take(world: &mut World, conn: &Arc<Conn>, device: DeviceKey) -> Result<Option<u8>, Refusal> {
    ask(world, conn, device, 2, PackagesAction::Take);
    taken(&world.read_all(conn))[0]
}

#[test]
fn each_is_handed_out_once_over_crashes_and_the_owner_hears_what_is_left() {
    let mut world = World::new(limits());
    let (owner, other) = (world.connect(device_of(&key(1))), world.connect(device_of(&key(2))));
    assert_eq!(take(&mut world, &other, owner.device), Ok(None));
    assert_eq!(publish(&mut world, &owner, &[1, 2, 99, 3], false), Ok(3));
    // Two ask before the engine has answered either.
    ask(&mut world, &other, owner.device, 1, PackagesAction::Take);
    ask(&mut world, &owner, owner.device, 2, PackagesAction::Take);
    let both = [taken(&world.read_all(&other)), taken(&world.read_all(&owner))].concat();
    assert_eq!(both, [Ok(Some(1)), Ok(Some(2))]);
    assert_eq!(publish(&mut world, &owner, &[], false), Ok(1), "who adds nothing hears how many there are");
    world.crash();
    let (owner, other) = (world.connect(owner.device), world.connect(other.device));
    assert_eq!([0; 3].map(|_| take(&mut world, &other, owner.device)), [Ok(Some(3)), Ok(Some(99)), Ok(Some(99))]);
    assert_eq!(publish(&mut world, &owner, &[4, 5], false), Ok(2));
    assert_eq!(publish(&mut world, &owner, &[6], true), Ok(1));
    assert_eq!([0; 2].map(|_| take(&mut world, &other, owner.device)), [Ok(Some(6)), Ok(None)]);
    assert_eq!(world.shard.directory_len(), 0, "who is not asked for takes no memory");
}

#[test]
fn what_cannot_be_stored_is_not_handed_out() {
    let mut world = World::new(limits());
    let (owner, other) = (world.connect(device_of(&key(1))), world.connect(device_of(&key(2))));
    world.engine.fail_next(Failure::DiskFull);
    assert_eq!(publish(&mut world, &owner, &[1], false), Err(Refusal::DiskFull));
    assert_eq!(publish(&mut world, &owner, &[1, 2, 3], false), Ok(3));
    world.engine.fail_next(Failure::DiskFull);
    assert_eq!(take(&mut world, &other, owner.device), Err(Refusal::DiskFull));
    assert_eq!(take(&mut world, &other, owner.device), Ok(Some(1)), "it is there still");
    world.engine.fail_next(Failure::OutcomeUnknown);
    ask(&mut world, &other, owner.device, 1, PackagesAction::Take);
    ask(&mut world, &other, owner.device, 2, PackagesAction::Take);
    assert_eq!(taken(&world.read_all(&other)), [Err(Refusal::OutcomeUnknown), Ok(Some(3))], "nobody knows of the second");
}

#[test]
fn requests_are_limited_and_a_device_has_so_many_packages() {
    let mut world = World::new(Limits { key_package_requests_per_minute_max: 3, key_packages_max: 2, ..limits() });
    let owner = world.connect(device_of(&key(1)));
    assert_eq!(publish(&mut world, &owner, &[1, 2, 3], false), Err(Refusal::TooManyPackages { max: 2 }));
    assert_eq!(publish(&mut world, &owner, &[1, 2], false), Ok(2));
    assert_eq!(take(&mut world, &owner, owner.device), Ok(Some(1)));
    let limited = Refusal::RateLimited { retry_after_ms: 20_000 };
    assert_eq!(take(&mut world, &owner, owner.device), Err(limited));
    assert_eq!(publish(&mut world, &owner, &[1], false), Err(limited));
    world.now_ms += 20_000;
    assert_eq!(take(&mut world, &owner, owner.device), Ok(Some(2)));
    let mut other = World::with_queue(limits(), 0);
    let conn = other.connect(device_of(&key(1)));
    ask(&mut other, &conn, conn.device, 1, PackagesAction::Take);
    assert_eq!(taken(&other.read_all(&conn)), [Err(Refusal::Overloaded)]);
    assert_eq!(other.shard.directory_len(), 0);
}

#[test]
fn packages_of_each_suite_are_kept_apart() {
    let mut world = World::new(Limits { key_packages_max: 2, ..limits() });
    let owner = world.connect(device_of(&key(1)));
    let publish_for = |world: &mut World, conn: &Arc<Conn>, suite, numbers: &[u8], replace| {
        let packages = numbers.iter().map(|number| package(*number)).collect();
        ask_for(suite, world, conn, conn.device, 1, PackagesAction::Publish { packages, replace });
        let frames = world.read_all(conn);
        let [ServerFrame::KeyPackages { request: 1, result }] = frames[..] else { panic!("{frames:?}") };
        result
    };
    let take_for = |world: &mut World, conn: &Arc<Conn>, suite| {
        ask_for(suite, world, conn, conn.device, 2, PackagesAction::Take);
        taken(&world.read_all(conn))[0]
    };
    let [large, small] = [Suite::X25519, Suite::XWing];
    assert_eq!(publish_for(&mut world, &owner, small, &[1, 99], false), Ok(1));
    assert_eq!(take_for(&mut world, &owner, large), Ok(None), "nor the other suite's last resort");
    assert_eq!(publish_for(&mut world, &owner, large, &[3, 4, 5], false), Err(Refusal::TooManyPackages { max: 2 }));
    assert_eq!(publish_for(&mut world, &owner, large, &[3, 99], false), Ok(1), "each has all the room there is");
    assert_eq!(publish_for(&mut world, &owner, small, &[], false), Ok(1));
    world.crash();
    let owner = world.connect(owner.device);
    assert_eq!([0; 3].map(|_| take_for(&mut world, &owner, large)), [Ok(Some(3)), Ok(Some(99)), Ok(Some(99))]);
    assert_eq!(publish_for(&mut world, &owner, large, &[6], true), Ok(1), "what was there is replaced, of that suite");
    assert_eq!([0; 2].map(|_| take_for(&mut world, &owner, small)), [Ok(Some(1)), Ok(Some(99))]);
    assert_eq!([0; 2].map(|_| take_for(&mut world, &owner, large)), [Ok(Some(6)), Ok(None)]);
}

proptest! {
    #[test]
    fn none_is_ever_handed_out_twice(steps in proptest::collection::vec((0..10_u8, 0..2_usize), 1..80)) {
        let mut world = World::with_queue(Limits { key_package_requests_per_minute_max: 1000, ..limits() }, 6);
        let owners = [1, 2].map(|number| device_of(&key(number)));
        let mut conns = owners.map(|owner| world.connect(owner));
        let (mut number, mut seen) = (0_u8, BTreeSet::new());
        for (step, device) in steps {
            match step {
                0..=2 => {
                    number += 1;
                    let packages = vec![KeyPackage { expires_ms: u64::MAX, ..package(number) }];
                    ask(&mut world, &conns[device], owners[device], 1, PackagesAction::Publish { packages, replace: step == 0 });
                }
                3..=5 => ask(&mut world, &conns[1 - device], owners[device], 2, PackagesAction::Take),
                6 => world.engine.fail_next(if device == 0 { Failure::DiskFull } else { Failure::OutcomeUnknown }),
                7 => drop(world.engine.step(1 + device)),
                8 => world.turn_with(1 + device),
                _ => {
                    world.crash();
                    conns = owners.map(|owner| world.connect(owner));
                }
            }
            for conn in &conns {
                let (frames, _) = world.take(conn, 10_000);
                for frame in frames {
                    if let ServerFrame::KeyPackage { result: Ok(Some(bytes)), .. } = frame {
                        prop_assert!(bytes[0] == 99 || seen.insert(bytes[0]), "{} was handed out twice", bytes[0]);
                    }
                }
            }
        }
    }
}
