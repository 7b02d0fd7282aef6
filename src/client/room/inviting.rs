//! Bringing somebody into a room who is away, by a key package; and coming in when somebody else has done so.
//!
//! Who invites asks the server for a package of each of the person's devices, makes one commit that adds them, and tells each, through
//! its inbox, where in the log that commit is. What is still owed to whom is kept with the room and follows from the log: a crash
//! at any point asks again, or tells later.

use super::past::Past;
use super::place::{Place, Seat};
use super::{Room, What};
use crate::client::packages::Offer;
use crate::client::records::{
    FORMER_ACCESS_MAX, Handed, InviteRecord, InvitesRecord, KnownLink, Letter, OfferRecord, PastRecord, RoomInvitation,
    RoomRecord, Stage, WelcomeRecord, Who, encode, invites_key, past_key,
};
use crate::client::view::Level;
use crate::client::{Client, people};
use crate::core::close::Refusal;
use crate::core::frame::{ClientFrame, Item, Page};
use crate::core::handshake;
use crate::core::id::{Digest, RoomId, Seq};
use crate::group::{Change, JoinError, KeyPackage, Record, Role};
use crate::seal::hpke::XWingPublic;
use crate::seal::identity::UserKey;
use crate::seal::invitation::Contact;
use bytes::Bytes;
use std::collections::BTreeSet;

/// Devices that may be on their way into one room at once.
const INVITES_MAX: usize = 64;
/// The server would not say; ask again after this long.
const ASK_AGAIN_MS: u64 = 5_000;

/// Why somebody is not added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum NoOffer {
    #[error("there are no keys of theirs on this server: they have to come online once")]
    Nothing,
    #[error("the keys that the server has of their device are not theirs, or not good any more")]
    Bad,
}

impl Room {
    /// Where the log has a change behind `since` that brought the device in: (seq, record, who made it).
    fn joined_at(&self, who: Who, since: Seq) -> Option<(Seq, Digest, Who)> {
        let newer = self.shown.range(since.saturating_add(1)..).rev();
        let mut joins = newer.filter_map(|(seq, shown)| match &shown.what {
            What::Change(change, _) if change.joined.contains(&who) => Some((*seq, shown.digest, change.by)),
            _ => None,
        });
        joins.next()
    }

    /// Whether nobody would read what is written: of two people the other one is not there yet.
    pub(super) fn awaits_peer(&self, seat: &Seat) -> bool {
        let absent = |peer: UserKey| !seat.roster.values().any(|who| who.user == peer);
        self.record.direct.is_some_and(absent) && !self.record.leaving
    }

    /// Whether this device is in it.
    pub(in crate::client) fn is_in(&self) -> bool {
        self.place.seat().is_some()
    }

    /// Whether a member has added this device, and it has not come in yet.
    pub(in crate::client) fn is_on_its_way(&self) -> bool {
        self.record.stage == Stage::Added
    }

    /// Whether it knew another way in when it was invited.
    pub(super) fn was_on_another_way(&self) -> bool {
        self.lost.is_some() || self.record.link.is_some() && !self.record.former.is_empty()
    }

    /// Whether it is, or is to be, between this person and the other one.
    pub(in crate::client) fn is_between(&self, user: UserKey) -> bool {
        let stage = matches!(self.record.stage, Stage::Creating | Stage::Added | Stage::Joined) && !self.record.leaving;
        stage && self.record.direct == Some(user) && (self.peer() == Some(user))
    }

    /// Whether it is between two people of whom this is none.
    pub(in crate::client) fn is_direct_but_for(&self, user: UserKey) -> bool {
        self.peer().is_some_and(|peer| peer != user)
    }

    /// The other one of two people, if nobody else is in the room: its maker's word alone does not make it one.
    pub(super) fn peer(&self) -> Option<UserKey> {
        let mut users: BTreeSet<UserKey> = self.people().into_iter().collect();
        let peer = self.record.direct?;
        users.remove(&peer);
        (users.len() <= 1).then_some(peer)
    }

    pub(in crate::client) fn invites_due(&self, now_ms: u64) -> bool {
        self.ask_again_ms.is_some_and(|at_ms| now_ms >= at_ms)
    }

    pub(in crate::client) fn load_invites(&mut self, record: InvitesRecord) {
        self.invites = record.invites;
    }
}

impl Client {
    /// Devices are to be brought in; those that are in, or on their way, are not concerned.
    pub(in crate::client) fn invite_devices(&mut self, id: RoomId, devices: Vec<Who>, now_ms: u64) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let Some(seat) = room.place.seat() else {
            return self.notice(Level::Warn, "this device is not in the room yet", Some(id));
        };
        for who in devices {
            let there = seat.roster.values().any(|other| other.device == who.device)
                || room.invites.iter().any(|invite| invite.who.device == who.device);
            if !there && room.invites.len() < INVITES_MAX {
                room.invites.push(InviteRecord { who, offer: None });
            }
        }
        self.persist_invites(id);
        self.ask_for_packages(id);
        self.pump(id, now_ms);
    }

    fn persist_invites(&mut self, id: RoomId) {
        let Some(room) = self.rooms.get(&id) else { return };
        let record = InvitesRecord { format: 1, invites: room.invites.clone() };
        let value = (!record.invites.is_empty()).then(|| encode(&record));
        self.persist(invites_key(id), value);
    }

    /// Asks for the key packages that are missing, once on each connection.
    pub(in crate::client) fn ask_for_packages(&mut self, id: RoomId) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        room.ask_again_ms = None;
        let Some(seat) = room.place.seat().filter(|_| self.wire.is_attached() && room.up_to_date()) else { return };
        let suite = seat.group.suite();
        let missing = room.invites.iter().filter(|invite| invite.offer.is_none()).map(|invite| invite.who);
        let asked = |who: &Who| self.takes.values().any(|taken| *taken == (id, *who));
        let ask: Vec<_> = missing.filter(|who| !asked(who)).collect();
        for who in ask {
            let request = self.next_request();
            self.takes.insert(request, (id, who));
            self.send(&ClientFrame::TakeKeyPackage { request, device: who.device, suite });
        }
    }

    /// The server gives a key package, or has none.
    pub(in crate::client) fn on_key_package(&mut self, request: u32, result: Result<Option<Bytes>, Refusal>, now_ms: u64) {
        let Some((id, who)) = self.takes.remove(&request) else { return };
        match result {
            Err(_) => {
                let room = self.rooms.get_mut(&id);
                room.into_iter().for_each(|room| room.ask_again_ms = Some(now_ms.saturating_add(ASK_AGAIN_MS)));
            }
            Ok(bytes) => match self.read_offer(id, who, bytes.as_deref(), now_ms) {
                Ok((package, inbox)) => self.add(id, who, package, &inbox),
                Err(why) => self.give_up_invite(id, who, why),
            },
        }
        if !self.takes.values().any(|(room, _)| *room == id) {
            self.pump(id, now_ms);
            self.tell_room(id);
        }
    }

    /// What the server gave, if it is of the device that was asked for.
    fn read_offer(
        &mut self,
        id: RoomId,
        who: Who,
        bytes: Option<&[u8]>,
        now_ms: u64,
    ) -> Result<(KeyPackage, XWingPublic), NoOffer> {
        let seat = self.rooms.get(&id).and_then(|room| room.place.seat()).ok_or(NoOffer::Bad)?;
        let offer = Offer::decode(bytes.ok_or(NoOffer::Nothing)?).ok_or(NoOffer::Bad)?;
        let package = KeyPackage(offer.package.clone());
        let said = package.verify(seat.group.suite(), &mut self.rng).map_err(|_| NoOffer::Bad)?;
        let theirs = (said.device, said.user) == (who.device, who.user) && said.expires_ms > now_ms;
        let inbox = offer.inbox(&said.statement).filter(|_| theirs).ok_or(NoOffer::Bad)?;
        Ok((package, inbox))
    }

    fn add(&mut self, id: RoomId, who: Who, package: KeyPackage, inbox: &XWingPublic) {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get_mut(&id)) else { return };
        let since = room.timeline.head();
        let Some(invite) = room.invites.iter_mut().find(|invite| invite.who == who) else { return };
        invite.offer = Some(OfferRecord { package: package.clone(), inbox: inbox.to_bytes(), since });
        // Of two people neither is the other's guest.
        let equal = room.record.direct == Some(who.user) && room.role(me.identity.user()) == Some(Role::Owner);
        let roles = if equal { vec![(who.user, Some(Role::Owner))] } else { Vec::new() };
        if let Some(seat) = room.place.seat_mut() {
            seat.wants(Change { add: vec![package], roles, ..Change::default() });
        }
        self.persist_invites(id);
        self.persist_place(id);
    }

    /// A device cannot be added. That is told unless another one of the person's is, or may still be.
    fn give_up_invite(&mut self, id: RoomId, who: Who, why: NoOffer) {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get_mut(&id)) else { return };
        room.invites.retain(|invite| invite.who != who);
        let others = room.invites.iter().map(|invite| invite.who);
        let present = room.place.seat().into_iter().flat_map(|seat| seat.roster.values().copied());
        let reached = who.user == me.identity.user() || others.chain(present).any(|other| other.user == who.user);
        let name = room.name_of(who);
        self.persist_invites(id);
        if !reached {
            self.notice(Level::Warn, &format!("{name} was not added: {why}"), Some(id));
        }
    }

    /// A commit was not made, or not taken: what it was to add is given up. Nobody hears of a change that is not there.
    pub(in crate::client) fn give_up_offers(&mut self, id: RoomId) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let before = room.invites.len();
        room.invites.retain(|invite| invite.offer.is_none());
        if room.invites.len() != before {
            self.persist_invites(id);
        }
    }

    /// What the log says of those who are being invited: who was added is told where.
    pub(in crate::client) fn settle_invites(&mut self, id: RoomId, now_ms: u64) {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get_mut(&id)) else { return };
        let Some(seat) = room.place.seat().filter(|_| !room.invites.is_empty()) else { return };
        let own = me.identity.device();
        let (mut waiting, mut owed) = (Vec::new(), Vec::new());
        for invite in room.invites.clone() {
            let is_in = seat.roster.values().any(|who| who.device == invite.who.device);
            let Some(offer) = &invite.offer else {
                waiting.extend((!is_in).then_some(invite));
                continue;
            };
            match room.joined_at(invite.who, offer.since) {
                Some((seq, record, by)) if is_in && by.device == own => owed.push((invite.who, offer.inbox.clone(), seq, record)),
                // Somebody else was quicker, and tells it; or it has gone again.
                Some(_) => {}
                None if is_in => {}
                None if seat.adds(&offer.package) => waiting.push(invite),
                // The wish was lost with this device's place: nobody gets that package any more.
                None => waiting.push(InviteRecord { offer: None, ..invite }),
            }
        }
        if waiting == room.invites {
            return;
        }
        room.invites = waiting;
        for (who, inbox, seq, record) in owed {
            self.tell_added(id, who, &inbox, (seq, record), now_ms);
        }
        self.persist_invites(id);
    }

    /// Tells a device where it was added.
    fn tell_added(&mut self, id: RoomId, who: Who, inbox: &[u8], (seq, record): (Seq, Digest), now_ms: u64) {
        let (Some(me), Some(room)) = (&self.me, self.rooms.get(&id)) else { return };
        let Ok(to) = XWingPublic::from_bytes(inbox) else { return };
        let link = room.live_link().map(|link| KnownLink { seed: link.seed, host: link.host });
        let RoomRecord { access, access_at, direct, .. } = room.record.clone();
        let access_at = if access_at == u64::MAX { seq } else { access_at.max(seq) };
        let title = room.timeline.title().to_owned();
        let without_past =
            RoomInvitation { room: id, title, direct, access, access_at, seq, record, link, base: 0, changes: Vec::new() };
        let own = who.user == me.identity.user();
        let whole = if own {
            let (base, changes) = room.handed_over();
            RoomInvitation { base, changes, ..without_past.clone() }
        } else {
            without_past.clone()
        };
        let mut seal = |invitation| Contact::seal(&encode(&Handed::Room(Box::new(invitation))), &to, &me.identity, &mut self.rng);
        // Where the past does not fit, the way in does.
        if let Ok((inbox, envelope)) = seal(whole).or_else(|_| seal(without_past)) {
            let letter = self.letter(Letter::Envelope(envelope), now_ms);
            people::post(self, inbox, letter);
        }
    }

    /// Somebody has added this device to a room, and it goes in.
    pub(in crate::client) fn enter_invited(&mut self, by: Who, invitation: RoomInvitation) {
        let Some(me) = &self.me else { return };
        let user = me.identity.user();
        let RoomInvitation { room: id, direct, access, access_at, seq, record, link, base, changes, .. } = invitation;
        let own = by.user == user;
        // Shared with whom, as this device sees it; what the sender says of third people is not asked for.
        let direct = direct.and_then(|peer| match (own, peer == user) {
            (true, _) => Some(peer),
            (false, true) => Some(by.user),
            (false, false) => None,
        });
        let past = own && !changes.is_empty() && base < seq;
        let welcome = Some(WelcomeRecord { seq, record, by });
        let known = self.rooms.get_mut(&id);
        if let Some(room) = known {
            let outside = matches!(room.place, Place::Out) && !matches!(room.record.stage, Stage::Creating | Stage::Deleting);
            if !outside || room.timeline.head() >= seq {
                return;
            }
            // Whoever is on a way in of its own keeps it: an invitation may lead nowhere.
            if own || room.record.link.is_none() {
                room.set_link(link);
            }
            room.shut_out = None;
            let mut before = room.record.clone();
            before.former.insert(0, (before.access, before.access_at));
            before.former.truncate(FORMER_ACCESS_MAX);
            let stage = Stage::Added;
            room.record = RoomRecord { access, access_at, stage, leaving: false, renewed_ms: 0, direct, welcome, ..before };
            room.wire = super::RoomWire { asked: room.wire.asked, ..super::RoomWire::default() };
            self.persist_room(id);
        } else {
            let record = RoomRecord {
                format: 5,
                origin: self.origin.clone(),
                access,
                access_at,
                former: Vec::new(),
                link,
                stage: Stage::Added,
                log: None,
                base: if past { base } else { 0 },
                leaving: false,
                // What is in a key package is as old as that: the device renews its keys as soon as it is in.
                renewed_ms: 0,
                direct,
                welcome,
                days: None,
            };
            self.add_room(id, record, Place::Out);
            if let Some(room) = self.rooms.get_mut(&id).filter(|_| past) {
                let past = PastRecord { format: 2, until: seq, changes, climb: None };
                let value = encode(&past);
                room.past = Some(Past::new(id, past));
                self.persist(past_key(id), Some(value));
            }
        }
        self.begin(id);
        self.tell_room(id);
    }

    /// Asks for the change that added this device.
    pub(super) fn ask_for_welcome(&mut self, id: RoomId) {
        let welcome = self.rooms.get(&id).and_then(|room| room.record.welcome);
        welcome.into_iter().for_each(|welcome| self.ask_for_change(id, welcome.seq.saturating_add(1), true));
    }

    /// What the server has in the place of the change that added this device.
    pub(super) fn on_welcome(&mut self, id: RoomId, page: &Page, now_ms: u64) {
        let Some(WelcomeRecord { seq, record, by }) = self.rooms.get(&id).and_then(|room| room.record.welcome) else { return };
        let named = |item: &&Item| page.first == seq && handshake::entry(&item.envelope) == record;
        let added = page.items.first().filter(named).and_then(|item| Record::decode(&item.envelope).ok());
        let opened = added.ok_or(JoinError::Group).and_then(|added| self.shelves.open_welcome(id, &added, by, &mut self.rng));
        let Some(room) = self.rooms.get_mut(&id) else { return };
        match opened {
            Ok(joining) => {
                room.place = Place::Joining(Box::new(joining));
                room.record.welcome = None;
                // Before the key package is forgotten.
                self.persist_place(id);
                self.used_a_package();
                self.read_from(id, seq);
            }
            Err(why) => {
                if why == JoinError::NotForUs {
                    self.shelves.replace_all(now_ms);
                    self.look_at_packages();
                }
                self.missed(id);
            }
        }
    }

    /// The change that added this device does not let it in, or is not kept any more: a link may, or a member whom it had asked before.
    pub(super) fn missed(&mut self, id: RoomId) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        room.record.welcome = None;
        if !room.record.former.is_empty() {
            (room.record.access, room.record.access_at) = room.record.former.remove(0);
        }
        room.wire = super::RoomWire { asked: room.wire.asked, ..super::RoomWire::default() };
        let goes_on = room.record.link.is_some() || room.lost.is_some();
        self.send(&ClientFrame::Leave { room: id });
        self.set_stage(id, if goes_on { Stage::Invited } else { Stage::Missed });
        if goes_on {
            self.begin(id);
        } else {
            let text = "this device was invited, and no longer has the key that lets it in: ask to be removed and invited again";
            self.notice(Level::Warn, text, Some(id));
        }
        self.tell_room(id);
    }
}
