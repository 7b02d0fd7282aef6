//! The person at this device: identity, backup, the device's own inbox, and the person's other devices.

use super::{
    Change, Client, LinkId, Me,
    outbox::{Outbox, Settled},
    records::{BackupRecord, IdentityRecord, OutRecord, RoomBackup, encode},
    view::{self, Event, Level},
};
use crate::{
    core::{
        close::Refusal,
        frame::{ClientFrame, LogKind, Operation, Page, Publish, ServerFrame},
        id::{ProducerId, RoomId},
    },
    seal::{
        Random as _,
        backup::{self, BackupError},
        body::tidy,
        epoch::access_key,
        identity::{CERTIFICATE_LIFE_MS, Certificate, Identity, IdentitySecrets},
        invitation::{Contact, Invitation},
    },
};

/// What was posted to this device.
enum Posted {
    /// By another device of this person.
    Own(Box<RoomBackup>),
    /// By a device that this one may not know.
    Anybodys(Box<Contact>),
    /// Perhaps by a member of one of its rooms, about a place there.
    Letter(bytes::Bytes),
    /// Nothing that this version knows.
    Nothing,
}

/// How far the device's own inbox is on this connection.
#[derive(Debug, Default)]
pub(super) struct InboxState {
    subscribed: bool,
    /// The answer to a subscription that was made for a former life of the log is still to come.
    stale: bool,
}

impl InboxState {
    /// Whether what is posted comes to this device.
    pub(super) const fn subscribed(&self) -> bool {
        self.subscribed
    }
}

/// Why an identity was not imported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The file does not open.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// It opens, and holds something else than this version expects.
    #[error("the backup holds something that this version does not know: update waxwing")]
    Content,
    /// This device belongs to somebody already.
    #[error("this device has an identity already: import into a fresh profile")]
    Occupied,
}

impl Me {
    pub(super) fn new(record: IdentityRecord) -> Self {
        let identity = Identity::certify(record.secrets.clone(), record.not_after_ms, record.counter).named(&record.name);
        Self { record, identity, inbox: InboxState::default(), shown: None, untold: false }
    }

    /// What another device of the person has handed over.
    fn invited(&self, envelope: &[u8]) -> Option<bytes::Bytes> {
        let Self { record, identity, .. } = self;
        let open =
            |issuer: &Certificate| Invitation::open(identity.inbox(), identity.inbox_public(), issuer.hash(), envelope).ok();
        record.own_devices.iter().find_map(open)
    }

    /// What somebody has posted to this device.
    fn posted(&self, envelope: &bytes::Bytes) -> Posted {
        if let Some(room) = self.invited(envelope) {
            return postcard::from_bytes(&room).map_or(Posted::Nothing, |room| Posted::Own(Box::new(room)));
        }
        match Contact::open(self.identity.inbox(), self.identity.inbox_public(), envelope) {
            Ok(contact) => Posted::Anybodys(Box::new(contact)),
            Err(_) => Posted::Letter(envelope.clone()),
        }
    }
}

impl Client {
    pub(super) fn tell_identity(&mut self) {
        let identity = self.me.as_ref().filter(|me| me.shown.is_none()).map(|me| view::Identity {
            name: me.record.name.clone(),
            user: me.identity.user().to_string(),
            device: me.identity.device().to_string(),
            words: me.identity.user().words(),
            devices: self.own_devices(),
            card: self.card(),
            reachable: self.shelves.are_out(),
        });
        self.outputs.push_back(super::Output::Event(Event::Identity { identity }));
    }

    pub(super) fn start_identity(&mut self, name: &str, now_ms: u64) {
        let name = tidy(name);
        if !self.is_nobody() {
            return self.notice(Level::Warn, "this device has an identity already", None);
        }
        if name.is_empty() {
            return self.notice(Level::Warn, "a name needs at least one letter", None);
        }
        let identity = self.new_device(None, now_ms);
        self.adopt(&identity, name, Vec::new(), now_ms);
    }

    /// This device, of a new person or of the one with this seed. Whoever shows a code has keys of the device already.
    fn new_device(&mut self, user: Option<[u8; 32]>, now_ms: u64) -> Identity {
        let user = user.unwrap_or_else(|| self.rng.bytes());
        match self.fresh_keys() {
            Some(keys) => {
                let secrets = IdentitySecrets { user, device: keys.device, inbox: keys.inbox };
                Identity::certify(secrets, now_ms.saturating_add(CERTIFICATE_LIFE_MS), 1)
            }
            None => Identity::add_device(user, &mut self.rng, now_ms),
        }
    }

    pub(super) fn adopt(&mut self, identity: &Identity, name: String, own_devices: Vec<Certificate>, now_ms: u64) {
        self.me = Some(Me::new(IdentityRecord {
            format: 2,
            secrets: identity.secrets().clone(),
            not_after_ms: identity.certificate().not_after_ms,
            counter: identity.certificate().counter,
            name,
            own_devices,
            devices: None,
            inbox: None,
        }));
        self.persist_me();
        self.tell_identity();
        self.list_devices(None);
        self.connect(now_ms);
        if self.wire.is_attached() {
            // It showed a code, and is logged in.
            self.begin_rest(now_ms);
        }
    }

    /// The person and the rooms as an encrypted file. Takes about half a second on purpose.
    ///
    /// # Errors
    /// [`BackupError::Cost`] when there is no memory for the key derivation, or no identity.
    pub fn export_identity(&mut self, passphrase: &str) -> Result<Vec<u8>, BackupError> {
        let me = self.me.as_ref().filter(|me| me.shown.is_none()).ok_or(BackupError::NotABackup)?;
        let mut devices = me.record.own_devices.clone();
        devices.push(me.identity.certificate().clone());
        let rooms = self.rooms.values().filter_map(super::Room::backup).collect();
        let record = BackupRecord { format: 3, user: me.record.secrets.user, name: me.record.name.clone(), devices, rooms };
        backup::encrypt(&encode(&record), passphrase, &mut self.rng)
    }

    /// Makes this device one of the person's in the file, and brings back the rooms. The device is a new one: it joins anew.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn import_identity(&mut self, file: &[u8], passphrase: &str, now_ms: u64) -> Result<(), ImportError> {
        if !self.is_nobody() {
            return Err(ImportError::Occupied);
        }
        let payload = backup::decrypt(file, passphrase)?;
        let record: BackupRecord = postcard::from_bytes(&payload).map_err(|_| ImportError::Content)?;
        if record.format != 3 {
            return Err(ImportError::Content);
        }
        let identity = self.new_device(Some(record.user), now_ms);
        let own = |certificate: &Certificate| certificate.user == identity.user() && certificate.verify().is_ok();
        let devices = record.devices.into_iter().filter(own).collect();
        self.adopt(&identity, record.name, devices, now_ms);
        for backup in record.rooms {
            self.join_with(backup, now_ms);
        }
        Ok(())
    }

    /// Everything that comes from the server. Only the link that carries the session speaks of rooms.
    pub(super) fn handle(&mut self, link: LinkId, frame: ServerFrame, now_ms: u64) {
        self.wire.heard(link, now_ms);
        match frame {
            ServerFrame::Challenge { .. }
            | ServerFrame::Welcome { .. }
            | ServerFrame::Pong { .. }
            | ServerFrame::Closing { .. } => self.handle_link(link, frame, now_ms),
            _ if self.wire.carries(link) => {
                self.handle_session(frame, now_ms);
                self.schedule(now_ms);
            }
            _ => {}
        }
    }

    fn handle_link(&mut self, link: LinkId, frame: ServerFrame, now_ms: u64) {
        let (wire, mut turn) = self.wire(now_ms);
        let turn = &mut turn;
        let change = match frame {
            ServerFrame::Challenge { nonce } => wire.challenged(link, nonce, turn),
            ServerFrame::Welcome { ticket, limits, time_ms, .. } => wire.welcomed(link, ticket, &limits, time_ms, turn),
            ServerFrame::Pong { token } => wire.echoed(link, token, turn),
            ServerFrame::Closing { code, retry_after_ms } => wire.closing(link, code, retry_after_ms, turn),
            _ => Change::None,
        };
        self.changed(change, now_ms);
    }

    fn handle_session(&mut self, frame: ServerFrame, now_ms: u64) {
        match frame {
            ServerFrame::Created { room, .. } => self.on_created(room, now_ms),
            ServerFrame::Entered { room, position, handshake } => match self.own_inbox(room) {
                Some(me) => {
                    let known = me.record.inbox.is_none_or(|(log, _)| log == position.log);
                    me.inbox.stale = !known;
                }
                None => self.on_entered(room, position, handshake, now_ms),
            },
            ServerFrame::Subscribed { room, after, chain, position } => match self.own_inbox(room) {
                Some(me) => {
                    me.inbox.subscribed = !me.inbox.stale;
                    self.read_inbox_anew();
                    self.tell_code();
                }
                None => self.on_subscribed(room, after, chain, position, now_ms),
            },
            ServerFrame::Deliver(page) => self.on_page(&page, now_ms),
            ServerFrame::Fetched { request, page } => self.on_fetched(request, &page, now_ms),
            ServerFrame::Ack { room, producer, client_seq, seq } => self.on_ack(room, producer, client_seq, seq, now_ms),
            ServerFrame::Refused { room, producer, client_seq, why } => {
                let publish = Publish { room, producer, client_seq, handshake: 0, envelope: bytes::Bytes::new() };
                self.on_refused(&publish, why, now_ms);
            }
            ServerFrame::Failed { room, what, why } => match self.own_inbox(room) {
                Some(_) if what == Operation::Subscribe => self.read_inbox_anew(),
                Some(_) => {}
                None => self.on_failed(room, what, why, now_ms),
            },
            ServerFrame::Presence { room, online, offline } => self.on_presence(room, &online, &offline),
            ServerFrame::Ephemeral { envelope } => self.on_ephemeral(&envelope),
            ServerFrame::Deleted { room } => self.on_deleted(room),
            ServerFrame::KeyPackage { request, result } => self.on_key_package(request, result, now_ms),
            ServerFrame::KeyPackages { request, result } => self.on_key_packages(request, result, now_ms),
            ServerFrame::DropBox { room, announcement } => self.on_drop_box_put(room, announcement.is_some()),
            _ => {}
        }
    }

    /// This device, if the log is its inbox.
    fn own_inbox(&mut self, log: RoomId) -> Option<&mut Me> {
        self.me.as_mut().filter(|me| me.identity.inbox_id() == log)
    }

    /// The session has a link: take up everything where it was, without waiting for an answer in between.
    pub(super) fn begin_all(&mut self, now_ms: u64) {
        let Some(me) = &self.me else { return };
        let (room, seed) = (me.identity.inbox_id(), me.identity.inbox_access_seed());
        let after = me.record.inbox.map_or(0, |(_, seq)| seq);
        self.send(&ClientFrame::Create { room, access: access_key(&seed), kind: LogKind::Inbox });
        self.enter(room, 0, &seed);
        self.send(&ClientFrame::Subscribe { room, after });
        if !self.is_nobody() {
            self.begin_rest(now_ms);
        }
        self.wire.asks(now_ms);
    }

    /// What a person has besides the device's inbox: whoever shows a code has none of it.
    fn begin_rest(&mut self, now_ms: u64) {
        let rooms: Vec<_> = self.rooms.keys().copied().collect();
        for room in &rooms {
            self.begin(*room);
        }
        for room in rooms {
            self.pump(room, now_ms);
        }
        self.pump_posts();
        self.look_at_packages();
    }

    /// The inbox has a new life: what was subscribed was a place in the former one.
    fn read_inbox_anew(&mut self) {
        let Some(me) = self.me.as_mut().filter(|me| me.inbox.stale) else { return };
        me.inbox.stale = false;
        let room = me.identity.inbox_id();
        self.send(&ClientFrame::Subscribe { room, after: 0 });
    }

    /// What was posted to this device: by other devices of the same person, by members of its rooms who ask and answer, or by anybody. What
    /// does not open is skipped.
    pub(super) fn on_own_inbox(&mut self, page: &Page, now_ms: u64) {
        let Some(me) = &self.me else { return };
        if !me.inbox.subscribed || me.identity.inbox_id() != page.room {
            return;
        }
        let last = page.first.saturating_add(page.items.len() as u64).saturating_sub(1);
        let mut posted: Vec<Posted> = Vec::new();
        for item in &page.items {
            match &self.me {
                // Whatever comes behind the answer to a code is for the person that it brought.
                Some(me) if me.shown.is_some() => self.take_grant(&item.envelope, now_ms),
                Some(me) => posted.push(me.posted(&item.envelope)),
                None => {}
            }
        }
        self.me.iter_mut().for_each(|me| me.record.inbox = Some((page.position.log, last)));
        if !self.is_nobody() {
            self.persist_me();
        }
        for posted in posted {
            match posted {
                Posted::Own(backup) => self.join_with(*backup, now_ms),
                Posted::Anybodys(contact) => self.on_contact(*contact, now_ms),
                Posted::Letter(envelope) => self.on_letter(&envelope, now_ms),
                Posted::Nothing => {}
            }
        }
    }

    /// A certificate was seen in a join: if it is of this person's, the device gets what this one has.
    pub(super) fn learn_device(&mut self, certificate: &Certificate, now_ms: u64) {
        let Some(me) = &mut self.me else { return };
        let known = |own: &Certificate| own.device == certificate.device;
        if certificate.user != me.identity.user()
            || certificate.device == me.identity.device()
            || me.record.own_devices.iter().any(known)
            || me.record.devices.as_ref().is_some_and(|list| list.removed.contains(&certificate.device))
        {
            return;
        }
        me.record.own_devices.push(certificate.clone());
        self.persist_me();
        self.tell_identity();
        self.list_devices(None);
        let rooms: Vec<_> = self.rooms.keys().copied().collect();
        for room in rooms {
            self.hand_to_device(room, certificate, now_ms);
        }
    }

    fn pump_posts(&mut self) {
        let mut publish = Vec::new();
        let mut persist = Vec::new();
        for outbox in self.posts.values_mut() {
            let (pumped, _) = outbox.pump(0, |_| Ok::<_, core::convert::Infallible>(None));
            persist.extend(pumped.persist);
            publish.extend(pumped.publish);
        }
        self.persist_all(persist);
        for publish in publish {
            self.send(&ClientFrame::Publish(publish));
        }
    }

    pub(super) fn on_post_ack(&mut self, log: RoomId, producer: ProducerId, client_seq: u64) {
        let Some(outbox) = self.posts.get_mut(&log) else { return };
        let persist = outbox.acked(producer, client_seq).map(|(_, persist)| persist).unwrap_or_default();
        self.persist_all(persist);
        self.pump_posts();
    }

    /// A post that is refused for good (the other device's inbox is gone or full) is given up: that device can still be let in
    /// by link. Any other is sent again with the next connection.
    pub(super) fn on_post_refused(&mut self, publish: &Publish, why: Refusal) {
        let fresh = ProducerId(self.rng.bytes());
        let Some(outbox) = self.posts.get_mut(&publish.room) else { return };
        outbox.refused(publish.producer, publish.client_seq, why);
        let (settled, mut persist) = outbox.settle(fresh);
        if let Settled::Failed(message) = settled {
            persist.extend(outbox.take_failed(message).map(|(_, forget)| forget));
        }
        self.persist_all(persist);
    }
}

/// Puts something into the outbox towards another device's inbox.
pub(super) fn post(client: &mut Client, inbox: RoomId, letter: OutRecord) {
    let producer = ProducerId(client.rng.bytes());
    let outbox = client.posts.entry(inbox).or_insert_with(|| Outbox::new(inbox, inbox, producer));
    let persist = outbox.push(letter, false);
    client.persist_all(persist);
    if client.wire.is_attached() {
        client.pump_posts();
    }
}
