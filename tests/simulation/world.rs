//! The server, its devices, and what happens between them.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use waxwing::{
    client::{
        LinkId,
        view::{Check, Command, Role, Room, RoomState},
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

use super::{
    common::{
        engine::{Collector, ModelEngine},
        home::Home,
    },
    device::{Device, Moves, Pipe, Rng, ServerEnd, client},
    trouble::Trouble,
};

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

pub struct World {
    pub(super) rng: Rng,
    pub(super) now_ms: u64,
    /// How much the server's clock is ahead.
    pub(super) ahead_ms: u64,
    limits: Arc<Limits>,
    engine: Arc<ModelEngine>,
    mailbox: Arc<Collector>,
    shard: Shard,
    home: Home,
    admission: Everybody,
    pub devices: Vec<Device>,
    next_conn: u64,
    lives: u8,
    /// No process dies; only links do, and there is time for sessions to move.
    calm: bool,
    pub trouble: Trouble,
    /// Nothing happens at these devices.
    pub(super) asleep: BTreeSet<usize>,
    pub moves: Moves,
}

impl World {
    pub fn new(seed: u64, devices: usize) -> Self {
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
            ahead_ms: 0,
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
            trouble: Trouble::of(seed),
            asleep: BTreeSet::new(),
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
        let may_read = end.conn.as_ref().is_none_or(|conn| conn.outbox.may_read());
        if !may_read {
            return;
        }
        let Some(frame) = pipe.to_server.pop_front() else { return };
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
            Step::Open { device, binding, welcome } => {
                *if resumes { &mut self.moves.resumed } else { &mut self.moves.challenged } += 1;
                let outbox = Outbox::new(self.limits.outbox_bytes_max);
                let conn = Arc::new(Conn::new(end.id, device, binding, outbox, Arc::new(Usage::default())));
                self.home.answer(&conn, welcome.encode());
                end.conn = Some(conn);
            }
            Step::Route(request) => {
                let conn = end.conn.as_ref().expect("only open sessions route");
                let weight = match &request.action {
                    Action::Publish(publish) => publish.envelope.len() + 256,
                    _ => 512,
                };
                let permit = Permit::new(conn, weight);
                let message = ShardMessage::Request { conn: Arc::clone(conn), request, permit };
                self.shard.handle(message, now_ms + self.ahead_ms);
            }
            Step::Packages(request) => {
                let conn = Arc::clone(end.conn.as_ref().expect("only open sessions ask"));
                let permit = Permit::new(&conn, 512);
                self.shard.handle(ShardMessage::Packages { conn, request, permit }, now_ms);
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
        self.restart(index);
    }

    /// A client begins anew from what it had kept.
    pub(super) fn restart(&mut self, index: usize) {
        while let Some(link) = self.pick(index, |_| true) {
            self.end(index, link);
        }
        let device = &mut self.devices[index];
        device.seed = device.seed.wrapping_mul(31).wrapping_add(7);
        device.client = client(device.seed);
        device.messages.clear();
        (device.room, device.request) = (None, None);
        device.online = None;
        for (key, value) in &device.stored {
            device.client.load(key, value).expect("what a client keeps, it can read");
        }
        device.client.start(self.now_ms);
    }

    pub(super) fn pass_time(&mut self, ms: u64) {
        self.now_ms += ms;
        for device in &mut self.devices {
            if device.timer_ms.is_some_and(|at_ms| at_ms <= self.now_ms) {
                device.timer_ms = None;
                device.client.tick(self.now_ms);
            }
        }
    }

    /// One thing happens somewhere.
    pub fn step(&mut self, faults: bool) {
        let index = self.rng.below(self.devices.len());
        if self.asleep.contains(&index) {
            return;
        }
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
            97..98 => self.change(index),
            98..99 if self.devices[index].by_card => self.bring_in(index),
            _ => self.say(index),
        }
    }

    /// The group changes: whoever owns the room makes another owner, or a link in the place of the former one.
    fn change(&mut self, index: usize) {
        let (now_ms, what) = (self.now_ms, self.rng.below(2));
        let device = &mut self.devices[index];
        let Some(room) = device.room.as_ref().filter(|room| room.owner) else { return };
        let (room, other) = (room.id.clone(), room.members.iter().find(|member| !member.you));
        let command = match other.filter(|_| what == 0) {
            Some(other) => Command::SetRole { room, user: other.user.clone(), role: Role::Owner },
            None => Command::MakeLink { room },
        };
        device.client.command(command, now_ms);
        device.perform(usize::MAX);
    }

    /// Whoever made the room invites this person, who may be away, or asks in vain; a person who was invited accepts.
    fn bring_in(&mut self, index: usize) {
        let now_ms = self.now_ms;
        let device = &mut self.devices[index];
        if device.room.is_some() {
            return;
        }
        if let Some(room) = device.request.clone() {
            device.client.command(Command::Accept { room }, now_ms);
            device.perform(usize::MAX);
            self.moves.accepted += 1;
            return;
        }
        let Some(card) = device.identity.as_ref().filter(|identity| identity.reachable).map(|me| me.card.clone()) else { return };
        let host = &mut self.devices[0];
        if let Some(room) = host.room.as_ref().filter(|room| room.state == RoomState::Open).map(|room| room.id.clone()) {
            host.client.command(Command::Invite { room, who: card }, now_ms);
            host.perform(usize::MAX);
            self.moves.asked += 1;
        }
    }

    pub(super) fn say(&mut self, index: usize) {
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
    pub fn quiesce(&mut self) {
        for device in &mut self.devices {
            device.udp_blocked = false;
        }
        for round in 0..4000 {
            for _ in 0..60 {
                self.step(false);
            }
            self.pass_time(50);
            let settled = |device: &Device| {
                device.room.as_ref().is_some_and(|room| room.state == RoomState::Open && room.settled && room.up_to_date && !asks(room))
                    // What was acked comes back in the log, a little later.
                    && (device.restored || device.messages.values().all(|message| !message.mine || message.check != Check::Unchecked))
                    && device.online.is_some()
                    && device.links.values().all(|pipe| pipe.is_empty())
            };
            let heads: BTreeSet<_> = self.devices.iter().map(|device| device.room.as_ref().map(|room| room.head)).collect();
            // The link that somebody was given may have been ended before they came in.
            let waits = |device: &Device| !device.is_open() && !device.by_card;
            if round % 20 == 10 {
                let invited: Vec<_> = (0..self.devices.len()).filter(|index| self.devices[*index].by_card).collect();
                invited.into_iter().for_each(|index| self.bring_in(index));
            }
            if round % 20 == 10 && (self.trouble.any() || self.devices.iter().any(waits)) {
                self.let_everybody_in();
            }
            if round > 20 && self.devices.iter().all(settled) && heads.len() == 1 {
                return;
            }
        }
        for device in &self.devices {
            println!("{:?} online {:?} {:?}", device.room, device.online, device.notices);
            println!("{:?}", device.stored.keys().filter(|key| !key.starts_with("log/")).collect::<Vec<_>>());
            let pipes = device.links.values().map(Pipe::is_empty).collect::<Vec<_>>();
            let odd: Vec<_> =
                device.messages.values().filter(|message| message.mine && message.check != Check::Matches).collect();
            println!("restored {} pipes {pipes:?} {odd:?}", device.restored);
        }
        panic!("the world does not come to rest");
    }
}

/// Whether its device waits for what it missed.
fn asks(room: &Room) -> bool {
    let words = ["members will be asked", "none has answered yet", "it is being read"];
    room.closed.as_ref().is_some_and(|closed| words.iter().any(|words| closed.contains(words)))
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
