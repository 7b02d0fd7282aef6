//! Bringing people into rooms while they are away, and conversations of two, with native clients against a real server.
#![cfg(all(feature = "server", feature = "client"))]
#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::indexing_slicing,
    reason = "a test's helpers fail like its tests"
)]

mod common;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use bytes::Bytes;
use common::server::Edge;
use tempfile::TempDir;
use waxwing::{
    client::{
        native::{self, Choice, Handle, Options},
        view::{Command, Event, History, Identity, Invitation, Level, Message, MessageKind, Role, Room, RoomState},
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
    identity: Option<Identity>,
    rooms: BTreeMap<String, Room>,
    messages: BTreeMap<String, Vec<Message>>,
    requests: BTreeMap<String, Invitation>,
    notices: Vec<String>,
}

impl Place {
    async fn new() -> Self {
        let limits = Limits { handshakes_per_minute_max: 600, ..Limits::default() };
        Self { edge: Edge::start(limits).await, homes: tempfile::tempdir().unwrap() }
    }

    fn options(&self) -> Options {
        let origin = format!("http://{}", self.edge.running.addresses().plain[0]);
        Options { origin, choice: Choice::Only(Kind::WebSocket), trust: Trust::WebPki, token: Bytes::new() }
    }

    /// Somebody new, who has been online once and has left key packages.
    async fn person(&self, name: &'static str) -> Person {
        let mut person = self.nobody(name);
        person.come(self);
        person.ask(Command::Start { name: name.into() }).await;
        person.until("key packages", |person| person.identity.as_ref().is_some_and(|identity| identity.reachable)).await;
        person
    }

    fn nobody(&self, name: &'static str) -> Person {
        Person {
            name,
            profile: self.homes.path().join(name),
            handle: None,
            identity: None,
            rooms: BTreeMap::new(),
            messages: BTreeMap::new(),
            requests: BTreeMap::new(),
            notices: Vec::new(),
        }
    }
}

impl Person {
    fn come(&mut self, place: &Place) {
        self.rooms.clear();
        self.messages.clear();
        self.requests.clear();
        self.notices.clear();
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
            let Ok(event) = event else {
                panic!("{}: {what} does not come: {:?} {:?} {:?}", self.name, self.rooms, self.messages, self.notices)
            };
            self.take(event.expect("the client runs"));
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Identity { identity } => self.identity = identity,
            Event::Room { room } => {
                assert_eq!((room.integrity.contradicts, room.integrity.injected), (0, 0), "{room:?}");
                self.rooms.insert(room.id.clone(), room);
            }
            Event::RoomRemoved { room } => drop(self.rooms.remove(&room)),
            Event::Message { room, message } => {
                let messages = self.messages.entry(room).or_default();
                messages.retain(|other| other.key != message.key);
                messages.push(message);
            }
            Event::Invitation { invitation } => drop(self.requests.insert(invitation.room.clone(), invitation)),
            Event::InvitationRemoved { room } => drop(self.requests.remove(&room)),
            Event::Notice { level, text, .. } => {
                assert_ne!(level, Level::Alarm, "{text}");
                self.notices.push(text);
            }
            _ => {}
        }
    }

    fn card(&self) -> String {
        self.identity.as_ref().unwrap().card.clone()
    }

    fn user(&self) -> String {
        self.identity.as_ref().unwrap().user.clone()
    }

    /// The room of this title, if it is open and nothing waits in it.
    fn open(&self, title: &str) -> Option<&Room> {
        self.rooms.values().find(|room| room.title == title && room.state == RoomState::Open && room.settled)
    }

    async fn is_in(&mut self, title: &str, members: &[&str]) -> String {
        let names = |room: &Room| {
            let mut names: Vec<_> = room.members.iter().map(|member| member.name.clone()).collect();
            names.sort_unstable();
            names
        };
        let what = format!("{title} with {members:?}");
        self.until(&what, |person| person.open(title).is_some_and(|room| names(room) == members)).await;
        self.open(title).unwrap().id.clone()
    }

    fn texts(&self, room: &str) -> Vec<&str> {
        let stored = self.messages.get(room).into_iter().flatten().filter(|message| message.seq.is_some());
        stored.filter(|message| message.kind == MessageKind::Text).map(|message| message.text.as_str()).collect()
    }

    async fn create(&mut self, title: &str) -> String {
        self.ask(Command::CreateRoom { title: title.into() }).await;
        self.until(title, |person| person.open(title).is_some()).await;
        self.open(title).unwrap().id.clone()
    }

    async fn say(&mut self, room: &str, text: &str) {
        self.ask(Command::Send { room: room.to_owned(), text: text.to_owned() }).await;
        self.reads(room, text).await;
    }

    async fn reads(&mut self, room: &str, text: &str) {
        self.until(text, |person| person.texts(room).contains(&text)).await;
    }

    async fn invite(&self, room: &str, who: String) {
        self.ask(Command::Invite { room: room.to_owned(), who }).await;
    }
}

/// Whether the room was made for the two of them.
fn is_between(room: &Room, other: &Person) -> bool {
    room.direct.as_ref() == Some(&other.user()) && room.link.is_empty()
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_who_is_away_is_brought_in_and_reads_when_both_are_back() {
    let place = Place::new().await;
    let mut ann = place.person("Ann").await;
    let mut bob = place.person("Bob").await;
    // They know each other from a room, so that nobody is asked.
    let harbour = ann.create("Harbour").await;
    bob.ask(Command::Join { link: ann.rooms[&harbour].link.clone() }).await;
    bob.is_in("Harbour", &["Ann", "Bob"]).await;
    ann.is_in("Harbour", &["Ann", "Bob"]).await;
    bob.go().await;
    let room = ann.create("Boathouse").await;
    ann.say(&room, "before anybody came").await;
    // Bob is picked from the other room.
    ann.invite(&room, bob.user()).await;
    ann.is_in("Boathouse", &["Ann", "Bob"]).await;
    assert!(ann.messages[&room].iter().any(|message| message.kind == MessageKind::Added && message.text == "Bob"));
    ann.say(&room, "welcome, Bob").await;
    // Somebody comes and goes meanwhile: the key that opens the room at the server is another one by the time Bob comes back.
    let mut cy = place.person("Cy").await;
    cy.ask(Command::Join { link: ann.rooms[&room].link.clone() }).await;
    cy.is_in("Boathouse", &["Ann", "Bob", "Cy"]).await;
    ann.is_in("Boathouse", &["Ann", "Bob", "Cy"]).await;
    ann.ask(Command::Remove { room: room.clone(), user: cy.user() }).await;
    ann.is_in("Boathouse", &["Ann", "Bob"]).await;
    ann.say(&room, "without Cy").await;
    ann.go().await;
    bob.come(&place);
    assert_eq!(bob.is_in("Boathouse", &["Ann", "Bob"]).await, room);
    bob.reads(&room, "without Cy").await;
    assert_eq!(bob.texts(&room), ["welcome, Bob", "without Cy"], "and nothing of what was before");
    bob.say(&room, "thanks").await;
    bob.go().await;
    bob.come(&place);
    bob.reads(&room, "thanks").await;
    assert_eq!(bob.texts(&room), ["welcome, Bob", "without Cy", "thanks"], "as kept");
    ann.come(&place);
    ann.reads(&room, "thanks").await;
    ann.say(&room, "goodbye").await;
    bob.reads(&room, "goodbye").await;
    assert!(bob.requests.is_empty());
    place.edge.stop().await;
}

/// Whoever is brought in while away reads what was before as who comes by a link does: with nobody there, and although another key opens the
/// room at the server by then.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_brought_in_while_away_reads_what_newcomers_read() {
    for history in [History::Everything, History::Days(30)] {
        let place = Place::new().await;
        let mut ann = place.person("Ann").await;
        let mut bob = place.person("Bob").await;
        let harbour = ann.create("Harbour").await;
        bob.ask(Command::Join { link: ann.rooms[&harbour].link.clone() }).await;
        bob.is_in("Harbour", &["Ann", "Bob"]).await;
        ann.is_in("Harbour", &["Ann", "Bob"]).await;
        bob.go().await;
        let room = ann.create("Boathouse").await;
        ann.say(&room, "before the policy").await;
        ann.ask(Command::SetHistory { room: room.clone(), history }).await;
        ann.until("the policy", |ann| ann.open("Boathouse").is_some_and(|room| room.history == history)).await;
        ann.say(&room, "one").await;
        let mut cy = place.person("Cy").await;
        cy.ask(Command::Join { link: ann.rooms[&room].link.clone() }).await;
        cy.is_in("Boathouse", &["Ann", "Cy"]).await;
        cy.say(&room, "two").await;
        ann.reads(&room, "two").await;
        ann.invite(&room, bob.user()).await;
        ann.is_in("Boathouse", &["Ann", "Bob", "Cy"]).await;
        ann.say(&room, "three").await;
        ann.ask(Command::Remove { room: room.clone(), user: cy.user() }).await;
        ann.is_in("Boathouse", &["Ann", "Bob"]).await;
        ann.say(&room, "four").await;
        ann.go().await;
        cy.go().await;
        let texts = ["one", "two", "three", "four"];
        for _ in 0..2 {
            bob.come(&place);
            bob.is_in("Boathouse", &["Ann", "Bob"]).await;
            bob.reads(&room, "four").await;
            assert_eq!(bob.texts(&room), texts, "{history:?}");
            let closed = bob.rooms[&room].closed.clone().unwrap();
            assert!(closed.contains("from before this device came in"), "{closed}");
            let told = bob.messages[&room].iter().map(|message| (message.kind, message.author.name.as_str()));
            let told: Vec<_> = told.filter(|(kind, _)| *kind != MessageKind::Text).collect();
            for line in [(MessageKind::Join, "Cy"), (MessageKind::Added, "Ann"), (MessageKind::Removed, "Ann")] {
                assert!(told.contains(&line), "{line:?} of {told:?}");
            }
            bob.go().await;
        }
        place.edge.stop().await;
    }
}

/// Whoever was removed and is brought in again reads on where it was; what was said between, where newcomers read it.
#[tokio::test(flavor = "multi_thread")]
async fn who_was_removed_and_is_brought_in_again_reads_what_newcomers_read_of_the_time_between() {
    for (history, texts) in [
        (History::FromJoin, &["one", "three"][..]),
        (History::Everything, &["one", "two", "three"]),
        (History::Days(30), &["one", "two", "three"]),
    ] {
        let place = Place::new().await;
        let mut ann = place.person("Ann").await;
        let mut bob = place.person("Bob").await;
        let room = ann.create("Boathouse").await;
        ann.ask(Command::SetHistory { room: room.clone(), history }).await;
        ann.until("the policy", |ann| ann.open("Boathouse").is_some_and(|room| room.history == history)).await;
        bob.ask(Command::Join { link: ann.rooms[&room].link.clone() }).await;
        bob.is_in("Boathouse", &["Ann", "Bob"]).await;
        bob.say(&room, "one").await;
        ann.is_in("Boathouse", &["Ann", "Bob"]).await;
        ann.ask(Command::Remove { room: room.clone(), user: bob.user() }).await;
        ann.is_in("Boathouse", &["Ann"]).await;
        bob.until("being told", |bob| bob.rooms[&room].state == RoomState::Refused).await;
        ann.say(&room, "two").await;
        ann.invite(&room, bob.card()).await;
        bob.until("being asked", |bob| !bob.requests.is_empty()).await;
        bob.ask(Command::Accept { room: room.clone() }).await;
        bob.is_in("Boathouse", &["Ann", "Bob"]).await;
        ann.say(&room, "three").await;
        bob.reads(&room, "three").await;
        assert_eq!(bob.texts(&room), texts, "{history:?}");
        place.edge.stop().await;
    }
}

/// People come into large rooms, whose keys are of another suite, in the same ways as into others: while away, by the last resort, and with
/// another device, where no link leads in.
#[tokio::test(flavor = "multi_thread")]
async fn large_rooms_take_people_who_are_away_and_their_other_devices() {
    let place = Place::new().await;
    let mut ann = place.person("Ann").await;
    let mut bob = place.person("Bob").await;
    let harbour = ann.create("Harbour").await;
    bob.ask(Command::Join { link: ann.rooms[&harbour].link.clone() }).await;
    bob.is_in("Harbour", &["Ann", "Bob"]).await;
    ann.is_in("Harbour", &["Ann", "Bob"]).await;
    bob.go().await;
    let mut rooms = Vec::new();
    // One more than there are packages that are handed out once.
    for number in 0..13 {
        let title = format!("Fleet {number}");
        ann.ask(Command::CreateLargeRoom { title: title.clone() }).await;
        ann.until(&title, |ann| ann.open(&title).is_some()).await;
        let room = ann.open(&title).unwrap().id.clone();
        ann.invite(&room, bob.user()).await;
        ann.is_in(&title, &["Ann", "Bob"]).await;
        ann.say(&room, &title).await;
        rooms.push((room, title));
    }
    assert!(place.edge.metric("waxwing_key_packages_last_resort_total") > 0.0);
    bob.come(&place);
    for (room, title) in &rooms {
        assert_eq!(&bob.is_in(title, &["Ann", "Bob"]).await, room);
        bob.reads(room, title).await;
        assert!(!bob.rooms[room].post_quantum);
    }
    // His next device comes into them too; and into another one with him, while both are away.
    bob.go().await;
    let file = native::export(&bob.profile.as_path().into(), "a good passphrase").unwrap();
    bob.come(&place);
    let mut second = place.nobody("Bob's other device");
    native::import(&second.profile.as_path().into(), &place.options().origin, &file, "a good passphrase").unwrap();
    second.come(&place);
    second.reads(&rooms[0].0, &rooms[0].1).await;
    second.until("key packages", |person| person.identity.as_ref().is_some_and(|identity| identity.reachable)).await;
    bob.until("two devices", |bob| bob.identity.as_ref().is_some_and(|identity| identity.devices.len() == 2)).await;
    bob.go().await;
    second.go().await;
    ann.ask(Command::CreateLargeRoom { title: "Armada".into() }).await;
    ann.until("the room", |ann| ann.open("Armada").is_some()).await;
    let room = ann.open("Armada").unwrap().id.clone();
    ann.invite(&room, bob.card()).await;
    let devices = |person: &Person| person.rooms[&room].members.iter().map(|member| member.devices).sum::<u32>();
    ann.until("all devices", |ann| ann.open("Armada").is_some() && devices(ann) == 3).await;
    ann.say(&room, "all hands").await;
    ann.go().await;
    for person in [&mut second, &mut bob] {
        person.come(&place);
        person.reads(&room, "all hands").await;
    }
    place.edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_people_write_to_each_other_and_a_stranger_is_asked_first() {
    let place = Place::new().await;
    let mut ann = place.person("Ann").await;
    let mut bob = place.person("Bob").await;
    // A card is all that Ann has of Bob.
    ann.ask(Command::Direct { who: bob.card() }).await;
    ann.until("the room", |ann| !ann.rooms.is_empty()).await;
    let room = ann.rooms.keys().next().unwrap().clone();
    ann.say(&room, "it is Ann").await;
    bob.until("being asked", |bob| !bob.requests.is_empty()).await;
    let request = bob.requests[&room].clone();
    assert_eq!((request.from.name.as_str(), request.from.user.clone(), request.direct), ("Ann", ann.user(), true));
    assert_eq!(request.words, ann.identity.as_ref().unwrap().words);
    // Nobody goes anywhere without having been asked, whatever happens; the question is kept.
    bob.go().await;
    bob.come(&place);
    bob.until("being asked again", |bob| !bob.requests.is_empty()).await;
    assert!(bob.rooms.is_empty());
    bob.ask(Command::Accept { room: room.clone() }).await;
    bob.reads(&room, "it is Ann").await;
    bob.is_in("Ann", &["Ann", "Bob"]).await;
    bob.say(&room, "hello Ann").await;
    ann.reads(&room, "hello Ann").await;
    ann.is_in("Bob", &["Ann", "Bob"]).await;
    assert!(is_between(&ann.rooms[&room], &bob) && is_between(&bob.rooms[&room], &ann));
    assert!(ann.rooms[&room].members.iter().all(|member| member.role == Role::Owner), "neither is a guest");
    assert!(bob.requests.is_empty());
    // Writing to each other again opens the same room, on either side, also after everybody has been away.
    ann.go().await;
    bob.go().await;
    ann.come(&place);
    bob.come(&place);
    let ann_key = ann.user();
    for (person, who) in [(&mut ann, bob.card()), (&mut bob, ann_key)] {
        person.until("the room", |person| person.rooms.contains_key(&room)).await;
        person.ask(Command::Direct { who }).await;
        person.say(&room, "still here").await;
        assert_eq!(person.rooms.len(), 1);
    }
    // A third one has no place in it.
    let cy = place.person("Cy").await;
    ann.invite(&room, cy.card()).await;
    ann.until("being told", |ann| ann.notices.iter().any(|text| text.contains("between two people"))).await;
    // Declined invitations are forgotten, and nobody is told.
    cy.ask(Command::Direct { who: bob.card() }).await;
    bob.until("being asked", |bob| !bob.requests.is_empty()).await;
    let other = bob.requests.keys().next().unwrap().clone();
    bob.ask(Command::Decline { room: other.clone() }).await;
    bob.until("its being gone", |bob| bob.requests.is_empty()).await;
    bob.go().await;
    bob.come(&place);
    bob.reads(&room, "still here").await;
    assert!(bob.requests.is_empty() && bob.rooms.len() == 1);
    place.edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_invite_at_once_and_somebody_without_packages_left_comes_by_the_last_resort() {
    let place = Place::new().await;
    let mut bob = place.person("Bob").await;
    let mut ann = place.person("Ann").await;
    let mut cy = place.person("Cy").await;
    let harbour = ann.create("Harbour").await;
    for person in [&mut bob, &mut cy] {
        person.ask(Command::Join { link: ann.rooms[&harbour].link.clone() }).await;
        person.is_in("Harbour", &if person.name == "Bob" { vec!["Ann", "Bob"] } else { vec!["Ann", "Bob", "Cy"] }).await;
    }
    ann.is_in("Harbour", &["Ann", "Bob", "Cy"]).await;
    bob.go().await;
    // The one room where both invite him: whoever loses the race finds him there.
    let room = ann.create("Jetty").await;
    ann.invite(&room, cy.user()).await;
    cy.is_in("Jetty", &["Ann", "Cy"]).await;
    ann.is_in("Jetty", &["Ann", "Cy"]).await;
    ann.invite(&room, bob.user()).await;
    cy.invite(&room, bob.user()).await;
    ann.is_in("Jetty", &["Ann", "Bob", "Cy"]).await;
    cy.is_in("Jetty", &["Ann", "Bob", "Cy"]).await;
    // More rooms than there are packages: the last ones share the last resort.
    let mut rooms = Vec::new();
    for number in 0..16 {
        let title = format!("Berth {number}");
        let room = ann.create(&title).await;
        ann.invite(&room, bob.user()).await;
        ann.is_in(&title, &["Ann", "Bob"]).await;
        ann.say(&room, &title).await;
        rooms.push((room, title));
    }
    assert!(place.edge.metric("waxwing_key_packages_last_resort_total") >= 2.0, "it was given out again and again");
    bob.come(&place);
    for (room, title) in &rooms {
        assert_eq!(&bob.is_in(title, &["Ann", "Bob"]).await, room);
        bob.reads(room, title).await;
    }
    bob.is_in("Jetty", &["Ann", "Bob", "Cy"]).await;
    bob.say(&room, "all of you").await;
    ann.reads(&room, "all of you").await;
    cy.reads(&room, "all of you").await;
    place.edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_device_of_a_person_is_brought_into_rooms_without_a_link_and_reads_what_was_said() {
    let place = Place::new().await;
    let mut ann = place.person("Ann").await;
    let mut bob = place.person("Bob").await;
    ann.ask(Command::Direct { who: bob.card() }).await;
    ann.until("the room", |ann| !ann.rooms.is_empty()).await;
    let room = ann.rooms.keys().next().unwrap().clone();
    bob.until("being asked", |bob| !bob.requests.is_empty()).await;
    bob.ask(Command::Accept { room: room.clone() }).await;
    ann.say(&room, "before the second device").await;
    bob.reads(&room, "before the second device").await;
    ann.go().await;
    let file = native::export(&ann.profile.as_path().into(), "a good passphrase").unwrap();
    ann.come(&place);
    let mut second = place.nobody("Ann's other device");
    native::import(&second.profile.as_path().into(), &place.options().origin, &file, "a good passphrase").unwrap();
    second.come(&place);
    second.reads(&room, "before the second device").await;
    second.is_in("Bob", &["Ann", "Bob"]).await;
    second.say(&room, "from the second device").await;
    bob.reads(&room, "from the second device").await;
    ann.reads(&room, "from the second device").await;
    let devices = |person: &Person| person.rooms[&room].members.iter().map(|member| member.devices).sum::<u32>();
    ann.until("both devices", |ann| devices(ann) == 3).await;
    assert!(second.requests.is_empty() && is_between(&second.rooms[&room], &bob));
    place.edge.stop().await;
}
