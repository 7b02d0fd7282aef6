//! The shard against a reference model: messages, and handshake records, of which each client names the newest that it knows
//! of, and which may bring the room another access key.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use proptest::prelude::*;
use waxwing::{
    core::{
        access::FormerKeys,
        chain,
        close::Refusal,
        envelope::Kind,
        frame::{LogKind, Operation, Publish, ServerFrame},
        id::{AccessKey, DeviceKey, Digest, ProducerId, RoomId, Seq},
        session::Action,
    },
    engine::Failure,
    router::{
        Conn,
        shard::{Message, Slices},
    },
};

use crate::{
    common::{self, device_of, envelope, key},
    world::{ROOMS, Size, World, limits},
};

/// A client as the contract expects it: it retries the same bytes until they are acked, and goes on from its cursor.
struct Client {
    device: DeviceKey,
    conn: Arc<Conn>,
    rooms: BTreeMap<RoomId, ClientRoom>,
}

#[derive(Default)]
struct ClientRoom {
    /// Published and not acked, in order.
    pending: VecDeque<Pending>,
    /// The newest handshake record, as far as it has heard.
    handshake: Seq,
    /// The newest that it has read, and what brought the access key that it knows; nothing: the room was made with it.
    processed: Seq,
    key: Option<u64>,
    entered: bool,
    /// It was told that it may not publish: it waits until it has entered anew, or it would drown in answers.
    barred: bool,
    /// It has read the record that replaced the key by which it had entered: nothing may follow before it enters again.
    replaced: bool,
    published: u64,
    acked: BTreeMap<u64, Seq>,
    /// By seq; nothing where the log was trimmed before it was read.
    seen: Vec<Option<Bytes>>,
    /// What the server said of places where delivery began.
    anchors: Vec<(Seq, Digest)>,
    chain: Option<Digest>,
    /// Asked for, and not ended.
    subscribed: bool,
    /// Answered: what was delivered before belongs to an earlier subscription.
    announced: bool,
}

/// A publish as it is sent until it is acked, or sealed again.
#[derive(Clone)]
struct Pending {
    number: u64,
    counter: u64,
    len: usize,
    is_change: bool,
    handshake: Seq,
    /// What was sent before may be there too, where nobody heard so.
    resealed: bool,
}

impl Pending {
    /// Every payload is unique, and says for which state of the group it was sealed.
    fn envelope(&self, room: RoomId) -> Bytes {
        let payload = [&self.counter.to_le_bytes()[..], &self.handshake.to_le_bytes(), &vec![0; self.len]].concat();
        match self.is_change {
            true => common::handshake(room, self.handshake, access_of(self.counter), &payload, (0, 0)),
            false => envelope(Kind::Room, room, &payload),
        }
    }
}

/// Every other handshake record brings a key of its own.
fn access_of(counter: u64) -> Option<AccessKey> {
    counter.is_multiple_of(2).then(|| common::access_of(&key(counter)))
}

#[derive(Debug, Clone)]
enum Step {
    Publish { client: usize, room: usize, len: usize, is_change: bool },
    Retry { client: usize, room: usize },
    Subscribe { client: usize, room: usize },
    Unsubscribe { client: usize, room: usize },
    Drain { client: usize, bytes: usize },
    Reconnect { client: usize },
    Engine(usize),
    Fail(bool),
    Turn(usize),
    Trim { room: usize, keep: u64 },
    Ephemeral { client: usize, room: usize },
    Rest,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let (client, room) = (0..4_usize, 0..2_usize);
    prop_oneof![
        8 => (client.clone(), room.clone(), 0..200_usize, prop::bool::weighted(0.15))
            .prop_map(|(client, room, len, is_change)| Step::Publish { client, room, len, is_change }),
        2 => (client.clone(), room.clone()).prop_map(|(client, room)| Step::Retry { client, room }),
        3 => (client.clone(), room.clone()).prop_map(|(client, room)| Step::Subscribe { client, room }),
        1 => (client.clone(), room).prop_map(|(client, room)| Step::Unsubscribe { client, room }),
        4 => (client.clone(), 1..2000_usize).prop_map(|(client, bytes)| Step::Drain { client, bytes }),
        1 => client.prop_map(|client| Step::Reconnect { client }),
        6 => (1..10_usize).prop_map(Step::Engine),
        1 => any::<bool>().prop_map(Step::Fail),
        6 => (1..9_usize).prop_map(Step::Turn),
        1 => (0..2_usize, 0..12_u64).prop_map(|(room, keep)| Step::Trim { room, keep }),
        1 => (0..4_usize, 0..2_usize).prop_map(|(client, room)| Step::Ephemeral { client, room }),
        1 => Just(Step::Rest),
        1 => Just(Step::Crash),
    ]
}

/// From the smallest slices and no memory to what is usual.
fn size() -> impl Strategy<Value = Size> {
    let slices = prop_oneof![
        3 => (1..40_u32, 1..6_u32, 1..60_u32).prop_map(|(turn, room, intake)| Slices { turn, room, intake }),
        1 => Just(Slices::default()),
    ];
    (slices, prop_oneof![Just(0), 0..3000_usize, Just(1 << 20)])
        .prop_map(|(slices, recent_bytes_max)| Size { slices, recent_bytes_max })
}

struct Model {
    world: World,
    clients: Vec<Client>,
    /// Every payload is unique.
    counter: u64,
}

impl Model {
    fn new(size: Size) -> Self {
        let mut world = World::with_size(limits(), 40, size);
        let clients = (0..4).map(|n| {
            let device = device_of(&key(n));
            let rooms = ROOMS.into_iter().map(|room| (room, ClientRoom::default())).collect();
            Client { device, conn: world.connect(device), rooms }
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
            Step::Publish { client, room, len, is_change } => {
                self.counter += 1;
                let room = ROOMS[room];
                let state = self.clients[client].rooms.get_mut(&room).unwrap();
                state.published += 1;
                let (number, handshake) = (state.published, state.handshake);
                let pending = Pending { number, counter: self.counter, len, is_change, handshake, resealed: false };
                state.pending.push_back(pending.clone());
                self.send(client, room, &pending);
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
            Step::Trim { room, keep } => {
                // A record that replaced a key is how those who know only that key come back: here all of them do.
                let seen = self.clients.iter().map(|client| client.rooms[&ROOMS[room]].seen.len() as u64).min();
                let log = self.world.engine.log(ROOMS[room]).filter(|log| log.former != FormerKeys::default());
                let unseen = log.map_or(0, |log| log.state.head - seen.unwrap_or_default());
                self.world.engine.trim(ROOMS[room], keep.max(unseen));
            }
            Step::Ephemeral { client, room } => {
                self.enter(client);
                let conn = Arc::clone(&self.clients[client].conn);
                let envelope = envelope(Kind::Ephemeral, ROOMS[room], b"typing");
                self.world.ask(&conn, ROOMS[room], Action::Ephemeral { envelope });
            }
            Step::Rest => {
                self.world.now_ms += 60_000;
                self.world.shard.rest(self.world.now_ms);
            }
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
            self.world.shard.handle(Message::Closed { conn: old.id }, self.world.now_ms);
        }
        let device = self.clients[client].device;
        self.clients[client].conn = self.world.connect(device);
        self.clients[client].rooms.values_mut().for_each(|room| {
            (room.subscribed, room.entered, room.barred) = (false, false, false);
        });
    }

    fn enter(&mut self, client: usize) {
        let conn = Arc::clone(&self.clients[client].conn);
        for (room, state) in self.clients[client].rooms.iter_mut().filter(|(_, state)| !state.entered) {
            let key = state.key.map_or_else(|| common::room_key(*room), key);
            state.entered = self.world.enter_by(&conn, *room, state.processed, &key);
        }
    }

    fn send(&mut self, client: usize, room: RoomId, pending: &Pending) {
        self.enter(client);
        let conn = Arc::clone(&self.clients[client].conn);
        let producer = ProducerId([u8::try_from(client).unwrap(); 16]);
        let (client_seq, handshake, envelope) = (pending.number, pending.handshake, pending.envelope(room));
        self.world.ask(&conn, room, Action::Publish(Publish { room, producer, client_seq, handshake, envelope }));
    }

    fn retry(&mut self, client: usize, room: RoomId) {
        if self.clients[client].rooms[&room].barred {
            return;
        }
        for pending in self.clients[client].rooms[&room].pending.clone() {
            self.send(client, room, &pending);
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
        let (frames, relieved) = self.world.take(&conn, bytes);
        if relieved {
            self.world.shard.handle(Message::Drained { conn: conn.id }, self.world.now_ms);
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
            let mut newest = 0;
            for (seq, envelope) in (1..).zip(&stored) {
                let is_change = waxwing::core::envelope::is_handshake(envelope);
                let payload = if is_change { common::handshake_payload(envelope) } else { common::payload(envelope) };
                assert_eq!(payload[8..16], Seq::to_le_bytes(newest), "nobody was left behind by what was published");
                newest = if is_change { seq } else { newest };
            }
            assert_eq!(log.state.handshake, newest);
            let published: u64 = self.clients.iter().map(|client| client.rooms[&room].published).sum();
            assert_eq!(published, log.state.head, "nothing is lost in the end");
            for client in &self.clients {
                let state = &client.rooms[&room];
                assert!(state.pending.is_empty());
                assert_eq!(state.seen.len(), stored.len(), "everybody saw everything");
                for (index, seen) in state.seen.iter().enumerate() {
                    match seen {
                        Some(seen) => assert_eq!(*seen, stored[index], "everybody saw the same"),
                        None => assert!(index as u64 + 1 < log.state.floor, "only what was trimmed is missing"),
                    }
                }
                for (after, chain) in &state.anchors {
                    assert_eq!(*chain, log.chain_at(*after), "delivery begins with the chain value of its place");
                }
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
            ServerFrame::Subscribed { room, after, chain, position } => {
                let state = self.rooms.get_mut(&room).unwrap();
                let have = state.seen.len() as u64;
                if after != have {
                    assert!(after > have && after < position.floor, "delivery begins at the cursor, or at the floor");
                    state.seen.resize(usize::try_from(after).unwrap(), None);
                    state.chain = None;
                }
                assert_eq!(*state.chain.get_or_insert(chain), chain, "the chain at the cursor");
                state.anchors.push((after, chain));
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
                assert!(!state.replaced, "nothing behind the record that replaced its key");
                for item in page.items {
                    assert!(!state.replaced, "no page goes on behind such a record");
                    let seq = state.seen.len() as u64 + 1;
                    if waxwing::core::envelope::is_handshake(&item.envelope) {
                        let counter = u64::from_le_bytes(*common::handshake_payload(&item.envelope).first_chunk().unwrap());
                        (state.handshake, state.processed) = (seq, seq);
                        if access_of(counter).is_some() {
                            (state.key, state.replaced) = (Some(counter), true);
                        }
                    }
                    state.chain = state.chain.map(|before| chain::next(page.room, before, seq, &item.envelope));
                    state.seen.push(Some(item.envelope));
                }
            }
            ServerFrame::Ack { room, client_seq, seq, .. } => {
                let state = self.rooms.get_mut(&room).unwrap();
                assert_eq!(*state.acked.entry(client_seq).or_insert(seq), seq, "the same answer every time");
                if state.pending.iter().any(|pending| pending.number == client_seq && pending.is_change) {
                    state.handshake = seq;
                }
                state.pending.retain(|pending| pending.number != client_seq);
            }
            ServerFrame::Entered { room, handshake, .. } => {
                let state = self.rooms.get_mut(&room).unwrap();
                (state.handshake, state.replaced, state.barred) = (handshake, false, false);
            }
            ServerFrame::Failed { room, what: Operation::Subscribe, why: Refusal::NoAccess } => {
                let state = self.rooms.get_mut(&room).unwrap();
                (state.entered, state.subscribed) = (false, false);
            }
            ServerFrame::Refused { room, client_seq, why: Refusal::StaleEpoch { handshake }, .. } => {
                let state = self.rooms.get_mut(&room).unwrap();
                state.handshake = handshake;
                for pending in state.pending.iter_mut().filter(|pending| pending.number >= client_seq) {
                    pending.resealed |= pending.handshake != handshake;
                    pending.handshake = handshake;
                }
            }
            ServerFrame::Refused { room, why: Refusal::NoAccess, .. } => self.rooms.get_mut(&room).unwrap().barred = true,
            // A former form of it was under way still when it was sealed again, and is what is stored.
            ServerFrame::Refused { room, client_seq, why: Refusal::Conflict, .. } => {
                let pending = &mut self.rooms.get_mut(&room).unwrap().pending;
                assert!(pending.iter().all(|pending| pending.number != client_seq || pending.resealed));
                pending.retain(|pending| pending.number != client_seq);
            }
            ServerFrame::Refused { why, .. } => assert!(
                matches!(why, Refusal::OutOfOrder { .. } | Refusal::Overloaded | Refusal::DiskFull | Refusal::OutcomeUnknown),
                "{why:?}"
            ),
            ServerFrame::Failed { what, why, .. } => {
                assert!(!matches!(why, Refusal::Internal | Refusal::BadProof), "{what:?}: {why:?}");
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn any_interleaving_keeps_the_contract(size in size(), steps in prop::collection::vec(step(), 1..120)) {
        let mut model = Model::new(size);
        steps.iter().for_each(|step| model.apply(step));
        model.finish();
    }
}
