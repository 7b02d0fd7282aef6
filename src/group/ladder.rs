//! The ladder of a room whose newcomers read what was before: each commit's record has a *rung*, the secrets of the epoch that it ends, sealed under
//! a key of the epoch that it begins. Whoever is in an epoch goes down from there, commit by commit, with nobody online: to the last rung where
//! newcomers read everything, and else as far as the window ([`super::window`]) reaches.
//!
//! A rung says nothing that the members of both epochs do not know, so that each of them checks it, and a commit whose rung is another
//! one is invalid for all alike. It is there if, and only if, the policy before and after the commit is [`History::Everything`], or before and after
//! [`History::Days`]: the ladder ends above the commit that chose it.

use std::collections::BTreeMap;

use aes_gcm::{
    Aes256Gcm, KeyInit as _,
    aead::{Aead as _, Payload},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    Group, Policy, Record, SealedGroupInfo,
    policy::{Committer, History, Member, Proposed},
    window::{self, LadderSecret, RungKey, Window, context},
};
use crate::{
    core::id::{DeviceKey, Digest, RoomId, UnixMillis},
    seal::{
        derive,
        epoch::{Epoch, EpochSecrets},
        identity::UserKey,
        message::bucket,
    },
};

/// An epoch, for who was not in it. postcard, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Former {
    /// Its secrets.
    pub secrets: EpochSecrets,
    /// Its authenticator.
    pub authenticator: Digest,
    /// SHA-256 of the record that began it; zero where the record that carries this is that one.
    pub began: Digest,
}

/// Whose a leaf was, and what they were called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The device.
    pub device: DeviceKey,
    /// Whose.
    pub user: UserKey,
    /// Made fit to be shown; empty where nothing was said.
    pub name: String,
}

/// Who is in a group, by leaf.
pub type Roster = BTreeMap<u32, Place>;

/// How a group was before a commit, as far as it was otherwise. postcard, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rung {
    /// The epoch that the commit ended.
    pub former: Former,
    /// Who made the commit.
    pub by: DeviceKey,
    /// The leaves that were another's, or nobody's.
    pub places: Vec<(u32, Option<Place>)>,
    /// Who of them had said that they go.
    pub left: Vec<u32>,
    /// What the room was called.
    pub title: String,
}

/// How it was before a commit, to compare with what it is after it.
#[derive(Debug)]
pub(super) struct Before {
    pub former: Former,
    pub roster: Roster,
    pub title: String,
}

/// What a commit's record has for who goes down.
#[derive(Debug)]
pub(super) struct Steps {
    pub rung: Rung,
    /// Where newcomers read the last so many days.
    pub days: Option<u16>,
}

/// Whether a commit between these policies has a rung, and for how many days newcomers go down, if not for ever.
pub(super) fn is_due(before: &Policy, after: &Policy) -> Option<Option<u16>> {
    match (before.history(), after.history()) {
        (History::Everything, History::Everything) => Some(None),
        (History::Days(_), History::Days(days)) => Some(Some(days)),
        _ => None,
    }
}

impl Before {
    /// What the rung of a commit says that leaves `after` in these leaves.
    pub(super) fn rung(self, by: DeviceKey, after: &BTreeMap<u32, DeviceKey>, left: Vec<u32>) -> Rung {
        let Self { former, mut roster, title } = self;
        let differs = |leaf: &u32, roster: &Roster| roster.get(leaf).map(|place| place.device) != after.get(leaf).copied();
        let mut leaves: Vec<u32> = roster.keys().chain(after.keys()).copied().filter(|leaf| differs(leaf, &roster)).collect();
        leaves.sort_unstable();
        leaves.dedup();
        let places = leaves.into_iter().map(|leaf| (leaf, roster.remove(&leaf))).collect();
        Rung { former, by, places, left, title }
    }
}

impl Proposed {
    /// The leaves that it fills with devices that were added, in their order: the leftmost free ones (RFC 9420 §12.1.1), counting those that
    /// the same commit frees.
    pub(super) fn added_leaves(&self, members: &[Member]) -> Vec<u32> {
        let gone = |leaf: u32| self.removed.contains(&leaf) || self.left.contains(&leaf);
        let taken: Vec<u32> = members.iter().map(|member| member.leaf).filter(|leaf| !gone(*leaf)).collect();
        (0..).filter(|leaf| !taken.contains(leaf)).take(self.added.len()).collect()
    }

    /// Whose device each leaf is after it.
    fn devices_after(&self, members: &[Member]) -> BTreeMap<u32, DeviceKey> {
        let gone = |leaf: u32| self.removed.contains(&leaf) || self.left.contains(&leaf);
        let staying = members.iter().filter(|member| !gone(member.leaf)).map(|member| (member.leaf, member.device));
        let mut after: BTreeMap<_, _> = staying.collect();
        after.extend(self.added_leaves(members).into_iter().zip(self.added.iter().map(|(device, _)| *device)));
        if let Committer::Joiner { after: joiner, .. } = self.committer {
            after.insert(joiner.leaf, joiner.device);
        }
        after
    }
}

impl Group {
    /// Who is in it, by leaf.
    #[must_use]
    pub fn roster(&self) -> Roster {
        self.view().roster()
    }

    /// The epoch, for who comes in.
    pub(super) fn former(&self) -> Former {
        Former { secrets: self.epoch.secrets().clone(), authenticator: self.epoch.authenticator, began: self.began }
    }

    /// What a commit's record has for who goes down, if there is anything.
    pub(super) fn steps(&self, proposed: &Proposed) -> Option<Steps> {
        let policy = self.policy();
        let days = is_due(&policy, proposed.policy.as_ref().unwrap_or(&policy))?;
        let before = Before { former: self.former(), roster: self.roster(), title: policy.title().to_owned() };
        let by = match proposed.committer {
            Committer::Member { after, .. } | Committer::Joiner { after, .. } => after.device,
        };
        Some(Steps { rung: before.rung(by, &proposed.devices_after(&self.members()), proposed.left.clone()), days })
    }

    /// What opens the rungs below this epoch's own, and first that one, where newcomers read the last days.
    #[must_use]
    pub fn window(&self) -> Option<&[RungKey]> {
        matches!(self.policy().history(), History::Days(_)).then_some(&self.window.keys)
    }

    /// Deletes what opens the time before the days that newcomers read; `false` where there is nothing of it.
    pub fn forget_rungs(&mut self, now_ms: UnixMillis) -> bool {
        match self.policy().history() {
            History::Days(days) => self.window.forget(now_ms, days),
            History::FromJoin | History::Everything => false,
        }
    }
}

impl Steps {
    /// Seals the rung and, where newcomers read the last days, the window of the epoch that the commit begins; `before` is the one of the epoch
    /// that it ends.
    pub(super) fn seal(
        &self,
        epoch: &Epoch,
        ladder: &LadderSecret,
        before: &Window,
        now_ms: UnixMillis,
    ) -> Option<(Bytes, Bytes)> {
        let context = context(epoch.room, epoch.number);
        let Some(days) = self.days else {
            return Some((self.rung.seal(&everything_key(epoch, &context), &context)?, Bytes::new()));
        };
        let key = ladder.rung_key(&context);
        let window = window::seal(&before.next(key, now_ms, days), ladder, &context)?;
        Some((self.rung.seal(&key, &context)?, window))
    }

    /// Whether a record has these, and a window that continues `before`.
    pub(super) fn are_in(&self, beside: &SealedGroupInfo, epoch: &Epoch, ladder: &LadderSecret, before: &Window) -> bool {
        let context = context(epoch.room, epoch.number);
        let key = if self.days.is_some() { ladder.rung_key(&context) } else { everything_key(epoch, &context) };
        let continues = match self.days {
            Some(_) => Window::open(ladder, &context, &beside.window).is_some_and(|window| before.leads_to(&window.keys, &key)),
            None => beside.window.is_empty(),
        };
        continues && Rung::open(&key, &context, &beside.rung).as_ref() == Some(&self.rung)
    }
}

impl Record {
    /// What this record, which began `epoch`, says of the one before, where newcomers read everything; `None` where the ladder ends.
    #[must_use]
    pub fn rung(&self, epoch: &Epoch) -> Option<Rung> {
        let context = context(epoch.room, epoch.number);
        Rung::open(&everything_key(epoch, &context), &context, &self.group_info.as_ref()?.rung)
    }

    /// The same where newcomers read the last days.
    #[must_use]
    pub fn rung_by(&self, key: &RungKey, epoch: &Epoch) -> Option<Rung> {
        Rung::open(&key.key, &context(epoch.room, epoch.number), &self.group_info.as_ref()?.rung)
    }

    /// The window that it brings to the epoch; empty where it has none.
    pub(super) fn window(&self, room: RoomId, ladder: &LadderSecret) -> Option<Window> {
        match &self.group_info {
            Some(beside) if !beside.window.is_empty() => Window::open(ladder, &context(room, self.epoch), &beside.window),
            _ => Some(Window::default()),
        }
    }
}

/// A rung's key where newcomers read everything: whoever opens the epoch opens it.
fn everything_key(epoch: &Epoch, context: &[u8]) -> [u8; 32] {
    derive(&epoch.secrets().psk, "waxwing rung v1", context)
}

impl Rung {
    fn seal(&self, key: &[u8; 32], context: &[u8]) -> Option<Bytes> {
        seal_padded(key, context, self, bucket)
    }

    fn open(key: &[u8; 32], context: &[u8], sealed: &[u8]) -> Option<Self> {
        if sealed.is_empty() { None } else { open_sealed(key, context, sealed) }
    }
}

/// AES-256-GCM of a value that is padded with zeroes. The key encrypts once, so that its nonce is zero.
pub(super) fn seal_padded(
    key: &[u8; 32],
    aad: &[u8],
    value: &impl Serialize,
    padded: impl FnOnce(usize) -> usize,
) -> Option<Bytes> {
    let mut plaintext = postcard::to_allocvec(value).expect("it encodes into memory");
    plaintext.resize(padded(plaintext.len()), 0);
    let sealed = Aes256Gcm::new(key.into()).encrypt(&[0; 12].into(), Payload { msg: &plaintext, aad });
    Some(sealed.ok()?.into())
}

pub(super) fn open_sealed<T: DeserializeOwned>(key: &[u8; 32], aad: &[u8], sealed: &[u8]) -> Option<T> {
    let plaintext = Aes256Gcm::new(key.into()).decrypt(&[0; 12].into(), Payload { msg: sealed, aad }).ok()?;
    let (value, padding) = postcard::take_from_bytes(&plaintext).ok()?;
    padding.iter().all(|byte| *byte == 0).then_some(value)
}
