//! Changes of a room's group: those that the log brings, and those that this device wants.

use super::Goodbye;
use super::place::{Place, Taken};
use crate::client::records::{ChangeRecord, Entry, FORMER_ACCESS_MAX, KnownLink, Letter, Stage, Who};
use crate::client::view::{History as ViewHistory, Level, Role as ViewRole};
use crate::client::{Client, room::making::LINK_LIFE_MS};
use crate::core::frame::Item;
use crate::core::handshake;
use crate::core::id::{DeviceKey, RoomId};
use crate::group::{Change, DAYS_MAX, History, LinkKeys, LiveLink, Role};
use crate::seal::Random as _;
use crate::seal::body::{Complaint, Message, SharedLink};
use crate::seal::identity::UserKey;
use bytes::Bytes;

/// How much longer each next member in the tree waits before it takes out who goes.
const GOODBYE_WAIT_MS: u64 = 2_000;

/// Whoever is overtaken so often on the way in waits a little.
const OVERTAKEN_MAX: u32 = 16;

impl Client {
    /// Takes a change of the group from the log. Returns what it turned out to be.
    ///
    /// # Errors
    /// This device cannot follow; and what it has to complain about, if anything.
    pub(in crate::client) fn take_change(&mut self, id: RoomId, item: &Item, now_ms: u64) -> Result<Entry, Option<Complaint>> {
        let Some(room) = self.rooms.get_mut(&id) else { return Err(None) };
        let at = (room.timeline.head().saturating_add(1), handshake::entry(&item.envelope));
        if let Some(past) = room.past.as_mut().filter(|past| past.covers(at.0)) {
            if let Some(change) = past.change(&item.envelope) {
                return Ok(Entry::Change(change));
            }
            // Of a time that this device knows nothing of; in a reborn log it may also be new.
            if !room.reborn {
                return Ok(Entry::Known);
            }
        }
        let Some(room) = self.rooms.get_mut(&id) else { return Err(None) };
        let (title, newest) = (room.timeline.title().to_owned(), room.timeline.handshake());
        match room.place.take(at, &item.envelope, (&title, newest), room.reborn, &mut self.rng) {
            Taken::Applied(change) => {
                self.end_gap(id, change.epoch);
                // Before the log's record: one that is missing is found in the place. One that takes this device out is read again after a crash,
                // by the place that it had: the one that it has now opens nothing, and is not kept.
                if self.rooms.get(&id).is_some_and(|room| room.place.seat().is_some()) {
                    self.persist_place(id);
                }
                self.is_back(id, now_ms);
                self.follow(id, &change, now_ms);
                self.posting_follows(id, &change, now_ms);
                Ok(Entry::Change(change))
            }
            Taken::Nothing(entry) => {
                // A crash came between keeping the place and what follows from it.
                if let Entry::Change(change) = &entry {
                    self.follow(id, change, now_ms);
                }
                Ok(entry)
            }
            Taken::Invalid(why) => {
                self.notice(Level::Warn, &format!("a change of the group is skipped, by every member alike: {why}"), Some(id));
                self.reopen(id);
                Ok(if self.takes_key(id, at.0, &item.envelope) { Entry::Usurped } else { Entry::Invalid })
            }
            Taken::Lost { complains } => Err(complains.then_some(Complaint { seq: at.0, record: at.1 })),
        }
    }

    /// The group is another one: what follows from it for this device.
    fn follow(&mut self, id: RoomId, change: &ChangeRecord, now_ms: u64) {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get_mut(&id)) else { return };
        let (device, user) = (me.identity.device(), me.identity.user());
        room.leaves.clear();
        if change.took_out(device) {
            room.set_link(None);
            return self.set_stage(id, Stage::Removed);
        }
        if change.by.device == device {
            // Its path gave this device's leaf new keys.
            room.record.renewed_ms = now_ms;
            self.persist_room(id);
        }
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let Some(seat) = room.place.seat_mut() else { return };
        let access = seat.group.epoch().secrets().access_seed(id);
        if change.took_anybody_out() && access != room.record.access {
            // Every link is gone, and so is what opened the room until now.
            let former = core::mem::replace(&mut room.record.access, access);
            room.record.former.insert(0, (former, room.record.access_at));
            room.record.former.truncate(FORMER_ACCESS_MAX);
            room.record.access_at = room.timeline.head().saturating_add(1);
            room.set_link(None);
            self.persist_room(id);
            // One of those who may makes the next link: the first in the tree.
            let room = self.rooms.get(&id);
            let first =
                room.and_then(|room| room.place.seat()?.roster.values().find(|who| room.role(who.user).is_some()).copied());
            if first == Some(Who { device, user }) {
                self.want_link(id, now_ms);
            }
        }
    }

    /// The newest change is rubbish, which no link opens: the first in the tree makes a commit, so that links lead in again.
    fn reopen(&mut self, id: RoomId) {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get_mut(&id)) else { return };
        let Some(seat) = room.place.seat_mut() else { return };
        let first = seat.roster.values().next().is_some_and(|who| who.device == me.identity.device());
        if first && !seat.policy.links().is_empty() && seat.wanted.is_none() {
            seat.wants(Change::default());
            self.persist_place(id);
        }
    }

    /// Makes a link in the place of the one that this device knows.
    fn want_link(&mut self, id: RoomId, now_ms: u64) {
        let seed: [u8; 32] = self.rng.bytes();
        let (Some(me), Some(room)) = (&self.me, self.rooms.get_mut(&id)) else { return };
        let host = me.identity.user();
        let Some(seat) = room.place.seat_mut() else { return };
        let revoke = seat.policy.links().iter().map(LiveLink::id).collect();
        // One that is only wanted yet is nobody's: more of them than there may be would end everything else that is wanted.
        seat.wanted.iter_mut().for_each(|wanted| wanted.list.clear());
        let list = vec![LinkKeys::new(&seed).listed(false, now_ms.saturating_add(LINK_LIFE_MS))];
        seat.wants(Change { list, revoke, ..Change::default() });
        room.set_link(Some(KnownLink { seed, host }));
        self.persist_place(id);
        self.persist_room(id);
    }

    /// Links whose time is over are ended by whoever may and is there: members have no common clock.
    pub(in crate::client) fn end_links(&mut self, id: RoomId, now_ms: u64) {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get_mut(&id)) else { return };
        if room.role(me.identity.user()).is_none() {
            return;
        }
        let Some(seat) = room.place.seat_mut().filter(|seat| seat.wanted.is_none() && !seat.group.is_waiting()) else { return };
        let over = seat.policy.links().iter().filter(|link| link.expires_ms <= now_ms);
        let revoke: Vec<_> = over.map(LiveLink::id).collect();
        if !revoke.is_empty() {
            seat.wants(Change { revoke, ..Change::default() });
            self.persist_place(id);
        }
    }

    /// Something that this device wants of the group: at once if it may, or else when what is under way was ordered.
    pub(in crate::client) fn want(&mut self, id: RoomId, change: Change, now_ms: u64) {
        let Some(seat) = self.rooms.get_mut(&id).and_then(|room| room.place.seat_mut()) else {
            return self.notice(Level::Warn, "this device is not in the room yet", Some(id));
        };
        seat.wants(change);
        self.persist_place(id);
        self.pump(id, now_ms);
        self.tell_room(id);
    }

    /// Makes a commit of what this device wants, if nothing of its own is under way and it has read what there is.
    pub(in crate::client) fn commit_wanted(&mut self, id: RoomId, now_ms: u64) {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get_mut(&id)) else { return };
        let up_to_date = room.up_to_date() && !room.reborn;
        let read = room.record.stage == Stage::Creating || up_to_date;
        let after = room.timeline.handshake();
        // A crash came between the commit and its letter: what was acked on an earlier connection would be read by now.
        let lost = up_to_date && room.handshakes.is_empty() && !room.wire.acked_commit;
        if let Some(seat) = room.place.seat_mut().filter(|seat| lost && seat.group.is_waiting())
            && let Ok(Some(change)) = seat.group.withdraw()
        {
            seat.wants(change);
        }
        let Some(seat) = room.place.seat_mut().filter(|seat| read && !seat.group.is_waiting()) else { return };
        if !room.handshakes.is_empty() || after < room.gate {
            return;
        }
        let Some(change) = seat.wanted.take() else { return };
        match seat.group.commit(change, now_ms, &me.identity, &mut self.rng) {
            Ok(mut record) => {
                record.after = after;
                let letter = self.letter(Letter::Envelope(record.encode()), now_ms);
                let persist = self.rooms.get_mut(&id).map(|room| room.handshakes.push(letter, false)).unwrap_or_default();
                self.persist_place(id);
                self.persist_all(persist);
            }
            Err(error) => {
                self.persist_place(id);
                self.give_up_offers(id);
                self.notice(Level::Warn, &format!("the room was not changed: {error}"), Some(id));
            }
        }
    }

    /// This device's commit was not taken: another one was ordered before. What it was for is made anew from what the log has.
    pub(in crate::client) fn on_overtaken(&mut self, id: RoomId, now_ms: u64) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let persist = room.handshakes.clear_unsealed();
        match &mut room.place {
            Place::Joining(_) => {
                room.place = Place::Out;
                room.wire.overtaken += 1;
                let often = room.wire.overtaken.is_multiple_of(OVERTAKEN_MAX);
                self.persist_all(persist);
                self.persist_place(id);
                if often {
                    self.stay_outside(id, "many are coming in at once; asking again", now_ms);
                } else {
                    self.knock(id);
                }
            }
            Place::In(seat) => {
                if let Ok(Some(change)) = seat.group.withdraw() {
                    seat.wants(change);
                }
                self.persist_all(persist);
                self.persist_place(id);
            }
            Place::Out => self.persist_all(persist),
        }
    }

    /// This device's commit was refused for good.
    pub(in crate::client) fn on_commit_failed(&mut self, id: RoomId, why: &str, now_ms: u64) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let failed: Vec<_> = room.handshakes.iter().filter(|out| out.failed.is_some()).map(|out| out.message).collect();
        let persist: Vec<_> = failed.into_iter().filter_map(|message| Some(room.handshakes.take_failed(message)?.1)).collect();
        match &mut room.place {
            Place::Joining(_) => {
                room.place = Place::Out;
                room.shut_out = Some((format!("the server did not let this device in: {why}"), now_ms.saturating_add(5_000)));
            }
            Place::In(seat) => drop(seat.group.withdraw()),
            Place::Out => {}
        }
        self.persist_all(persist);
        self.persist_place(id);
        self.give_up_offers(id);
        self.notice(Level::Warn, &format!("the room was not changed: {why}"), Some(id));
        self.tell_room(id);
    }

    /// A link that this device made leads in since this change: others are told, in sealed traffic.
    pub(in crate::client) fn tell_link(&mut self, id: RoomId, change: &ChangeRecord, now_ms: u64) {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get(&id)) else { return };
        let own = change.by.device == me.identity.device();
        let Some(known) = room.record.link.filter(|known| own && known.host == me.identity.user()) else { return };
        if room.live_link().is_none() || room.told == room.link {
            return;
        }
        let alone = room.place.seat().is_some_and(|seat| seat.roster.len() == 1);
        let link = room.link;
        self.rooms.get_mut(&id).into_iter().for_each(|room| room.told = link);
        if !alone {
            self.post(id, &Message::Link(SharedLink { seed: known.seed }), now_ms);
        }
        self.hand_to_own_devices(id, now_ms);
    }

    /// A member says which link leads in.
    pub(in crate::client) fn learn_link(&mut self, id: RoomId, host: UserKey, link: SharedLink) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        if room.live_link().is_none() {
            room.set_link(Some(KnownLink { seed: link.seed, host }));
            self.persist_room(id);
        }
    }

    pub(in crate::client) fn make_link(&mut self, id: RoomId, now_ms: u64) {
        self.want_link(id, now_ms);
        self.want(id, Change::default(), now_ms);
    }

    pub(in crate::client) fn remove_person(&mut self, id: RoomId, user: &str, now_ms: u64) {
        let Some(user) = self.person(id, user) else { return };
        let Some(seat) = self.rooms.get(&id).and_then(|room| room.place.seat()) else { return };
        let remove: Vec<_> = seat.roster.values().filter(|who| who.user == user).map(|who| who.device).collect();
        if self.me.as_ref().is_some_and(|me| me.identity.user() == user) {
            return self.notice(Level::Warn, "nobody removes themselves: leave the room instead", Some(id));
        }
        self.want(id, Change { remove, ..Change::default() }, now_ms);
    }

    pub(in crate::client) fn set_role(&mut self, id: RoomId, user: &str, role: ViewRole, now_ms: u64) {
        let Some(user) = self.person(id, user) else { return };
        let role = match role {
            ViewRole::Member => None,
            ViewRole::Moderator => Some(Role::Moderator),
            ViewRole::Owner => Some(Role::Owner),
        };
        self.want(id, Change { roles: vec![(user, role)], ..Change::default() }, now_ms);
    }

    /// Says what newcomers read of the time before they came in.
    pub(in crate::client) fn set_history(&mut self, id: RoomId, history: ViewHistory, now_ms: u64) {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get(&id)) else { return };
        let history = match history {
            ViewHistory::FromJoin => History::FromJoin,
            ViewHistory::Everything => History::Everything,
            ViewHistory::Days(days @ 1..=DAYS_MAX) => History::Days(days),
            ViewHistory::Days(_) => {
                return self.notice(Level::Warn, &format!("newcomers read 1 to {DAYS_MAX} days, or everything"), Some(id));
            }
        };
        if room.role(me.identity.user()) != Some(Role::Owner) {
            return self.notice(Level::Warn, "only an owner says what newcomers read", Some(id));
        }
        if room.place.seat().is_some_and(|seat| seat.policy.history() == history) {
            return self.notice(Level::Info, "that is what newcomers read already", Some(id));
        }
        self.want(id, Change { history: Some(history), ..Change::default() }, now_ms);
    }

    /// This device goes: another member has to take it out, and until then it says so in each epoch.
    pub(in crate::client) fn leave(&mut self, id: RoomId, now_ms: u64) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let others = room.place.seat().is_some_and(|seat| seat.roster.len() > 1);
        if room.record.stage != Stage::Joined || !others {
            return self.forget(id);
        }
        room.record.leaving = true;
        self.persist_room(id);
        self.say_that_it_goes(id, now_ms);
        self.tell_room(id);
    }

    /// Says in this epoch that this device goes.
    pub(in crate::client) fn say_that_it_goes(&mut self, id: RoomId, now_ms: u64) {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get_mut(&id)) else { return };
        let Some(seat) = room.place.seat_mut().filter(|_| room.record.leaving) else { return };
        let epoch = seat.group.epoch().number;
        if room.wire.said_goodbye == Some(epoch) || room.timeline.handshake() == 0 {
            return;
        }
        // With a commit under way it is said once that was ordered.
        let Ok(proposal) = seat.group.leave(&me.identity, &mut self.rng) else { return };
        room.wire.said_goodbye = Some(epoch);
        self.persist_place(id);
        self.post(id, &Message::Leave(proposal), now_ms);
    }

    /// A member goes. Everybody who stays could take it out: the first in the tree does at once, the others if it does not.
    pub(in crate::client) fn on_goodbye(&mut self, id: RoomId, device: DeviceKey, proposal: Bytes, now_ms: u64) {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get_mut(&id)) else { return };
        let Some(seat) = room.place.seat() else { return };
        let staying = seat
            .roster
            .values()
            .filter(|who| who.device != device && !room.leaves.iter().any(|leave| leave.device == who.device));
        let Some(rank) = staying.map(|who| who.device).position(|other| other == me.identity.device()) else { return };
        let wait_ms = GOODBYE_WAIT_MS.saturating_mul(u64::try_from(rank).unwrap_or(u64::MAX));
        room.leaves.retain(|leave| leave.device != device);
        room.leaves.push(Goodbye { device, proposal, at_ms: now_ms.saturating_add(wait_ms) });
        self.take_out(id, now_ms);
    }

    /// Takes out whose goodbye is due.
    pub(in crate::client) fn take_out(&mut self, id: RoomId, now_ms: u64) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        if room.record.leaving || !room.leaves.iter().any(|leave| leave.at_ms <= now_ms) {
            return;
        }
        let leaves: Vec<_> = room.leaves.extract_if(.., |leave| leave.at_ms <= now_ms).map(|leave| leave.proposal).collect();
        let Some(seat) = room.place.seat_mut() else { return };
        seat.wants(Change { leaves, ..Change::default() });
        self.persist_place(id);
        self.pump(id, now_ms);
    }

    /// A person in the room, by their key.
    fn person(&mut self, id: RoomId, user: &str) -> Option<UserKey> {
        let wanted = user.parse::<DeviceKey>().ok().map(|key| UserKey(key.0));
        let seat = self.rooms.get(&id).and_then(|room| room.place.seat());
        let found = wanted.filter(|user| seat.is_some_and(|seat| seat.roster.values().any(|who| who.user == *user)));
        if found.is_none() {
            self.notice(Level::Warn, "there is no such person in the room", Some(id));
        }
        found
    }
}
