//! Devices that missed something, and members that give them less, more or something else than they should.

use bytes::Bytes;
use waxwing::{
    client::{
        records::{GroupRecord, IdentityRecord, group_key},
        view::{Check, Command, RoomState},
    },
    core::id::RoomId,
    group::Group,
    seal::{
        epoch::{EpochSecrets, access_key},
        hpke::XWingPrivate,
        identity::Identity,
        link::Link,
        returning::{Answer, Ask, EpochKeys, Given, Wants, Way},
    },
};

use super::{
    person::{Person, Rng},
    returning::{bob_changes_the_link, key_of},
    server::Server,
    stage,
};

/// What a device has: its place in the group as it keeps it, and its keys.
struct Device {
    group: Group,
    identity: Identity,
    rng: Rng,
}

impl Device {
    fn of(person: &Person, room: RoomId) -> Self {
        let mut rng = Rng(78);
        let group: GroupRecord = postcard::from_bytes(&person.stored[&group_key(room)]).unwrap();
        let me: IdentityRecord = postcard::from_bytes(&person.stored["identity"]).unwrap();
        let group = Group::restore(&group.snapshot, &mut rng).unwrap();
        Self { group, identity: Identity::certify(me.secrets, me.not_after_ms, me.counter).named(&me.name), rng }
    }

    fn inbox_of(&self, person: &Person) -> RoomId {
        self.group.inboxes().into_iter().find(|(device, _)| Some(*device) == person.device).unwrap().1
    }

    /// Asks `person` for the keys of epochs, in the one that this device is in. Returns of which it was told, if it was answered.
    fn asks(&mut self, server: &mut Server, person: &mut Person, after: u64) -> Option<Vec<u64>> {
        let epoch = self.group.epoch();
        let (_, to) = XWingPrivate::from_seed(&epoch.secrets().xwing);
        let ask = Ask::new(epoch.room, waxwing::seal::Random::bytes(&mut self.rng), Wants::Keys { after }, &self.identity);
        let (at, inbox) = ((epoch.number, epoch.authenticator), self.inbox_of(person));
        let letter = ask.seal(&to, at, inbox, &self.identity, &mut self.rng).unwrap();
        server.logs.entry(inbox).or_default().push(letter);
        let own = self.identity.inbox_id();
        let before = server.log(own).len();
        person.now_ms += 60_000;
        person.run(server);
        let letter = server.log(own).get(before).cloned()?;
        let answer = Answer::open(self.identity.inbox(), self.identity.inbox_public(), &ask.name, &letter).unwrap();
        let Given::Keys(keys) = answer.given else { panic!("{answer:?}") };
        Some(keys.into_iter().map(|keys| keys.epoch).collect())
    }
}

/// Ann takes Bob out, says something, and Bob comes in again by a new link.
fn out_and_in_again(server: &mut Server, ann: &mut Person, bob: &mut Person, room: RoomId) {
    ann.client.command(Command::Remove { room: room.to_string(), user: key_of(ann, "Bob") }, ann.now_ms);
    ann.run(server);
    ann.say(server, "without Bob");
    ann.client.command(Command::MakeLink { room: room.to_string() }, ann.now_ms);
    ann.run(server);
    bob.run(server);
    assert_eq!(bob.room.as_ref().unwrap().reason.as_deref(), Some("this device was removed from the room"));
    bob.client.command(Command::Join { link: ann.room.as_ref().unwrap().link.clone() }, bob.now_ms);
    bob.run(server);
    ann.run(server);
    ann.say(server, "with Bob again");
    bob.run(server);
    assert_eq!(bob.texts().last().unwrap(), "with Bob again");
}

#[test]
fn who_was_removed_and_let_in_again_is_told_nothing_of_the_time_out() {
    let (mut server, mut ann, mut bob, room) = stage();
    let mut before = bob_changes_the_link(&mut server, &mut ann, &mut bob, room);
    let was_in = Device::of(&bob, room).group.epoch().number;
    out_and_in_again(&mut server, &mut ann, &mut bob, room);
    // Whatever Bob's device asks for, it gets what it had: the epoch before it was taken out, and none between.
    let mut device = Device::of(&bob, room);
    let now = device.group.epoch().number;
    assert!(now > was_in + 2, "{was_in} {now}");
    let given: Vec<_> = (was_in - 1..=now).map(|after| device.asks(&mut server, &mut ann, after).unwrap()).collect();
    assert_eq!(given.concat(), [was_in], "of epochs up to {now}; out from {}", was_in + 1);
    // A copy of before reads up to there, and from where it was let in again, and says of the rest that it was out.
    for _ in 0..4 {
        for person in [&mut before, &mut ann] {
            person.now_ms += 60_000;
            person.client.tick(person.now_ms);
            person.run(&mut server);
        }
    }
    let known = before.room.as_ref().unwrap();
    assert_eq!((known.state, known.integrity.contradicts), (RoomState::Open, 0), "{:?}", before.warnings);
    assert_eq!(before.texts(), ["one", "two", "three", "a new link", "with Bob again"]);
    assert_eq!(known.integrity.injected, 0);
    assert!(known.closed.as_ref().unwrap().ends_with("from while this device was out of the room, or could not follow it"));
}

#[test]
fn who_is_not_back_in_the_group_is_told_no_keys() {
    let (mut server, mut ann, mut bob, room) = stage();
    let before = bob_changes_the_link(&mut server, &mut ann, &mut bob, room);
    // A thief, with all that Bob's device had before it got new keys, asks as it, in the epoch that it knows.
    let mut thief = Device::of(&before, room);
    let known = thief.group.epoch().number;
    assert!(
        (known - 1..=known + 1).all(|after| thief.asks(&mut server, &mut ann, after).is_none_or(|told| told.is_empty())),
        "what follows {known} is not the thief's"
    );
    let mut device = Device::of(&bob, room);
    ann.client.command(Command::Refresh { room: room.to_string() }, ann.now_ms);
    ann.run(&mut server);
    bob.run(&mut server);
    assert_eq!(device.asks(&mut server, &mut ann, known), Some(vec![]), "nor is what follows it asked for in the next one");
    let mut device = Device::of(&bob, room);
    assert_eq!(device.asks(&mut server, &mut ann, known), Some(vec![known + 1]), "who is in is told");
}

/// Bob's device asks Ann's and Cy's for what it missed, and Cy's gives wrong keys, before or after Ann's has answered as well.
fn cy_gives_wrong_keys(ann_answers: bool) {
    let (mut server, mut ann, mut bob_of_then, room) = stage();
    let mut cy = Person::new("Cy", 3);
    cy.client.command(Command::Join { link: ann.room.as_ref().unwrap().link.clone() }, 5);
    cy.run(&mut server);
    ann.run(&mut server);
    let mut bob = bob_changes_the_link(&mut server, &mut ann, &mut bob_of_then, room);
    cy.run(&mut server);
    ann.say(&mut server, "meanwhile");
    // Bob's device is told of its place; then it asks for what it missed.
    let mut device = Device::of(&cy, room);
    let (bobs, cys) = (device.inbox_of(&bob_of_then), device.inbox_of(&cy));
    bob.run(&mut server);
    ann.run(&mut server);
    let asked = server.log(cys).len();
    bob.run(&mut server);
    assert!(bob.room.as_ref().unwrap().closed.as_ref().unwrap().ends_with("and none has answered yet"), "{:?}", bob.room);
    cy.run(&mut server);
    device = Device::of(&cy, room);
    let letter: Bytes = server.log(cys)[asked].clone();
    let ask = Ask::open(device.group.epoch(), cys, &letter).unwrap();
    let Wants::Keys { after } = ask.wants else { panic!("{ask:?}") };
    // Cy's own answer is already there, and taken away.
    server.logs.get_mut(&bobs).unwrap().pop();
    let others = server.log(bobs).len();
    let newest = (1..).zip(server.log(room)).filter(|(seq, _)| *seq < server.newest_change(room)).map(|(_, record)| record);
    let change = newest.filter(|record| record[1] == 4).last().unwrap();
    let record = waxwing::core::handshake::entry(&change);
    let keys = EpochKeys { epoch: after + 1, record, authenticator: record, secrets: EpochSecrets::random(&mut device.rng) };
    let answer = Answer::seal(&ask, Given::Keys(vec![keys]), &device.identity, &mut device.rng).unwrap();
    server.logs.get_mut(&bobs).unwrap().push(answer.1);
    if ann_answers {
        ann.now_ms += 60_000;
        ann.run(&mut server);
        assert_eq!(server.log(bobs).len(), others + 2, "both answers are there when Bob's device reads the first");
    }
    bob.run(&mut server);
    assert_eq!((bob.alarms.len(), bob.texts().contains(&"meanwhile".into())), (0, ann_answers));
    if !ann_answers {
        // It asks the others at once.
        ann.now_ms += 60_000;
        ann.run(&mut server);
        bob.run(&mut server);
    }
    assert_eq!(bob.texts(), ann.texts());
    assert_eq!((bob.alarms.len(), bob.checks(Check::Matches)), (0, bob.messages.len()), "{:?}", bob.messages);
}

#[test]
fn a_member_that_gives_wrong_keys_is_passed_over() {
    cy_gives_wrong_keys(false);
}

#[test]
fn what_others_answer_while_wrong_keys_are_tried_is_not_lost() {
    cy_gives_wrong_keys(true);
}

/// The device has new keys.
fn refresh(server: &mut Server, person: &mut Person, room: RoomId) {
    person.client.command(Command::Refresh { room: room.to_string() }, person.now_ms);
    person.run(server);
}

/// Ann's and Bob's devices are put back, Bob's to before his own change, and Ann's to before hers that followed. Ann is back first, and says something; then Bob
/// is. So of three epochs that he missed, Ann has the first and the third, and neither of them the second.
fn both_are_put_back(
    server: &mut Server,
    (mut ann, mut bob): (Person, Person),
    cy: Option<&mut Person>,
    rubbish: bool,
    room: RoomId,
) -> [Person; 2] {
    bob.run(server);
    let mut bob_again = bob.put_back(7);
    refresh(server, &mut bob, room);
    bob.say(server, "first");
    if rubbish {
        // The change again: every member skips it.
        let log = server.logs.get_mut(&room).unwrap();
        let change = log.iter().rfind(|record| record[1] == 4).unwrap().clone();
        log.push(change);
    }
    ann.run(server);
    let mut ann_again = ann.put_back(8);
    refresh(server, &mut ann, room);
    bob.run(server);
    bob.say(server, "second");
    cy.into_iter().for_each(|person| person.run(server));
    ann_again.run(server);
    ann_again.say(server, "third");
    bob_again.run(server);
    [ann_again, bob_again]
}

/// Whoever asked asks again, and is answered.
fn a_while_goes_by(server: &mut Server, people: &mut [&mut Person]) {
    for _ in 0..4 {
        for person in &mut *people {
            person.now_ms += 120_000;
            person.client.tick(person.now_ms);
            person.run(server);
        }
    }
}

/// What was said before, and what one of them has.
const SHOWN: [&str; 5] = ["one", "two", "three", "first", "third"];
const NOBODY: &str = "nobody who is in the room now has what opens it; they will be asked again";

#[test]
fn what_somebody_has_is_shown_and_of_what_nobody_has_the_room_says_so() {
    let (mut server, ann, bob, room) = stage();
    let [mut ann, mut bob] = both_are_put_back(&mut server, (ann, bob), None, false, room);
    ann.run(&mut server);
    bob.run(&mut server);
    assert_eq!(bob.texts(), SHOWN, "at once");
    a_while_goes_by(&mut server, &mut [&mut ann, &mut bob]);
    for person in [&ann, &bob] {
        let closed = person.room.as_ref().unwrap().closed.clone().unwrap();
        assert_eq!(person.texts(), SHOWN, "{closed}");
        assert!(closed.contains("1 message from while this device") && closed.ends_with(NOBODY), "{closed}");
        assert_eq!((person.alarms.len(), person.room.as_ref().unwrap().integrity.injected), (0, 0), "{:?}", person.alarms);
    }
    // And so it is when it is read from storage.
    let told: Vec<_> = bob.messages.clone().into_iter().collect();
    let mut again = bob.put_back(9);
    again.run(&mut server);
    assert_eq!(again.messages.into_iter().collect::<Vec<_>>(), told);
    ann.say(&mut server, "fourth");
    bob.run(&mut server);
    assert_eq!(bob.texts().last().unwrap(), "fourth");
}

/// With Cy, who was there all the time and is not now: what Ann and Bob read without Cy, and what when Cy is there.
fn with_cy_in_the_end(rubbish: bool) -> ([Person; 2], Vec<String>) {
    let (mut server, mut ann, bob, room) = stage();
    let mut cy = Person::new("Cy", 3);
    cy.client.command(Command::Join { link: ann.room.as_ref().unwrap().link.clone() }, 5);
    cy.run(&mut server);
    ann.run(&mut server);
    let [mut ann, mut bob] = both_are_put_back(&mut server, (ann, bob), Some(&mut cy), rubbish, room);
    ann.run(&mut server);
    bob.run(&mut server);
    let before = bob.texts();
    a_while_goes_by(&mut server, &mut [&mut cy, &mut ann, &mut bob]);
    for person in [&ann, &bob] {
        assert_eq!(person.texts(), ["one", "two", "three", "first", "second", "third"]);
        assert_eq!((person.alarms.len(), person.checks(Check::Matches)), (0, person.messages.len()), "{:?}", person.messages);
        assert!(!person.room.as_ref().unwrap().closed.iter().any(|closed| closed.contains("could not follow")));
    }
    ([ann, bob], before)
}

#[test]
fn what_nobody_has_is_shown_in_place_once_somebody_comes_who_has_it() {
    let (_, before) = with_cy_in_the_end(false);
    assert_eq!(before, SHOWN);
}

#[test]
fn what_lies_around_rubbish_is_shown_whole_or_not_at_all() {
    let (people, before) = with_cy_in_the_end(true);
    assert_eq!(before, SHOWN[..3]);
    let injected = people.map(|person| person.room.unwrap().integrity.injected);
    assert_eq!(injected, [1, 1], "and the rubbish is told as such");
}

#[test]
fn keys_that_open_nothing_behind_what_nobody_has_show_nothing() {
    let (mut server, ann, bob, room) = stage();
    let [mut ann, mut bob] = both_are_put_back(&mut server, (ann, bob), None, false, room);
    let (anns, bobs) = (Device::of(&bob, room).inbox_of(&ann), Device::of(&ann, room).inbox_of(&bob));
    let ask = server.log(anns).last().unwrap().clone();
    ann.run(&mut server);
    // Ann's own answer is taken away.
    server.logs.get_mut(&bobs).unwrap().pop();
    let mut device = Device::of(&ann, room);
    let ask = Ask::open(device.group.epoch(), anns, &ask).unwrap();
    let Wants::Keys { after } = ask.wants else { panic!("{ask:?}") };
    let changes: Vec<_> = server.log(room).into_iter().filter(|record| record[1] == 4).collect();
    // The last one is Bob's return, and the one before it Ann's.
    let record = waxwing::core::handshake::entry(&changes[changes.len() - 2]);
    let keys = EpochKeys { epoch: after + 3, record, authenticator: record, secrets: EpochSecrets::random(&mut device.rng) };
    let answer = Answer::seal(&ask, Given::Keys(vec![keys]), &device.identity, &mut device.rng).unwrap();
    server.logs.get_mut(&bobs).unwrap().push(answer.1);
    bob.run(&mut server);
    let known = bob.room.as_ref().unwrap();
    assert_eq!(
        (bob.texts(), bob.alarms.len(), known.integrity.injected),
        (SHOWN[..3].iter().map(|text| (*text).to_owned()).collect(), 0, 0)
    );
    assert!(known.closed.as_ref().unwrap().ends_with(NOBODY), "{known:?}");
    a_while_goes_by(&mut server, &mut [&mut ann, &mut bob]);
    assert_eq!(bob.texts(), SHOWN, "and it asks again");
}

#[test]
fn whoever_says_first_that_another_key_opens_the_room_shuts_nobody_out() {
    let (mut server, mut ann, mut bob, room) = stage();
    let mut cy = Person::new("Cy", 3);
    cy.client.command(Command::Join { link: ann.room.as_ref().unwrap().link.clone() }, 5);
    cy.run(&mut server);
    ann.run(&mut server);
    bob.run(&mut server);
    let Link { access, .. } = ann.room.as_ref().unwrap().link.parse().unwrap();
    server.opens.insert(room, access_key(&access));
    // The server has forgotten what Bob's device knows: it asks Ann's and Cy's.
    bob.reconnect();
    server.forgotten.push(room);
    bob.run(&mut server);
    assert_eq!(bob.room.as_ref().unwrap().state, RoomState::Refused);
    let mut device = Device::of(&cy, room);
    let (bobs, cys) = (device.inbox_of(&bob), device.inbox_of(&cy));
    let ask = Ask::open(device.group.epoch(), cys, server.log(cys).last().unwrap()).unwrap();
    let way = Way::Link { seed: [9; 32], host: device.identity.user() };
    let answer = Answer::seal(&ask, Given::Place { access: [9; 32], way }, &device.identity, &mut device.rng).unwrap();
    server.logs.entry(bobs).or_default().push(answer.1);
    ann.run(&mut server);
    assert_eq!(server.log(bobs).len(), 2, "both have answered");
    bob.run(&mut server);
    bob.say(&mut server, "here again");
    ann.run(&mut server);
    assert_eq!((bob.room.as_ref().unwrap().state, ann.texts().last().unwrap().as_str()), (RoomState::Open, "here again"));
    assert!(bob.warnings.is_empty() && bob.alarms.is_empty(), "{:?} {:?}", bob.warnings, bob.alarms);
}
