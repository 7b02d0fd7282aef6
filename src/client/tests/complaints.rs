//! A change of the group that breaks no rule, and that one device cannot follow: it says so, and comes in again. The server is the
//! smallest one, and what cheats is a member.
#![allow(dead_code, unreachable_pub, reason = "people and server have more to them than is needed here")]

#[path = "../../../tests/hostile/person.rs"]
mod person;
#[path = "../../../tests/hostile/server.rs"]
mod server;

use self::{person::Person, server::Server};
use super::super::view::{Command, RoomState};
use crate::{
    core::id::RoomId,
    group::{Group, tests::hostile::poisoned},
};

/// Ann's room, with Bob and Cy in it.
fn three() -> (Server, [Person; 3], RoomId) {
    let mut server = Server::default();
    let mut people = [Person::new("Ann", 1), Person::new("Bob", 2), Person::new("Cy", 3)];
    people[0].client.command(Command::CreateRoom { title: "T".into() }, 5);
    people[0].run(&mut server);
    let link = people[0].room.as_ref().unwrap().link.clone();
    for at in [1, 2] {
        people[at].client.command(Command::Join { link: link.clone() }, 5);
        people[at].run(&mut server);
    }
    people[0].say(&mut server, "all are here");
    for person in &mut people {
        person.run(&mut server);
    }
    let room = people[0].room.as_ref().unwrap().id.parse().unwrap();
    (server, people, room)
}

/// Bob's device makes a commit that Cy's cannot follow, and gives it to the log.
fn poison(server: &mut Server, people: &[Person; 3], room: RoomId) {
    let (bob, cy) = (&people[1].client, people[2].client.me.as_ref().unwrap().identity.device());
    let kept = bob.rooms[&room].place_for_test().snapshot();
    let mut forger = Group::restore(&kept, &mut person::Rng(9)).unwrap();
    let (mut record, _) = poisoned(&mut forger, &bob.me.as_ref().unwrap().identity, cy);
    record.after = server.newest_change(room);
    server.logs.get_mut(&room).unwrap().push(record.encode());
}

#[test]
fn a_change_that_one_device_cannot_follow_ends_in_a_complaint_that_names_its_maker() {
    let (mut server, mut people, room) = three();
    poison(&mut server, &people, room);
    let [ann, _, cy] = &mut people;
    ann.run(&mut server);
    assert!(ann.warnings.is_empty(), "it breaks no rule: {:?}", ann.warnings);
    for _ in 0..2 {
        cy.run(&mut server);
        ann.run(&mut server);
    }
    cy.say(&mut server, "here again");
    ann.run(&mut server);
    assert_eq!(ann.texts().last().unwrap(), "here again");
    let said: Vec<_> = ann.warnings.iter().filter(|text| text.contains("could not follow")).collect();
    assert!(said.len() == 1 && said[0].starts_with("Cy could not") && said[0].contains("that Bob made"), "{:?}", ann.warnings);
    for person in [&*ann, &*cy] {
        let room = person.room.as_ref().unwrap();
        assert_eq!((room.state, room.members.len(), room.integrity.complaints), (RoomState::Open, 3, 1));
        assert_eq!((room.integrity.injected, room.integrity.contradicts, person.alarms.len()), (0, 0, 0));
    }
    // It is counted anew from what was kept, and said once.
    let mut again = ann.put_back(8);
    again.run(&mut server);
    assert_eq!((again.room.as_ref().unwrap().integrity.complaints, again.warnings.len()), (1, 0));
}

#[test]
fn a_device_does_not_complain_about_its_own_change() {
    let (mut server, mut people, room) = three();
    let before = people[0].put_back(7);
    people[0].client.command(Command::MakeLink { room: room.to_string() }, 5);
    for person in &mut people {
        person.run(&mut server);
    }
    let [_, bob, _] = &mut people;
    let mut ann = before;
    for _ in 0..3 {
        ann.run(&mut server);
        bob.run(&mut server);
    }
    ann.say(&mut server, "put back");
    bob.run(&mut server);
    assert_eq!(bob.texts().last().unwrap(), "put back");
    for person in [&ann, &*bob] {
        assert_eq!(person.room.as_ref().unwrap().integrity.complaints, 0);
    }
}
