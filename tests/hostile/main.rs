//! What a client finds out about a server that cheats, and what it does not claim: each answer of the server is tampered with
//! in one way, and the client matches, says that it cannot check, or alarms.
#![cfg(feature = "seal")]
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, and says what it does"
)]

mod asking;
mod devices;
mod evidence;
mod groups;
mod invitations;
mod members;
mod person;
mod returning;
mod server;

use person::{Person, Rng};
use server::{Server, Tickets};
use waxwing::{
    client::{
        Output,
        view::{Check, Command, MessageKind, Role, RoomState},
    },
    core::id::RoomId,
};

/// Ann has made a room, Bob has come in by its link and lost his connection, and Ann has said some things since.
fn stage() -> (Server, Person, Person, RoomId) {
    let mut server = Server::default();
    let mut ann = Person::new("Ann", 1);
    ann.client.command(Command::CreateRoom { title: "T".into() }, 5);
    ann.run(&mut server);
    let mut bob = Person::new("Bob", 2);
    bob.client.command(Command::Join { link: ann.room.as_ref().unwrap().link.clone() }, 5);
    bob.run(&mut server);
    ann.run(&mut server);
    bob.reconnect();
    for text in ["one", "two", "three"] {
        ann.say(&mut server, text);
    }
    let room = ann.room.clone().unwrap();
    for person in [&ann, &bob] {
        let room = person.room.as_ref().unwrap();
        assert_eq!((room.state, room.title.as_str(), room.members.len()), (RoomState::Open, "T", 2));
        assert!(person.alarms.is_empty() && person.warnings.is_empty(), "{:?} {:?}", person.alarms, person.warnings);
    }
    (server, ann, bob, room.id.parse().unwrap())
}

#[test]
fn an_honest_server_matches_in_everything() {
    let (mut server, mut ann, mut bob, _) = stage();
    bob.run(&mut server);
    bob.say(&mut server, "four");
    ann.run(&mut server);
    assert_eq!(bob.texts(), ["one", "two", "three", "four"]);
    assert_eq!(ann.texts(), bob.texts());
    for person in [&ann, &bob] {
        assert_eq!((person.alarms.len(), person.checks(Check::Matches)), (0, person.messages.len()));
        let names: Vec<_> = person.room.as_ref().unwrap().members.iter().map(|member| member.name.clone()).collect();
        assert!(names.contains(&"Ann".into()) && names.contains(&"Bob".into()), "{names:?}");
    }
    assert_eq!(ann.room.unwrap().words, bob.room.unwrap().words);
}

#[test]
fn a_dropped_message_is_noticed_once_a_later_one_crosses_it() {
    let (mut server, _, mut bob, room) = stage();
    let mut log = server.logs[&room].clone();
    let dropped = log.len() - 2;
    log.remove(dropped);
    server.shown.insert(room, log);
    bob.run(&mut server);
    assert_eq!(bob.texts(), ["one", "three"]);
    assert!(bob.checks(Check::Contradicts) > 0 && !bob.alarms.is_empty());
}

#[test]
fn messages_in_another_order_contradict() {
    let (mut server, _, mut bob, room) = stage();
    let mut log = server.logs[&room].clone();
    let last = log.len() - 1;
    log.swap(last, last - 1);
    server.shown.insert(room, log);
    bob.run(&mut server);
    assert!(!bob.alarms.is_empty());
}

#[test]
fn a_withheld_tail_looks_like_silence() {
    let (mut server, _, mut bob, room) = stage();
    let mut log = server.logs[&room].clone();
    log.pop();
    server.shown.insert(room, log);
    bob.run(&mut server);
    assert_eq!(bob.texts(), ["one", "two"]);
    assert!(bob.alarms.is_empty(), "it cannot be told, and is not claimed: {:?}", bob.alarms);
}

#[test]
fn what_the_server_writes_is_counted_and_never_shown() {
    let (mut server, _, mut bob, room) = stage();
    let mut changed = server.logs[&room].last().unwrap().to_vec();
    *changed.last_mut().unwrap() ^= 1;
    server.logs.get_mut(&room).unwrap().push(changed.into());
    bob.run(&mut server);
    assert_eq!(bob.texts(), ["one", "two", "three"]);
    assert_eq!(bob.room.unwrap().integrity.injected, 1);
    assert!(!bob.warnings.is_empty());
}

#[test]
fn a_message_told_twice_is_shown_once() {
    let (mut server, _, mut bob, room) = stage();
    let again = server.logs[&room].last().unwrap().clone();
    server.logs.get_mut(&room).unwrap().push(again);
    bob.run(&mut server);
    assert_eq!(bob.texts(), ["one", "two", "three"]);
    assert_eq!(bob.room.unwrap().integrity.injected, 1);
}

#[test]
fn a_join_told_twice_makes_nobody_join_twice() {
    let (mut server, mut ann, mut bob, room) = stage();
    let join = server.logs[&room][0].clone();
    server.logs.get_mut(&room).unwrap().push(join);
    ann.run(&mut server);
    ann.say(&mut server, "four");
    bob.run(&mut server);
    assert_eq!(bob.texts(), ["one", "two", "three", "four"]);
    assert_eq!(bob.messages.values().filter(|message| message.kind == MessageKind::Join).count(), 1, "Bob's");
    assert_eq!(bob.room.unwrap().integrity.injected, 1);
    assert!(bob.alarms.is_empty(), "{:?}", bob.alarms);
}

#[test]
fn a_message_of_another_room_does_not_open() {
    let (mut server, mut ann, mut bob, room) = stage();
    ann.client.command(Command::CreateRoom { title: "Other".into() }, 5);
    ann.run(&mut server);
    ann.say(&mut server, "elsewhere");
    let other: RoomId = ann.room.as_ref().unwrap().id.parse().unwrap();
    let mut moved = server.logs[&other].last().unwrap().to_vec();
    moved[4..20].copy_from_slice(&room.0);
    server.logs.get_mut(&room).unwrap().push(moved.into());
    bob.run(&mut server);
    assert_eq!(bob.texts(), ["one", "two", "three"]);
    assert_eq!(bob.room.unwrap().integrity.injected, 1);
}

#[test]
fn a_history_that_was_rewritten_behind_a_cursor_stops_the_room() {
    let (mut server, _, mut bob, _) = stage();
    bob.run(&mut server);
    server.wrong_chain = true;
    bob.reconnect();
    bob.run(&mut server);
    assert!(!bob.alarms.is_empty());
    assert_eq!(bob.room.as_ref().unwrap().state, RoomState::Refused);
    assert_eq!(bob.texts(), ["one", "two", "three"], "the person's copy is kept");
}

#[test]
fn a_rolled_back_log_of_the_same_life_alarms() {
    let (mut server, _, mut bob, room) = stage();
    bob.run(&mut server);
    let mut log = server.logs[&room].clone();
    log.truncate(3);
    server.shown.insert(room, log);
    bob.reconnect();
    bob.run(&mut server);
    assert!(bob.alarms.iter().any(|text| text.contains("has only 3")), "{:?}", bob.alarms);
}

#[test]
fn a_server_cannot_skip_what_it_says_it_has() {
    let (mut server, _, mut bob, _) = stage();
    bob.run(&mut server);
    bob.reconnect();
    server.skips = 1;
    server.shown.clear();
    let (room, log) = server.logs.iter().max_by_key(|(_, log)| log.len()).map(|(room, log)| (*room, log.clone())).unwrap();
    server.logs.get_mut(&room).unwrap().extend(log[..2].iter().cloned());
    bob.run(&mut server);
    assert!(bob.alarms.iter().any(|text| text.contains("left out")), "{:?}", bob.alarms);
}

#[test]
fn a_restored_log_is_told_as_that_and_nothing_is_lost_or_sent_twice() {
    let (mut server, mut ann, mut bob, room) = stage();
    bob.run(&mut server);
    // The last two records are lost with the restore; the log says so by a new life.
    server.life = 1;
    let log = server.logs.get_mut(&room).unwrap();
    log.truncate(log.len() - 2);
    let left = log.len();
    bob.reconnect();
    bob.run(&mut server);
    assert!(bob.alarms.is_empty(), "{:?}", bob.alarms);
    assert!(bob.warnings.iter().any(|text| text.contains("replaced")), "{:?}", bob.warnings);
    assert!(bob.stored.keys().any(|key| key.starts_with("former/")), "the former copy is kept");
    ann.reconnect();
    ann.run(&mut server);
    ann.say(&mut server, "after");
    bob.run(&mut server);
    assert!(server.logs[&room].len() > left);
    assert_eq!(bob.texts().iter().filter(|text| *text == "after").count(), 1);
    assert!(ann.alarms.is_empty() && bob.alarms.is_empty(), "{:?} {:?}", ann.alarms, bob.alarms);
}

#[test]
fn a_resume_that_is_taken_or_forgotten_loses_and_repeats_nothing() {
    for (tickets, dropped) in [(Tickets::Taken, false), (Tickets::Forgotten, true)] {
        let (mut server, mut ann, mut bob, _) = stage();
        server.tickets = Tickets::Taken;
        for person in [&mut ann, &mut bob] {
            person.run(&mut server);
            person.reconnect();
            person.run(&mut server);
        }
        bob.say(&mut server, "four");
        server.tickets = tickets;
        ann.reconnect();
        ann.run(&mut server);
        ann.say(&mut server, "five");
        bob.run(&mut server);
        assert_eq!(bob.texts(), ["one", "two", "three", "four", "five"]);
        assert_eq!(ann.texts(), bob.texts());
        assert!(ann.alarms.is_empty() && bob.alarms.is_empty(), "{:?} {:?}", ann.alarms, bob.alarms);
        assert_eq!(server.dropped > 0, dropped);
    }
}

#[test]
fn a_life_of_the_log_that_is_learnt_behind_a_resume_is_read_anew() {
    let (mut server, mut ann, mut bob, room) = stage();
    server.tickets = Tickets::Taken;
    for person in [&mut ann, &mut bob] {
        person.run(&mut server);
        person.reconnect();
        person.run(&mut server);
    }
    // Whether the former cursor lies within the new life or beyond its end, the answer to it counts for nothing.
    for (life, lost) in [(1, 0), (2, 2)] {
        server.life = life;
        let log = server.logs.get_mut(&room).unwrap();
        log.truncate(log.len() - lost);
        for person in [&mut ann, &mut bob] {
            person.reconnect();
            person.run(&mut server);
        }
        let text = format!("in life {life}");
        ann.say(&mut server, &text);
        bob.run(&mut server);
        for person in [&ann, &bob] {
            assert!(person.alarms.is_empty(), "{:?}", person.alarms);
            assert!(person.texts().contains(&text));
            assert!(person.room.as_ref().unwrap().settled && person.room.as_ref().unwrap().up_to_date);
        }
    }
}

#[test]
fn whatever_a_server_sends_a_client_goes_on() {
    let (mut server, _, mut bob, _) = stage();
    bob.run(&mut server);
    let mut rng = Rng(7);
    let (mut link, mut links) = (bob.link.unwrap(), 0);
    for now_ms in 6..9000 {
        let len = usize::try_from(rng.word() % 60).unwrap();
        let bytes: Vec<u8> = (0..len).map(|_| rng.word().to_le_bytes()[0] % 24).collect();
        bob.client.received_frame(link, &bytes, now_ms);
        bob.client.wake(now_ms);
        while let Some(output) = bob.client.poll() {
            if let Output::Open { link: next, .. } = output {
                (link, links) = (next, links + 1);
                bob.client.opened(link, None, now_ms);
            }
        }
    }
    assert!(links > 10, "it comes back after what was no frame: {links}");
}

#[test]
fn who_is_removed_is_told_and_reads_nothing_more_and_the_link_ends() {
    let (mut server, mut ann, mut bob, _) = stage();
    bob.run(&mut server);
    let before = ann.room.clone().unwrap();
    let user = before.members.iter().find(|member| !member.you).unwrap().user.clone();
    ann.client.command(Command::Remove { room: before.id.clone(), user }, 5);
    ann.run(&mut server);
    ann.say(&mut server, "without Bob");
    let after = ann.room.clone().unwrap();
    assert_eq!((after.members.len(), after.settled), (1, true));
    assert!(!after.link.is_empty() && after.link != before.link, "a successor");
    bob.run(&mut server);
    assert_eq!(bob.room.as_ref().unwrap().state, RoomState::Refused);
    assert!(bob.texts().contains(&"three".into()), "the person's copy is kept");
    assert!(!bob.texts().contains(&"without Bob".into()));
    assert!(bob.messages.values().any(|message| message.kind == MessageKind::Removed && message.author.name == "Ann"));
    let mut cy = Person::new("Cy", 3);
    cy.client.command(Command::Join { link: after.link }, 5);
    cy.run(&mut server);
    ann.run(&mut server);
    cy.say(&mut server, "I am in");
    ann.run(&mut server);
    assert_eq!((ann.texts().last().unwrap().as_str(), cy.texts().len()), ("I am in", 1));
    for person in [&ann, &bob, &cy] {
        assert!(person.alarms.is_empty() && person.room.as_ref().unwrap().integrity.injected == 0, "{:?}", person.alarms);
    }
    // The server lets in whom its access key should keep out: the members do not.
    let mut dan = Person::new("Dan", 4);
    dan.client.command(Command::Join { link: before.link }, 5);
    dan.run(&mut server);
    dan.say(&mut server, "I am in, too");
    ann.run(&mut server);
    ann.say(&mut server, "nobody came");
    dan.run(&mut server);
    let room = ann.room.as_ref().unwrap();
    assert_eq!((room.members.len(), room.integrity.injected, ann.texts().last().unwrap().as_str()), (2, 0, "nobody came"));
    assert_eq!(dan.room.as_ref().unwrap().state, RoomState::Refused);
    assert!(!dan.texts().contains(&"nobody came".into()));
}

#[test]
fn another_device_of_a_person_reads_what_the_first_one_read() {
    let (mut server, mut ann, mut bob, _) = stage();
    bob.run(&mut server);
    bob.say(&mut server, "four");
    ann.run(&mut server);
    for (person, texts) in [(&mut ann, 4), (&mut bob, 4)] {
        let file = person.client.export_identity("correct horse").unwrap();
        let mut next = Person::unnamed(9);
        next.client.import_identity(&file, "correct horse", 5).unwrap();
        next.run(&mut server);
        assert_eq!((next.texts().len(), next.room.as_ref().unwrap().state), (texts, RoomState::Open));
        assert_eq!(next.texts(), person.texts());
        next.say(&mut server, "from the next device");
        person.run(&mut server);
        assert_eq!(person.texts().last().unwrap(), "from the next device");
        assert!(next.alarms.is_empty() && next.room.as_ref().unwrap().integrity.injected == 0, "{:?}", next.alarms);
        assert_eq!(next.room.as_ref().unwrap().members.len(), 2, "of two people");
    }
}

#[test]
fn two_changes_at_once_both_come_true() {
    let (mut server, mut ann, mut bob, room) = stage();
    bob.run(&mut server);
    let of = |person: &Person| person.room.as_ref().unwrap().members.iter().find(|member| member.you).unwrap().user.clone();
    let (id, of_bob) = (room.to_string(), of(&bob));
    ann.client.command(Command::SetRole { room: id.clone(), user: of_bob, role: Role::Owner }, 5);
    ann.run(&mut server);
    bob.run(&mut server);
    // Both make a commit for the same epoch before either has seen the other's.
    let of_ann = of(&ann);
    bob.client.command(Command::MakeLink { room: id.clone() }, 5);
    ann.client.command(Command::SetRole { room: id, user: of_ann, role: Role::Moderator }, 5);
    ann.run(&mut server);
    bob.run(&mut server);
    ann.run(&mut server);
    bob.run(&mut server);
    for person in [&ann, &bob] {
        let room = person.room.as_ref().unwrap();
        let role = |name: &str| room.members.iter().find(|member| member.name == name).unwrap().role;
        assert_eq!((role("Ann"), role("Bob"), room.settled), (Role::Moderator, Role::Owner, true));
        assert!(person.alarms.is_empty() && person.warnings.is_empty(), "{:?} {:?}", person.alarms, person.warnings);
    }
    assert_eq!(ann.room.as_ref().unwrap().link, bob.room.as_ref().unwrap().link, "Bob's link is told in the room");
}

#[test]
fn a_link_ends_when_its_time_is_over_and_somebody_is_there_to_end_it() {
    let (mut server, mut ann, mut bob, _) = stage();
    bob.run(&mut server);
    let link = ann.room.as_ref().unwrap().link.clone();
    assert_eq!(bob.room.as_ref().unwrap().link, link);
    // Eight days later Bob may not, and Ann does.
    for person in [&mut bob, &mut ann] {
        person.now_ms = 8 * 24 * 3600 * 1000;
        person.say(&mut server, "a week later");
    }
    ann.run(&mut server);
    bob.run(&mut server);
    for person in [&ann, &bob] {
        let room = person.room.as_ref().unwrap();
        assert_eq!((room.link.as_str(), room.settled, person.warnings.len()), ("", true, 0), "{:?}", person.warnings);
    }
    let mut cy = Person::new("Cy", 3);
    cy.client.command(Command::Join { link }, 5);
    cy.run(&mut server);
    ann.run(&mut server);
    assert_eq!(cy.room.as_ref().unwrap().state, RoomState::Refused, "not into a past that nobody is in");
    assert_eq!((ann.room.as_ref().unwrap().members.len(), ann.warnings.len()), (2, 0));
    // Another one leads in.
    let room = ann.room.as_ref().unwrap().id.clone();
    ann.client.command(Command::MakeLink { room }, ann.now_ms);
    ann.run(&mut server);
    let mut dan = Person::new("Dan", 4);
    dan.client.command(Command::Join { link: ann.room.as_ref().unwrap().link.clone() }, 5);
    dan.run(&mut server);
    ann.run(&mut server);
    assert_eq!(ann.room.as_ref().unwrap().members.len(), 3);
}
