//! The product's own clients on bad links, as people see them: every text once, in order, at everybody, and the connection moves
//! to what works.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::time::timeout;
use waxwing::{
    client::{
        native::{Choice, Handle, Options},
        view::{Command, Event, MessageKind, MessageState, Room, RoomState},
    },
    transport::Kind,
};

use super::{
    edge::{Edge, Reach},
    link::Conditions,
    scenarios::mobile,
};

/// Nothing takes that long: it only ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(120);

/// A person at a terminal.
struct Person {
    handle: Handle,
    room: Option<Room>,
    /// Texts of others, in the order in which they were first shown.
    received: Vec<String>,
    /// Texts of their own that are on the server's disk.
    sent: Vec<String>,
    transport: Option<String>,
}

impl Person {
    async fn start(dir: &Path, name: &str, reach: &Reach) -> Self {
        Self::start_over(dir, name, reach, Choice::Auto).await
    }

    async fn start_over(dir: &Path, name: &str, reach: &Reach, choice: Choice) -> Self {
        let options = Options { origin: reach.origin.clone(), choice, trust: reach.target.trust.clone(), token: Bytes::new() };
        let handle = Handle::start(&dir.join(name), options).unwrap();
        let person = Self { handle, room: None, received: Vec::new(), sent: Vec::new(), transport: None };
        person.does(Command::Start { name: name.into() }).await;
        person
    }

    async fn does(&self, command: Command) {
        self.handle.commands.send(command).await.unwrap();
    }

    async fn says(&self, text: &str) {
        let room = self.room.as_ref().unwrap().id.clone();
        self.does(Command::Send { room, text: text.into() }).await;
    }

    /// Takes what the client tells until that is so.
    async fn until(&mut self, what: &str, reached: impl Fn(&Self) -> bool) {
        while !reached(self) {
            let event = timeout(PATIENCE, self.handle.events.recv()).await;
            match event.unwrap_or_else(|_| panic!("not seen: {what}")).unwrap() {
                Event::Room { room } => self.room = Some(room),
                Event::Connection { transport, .. } => self.transport = transport,
                Event::Message { message, .. } if message.kind == MessageKind::Text => match message.state {
                    MessageState::Received if !self.received.contains(&message.text) => self.received.push(message.text),
                    MessageState::Sent if !self.sent.contains(&message.text) => self.sent.push(message.text),
                    MessageState::Failed => panic!("{:?}", message.reason),
                    _ => {}
                },
                _ => {}
            }
        }
    }

    async fn in_room(&mut self) {
        self.until("the room", |person| person.room.as_ref().is_some_and(|room| room.state == RoomState::Open)).await;
    }

    fn is_unalarmed(&self) -> bool {
        self.room.as_ref().is_some_and(|room| room.integrity.contradicts + room.integrity.injected == 0)
    }
}

fn texts(who: &str, upto: usize) -> Vec<String> {
    (0..upto).map(|n| format!("{who} {n}")).collect()
}

/// One says something, and the other sees it; how long that takes.
async fn tell(from: &Person, to: &mut Person, who: &str) -> Duration {
    let n = to.received.len();
    let since = Instant::now();
    from.says(&format!("{who} {n}")).await;
    to.until("a text", |person| person.received.len() > n).await;
    since.elapsed()
}

/// Both say ten more things each, in turn; the longest time until one was seen.
async fn converse(ann: &mut Person, bob: &mut Person) -> Duration {
    let mut longest = Duration::ZERO;
    for _ in 0..10 {
        longest = longest.max(tell(ann, bob, "ann").await).max(tell(bob, ann, "bob").await);
    }
    longest
}

/// A change of the link, and what then carries both sessions sooner or later.
type Change = (fn(&mut Conditions), &'static str);

/// Two people talk while the link changes; how long the longest text took in each part, and what carried it.
fn talk(edge: &Edge, changes: Vec<Change>) -> Vec<(Duration, Option<String>)> {
    let lab = edge.lab.control();
    edge.clients(move |reach| async move {
        let dir = tempfile::tempdir().unwrap();
        let mut ann = Person::start(dir.path(), "ann", &reach).await;
        ann.does(Command::CreateRoom { title: "Harbour".into() }).await;
        ann.in_room().await;
        let mut bob = Person::start(dir.path(), "bob", &reach).await;
        bob.does(Command::Join { link: ann.room.as_ref().unwrap().link.clone() }).await;
        bob.in_room().await;
        for person in [&mut ann, &mut bob] {
            person.until("wt", |person| person.transport.as_deref() == Some("wt")).await;
        }
        let mut parts = vec![(converse(&mut ann, &mut bob).await, ann.transport.clone())];
        let mut said = 10;
        for (change, transport) in changes {
            lab.change(change);
            parts.push((converse(&mut ann, &mut bob).await, ann.transport.clone()));
            // Whoever is not there yet gets there by itself, and nobody says anything meanwhile.
            for person in [&mut ann, &mut bob] {
                person.until(transport, |person| person.transport.as_deref() == Some(transport)).await;
            }
            parts.push((converse(&mut ann, &mut bob).await, ann.transport.clone()));
            said += 20;
        }
        ann.until("everything is sent", |person| person.sent.len() == said).await;
        bob.until("everything is sent", |person| person.sent.len() == said).await;
        assert_eq!((&ann.received, &bob.received), (&texts("bob", said), &texts("ann", said)), "each once, in order");
        assert!(ann.is_unalarmed() && bob.is_unalarmed());
        ann.handle.stop().await.unwrap();
        bob.handle.stop().await.unwrap();
        parts
    })
}

#[test]
fn terminals_talk_across_loss() {
    let mut conditions = mobile();
    conditions.way.loss = 0.02;
    let Some(edge) = Edge::start_or_skip(8, conditions) else { return };
    println!("{:?}", talk(&edge, Vec::new()));
}

#[test]
fn terminals_go_on_when_udp_dies_and_move_back_when_it_passes_again() {
    let Some(edge) = Edge::start_or_skip(9, mobile()) else { return };
    let changes: Vec<Change> =
        vec![(|conditions| conditions.no_udp = true, "ws"), (|conditions| conditions.no_udp = false, "wt")];
    let parts = talk(&edge, changes);
    let transports: Vec<_> = parts.iter().map(|(_, transport)| transport.as_deref()).collect();
    // While a change is being noticed, either may carry what is said.
    let settled: Vec<_> = transports.iter().step_by(2).copied().collect();
    assert_eq!(settled, ["wt", "ws", "wt"].map(Some), "{parts:?}");
    println!("{parts:?}");
}

/// A connection on which nobody says anything is asked after ten seconds; until then a client that knows of nothing sends nothing.
const SILENCE: Duration = Duration::from_secs(9);
/// More than what a kernel says by itself about a new address, less than coming back takes.
const PACKETS: u64 = 10;

#[test]
fn a_terminal_that_comes_to_another_network_comes_back_without_waiting_for_silence() {
    let Some(edge) = Edge::start_or_skip(10, mobile()) else { return };
    let lab = edge.lab.control();
    edge.clients(move |reach| async move {
        let dir = tempfile::tempdir().unwrap();
        let mut ann = Person::start_over(dir.path(), "ann", &reach, Choice::Only(Kind::WebSocket)).await;
        ann.does(Command::CreateRoom { title: "Harbour".into() }).await;
        ann.in_room().await;
        ann.says("from home").await;
        ann.until("its ack", |ann| ann.sent.len() == 1).await;
        lab.renumber("10.77.0.3");
        timeout(SILENCE, lab.until_sent(PACKETS)).await.expect("it comes back by itself");
        ann.says("on the way").await;
        ann.until("its ack", |ann| ann.sent.len() == 2).await;
        assert!(ann.is_unalarmed());
        ann.handle.stop().await.unwrap();
    });
}
