//! An edge that lets in only devices that it was told about.

use super::*;
use crate::client::{
    records::{TICKET_KEY, TOKEN_KEY},
    view::{Command, Event, Level},
};

const TOKEN: &str = "AQAAAAAAAAAfive";

impl World {
    fn says(&mut self, token: &str) {
        self.client.command(Command::Token { token: token.to_owned() }, self.now_ms);
        self.settle();
    }

    /// An edge that wants [`TOKEN`], and a person who has just begun.
    fn refused(seed: u64) -> Self {
        let mut world = Self::new(seed);
        world.edge.token = Bytes::from_static(TOKEN.as_bytes());
        world.begin();
        world
    }

    fn state(&self) -> ConnectionState {
        self.seen.last().unwrap().0
    }
}

#[test]
fn whom_the_edge_does_not_know_is_told_so_until_the_token_is_right() {
    let mut world = World::refused(60);
    assert_eq!(world.state(), ConnectionState::Refused);
    let tried = world.opens.len();
    world.pass(60_000);
    assert!(world.opens.len() > tried, "it is asked again, as it may be told meanwhile");
    assert!(world.opens.len() < tried + 60, "and not all the time");
    assert_eq!(world.state(), ConnectionState::Refused, "that is no news");
    assert_eq!(world.seen.iter().filter(|(state, _)| *state == ConnectionState::Refused).count(), 1);
    world.says("another");
    assert_eq!(world.state(), ConnectionState::Refused);
    world.says(&format!(" {TOKEN}\n"));
    assert!(world.over().is_some(), "at once, and what was copied with it does no harm");
    assert_eq!(world.stored[TOKEN_KEY], TOKEN.as_bytes());
}

#[test]
fn a_token_is_kept_for_the_next_start_and_another_one_takes_its_place() {
    let starts = |given: &'static str, stored: &BTreeMap<String, Vec<u8>>| {
        let client = Client::new("http://localhost:8433", Bytes::from_static(given.as_bytes()), Box::new(Rng(61)));
        let mut world = World::with(client);
        world.edge.token = Bytes::from_static(TOKEN.as_bytes());
        stored.iter().for_each(|(key, value)| world.client.load(key, value).unwrap());
        world.stored.clone_from(stored);
        world.client.start(world.now_ms);
        world.settle();
        world
    };
    let mut world = World::refused(61);
    world.says(TOKEN);
    world.stored.remove(TICKET_KEY);
    let world = starts("", &world.stored);
    assert!(world.over().is_some());
    let mut stored = world.stored;
    stored.remove(TICKET_KEY);
    let mut world = starts("of a command line", &stored);
    assert_eq!(world.state(), ConnectionState::Refused);
    assert_eq!(world.stored[TOKEN_KEY], b"of a command line");
    world.says("");
    assert!(!world.stored.contains_key(TOKEN_KEY), "none is none");
}

#[test]
fn a_new_token_waits_for_the_next_login_where_the_session_is_up() {
    let mut world = World::refused(62);
    world.says(TOKEN);
    let (over, begun) = (world.over().map(str::to_owned), world.opens.len());
    world.edge.token = Bytes::from_static(b"the-next");
    world.says("the-next");
    assert_eq!((world.over().map(str::to_owned), world.opens.len()), (over, begun), "nothing moves");
    for transport in [WS, WT] {
        if world.sessions.values().any(|(kind, _)| *kind == transport) {
            world.lose(transport);
        }
    }
    assert!(world.over().is_none());
    world.pass(30_000);
    assert!(world.over().is_some() && world.state() != ConnectionState::Refused, "it comes back with the new one");
}

#[test]
fn what_is_no_token_is_not_taken() {
    let mut world = World::refused(63);
    for text in ["two words", "a\u{0}b", &"x".repeat(crate::core::login::TOKEN_LEN_MAX + 1)] {
        world.client.command(Command::Token { token: text.to_owned() }, world.now_ms);
        let outputs: Vec<_> = std::iter::from_fn(|| world.client.poll()).collect();
        let said = outputs.iter().any(|output| matches!(output, Output::Event(Event::Notice { level: Level::Warn, .. })));
        assert!(said && !outputs.iter().any(|output| matches!(output, Output::Persist { .. })), "{text}");
    }
}
