//! People's devices and what is said when they change; words and codes that people compare; devices that are made somebody's by a code.

use std::collections::BTreeMap;

use waxwing::{
    client::view::{Command, Member, MessageKind, RoomState},
    seal::linking::CODE_LIFE_MS,
};

use super::{person::Person, server::Server, stage};

fn other(person: &Person) -> Member {
    person.room.as_ref().unwrap().members.iter().find(|member| !member.you).unwrap().clone()
}

fn lines(person: &Person, kind: MessageKind) -> Vec<&str> {
    person.messages.values().filter(|message| message.kind == kind).map(|message| message.author.name.as_str()).collect()
}

/// The same device after a restart.
fn restarted(stored: &BTreeMap<String, Vec<u8>>) -> Person {
    let mut again = Person::new_process(77);
    for (key, value) in stored {
        again.client.load(key, value).unwrap();
    }
    again.client.start(9);
    again
}

/// Another device of the person, in the room.
fn second_device(person: &mut Person, server: &mut Server, seed: u64) -> Person {
    let file = person.client.export_identity("correct horse").unwrap();
    let mut next = Person::unnamed(seed);
    next.client.import_identity(&file, "correct horse", 5).unwrap();
    next.run(server);
    assert_eq!(next.room.as_ref().unwrap().state, RoomState::Open);
    next
}

#[test]
fn another_device_of_a_known_person_is_told_once_and_loudly_if_that_person_was_verified() {
    let (mut server, mut ann, mut bob, _) = stage();
    bob.run(&mut server);
    ann.client.command(Command::Verify { user: other(&ann).user, verified: true }, 5);
    ann.run(&mut server);
    assert!(other(&ann).verified && !other(&bob).verified);
    second_device(&mut bob, &mut server, 9);
    second_device(&mut ann, &mut server, 10);
    ann.run(&mut server);
    bob.run(&mut server);
    assert_eq!((lines(&ann, MessageKind::Device).len(), lines(&bob, MessageKind::Device).len()), (2, 2), "in everybody's log");
    assert!(matches!(&ann.alarms[..], [text] if text.starts_with("Bob, whom you verified, has a device")), "{:?}", ann.alarms);
    assert!(bob.alarms.is_empty(), "who was not verified is told as a line: {:?}", bob.alarms);
    let mut again = restarted(&ann.stored);
    again.run(&mut server);
    assert!(again.alarms.is_empty() && other(&again).verified, "once: {:?}", again.alarms);
    assert_eq!(lines(&again, MessageKind::Device).len(), 2);
    again.client.command(Command::Verify { user: other(&again).user, verified: false }, 9);
    again.run(&mut server);
    assert!(!other(&again).verified && !again.stored.keys().any(|key| key.starts_with("contact/")));
}

#[test]
fn somebody_else_of_the_same_name_is_told_apart() {
    let (mut server, mut ann, mut bob, _) = stage();
    bob.run(&mut server);
    bob.client.command(Command::Verify { user: other(&bob).user, verified: true }, 5);
    let link = ann.room.as_ref().unwrap().link.clone();
    for (name, seed) in [("Cy", 3), ("ANN ", 4)] {
        let mut person = Person::new(name, seed);
        person.client.command(Command::Join { link: link.clone() }, 5);
        person.run(&mut server);
    }
    ann.run(&mut server);
    bob.run(&mut server);
    for person in [&ann, &bob] {
        assert_eq!(lines(person, MessageKind::Namesake), ["ANN"]);
        assert_eq!(lines(person, MessageKind::Join).len(), 2, "Bob and Cy");
    }
    assert!(matches!(&bob.alarms[..], [text] if text.contains("is not the ANN whom you verified")), "{:?}", bob.alarms);
    assert!(ann.alarms.is_empty(), "she has verified nobody: {:?}", ann.alarms);
}

#[test]
fn codes_match_for_two_people_and_one_room_and_nothing_else() {
    let (mut server, mut ann, mut bob, room) = stage();
    bob.run(&mut server);
    let (of_bob, of_ann) = (other(&ann), other(&bob));
    assert_eq!((&of_bob.code, &of_bob.safety), (&of_ann.code, &of_ann.safety));
    assert_eq!(of_bob.safety.len(), 6);
    let mut cy = Person::new("Cy", 3);
    cy.client.command(Command::Join { link: ann.room.as_ref().unwrap().link.clone() }, 5);
    cy.run(&mut server);
    let others: Vec<_> = cy.room.as_ref().unwrap().members.iter().filter(|member| !member.you).cloned().collect();
    assert!(others.iter().all(|member| member.code != of_bob.code && member.safety != of_bob.safety));
    ann.run(&mut server);
    let mut shows = |person: &mut Person, text: &str| {
        person.infos.clear();
        person.alarms.clear();
        person.warnings.clear();
        person.client.command(Command::Compare { text: text.into() }, 5);
        person.run(&mut server);
        (person.infos.len(), person.alarms.len(), person.warnings.len())
    };
    assert_eq!(shows(&mut ann, &of_ann.code), (1, 0, 0));
    assert!(ann.room.as_ref().unwrap().members.iter().any(|member| member.name == "Bob" && member.verified));
    // What Cy's screen shows for Bob is for Bob's eyes.
    let cy_and_bob = others.iter().find(|member| member.name == "Bob").unwrap();
    assert_eq!(shows(&mut ann, &cy_and_bob.code), (0, 1, 0));
    let code = cy.room.as_ref().unwrap().code.clone();
    assert_eq!(shows(&mut ann, &code), (1, 0, 0), "everybody sees one room alike");
    let (head, hash) = code.rsplit_once(':').unwrap();
    let changed: String = hash.chars().rev().collect();
    assert_eq!(shows(&mut ann, &format!("{head}:{changed}")).0, 0);
    let zeroes = "A".repeat(43);
    assert_eq!(shows(&mut ann, &format!("waxwing:verify:room:{room}:0:{zeroes}")), (0, 1, 0));
    assert_eq!(shows(&mut ann, &format!("waxwing:verify:room:{room}:16:{zeroes}")), (0, 0, 1), "not at the same place");
    for text in ["", "waxwing:verify:", "waxwing:verify:person:x", "waxwing:verify:room:x:1:y", "https://edge.example"] {
        assert_eq!(shows(&mut ann, text), (0, 0, 1), "{text}");
    }
    let more = format!("{code}:1");
    assert_eq!(shows(&mut ann, &more), (0, 0, 1));
}

/// A fresh device that shows a code.
fn fresh(server: &mut Server, seed: u64) -> Person {
    let mut next = Person::unnamed(seed);
    next.client.command(Command::ShowCode, 5);
    next.run(server);
    assert!(next.code.is_some() && next.identity.is_none());
    next
}

fn link(person: &mut Person, server: &mut Server, code: &str) {
    person.client.command(Command::LinkDevice { code: code.into() }, person.now_ms);
    person.run(server);
}

#[test]
fn a_fresh_device_becomes_a_persons_by_its_code_and_gets_the_rooms() {
    let (mut server, mut ann, mut bob, _) = stage();
    bob.run(&mut server);
    let mut next = fresh(&mut server, 9);
    let code = next.code.clone().unwrap();
    link(&mut ann, &mut server, &code);
    next.run(&mut server);
    assert_eq!(
        next.identity.as_ref().map(|identity| (&identity.name, &identity.user)),
        ann.identity.as_ref().map(|ann| (&ann.name, &ann.user))
    );
    assert_eq!((next.texts(), next.room.as_ref().unwrap().state), (ann.texts(), RoomState::Open));
    next.say(&mut server, "from the next device");
    ann.run(&mut server);
    bob.run(&mut server);
    assert_eq!(ann.texts().last().unwrap(), "from the next device");
    assert_eq!((lines(&bob, MessageKind::Device), bob.room.as_ref().unwrap().members.len()), (vec!["Ann"], 2));
    // Once: whoever comes later with the same code comes too late.
    link(&mut bob, &mut server, &code);
    next.run(&mut server);
    assert_eq!(next.identity.as_ref().unwrap().name, "Ann");
    let mut again = restarted(&next.stored);
    again.run(&mut server);
    assert_eq!((again.identity.as_ref().unwrap().name.as_str(), again.texts()), ("Ann", next.texts()));
    for person in [&ann, &bob, &next, &again] {
        assert!(person.alarms.is_empty() && person.room.as_ref().unwrap().integrity.injected == 0, "{:?}", person.alarms);
    }
}

#[test]
fn a_code_is_good_for_ten_minutes_and_for_a_device_that_is_nobodys() {
    let (mut server, mut ann, _, _) = stage();
    let mut next = fresh(&mut server, 9);
    let first = next.code.clone().unwrap();
    // Its time is over where it is taken.
    ann.now_ms = 5 + CODE_LIFE_MS + 1;
    link(&mut ann, &mut server, &first);
    assert!(ann.warnings.iter().any(|text| text.contains("not good any more")), "{:?}", ann.warnings);
    // And where it is shown: the answer to a former one opens nothing.
    ann.now_ms = 5;
    next.now_ms = 5 + CODE_LIFE_MS;
    next.client.tick(next.now_ms);
    next.run(&mut server);
    assert_ne!(next.code.as_ref(), Some(&first));
    link(&mut ann, &mut server, &first);
    next.run(&mut server);
    assert!(next.identity.is_none() && next.room.is_none());
    let second = next.code.clone().unwrap();
    (ann.now_ms, next.now_ms) = (700_000, 700_000);
    link(&mut ann, &mut server, &second);
    next.run(&mut server);
    assert_eq!(next.identity.as_ref().unwrap().name, "Ann");
    // Who is somebody shows none, and rubbish is no code.
    next.client.command(Command::ShowCode, 700_000);
    link(&mut ann, &mut server, "waxwing:device:AQ");
    next.run(&mut server);
    assert!(next.warnings.iter().any(|text| text.contains("identity already")), "{:?}", next.warnings);
    assert!(ann.warnings.last().unwrap().contains("not a device's code"), "{:?}", ann.warnings);
    // Whoever shows a code may become somebody by themselves all the same.
    let mut dan = fresh(&mut server, 11);
    dan.client.command(Command::Start { name: "Dan".into() }, 5);
    dan.client.command(Command::CreateRoom { title: "Dan's".into() }, 5);
    dan.run(&mut server);
    assert_eq!(dan.room.as_ref().map(|room| (room.state, room.title.as_str())), Some((RoomState::Open, "Dan's")));
    link(&mut ann, &mut server, &dan.code.clone().unwrap());
    dan.run(&mut server);
    assert_eq!(dan.identity.as_ref().unwrap().name, "Dan");
}

#[test]
fn a_list_of_devices_is_told_and_who_is_not_on_it_is_seen() {
    let (mut server, mut ann, mut bob, room) = stage();
    bob.run(&mut server);
    let mut next = fresh(&mut server, 9);
    link(&mut ann, &mut server, &next.code.clone().unwrap());
    next.run(&mut server);
    ann.run(&mut server);
    bob.run(&mut server);
    assert_eq!((other(&bob).devices, other(&bob).unlisted), (2, 0));
    for person in [&ann, &next] {
        assert_eq!(person.identity.as_ref().unwrap().devices.len(), 2);
    }
    // A third one comes in by itself, and nothing else is shown to Bob yet.
    let before = server.logs[&room].len();
    let third = second_device(&mut ann, &mut server, 10);
    let log = server.logs[&room].clone();
    server.shown.insert(room, log[..=before].to_vec());
    bob.run(&mut server);
    assert_eq!((other(&bob).devices, other(&bob).unlisted), (3, 1), "it is on no list that he knows");
    server.shown.clear();
    for person in [&mut bob, &mut ann, &mut next] {
        person.run(&mut server);
    }
    assert_eq!((other(&bob).devices, other(&bob).unlisted), (3, 0));
    assert_eq!(next.identity.as_ref().unwrap().devices.len(), 3, "the person's devices know of each other");
    // One is taken out, of the list and of the room.
    let gone = third.identity.as_ref().unwrap().device.clone();
    let mut third = third;
    ann.client.command(Command::RemoveDevice { device: gone.clone() }, 5);
    ann.run(&mut server);
    for person in [&mut third, &mut next, &mut bob, &mut ann] {
        person.run(&mut server);
    }
    assert!(third.alarms.iter().any(|text| text.contains("has removed this one")), "{:?}", third.alarms);
    assert_eq!(third.room.as_ref().unwrap().state, RoomState::Refused);
    assert_eq!((other(&bob).devices, other(&bob).unlisted), (2, 0));
    for person in [&ann, &next] {
        let devices = &person.identity.as_ref().unwrap().devices;
        assert!(devices.len() == 2 && devices.iter().all(|device| device.device != gone), "{devices:?}");
        assert!(person.alarms.is_empty() && person.room.as_ref().unwrap().integrity.injected == 0, "{:?}", person.alarms);
    }
    // It has the person's key, and the new link: it comes in, and is seen to be on no list.
    let link = ann.room.as_ref().unwrap().link.clone();
    assert!(!link.is_empty());
    third.client.command(Command::Join { link }, 5);
    third.run(&mut server);
    for person in [&mut ann, &mut next, &mut bob] {
        person.run(&mut server);
    }
    assert_eq!((other(&bob).devices, other(&bob).unlisted), (3, 1));
    ann.client.command(Command::RemoveDevice { device: ann.identity.as_ref().unwrap().device.clone() }, 5);
    ann.run(&mut server);
    assert!(ann.warnings.last().unwrap().contains("no other device"), "not itself");
    let mut again = restarted(&ann.stored);
    again.run(&mut server);
    assert_eq!(again.identity.as_ref().unwrap().devices.len(), 2);
}
