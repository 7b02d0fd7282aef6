//! The store: durable appends with 1, 16 and 256 in flight, next to the floor of the same disk in the same run (append
//! the same bytes to a file, `fdatasync`), and a page of history.

use std::{
    fs::File,
    hint::black_box,
    io::Write as _,
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use bytes::Bytes;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime};
use waxwing::{
    core::{
        chain,
        frame::LogKind,
        id::{AccessKey, DeviceKey, Digest, LogId, ProducerId, RoomId},
        log::{Append, LogMeta, Producer},
    },
    engine::{
        Complete, Completion, Engine as _, Request,
        redb::{Config, RedbEngine},
    },
};

const ENVELOPE_LEN: usize = 300;
const HISTORY: u64 = 1_000;

struct Sink(SyncSender<Vec<Completion>>);

impl Complete for Sink {
    fn complete(&self, batch: Vec<Completion>) {
        self.0.send(batch).expect("the bench waits for every completion");
    }
}

/// One log on a real file.
struct Store {
    engine: RedbEngine,
    sink: Arc<dyn Complete>,
    completions: Receiver<Vec<Completion>>,
    head: u64,
    chain: Digest,
}

impl Store {
    const ROOM: RoomId = RoomId([1; 16]);

    fn open(path: &Path) -> Self {
        let (sender, completions) = sync_channel(1024);
        let engine = RedbEngine::open(path, Config::default(), Arc::new(())).expect("a fresh store opens");
        let store = Self { engine, sink: Arc::new(Sink(sender)), completions, head: 0, chain: chain::start(Self::ROOM) };
        let (access, creator) = (AccessKey([1; 32]), DeviceKey([1; 32]));
        let meta = LogMeta { log: LogId([1; 16]), kind: LogKind::Room, access, creator, created_ms: 0 };
        store.submit(Request::Create { room: Self::ROOM, meta });
        store.wait(1);
        store
    }

    fn submit(&self, request: Request) {
        self.engine.submit(request, 0, &self.sink).expect("the queue is deep enough");
    }

    fn wait(&self, mut count: usize) {
        while count > 0 {
            let batch = self.completions.recv().expect("the engine answers");
            assert!(batch.iter().all(|completion| completion.result.is_ok()));
            count -= batch.len();
        }
    }

    fn append(&mut self, count: usize) {
        for _ in 0..count {
            self.head += 1;
            let envelope = Bytes::from(vec![7; ENVELOPE_LEN]);
            let digest = chain::digest(&envelope);
            self.chain = chain::next_hashed(Self::ROOM, self.chain, self.head, digest);
            self.submit(Request::Append(Append {
                room: Self::ROOM,
                seq: self.head,
                chain: self.chain,
                time_ms: self.head,
                producer: Producer { device: DeviceKey([1; 32]), id: ProducerId([1; 16]) },
                client_seq: self.head,
                hash: [0; 8],
                envelope,
            }));
        }
        self.wait(count);
    }
}

fn durable(group: &mut BenchmarkGroup<'_, WallTime>, directory: &Path, in_flight: usize) {
    group.throughput(Throughput::Elements(in_flight as u64));
    let mut file = File::create(directory.join(format!("floor-{in_flight}"))).expect("the directory is writable");
    let bytes = vec![7; in_flight * ENVELOPE_LEN];
    group.bench_function(format!("floor/{in_flight}"), |bench| {
        bench.iter(|| {
            file.write_all(&bytes).expect("the disk has room");
            file.sync_data().expect("the disk syncs");
        });
    });
    let mut store = Store::open(&directory.join(format!("store-{in_flight}")));
    group.bench_function(format!("append/{in_flight}"), |bench| bench.iter(|| store.append(in_flight)));
}

fn store(criterion: &mut Criterion) {
    // Beside the build, because the system's temporary directory may be in memory.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the target directory is writable");
    let mut group = criterion.benchmark_group("store");
    group.sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    for in_flight in [1, 16, 256] {
        durable(&mut group, directory.path(), in_flight);
    }
    let mut store = Store::open(&directory.path().join("history"));
    store.append(usize::try_from(HISTORY).expect("a small number"));
    group.throughput(Throughput::Elements(HISTORY));
    group.bench_function("history/1000", |bench| {
        bench.iter(|| {
            store.submit(Request::ReadAfter { room: Store::ROOM, after: 0, bytes_max: u32::MAX });
            black_box(store.completions.recv().expect("the engine answers"));
        });
    });
    group.finish();
}

criterion_group!(benches, store);
criterion_main!(benches);
