//! Envelopes: `@hpke/core` reads ours, and we read its.

use std::path::Path;

use serde::{Deserialize, Serialize};
use waxwing::{
    core::{
        envelope::{Header, Kind},
        id::{DeviceKey, Digest, LogId, MessageId, ProducerId, RoomId},
    },
    seal::{
        Random,
        body::{Body, Content, Message, Seen},
        epoch::{Epoch, EpochSecrets},
        hpke::XWingPrivate,
        identity::Identity,
        message,
    },
};

use crate::{array, hex, installed, root, unhex};

/// The vector file: all bytes in hex.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Vectors {
    room: Group<RoomKeys>,
    hand_over: Group<HandOverKeys>,
    joining: Group<JoinKeys>,
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

/// Who comes into a group by itself seals to the epoch's X-Wing key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct JoinKeys {
    room: String,
    epoch: u64,
    /// SHA-256 of the group's context.
    context: String,
    seed: String,
    public: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Sealed {
    body: String,
    envelope: String,
}

impl RoomKeys {
    fn epoch(&self) -> Epoch {
        // Only joiners use suite 2 with an epoch.
        let secrets = EpochSecrets { x25519: array(&self.x25519), xwing: [0; 32], psk: array(&self.psk) };
        Epoch::new(RoomId(array(&self.room)), self.epoch, Digest(array(&self.authenticator)), secrets)
    }
}

impl JoinKeys {
    fn epoch(&self) -> Epoch {
        // Only the X-Wing secret and the names of the epoch take part.
        let secrets = EpochSecrets { x25519: [0; 32], xwing: array(&self.seed), psk: [0; 32] };
        Epoch::new(RoomId(array(&self.room)), self.epoch, Digest([0; 32]), secrets)
    }
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
    let joining = joining(&identity, &mut rng);
    Vectors {
        joining,
        room: Group { keys, sender: sender.clone(), envelopes: in_room.into() },
        hand_over: Group { keys: hand_over, sender, envelopes: handed.into() },
    }
}

/// Envelopes by which a device comes into a group.
fn joining(identity: &Identity, rng: &mut impl Random) -> Group<JoinKeys> {
    let (seed, room, context): ([u8; 32], _, [u8; 32]) = (rng.bytes(), RoomId(rng.bytes()), rng.bytes());
    let (_, public) = XWingPrivate::from_seed(&seed);
    let epoch = 70_000;
    let envelopes = ["a change", &"of the group ".repeat(900)].map(|text| {
        let body = postcard::to_allocvec(text).unwrap();
        let envelope = message::seal_external(&public, (room, epoch), &context, identity, &body, rng).unwrap();
        Sealed { body: hex(&body), envelope: hex(&envelope) }
    });
    let keys = JoinKeys { room: hex(&room.0), epoch, context: hex(&context), seed: hex(&seed), public: hex(&public.to_bytes()) };
    Group { keys, sender: hex(&identity.device().0), envelopes: envelopes.into() }
}

/// Opens and verifies every envelope, and compares what is inside.
fn open_all(vectors: &Vectors) {
    let Vectors { room, hand_over, joining } = vectors;
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
    let epoch = joining.keys.epoch();
    for sealed in &joining.envelopes {
        let opened = message::open_external(&epoch, &unhex(&joining.keys.context), &unhex(&sealed.envelope)).unwrap();
        let body: String = opened.verify_with(|_| Some(DeviceKey(array(&joining.sender)))).unwrap();
        assert_eq!(hex(&postcard::to_allocvec(&body).unwrap()), sealed.body);
    }
}

/// Runs `tests/node/main.mjs`; returns what it printed.
fn node(mode: &str, file: &Path) -> String {
    let output = installed("main.mjs").arg(mode).arg(file).output().expect("node runs");
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
        assert_eq!(node("read", file).trim(), "7 envelopes opened");
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
