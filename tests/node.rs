//! Envelopes against an independent implementation: npm's `@hpke/core` reads ours, and we read its (`tests/node`).
#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it does"
)]
#![cfg(feature = "client")]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde::{Deserialize, Serialize};
use waxwing::{
    core::{
        envelope::{Header, Kind},
        id::{DeviceKey, Digest, LogId, MessageId, ProducerId, RoomId},
    },
    seal::{
        Random as _,
        body::{Body, Content, Message, Seen},
        epoch::{Epoch, EpochSecrets},
        hpke::XWingPrivate,
        identity::Identity,
        message,
    },
};

/// The vector file: all bytes in hex.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Vectors {
    room: Group<RoomKeys>,
    hand_over: Group<HandOverKeys>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Group<K> {
    keys: K,
    /// The device key that signed.
    sender: String,
    envelopes: Vec<Sealed>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct RoomKeys {
    room: String,
    epoch: u64,
    authenticator: String,
    x25519: String,
    psk: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct HandOverKeys {
    inbox: String,
    seed: String,
    public: String,
    issuer: String,
    purpose: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Sealed {
    body: String,
    envelope: String,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn array<const N: usize>(text: &str) -> [u8; N] {
    unhex(text).try_into().unwrap()
}

impl RoomKeys {
    fn epoch(&self) -> Epoch {
        // Suite 2 is not used with an epoch yet, so its secret is not in the vectors.
        let secrets = EpochSecrets { x25519: array(&self.x25519), xwing: [0; 32], psk: array(&self.psk) };
        Epoch::new(RoomId(array(&self.room)), self.epoch, Digest(array(&self.authenticator)), secrets)
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

fn committed() -> Vectors {
    serde_json::from_slice(&std::fs::read(root().join("vectors/envelopes.json")).unwrap()).unwrap()
}

/// Vectors with fresh keys and messages.
fn fresh() -> Vectors {
    let mut rng = rand_core::UnwrapErr(getrandom::SysRng);
    let identity = Identity::generate(&mut rng, 0);
    let (room, authenticator) = (RoomId(rng.bytes()), Digest(rng.bytes()));
    let secrets = EpochSecrets::random(&mut rng);
    let keys = RoomKeys {
        room: hex(&room.0),
        epoch: 1,
        authenticator: hex(&authenticator.0),
        x25519: hex(&secrets.x25519),
        psk: hex(&secrets.psk),
    };
    let epoch = keys.epoch();
    let long = "wax ".repeat(400);
    let kinds =
        [(Kind::Room, Message::Text("hello".into())), (Kind::Room, Message::Text(long)), (Kind::Ephemeral, Message::Typing)];
    let in_room = kinds.map(|(kind, content)| {
        let seen = Seen { log: LogId(rng.bytes()), seq: 12, chain: Digest(rng.bytes()) };
        let (session, previous) = (ProducerId(rng.bytes()), Digest(rng.bytes()));
        let body = Body { session, counter: 300, previous, seen, content: Content::new(&content) };
        let message = MessageId(rng.bytes());
        let envelope = message::seal(&epoch, kind, 3, message, &identity, &body, &mut rng).unwrap();
        Sealed { body: hex(&postcard::to_allocvec(&body).unwrap()), envelope: hex(&envelope) }
    });
    let (seed, inbox) = (rng.bytes(), RoomId(rng.bytes()));
    let (_, public) = XWingPrivate::from_seed(&seed);
    let handed = ["keys, for instance", ""].map(|text| {
        let body = postcard::to_allocvec(text).unwrap();
        let envelope = message::seal_hand_over(&public, inbox, "a purpose", &identity, &body, &mut rng).unwrap();
        Sealed { body: hex(&body), envelope: hex(&envelope) }
    });
    let sender = hex(&identity.device().0);
    let issuer = hex(&identity.certificate().hash().0);
    let hand_over = HandOverKeys {
        inbox: hex(&inbox.0),
        seed: hex(&seed),
        public: hex(&public.to_bytes()),
        issuer,
        purpose: "a purpose".into(),
    };
    Vectors {
        room: Group { keys, sender: sender.clone(), envelopes: in_room.into() },
        hand_over: Group { keys: hand_over, sender, envelopes: handed.into() },
    }
}

/// Opens and verifies every envelope, and compares what is inside.
fn open_all(vectors: &Vectors) {
    let Vectors { room, hand_over } = vectors;
    let epoch = room.keys.epoch();
    for sealed in &room.envelopes {
        let opened = message::open(&epoch, &unhex(&sealed.envelope)).unwrap();
        let body = opened.verify(DeviceKey(array(&room.sender))).unwrap();
        assert_eq!(hex(&postcard::to_allocvec(&body).unwrap()), sealed.body);
    }
    let keys = &hand_over.keys;
    let (private, public) = XWingPrivate::from_seed(&array(&keys.seed));
    let (inbox, issuer) = (RoomId(array(&keys.inbox)), Digest(array(&keys.issuer)));
    for sealed in &hand_over.envelopes {
        let opened = message::open_hand_over(&private, &public, inbox, &keys.purpose, issuer, &unhex(&sealed.envelope)).unwrap();
        let body: String = opened.verify_with(|_| Some(DeviceKey(array(&hand_over.sender)))).unwrap();
        assert_eq!(hex(&postcard::to_allocvec(&body).unwrap()), sealed.body);
    }
}

/// Runs `tests/node/main.mjs`, with its locked packages installed; returns what it printed.
fn node(mode: &str, file: &Path) -> String {
    let dir = root().join("node");
    let (lock, installed) = (dir.join("package-lock.json"), dir.join("node_modules/.package-lock.json"));
    let changed = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    if changed(&installed) < changed(&lock) {
        let status = Command::new("npm").args(["ci", "--no-audit", "--no-fund"]).current_dir(&dir).status().expect("npm runs");
        assert!(status.success(), "npm ci failed in {}", dir.display());
    }
    let output = Command::new("node").arg("main.mjs").arg(mode).arg(file).current_dir(&dir).output().expect("node runs");
    assert!(output.status.success(), "node {mode}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_vectors_open() {
    let vectors = committed();
    assert!(vectors.room.envelopes.len() >= 3 && vectors.hand_over.envelopes.len() >= 2);
    open_all(&vectors);
    for sealed in &vectors.room.envelopes {
        let envelope = unhex(&sealed.envelope);
        assert_eq!(message::bucket(envelope.len()), envelope.len(), "padded to a bucket");
        assert_eq!(Header::parse(&envelope).unwrap().room.0, array(&vectors.room.keys.room));
    }
}

#[test]
fn another_implementation_reads_and_writes_the_same_envelopes() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("envelopes.json");
    std::fs::write(&file, serde_json::to_vec(&fresh()).unwrap()).unwrap();
    for file in [&file, &root().join("vectors/envelopes.json")] {
        assert_eq!(node("read", file).trim(), "5 envelopes opened");
        let theirs: Vectors = serde_json::from_str(&node("write", file)).unwrap();
        assert_ne!(theirs, committed());
        open_all(&theirs);
    }
}

#[test]
#[ignore = "writes tests/vectors/envelopes.json anew: for a change of the format only"]
fn write_vectors() {
    let mut text = serde_json::to_string_pretty(&fresh()).unwrap();
    text.push('\n');
    std::fs::create_dir_all(root().join("vectors")).unwrap();
    std::fs::write(root().join("vectors/envelopes.json"), text).unwrap();
}
