//! What a change of a group costs its maker, the others, and the log: for groups of 2, 10, 100 and 255 devices.

#![expect(clippy::print_stdout, reason = "prints bytes, which criterion does not measure")]

use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use rand_core::UnwrapErr;
use waxwing::{
    core::{handshake::outline, id::RoomId},
    group::{Change, Group, GroupInfo, KeyPackages, LinkKeys, Record, Suite},
    seal::identity::Identity,
};

const ROOM: RoomId = RoomId([1; 16]);

type Rng = UnwrapErr<getrandom::SysRng>;

fn rng() -> Rng {
    UnwrapErr(getrandom::SysRng)
}

fn person() -> Identity {
    Identity::generate(&mut rng(), 0)
}

/// A group of `size` devices, most of which came by a link, one after the other, so that the tree has inner keys.
struct Grown {
    owner: Identity,
    group: Group,
    /// The last one who came, as it is kept.
    other: Vec<u8>,
    last: Identity,
    link: LinkKeys,
    newest: Record,
}

impl Grown {
    fn new(suite: Suite, size: usize) -> Self {
        let (owner, link) = (person(), LinkKeys::new(&[1; 32]));
        let mut group = Group::create(ROOM, suite, &owner, &mut rng()).expect("a group can be made");
        let list = Change { list: vec![link.listed(false, 0)], ..Change::default() };
        let mut newest = group.commit(list, 0, &owner, &mut rng()).expect("an owner lists links");
        group.process(&newest, &mut rng()).expect("its own record");
        let (mut other, mut last) = (Vec::new(), person());
        for _ in 1..size {
            last = person();
            let info = GroupInfo::open(ROOM, &newest, &link).expect("the link is live");
            let joining = info.join(ROOM, Some(&link), 0, &last, &mut rng()).expect("the link is live");
            newest = joining.record().clone();
            group.process(&newest, &mut rng()).expect("a join by a live link");
            other = joining.confirm(&newest).expect("nobody came between").0.snapshot();
        }
        Self { owner, group, other, last, link, newest }
    }

    fn without_link(mut self) -> Self {
        let revoke = Change { revoke: vec![self.link.id()], ..Change::default() };
        self.newest = self.group.commit(revoke, 0, &self.owner, &mut rng()).expect("the owner may");
        self.group.process(&self.newest, &mut rng()).expect("its own record");
        let mut other = Group::restore(&self.other, &mut rng()).expect("its own snapshot");
        other.process(&self.newest, &mut rng()).expect("the owner's record");
        self.other = other.snapshot();
        self
    }

    /// A commit that is not given to the log.
    fn commit(&mut self, change: Change) -> Record {
        let record = self.group.commit(change, 0, &self.owner, &mut rng()).expect("the owner may");
        self.group.withdraw().expect("its own store");
        record
    }

    fn processed(&self, record: &Record) -> Group {
        let mut other = Group::restore(&self.other, &mut rng()).expect("its own snapshot");
        other.process(record, &mut rng()).expect("the owner's record");
        other
    }
}

fn groups(criterion: &mut Criterion) {
    println!("bytes of a record: {:>27} {:>8} {:>8} {:>8} {:>8}", "update", "add", "remove", "join", "update");
    println!("{:>82}", "(link)");
    for (name, suite) in [("x25519", Suite::X25519), ("xwing", Suite::XWing)] {
        // One more fits into the larger suite: the one that is added.
        for size in [2, 10, 100, 255] {
            one(criterion, name, suite, size);
        }
    }
}

fn one(criterion: &mut Criterion, name: &str, suite: Suite, size: usize) {
    let mut grown = Grown::new(suite, size);
    let (join, with_link) = (grown.newest.encode(), grown.commit(Change::default()).encode());
    let info = GroupInfo::open(ROOM, &grown.newest, &grown.link).expect("the link is live");
    let mut group = criterion.benchmark_group(format!("{name}, {size} devices"));
    group.sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    group.bench_function("join by link", |bench| {
        let joiner = person();
        bench.iter(|| info.join(ROOM, Some(&grown.link), 0, &joiner, &mut rng()).expect("the link is live"));
    });
    let mut grown = grown.without_link();
    let mut keys = KeyPackages::default();
    let package = keys.make(&person(), suite, 0, true, &mut rng()).expect("its own store");
    let add = Change { add: vec![package], ..Change::default() };
    let remove = Change { remove: vec![grown.last.device()], ..Change::default() };
    for (what, change) in [("update", Change::default()), ("add", add.clone()), ("remove", remove.clone())] {
        group.bench_function(format!("{what}: make"), |bench| bench.iter(|| grown.commit(change.clone())));
    }
    let [update, add, remove] = [Change::default(), add, remove].map(|change| grown.commit(change));
    group.bench_function("update: restore and process", |bench| bench.iter(|| grown.processed(&update)));
    group.bench_function("restore", |bench| {
        bench.iter(|| Group::restore(&grown.other, &mut rng()).expect("its own snapshot"));
    });
    group.bench_function("join by welcome", |bench| {
        let join = |mut keys| Group::join(ROOM, &add, &mut keys, &mut rng()).expect("it was added");
        bench.iter_batched(|| keys.clone(), join, BatchSize::SmallInput);
    });
    group.finish();
    let [update, add, remove] = [update, add, remove].map(|record| record.encode());
    let print = |whose: &str, len: fn(&Bytes) -> usize| {
        let [update, add, remove, join, with_link] = [&update, &add, &remove, &join, &with_link].map(len);
        println!("{name:>8}, {size:>3} devices, {whose:<7} {update:>15} {add:>8} {remove:>8} {join:>8} {with_link:>8}");
    };
    print("whole", Bytes::len);
    print("outline", |record| outline(record).len());
    println!("{name:>8}, {size:>3} devices, snapshot {:>14}", grown.other.len());
}

criterion_group!(benches, groups);
criterion_main!(benches);
