//! Coming back with a ticket: one round trip over every transport, and nothing for whoever overheard it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test's helpers fail like its tests")]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{
    client::{Client, Seen, hello},
    device_of, key, proof,
    relay::{Path, Relay},
    server::Edge,
    sign,
};
use ed25519_dalek::SigningKey;
use waxwing::{
    core::{
        close::CloseCode,
        frame::{ClientFrame, Hello, LogKind, Publish, Resume, ServerFrame},
        id::{Digest, Nonce, ProducerId, RoomId},
        limits::Limits,
        login::{self, Transcript},
    },
    transport::{Connection, Kind},
};

const ROOM: RoomId = RoomId([7; 16]);

/// What a login leaves behind.
#[derive(Clone)]
struct Left {
    ticket: Bytes,
    time_ms: u64,
}

/// Answers the challenge that comes next. Returns what the welcome says.
async fn answer(client: &mut Client, hello: &Hello, exporter: Option<[u8; 32]>) -> Left {
    let ServerFrame::Challenge { nonce } = client.recv().await else { panic!("no challenge") };
    let transcript = Transcript { hello, challenge: nonce, exporter: exporter.as_ref() };
    client.binding = transcript.binding();
    client.send(&ClientFrame::Authenticate { signature: sign(&client.key, &transcript.message()) }).await;
    left(client).await
}

async fn left(client: &mut Client) -> Left {
    match client.recv().await {
        ServerFrame::Welcome { ticket, time_ms, .. } => Left { ticket, time_ms },
        other => panic!("{other:?}"),
    }
}

async fn log_in(edge: &Edge, kind: Kind, key: &SigningKey) -> (Client, Left) {
    let connection = edge.connect(kind).await;
    let exporter = connection.info.exporter;
    let hello = Hello { exporter: exporter.is_some(), ..hello(key) };
    let mut client = Client::new(connection, key.clone());
    client.send(&ClientFrame::Hello(hello.clone())).await;
    let left = answer(&mut client, &hello, exporter).await;
    (client, left)
}

/// A resume for a connection, and the binding that it makes.
fn resume(key: &SigningKey, left: &Left, exporter: Option<[u8; 32]>, nonce: u8) -> (Resume, Digest) {
    let hello = Hello { exporter: exporter.is_some(), nonce: Nonce([nonce; 32]), ..hello(key) };
    let message = login::resume_message(&hello, left.time_ms, &left.ticket, exporter.as_ref());
    let resume = Resume { hello, time_ms: left.time_ms, ticket: left.ticket.clone(), signature: sign(key, &message) };
    (resume, login::binding(&message))
}

fn publish(key: &SigningKey, client_seq: u64) -> ClientFrame {
    let producer = ProducerId(*device_of(key).0.first_chunk().unwrap());
    let envelope = common::envelope(waxwing::core::envelope::Kind::Room, ROOM, &client_seq.to_le_bytes());
    ClientFrame::Publish(Publish { room: ROOM, producer, client_seq, handshake: 0, envelope })
}

/// Everything that a client comes back with, in one flight.
fn flight(key: &SigningKey, left: &Left, exporter: Option<[u8; 32]>, nonce: u8, last: u64) -> Vec<Bytes> {
    let (resume, binding) = resume(key, left, exporter, nonce);
    let mut frames = vec![
        ClientFrame::Resume(resume),
        ClientFrame::Enter { room: ROOM, handshake: 0, proof: proof(ROOM, binding) },
        ClientFrame::Subscribe { room: ROOM, after: 0 },
    ];
    frames.extend((1..=last).map(|client_seq| publish(key, client_seq)));
    frames.iter().map(ClientFrame::encode).collect()
}

async fn edge() -> Edge {
    let edge = Edge::start(Limits { publish_burst_max: 10_000, sessions_per_device_max: 1000, ..Limits::default() }).await;
    Client::login(&edge, Kind::Memory, &key(1)).await.create(ROOM, LogKind::Room).await;
    edge
}

#[tokio::test(flavor = "multi_thread")]
async fn one_flight_brings_a_session_back_over_any_transport() {
    let edge = edge().await;
    let mut last = 0;
    for from in Kind::ALL {
        for to in Kind::ALL {
            let (_, left) = log_in(&edge, from, &key(2)).await;
            assert!(!left.ticket.is_empty() && left.ticket.len() <= login::TICKET_LEN_MAX);
            last += 1;
            let connection = edge.connect(to).await;
            let exporter = connection.info.exporter;
            let frames = flight(&key(2), &left, exporter, u8::try_from(last).unwrap(), last);
            let mut client = Client::new(connection, key(2));
            client.writer.send(&frames).await.unwrap();
            // The server has said nothing before.
            assert!(matches!(client.recv().await, ServerFrame::Welcome { .. }), "{from} to {to}");
            assert!(matches!(client.recv().await, ServerFrame::Entered { .. }));
            for client_seq in 1..=last {
                let acked = |frame: &ServerFrame| matches!(frame, ServerFrame::Ack { client_seq: of, .. } if *of == client_seq);
                let ServerFrame::Ack { seq, .. } = client.until(acked).await else { unreachable!() };
                assert_eq!(seq, client_seq, "what was stored before is acked where it is");
            }
            let mut seen = Seen::new(ROOM);
            seen.read(&mut client, last).await;
            assert_eq!(seen.head(), last);
        }
    }
    assert_eq!((edge.metric("waxwing_resumes_total"), edge.metric("waxwing_resumes_challenged_total")), (16.0, 0.0));
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flight_that_was_overheard_is_worth_nothing() {
    let edge = edge().await;
    for (nonce, kind) in (1..).zip(Kind::ALL) {
        let (_, left) = log_in(&edge, kind, &key(2)).await;
        let Connection { info, .. } = edge.connect(kind).await;
        // As a browser, which cannot sign the exporter: told again word by word.
        let frames = flight(&key(2), &left, None, nonce, 1);
        let mut honest = Client::new(edge.connect(kind).await, key(2));
        honest.writer.send(&frames).await.unwrap();
        assert!(matches!(honest.recv().await, ServerFrame::Welcome { .. }));
        let mut thief = Client::new(edge.connect(kind).await, key(3));
        thief.writer.send(&frames).await.unwrap();
        assert!(matches!(thief.recv().await, ServerFrame::Challenge { .. }), "{kind}");
        thief.send(&ClientFrame::Authenticate { signature: [0; 64].into() }).await;
        assert_eq!(thief.closing().await.0, Some(CloseCode::Unauthenticated));
        // As whoever can: on another connection the signature is another's.
        if info.exporter.is_some() {
            let frames = flight(&key(2), &left, info.exporter, nonce, 1);
            let mut thief = Client::new(edge.connect(kind).await, key(3));
            thief.writer.send(&frames).await.unwrap();
            assert_eq!(thief.closing().await.0, Some(CloseCode::Unauthenticated), "{kind}");
        }
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_raw_quic_a_resume_is_in_the_first_packets_of_who_comes_back() {
    let edge = edge().await;
    let path = Path { delay: Duration::from_millis(20), ..Path::default() };
    let relay = Relay::start(edge.udp(), path).await;
    let (_, left) = log_in(&edge, Kind::Memory, &key(2)).await;
    for (nonce, early) in [(1, false), (2, true)] {
        if early {
            relay.hold().await;
        }
        let (resume, binding) = resume(&key(2), &left, None, nonce);
        let (connection, said) = edge.connect_resuming(&relay, &resume).await;
        assert_eq!(said, early, "only to a server that is known");
        let mut client = Client::new(connection, key(2));
        if !said {
            client.send(&ClientFrame::Resume(resume)).await;
        }
        // When it comes back, it is welcome although the server has heard nothing of it since its first packets.
        assert!(matches!(client.recv().await, ServerFrame::Welcome { .. }));
        relay.release().await;
        client.binding = binding;
        client.enter_room(ROOM).await;
        client.writer.close(CloseCode::Normal).await;
    }
    assert_eq!((edge.metric("waxwing_early_total"), edge.metric("waxwing_resumes_total")), (1.0, 2.0));
    // Who says the same once more is challenged, and does not know the answer.
    let (overheard, _) = resume(&key(2), &left, None, 2);
    let (connection, said) = edge.connect_resuming(&relay, &overheard).await;
    assert!(said);
    let mut thief = Client::new(connection, key(3));
    assert!(matches!(thief.recv().await, ServerFrame::Challenge { .. }));
    assert_eq!(edge.metric("waxwing_resumes_total"), 2.0);
    edge.stop().await;
}

/// Connects, and resumes after what was seen, in one flight.
async fn come_back(edge: &Edge, kind: Kind, key: &SigningKey, left: &Left, after: u64) -> Client {
    let connection = edge.connect(kind).await;
    let (resume, binding) = resume(key, left, connection.info.exporter, 1);
    let frames = [
        ClientFrame::Resume(resume),
        ClientFrame::Enter { room: ROOM, handshake: 0, proof: proof(ROOM, binding) },
        ClientFrame::Subscribe { room: ROOM, after },
    ];
    let mut client = Client::new(connection, key.clone());
    client.writer.send(&frames.each_ref().map(ClientFrame::encode)).await.unwrap();
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_takes_nothing_is_closed_and_comes_back_to_where_it_was() {
    for kind in Kind::ALL {
        let limits = Limits { publishes_per_second_max: 10_000, publish_burst_max: 10_000, ..Limits::default() };
        let outbox_bytes_max = f64::from(limits.outbox_bytes_max);
        let dir = tempfile::tempdir().unwrap();
        let edge = Edge::start_with(dir, limits, |config| config.stall_timeout_ms = 1000).await;
        let mut publisher = Client::login(&edge, Kind::Memory, &key(1)).await;
        publisher.create(ROOM, LogKind::Room).await;
        publisher.enter_room(ROOM).await;
        let (mut stalled, left) = log_in(&edge, kind, &key(2)).await;
        stalled.enter_room(ROOM).await;
        stalled.subscribe(ROOM, 0).await;
        let mut other = Client::enter(&edge, kind, &key(3), ROOM).await;
        other.subscribe(ROOM, 0).await;
        // From here on it reads nothing: what sockets and windows hold fills up, and then its outbox. A message fits every transport at
        // once, so that nothing waits for who reads.
        let (closes, filler) = ("waxwing_closes_total{reason=\"idle\"}", [0; 10_000]);
        let (mut count, mut most_waiting, mut seen) = (0, 0.0_f64, Seen::new(ROOM));
        while !edge.metrics().contains(closes) {
            count += 1;
            publisher.publish(ROOM, count, &[&count.to_le_bytes()[..], &filler].concat()).await;
            publisher.until(|frame| matches!(frame, ServerFrame::Ack { client_seq, .. } if *client_seq == count)).await;
            seen.read(&mut other, count).await;
            most_waiting = most_waiting.max(edge.metric("waxwing_outbox_bytes"));
        }
        assert!(most_waiting > 0.0 && most_waiting <= outbox_bytes_max, "{most_waiting} bytes waited on {kind}");
        assert_eq!(edge.metric(closes), 1.0, "{kind}: nobody else was closed");
        // What had reached it before is good, and it goes on behind that.
        let mut late = Seen::new(ROOM);
        while let Ok(Some(frame)) = stalled.try_recv().await {
            match frame {
                ServerFrame::Deliver(page) => late.take(&page),
                ServerFrame::Closing { code, .. } => assert_eq!(code, CloseCode::Idle),
                _ => {}
            }
        }
        assert!(late.head() < count, "{kind}: {} of {count}", late.head());
        let mut back = come_back(&edge, kind, &key(2), &left, late.head()).await;
        late.read(&mut back, count).await;
        assert_eq!((late.chain, &late.payloads), (seen.chain, &seen.payloads), "{kind}");
        assert_eq!(edge.metric("waxwing_resumes_total"), 1.0);
        edge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_that_is_not_accepted_costs_a_round_trip_and_nothing_else() {
    let before = edge().await;
    let (_, former) = log_in(&before, Kind::Memory, &key(2)).await;
    let edge = Edge::start_in(
        before.stop().await,
        Limits { publish_burst_max: 10_000, sessions_per_device_max: 1000, ..Limits::default() },
    )
    .await;
    let (_, good) = log_in(&edge, Kind::Memory, &key(2)).await;
    let (_, others) = log_in(&edge, Kind::Memory, &key(3)).await;
    let cases = [
        ("of a former life of the server", former),
        ("of another device", others),
        ("none at all", Left { ticket: Bytes::new(), ..good.clone() }),
        ("noise", Left { ticket: vec![7; login::TICKET_LEN_MAX].into(), ..good.clone() }),
        ("too old a time", Left { time_ms: good.time_ms - 2 * login::RESUME_SKEW_MS, ..good.clone() }),
        ("a time to come", Left { time_ms: u64::MAX, ..good.clone() }),
    ];
    for kind in Kind::ALL {
        for (nonce, (name, left)) in (1..).zip(&cases) {
            let connection = edge.connect(kind).await;
            let exporter = connection.info.exporter;
            let mut client = Client::new(connection, key(2));
            client.writer.send(&flight(&key(2), left, exporter, nonce, 5)).await.unwrap();
            let hello = Hello { exporter: exporter.is_some(), nonce: Nonce([nonce; 32]), ..hello(&key(2)) };
            answer(&mut client, &hello, exporter).await;
            // What was sent behind the resume was dropped: the next answer is to what is sent now.
            client.send(&ClientFrame::Ping { token: 5 }).await;
            assert_eq!(client.recv().await, ServerFrame::Pong { token: 5 }, "{name} over {kind}");
            client.enter_room(ROOM).await;
        }
    }
    let mut reader = Client::enter(&edge, Kind::Memory, &key(1), ROOM).await;
    reader.subscribe(ROOM, 0).await;
    let ServerFrame::Subscribed { position, .. } = reader.recv().await else { panic!() };
    assert_eq!(position.head, 0, "nothing was stored");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resume_out_of_place_ends_with_the_documented_code() {
    let edge = edge().await;
    let (_, good) = log_in(&edge, Kind::Memory, &key(2)).await;
    let stale = Left { ticket: Bytes::new(), ..good.clone() };
    let encoded = |left: &Left| ClientFrame::Resume(resume(&key(2), left, None, 1).0).encode();
    let mut forged = resume(&key(2), &good, None, 2).0;
    forged.signature = [0; 64].into();
    let mut elsewhere = resume(&key(2), &good, None, 3).0;
    elsewhere.hello.authority = "evil.example".into();
    let mut long = resume(&key(2), &good, None, 4).0;
    long.ticket = vec![0; login::TICKET_LEN_MAX + 1].into();
    let much = vec![publish(&key(2), 1).encode(); 40];
    let cases = [
        ("forged", vec![ClientFrame::Resume(forged).encode()], CloseCode::Unauthenticated),
        ("for another server", vec![ClientFrame::Resume(elsewhere).encode()], CloseCode::Unauthenticated),
        ("a long ticket", vec![ClientFrame::Resume(long).encode()], CloseCode::Protocol),
        ("twice", vec![encoded(&stale), encoded(&stale)], CloseCode::Protocol),
        ("and a hello", vec![encoded(&stale), ClientFrame::Hello(hello(&key(2))).encode()], CloseCode::Protocol),
        ("much behind it", [vec![encoded(&stale)], much].concat(), CloseCode::Handshake),
        ("and goodbye", vec![encoded(&stale), ClientFrame::Close.encode()], CloseCode::Normal),
    ];
    for kind in Kind::ALL {
        for (name, frames, code) in &cases {
            let mut client = Client::new(edge.connect(kind).await, key(2));
            // The server may close before it has read everything.
            let _ = client.writer.send(frames).await;
            assert_eq!(client.closing().await.0, Some(*code), "{name} over {kind}");
        }
        let (mut client, left) = log_in(&edge, kind, &key(2)).await;
        client.send(&ClientFrame::Resume(resume(&key(2), &left, None, 9).0)).await;
        assert_eq!(client.closing().await.0, Some(CloseCode::Protocol), "after login over {kind}");
    }
    edge.stop().await;
}
