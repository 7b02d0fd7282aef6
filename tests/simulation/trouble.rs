//! What befalls people: they are put out of the room and let in again, and their devices are put back to an older storage.

use std::collections::{BTreeMap, BTreeSet};

use waxwing::{
    client::{
        records::{Entry, IdentityRecord, LogRecord, Who},
        view::{Check, Command, Integrity, Level, MessageKind, MessageState, Room},
    },
    core::id::DeviceKey,
    seal::identity::Identity,
};

use super::{device::Device, world::World};

/// What a schedule has of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trouble {
    /// Owners put others out.
    removals: bool,
    /// Devices forget what they did since some moment.
    restores: bool,
    /// In the end all of them do, one after the other, each before it is asked by the one before: what they alone had is gone.
    in_turn: bool,
}

impl Trouble {
    /// Two of five seeds have none.
    pub const fn of(seed: u64) -> Self {
        let of_five = seed % 5;
        let restores = matches!(of_five, 3 | 4);
        Self { removals: matches!(of_five, 2 | 4), restores, in_turn: restores && seed.is_multiple_of(3) }
    }

    pub const fn any(self) -> bool {
        self.removals || self.restores
    }
}

impl World {
    /// Once everybody is in: stretches in which links hold and people get somewhere, and others in which they do not.
    pub fn make_trouble_for(&mut self, steps: usize) {
        self.quiesce();
        for step in 0..steps {
            let faults = step / 400 % 2 == 1;
            self.step(faults);
            match self.rng.below(40) {
                0 => self.make_trouble(),
                1 => {
                    let index = self.rng.below(self.devices.len());
                    self.say(index);
                }
                _ => {}
            }
        }
        if self.trouble.in_turn {
            self.quiesce();
            self.put_back_in_turn();
        }
    }

    /// Copies of different times, between which everybody has new keys and says something; then one device after the other is put back to its own, and
    /// comes back while the next ones sleep.
    fn put_back_in_turn(&mut self) {
        for index in 0..self.devices.len() {
            self.devices[index].snapshot = Some(self.devices[index].stored.clone());
            for _ in 0..4 {
                let other = self.rng.below(self.devices.len());
                self.refresh(other);
                self.say_some(other);
            }
        }
        self.quiesce();
        for index in 0..self.devices.len() {
            self.restore(index);
            self.asleep = (index + 1..self.devices.len()).collect();
            let is_back = |device: &Device| device.is_open() && device.room.as_ref().is_some_and(|room| room.up_to_date);
            for _ in 0..5000 {
                self.step(false);
                if is_back(&self.devices[index]) {
                    break;
                }
            }
            self.say_some(index);
        }
        self.asleep.clear();
    }

    /// A few things, and there is time for them to be heard.
    fn say_some(&mut self, index: usize) {
        for _ in 0..3 {
            self.say(index);
            (0..100).for_each(|_| self.step(false));
        }
    }

    fn make_trouble(&mut self) {
        let index = self.rng.below(self.devices.len());
        let Trouble { removals, restores, .. } = self.trouble;
        match self.rng.below(8) {
            0..2 if removals => self.put_out(index),
            2..5 => self.hand_over(index),
            5..7 if restores => {
                let device = &mut self.devices[index];
                let is_kept = device.stored.keys().any(|key| key.starts_with("room/"));
                device.snapshot = is_kept.then(|| device.stored.clone());
                if !removals && self.rng.below(2) == 0 {
                    self.refresh(index);
                }
            }
            0..2 | 7 if restores => self.restore(index),
            _ => {}
        }
    }

    /// A change of the device's own, which an older copy of its storage does not remember.
    fn refresh(&mut self, index: usize) {
        let now_ms = self.now_ms;
        let device = &mut self.devices[index];
        if let Some(room) = device.room.clone().filter(|_| device.is_open()) {
            device.client.command(Command::Refresh { room: room.id }, now_ms);
            device.perform(usize::MAX);
        }
    }

    /// Whoever owns the room puts somebody else out.
    fn put_out(&mut self, index: usize) {
        let now_ms = self.now_ms;
        let device = &mut self.devices[index];
        let Some(room) = device.room.clone().filter(|room| room.owner && device.is_open()) else { return };
        let others: Vec<_> = room.members.iter().filter(|member| !member.you).collect();
        if others.is_empty() {
            return;
        }
        let user = others[self.rng.below(others.len())].user.clone();
        device.client.command(Command::Remove { room: room.id, user }, now_ms);
        device.perform(usize::MAX);
        self.moves.removed += 1;
    }

    /// Whoever is outside gets the newest link.
    fn hand_over(&mut self, index: usize) {
        let now_ms = self.now_ms;
        let rooms = self.devices.iter().filter(|device| device.is_open()).filter_map(|device| device.room.as_ref());
        let newest = rooms.filter(|room| !room.link.is_empty()).max_by_key(|room| room.head);
        let Some(link) = newest.map(|room| room.link.clone()) else { return };
        let device = &mut self.devices[index];
        if !device.is_open() && !device.by_card {
            device.client.command(Command::Join { link }, now_ms);
            device.perform(usize::MAX);
            self.moves.invited += 1;
        }
    }

    /// A device comes back with an older copy of its storage. Where its own changes of the group lie between, others have to tell it what opens
    /// the room: so another one has a link.
    fn restore(&mut self, index: usize) {
        // One that was put back itself, and has not read what followed, may know one that has ended.
        let has_link = |device: &Device| {
            let knows = |room: &Room| !room.link.is_empty() && (room.up_to_date || !device.restored);
            device.is_open() && device.room.as_ref().is_some_and(knows)
        };
        let others = self.devices.iter().enumerate().any(|(other, device)| other != index && has_link(device));
        let device = &mut self.devices[index];
        let Some(snapshot) = device.snapshot.clone() else { return };
        let settled = device.room.as_ref().is_some_and(|room| room.settled);
        if !others || !settled {
            return;
        }
        device.stored = snapshot;
        device.restored = true;
        self.moves.restored += 1;
        self.restart(index);
    }

    /// Without faults: whoever is outside gets a link, and whoever may makes one where there is none.
    pub fn let_everybody_in(&mut self) {
        let now_ms = self.now_ms;
        let at_rest = self.devices.iter_mut().filter(|device| {
            device.is_open() && device.room.as_ref().is_some_and(|room| room.owner && room.settled && room.up_to_date)
        });
        if let Some(device) = at_rest.max_by_key(|device| device.room.as_ref().map(|room| room.head)) {
            let room = device.room.clone().expect("it is open");
            if room.link.is_empty() {
                device.client.command(Command::MakeLink { room: room.id }, now_ms);
                device.perform(usize::MAX);
            }
        }
        (0..self.devices.len()).for_each(|index| self.hand_over(index));
    }

    /// What must hold at the end, whatever befell whom.
    pub fn check_after_trouble(&mut self) {
        self.ask_until_nobody_has_more();
        self.check();
        let asked = |(_, text): &(Level, String)| text.ends_with("asks members for what it missed");
        self.moves.lacking += u32::try_from(self.devices.iter().filter(|device| device.lacks()).count()).unwrap();
        let caught_up = self.devices.iter().filter(|device| device.notices.iter().any(asked)).count();
        self.moves.caught_up += u32::try_from(caught_up).unwrap();
        // And everybody reads everybody.
        for index in 0..self.devices.len() {
            self.say(index);
        }
        self.quiesce();
        let last: Vec<_> = self.devices.iter().map(|device| device.sent.last().unwrap().clone()).collect();
        for (index, device) in self.devices.iter().enumerate() {
            let texts: BTreeSet<_> = device.history().into_iter().map(|(.., text)| text).collect();
            assert!(last.iter().all(|text| texts.contains(text)), "device {index} does not read {last:?}");
        }
        self.check();
    }

    /// What nobody has is asked for again later, when somebody may have been told meanwhile.
    fn ask_until_nobody_has_more(&mut self) {
        for minutes in [1, 2, 4] {
            if self.devices.iter().any(Device::lacks) {
                self.pass_time(minutes * 60_000);
                self.quiesce();
            }
        }
    }

    fn check(&self) {
        let mut said: BTreeMap<u64, (String, String)> = BTreeMap::new();
        for (seq, name, text) in self.devices.iter().flat_map(Device::history) {
            let before = said.insert(seq, (name.clone(), text.clone()));
            assert!(before.is_none_or(|before| before == (name, text)), "two messages at {seq}");
        }
        let moves = comings_and_goings(&self.devices);
        let held: Vec<_> = self.devices.iter().map(Device::held).collect();
        for (index, device) in self.devices.iter().enumerate() {
            let name = ["Ann", "Bob", "Cyd"][index];
            let was_in = |seq: u64| {
                moves.range(..=(seq, true)).rev().find_map(|((_, is_in), names)| names.contains(name).then_some(*is_in))
            };
            let own: BTreeSet<_> = device.history().into_iter().map(|(seq, ..)| seq).collect();
            // Others know that it was in, and have the keys.
            let key = device.key();
            let is_held =
                |seq: u64| held.iter().any(|held| held.range(..seq).next_back().is_some_and(|(_, in_it)| in_it.contains(&key)));
            for seq in said.keys() {
                let (is_in, is_held) = (was_in(*seq).unwrap_or(index == 0), is_held(*seq));
                assert!(is_in || is_held || !own.contains(seq), "device {index} was out, and reads {seq}");
                // Who was never put back has lost nothing.
                let reads = is_held || (is_in && !device.restored);
                assert!(
                    !reads || own.contains(seq),
                    "device {index} was in, and does not read {seq}: {moves:?} {said:?} {:?}",
                    device.notices
                );
                assert!(!is_in || own.contains(seq) || device.lacks(), "device {index} does not read {seq}, and is not told why");
            }
            let mine = said.values().filter(|(_, text)| text.starts_with(&format!("{index}-"))).map(|(_, text)| text);
            let mine: Vec<_> = mine.collect();
            if !device.restored {
                assert_eq!(mine, device.sent.iter().collect::<Vec<_>>(), "of device {index}: each exactly once, in order");
            }
            for text in &device.sent {
                let count = mine.iter().filter(|other| **other == text).count();
                let unread = self.devices.iter().all(|device| device.restored);
                assert!(count == 1 || (count == 0 && (unread || !device.acked.contains(text))), "{text} is there {count} times");
            }
            let waits = |state| matches!(state, MessageState::Pending | MessageState::Failed);
            let odd = device.messages.values().filter(|message| waits(message.state) || message.check == Check::Contradicts);
            let odd: Vec<_> = odd.collect();
            assert!(odd.is_empty(), "device {index}: {odd:?}");
            let alarms: Vec<_> = device.notices.iter().filter(|(level, _)| *level == Level::Alarm).collect();
            assert!(alarms.is_empty(), "device {index}: {alarms:?}");
            let room = device.room.as_ref().unwrap();
            let Integrity { contradicts, injected, .. } = room.integrity;
            assert_eq!((contradicts, injected), (0, 0), "device {index}: {:?}", device.notices);
        }
        let members = |device: &Device| {
            let room = device.room.as_ref().unwrap();
            room.members
                .iter()
                .map(|member| (member.user.clone(), member.name.clone(), member.role as u8, member.devices))
                .collect()
        };
        let lists: BTreeSet<Vec<_>> = self.devices.iter().map(members).collect();
        assert!(lists.len() == 1 && lists.iter().all(|list| list.len() == self.devices.len()), "{lists:?}");
    }
}

impl Device {
    fn key(&self) -> DeviceKey {
        let me: IdentityRecord = postcard::from_bytes(&self.stored["identity"]).expect("it is somebody's");
        Identity::certify(me.secrets, me.not_after_ms, me.counter).device()
    }

    /// Whether it is told that it lacks keys that nobody has.
    fn lacks(&self) -> bool {
        let closed = self.room.as_ref().and_then(|room| room.closed.as_ref());
        closed.is_some_and(|closed| closed.contains("nobody who is in the room now has what opens it"))
    }

    /// Of what it can tell others: for each change of the group, by seq, who was in the epoch that it began, if this device knows that and keeps the
    /// epoch's keys, and else nobody.
    fn held(&self) -> BTreeMap<u64, BTreeSet<DeviceKey>> {
        let log = self.stored.iter().filter(|(key, _)| key.starts_with("log/"));
        let (mut held, mut roster, mut last) = (BTreeMap::new(), BTreeMap::<u32, Who>::new(), None);
        for (key, value) in log {
            let seq = key.rsplit('/').next().and_then(|seq| u64::from_str_radix(seq, 16).ok()).expect("a seq");
            let record: LogRecord = postcard::from_bytes(value).expect("a record of the log");
            match record.entry {
                Entry::Change(change) => {
                    // A device that came in, or came back, knows everybody.
                    if last != change.epoch.checked_sub(1) {
                        roster.clear();
                    }
                    last = Some(change.epoch);
                    for (leaf, who) in change.seats {
                        roster.remove(&leaf);
                        roster.extend(who.map(|who| (leaf, who)));
                    }
                    let opens = change.begun.is_some_and(|(_, secrets)| secrets.is_some());
                    held.insert(seq, roster.values().filter(|_| opens).map(|who| who.device).collect());
                }
                Entry::Known => drop(held.insert(seq, BTreeSet::new())),
                _ => {}
            }
        }
        held
    }
}

/// By seq: who came in (true) and who went (false).
fn comings_and_goings(devices: &[Device]) -> BTreeMap<(u64, bool), BTreeSet<String>> {
    let mut moves: BTreeMap<(u64, bool), BTreeSet<String>> = BTreeMap::new();
    for message in devices.iter().flat_map(|device| device.messages.values()) {
        let is_in = match message.kind {
            MessageKind::Join => true,
            MessageKind::Removed => false,
            _ => continue,
        };
        let Some(seq) = message.seq else { continue };
        moves.entry((seq, is_in)).or_default().extend(message.text.split(", ").map(str::to_owned));
    }
    moves
}
