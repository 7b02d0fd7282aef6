//! People whose words were compared: what this device remembers of them, and what it says when that changes.

use super::{
    Client,
    records::{ChangeRecord, ContactRecord, Who, contact_key, encode},
    timeline::is_alike,
    view::Level,
};
use crate::{
    core::{
        chain,
        id::{DeviceKey, Digest, RoomId, Seq},
    },
    seal::identity::UserKey,
};

/// How many people are remembered.
const CONTACTS_MAX: usize = 4_096;
/// How many devices of each: as many as a room can have.
const DEVICES_MAX: usize = 256;
/// With what a text to compare begins.
const CODE: &str = "waxwing:verify:";

/// What two people compare: equal on both sides whoever asks, and of nobody else.
#[must_use]
pub fn safety_hash(one: UserKey, other: UserKey) -> Digest {
    let (first, second) = (one.min(other), one.max(other));
    chain::digest(&[&b"waxwing safety v1"[..], &first.0, &second.0].concat())
}

/// As a text that a code on a screen carries.
pub(super) fn person_code(one: UserKey, other: UserKey) -> String {
    format!("{CODE}person:{}", safety_hash(one, other))
}

/// The whole hash of a room's words, and where it was taken.
pub(super) fn room_code(room: RoomId, (seq, hash): (Seq, Digest)) -> String {
    format!("{CODE}room:{room}:{seq}:{hash}")
}

/// A text that somebody else's screen showed.
enum Shown {
    Person(Digest),
    Room(RoomId, Seq, Digest),
}

fn parse(text: &str) -> Option<Shown> {
    let mut parts = text.trim().strip_prefix(CODE)?.split(':');
    let shown = match parts.next()? {
        "person" => Shown::Person(parts.next()?.parse().ok()?),
        "room" => Shown::Room(parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?),
        _ => return None,
    };
    parts.next().is_none().then_some(shown)
}

impl Client {
    /// Remembers that this person's words were compared, or that they are not to be relied on.
    pub(super) fn verify_person(&mut self, user: &str, verified: bool, now_ms: u64) {
        let known = user.parse::<DeviceKey>().ok().and_then(|key| self.known(UserKey(key.0)));
        let Some((user, name, devices)) = known else {
            return self.notice(Level::Warn, "there is no such person in your rooms", None);
        };
        if verified && self.contacts.len() >= CONTACTS_MAX && !self.contacts.contains_key(&user) {
            return self.notice(Level::Warn, "this device remembers no more people", None);
        }
        let record = verified.then_some(ContactRecord { format: 1, name, devices, verified_ms: now_ms });
        self.keep_contact(user, record);
        let rooms: Vec<_> = self.rooms.keys().copied().collect();
        rooms.into_iter().for_each(|room| self.tell_room(room));
    }

    fn keep_contact(&mut self, user: UserKey, record: Option<ContactRecord>) {
        self.persist(contact_key(user), record.as_ref().map(encode));
        match record {
            Some(record) => drop(self.contacts.insert(user, record)),
            None => drop(self.contacts.remove(&user)),
        }
    }

    /// A person who is in one of the rooms: what they are called there, and their devices in all rooms.
    fn known(&self, user: UserKey) -> Option<(UserKey, String, Vec<DeviceKey>)> {
        let mut devices = Vec::new();
        let mut name = None;
        for room in self.rooms.values() {
            for who in room.devices_of(user) {
                name.get_or_insert_with(|| room.name_of(who));
                if !devices.contains(&who.device) && devices.len() < DEVICES_MAX {
                    devices.push(who.device);
                }
            }
        }
        Some((user, name?, devices))
    }

    /// Compares a text from somebody else's screen with what this device has, and says what that means.
    pub(super) fn compare_code(&mut self, text: &str, now_ms: u64) {
        match parse(text) {
            None => self.notice(Level::Warn, "that is no text to compare: it begins with waxwing:verify:", None),
            Some(Shown::Person(hash)) => self.compare_person(hash, now_ms),
            Some(Shown::Room(room, seq, hash)) => self.compare_room(room, seq, hash),
        }
    }

    fn compare_person(&mut self, hash: Digest, now_ms: u64) {
        let Some(me) = self.me.as_ref().map(|me| me.identity.user()) else { return };
        let people = self.rooms.values().flat_map(super::room::Room::people);
        let found = people.filter(|user| *user != me).find(|user| safety_hash(me, *user) == hash);
        let Some((user, name, _)) = found.and_then(|user| self.known(user)) else {
            let text = "DOES NOT MATCH: nobody in your rooms has this key. If it is from somebody whom you see in a room, somebody else sits between you";
            return self.notice(Level::Alarm, text, None);
        };
        self.verify_person(&user.to_string(), true, now_ms);
        self.notice(Level::Info, &format!("matches: {name} is who showed you this, and is marked as verified"), None);
    }

    fn compare_room(&mut self, id: RoomId, seq: Seq, hash: Digest) {
        let Some(room) = self.rooms.get(&id) else {
            return self.notice(Level::Warn, "that is of a room that this device is not in", None);
        };
        match room.words_hash() {
            (here, _) if here != seq => {
                let text = format!("cannot be compared yet: it was taken at message {seq}, and on this device at {here}");
                self.notice(Level::Warn, &text, Some(id));
            }
            (_, own) if own == hash => {
                self.notice(Level::Info, "matches: you see the same members and, up to there, the same history", Some(id));
            }
            _ => {
                let text = "DOES NOT MATCH: the server shows you and who showed you this different rooms or different histories";
                self.notice(Level::Alarm, text, Some(id));
            }
        }
    }

    /// Devices came in: says so where they concern somebody whose words were compared.
    pub(super) fn look_at_arrivals(&mut self, id: RoomId, change: &ChangeRecord) {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get(&id)) else { return };
        let me = Who { device: me.identity.device(), user: me.identity.user() };
        // Who comes in finds everybody there.
        let found = if change.joined.contains(&me) { room.everybody() } else { change.joined.clone() };
        let arrivals: Vec<_> = found.into_iter().map(|who| (who, room.name_of(who))).collect();
        for (who, name) in arrivals.into_iter().filter(|(who, _)| who.user != me.user) {
            if let Some(contact) = self.contacts.get(&who.user) {
                if contact.devices.contains(&who.device) || contact.devices.len() >= DEVICES_MAX {
                    continue;
                }
                let mut contact = contact.clone();
                contact.devices.push(who.device);
                self.keep_contact(who.user, Some(contact));
                let text = format!(
                    "{name}, whom you verified, has a device that this one has not seen before: ask whether it is theirs"
                );
                self.notice(Level::Alarm, &text, Some(id));
            } else if self.contacts.values().any(|contact| is_alike(&contact.name, &name)) {
                let text = format!("somebody who calls themselves {name} came in, and is not the {name} whom you verified");
                self.notice(Level::Alarm, &text, Some(id));
            }
        }
    }
}
