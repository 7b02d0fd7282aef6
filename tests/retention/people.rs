//! Native clients, each with its keys, its profile and its transport.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use tokio::task::JoinSet;
use waxwing::{
    client::{
        native::{Choice, Handle, Options},
        view::{Command, Event, Level, Message, MessageState, Room, RoomState},
    },
    core::id::{RoomId, Seq},
    transport::{Kind, Trust},
};

use crate::common::server::Edge;

/// Nothing takes that long: it only ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(120);
/// Messages that one has under way.
const WINDOW: usize = 32;

/// What somebody has seen when they leave.
pub(crate) struct Seen {
    profile: PathBuf,
    pub(crate) head: Seq,
    pub(crate) messages: BTreeMap<Seq, Message>,
}

/// A person at a terminal, and what it shows.
struct Person {
    handle: Handle,
    profile: PathBuf,
    room: Option<Room>,
    messages: BTreeMap<Seq, Message>,
    notices: Vec<String>,
}

fn options(origin: &str, kind: Kind) -> Options {
    Options { origin: origin.to_owned(), choice: Choice::Only(kind), trust: Trust::WebPki, token: Bytes::new() }
}

impl Person {
    async fn start(edge: &Edge, homes: &Path, name: &str, kind: Kind) -> Self {
        let profile = homes.join(name);
        let handle = Handle::start(&profile, options(&edge.origin(), kind)).unwrap();
        let person = Self { handle, profile, room: None, messages: BTreeMap::new(), notices: Vec::new() };
        person.command(Command::Start { name: name.to_owned() }).await;
        person
    }

    async fn command(&self, command: Command) {
        self.handle.commands.send(command).await.unwrap();
    }

    /// The next event. Whatever alarms ends the test.
    async fn take(&mut self) -> Event {
        let event = tokio::time::timeout(PATIENCE, self.handle.events.recv()).await.expect("something happens").unwrap();
        match &event {
            Event::Room { room } => {
                assert_eq!((room.integrity.contradicts, room.integrity.injected), (0, 0), "{room:?}");
                self.room = Some(room.clone());
            }
            Event::Message { message, .. } => {
                assert_ne!(message.state, MessageState::Failed, "{message:?}");
                self.messages.extend(message.seq.map(|seq| (seq, message.clone())));
            }
            Event::Notice { level, text, .. } => {
                assert_ne!(*level, Level::Alarm, "{text}");
                self.notices.push(text.clone());
            }
            _ => {}
        }
        event
    }

    /// Waits until the room is as wanted.
    async fn until(&mut self, wanted: impl Fn(&Room) -> bool) -> Room {
        loop {
            if let Event::Room { room } = self.take().await
                && wanted(&room)
            {
                return room;
            }
        }
    }

    async fn settled(&mut self, members: usize) -> Room {
        let there =
            |room: &Room| room.state == RoomState::Open && room.up_to_date && room.settled && room.members.len() == members;
        self.until(there).await
    }

    fn head(&self) -> Seq {
        self.room.as_ref().map_or(0, |room| room.head)
    }

    async fn read(&mut self, head: Seq) {
        while self.head() < head {
            self.take().await;
        }
    }

    /// Says so many things, and waits until all are on the server's disk. The newest one's seq.
    async fn say(&mut self, room: &str, count: usize) -> Seq {
        let mut newest = self.messages.keys().next_back().copied().unwrap_or_default();
        let (mut waiting, mut said) = (0, 0);
        while said < count || waiting > 0 {
            while said < count && waiting < WINDOW {
                let text = format!("{said} {}", "x".repeat(3_000));
                self.command(Command::Send { room: room.to_owned(), text }).await;
                (said, waiting) = (said + 1, waiting + 1);
            }
            if let Event::Message { message: Message { state: MessageState::Sent, seq: Some(seq), mine: true, .. }, .. } =
                self.take().await
                && seq > newest
            {
                (waiting, newest) = (waiting - 1, seq);
            }
        }
        newest
    }

    async fn stop(self) -> Seen {
        let head = self.head();
        let Self { handle, profile, messages, .. } = self;
        handle.stop().await.unwrap();
        Seen { profile, head, messages }
    }

    /// Comes back with what was kept.
    fn again(edge: &Edge, seen: Seen, kind: Kind) -> Self {
        let Seen { profile, messages, .. } = seen;
        let handle = Handle::start(&profile, options(&edge.origin(), kind)).unwrap();
        Self { handle, profile, room: None, messages, notices: Vec::new() }
    }
}

/// Three say everyone a lot and read one another, one reads nothing until it is over, and one is away until the floor has
/// overtaken what it knows. The room, and all of them with what they have seen.
pub(crate) async fn talk(edge: Arc<Edge>) -> (RoomId, Vec<Seen>) {
    let homes = tempfile::tempdir().unwrap();
    let mut ann = Person::start(&edge, homes.path(), "ann", Kind::WebSocket).await;
    ann.command(Command::CreateRoom { title: "Bees".to_owned() }).await;
    let Room { id, link, .. } = ann.settled(1).await;
    let mut others = Vec::new();
    for (name, kind) in [("bob", Kind::WebTransport), ("cat", Kind::Quic), ("dan", Kind::WebSocket), ("eve", Kind::Quic)] {
        let mut person = Person::start(&edge, homes.path(), name, kind).await;
        person.command(Command::Join { link: link.clone() }).await;
        person.settled(others.len() + 2).await;
        others.push(person);
    }
    let (eve, mut dan) = (others.pop().unwrap(), others.pop().unwrap());
    ann.settled(5).await;
    let mut away = eve.stop().await;

    let mut talking = JoinSet::new();
    for (place, mut person) in std::iter::once(ann).chain(others).enumerate() {
        let room = id.clone();
        talking.spawn(async move {
            let newest = person.say(&room, 150).await;
            (place, newest, person)
        });
    }
    let mut talked = talking.join_all().await;
    talked.sort_by_key(|(place, ..)| *place);
    let mut head = talked.iter().map(|(_, newest, _)| *newest).max().unwrap();
    let mut people: Vec<Person> = talked.into_iter().map(|(.., person)| person).collect();
    // The disk is behind what is said: until the floor has risen, there is more to say.
    let mut turns = 0;
    let mut eve = loop {
        let mut eve = Person::again(&edge, away, Kind::WebSocket);
        eve.until(|room| room.up_to_date && room.head >= head).await;
        if eve.notices.iter().any(|text| text.contains("are no longer on the server: they cannot be checked")) {
            break eve;
        }
        away = eve.stop().await;
        head = people[0].say(&id, 30).await;
        turns += 1;
        assert!(turns < 50, "the floor does not rise");
    };
    // Who was away, and who was slow, are members like all others.
    head = eve.say(&id, 3).await;
    dan.read(head).await;
    head = dan.say(&id, 3).await;
    people.extend([dan, eve]);
    let mut seen = Vec::new();
    for mut person in people {
        person.read(head).await;
        seen.push(person.stop().await);
    }
    (id.parse().unwrap(), seen)
}
