//! What newcomers read of the time before they came in, by a room's policy: native clients against a real server.
#![cfg(all(feature = "server", feature = "client"))]
#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::indexing_slicing,
    reason = "a test's helpers fail like its tests"
)]

mod common;

use common::person::{Person, Place};
use waxwing::client::view::{Command, History, MessageKind};

/// The owner chooses, and has a link again.
async fn choose(owner: &mut Person, history: History) {
    owner.ask(Command::SetHistory { room: owner.id(), history }).await;
    owner.until("the policy", |owner| owner.is_open() && owner.room.as_ref().is_some_and(|room| room.history == history)).await;
}

fn link(person: &Person) -> String {
    person.room.as_ref().unwrap().link.clone()
}

async fn remove(owner: &mut Person, name: &str) {
    owner.ask(Command::Remove { room: owner.id(), user: owner.key_of(name) }).await;
    owner
        .until("a successor to the link", |owner| {
            owner.is_open() && !owner.names().contains(&name) && owner.room.as_ref().is_some_and(|room| !room.link.is_empty())
        })
        .await;
}

/// Everything that was said since the policy was chosen, over epochs, removals and other links, with nobody there any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_reads_everything_with_nobody_there() {
    let place = Place::new().await;
    let mut ann = place.person("Ann").await;
    let first = ann.create().await;
    ann.say("before the policy").await;
    choose(&mut ann, History::Everything).await;
    ann.say("one").await;
    let (mut bob, mut cy) = (place.person("Bob").await, place.person("Cy").await);
    bob.join(&first).await;
    bob.reads("one").await;
    bob.say("two").await;
    cy.join(&first).await;
    cy.reads("two").await;
    ann.sees(&["Ann", "Bob", "Cy"]).await;
    remove(&mut ann, "Bob").await;
    ann.say("three").await;
    cy.reads("three").await;
    cy.say("four").await;
    ann.reads("four").await;
    let now = link(&ann);
    ann.go().await;
    cy.go().await;
    // Nobody is there. Each newcomer finds what the one before it has left.
    let mut texts = vec!["one", "two", "three", "four"];
    for name in ["Dan", "Eve"] {
        let mut newcomer = place.person(name).await;
        newcomer.join(&now).await;
        newcomer.reads("four").await;
        newcomer.say(name).await;
        texts.push(name);
        assert_eq!(newcomer.texts, texts);
        let said: Vec<_> = newcomer.lines.iter().map(|(kind, who)| (*kind, who.as_str())).collect();
        let expected = [(MessageKind::Join, "Bob"), (MessageKind::Join, "Cy"), (MessageKind::Removed, "Ann")];
        assert_eq!(said[..3], expected, "who came and went is told too: {said:?}");
        newcomer.go().await;
    }
    // What was read is kept like what one was there for.
    let mut eve = place.fresh("Eve");
    eve.reads("Eve").await;
    assert_eq!(eve.texts, texts);
    place.edge.stop().await;
}

/// The last days since that was chosen: here, all of it. `tests/simulation/keys.rs` has the days that go by.
#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_reads_the_last_days_with_nobody_there() {
    let place = Place::new().await;
    let mut ann = place.person("Ann").await;
    let first = ann.create().await;
    choose(&mut ann, History::Everything).await;
    ann.say("before the policy").await;
    choose(&mut ann, History::Days(30)).await;
    ann.say("one").await;
    let mut bob = place.person("Bob").await;
    bob.join(&first).await;
    bob.reads("one").await;
    bob.say("two").await;
    ann.reads("two").await;
    ann.sees(&["Ann", "Bob"]).await;
    remove(&mut ann, "Bob").await;
    ann.say("three").await;
    let now = link(&ann);
    ann.go().await;
    for name in ["Dan", "Eve"] {
        let mut newcomer = place.person(name).await;
        newcomer.join(&now).await;
        newcomer.reads("three").await;
        assert_eq!(newcomer.texts, ["one", "two", "three"]);
        let closed = newcomer.room.as_ref().unwrap().closed.clone().unwrap();
        assert!(closed.contains("newcomers read the last 30 days here"), "{closed}");
        newcomer.go().await;
    }
    place.edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn newcomers_read_from_their_join_by_default_and_again_after_a_change_back() {
    let place = Place::new().await;
    let mut ann = place.person("Ann").await;
    let link = ann.create().await;
    ann.say("one").await;
    let mut bob = place.person("Bob").await;
    bob.join(&link).await;
    bob.say("two").await;
    ann.reads("two").await;
    assert_eq!(bob.texts, ["two"]);
    let closed = bob.room.as_ref().unwrap().closed.clone().unwrap();
    assert!(closed.starts_with("2 entries from before"), "the change that began the room, and what Ann said: {closed}");
    choose(&mut ann, History::Everything).await;
    ann.say("three").await;
    choose(&mut ann, History::FromJoin).await;
    ann.say("four").await;
    let mut cy = place.person("Cy").await;
    cy.join(&link).await;
    cy.say("five").await;
    ann.reads("five").await;
    assert_eq!(cy.texts, ["five"], "nothing of the time in which newcomers read everything, either");
    assert_eq!(ann.lines.iter().filter(|(kind, _)| *kind == MessageKind::History).count(), 2);
    place.edge.stop().await;
}

/// Whoever fell behind takes its place again, and reads what was written meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_comes_in_again_reads_what_it_missed() {
    for history in [History::Everything, History::Days(30)] {
        comes_in_again(history).await;
    }
}

async fn comes_in_again(history: History) {
    let place = Place::new().await;
    let mut ann = place.person("Ann").await;
    ann.create().await;
    choose(&mut ann, history).await;
    let mut bob = place.person("Bob").await;
    bob.join(&link(&ann)).await;
    bob.say("one").await;
    ann.reads("one").await;
    ann.sees(&["Ann", "Bob"]).await;
    remove(&mut ann, "Bob").await;
    bob.until("being told", |bob| bob.room.as_ref().unwrap().reason.is_some()).await;
    ann.say("two").await;
    bob.join(&link(&ann)).await;
    bob.say("three").await;
    assert_eq!(bob.texts, ["one", "two", "three"]);
    place.edge.stop().await;
}
