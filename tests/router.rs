//! The shard against a reference model: random publishes, retries, subscriptions, slow readers, cut connections, a busy and
//! failing engine, and crashes that lose what was not yet on disk.
#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it does"
)]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use common::{
    access_of, device_of,
    engine::{Collector, ModelEngine},
    envelope, key, proof, room_key,
};
use futures_util::FutureExt as _;
use proptest::prelude::*;
use waxwing::{
    core::{
        chain,
        close::Refusal,
        envelope::Kind,
        frame::{LogKind, Operation, Page, Publish, ServerFrame},
        id::{DeviceKey, Digest, LogId, ProducerId, RoomId, Seq},
        limits::Limits,
        session::{Action, RoomRequest},
    },
    engine::{Complete, Engine, Failure},
    router::{
        Conn, ConnId, Usage,
        outbox::{Outbox, Permit},
        shard::{Message, Setup, Shard, Slices},
    },
};

const ROOMS: [RoomId; 2] = [RoomId([1; 16]), RoomId([2; 16])];

/// Small, so that everything overflows.
fn limits() -> Limits {
    Limits {
        outbox_bytes_max: 900,
        page_bytes_max: 600,
        recent_bytes_max: 700,
        producers_per_device_max: 1000,
        presence_sessions_max: 3,
        ..Limits::default()
    }
}

/// One shard, its engine, and the way between them.
struct World {
    engine: Arc<ModelEngine>,
    mailbox: Arc<Collector>,
    shard: Shard,
    limits: Arc<Limits>,
    size: Size,
    next_conn: u64,
    now_ms: u64,
}

/// How much a shard does at once, and keeps.
#[derive(Debug, Clone, Copy)]
struct Size {
    slices: Slices,
    recent_bytes_max: usize,
}

impl Default for Size {
    fn default() -> Self {
        Self { slices: Slices::default(), recent_bytes_max: 1 << 20 }
    }
}

impl World {
    fn new(limits: Limits) -> Self {
        Self::with_queue(limits, 1000)
    }

    fn with_queue(limits: Limits, queue_max: usize) -> Self {
        Self::with_size(limits, queue_max, Size::default())
    }

    fn with_size(limits: Limits, queue_max: usize, size: Size) -> Self {
        let (engine, mailbox, limits) = (ModelEngine::new(queue_max), Arc::default(), Arc::new(limits));
        let shard = Self::shard(&engine, &mailbox, &limits, size);
        Self { engine, mailbox, shard, limits, size, next_conn: 0, now_ms: 7 }
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

    fn connect(&mut self, device: DeviceKey) -> Arc<Conn> {
        self.next_conn += 1;
        let outbox = Arc::new(Outbox::new(self.limits.outbox_bytes_max));
        let binding = Digest([u8::try_from(self.next_conn % 251).unwrap(); 32]);
        Arc::new(Conn::new(ConnId(self.next_conn), device, binding, outbox, Arc::new(Usage::default())))
    }

    /// Sends a request as a connection does: only while it may read on.
    fn ask(&mut self, conn: &Arc<Conn>, room: RoomId, action: Action) -> bool {
        if conn.outbox.relieved().now_or_never().is_none() {
            return false;
        }
        let weight = match &action {
            Action::Publish(publish) => publish.envelope.len() + 256,
            Action::Fetch { .. } => self.limits.page_bytes_max as usize + 256,
            _ => 512,
        };
        let permit = Permit::new(&conn.outbox, weight);
        self.shard.handle(Message::Request { conn: Arc::clone(conn), request: RoomRequest { room, action }, permit }, self.now_ms);
        true
    }

    fn create(&mut self, conn: &Arc<Conn>, room: RoomId, kind: LogKind) {
        let access = access_of(&room_key(room));
        self.ask(conn, room, Action::Create { access, kind, epoch: common::EPOCH });
    }

    fn enter(&mut self, conn: &Arc<Conn>, room: RoomId) {
        let proof = proof(room, conn.binding);
        self.ask(conn, room, Action::Enter { proof });
    }

    fn turn(&mut self) {
        self.turn_with(usize::MAX);
    }

    /// A turn that hears of so many completions.
    fn turn_with(&mut self, count: usize) {
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
    fn settle(&mut self) {
        loop {
            self.turn();
            if self.engine.step(100) == 0 && !self.shard.wants_tick() && !self.shard.wants_turn() && self.mailbox.is_empty() {
                return;
            }
        }
    }

    /// Writes everything that waits for a connection, and what comes when there is room.
    fn read_all(&mut self, conn: &Arc<Conn>) -> Vec<ServerFrame> {
        let mut all = Vec::new();
        loop {
            self.settle();
            let (frames, relieved) = take(conn, 200);
            if relieved {
                self.shard.handle(Message::Drained { conn: conn.id }, 7);
            }
            if frames.is_empty() && !relieved && conn.outbox.bytes() == 0 {
                return all;
            }
            all.extend(frames);
        }
    }

    fn crash(&mut self) {
        self.engine.crash();
        self.mailbox.take();
        self.shard = Self::shard(&self.engine, &self.mailbox, &self.limits, self.size);
    }
}

fn take(conn: &Conn, bytes: usize) -> (Vec<ServerFrame>, bool) {
    let mut frames = Vec::new();
    let waiting = conn.outbox.take(bytes, &mut frames);
    assert!(waiting & !(1 << 5) == 0);
    (frames.iter().map(|frame| ServerFrame::decode(frame).unwrap()).collect(), waiting != 0)
}

fn publish(room: RoomId, client_seq: u64, payload: &[u8]) -> Action {
    Action::Publish(Publish { room, producer: ProducerId([9; 16]), client_seq, envelope: envelope(Kind::Room, room, payload) })
}

/// A world with a room that its creator has entered.
fn one_room(limits: Limits) -> (World, Arc<Conn>) {
    let mut world = World::new(limits);
    let conn = world.connect(device_of(&key(1)));
    world.create(&conn, ROOMS[0], LogKind::Room);
    world.enter(&conn, ROOMS[0]);
    let frames = world.read_all(&conn);
    assert!(matches!(frames[..], [ServerFrame::Created { .. }, ServerFrame::Entered { epoch: common::EPOCH, .. }]), "{frames:?}");
    (world, conn)
}

fn why(frames: &[ServerFrame]) -> Vec<(Option<Operation>, Refusal)> {
    let why = |frame: &ServerFrame| match frame {
        ServerFrame::Failed { what, why, .. } => Some((Some(*what), *why)),
        ServerFrame::Refused { why, .. } => Some((None, *why)),
        _ => None,
    };
    frames.iter().filter_map(why).collect()
}

#[test]
fn nothing_is_acked_or_shown_before_it_is_durable() {
    let (mut world, conn) = one_room(limits());
    world.ask(&conn, ROOMS[0], Action::Subscribe { after: 0 });
    assert!(matches!(world.read_all(&conn)[..], [ServerFrame::Subscribed { after: 0, .. }, ServerFrame::Presence { .. }]));
    world.ask(&conn, ROOMS[0], publish(ROOMS[0], 1, b"a"));
    world.ask(&conn, ROOMS[0], publish(ROOMS[0], 1, b"a"));
    world.turn();
    assert_eq!(conn.outbox.bytes(), 0);
    let frames = world.read_all(&conn);
    assert!(
        matches!(&frames[..], [
            ServerFrame::Ack { client_seq: 1, seq: 1, .. },
            ServerFrame::Ack { client_seq: 1, seq: 1, .. },
            ServerFrame::Deliver(Page { first: 1, items, .. })
        ] if items.len() == 1),
        "a retry in flight is acked with the first: {frames:?}"
    );
}

#[test]
fn a_read_that_is_ahead_of_its_appends_shows_nothing_early() {
    let (mut world, conn) = one_room(limits());
    for n in 1..=3 {
        world.ask(&conn, ROOMS[0], publish(ROOMS[0], n, b"a"));
        world.read_all(&conn);
    }
    world.crash();
    let conn = world.connect(device_of(&key(1)));
    world.enter(&conn, ROOMS[0]);
    world.read_all(&conn);
    world.ask(&conn, ROOMS[0], publish(ROOMS[0], 4, b"b"));
    world.ask(&conn, ROOMS[0], Action::Subscribe { after: 0 });
    world.turn();
    assert_eq!(world.engine.step(2), 2, "the append, and the read");
    world.turn_with(1);
    let shown = |frames: &[ServerFrame]| {
        let items = |frame: &ServerFrame| if let ServerFrame::Deliver(page) = frame { page.items.len() } else { 0 };
        frames.iter().map(items).sum::<usize>()
    };
    let (frames, _) = take(&conn, 10_000);
    assert_eq!(shown(&frames), 3, "{frames:?}");
    let frames = world.read_all(&conn);
    assert!(matches!(frames[..], [ServerFrame::Ack { seq: 4, .. }, ServerFrame::Deliver(_)]), "{frames:?}");
}

#[test]
fn one_turn_is_one_page_and_a_refusal_stops_what_was_pipelined() {
    let (mut world, conn) = one_room(Limits::default());
    world.ask(&conn, ROOMS[0], Action::Subscribe { after: 0 });
    world.read_all(&conn);
    for n in [1, 2, 4, 5, 3] {
        world.ask(&conn, ROOMS[0], publish(ROOMS[0], n, &[0; 8]));
    }
    let frames = world.read_all(&conn);
    assert_eq!(why(&frames), [(None, Refusal::OutOfOrder { expected: 3 }), (None, Refusal::OutOfOrder { expected: 3 })]);
    assert!(matches!(frames.last(), Some(ServerFrame::Deliver(page)) if page.items.len() == 3), "{frames:?}");
}

#[test]
fn who_has_not_proved_access_gets_nothing() {
    let (mut world, _creator) = one_room(limits());
    let conn = world.connect(device_of(&key(2)));
    let room = ROOMS[0];
    world.ask(&conn, room, publish(room, 1, b"x"));
    world.ask(&conn, room, Action::Subscribe { after: 0 });
    world.ask(&conn, room, Action::Fetch { request: 1, before: u64::MAX, count_max: 9 });
    world.ask(&conn, room, Action::Ephemeral { envelope: envelope(Kind::Ephemeral, room, b"") });
    world.ask(&conn, room, Action::Delete);
    world.ask(&conn, room, Action::Enter { proof: proof(room, Digest([0; 32])) });
    world.ask(&conn, ROOMS[1], Action::Enter { proof: proof(ROOMS[1], conn.binding) });
    world.ask(&conn, ROOMS[1], publish(ROOMS[1], 1, b"x"));
    let frames = world.read_all(&conn);
    let no = |what| (Some(what), Refusal::NoAccess);
    assert_eq!(
        why(&frames),
        [
            (None, Refusal::NoAccess),
            no(Operation::Subscribe),
            no(Operation::Fetch),
            no(Operation::Ephemeral),
            no(Operation::Delete),
            (Some(Operation::Enter), Refusal::BadProof),
            no(Operation::Enter),
            (None, Refusal::NoAccess)
        ]
    );
}

#[test]
fn creating_again_is_idempotent_for_the_same_device_and_refused_otherwise() {
    let (mut world, conn) = one_room(limits());
    world.create(&conn, ROOMS[0], LogKind::Room);
    assert!(matches!(world.read_all(&conn)[..], [ServerFrame::Created { log: LogId([1, ..]), .. }]));
    world.create(&conn, ROOMS[0], LogKind::Inbox);
    let other = world.connect(device_of(&key(2)));
    world.create(&other, ROOMS[0], LogKind::Room);
    let exists = [(Some(Operation::Create), Refusal::RoomExists)];
    assert_eq!((why(&world.read_all(&conn)), why(&world.read_all(&other))), (exists.to_vec(), exists.to_vec()));
    // Also after the room was let go and must be loaded.
    world.shard.handle(Message::Closed { conn: conn.id }, 0);
    world.settle();
    assert_eq!(world.shard.rooms_len(), 0, "a room without members leaves memory");
    let again = world.connect(device_of(&key(1)));
    world.create(&again, ROOMS[0], LogKind::Room);
    assert!(matches!(world.read_all(&again)[..], [ServerFrame::Created { log: LogId([1, ..]), .. }]));
}

#[test]
fn anybody_posts_keyrings_into_an_inbox_and_only_its_owner_reads() {
    let mut world = World::new(limits());
    let owner = world.connect(device_of(&key(1)));
    let poster = world.connect(device_of(&key(2)));
    world.create(&owner, ROOMS[0], LogKind::Inbox);
    world.enter(&owner, ROOMS[0]);
    world.ask(&owner, ROOMS[0], Action::Subscribe { after: 0 });
    world.read_all(&owner);
    let post = |kind, client_seq| {
        Action::Publish(Publish {
            room: ROOMS[0],
            producer: ProducerId([1; 16]),
            client_seq,
            envelope: envelope(kind, ROOMS[0], b"k"),
        })
    };
    world.ask(&poster, ROOMS[0], post(Kind::Room, 1));
    world.ask(&poster, ROOMS[0], post(Kind::Keyring, 1));
    world.ask(&poster, ROOMS[0], Action::Subscribe { after: 0 });
    let frames = world.read_all(&poster);
    assert_eq!(why(&frames), [(None, Refusal::BadEnvelope), (Some(Operation::Subscribe), Refusal::NoAccess)]);
    assert!(matches!(frames.last(), Some(ServerFrame::Ack { seq: 1, .. })));
    assert!(matches!(&world.read_all(&owner)[..], [ServerFrame::Deliver(page)] if page.items.len() == 1));
}

#[test]
fn a_cursor_beyond_the_head_is_told_and_fetch_pages_backwards() {
    let (mut world, conn) = one_room(limits());
    for n in 1..=20 {
        world.ask(&conn, ROOMS[0], publish(ROOMS[0], n, &[0; 50]));
        world.read_all(&conn);
    }
    world.ask(&conn, ROOMS[0], Action::Subscribe { after: 21 });
    assert_eq!(why(&world.read_all(&conn)), [(Some(Operation::Subscribe), Refusal::CursorAhead { head: 20 })]);
    let log = world.engine.log(ROOMS[0]).unwrap();
    let mut before = u64::MAX;
    while before > 1 {
        world.ask(&conn, ROOMS[0], Action::Fetch { request: 3, before, count_max: 100 });
        let frames = world.read_all(&conn);
        let [ServerFrame::Fetched { request: 3, page }] = &frames[..] else { panic!("{frames:?}") };
        let first = usize::try_from(page.first).unwrap();
        let expected: Vec<_> = log.records[first - 1..first - 1 + page.items.len()].iter().map(|r| &r.envelope).collect();
        assert_eq!(page.items.iter().map(|item| &item.envelope).collect::<Vec<_>>(), expected);
        assert!(!page.items.is_empty() && page.items.iter().map(|item| item.envelope.len()).sum::<usize>() <= 600);
        assert_eq!(page.first + page.items.len() as u64, before.min(21));
        before = page.first;
    }
    world.ask(&conn, ROOMS[0], Action::Fetch { request: 4, before: 1, count_max: 100 });
    assert!(matches!(&world.read_all(&conn)[..], [ServerFrame::Fetched { request: 4, page }] if page.items.is_empty()));
}

#[test]
fn only_the_creator_deletes_and_everybody_hears_it() {
    let (mut world, creator) = one_room(limits());
    let other = world.connect(device_of(&key(2)));
    world.enter(&other, ROOMS[0]);
    world.ask(&other, ROOMS[0], Action::Delete);
    assert_eq!(why(&world.read_all(&other)), [(Some(Operation::Delete), Refusal::NotCreator)]);
    world.ask(&creator, ROOMS[0], publish(ROOMS[0], 1, b"last"));
    world.ask(&creator, ROOMS[0], Action::Delete);
    world.ask(&creator, ROOMS[0], publish(ROOMS[0], 2, b"too late"));
    let frames = world.read_all(&creator);
    assert!(
        matches!(
            frames[..],
            [ServerFrame::Refused { why: Refusal::NoAccess, .. }, ServerFrame::Ack { seq: 1, .. }, ServerFrame::Deleted { .. }]
        ),
        "what was submitted before is decided first: {frames:?}"
    );
    assert!(matches!(world.read_all(&other)[..], [ServerFrame::Deleted { .. }]));
    assert_eq!((world.shard.rooms_len(), world.engine.log(ROOMS[0]).is_none()), (0, true));
}

#[test]
fn presence_is_of_devices_and_coalesced() {
    let (mut world, a) = one_room(limits());
    let (device_a, device_b) = (a.device, device_of(&key(2)));
    world.ask(&a, ROOMS[0], Action::Subscribe { after: 0 });
    world.read_all(&a);
    let b = [world.connect(device_b), world.connect(device_b)];
    for conn in &b {
        world.enter(conn, ROOMS[0]);
        world.ask(conn, ROOMS[0], Action::Subscribe { after: 0 });
    }
    let heard = |frames: Vec<ServerFrame>| {
        let presence = |frame| match frame {
            ServerFrame::Presence { online, offline, .. } => Some((online, offline)),
            _ => None,
        };
        frames.into_iter().filter_map(presence).collect::<Vec<_>>()
    };
    assert_eq!(heard(world.read_all(&a)), [(vec![device_b], vec![])]);
    let mut both = vec![device_a, device_b];
    both.sort();
    for conn in &b {
        assert_eq!(heard(world.read_all(conn)), [(both.clone(), vec![])]);
    }
    world.shard.handle(Message::Closed { conn: b[0].id }, 7);
    assert_eq!(heard(world.read_all(&a)), [], "another session of it is still there");
    world.ask(&b[1], ROOMS[0], Action::Unsubscribe);
    assert_eq!(heard(world.read_all(&a)), [(vec![], vec![device_b])]);
}

#[test]
fn ephemerals_reach_the_others_who_are_there_and_are_dropped_when_full() {
    let (mut world, a) = one_room(limits());
    let b = world.connect(device_of(&key(2)));
    world.enter(&b, ROOMS[0]);
    for conn in [&a, &b] {
        world.ask(conn, ROOMS[0], Action::Subscribe { after: 0 });
        world.read_all(conn);
    }
    world.read_all(&a);
    let typing = envelope(Kind::Ephemeral, ROOMS[0], &[1; 300]);
    for _ in 0..5 {
        world.ask(&a, ROOMS[0], Action::Ephemeral { envelope: typing.clone() });
    }
    world.turn();
    assert!(b.outbox.bytes() <= 900);
    assert_eq!(world.read_all(&b), vec![ServerFrame::Ephemeral { envelope: typing }; 2]);
    assert_eq!(world.read_all(&a), []);
    assert_eq!(world.shard.take_stats().ephemerals_dropped, 3);
}

#[test]
fn a_full_disk_is_told_and_the_room_goes_on_when_there_is_space() {
    let (mut world, conn) = one_room(limits());
    world.ask(&conn, ROOMS[0], Action::Subscribe { after: 0 });
    world.read_all(&conn);
    world.engine.fail_next(Failure::DiskFull);
    world.ask(&conn, ROOMS[0], publish(ROOMS[0], 1, b"a"));
    assert_eq!(why(&world.read_all(&conn)), [(None, Refusal::DiskFull)]);
    world.ask(&conn, ROOMS[0], publish(ROOMS[0], 1, b"a"));
    assert!(matches!(world.read_all(&conn)[..], [ServerFrame::Ack { seq: 1, .. }, ServerFrame::Deliver(_)]));
}

#[test]
fn an_unknown_outcome_is_told_and_what_was_stored_after_all_is_shown() {
    let (mut world, conn) = one_room(limits());
    world.ask(&conn, ROOMS[0], Action::Subscribe { after: 0 });
    world.ask(&conn, ROOMS[0], publish(ROOMS[0], 1, b"a"));
    world.read_all(&conn);
    world.engine.fail_next(Failure::OutcomeUnknown);
    for n in 2..=4 {
        world.ask(&conn, ROOMS[0], publish(ROOMS[0], n, b"b"));
    }
    let frames = world.read_all(&conn);
    assert_eq!(why(&frames), [(None, Refusal::OutcomeUnknown); 3]);
    assert!(matches!(frames.last(), Some(ServerFrame::Deliver(page)) if page.first == 2 && page.items.len() == 1));
    for n in 2..=4 {
        world.ask(&conn, ROOMS[0], publish(ROOMS[0], n, b"b"));
    }
    let acks: Vec<_> = world.read_all(&conn).into_iter().filter(|frame| matches!(frame, ServerFrame::Ack { .. })).collect();
    assert!(matches!(
        acks[..],
        [
            ServerFrame::Ack { client_seq: 2, seq: 2, .. },
            ServerFrame::Ack { client_seq: 3, seq: 3, .. },
            ServerFrame::Ack { client_seq: 4, seq: 4, .. }
        ]
    ));
}

#[test]
fn a_busy_engine_refuses_publishes_and_only_delays_readers() {
    let (mut world, conn) = one_room(limits());
    for n in 1..=20 {
        world.ask(&conn, ROOMS[0], publish(ROOMS[0], n, &[0; 50]));
        world.read_all(&conn);
    }
    let mut busy = World::with_queue(limits(), 1);
    busy.engine = Arc::clone(&world.engine);
    drop(busy);
    // A reader far behind, while the queue has no place: it is fed once there is.
    let mut small = World::with_queue(limits(), 2);
    let conn = small.connect(device_of(&key(1)));
    small.create(&conn, ROOMS[0], LogKind::Room);
    small.enter(&conn, ROOMS[0]);
    small.read_all(&conn);
    for n in 1..=3 {
        small.ask(&conn, ROOMS[0], publish(ROOMS[0], n, &[0; 300]));
    }
    let frames = small.read_all(&conn);
    assert_eq!(why(&frames), [(None, Refusal::Overloaded)], "{frames:?}");
    small.ask(&conn, ROOMS[0], publish(ROOMS[0], 3, &[0; 300]));
    assert!(matches!(small.read_all(&conn)[..], [ServerFrame::Ack { client_seq: 3, seq: 3, .. }]));
    // Two fetches fill the queue; the subscription's read waits for the next tick.
    for request in 0..2 {
        small.ask(&conn, ROOMS[0], Action::Fetch { request, before: u64::MAX, count_max: 1 });
    }
    small.ask(&conn, ROOMS[0], Action::Subscribe { after: 1 });
    small.turn();
    let frames = small.read_all(&conn);
    let seqs: Vec<_> = frames.iter().filter_map(|f| if let ServerFrame::Deliver(p) = f { Some(p.first) } else { None }).collect();
    assert_eq!(seqs, [2, 3], "{frames:?}");
}

/// A client as the contract expects it: it retries the same bytes until they are acked, and goes on from its cursor.
struct Client {
    device: DeviceKey,
    conn: Arc<Conn>,
    rooms: BTreeMap<RoomId, ClientRoom>,
    entered: bool,
}

#[derive(Default)]
struct ClientRoom {
    /// Published and not acked, in order.
    pending: VecDeque<(u64, Bytes)>,
    published: u64,
    acked: BTreeMap<u64, Seq>,
    seen: Vec<Bytes>,
    chain: Option<Digest>,
    /// Asked for, and not ended.
    subscribed: bool,
    /// Answered: what was delivered before belongs to an earlier subscription.
    announced: bool,
}

#[derive(Debug, Clone)]
enum Step {
    Publish { client: usize, room: usize, len: usize },
    Retry { client: usize, room: usize },
    Subscribe { client: usize, room: usize },
    Unsubscribe { client: usize, room: usize },
    Drain { client: usize, bytes: usize },
    Reconnect { client: usize },
    Engine(usize),
    Fail(bool),
    Turn(usize),
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let (client, room) = (0..4_usize, 0..2_usize);
    prop_oneof![
        8 => (client.clone(), room.clone(), 0..200_usize).prop_map(|(client, room, len)| Step::Publish { client, room, len }),
        2 => (client.clone(), room.clone()).prop_map(|(client, room)| Step::Retry { client, room }),
        3 => (client.clone(), room.clone()).prop_map(|(client, room)| Step::Subscribe { client, room }),
        1 => (client.clone(), room).prop_map(|(client, room)| Step::Unsubscribe { client, room }),
        4 => (client.clone(), 1..2000_usize).prop_map(|(client, bytes)| Step::Drain { client, bytes }),
        1 => client.prop_map(|client| Step::Reconnect { client }),
        6 => (1..10_usize).prop_map(Step::Engine),
        1 => any::<bool>().prop_map(Step::Fail),
        6 => (1..9_usize).prop_map(Step::Turn),
        1 => Just(Step::Crash),
    ]
}

struct Model {
    world: World,
    clients: Vec<Client>,
    /// Every payload is unique.
    counter: u64,
}

impl Model {
    fn new() -> Self {
        let mut world = World::with_queue(limits(), 40);
        let clients = (0..4).map(|n| {
            let device = device_of(&key(n));
            let rooms = ROOMS.into_iter().map(|room| (room, ClientRoom::default())).collect();
            Client { device, conn: world.connect(device), rooms, entered: false }
        });
        let clients = clients.collect();
        let mut model = Self { world, clients, counter: 0 };
        for room in ROOMS {
            let conn = Arc::clone(&model.clients[0].conn);
            model.world.create(&conn, room, LogKind::Room);
        }
        model.world.settle();
        model
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Publish { client, room, len } => {
                self.counter += 1;
                let payload = [&self.counter.to_le_bytes()[..], &vec![0; len]].concat();
                let room = ROOMS[room];
                let state = self.clients[client].rooms.get_mut(&room).unwrap();
                state.published += 1;
                let (number, bytes) = (state.published, envelope(Kind::Room, room, &payload));
                state.pending.push_back((number, bytes.clone()));
                self.send(client, room, number, bytes);
            }
            Step::Retry { client, room } => self.retry(client, ROOMS[room]),
            Step::Subscribe { client, room } => self.subscribe(client, ROOMS[room]),
            Step::Unsubscribe { client, room } => {
                self.enter(client);
                let conn = Arc::clone(&self.clients[client].conn);
                // Only with nothing unread: on one connection a client cannot tell the answers to two subscriptions apart.
                if conn.outbox.bytes() == 0 && self.world.ask(&conn, ROOMS[room], Action::Unsubscribe) {
                    self.clients[client].rooms.get_mut(&ROOMS[room]).unwrap().subscribed = false;
                }
            }
            Step::Drain { client, bytes } => self.drain(client, bytes),
            Step::Reconnect { client } => self.reconnect(client, true),
            Step::Engine(count) => drop(self.world.engine.step(count)),
            Step::Fail(unknown) => {
                self.world.engine.fail_next(if unknown { Failure::OutcomeUnknown } else { Failure::DiskFull });
            }
            Step::Turn(count) => self.world.turn_with(count),
            Step::Crash => {
                self.world.crash();
                (0..self.clients.len()).for_each(|client| self.reconnect(client, false));
            }
        }
        for client in &self.clients {
            // The limit, what one frame read below it may add, and the largest single page.
            assert!(client.conn.outbox.bytes() <= 900 + 2000, "{} bytes", client.conn.outbox.bytes());
        }
    }

    fn reconnect(&mut self, client: usize, tell: bool) {
        let old = Arc::clone(&self.clients[client].conn);
        old.outbox.close();
        if tell {
            self.world.shard.handle(Message::Closed { conn: old.id }, 7);
        }
        let device = self.clients[client].device;
        self.clients[client].conn = self.world.connect(device);
        self.clients[client].entered = false;
        self.clients[client].rooms.values_mut().for_each(|room| room.subscribed = false);
    }

    fn enter(&mut self, client: usize) {
        if !self.clients[client].entered {
            let conn = Arc::clone(&self.clients[client].conn);
            ROOMS.into_iter().for_each(|room| self.world.enter(&conn, room));
            self.clients[client].entered = true;
        }
    }

    fn send(&mut self, client: usize, room: RoomId, client_seq: u64, envelope: Bytes) {
        self.enter(client);
        let conn = Arc::clone(&self.clients[client].conn);
        let producer = ProducerId([u8::try_from(client).unwrap(); 16]);
        self.world.ask(&conn, room, Action::Publish(Publish { room, producer, client_seq, envelope }));
    }

    fn retry(&mut self, client: usize, room: RoomId) {
        for (number, bytes) in self.clients[client].rooms[&room].pending.clone() {
            self.send(client, room, number, bytes);
        }
    }

    fn subscribe(&mut self, client: usize, room: RoomId) {
        self.enter(client);
        let conn = Arc::clone(&self.clients[client].conn);
        if self.clients[client].rooms[&room].subscribed {
            return;
        }
        let after = self.clients[client].rooms[&room].seen.len() as u64;
        if self.world.ask(&conn, room, Action::Subscribe { after }) {
            let state = self.clients[client].rooms.get_mut(&room).unwrap();
            (state.subscribed, state.announced) = (true, false);
        }
    }

    fn drain(&mut self, client: usize, bytes: usize) {
        let conn = Arc::clone(&self.clients[client].conn);
        let (frames, relieved) = take(&conn, bytes);
        if relieved {
            self.world.shard.handle(Message::Drained { conn: conn.id }, 7);
        }
        frames.into_iter().for_each(|frame| self.clients[client].hear(frame));
    }

    /// Everybody retries and reads until nothing is missing; then the logs, the clients and the contract are compared.
    fn finish(&mut self) {
        self.world.engine.crash();
        self.world.crash();
        (0..self.clients.len()).for_each(|client| self.reconnect(client, false));
        for _ in 0..400 {
            for client in 0..self.clients.len() {
                ROOMS.into_iter().for_each(|room| self.subscribe(client, room));
                ROOMS.into_iter().for_each(|room| self.retry(client, room));
                self.drain(client, 500);
            }
            self.world.settle();
        }
        for room in ROOMS {
            let log = self.world.engine.log(room).unwrap();
            let stored: Vec<_> = log.records.iter().map(|record| record.envelope.clone()).collect();
            assert_eq!(stored.iter().collect::<BTreeSet<_>>().len(), stored.len(), "exactly once");
            assert_eq!(log.origins.iter().collect::<BTreeSet<_>>().len(), stored.len(), "exactly once per number");
            let published: u64 = self.clients.iter().map(|client| client.rooms[&room].published).sum();
            assert_eq!(published, log.state.head, "nothing is lost in the end");
            for client in &self.clients {
                let state = &client.rooms[&room];
                assert!(state.pending.is_empty());
                assert_eq!(state.seen, stored, "everybody saw the same");
                for (number, seq) in &state.acked {
                    let (producer, stored) = log.origins[usize::try_from(*seq - 1).unwrap()];
                    assert_eq!((producer.device, stored), (client.device, *number), "the ack named its place");
                }
            }
        }
    }
}

impl Client {
    fn hear(&mut self, frame: ServerFrame) {
        match frame {
            ServerFrame::Subscribed { room, after, chain, .. } => {
                let state = self.rooms.get_mut(&room).unwrap();
                assert_eq!(after, state.seen.len() as u64, "delivery begins at the cursor");
                assert_eq!(*state.chain.get_or_insert(chain), chain, "the chain at the cursor");
                state.announced = true;
            }
            ServerFrame::Deliver(page) => {
                let state = self.rooms.get_mut(&page.room).unwrap();
                if !state.subscribed || !state.announced {
                    return; // On its way when the subscription ended.
                }
                assert_eq!(page.first, state.seen.len() as u64 + 1, "no gap, no repetition");
                assert_eq!(Some(page.chain), state.chain);
                assert!(page.position.head >= page.first + page.items.len() as u64 - 1);
                for item in page.items {
                    let seq = state.seen.len() as u64 + 1;
                    state.chain = state.chain.map(|before| chain::next(page.room, before, seq, &item.envelope));
                    state.seen.push(item.envelope);
                }
            }
            ServerFrame::Ack { room, client_seq, seq, .. } => {
                let state = self.rooms.get_mut(&room).unwrap();
                assert_eq!(*state.acked.entry(client_seq).or_insert(seq), seq, "the same answer every time");
                state.pending.retain(|(number, _)| *number != client_seq);
            }
            ServerFrame::Refused { why, .. } => assert!(
                matches!(
                    why,
                    Refusal::OutOfOrder { .. }
                        | Refusal::Overloaded
                        | Refusal::DiskFull
                        | Refusal::OutcomeUnknown
                        | Refusal::NoAccess
                ),
                "{why:?}"
            ),
            ServerFrame::Failed { what, why, .. } => assert_ne!(why, Refusal::Internal, "{what:?}"),
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn any_interleaving_keeps_the_contract(steps in prop::collection::vec(step(), 1..120)) {
        let mut model = Model::new();
        steps.iter().for_each(|step| model.apply(step));
        model.finish();
    }
}
