//! What a server, or a member, puts among the changes of a room's group.

use bytes::Bytes;
use waxwing::{
    client::view::{Command, MessageState, RoomState},
    core::{
        envelope::{Header, Kind},
        id::RoomId,
    },
};

use super::{person::Person, server::Server, stage};

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
