//! The ladder of a room whose newcomers read everything: each commit's record has a *rung*, the secrets of the epoch that it ends, sealed under
//! a key of the epoch that it begins. Whoever is in an epoch goes down from there, commit by commit, with nobody online.
//!
//! A rung says nothing that the members of both epochs do not know, so that each of them checks it, and a commit whose rung is another
//! one is invalid for all alike. It is there if, and only if, the policy before and after the commit is [`History::Everything`]: the ladder
//! ends above the commit that chose it.

use std::collections::BTreeMap;

use aes_gcm::{
    Aes256Gcm, KeyInit as _,
    aead::{Aead as _, Payload},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Group, Policy, Record,
    policy::{Committer, History, Member, Proposed},
};
use crate::{
    core::{
        chain,
        id::{DeviceKey, Digest},
    },
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

/// Whether a commit between these policies has a rung.
pub(super) fn is_due(before: &Policy, after: &Policy) -> bool {
    before.history() == History::Everything && after.history() == History::Everything
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
        let mut names = self.names();
        let place = |member: Member| {
            let Member { leaf, device, user, .. } = member;
            (leaf, Place { device, user, name: names.remove(&leaf).unwrap_or_default() })
        };
        self.members().into_iter().map(place).collect()
    }

    /// The epoch, for who comes in.
    pub(super) fn former(&self) -> Former {
        Former { secrets: self.epoch.secrets().clone(), authenticator: self.epoch.authenticator, began: self.began }
    }

    /// What the rung of a commit says, if it has one.
    pub(super) fn rung(&self, proposed: &Proposed) -> Option<Rung> {
        let policy = self.policy();
        if !is_due(&policy, proposed.policy.as_ref().unwrap_or(&policy)) {
            return None;
        }
        let before = Before { former: self.former(), roster: self.roster(), title: policy.title().to_owned() };
        let by = match proposed.committer {
            Committer::Member { after, .. } | Committer::Joiner { after, .. } => after.device,
        };
        Some(before.rung(by, &proposed.devices_after(&self.members()), proposed.left.clone()))
    }
}

impl Record {
    /// What this record, which began `epoch`, says of the one before; `None` where the ladder ends.
    #[must_use]
    pub fn rung(&self, epoch: &Epoch) -> Option<Rung> {
        Rung::open(epoch, &self.group_info.as_ref()?.rung)
    }

    /// SHA-256 of the bytes that the log keeps.
    #[must_use]
    pub fn digest(&self) -> Digest {
        chain::digest(&self.encode())
    }
}

/// A rung's key, and what is authenticated with it.
fn key(epoch: &Epoch) -> ([u8; 32], Vec<u8>) {
    let context = [&epoch.room.0[..], &epoch.number.to_le_bytes()].concat();
    (derive(&epoch.secrets().psk, "waxwing rung v1", &context), context)
}

impl Rung {
    /// Seals it under a key of the epoch that the commit begins. The key encrypts once, so that its nonce is zero.
    pub(super) fn seal(&self, epoch: &Epoch) -> Option<Bytes> {
        let mut plaintext = postcard::to_allocvec(self).expect("a rung encodes into memory");
        plaintext.resize(bucket(plaintext.len()), 0);
        let (key, aad) = key(epoch);
        let sealed = Aes256Gcm::new(&key.into()).encrypt(&[0; 12].into(), Payload { msg: &plaintext, aad: &aad });
        Some(sealed.ok()?.into())
    }

    pub(super) fn open(epoch: &Epoch, sealed: &[u8]) -> Option<Self> {
        if sealed.is_empty() {
            return None;
        }
        let (key, aad) = key(epoch);
        let plaintext = Aes256Gcm::new(&key.into()).decrypt(&[0; 12].into(), Payload { msg: sealed, aad: &aad }).ok()?;
        let (rung, padding) = postcard::take_from_bytes(&plaintext).ok()?;
        padding.iter().all(|byte| *byte == 0).then_some(rung)
    }
}
