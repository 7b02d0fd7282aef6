//! Who is in a room, with native clients against a real server: people come by link, are away, are removed, leave, and come back.
#![cfg(all(feature = "server", feature = "client"))]
#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::indexing_slicing,
    reason = "a test's helpers fail like its tests"
)]

mod common;

use common::person::{Person, Place};
use waxwing::client::view::{Command, MessageKind, Role, RoomState};

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
