//! The client, without IO: identity, rooms, outboxes and one session, as a state machine.
//!
//! A shell feeds it what happened (`load`, `start`, `opened`, `received`, `lost`, `tick`, `command`) and carries out what
//! [`Client::poll`] returns, in order: a [`Output::Send`] must not leave before every [`Output::Persist`] that precedes it is
//! durable. Shells open and close numbered links and pass bytes; which link carries the session is decided here. The same code
//! runs in the terminal, in the browser and in the simulator.

pub mod evidence;
pub mod outbox;
pub mod qr;
pub mod records;
pub mod timeline;
pub mod view;

mod acquaintances;
mod contacts;
mod devices;
mod link;
mod linking;
mod packages;
mod patience;
mod people;
mod room;
mod session;
mod token;

#[cfg(feature = "client")]
pub mod native;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use self::{
    link::Caller,
    records::{
        AcquaintancesRecord, ContactRecord, GapRecord, GroupRecord, IdentityRecord, InvitesRecord, LogRecord, LostRecord,
        OutRecord, OutboxRecord, PastRecord, PostingRecord, RoomRecord, Who, encode,
    },
    room::Room,
    session::{Change, Turn, Wire},
    view::{Command, ConnectionState, Event, Level},
};
use crate::{
    core::{
        frame::{ClientFrame, DecodeError, Resume, ServerFrame, take_delimited},
        id::{DeviceKey, RoomId},
    },
    seal::identity::{Identity, UserKey},
};

pub use self::{
    contacts::safety_hash,
    link::{Choice, LinkId, TicketRecord, Transport},
    linking::device_words,
    people::ImportError,
};

/// A source of randomness that a client owns.
pub type ClientRandom = Box<dyn rand_core::CryptoRng + Send>;

/// What a shell carries out.
#[derive(Clone, PartialEq, Eq)]
#[allow(
    clippy::large_enum_variant,
    reason = "a room's view is large, and is moved once from a queue that it is alone in for a moment"
)]
pub enum Output {
    /// Keep this value, or forget the key.
    Persist {
        /// The key.
        key: String,
        /// The value; `None` forgets.
        value: Option<Vec<u8>>,
    },
    /// Open this link to the edge; then call `opened`, or `lost` if it cannot be.
    Open {
        /// Its name from now on.
        link: LinkId,
        /// What is to carry it.
        transport: Transport,
        /// What may be said while it is opened, in packets that somebody may repeat (TLS 1.3 early data). Call `opened_resuming`
        /// instead of `opened` if the server took it so; else it must not be said at all.
        early: Option<Box<Resume>>,
    },
    /// Send this frame (without its length) over this link, if it is still there.
    Send {
        /// The link.
        link: LinkId,
        /// The frame.
        frame: Bytes,
    },
    /// Close this link, or give up opening it, after what was sent over it; nothing more is to be said about it.
    Close {
        /// The link.
        link: LinkId,
    },
    /// Tell the person.
    Event(Event),
    /// Call `tick` at this time, which replaces the one named before.
    Timer {
        /// Wall clock, in milliseconds since the Unix epoch.
        at_ms: u64,
    },
}

impl core::fmt::Debug for Output {
    /// Without values, frames and texts: some are secrets.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Persist { key, .. } => write!(f, "Persist({key})"),
            Self::Open { link, transport, .. } => write!(f, "Open({}, {})", link.0, transport.name()),
            Self::Send { link, frame } => write!(f, "Send({}, {} bytes)", link.0, frame.len()),
            Self::Close { link } => write!(f, "Close({})", link.0),
            Self::Event(_) => f.write_str("Event"),
            Self::Timer { at_ms } => write!(f, "Timer({at_ms})"),
        }
    }
}

/// A timer that comes so much later than asked for was slept through.
const SLEPT_MS: u64 = 3_000;

/// Stored bytes that are no record of this version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the stored entry {key:?} is damaged or of another version")]
pub struct LoadError {
    /// The entry.
    pub key: String,
}

/// One device's client.
pub struct Client {
    /// `host:port` as dialled: it is signed at login.
    authority: String,
    /// Scheme and authority for links.
    origin: String,
    token: Bytes,
    rng: ClientRandom,
    me: Option<Me>,
    rooms: BTreeMap<RoomId, Room>,
    /// People whose words were compared.
    contacts: BTreeMap<UserKey, ContactRecord>,
    /// Invitations on their way to other devices of this person.
    posts: BTreeMap<RoomId, outbox::Outbox>,
    wire: Wire,
    /// Keys of records of former lives of rooms' logs.
    former: Vec<(RoomId, String)>,
    stored: Stored,
    /// No room's keys are renewed on schedule before this time.
    renew_next_ms: u64,
    /// What is too old in rooms whose newcomers read the last days is looked for at this time.
    forget_next_ms: u64,
    /// The key packages of this device.
    shelves: packages::Shelves,
    /// Key packages of others that were asked for on this connection: into which room, and whose.
    takes: BTreeMap<u32, (RoomId, Who)>,
    /// People beyond the rooms.
    acquaintances: AcquaintancesRecord,
    /// What was posted to this device and does not open yet.
    letters: Vec<Bytes>,
    /// Names the latest question about key packages.
    requests: u32,
    /// The time named in the latest [`Output::Timer`].
    timer_ms: Option<u64>,
    outputs: VecDeque<Output>,
}

/// The person at this device.
#[derive(Debug)]
struct Me {
    record: IdentityRecord,
    identity: Identity,
    inbox: people::InboxState,
    /// Nobody's yet: the code by which somebody can make this device theirs.
    shown: Option<linking::Shown>,
    /// Rooms may not know the person's newest list of devices.
    untold: bool,
}

/// Entries given to [`Client::load`], until [`Client::start`].
#[derive(Debug, Default)]
struct Stored {
    rooms: Vec<(RoomId, RoomRecord)>,
    groups: BTreeMap<RoomId, GroupRecord>,
    pasts: BTreeMap<RoomId, PastRecord>,
    postings: BTreeMap<RoomId, PostingRecord>,
    losts: BTreeMap<RoomId, LostRecord>,
    gaps: BTreeMap<(RoomId, u64), GapRecord>,
    logs: BTreeMap<(RoomId, u64), LogRecord>,
    outboxes: BTreeMap<RoomId, OutboxRecord>,
    outs: BTreeMap<(RoomId, u64), OutRecord>,
    contradicted: BTreeMap<RoomId, Vec<evidence::Contradicted>>,
    contacts: BTreeMap<UserKey, ContactRecord>,
    former: Vec<(RoomId, String)>,
    ticket: Option<TicketRecord>,
    token: Option<Bytes>,
    shelves: Option<packages::Shelves>,
    acquaintances: Option<AcquaintancesRecord>,
    invites: BTreeMap<RoomId, InvitesRecord>,
}

impl core::fmt::Debug for Client {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Client").field("authority", &self.authority).field("rooms", &self.rooms.len()).finish_non_exhaustive()
    }
}

impl Client {
    /// A client of the edge at `origin` (`https://chat.example.com`, `http://localhost:8433`), that will present `token`; where it
    /// is empty, the one that it was given last ([`Command::Token`]).
    #[must_use]
    pub fn new(origin: &str, token: Bytes, rng: ClientRandom) -> Self {
        let authority = origin.split_once("://").map_or(origin, |(_, authority)| authority);
        Self {
            authority: authority.to_owned(),
            origin: origin.to_owned(),
            token,
            rng,
            me: None,
            rooms: BTreeMap::new(),
            contacts: BTreeMap::new(),
            posts: BTreeMap::new(),
            wire: Wire::default(),
            former: Vec::new(),
            stored: Stored::default(),
            renew_next_ms: 0,
            forget_next_ms: 0,
            shelves: packages::Shelves::default(),
            takes: BTreeMap::new(),
            acquaintances: AcquaintancesRecord::default(),
            letters: Vec::new(),
            requests: 0,
            timer_ms: None,
            outputs: VecDeque::new(),
        }
    }

    /// Limits the transports that are used. Before [`Client::start`].
    pub const fn choose(&mut self, choice: Choice) {
        self.wire.choose(choice);
    }

    /// Gives back a stored entry. All of them come before [`Client::start`], in any order.
    ///
    /// # Errors
    /// [`LoadError`] names an entry that this version cannot read; the others are good.
    pub fn load(&mut self, key: &str, value: &[u8]) -> Result<(), LoadError> {
        self.stored.take(key, value, &mut self.me).ok_or_else(|| LoadError { key: key.to_owned() })
    }

    /// Begins: tells what was stored, and connects if there is an identity.
    pub fn start(&mut self, now_ms: u64) {
        let mut stored = core::mem::take(&mut self.stored);
        self.former = core::mem::take(&mut stored.former);
        self.contacts = core::mem::take(&mut stored.contacts);
        self.load_token(stored.token.take());
        stored.ticket.take().into_iter().for_each(|ticket| self.wire.load_ticket(ticket));
        self.shelves = stored.shelves.take().unwrap_or_default();
        self.acquaintances = stored.acquaintances.take().unwrap_or_default();
        self.restore(stored, now_ms);
        self.forget_due(now_ms);
        self.tell_identity();
        let rooms: Vec<_> = self.rooms.keys().copied().collect();
        for room in rooms {
            self.tell_history(room);
        }
        self.tell_requests();
        if self.me.is_some() {
            self.connect(now_ms);
        } else {
            self.outputs.push_back(Output::Event(Event::Connection {
                state: ConnectionState::Offline,
                transport: None,
                detail: None,
            }));
        }
        self.schedule(now_ms);
    }

    /// The next thing to carry out.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// A person's command. What is wrong with it is told as a notice.
    pub fn command(&mut self, command: Command, now_ms: u64) {
        if self.is_nobody() && !matches!(command, Command::Start { .. } | Command::ShowCode | Command::Token { .. }) {
            return self.notice(Level::Warn, "choose a name first", None);
        }
        match command {
            Command::Start { name } => self.start_identity(&name, now_ms),
            Command::CreateRoom { title } => self.create_room(&title, false, now_ms),
            Command::CreateLargeRoom { title } => self.create_room(&title, true, now_ms),
            Command::Join { link } => match link.parse() {
                Ok(link) => self.join(&link, now_ms),
                Err(error) => self.notice(Level::Warn, &error.to_string(), None),
            },
            Command::Send { room, text } => self.in_room(&room, |this, room| this.send_text(room, &text, now_ms)),
            Command::Retry { room, key } => self.in_room(&room, |this, room| this.retry(room, &key, now_ms)),
            Command::Discard { room, key } => self.in_room(&room, |this, room| this.discard(room, &key)),
            Command::Typing { room } => self.in_room(&room, |this, room| this.typing(room, now_ms)),
            Command::MakeLink { room } => self.in_room(&room, |this, room| this.make_link(room, now_ms)),
            Command::Remove { room, user } => self.in_room(&room, |this, room| this.remove_person(room, &user, now_ms)),
            Command::SetRole { room, user, role } => {
                self.in_room(&room, |this, room| this.set_role(room, &user, role, now_ms));
            }
            Command::SetHistory { room, history } => self.in_room(&room, |this, room| this.set_history(room, history, now_ms)),
            Command::Refresh { room } => self.in_room(&room, |this, room| this.refresh(room, now_ms)),
            Command::OpenDropBox { room } => self.in_room(&room, |this, room| this.open_drop_box(room, now_ms)),
            Command::CloseDropBox { room } => self.in_room(&room, |this, room| this.close_drop_box(room, now_ms)),
            Command::Leave { room } => self.in_room(&room, |this, room| this.leave(room, now_ms)),
            Command::ShowCode => self.show_code(now_ms),
            Command::Token { token } => self.take_token(&token, now_ms),
            Command::RemoveDevice { device } => self.remove_device(&device, now_ms),
            Command::LinkDevice { code } => self.link_device(&code, now_ms),
            Command::Verify { user, verified } => self.verify_person(&user, verified, now_ms),
            Command::Compare { text } => self.compare_code(&text, now_ms),
            Command::Evidence { room } => self.in_room(&room, |this, room| this.tell_evidence(room, now_ms)),
            Command::Forget { room } => self.in_room(&room, Self::forget),
            Command::DeleteRoom { room } => self.in_room(&room, Self::delete),
            Command::Invite { room, who } => self.in_room(&room, |this, room| this.invite(room, &who, now_ms)),
            Command::Direct { who } => self.direct(&who, now_ms),
            Command::Accept { room } => self.in_request(&room, Self::accept),
            Command::Decline { room } => self.in_request(&room, Self::decline),
        }
        self.schedule(now_ms);
    }

    fn in_room(&mut self, room: &str, act: impl FnOnce(&mut Self, RoomId)) {
        match room.parse::<RoomId>().ok().filter(|room| self.rooms.contains_key(room)) {
            Some(room) => act(self, room),
            None => self.notice(Level::Warn, "there is no such room on this device", None),
        }
    }

    /// A link is open. `exporter` is the TLS exporter with [`crate::core::login::EXPORTER_LABEL`], where the platform has one.
    pub fn opened(&mut self, link: LinkId, exporter: Option<[u8; 32]>, now_ms: u64) {
        let (wire, mut turn) = self.wire(now_ms);
        let change = wire.opened(link, exporter, &mut turn);
        self.changed(change, now_ms);
    }

    /// A link is open, and the server has taken the resume that came with [`Output::Open`] as early data.
    pub fn opened_resuming(&mut self, link: LinkId, now_ms: u64) {
        let (wire, mut turn) = self.wire(now_ms);
        let change = wire.opened_resuming(link, &mut turn);
        self.changed(change, now_ms);
    }

    /// A link is gone, or could not be opened.
    pub fn lost(&mut self, link: LinkId, reason: &str, now_ms: u64) {
        let (wire, mut turn) = self.wire(now_ms);
        let change = wire.lost(link, reason, &mut turn);
        self.changed(change, now_ms);
    }

    /// The links, and what an input of theirs comes with.
    fn wire(&mut self, now_ms: u64) -> (&mut Wire, Turn<'_>) {
        let Self { wire, rng, outputs, me, authority, token, .. } = self;
        let caller = me.as_ref().map(|me| Caller { authority, token, identity: &me.identity });
        (wire, Turn { now_ms, rng, outputs, caller })
    }

    fn connect(&mut self, now_ms: u64) {
        let (wire, mut turn) = self.wire(now_ms);
        wire.connect(&mut turn);
    }

    /// The session may be elsewhere, or nowhere.
    fn changed(&mut self, change: Change, now_ms: u64) {
        if change != Change::None {
            self.forget_connection();
        }
        match change {
            Change::None => {}
            Change::Attached => self.begin_all(now_ms),
            Change::Detached => {
                let rooms: Vec<_> = self.rooms.keys().copied().collect();
                for id in rooms {
                    self.rooms.get_mut(&id).into_iter().for_each(Room::nobody_is_known_to_be_there);
                    self.tell_room(id);
                }
            }
        }
        self.schedule(now_ms);
    }

    /// Nothing that was under way on the link of until now counts any more.
    fn forget_connection(&mut self) {
        for room in self.rooms.values_mut() {
            room.disconnected();
        }
        for outbox in self.posts.values_mut() {
            outbox.disconnected();
        }
        self.shelves.disconnected();
        self.takes.clear();
        if let Some(me) = &mut self.me {
            me.inbox = people::InboxState::default();
        }
    }

    /// The person is back, or the machine: look at the link at once, and connect at once instead of waiting.
    pub fn wake(&mut self, now_ms: u64) {
        let (wire, mut turn) = self.wire(now_ms);
        wire.wake(false, &mut turn);
        self.schedule(now_ms);
    }

    /// This device came to another network, or back to one.
    pub fn network_changed(&mut self, now_ms: u64) {
        let (wire, mut turn) = self.wire(now_ms);
        let change = wire.network_changed(&mut turn);
        self.changed(change, now_ms);
    }

    /// Bytes came over a link that are no whole frame yet: it is slow, not dead.
    pub fn heard(&mut self, link: LinkId, now_ms: u64) {
        self.wire.heard(link, now_ms);
        self.schedule(now_ms);
    }

    /// Bytes of one message of a link: whole frames, each preceded by its length.
    pub fn received(&mut self, link: LinkId, message: Bytes, now_ms: u64) {
        let mut rest = message;
        loop {
            match take_delimited(&mut rest, u32::MAX) {
                Ok(Some(frame)) => self.received_frame(link, &frame, now_ms),
                Ok(None) if rest.is_empty() => return,
                Ok(None) => return self.protocol_error(link, &DecodeError::Truncated, now_ms),
                Err(error) => return self.protocol_error(link, &error, now_ms),
            }
        }
    }

    /// One frame, without its length.
    pub fn received_frame(&mut self, link: LinkId, frame: &[u8], now_ms: u64) {
        match ServerFrame::decode(frame) {
            Ok(frame) => self.handle(link, frame, now_ms),
            Err(error) => self.protocol_error(link, &error, now_ms),
        }
    }

    fn protocol_error(&mut self, link: LinkId, error: &DecodeError, now_ms: u64) {
        self.notice(Level::Warn, &format!("the server sent something that is no frame: {error}"), None);
        let (wire, mut turn) = self.wire(now_ms);
        let change = wire.give_up(link, "the server broke the protocol", &mut turn);
        self.changed(change, now_ms);
    }

    /// The time named by [`Output::Timer`] has come, or any other time.
    pub fn tick(&mut self, now_ms: u64) {
        let slept = self.timer_ms.take().is_some_and(|at_ms| now_ms >= at_ms.saturating_add(SLEPT_MS));
        self.renew_code_when_due(now_ms);
        let owed = self.rooms.values().any(Room::is_owed);
        let (wire, mut turn) = self.wire(now_ms);
        if slept {
            wire.wake(true, &mut turn);
        }
        let change = wire.tick(owed, &mut turn);
        self.changed(change, now_ms);
        let enter: Vec<_> = self.rooms.iter_mut().filter_map(|(id, room)| room.ask_again(now_ms).then_some(*id)).collect();
        let retry: Vec<_> = self.rooms.iter().filter_map(|(id, room)| room.retry_due(now_ms).then_some(*id)).collect();
        let rooms: Vec<_> = self.rooms.keys().copied().collect();
        for room in rooms {
            self.take_out(room, now_ms);
            self.tend_drop_box(room, now_ms);
            self.tend_gaps(room, now_ms);
        }
        self.renew_due(now_ms);
        self.forget_due(now_ms);
        let ask: Vec<_> = self.rooms.iter().filter_map(|(id, room)| room.invites_due(now_ms).then_some(*id)).collect();
        enter.into_iter().for_each(|room| self.begin(room));
        ask.into_iter().for_each(|room| self.ask_for_packages(room));
        retry.into_iter().for_each(|room| self.pump(room, now_ms));
        self.packages_tick(now_ms);
        self.schedule(now_ms);
    }

    /// Asks to be called when the next thing is due.
    fn schedule(&mut self, now_ms: u64) {
        let retries = self.rooms.values().filter_map(Room::retry_at);
        let due =
            self.code_expires_ms().into_iter().chain(self.shelves.look_at()).chain(self.renews_at()).chain(self.forgets_at());
        let next = retries.chain(self.wire.timeout(now_ms)).chain(due).min();
        if let Some(at_ms) = next.filter(|at_ms| self.timer_ms != Some(*at_ms)) {
            self.timer_ms = next;
            self.outputs.push_back(Output::Timer { at_ms });
        }
    }

    fn send(&mut self, frame: &ClientFrame) {
        if self.wire.is_attached() {
            self.wire.send(frame.encode(), &mut self.outputs);
        }
    }

    fn persist(&mut self, key: String, value: Option<Vec<u8>>) {
        self.outputs.push_back(Output::Persist { key, value });
    }

    fn persist_all(&mut self, entries: Vec<outbox::Persist>) {
        for (key, value) in entries {
            self.persist(key, value);
        }
    }

    fn persist_me(&mut self) {
        if let Some(me) = &self.me {
            let value = encode(&me.record);
            self.persist("identity".to_owned(), Some(value));
        }
    }

    fn notice(&mut self, level: Level, text: &str, room: Option<RoomId>) {
        let room = room.map(|room| room.to_string());
        self.outputs.push_back(Output::Event(Event::Notice { level, text: text.to_owned(), room }));
    }
}

impl Stored {
    /// Takes one entry; `None` when it is no record.
    fn take(&mut self, key: &str, value: &[u8], me: &mut Option<Me>) -> Option<()> {
        let mut parts = key.split('/');
        let (kind, first, second) = (parts.next()?, parts.next(), parts.next());
        let id = || first?.parse::<RoomId>().ok();
        let number = || u64::from_str_radix(second?, 16).ok();
        match kind {
            "acquaintances" => self.acquaintances = Some(postcard::from_bytes(value).ok()?),
            "invites" => drop(self.invites.insert(id()?, postcard::from_bytes(value).ok()?)),
            "packages" => self.shelves = Some(packages::Shelves::load(postcard::from_bytes(value).ok()?).ok()?),
            "token" => self.token = Some(Bytes::copy_from_slice(value)),
            "ticket" => self.ticket = Some(postcard::from_bytes(value).ok()?),
            "identity" => *me = Some(Me::new(postcard::from_bytes(value).ok()?)),
            "room" => self.rooms.push((id()?, postcard::from_bytes(value).ok()?)),
            "group" => drop(self.groups.insert(id()?, postcard::from_bytes(value).ok()?)),
            "past" => drop(self.pasts.insert(id()?, postcard::from_bytes(value).ok()?)),
            "posting" => drop(self.postings.insert(id()?, postcard::from_bytes(value).ok()?)),
            "gap" => drop(self.gaps.insert((id()?, number()?), postcard::from_bytes(value).ok()?)),
            "lost" => drop(self.losts.insert(id()?, postcard::from_bytes(value).ok()?)),
            "log" => drop(self.logs.insert((id()?, number()?), postcard::from_bytes(value).ok()?)),
            "outbox" => drop(self.outboxes.insert(id()?, postcard::from_bytes(value).ok()?)),
            "out" => drop(self.outs.insert((id()?, number()?), postcard::from_bytes(value).ok()?)),
            "contact" => {
                let user = UserKey(first?.parse::<DeviceKey>().ok()?.0);
                drop(self.contacts.insert(user, postcard::from_bytes(value).ok()?));
            }
            "evidence" => drop(self.contradicted.insert(id()?, postcard::from_bytes(value).ok()?)),
            // Kept for the person to look at; nothing is computed from them.
            "former" => self.former.push((id()?, key.to_owned())),
            _ => return None,
        }
        Some(())
    }

    /// An outbox towards a log, as stored or new.
    fn outbox(&mut self, name: RoomId, log: RoomId, rng: &mut ClientRandom) -> outbox::Outbox {
        use crate::seal::Random as _;
        let mut later = self.outs.split_off(&(name, 0));
        let mut items = Vec::new();
        while let Some(entry) = later.first_entry() {
            if entry.key().0 != name {
                break;
            }
            let ((_, number), out) = entry.remove_entry();
            items.push((number, out));
        }
        self.outs.append(&mut later);
        match self.outboxes.remove(&name) {
            Some(record) => outbox::Outbox::load(name, log, record, items),
            None => outbox::Outbox::new(name, log, crate::core::id::ProducerId(rng.bytes())),
        }
    }
}
