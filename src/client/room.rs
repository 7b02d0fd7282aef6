//! One room on this device. What the client does with it lies beside: [`making`], [`reading`], [`writing`].

mod making;
mod reading;
mod writing;

use crate::client::outbox::Outbox;
use crate::client::records::{Letter, LogRecord, OpenedRecord, OutRecord, RoomRecord, Stage};
use crate::client::timeline::{Applied, Timeline};
use crate::client::view::{self, Author, Check, Member, MessageKind, MessageState};
use crate::core::chain;
use crate::core::id::{DeviceKey, Digest, MessageId, ProducerId, RoomId, Seq};
use crate::seal::body::{Join, Message, tidy};
use crate::seal::epoch::{EpochKeys, HandedOver};
use crate::seal::hpke::{XWingPrivate, XWingPublic};
use crate::seal::identity::{Identity, inbox_access_seed, inbox_id};
use crate::seal::keyring::Keyring;
use crate::seal::link::Link;
use crate::seal::words::words;
use std::collections::{BTreeMap, BTreeSet};

/// Say "typing" at most this often.
const TYPING_EVERY_MS: u64 = 3_000;

/// Ask again after this long to be let into a room that the server does not have.
const ENTER_AGAIN_MS: u64 = 5_000;

/// A room on this device.
#[derive(Debug)]
pub(super) struct Room {
    id: RoomId,
    record: RoomRecord,
    invitation: Invitation,
    keys: Option<HandedOver>,
    timeline: Timeline,
    /// Log records of which a message was shown, oldest first: what a person scrolls through.
    shown: BTreeMap<Seq, Shown>,
    outbox: Outbox,
    /// Carries the keyring to the invitation's inbox.
    invite_outbox: Outbox,
    online: BTreeSet<DeviceKey>,
    wire: RoomWire,
    retry_at_ms: Option<u64>,
    /// The server does not let this device in: why, in words, and when to ask again.
    shut_out: Option<(String, u64)>,
    /// The log has a new life: once it is read, a new session begins in it.
    reborn: bool,
    typed_ms: u64,
    /// Ephemeral messages sent, and the highest counters heard.
    ephemerals: (ProducerId, u64, BTreeMap<(u64, ProducerId), u64>),
}

/// The inbox whose key the link carries.
struct Invitation {
    private: XWingPrivate,
    public: XWingPublic,
    inbox: RoomId,
    access_seed: [u8; 32],
}

impl core::fmt::Debug for Invitation {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Invitation").field("inbox", &self.inbox).finish_non_exhaustive()
    }
}

/// A message as it was shown.
#[derive(Debug)]
struct Shown {
    time_ms: u64,
    digest: Digest,
    check: Check,
    opened: Box<OpenedRecord>,
}

/// How far the room is on this connection.
#[derive(Debug, Default, PartialEq, Eq)]
struct RoomWire {
    created: bool,
    inbox_created: bool,
    entered: bool,
    /// The head at the time of subscribing: once reached, the room is up to date.
    subscribed: Option<Seq>,
    /// The answer to a subscription that was made for a former life of the log is still to come.
    stale: bool,
    /// It was told who is there.
    presence: bool,
    /// A publish came before this device was let in.
    too_early: bool,
    /// This device's join was put into the outbox.
    join_sent: bool,
    /// The server contradicted this device's copy: nothing more is taken from it.
    stopped: bool,
}

impl Room {
    pub(super) fn new(id: RoomId, record: RoomRecord, outbox: Outbox, invite_outbox: Outbox, session: ProducerId) -> Self {
        let (private, public) = XWingPrivate::from_seed(&record.invitation);
        let invitation =
            Invitation { inbox: inbox_id(&public), access_seed: inbox_access_seed(&record.invitation), private, public };
        let keys = record.keyring.as_ref().and_then(|keyring| keyring.epochs().ok());
        let mut timeline = Timeline::new(id);
        record.log.into_iter().for_each(|log| timeline.set_log(log));
        Self {
            id,
            record,
            invitation,
            keys,
            timeline,
            shown: BTreeMap::new(),
            outbox,
            invite_outbox,
            online: BTreeSet::new(),
            wire: RoomWire::default(),
            retry_at_ms: None,
            shut_out: None,
            reborn: false,
            typed_ms: 0,
            ephemerals: (session, 0, BTreeMap::new()),
        }
    }

    pub(super) fn disconnected(&mut self) {
        self.wire = RoomWire { stopped: self.wire.stopped, ..RoomWire::default() };
        self.outbox.disconnected();
        self.invite_outbox.disconnected();
        self.retry_at_ms = None;
        self.shut_out = None;
    }

    pub(super) fn nobody_is_known_to_be_there(&mut self) {
        self.online.clear();
    }

    /// Whether the server has begun to send what there is, and has not come to the end.
    pub(super) fn is_owed(&self) -> bool {
        self.wire.subscribed.is_some() && !self.up_to_date()
    }

    /// Whether the outbox may be tried again.
    pub(super) fn retry_due(&self, now_ms: u64) -> bool {
        self.retry_at_ms.is_some_and(|at_ms| now_ms >= at_ms)
    }

    /// Whether to ask again to be let in; then not again for a while.
    pub(super) fn ask_again(&mut self, now_ms: u64) -> bool {
        let due = self.shut_out.as_mut().filter(|(_, at_ms)| now_ms >= *at_ms);
        due.map(|(_, at_ms)| *at_ms = now_ms + ENTER_AGAIN_MS).is_some()
    }

    pub(super) fn retry_at(&self) -> Option<u64> {
        self.shut_out.iter().map(|(_, at_ms)| *at_ms).chain(self.retry_at_ms).min()
    }

    pub(super) const fn keyring(&self) -> Option<&Keyring> {
        self.record.keyring.as_ref()
    }

    pub(super) fn origin(&self) -> &str {
        &self.record.origin
    }

    /// Takes the next record; remembers what is to be shown.
    fn apply(&mut self, record: &LogRecord) -> Applied {
        let applied = self.timeline.apply(record);
        if let Applied::Message { check, opened } = &applied {
            let shown = Shown { time_ms: record.time_ms, digest: record.digest, check: *check, opened: opened.clone() };
            self.shown.insert(self.timeline.head(), shown);
        }
        applied
    }

    fn link(&self) -> Link {
        let RoomRecord { origin, invitation, issuer, .. } = &self.record;
        Link { origin: origin.clone(), room: self.id, seed: *invitation, issuer: *issuer }
    }

    fn view(&self, me: &Identity) -> view::Room {
        let owner = self.record.keyring.as_ref().is_some_and(|keyring| keyring.creator == me.user());
        let (state, reason) = match &self.record.stage {
            _ if self.wire.stopped => {
                (view::RoomState::Refused, Some("the server's history contradicts what this device has seen".to_owned()))
            }
            Stage::Deleted | Stage::Deleting => (view::RoomState::Deleted, None),
            _ if self.shut_out.is_some() => (view::RoomState::Refused, self.shut_out.as_ref().map(|(why, _)| why.clone())),
            _ if self.timeline.leaf_of(me.device()).is_some() => (view::RoomState::Open, None),
            Stage::Creating | Stage::Invited | Stage::Joined => (view::RoomState::Joining, None),
        };
        let title = match (self.timeline.title(), &self.record.keyring) {
            ("", Some(keyring)) => tidy(&keyring.title),
            (title, _) => title.to_owned(),
        };
        let (words_at, chain) = self.timeline.words_at();
        let authenticator = self.keys.as_ref().map_or(Digest([0; 32]), |keys| keys.current().authenticator);
        let hash = chain::digest(&[&b"waxwing room words v1"[..], &authenticator.0, &chain.0].concat());
        view::Room {
            id: self.id.to_string(),
            title,
            link: self.link().to_string(),
            owner,
            state,
            reason,
            members: self.members(me),
            head: self.timeline.head(),
            up_to_date: self.up_to_date(),
            settled: self.settled(),
            integrity: self.timeline.integrity(),
            words: words(&hash.0),
            words_at,
        }
    }

    /// Everything is read that was there at subscribing.
    fn up_to_date(&self) -> bool {
        !self.wire.stopped && self.wire.subscribed.is_some_and(|head| self.timeline.head() >= head)
    }

    /// Nothing waits: the room is made, and every message is acked or given up.
    fn settled(&self) -> bool {
        let waits = |outbox: &Outbox| outbox.iter().any(|out| out.failed.is_none());
        self.record.stage == Stage::Joined && !waits(&self.outbox) && !waits(&self.invite_outbox)
    }

    fn members(&self, me: &Identity) -> Vec<Member> {
        let mut people: BTreeMap<_, (String, BTreeSet<DeviceKey>)> = BTreeMap::new();
        for joined in self.timeline.members().values() {
            let Join { certificate, name } = &joined.join;
            let entry = people.entry(certificate.user).or_default();
            entry.0.clone_from(name);
            entry.1.insert(certificate.device);
        }
        let member = |(user, (name, devices)): (crate::seal::identity::UserKey, (String, BTreeSet<DeviceKey>))| Member {
            user: user.to_string(),
            name,
            you: user == me.user(),
            online: devices.iter().any(|device| self.online.contains(device)),
            devices: u32::try_from(devices.len()).unwrap_or(u32::MAX),
        };
        people.into_iter().map(member).collect()
    }

    /// A message of the log, for people; `None` for what is not shown as one.
    fn message_view(&self, me: &Identity, seq: Seq) -> Option<view::Message> {
        let Shown { time_ms, digest, check, opened } = self.shown.get(&seq)?;
        let join = &self.timeline.members().get(&opened.leaf)?.join;
        let author = Author { user: join.certificate.user.to_string(), name: join.name.clone() };
        let (kind, text) = content_view(&opened.content.message())?;
        let mine = join.certificate.user == me.user();
        let of_this_device = join.certificate.device == me.device();
        Some(view::Message {
            key: if of_this_device { opened.message.to_string() } else { MessageId(first_16(digest)).to_string() },
            seq: Some(seq),
            author,
            mine,
            kind,
            text,
            time_ms: *time_ms,
            state: if of_this_device { MessageState::Sent } else { MessageState::Received },
            reason: None,
            check: *check,
        })
    }

    /// A message of the outbox, for people.
    fn out_view(&self, me: &Identity, name: &str, out: &OutRecord) -> Option<view::Message> {
        let Letter::Content(content) = &out.letter else { return None };
        let (kind, text) = content_view(&content.message())?;
        if kind == MessageKind::Join {
            return None;
        }
        Some(view::Message {
            key: out.message.to_string(),
            seq: None,
            author: Author { user: me.user().to_string(), name: name.to_owned() },
            mine: true,
            kind,
            text,
            time_ms: out.time_ms,
            state: if out.failed.is_some() { MessageState::Failed } else { MessageState::Pending },
            reason: out.failed.clone(),
            check: Check::Unchecked,
        })
    }

    /// Whether this device's join is on its way.
    fn is_joining(&self) -> bool {
        self.outbox
            .iter()
            .any(|out| out.failed.is_none() && matches!(&out.letter, Letter::Content(content) if content.kind == JOIN_KIND))
    }
}

/// The content number of [`Message::Join`].
const JOIN_KIND: u16 = 2;

fn first_16(digest: &Digest) -> [u8; 16] {
    digest.0.first_chunk().copied().unwrap_or_default()
}

fn content_view(message: &Message) -> Option<(MessageKind, String)> {
    match message {
        Message::Text(text) => Some((MessageKind::Text, text.clone())),
        Message::Join(join) => Some((MessageKind::Join, tidy(&join.name))),
        Message::Topic(title) => Some((MessageKind::Topic, tidy(title))),
        Message::Typing => None,
        Message::Unknown(fallback) if fallback.is_empty() => None,
        Message::Unknown(fallback) => Some((MessageKind::Unknown, fallback.clone())),
    }
}
