//! What one message costs before and behind the network: its frame, its seal, the room's decision, the hash chain.

use std::{hint::black_box, time::Duration};

use bytes::Bytes;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime};
use rand_core::UnwrapErr;
use waxwing::{
    core::{
        access::FormerKeys,
        chain,
        envelope::Kind,
        frame::{ClientFrame, Item, LogKind, Page, Position, Publish, ServerFrame},
        id::{AccessKey, DeviceKey, Digest, LogId, MessageId, ProducerId, RoomId},
        limits::Limits,
        log::{LoadedLog, LogMeta, LogState},
        room::{RoomLog, Verdict},
    },
    seal::{
        body::{Body, Content, Message, Seen},
        epoch::{Epoch, EpochSecrets},
        identity::Identity,
        invitation::Invitation,
        message::{open, seal},
    },
};

const ROOM: RoomId = RoomId([1; 16]);
const LOG: LogId = LogId([2; 16]);
const DEVICE: DeviceKey = DeviceKey([3; 32]);
const PRODUCER: ProducerId = ProducerId([4; 16]);
const MESSAGE: MessageId = MessageId([5; 16]);
const TEXT_LEN: usize = 300;
const PAGE_ITEMS: usize = 50;

type Rng = UnwrapErr<getrandom::SysRng>;

fn rng() -> Rng {
    UnwrapErr(getrandom::SysRng)
}

/// A person in a room of one epoch.
struct Writer {
    identity: Identity,
    epoch: Epoch,
}

impl Writer {
    fn new() -> Self {
        let identity = Identity::generate(&mut rng(), 0);
        let secrets = EpochSecrets::random(&mut rng());
        Self { identity, epoch: Epoch::new(ROOM, 1, Digest([9; 32]), secrets) }
    }

    fn body() -> Body {
        Body {
            session: PRODUCER,
            counter: 1,
            previous: Digest([0; 32]),
            seen: Seen { log: LOG, seq: 0, chain: chain::start(ROOM) },
            content: Content::new(&Message::Text("x".repeat(TEXT_LEN))),
        }
    }

    fn seal(&self, body: &Body) -> Bytes {
        seal(&self.epoch, Kind::Room, 1, MESSAGE, &self.identity, body, &mut rng()).expect("the text fits")
    }
}

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(30).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    group
}

fn frames(criterion: &mut Criterion) {
    let envelope = Writer::new().seal(&Writer::body());
    let publish =
        ClientFrame::Publish(Publish { room: ROOM, producer: PRODUCER, client_seq: 7, handshake: 0, envelope: envelope.clone() });
    let page = ServerFrame::Deliver(Page {
        room: ROOM,
        position: Position { log: LOG, head: 1_000_000, floor: 1 },
        first: 1_000_000,
        chain: Digest([7; 32]),
        items: vec![Item { time_ms: 1_700_000_000_000, envelope }; PAGE_ITEMS],
    });

    let mut group = group(criterion, "frame");
    let bytes = publish.encode();
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("publish/encode", |bench| bench.iter(|| publish.encode()));
    group.bench_function("publish/decode", |bench| bench.iter(|| ClientFrame::decode(&bytes)));
    let bytes = page.encode();
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("page of 50/encode", |bench| bench.iter(|| page.encode()));
    group.bench_function("page of 50/decode", |bench| bench.iter(|| ServerFrame::decode(&bytes)));
    group.finish();
}

fn sealing(criterion: &mut Criterion) {
    let writer = Writer::new();
    let (body, sender) = (Writer::body(), writer.identity.device());
    let envelope = writer.seal(&body);
    let mut group = group(criterion, "seal");
    group.bench_function("message/seal", |bench| bench.iter(|| writer.seal(&body)));
    group.bench_function("message/open and verify", |bench| {
        bench.iter(|| open(&writer.epoch, &envelope).and_then(|opened| opened.verify(sender)).expect("its own seal opens"));
    });

    let reader = Identity::generate(&mut rng(), 0);
    let issuer = writer.identity.certificate().hash();
    let room = [6; 256];
    let hand_over = || Invitation::seal(&room, reader.inbox_public(), &writer.identity, &mut rng()).expect("the invitation fits");
    let (_, sealed) = hand_over();
    group.bench_function("invitation/seal", |bench| bench.iter(hand_over));
    group.bench_function("invitation/open and verify", |bench| {
        bench.iter(|| {
            Invitation::open(reader.inbox(), reader.inbox_public(), issuer, &sealed).expect("it was sealed to this key")
        });
    });
    group.finish();
}

fn room(criterion: &mut Criterion) {
    let envelope = Writer::new().seal(&Writer::body());
    let meta = LogMeta { log: LOG, kind: LogKind::Room, access: AccessKey([8; 32]), creator: DEVICE, created_ms: 0 };
    let loaded = LoadedLog { meta, state: LogState::empty(ROOM), former: FormerKeys::default(), producers: Vec::new() };
    let mut log = RoomLog::new(ROOM, loaded);
    let limits = Limits { room_bytes_max: u64::MAX, ..Limits::default() };
    let mut client_seq = 0;

    let mut group = group(criterion, "room");
    group.throughput(Throughput::Elements(1));
    group.bench_function("publish and persisted", |bench| {
        bench.iter(|| {
            client_seq += 1;
            let publish = Publish { room: ROOM, producer: PRODUCER, client_seq, handshake: 0, envelope: envelope.clone() };
            let verdict = log.publish(DEVICE, publish, 0, &limits);
            assert!(matches!(verdict, Verdict::Append(_)), "{verdict:?}");
            log.persisted(limits.recent_bytes_max)
        });
    });
    let digest = chain::digest(&envelope);
    group.bench_function("chain/step", |bench| {
        bench.iter(|| chain::next_hashed(ROOM, black_box(digest), black_box(7), digest));
    });
    group.bench_function("chain/step and envelope", |bench| {
        bench.iter(|| chain::next(ROOM, black_box(digest), black_box(7), &envelope));
    });
    group.finish();
}

criterion_group!(benches, frames, sealing, room);
criterion_main!(benches);
