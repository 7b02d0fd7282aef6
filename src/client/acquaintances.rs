//! People beyond this device's rooms: cards, whom this person knows, and what others say to this device through its inbox.

use super::{
    Client, Output, people,
    records::{ACQUAINTANCES_KEY, Handed, Letter, RequestRecord, RoomInvitation, Who, encode},
    room::Room,
    view::{self, Event, Level},
};
use crate::{
    core::id::{DeviceKey, RoomId},
    seal::{body::tidy, card::Card, hpke::XWingPublic, identity::UserKey, invitation::Contact},
};

/// Invitations of strangers that wait at once; further ones are not looked at. Anybody can write to an inbox.
const REQUESTS_MAX: usize = 32;

impl Client {
    /// What this person gives to others; empty where the edge is not known.
    pub(super) fn card(&self) -> String {
        let Some(me) = self.me.as_ref().filter(|_| !self.origin.is_empty()) else { return String::new() };
        let others = me.record.own_devices.iter().map(|certificate| certificate.device);
        let devices = core::iter::once(me.identity.device()).chain(others).collect();
        Card { origin: self.origin.clone(), user: me.identity.user(), devices }.to_string()
    }

    /// The devices of a person who is named by a card, or by the key of somebody met in a room.
    fn devices_of(&mut self, who: &str) -> Option<(UserKey, Vec<Who>)> {
        let (user, mut devices) = if who.contains('#') {
            match who.parse::<Card>() {
                Ok(card) => (card.user, card.devices),
                Err(error) => {
                    self.notice(Level::Warn, &error.to_string(), None);
                    return None;
                }
            }
        } else {
            let Ok(key) = who.trim().parse::<DeviceKey>() else {
                self.notice(Level::Warn, "that is neither a card nor the key of a person", None);
                return None;
            };
            (UserKey(key.0), Vec::new())
        };
        let met = self.rooms.values().flat_map(Room::everybody).filter(|met| met.user == user);
        for met in met {
            if !devices.contains(&met.device) {
                devices.push(met.device);
            }
        }
        let me = self.me.as_ref().map(|me| me.identity.user());
        let problem = match () {
            () if me == Some(user) => Some("that is you"),
            () if devices.is_empty() => Some("that person was not met in any room of this device: ask for their card"),
            () => None,
        };
        if let Some(problem) = problem {
            self.notice(Level::Warn, problem, None);
            return None;
        }
        Some((user, devices.into_iter().map(|device| Who { device, user }).collect()))
    }

    /// Adds a person to a room, with all of their devices that are known.
    pub(super) fn invite(&mut self, id: RoomId, who: &str, now_ms: u64) {
        let Some((user, devices)) = self.devices_of(who) else { return };
        if self.rooms.get(&id).is_some_and(|room| room.is_direct_but_for(user)) {
            return self.notice(Level::Warn, "this is a room between two people: make another one for three", Some(id));
        }
        self.know(user);
        self.invite_devices(id, devices, now_ms);
    }

    /// Opens the room between this person and another one. Should both have made one at once there are two, and both open the
    /// one of the lower id.
    pub(super) fn direct(&mut self, who: &str, now_ms: u64) {
        let Some((user, mut devices)) = self.devices_of(who) else { return };
        self.know(user);
        let waiting =
            self.acquaintances.requests.iter().find(|request| request.by.user == user && request.invitation.direct.is_some());
        if let Some(room) = waiting.map(|request| request.invitation.room) {
            return self.accept(room);
        }
        let known = self.rooms.iter().find(|(_, room)| room.is_between(user)).map(|(id, _)| *id);
        let Some(id) = known.or_else(|| self.create_direct(user, now_ms)) else { return };
        let own = self.me.iter().flat_map(|me| &me.record.own_devices);
        devices.extend(own.map(|own| Who { device: own.device, user: own.user }));
        if self.rooms.get(&id).is_some_and(Room::is_in) {
            self.invite_devices(id, devices, now_ms);
        }
        self.tell_room(id);
    }

    /// From now on the person brings this device into rooms without its being asked.
    fn know(&mut self, user: UserKey) {
        if !self.acquaintances.known.contains(&user) {
            self.acquaintances.known.push(user);
            self.persist_acquaintances();
        }
    }

    /// Whether this person has to do with the other one: shares a room with them, or has written to them.
    fn is_known(&self, user: UserKey) -> bool {
        let met = || self.rooms.values().flat_map(Room::everybody).any(|met| met.user == user);
        self.me.as_ref().is_some_and(|me| me.identity.user() == user) || self.acquaintances.known.contains(&user) || met()
    }

    fn persist_acquaintances(&mut self) {
        self.acquaintances.format = 1;
        let value = encode(&self.acquaintances);
        self.persist(ACQUAINTANCES_KEY.to_owned(), Some(value));
    }

    /// Something that a device says which this one may not know.
    pub(super) fn on_contact(&mut self, contact: Contact, now_ms: u64) {
        let Contact { issuer, name, content, .. } = contact;
        let by = Who { device: issuer.device, user: issuer.user };
        if issuer.not_after_ms < now_ms {
            return;
        }
        // Another device of this person, whatever it says.
        self.learn_device(&issuer, now_ms);
        let Ok((handed, [])) = postcard::take_from_bytes::<Handed>(&content) else { return };
        match handed {
            Handed::Room(invitation) => self.on_invitation(by, &name, *invitation),
            Handed::Device => self.bring_in(by, now_ms),
        }
    }

    /// Another device of this person can be added from now on: rooms to which no link leads it is brought into.
    fn bring_in(&mut self, who: Who, now_ms: u64) {
        let own = self.me.iter().flat_map(|me| &me.record.own_devices);
        if !own.into_iter().any(|own| (own.device, own.user) == (who.device, who.user)) {
            return;
        }
        let rooms: Vec<_> = self.rooms.iter().filter(|(_, room)| room.is_in() && room.live_link().is_none()).collect();
        let rooms: Vec<_> = rooms.into_iter().map(|(id, _)| *id).collect();
        for room in rooms {
            self.invite_devices(room, vec![who], now_ms);
        }
    }

    fn on_invitation(&mut self, by: Who, name: &str, invitation: RoomInvitation) {
        let room = invitation.room;
        if invitation.seq == 0 || invitation.access_at < invitation.seq || self.rooms.get(&room).is_some_and(Room::is_in) {
            return;
        }
        if self.is_known(by.user) {
            // Even those one knows fill no list without end with rooms that are not there.
            let entering = self.rooms.values().filter(|room| room.is_on_its_way()).count();
            if entering >= REQUESTS_MAX {
                return;
            }
            self.forget_request(room);
            return self.enter_invited(by, invitation);
        }
        let full = self.acquaintances.requests.len() >= REQUESTS_MAX;
        if full || self.acquaintances.requests.iter().any(|request| request.invitation.room == room) {
            return;
        }
        self.acquaintances.requests.push(RequestRecord { by, name: tidy(name), invitation });
        self.persist_acquaintances();
        self.tell_requests();
    }

    /// What waits for an answer.
    pub(super) fn tell_requests(&mut self) {
        let events = self.acquaintances.requests.iter().map(|request| {
            let user = request.by.user;
            let words = user.words();
            let name = if request.name.is_empty() {
                words.iter().take(2).cloned().collect::<Vec<_>>().join("-")
            } else {
                request.name.clone()
            };
            let invitation = view::Invitation {
                room: request.invitation.room.to_string(),
                title: tidy(&request.invitation.title),
                direct: request.invitation.direct.is_some(),
                from: view::Author { user: user.to_string(), name },
                words,
            };
            Output::Event(Event::Invitation { invitation })
        });
        self.outputs.extend(events);
    }

    fn forget_request(&mut self, room: RoomId) -> Option<RequestRecord> {
        let at = self.acquaintances.requests.iter().position(|request| request.invitation.room == room)?;
        let request = self.acquaintances.requests.remove(at);
        self.persist_acquaintances();
        self.outputs.push_back(Output::Event(Event::InvitationRemoved { room: room.to_string() }));
        Some(request)
    }

    /// Goes into a room into which somebody unknown has invited this person.
    pub(super) fn accept(&mut self, room: RoomId) {
        let Some(request) = self.forget_request(room) else { return };
        self.know(request.by.user);
        self.enter_invited(request.by, request.invitation);
    }

    /// Forgets the invitation. Nobody is told: who invites sees a member who never comes.
    pub(super) fn decline(&mut self, room: RoomId) {
        self.forget_request(room);
    }

    /// Acts on an invitation that waits for an answer.
    pub(super) fn in_request(&mut self, room: &str, act: impl FnOnce(&mut Self, RoomId)) {
        let waits = |room: &RoomId| self.acquaintances.requests.iter().any(|request| request.invitation.room == *room);
        match room.parse::<RoomId>().ok().filter(waits) {
            Some(room) => act(self, room),
            None => self.notice(Level::Warn, "there is no such invitation", None),
        }
    }

    /// Tells the person's other devices of this one, which can be added from now on: rooms without a link they bring it into by
    /// themselves.
    pub(super) fn greet_own_devices(&mut self, now_ms: u64) {
        let Some(me) = &self.me else { return };
        let keys = me.record.own_devices.iter().filter_map(|certificate| XWingPublic::from_bytes(&certificate.inbox).ok());
        let content = encode(&Handed::Device);
        let letters: Vec<_> = keys.filter_map(|to| Contact::seal(&content, &to, &me.identity, &mut self.rng).ok()).collect();
        for (inbox, envelope) in letters {
            let letter = self.letter(Letter::Envelope(envelope), now_ms);
            people::post(self, inbox, letter);
        }
    }
}
