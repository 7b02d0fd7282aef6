//! What is at a person's: clients, what they have kept, and their links.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    convert::Infallible,
    sync::Arc,
};

use bytes::Bytes;
use waxwing::{
    client::{
        Client, LinkId, Output, Transport,
        view::{Command, ConnectionState, Event, Identity, Level, Message, MessageKind, MessageState, Room, RoomState},
    },
    core::session::Session,
    router::{Conn, ConnId},
};

/// A deterministic source of randomness (SplitMix64): for schedules, and for keys that nobody has to keep secret.
#[derive(Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }
}

impl rand_core::TryRng for Rng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::try_from(self.next() >> 32).unwrap())
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.next())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

impl rand_core::TryCryptoRng for Rng {}

/// The server's end of a link.
pub struct ServerEnd {
    pub session: Session,
    pub conn: Option<Arc<Conn>>,
    pub id: ConnId,
    /// Answers of the session before the login.
    pub early: VecDeque<Bytes>,
    /// Bytes that came before the login.
    pub strange: usize,
}

/// A link: what is under way on it, in order and without loss, for as long as anything gets through.
pub struct Pipe {
    pub transport: Transport,
    /// `None` while it is being opened.
    pub end: Option<ServerEnd>,
    pub to_server: VecDeque<Bytes>,
    pub to_client: VecDeque<Bytes>,
    /// Nothing gets through any more, and nobody is told.
    pub silent: bool,
    /// Nothing but so many frames gets through to the client.
    pub mute_after: Option<usize>,
    /// The client has closed it: what it sent before may still arrive.
    pub closed: bool,
}

/// One device: its client, what it has kept, and its links.
pub struct Device {
    pub client: Client,
    pub stored: BTreeMap<String, Vec<u8>>,
    pub links: BTreeMap<LinkId, Pipe>,
    /// UDP stalls for this device.
    pub udp_blocked: bool,
    pub timer_ms: Option<u64>,
    pub seed: u64,
    /// Comes in by an invitation to the person's card, and not by a link.
    pub by_card: bool,
    /// As a person sees it.
    pub identity: Option<Identity>,
    /// The room into which somebody unknown invites them.
    pub request: Option<String>,
    pub room: Option<Room>,
    pub messages: BTreeMap<String, Message>,
    pub notices: Vec<(Level, String)>,
    pub sent: Vec<String>,
    /// Texts of its own that it was told to be on the server's disk.
    pub acked: BTreeSet<String>,
    /// An older copy of its storage, and whether it was ever put back to one.
    pub snapshot: Option<BTreeMap<String, Vec<u8>>>,
    pub restored: bool,
    pub online: Option<String>,
    pub moves: Moves,
}

/// What happened over all schedules: a simulation in which nothing moves proves nothing.
#[derive(Debug, Default, Clone, Copy)]
pub struct Moves {
    pub up: u32,
    pub back: u32,
    pub resumed: u32,
    pub challenged: u32,
    /// Resumes that were not accepted, with frames behind them.
    pub dropped: u32,
    /// People that were put out, or handed a link to come in by, and devices that were put back to an older storage.
    pub removed: u32,
    pub invited: u32,
    /// Invitations to a card, and people who came in by one.
    pub asked: u32,
    pub accepted: u32,
    pub restored: u32,
    /// Newcomers that read what was said before they came in.
    pub read_back: u32,
    /// Devices that had fallen behind, and read what they missed.
    pub caught_up: u32,
    /// Devices that are told that nobody has some of what they missed.
    pub lacking: u32,
}

impl Moves {
    pub const fn and(self, other: Self) -> Self {
        Self {
            up: self.up + other.up,
            back: self.back + other.back,
            resumed: self.resumed + other.resumed,
            challenged: self.challenged + other.challenged,
            dropped: self.dropped + other.dropped,
            removed: self.removed + other.removed,
            invited: self.invited + other.invited,
            asked: self.asked + other.asked,
            accepted: self.accepted + other.accepted,
            restored: self.restored + other.restored,
            read_back: self.read_back + other.read_back,
            caught_up: self.caught_up + other.caught_up,
            lacking: self.lacking + other.lacking,
        }
    }
}

pub fn client(seed: u64) -> Client {
    Client::new("http://localhost:8433", Bytes::new(), Box::new(Rng(seed)))
}

impl Device {
    pub fn new(seed: u64, name: &str) -> Self {
        let mut device = Self::nobody(seed);
        device.client.command(Command::Start { name: name.to_owned() }, 1);
        device
    }

    /// A device that is nobody's yet.
    pub fn nobody(seed: u64) -> Self {
        let mut device = Self {
            client: client(seed),
            stored: BTreeMap::new(),
            links: BTreeMap::new(),
            udp_blocked: false,
            timer_ms: None,
            seed,
            by_card: false,
            identity: None,
            request: None,
            room: None,
            messages: BTreeMap::new(),
            notices: Vec::new(),
            sent: Vec::new(),
            acked: BTreeSet::new(),
            snapshot: None,
            restored: false,
            online: None,
            moves: Moves::default(),
        };
        device.client.start(1);
        device
    }

    /// Carries out at most `count` outputs, in order.
    pub fn perform(&mut self, count: usize) {
        for _ in 0..count {
            let Some(output) = self.client.poll() else { return };
            match output {
                Output::Persist { key, value: Some(value) } => drop(self.stored.insert(key, value)),
                Output::Persist { key, value: None } => drop(self.stored.remove(&key)),
                Output::Open { link, transport, .. } => drop(self.links.insert(link, Pipe::new(transport))),
                Output::Send { link, frame } => {
                    let open = self.links.get_mut(&link).filter(|pipe| !pipe.closed && pipe.end.is_some());
                    open.into_iter().for_each(|pipe| pipe.to_server.push_back(frame.clone()));
                }
                Output::Close { link } => {
                    // A link that was lost meanwhile is gone; one that is being opened is given up.
                    if let Some(pipe) = self.links.get_mut(&link) {
                        pipe.closed = true;
                        pipe.to_client.clear();
                    }
                }
                Output::Timer { at_ms } => self.timer_ms = Some(at_ms),
                Output::Event(event) => self.see(event),
            }
        }
    }

    pub fn see(&mut self, event: Event) {
        match event {
            Event::Identity { identity } => self.identity = identity,
            Event::Invitation { invitation } => self.request = Some(invitation.room),
            Event::InvitationRemoved { .. } => self.request = None,
            Event::Room { room } => self.room = Some(room),
            Event::Message { message, .. } => {
                if message.mine && message.state == MessageState::Sent {
                    self.acked.insert(message.text.clone());
                }
                self.messages.insert(message.key.clone(), message);
            }
            Event::MessageRemoved { key, .. } => drop(self.messages.remove(&key)),
            Event::Notice { level, text, .. } => self.notices.push((level, text)),
            Event::Connection { state, transport, .. } => {
                let before = self.online.take();
                self.online = transport.filter(|_| state == ConnectionState::Online);
                match (before.as_deref(), self.online.as_deref()) {
                    (Some("ws"), Some("wt")) => self.moves.up += 1,
                    (Some("wt"), Some("ws")) => self.moves.back += 1,
                    _ => {}
                }
            }
            _ => {}
        }
    }

    /// Where in the log this device came in; 0 for who made the room.
    pub fn came_in(&self) -> u64 {
        let name = self.identity.as_ref().map_or("", |identity| &identity.name);
        let own = self.messages.values().filter(|message| match message.kind {
            MessageKind::Join => message.mine,
            MessageKind::Added => message.text == name,
            _ => false,
        });
        own.filter_map(|message| message.seq).max().unwrap_or(0)
    }

    /// Whether it can be used for now.
    pub fn is_open(&self) -> bool {
        self.room.as_ref().is_some_and(|room| room.state == RoomState::Open)
    }

    /// What was said, as this device has it.
    pub fn history(&self) -> Vec<(u64, String, String)> {
        let mut history: Vec<_> = self
            .messages
            .values()
            .filter(|message| message.kind == MessageKind::Text)
            .filter_map(|message| Some((message.seq?, message.author.name.clone(), message.text.clone())))
            .collect();
        history.sort();
        history
    }
}

impl Pipe {
    pub const fn new(transport: Transport) -> Self {
        Self {
            transport,
            end: None,
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            silent: false,
            mute_after: None,
            closed: false,
        }
    }

    pub fn stalls(&self, udp_blocked: bool) -> bool {
        self.silent || (udp_blocked && self.transport == Transport::WebTransport)
    }

    /// Nothing is under way that could still arrive.
    pub fn is_empty(&self) -> bool {
        let idle = self.end.as_ref().and_then(|end| end.conn.as_ref()).is_some_and(|conn| conn.outbox.bytes() == 0);
        self.silent || (self.to_server.is_empty() && (self.to_client.is_empty() || self.mute_after == Some(0)) && idle)
    }
}
