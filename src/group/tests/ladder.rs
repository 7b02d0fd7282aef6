//! The ladder of rooms whose newcomers read everything, and who may choose that.

use super::{Rng, *};

const EVERYTHING: Option<History> = Some(History::Everything);

fn choose(history: History) -> Change {
    Change { history: Some(history), ..Change::default() }
}

/// All epochs that lead down from where a group is: each one's number, and its secrets.
fn climb(group: &Group, records: &[Record]) -> Vec<(u64, EpochSecrets)> {
    let find = |digest: Digest| records.iter().find(|record| record.digest() == digest);
    let (mut epoch, mut found) = (group.epoch().clone(), Vec::new());
    let mut record = find(group.began);
    while let Some(rung) = record.and_then(|record| record.rung(&epoch)) {
        let Former { secrets, authenticator, began } = rung.former;
        epoch = Epoch::new(ROOM, epoch.number - 1, authenticator, secrets);
        found.push((epoch.number, epoch.secrets().clone()));
        record = find(began);
    }
    found
}

#[test]
fn owners_alone_say_what_newcomers_read() {
    let rng = &mut Rng(20);
    let ((alice, mut one), (bob, mut two)) = pair(Suite::X25519, rng);
    let moderator = Change { roles: vec![(bob.user(), Some(Role::Moderator))], ..Change::default() };
    commit(&mut [&mut one, &mut two], 0, moderator, &alice, rng);
    assert_eq!(two.commit(choose(History::Everything), 0, &bob, rng), Err(CommitError::Forbidden(Forbidden::History)));
    for history in [History::Everything, History::FromJoin] {
        commit(&mut [&mut one, &mut two], 0, choose(history), &alice, rng);
        assert_eq!((one.policy().history(), two.policy().history()), (history, history));
    }
}

#[test]
fn whoever_comes_in_by_a_link_goes_down_every_rung_with_nobody_there() {
    for suite in [Suite::XWing, Suite::X25519] {
        let rng = &mut Rng(21);
        let ((alice, mut one), (bob, mut two)) = pair(suite, rng);
        let mut records = vec![commit(&mut [&mut one, &mut two], 0, choose(History::Everything), &alice, rng)];
        assert!(records[0].group_info.is_none(), "the ladder ends above the commit that chose it");
        let mut known = vec![(one.epoch().number, one.epoch().secrets().clone())];
        let link = LinkKeys::new(&[1; 32]);
        let remove = Change { remove: vec![bob.device()], title: Some("Harbour".to_owned()), ..Change::default() };
        let list = Change { list: vec![link.listed(false, 0)], ..Change::default() };
        for (maker, change) in [(1, Change::default()), (0, remove), (0, list)] {
            let identity = if maker == 0 { &alice } else { &bob };
            let mut members: Vec<_> = [&mut one, &mut two].into_iter().filter(|group| group.is_member()).collect();
            records.push(commit(&mut members, maker, change, identity, rng));
            known.push((one.epoch().number, one.epoch().secrets().clone()));
        }
        // The removal's rung says who was where, and by whom.
        let rung = records[2].rung(&Epoch::new(ROOM, 4, Digest([0; 32]), known[2].1.clone())).unwrap();
        assert_eq!((rung.by, rung.title.as_str(), rung.left.len()), (alice.device(), "", 0));
        assert!(matches!(&rung.places[..], [(1, Some(place))] if place.device == bob.device() && place.user == bob.user()));
        // A joiner, and another one whom only the first one's record lets in.
        for _ in 0..2 {
            let (carol, newest) = (identity(rng), records.last().unwrap());
            let joining = GroupInfo::open(ROOM, newest, &link).unwrap().join(ROOM, Some(&link), 0, &carol, rng).unwrap();
            let record = Record::decode(&joining.record().encode()).unwrap();
            one.process(&record, rng).unwrap();
            let (joined, _) = joining.confirm(&record).unwrap();
            records.push(record);
            let found = climb(&joined, &records);
            assert!(found.iter().rev().eq(&known), "{} of {}", found.len(), known.len());
            known.push((joined.epoch().number, joined.epoch().secrets().clone()));
            assert_eq!(climb(&Group::restore(&joined.snapshot(), rng).unwrap(), &records), found);
        }
        // Bob was removed: what followed he does not go down to, whatever he finds in the log.
        assert!(records[3..].iter().all(|record| record.rung(two.epoch()).is_none()));
        // Whoever loses its place goes down too, once it has it again.
        let info = one.group_info(&alice, rng).unwrap();
        let info = GroupInfo::decode(&info.encode()).unwrap();
        let again = info.join(ROOM, None, 0, &alice, rng).unwrap();
        let record = again.record().clone();
        let (again, _) = again.confirm(&record).unwrap();
        records.push(record);
        assert!(climb(&again, &records).iter().rev().eq(&known));
    }
}

#[test]
fn whoever_is_added_goes_down_as_far_as_who_comes_by_a_link() {
    for suite in [Suite::XWing, Suite::X25519] {
        let rng = &mut Rng(24);
        let ((alice, mut one), (_, mut two)) = pair(suite, rng);
        let mut records = vec![commit(&mut [&mut one, &mut two], 0, choose(History::Everything), &alice, rng)];
        let mut known = vec![(one.epoch().number, one.epoch().secrets().clone())];
        records.push(commit(&mut [&mut one, &mut two], 0, Change::default(), &alice, rng));
        known.push((one.epoch().number, one.epoch().secrets().clone()));
        for history in [History::Everything, History::FromJoin] {
            let (carol, mut keys) = (identity(rng), KeyPackages::default());
            let package = keys.make(&carol, suite, 1_000, false, rng).unwrap();
            let record = commit(&mut [&mut one, &mut two], 0, Change { history: Some(history), ..add(package) }, &alice, rng);
            records.push(record.clone());
            // The way in is kept until the log has told of it.
            let joining = Group::welcomed(ROOM, &record, &mut keys, rng).unwrap();
            let joining = Joining::restore(&joining.snapshot(), record.clone(), joining.entrance(), rng).unwrap();
            let (joined, applied) = joining.confirm(&record).unwrap();
            let own = joined.members().into_iter().find(|member| member.device == carol.device()).unwrap();
            assert_eq!((applied.by, applied.events), (alice.device(), vec![Event::Added(own)]));
            let found = climb(&joined, &records);
            match history {
                History::FromJoin => assert_eq!(found, [], "by the commit that added her that was over"),
                _ => assert!(found.iter().rev().eq(&known), "{} of {}", found.len(), known.len()),
            }
            known.push((one.epoch().number, one.epoch().secrets().clone()));
        }
    }
}

#[test]
fn the_commit_that_ends_the_policy_ends_the_ladder() {
    let rng = &mut Rng(22);
    let ((alice, mut one), (_, mut two)) = pair(Suite::X25519, rng);
    let link = LinkKeys::new(&[1; 32]);
    let list = Change { list: vec![link.listed(false, 0)], history: EVERYTHING, ..Change::default() };
    let mut records = vec![commit(&mut [&mut one, &mut two], 0, list, &alice, rng)];
    records.push(commit(&mut [&mut one, &mut two], 0, Change::default(), &alice, rng));
    assert_eq!(climb(&one, &records).len(), 1);
    records.push(commit(&mut [&mut one, &mut two], 0, choose(History::FromJoin), &alice, rng));
    for _ in 0..2 {
        assert_eq!(climb(&one, &records), []);
        let newest = records.last().unwrap();
        assert!(GroupInfo::open(ROOM, newest, &link).unwrap().body_former().is_none(), "the link opens no epoch any more");
        records.push(commit(&mut [&mut one, &mut two], 0, Change::default(), &alice, rng));
    }
}

#[test]
fn members_skip_a_rung_that_is_not_the_former_epochs() {
    let rng = &mut Rng(23);
    let ((alice, mut one), (_, mut two)) = pair(Suite::X25519, rng);
    commit(&mut [&mut one, &mut two], 0, choose(History::Everything), &alice, rng);
    let before = two.snapshot();
    for lie in 0..5 {
        // Alice's device makes its rung of something else.
        let mut liar = Group::restore(&one.snapshot(), rng).unwrap();
        match lie {
            0 => liar.began = Digest([9; 32]),
            1 => liar.epoch = Epoch::new(ROOM, liar.epoch.number, Digest([9; 32]), liar.epoch.secrets().clone()),
            _ => {}
        }
        let record = match liar.commit(Change::default(), 0, &alice, rng) {
            // What it seals to another epoch opens nowhere.
            Ok(record) if lie == 1 => {
                assert_eq!(two.process(&record, rng), Err(Skipped::Invalid(Invalid::Envelope)));
                continue;
            }
            record => record.unwrap(),
        };
        let changed = match lie {
            2 => Record { group_info: None, ..record },
            3 => {
                let mut changed = record;
                changed.group_info.as_mut().unwrap().rung = Bytes::from_static(b"rubbish");
                changed
            }
            _ => record,
        };
        let skipped = two.process(&changed, rng);
        let expected = match lie {
            0 => Invalid::Rung,
            2 | 3 => Invalid::Spliced,
            _ => {
                assert!(skipped.is_ok(), "an honest one is taken");
                break;
            }
        };
        assert_eq!(skipped, Err(Skipped::Invalid(expected)));
        assert!(before == two.snapshot());
    }
}
