//! Coming into a group: by a welcome (RFC 9420 §12.4.3.1), or by oneself with a link or to take one's own place again (external
//! commits, §12.4.3.2).

use bytes::Bytes;
use openmls::{
    group::{MlsGroup, ProposalStore, PublicGroup, StagedWelcome},
    messages::group_info::VerifiableGroupInfo,
    prelude::{
        LeafNodeParameters, MlsMessageBodyIn, MlsMessageIn, PreSharedKeyProposal, ProcessedWelcome,
        tls_codec::DeserializeBytes as _,
    },
    schedule::PreSharedKeyId,
};
use openmls_traits::{OpenMlsProvider as _, storage::StorageProvider as _};
use serde::{Deserialize, Serialize};

use super::{
    Applied, CommitError, Event, Forbidden, Group, History, KeyPackages, LinkId, LinkKeys, Member, Policy, Record,
    SealedGroupInfo, SealedKey, SnapshotError, Suite,
    commit::{assemble, encode, for_newcomers, join_context},
    device::{DeviceSigner, Provider, capabilities, credential, leaf_extensions, member, name},
    epoch_of, group_id, join_config,
    ladder::{Before, Place, Roster, Steps, is_due, open_sealed, seal_padded},
    policy_in,
    record::{GroupInfoBody, Handshake, Joiner, Part},
    window::{LadderSecret, Window, context as bound_to},
};
use crate::{
    core::id::{DeviceKey, Digest, RoomId, Seq, UnixMillis},
    seal::{
        Random,
        epoch::Epoch,
        hpke::{HpkeError, X25519Public, XWingPrivate, XWingPublic, open_xwing, seal_xwing, share_secret},
        identity::Identity,
        message::{SealError, padme, seal_external},
    },
};

/// Why a device does not come in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The record has nothing for this device: no welcome or group info, or none that its keys open.
    #[error("the record has nothing for this device")]
    NotForUs,
    /// What opened is not a group of this room, or not one of ours.
    #[error("the group is not as it must be")]
    Group,
    /// Another commit took the epoch: the join must be made anew from the newest group info.
    #[error("another commit came first")]
    Overtaken,
    /// The commit was not made.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The stored state is damaged.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

impl From<SealError> for JoinError {
    fn from(error: SealError) -> Self {
        Self::Commit(error.into())
    }
}

/// The pre-shared key (RFC 9420 §8.4) by which a commit proves a link.
pub(super) fn link_psk(id: LinkId, nonce: &[u8]) -> PreSharedKeyId {
    PreSharedKeyId::external(id.0.to_vec(), nonce.to_vec())
}

/// What a link's secret is bound to.
pub(super) fn link_info(room: RoomId, epoch: u64, id: LinkId, device: DeviceKey) -> Vec<u8> {
    [&b"waxwing join v1"[..], &room.0, &epoch.to_le_bytes(), &id.0, &device.0].concat()
}

/// What a link's key envelope is bound to.
fn key_info(context: &[u8], id: LinkId) -> Vec<u8> {
    [b"waxwing link key v1", context, &id.0].concat()
}

/// Seals an epoch's group info, and to each link what opens it and leads down from the epoch.
pub(super) fn seal_group_info(
    (epoch, ladder): (&Epoch, &LadderSecret),
    policy: &Policy,
    group_info: Bytes,
    rng: &mut impl Random,
) -> Result<SealedGroupInfo, SealError> {
    let (_, xwing) = XWingPrivate::from_seed(&epoch.secrets().xwing);
    let (x25519, xwing) = (epoch.public().to_bytes(), xwing.to_bytes().into());
    let body = GroupInfoBody { group_info, x25519, xwing, former: for_newcomers(epoch, policy) };
    let context = bound_to(epoch.room, epoch.number);
    let info = seal_padded(&ladder.info_key(&context), &context, &body, padme).ok_or(HpkeError::Key)?;
    let mut keys = Vec::new();
    for link in policy.links() {
        let id = link.id();
        let to = XWingPublic::from_bytes(&link.xwing)?;
        let (enc, ciphertext) = seal_xwing(&to, &key_info(&context, id), &[], rng, |_, _| ladder.0.to_vec())?;
        keys.push(SealedKey { link: id, enc: enc.into(), ciphertext: ciphertext.into() });
    }
    Ok(SealedGroupInfo { info: Some(Part::Whole(info)), keys, ..SealedGroupInfo::default() })
}

fn verifiable(message: &[u8]) -> Option<VerifiableGroupInfo> {
    match MlsMessageIn::tls_deserialize_exact_bytes(message).ok()?.extract() {
        MlsMessageBodyIn::GroupInfo(info) => Some(info),
        _ => None,
    }
}

/// Whether a group that somebody else described is one of ours: this room's, with a policy, and each leaf a person's.
fn is_proper(room: RoomId, mls: &MlsGroup) -> bool {
    let leaf = |index| mls.public_group().leaf(index);
    let proper = mls.members().all(|found| leaf(found.index).is_some_and(|leaf| member(found.index.u32(), leaf).is_some()));
    *mls.group_id() == group_id(room) && policy_in(mls.extensions()).is_some() && proper
}

/// Who is in a group that somebody else described.
fn described(info: &VerifiableGroupInfo, rng: &mut (impl Random + Send)) -> Result<Vec<(Member, String)>, JoinError> {
    let storage = super::Storage::default();
    let provider = Provider::new(&storage, rng);
    let tree = info.extensions().ratchet_tree().ok_or(JoinError::Group)?.ratchet_tree().clone();
    let group = PublicGroup::from_external(provider.crypto(), &storage, tree, info.clone(), ProposalStore::new());
    let (group, _) = group.map_err(|_| JoinError::Group)?;
    let described = |index: openmls::prelude::LeafNodeIndex| {
        let leaf = group.leaf(index)?;
        Some((member(index.u32(), leaf)?, name(leaf)))
    };
    Ok(group.members().filter_map(|found| described(found.index)).collect())
}

/// The link by which this device had come in, as its old leaf says.
fn own_via(members: &[(Member, String)], device: DeviceKey) -> Result<Option<LinkId>, JoinError> {
    let own = members.iter().find(|(member, _)| member.device == device);
    Ok(own.ok_or(JoinError::NotForUs)?.0.via)
}

fn roster(members: Vec<(Member, String)>) -> Roster {
    let place = |(member, name): (Member, String)| (member.leaf, Place { device: member.device, user: member.user, name });
    members.into_iter().map(place).collect()
}

impl Group {
    /// Comes in by a record's welcome. The key package is used up, unless it is of last resort.
    ///
    /// # Errors
    /// [`JoinError`]: the key packages are as they were.
    pub fn join(
        room: RoomId,
        record: &Record,
        keys: &mut KeyPackages,
        rng: &mut (impl Random + Send),
    ) -> Result<Self, JoinError> {
        Self::welcomed(room, record, keys, rng).map(|joining| joining.group)
    }

    /// As [`Group::join`], for who reads what was before: in the log the record is still to come.
    ///
    /// # Errors
    /// [`JoinError`].
    pub fn welcomed(
        room: RoomId,
        record: &Record,
        keys: &mut KeyPackages,
        rng: &mut (impl Random + Send),
    ) -> Result<Joining, JoinError> {
        let welcome = record.welcome.as_ref().and_then(Part::whole).ok_or(JoinError::NotForUs)?;
        let message = MlsMessageIn::tls_deserialize_exact_bytes(welcome).map_err(|_| JoinError::NotForUs)?;
        let MlsMessageBodyIn::Welcome(welcome) = message.extract() else { return Err(JoinError::NotForUs) };
        let storage = keys.storage.clone();
        let provider = Provider::new(&storage, rng);
        let welcome = ProcessedWelcome::new_from_welcome(&provider, &join_config(), welcome).map_err(|_| JoinError::NotForUs)?;
        let staged = openmls::group::JoinBuilder::new(&provider, welcome).skip_lifetime_validation().build();
        let staged: StagedWelcome = staged.map_err(|_| JoinError::Group)?;
        let by = staged.welcome_sender_index().u32();
        let mls = staged.into_group(&provider).map_err(|_| JoinError::Group)?;
        if !is_proper(room, &mls) || mls.epoch().as_u64() != record.epoch {
            return Err(JoinError::Group);
        }
        // What is left of the key packages stays with the device, and everything else is the group's.
        let rest = storage.split_key_packages();
        let mut group = Self::with(room, mls, storage, record.digest(), rng)?;
        group.window = record.window(room, &group.ladder).unwrap_or_default();
        let by = group.members().into_iter().find(|member| member.leaf == by).ok_or(JoinError::Group)?.device;
        keys.storage = rest;
        Ok(Joining { group, record: record.clone(), entrance: Entrance::Added { by } })
    }

    /// Whether who has a link comes in by this record, which began the epoch: whether its group info is this group's. That the keys for links open
    /// can be seen only by who holds them; and members who have the outline only rely on its committer, who can keep
    /// people out in other ways too.
    #[must_use]
    pub fn lets_in(&self, record: &Record) -> bool {
        let (epoch, policy) = (&self.epoch, self.policy());
        let info = record.group_info.as_ref().and_then(|beside| beside.info.as_ref()?.whole());
        let aad = bound_to(epoch.room, epoch.number);
        let body = info.and_then(|info| open_sealed::<GroupInfoBody>(&self.ladder.info_key(&aad), &aad, info));
        let (_, xwing) = XWingPrivate::from_seed(&epoch.secrets().xwing);
        body.is_some_and(|body| {
            let info = verifiable(&body.group_info);
            let tree = info.as_ref().and_then(|info| Some(info.extensions().ratchet_tree()?.ratchet_tree().clone()));
            body.x25519 == epoch.public().to_bytes()
                && body.xwing == xwing.to_bytes()
                && body.former == for_newcomers(epoch, &policy)
                && info.is_some_and(|info| info.group_context() == self.mls.public_group().group_context())
                && tree == Some(self.mls.export_ratchet_tree().into())
        })
    }

    /// The group info, for a device of the group that cannot follow it any more. It is in the clear: to be sealed to that device.
    ///
    /// # Errors
    /// [`CommitError`].
    pub fn group_info(&self, identity: &Identity, rng: &mut (impl Random + Send)) -> Result<GroupInfo, CommitError> {
        let provider = Provider::new(&self.storage, rng);
        let info = self.mls.export_group_info(provider.crypto(), &DeviceSigner(identity), true).map_err(|_| CommitError::Mls)?;
        let (_, xwing) = XWingPrivate::from_seed(&self.epoch.secrets().xwing);
        let (x25519, xwing) = (self.epoch.public().to_bytes(), xwing.to_bytes().into());
        let former = (self.policy().history() != History::FromJoin).then(|| self.former());
        let body = GroupInfoBody { group_info: encode(&info)?, x25519, xwing, former };
        Ok(GroupInfo { body, window: self.window.clone() })
    }
}

/// The group as it is described to who comes in. postcard, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupInfo {
    body: GroupInfoBody,
    window: Window,
}

impl GroupInfo {
    /// Opens a record's group info with a link.
    ///
    /// # Errors
    /// [`JoinError::NotForUs`].
    pub fn open(room: RoomId, record: &Record, link: &LinkKeys) -> Result<Self, JoinError> {
        let sealed = record.group_info.as_ref().ok_or(JoinError::NotForUs)?;
        let id = link.id();
        let for_link = sealed.keys.iter().find(|key| key.link == id).ok_or(JoinError::NotForUs)?;
        let context = bound_to(room, record.epoch);
        let info = key_info(&context, id);
        let opened = open_xwing(&link.xwing.0, &for_link.enc, &info, &[], &for_link.ciphertext);
        let (ladder, _) = opened.map_err(|_| JoinError::NotForUs)?;
        let ladder = LadderSecret(ladder.try_into().map_err(|_| JoinError::NotForUs)?);
        let whole = sealed.info.as_ref().and_then(Part::whole).ok_or(JoinError::NotForUs)?;
        let body = open_sealed(&ladder.info_key(&context), &context, whole);
        let mut body: GroupInfoBody = body.ok_or(JoinError::NotForUs)?;
        body.former.iter_mut().for_each(|former| former.began = record.digest());
        let window = record.window(room, &ladder).ok_or(JoinError::NotForUs)?;
        Ok(Self { body, window })
    }

    #[cfg(test)]
    pub(super) const fn body_former(&self) -> Option<&super::Former> {
        self.body.former.as_ref()
    }

    /// The bytes, to be sealed to the device that asked.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("a group info encodes into memory")
    }

    /// As a member sent it.
    ///
    /// # Errors
    /// [`JoinError::NotForUs`].
    pub fn decode(bytes: &[u8]) -> Result<Self, JoinError> {
        postcard::from_bytes(bytes).map_err(|_| JoinError::NotForUs)
    }

    /// Makes the commit by which this device comes in: with a link, or without one to take its own place again. Where newcomers read the last
    /// days, these end at `now_ms`.
    ///
    /// # Errors
    /// [`JoinError`].
    pub fn join(
        &self,
        room: RoomId,
        link: Option<&LinkKeys>,
        now_ms: UnixMillis,
        identity: &Identity,
        rng: &mut (impl Random + Send),
    ) -> Result<Joining, JoinError> {
        let info = verifiable(&self.body.group_info).ok_or(JoinError::Group)?;
        let context = join_context(info.group_context()).ok_or(JoinError::Group)?;
        let (epoch, suite) = (info.epoch().as_u64(), info.ciphersuite());
        let policy = policy_in(info.group_context().extensions()).ok_or(JoinError::Group)?;
        let proof = link.map(|link| self.prove(room, epoch, link, identity.device(), rng)).transpose()?;
        let days = is_due(&policy, &policy);
        let members = if proof.is_none() || days.is_some() { described(&info, rng)? } else { Vec::new() };
        let via = match proof {
            Some((id, ..)) => Some(id),
            None => own_via(&members, identity.device())?,
        };
        let storage = super::Storage::default();
        let nonce: [u8; 32] = rng.bytes();
        let provider = Provider::new(&storage, rng);
        let leaf = LeafNodeParameters::builder()
            .with_capabilities(capabilities(suite))
            .with_extensions(leaf_extensions(via, identity))
            .build();
        let mut builder = MlsGroup::external_commit_builder()
            .with_config(join_config())
            .skip_lifetime_validation()
            .build_group(&provider, info, credential(identity))
            .map_err(|_| JoinError::Group)?
            .leaf_node_parameters(leaf);
        if let Some((id, _, secret)) = proof {
            let psk = link_psk(id, &nonce);
            psk.store(&provider, &secret).map_err(|_| JoinError::Group)?;
            builder = builder.add_psk_proposal(PreSharedKeyProposal::new(psk));
        }
        let (mls, bundle) = builder
            .load_psks(&storage)
            .map_err(|_| JoinError::Group)?
            .use_ratchet_tree_extension(true)
            .create_group_info(!policy.links().is_empty())
            .build(provider.rand(), provider.crypto(), &DeviceSigner(identity), |_| true)
            .map_err(|_| JoinError::Group)?
            .finalize(&provider)
            .map_err(|_| JoinError::Group)?;
        if let Some((id, ..)) = proof {
            storage.delete_psk(link_psk(id, &[]).psk())?;
        }
        if !is_proper(room, &mls) {
            return Err(JoinError::Group);
        }
        let suite = if suite == Suite::XWing.mls() { Suite::XWing } else { Suite::X25519 };
        if mls.members().count() > suite.members_max() {
            // Every member would skip it.
            return Err(CommitError::Forbidden(Forbidden::Full).into());
        }
        let (new, ladder) = epoch_of(room, &mls, rng).ok_or(JoinError::Group)?;
        let joiner = Joiner { device: identity.device(), link: proof.map(|(id, enc, _)| (id, enc)) };
        let to = XWingPublic::from_bytes(&self.body.xwing).map_err(|_| JoinError::Group)?;
        let steps = match (days, &self.body.former) {
            (Some(days), Some(former)) => {
                let before = Before { former: former.clone(), roster: roster(members), title: policy.title().to_owned() };
                let after = mls.members().filter_map(|found| {
                    member(found.index.u32(), mls.public_group().leaf(found.index)?).map(|member| (member.leaf, member.device))
                });
                let rung = before.rung(identity.device(), &after.collect(), Vec::new());
                Some((Steps { rung, days }, &self.window, now_ms))
            }
            (Some(_), None) => return Err(JoinError::Group),
            (None, _) => None,
        };
        let record = assemble(&bundle, (&new, &ladder), &policy, (None, steps), rng, |welcome, group_info, rng| {
            let commit = encode(bundle.commit())?;
            let handshake = Handshake { commit, leaves: Vec::new(), welcome, group_info, joiner: Some(joiner) };
            Ok(seal_external(&to, (room, epoch), &context.0, identity, &handshake.encode(), rng)?)
        })?;
        let mut group = Group::with(room, mls, storage, Digest([0; 32]), rng)?;
        group.window = record.window(room, &ladder).unwrap_or_default();
        let entrance = if proof.is_some() { Entrance::Link } else { Entrance::Again };
        Ok(Joining { group, record, entrance })
    }

    /// The link's secret for this epoch and device: (link, encapsulation, secret).
    fn prove(
        &self,
        room: RoomId,
        epoch: u64,
        link: &LinkKeys,
        device: DeviceKey,
        rng: &mut impl Random,
    ) -> Result<(LinkId, [u8; 32], [u8; 32]), JoinError> {
        let id = link.id();
        let to = X25519Public::from_bytes(&self.body.x25519).map_err(|_| JoinError::Group)?;
        let (private, public) = &link.x25519;
        let info = link_info(room, epoch, id, device);
        let (enc, secret) = share_secret((private, public), &to, &info, rng).map_err(|_| JoinError::Group)?;
        Ok((id, enc, secret))
    }
}

/// How a device comes in. postcard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entrance {
    /// By a link, with a commit of its own.
    Link,
    /// With a commit of its own that takes its own place again.
    Again,
    /// With a member's commit.
    Added {
        /// That member's device.
        by: DeviceKey,
    },
}

/// A commit by which a device comes in, until it is read in the log.
#[derive(Debug)]
pub struct Joining {
    group: Group,
    record: Record,
    entrance: Entrance,
}

impl Joining {
    /// The group as the device will find it.
    #[must_use]
    pub const fn group(&self) -> &Group {
        &self.group
    }

    /// What is given to the log, once it says behind which record.
    pub const fn place_after(&mut self, after: Seq) -> &Record {
        self.record.after = after;
        &self.record
    }

    /// What is given to the log.
    #[must_use]
    pub const fn record(&self) -> &Record {
        &self.record
    }

    /// The state, to be kept beside the record. Secrets are in it.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        self.group.snapshot()
    }

    /// How the device comes in.
    #[must_use]
    pub const fn entrance(&self) -> Entrance {
        self.entrance
    }

    /// As kept.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn restore(
        snapshot: &[u8],
        record: Record,
        entrance: Entrance,
        rng: &mut (impl Random + Send),
    ) -> Result<Self, SnapshotError> {
        Ok(Self { group: Group::restore(snapshot, rng)?, record, entrance })
    }

    /// The log's record for that epoch: the group if it is this one's.
    ///
    /// # Errors
    /// [`JoinError::Overtaken`].
    pub fn confirm(self, record: &Record) -> Result<(Group, Applied), JoinError> {
        if record.hash() != self.record.hash() {
            return Err(JoinError::Overtaken);
        }
        let mut group = self.group;
        group.began = record.digest();
        let me = group.members().into_iter().find(|member| member.leaf == group.leaf()).ok_or(JoinError::Group)?;
        let (by, event) = match self.entrance {
            Entrance::Link => (me.device, Event::Joined(me)),
            Entrance::Again => (me.device, Event::Rejoined(me)),
            Entrance::Added { by } => (by, Event::Added(me)),
        };
        let applied = Applied { epoch: group.epoch.number, by, events: vec![event], rebase: None };
        Ok((group, applied))
    }
}
