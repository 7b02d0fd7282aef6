//! One room on this device. What the client does with it lies beside: [`making`], [`joining`], [`inviting`], [`returning`], [`asking`], [`reading`],
//! [`changing`], [`writing`], [`showing`].

mod asking;
mod changing;
mod climbing;
mod following;
mod forgetting;
mod inviting;
mod joining;
mod locked;
mod making;
mod past;
mod place;
mod posting;
mod quoting;
mod reading;
mod renewing;
mod retelling;
mod returning;
mod showing;
mod way_in;
mod writing;

use self::asking::Gap;
use self::past::{Changes, Past};
use self::place::Place;
use self::posting::Posting;
use self::retelling::Hidden;
use self::returning::Asked;
use crate::client::devices::DEVICES_KIND;
use crate::client::evidence::Contradicted;
use crate::client::outbox::{Outbox, Persist};
use crate::client::records::{
    ChangeRecord, Entry, InviteRecord, KnownLink, Letter, LogRecord, LostRecord, OpenedRecord, OutRecord, PostRecord, RoomBackup,
    RoomRecord, SentRecord, Stage, Who,
};
use crate::client::timeline::{Applied, Newcomer, Timeline};
use crate::client::view::{self, Check};
use crate::core::chain;
use crate::core::envelope::{Header, Kind};
use crate::core::frame::Item;
use crate::core::id::{DeviceKey, Digest, MessageId, ProducerId, RoomId, Seq};
use crate::group::{LinkId, LinkKeys, Role};
use crate::seal::body::Message;
use crate::seal::devices::DeviceList;
use crate::seal::identity::{Identity, UserKey};
use crate::seal::link::Link;
use bytes::Bytes;
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
    place: Place,
    /// The name of the link in the record, and of the one that others were told of.
    link: Option<LinkId>,
    told: Option<LinkId>,
    timeline: Timeline,
    /// Log records of which a message was shown, oldest first: what a person scrolls through.
    shown: BTreeMap<Seq, Shown>,
    /// The others.
    hidden: BTreeMap<Seq, Hidden>,
    outbox: Outbox,
    /// Carries this device's commits.
    handshakes: Outbox,
    online: BTreeSet<DeviceKey>,
    wire: RoomWire,
    /// Names the latest question for a change of the group; only its answer counts.
    knocks: u32,
    retry_at_ms: Option<u64>,
    /// The server does not let this device in: why, in words, and when to ask again.
    shut_out: Option<(String, u64)>,
    /// The log has a new life: once it is read, a new session begins in it.
    reborn: bool,
    /// What is read of the log is not of the epoch that this device is in.
    past: Option<Past>,
    posting: Posting,
    /// Nothing is published before this change of the group was taken.
    gate: Seq,
    /// Before this seq no change of the group has secrets of its epoch any more.
    forgotten: Seq,
    /// And no message before this one a link's seed.
    unlinked: Seq,
    /// What the server said that contradicts this device's copy.
    contradicted: Vec<Contradicted>,
    /// Who goes, in this epoch.
    leaves: Vec<Goodbye>,
    /// The place in the group that this device lost and has not taken again.
    lost: Option<LostRecord>,
    /// What it missed meanwhile, oldest first.
    gaps: Vec<Gap>,
    /// Who asked for their place here.
    asked: Asked,
    /// Devices that are being invited, and when to ask again for their key packages.
    invites: Vec<InviteRecord>,
    ask_again_ms: Option<u64>,
    typed_ms: u64,
    /// Ephemeral messages sent, and the highest counters heard.
    ephemerals: (ProducerId, u64, BTreeMap<(DeviceKey, ProducerId), u64>),
}

/// A member that goes.
#[derive(Debug)]
struct Goodbye {
    device: DeviceKey,
    /// What it has signed for this epoch.
    proposal: Bytes,
    /// When this device takes it out, unless another one has.
    at_ms: u64,
}

/// A message as it was shown.
#[derive(Debug)]
struct Shown {
    time_ms: u64,
    digest: Digest,
    chain: Digest,
    check: Check,
    what: What,
}

/// What is shown.
#[derive(Debug)]
enum What {
    Message(Box<OpenedRecord>),
    Sent(Box<SentRecord>),
    /// With the one to look at first of those who came in.
    Change(Box<ChangeRecord>, Option<(Who, Newcomer)>),
    Post(Box<PostRecord>),
}

/// How far the room is on this connection.
#[derive(Debug, Default, PartialEq, Eq)]
struct RoomWire {
    created: bool,
    entered: bool,
    /// Attempts to enter that are not answered: that one fails says nothing while a later one is under way.
    entering: u32,
    /// The newest change of the group that the log had then.
    handshake: Seq,
    /// Subscriptions that are not answered: only the latest one's answer counts, since each begins where this device was when it asked.
    asked: u32,
    /// It fell behind the group.
    rejoined: bool,
    /// How often another commit came first.
    overtaken: u32,
    /// Former access keys that were tried.
    keys_tried: usize,
    /// The head at the time of subscribing: once reached, the room is up to date.
    subscribed: Option<Seq>,
    /// The answer to a subscription that was made for a former life of the log is still to come.
    stale: bool,
    /// It was told who is there.
    presence: bool,
    /// A publish came before this device was let in.
    too_early: bool,
    /// The log took a commit of this device, which it may not have read yet.
    acked_commit: bool,
    /// This device's keys were renewed, or that was tried.
    renewed: bool,
    /// This device's certificate was put into the outbox.
    introduced: bool,
    /// The number of the person's list of devices that was put into the outbox.
    listed: u64,
    /// In which epoch it said that it goes.
    said_goodbye: Option<u64>,
    /// It asks the server to take the room's key back, so often more at once.
    put_back: Option<u32>,
    /// The question for the newest change, to see whether it leaves a way in.
    way_in: Option<u32>,
    /// The server contradicted this device's copy: nothing more is taken from it.
    stopped: bool,
}

impl Room {
    pub(super) fn new(id: RoomId, record: RoomRecord, outbox: Outbox, handshakes: Outbox, session: ProducerId) -> Self {
        let mut timeline = Timeline::new(id);
        record.log.into_iter().for_each(|log| timeline.set_log(log));
        if record.base > 0 {
            timeline.skip_to(record.base, None);
        }
        let link = record.link.map(|link| LinkKeys::new(&link.seed).id());
        Self {
            id,
            record,
            place: Place::Out,
            link,
            told: None,
            timeline,
            shown: BTreeMap::new(),
            hidden: BTreeMap::new(),
            outbox,
            handshakes,
            online: BTreeSet::new(),
            wire: RoomWire::default(),
            knocks: 0,
            retry_at_ms: None,
            shut_out: None,
            reborn: false,
            past: None,
            posting: Posting::default(),
            gate: 0,
            forgotten: 0,
            unlinked: 0,
            contradicted: Vec::new(),
            leaves: Vec::new(),
            lost: None,
            gaps: Vec::new(),
            asked: Asked::default(),
            invites: Vec::new(),
            ask_again_ms: None,
            typed_ms: 0,
            ephemerals: (session, 0, BTreeMap::new()),
        }
    }

    #[cfg(test)]
    pub(super) fn place_for_test(&self) -> &crate::group::Group {
        &self.place.seat().expect("this device is in").group
    }

    pub(super) fn disconnected(&mut self) {
        self.wire = RoomWire { stopped: self.wire.stopped, ..RoomWire::default() };
        self.outbox.disconnected();
        self.handshakes.disconnected();
        self.posting.disconnected();
        self.gaps.iter_mut().for_each(Gap::stop_reading);
        self.retry_at_ms = None;
        self.shut_out = None;
        self.ask_again_ms = None;
        self.gate = 0;
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
        let goodbyes = self.leaves.iter().map(|leave| leave.at_ms).filter(|_| !self.record.leaving);
        let asks = self.ask_again_ms.into_iter().chain(self.posting_at()).chain(self.asks_at());
        self.shut_out.iter().map(|(_, at_ms)| *at_ms).chain(self.retry_at_ms).chain(goodbyes).chain(asks).min()
    }

    /// Takes the next record; remembers what is to be shown.
    fn apply(&mut self, record: &LogRecord) -> Applied {
        let applied = self.enter_record(record);
        self.posting.lock(self.timeline.head(), record);
        applied
    }

    /// As [`Self::apply`], when the log is told anew.
    fn enter_record(&mut self, record: &LogRecord) -> Applied {
        let newcomer = match &record.entry {
            Entry::Change(change) => self.timeline.newcomer(change),
            _ => None,
        };
        let applied = self.timeline.apply(record);
        let shown = match &applied {
            Applied::Message { check, opened } => Some((*check, What::Message(opened.clone()))),
            Applied::Sent(sent) => Some((Check::Unchecked, What::Sent(sent.clone()))),
            Applied::Change(change) => Some((Check::Matches, What::Change(change.clone(), newcomer))),
            Applied::Post(post) => Some((Check::Unchecked, What::Post(post.clone()))),
            Applied::Injected | Applied::Nothing => None,
        };
        let seq = self.timeline.head();
        match shown {
            Some((check, what)) => {
                let LogRecord { time_ms, digest, chain, .. } = *record;
                drop(self.shown.insert(seq, Shown { time_ms, digest, chain, check, what }));
            }
            None => drop(self.hidden.insert(seq, Hidden::new(record))),
        }
        applied
    }

    /// Whether the next record of the log is of the past.
    fn is_past(&self) -> Option<&Past> {
        let next = self.timeline.head().saturating_add(1);
        self.past.as_ref().filter(|past| past.covers(next))
    }

    /// What an item of the log is that is no change of the group.
    fn read(&mut self, header: Option<&Header>, item: &Item) -> Entry {
        if let Some(header) = header.filter(|header| header.kind == Kind::DropBox) {
            return self.posting.read(header, item);
        }
        let opened = self.place.seat().and_then(|seat| seat.reader().open(&item.envelope));
        let next = self.timeline.head().saturating_add(1);
        match (opened, self.past.as_mut().filter(|past| past.covers(next))) {
            (Some(opened), _) => Entry::Message(opened),
            (None, Some(past)) => past.message(header, &item.envelope),
            (None, None) => Entry::Foreign,
        }
    }

    /// The changes of the group that this device has taken, for its next life or the person's next device.
    fn changes(&self) -> Changes {
        let change = |shown: &Shown| match &shown.what {
            What::Change(change, _) => Some((shown.digest, change.as_ref().clone())),
            What::Message(_) | What::Post(_) | What::Sent(_) => None,
        };
        let known = self.past.iter().flat_map(|past| past.record().changes.clone());
        let mut changes: Changes = known.collect();
        for (digest, change) in self.shown.values().filter_map(change) {
            if !changes.iter().any(|(other, _)| *other == digest) {
                changes.push((digest, change));
            }
        }
        changes
    }

    /// What brings the room to another device of the same person.
    pub(super) fn backup(&self) -> Option<RoomBackup> {
        let link = self.live_link()?.to_string();
        let (base, changes) = self.handed_over();
        Some(RoomBackup { link, base, changes })
    }

    /// The link, if it leads in, or will once what is under way is in the log.
    pub(super) fn live_link(&self) -> Option<Link> {
        let (seat, known) = (self.place.seat()?, self.record.link?);
        if !self.link.is_some_and(|link| seat.lists(link)) {
            return None;
        }
        let KnownLink { seed, host } = known;
        Some(Link { origin: self.record.origin.clone(), room: self.id, seed, access: self.record.access, host })
    }

    fn set_link(&mut self, link: Option<KnownLink>) {
        self.link = link.map(|link| LinkKeys::new(&link.seed).id());
        self.record.link = link;
    }

    fn role(&self, user: UserKey) -> Option<Role> {
        self.place.seat()?.policy.role(user)
    }

    /// What newcomers read; while this device is not in the group, as far as it knows.
    fn history(&self) -> view::History {
        self.place.seat().map_or(view::History::FromJoin, |seat| seat.policy.history().into())
    }

    /// What everyone in the room can compare, and at which seq it was taken.
    pub(super) fn words_hash(&self) -> (Seq, Digest) {
        let (words_at, [authenticator, chain]) = self.timeline.words_at();
        (words_at, chain::digest(&[&b"waxwing room words v1"[..], &authenticator.0, &chain.0].concat()))
    }

    /// Every device in the room.
    pub(super) fn everybody(&self) -> Vec<Who> {
        self.place.seat().map(|seat| seat.roster.values().copied().collect()).unwrap_or_default()
    }

    /// A person's devices in the room.
    pub(super) fn devices_of(&self, user: UserKey) -> Vec<Who> {
        self.everybody().into_iter().filter(|who| who.user == user).collect()
    }

    /// Who is in the room, each as often as they have devices there.
    pub(super) fn people(&self) -> Vec<UserKey> {
        self.everybody().into_iter().map(|who| who.user).collect()
    }

    /// Everything is read that was there at subscribing.
    fn up_to_date(&self) -> bool {
        !self.wire.stopped && self.wire.subscribed.is_some_and(|head| self.timeline.head() >= head)
    }

    /// Nothing waits: the room is made, and every message is acked or given up.
    fn settled(&self) -> bool {
        let waits = |outbox: &Outbox| outbox.iter().any(|out| out.failed.is_none());
        let at_rest = self.place.seat().is_some_and(|seat| !seat.group.is_waiting() && seat.wanted.is_none());
        self.record.stage == Stage::Joined && at_rest && !waits(&self.outbox) && !waits(&self.handshakes)
    }

    /// As [`Self::name_of`], whatever the device.
    fn name_of_user(&self, user: UserKey) -> String {
        self.name_of(Who { device: DeviceKey(user.0), user })
    }

    /// What a person is called, or the first of their words while they have not said so.
    pub(super) fn name_of(&self, who: Who) -> String {
        match self.timeline.name_of(who) {
            "" => who.user.words().into_iter().take(2).collect::<Vec<_>>().join("-"),
            name => name.to_owned(),
        }
    }

    /// Whether the members have not been told of the person's list, and can be.
    pub(super) fn lacks(&self, list: &DeviceList) -> bool {
        let known = self.timeline.list_of(list.user).map_or(0, |known| known.counter).max(self.wire.listed);
        let on_its_way = |out: &OutRecord| match &out.letter {
            Letter::Content(content) if content.kind == DEVICES_KIND && out.failed.is_none() => {
                matches!(content.message(), Message::Devices(sent) if sent.counter >= list.counter)
            }
            _ => false,
        };
        self.place.seat().is_some() && self.up_to_date() && known < list.counter && !self.outbox.iter().any(on_its_way)
    }

    /// Puts the list with this number into the outbox.
    pub(super) fn tell(&mut self, letter: OutRecord, counter: u64) -> Vec<Persist> {
        self.wire.listed = counter;
        self.outbox.push(letter, false)
    }

    /// What this device said before its storage was restored, and cannot open any more, as its outbox has it.
    fn sent(&self, me: &Identity, message: MessageId) -> Option<SentRecord> {
        let out = self.outbox.iter().find(|out| out.message == message)?;
        let Letter::Content(content) = &out.letter else { return None };
        Some(SentRecord { sender: Who { device: me.device(), user: me.user() }, message, content: content.clone() })
    }

    /// The messages of the outbox that the log is not known to have. One that it has is there only because a crash came before it was forgotten.
    fn waiting(&self) -> impl Iterator<Item = &OutRecord> {
        let is_waited_for = |message: MessageId| self.outbox.iter().any(|out| out.message == message);
        let messages = self.shown.values().filter_map(|shown| match &shown.what {
            What::Message(opened) => Some(opened.message),
            What::Sent(sent) => Some(sent.message),
            What::Change(..) | What::Post(_) => None,
        });
        let known: BTreeSet<_> = messages.filter(|_| !self.outbox.is_empty()).filter(|message| is_waited_for(*message)).collect();
        self.outbox.iter().filter(move |out| !known.contains(&out.message))
    }

    /// Whether this device's certificate is on its way.
    fn is_introduced(&self) -> bool {
        self.outbox
            .iter()
            .any(|out| out.failed.is_none() && matches!(&out.letter, Letter::Content(content) if content.kind == DEVICE_KIND))
    }
}

/// The content number of [`Message::Device`].
const DEVICE_KIND: u16 = 2;

fn first_16(digest: &Digest) -> [u8; 16] {
    digest.0.first_chunk().copied().unwrap_or_default()
}
