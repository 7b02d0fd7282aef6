//! The contract with users, over every transport, against a real server with its real store.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test's helpers fail like its tests")]

mod common;

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use common::{
    client::{Client, Seen, hello},
    device_of, envelope, key,
    server::Edge,
    sign,
};
use tokio::task::JoinSet;
use waxwing::{
    core::{
        close::{CloseCode, Refusal},
        envelope::Kind as EnvelopeKind,
        frame::{ClientFrame, Hello, LogKind, Operation, Publish, ServerFrame},
        handshake::outline,
        id::{ProducerId, RoomId},
        limits::Limits,
        log::PRODUCER_RING,
        login::Transcript,
    },
    transport::Kind,
};

const ROOM: RoomId = RoomId([7; 16]);

/// The defaults, but nobody is too fast.
fn limits() -> Limits {
    Limits { publishes_per_second_max: 1_000_000, publish_burst_max: 1_000_000, ..Limits::default() }
}

/// A server with a room, made by device 1.
async fn edge() -> Edge {
    edge_with(limits()).await
}

async fn edge_with(limits: Limits) -> Edge {
    let edge = Edge::start(limits).await;
    Client::login(&edge, Kind::Memory, &key(1)).await.create(ROOM, LogKind::Room).await;
    edge
}

fn payload(client: u64, n: u64) -> Vec<u8> {
    [client.to_le_bytes(), n.to_le_bytes()].concat()
}

/// Publishes `count` messages and waits until all are acked.
async fn publish_all(client: &mut Client, id: u64, count: u64) {
    for n in 1..=count {
        client.publish(ROOM, n, &payload(id, n)).await;
    }
    for _ in 0..count {
        let frame = client.until(|frame| matches!(frame, ServerFrame::Ack { .. } | ServerFrame::Refused { .. })).await;
        assert!(matches!(frame, ServerFrame::Ack { .. }), "{frame:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_sees_the_same_order_whatever_carries_it() {
    let edge = edge().await;
    let mut readers = JoinSet::new();
    let (each, clients) = (50, Kind::ALL.len() as u64);
    for (id, kind) in (1..).zip(Kind::ALL) {
        let mut client = Client::enter(&edge, kind, &key(id), ROOM).await;
        readers.spawn(async move {
            client.subscribe(ROOM, 0).await;
            publish_all(&mut client, id, each).await;
            let mut seen = Seen::new(ROOM);
            seen.read(&mut client, each * clients).await;
            seen
        });
    }
    let seen: Vec<Seen> = readers.join_all().await;
    assert!(seen.iter().all(|other| other.payloads == seen[0].payloads && other.chain == seen[0].chain));
    for id in 1..=clients {
        let of: Vec<_> = seen[0].payloads.iter().filter(|bytes| bytes[..8] == id.to_le_bytes()).collect();
        assert!((1..=each).map(|n| Bytes::from(payload(id, n))).eq(of.into_iter().cloned()), "each client's own order is kept");
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_over_another_transport_is_stored_once() {
    let edge = edge().await;
    let (count, mut acked) = (120_u64, BTreeMap::new());
    // Each connection sends what is not acked, as much as the server can recognise, hears some of the acks, and is cut:
    // dropped without a goodbye.
    let window = PRODUCER_RING as u64;
    for (round, kind) in Kind::ALL.into_iter().cycle().enumerate() {
        let mut client = Client::enter(&edge, kind, &key(2), ROOM).await;
        let first = acked.keys().last().map_or(1, |last| last + 1);
        for n in first..=count.min(first + window - 1) {
            client.publish(ROOM, n, &payload(2, n)).await;
        }
        for _ in 0..(round % 3) * 20 {
            if acked.len() as u64 == count {
                break;
            }
            let ServerFrame::Ack { client_seq, seq, .. } = client.until(|f| matches!(f, ServerFrame::Ack { .. })).await else {
                continue;
            };
            assert_eq!(*acked.entry(client_seq).or_insert(seq), seq);
        }
        if acked.len() as u64 == count {
            break;
        }
    }
    let mut reader = Client::enter(&edge, Kind::WebSocket, &key(3), ROOM).await;
    reader.subscribe(ROOM, 0).await;
    let ServerFrame::Subscribed { position, .. } = reader.until(|f| matches!(f, ServerFrame::Subscribed { .. })).await else {
        panic!()
    };
    assert_eq!(position.head, count, "each once");
    let mut seen = Seen::new(ROOM);
    seen.read(&mut reader, count).await;
    for (n, seq) in acked {
        assert_eq!(seen.payloads[usize::try_from(seq).unwrap() - 1], payload(2, n), "the ack named its place");
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_goes_on_over_another_transport() {
    let edge = edge().await;
    let mut publisher = Client::enter(&edge, Kind::Memory, &key(1), ROOM).await;
    let mut seen = Seen::new(ROOM);
    let mut published = 0;
    for kind in [Kind::WebSocket, Kind::WebTransport, Kind::Quic, Kind::Memory, Kind::WebSocket] {
        let mut client = Client::enter(&edge, kind, &key(2), ROOM).await;
        client.subscribe(ROOM, seen.head()).await;
        let heard = |f: &ServerFrame| matches!(f, ServerFrame::Subscribed { .. } | ServerFrame::Failed { .. });
        let frame = client.until(heard).await;
        assert!(matches!(frame, ServerFrame::Subscribed { after, chain, .. } if after == seen.head() && chain == seen.chain));
        for _ in 0..40 {
            published += 1;
            publisher.publish(ROOM, published, &payload(1, published)).await;
        }
        seen.read(&mut client, published - 7).await;
        drop(client); // Cut, with some on the way.
        publisher.until(|f| matches!(f, ServerFrame::Ack { client_seq, .. } if *client_seq == published)).await;
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_costs_bounded_bytes_delays_nobody_and_loses_nothing() {
    let limits = limits();
    let bound = f64::from(limits.outbox_bytes_max + limits.page_bytes_max + 4096);
    for kind in Kind::ALL {
        let edge = edge_with(limits.clone()).await;
        let mut slow = Client::enter(&edge, kind, &key(2), ROOM).await;
        slow.subscribe(ROOM, 0).await;
        let mut quick = Client::enter(&edge, Kind::Memory, &key(3), ROOM).await;
        quick.subscribe(ROOM, 0).await;
        let mut publisher = Client::enter(&edge, Kind::Memory, &key(1), ROOM).await;
        // More than sockets, QUIC windows and outboxes hold together.
        let (count, filler) = (700_u64, vec![0; 30_000]);
        let mut seen = Seen::new(ROOM);
        for n in 1..=count {
            publisher.publish(ROOM, n, &[&payload(1, n)[..], &filler].concat()).await;
            publisher.until(|f| matches!(f, ServerFrame::Ack { .. })).await;
            seen.read(&mut quick, n).await;
            let waiting = edge.metric("waxwing_outbox_bytes");
            assert!(waiting <= bound, "{waiting} bytes wait on {kind}");
        }
        assert!(edge.metric("waxwing_catchups_total") > 0.0, "{kind}: it fell behind");
        let mut late = Seen::new(ROOM);
        late.read(&mut slow, count).await;
        assert_eq!(late.chain, seen.chain);
        // And it is live again.
        publisher.publish(ROOM, count + 1, b"now").await;
        late.read(&mut slow, count + 1).await;
        edge.stop().await;
    }
}

/// What a client does wrong, and how it ends.
async fn ends(edge: &Edge, kind: Kind, logged_in: bool, bytes: Vec<Bytes>) -> (Option<CloseCode>, CloseCode) {
    let mut client = Client::new(edge.connect(kind).await, key(2));
    if logged_in {
        client.log_in().await;
    }
    // The server may close before it has read everything.
    let _ = client.writer.send(&bytes).await;
    client.closing().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_the_protocol_ends_with_the_documented_code() {
    let edge = edge().await;
    let frame_max = edge.running.shared().config.limits.frame_bytes_max as usize;
    let signed = |hello: Hello| vec![ClientFrame::Hello(hello).encode()];
    let ping = ClientFrame::Ping { token: 1 }.encode();
    let bad_signature = ClientFrame::Authenticate { signature: [0; 64].into() }.encode();
    let cases: Vec<(&str, bool, Vec<Bytes>, CloseCode)> = vec![
        ("malformed", false, vec![Bytes::from_static(&[0xff; 9])], CloseCode::Protocol),
        ("trailing", false, vec![[&ping[..], &[0]].concat().into()], CloseCode::Protocol),
        ("before the hello", false, vec![ping.clone()], CloseCode::Protocol),
        ("version", false, signed(Hello { version: 9, ..hello(&key(2)) }), CloseCode::Version),
        ("other name", false, signed(Hello { authority: "evil.example".into(), ..hello(&key(2)) }), CloseCode::Unauthenticated),
        ("no name", false, signed(Hello { authority: String::new(), ..hello(&key(2)) }), CloseCode::Unauthenticated),
        ("signature", false, [signed(hello(&key(2))), vec![bad_signature.clone()]].concat(), CloseCode::Unauthenticated),
        ("two hellos", false, [signed(hello(&key(2))), signed(hello(&key(2)))].concat(), CloseCode::Protocol),
        ("large before login", false, vec![vec![0; 5000].into()], CloseCode::TooLarge),
        ("large after login", true, vec![vec![0; frame_max + 1].into()], CloseCode::TooLarge),
        ("hello after login", true, signed(hello(&key(2))), CloseCode::Protocol),
        ("authenticate after login", true, vec![bad_signature], CloseCode::Protocol),
        ("malformed after login", true, vec![Bytes::new()], CloseCode::Protocol),
        ("goodbye", true, vec![ClientFrame::Close.encode()], CloseCode::Normal),
    ];
    for kind in Kind::ALL {
        for (name, logged_in, bytes, code) in &cases {
            let (in_band, by_transport) = ends(&edge, kind, *logged_in, bytes.clone()).await;
            assert_eq!(in_band, Some(*code), "{name} over {kind}, in band");
            assert_eq!(by_transport, *code, "{name} over {kind}, by the transport");
        }
    }
    let metrics = edge.running.shared().metrics.encode();
    for code in ["protocol", "too_large", "version", "unauthenticated"] {
        assert!(metrics.contains(&format!("waxwing_closes_total{{reason=\"{code}\"}}")), "{metrics}");
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_was_overheard_is_worth_nothing() {
    let edge = edge().await;
    for kind in Kind::ALL {
        let mut honest = Client::new(edge.connect(kind).await, key(2));
        let hello = hello(&key(2));
        honest.send(&ClientFrame::Hello(hello.clone())).await;
        let ServerFrame::Challenge { nonce } = honest.recv().await else { panic!() };
        let transcript = Transcript { hello: &hello, challenge: nonce, exporter: None };
        let overheard = ClientFrame::Authenticate { signature: sign(&key(2), &transcript.message()) };
        honest.send(&overheard).await;
        assert!(matches!(honest.recv().await, ServerFrame::Welcome { .. }));
        let replayed = vec![ClientFrame::Hello(hello).encode(), overheard.encode()];
        assert_eq!(ends(&edge, kind, false, replayed).await.0, Some(CloseCode::Unauthenticated));
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_slow_too_much_and_too_many_are_told_apart() {
    let limits = Limits { handshake_timeout_ms: 300, idle_timeout_ms: 300, sessions_per_device_max: 1, ..limits() };
    let edge = Edge::start(limits).await;
    for kind in Kind::ALL {
        // On QUIC no stream exists for the server before the first byte, so there is nothing to say it on; and the
        // transport's own idle time-out is the same.
        let streamless = matches!(kind, Kind::Quic | Kind::WebTransport);
        let (in_band, _) = ends(&edge, kind, false, Vec::new()).await;
        assert!(in_band == Some(CloseCode::Handshake) || (in_band.is_none() && streamless), "{kind}: {in_band:?}");
        let (in_band, _) = ends(&edge, kind, true, Vec::new()).await;
        assert!(in_band == Some(CloseCode::Idle) || (in_band.is_none() && streamless), "{kind}: {in_band:?}");
        // On QUIC the client gives up by itself, and may be a moment ahead of the server.
        while edge.running.shared().metrics.sessions.get() > 0 {
            tokio::task::yield_now().await;
        }
        let first = Client::login(&edge, kind, &key(2)).await;
        let mut second = Client::new(edge.connect(kind).await, key(2));
        let hello = hello(&key(2));
        second.send(&ClientFrame::Hello(hello.clone())).await;
        let ServerFrame::Challenge { nonce } = second.recv().await else { panic!() };
        let transcript = Transcript { hello: &hello, challenge: nonce, exporter: None };
        let _ = second.try_send(&ClientFrame::Authenticate { signature: sign(&key(2), &transcript.message()) }).await;
        assert_eq!(second.closing().await.0, Some(CloseCode::Overloaded), "{kind}");
        drop(first);
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_without_proof_gets_refusals_and_nobody_else_is_affected() {
    let edge = edge().await;
    for kind in Kind::ALL {
        let mut stranger = Client::login(&edge, kind, &key(9)).await;
        stranger.publish(ROOM, 1, b"x").await;
        stranger.subscribe(ROOM, 0).await;
        let proof = common::proof(ROOM, waxwing::core::id::Digest([1; 32]));
        stranger.send(&ClientFrame::Enter { room: ROOM, handshake: 0, proof }).await;
        stranger.send(&ClientFrame::Ephemeral { envelope: envelope(EnvelopeKind::Room, ROOM, b"") }).await;
        stranger.send(&ClientFrame::Create { room: ROOM, access: common::access_of(&key(9)), kind: LogKind::Room }).await;
        let mut refusals = Vec::new();
        while refusals.len() < 5 {
            match stranger.recv().await {
                ServerFrame::Refused { why, .. } => refusals.push((None, why)),
                ServerFrame::Failed { what, why, .. } => refusals.push((Some(what), why)),
                other => panic!("{other:?}"),
            }
        }
        refusals.sort_by_key(|(what, _)| what.map(|what| format!("{what:?}")));
        assert_eq!(
            refusals,
            [
                (None, Refusal::NoAccess),
                (Some(Operation::Create), Refusal::RoomExists),
                (Some(Operation::Enter), Refusal::BadProof),
                (Some(Operation::Ephemeral), Refusal::BadEnvelope),
                (Some(Operation::Subscribe), Refusal::NoAccess),
            ]
        );
    }
    let mut member = Client::enter(&edge, Kind::Memory, &key(1), ROOM).await;
    publish_all(&mut member, 1, 3).await;
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ephemerals_presence_inboxes_fetch_and_deletion_work_end_to_end() {
    for kind in Kind::ALL {
        let edge = edge().await;
        let mut one = Client::enter(&edge, kind, &key(1), ROOM).await;
        let mut two = Client::enter(&edge, kind, &key(2), ROOM).await;
        for client in [&mut one, &mut two] {
            client.subscribe(ROOM, 0).await;
            client.until(|f| matches!(f, ServerFrame::Subscribed { .. })).await;
        }
        let device = device_of(&key(2));
        one.until(|f| matches!(f, ServerFrame::Presence { online, .. } if online.contains(&device))).await;
        let typing = envelope(EnvelopeKind::Ephemeral, ROOM, b"typing");
        two.send(&ClientFrame::Ephemeral { envelope: typing.clone() }).await;
        one.until(|f| *f == ServerFrame::Ephemeral { envelope: typing.clone() }).await;
        publish_all(&mut one, 1, 5).await;
        two.send(&ClientFrame::Fetch { request: 8, room: ROOM, before: 5, count_max: 2 }).await;
        let fetched = two.until(|f| matches!(f, ServerFrame::Fetched { .. })).await;
        assert!(matches!(fetched, ServerFrame::Fetched { request: 8, page } if page.first == 3 && page.items.len() == 2));
        drop(two);
        one.until(|f| matches!(f, ServerFrame::Presence { offline, .. } if offline.contains(&device))).await;
        let inbox = RoomId([8; 16]);
        one.create(inbox, LogKind::Inbox).await;
        one.enter_room(inbox).await;
        one.subscribe(inbox, 0).await;
        let mut poster = Client::login(&edge, kind, &key(3)).await;
        let keyring = envelope(EnvelopeKind::Keyring, inbox, b"keys");
        let producer = ProducerId([3; 16]);
        poster
            .send(&ClientFrame::Publish(Publish {
                room: inbox,
                producer,
                client_seq: 1,
                handshake: 0,
                envelope: keyring.clone(),
            }))
            .await;
        let delivered = one.until(|f| matches!(f, ServerFrame::Deliver(page) if page.room == inbox)).await;
        assert!(matches!(delivered, ServerFrame::Deliver(page) if page.items[0].envelope == keyring));
        one.send(&ClientFrame::Delete { room: ROOM }).await;
        one.until(|f| matches!(f, ServerFrame::Deleted { room: ROOM })).await;
        edge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_server_says_so_and_its_rooms_are_there_again_afterwards() {
    let edge = edge().await;
    let mut clients = Vec::new();
    for (id, kind) in (1..).zip(Kind::ALL) {
        let mut client = Client::enter(&edge, kind, &key(id), ROOM).await;
        publish_all(&mut client, id, 10).await;
        clients.push(client);
    }
    let mut closings: JoinSet<_> = clients.into_iter().map(Client::closing).collect();
    let dir = tokio::time::timeout(Duration::from_secs(30), edge.stop()).await.expect("it stops");
    while let Some(closing) = closings.join_next().await {
        assert_eq!(closing.unwrap().0, Some(CloseCode::GoingAway));
    }
    let edge = Edge::start_in(dir, limits()).await;
    let mut client = Client::enter(&edge, Kind::WebSocket, &key(1), ROOM).await;
    client.subscribe(ROOM, 0).await;
    let mut seen = Seen::new(ROOM);
    seen.read(&mut client, 40).await;
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_of_any_size_reach_everybody_over_every_transport() {
    let edge = edge().await;
    let mut reader = Client::login(&edge, Kind::WebSocket, &key(1)).await;
    reader.create(ROOM, LogKind::Room).await;
    reader.enter_room(ROOM).await;
    reader.subscribe(ROOM, 0).await;
    let mut records = Vec::new();
    for (seq, kind) in (1..).zip(Kind::ALL) {
        let mut client = Client::enter(&edge, kind, &key(2), ROOM).await;
        // As large as it may be.
        let record = common::handshake(ROOM, seq - 1, None, b"", (1 << 20, (2 << 20) - 48 - 48 - 52));
        let (producer, envelope) = (ProducerId([1; 16]), record.clone());
        let publish = Publish { room: ROOM, producer, client_seq: seq, handshake: seq - 1, envelope };
        client.send(&ClientFrame::Publish(publish)).await;
        let answer = client.until(|frame| matches!(frame, ServerFrame::Ack { .. } | ServerFrame::Refused { .. })).await;
        assert!(matches!(answer, ServerFrame::Ack { seq: at, .. } if at == seq), "{kind}: {answer:?}");
        records.push(record);
        for (before, expected) in [(u64::MAX, seq), (seq, seq - 1)] {
            client.send(&ClientFrame::Handshake { request: 5, room: ROOM, before, whole: true }).await;
            let fetched = client.until(|frame| matches!(frame, ServerFrame::Fetched { .. })).await;
            let ServerFrame::Fetched { request: 5, page } = fetched else { panic!("{fetched:?}") };
            let found = page.items.first().map(|item| &item.envelope);
            assert_eq!(found, expected.checked_sub(1).map(|index| &records[usize::try_from(index).unwrap()]), "{kind}");
        }
    }
    let mut seen = Vec::new();
    while seen.len() < records.len() {
        let ServerFrame::Deliver(page) = reader.until(|frame| matches!(frame, ServerFrame::Deliver(_))).await else { panic!() };
        seen.extend(page.items.into_iter().map(|item| item.envelope));
    }
    assert_eq!(seen, records.iter().map(outline).collect::<Vec<_>>(), "without what only who comes in needs");
    edge.stop().await;
}
