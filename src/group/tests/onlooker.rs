//! Following a group without a leaf's keys, by what a member tells of each epoch.

use super::{hostile::Three, *};

type Told = (Digest, EpochSecrets);

fn told(group: &Group) -> Option<Told> {
    Some((group.epoch().authenticator, group.epoch().secrets().clone()))
}

fn remove(whom: &Identity) -> Change {
    Change { remove: vec![whom.device()], ..Change::default() }
}

/// Everybody's changes of a group, with what a member that was there tells of each: joins by link, by key package and by oneself again, titles, who leaves, who is
/// removed.
fn long_story(suite: Suite, history: History) -> (Onlooker, Group, Vec<(Record, Applied, Told)>) {
    let rng = &mut Rng(40);
    let ((alice, mut one), (bob, mut two)) = pair(suite, rng);
    let choose = Change { history: Some(history), title: Some("before".into()), ..Change::default() };
    commit(&mut [&mut one, &mut two], 0, choose, &alice, rng);
    let onlooker = two.onlooker().unwrap();
    let mut story = Vec::new();
    let take = |one: &mut Group, record: &Record, rng: &mut Rng| {
        let applied = one.process(record, rng).unwrap();
        (record.clone(), Applied { rebase: None, ..applied }, told(one).unwrap())
    };
    let link = LinkKeys::new(&[1; 32]);
    let change = Change { list: vec![link.listed(false, 9)], title: Some("after".into()), ..Change::default() };
    let listed = one.commit(change, 0, &alice, rng).unwrap();
    story.push(take(&mut one, &listed, rng));
    two.process(&listed, rng).unwrap();
    let carol = identity(rng);
    let joining = GroupInfo::open(ROOM, &listed, &link).unwrap().join(ROOM, Some(&link), 0, &carol, rng).unwrap();
    let record = joining.record().clone();
    let (mut three, _) = joining.confirm(&record).unwrap();
    story.push(take(&mut one, &record, rng));
    two.process(&record, rng).unwrap();
    let mut keys = KeyPackages::default();
    let dan = identity(rng);
    let package = keys.make(&dan, suite, 1_000, false, rng).unwrap();
    let record = two.commit(add(package), 0, &bob, rng).unwrap();
    story.push(take(&mut one, &record, rng));
    two.process(&record, rng).unwrap();
    three.process(&record, rng).unwrap();
    let leave = three.leave(&carol, rng).unwrap();
    let record = one.commit(Change { leaves: vec![leave], ..Change::default() }, 0, &alice, rng).unwrap();
    story.push(take(&mut one, &record, rng));
    two.process(&record, rng).unwrap();
    let record = one.commit(remove(&dan), 0, &alice, rng).unwrap();
    story.push(take(&mut one, &record, rng));
    two.process(&record, rng).unwrap();
    // Bob's device was put back, and takes its place again.
    let info = one.group_info(&alice, rng).unwrap();
    let joining = info.join(ROOM, None, 0, &bob, rng).unwrap();
    let record = joining.record().clone();
    story.push(take(&mut one, &record, rng));
    let (again, _) = joining.confirm(&record).unwrap();
    assert_together(&[&one, &again], &alice, rng);
    (onlooker, again, story)
}

#[test]
fn an_onlooker_finds_what_members_found_and_meets_the_group_that_it_comes_to() {
    for (suite, history) in [(Suite::XWing, History::FromJoin), (Suite::X25519, History::Everything)] {
        let rng = &mut Rng(41);
        let (mut onlooker, again, story) = long_story(suite, history);
        let last = story.len() - 1;
        for (at, (record, applied, told)) in story.iter().enumerate() {
            let record = Record::decode(&record.encode()).unwrap();
            onlooker = Onlooker::restore(&onlooker.snapshot()).unwrap();
            let followed = onlooker.follow(&record, Some(told.clone()).filter(|_| at < last), rng).unwrap();
            assert_eq!(followed, *applied);
        }
        assert_eq!(onlooker.context(), again.context());
        assert_eq!((onlooker.roster(), onlooker.policy()), (again.roster(), again.policy()));
    }
}

#[test]
fn an_onlooker_that_is_told_wrong_secrets_or_another_record_stays_where_it_is() {
    let rng = &mut Rng(42);
    let (mut onlooker, _, story) = long_story(Suite::X25519, History::FromJoin);
    let begun = |at: usize| Some(story[at].2.clone());
    let before = onlooker.snapshot();
    // A record of later, and one that is put together from two.
    assert_eq!(onlooker.follow(&story[1].0, begun(1), rng), Err(Skipped::Ahead { epoch: story[1].0.epoch }));
    let spliced = Record { group_info: story[1].0.group_info.clone(), ..story[0].0.clone() };
    assert_eq!(onlooker.follow(&spliced, begun(0), rng), Err(Skipped::Invalid(Invalid::Spliced)));
    assert!(onlooker.snapshot() == before);
    for (at, (record, ..)) in story.iter().enumerate().take(4) {
        onlooker.follow(record, begun(at), rng).unwrap();
    }
    // With the fourth somebody left, so that its access key tells of its secrets; with what it was said to be, the next one opens, or not.
    let there = onlooker.snapshot();
    let mut wrong = Onlooker::restore(&there).unwrap();
    wrong.epoch = Epoch::new(ROOM, wrong.epoch.number, wrong.epoch.authenticator, story[0].2.1.clone());
    assert_eq!(wrong.follow(&story[4].0, begun(4), rng), Err(Skipped::Invalid(Invalid::Envelope)));
    assert_eq!(onlooker.follow(&story[4].0, begun(3), rng), Err(Skipped::Invalid(Invalid::Access)));
    assert!(onlooker.snapshot() == there);
    onlooker.follow(&story[4].0, begun(4), rng).unwrap();
    assert_eq!(onlooker.follow(&story[4].0, begun(4), rng), Err(Skipped::Past));
}

#[test]
fn an_onlooker_takes_nothing_that_breaks_a_rule_or_is_signed_by_another() {
    let mut world = Three::new(43);
    let mut onlooker = world.groups[2].onlooker().unwrap();
    let (forbidden, forged) = world.forge_for_onlookers();
    let record = world.change(0, Change::default());
    let begun = told(&world.groups[1]);
    for (record, why) in forbidden {
        assert_eq!(onlooker.follow(&record, begun.clone(), &mut world.rng), Err(Skipped::Invalid(why)));
    }
    // Who has the epoch's secrets, and is no member, seals a commit that is another's.
    assert_eq!(onlooker.follow(&forged, begun.clone(), &mut world.rng), Err(Skipped::Invalid(Invalid::Envelope)));
    // The good one takes that epoch, here as for members.
    onlooker.follow(&record, begun, &mut world.rng).unwrap();
    assert_eq!(onlooker.context(), world.groups[1].context());
}

#[test]
fn what_members_skipped_for_what_an_onlooker_cannot_see_leads_to_another_group() {
    let mut world = Three::new(44);
    let mut onlooker = world.groups[2].onlooker().unwrap();
    // Bob's path is rubbish for Carol alone, or its tag for all: nobody follows, and Bob says that everybody did.
    let (record, begun) = world.alone(1);
    onlooker.follow(&record, Some(begun), &mut world.rng).unwrap();
    world.change(0, Change::default());
    assert_eq!(onlooker.epoch().number, world.groups[2].epoch().number);
    assert_ne!(onlooker.context(), world.groups[2].context());
}
