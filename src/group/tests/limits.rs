//! How many devices a group has at most.

use super::{Rng, *};
use crate::group::policy::{Committer, Proposed, check};

#[test]
fn the_last_device_that_may_comes_in_and_no_other() {
    let rng = &mut Rng(30);
    let alice = identity(rng);
    let mut group = Group::create(ROOM, Suite::XWing, &alice, rng).unwrap();
    let packages = |count: usize, rng: &mut Rng| -> Vec<(Identity, KeyPackage)> {
        let package = |rng: &mut Rng| {
            let who = identity(rng);
            let package = KeyPackages::default().make(&who, Suite::XWing, 0, false, rng).unwrap();
            (who, package)
        };
        (0..count).map(|_| package(rng)).collect()
    };
    let link = LinkKeys::new(&[1; 32]);
    for (count, list) in [(100, vec![]), (100, vec![]), (MEMBERS_MAX - 201, vec![link.listed(false, 0)])] {
        let add = packages(count, rng).into_iter().map(|(_, package)| package).collect();
        let change = Change { add, list, ..Change::default() };
        commit(&mut [&mut group], 0, change, &alice, rng);
    }
    assert_eq!(group.members().len(), MEMBERS_MAX);
    let newest = commit(&mut [&mut group], 0, Change::default(), &alice, rng);
    let full = CommitError::Forbidden(Forbidden::Full);
    let (_, one_more) = packages(1, rng).remove(0);
    assert_eq!(group.commit(add(one_more), 0, &alice, rng), Err(full.clone()));
    let late = identity(rng);
    let refused = GroupInfo::open(ROOM, &newest, &link).unwrap().join(ROOM, Some(&link), 0, &late, rng);
    assert_eq!(refused.unwrap_err(), JoinError::Commit(full));
    // Somebody goes, and there is room for one.
    let last = group.members().last().unwrap().device;
    commit(&mut [&mut group], 0, Change { remove: vec![last], ..Change::default() }, &alice, rng);
    let list = Change { list: vec![link.listed(false, 0)], ..Change::default() };
    let newest = commit(&mut [&mut group], 0, list, &alice, rng);
    let joining = GroupInfo::open(ROOM, &newest, &link).unwrap().join(ROOM, Some(&link), 0, &late, rng).unwrap();
    group.process(joining.record(), rng).unwrap();
    assert_eq!(group.members().len(), MEMBERS_MAX);
}

/// What every member judges alike, whatever a joiner of another version thinks.
#[test]
fn each_suite_has_its_own_limit() {
    for suite in [Suite::XWing, Suite::X25519] {
        let max = suite.members_max();
        let device = |n: usize| DeviceKey([&u64::try_from(n).unwrap().to_le_bytes()[..], &[0; 24]].concat().try_into().unwrap());
        let member = |n: usize| Member {
            leaf: u32::try_from(n).unwrap(),
            device: device(n),
            user: crate::seal::identity::UserKey(device(n).0),
            via: None,
        };
        let members: Vec<_> = (0..max).map(member).collect();
        let mut policy = Policy::new(members[0].user);
        let link = LinkKeys::new(&[1; 32]);
        policy.list(link.listed(false, 0));
        let by = Committer::Member { leaf: 0, after: members[0] };
        let new = member(max);
        let joiner = Committer::Joiner { after: Member { via: Some(link.id()), ..new }, links: 1, link: Some(link.id()) };
        let adds = Proposed { committer: by, added: vec![(new.device, new.user)], removed: vec![], left: vec![], policy: None };
        let joins = Proposed { committer: joiner, added: vec![], ..adds.clone() };
        for proposed in [&adds, &joins] {
            assert_eq!(check(&policy, &members, max, proposed), Err(Forbidden::Full));
            assert_eq!(check(&policy, &members[..max - 1], max, proposed), Ok(()));
        }
    }
    assert_eq!((MEMBERS_MAX, LARGE_MEMBERS_MAX), (256, 1024), "docs/protocol.md says so");
}
