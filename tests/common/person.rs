//! Somebody at a terminal: a native client against a real server, and what it shows.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use tempfile::TempDir;
use waxwing::{
    client::{
        native::{Choice, Handle, Options},
        view::{Command, Event, Identity, Level, Message, MessageKind, Room, RoomState},
    },
    core::limits::Limits,
    transport::{Kind, Trust},
};

use super::server::Edge;

/// Nothing in these tests takes that long: it only ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server, and where people's profiles lie.
pub struct Place {
    pub edge: Edge,
    pub homes: TempDir,
}

/// Somebody at a terminal, and what it showed.
pub struct Person {
    pub name: &'static str,
    pub profile: PathBuf,
    pub handle: Option<Handle>,
    pub room: Option<Room>,
    pub gone: bool,
    pub texts: Vec<String>,
    pub lines: Vec<(MessageKind, String)>,
    pub identity: Option<Identity>,
    /// What it shows to become somebody's device.
    pub code: Option<String>,
    /// So many records of the room are nobody's.
    pub rubbish: u64,
}

impl Place {
    pub async fn new() -> Self {
        Self::with(Limits::default()).await
    }

    pub async fn with(limits: Limits) -> Self {
        Self { edge: Edge::start(limits).await, homes: tempfile::tempdir().unwrap() }
    }

    fn options(&self) -> Options {
        let origin = format!("http://{}", self.edge.running.addresses().plain[0]);
        Options { origin, choice: Choice::Only(Kind::WebSocket), trust: Trust::WebPki, token: Bytes::new() }
    }

    pub async fn person(&self, name: &'static str) -> Person {
        let person = self.fresh(name);
        person.ask(Command::Start { name: name.into() }).await;
        person
    }

    /// A terminal that is nobody's yet, or that was here before.
    pub fn fresh(&self, name: &'static str) -> Person {
        let profile = self.homes.path().join(name);
        let (texts, lines) = (Vec::new(), Vec::new());
        let mut person =
            Person { name, profile, handle: None, room: None, gone: false, texts, lines, identity: None, code: None, rubbish: 0 };
        person.come(self);
        person
    }
}

impl Person {
    pub fn come(&mut self, place: &Place) {
        self.texts.clear();
        self.handle = Some(Handle::start(&self.profile, place.options()).unwrap());
    }

    pub async fn go(&mut self) {
        self.handle.take().unwrap().stop().await.unwrap();
    }

    pub async fn ask(&self, command: Command) {
        self.handle.as_ref().unwrap().commands.send(command).await.unwrap();
    }

    /// Takes events until `reached`. Whatever alarms ends the test.
    pub async fn until(&mut self, what: &str, reached: impl Fn(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !reached(self) {
            let handle = self.handle.as_mut().unwrap();
            let event = tokio::time::timeout_at(deadline, handle.events.recv()).await;
            let Ok(event) = event else { panic!("{}: {what} does not come: {:?} {:?}", self.name, self.room, self.lines) };
            match event.expect("the client runs") {
                Event::Room { room } => {
                    assert!(room.integrity.contradicts == 0 && room.integrity.injected <= self.rubbish, "{room:?}");
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

    pub fn id(&self) -> String {
        self.room.as_ref().unwrap().id.clone()
    }

    pub fn is_open(&self) -> bool {
        self.room.as_ref().is_some_and(|room| room.state == RoomState::Open && room.settled)
    }

    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.room.iter().flat_map(|room| &room.members).map(|member| member.name.as_str()).collect();
        names.sort_unstable();
        names
    }

    pub fn key_of(&self, name: &str) -> String {
        self.room.as_ref().unwrap().members.iter().find(|member| member.name == name).unwrap().user.clone()
    }

    pub async fn create(&mut self) -> String {
        self.ask(Command::CreateRoom { title: "Harbour".into() }).await;
        self.until("the room", Self::is_open).await;
        self.room.as_ref().unwrap().link.clone()
    }

    pub async fn join(&mut self, link: &str) {
        self.ask(Command::Join { link: link.to_owned() }).await;
        self.until("coming in", Self::is_open).await;
    }

    pub async fn say(&mut self, text: &str) {
        self.ask(Command::Send { room: self.id(), text: text.to_owned() }).await;
        self.reads(text).await;
    }

    pub async fn reads(&mut self, text: &str) {
        self.until(text, |person| person.texts.iter().any(|said| said == text)).await;
    }

    pub async fn sees(&mut self, names: &[&str]) {
        self.until(&format!("{names:?}"), |person| person.names() == names).await;
    }
}
