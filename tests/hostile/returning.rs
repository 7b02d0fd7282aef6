//! Devices that fell behind their group and know no link that leads in.

use waxwing::{
    client::view::{Check, Command, MessageKind, Role, RoomState},
    core::id::RoomId,
};

use super::{person::Person, server::Server, stage};

pub fn key_of(person: &Person, name: &str) -> String {
    person.room.as_ref().unwrap().members.iter().find(|member| member.name == name).unwrap().user.clone()
}

/// Bob may change links, and has changed the one of the room. Returns what his device had kept before that.
pub fn bob_changes_the_link(server: &mut Server, ann: &mut Person, bob: &mut Person, room: RoomId) -> Person {
    bob.run(server);
    let (id, user) = (room.to_string(), key_of(ann, "Bob"));
    ann.client.command(Command::SetRole { room: id.clone(), user, role: Role::Moderator }, 5);
    ann.run(server);
    bob.run(server);
    let before = bob.put_back(7);
    bob.client.command(Command::MakeLink { room: id }, 5);
    bob.run(server);
    bob.say(server, "a new link");
    ann.run(server);
    before
}

/// Bob's device is put back to before a change of its own, which it cannot follow.
fn bob_forgets_his_own_change() -> (Server, Person, Person, RoomId, Person) {
    let (mut server, mut ann, mut bob, room) = stage();
    let before = bob_changes_the_link(&mut server, &mut ann, &mut bob, room);
    (server, ann, bob, room, before)
}

fn assert_well(person: &Person, texts: &[&str]) {
    let room = person.room.as_ref().unwrap();
    assert_eq!((room.state, room.settled, room.integrity.contradicts), (RoomState::Open, true, 0), "{:?}", person.warnings);
    assert!(texts.iter().all(|text| person.texts().contains(&(*text).to_owned())), "{:?}", person.texts());
    assert!(person.alarms.is_empty(), "{:?}", person.alarms);
}

#[test]
fn who_fell_behind_without_a_link_is_told_by_a_member_what_opens_the_room() {
    let (mut server, mut ann, _, _, mut bob) = bob_forgets_his_own_change();
    bob.run(&mut server);
    assert_eq!(bob.room.as_ref().unwrap().state, RoomState::Refused, "nobody has answered yet");
    ann.say(&mut server, "while Bob is out");
    ann.run(&mut server);
    bob.run(&mut server);
    ann.run(&mut server);
    bob.say(&mut server, "back again");
    ann.say(&mut server, "welcome back");
    bob.run(&mut server);
    assert_well(&bob, &["one", "two", "three", "a new link", "while Bob is out", "back again", "welcome back"]);
    assert_well(&ann, &["back again"]);
    assert_eq!(bob.texts(), ann.texts(), "in place");
    let room = bob.room.as_ref().unwrap();
    let before = "1 entry from before this device came in: newcomers read from their join here";
    assert_eq!((room.closed.as_deref(), bob.checks(Check::Matches)), (Some(before), bob.messages.len()));
    let told: Vec<_> = bob.messages.clone().into_iter().collect();
    // And so it is when it is read from storage.
    let mut again = bob.put_back(9);
    again.run(&mut server);
    assert_eq!(again.messages.into_iter().collect::<Vec<_>>(), told);
    assert_eq!(bob.room.as_ref().unwrap().link, ann.room.as_ref().unwrap().link);
    assert_eq!(ann.room.as_ref().unwrap().members.len(), 2);
}

#[test]
fn where_no_link_leads_in_a_member_hands_over_the_group_itself() {
    let (mut server, mut ann, mut bob_of_then, _, mut bob) = bob_forgets_his_own_change();
    // A week later the link has ended.
    ann.now_ms += 8 * 24 * 3600 * 1000;
    ann.reconnect();
    ann.run(&mut server);
    bob_of_then.run(&mut server);
    assert!(ann.room.as_ref().unwrap().link.is_empty() && bob_of_then.room.as_ref().unwrap().link.is_empty());
    bob.run(&mut server);
    ann.run(&mut server);
    bob.run(&mut server);
    bob.say(&mut server, "back again");
    ann.run(&mut server);
    assert_well(&bob, &["one", "back again"]);
    assert_well(&ann, &["back again"]);
}

#[test]
fn who_was_removed_is_told_nothing() {
    let (mut server, mut ann, _, room, mut bob) = bob_forgets_his_own_change();
    let user = key_of(&ann, "Bob");
    ann.client.command(Command::Remove { room: room.to_string(), user }, 5);
    ann.run(&mut server);
    for ms in [5, 40_000, 400_000, 4_000_000] {
        (ann.now_ms, bob.now_ms) = (ms, ms);
        bob.client.tick(ms);
        bob.run(&mut server);
        ann.run(&mut server);
    }
    ann.say(&mut server, "without Bob");
    bob.run(&mut server);
    assert_eq!((bob.room.as_ref().unwrap().state, ann.room.as_ref().unwrap().members.len()), (RoomState::Refused, 1));
    assert!(!bob.texts().contains(&"without Bob".into()) && ann.alarms.is_empty() && ann.warnings.is_empty());
    // He did ask: to his inbox nobody has posted anything.
    let asked = server.logs.iter().filter(|(id, log)| **id != room && !log.is_empty()).count();
    assert_eq!(asked, 1, "Ann's inbox");
}

#[test]
fn what_a_device_wanted_before_it_fell_behind_comes_true_when_it_is_back() {
    let (mut server, mut ann, mut bob_of_then, room) = stage();
    let mut cy = Person::new("Cy", 3);
    cy.client.command(Command::Join { link: ann.room.as_ref().unwrap().link.clone() }, 5);
    cy.run(&mut server);
    ann.run(&mut server);
    let mut bob = bob_changes_the_link(&mut server, &mut ann, &mut bob_of_then, room);
    bob.client.command(Command::Remove { room: room.to_string(), user: key_of(&ann, "Cy") }, 5);
    for _ in 0..4 {
        for person in [&mut bob, &mut ann, &mut cy] {
            person.run(&mut server);
        }
    }
    assert_well(&bob, &[]);
    assert_eq!(ann.messages.values().filter(|message| message.kind == MessageKind::Removed).count(), 1);
    assert_eq!((ann.room.as_ref().unwrap().members.len(), bob.room.as_ref().unwrap().members.len()), (2, 2));
    assert_eq!(cy.room.as_ref().unwrap().state, RoomState::Refused);
}

#[test]
fn what_a_device_said_before_it_was_put_back_is_shown_although_it_cannot_be_opened_any_more() {
    let (mut server, mut ann, mut bob_of_then, room) = stage();
    bob_of_then.run(&mut server);
    let user = key_of(&ann, "Bob");
    ann.client.command(Command::SetRole { room: room.to_string(), user, role: Role::Moderator }, 5);
    ann.run(&mut server);
    bob_of_then.run(&mut server);
    // It waits for a connection; of then is the copy. With the connection the link is changed first, and it is said in the epoch after that.
    let link = bob_of_then.link.take().unwrap();
    bob_of_then.client.lost(link, "cut", 2);
    bob_of_then.cursors.clear();
    bob_of_then.client.command(Command::Send { room: room.to_string(), text: "said once".into() }, 5);
    while let Some(output) = bob_of_then.client.poll() {
        bob_of_then.keep(output);
    }
    let mut bob = bob_of_then.put_back(7);
    bob_of_then.client.command(Command::MakeLink { room: room.to_string() }, 5);
    bob_of_then.client.wake(3);
    bob_of_then.run(&mut server);
    ann.run(&mut server);
    assert_eq!(ann.texts().last().unwrap(), "said once");
    for _ in 0..3 {
        bob.run(&mut server);
        ann.run(&mut server);
    }
    assert_well(&bob, &["said once"]);
    let mut again = bob.put_back(8);
    again.run(&mut server);
    assert_well(&again, &["said once"]);
    ann.run(&mut server);
    assert_eq!(ann.texts().iter().filter(|text| *text == "said once").count(), 1);
}

#[test]
fn letters_that_are_told_again_or_made_up_change_nothing() {
    let (mut server, mut ann, _, room, mut bob) = bob_forgets_his_own_change();
    for _ in 0..2 {
        bob.run(&mut server);
        ann.run(&mut server);
    }
    let inboxes: Vec<_> = server.logs.iter().filter(|(id, log)| **id != room && !log.is_empty()).map(|(id, _)| *id).collect();
    assert_eq!(inboxes.len(), 2, "an ask to Ann's, an answer to Bob's");
    bob.run(&mut server);
    bob.say(&mut server, "back again");
    ann.run(&mut server);
    let (changes, link) = (server.newest_change(room), ann.room.as_ref().unwrap().link.clone());
    for id in inboxes {
        let log = server.logs.get_mut(&id).unwrap();
        let letter = log[0].to_vec();
        // The same again; with another epoch in its header; cut short; and each byte of its ciphertext changed in turn.
        let mut made_up = vec![letter.clone(), letter[..1168 + 16].to_vec()];
        made_up.extend([20, 32, 48, 1168, letter.len() - 1].map(|at| {
            let mut changed = letter.clone();
            changed[at] ^= 1;
            changed
        }));
        log.extend(made_up.into_iter().map(Into::into));
    }
    for _ in 0..3 {
        for person in [&mut ann, &mut bob] {
            // Beyond the time in which one device is answered once.
            person.now_ms += 60_000;
            person.run(&mut server);
        }
    }
    assert_eq!((server.newest_change(room), &bob.room.as_ref().unwrap().link), (changes, &link));
    assert_well(&ann, &["back again"]);
    assert_well(&bob, &["back again"]);
}

#[test]
fn who_knows_only_keys_that_the_server_forgot_is_told_the_one_in_force_and_keeps_its_place() {
    let (mut server, mut ann, mut bob, room) = stage();
    bob.run(&mut server);
    bob.reconnect();
    server.forgotten.push(room);
    bob.run(&mut server);
    assert_eq!(bob.room.as_ref().unwrap().state, RoomState::Refused);
    // Nothing of what is said meanwhile is lost to him.
    ann.say(&mut server, "meanwhile");
    bob.run(&mut server);
    bob.say(&mut server, "here again");
    ann.run(&mut server);
    assert_well(&bob, &["one", "two", "three", "meanwhile", "here again"]);
    assert_well(&ann, &["here again"]);
    assert!(bob.warnings.is_empty() && bob.room.as_ref().unwrap().integrity.complaints == 0, "{:?}", bob.warnings);
}
