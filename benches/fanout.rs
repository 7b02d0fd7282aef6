//! Fan-out: from a durable record to the outboxes of a room's members, and out of them. The engine answers at once, so what
//! is measured is the router's own cost per delivery, for one message a turn and for sixteen.

use std::{
    hint::black_box,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ed25519_dalek::{Signer as _, SigningKey};
use waxwing::{
    core::{
        access::FormerKeys,
        envelope::{HEADER_LEN, Header, Kind, Suite},
        frame::{LogKind, Publish},
        id::{AccessKey, DeviceKey, Digest, LogId, MessageId, ProducerId, RoomId},
        limits::Limits,
        log::{LoadedLog, LogMeta, LogState},
        login::access_message,
        session::{Action, RoomRequest},
    },
    engine::{Answer, Busy, Complete, Completion, Engine, Request, Token},
    router::{
        Conn, ConnId, Usage,
        outbox::{Outbox, Permit},
        shard::{Message, Setup, Shard, Slices},
    },
};

const ROOM: RoomId = RoomId([7; 16]);
const ENVELOPE_LEN: usize = 300;

/// Says that everything is on disk.
struct Instant(LogMeta);

impl Engine for Instant {
    fn submit(&self, request: Request, token: Token, to: &Arc<dyn Complete>) -> Result<(), Busy> {
        let answer = match request {
            Request::Load { room } => {
                let (meta, state) = (self.0.clone(), LogState::empty(room));
                Answer::Loaded(Some(Box::new(LoadedLog { meta, state, former: FormerKeys::default(), producers: Vec::new() })))
            }
            _ => Answer::Done,
        };
        to.complete(vec![Completion { token, result: Ok(answer) }]);
        Ok(())
    }

    fn is_healthy(&self) -> bool {
        true
    }
}

#[derive(Default)]
struct Mailbox(Mutex<Vec<Completion>>);

impl Mailbox {
    fn take(&self) -> Vec<Completion> {
        std::mem::take(&mut *self.0.lock().expect("nothing panics"))
    }
}

impl Complete for Mailbox {
    fn complete(&self, batch: Vec<Completion>) {
        self.0.lock().expect("nothing panics").extend(batch);
    }
}

struct World {
    shard: Shard,
    mailbox: Arc<Mailbox>,
    conns: Vec<Arc<Conn>>,
    client_seq: u64,
}

impl World {
    /// A room with so many live members.
    fn new(members: u64) -> Self {
        let access = SigningKey::from_bytes(&[9; 32]);
        let meta = LogMeta {
            log: LogId([1; 16]),
            kind: LogKind::Room,
            access: AccessKey(access.verifying_key().to_bytes()),
            creator: DeviceKey([1; 32]),
            created_ms: 0,
        };
        let limits = Arc::new(Limits { room_bytes_max: u64::MAX, presence_sessions_max: 0, ..Limits::default() });
        let mailbox = Arc::new(Mailbox::default());
        let shard = Shard::new(Setup {
            slices: Slices::default(),
            recent_bytes_max: 64 << 20,
            index: 0,
            limits: Arc::clone(&limits),
            engine: Arc::new(Instant(meta)),
            complete: Arc::clone(&mailbox) as Arc<dyn Complete>,
            log_id: Box::new(|| LogId([0; 16])),
        });
        let proof = access.sign(&access_message(Digest([2; 32]), ROOM)).to_bytes().into();
        let connect = |id| {
            let outbox = Outbox::new(limits.outbox_bytes_max);
            Arc::new(Conn::new(ConnId(id), DeviceKey([1; 32]), Digest([2; 32]), outbox, Arc::new(Usage::default())))
        };
        let mut world = Self { shard, mailbox, conns: (0..members).map(connect).collect(), client_seq: 0 };
        for conn in world.conns.clone() {
            world.ask(&conn, Action::Enter { handshake: 0, proof });
            world.ask(&conn, Action::Subscribe { after: 0 });
        }
        world.turn();
        world.turn();
        world.drain();
        world
    }

    fn ask(&mut self, conn: &Arc<Conn>, action: Action) {
        let permit = Permit::new(conn, 0);
        self.shard.handle(Message::Request { conn: Arc::clone(conn), request: RoomRequest { room: ROOM, action }, permit }, 0);
    }

    fn turn(&mut self) {
        let done = self.mailbox.take();
        self.shard.handle(Message::Completed(done), 0);
        self.shard.end_turn();
        while self.shard.wants_turn() {
            self.shard.end_turn();
        }
    }

    /// Writes everything that waits, as the connections' home does.
    fn drain(&mut self) -> usize {
        let mut frames = 0;
        for (id, sent) in self.shard.sent().iter_mut().flat_map(|batch| batch.drain(..)) {
            if let Some(conn) = usize::try_from(id.0).ok().and_then(|index| self.conns.get(index)) {
                conn.outbox.written(black_box(sent).frame.len());
                frames += 1;
            }
        }
        frames
    }

    fn publish(&mut self, envelope: &Bytes, count: usize) {
        let Some(conn) = self.conns.first().map(Arc::clone) else { return };
        for _ in 0..count {
            self.client_seq += 1;
            let (client_seq, envelope) = (self.client_seq, envelope.clone());
            self.ask(
                &conn,
                Action::Publish(Publish { room: ROOM, producer: ProducerId([1; 16]), client_seq, handshake: 0, envelope }),
            );
        }
        self.turn();
    }
}

fn envelope() -> Bytes {
    let (kind, suite) = (Kind::Room, Suite::X25519Psk);
    let mut bytes = Header { kind, suite, room: ROOM, epoch: 1, leaf: 1, message: MessageId([1; 16]) }.to_bytes().to_vec();
    bytes.resize(ENVELOPE_LEN.max(HEADER_LEN), 7);
    bytes.into()
}

fn fanout(c: &mut Criterion) {
    let envelope = envelope();
    let mut group = c.benchmark_group("fanout");
    for members in [5, 100, 1000] {
        for batch in [1_usize, 16] {
            let mut world = World::new(members);
            world.publish(&envelope, batch);
            assert_eq!(world.drain() as u64, members + batch as u64, "one page for each member, and the acks");
            group.throughput(Throughput::Elements(members * batch as u64));
            group.bench_function(BenchmarkId::new(format!("members-{members}"), format!("batch-{batch}")), |b| {
                b.iter(|| {
                    world.publish(&envelope, batch);
                    world.drain()
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, fanout);
criterion_main!(benches);
