//! A group as somebody sees it who knows the secrets of its epochs and cannot use a leaf of it: the public state (RFC 9420 §7, §8.1), which each
//! commit changes for everybody alike.
//!
//! [`View`] is what members and onlookers have in common, and with it each record is judged. An [`Onlooker`] follows commits that a member of the
//! time names, with the secrets that this member hands over. What it need not take on trust is who was in the group: each commit is signed by a
//! leaf of the tree that the commits before it made. What it cannot check alone is the confirmation tag, that paths decrypt, and what
//! stands beside a commit for who comes in; that a commit was followed by all is known once it meets
//! a group that the device is in itself, whose context commits to every commit before it ([`Group::context`]).

use std::collections::BTreeMap;

use openmls::{
    group::PublicGroup,
    prelude::{ContentType, LeafNode, ProcessedMessageContent, Proposal, Sender},
};
use serde::{Deserialize, Serialize};

use super::{
    Applied, Group, Invalid, Member, Policy, Record, Skipped, SnapshotError, Suite,
    commit::{access_of, join_context},
    crypto::Crypto,
    device::{known_member, name},
    group_id,
    ladder::{Place, Roster},
    policy::{self, Proposed},
    policy_in,
    process::{committer, events, proposed, protocol_message},
    record::Handshake,
    storage::Storage,
};
use crate::{
    core::{
        envelope::{Header, Kind, Suite as EnvelopeSuite},
        id::{DeviceKey, Digest, RoomId},
    },
    seal::{
        Random,
        epoch::{Epoch, EpochSecrets},
        message::{open, open_external},
    },
};

/// A group, as far as no leaf's keys are needed.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) public: &'a PublicGroup,
    pub(super) epoch: &'a Epoch,
}

impl<'a> View<'a> {
    fn leaves(&self) -> impl Iterator<Item = (u32, &'a LeafNode)> + use<'a> {
        let public = self.public;
        public.members().filter_map(|found| Some((found.index.u32(), public.leaf(found.index)?)))
    }

    /// By ascending leaf.
    pub(super) fn members(&self) -> Vec<Member> {
        self.leaves().filter_map(|(index, leaf)| known_member(index, leaf)).collect()
    }

    pub(super) fn names(&self) -> BTreeMap<u32, String> {
        self.leaves().map(|(index, leaf)| (index, name(leaf))).collect()
    }

    pub(super) fn policy(&self) -> Policy {
        policy_in(self.public.group_context().extensions()).expect("no commit without a policy was applied")
    }

    pub(super) fn suite(&self) -> Suite {
        if self.public.ciphersuite() == Suite::XWing.mls() { Suite::XWing } else { Suite::X25519 }
    }

    pub(super) fn roster(&self) -> Roster {
        let mut names = self.names();
        let place = |member: Member| {
            let Member { leaf, device, user, .. } = member;
            (leaf, Place { device, user, name: names.remove(&leaf).unwrap_or_default() })
        };
        self.members().into_iter().map(place).collect()
    }

    /// The commit's envelope, opened and verified, with nothing exchanged beside it: what is in it, and the device that sealed it.
    pub(super) fn open(&self, record: &Record) -> Result<(Handshake, DeviceKey), Invalid> {
        let envelope = &record.commit;
        let header = Header::parse(envelope).map_err(|_| Invalid::Envelope)?;
        if header.kind != Kind::Handshake {
            return Err(Invalid::Envelope);
        }
        let sender = self.members().into_iter().find(|member| member.leaf == header.leaf).map(|member| member.device);
        let verified = if header.suite == EnvelopeSuite::XWing {
            let context = join_context(self.public.group_context()).ok_or(Invalid::Envelope)?;
            let opened = open_external(self.epoch, &context.0, envelope).map_err(|_| Invalid::Envelope)?;
            opened.verify_with(|handshake: &Handshake| handshake.joiner.as_ref().map(|joiner| joiner.device))
        } else {
            let opened = open(self.epoch, envelope).map_err(|_| Invalid::Envelope)?;
            opened.verify_with(|handshake: &Handshake| sender.filter(|_| handshake.joiner.is_none()))
        };
        let handshake = verified.map_err(|_| Invalid::Envelope)?;
        let device = handshake.joiner.as_ref().map(|joiner| joiner.device).or(sender).ok_or(Invalid::Envelope)?;
        let spliced = handshake.welcome != record.welcome.as_ref().map(super::Part::hash)
            || handshake.group_info != record.group_info.as_ref().map(super::SealedGroupInfo::hash);
        if spliced { Err(Invalid::Spliced) } else { Ok((handshake, device)) }
    }

    /// What a commit proposes, if `sender` may; and what people are told of it.
    pub(super) fn judge(&self, proposed: &Proposed, sender: DeviceKey) -> Result<Applied, Invalid> {
        let by = committer(proposed).device;
        if by != sender {
            return Err(Invalid::Envelope);
        }
        let members = self.members();
        policy::check(&self.policy(), &members, self.suite().members_max(), proposed)?;
        Ok(Applied { epoch: self.epoch.number.saturating_add(1), by, events: events(&members, proposed), rebase: None })
    }
}

impl Group {
    pub(super) fn view(&self) -> View<'_> {
        View { public: self.mls.public_group(), epoch: &self.epoch }
    }

    /// SHA-256 of the group's context, which all commits up to here have a part in: groups that agree on it have the same past.
    #[must_use]
    pub fn context(&self) -> Option<Digest> {
        join_context(self.mls.public_group().group_context())
    }

    /// Whether it is a commit of this device's by which it takes its own place again: one that this copy of its storage does not remember.
    #[must_use]
    pub fn is_return(&self, record: &Record) -> bool {
        let is_external = Header::parse(&record.commit).is_ok_and(|header| header.suite == EnvelopeSuite::XWing);
        let own = || self.members().into_iter().find(|member| member.leaf == self.leaf()).map(|member| member.device);
        is_external && self.view().open(record).is_ok_and(|(_, device)| Some(device) == own())
    }

    /// The group as it is now, for when this device does not have its place any more.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn onlooker(&self) -> Result<Onlooker, SnapshotError> {
        let storage = self.storage.public_part();
        let public = PublicGroup::load(&storage, &group_id(self.room))?.ok_or(SnapshotError)?;
        Ok(Onlooker { public, storage, epoch: self.epoch.clone() })
    }
}

/// Somebody who follows a group without a leaf in it, by what members tell.
#[derive(Debug)]
pub struct Onlooker {
    public: PublicGroup,
    storage: Storage,
    pub(super) epoch: Epoch,
}

/// An onlooker as it is kept. postcard, in this order.
#[derive(Serialize, Deserialize)]
struct Snapshot {
    format: u8,
    room: RoomId,
    storage: Storage,
    epoch: u64,
    authenticator: Digest,
    secrets: EpochSecrets,
}

const SNAPSHOT_FORMAT: u8 = 1;

impl Onlooker {
    fn view(&self) -> View<'_> {
        View { public: &self.public, epoch: &self.epoch }
    }

    /// The epoch's keys.
    #[must_use]
    pub const fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// Who is in the group, by leaf.
    #[must_use]
    pub fn roster(&self) -> Roster {
        self.view().roster()
    }

    /// Roles, links, and what the room is called.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.view().policy()
    }

    /// As [`Group::context`].
    #[must_use]
    pub fn context(&self) -> Option<Digest> {
        join_context(self.public.group_context())
    }

    /// Takes the record that a member names as the one that began the next epoch, with that epoch's authenticator and secrets; without them where the
    /// commit takes out who looks on, or is the last one to look at: then nothing can be taken behind it.
    ///
    /// # Errors
    /// [`Skipped`]: it is as it was. Either the record is none that members have followed, or what this epoch was said to be is wrong.
    pub fn follow(
        &mut self,
        record: &Record,
        begun: Option<(Digest, EpochSecrets)>,
        rng: &mut (impl Random + Send),
    ) -> Result<Applied, Skipped> {
        if record.epoch <= self.epoch.number {
            return Err(Skipped::Past);
        }
        if record.epoch != self.epoch.number.saturating_add(1) {
            return Err(Skipped::Ahead { epoch: record.epoch });
        }
        let (handshake, sender) = self.view().open(record)?;
        let followed = self.stage(record, &handshake, sender, begun, rng);
        if followed.is_err() {
            // What was queued for a commit that is none.
            let id = self.public.group_id().clone();
            self.storage.forget_proposals();
            self.public = PublicGroup::load(&self.storage, &id).ok().flatten().ok_or(Skipped::Lost)?;
        }
        followed
    }

    fn stage(
        &mut self,
        record: &Record,
        handshake: &Handshake,
        sender: DeviceKey,
        begun: Option<(Digest, EpochSecrets)>,
        rng: &mut (impl Random + Send),
    ) -> Result<Applied, Skipped> {
        let crypto = Crypto::new(rng);
        for leave in &handshake.leaves {
            let processed = self.public.process_message(&crypto, protocol_message(leave)?).map_err(|_| Invalid::Proposal)?;
            match processed.into_content() {
                ProcessedMessageContent::ProposalMessage(proposal) if matches!(proposal.proposal(), Proposal::SelfRemove) => {
                    self.public.add_proposal(&self.storage, *proposal).map_err(|_| Invalid::Proposal)?;
                }
                _ => return Err(Invalid::Proposal.into()),
            }
        }
        let message = protocol_message(&handshake.commit)?;
        if message.content_type() != ContentType::Commit {
            return Err(Invalid::Commit.into());
        }
        let processed = self.public.process_message(&crypto, message).map_err(|_| Invalid::Commit)?;
        let mls_sender: Sender = processed.sender().clone();
        let ProcessedMessageContent::StagedCommitMessage(staged) = processed.into_content() else {
            return Err(Invalid::Commit.into());
        };
        let proposed = proposed(&self.public, &staged, &mls_sender, handshake.joiner.as_ref())?;
        let applied = self.view().judge(&proposed, sender)?;
        let begun = begun.map(|(authenticator, secrets)| Epoch::new(self.epoch.room, record.epoch, authenticator, secrets));
        // What else stands beside the commit is for who comes in; that its committer put it there is signed.
        if begun.as_ref().is_some_and(|epoch| record.access != policy::rotates(&proposed).then(|| access_of(epoch))) {
            return Err(Invalid::Access.into());
        }
        self.public.merge_commit(&self.storage, *staged).map_err(|_| Skipped::Lost)?;
        if let Some(epoch) = begun {
            self.epoch = epoch;
        }
        Ok(applied)
    }

    /// The state, to be kept. Secrets are in it.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        let Epoch { room, number, authenticator, .. } = self.epoch;
        let (storage, secrets) = (self.storage.clone(), self.epoch.secrets().clone());
        let snapshot = Snapshot { format: SNAPSHOT_FORMAT, room, storage, epoch: number, authenticator, secrets };
        postcard::to_allocvec(&snapshot).expect("a group encodes into memory")
    }

    /// As kept.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn restore(snapshot: &[u8]) -> Result<Self, SnapshotError> {
        let Snapshot { format, room, storage, epoch, authenticator, secrets } =
            postcard::from_bytes(snapshot).map_err(|_| SnapshotError)?;
        if format != SNAPSHOT_FORMAT {
            return Err(SnapshotError);
        }
        let public = PublicGroup::load(&storage, &group_id(room))?.ok_or(SnapshotError)?;
        policy_in(public.group_context().extensions()).ok_or(SnapshotError)?;
        Ok(Self { public, storage, epoch: Epoch::new(room, epoch, authenticator, secrets) })
    }
}
