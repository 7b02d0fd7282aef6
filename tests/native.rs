//! The native client against a real server: what carries it, and that it comes back.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test's helpers fail like its tests")]

mod common;

use std::{path::Path, time::Duration};

use bytes::Bytes;
use common::server::Edge;
use waxwing::{
    client::{
        native::{
            Choice, Handle, Options,
            store::{Profile, StoreError},
        },
        view::{Command, ConnectionState, Event, Message, MessageState},
    },
    core::limits::Limits,
    transport::{Kind, Trust},
};

/// Nothing in these tests takes that long: it only ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(60);

fn start(profile: &Path, edge: &Edge, choice: Choice) -> Handle {
    let origin = format!("http://{}", edge.running.addresses().plain[0]);
    Handle::start(profile, Options { origin, choice, trust: Trust::WebPki, token: Bytes::new() }).unwrap()
}

/// The first event of which `wanted` makes something.
async fn until<T>(handle: &mut Handle, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = wanted(handle.events.recv().await.expect("the client runs")) {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, found).await.expect("it happens")
}

async fn online_over(handle: &mut Handle, kind: Kind) {
    until(handle, |event| match event {
        Event::Connection { state: ConnectionState::Online, transport, .. } => (transport? == kind.name()).then_some(()),
        _ => None,
    })
    .await;
}

/// Says something, and waits until the server has it.
async fn say(handle: &mut Handle, room: &str, text: &str) {
    handle.commands.send(Command::Send { room: room.to_owned(), text: text.to_owned() }).await.unwrap();
    until(handle, |event| match event {
        Event::Message { message: Message { text: said, state: MessageState::Sent, .. }, .. } => (said == text).then_some(()),
        _ => None,
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_comes_up_over_each_transport_and_by_itself_over_the_best() {
    let edge = Edge::start(Limits::default()).await;
    let dir = tempfile::tempdir().unwrap();
    let choices = [
        (Choice::Only(Kind::WebSocket), Kind::WebSocket),
        (Choice::Only(Kind::WebTransport), Kind::WebTransport),
        (Choice::Only(Kind::Quic), Kind::Quic),
        (Choice::Auto, Kind::WebTransport),
    ];
    let profile = dir.path().join("profile");
    let mut room = String::new();
    for (choice, kind) in choices {
        // The same person each time: all but the first come back with what the one before left.
        let mut handle = start(&profile, &edge, choice);
        if room.is_empty() {
            handle.commands.send(Command::Start { name: "Ann".into() }).await.unwrap();
            handle.commands.send(Command::CreateRoom { title: "T".into() }).await.unwrap();
        }
        online_over(&mut handle, kind).await;
        if room.is_empty() {
            room = until(&mut handle, |event| match event {
                Event::Room { room } => Some(room.id),
                _ => None,
            })
            .await;
        }
        say(&mut handle, &room, &format!("over {kind}, {choice:?}")).await;
        handle.stop().await.unwrap();
    }
    assert!(edge.metric("waxwing_resumes_total") >= 3.0);
    assert_eq!(edge.metric("waxwing_resumes_challenged_total"), 0.0);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_over_quic_resumes_in_its_first_packets() {
    let edge = Edge::start(Limits::default()).await;
    let dir = tempfile::tempdir().unwrap();
    let profile = dir.path().join("profile");
    let mut room = None;
    for comings in 0..3 {
        let mut handle = start(&profile, &edge, Choice::Only(Kind::Quic));
        if room.is_none() {
            handle.commands.send(Command::Start { name: "Ann".into() }).await.unwrap();
            handle.commands.send(Command::CreateRoom { title: "T".into() }).await.unwrap();
        }
        let id = until(&mut handle, |event| match event {
            Event::Room { room } => Some(room.id),
            _ => None,
        })
        .await;
        let room = &*room.get_or_insert(id);
        // The session goes on behind it.
        say(&mut handle, room, &format!("for the {comings}. time")).await;
        handle.stop().await.unwrap();
        assert_eq!(edge.metric("waxwing_early_total"), f64::from(comings));
        assert_eq!(edge.metric("waxwing_resumes_total"), f64::from(comings), "and it is what came early");
    }
    assert_eq!(edge.metric("waxwing_resumes_challenged_total"), 0.0);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_told_that_the_server_stops() {
    let edge = Edge::start(Limits::default()).await;
    let dir = tempfile::tempdir().unwrap();
    let mut handle = start(&dir.path().join("profile"), &edge, Choice::Only(Kind::WebTransport));
    handle.commands.send(Command::Start { name: "Ann".into() }).await.unwrap();
    online_over(&mut handle, Kind::WebTransport).await;
    let stopping = async { drop(edge.stop().await) };
    let told = until(&mut handle, |event| match event {
        Event::Connection { state: ConnectionState::Offline, detail, .. } => Some(detail),
        _ => None,
    });
    let (told, ()) = tokio::join!(told, stopping);
    assert_eq!(told.as_deref(), Some("the server is shutting down"), "in band, over every transport");
    handle.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_with_a_passphrase_is_a_profile_like_any_other() {
    let edge = Edge::start(Limits::default()).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("profile");
    let start = |passphrase: Option<&str>| {
        let profile = Profile { path: path.clone(), passphrase: passphrase.map(|text| text.to_owned().into()) };
        let origin = format!("http://{}", edge.running.addresses().plain[0]);
        Handle::start(profile, Options { origin, choice: Choice::Auto, trust: Trust::WebPki, token: Bytes::new() })
    };
    let mut handle = start(Some("correct horse")).unwrap();
    handle.commands.send(Command::Start { name: "Ann".into() }).await.unwrap();
    handle.commands.send(Command::CreateRoom { title: "T".into() }).await.unwrap();
    let room = until(&mut handle, |event| match event {
        Event::Room { room } => Some(room.id),
        _ => None,
    })
    .await;
    say(&mut handle, &room, "under lock").await;
    handle.stop().await.unwrap();
    assert!(matches!(start(None), Err(StoreError::Locked(_))));
    assert!(matches!(start(Some("correct hoarse")), Err(StoreError::Passphrase(_))));
    let mut handle = start(Some("correct horse")).unwrap();
    say(&mut handle, &room, "and again").await;
    handle.stop().await.unwrap();
    edge.stop().await;
}
