//! This device's place in a room's group.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{
    client::{
        ClientRandom,
        records::{ChangeRecord, Entry, GroupRecord, JoiningRecord, Who},
        timeline::Reader,
    },
    core::{
        envelope::Header,
        id::{DeviceKey, Digest, Seq},
    },
    group::{
        Applied, Change, Event, Group, Joining, KeyPackage, LinkId, LiveLink, Member, Policy, Record, Skipped, SnapshotError,
    },
    seal::body::tidy,
};

/// Where this device is.
#[derive(Debug, Default)]
pub(super) enum Place {
    /// Outside.
    #[default]
    Out,
    /// What lets it in is on its way into the log, or still to be read there.
    Joining(Box<Joining>),
    /// In the group, or taken out of it.
    In(Box<Seat>),
}

/// A place in the group.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) group: Group,
    /// Who is in it, by leaf.
    pub(super) roster: BTreeMap<u32, Who>,
    /// Roles and links.
    pub(super) policy: Policy,
    links: Vec<LinkId>,
    /// What this device wants of the group and has not made a commit of.
    pub(super) wanted: Option<Change>,
    /// The newest change that was taken.
    last: Option<(Seq, Digest, ChangeRecord)>,
    /// Nobody has looked yet whether it leaves a way in.
    unlooked: bool,
}

/// What a record of the log did to the group.
#[derive(Debug)]
pub(super) enum Taken {
    /// It is another one.
    Applied(ChangeRecord),
    /// Nothing that was not known.
    Nothing(Entry),
    /// It breaks a rule; every member skips it.
    Invalid(String),
    /// This device cannot follow.
    Lost {
        /// Whoever made the change may have sealed it so.
        complains: bool,
    },
}

const fn who(member: &Member) -> Who {
    Who { device: member.device, user: member.user }
}

/// Whose leaves are others than before.
pub(super) fn seats(before: &BTreeMap<u32, Who>, after: &BTreeMap<u32, Who>) -> Vec<(u32, Option<Who>)> {
    let emptied = before.keys().filter(|leaf| !after.contains_key(leaf)).map(|leaf| (*leaf, None));
    let taken = after.iter().filter(|(leaf, who)| before.get(leaf) != Some(who)).map(|(leaf, who)| (*leaf, Some(*who)));
    emptied.chain(taken).collect()
}

/// What those are called who were not there before.
pub(super) fn names_but(
    known: &BTreeMap<u32, Who>,
    roster: &BTreeMap<u32, Who>,
    names: &BTreeMap<u32, String>,
) -> Vec<(Who, String)> {
    let named = |(leaf, who): (&u32, &Who)| Some((*who, names.get(leaf)?.clone()));
    let is_new = |(_, who): &(&u32, &Who)| !known.values().any(|other| other == *who);
    roster.iter().filter(is_new).filter_map(named).collect()
}

impl ChangeRecord {
    /// What is told of a change in a group that had this roster: who made it, who came and who went. What is afterwards is not in it yet.
    pub(super) fn told(applied: &Applied, before: &BTreeMap<u32, Who>) -> Self {
        let (mut joined, mut gone, mut left) = (Vec::new(), Vec::new(), Vec::new());
        for event in &applied.events {
            match event {
                Event::Added(member) | Event::Joined(member) => joined.push(who(member)),
                Event::Removed(member) => gone.push(who(member)),
                Event::Left(member) => left.push(who(member)),
                _ => {}
            }
        }
        let by = before.values().chain(&joined).find(|who| who.device == applied.by).copied();
        Self {
            by: by.unwrap_or(Who { device: applied.by, user: crate::seal::identity::UserKey(applied.by.0) }),
            epoch: applied.epoch,
            begun: None,
            seats: Vec::new(),
            joined,
            names: Vec::new(),
            gone,
            left,
            title: String::new(),
            history: None,
        }
    }
}

impl Seat {
    pub(super) fn new(group: Group) -> Self {
        let policy = group.policy();
        let mut seat =
            Self { group, roster: BTreeMap::new(), policy, links: Vec::new(), wanted: None, last: None, unlooked: false };
        seat.call_roll();
        seat
    }

    fn call_roll(&mut self) {
        self.roster = self.group.members().iter().map(|member| (member.leaf, who(member))).collect();
        self.policy = self.group.policy();
        self.links = self.policy.links().iter().map(LiveLink::id).collect();
    }

    pub(super) const fn reader(&self) -> Reader<'_> {
        Reader { epoch: self.group.epoch(), roster: &self.roster }
    }

    /// What the room will be called, while the change that says so is on its way.
    pub(super) fn wanted_title(&self) -> String {
        let title = self.wanted.as_ref().and_then(|change| change.title.as_deref());
        tidy(title.or_else(|| self.group.waiting()?.title.as_deref()).unwrap_or_default())
    }

    /// Whether a link leads in, or will when what this device wants is done.
    pub(super) fn lists(&self, link: LinkId) -> bool {
        let wanted = self.wanted.iter().chain(self.group.waiting()).flat_map(|change| &change.list);
        self.links.contains(&link) || wanted.into_iter().any(|listed| listed.id() == link)
    }

    /// Whether a commit with this key package is to be made, or on its way.
    pub(super) fn adds(&self, package: &KeyPackage) -> bool {
        self.wanted.iter().chain(self.group.waiting()).any(|change| change.add.contains(package))
    }

    /// Where the newest change is, if it is this device that looks whether it leaves a way in, and it has not: one of another person's than the
    /// maker's, by the change's hash, so that each looks now and then.
    pub(super) fn looks_at_way_in(&self, me: DeviceKey) -> Option<Seq> {
        let (seq, digest, change) = self.last.as_ref().filter(|_| self.unlooked && !self.links.is_empty())?;
        let others: Vec<_> = self.roster.values().filter(|who| who.user != change.by.user).collect();
        let number = u64::from_le_bytes(digest.0.first_chunk().copied().unwrap_or_default());
        let chosen = number.checked_rem(others.len() as u64).and_then(|at| others.get(usize::try_from(at).ok()?));
        chosen.filter(|who| who.device == me).map(|_| *seq)
    }

    /// Looks: whether the newest change leaves a way in; `None` if `record` is another one.
    pub(super) fn looked_at(&mut self, record: &Record) -> Option<bool> {
        self.last.as_ref().filter(|(_, digest, _)| *digest == record.digest())?;
        self.unlooked = false;
        Some(self.group.lets_in(record))
    }

    /// Something more that this device wants.
    pub(super) fn wants(&mut self, change: Change) {
        self.wanted = Some(self.wanted.take().unwrap_or_default().and(change));
    }

    /// Notes a change that came true at this place of the log.
    pub(super) fn note(&mut self, at: (Seq, Digest), title: &str, applied: &Applied) -> ChangeRecord {
        let is_member = self.group.is_member();
        // Who is taken out does not get to know the epoch that this begins.
        let begun = Some(self.group.epoch()).filter(|_| is_member);
        let change = ChangeRecord {
            begun: begun.map(|epoch| (epoch.authenticator, Some(epoch.secrets().clone()))),
            title: if is_member { self.group.policy().title().to_owned() } else { title.to_owned() },
            history: Some(self.group.policy().history()).filter(|history| is_member && *history != self.policy.history()),
            ..ChangeRecord::told(applied, &self.roster)
        };
        let change = if is_member {
            let before = core::mem::take(&mut self.roster);
            let known = if self.last.is_none() { BTreeMap::new() } else { before };
            self.call_roll();
            let names = names_but(&known, &self.roster, &self.group.names());
            ChangeRecord { names, seats: seats(&known, &self.roster), ..change }
        } else {
            change
        };
        // Who said in the former epoch that it goes, says nothing in this one.
        let only_leaves =
            |wanted: &Change| !wanted.leaves.is_empty() && Change { leaves: Vec::new(), ..wanted.clone() }.is_empty();
        self.wanted =
            self.wanted.take().filter(|wanted| !only_leaves(wanted)).map(|wanted| Change { leaves: Vec::new(), ..wanted });
        self.last = Some((at.0, at.1, change.clone()));
        self.unlooked = true;
        change
    }
}

impl Place {
    /// As kept.
    pub(super) fn restore(record: GroupRecord, rng: &mut ClientRandom) -> Result<Self, SnapshotError> {
        let GroupRecord { snapshot, joining, wanted, last, .. } = record;
        if let Some(JoiningRecord { record, entrance }) = joining {
            let record = Record::decode(&record).map_err(|_| SnapshotError)?;
            return Ok(Self::Joining(Box::new(Joining::restore(&snapshot, record, entrance, rng)?)));
        }
        let seat = Seat::new(Group::restore(&snapshot, rng)?);
        Ok(Self::In(Box::new(Seat { wanted, last, ..seat })))
    }

    /// To be kept.
    pub(super) fn record(&self) -> Option<GroupRecord> {
        match self {
            Self::Out => None,
            Self::Joining(joining) => {
                let record = JoiningRecord { record: joining.record().encode(), entrance: joining.entrance() };
                Some(GroupRecord { format: 2, snapshot: joining.snapshot(), joining: Some(record), wanted: None, last: None })
            }
            // Whoever was taken out has no epoch, without which there is no group.
            Self::In(seat) if !seat.group.is_member() => None,
            Self::In(seat) => Some(GroupRecord {
                format: 2,
                snapshot: seat.group.snapshot(),
                joining: None,
                wanted: seat.wanted.clone(),
                last: seat.last.clone(),
            }),
        }
    }

    /// The place, if this device is in the group.
    pub(super) fn seat(&self) -> Option<&Seat> {
        match self {
            Self::In(seat) if seat.group.is_member() => Some(seat),
            _ => None,
        }
    }

    pub(super) fn seat_mut(&mut self) -> Option<&mut Seat> {
        match self {
            Self::In(seat) if seat.group.is_member() => Some(seat),
            _ => None,
        }
    }

    /// Takes a change that the log has at `at`. `title` is what the room was called until now, `newest` the newest change before; in a
    /// log that was `reborn`, changes come that this device knows.
    pub(super) fn take(
        &mut self,
        at: (Seq, Digest),
        envelope: &Bytes,
        (title, newest): (&str, Seq),
        reborn: bool,
        rng: &mut ClientRandom,
    ) -> Taken {
        let record = match Record::decode(envelope) {
            Ok(record) => record,
            Err(error) => return Taken::Invalid(error.to_string()),
        };
        match core::mem::take(self) {
            Self::Out => Taken::Nothing(Entry::Sealed),
            Self::Joining(joining) => match joining.confirm(&record) {
                Ok((group, applied)) => {
                    let mut seat = Box::new(Seat::new(group));
                    let change = seat.note(at, title, &applied);
                    *self = Self::In(seat);
                    Taken::Applied(change)
                }
                Err(_) => Taken::Lost { complains: false },
            },
            Self::In(mut seat) => {
                let taken = seat.take(at, &record, (title, newest), reborn, rng);
                *self = Self::In(seat);
                taken
            }
        }
    }
}

impl Seat {
    fn take(
        &mut self,
        at: (Seq, Digest),
        record: &Record,
        (title, newest): (&str, Seq),
        reborn: bool,
        rng: &mut ClientRandom,
    ) -> Taken {
        if let Some((seq, digest, change)) = &self.last
            && (*seq, *digest) == at
        {
            return Taken::Nothing(Entry::Change(change.clone()));
        }
        // This device itself took its place again, and it is an older copy of its storage that reads this.
        if self.group.is_return(record) {
            return Taken::Lost { complains: false };
        }
        match self.group.process(record, rng) {
            Ok(applied) => {
                if let Some(change) = applied.rebase.clone() {
                    self.wants(change);
                }
                Taken::Applied(self.note(at, title, &applied))
            }
            Err(Skipped::Past) if reborn => Taken::Nothing(Entry::Known),
            Err(Skipped::Lost) => {
                let own = Header::parse(&record.commit).is_ok_and(|header| header.leaf == self.group.leaf());
                Taken::Lost { complains: !own }
            }
            // The server takes a change only from who names the newest one: what names one that this device has not read was made in an
            // epoch that it has missed, and anything else that does not fit is garbage.
            Err(Skipped::Ahead { .. }) if record.after > newest => Taken::Lost { complains: false },
            Err(skipped) => Taken::Invalid(skipped.to_string()),
        }
    }
}
