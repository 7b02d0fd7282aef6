//! Whole clients against the whole server side, without sockets: seeded schedules of messages, links that break, fall silent or
//! stall, sessions that move between transports and resume, crashes of the server that lose what was not on disk, and crashes
//! of clients between any two things that they do. At the end everyone has the same history, every message is in it exactly
//! once, and nobody was alarmed.
//!
//! `WAXWING_TEST_SIM_SEEDS=100000 cargo test --release --features test-utils --test simulation` runs more schedules.
#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it does"
)]
#![cfg(all(feature = "server", feature = "client"))]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    convert::Infallible,
    sync::Arc,
};

use bytes::Bytes;
use common::{
    engine::{Collector, ModelEngine},
    home::Home,
};
use futures_util::FutureExt as _;
use waxwing::{
    client::{
        Client, LinkId, Output, Transport,
        view::{Check, Command, ConnectionState, Event, Integrity, Level, Message, MessageKind, MessageState, Room, RoomState},
    },
    core::{
        close::CloseCode,
        frame::{ClientFrame, Hello, Resume, ServerFrame},
        id::{DeviceKey, Digest, LogId, Nonce},
        limits::Limits,
        session::{Action, Admission, Session, Setup as SessionSetup, Step},
    },
    engine::{Complete, Engine, Failure},
    router::{
        Conn, ConnId, Usage,
        outbox::{Outbox, Permit},
        shard::{Message as ShardMessage, Setup, Shard, Slices},
    },
    server::tickets::Tickets,
};

/// A deterministic source of randomness (SplitMix64): for schedules, and for keys that nobody has to keep secret.
#[derive(Clone)]
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
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

/// Everybody may log in, and resume with the tickets of this life of the server.
struct Everybody(Tickets);

impl Admission for Everybody {
    fn admit(&self, _: &Hello, _: u64) -> Result<(), CloseCode> {
        Ok(())
    }

    fn ticket(&self, device: &DeviceKey, now_ms: u64) -> Bytes {
        self.0.issue(device, now_ms)
    }

    fn recognises(&self, resume: &Resume, now_ms: u64) -> bool {
        self.0.recognises(resume, now_ms)
    }

    fn is_first(&self, binding: Digest, now_ms: u64) -> bool {
        self.0.is_first(binding, now_ms)
    }
}

/// The server's end of a link.
struct ServerEnd {
    session: Session,
    conn: Option<Arc<Conn>>,
    id: ConnId,
    /// Answers of the session before the login.
    early: VecDeque<Bytes>,
    /// Bytes that came before the login.
    strange: usize,
}

/// A link: what is under way on it, in order and without loss, for as long as anything gets through.
struct Pipe {
    transport: Transport,
    /// `None` while it is being opened.
    end: Option<ServerEnd>,
    to_server: VecDeque<Bytes>,
    to_client: VecDeque<Bytes>,
    /// Nothing gets through any more, and nobody is told.
    silent: bool,
    /// Nothing but so many frames gets through to the client.
    mute_after: Option<usize>,
    /// The client has closed it: what it sent before may still arrive.
    closed: bool,
}

/// One device: its client, what it has kept, and its links.
struct Device {
    client: Client,
    stored: BTreeMap<String, Vec<u8>>,
    links: BTreeMap<LinkId, Pipe>,
    /// UDP stalls for this device.
    udp_blocked: bool,
    timer_ms: Option<u64>,
    seed: u64,
    /// As a person sees it.
    room: Option<Room>,
    messages: BTreeMap<String, Message>,
    notices: Vec<(Level, String)>,
    sent: Vec<String>,
    online: Option<String>,
    moves: Moves,
}

/// What happened over all schedules: a simulation in which nothing moves proves nothing.
#[derive(Debug, Default, Clone, Copy)]
struct Moves {
    up: u32,
    back: u32,
    resumed: u32,
    challenged: u32,
    /// Resumes that were not accepted, with frames behind them.
    dropped: u32,
}

struct World {
    rng: Rng,
    now_ms: u64,
    limits: Arc<Limits>,
    engine: Arc<ModelEngine>,
    mailbox: Arc<Collector>,
    shard: Shard,
    home: Home,
    admission: Everybody,
    devices: Vec<Device>,
    next_conn: u64,
    lives: u8,
    /// No process dies; only links do, and there is time for sessions to move.
    calm: bool,
    moves: Moves,
}

fn client(seed: u64) -> Client {
    Client::new("http://localhost:8433", Bytes::new(), Box::new(Rng(seed)))
}

impl Device {
    fn new(seed: u64, name: &str) -> Self {
        let mut device = Self {
            client: client(seed),
            stored: BTreeMap::new(),
            links: BTreeMap::new(),
            udp_blocked: false,
            timer_ms: None,
            seed,
            room: None,
            messages: BTreeMap::new(),
            notices: Vec::new(),
            sent: Vec::new(),
            online: None,
            moves: Moves::default(),
        };
        device.client.start(1);
        device.client.command(Command::Start { name: name.to_owned() }, 1);
        device
    }

    /// Carries out at most `count` outputs, in order.
    fn perform(&mut self, count: usize) {
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

    fn see(&mut self, event: Event) {
        match event {
            Event::Room { room } => self.room = Some(room),
            Event::Message { message, .. } => drop(self.messages.insert(message.key.clone(), message)),
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

    /// What was said, as this device has it.
    fn history(&self) -> Vec<(u64, String, String)> {
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
    const fn new(transport: Transport) -> Self {
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

    fn stalls(&self, udp_blocked: bool) -> bool {
        self.silent || (udp_blocked && self.transport == Transport::WebTransport)
    }

    /// Nothing is under way that could still arrive.
    fn is_empty(&self) -> bool {
        let idle = self.end.as_ref().and_then(|end| end.conn.as_ref()).is_some_and(|conn| conn.outbox.bytes() == 0);
        self.silent || (self.to_server.is_empty() && (self.to_client.is_empty() || self.mute_after == Some(0)) && idle)
    }
}

impl World {
    fn new(seed: u64, devices: usize) -> Self {
        let limits = Arc::new(Limits {
            outbox_bytes_max: 16 << 10,
            page_bytes_max: 8 << 10,
            recent_bytes_max: 8 << 10,
            // Low, so that refusals meet what was pipelined behind them.
            publishes_per_second_max: 20,
            publish_burst_max: 5,
            ..Limits::default()
        });
        let (engine, mailbox) = (ModelEngine::new(1000), Arc::default());
        let shard = shard(&engine, &mailbox, &limits, 1);
        let names = ["Ann", "Bob", "Cyd", "Dov"];
        let devices = (0..devices).map(|n| Device::new(seed ^ (n as u64 + 1) << 32, names[n])).collect();
        let admission = Everybody(Tickets::new([1; 32]));
        let moves = Moves::default();
        Self {
            rng: Rng(seed),
            now_ms: 1000,
            limits,
            engine,
            mailbox,
            shard,
            home: Home::default(),
            admission,
            devices,
            next_conn: 0,
            lives: 1,
            calm: !seed.is_multiple_of(3),
            moves,
        }
    }

    /// One of the device's links for which this holds.
    fn pick(&mut self, index: usize, holds: impl Fn(&Pipe) -> bool) -> Option<LinkId> {
        let links: Vec<_> = self.devices[index].links.iter().filter(|(_, pipe)| holds(pipe)).map(|(id, _)| *id).collect();
        (!links.is_empty()).then(|| links[self.rng.below(links.len())])
    }

    fn open(&mut self, index: usize, faults: bool) {
        let blocked = self.devices[index].udp_blocked;
        let opening = |pipe: &Pipe| pipe.end.is_none() && !pipe.closed && !pipe.stalls(blocked);
        let Some(link) = self.pick(index, opening) else { return };
        let Self { devices, rng, limits, next_conn, now_ms, .. } = self;
        let device = &mut devices[index];
        if faults && rng.below(5) == 0 {
            device.links.remove(&link);
            return device.client.lost(link, "could not be opened", *now_ms);
        }
        *next_conn += 1;
        let mut nonce = [0; 32];
        nonce[..8].copy_from_slice(&rng.next().to_le_bytes());
        let exporter = Some([u8::try_from(*next_conn % 251).unwrap(); 32]);
        let setup = SessionSetup { limits: (**limits).clone(), nonce: Nonce(nonce), exporter, agent: "sim".into() };
        let pipe = device.links.get_mut(&link).expect("it was picked");
        let (session, id) = (Session::new(setup, *now_ms), ConnId(*next_conn));
        pipe.end = Some(ServerEnd { session, conn: None, id, early: VecDeque::new(), strange: 0 });
        pipe.mute_after = (faults && rng.below(8) == 0).then(|| rng.below(5));
        // Browsers have no exporter.
        device.client.opened(link, exporter.filter(|_| index != 0), *now_ms);
    }

    /// A link is no more, for the server at least: what was under way is gone.
    fn end(&mut self, index: usize, link: LinkId) -> Option<Pipe> {
        let pipe = self.devices[index].links.remove(&link)?;
        if let Some(ServerEnd { conn: Some(conn), id, .. }) = &pipe.end {
            conn.outbox.close();
            self.shard.handle(ShardMessage::Closed { conn: *id }, self.now_ms);
        }
        Some(pipe)
    }

    /// A link breaks, and both sides notice.
    fn cut(&mut self, index: usize) {
        let Some(link) = self.pick(index, |_| true) else { return };
        if self.end(index, link).is_some_and(|pipe| !pipe.closed) {
            self.devices[index].client.lost(link, "cut", self.now_ms);
        }
    }

    /// The network of a device changes its mind.
    fn disturb(&mut self, index: usize) {
        let (what, now_ms) = (self.rng.below(6), self.now_ms);
        let silenced = self.pick(index, |pipe| pipe.end.is_some());
        let device = &mut self.devices[index];
        match what {
            0..3 => device.udp_blocked = !device.udp_blocked,
            3 => silenced.and_then(|link| device.links.get_mut(&link)).into_iter().for_each(|pipe| pipe.silent = true),
            4 => device.client.wake(now_ms),
            _ => device.client.network_changed(now_ms),
        }
    }

    /// A frame of the device reaches the server.
    fn serve(&mut self, index: usize) {
        let blocked = self.devices[index].udp_blocked;
        let Some(link) = self.pick(index, |pipe| pipe.closed || (!pipe.to_server.is_empty() && !pipe.stalls(blocked))) else {
            return;
        };
        let now_ms = self.now_ms;
        let Some(pipe) = self.devices[index].links.get_mut(&link) else { return };
        let drained = pipe.to_server.is_empty() || pipe.stalls(blocked);
        let Some(end) = pipe.end.as_mut().filter(|_| !drained) else {
            // Closed by the client, and nothing more comes.
            self.end(index, link);
            return;
        };
        let may_read = end.conn.as_ref().is_none_or(|conn| conn.outbox.relieved().now_or_never().is_some());
        let Some(frame) = pipe.to_server.pop_front().filter(|_| may_read) else { return };
        if end.conn.is_none() {
            end.strange += frame.len() + 2;
            assert!(end.strange <= self.limits.unauthenticated_bytes_max as usize, "a stranger may not send so much");
        }
        let frame = ClientFrame::decode(&frame).expect("a client's frames decode");
        let resumes = matches!(frame, ClientFrame::Resume(_));
        let step = end.session.handle(frame, now_ms, now_ms, &self.admission).expect("an honest client is not closed");
        match step {
            Step::Send(frame) => match &end.conn {
                Some(conn) => self.home.answer(conn, frame.encode()),
                None => end.early.push_back(frame.encode()),
            },
            Step::Open(frame) => {
                *if resumes { &mut self.moves.resumed } else { &mut self.moves.challenged } += 1;
                let (device, binding) = end.session.principal().expect("an open session has one");
                let outbox = Arc::new(Outbox::new(self.limits.outbox_bytes_max));
                let conn = Arc::new(Conn::new(end.id, device, binding, outbox, Arc::new(Usage::default())));
                self.home.answer(&conn, frame.encode());
                end.conn = Some(conn);
            }
            Step::Route(request) => {
                let conn = end.conn.as_ref().expect("only open sessions route");
                let weight = match &request.action {
                    Action::Publish(publish) => publish.envelope.len() + 256,
                    _ => 512,
                };
                let permit = Permit::new(&conn.outbox, weight);
                self.shard.handle(ShardMessage::Request { conn: Arc::clone(conn), request, permit }, now_ms);
            }
            Step::Nothing => self.moves.dropped += 1,
            Step::Goodbye => drop(self.end(index, link)),
        }
    }

    /// Some bytes of a link's outbox go out.
    fn write(&mut self, index: usize, bytes: usize) {
        let Some(link) = self.pick(index, |pipe| pipe.end.is_some()) else { return };
        let Some(pipe) = self.devices[index].links.get_mut(&link) else { return };
        let Some(end) = &mut pipe.end else { return };
        pipe.to_client.append(&mut end.early);
        if let Some(conn) = &end.conn {
            let mut frames = Vec::new();
            self.home.accept(&mut self.shard);
            let relieved = self.home.take(conn, bytes, &mut frames);
            pipe.to_client.extend(frames);
            if relieved != 0 {
                self.shard.handle(ShardMessage::Drained { conn: end.id }, self.now_ms);
            }
        }
    }

    /// A frame reaches the device.
    fn receive(&mut self, index: usize) {
        let blocked = self.devices[index].udp_blocked;
        let ready =
            |pipe: &Pipe| !pipe.to_client.is_empty() && !pipe.closed && !pipe.stalls(blocked) && pipe.mute_after != Some(0);
        let Some(link) = self.pick(index, ready) else { return };
        let device = &mut self.devices[index];
        let Some(pipe) = device.links.get_mut(&link) else { return };
        pipe.mute_after = pipe.mute_after.map(|frames| frames - 1);
        let frame = pipe.to_client.pop_front().expect("there is one");
        assert!(!matches!(ServerFrame::decode(&frame), Ok(ServerFrame::Closing { .. })));
        device.client.received_frame(link, &frame, self.now_ms);
    }

    fn turn(&mut self) {
        let done = self.mailbox.take();
        if !done.is_empty() {
            self.shard.handle(ShardMessage::Completed(done), self.now_ms);
        }
        if self.shard.wants_tick() {
            self.shard.tick();
        }
        self.shard.end_turn();
    }

    /// The server's process dies: what the engine had not carried out is gone, and so is every connection.
    fn crash_server(&mut self) {
        for index in 0..self.devices.len() {
            while !self.devices[index].links.is_empty() {
                self.cut(index);
            }
        }
        self.engine.crash();
        self.mailbox.take();
        self.lives += 1;
        self.home = Home::default();
        self.shard = shard(&self.engine, &self.mailbox, &self.limits, self.lives);
        self.admission = Everybody(Tickets::new([self.lives; 32]));
    }

    /// A client's process dies somewhere between two outputs, and starts again from what it had kept.
    fn crash_client(&mut self, index: usize) {
        let some = self.rng.below(6);
        self.devices[index].perform(some);
        while let Some(link) = self.pick(index, |_| true) {
            self.end(index, link);
        }
        let device = &mut self.devices[index];
        device.seed = device.seed.wrapping_mul(31).wrapping_add(7);
        device.client = client(device.seed);
        device.messages.clear();
        device.room = None;
        device.online = None;
        for (key, value) in &device.stored {
            device.client.load(key, value).expect("what a client keeps, it can read");
        }
        device.client.start(self.now_ms);
    }

    fn pass_time(&mut self, ms: u64) {
        self.now_ms += ms;
        for device in &mut self.devices {
            if device.timer_ms.is_some_and(|at_ms| at_ms <= self.now_ms) {
                device.timer_ms = None;
                device.client.tick(self.now_ms);
            }
        }
    }

    /// One thing happens somewhere.
    fn step(&mut self, faults: bool) {
        let index = self.rng.below(self.devices.len());
        match self.rng.below(if faults { 100 } else { 90 }) {
            0..20 => self.serve(index),
            20..35 => {
                let bytes = 1 + self.rng.below(2000);
                self.write(index, bytes);
            }
            35..60 => self.receive(index),
            60..72 => {
                let count = self.rng.below(4);
                self.engine.step(count);
                self.turn();
            }
            72..82 => self.devices[index].perform(usize::MAX),
            82..86 => {
                let ms = self.rng.next() % if self.calm { 1200 } else { 400 };
                self.pass_time(ms);
            }
            86..90 => self.open(index, faults),
            90..92 => self.cut(index),
            92..94 => self.disturb(index),
            94..96 if self.calm => self.disturb(index),
            94..95 => self.crash_server(),
            95..96 => self.crash_client(index),
            96..97 => self.engine.fail_next(if self.rng.below(2) == 0 { Failure::DiskFull } else { Failure::OutcomeUnknown }),
            _ => self.say(index),
        }
    }

    fn say(&mut self, index: usize) {
        let now_ms = self.now_ms;
        let device = &mut self.devices[index];
        if let Some(room) = &device.room {
            let text = format!("{index}-{}", device.sent.len());
            let room = room.id.clone();
            device.client.command(Command::Send { room, text: text.clone() }, now_ms);
            // It counts once the client has kept it.
            device.perform(usize::MAX);
            device.sent.push(text);
        }
    }

    /// Without faults, until nobody waits for anything.
    fn quiesce(&mut self) {
        for device in &mut self.devices {
            device.udp_blocked = false;
        }
        for round in 0..4000 {
            for _ in 0..60 {
                self.step(false);
            }
            self.pass_time(50);
            let settled = |device: &Device| {
                device.room.as_ref().is_some_and(|room| room.state == RoomState::Open && room.settled && room.up_to_date)
                    // What was acked comes back in the log, a little later.
                    && device.messages.values().all(|message| message.check != Check::Unchecked)
                    && device.online.is_some()
                    && device.links.values().all(|pipe| pipe.is_empty())
            };
            let heads: BTreeSet<_> = self.devices.iter().map(|device| device.room.as_ref().map(|room| room.head)).collect();
            if round > 20 && self.devices.iter().all(settled) && heads.len() == 1 {
                return;
            }
        }
        for device in &self.devices {
            println!("{:?} online {:?} {:?}", device.room, device.online, device.notices);
        }
        panic!("the world does not come to rest");
    }
}

fn shard(engine: &Arc<ModelEngine>, mailbox: &Arc<Collector>, limits: &Arc<Limits>, life: u8) -> Shard {
    let mut made = 0;
    Shard::new(Setup {
        // Small, so that everything is cut.
        slices: Slices { turn: 40, room: 3, intake: 600 },
        recent_bytes_max: 12 << 10,
        index: 0,
        limits: Arc::clone(limits),
        engine: Arc::clone(engine) as Arc<dyn Engine>,
        complete: Arc::clone(mailbox) as Arc<dyn Complete>,
        log_id: Box::new(move || {
            made += 1;
            LogId([life, made, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1])
        }),
    })
}

fn run(seed: u64, steps: usize) -> Moves {
    let people = 2 + usize::try_from(seed % 2).unwrap();
    let mut world = World::new(seed, people);
    world.devices[0].client.command(Command::CreateRoom { title: "Sim".into() }, 1);
    world.devices[0].perform(usize::MAX);
    let link = world.devices[0].room.as_ref().expect("a room is shown as soon as it is made").link.clone();
    for device in &mut world.devices[1..] {
        device.client.command(Command::Join { link: link.clone() }, 1);
        device.perform(usize::MAX);
    }
    for _ in 0..steps {
        world.step(true);
    }
    world.quiesce();
    let first = world.devices[0].history();
    for (index, device) in world.devices.iter().enumerate() {
        assert_eq!(device.history(), first, "device {index} has another history");
        let mine: Vec<_> =
            first.iter().filter(|(_, _, text)| text.starts_with(&format!("{index}-"))).map(|(_, _, text)| text).collect();
        assert_eq!(mine, device.sent.iter().collect::<Vec<_>>(), "of device {index}: each exactly once, in order");
        assert!(device.messages.values().all(|message| !matches!(message.state, MessageState::Pending | MessageState::Failed)));
        assert!(device.messages.values().all(|message| message.check == Check::Matches));
        let alarms: Vec<_> = device.notices.iter().filter(|(level, _)| *level == Level::Alarm).collect();
        assert!(alarms.is_empty(), "{alarms:?}");
        let Integrity { unchecked, contradicts, injected, .. } = device.room.as_ref().unwrap().integrity;
        assert_eq!((unchecked, contradicts, injected), (0, 0, 0), "device {index}");
        assert_eq!(device.room.as_ref().unwrap().members.len(), people);
    }
    let words: BTreeSet<_> = world.devices.iter().map(|device| device.room.as_ref().unwrap().words.clone()).collect();
    assert_eq!(words.len(), 1, "everyone compares the same words");
    world.devices.iter().fold(world.moves, |sum, Device { moves, .. }| sum.and(*moves))
}

impl Moves {
    const fn and(self, other: Self) -> Self {
        Self {
            up: self.up + other.up,
            back: self.back + other.back,
            resumed: self.resumed + other.resumed,
            challenged: self.challenged + other.challenged,
            dropped: self.dropped + other.dropped,
        }
    }
}

#[test]
fn everyone_has_everything_once_whatever_breaks() {
    let seeds = std::env::var("WAXWING_TEST_SIM_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(60);
    let first = std::env::var("WAXWING_TEST_SIM_FIRST").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let mut sum = Moves::default();
    for seed in first..first + seeds {
        println!("seed {seed} (again: WAXWING_TEST_SIM_FIRST={seed} WAXWING_TEST_SIM_SEEDS=1)");
        sum = sum.and(run(seed, 2500));
    }
    println!("{sum:?}");
    let Moves { up, back, resumed, challenged, dropped } = sum;
    assert!(seeds < 60 || [up, back, resumed, challenged, dropped].iter().all(|count| *count > 0), "{sum:?}");
}
