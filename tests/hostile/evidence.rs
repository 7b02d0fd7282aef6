//! What a client can show others of a server that cheats.

use waxwing::{
    client::{
        evidence::{self, Compared, Evidence, EvidenceError, Finding, Said, Strength},
        view::Command,
    },
    core::id::RoomId,
    seal::body::{Content, Message},
};

use super::{person::Person, server::Server, stage};

fn export(person: &Person, room: RoomId) -> (Vec<u8>, Evidence) {
    let file = person.client.evidence(room, 77).unwrap();
    let evidence = Evidence::decode(&file).unwrap();
    (file, evidence)
}

/// The second of Ann's messages is shown to Bob as something that nobody wrote, and then she writes another one.
fn replaced() -> (Server, Person, Person, RoomId) {
    let (mut server, mut ann, mut bob, room) = stage();
    ann.say(&mut server, "four");
    let mut log = server.logs[&room].clone();
    let at = log.len() - 3;
    let mut junk = log[at].to_vec();
    *junk.last_mut().unwrap() ^= 1;
    log[at] = junk.into();
    server.shown.insert(room, log);
    bob.run(&mut server);
    server.shown.clear();
    assert!(!bob.alarms.is_empty());
    (server, ann, bob, room)
}

#[test]
fn what_contradicts_can_be_shown_to_who_has_no_key() {
    let (_, _, bob, room) = replaced();
    let (file, evidence) = export(&bob, room);
    let strengths: Vec<_> = evidence.findings.iter().map(|finding| evidence.strength(finding)).collect();
    let [Finding::Foreign { at, .. }, Finding::Gap { before: Some(before), message }, Finding::Seen(seen), Finding::Seen(_)] =
        &evidence.findings[..]
    else {
        panic!("{:?}", evidence.findings)
    };
    assert_eq!(strengths, [Strength::Told, Strength::Signed, Strength::Signed, Strength::Signed]);
    assert_eq!((before.at + 1, message.at, seen.message.seen.seq), (*at, at + 1, *at));
    assert!(evidence.findings.iter().filter_map(Finding::message).all(|quoted| evidence.is_of(quoted.message.sender)));
    for at in 0..file.len() {
        let mut changed = file.clone();
        changed[at] ^= 1;
        assert!(Evidence::decode(&changed).is_err(), "byte {at}");
        assert!(Evidence::decode(&file[..at]).is_err(), "{at} bytes");
    }
    assert_eq!(Evidence::decode(b"waxwing evidence\x02"), Err(EvidenceError::Format(2)));
}

/// What the maker of a file changes in it, and would sign.
#[test]
fn a_finding_that_was_made_up_does_not_hold() {
    let (_, _, bob, room) = replaced();
    let (_, evidence) = export(&bob, room);
    let quoted = |change: fn(&mut evidence::Quoted)| {
        let mut changed = evidence.clone();
        let Finding::Seen(quoted) = &mut changed.findings[2] else { panic!() };
        change(quoted);
        changed.strength(&changed.findings[2])
    };
    assert_eq!(quoted(|_| ()), Strength::Signed);
    assert_eq!(quoted(|quoted| quoted.message.content = Content::new(&Message::Text("I said so".into()))), Strength::Unfounded);
    assert_eq!(quoted(|quoted| quoted.message.seen.seq -= 1), Strength::Unfounded);
    assert_eq!(quoted(|quoted| quoted.message.seen.chain.0[0] ^= 1), Strength::Unfounded);
    assert_eq!(quoted(|quoted| quoted.message.counter += 1), Strength::Unfounded);
    assert_eq!(quoted(|quoted| quoted.message.sender.device.0[0] ^= 1), Strength::Unfounded);
    assert_eq!(quoted(|quoted| quoted.at += 1), Strength::Unfounded, "the chain has another record there");
    assert_eq!(quoted(|quoted| quoted.digest.0[0] ^= 1), Strength::Unfounded);
    // A chain that says what the member says contradicts nothing.
    let mut changed = evidence.clone();
    let Finding::Seen(seen) = changed.findings[2].clone() else { panic!() };
    let at = usize::try_from(seen.message.seen.seq - changed.first).unwrap();
    changed.chains[at] = seen.message.seen.chain;
    assert_eq!(changed.strength(&changed.findings[2]), Strength::Unfounded);
    // Messages that follow each other are no gap.
    let (_, ann, _, room) = replaced();
    assert!(export(&ann, room).1.findings.is_empty());
}

#[test]
fn two_devices_files_show_where_their_histories_part() {
    let (mut server, mut ann, mut bob, room) = stage();
    bob.run(&mut server);
    ann.run(&mut server);
    let (_, of_ann) = export(&ann, room);
    let (file, of_bob) = export(&bob, room);
    assert_eq!(evidence::compare(&of_ann, &of_bob), Compared::Same(of_ann.head()));
    assert_eq!(evidence::is_split(&of_ann, &of_bob), Some(false));
    for said in ["one", "two", "three"] {
        assert!(!file.windows(said.len()).any(|bytes| bytes == said.as_bytes()), "no text is in it");
    }
    let mut other = of_bob;
    other.epoch.as_mut().unwrap().1.0[0] ^= 1;
    assert_eq!(evidence::is_split(&of_ann, &other), Some(true));

    let (_, ann, bob, room) = replaced();
    let (of_ann, of_bob) = (export(&ann, room).1, export(&bob, room).1);
    let Finding::Foreign { at, .. } = of_bob.findings[0] else { panic!() };
    assert_eq!(evidence::compare(&of_ann, &of_bob), Compared::Differ { first: at, since: true });
    let mut elsewhere = of_bob.clone();
    elsewhere.log.0[0] ^= 1;
    assert_eq!(evidence::compare(&of_ann, &elsewhere), Compared::OtherLife);
    elsewhere.room.0[0] ^= 1;
    assert_eq!(evidence::compare(&of_ann, &elsewhere), Compared::OtherRoom);
    let later = Evidence { first: of_ann.head() + 1, ..of_bob };
    assert_eq!(evidence::compare(&of_ann, &later), Compared::Apart);
}

#[test]
fn what_the_server_said_is_kept_over_restarts_as_this_devices_word() {
    let (mut server, _, mut bob, room) = stage();
    bob.run(&mut server);
    let head = server.logs[&room].len() as u64;
    let mut log = server.logs[&room].clone();
    log.truncate(3);
    server.shown.insert(room, log);
    for _ in 0..3 {
        bob.reconnect();
        bob.run(&mut server);
    }
    let mut again = Person::unnamed(8);
    for (key, value) in &bob.stored {
        again.client.load(key, value).unwrap();
    }
    again.client.start(9);
    again.client.command(Command::Evidence { room: room.to_string() }, 9);
    for person in [&bob, &again] {
        let (_, evidence) = export(person, room);
        let [Finding::Server(said)] = &evidence.findings[..] else { panic!("{:?}", evidence.findings) };
        assert_eq!((said.said, said.head, evidence.head()), (Said::Head(3), head, head));
        assert_eq!(evidence.strength(&evidence.findings[0]), Strength::Told);
    }
    // A server that has as much, or more, contradicts nothing.
    let (_, mut evidence) = export(&bob, room);
    let Finding::Server(said) = &mut evidence.findings[0] else { panic!() };
    said.said = Said::Head(head);
    assert_eq!(evidence.strength(&evidence.findings[0]), Strength::Unfounded);
}
