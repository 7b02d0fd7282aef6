//! Keys that devices renew by themselves, while nobody does anything, and that end with their room.

use waxwing::{
    client::{records::GroupRecord, view::Command},
    group::Group,
};

use super::{
    device::{Device, Rng},
    world::World,
};

const DAY_MS: u64 = 24 * 3600 * 1000;

/// The group as the device has kept it.
fn group(device: &Device) -> Group {
    let (_, kept) = device.stored.iter().find(|(key, _)| key.starts_with("group/")).expect("it is in a room");
    let record: GroupRecord = postcard::from_bytes(kept).expect("it is a place in a group");
    Group::restore(&record.snapshot, &mut Rng(1)).expect("it can be restored")
}

fn epoch(device: &Device) -> u64 {
    group(device).epoch().number
}

/// Whether the device keeps these bytes anywhere.
fn keeps(device: &Device, bytes: &[u8]) -> bool {
    device.stored.values().any(|value| value.windows(bytes.len()).any(|part| part == bytes))
}

impl World {
    /// Both devices are in the same epoch.
    fn epoch(&self) -> u64 {
        let epochs: Vec<_> = self.devices.iter().map(epoch).collect();
        assert!(epochs.iter().all(|epoch| *epoch == epochs[0]), "{epochs:?}");
        epochs[0]
    }

    fn rest_for(&mut self, ms: u64) {
        self.pass_time(ms);
        self.quiesce();
        self.pass_time(60_000);
        self.quiesce();
    }
}

/// Two people in a room, and its id.
fn two() -> (World, String) {
    let mut world = World::new(5, 2);
    world.devices[0].client.command(Command::CreateRoom { title: "Sim".into() }, 1);
    world.devices[0].perform(usize::MAX);
    let room = world.devices[0].room.clone().unwrap();
    world.devices[1].client.command(Command::Join { link: room.link }, 1);
    world.devices[1].perform(usize::MAX);
    world.quiesce();
    (world, room.id)
}

#[test]
fn each_device_renews_its_keys_after_a_week_and_when_it_is_asked_to() {
    let (mut world, room) = two();
    let begun = world.epoch();
    world.rest_for(6 * DAY_MS);
    assert_eq!(world.epoch(), begun, "not yet");
    // Ann ends the link, whose week is over, and so has new keys.
    world.rest_for(DAY_MS);
    world.say(0);
    world.quiesce();
    assert_eq!(world.epoch(), begun + 1);
    world.rest_for(DAY_MS);
    assert_eq!(world.epoch(), begun + 2, "Bob's device has made a commit");
    world.rest_for(5 * DAY_MS);
    assert_eq!(world.epoch(), begun + 2, "and nobody while their keys are new");
    let now_ms = world.now_ms;
    world.devices[1].client.command(Command::Refresh { room }, now_ms);
    world.quiesce();
    assert_eq!(world.epoch(), begun + 3);
    // What was renewed by hand is not due with the others.
    world.rest_for(2 * DAY_MS);
    assert_eq!(world.epoch(), begun + 4);
}

#[test]
fn a_room_that_is_forgotten_leaves_no_secret_behind() {
    let (mut world, room) = two();
    let before = group(&world.devices[1]).epoch().secrets().clone();
    let now_ms = world.now_ms;
    world.devices[0].client.command(Command::Refresh { room: room.clone() }, now_ms);
    world.quiesce();
    let device = &mut world.devices[1];
    let after = group(device).epoch().secrets().clone();
    assert_ne!(before.psk, after.psk);
    assert!(keeps(device, &before.psk) && keeps(device, &after.psk), "for the person's next device");
    device.client.command(Command::Forget { room: room.clone() }, now_ms);
    device.perform(usize::MAX);
    for secrets in [before, after] {
        assert!([&secrets.psk, &secrets.x25519, &secrets.xwing].iter().all(|secret| !keeps(device, &secret[..])));
    }
    assert!(device.stored.keys().all(|key| !key.contains(&room)));
}
