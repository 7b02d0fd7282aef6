//! Who is in a room, with native clients against a real server: people come by link, are away, are removed, leave, and come back.
#![cfg(all(feature = "server", feature = "client"))]
#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::indexing_slicing,
    reason = "a test's helpers fail like its tests"
)]

mod common;

use std::{ops::ControlFlow, sync::Arc};

use common::{
    access_of,
    client::Client,
    handshake, key,
    person::{Person, Place},
    server::Edge,
    sign,
};
use ed25519_dalek::SigningKey;
use waxwing::{
    client::view::{Command, MessageKind, Role, RoomState},
    core::{
        frame::{ClientFrame, Publish, ServerFrame},
        id::ProducerId,
        limits::Limits,
        login::access_message,
    },
    engine::embedded::{Config, EmbeddedEngine, ops},
    seal::link::Link,
    transport::Kind,
};

#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_over_removals_follows_them_and_who_was_removed_does_not() {
    let place = Place::new().await;
    let mut ann = place.person("Ann").await;
    let link = ann.create().await;
    let (mut bob, mut cy, mut dan) = (place.person("Bob").await, place.person("Cy").await, place.person("Dan").await);
    for person in [&mut bob, &mut cy, &mut dan] {
        person.join(&link).await;
    }
    ann.sees(&["Ann", "Bob", "Cy", "Dan"]).await;
    let confirmed = |person: &Person, name: &str| {
        person.room.as_ref().unwrap().members.iter().any(|member| member.name == name && member.confirmed)
    };
    assert!(!confirmed(&ann, "Dan") && confirmed(&ann, "Ann"), "nobody has written since");
    ann.say("all are here").await;
    ann.until("Dan's confirmation", |ann| confirmed(ann, "Dan")).await;
    for person in [&mut bob, &mut cy, &mut dan] {
        person.reads("all are here").await;
    }
    // Cy and Dan are away while Ann removes Bob, and then Dan: the key that opens the room changes twice.
    cy.go().await;
    dan.go().await;
    for name in ["Bob", "Dan"] {
        ann.ask(Command::Remove { room: ann.id(), user: ann.key_of(name) }).await;
        ann.until("a successor to the link", |ann| {
            ann.is_open() && !ann.names().contains(&name) && ann.room.as_ref().is_some_and(|room| !room.link.is_empty())
        })
        .await;
        ann.say(&format!("without {name}")).await;
    }
    bob.until("being told", |bob| bob.room.as_ref().unwrap().state == RoomState::Refused).await;
    assert!(bob.lines.contains(&(MessageKind::Removed, "Ann".into())), "{:?}", bob.lines);
    cy.come(&place);
    cy.reads("without Dan").await;
    cy.sees(&["Ann", "Cy"]).await;
    assert_eq!(cy.texts, ["all are here", "without Bob", "without Dan"]);
    cy.say("back again").await;
    ann.reads("back again").await;
    assert_eq!(cy.room.as_ref().unwrap().link, ann.room.as_ref().unwrap().link, "the link is told in the room");
    dan.come(&place);
    dan.until("being told", |dan| dan.room.as_ref().unwrap().state == RoomState::Refused).await;
    assert_eq!(dan.texts, ["all are here", "without Bob"], "up to the removal that concerned him");
    // Bob comes back by a link that somebody gives him; the former one leads nowhere.
    bob.ask(Command::Join { link: link.clone() }).await;
    bob.until("no way in", |bob| {
        bob.room.as_ref().is_some_and(|room| room.reason.as_deref().is_some_and(|why| why.contains("link was changed")))
    })
    .await;
    bob.join(&ann.room.as_ref().unwrap().link).await;
    bob.say("in again").await;
    ann.reads("in again").await;
    assert_eq!(bob.texts, ["all are here", "in again"]);
    place.edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_put_back_to_before_its_own_change_comes_back_by_itself_over_a_removal() {
    let place = Place::new().await;
    let mut ann = place.person("Ann").await;
    let link = ann.create().await;
    let (mut bob, mut cy) = (place.person("Bob").await, place.person("Cy").await);
    bob.join(&link).await;
    cy.join(&link).await;
    ann.sees(&["Ann", "Bob", "Cy"]).await;
    ann.ask(Command::SetRole { room: ann.id(), user: ann.key_of("Cy"), role: Role::Moderator }).await;
    let may = |person: &Person| person.room.iter().flat_map(|room| &room.members).any(|who| who.you && who.role != Role::Member);
    cy.until("a role", may).await;
    cy.go().await;
    let copy = cy.profile.with_file_name("copy");
    std::fs::copy(&cy.profile, &copy).unwrap();
    cy.come(&place);
    cy.until("coming back", Person::is_open).await;
    cy.ask(Command::MakeLink { room: cy.id() }).await;
    cy.until("another link", |cy| cy.is_open() && cy.room.as_ref().unwrap().link != link).await;
    cy.say("a new link").await;
    ann.reads("a new link").await;
    // The link ends, and so does what opens the room at the server.
    ann.ask(Command::Remove { room: ann.id(), user: ann.key_of("Bob") }).await;
    ann.sees(&["Ann", "Cy"]).await;
    cy.sees(&["Ann", "Cy"]).await;
    ann.say("without Bob").await;
    cy.go().await;
    cy.profile = copy;
    cy.texts.clear();
    cy.come(&place);
    cy.room = None;
    cy.sees(&["Ann", "Cy"]).await;
    // Ann tells it what opens what it has lost, over the removal.
    cy.reads("without Bob").await;
    cy.say("put back, and here again").await;
    ann.reads("put back, and here again").await;
    ann.say("so it is").await;
    cy.reads("so it is").await;
    assert_it_reads_all(&place, cy, &["a new link", "without Bob", "put back, and here again", "so it is"]).await;
    place.edge.stop().await;
}

/// In the order of the log, and as it has seen it.
async fn assert_it_reads_all(place: &Place, mut person: Person, texts: &[&str]) {
    person.go().await;
    (person.texts, person.room) = (Vec::new(), None);
    person.come(place);
    person.until("coming back", |person| person.is_open() && person.texts.len() >= texts.len()).await;
    assert_eq!(person.texts, texts);
    let room = person.room.unwrap();
    assert_eq!((room.integrity.unchecked, room.integrity.contradicts), (0, 0));
    assert!(!room.closed.unwrap_or_default().contains("could not follow"));
}

/// With nobody there, by the link: what it missed it reads when somebody is.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_device_missed_is_shown_in_place_once_a_member_comes_who_was_there() {
    let place = Place::new().await;
    let mut ann = place.person("Ann").await;
    let link = ann.create().await;
    let mut bob = place.person("Bob").await;
    bob.join(&link).await;
    ann.say("one").await;
    bob.reads("one").await;
    bob.go().await;
    let copy = bob.profile.with_file_name("copy");
    std::fs::copy(&bob.profile, &copy).unwrap();
    bob.come(&place);
    bob.until("coming back", Person::is_open).await;
    // What it says behind a change of its own is of the epoch that this begins.
    for text in ["two", "three"] {
        bob.ask(Command::Refresh { room: bob.id() }).await;
        bob.say(text).await;
        ann.reads(text).await;
    }
    ann.say("four").await;
    bob.reads("four").await;
    ann.go().await;
    bob.go().await;
    bob.profile = copy;
    (bob.texts, bob.room) = (Vec::new(), None);
    bob.come(&place);
    let waits =
        |bob: &Person| bob.room.iter().any(|room| room.closed.iter().any(|closed| closed.ends_with("none has answered yet")));
    bob.until("asking", waits).await;
    bob.say("five").await;
    assert_eq!(bob.texts, ["one", "five"]);
    ann.come(&place);
    bob.reads("four").await;
    assert_it_reads_all(&place, bob, &["one", "two", "three", "four", "five"]).await;
    ann.go().await;
    place.edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_restored_to_before_a_removal_lets_in_who_took_it() {
    let mut place = Place::new().await;
    let (mut ann, mut bob, mut cy) = (place.person("Ann").await, place.person("Bob").await, place.person("Cy").await);
    let link = ann.create().await;
    bob.join(&link).await;
    cy.join(&link).await;
    ann.sees(&["Ann", "Bob", "Cy"]).await;
    ann.say("before the backup").await;
    for person in [&mut bob, &mut cy] {
        person.reads("before the backup").await;
    }
    for person in [&mut ann, &mut bob, &mut cy] {
        person.go().await;
    }
    let dir = place.edge.stop().await;
    let store = EmbeddedEngine::open(&dir.path().join("data/store"), Config::default(), Arc::new(())).unwrap();
    let backup = dir.path().join("backup");
    store.backup(&backup, 1, &mut |_| ControlFlow::Continue(())).unwrap();
    store.shutdown();
    drop(store);
    let restored = tempfile::tempdir().unwrap();
    ops::restore(&backup, &restored.path().join("data"), "store", &mut |_| ControlFlow::Continue(())).unwrap();
    place.edge = Edge::start_in(dir, Limits::default()).await;
    for person in [&mut ann, &mut bob, &mut cy] {
        person.come(&place);
        person.until("coming back", Person::is_open).await;
    }
    ann.ask(Command::Remove { room: ann.id(), user: ann.key_of("Bob") }).await;
    cy.sees(&["Ann", "Cy"]).await;
    ann.sees(&["Ann", "Cy"]).await;
    ann.say("without Bob").await;
    cy.reads("without Bob").await;
    for person in [&mut ann, &mut bob, &mut cy] {
        person.go().await;
    }
    place.edge.stop().await;
    // The store knows nothing of the removal, nor of the key that it brought.
    place.edge = Edge::start_in(restored, Limits::default()).await;
    for person in [&mut ann, &mut cy] {
        person.come(&place);
        person.room = None;
        person.until("coming back", Person::is_open).await;
    }
    ann.say("after the restore").await;
    cy.reads("after the restore").await;
    cy.say("I read you").await;
    ann.reads("I read you").await;
    place.edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_restarts_still_knows_who_goes() {
    let place = Place::new().await;
    let mut ann = place.person("Ann").await;
    let link = ann.create().await;
    let (mut bob, mut cy) = (place.person("Bob").await, place.person("Cy").await);
    bob.join(&link).await;
    cy.join(&link).await;
    ann.sees(&["Ann", "Bob", "Cy"]).await;
    bob.sees(&["Ann", "Bob", "Cy"]).await;
    // Ann, the first in the tree, is away; Bob goes; Cy has read that, and restarts before it would take him out.
    ann.go().await;
    let before = bob.room.as_ref().unwrap().head;
    bob.ask(Command::Leave { room: bob.id() }).await;
    bob.until("having said so", |bob| bob.room.as_ref().unwrap().head > before).await;
    let head = bob.room.as_ref().unwrap().head;
    cy.until("reading it", |cy| cy.room.as_ref().unwrap().head >= head).await;
    bob.go().await;
    cy.go().await;
    cy.come(&place);
    cy.sees(&["Ann", "Cy"]).await;
    ann.come(&place);
    ann.sees(&["Ann", "Cy"]).await;
    place.edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_is_taken_out_by_whoever_is_there_and_the_room_keeps_an_owner() {
    let place = Place::new().await;
    let mut ann = place.person("Ann").await;
    let link = ann.create().await;
    let (mut bob, mut cy) = (place.person("Bob").await, place.person("Cy").await);
    bob.join(&link).await;
    cy.join(&link).await;
    ann.sees(&["Ann", "Bob", "Cy"]).await;
    bob.sees(&["Ann", "Bob", "Cy"]).await;
    // Bob is away, so that Cy has to take Ann out.
    bob.go().await;
    ann.ask(Command::Leave { room: ann.id() }).await;
    ann.until("being out", |ann| ann.gone).await;
    cy.sees(&["Bob", "Cy"]).await;
    assert!(cy.lines.contains(&(MessageKind::Left, "Ann".into())), "{:?}", cy.lines);
    cy.say("Ann has left").await;
    bob.come(&place);
    bob.reads("Ann has left").await;
    bob.sees(&["Bob", "Cy"]).await;
    let owner = |person: &Person| {
        let owners = person.room.iter().flat_map(|room| &room.members).filter(|member| member.role == Role::Owner);
        owners.map(|member| member.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!((owner(&bob), owner(&cy)), (vec!["Bob".to_owned()], vec!["Bob".to_owned()]));
    // Whoever owns it now makes the next link.
    bob.until("a link", |bob| bob.is_open() && bob.room.as_ref().is_some_and(|room| !room.link.is_empty())).await;
    let mut dan = place.person("Dan").await;
    dan.join(&bob.room.as_ref().unwrap().link.clone()).await;
    dan.say("hello").await;
    cy.reads("hello").await;
    place.edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_terminal_becomes_a_persons_by_its_code_and_is_taken_out_again() {
    let place = Place::new().await;
    let mut ann = place.person("Ann").await;
    let link = ann.create().await;
    let mut bob = place.person("Bob").await;
    bob.join(&link).await;
    ann.sees(&["Ann", "Bob"]).await;
    bob.say("before").await;
    ann.reads("before").await;
    let mut next = place.fresh("next");
    next.ask(Command::ShowCode).await;
    next.until("a code", |next| next.code.is_some()).await;
    assert!(next.identity.is_none());
    ann.ask(Command::LinkDevice { code: next.code.clone().unwrap() }).await;
    next.until("becoming Ann's", |next| next.identity.as_ref().is_some_and(|identity| identity.name == "Ann")).await;
    next.until("the room", Person::is_open).await;
    next.reads("before").await;
    next.say("from both").await;
    for person in [&mut ann, &mut bob] {
        person.reads("from both").await;
        person.until("its line", |person| person.lines.contains(&(MessageKind::Device, "Ann".into()))).await;
    }
    let of_ann = |bob: &Person| {
        let member = bob.room.as_ref().unwrap().members.iter().find(|member| member.name == "Ann").unwrap();
        (member.devices, member.unlisted)
    };
    bob.until("the list", |bob| of_ann(bob) == (2, 0)).await;
    // It is itself after a restart, and until it is taken out.
    next.go().await;
    next.come(&place);
    next.until("the room", Person::is_open).await;
    let device = next.identity.as_ref().unwrap().device.clone();
    ann.ask(Command::RemoveDevice { device }).await;
    bob.until("one device", |bob| of_ann(bob) == (1, 0)).await;
    ann.until("a successor to the link", |ann| ann.is_open() && ann.room.as_ref().is_some_and(|room| !room.link.is_empty()))
        .await;
    ann.say("on one device").await;
    bob.reads("on one device").await;
    place.edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_room_is_like_any_other_and_says_that_it_is_classical() {
    let place = Place::new().await;
    let mut ann = place.person("Ann").await;
    ann.ask(Command::CreateLargeRoom { title: "Harbour".into() }).await;
    ann.until("the room", Person::is_open).await;
    let mut bob = place.person("Bob").await;
    bob.join(&ann.room.as_ref().unwrap().link.clone()).await;
    bob.say("hello").await;
    ann.reads("hello").await;
    assert!([&ann, &bob].iter().all(|person| !person.room.as_ref().unwrap().post_quantum));
    let mut cy = place.person("Cy").await;
    cy.create().await;
    assert!(cy.room.as_ref().unwrap().post_quantum);
    place.edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_that_somebody_has_locked_is_opened_again_by_the_device_that_made_it() {
    let place = Place::new().await;
    let mut ann = place.person("Ann").await;
    let link = ann.create().await;
    let mut bob = place.person("Bob").await;
    bob.join(&link).await;
    bob.say("before").await;
    ann.reads("before").await;
    ann.go().await;
    // What locks the room, and what opens it.
    (ann.rubbish, bob.rubbish) = (2, 2);
    // Whoever can enter has the server ask for a key of nobody's, by a record that no group has made.
    let Link { room, access, .. } = link.parse().unwrap();
    let mut mallory = Client::login(&place.edge, Kind::WebSocket, &key(9)).await;
    let proof = sign(&SigningKey::from_bytes(&access), &access_message(mallory.binding, room));
    mallory.send(&ClientFrame::Enter { room, handshake: u64::MAX, proof }).await;
    let ServerFrame::Entered { handshake: newest, .. } = mallory.recv().await else { panic!("not let in") };
    let envelope = handshake(room, newest, Some(access_of(&key(66))), b"rubbish", (0, 0));
    let publish = Publish { room, producer: ProducerId([9; 16]), client_seq: 1, handshake: newest, envelope };
    mallory.send(&ClientFrame::Publish(publish)).await;
    mallory.until(|frame| matches!(frame, ServerFrame::Ack { .. })).await;
    bob.until("being told", |bob| {
        let reason = bob.room.as_ref().and_then(|room| room.reason.as_deref());
        reason.is_some_and(|why| why.contains("the device that made it opens it again"))
    })
    .await;
    // The one that made the room was away; it comes, and everybody is in again.
    ann.come(&place);
    bob.until("the room to be open", Person::is_open).await;
    bob.say("after").await;
    ann.reads("after").await;
    ann.say("so it is").await;
    bob.reads("so it is").await;
    bob.go().await;
    bob.come(&place);
    bob.reads("so it is").await;
    assert_eq!(bob.texts, ["before", "after", "so it is"]);
    place.edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_locks_a_room_again_and_again_does_not_keep_it() {
    // Every outbox that putting the key back takes is one that the device lacks.
    let place = Place::with(Limits { producers_per_device_max: 4, handshakes_per_minute_max: 200, ..Limits::default() }).await;
    let mut ann = place.person("Ann").await;
    let link = ann.create().await;
    let mut bob = place.person("Bob").await;
    bob.join(&link).await;
    bob.say("before").await;
    ann.reads("before").await;
    (ann.rubbish, bob.rubbish) = (100, 100);
    let Link { room, access, .. } = link.parse().unwrap();
    let mut mallory = Client::login(&place.edge, Kind::WebSocket, &key(9)).await;
    let mut said = vec!["before".to_owned()];
    let mut client_seq = 0;
    for round in 0..6 {
        let mut locks = vec![(SigningKey::from_bytes(&access), Some(66))];
        if round == 0 {
            ann.go().await;
            // Behind what locks the others out there may be more, which they do not get to see.
            locks.extend([(key(66), None), (key(66), Some(67))]);
        }
        for (opening, next) in locks {
            client_seq += 1;
            // Whoever changes the group at the same time may come first.
            loop {
                let proof = sign(&opening, &access_message(mallory.binding, room));
                mallory.send(&ClientFrame::Enter { room, handshake: u64::MAX, proof }).await;
                let entered = mallory.until(|frame| matches!(frame, ServerFrame::Entered { .. })).await;
                let ServerFrame::Entered { handshake: newest, .. } = entered else { panic!("{entered:?}") };
                let envelope = handshake(room, newest, next.map(|next| access_of(&key(next))), b"rubbish", (0, 0));
                let publish = Publish { room, producer: ProducerId([9; 16]), client_seq, handshake: newest, envelope };
                mallory.send(&ClientFrame::Publish(publish)).await;
                let decided = |frame: &ServerFrame| matches!(frame, ServerFrame::Ack { .. } | ServerFrame::Refused { .. });
                if let ServerFrame::Ack { .. } = mallory.until(decided).await {
                    break;
                }
            }
        }
        if round == 0 {
            ann.come(&place);
        }
        let text = format!("after {round}");
        bob.say(&text).await;
        ann.reads(&text).await;
        said.push(text);
    }
    assert_eq!((&ann.texts, &bob.texts), (&said, &said));
    place.edge.stop().await;
}
