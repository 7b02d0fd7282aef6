//! One frame of each kind, with every field at a value that tells it from its neighbours.

use bytes::Bytes;
use waxwing::core::{
    close::{CloseCode, Refusal},
    frame::{
        ClientFrame, DropBoxOffer, Hello, Item, KeyPackage, LogKind, Operation, PROTOCOL_VERSION, Page, Position, Publish,
        Resume, ServerFrame,
    },
    id::{AccessKey, DeviceKey, Digest, LogId, Nonce, ProducerId, RoomId, Signature},
    limits::Limits,
    packages::Suite,
};

const ROOM: RoomId = RoomId([0x11; 16]);
const PRODUCER: ProducerId = ProducerId([0x22; 16]);
const DEVICE: DeviceKey = DeviceKey([0x33; 32]);
const CHAIN: Digest = Digest([0x44; 32]);
const POSITION: Position = Position { log: LogId([0x55; 16]), head: 300, floor: 2 };

fn signature() -> Signature {
    let mut bytes = [0x66; 64];
    bytes[32..].fill(0x77);
    bytes.into()
}

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

pub(crate) fn client() -> Vec<(&'static str, ClientFrame)> {
    vec![
        (
            "hello",
            ClientFrame::Hello(Hello {
                version: PROTOCOL_VERSION,
                nonce: Nonce([0x88; 32]),
                device: DEVICE,
                authority: "chat.example:4433".to_owned(),
                exporter: true,
                token: bytes("token"),
                agent: "waxwing/0.1".to_owned(),
            }),
        ),
        ("authenticate", ClientFrame::Authenticate { signature: signature() }),
        ("create room", ClientFrame::Create { room: ROOM, access: AccessKey([0x99; 32]), kind: LogKind::Room }),
        ("create inbox", ClientFrame::Create { room: ROOM, access: AccessKey([0x99; 32]), kind: LogKind::Inbox }),
        ("enter", ClientFrame::Enter { room: ROOM, handshake: 299, proof: signature() }),
        ("leave", ClientFrame::Leave { room: ROOM }),
        ("subscribe", ClientFrame::Subscribe { room: ROOM, after: 16_384 }),
        ("unsubscribe", ClientFrame::Unsubscribe { room: ROOM }),
        ("fetch", ClientFrame::Fetch { request: 7, room: ROOM, before: u64::MAX, count_max: 100 }),
        (
            "publish",
            ClientFrame::Publish(Publish {
                room: ROOM,
                producer: PRODUCER,
                client_seq: 127,
                handshake: 300,
                envelope: bytes("envelope"),
            }),
        ),
        ("ephemeral", ClientFrame::Ephemeral { envelope: bytes("envelope") }),
        ("delete", ClientFrame::Delete { room: ROOM }),
        ("ping", ClientFrame::Ping { token: 0xdead_beef }),
        ("close", ClientFrame::Close),
        ("seek", ClientFrame::Seek { request: 7, room: ROOM, time_ms: 1_700_000_000_000 }),
        (
            "resume",
            ClientFrame::Resume(Resume {
                hello: Hello {
                    version: PROTOCOL_VERSION,
                    nonce: Nonce([0x88; 32]),
                    device: DEVICE,
                    authority: "chat.example:4433".to_owned(),
                    exporter: false,
                    token: bytes(""),
                    agent: "waxwing/0.1".to_owned(),
                },
                time_ms: 1_700_000_000_000,
                ticket: bytes("ticket"),
                signature: signature(),
            }),
        ),
        ("handshake", ClientFrame::Handshake { request: 7, room: ROOM, before: u64::MAX, whole: true }),
        (
            "publish key packages",
            ClientFrame::PublishKeyPackages {
                request: 7,
                suite: Suite::XWing,
                packages: vec![
                    KeyPackage { expires_ms: 1_700_000_000_000, last_resort: false, bytes: bytes("first") },
                    KeyPackage { expires_ms: u64::MAX, last_resort: true, bytes: bytes("last") },
                ],
                replace: true,
            },
        ),
        ("take key package", ClientFrame::TakeKeyPackage { request: 7, device: DEVICE, suite: Suite::X25519 }),
        (
            "put drop-box",
            ClientFrame::PutDropBox {
                room: ROOM,
                offer: Some(DropBoxOffer { epoch: 300, poster: AccessKey([0x99; 32]), announcement: bytes("hear") }),
            },
        ),
        ("close drop-box", ClientFrame::PutDropBox { room: ROOM, offer: None }),
    ]
}

fn page(items: Vec<Item>) -> Page {
    Page { room: ROOM, position: POSITION, first: 299, chain: CHAIN, items }
}

pub(crate) fn server() -> Vec<(&'static str, ServerFrame)> {
    let item = |time_ms, text| Item { time_ms, envelope: bytes(text) };
    let mut frames = vec![
        ("challenge", ServerFrame::Challenge { nonce: Nonce([0x88; 32]) }),
        (
            "welcome",
            ServerFrame::Welcome {
                agent: "waxwing/0.1".to_owned(),
                limits: Limits::default(),
                time_ms: 1_700_000_000_000,
                ticket: bytes("ticket"),
            },
        ),
        ("created", ServerFrame::Created { room: ROOM, log: POSITION.log }),
        ("entered", ServerFrame::Entered { room: ROOM, position: POSITION, handshake: 299 }),
        ("subscribed", ServerFrame::Subscribed { room: ROOM, after: 298, chain: CHAIN, position: POSITION }),
        ("deliver", ServerFrame::Deliver(page(vec![item(1_700_000_000_000, "first"), item(1_700_000_000_001, "second")]))),
        ("fetched", ServerFrame::Fetched { request: 7, page: page(vec![item(1_700_000_000_000, "first")]) }),
        ("fetched nothing", ServerFrame::Fetched { request: 7, page: page(vec![]) }),
        ("ack", ServerFrame::Ack { room: ROOM, producer: PRODUCER, client_seq: 127, seq: 300 }),
        ("presence", ServerFrame::Presence { room: ROOM, online: vec![DEVICE], offline: vec![] }),
        ("ephemeral", ServerFrame::Ephemeral { envelope: bytes("envelope") }),
        ("deleted", ServerFrame::Deleted { room: ROOM }),
        ("pong", ServerFrame::Pong { token: 0xdead_beef }),
    ];
    for what in [
        Operation::Create,
        Operation::Enter,
        Operation::Subscribe,
        Operation::Fetch,
        Operation::Ephemeral,
        Operation::Delete,
        Operation::Seek,
        Operation::Handshake,
        Operation::DropBox,
    ] {
        frames.push(("failed", ServerFrame::Failed { room: ROOM, what, why: Refusal::NoAccess }));
    }
    for why in refusals() {
        frames.push(("refused", ServerFrame::Refused { room: ROOM, producer: PRODUCER, client_seq: 127, why }));
    }
    frames.push(("key packages", ServerFrame::KeyPackages { request: 7, result: Ok(300) }));
    frames.push(("key packages refused", ServerFrame::KeyPackages { request: 7, result: Err(Refusal::TooLarge { max: 300 }) }));
    frames.push(("key package", ServerFrame::KeyPackage { request: 7, result: Ok(Some(bytes("first"))) }));
    frames.push(("no key package", ServerFrame::KeyPackage { request: 7, result: Ok(None) }));
    frames.push(("key package refused", ServerFrame::KeyPackage { request: 7, result: Err(Refusal::DiskFull) }));
    frames.push(("sought", ServerFrame::Sought { request: 7, room: ROOM, seq: 299 }));
    for code in CloseCode::ALL {
        frames.push(("closing", ServerFrame::Closing { code, retry_after_ms: 1_000 }));
    }
    frames.push(("drop-box", ServerFrame::DropBox { room: ROOM, announcement: Some(bytes("hear")) }));
    frames.push(("drop-box closed", ServerFrame::DropBox { room: ROOM, announcement: None }));
    frames
}

pub(crate) fn refusals() -> Vec<Refusal> {
    use Refusal::*;
    vec![
        NoAccess,
        RoomExists,
        NotCreator,
        BadEnvelope,
        TooLarge { max: 65_536 },
        OutOfOrder { expected: 4 },
        Conflict,
        Expired,
        StaleEpoch { handshake: 299 },
        TooManyProducers,
        RateLimited { retry_after_ms: 250 },
        TooManyRooms,
        RoomFull,
        DiskFull,
        Overloaded,
        OutcomeUnknown,
        CursorAhead { head: 300 },
        BadProof,
        Internal,
        TooManyPackages { max: 50 },
    ]
}
