//! Who is in a room, with native clients against a real server: people come by link, are away, are removed, leave, and come back.
#![cfg(all(feature = "server", feature = "client"))]
#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::indexing_slicing,
    reason = "a test's helpers fail like its tests"
)]

mod common;

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use common::server::Edge;
use tempfile::TempDir;
use waxwing::{
    client::{
        native::{Choice, Handle, Options},
        view::{Command, Event, Identity, Level, Message, MessageKind, Role, Room, RoomState},
    },
    core::limits::Limits,
    transport::{Kind, Trust},
};

/// Nothing in these tests takes that long: it only ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(60);

struct Place {
    edge: Edge,
    homes: TempDir,
}

/// Somebody at a terminal, and what it showed.
struct Person {
    name: &'static str,
    profile: PathBuf,
    handle: Option<Handle>,
    room: Option<Room>,
    gone: bool,
    texts: Vec<String>,
    lines: Vec<(MessageKind, String)>,
    identity: Option<Identity>,
    /// What it shows to become somebody's device.
    code: Option<String>,
}

impl Place {
    async fn new() -> Self {
        Self { edge: Edge::start(Limits::default()).await, homes: tempfile::tempdir().unwrap() }
    }

    fn options(&self) -> Options {
        let origin = format!("http://{}", self.edge.running.addresses().plain[0]);
        Options { origin, choice: Choice::Only(Kind::WebSocket), trust: Trust::WebPki, token: Bytes::new() }
    }

    async fn person(&self, name: &'static str) -> Person {
        let person = self.fresh(name);
        person.ask(Command::Start { name: name.into() }).await;
        person
    }

    /// A terminal that is nobody's yet.
    fn fresh(&self, name: &'static str) -> Person {
        let profile = self.homes.path().join(name);
        let (texts, lines) = (Vec::new(), Vec::new());
        let mut person =
            Person { name, profile, handle: None, room: None, gone: false, texts, lines, identity: None, code: None };
        person.come(self);
        person
    }
}

impl Person {
    fn come(&mut self, place: &Place) {
        self.texts.clear();
        self.handle = Some(Handle::start(&self.profile, place.options()).unwrap());
    }

    async fn go(&mut self) {
        self.handle.take().unwrap().stop().await.unwrap();
    }

    async fn ask(&self, command: Command) {
        self.handle.as_ref().unwrap().commands.send(command).await.unwrap();
    }

    /// Takes events until `reached`. Whatever alarms ends the test.
    async fn until(&mut self, what: &str, reached: impl Fn(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !reached(self) {
            let handle = self.handle.as_mut().unwrap();
            let event = tokio::time::timeout_at(deadline, handle.events.recv()).await;
            let Ok(event) = event else { panic!("{}: {what} does not come: {:?} {:?}", self.name, self.room, self.lines) };
            match event.expect("the client runs") {
                Event::Room { room } => {
                    assert_eq!((room.integrity.contradicts, room.integrity.injected), (0, 0), "{room:?}");
                    self.room = Some(room);
                }
                Event::Identity { identity } => self.identity = identity,
                Event::DeviceCode { code, .. } => self.code = Some(code),
                Event::RoomRemoved { .. } => self.gone = true,
                Event::Message { message, .. } => self.shows(message),
                Event::Notice { level, text, .. } => assert_ne!(level, Level::Alarm, "{text}"),
                _ => {}
            }
        }
    }

    fn shows(&mut self, message: Message) {
        if message.kind != MessageKind::Text {
            self.lines.push((message.kind, message.author.name));
        } else if message.seq.is_some() && !self.texts.contains(&message.text) {
            self.texts.push(message.text);
        }
    }

    fn id(&self) -> String {
        self.room.as_ref().unwrap().id.clone()
    }

    fn is_open(&self) -> bool {
        self.room.as_ref().is_some_and(|room| room.state == RoomState::Open && room.settled)
    }

    fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.room.iter().flat_map(|room| &room.members).map(|member| member.name.as_str()).collect();
        names.sort_unstable();
        names
    }

    fn key_of(&self, name: &str) -> String {
        self.room.as_ref().unwrap().members.iter().find(|member| member.name == name).unwrap().user.clone()
    }

    async fn create(&mut self) -> String {
        self.ask(Command::CreateRoom { title: "Harbour".into() }).await;
        self.until("the room", Self::is_open).await;
        self.room.as_ref().unwrap().link.clone()
    }

    async fn join(&mut self, link: &str) {
        self.ask(Command::Join { link: link.to_owned() }).await;
        self.until("coming in", Self::is_open).await;
    }

    async fn say(&mut self, text: &str) {
        self.ask(Command::Send { room: self.id(), text: text.to_owned() }).await;
        self.reads(text).await;
    }

    async fn reads(&mut self, text: &str) {
        self.until(text, |person| person.texts.iter().any(|said| said == text)).await;
    }

    async fn sees(&mut self, names: &[&str]) {
        self.until(&format!("{names:?}"), |person| person.names() == names).await;
    }
}

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
