//! One shard, its engine, and the way between them.

use std::sync::Arc;

use ed25519_dalek::SigningKey;
use waxwing::{
    core::{
        close::Refusal,
        envelope::Kind,
        frame::{LogKind, Operation, Publish, ServerFrame},
        id::{DeviceKey, Digest, LogId, ProducerId, RoomId, Seq},
        limits::Limits,
        login,
        session::{Action, RoomRequest},
    },
    engine::{Complete, Engine},
    router::{
        Conn, ConnId, Usage,
        outbox::{Outbox, Permit},
        shard::{Message, Setup, Shard, Slices},
    },
};

use crate::common::{
    access_of, device_of,
    engine::{Collector, ModelEngine},
    envelope,
    home::Home,
    key, proof, room_key, sign,
};

pub(crate) const ROOMS: [RoomId; 2] = [RoomId([1; 16]), RoomId([2; 16])];

/// Small, so that everything overflows.
pub(crate) fn limits() -> Limits {
    Limits {
        outbox_bytes_max: 900,
        page_bytes_max: 600,
        recent_bytes_max: 700,
        producers_per_device_max: 1000,
        presence_sessions_max: 3,
        handshakes_per_minute_max: 1000,
        ..Limits::default()
    }
}

/// See the module.
pub(crate) struct World {
    pub(crate) engine: Arc<ModelEngine>,
    pub(crate) mailbox: Arc<Collector>,
    pub(crate) shard: Shard,
    pub(crate) home: Home,
    pub(crate) limits: Arc<Limits>,
    pub(crate) size: Size,
    pub(crate) next_conn: u64,
    pub(crate) now_ms: u64,
}

/// How much a shard does at once, and keeps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) slices: Slices,
    pub(crate) recent_bytes_max: usize,
}

impl Default for Size {
    fn default() -> Self {
        Self { slices: Slices::default(), recent_bytes_max: 1 << 20 }
    }
}

impl World {
    pub(crate) fn new(limits: Limits) -> Self {
        Self::with_queue(limits, 1000)
    }

    pub(crate) fn with_queue(limits: Limits, queue_max: usize) -> Self {
        Self::with_size(limits, queue_max, Size::default())
    }

    pub(crate) fn with_size(limits: Limits, queue_max: usize, size: Size) -> Self {
        let (engine, mailbox, limits) = (ModelEngine::new(queue_max), Arc::default(), Arc::new(limits));
        let shard = Self::shard(&engine, &mailbox, &limits, size);
        Self { engine, mailbox, shard, home: Home::default(), limits, size, next_conn: 0, now_ms: 7 }
    }

    fn shard(engine: &Arc<ModelEngine>, mailbox: &Arc<Collector>, limits: &Arc<Limits>, size: Size) -> Shard {
        let mut log = 0;
        Shard::new(Setup {
            slices: size.slices,
            recent_bytes_max: size.recent_bytes_max,
            index: 5,
            limits: Arc::clone(limits),
            engine: Arc::clone(engine) as Arc<dyn Engine>,
            complete: Arc::clone(mailbox) as Arc<dyn Complete>,
            log_id: Box::new(move || {
                log += 1;
                LogId([log; 16])
            }),
        })
    }

    pub(crate) fn connect(&mut self, device: DeviceKey) -> Arc<Conn> {
        self.next_conn += 1;
        let outbox = Outbox::new(self.limits.outbox_bytes_max);
        let binding = Digest([u8::try_from(self.next_conn % 251).unwrap(); 32]);
        Arc::new(Conn::new(ConnId(self.next_conn), device, binding, outbox, Arc::new(Usage::default())))
    }

    /// Sends a request as a connection does: only while it may read on.
    pub(crate) fn ask(&mut self, conn: &Arc<Conn>, room: RoomId, action: Action) -> bool {
        if !conn.outbox.may_read() {
            return false;
        }
        while self.shard.is_full() {
            self.turn();
        }
        let weight = match &action {
            Action::Publish(publish) => publish.envelope.len() + 256,
            Action::Fetch { .. } => self.limits.page_bytes_max as usize + 256,
            _ => 512,
        };
        let permit = Permit::new(conn, weight);
        self.shard
            .handle(Message::Request { conn: Arc::clone(conn), request: RoomRequest { room, action }, permit }, self.now_ms);
        true
    }

    pub(crate) fn create(&mut self, conn: &Arc<Conn>, room: RoomId, kind: LogKind) {
        let access = access_of(&room_key(room));
        self.ask(conn, room, Action::Create { access, kind });
    }

    pub(crate) fn enter(&mut self, conn: &Arc<Conn>, room: RoomId) {
        let proof = proof(room, conn.binding);
        self.ask(conn, room, Action::Enter { handshake: 0, proof });
    }

    /// As one who has processed the handshake record at `handshake`, which brought this key.
    pub(crate) fn enter_by(&mut self, conn: &Arc<Conn>, room: RoomId, handshake: Seq, key: &SigningKey) -> bool {
        let proof = sign(key, &login::access_message(conn.binding, room));
        self.ask(conn, room, Action::Enter { handshake, proof })
    }

    pub(crate) fn turn(&mut self) {
        self.turn_with(usize::MAX);
    }

    /// A turn that hears of so many completions.
    pub(crate) fn turn_with(&mut self, count: usize) {
        let done = self.mailbox.take_some(count);
        if !done.is_empty() {
            self.shard.handle(Message::Completed(done), self.now_ms);
        }
        if self.shard.wants_tick() {
            self.shard.tick();
        }
        self.shard.end_turn();
    }

    /// Until the engine has nothing more to do.
    pub(crate) fn settle(&mut self) {
        loop {
            self.turn();
            if self.engine.step(100) == 0 && !self.shard.wants_tick() && !self.shard.wants_turn() && self.mailbox.is_empty() {
                return;
            }
        }
    }

    /// Writes everything that waits for a connection, and what comes when there is room.
    pub(crate) fn read_all(&mut self, conn: &Arc<Conn>) -> Vec<ServerFrame> {
        let mut all = Vec::new();
        loop {
            self.settle();
            let (frames, relieved) = self.take(conn, 200);
            if relieved {
                self.shard.handle(Message::Drained { conn: conn.id }, 7);
            }
            if frames.is_empty() && !relieved && conn.outbox.bytes() == 0 {
                return all;
            }
            all.extend(frames);
        }
    }

    /// Reads what waits for a connection, up to so many bytes. Whether the shard waits for room, and has it now.
    pub(crate) fn take(&mut self, conn: &Conn, bytes: usize) -> (Vec<ServerFrame>, bool) {
        self.home.accept(&mut self.shard);
        let mut frames = Vec::new();
        let waiting = self.home.take(conn, bytes, &mut frames);
        assert!(waiting & !(1 << 5) == 0);
        (frames.iter().map(|frame| ServerFrame::decode(frame).unwrap()).collect(), waiting != 0)
    }

    pub(crate) fn crash(&mut self) {
        self.home = Home::default();
        self.engine.crash();
        self.mailbox.take();
        self.shard = Self::shard(&self.engine, &self.mailbox, &self.limits, self.size);
    }
}

pub(crate) fn publish(room: RoomId, client_seq: u64, payload: &[u8]) -> Action {
    Action::Publish(Publish {
        room,
        producer: ProducerId([9; 16]),
        client_seq,
        handshake: 0,
        envelope: envelope(Kind::Room, room, payload),
    })
}

/// A world with a room that its creator has entered.
pub(crate) fn one_room(limits: Limits) -> (World, Arc<Conn>) {
    let mut world = World::new(limits);
    let conn = world.connect(device_of(&key(1)));
    world.create(&conn, ROOMS[0], LogKind::Room);
    world.enter(&conn, ROOMS[0]);
    let frames = world.read_all(&conn);
    assert!(matches!(frames[..], [ServerFrame::Created { .. }, ServerFrame::Entered { handshake: 0, .. }]), "{frames:?}");
    (world, conn)
}

pub(crate) fn why(frames: &[ServerFrame]) -> Vec<(Option<Operation>, Refusal)> {
    let why = |frame: &ServerFrame| match frame {
        ServerFrame::Failed { what, why, .. } => Some((Some(*what), *why)),
        ServerFrame::Refused { why, .. } => Some((None, *why)),
        _ => None,
    };
    frames.iter().filter_map(why).collect()
}
