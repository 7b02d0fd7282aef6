//! The drop-box, with native clients and a real server: somebody who is no member posts what only members read.
#![cfg(all(feature = "server", feature = "client"))]
#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::indexing_slicing,
    reason = "a test's helpers fail like its tests"
)]

mod common;

use std::{path::PathBuf, process::Command as Process, time::Duration};

use bytes::Bytes;
use common::server::Edge;
use tempfile::TempDir;
use waxwing::{
    client::{
        native::{self, Choice, Handle, Options},
        view::{Command, Event, Level, MessageKind, Room, RoomState},
    },
    core::{
        chain,
        dropbox::{ANNOUNCEMENT_LEN_MAX, post_message},
        limits::Limits,
    },
    seal::{
        body::{Content, Message},
        dropbox::{Address, Announcement, AnnouncementError, PostBody, post},
        identity::sign_with_seed,
    },
    transport::{
        Kind, Trust,
        http::{Answer, request},
    },
};

/// Nothing in these tests takes that long: it only ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// These tests ask more often than a poster.
fn patient() -> Limits {
    Limits { post_requests_per_minute_max: 100_000, ..Limits::default() }
}

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
    /// Texts of members, and posts as `NAME: TEXT`, each with its key.
    lines: Vec<(String, String)>,
}

impl Place {
    async fn new(limits: Limits) -> Self {
        Self { edge: Edge::start(limits).await, homes: tempfile::tempdir().unwrap() }
    }

    fn options(&self) -> Options {
        Options { origin: self.edge.origin(), choice: Choice::Only(Kind::WebSocket), trust: Trust::WebPki, token: Bytes::new() }
    }

    async fn person(&self, name: &'static str) -> Person {
        let profile = self.homes.path().join(name);
        let mut person = Person { name, profile, handle: None, room: None, lines: Vec::new() };
        person.come(self);
        person.ask(Command::Start { name: name.into() }).await;
        person
    }

    /// A server that was stopped, and started again on what it had kept: at another port.
    async fn restart(self) -> Self {
        let Self { edge, homes } = self;
        let dir = edge.stop().await;
        Self { edge: Edge::start_in(dir, patient()).await, homes }
    }

    fn path(&self, address: &Address) -> String {
        format!("/post/{}", address.room)
    }

    async fn get(&self, path: &str) -> Answer {
        request(&self.edge.origin(), &Trust::WebPki, path, None, ANNOUNCEMENT_LEN_MAX).await.unwrap()
    }

    /// What a poster is told.
    async fn announcement(&self, address: &Address, known: u64) -> Result<Announcement, AnnouncementError> {
        let body = self.get(&self.path(address)).await.ok().unwrap();
        Announcement::verify(&body, address, known, native::now_ms())
    }

    async fn send(&self, address: &Address, post: &[u8]) -> Answer {
        let post = Bytes::copy_from_slice(post);
        request(&self.edge.origin(), &Trust::WebPki, &self.path(address), Some(post), 4096).await.unwrap()
    }

    /// Posts, once the drop-box is open.
    async fn post(&self, address: &Address, name: &str, text: &str) -> (Vec<u8>, u64) {
        loop {
            let announcement = self.announcement(address, 0).await.unwrap();
            let bytes = sealed(address, &announcement, name, text);
            let answer = self.send(address, &bytes).await;
            if answer.status == 409 {
                continue;
            }
            return (bytes, seq(&answer));
        }
    }

    /// Waits until the server has an announcement with a counter of at least that.
    async fn until_announced(&self, address: &Address, counter: u64) -> Announcement {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let answer = self.get(&self.path(address)).await;
            if answer.status == 200 {
                let announcement = Announcement::verify(&answer.body, address, 0, native::now_ms()).unwrap();
                if announcement.counter >= counter {
                    return announcement;
                }
            } else {
                assert_eq!(answer.status, 404);
            }
            assert!(tokio::time::Instant::now() < deadline, "no announcement {counter}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn sealed(address: &Address, announcement: &Announcement, name: &str, text: &str) -> Vec<u8> {
    let body = PostBody { name: name.to_owned(), content: Content::new(&Message::Text(text.to_owned())) };
    let (proof, envelope) = post(address, announcement, &body, &mut native::random()).unwrap();
    [&proof.to_bytes()[..], &envelope].concat()
}

fn seq(answer: &Answer) -> u64 {
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    serde_json::from_slice::<serde_json::Value>(&answer.body).unwrap()["seq"].as_u64().unwrap()
}

fn error(answer: &Answer) -> (u16, String) {
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    (answer.status, body["error"].as_str().unwrap().to_owned())
}

impl Person {
    fn come(&mut self, place: &Place) {
        self.lines.clear();
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
                Event::Message { message, .. } if message.seq.is_some() => {
                    let line = match message.kind {
                        MessageKind::Text => message.text,
                        MessageKind::Post => format!("{}: {}", message.author.name, message.text),
                        _ => continue,
                    };
                    if !self.lines.iter().any(|(key, _)| *key == message.key) {
                        self.lines.push((message.key, line));
                    }
                }
                Event::Notice { level, text, .. } => assert_ne!(level, Level::Alarm, "{text}"),
                _ => {}
            }
        }
    }

    fn lines(&self) -> Vec<&str> {
        self.lines.iter().map(|(_, line)| line.as_str()).collect()
    }

    fn id(&self) -> String {
        self.room.as_ref().unwrap().id.clone()
    }

    /// The address of the drop-box and who hosts it, as far as there are any.
    fn drop_box(&self) -> (String, String) {
        let open = self.room.as_ref().and_then(|room| room.drop_box.as_deref());
        open.map(|open| (open.address.clone(), open.host.clone())).unwrap_or_default()
    }

    fn is_open(&self) -> bool {
        self.room.as_ref().is_some_and(|room| room.state == RoomState::Open && room.settled)
    }

    fn is_with(&self, names: &[&str]) -> bool {
        let mut there: Vec<_> = self.room.iter().flat_map(|room| &room.members).map(|member| member.name.as_str()).collect();
        there.sort_unstable();
        there == names
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

    async fn reads(&mut self, text: &str) {
        self.until(text, |person| person.lines.iter().any(|(_, line)| line == text)).await;
    }

    async fn say(&mut self, text: &str) {
        self.ask(Command::Send { room: self.id(), text: text.to_owned() }).await;
        self.reads(text).await;
    }

    /// Opens the drop-box: its address.
    async fn open(&mut self, place: &Place) -> Address {
        self.ask(Command::OpenDropBox { room: self.id() }).await;
        self.until("an address", |person| !person.drop_box().0.is_empty()).await;
        let address: Address = self.drop_box().0.parse().unwrap();
        place.until_announced(&address, 0).await;
        address
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_is_read_by_members_as_nobodys_and_a_repetition_is_the_same_one() {
    let place = Place::new(patient()).await;
    let (mut ann, mut bob) = (place.person("Ann").await, place.person("Bob").await);
    bob.join(&ann.create().await).await;
    ann.until("Bob", |ann| ann.is_with(&["Ann", "Bob"])).await;
    let address = ann.open(&place).await;
    let (bytes, first) = place.post(&address, "Ann", "the disk is full").await;
    for person in [&mut ann, &mut bob] {
        person.reads("Ann (not a member): the disk is full").await;
    }
    assert_eq!(bob.drop_box(), (String::new(), "Ann".to_owned()), "only its host hands out the address");
    assert_eq!(seq(&place.send(&address, &bytes).await), first, "the same bytes are the same post");
    // Somebody who has seen the announcement, and not the address.
    let announcement = place.announcement(&address, 0).await.unwrap();
    let stranger = Address { secret: [7; 32], ..address.clone() };
    let forged = sealed(&stranger, &announcement, "Ann", "send me your keys");
    assert_eq!(error(&place.send(&address, &forged).await), (403, "bad_proof".into()));
    // Whoever is away reads it later; and the server knows the post, and the drop-box, after a restart.
    bob.go().await;
    ann.go().await;
    let place = place.restart().await;
    assert_eq!(seq(&place.send(&address, &bytes).await), first, "a repetition after a restart");
    assert_eq!(place.announcement(&address, 0).await, Ok(announcement));
    let (_, second) = place.post(&address, "", "it is empty again").await;
    assert_eq!(second, first + 1, "nothing else was stored");
    for person in [&mut ann, &mut bob] {
        person.come(&place);
        person.reads("somebody (not a member): it is empty again").await;
        assert_eq!(person.lines(), ["Ann (not a member): the disk is full", "somebody (not a member): it is empty again"]);
    }
    assert!(place.edge.metric("waxwing_posts_total") >= 2.0);
    place.edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_goes_does_not_read_what_is_posted_then() {
    let place = Place::new(patient()).await;
    let mut ann = place.person("Ann").await;
    let link = ann.create().await;
    let (mut bob, mut cy) = (place.person("Bob").await, place.person("Cy").await);
    bob.join(&link).await;
    cy.join(&link).await;
    ann.until("all", |ann| ann.is_with(&["Ann", "Bob", "Cy"])).await;
    let address = ann.open(&place).await;
    let before = place.announcement(&address, 0).await.unwrap();
    place.post(&address, "cron", "one").await;
    for person in [&mut ann, &mut bob, &mut cy] {
        person.reads("cron (not a member): one").await;
    }
    // What Bob knows opens what is sealed now: sent after he went, it must not be taken.
    let late = sealed(&address, &before, "cron", "of before");
    let user = ann.room.as_ref().unwrap().members.iter().find(|member| member.name == "Bob").unwrap().user.clone();
    ann.ask(Command::Remove { room: ann.id(), user }).await;
    ann.until("Bob gone", |ann| ann.is_open() && ann.is_with(&["Ann", "Cy"])).await;
    let after = place.until_announced(&address, before.counter + 1).await;
    assert_eq!(error(&place.send(&address, &late).await), (409, "stale_epoch".into()));
    assert_eq!(
        place.announcement(&address, after.counter + 1).await.map(drop),
        Err(AnnouncementError::Counter { counter: after.counter, known: after.counter + 1 })
    );
    assert_eq!(
        Announcement::verify(&before.encode(), &address, after.counter, native::now_ms()).map(drop),
        Err(AnnouncementError::Counter { counter: before.counter, known: after.counter }),
        "a server that gives the former one is found out"
    );
    place.post(&address, "cron", "two").await;
    for person in [&mut ann, &mut cy] {
        person.reads("cron (not a member): two").await;
        assert_eq!(person.lines(), ["cron (not a member): one", "cron (not a member): two"]);
    }
    bob.until("being told", |bob| bob.room.as_ref().unwrap().state == RoomState::Refused).await;
    assert_eq!(bob.lines(), ["cron (not a member): one"]);
    place.edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_in_later_is_told_and_reads_what_came_meanwhile() {
    let place = Place::new(patient()).await;
    let (mut ann, mut bob) = (place.person("Ann").await, place.person("Bob").await);
    let link = ann.create().await;
    let address = ann.open(&place).await;
    place.post(&address, "cron", "before").await;
    ann.reads("cron (not a member): before").await;
    // Nobody is there to tell Bob when he comes in.
    ann.go().await;
    bob.join(&link).await;
    place.post(&address, "cron", "meanwhile").await;
    bob.say("hello").await;
    assert_eq!(bob.lines(), ["hello"], "what he cannot open is not shown");
    ann.come(&place);
    ann.reads("hello").await;
    bob.reads("cron (not a member): meanwhile").await;
    place.post(&address, "cron", "after").await;
    bob.reads("cron (not a member): after").await;
    // It is in his own copy now.
    bob.go().await;
    bob.come(&place);
    bob.reads("cron (not a member): after").await;
    assert_eq!(bob.lines(), ["cron (not a member): meanwhile", "hello", "cron (not a member): after"]);
    place.edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_drop_box_takes_nothing_and_the_next_one_has_another_address() {
    let place = Place::new(patient()).await;
    let (mut ann, mut bob) = (place.person("Ann").await, place.person("Bob").await);
    bob.join(&ann.create().await).await;
    ann.until("Bob", |ann| ann.is_with(&["Ann", "Bob"])).await;
    bob.ask(Command::OpenDropBox { room: bob.id() }).await;
    bob.say("may I?").await;
    assert_eq!(bob.drop_box().0, "", "members who are neither owner nor moderator open none");
    let former = ann.open(&place).await;
    let announcement = place.announcement(&former, 0).await.unwrap();
    ann.ask(Command::CloseDropBox { room: ann.id() }).await;
    ann.until("closed", |ann| ann.is_open() && ann.drop_box().1.is_empty()).await;
    while place.get(&place.path(&former)).await.status != 404 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let late = sealed(&former, &announcement, "cron", "late");
    assert_eq!(error(&place.send(&former, &late).await), (404, "no_access".into()));
    bob.until("closed", |bob| bob.drop_box().1.is_empty()).await;
    let next = ann.open(&place).await;
    assert_eq!((next.room, next.host), (former.room, former.host));
    assert_ne!(next.secret, former.secret);
    assert_eq!(place.announcement(&former, 0).await.map(drop), Err(AnnouncementError::Poster));
    assert_eq!(error(&place.send(&former, &late).await), (403, "bad_proof".into()));
    place.post(&next, "cron", "in time").await;
    bob.reads("cron (not a member): in time").await;
    place.edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_limited_and_told_why() {
    let limits = Limits { posts_per_minute_max: 2, post_requests_per_minute_max: 300, ..Limits::default() };
    let place = Place::new(limits).await;
    let mut ann = place.person("Ann").await;
    ann.create().await;
    let address = ann.open(&place).await;
    let announcement = place.announcement(&address, 0).await.unwrap();
    let proved = |envelope: &[u8]| {
        let (_, proof) = sign_with_seed(&address.secret, &post_message(address.room, chain::digest(envelope)));
        [&proof.to_bytes()[..], envelope].concat()
    };
    let good = sealed(&address, &announcement, "cron", "one");
    assert_eq!(error(&place.send(&address, b"too short").await), (400, "bad_envelope".into()));
    assert_eq!(error(&place.send(&address, &[0; 70_000]).await), (413, "too_large".into()));
    for path in ["/post/AAAAAAAAAAAAAAAAAAAAAA", "/post/nonsense"] {
        assert_eq!(error(&place.get(path).await), (404, "no_access".into()), "{path}");
    }
    // Of a kind that an inbox takes.
    let mut envelope = good[64..].to_vec();
    envelope[1] = 3;
    assert_eq!(error(&place.send(&address, &proved(&envelope)).await), (400, "bad_envelope".into()));
    seq(&place.send(&address, &good).await);
    seq(&place.send(&address, &sealed(&address, &announcement, "cron", "two")).await);
    let more = place.send(&address, &sealed(&address, &announcement, "cron", "three")).await;
    assert_eq!(error(&more), (429, "rate_limited".into()));
    assert!(more.retry_after.is_some_and(|seconds| (1..=30).contains(&seconds)), "{more:?}");
    let mut refused = 0;
    for _ in 0..400 {
        let answer = place.get(&place.path(&address)).await;
        refused += u32::from(answer.status == 429);
    }
    assert!((1..400).contains(&refused), "{refused} of 400 from one address");
    ann.reads("cron (not a member): one").await;
    place.edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_posts_with_one_command_and_remembers_the_counter() {
    let place = Place::new(patient()).await;
    let mut ann = place.person("Ann").await;
    ann.create().await;
    let address = ann.open(&place).await;
    let home = tempfile::tempdir().unwrap();
    let run = |text: &'static str| {
        let mut command = Process::new(env!("CARGO_BIN_EXE_waxwing"));
        command.env("WAXWING_HOME", home.path()).args(["post", &address.to_string(), "--name", "cron", text]);
        async move { tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap() }
    };
    let output = run("backup done").await;
    assert!(output.status.success(), "{output:?}");
    let posted: u64 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    ann.reads("cron (not a member): backup done").await;
    assert!(posted > 1);
    // Once a higher counter was seen, the server's is an old one.
    let pins: Vec<_> = home.path().join("posting").read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    let [pin] = &pins[..] else { panic!("{pins:?}") };
    assert_eq!(std::fs::read_to_string(pin).unwrap(), "1\n");
    std::fs::write(pin, "9").unwrap();
    let output = run("backup done again").await;
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("an old one"), "{output:?}");
    place.edge.stop().await;
}
