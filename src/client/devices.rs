//! This person's devices: the list that the person signs, who is told of it, and taking a device out.

use super::{
    Client, Room,
    records::Letter,
    view::{self, Level},
};
use crate::{
    core::id::{DeviceKey, RoomId},
    group::Change,
    seal::{
        body::{Content, Message},
        devices::DeviceList,
    },
};

/// The content number of [`Message::Devices`].
pub(super) const DEVICES_KIND: u16 = 6;

impl Client {
    /// The devices as they are now go into the person's next list, if that is another one. Nobody who has one device needs one.
    pub(super) fn list_devices(&mut self, removed: Option<DeviceKey>) {
        let Some(me) = self.me.as_ref().filter(|me| me.shown.is_none()) else { return };
        if me.record.own_devices.is_empty() && me.record.devices.is_none() {
            return;
        }
        let devices = me.record.own_devices.iter().map(|own| own.device).chain([me.identity.device()]);
        let Some(list) = DeviceList::next(me.record.devices.as_ref(), &me.identity, devices, removed) else { return };
        self.keep_devices(list);
    }

    fn keep_devices(&mut self, list: DeviceList) {
        let Some(me) = &mut self.me else { return };
        me.record.own_devices.retain(|own| !list.removed.contains(&own.device));
        me.record.devices = Some(list);
        me.untold = true;
        self.persist_me();
        self.tell_identity();
    }

    /// Tells all rooms, if the list is another one. Not in the middle of a page: what is sealed there may be of a former epoch.
    pub(super) fn tell_devices_everywhere(&mut self, now_ms: u64) {
        if !self.me.as_mut().is_some_and(|me| core::mem::take(&mut me.untold)) {
            return;
        }
        let rooms: Vec<_> = self.rooms.keys().copied().collect();
        for room in rooms {
            self.tell_devices(room, now_ms);
            self.pump(room, now_ms);
        }
    }

    /// Another device of this person has signed a list: what either knows, both know.
    pub(super) fn learn_devices(&mut self, list: &DeviceList) {
        let Some(me) = self.me.as_ref().filter(|me| me.identity.user() == list.user) else { return };
        let was_told = me.record.devices.as_ref().is_some_and(|own| own.removed.contains(&me.identity.device()));
        let gone = list.removed.contains(&me.identity.device());
        let next = match &me.record.devices {
            Some(own) => own.with(list, &me.identity),
            None => Some(list.clone()),
        };
        if gone && !was_told {
            self.notice(Level::Alarm, "another device of yours has removed this one: it is taken out of your rooms", None);
        }
        next.into_iter().for_each(|next| self.keep_devices(next));
        self.list_devices(None);
    }

    /// Tells a room of this person's newest list, if it does not know it. Once on each connection.
    pub(super) fn tell_devices(&mut self, id: RoomId, now_ms: u64) {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get(&id)) else { return };
        let Some(list) = me.record.devices.as_ref().filter(|list| room.lacks(list)) else { return };
        let (counter, content) = (list.counter, Content::new(&Message::Devices(Box::new(list.clone()))));
        let letter = self.letter(Letter::Content(content), now_ms);
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let persist = room.tell(letter, counter);
        self.persist_all(persist);
    }

    /// Takes one of this person's devices out: of the list, and of every room that this device is in.
    pub(super) fn remove_device(&mut self, device: &str, now_ms: u64) {
        let Some(me) = &self.me else { return };
        let wanted = device.parse::<DeviceKey>().ok().filter(|device| *device != me.identity.device());
        let known = |device: &DeviceKey| {
            let listed = me.record.devices.as_ref().is_some_and(|list| list.devices.contains(device));
            listed || me.record.own_devices.iter().any(|own| own.device == *device)
        };
        let Some(device) = wanted.filter(known) else {
            return self.notice(Level::Warn, "that is no other device of yours", None);
        };
        self.list_devices(Some(device));
        self.tell_devices_everywhere(now_ms);
        let has = |room: &Room| room.everybody().iter().any(|who| who.device == device);
        let rooms: Vec<_> = self.rooms.iter().filter(|(_, room)| has(room)).map(|(id, _)| *id).collect();
        for room in rooms {
            self.want(room, Change { remove: vec![device], ..Change::default() }, now_ms);
        }
    }

    /// This person's devices, for people.
    pub(super) fn own_devices(&self) -> Vec<view::Device> {
        let Some(me) = &self.me else { return Vec::new() };
        let own = me.identity.device();
        let listed = me.record.devices.iter().flat_map(|list| list.devices.iter().copied());
        let mut devices: Vec<_> = me.record.own_devices.iter().map(|other| other.device).chain(listed).chain([own]).collect();
        devices.sort_unstable();
        devices.dedup();
        devices.into_iter().map(|device| view::Device { device: device.to_string(), this: device == own }).collect()
    }
}
