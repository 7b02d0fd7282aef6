//! Members that cheat, some with the server on their side: through their own clients, whose bytes a test changes or withholds.

use bytes::Bytes;
use waxwing::{
    client::{
        records::{GroupRecord, IdentityRecord, group_key},
        view::{Check, Command, RoomState},
    },
    core::{
        envelope::Kind,
        id::{Digest, LogId, MessageId, ProducerId, RoomId},
    },
    group::{Group, Record},
    seal::{
        body::{Body, Content, Message, Seen, SharedLink},
        epoch::Epoch,
        identity::Identity,
        message,
    },
};

use super::{
    person::{Person, Rng},
    server::Server,
    stage,
};

/// What a member has that cheats: its place in the group as its device keeps it, and its keys.
struct Cheat {
    group: Group,
    identity: Identity,
    rng: Rng,
}

impl Cheat {
    /// A member's, from what its client keeps.
    fn of(person: &Person, room: RoomId) -> Self {
        let mut rng = Rng(77);
        let group: GroupRecord = postcard::from_bytes(&person.stored[&group_key(room)]).unwrap();
        let me: IdentityRecord = postcard::from_bytes(&person.stored["identity"]).unwrap();
        let group = Group::restore(&group.snapshot, &mut rng).unwrap();
        Self { group, identity: Identity::certify(me.secrets, me.not_after_ms, me.counter).named(&me.name), rng }
    }

    fn epoch(&self) -> &Epoch {
        self.group.epoch()
    }

    /// A message that follows the log of `server`, by this member, under a number, as from a leaf.
    fn says(&mut self, server: &Server, room: RoomId, said: &Message, (session, counter): (u8, u64), leaf: u32) -> Bytes {
        let head = server.log(room).len() as u64;
        let body = Body {
            session: ProducerId([session; 16]),
            counter,
            previous: Digest([0; 32]),
            seen: Seen { log: LogId([server.life + 1; 16]), seq: head, chain: server.chain(room, head) },
            content: Content::new(said),
        };
        let message = MessageId(waxwing::seal::Random::bytes(&mut self.rng));
        message::seal(self.group.epoch(), Kind::Room, leaf, message, &self.identity, &body, &mut self.rng).unwrap()
    }
}

fn text(said: &str) -> Message {
    Message::Text(said.into())
}

/// Bob is up to date, and cheats.
fn scene() -> (Server, Person, Person, RoomId, Cheat) {
    let (mut server, ann, mut bob, room) = stage();
    bob.run(&mut server);
    let cheat = Cheat::of(&bob, room);
    (server, ann, bob, room, cheat)
}

#[test]
fn a_member_that_writes_from_anothers_leaf_is_not_shown() {
    let (mut server, mut ann, _, room, mut bob) = scene();
    let leaf_of_ann = bob.group.members().iter().find(|member| member.leaf != bob.group.leaf()).unwrap().leaf;
    let forged = bob.says(&server, room, &text("I am Ann"), (1, 1), leaf_of_ann);
    assert!(message::open(bob.epoch(), &forged).is_ok(), "it opens: only the signature is not hers");
    server.logs.get_mut(&room).unwrap().push(forged);
    ann.run(&mut server);
    let view = ann.room.as_ref().unwrap();
    assert_eq!((ann.texts().len(), view.integrity.injected, view.state), (3, 1, RoomState::Open));
    // The same from its own is shown as Bob's.
    let own = bob.group.leaf();
    let honest = bob.says(&server, room, &text("I am Bob"), (1, 1), own);
    server.logs.get_mut(&room).unwrap().push(honest);
    ann.run(&mut server);
    let last = ann.messages.values().max_by_key(|message| message.seq).unwrap();
    assert_eq!((last.text.as_str(), last.author.name.as_str(), last.check), ("I am Bob", "Bob", Check::Matches));
}

#[test]
fn a_member_that_shows_anothers_certificate_as_its_own_is_not_believed() {
    let (mut server, mut ann, _, room, mut bob) = scene();
    let of_ann = Cheat::of(&ann, room).identity.certificate().clone();
    let own = bob.group.leaf();
    let forged = bob.says(&server, room, &Message::Device(Box::new(of_ann)), (1, 1), own);
    server.logs.get_mut(&room).unwrap().push(forged);
    let own_devices = |ann: &Person| postcard::from_bytes::<IdentityRecord>(&ann.stored["identity"]).unwrap().own_devices;
    assert!(own_devices(&ann).is_empty());
    ann.run(&mut server);
    assert_eq!(ann.room.as_ref().unwrap().integrity.injected, 1);
    assert!(own_devices(&ann).is_empty(), "nobody is a device of hers by that");
    ann.say(&mut server, "four");
    assert_eq!(ann.texts().last().unwrap(), "four");
}

#[test]
fn a_link_that_leads_nowhere_is_not_taken_for_one_that_does() {
    let (mut server, mut ann, _, room, mut bob) = scene();
    let link = ann.room.as_ref().unwrap().link.clone();
    let own = bob.group.leaf();
    let dead = bob.says(&server, room, &Message::Link(SharedLink { seed: [9; 32] }), (1, 1), own);
    server.logs.get_mut(&room).unwrap().push(dead);
    ann.run(&mut server);
    assert_eq!(ann.room.as_ref().unwrap().link, link, "the one that leads in is kept");
    let mut cy = Person::new("Cy", 3);
    cy.client.command(Command::Join { link }, 5);
    cy.run(&mut server);
    assert_eq!(cy.room.as_ref().unwrap().state, RoomState::Open);
}

#[test]
fn two_messages_under_one_number_contradict_once_their_readers_hear_of_each_other() {
    let (mut server, mut ann, _, room, mut bob) = scene();
    let mut cy = Person::new("Cy", 3);
    cy.client.command(Command::Join { link: ann.room.as_ref().unwrap().link.clone() }, 5);
    cy.run(&mut server);
    ann.run(&mut server);
    let joined = Record::decode(server.logs[&room].last().unwrap()).unwrap();
    bob.group.process(&joined, &mut bob.rng).unwrap();
    // The server shows each of them another message of Bob's at the same place.
    let own = bob.group.leaf();
    let [to_ann, to_cy] = ["yes", "no"].map(|said| bob.says(&server, room, &text(said), (1, 1), own));
    let mut shown_to_cy = server.logs[&room].clone();
    shown_to_cy.push(to_cy);
    server.logs.get_mut(&room).unwrap().push(to_ann);
    server.shown.insert(room, shown_to_cy.clone());
    cy.run(&mut server);
    server.shown.clear();
    ann.run(&mut server);
    assert_eq!((ann.texts().last().unwrap().as_str(), cy.texts().last().unwrap().as_str()), ("yes", "no"));
    assert!(ann.alarms.is_empty() && cy.alarms.is_empty(), "neither has heard of what the other was shown");
    ann.say(&mut server, "so it is yes");
    shown_to_cy.push(server.logs[&room].last().unwrap().clone());
    server.shown.insert(room, shown_to_cy);
    cy.run(&mut server);
    assert_eq!(cy.texts().last().unwrap(), "so it is yes");
    assert!(cy.checks(Check::Contradicts) == 1 && cy.alarms.len() == 1, "{:?}", cy.alarms);
}

#[test]
fn a_change_that_leaves_no_way_in_is_followed_by_one_that_does() {
    let (mut server, mut ann, mut bob, room) = stage();
    bob.run(&mut server);
    ann.run(&mut server);
    let mut cheat = Cheat::of(&bob, room);
    let mut record = cheat.group.commit_without_a_way_in(&cheat.identity, &mut cheat.rng).unwrap();
    record.after = server.newest_change(room);
    server.logs.get_mut(&room).unwrap().push(record.encode());
    let bad = server.newest_change(room);
    ann.run(&mut server);
    assert!(ann.warnings.iter().any(|warning| warning.contains("no way in")) && ann.alarms.is_empty(), "{:?}", ann.warnings);
    assert!(server.newest_change(room) > bad, "Ann's device has looked, and made another one");
    let mut cy = Person::new("Cy", 3);
    cy.client.command(Command::Join { link: ann.room.as_ref().unwrap().link.clone() }, 5);
    cy.run(&mut server);
    ann.run(&mut server);
    cy.run(&mut server);
    cy.say(&mut server, "here I am");
    ann.run(&mut server);
    assert_eq!(ann.texts().last().unwrap(), "here I am");
    // Nobody looks twice.
    let asked = server.changes_asked;
    ann.reconnect();
    ann.run(&mut server);
    assert_eq!(server.changes_asked, asked);
}

#[test]
fn rubbish_behind_a_change_that_leaves_no_way_in_does_not_hide_it() {
    let (mut server, ann, mut bob, room) = stage();
    bob.run(&mut server);
    // Of Ann, who is the first in the tree, and so the one who opens what rubbish has closed.
    let mut cheat = Cheat::of(&ann, room);
    let joined = Record::decode(&server.logs[&room][usize::try_from(server.newest_change(room)).unwrap() - 1]).unwrap();
    let _ = cheat.group.process(&joined, &mut cheat.rng);
    let mut record = cheat.group.commit_without_a_way_in(&cheat.identity, &mut cheat.rng).unwrap();
    record.after = server.newest_change(room);
    let log = server.logs.get_mut(&room).unwrap();
    log.push(record.encode());
    let mut rubbish = record.encode().to_vec();
    rubbish[60] ^= 1;
    log.push(rubbish.into());
    let closed = server.newest_change(room);
    bob.run(&mut server);
    assert!(bob.warnings.iter().any(|warning| warning.contains("no way in")) && bob.alarms.is_empty(), "{:?}", bob.warnings);
    assert!(server.newest_change(room) > closed, "Bob's device has looked, and made another one");
}
