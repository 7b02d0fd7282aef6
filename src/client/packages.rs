//! This device's key packages: with one of them others add it to a room while it is away. The server hands each out once; this
//! device sees to it that there are some, and keeps what opens the welcomes.
//!
//! For groups of each suite there is a shelf of them, looked after by itself. They are made when the server says that few are left, and all anew
//! every few weeks, so that none is ever given out that is about to expire. Nothing is published before what opens it is kept. What the server handed out nobody tells; so the private halves
//! stay until they are used or long expired, and only so many are made.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Client, ClientRandom,
    records::{PACKAGES_KEY, PackagesRecord, ShelfRecord, Who, encode},
};
use crate::{
    core::{
        chain,
        close::Refusal,
        frame::{self, ClientFrame},
        id::{RoomId, UnixMillis},
    },
    group::{Entrance, Group, JoinError, Joining, KeyPackages, Record, SnapshotError, Suite},
    seal::{
        hpke::XWingPublic,
        identity::{Identity, Statement},
    },
};

/// As many are with the server after this device has looked, the last resort not counted.
const FULL: u32 = 12;
/// With fewer than so many, more are made.
const FEW: u32 = 6;
/// So many private halves of a suite are kept at most: whoever takes them all for nothing makes others use the last resort, and this
/// device no more work.
const KEPT_MAX: usize = 128;
const DAY_MS: u64 = 24 * 3600 * 1000;
/// How long one may be used.
const LIFE_MS: u64 = 30 * DAY_MS;
/// All are made anew after so long.
const RENEW_MS: u64 = 20 * DAY_MS;
/// An expired one may be in a welcome that is on its way, or that waits for this device to come back.
const GRACE_MS: u64 = 30 * DAY_MS;
/// How often a device that stays connected looks.
const LOOK_EVERY_MS: u64 = 6 * 3600 * 1000;
/// After a refusal.
const LOOK_AGAIN_MS: u64 = 60_000;

/// A key package as it is published: with the key to which the invitation is sealed. The statement in the package's leaf says which
/// key that is. postcard, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Offer {
    /// Format: 1.
    format: u8,
    /// The device's X-Wing public key.
    inbox: Vec<u8>,
    /// An MLSMessage with the key package.
    pub(super) package: Bytes,
}

impl Offer {
    fn encode(identity: &Identity, package: Bytes) -> Bytes {
        encode(&Self { format: 1, inbox: identity.inbox_public().to_bytes(), package }).into()
    }

    /// Reads one; it is not verified.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (offer, rest): (Self, _) = postcard::take_from_bytes(bytes).ok()?;
        (offer.format == 1 && rest.is_empty()).then_some(offer)
    }

    /// The key to which things are sealed for the device, if it is the one of which its person says so.
    pub(super) fn inbox(&self, statement: &Statement) -> Option<XWingPublic> {
        let stated = chain::digest(&self.inbox) == statement.inbox;
        XWingPublic::from_bytes(&self.inbox).ok().filter(|_| stated)
    }
}

/// The key packages of this device.
#[derive(Debug)]
pub(super) struct Shelves([Shelf; 2]);

impl Default for Shelves {
    fn default() -> Self {
        Self(Suite::ALL.map(Shelf::new))
    }
}

impl Shelves {
    /// As kept.
    pub(super) fn load(record: PackagesRecord) -> Result<Self, SnapshotError> {
        let mut shelves = Self::default();
        for kept in record.shelves {
            let ShelfRecord { suite, keys, made_ms, resort, resort_taken } = kept;
            let loaded = Shelf { keys: KeyPackages::restore(&keys)?, made_ms, resort, resort_taken, ..Shelf::new(suite) };
            if let Some(shelf) = shelves.0.iter_mut().find(|shelf| shelf.suite == suite) {
                *shelf = loaded;
            }
        }
        Ok(shelves)
    }

    fn record(&self) -> PackagesRecord {
        PackagesRecord { format: 2, shelves: self.0.iter().map(Shelf::record).collect() }
    }

    /// Nothing that was asked is answered any more.
    pub(super) fn disconnected(&mut self) {
        self.0.iter_mut().for_each(|shelf| (shelf.asked, shelf.look_ms) = (None, None));
    }

    /// Whether the server has some of each.
    pub(super) fn are_out(&self) -> bool {
        self.0.iter().all(|shelf| shelf.resort_taken)
    }

    /// When to look the next time.
    pub(super) fn look_at(&self) -> Option<u64> {
        self.0.iter().filter_map(|shelf| shelf.look_ms).min()
    }

    /// A welcome does not open: this may be an older copy of a storage that has published others since, so all of them are to be
    /// replaced. Once a day: the welcome may also be somebody's idea of a joke.
    pub(super) fn replace_all(&mut self, now_ms: u64) {
        let lately = |shelf: &Shelf| now_ms < shelf.made_ms.saturating_add(DAY_MS);
        self.0.iter_mut().filter(|shelf| !lately(shelf)).for_each(|shelf| shelf.made_ms = 0);
    }

    /// Comes into a room by a record with which `by` adds this device. The key package is used up.
    pub(super) fn open_welcome(
        &mut self,
        room: RoomId,
        record: &Record,
        by: Who,
        rng: &mut ClientRandom,
    ) -> Result<Joining, JoinError> {
        for shelf in &mut self.0 {
            match shelf.open_welcome(room, record, by, rng) {
                Err(JoinError::NotForUs) => {}
                opened => return opened,
            }
        }
        Err(JoinError::NotForUs)
    }
}

/// Those for groups of one suite.
#[derive(Debug)]
struct Shelf {
    suite: Suite,
    /// Their private halves.
    keys: KeyPackages,
    made_ms: UnixMillis,
    resort: Option<frame::KeyPackage>,
    resort_taken: bool,
    /// The question under way, and whether it brought packages.
    asked: Option<(u32, bool)>,
    /// When to look the next time, while connected.
    look_ms: Option<u64>,
}

impl Shelf {
    fn new(suite: Suite) -> Self {
        Self { suite, keys: KeyPackages::default(), made_ms: 0, resort: None, resort_taken: false, asked: None, look_ms: None }
    }

    fn record(&self) -> ShelfRecord {
        let Self { suite, made_ms, resort_taken, .. } = *self;
        ShelfRecord { suite, keys: self.keys.snapshot(), made_ms, resort: self.resort.clone(), resort_taken }
    }

    fn open_welcome(&mut self, room: RoomId, record: &Record, by: Who, rng: &mut ClientRandom) -> Result<Joining, JoinError> {
        let mut keys = self.keys.clone();
        let joining = Group::welcomed(room, record, &mut keys, rng)?;
        let members = joining.group().members();
        let is_theirs = members.iter().any(|member| (member.device, member.user) == (by.device, by.user));
        if joining.entrance() != (Entrance::Added { by: by.device }) || !is_theirs {
            return Err(JoinError::Group);
        }
        if keys.count() == self.keys.count() {
            // The last resort stays, for who else was given it; from now on others get another one.
            self.resort = None;
        }
        self.keys = keys;
        Ok(joining)
    }

    /// What is missing when the server has `left`: packages to publish, and whether they replace the others.
    fn restock(
        &mut self,
        left: u32,
        identity: &Identity,
        now_ms: u64,
        rng: &mut ClientRandom,
    ) -> Result<Option<(Vec<frame::KeyPackage>, bool)>, SnapshotError> {
        let kept = self.keys.forget_expired(now_ms.saturating_sub(GRACE_MS));
        // What is there and nobody here remembers, nobody here can open.
        let replace = self.made_ms == 0 || now_ms >= self.made_ms.saturating_add(RENEW_MS);
        let stays = if replace { 0 } else { left };
        let missing = if stays < FEW { FULL - stays.min(FULL) } else { 0 };
        let room = u32::try_from(KEPT_MAX.saturating_sub(kept + 1)).unwrap_or(0);
        if replace {
            self.resort = None;
        }
        if missing.min(room) == 0 && self.resort.is_some() && self.resort_taken {
            return Ok(None);
        }
        let (suite, expires_ms) = (self.suite, now_ms.saturating_add(LIFE_MS));
        let mut make = |keys: &mut KeyPackages, last_resort| {
            let package = keys.make(identity, suite, expires_ms, last_resort, rng)?;
            Ok::<_, SnapshotError>(frame::KeyPackage { expires_ms, last_resort, bytes: Offer::encode(identity, package.0) })
        };
        let mut packages = Vec::new();
        for _ in 0..missing.min(room) {
            packages.push(make(&mut self.keys, false)?);
        }
        let resort = match self.resort.take() {
            Some(resort) => resort,
            None => make(&mut self.keys, true)?,
        };
        packages.push(resort.clone());
        (self.resort, self.resort_taken) = (Some(resort), false);
        if replace {
            self.made_ms = now_ms;
        }
        Ok(Some((packages, replace)))
    }
}

impl Client {
    /// Asks the server how many key packages of this device it has left, where that is not asked yet.
    pub(super) fn look_at_packages(&mut self) {
        self.look_where(|shelf| shelf.asked.is_none());
    }

    /// It is time to look, if it is.
    pub(super) fn packages_tick(&mut self, now_ms: u64) {
        self.look_where(|shelf| shelf.look_ms.is_some_and(|at_ms| now_ms >= at_ms));
    }

    fn look_where(&mut self, is_due: impl Fn(&Shelf) -> bool) {
        let Self { shelves, requests, .. } = self;
        let mut asks = Vec::new();
        for shelf in shelves.0.iter_mut().filter(|shelf| is_due(shelf)) {
            *requests = requests.wrapping_add(1);
            (shelf.look_ms, shelf.asked) = (None, Some((*requests, false)));
            let (request, suite) = (*requests, shelf.suite);
            asks.push(ClientFrame::PublishKeyPackages { request, suite, packages: Vec::new(), replace: false });
        }
        asks.iter().for_each(|ask| self.send(ask));
    }

    /// A package was used: there may be few left.
    pub(super) fn used_a_package(&mut self) {
        self.persist_packages();
        self.look_at_packages();
    }

    /// The server says how many it has left, after it took what was published, if something was.
    pub(super) fn on_key_packages(&mut self, request: u32, result: Result<u32, Refusal>, now_ms: u64) {
        let were_out = self.shelves.are_out();
        let asked = |shelf: &&mut Shelf| shelf.asked.is_some_and(|(asked, _)| asked == request);
        let Some(shelf) = self.shelves.0.iter_mut().find(asked) else { return };
        let published = shelf.asked.take().is_some_and(|(_, published)| published);
        let wait_ms = if result.is_ok() { LOOK_EVERY_MS } else { LOOK_AGAIN_MS };
        shelf.look_ms = Some(now_ms.saturating_add(wait_ms));
        match result {
            Ok(_) if published => {
                shelf.resort_taken = true;
                self.persist_packages();
                if !were_out && self.shelves.are_out() {
                    self.tell_identity();
                    self.greet_own_devices(now_ms);
                }
            }
            Ok(left) => {
                let suite = shelf.suite;
                self.restock(suite, left, now_ms);
            }
            Err(_) => {}
        }
    }

    fn restock(&mut self, suite: Suite, left: u32, now_ms: u64) {
        let request = self.next_request();
        let (Some(me), Some(shelf)) = (&self.me, self.shelves.0.iter_mut().find(|shelf| shelf.suite == suite)) else { return };
        // A store that is damaged makes none; what it had is of no use either.
        let stock = match shelf.restock(left, &me.identity, now_ms, &mut self.rng) {
            Ok(stock) => stock,
            Err(SnapshotError) => return *shelf = Shelf::new(suite),
        };
        let Some((packages, replace)) = stock else { return };
        shelf.asked = Some((request, true));
        self.persist_packages();
        self.send(&ClientFrame::PublishKeyPackages { request, suite, packages, replace });
    }

    pub(super) fn persist_packages(&mut self) {
        let value = encode(&self.shelves.record());
        self.persist(PACKAGES_KEY.to_owned(), Some(value));
    }

    /// Names a question of this client.
    pub(super) const fn next_request(&mut self) -> u32 {
        self.requests = self.requests.wrapping_add(1);
        self.requests
    }
}
