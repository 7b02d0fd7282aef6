//! A server, or somebody with its help, that meddles with how people are brought into rooms.

use std::collections::VecDeque;

use bytes::Bytes;
use waxwing::{
    client::{
        Choice, Client, Output, Transport,
        records::{GroupRecord, Handed, IdentityRecord, PACKAGES_KEY, RoomInvitation, encode, group_key},
        view::{Command, History, RoomState},
    },
    core::{
        frame::{ClientFrame, ServerFrame},
        handshake,
        id::{Digest, RoomId},
    },
    group::Group,
    seal::{
        hpke::XWingPublic,
        identity::{Identity, inbox_id},
        invitation::Contact,
    },
};

use super::{
    person::{Person, Rng},
    returning::bob_changes_the_link,
    server::Server,
    stage,
};

/// What precedes the rest in a published package: format, length and bytes of the inbox key.
const INBOX: core::ops::Range<usize> = 3..3 + 1216;
const DAY_MS: u64 = 24 * 3600 * 1000;
const MONTH_MS: u64 = 31 * DAY_MS;

fn online(name: &str, seed: u64, server: &mut Server) -> Person {
    let mut person = Person::new(name, seed);
    person.run(server);
    person
}

fn published(person: &Person, server: &Server) -> Bytes {
    server.packages[&person.device.unwrap()][0].1.bytes.clone()
}

fn inbox(person: &Person, server: &Server) -> XWingPublic {
    XWingPublic::from_bytes(&published(person, server)[INBOX]).unwrap()
}

fn invites(ann: &mut Person, who: &Person, server: &mut Server) -> usize {
    let room = ann.room.as_ref().unwrap().id.clone();
    ann.client.command(Command::Invite { room, who: who.card.clone() }, ann.now_ms);
    ann.run(server);
    ann.room.as_ref().unwrap().members.len()
}

#[test]
fn what_a_server_gives_instead_of_a_key_package_adds_nobody() {
    let (mut server, mut ann, ..) = stage();
    ann.run(&mut server);
    let (cy, dan) = (online("Cy", 3, &mut server), online("Dan", 4, &mut server));
    let (his, hers) = (published(&dan, &server), published(&cy, &server));
    // Its own inbox key in the package, so that it could read the invitation.
    let spliced = [&his[..INBOX.end], &hers[INBOX.end..]].concat();
    for (number, gives) in
        [None, Some(his), Some(spliced.into()), Some(hers.slice(..900)), Some(Bytes::new())].into_iter().enumerate()
    {
        server.gives = Some(gives);
        assert_eq!(invites(&mut ann, &cy, &mut server), 2);
        assert_eq!(ann.warnings.iter().filter(|text| text.contains("was not added")).count(), number + 1, "{:?}", ann.warnings);
    }
    // An old one, which its device may have forgotten.
    server.gives = Some(Some(hers));
    ann.now_ms += MONTH_MS;
    assert_eq!(invites(&mut ann, &cy, &mut server), 2);
    ann.now_ms -= MONTH_MS;
    assert_eq!(invites(&mut ann, &cy, &mut server), 3);
    assert!(ann.alarms.is_empty());
}

#[test]
fn a_welcome_is_taken_only_from_who_invited() {
    let (mut server, mut ann, _, room) = stage();
    ann.run(&mut server);
    let mut cy = online("Cy", 3, &mut server);
    let to = inbox(&cy, &server);
    assert_eq!(invites(&mut ann, &cy, &mut server), 3);
    // The server keeps Ann's invitation back, and has somebody else say that they have added her.
    let honest = server.logs.remove(&inbox_id(&to)).unwrap();
    assert_eq!(honest.len(), 1);
    let seq = server.newest_change(room);
    let mallory = Identity::generate(&mut Rng(9), 0).named("Ann");
    let record = handshake::entry(&server.logs[&room][usize::try_from(seq).unwrap() - 1]);
    let say = |record: Digest, seq: u64| {
        let invitation = RoomInvitation {
            room,
            title: "T".into(),
            direct: None,
            access: [0; 32],
            access_at: seq,
            seq,
            record,
            link: None,
            base: 0,
            changes: Vec::new(),
        };
        let content = encode(&Handed::Room(Box::new(invitation)));
        Contact::seal(&content, &to, &mallory, &mut Rng(seq)).unwrap().1
    };
    let refused = |cy: &Person| cy.room.as_ref().map(|room| room.state);
    let log: RoomId = inbox_id(&to);
    for (record, seq) in [(record, seq), (Digest([1; 32]), seq), (record, seq - 1)] {
        server.logs.entry(log).or_default().push(say(record, seq));
        cy.run(&mut server);
        cy.client.command(Command::Accept { room: room.to_string() }, cy.now_ms);
        cy.run(&mut server);
        assert_eq!(refused(&cy), Some(RoomState::Refused), "{:?}", cy.room);
        assert!(cy.texts().is_empty() && cy.alarms.is_empty());
    }
    // Her key package is as it was: what Ann has sent lets her in.
    server.logs.get_mut(&log).unwrap().extend(honest);
    cy.run(&mut server);
    cy.client.command(Command::Accept { room: room.to_string() }, cy.now_ms);
    cy.run(&mut server);
    ann.say(&mut server, "hello Cy");
    cy.run(&mut server);
    assert_eq!((refused(&cy), cy.texts()), (Some(RoomState::Open), vec!["hello Cy".to_owned()]));
}

/// The device starts again, with what it has kept.
fn again(person: &Person, seed: u64) -> Person {
    let mut client = Client::new("https://edge.example", Bytes::new(), Box::new(Rng(seed)));
    client.choose(Choice::Only(Transport::WebSocket));
    for (key, value) in &person.stored {
        client.load(key, value).unwrap();
    }
    let mut next = Person::unnamed(seed);
    (next.client, next.stored) = (client, person.stored.clone());
    next.client.start(next.now_ms);
    next
}

/// As a shell does it: all that a turn wants kept is kept, then all is sent. After so many turns nothing more is sent; whether it came
/// to the end before.
fn run_turns(person: &mut Person, server: &mut Server, turns: usize) -> bool {
    let mut inbound = VecDeque::new();
    for turn in 0.. {
        let mut sends = Vec::new();
        while let Some(output) = person.client.poll() {
            match output {
                Output::Persist { key, value: Some(value) } => drop(person.stored.insert(key, value)),
                Output::Persist { key, value: None } => drop(person.stored.remove(&key)),
                Output::Send { frame, .. } => sends.push(ClientFrame::decode(&frame).unwrap()),
                Output::Event(event) => person.see(event),
                Output::Open { .. } | Output::Close { .. } | Output::Timer { .. } => {}
            }
        }
        if turn == turns {
            return false;
        }
        for frame in sends {
            inbound.extend(server.answer_to(person.device, frame, &mut person.cursors));
        }
        for (room, cursor) in &mut person.cursors {
            let head = server.log(*room).len() as u64;
            if *cursor < head {
                inbound.push_back(ServerFrame::Deliver(server.page(*room, *cursor)));
                *cursor = head;
            }
        }
        let Some(frame) = inbound.pop_front() else { return true };
        person.client.received_frame(person.link.unwrap(), &frame.encode(), person.now_ms);
    }
    unreachable!("there are fewer turns")
}

#[test]
fn an_invitation_survives_a_crash_at_every_turn() {
    let mut crashes = 0;
    loop {
        let (mut server, mut ann, _, room) = stage();
        ann.run(&mut server);
        let mut cy = online("Cy", 3, &mut server);
        let command = Command::Invite { room: room.to_string(), who: cy.card.clone() };
        ann.client.command(command, ann.now_ms);
        let ended = run_turns(&mut ann, &mut server, crashes);
        let mut ann = again(&ann, 90);
        ann.run(&mut server);
        assert_eq!(ann.room.as_ref().unwrap().members.len(), 3, "after turn {crashes}");
        cy.run(&mut server);
        cy.client.command(Command::Accept { room: room.to_string() }, cy.now_ms);
        cy.run(&mut server);
        ann.say(&mut server, "hello Cy");
        cy.run(&mut server);
        assert_eq!(cy.texts(), ["hello Cy"], "after turn {crashes}: {:?} {:?}", cy.room, cy.warnings);
        assert!(ann.alarms.is_empty() && cy.alarms.is_empty());
        if ended {
            break;
        }
        crashes += 1;
    }
    assert!(crashes >= 4, "asking, committing, reading it, telling: {crashes}");
}

#[test]
fn coming_in_and_reading_what_was_before_survives_a_crash_at_every_turn() {
    let mut crashes = 0;
    loop {
        let (mut server, mut ann, _, room) = stage();
        let command = Command::SetHistory { room: room.to_string(), history: History::Everything };
        ann.client.command(command, ann.now_ms);
        ann.run(&mut server);
        ann.say(&mut server, "before Cy");
        ann.client.command(Command::Refresh { room: room.to_string() }, ann.now_ms);
        ann.run(&mut server);
        let mut cy = online("Cy", 3, &mut server);
        assert_eq!(invites(&mut ann, &cy, &mut server), 3);
        ann.say(&mut server, "hello Cy");
        cy.run(&mut server);
        cy.client.command(Command::Accept { room: room.to_string() }, cy.now_ms);
        let ended = run_turns(&mut cy, &mut server, crashes);
        let mut cy = again(&cy, 92);
        cy.run(&mut server);
        assert_eq!(cy.texts(), ["before Cy", "hello Cy"], "after turn {crashes}: {:?} {:?}", cy.room, cy.warnings);
        assert!(cy.alarms.is_empty() && cy.warnings.is_empty(), "{:?} {:?}", cy.alarms, cy.warnings);
        if ended {
            break;
        }
        crashes += 1;
    }
    assert!(crashes >= 4, "entering, opening the welcome, and two rungs: {crashes}");
}

/// The present epoch's secret, as the device has kept it.
fn psk(person: &Person, room: RoomId) -> [u8; 32] {
    let record: GroupRecord = postcard::from_bytes(&person.stored[&group_key(room)]).unwrap();
    Group::restore(&record.snapshot, &mut Rng(1)).unwrap().epoch().secrets().psk
}

#[test]
fn who_is_brought_in_reads_the_days_before_that_and_deletes_their_keys_in_time() {
    let (mut server, mut ann, _, room) = stage();
    ann.run(&mut server);
    let mut cy = online("Cy", 3, &mut server);
    let id = room.to_string();
    ann.client.command(Command::SetHistory { room: id.clone(), history: History::Days(3) }, ann.now_ms);
    ann.run(&mut server);
    let mut epochs = Vec::new();
    for text in ["too old", "of these days", "new"] {
        ann.say(&mut server, text);
        epochs.push(psk(&ann, room));
        ann.now_ms += 2 * DAY_MS;
        ann.client.command(Command::Refresh { room: id.clone() }, ann.now_ms);
        ann.run(&mut server);
    }
    assert_eq!(invites(&mut ann, &cy, &mut server), 3);
    // She comes a week later: what she reads ends three days before she was added, and the keys are too old by then.
    cy.now_ms = ann.now_ms + 7 * DAY_MS;
    cy.run(&mut server);
    cy.client.command(Command::Accept { room: id }, cy.now_ms);
    cy.run(&mut server);
    assert_eq!((cy.texts(), cy.alarms.len()), (vec!["of these days".to_owned(), "new".to_owned()], 0), "{:?}", cy.warnings);
    assert_ne!(psk(&cy, room), epochs[2]);
    for epoch in epochs {
        assert!(cy.stored.values().all(|kept| !kept.windows(32).any(|part| part == epoch)));
    }
}

#[test]
fn who_has_lost_the_key_package_takes_its_place_by_the_link_or_is_told() {
    let (mut server, mut ann, ..) = stage();
    ann.run(&mut server);
    for direct in [false, true] {
        let cy = online("Cy", 3 + u64::from(direct), &mut server);
        if direct {
            ann.client.command(Command::Direct { who: cy.card.clone() }, ann.now_ms);
            ann.run(&mut server);
        } else {
            assert_eq!(invites(&mut ann, &cy, &mut server), 3);
        }
        let room = ann.room.as_ref().unwrap().id.clone();
        let mut lost = Person { stored: cy.stored.clone(), ..cy };
        lost.stored.remove(PACKAGES_KEY);
        let mut cy = again(&lost, 91);
        cy.run(&mut server);
        cy.client.command(Command::Accept { room: room.clone() }, cy.now_ms);
        cy.run(&mut server);
        ann.say(&mut server, "hello Cy");
        cy.run(&mut server);
        let view = cy.room.clone().unwrap();
        assert_eq!(view.id, room);
        if direct {
            assert_eq!((view.state, cy.texts().len()), (RoomState::Refused, 0));
            assert!(view.reason.is_some_and(|why| why.contains("ask for another one")), "{:?}", cy.warnings);
        } else {
            assert_eq!((view.state, cy.texts()), (RoomState::Open, vec!["hello Cy".to_owned()]));
        }
        assert!(cy.alarms.is_empty() && ann.alarms.is_empty());
    }
}

#[test]
fn two_who_write_to_each_other_at_once_meet_in_one_room() {
    let mut server = Server::default();
    let (mut ann, mut cy) = (online("Ann", 1, &mut server), online("Cy", 2, &mut server));
    let (anns, cys) = (ann.card.clone(), cy.card.clone());
    for _ in 0..2 {
        // The first time neither knows of the other's.
        ann.client.command(Command::Direct { who: cys.clone() }, ann.now_ms);
        cy.client.command(Command::Direct { who: anns.clone() }, cy.now_ms);
        for _ in 0..2 {
            ann.run(&mut server);
            cy.run(&mut server);
        }
    }
    for (person, who) in [(&mut ann, &cys), (&mut cy, &anns)] {
        person.client.command(Command::Direct { who: who.clone() }, person.now_ms);
        person.run(&mut server);
    }
    let room = ann.room.as_ref().unwrap();
    assert_eq!((&room.id, room.members.len()), (&cy.room.as_ref().unwrap().id, 2));
    assert!(room.direct.is_some() && ann.alarms.is_empty() && cy.alarms.is_empty());
    ann.say(&mut server, "here then");
    cy.run(&mut server);
    assert_eq!(cy.texts(), ["here then"]);
}

#[test]
fn an_invitation_that_leads_nowhere_takes_nobodys_way_back() {
    for locked in [true, false] {
        let (mut server, mut ann, mut bob, room) = stage();
        let mut bob = bob_changes_the_link(&mut server, &mut ann, &mut bob, room);
        bob.run(&mut server);
        assert_eq!(bob.room.as_ref().unwrap().state, RoomState::Refused, "he has lost his place, and asks for it");
        if locked {
            server.forgotten.push(room);
        }
        // Somebody says that they have added him, and he is glad of it.
        let mallory: IdentityRecord = postcard::from_bytes(&ann.stored["identity"]).unwrap();
        let mallory = Identity::certify(mallory.secrets, mallory.not_after_ms, mallory.counter).named("Ann");
        let seq = server.logs[&room].len() as u64 + 10;
        let invitation = RoomInvitation {
            room,
            title: "T".into(),
            direct: None,
            access: [7; 32],
            access_at: seq,
            seq,
            record: Digest([1; 32]),
            link: None,
            base: 0,
            changes: Vec::new(),
        };
        let to: IdentityRecord = postcard::from_bytes(&bob.stored["identity"]).unwrap();
        let to = Identity::certify(to.secrets, to.not_after_ms, to.counter).inbox_public().clone();
        let (inbox, letter) = Contact::seal(&encode(&Handed::Room(Box::new(invitation))), &to, &mallory, &mut Rng(seq)).unwrap();
        server.logs.entry(inbox).or_default().push(letter);
        bob.run(&mut server);
        bob.client.command(Command::Accept { room: room.to_string() }, bob.now_ms);
        bob.run(&mut server);
        server.forgotten.clear();
        server.forgets_subscription = false;
        for _ in 0..4 {
            for person in [&mut ann, &mut bob] {
                person.now_ms += 60_000;
                person.client.tick(person.now_ms);
                person.run(&mut server);
            }
        }
        assert_eq!(bob.room.as_ref().unwrap().state, RoomState::Open, "locked: {locked}: {:?}", bob.room);
        bob.say(&mut server, "back again");
        ann.run(&mut server);
        assert_eq!(ann.texts().last().unwrap(), "back again");
    }
}
