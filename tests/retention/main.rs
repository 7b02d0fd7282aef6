//! Retention in a loaded server: people talk and read over every transport while their rooms are trimmed. Nothing alarms,
//! floors rise, what is above them is complete and in order, and the store says the same as everybody who read it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test's helpers fail like its tests")]

#[path = "../common/mod.rs"]
mod common;
mod cursor;
mod people;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use common::{client::Client, key, server::Edge};
use tokio::{sync::watch, task::JoinSet};
use waxwing::{
    core::{
        frame::{LogKind, ServerFrame},
        id::{RoomId, Seq},
        limits::Limits,
        log::LogState,
    },
    engine::embedded::{Config, EmbeddedEngine, ops},
    transport::Kind,
};

use self::cursor::Cursor;

const ROOM: RoomId = RoomId([7; 16]);
/// Envelope bytes that a room keeps, and what it may keep beside them: its newest chunk, and what is not applied yet.
const KEEP: u64 = 256 << 10;
const SLACK: u64 = 1 << 20;
/// The floor that is waited for: many times what is kept has been published then. A history that is trimmed has some 2 MB,
/// whatever was published, most of it free pages and what both rooms keep.
const FLOOR: Seq = 4_000;
/// How many publishes a client has under way.
const WINDOW: u64 = 32;

/// Publishes until `enough`; who, and what was acked, by number: its seq.
async fn publish(mut client: Client, id: u64, mut enough: watch::Receiver<bool>) -> (u64, BTreeMap<u64, Seq>) {
    let mut acked = BTreeMap::new();
    let mut next = 1;
    while acked.len() < 50_000 {
        while !*enough.borrow_and_update() && next <= acked.len() as u64 + WINDOW {
            client.publish(ROOM, next, &payload(id, next)).await;
            next += 1;
        }
        if acked.len() as u64 + 1 == next {
            return (id, acked);
        }
        match client.until(|frame| matches!(frame, ServerFrame::Ack { .. } | ServerFrame::Refused { .. })).await {
            ServerFrame::Ack { client_seq, seq, .. } => assert_eq!(acked.insert(client_seq, seq), None),
            other => panic!("{other:?}"),
        }
    }
    panic!("the floor does not rise")
}

fn payload(id: u64, n: u64) -> Vec<u8> {
    let mut bytes = [id.to_le_bytes(), n.to_le_bytes()].concat();
    bytes.resize(2_000, u8::try_from(n % 251).unwrap());
    bytes
}

async fn subscribe(edge: &Edge, kind: Kind, device: u64, after: Seq) -> Client {
    let mut client = Client::enter(edge, kind, &key(device), ROOM).await;
    client.subscribe(ROOM, after).await;
    client
}

/// One room, told of in frames: who publishes, who reads all the while, who is slow, who was away.
async fn frames(edge: Arc<Edge>) -> Vec<Cursor> {
    Client::login(&edge, Kind::Memory, &key(1)).await.create(ROOM, LogKind::Room).await;
    let (enough, wait) = watch::channel(false);
    let mut publishers = JoinSet::new();
    for (id, kind) in [(11, Kind::WebTransport), (12, Kind::Quic), (13, Kind::WebSocket)] {
        let client = Client::enter(&edge, kind, &key(id), ROOM).await;
        publishers.spawn(publish(client, id, wait.clone()));
    }
    // Reads from the beginning, says nothing, and reads no further until all is over.
    let mut slow = (subscribe(&edge, Kind::Memory, 22, 0).await, Cursor::new(ROOM));
    let mut away = Cursor::new(ROOM);
    away.read(&mut subscribe(&edge, Kind::Quic, 23, 0).await, 20).await;
    let mut live = (subscribe(&edge, Kind::WebSocket, 21, 0).await, Cursor::new(ROOM));
    while live.1.floor < FLOOR {
        live.1.take_next(&mut live.0).await;
    }
    enough.send(true).unwrap();
    let acked = publishers.join_all().await;
    let head = acked.iter().map(|(_, acked)| acked.len() as u64).sum();
    live.1.read(&mut live.0, head).await;
    slow.1.read(&mut slow.0, head).await;
    away.read(&mut subscribe(&edge, Kind::WebSocket, 23, away.after).await, head).await;
    for cursor in [&slow.1, &away] {
        assert!(cursor.skipped > 0, "the floor has overtaken it");
    }
    let cursors = vec![live.1, slow.1, away];
    for cursor in &cursors {
        assert_eq!(cursor.payloads.len() as u64 + cursor.skipped, head);
        let acked = acked.iter().flat_map(|(id, acked)| acked.iter().map(|(n, seq)| (*id, *n, seq)));
        for (id, n, seq) in acked.filter(|(.., seq)| **seq >= cursor.floor) {
            assert_eq!(cursor.payloads[seq], payload(id, n), "acked, and there");
        }
    }
    cursors
}

/// What a store keeps of a room.
fn stored(store: &EmbeddedEngine, room: RoomId) -> (LogState, BTreeMap<Seq, Vec<u8>>) {
    let mut records = BTreeMap::new();
    let state = store.scan(room, &mut |seq, _, envelope| drop(records.insert(seq, envelope.to_vec()))).unwrap().unwrap();
    assert!(records.keys().copied().eq(state.floor..=state.head), "dense from the floor to the head");
    assert_eq!(records.values().map(|envelope| envelope.len() as u64).sum::<u64>(), state.bytes);
    assert!(state.bytes <= KEEP + SLACK, "{} bytes are kept", state.bytes);
    (state, records)
}

fn open(store: &Path) -> EmbeddedEngine {
    EmbeddedEngine::open(store, Config { disk_reserve_bytes: 0, ..Config::default() }, Arc::new(())).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn rooms_are_trimmed_under_people_who_talk_and_nothing_alarms() {
    let limits = Limits { publishes_per_second_max: 1_000_000, publish_burst_max: 1_000_000, ..Limits::default() };
    let edge = Edge::start_with(tempfile::tempdir().unwrap(), limits, |config| {
        config.retention.default.max_bytes = Some(KEEP);
        config.store.apply_bytes = 128 << 10;
    });
    let edge = Arc::new(edge.await);
    let (cursors, (room, people)) = tokio::join!(frames(Arc::clone(&edge)), people::talk(Arc::clone(&edge)));
    assert!(edge.metric("waxwing_store_trims_total") >= 2.0);
    let edge = Arc::into_inner(edge).expect("everybody has left");
    let dir = edge.stop().await;

    let path = dir.path().join("data/store");
    let checked = ops::check(&path, &mut |_| std::ops::ControlFlow::Continue(())).unwrap();
    assert!(checked.is_whole(), "{checked:?}");
    let store = open(&path);
    let (state, records) = stored(&store, ROOM);
    assert!(state.floor >= FLOOR);
    for cursor in &cursors {
        assert_eq!((cursor.after, cursor.chain), (state.head, state.chain));
        assert!(cursor.floor <= state.floor);
        for (seq, envelope) in &records {
            assert_eq!(common::payload(&envelope.clone().into()), cursor.payloads[seq]);
        }
    }
    let (state, records) = stored(&store, room);
    assert!(state.floor > 1, "the people's room was trimmed too");
    for person in &people {
        assert_eq!(person.head, state.head);
        for seq in records.keys() {
            let (said, heard) = (&people[0].messages[seq], &person.messages[seq]);
            assert_eq!((&said.text, &said.author, said.kind), (&heard.text, &heard.author, heard.kind), "at {seq}");
        }
    }
    // Both rooms were written many times over, into the same pages.
    let published = cursors[0].after * 2_000;
    let kept = std::fs::metadata(path.join("history.redb")).unwrap().len();
    assert!(kept < published / 2, "{kept} bytes of {published} and more are on the disk");
    store.shutdown();
}
