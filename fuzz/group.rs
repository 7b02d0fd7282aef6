//! What the fuzz target `group` does with its bytes: everything of a group that comes from others, against a group that has a
//! member waiting outside, a link and two people. Shared with `tests/corpus.rs`, as `bodies.rs` is.

use std::sync::OnceLock;

use bytes::Bytes;
use waxwing::{
    core::id::RoomId,
    group::{Change, Group, GroupInfo, History, KeyPackage, KeyPackages, LinkKeys, Part, Record, Suite},
    seal::identity::Identity,
};

const ROOM: RoomId = RoomId([1; 16]);
const SUITE: Suite = Suite::X25519;

/// The same on every run (splitmix64).
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z ^ (z >> 31)
    }
}

impl rand_core::TryRng for Rng {
    type Error = core::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        Ok(u32::try_from(self.word() >> 32).unwrap_or_default())
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        Ok(self.word())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        for chunk in bytes.chunks_mut(8) {
            chunk.iter_mut().zip(self.word().to_le_bytes()).for_each(|(byte, random)| *byte = random);
        }
        Ok(())
    }
}

impl rand_core::TryCryptoRng for Rng {}

/// A group, its second member, and what is on its way to them.
pub(crate) struct Scene {
    alice: Identity,
    bob: Vec<u8>,
    link: LinkKeys,
    waiting: Vec<u8>,
    /// A member's commit that adds who waits, and a joiner's.
    pub(crate) records: [Record; 2],
    pub(crate) package: KeyPackage,
    pub(crate) info: Vec<u8>,
}

pub(crate) fn scene() -> &'static Scene {
    static SCENE: OnceLock<Scene> = OnceLock::new();
    SCENE.get_or_init(|| make().expect("the scene can be made"))
}

fn make() -> Option<Scene> {
    let rng = &mut Rng(1);
    let (alice, bob, carol) = (Identity::generate(rng, 0), Identity::generate(rng, 0), Identity::generate(rng, 0));
    let mut group = Group::create(ROOM, SUITE, &alice, rng).ok()?;
    let (mut of_bob, mut of_carol) = (KeyPackages::default(), KeyPackages::default());
    let link = LinkKeys::new(&[2; 32]);
    let change = Change {
        add: vec![of_bob.make(&bob, SUITE, 1, false, rng).ok()?],
        list: vec![link.listed(false, 1)],
        // So that records lead down, too.
        history: Some(History::Days(30)),
        ..Change::default()
    };
    let record = group.commit(change, 0, &alice, rng).ok()?;
    group.process(&record, rng).ok()?;
    let second = Group::join(ROOM, &record, &mut of_bob, rng).ok()?;
    let package = of_carol.make(&carol, SUITE, 1, true, rng).ok()?;
    let info = group.group_info(&alice, rng).ok()?.encode();
    let joining = GroupInfo::open(ROOM, &record, &link).ok()?.join(ROOM, Some(&link), 0, &carol, rng).ok()?;
    let add = Change { add: vec![package.clone()], ..Change::default() };
    let records = [group.commit(add, 0, &alice, rng).ok()?, joining.record().clone()];
    Some(Scene { alice, bob: second.snapshot(), link, waiting: of_carol.snapshot(), records, package, info })
}

/// Pairs of place and difference, put over `base`: what a fuzzer finds by itself only in the first bytes.
fn changed(base: &[u8], mut edits: &[u8]) -> Vec<u8> {
    let mut bytes = base.to_vec();
    while let [low, high, difference, rest @ ..] = edits {
        let at = usize::from(u16::from_le_bytes([*low, *high])) % bytes.len().max(1);
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= difference;
        }
        edits = rest;
    }
    bytes
}

/// Bytes from the log, from a directory of key packages, from a member: whatever they are, nothing panics, and what is skipped
/// changes nothing. The first byte says what the rest is.
pub(crate) fn group(data: &[u8]) {
    let Some((what, rest)) = data.split_first() else { return };
    let (scene, rng) = (scene(), &mut Rng(7));
    match what % 6 {
        0 => record(rest, rng),
        1 | 2 => record(&changed(&scene.records[usize::from(what % 6) - 1].encode(), rest), rng),
        3 => {
            let package = KeyPackage(Bytes::from(changed(&scene.package.0, rest)));
            if let Ok(verified) = package.verify(SUITE, rng) {
                assert_eq!(package, scene.package, "every byte of a key package is signed");
                assert!(verified.last_resort);
            }
        }
        4 => {
            let Ok(info) = GroupInfo::decode(&changed(&scene.info, rest)) else { return };
            let _ = info.join(ROOM, Some(&scene.link), 0, &scene.alice, rng);
            let _ = info.join(ROOM, None, 0, &scene.alice, rng);
        }
        _ => {
            let mut record = scene.records[0].clone();
            if let Some(Part::Whole(welcome)) = &mut record.welcome {
                *welcome = changed(welcome, rest).into();
            }
            welcomed(&record, rng);
        }
    }
}

fn record(bytes: &[u8], rng: &mut Rng) {
    let scene = scene();
    let Ok(record) = Record::decode(&Bytes::copy_from_slice(bytes)) else { return };
    assert_eq!(Record::decode(&record.encode()), Ok(record.clone()));
    let mut group = Group::restore(&scene.bob, rng).expect("its own snapshot");
    if group.process(&record, rng).is_err() {
        assert!(group.snapshot() == scene.bob, "what is skipped changes nothing");
    } else {
        let hash = record.hash();
        assert!(scene.records.iter().any(|good| good.hash() == hash), "every byte of a record is bound to its commit");
    }
    let _ = GroupInfo::open(ROOM, &record, &scene.link);
    welcomed(&record, rng);
}

fn welcomed(record: &Record, rng: &mut Rng) {
    let scene = scene();
    let mut keys = KeyPackages::restore(&scene.waiting).expect("its own snapshot");
    if Group::join(ROOM, record, &mut keys, rng).is_err() {
        assert!(keys.snapshot() == scene.waiting, "what is refused uses nothing up");
    }
}
