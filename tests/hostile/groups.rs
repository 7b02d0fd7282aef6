//! What a server, or a member, puts among the changes of a room's group.

use bytes::Bytes;
use waxwing::{
    client::view::{Check, Command, MessageState, Role, RoomState},
    core::{
        envelope::{Header, Kind},
        id::RoomId,
    },
};

use super::{person::Person, server::Server, stage};

fn key_of(person: &Person, name: &str) -> String {
    person.room.as_ref().unwrap().members.iter().find(|member| member.name == name).unwrap().user.clone()
}

/// The newest change of a room's group.
fn newest_change(server: &Server, room: RoomId) -> Bytes {
    server.logs[&room][usize::try_from(server.newest_change(room)).unwrap() - 1].clone()
}

/// Whatever was put into the log, both go on as before, and say that something is skipped.
fn both_go_on(server: &mut Server, mut ann: Person, mut bob: Person) {
    ann.run(server);
    ann.say(server, "four");
    bob.run(server);
    bob.say(server, "five");
    ann.run(server);
    for person in [&ann, &bob] {
        let room = person.room.as_ref().unwrap();
        assert_eq!((room.state, room.members.len(), room.integrity.injected), (RoomState::Open, 2, 1));
        assert_eq!(person.texts(), ["one", "two", "three", "four", "five"]);
        assert!(person.alarms.is_empty(), "{:?}", person.alarms);
        assert!(person.warnings.len() == 1 && person.warnings[0].contains("skipped"), "{:?}", person.warnings);
    }
}

#[test]
fn a_change_of_another_room_changes_nothing() {
    let (mut server, mut ann, bob, room) = stage();
    let view = ann.room.clone();
    ann.client.command(Command::CreateRoom { title: "Other".into() }, 5);
    ann.run(&mut server);
    let other: RoomId = ann.room.as_ref().unwrap().id.parse().unwrap();
    ann.room = view;
    let mut moved = newest_change(&server, other).to_vec();
    moved[4..20].copy_from_slice(&room.0);
    assert!(Header::parse(&moved).is_ok_and(|header| header.room == room && header.kind == Kind::Handshake));
    server.logs.get_mut(&room).unwrap().push(moved.into());
    both_go_on(&mut server, ann, bob);
}

#[test]
fn a_record_that_skips_epochs_makes_nobody_fall_behind() {
    let (mut server, ann, bob, room) = stage();
    let newest = newest_change(&server, room);
    let epoch = Header::parse(&newest).unwrap().epoch;
    let at = newest.windows(8).position(|bytes| bytes == epoch.to_le_bytes()).unwrap();
    let mut ahead = newest.to_vec();
    ahead[at..at + 8].copy_from_slice(&(epoch + 5).to_le_bytes());
    assert_eq!(Header::parse(&ahead).unwrap().epoch, epoch + 5);
    server.logs.get_mut(&room).unwrap().push(ahead.into());
    both_go_on(&mut server, ann, bob);
}

#[test]
fn lies_about_the_newest_change_keep_messages_waiting_and_nobody_busy() {
    let (mut server, mut ann, mut bob, room) = stage();
    bob.run(&mut server);
    let link = ann.room.as_ref().unwrap().link.clone();
    server.lies_about_changes = Some(server.logs[&room].len() as u64);
    bob.reconnect();
    bob.run(&mut server);
    bob.say(&mut server, "four");
    let waiting = bob.messages.values().filter(|message| message.state == MessageState::Pending).count();
    assert_eq!((bob.room.as_ref().unwrap().state, waiting), (RoomState::Open, 1));
    // Each refusal costs who wants to come in a commit: after some it waits.
    let mut cy = Person::new("Cy", 3);
    cy.client.command(Command::Join { link }, 5);
    cy.run(&mut server);
    assert_eq!(cy.room.as_ref().unwrap().state, RoomState::Refused);
    // An honest answer is enough.
    server.lies_about_changes = None;
    bob.reconnect();
    bob.run(&mut server);
    ann.run(&mut server);
    assert_eq!(ann.texts(), ["one", "two", "three", "four"]);
    for person in [&ann, &bob] {
        assert!(person.alarms.is_empty() && person.warnings.is_empty(), "{:?} {:?}", person.alarms, person.warnings);
    }
}

#[test]
fn rubbish_as_the_newest_change_keeps_nobody_out_for_long() {
    let (mut server, mut ann, _, room) = stage();
    let mut rubbish = newest_change(&server, room).to_vec();
    let within_the_group_info = rubbish.len() - 100;
    rubbish[within_the_group_info] ^= 1;
    server.logs.get_mut(&room).unwrap().push(rubbish.into());
    let mut cy = Person::new("Cy", 3);
    cy.client.command(Command::Join { link: ann.room.as_ref().unwrap().link.clone() }, 5);
    cy.run(&mut server);
    assert_eq!(cy.room.as_ref().unwrap().state, RoomState::Refused, "nothing opens there");
    // A member that sees it makes a change that does.
    ann.run(&mut server);
    assert!(ann.room.as_ref().unwrap().settled && ann.warnings.len() == 1, "{:?}", ann.warnings);
    cy.client.tick(6_000);
    cy.run(&mut server);
    ann.run(&mut server);
    cy.say(&mut server, "here I am");
    ann.run(&mut server);
    assert_eq!(ann.texts().last().unwrap(), "here I am");
}

#[test]
fn a_change_that_is_withheld_leaves_what_follows_unread_and_that_is_said() {
    let (mut server, mut ann, mut bob, room) = stage();
    bob.run(&mut server);
    ann.client.command(Command::MakeLink { room: room.to_string() }, 5);
    ann.run(&mut server);
    ann.say(&mut server, "after the change");
    let withheld = usize::try_from(server.newest_change(room)).unwrap() - 1;
    let mut log = server.logs[&room].clone();
    log.remove(withheld);
    server.shown.insert(room, log);
    bob.run(&mut server);
    assert!(!bob.texts().contains(&"after the change".into()));
    let view = bob.room.as_ref().unwrap();
    assert!(
        view.integrity.injected > 0 && bob.warnings.iter().any(|text| text.contains("written by nobody")),
        "{:?}",
        bob.warnings
    );
    // Nor can the server go on from there: what he has is not the history any more.
    server.shown.clear();
    bob.reconnect();
    bob.run(&mut server);
    assert!(!bob.alarms.is_empty() && bob.room.as_ref().unwrap().state == RoomState::Refused);
}

#[test]
fn a_joiner_that_is_told_an_older_change_comes_into_a_past_that_nobody_is_in() {
    let (mut server, mut ann, mut bob, _) = stage();
    bob.run(&mut server);
    // Ann's link of the beginning still leads in: the server gives the change that listed it, and not Bob's coming in.
    server.stale_change = Some(1);
    let mut cy = Person::new("Cy", 3);
    cy.client.command(Command::Join { link: ann.room.as_ref().unwrap().link.clone() }, 5);
    cy.run(&mut server);
    server.stale_change = None;
    for person in [&mut ann, &mut bob] {
        person.run(&mut server);
        let view = person.room.as_ref().unwrap();
        assert_eq!((view.members.len(), view.integrity.injected), (2, 1), "they skip it");
    }
    ann.say(&mut server, "without Cy");
    cy.run(&mut server);
    assert!(!cy.texts().contains(&"without Cy".into()));
    let view = cy.room.as_ref().unwrap();
    assert!(view.integrity.injected > 0 && !cy.warnings.is_empty(), "it is said that something is not shown");
    assert_ne!(view.words, ann.room.as_ref().unwrap().words);
    cy.say(&mut server, "does anybody read me?");
    ann.run(&mut server);
    assert!(!ann.texts().contains(&"does anybody read me?".into()));
}

#[test]
fn two_winners_of_one_race_read_nothing_of_each_other_and_have_other_words() {
    let (mut server, mut ann, mut bob, room) = stage();
    bob.run(&mut server);
    let (id, user) = (room.to_string(), key_of(&ann, "Bob"));
    ann.client.command(Command::SetRole { room: id.clone(), user, role: Role::Moderator }, 5);
    ann.run(&mut server);
    bob.run(&mut server);
    assert_eq!(ann.room.as_ref().unwrap().words, bob.room.as_ref().unwrap().words);
    // Both make a change at once, and each is told that theirs was taken.
    let mut other = server.clone();
    ann.client.command(Command::MakeLink { room: id.clone() }, 5);
    bob.client.command(Command::MakeLink { room: id }, 5);
    ann.run(&mut server);
    bob.run(&mut other);
    ann.say(&mut server, "to one of them");
    let (ours, theirs) = (ann.room.as_ref().unwrap(), bob.room.as_ref().unwrap());
    assert_eq!(ours.words_at, theirs.words_at);
    assert_ne!(ours.words, theirs.words);
    // What Ann says is nobody's in the other history.
    let said = server.logs[&room].last().unwrap().clone();
    other.logs.get_mut(&room).unwrap().push(said);
    bob.run(&mut other);
    assert!(!bob.texts().contains(&"to one of them".into()));
    assert_eq!(bob.room.as_ref().unwrap().integrity.injected, 1);
    // And whoever is moved from one to the other finds out.
    bob.reconnect();
    bob.run(&mut server);
    assert!(!bob.alarms.is_empty(), "{:?}", bob.warnings);
}

#[test]
fn a_log_put_back_to_before_a_removal_brings_nobody_back() {
    let (mut server, mut ann, mut bob, room) = stage();
    bob.run(&mut server);
    let (before, left) = (bob.put_back(7), server.logs[&room].len());
    ann.client.command(Command::Remove { room: room.to_string(), user: key_of(&ann, "Bob") }, 5);
    ann.run(&mut server);
    // As a restore from a backup does; Bob's device forgets with it.
    server.life = 1;
    server.logs.get_mut(&room).unwrap().truncate(left);
    let mut bob = before;
    ann.reconnect();
    ann.run(&mut server);
    bob.run(&mut server);
    ann.say(&mut server, "still without Bob");
    bob.run(&mut server);
    bob.say(&mut server, "am I in?");
    ann.run(&mut server);
    assert!(!bob.texts().contains(&"still without Bob".into()) && !ann.texts().contains(&"am I in?".into()));
    assert_eq!(ann.room.as_ref().unwrap().members.len(), 1);
    assert!(ann.alarms.is_empty() && ann.checks(Check::Contradicts) == 0);
}
