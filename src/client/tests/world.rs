//! A client and a server that says what a session says, on a virtual clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
};

use bytes::Bytes;

use super::super::{
    Choice, Client, LinkId, Output, Transport,
    view::{Command, ConnectionState, Event, Message},
};
use crate::core::{
    chain,
    close::CloseCode,
    envelope,
    frame::{ClientFrame, DropBoxOffer, Hello, Item, Page, Position, Publish, Resume, ServerFrame},
    handshake,
    id::{DeviceKey, Digest, LogId, Nonce, RoomId},
    limits::Limits,
    packages::{Packages, Suite},
    session::{Action, Admission, PackagesAction, PackagesRequest, RoomRequest, Session, Setup, Step},
};

pub(super) const WS: Transport = Transport::WebSocket;
pub(super) const WT: Transport = Transport::WebTransport;
pub(super) const QUIC: Transport = Transport::Quic;
/// When everything begins.
const START_MS: u64 = 1_000_000;

/// Deterministic randomness (SplitMix64).
pub(super) struct Rng(pub(super) u64);

impl Rng {
    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z ^ (z >> 31)
    }
}

impl rand_core::TryRng for Rng {
    type Error = Infallible;
    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::try_from(self.word() >> 32).unwrap())
    }
    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.word())
    }
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        bytes.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&self.word().to_le_bytes()[..chunk.len()]));
        Ok(())
    }
}

impl rand_core::TryCryptoRng for Rng {}

/// A server that gives tickets, and may have forgotten them.
pub(super) struct Edge {
    pub(super) forgotten: bool,
    /// Takes early data.
    pub(super) early: bool,
    /// Lets in only devices that bring this token.
    pub(super) token: Bytes,
}

impl Admission for Edge {
    fn admit(&self, hello: &Hello, _: u64) -> Result<(), CloseCode> {
        let admits = self.token.is_empty() || self.token == hello.token;
        admits.then_some(()).ok_or(CloseCode::Unauthenticated)
    }

    fn ticket(&self, _: &DeviceKey, _: u64) -> Bytes {
        Bytes::from_static(&[9; 40])
    }

    fn recognises(&self, resume: &Resume, now_ms: u64) -> bool {
        assert!(resume.time_ms.abs_diff(now_ms) < 10, "the client knows the server's clock");
        !self.forgotten
    }

    fn is_first(&self, _: Digest, _: u64) -> bool {
        true
    }
}

pub(super) struct World {
    pub(super) client: Client,
    pub(super) now_ms: u64,
    pub(super) edge: Edge,
    pub(super) sessions: BTreeMap<LinkId, (Transport, Session)>,
    /// Links of these are not opened, and nobody is told.
    pub(super) hang: BTreeSet<Transport>,
    /// Over these nothing gets through.
    pub(super) dead: BTreeSet<Transport>,
    /// Over these pings are not answered.
    pub(super) mute: BTreeSet<Transport>,
    pub(super) timer_ms: Option<u64>,
    pub(super) stored: BTreeMap<String, Vec<u8>>,
    /// What the person saw of messages.
    pub(super) messages: Vec<Message>,
    /// What the person saw of the connection.
    pub(super) seen: Vec<(ConnectionState, Option<String>)>,
    /// Links asked for.
    pub(super) opens: Vec<(u64, Transport)>,
    /// What might have been said while they were opened.
    pub(super) earlies: Vec<(Transport, Option<Resume>)>,
    /// The device's key packages, those for large rooms, and whether answers to what it published are lost.
    pub(super) packages: Packages,
    pub(super) classical: Packages,
    pub(super) silent: bool,
    /// Frames that arrived, by link.
    pub(super) arrived: Vec<(LinkId, ClientFrame)>,
    /// Rooms, if the server has any: what was published in them.
    pub(super) rooms: Option<BTreeMap<RoomId, Vec<Bytes>>>,
    /// What drop-boxes were opened with, or closed.
    pub(super) offers: Vec<Option<DropBoxOffer>>,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        Self::with(Client::new("http://localhost:8433", Bytes::new(), Box::new(Rng(seed))))
    }

    pub(super) fn with(client: Client) -> Self {
        Self {
            client,
            now_ms: START_MS,
            edge: Edge { forgotten: false, early: true, token: Bytes::new() },
            sessions: BTreeMap::new(),
            hang: BTreeSet::new(),
            dead: BTreeSet::new(),
            mute: BTreeSet::new(),
            timer_ms: None,
            stored: BTreeMap::new(),
            messages: Vec::new(),
            seen: Vec::new(),
            opens: Vec::new(),
            earlies: Vec::new(),
            packages: Packages::default(),
            classical: Packages::default(),
            silent: false,
            arrived: Vec::new(),
            rooms: None,
            offers: Vec::new(),
        }
    }

    pub(super) fn begin(&mut self) {
        self.client.start(self.now_ms);
        self.client.command(Command::Start { name: "Ann".into() }, self.now_ms);
        self.settle();
    }

    /// A client that is logged in over this transport and has a ticket.
    pub(super) fn online(seed: u64, transport: Transport) -> Self {
        let mut world = Self::new(seed);
        if transport == WS {
            world.hang.insert(WT);
        }
        world.begin();
        assert_eq!(world.over(), Some(transport.name()));
        world
    }

    /// One that uses WebSocket only.
    pub(super) fn only_websocket(seed: u64) -> Self {
        let mut world = Self::new(seed);
        world.client.choose(Choice::Only(WS));
        world.begin();
        assert_eq!(world.over(), Some("ws"));
        world
    }

    /// Carries everything out until nothing happens any more.
    pub(super) fn settle(&mut self) {
        while let Some(output) = self.client.poll() {
            self.perform(output);
        }
    }

    pub(super) fn perform(&mut self, output: Output) {
        match output {
            Output::Persist { key, value: Some(value) } => drop(self.stored.insert(key, value)),
            Output::Persist { key, value: None } => drop(self.stored.remove(&key)),
            Output::Open { link, transport, early } => {
                self.opens.push((self.now_ms, transport));
                self.earlies.push((transport, early.as_deref().cloned()));
                if self.hang.contains(&transport) || self.dead.contains(&transport) {
                    return;
                }
                match early.filter(|_| self.edge.early) {
                    Some(resume) => self.open_resuming(link, transport, *resume),
                    None => self.open(link, transport),
                }
            }
            Output::Send { link, frame } => self.serve(link, &frame),
            Output::Close { link } => drop(self.sessions.remove(&link)),
            Output::Timer { at_ms } => self.timer_ms = Some(at_ms),
            Output::Event(Event::Connection { state, transport, .. }) => self.seen.push((state, transport)),
            Output::Event(Event::Message { message, .. }) => self.messages.push(message),
            Output::Event(_) => {}
        }
    }

    pub(super) fn open(&mut self, link: LinkId, transport: Transport) {
        self.serve_from_now_on(link, transport, Some([6; 32]));
        self.client.opened(link, Some([6; 32]), self.now_ms);
    }

    /// The server answers what was said early when the client takes the link for open.
    fn open_resuming(&mut self, link: LinkId, transport: Transport, resume: Resume) {
        self.serve_from_now_on(link, transport, None);
        self.client.opened_resuming(link, self.now_ms);
        self.serve(link, &ClientFrame::Resume(resume).encode());
    }

    fn serve_from_now_on(&mut self, link: LinkId, transport: Transport, exporter: Option<[u8; 32]>) {
        let setup = Setup { limits: Limits::default(), nonce: Nonce([5; 32]), exporter, agent: String::new() };
        self.sessions.insert(link, (transport, Session::new(setup, 0)));
    }

    pub(super) fn serve(&mut self, link: LinkId, frame: &[u8]) {
        let Some((transport, session)) = self.sessions.get_mut(&link) else { return };
        if self.dead.contains(transport) {
            return;
        }
        let mute = self.mute.contains(transport);
        let frame = ClientFrame::decode(frame).unwrap();
        self.arrived.push((link, frame.clone()));
        let step = match session.handle(frame, self.now_ms, self.now_ms, &self.edge) {
            Ok(step) => step,
            Err(code) => {
                self.sessions.remove(&link);
                let closing = ServerFrame::Closing { code, retry_after_ms: 0 };
                return self.client.received_frame(link, &closing.encode(), self.now_ms);
            }
        };
        match step {
            Step::Send(ServerFrame::Pong { .. }) if mute => {}
            Step::Send(frame) | Step::Open { welcome: frame, .. } => {
                self.client.received_frame(link, &frame.encode(), self.now_ms)
            }
            Step::Packages(request) => {
                let publishes = matches!(&request.action, PackagesAction::Publish { packages, .. } if !packages.is_empty());
                let answer = self.shelve(request);
                if !(self.silent && publishes) {
                    self.client.received_frame(link, &answer.encode(), self.now_ms);
                }
            }
            Step::Route(request) => {
                for answer in self.route(request) {
                    self.client.received_frame(link, &answer.encode(), self.now_ms);
                }
            }
            Step::Nothing | Step::Goodbye => {}
        }
    }

    fn shelve(&mut self, PackagesRequest { request, suite, action, .. }: PackagesRequest) -> ServerFrame {
        let shelf = if suite == Suite::XWing { &mut self.packages } else { &mut self.classical };
        match action {
            PackagesAction::Publish { packages, replace } => {
                let result = shelf.publish(&packages, replace, self.now_ms, &Limits::default());
                ServerFrame::KeyPackages { request, result: result.map(|()| shelf.left(self.now_ms)) }
            }
            PackagesAction::Take => {
                let taken = shelf.take(self.now_ms).map(|taken| taken.bytes);
                ServerFrame::KeyPackage { request, result: Ok(taken) }
            }
        }
    }

    /// What rooms with one member answer.
    fn route(&mut self, RoomRequest { room, action }: RoomRequest) -> Vec<ServerFrame> {
        let Some(rooms) = &mut self.rooms else { return Vec::new() };
        let (log, log_id, time_ms) = (rooms.entry(room).or_default(), LogId([8; 16]), self.now_ms);
        let (before, mut stored) = (log.len() as u64 + 1, 0);
        if let Action::Publish(publish) = &action {
            let known = log.iter().position(|envelope| *envelope == publish.envelope);
            stored = known.unwrap_or(log.len()) as u64 + 1;
            log.extend(known.is_none().then(|| publish.envelope.clone()));
        }
        let head = log.len() as u64;
        let position = Position { log: log_id, head, floor: 1 };
        let chain_at = |seq: u64| {
            let before = log.iter().zip(1..=seq);
            before.fold(chain::start(room), |value, (envelope, seq)| chain::next(room, value, seq, envelope))
        };
        let page = |after: u64| {
            let items = log.iter().skip(usize::try_from(after).unwrap());
            let items = items.map(|envelope| Item { time_ms, envelope: handshake::outline(envelope) }).collect();
            ServerFrame::Deliver(Page { room, position, first: after + 1, chain: chain_at(after), items })
        };
        match action {
            Action::Create { .. } => vec![ServerFrame::Created { room, log: log_id }],
            Action::Enter { .. } => {
                let newest = log.iter().rposition(|envelope| envelope::is_handshake(envelope));
                vec![ServerFrame::Entered { room, position, handshake: newest.map_or(0, |at| at as u64 + 1) }]
            }
            Action::Subscribe { after } => {
                let subscribed = ServerFrame::Subscribed { room, after, chain: chain_at(after), position };
                if after < head { vec![subscribed, page(after)] } else { vec![subscribed] }
            }
            Action::Publish(Publish { producer, client_seq, .. }) => {
                let ack = ServerFrame::Ack { room, producer, client_seq, seq: stored };
                // The same bytes again are the same record, which was delivered before.
                if stored < before { vec![ack] } else { vec![ack, page(head - 1)] }
            }
            Action::PutDropBox { offer } => {
                let announcement = offer.as_ref().map(|offer| offer.announcement.clone());
                self.offers.push(offer);
                vec![ServerFrame::DropBox { room, announcement }]
            }
            _ => Vec::new(),
        }
    }

    /// Time passes as for a shell: the client is called at the times that it named.
    pub(super) fn pass(&mut self, ms: u64) {
        let until_ms = self.now_ms + ms;
        for turn in 0.. {
            assert!(turn < 100_000, "the client asks for the same time again and again");
            let Some(at_ms) = self.timer_ms.filter(|at_ms| *at_ms <= until_ms) else { break };
            self.now_ms = self.now_ms.max(at_ms);
            self.timer_ms = None;
            self.client.tick(self.now_ms);
            self.settle();
        }
        self.now_ms = until_ms;
    }

    pub(super) fn link(&self, transport: Transport) -> LinkId {
        *self.sessions.iter().find(|(_, (kind, _))| *kind == transport).unwrap().0
    }

    pub(super) fn lose(&mut self, transport: Transport) {
        let link = self.link(transport);
        self.sessions.remove(&link);
        self.client.lost(link, "cut", self.now_ms);
        self.settle();
    }

    /// The server says goodbye over a link.
    pub(super) fn is_closed(&mut self, transport: Transport, code: CloseCode, retry_after_ms: u32) {
        let link = self.link(transport);
        let closing = ServerFrame::Closing { code, retry_after_ms };
        self.client.received_frame(link, &closing.encode(), self.now_ms);
        self.settle();
    }

    pub(super) fn wake(&mut self) {
        self.client.wake(self.now_ms);
        self.settle();
    }

    /// What carries the session, as the person sees it.
    pub(super) fn over(&self) -> Option<&str> {
        let (state, transport) = self.seen.last()?;
        transport.as_deref().filter(|_| *state == ConnectionState::Online)
    }

    pub(super) fn is_offline(&self) -> bool {
        self.seen.last().is_some_and(|(state, _)| *state == ConnectionState::Offline)
    }

    /// How often everything was begun.
    pub(super) fn beginnings(&self) -> usize {
        self.arrived.iter().filter(|(_, frame)| matches!(frame, ClientFrame::Create { .. })).count()
    }

    pub(super) fn opened(&self, transport: Transport) -> usize {
        self.opens.iter().filter(|(_, kind)| *kind == transport).count()
    }
}
