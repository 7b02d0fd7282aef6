//! Keys that devices renew by themselves, while nobody does anything, and that end with their room.

use waxwing::{
    client::{
        records::GroupRecord,
        view::{Command, History},
    },
    group::Group,
    seal::{epoch::EpochSecrets, link::Link},
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

impl World {
    fn command(&mut self, index: usize, command: Command) {
        let now_ms = self.now_ms;
        self.devices[index].client.command(command, now_ms);
        self.quiesce();
    }

    /// A day goes by; Ann says something, and has new keys. What the epoch until then was.
    fn another_day(&mut self, room: &str) -> EpochSecrets {
        self.say(0);
        self.quiesce();
        let secrets = group(&self.devices[0]).epoch().secrets().clone();
        self.rest_for(DAY_MS);
        self.command(0, Command::Refresh { room: room.to_owned() });
        secrets
    }

    /// What of these the device keeps.
    fn kept(&self, index: usize, epochs: &[EpochSecrets]) -> Vec<bool> {
        let device = &self.devices[index];
        let keeps = |epoch: &EpochSecrets| [epoch.psk, epoch.x25519, epoch.xwing].map(|secret| keeps(device, &secret));
        let kept = epochs.iter().map(keeps).inspect(|kept| assert!(kept.iter().all(|one| *one == kept[0]), "all or none"));
        kept.map(|kept| kept[0]).collect()
    }
}

#[test]
fn newcomers_read_the_last_days_and_what_opens_more_is_deleted_everywhere() {
    let (mut world, room) = two();
    let mut epochs = vec![world.another_day(&room), world.another_day(&room)];
    let link = world.devices[0].room.as_ref().unwrap().link.clone();
    assert_eq!((world.kept(0, &epochs), world.kept(1, &epochs)), (vec![true; 2], vec![true; 2]), "for the person's next device");
    world.command(0, Command::SetHistory { room: room.clone(), history: History::Days(3) });
    (0..3).for_each(|_| epochs.push(world.another_day(&room)));
    assert_eq!(world.kept(1, &epochs), [false, false, true, true, true], "of a time that newcomers do not read, either");
    let said: Vec<_> = world.devices[0].history().into_iter().map(|(.., text)| text).collect();
    // Nobody is there when somebody comes in.
    let mut cyd = Device::new(77, "Cyd");
    let now_ms = world.now_ms;
    cyd.client.command(Command::Join { link: link.clone() }, now_ms);
    world.devices.push(cyd);
    world.quiesce();
    let read: Vec<_> = world.devices[2].history().into_iter().map(|(.., text)| text).collect();
    assert_eq!(read, said[2..], "since the policy was chosen");
    let closed = world.devices[2].room.as_ref().unwrap().closed.clone().unwrap();
    assert!(closed.contains("newcomers read the last 3 days"), "{closed}");
    (0..3).for_each(|_| epochs.push(world.another_day(&room)));
    for index in 0..3 {
        assert_eq!(world.kept(index, &epochs), [false, false, false, false, false, true, true, true], "device {index}");
    }
    // What was read stays, over a restart too, and so do the words; who comes in now reads less.
    for index in 0..3 {
        let (history, words) = (world.devices[index].history(), world.devices[index].room.clone().unwrap().words);
        world.restart(index);
        world.quiesce();
        assert_eq!((world.devices[index].history(), world.devices[index].room.clone().unwrap().words), (history, words));
    }
    // The first link's week is over. What opened the server's copy of that time is nowhere.
    world.command(0, Command::MakeLink { room: room.clone() });
    let (over, link) = (link, world.devices[0].room.as_ref().unwrap().link.clone());
    let leads = |world: &World, link: &str| {
        let seed = link.parse::<Link>().unwrap().seed;
        world.devices.iter().map(|device| keeps(device, &seed)).collect::<Vec<_>>()
    };
    assert_eq!((leads(&world, &over), leads(&world, &link)), (vec![false; 3], vec![true; 3]));
    world.command(0, Command::MakeLink { room });
    let (over, link) = (link, world.devices[0].room.as_ref().unwrap().link.clone());
    assert_eq!((leads(&world, &over), leads(&world, &link)), (vec![false; 3], vec![true; 3]));
    let mut dov = Device::new(78, "Dov");
    dov.client.command(Command::Join { link }, world.now_ms);
    world.devices.push(dov);
    world.quiesce();
    let said: Vec<_> = world.devices[0].history().into_iter().map(|(.., text)| text).collect();
    let read: Vec<_> = world.devices[3].history().into_iter().map(|(.., text)| text).collect();
    assert_eq!(read, said[5..]);
    assert_eq!(world.kept(3, &epochs), [false, false, false, false, false, true, true, true]);
    // Where nothing happens for some days, nothing leads down any more.
    let leads_down = |world: &World| world.devices.iter().map(|device| group(device).window().unwrap().len()).collect::<Vec<_>>();
    assert!(leads_down(&world).iter().all(|keys| *keys > 3));
    world.rest_for(DAY_MS * 7 / 2);
    assert_eq!(leads_down(&world), [0; 4]);
    // Who goes through a month without a word is left with the present epoch.
    world.rest_for(30 * DAY_MS);
    for index in 0..4 {
        assert_eq!(world.kept(index, &epochs), [false; 8], "device {index}");
    }
}

#[test]
fn the_persons_next_device_is_handed_what_opens_the_last_days() {
    let (mut world, room) = two();
    let mut epochs = vec![world.another_day(&room)];
    world.command(0, Command::SetHistory { room: room.clone(), history: History::Days(2) });
    (0..4).for_each(|_| epochs.push(world.another_day(&room)));
    assert_eq!(world.kept(1, &epochs), [false, false, false, true, true]);
    let bob = world.devices[1].history();
    let file = world.devices[1].client.export_identity("a passphrase").unwrap();
    let mut next = Device::nobody(79);
    next.client.import_identity(&file, "a passphrase", world.now_ms).unwrap();
    world.devices.push(next);
    world.quiesce();
    let next = &world.devices[2];
    assert_eq!(next.history(), bob[3..], "and nothing of before");
    let closed = next.room.as_ref().unwrap().closed.clone().unwrap();
    assert!(closed.ends_with("newcomers read the last 2 days here, since that was chosen"), "{closed}");
    assert_eq!(world.kept(2, &epochs), [false, false, false, true, true]);
    world.another_day(&room);
    assert_eq!(world.kept(2, &epochs), [false, false, false, false, true], "which ends there, too");
}

#[test]
fn who_was_removed_deletes_what_it_has_as_everybody_does() {
    let (mut world, room) = two();
    world.command(0, Command::SetHistory { room: room.clone(), history: History::Days(2) });
    let epochs = [world.another_day(&room), group(&world.devices[0]).epoch().secrets().clone()];
    world.rest_for(DAY_MS);
    let user = world.devices[0].room.as_ref().unwrap().members.iter().find(|member| !member.you).unwrap().user.clone();
    world.devices[0].client.command(Command::Remove { room, user }, world.now_ms);
    while world.devices[1].is_open() {
        world.step(false);
    }
    world.devices[1].perform(usize::MAX);
    let history = world.devices[1].history();
    assert_eq!((world.kept(1, &epochs), history.len()), (vec![true; 2], 1));
    world.pass_time(DAY_MS * 3 / 2);
    world.devices[1].perform(usize::MAX);
    assert_eq!(world.kept(1, &epochs), [false, true], "the second one ended with the removal");
    world.restart(1);
    world.devices[1].perform(usize::MAX);
    world.pass_time(DAY_MS);
    world.devices[1].perform(usize::MAX);
    assert_eq!((world.kept(1, &epochs), world.devices[1].history()), (vec![false; 2], history));
}

#[test]
fn a_server_whose_clock_is_ahead_keeps_nothing_on_a_device_for_longer() {
    let (mut world, room) = two();
    world.ahead_ms = 1000 * DAY_MS;
    world.command(0, Command::SetHistory { room: room.clone(), history: History::Days(2) });
    let epochs: Vec<_> = (0..4).map(|_| world.another_day(&room)).collect();
    assert!(world.devices[0].messages.values().any(|message| message.time_ms > world.now_ms + 900 * DAY_MS));
    assert_eq!(
        (world.kept(0, &epochs), world.kept(1, &epochs)),
        (vec![false, false, true, true], vec![false, false, true, true])
    );
}
