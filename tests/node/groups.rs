//! Groups: `ts-mls` as a member among ours, in both suites. It reads our records, and we read its; after each change everybody
//! has the same epoch.
//!
//! What it cannot do, and so is not here: leave by itself (SelfRemove is a draft), and come in by a link (its external commits leave
//! the pre-shared key out). The faults of this version: a commit that adds or removes one device has no path (ours refuse a commit
//! without one); a path beside an add is sealed to the added leaf too, with the key of who had its place (nobody can follow that);
//! external_pub is taken without its length (`mls.mjs` sees to that); who is removed cannot see that it is; and who comes in wants
//! unmerged leaves to be the same all the way up, which RFC 9420 §12.4.3.1 does not.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Lines, Write as _},
    process::{Child, ChildStdin, ChildStdout, Stdio},
};

use serde::Deserialize;
use serde_json::json;
use waxwing::{
    core::id::{DeviceKey, RoomId},
    group::{
        Change, Event, Group, GroupInfo, Invalid, KeyPackage, KeyPackages, LinkKeys, Record, Role, Skipped, Suite,
        VerifiedKeyPackage,
    },
    seal::{
        Random,
        identity::{Identity, UserKey},
    },
};

use crate::{hex, installed, seeds::seeded, unhex};

/// What must be the same for all members.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct State {
    epoch: u64,
    authenticator: String,
    x25519: String,
    xwing: String,
    psk: String,
    members: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Answer {
    group: Option<State>,
    out: Option<String>,
    failed: Option<String>,
}

/// A member that runs `tests/node/group.mjs`.
struct Theirs {
    /// Once it has made its key package.
    device: Option<DeviceKey>,
    node: Child,
    commands: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Theirs {
    fn start(room: RoomId, suite: Suite) -> Self {
        let number = match suite {
            Suite::XWing => "0x004F",
            Suite::X25519 => "0x0001",
        };
        let mut command = installed("group.mjs");
        command.args([&hex(&room.0), number]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut node = command.spawn().expect("node runs");
        let (commands, answers) = (node.stdin.take(), BufReader::new(node.stdout.take().unwrap()).lines());
        Self { device: None, node, commands, answers }
    }

    fn does(&mut self, command: &serde_json::Value) -> Answer {
        writeln!(self.commands.as_mut().unwrap(), "{command}").unwrap();
        let answer: Answer = serde_json::from_str(&self.answers.next().expect("node answers").unwrap()).unwrap();
        assert_eq!(answer.failed, None);
        answer
    }

    fn key_package(&mut self) -> KeyPackage {
        KeyPackage(unhex(&self.does(&json!({"do": "package"})).out.unwrap()).into())
    }

    fn join(&mut self, record: &Record) -> State {
        self.does(&json!({"do": "join", "record": hex(&record.encode())})).group.unwrap()
    }

    fn process(&mut self, record: &Record) -> State {
        self.does(&json!({"do": "process", "record": hex(&record.encode())})).group.unwrap()
    }

    fn commit(&mut self, remove: &[DeviceKey]) -> (Record, State) {
        let remove: Vec<_> = remove.iter().map(|device| hex(&device.0)).collect();
        made(self.does(&json!({"do": "commit", "remove": remove})))
    }

    fn rejoin(&mut self, info: &GroupInfo) -> (Record, State) {
        made(self.does(&json!({"do": "rejoin", "info": hex(&info.encode())})))
    }
}

fn made(answer: Answer) -> (Record, State) {
    (Record::decode(&unhex(&answer.out.unwrap()).into()).unwrap(), answer.group.unwrap())
}

impl Drop for Theirs {
    fn drop(&mut self) {
        // The end of its input ends it.
        self.commands = None;
        let ended = self.node.wait();
        assert!(std::thread::panicking() || ended.is_ok_and(|status| status.success()), "node ended badly");
    }
}

/// A device of ours in the group.
struct Ours {
    identity: Identity,
    group: Group,
}

impl Ours {
    fn state(&self) -> State {
        let (epoch, members) = (self.group.epoch(), self.group.members());
        let secrets = epoch.secrets();
        State {
            epoch: epoch.number,
            authenticator: hex(&epoch.authenticator.0),
            x25519: hex(&secrets.x25519),
            xwing: hex(&secrets.xwing),
            psk: hex(&secrets.psk),
            members: members.iter().map(|member| hex(&member.device.0)).collect(),
        }
    }
}

/// The members, of both kinds.
struct Room<R> {
    id: RoomId,
    suite: Suite,
    ours: Vec<Ours>,
    theirs: Vec<Theirs>,
    rng: R,
}

impl<R: Random + Send> Room<R> {
    /// One of ours changes the group, and everybody takes that.
    fn change(&mut self, maker: usize, change: Change) -> Record {
        let Ours { identity, group } = &mut self.ours[maker];
        let record = group.commit(change, 0, identity, &mut self.rng).unwrap();
        self.everybody(&record, None);
        record
    }

    /// The first of ours adds one of theirs, and these of ours; `moderator` becomes one.
    fn welcome(&mut self, ours: &[Identity], moderator: Option<UserKey>) -> VerifiedKeyPackage {
        let mut theirs = Theirs::start(self.id, self.suite);
        let package = theirs.key_package();
        let verified = package.verify(self.suite, &mut self.rng).unwrap();
        theirs.device = Some(verified.device);
        let roles = moderator.map(|user| (user, Some(Role::Moderator))).into_iter().collect();
        let record = self.add(ours, Change { add: vec![package], roles, ..Change::default() });
        assert_eq!(theirs.join(&record), self.ours[0].state());
        self.theirs.push(theirs);
        verified
    }

    /// The first of ours adds these of ours, with what else is in the change.
    fn add(&mut self, ours: &[Identity], mut change: Change) -> Record {
        let mut stores = Vec::new();
        for identity in ours {
            let mut keys = KeyPackages::default();
            change.add.push(keys.make(identity, self.suite, u64::MAX, false, &mut self.rng).unwrap());
            stores.push(keys);
        }
        let record = self.change(0, change);
        for (identity, mut keys) in ours.iter().cloned().zip(stores) {
            let group = Group::join(self.id, &record, &mut keys, &mut self.rng).unwrap();
            self.ours.push(Ours { identity, group });
        }
        record
    }

    /// Something happens, as `pick(n)` below n says. The first of ours and the first of theirs stay.
    fn step(&mut self, mut pick: impl FnMut(usize) -> usize) {
        let staying = [self.ours[0].identity.device(), self.theirs[0].device.unwrap()];
        match pick(6) {
            0 => drop(self.change(pick(self.ours.len()), Change::default())),
            1 if self.ours.len() < 10 => {
                let new: Vec<_> = (0..=pick(3)).map(|_| Identity::generate(&mut self.rng, 0)).collect();
                self.add(&new, Change::default());
            }
            2 | 3 => {
                let members = self.ours[0].group.members();
                let others: Vec<_> =
                    members.iter().map(|member| member.device).filter(|device| !staying.contains(device)).collect();
                let some = if others.is_empty() { 0 } else { pick(3) };
                let remove: BTreeSet<_> = (0..some).map(|_| others[pick(others.len())]).collect();
                self.change(0, Change { remove: remove.into_iter().collect(), ..Change::default() });
            }
            _ => {
                let maker = pick(self.theirs.len());
                let update = self.theirs[maker].commit(&[]);
                self.their_change(maker, update);
            }
        }
    }

    /// Who lost its keys takes its own place again, by an envelope of suite 2: the first of theirs, and the last of ours.
    fn rejoins(&mut self, theirs: DeviceKey) {
        let info = |room: &mut Self| room.ours[0].group.group_info(&room.ours[0].identity, &mut room.rng).unwrap();
        let rejoin = info(self);
        let rejoin = self.theirs[0].rejoin(&rejoin);
        assert!(matches!(self.their_change(0, rejoin)[..], [Event::Rejoined(member)] if member.device == theirs));
        let info = info(self);
        let Ours { identity, .. } = self.ours.pop().unwrap();
        let joining = info.join(self.id, None, 0, &identity, &mut self.rng).unwrap();
        let record = joining.record().clone();
        assert!(matches!(self.everybody(&record, None)[..], [Event::Rejoined(_)]));
        let (group, _) = joining.confirm(&record).unwrap();
        self.ours.push(Ours { identity, group });
        let update = self.theirs[0].commit(&[]);
        self.their_change(0, update);
    }

    /// One of theirs does: what it made, and its state after it.
    fn their_change(&mut self, maker: usize, (record, state): (Record, State)) -> Vec<Event> {
        let events = self.everybody(&record, Some(maker));
        assert_eq!(state, self.ours[0].state());
        events
    }

    fn everybody(&mut self, record: &Record, maker: Option<usize>) -> Vec<Event> {
        let mut events = Vec::new();
        for Ours { group, .. } in &mut self.ours {
            events = group.process(record, &mut self.rng).unwrap().events;
        }
        self.ours.retain(|ours| ours.group.is_member());
        let state = self.ours[0].state();
        assert!(self.ours.iter().all(|ours| ours.state() == state));
        let maker = maker.and_then(|at| self.theirs[at].device);
        self.theirs.retain(|theirs| state.members.contains(&hex(&theirs.device.unwrap().0)));
        for theirs in self.theirs.iter_mut().filter(|theirs| theirs.device != maker) {
            assert_eq!(theirs.process(record), state);
        }
        events
    }
}

fn together(suite: Suite) {
    let mut rng = rand_core::UnwrapErr(getrandom::SysRng);
    let id = RoomId(rng.bytes());
    let [alice, carol, erin] = [(); 3].map(|()| Identity::generate(&mut rng, 0));
    let group = Group::create(id, suite, &alice, &mut rng).unwrap();
    let mut room = Room { id, suite, ours: vec![Ours { identity: alice, group }], theirs: Vec::new(), rng };

    // One of theirs comes in by our welcome, and each side gives new keys.
    let bob = room.welcome(&[], None);
    room.change(0, Change::default());
    let update = room.theirs[0].commit(&[]);
    assert_eq!(room.their_change(0, update), []);

    // A larger tree, another context: some of each kind come in, and one of theirs becomes a moderator.
    let gone = erin.device();
    let dave = room.welcome(&[carol, erin], Some(bob.user));
    assert_eq!(room.ours[0].group.policy().role(bob.user), Some(Role::Moderator));
    for maker in [1, 0] {
        let update = room.theirs[maker].commit(&[]);
        room.their_change(maker, update);
        room.change(maker, Change::default());
    }
    room.rejoins(bob.device);

    // Their moderator removes one of each kind; then it is removed itself.
    let removal = room.theirs[0].commit(&[dave.device, gone]);
    let events = room.their_change(0, removal);
    assert!(matches!(events[..], [Event::Removed(one), Event::Removed(two)] if [one.device, two.device] == [dave.device, gone]));
    assert_eq!((room.theirs.len(), room.ours.len(), room.ours[0].group.members().len()), (1, 2, 3));
    room.change(0, Change { remove: vec![bob.device], ..Change::default() });
    assert!(!room.ours[0].state().members.contains(&hex(&bob.device.0)));
}

#[test]
fn another_implementation_follows_links_and_makes_none() {
    let mut rng = rand_core::UnwrapErr(getrandom::SysRng);
    let (id, suite) = (RoomId(rng.bytes()), Suite::X25519);
    let alice = Identity::generate(&mut rng, 0);
    let group = Group::create(id, suite, &alice, &mut rng).unwrap();
    let mut room = Room { id, suite, ours: vec![Ours { identity: alice, group }], theirs: Vec::new(), rng };
    room.welcome(&[], None);
    let link = LinkKeys::new(&room.rng.bytes()).listed(false, u64::MAX);
    let record = room.change(0, Change { list: vec![link], ..Change::default() });
    assert!(record.group_info.is_some());
    // Its records have no group info, which a live link demands.
    let (record, _) = room.theirs[0].commit(&[]);
    let refused = room.ours[0].group.process(&record, &mut room.rng);
    assert_eq!(refused, Err(Skipped::Invalid(Invalid::GroupInfo)));
}

/// Trees of every shape: leaves that come, go and are taken again, by commits of both sides.
#[test]
fn another_implementation_follows_whatever_happens() {
    seeded("WAXWING_TEST_MLS_SEEDS", 2, |seed| {
        let mut rng = rand_core::UnwrapErr(getrandom::SysRng);
        let (id, suite) = (RoomId(rng.bytes()), if seed % 2 == 0 { Suite::X25519 } else { Suite::XWing });
        let alice = Identity::generate(&mut rng, 0);
        let group = Group::create(id, suite, &alice, &mut rng).unwrap();
        let mut room = Room { id, suite, ours: vec![Ours { identity: alice, group }], theirs: Vec::new(), rng };
        let three = [(); 3].map(|()| Identity::generate(&mut room.rng, 0));
        room.welcome(&three[..1], None);
        room.welcome(&three[1..], None);
        let mut state = seed;
        for _ in 0..25 {
            room.step(|below| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                usize::try_from(state >> 33).unwrap() % below
            });
        }
        assert_eq!(room.ours[0].group.epoch().number, 27);
    });
}

#[test]
fn another_implementation_is_a_member_in_the_classical_suite() {
    together(Suite::X25519);
}

#[test]
fn another_implementation_is_a_member_in_the_x_wing_suite() {
    together(Suite::XWing);
}
