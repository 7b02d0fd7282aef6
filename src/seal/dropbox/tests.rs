use std::{fs, path::PathBuf};

use super::*;
use crate::{core::envelope::Header, seal::body::Message};

const ROOM: RoomId = RoomId([7; 16]);
const NOW_MS: u64 = 1_700_000_000_000;

/// The same on every machine: SHA-256 of a counter.
struct Rng(u64);

impl rand_core::TryRng for Rng {
    type Error = core::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        Ok(u32::from_le_bytes(self.bytes()))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        Ok(u64::from_le_bytes(self.bytes()))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        for chunk in bytes.chunks_mut(32) {
            self.0 += 1;
            chunk.copy_from_slice(&chain::digest(&self.0.to_le_bytes()).0[..chunk.len()]);
        }
        Ok(())
    }
}

impl rand_core::TryCryptoRng for Rng {}

fn scene() -> (Rng, Identity, Announcement, SharedDropBox) {
    let mut rng = Rng(5);
    let host = Identity::generate(&mut rng, NOW_MS);
    let seed = rng.bytes();
    let announcement = Announcement::new((ROOM, 3, 2), &seed, &host, NOW_MS);
    let shared = SharedDropBox { announcement: announcement.encode(), seed };
    (rng, host, announcement, shared)
}

fn body(name: &str, text: &str) -> PostBody {
    PostBody { name: name.to_owned(), content: Content::new(&Message::Text(text.to_owned())) }
}

#[test]
fn a_post_opens_with_the_key_that_was_announced_and_with_no_other() {
    let (mut rng, host, announcement, shared) = scene();
    let address = announcement.address("https://chat.example", &host);
    let (proof, envelope) = post(&address, &announcement, &body("cron", "done"), &mut rng).unwrap();
    assert!(proof.verifies(&announcement.poster.0, &post_message(ROOM, chain::digest(&envelope))));
    assert_eq!(envelope.len(), crate::seal::message::bucket(envelope.len()), "padded as any other envelope");
    let key = PostingKey::new(&shared).unwrap();
    let (message, opened) = key.open(&envelope).unwrap();
    assert_eq!(opened, body("cron", "done"));
    assert_eq!(message, Header::parse(&envelope).unwrap().message);
    // The next key of the same drop-box, and the same key in another announcement.
    for (counter, seed) in [(3, rng.bytes()), (4, shared.seed)] {
        let other = Announcement::new((ROOM, counter, 2), &seed, &host, NOW_MS + 1);
        let other = PostingKey::new(&SharedDropBox { announcement: other.encode(), seed }).unwrap();
        assert!(other.open(&envelope).is_err());
    }
    for at in 0..envelope.len() {
        let mut changed = envelope.to_vec();
        changed[at] ^= 1;
        assert!(key.open(&changed).is_err(), "byte {at}");
    }
    assert!(PostingKey::new(&SharedDropBox { seed: [1; 32], ..shared }).is_none(), "a seed of another key");
}

#[test]
fn who_has_the_announcement_and_not_the_address_cannot_post() {
    let (mut rng, host, announcement, shared) = scene();
    let address = Address { secret: [9; 32], ..announcement.address("https://chat.example", &host) };
    let (proof, envelope) = post(&address, &announcement, &body("cron", "done"), &mut rng).unwrap();
    assert!(!proof.verifies(&announcement.poster.0, &post_message(ROOM, chain::digest(&envelope))));
    let opened = PostingKey::new(&shared).unwrap().open(&envelope);
    assert_eq!(opened, Err(OpenError::Signature), "the server cannot write one either");
}

#[test]
fn posters_refuse_what_the_address_does_not_promise() {
    let (mut rng, host, announcement, _) = scene();
    let address = announcement.address("https://chat.example", &host);
    let check = |bytes: &[u8], address: &Address, known, now_ms| Announcement::verify(bytes, address, known, now_ms);
    let bytes = announcement.encode();
    assert_eq!(check(&bytes, &address, 3, NOW_MS), Ok(announcement.clone()));
    assert_eq!(check(&bytes, &address, 4, NOW_MS), Err(AnnouncementError::Counter { counter: 3, known: 4 }));
    assert_eq!(check(&bytes, &address, 0, NOW_MS + LIFE_MS), Err(AnnouncementError::Time));
    assert_eq!(check(&bytes, &address, 0, NOW_MS - EARLY_MS - 1), Err(AnnouncementError::Time));
    let elsewhere = Address { room: RoomId([8; 16]), ..address.clone() };
    assert_eq!(check(&bytes, &elsewhere, 0, NOW_MS), Err(AnnouncementError::Room));
    let another = Identity::generate(&mut rng, NOW_MS);
    let theirs = Announcement::new((ROOM, 9, 2), &[1; 32], &another, NOW_MS).encode();
    assert_eq!(check(&theirs, &address, 0, NOW_MS), Err(AnnouncementError::Host));
    let anew = Announcement::new((ROOM, 9, 9), &[1; 32], &host, NOW_MS).encode();
    assert_eq!(check(&anew, &address, 0, NOW_MS), Err(AnnouncementError::Poster));
    let mut long = Announcement { expires_ms: NOW_MS + LIFE_MS + 1, ..announcement };
    long.signature = host.sign(&long.message());
    assert_eq!(check(&long.encode(), &address, 0, NOW_MS), Err(AnnouncementError::Time));
    // Another device of the host announces as well as the first one.
    let second = Identity::add_device(host.secrets().user, &mut rng, NOW_MS);
    let next = Announcement::new((ROOM, 4, 2), &[1; 32], &second, NOW_MS);
    assert_eq!(check(&next.encode(), &address, 3, NOW_MS), Ok(next));
    for at in 0..bytes.len() {
        let mut changed = bytes.to_vec();
        changed[at] ^= 1;
        assert!(check(&changed, &address, 0, NOW_MS).is_err(), "byte {at}");
        assert!(check(&bytes[..at], &address, 0, NOW_MS).is_err(), "cut at {at}");
    }
    assert_eq!(check(&[&bytes[..], &[0]].concat(), &address, 0, NOW_MS), Err(AnnouncementError::Malformed));
    assert_eq!(check(&[2], &address, 0, NOW_MS), Err(AnnouncementError::Format(2)));
}

#[test]
fn an_address_survives_copying() {
    let (_, host, announcement, _) = scene();
    let address = announcement.address("http://localhost:8433", &host);
    let text = address.to_string();
    assert_eq!(text.parse(), Ok(address.clone()));
    assert_eq!(format!(" {text}\n").parse(), Ok(address));
    for bad in ["", "http://localhost:8433/", &text[..text.len() - 1], &text.replace("http", "ftp"), &text.replace("#p", "#q")] {
        assert_eq!(bad.parse::<Address>(), Err(AddressError), "{bad}");
    }
    assert!(!format!("{:?}", text.parse::<Address>()).contains(&text[text.len() - 20..]), "the secret is not in debug output");
}

/// What an independent poster can be checked with.
#[test]
fn the_vector_is_as_committed() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (mut rng, host, announcement, shared) = scene();
    let address = announcement.address("https://chat.example", &host);
    let (proof, envelope) = post(&address, &announcement, &body("cron", "the disk is full"), &mut rng).unwrap();
    let vector = serde_json::json!({
        "address": address.to_string(),
        "now_ms": NOW_MS,
        "announcement": hex(&announcement.encode()),
        "announcement_hash": hex(&announcement.hash().0),
        "counter": announcement.counter,
        "xwing_seed": hex(&shared.seed),
        "name": "cron",
        "text": "the disk is full",
        "post": hex(&[&proof.to_bytes()[..], &envelope].concat()),
    });
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "vectors", "dropbox.json"].iter().collect();
    if std::env::var_os("WAXWING_TEST_BLESS").is_some() {
        fs::write(&path, format!("{vector:#}\n")).unwrap();
    }
    assert_eq!(serde_json::from_str::<serde_json::Value>(&fs::read_to_string(path).unwrap()).unwrap(), vector);
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(proptest::arbitrary::any::<u8>(), 0..300)) {
        let _ = Announcement::decode(&bytes);
        let _ = Announcement::decode(&[&[FORMAT], &bytes[..]].concat());
    }
}
