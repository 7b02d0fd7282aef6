//! What the fuzz target `evidence` does with its bytes: a file of evidence from anybody. Shared with `tests/corpus.rs`.

use waxwing::{
    client::evidence::{self, Compared, Contradicted, Evidence, Finding, Quoted, Said},
    client::{records::Who, timeline::Reader},
    core::{
        chain,
        envelope::Kind,
        id::{Digest, LogId, MessageId, ProducerId, RoomId},
    },
    seal::{
        body::{Body, Content, Message, Seen},
        epoch::{Epoch, EpochSecrets},
        identity::Identity,
        message,
    },
};

use super::group::Rng;

/// Bytes from anybody: a file, or (first byte not 0) what it is without its signature, which says something of itself and agrees with
/// itself.
pub(crate) fn evidence(data: &[u8]) {
    let read = match data.split_first() {
        Some((0, file)) => Evidence::decode(file),
        Some((_, body)) => Evidence::parse(body),
        None => return,
    };
    let Ok(read) = read else { return };
    for finding in &read.findings {
        let _ = read.strength(finding);
    }
    assert_eq!(evidence::compare(&read, &read), Compared::Same(read.head()));
    assert_ne!(evidence::is_split(&read, &read), Some(true));
}

/// A file with one finding of each sort, and what it is without its signature.
pub(crate) fn sample() -> Option<[Vec<u8>; 2]> {
    let rng = &mut Rng(3);
    let (room, log) = (RoomId([1; 16]), LogId([2; 16]));
    let identity = Identity::generate(rng, 0);
    let epoch = Epoch::new(room, 1, Digest([3; 32]), EpochSecrets::random(rng));
    let by = Who { device: identity.device(), user: identity.user() };
    let body = Body {
        session: ProducerId([4; 16]),
        counter: 2,
        previous: Digest([5; 32]),
        seen: Seen { log, seq: 1, chain: Digest([6; 32]) },
        content: Content::new(&Message::Text("said".into())),
    };
    let envelope = message::seal(&epoch, Kind::Room, 0, MessageId([7; 16]), &identity, &body, rng).ok()?;
    let roster = core::iter::once((0, by)).collect();
    let message = Reader { epoch: &epoch, roster: &roster }.open(&envelope)?;
    let digest = chain::digest(&envelope);
    let mut chains = vec![chain::start(room)];
    for seq in 1..=3 {
        let before = chains.last().copied()?;
        chains.push(chain::next_hashed(room, before, seq, if seq == 2 { digest } else { Digest([9; 32]) }));
    }
    let quoted = Box::new(Quoted { at: 2, digest, message });
    let said = |said| Finding::Server(Contradicted { log, at_ms: 5, head: 3, chain: chains[3], said });
    let findings = vec![
        Finding::Seen(quoted.clone()),
        Finding::Ahead(quoted.clone()),
        Finding::Gap { before: None, message: quoted.clone() },
        Finding::Gap { before: Some(quoted.clone()), message: quoted },
        Finding::Foreign { at: 1, digest: Digest([9; 32]) },
        said(Said::Chain { at: 2, chain: Digest([8; 32]) }),
        said(Said::Next(9)),
        said(Said::Head(1)),
    ];
    let certificates = vec![(by.device, identity.certificate().statement())];
    let sample =
        Evidence { room, log, made_ms: 6, by, first: 0, chains, epoch: Some((1, Digest([3; 32]))), findings, certificates };
    let file = sample.encode(&identity);
    let body = file.get(16 + 1 + 64..)?.to_vec();
    Some([file, body])
}
