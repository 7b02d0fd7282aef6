use bytes::Bytes;

use super::*;
use crate::{
    core::{
        envelope::Kind,
        id::{LogId, MessageId, ProducerId},
    },
    seal::{
        body::{Body, Content, Message, Seen},
        message,
    },
};

mod days;
mod histories;
pub(crate) mod hostile;
mod ladder;
mod limits;
mod onlooker;
mod vectors;

/// Seeded, and the same on every machine (splitmix64).
pub(super) struct Rng(pub(super) u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).unwrap()
    }
}

impl rand_core::TryRng for Rng {
    type Error = core::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        Ok((self.next() >> 32) as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        Ok(self.next())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

impl rand_core::TryCryptoRng for Rng {}

pub(super) const ROOM: RoomId = RoomId([7; 16]);

pub(super) fn identity(rng: &mut Rng) -> Identity {
    Identity::generate(rng, 0)
}

/// Makes the commit, and gives its outline to everybody of `groups`, the maker included.
fn commit(groups: &mut [&mut Group], maker: usize, change: Change, identity: &Identity, rng: &mut Rng) -> Record {
    let record = groups[maker].commit(change, 0, identity, rng).unwrap();
    let record = Record::decode(&record.encode()).unwrap();
    assert_eq!((record.outline().hash(), record.outline().digest()), (record.hash(), record.digest()));
    for group in groups {
        group.process(&record.outline(), rng).unwrap();
    }
    record
}

fn add(package: KeyPackage) -> Change {
    Change { add: vec![package], ..Change::default() }
}

/// What one seals the others open, and only they.
fn assert_together(groups: &[&Group], identity: &Identity, rng: &mut Rng) {
    let body = Body {
        session: ProducerId([1; 16]),
        counter: 1,
        previous: Digest([0; 32]),
        seen: Seen { log: LogId([2; 16]), seq: 0, chain: Digest([0; 32]) },
        content: Content::new(&Message::Text("hello".to_owned())),
    };
    let sender = groups[0];
    let envelope = message::seal(sender.epoch(), Kind::Room, sender.leaf(), MessageId([3; 16]), identity, &body, rng).unwrap();
    for group in groups {
        assert_eq!(group.members(), sender.members());
        assert_eq!(group.policy(), sender.policy());
        let opened = message::open(group.epoch(), &envelope).unwrap();
        let leaf = opened.header().leaf;
        let member = group.members().into_iter().find(|member| member.leaf == leaf).unwrap();
        assert_eq!(opened.verify(member.device).unwrap(), body);
    }
}

/// Two people in a group of the suite.
fn pair(suite: Suite, rng: &mut Rng) -> ((Identity, Group), (Identity, Group)) {
    let (alice, bob) = (identity(rng), identity(rng));
    let mut group = Group::create(ROOM, suite, &alice, rng).unwrap();
    let mut keys = KeyPackages::default();
    let package = keys.make(&bob, suite, 1_000, false, rng).unwrap();
    let record = commit(&mut [&mut group], 0, add(package), &alice, rng);
    let other = Group::join(ROOM, &record, &mut keys, rng).unwrap();
    ((alice, group), (bob, other))
}

#[test]
fn people_are_added_and_removed_in_both_suites() {
    for suite in [Suite::XWing, Suite::X25519] {
        let rng = &mut Rng(1);
        let ((alice, mut one), (bob, mut two)) = pair(suite, rng);
        assert_eq!((one.epoch().number, one.suite(), two.leaf()), (1, suite, 1));
        assert_together(&[&one, &two], &alice, rng);
        let first = one.epoch().clone();
        // An empty change gives new keys.
        commit(&mut [&mut one, &mut two], 1, Change::default(), &bob, rng);
        assert_together(&[&two, &one], &bob, rng);
        assert_ne!(first.authenticator, one.epoch().authenticator);
        let gone = Change { remove: vec![bob.device()], ..Change::default() };
        commit(&mut [&mut one, &mut two], 0, gone, &alice, rng);
        assert!(!two.is_member() && one.members().len() == 1);
        assert_eq!(two.epoch().number, 2, "who was removed keeps what it could read, and nothing new");
        assert_eq!(two.commit(Change::default(), 0, &bob, rng), Err(CommitError::NotAMember));
    }
}

#[test]
fn a_key_package_adds_once_and_one_of_last_resort_again() {
    let rng = &mut Rng(2);
    let (alice, bob) = (identity(rng), identity(rng));
    for last_resort in [false, true] {
        let mut keys = KeyPackages::default();
        let package = keys.make(&bob, Suite::X25519, 77, last_resort, rng).unwrap();
        let said = package.verify(Suite::X25519, rng).unwrap();
        assert_eq!((said.device, said.user, said.expires_ms, said.last_resort), (bob.device(), bob.user(), 77, last_resort));
        assert!(matches!(package.verify(Suite::XWing, rng), Err(KeyPackageError::Suite)));
        let mut group = Group::create(ROOM, Suite::X25519, &alice, rng).unwrap();
        let record = commit(&mut [&mut group], 0, add(package), &alice, rng);
        let mut keys = KeyPackages::restore(&keys.snapshot()).unwrap();
        let elsewhere = Group::join(RoomId([8; 16]), &record, &mut keys, rng).unwrap_err();
        assert_eq!(elsewhere, JoinError::Group, "a welcome to another room than the one that was promised");
        let joined = Group::join(ROOM, &record, &mut keys, rng).unwrap();
        assert_together(&[&group, &joined], &alice, rng);
        assert_eq!(Group::join(ROOM, &record, &mut keys, rng).is_ok(), last_resort);
        assert_eq!(Group::join(ROOM, &record, &mut KeyPackages::default(), rng).unwrap_err(), JoinError::NotForUs);
    }
}

#[test]
fn who_loses_a_race_makes_its_change_anew() {
    let rng = &mut Rng(3);
    let ((alice, mut one), (bob, mut two)) = pair(Suite::X25519, rng);
    let carol = identity(rng);
    let mut keys = KeyPackages::default();
    let change = add(keys.make(&carol, Suite::X25519, 0, false, rng).unwrap());
    let (first, second) =
        (one.commit(Change::default(), 0, &alice, rng).unwrap(), two.commit(change.clone(), 0, &bob, rng).unwrap());
    assert_eq!(two.commit(Change::default(), 0, &bob, rng), Err(CommitError::Waiting));
    assert_eq!(one.process(&first, rng).unwrap().rebase, None);
    let lost = two.process(&first, rng).unwrap();
    assert_eq!((lost.by, lost.rebase), (alice.device(), Some(change.clone())));
    assert_eq!(one.process(&second, rng), Err(Skipped::Past));
    assert_eq!(Group::join(ROOM, &second, &mut keys.clone(), rng).map(|_| ()), Ok(()), "a welcome alone does not know the race");
    let again = two.commit(change, 0, &bob, rng).unwrap();
    for group in [&mut one, &mut two] {
        let applied = group.process(&again, rng).unwrap();
        assert!(matches!(applied.events[..], [Event::Added(added)] if added.device == carol.device() && added.leaf == 2));
    }
    let three = Group::join(ROOM, &again, &mut keys, rng).unwrap();
    assert_together(&[&one, &two, &three], &alice, rng);
}

#[test]
fn a_link_lets_in_who_holds_it_with_nobody_there() {
    for suite in [Suite::XWing, Suite::X25519] {
        let rng = &mut Rng(4);
        let ((alice, mut one), (bob, mut two)) = pair(suite, rng);
        let (link, once) = (LinkKeys::new(&[1; 32]), LinkKeys::new(&[2; 32]));
        let change = Change { list: vec![link.listed(false, 9), once.listed(true, 9)], ..Change::default() };
        assert_eq!(two.commit(change.clone(), 0, &bob, rng), Err(CommitError::Forbidden(Forbidden::Links)));
        let listed = commit(&mut [&mut one, &mut two], 0, change, &alice, rng);
        // Nobody of the group does anything from here on; each joiner leads to the next one.
        let (mut records, mut joined) = (vec![listed], Vec::new());
        for with in [&link, &once, &link] {
            let (last, joiner) = (records.last().unwrap(), identity(rng));
            let info = GroupInfo::open(ROOM, last, with).unwrap();
            let joining = info.join(ROOM, Some(with), 0, &joiner, rng).unwrap();
            let record = Record::decode(&joining.record().encode()).unwrap();
            for (_, group) in &mut joined {
                let group: &mut Group = group;
                group.process(&record, rng).unwrap();
            }
            let (group, applied) = joining.confirm(&record).unwrap();
            assert!(matches!(applied.events[..], [Event::Joined(member)] if member.via == Some(with.id())));
            joined.push((joiner, group));
            records.push(record);
        }
        for record in &records[1..] {
            one.process(record, rng).unwrap();
            let applied = two.process(record, rng).unwrap();
            assert!(matches!(applied.events[..], [Event::Joined(_)]));
        }
        let groups: Vec<_> = [&one, &two].into_iter().chain(joined.iter().map(|(_, group)| group)).collect();
        assert_together(&groups, &alice, rng);
        // The second one through a link of one use is refused by everybody.
        let last = records.last().unwrap();
        let late = GroupInfo::open(ROOM, last, &once).unwrap().join(ROOM, Some(&once), 0, &identity(rng), rng).unwrap();
        let no_link = Err(Skipped::Invalid(Invalid::Forbidden(Forbidden::NoLink)));
        for group in [&mut one, &mut two] {
            assert_eq!(group.process(late.record(), rng), no_link);
        }
        // A removal drops every link, in the same commit.
        let gone =
            Change { remove: vec![bob.device()], list: vec![LinkKeys::new(&[3; 32]).listed(false, 0)], ..Change::default() };
        let record = one.commit(gone, 0, &alice, rng).unwrap();
        one.process(&record, rng).unwrap();
        assert!(one.policy().links().is_empty() && record.group_info.is_none());
        assert_eq!(GroupInfo::open(ROOM, &record, &link), Err(JoinError::NotForUs));
    }
}

#[test]
fn a_snapshot_reads_on_and_rejoins_where_it_lacks_its_own_commit() {
    let rng = &mut Rng(5);
    let ((alice, mut one), (bob, mut two)) = pair(Suite::X25519, rng);
    let old = two.snapshot();
    let mut records = vec![commit(&mut [&mut one, &mut two], 0, Change::default(), &alice, rng)];
    let mut restored = Group::restore(&old, rng).unwrap();
    assert_eq!(restored.process(&records[0], rng).unwrap().epoch, 2, "what others did it can follow");
    assert_together(&[&one, &restored], &alice, rng);
    records.push(commit(&mut [&mut one, &mut two], 1, Change::default(), &bob, rng));
    records.push(commit(&mut [&mut one, &mut two], 0, Change::default(), &alice, rng));
    assert_eq!(restored.process(&records[2], rng), Err(Skipped::Ahead { epoch: 4 }));
    assert_eq!(restored.process(&records[1], rng), Err(Skipped::Lost), "its own commit it cannot");
    // A member hands it the group info, and it takes its own place.
    let info = GroupInfo::decode(&one.group_info(&alice, rng).unwrap().encode()).unwrap();
    let joining = info.join(ROOM, None, 0, &bob, rng).unwrap();
    let record = joining.record().clone();
    let applied = one.process(&record, rng).unwrap();
    assert!(matches!(applied.events[..], [Event::Rejoined(member)] if member.device == bob.device() && member.leaf == 1));
    assert!(!two.is_member() || two.process(&record, rng).is_ok_and(|_| !two.is_member()), "the lost copy is out");
    let (again, _) = joining.confirm(&record).unwrap();
    assert_together(&[&one, &again], &alice, rng);
    // Nobody else can take it, and nobody comes in without a link.
    let mallory = identity(rng);
    assert_eq!(info.join(ROOM, None, 0, &mallory, rng).unwrap_err(), JoinError::NotForUs);
    assert_eq!(records.len(), 3);
}

#[test]
fn a_commit_that_waits_survives_a_snapshot() {
    let rng = &mut Rng(6);
    let ((alice, mut one), (_, mut two)) = pair(Suite::X25519, rng);
    let record = one.commit(Change::default(), 0, &alice, rng).unwrap();
    let mut one = Group::restore(&one.snapshot(), rng).unwrap();
    assert!(one.is_waiting());
    one.process(&record, rng).unwrap();
    two.process(&record, rng).unwrap();
    assert!(!one.is_waiting());
    assert_together(&[&one, &two], &alice, rng);
    // And may be given up.
    let lost = one.commit(Change::default(), 0, &alice, rng).unwrap();
    assert_eq!(one.withdraw(), Ok(Some(Change::default())));
    assert_eq!(one.process(&lost, rng), Err(Skipped::Lost), "the log took it all the same");
}

#[test]
fn who_leaves_says_so_and_another_commits() {
    let rng = &mut Rng(7);
    let ((alice, mut one), (bob, mut two)) = pair(Suite::X25519, rng);
    let leave = one.leave(&alice, rng).unwrap();
    assert_eq!(two.policy().role(bob.user()), None);
    let change = Change { leaves: vec![leave.clone()], ..Change::default() };
    let record = two.commit(change, 0, &bob, rng).unwrap();
    for group in [&mut one, &mut two] {
        let applied = group.process(&record, rng).unwrap();
        assert!(matches!(applied.events[..], [Event::Left(left), Event::Policy] if left.device == alice.device()));
    }
    assert!(!one.is_member() && two.is_member());
    assert_eq!(two.policy().role(bob.user()), Some(Role::Owner), "a room is not orphaned");
    // It held for its epoch.
    let stale = Change { leaves: vec![leave], ..Change::default() };
    let record = two.commit(stale, 0, &bob, rng).unwrap();
    assert!(two.process(&record, rng).unwrap().events.is_empty());
}

#[test]
fn roles_decide_who_removes_whom() {
    let rng = &mut Rng(8);
    let ((alice, mut one), (bob, mut two)) = pair(Suite::X25519, rng);
    let carol = identity(rng);
    let mut keys = KeyPackages::default();
    let package = keys.make(&carol, Suite::X25519, 0, false, rng).unwrap();
    let record = commit(&mut [&mut one, &mut two], 1, add(package), &bob, rng);
    let mut three = Group::join(ROOM, &record, &mut keys, rng).unwrap();
    let remove = |whom: &Identity| Change { remove: vec![whom.device()], ..Change::default() };
    let role = |whom: &Identity, role| Change { roles: vec![(whom.user(), role)], ..Change::default() };
    assert_eq!(two.commit(remove(&carol), 0, &bob, rng), Err(CommitError::Forbidden(Forbidden::Remove)));
    assert_eq!(two.commit(role(&bob, Some(Role::Moderator)), 0, &bob, rng), Err(CommitError::Forbidden(Forbidden::Roles)));
    commit(&mut [&mut one, &mut two, &mut three], 0, role(&bob, Some(Role::Moderator)), &alice, rng);
    assert_eq!(two.commit(remove(&alice), 0, &bob, rng), Err(CommitError::Forbidden(Forbidden::Remove)));
    assert_eq!(
        one.commit(role(&identity(rng), Some(Role::Owner)), 0, &alice, rng),
        Err(CommitError::Forbidden(Forbidden::AfterRemoval))
    );
    commit(&mut [&mut one, &mut two, &mut three], 1, remove(&carol), &bob, rng);
    assert!(!three.is_member());
    commit(&mut [&mut one, &mut two], 0, remove(&bob), &alice, rng);
    assert_eq!(one.policy(), Policy::new(alice.user()), "who is gone has no role");
}

#[test]
fn a_person_adds_and_removes_their_own_devices() {
    let rng = &mut Rng(9);
    let ((alice, mut one), (bob, mut two)) = pair(Suite::X25519, rng);
    let second = Identity::add_device(bob.secrets().user, rng, 0);
    let mut keys = KeyPackages::default();
    let package = keys.make(&second, Suite::X25519, 0, false, rng).unwrap();
    let record = commit(&mut [&mut one, &mut two], 1, add(package), &bob, rng);
    let mut three = Group::join(ROOM, &record, &mut keys, rng).unwrap();
    let gone = Change { remove: vec![bob.device()], ..Change::default() };
    commit(&mut [&mut one, &mut two, &mut three], 2, gone, &second, rng);
    assert!(!two.is_member());
    assert_together(&[&three, &one], &second, rng);
    let _ = alice;
}
