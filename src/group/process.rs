//! Taking a record from the log: whether it is valid, for every member alike, and what it changes.

use openmls::{
    group::{ProcessMessageError, PublicGroup, StageCommitError, StagedCommit},
    prelude::{
        ApplyUpdatePathError, ContentType, LeafNode, MlsMessageIn, ProcessedMessageContent, Proposal, ProtocolMessage, Sender,
        tls_codec::{DeserializeBytes as _, Serialize as _},
    },
    schedule::{PreSharedKeyId, Psk},
};
use openmls_traits::{OpenMlsProvider as _, storage::StorageProvider as _};

use super::{
    Change, Forbidden, Group, LinkId, Member, Record,
    commit::access_of,
    crypto::Crypto,
    device::{Provider, capabilities, lifetime, member},
    epoch_of, epoch_secrets,
    join::{link_info, link_psk},
    policy::{self, Committer, Proposed},
    policy_in,
    record::{Handshake, Joiner},
    storage::SnapshotError,
};
use crate::{
    core::id::{DeviceKey, Digest},
    seal::{
        Random,
        epoch::Epoch,
        hpke::{X25519Public, shared_secret},
    },
};

/// What a record did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The epoch that the group is in now.
    pub epoch: u64,
    /// Whose commit it was.
    pub by: DeviceKey,
    /// What happened, in the order of the proposals.
    pub events: Vec<Event>,
    /// One's own change that lost against this commit: to be made anew.
    pub rebase: Option<Change>,
}

/// What a commit changes, as people see it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The committer added a device.
    Added(Member),
    /// The committer came in by a link.
    Joined(Member),
    /// The committer, which had lost its keys, took its own place again.
    Rejoined(Member),
    /// The committer removed a device.
    Removed(Member),
    /// A device had said that it goes.
    Left(Member),
    /// Roles or links are others now.
    Policy,
}

/// Why a record did nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Skipped {
    /// It leads to an epoch that the group is in, or has left.
    #[error("the record is for a past epoch")]
    Past,
    /// Records are missing before it.
    #[error("the record is for epoch {epoch}: records are missing before it")]
    Ahead {
        /// The epoch that it leads to.
        epoch: u64,
    },
    /// It breaks a rule; every member skips it.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// Others may be able to follow it; this device is not, and takes its place anew by [`super::GroupInfo`]. So it is where a restored
    /// snapshot lacks a commit of its own, or a committer sealed something else for it than for others.
    #[error("this device cannot follow the group and must rejoin")]
    Lost,
    /// This device was removed before.
    #[error("not a member")]
    NotAMember,
}

/// What is wrong with a record, for every member alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Invalid {
    /// The envelope does not open, or is not signed by who it says.
    #[error("the record's envelope is not a member's or a joiner's")]
    Envelope,
    /// What stands beside the commit is not what the committer put there.
    #[error("the record was put together from several")]
    Spliced,
    /// MLS refuses the commit.
    #[error("the commit is invalid")]
    Commit,
    /// A proposal that groups of ours do not have, or a leaf that is not like theirs.
    #[error("the commit proposes what is not allowed here")]
    Proposal,
    /// The group's rules do not allow it.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// Somebody goes and the room's access key does not change to the new epoch's, or it changes and nobody goes.
    #[error("the room's access key is not the new epoch's")]
    Access,
    /// The group info for links is missing, or not for all of them, or there although none is live.
    #[error("the group info is not for the links that are live")]
    GroupInfo,
    /// What opens the time before is missing, or another one, or there where newcomers are not to read it; or it would open more of it again.
    #[error("the rung is not the former epoch's")]
    Rung,
}

impl Group {
    /// Takes a record of the room's log.
    ///
    /// # Errors
    /// [`Skipped`]: the group is as it was.
    pub fn process(&mut self, record: &Record, rng: &mut (impl Random + Send)) -> Result<Applied, Skipped> {
        if !self.is_member() {
            return Err(Skipped::NotAMember);
        }
        if record.epoch <= self.epoch.number {
            return Err(Skipped::Past);
        }
        if record.epoch != self.epoch.number + 1 {
            return Err(Skipped::Ahead { epoch: record.epoch });
        }
        let own = self.pending.as_ref().is_some_and(|pending| pending.record == record.hash());
        if own { self.confirm(record, rng) } else { self.apply(record, rng) }
    }

    /// One's own commit was the one.
    fn confirm(&mut self, record: &Record, rng: &mut (impl Random + Send)) -> Result<Applied, Skipped> {
        let staged = self.mls.pending_commit().ok_or(Skipped::Lost)?;
        let sender = Sender::Member(self.mls.own_leaf_index());
        let proposed = proposed(self.mls.public_group(), staged, &sender, None)?;
        let by = committer(&proposed).device;
        let events = events(&self.members(), &proposed);
        self.mls.merge_pending_commit(&Provider::new(&self.storage, rng)).map_err(|_| Skipped::Lost)?;
        self.pending = None;
        self.advance(record, by, events, None, rng)
    }

    fn apply(&mut self, record: &Record, rng: &mut (impl Random + Send)) -> Result<Applied, Skipped> {
        let (handshake, sender) = self.view().open(record)?;
        let staged = self.stage_received(&handshake, rng);
        // Whatever became of it, nothing of it stays.
        self.mls.clear_pending_proposals(&self.storage).map_err(|_| Skipped::Lost)?;
        if let Some((id, _)) = handshake.joiner.as_ref().and_then(|joiner| joiner.link) {
            self.storage.delete_psk(link_psk(id, &[]).psk()).map_err(|_| Skipped::Lost)?;
        }
        let (staged, mls_sender) = staged?;
        let proposed = proposed(self.mls.public_group(), &staged, &mls_sender, handshake.joiner.as_ref())?;
        let Applied { by, events, .. } = self.view().judge(&proposed, sender)?;
        if !staged.self_removed() {
            self.check_beside(record, &staged, &proposed, rng)?;
        }
        self.mls.merge_staged_commit(&Provider::new(&self.storage, rng), staged).map_err(|_| Skipped::Lost)?;
        let rebase = self.pending.take().map(|pending| pending.change);
        self.advance(record, by, events, rebase, rng)
    }

    fn advance(
        &mut self,
        record: &Record,
        by: DeviceKey,
        events: Vec<Event>,
        rebase: Option<Change>,
        rng: &mut (impl Random + Send),
    ) -> Result<Applied, Skipped> {
        let number = self.mls.epoch().as_u64();
        if self.is_member() {
            (self.epoch, self.ladder) = epoch_of(self.room, &self.mls, rng).ok_or(Skipped::Lost)?;
            self.began = record.digest();
            // It was looked at before, or is this device's own.
            self.window = record.window(self.room, &self.ladder).unwrap_or_default();
        }
        Ok(Applied { epoch: number, by, events, rebase })
    }

    /// Queues what a device said that goes; returns its leaf.
    pub(super) fn queue_leave(&mut self, leave: &[u8], rng: &mut (impl Random + Send)) -> Result<u32, Invalid> {
        let message = protocol_message(leave)?;
        let provider = Provider::new(&self.storage, rng);
        let processed = self.mls.process_message(&provider, message).map_err(|_| Invalid::Proposal)?;
        let Sender::Member(leaf) = *processed.sender() else { return Err(Invalid::Proposal) };
        match processed.into_content() {
            ProcessedMessageContent::ProposalMessage(proposal) if matches!(proposal.proposal(), Proposal::SelfRemove) => {
                self.mls.store_pending_proposal(provider.storage(), *proposal).map_err(|_| Invalid::Proposal)?;
                Ok(leaf.u32())
            }
            _ => Err(Invalid::Proposal),
        }
    }

    fn stage_received(
        &mut self,
        handshake: &Handshake,
        rng: &mut (impl Random + Send),
    ) -> Result<(StagedCommit, Sender), Skipped> {
        for leave in &handshake.leaves {
            self.queue_leave(leave, rng)?;
        }
        if let Some(Joiner { device, link: Some((id, enc)) }) = &handshake.joiner {
            let live = self.policy().link(*id).cloned().ok_or(Invalid::Forbidden(Forbidden::NoLink))?;
            let from = X25519Public::from_bytes(&live.x25519).map_err(|_| Invalid::Proposal)?;
            let info = link_info(self.room, self.epoch.number, *id, *device);
            // Without the link's key nobody finds the secret, and the commit's confirmation tag does not fit.
            let secret = shared_secret(self.epoch.private(), &from, enc, &info).map_err(|_| Invalid::Commit)?;
            let provider = Provider::new(&self.storage, rng);
            link_psk(*id, &[]).store(&provider, &secret).map_err(|_| Skipped::Lost)?;
        }
        let message = protocol_message(&handshake.commit)?;
        if message.content_type() != ContentType::Commit {
            return Err(Invalid::Commit.into());
        }
        let processed = self.mls.process_message(&Provider::new(&self.storage, rng), message).map_err(|error| skipped(&error))?;
        let sender = processed.sender().clone();
        match processed.into_content() {
            ProcessedMessageContent::StagedCommitMessage(staged) => Ok((*staged, sender)),
            // One's own commit under another record: the log says that it is not the one.
            _ => Err(Invalid::Spliced.into()),
        }
    }

    /// A link that is live after the commit needs a group info and its key, and a ladder its rung; where neither is, there is nothing. The same
    /// holds for the access key when somebody goes. Whether the group info is the new epoch's is no rule: members have its hash only.
    fn check_beside(
        &self,
        record: &Record,
        staged: &StagedCommit,
        proposed: &Proposed,
        rng: &mut (impl Random + Send),
    ) -> Result<(), Skipped> {
        let (secrets, authenticator, ladder) = exported(staged, rng).ok_or(Skipped::Lost)?;
        let epoch = Epoch::new(self.room, record.epoch, authenticator, secrets);
        if record.access != policy::rotates(proposed).then(|| access_of(&epoch)) {
            return Err(Invalid::Access.into());
        }
        let after = proposed.policy.clone().unwrap_or_else(|| self.policy());
        let steps = self.steps(proposed);
        let (live, beside) = (!after.links().is_empty(), record.group_info.as_ref());
        let has_info = beside.is_some_and(|beside| beside.info.is_some());
        let links = after.links().iter().map(super::LiveLink::id);
        let for_all = links.eq(beside.into_iter().flat_map(|beside| &beside.keys).map(|key| key.link));
        if has_info != live || !for_all || beside.is_some() != (live || steps.is_some()) {
            return Err(Invalid::GroupInfo.into());
        }
        let good = match (steps, beside) {
            (Some(steps), Some(beside)) => steps.are_in(beside, &epoch, &ladder, &self.window),
            (None, Some(beside)) => beside.rung.is_empty() && beside.window.is_empty(),
            (steps, None) => steps.is_none(),
        };
        if good { Ok(()) } else { Err(Invalid::Rung.into()) }
    }
}

pub(super) fn protocol_message(bytes: &[u8]) -> Result<ProtocolMessage, Invalid> {
    let message = MlsMessageIn::tls_deserialize_exact_bytes(bytes).map_err(|_| Invalid::Commit)?;
    match message.try_into_protocol_message() {
        Ok(message @ ProtocolMessage::PublicMessage(_)) => Ok(message),
        _ => Err(Invalid::Commit),
    }
}

/// Whether an error is everybody's or one's own. A commit's path is sealed to each part of the tree separately, so that what does
/// not decrypt here may do so elsewhere. Once it has decrypted, the path's public keys fix everything that follows.
fn skipped(error: &ProcessMessageError<SnapshotError>) -> Skipped {
    match error {
        ProcessMessageError::LibraryError(_)
        | ProcessMessageError::StorageError(_)
        | ProcessMessageError::InvalidCommit(
            StageCommitError::LibraryError(_)
            | StageCommitError::OwnCommitMismatch
            | StageCommitError::OwnKeyNotFound
            | StageCommitError::MissingDecryptionKey
            | StageCommitError::UpdatePathError(
                ApplyUpdatePathError::LibraryError(_)
                | ApplyUpdatePathError::PathMismatch
                | ApplyUpdatePathError::UnableToDecrypt
                | ApplyUpdatePathError::MissingCiphertext,
            ),
        ) => Skipped::Lost,
        _ => Skipped::Invalid(Invalid::Commit),
    }
}

/// What MLS exports for the epoch that a commit leads to.
pub(super) fn exported(staged: &StagedCommit, rng: &mut (impl Random + Send)) -> Option<super::Exported> {
    let crypto = Crypto::new(rng);
    let (secrets, ladder) = epoch_secrets(|label| staged.export_secret(&crypto, label, &[], 32).ok())?;
    Some((secrets, Digest(staged.epoch_authenticator()?.as_slice().try_into().ok()?), ladder))
}

pub(super) const fn committer(proposed: &Proposed) -> Member {
    match proposed.committer {
        Committer::Member { after, .. } | Committer::Joiner { after, .. } => after,
    }
}

/// A leaf as all of our leaves are.
fn proper_leaf(group: &PublicGroup, index: u32, leaf: &LeafNode) -> Result<Member, Invalid> {
    if *leaf.capabilities() != capabilities(group.ciphersuite()) {
        return Err(Invalid::Proposal);
    }
    member(index, leaf).ok_or(Invalid::Proposal)
}

/// What a commit proposes, in our words. Whatever has no words here is invalid.
pub(super) fn proposed(
    group: &PublicGroup,
    staged: &StagedCommit,
    sender: &Sender,
    joiner: Option<&Joiner>,
) -> Result<Proposed, Invalid> {
    let leaf = staged.update_path_leaf_node().ok_or(Invalid::Proposal)?;
    let index = match sender {
        Sender::Member(index) => *index,
        _ => group.ext_commit_sender_index(staged).map_err(|_| Invalid::Commit)?,
    };
    let after = proper_leaf(group, index.u32(), leaf)?;
    let mut links = Vec::new();
    let (mut added, mut removed, mut left, mut new_policy) = (Vec::new(), Vec::new(), Vec::new(), None);
    for queued in staged.queued_proposals() {
        match queued.proposal() {
            Proposal::Add(add) => {
                let package = add.key_package();
                let member = proper_leaf(group, 0, package.leaf_node())?;
                if *package.life_time() != lifetime() || member.via.is_some() {
                    return Err(Invalid::Proposal);
                }
                added.push((member.device, member.user));
            }
            Proposal::Remove(remove) => removed.push(remove.removed().u32()),
            Proposal::SelfRemove => match queued.sender() {
                Sender::Member(leaf) => left.push(leaf.u32()),
                _ => return Err(Invalid::Proposal),
            },
            Proposal::GroupContextExtensions(proposal) => {
                new_policy = Some(policy_in(proposal.extensions()).ok_or(Invalid::Proposal)?);
            }
            Proposal::PreSharedKey(psk) => links.push(psk_link(psk).ok_or(Invalid::Proposal)?),
            Proposal::ExternalInit(_) => {}
            _ => return Err(Invalid::Proposal),
        }
    }
    let committer = match (sender, joiner) {
        (Sender::Member(leaf), None) if links.is_empty() => Committer::Member { leaf: leaf.u32(), after },
        (Sender::NewMemberCommit, Some(joiner)) => {
            // The secret that was tried is the one that the commit names.
            let named = joiner.link.map(|(id, _)| id);
            if links.first().copied() != named {
                return Err(Invalid::Forbidden(Forbidden::NoLink));
            }
            Committer::Joiner { after, links: links.len(), link: named }
        }
        _ => return Err(Invalid::Proposal),
    };
    Ok(Proposed { committer, added, removed, left, policy: new_policy })
}

/// The link whose secret a proposal injects.
fn psk_link(proposal: &openmls::prelude::PreSharedKeyProposal) -> Option<LinkId> {
    let id = PreSharedKeyId::tls_deserialize_exact_bytes(&proposal.tls_serialize_detached().ok()?).ok()?;
    match id.psk() {
        Psk::External(external) => Some(LinkId(external.psk_id().try_into().ok()?)),
        Psk::Resumption(_) => None,
    }
}

/// What people are told.
pub(super) fn events(members: &[Member], proposed: &Proposed) -> Vec<Event> {
    let of = |leaf: &u32| members.iter().find(|member| member.leaf == *leaf).copied();
    let mut events = Vec::new();
    match proposed.committer {
        Committer::Joiner { after, link: Some(_), .. } => events.push(Event::Joined(after)),
        Committer::Joiner { after, link: None, .. } => events.push(Event::Rejoined(after)),
        Committer::Member { .. } => events.extend(proposed.removed.iter().filter_map(of).map(Event::Removed)),
    }
    events.extend(proposed.left.iter().filter_map(of).map(Event::Left));
    for (leaf, (device, user)) in proposed.added_leaves(members).into_iter().zip(&proposed.added) {
        events.push(Event::Added(Member { leaf, device: *device, user: *user, via: None }));
    }
    if proposed.policy.is_some() {
        events.push(Event::Policy);
    }
    events
}
