//! Making a commit (RFC 9420 §12.4.1) and the record around it.

use bytes::Bytes;
use openmls::{
    group::{CommitMessageBundle, StagedCommit},
    prelude::{LeafNodeIndex, MlsMessageOut, Sender, tls_codec::Serialize as _},
};
use openmls_traits::OpenMlsProvider as _;
use serde::{Deserialize, Serialize};

use super::{
    Forbidden, Group, History, KeyPackage, KeyPackageError, LinkId, LiveLink, Pending, Policy, Role, SnapshotError,
    device::{DeviceSigner, Provider},
    join::seal_group_info,
    ladder::{Former, Steps},
    policy,
    process::{Invalid, exported, proposed},
    record::{Handshake, Part, Record, SealedGroupInfo},
    window::{LadderSecret, Window},
};
use crate::{
    core::{
        chain,
        id::{AccessKey, DeviceKey, UnixMillis},
    },
    seal::{
        Random,
        epoch::{Epoch, access_key},
        identity::{Identity, UserKey},
        message::{SealError, seal_handshake},
    },
};

/// What a member wants of the group. It names devices and not leaves, so that it still says the same when another commit came
/// first. An empty one gives this device's leaf new keys, which every commit does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Devices to add, by their key packages.
    pub add: Vec<KeyPackage>,
    /// Devices to remove.
    pub remove: Vec<DeviceKey>,
    /// What devices that go said ([`Group::leave`]).
    pub leaves: Vec<Bytes>,
    /// Roles to give, or to take.
    pub roles: Vec<(UserKey, Option<Role>)>,
    /// Links to list.
    pub list: Vec<LiveLink>,
    /// Links to revoke.
    pub revoke: Vec<LinkId>,
    /// What the room is to be called.
    pub title: Option<String>,
    /// What newcomers are to read.
    pub history: Option<History>,
}

impl Change {
    /// Whether it asks for nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Both.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.add.extend(other.add);
        self.remove.extend(other.remove);
        self.leaves.extend(other.leaves);
        self.roles.extend(other.roles);
        self.list.extend(other.list);
        self.revoke.extend(other.revoke);
        self.title = other.title.or(self.title);
        self.history = other.history.or(self.history);
        self
    }
}

/// Why no commit was made. The group is as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// One's own former commit still waits for the log.
    #[error("a commit waits for the log")]
    Waiting,
    /// This device is not in the group any more.
    #[error("not a member")]
    NotAMember,
    /// A key package cannot be used.
    #[error(transparent)]
    KeyPackage(#[from] KeyPackageError),
    /// The group's rules do not allow it.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// A device asked for what MLS does not allow, a removal of itself say.
    #[error("MLS does not allow this commit")]
    Mls,
    /// The record would be too large.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The stored state is damaged.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

impl Group {
    /// Makes the record of a commit, which takes effect when the log has it: [`Group::process`] is given it like everybody else's.
    /// What of the change has come true meanwhile is left out. Where newcomers read the last days, these end at `now_ms`.
    ///
    /// # Errors
    /// [`CommitError`].
    pub fn commit(
        &mut self,
        change: Change,
        now_ms: UnixMillis,
        identity: &Identity,
        rng: &mut (impl Random + Send),
    ) -> Result<Record, CommitError> {
        if self.pending.is_some() {
            return Err(CommitError::Waiting);
        }
        if !self.is_member() {
            return Err(CommitError::NotAMember);
        }
        let made = self.stage(&change, identity, rng);
        let provider = Provider::new(&self.storage, rng);
        // What a commit covers is in it; what it does not cover is in nobody's hands.
        self.mls.clear_pending_proposals(provider.storage())?;
        let made = made.and_then(|(bundle, leaves)| self.wrap(&bundle, leaves, now_ms, identity, |ladder| ladder, rng));
        match made {
            Ok(record) => {
                self.pending = Some(Pending { change, record: record.hash() });
                Ok(record)
            }
            Err(error) => {
                self.mls.clear_pending_commit(&self.storage)?;
                Err(error)
            }
        }
    }

    /// Gives up a commit that the log did not take, and returns what it was for.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn withdraw(&mut self) -> Result<Option<Change>, SnapshotError> {
        self.mls.clear_pending_commit(&self.storage)?;
        Ok(self.pending.take().map(|pending| pending.change))
    }

    /// Says that this device goes, for a member that stays to commit (SelfRemove, draft-ietf-mls-extensions). It holds for this epoch.
    ///
    /// # Errors
    /// [`CommitError::NotAMember`], [`CommitError::Waiting`].
    pub fn leave(&mut self, identity: &Identity, rng: &mut (impl Random + Send)) -> Result<Bytes, CommitError> {
        if self.pending.is_some() {
            return Err(CommitError::Waiting);
        }
        let provider = Provider::new(&self.storage, rng);
        let leave = self.mls.leave_group_via_self_remove(&provider, &DeviceSigner(identity));
        let leave = leave.map_err(|_| CommitError::NotAMember)?;
        self.mls.clear_pending_proposals(provider.storage())?;
        encode(&leave)
    }

    fn stage(
        &mut self,
        change: &Change,
        identity: &Identity,
        rng: &mut (impl Random + Send),
    ) -> Result<(CommitMessageBundle, Vec<Bytes>), CommitError> {
        let members = self.members();
        let is_in = |device: DeviceKey| members.iter().any(|member| member.device == device);
        let mut added = Vec::new();
        for package in &change.add {
            let package = package.verify(self.suite(), rng)?;
            if !is_in(package.device) {
                added.push(package);
            }
        }
        let removed: Vec<u32> = change.remove.iter().filter_map(|device| self.leaf_of(*device)).collect();
        // Who said in an earlier epoch that it goes, says nothing now.
        let leaves: Vec<(u32, Bytes)> = change
            .leaves
            .iter()
            .filter_map(|leave| Some((self.queue_leave(leave, rng).ok()?, leave.clone())))
            .filter(|(leaf, _)| !removed.contains(leaf))
            .collect();
        let gone = |leaf: u32| removed.contains(&leaf) || leaves.iter().any(|(left, _)| *left == leaf);
        let remaining: Vec<_> = members.iter().filter(|member| !gone(member.leaf)).copied().collect();
        let policy = self.policy();
        let is_of = |members: &[super::Member], user: UserKey| members.iter().any(|member| member.user == user);
        let goes = |user: UserKey| is_of(&members, user) && !is_of(&remaining, user);
        let after = after(&policy, change, (remaining.len() < members.len()).then_some(&remaining), goes);
        let provider = Provider::new(&self.storage, rng);
        let mut builder = self
            .mls
            .commit_builder()
            .force_self_update(true)
            .propose_adds(added.into_iter().map(|package| package.inner))
            .propose_removals(removed.into_iter().map(LeafNodeIndex::new));
        if after != policy {
            builder =
                builder.propose_group_context_extensions(super::context_extensions(&after)).map_err(|_| CommitError::Mls)?;
        }
        let bundle = builder
            .load_psks(&self.storage)
            .map_err(|_| CommitError::Mls)?
            .use_ratchet_tree_extension(true)
            .create_group_info(!after.links().is_empty())
            .build(provider.rand(), provider.crypto(), &DeviceSigner(identity), |_| true)
            .map_err(|_| CommitError::Mls)?
            .stage_commit(&provider)
            .map_err(|_| CommitError::Mls)?;
        Ok((bundle, leaves.into_iter().map(|(_, leave)| leave).collect()))
    }

    /// A commit that changes nothing, with a group info under a secret that is not the epoch's, as a member can make one who wants nobody to come
    /// in by a link. The group stays as it was.
    ///
    /// # Errors
    /// [`CommitError`].
    #[cfg(any(test, feature = "test-utils"))]
    pub fn commit_without_a_way_in(
        &mut self,
        identity: &Identity,
        rng: &mut (impl Random + Send),
    ) -> Result<Record, CommitError> {
        let (bundle, _) = self.stage(&Change::default(), identity, rng)?;
        let record = self.wrap(&bundle, Vec::new(), 0, identity, |_| LadderSecret([9; 32]), rng);
        self.mls.clear_pending_commit(&self.storage)?;
        record
    }

    /// Puts a commit that waits into its record; what is beside it is sealed `under` another secret than the epoch's by who lies.
    fn wrap(
        &self,
        bundle: &CommitMessageBundle,
        leaves: Vec<Bytes>,
        now_ms: UnixMillis,
        identity: &Identity,
        under: impl FnOnce(LadderSecret) -> LadderSecret,
        rng: &mut (impl Random + Send),
    ) -> Result<Record, CommitError> {
        let staged = self.mls.pending_commit().ok_or(CommitError::Mls)?;
        let sender = Sender::Member(self.mls.own_leaf_index());
        let proposed = proposed(self.mls.public_group(), staged, &sender, None).map_err(|invalid| match invalid {
            Invalid::Forbidden(forbidden) => CommitError::Forbidden(forbidden),
            _ => CommitError::Mls,
        })?;
        policy::check(&self.policy(), &self.members(), self.suite().members_max(), &proposed)?;
        let (epoch, ladder) = epoch_after(self, staged, rng).ok_or(CommitError::Mls)?;
        let ladder = under(ladder);
        let access = policy::rotates(&proposed).then(|| access_of(&epoch));
        let steps = self.steps(&proposed).map(|steps| (steps, &self.window, now_ms));
        let after = proposed.policy.unwrap_or_else(|| self.policy());
        assemble(bundle, (&epoch, &ladder), &after, (access, steps), rng, |welcome, group_info, rng| {
            let handshake = Handshake { commit: encode(bundle.commit())?, leaves, welcome, group_info, joiner: None };
            Ok(seal_handshake(&self.epoch, self.leaf(), identity, &handshake.encode(), rng)?)
        })
    }
}

/// The policy that a change makes of `before`; `remaining` when somebody goes. Who `goes` gets no role any more.
fn after(before: &Policy, change: &Change, remaining: Option<&Vec<super::Member>>, goes: impl Fn(UserKey) -> bool) -> Policy {
    let mut after = before.clone();
    if let Some(remaining) = remaining {
        after.after_removal(remaining);
    }
    for (user, role) in change.roles.iter().filter(|(user, _)| !goes(*user)) {
        after.set_role(*user, *role);
    }
    change.title.iter().for_each(|title| after.set_title(title));
    change.history.iter().for_each(|history| after.set_history(*history));
    for id in &change.revoke {
        after.revoke(*id);
    }
    if remaining.is_none() {
        change.list.iter().for_each(|link| after.list(link.clone()));
    }
    after
}

fn epoch_after(group: &Group, staged: &StagedCommit, rng: &mut (impl Random + Send)) -> Option<(Epoch, LadderSecret)> {
    let (secrets, authenticator, ladder) = exported(staged, rng)?;
    Some((Epoch::new(group.room, staged.epoch().as_u64(), authenticator, secrets), ladder))
}

pub(super) fn encode(message: &MlsMessageOut) -> Result<Bytes, CommitError> {
    Ok(message.to_bytes().map_err(|_| CommitError::Mls)?.into())
}

/// The record of a commit that leads to `epoch`, with policy `after`, `access` if somebody goes, and what it has for who goes down,
/// with the window before it and the time. `seal` seals the commit together
/// with the hashes of what stands beside it.
pub(super) fn assemble<R: Random + Send>(
    bundle: &CommitMessageBundle,
    (epoch, ladder): (&Epoch, &LadderSecret),
    after: &Policy,
    (access, steps): (Option<AccessKey>, Option<(Steps, &Window, UnixMillis)>),
    rng: &mut R,
    seal: impl FnOnce(Option<crate::core::id::Digest>, Option<crate::core::id::Digest>, &mut R) -> Result<Bytes, CommitError>,
) -> Result<Record, CommitError> {
    let welcome = bundle.to_welcome_msg().map(|welcome| encode(&welcome).map(Part::Whole)).transpose()?;
    let info = bundle.group_info().map(|info| MlsMessageOut::from(info.clone()));
    let mut group_info =
        info.map(|info| Ok::<_, CommitError>(seal_group_info((epoch, ladder), after, encode(&info)?, rng)?)).transpose()?;
    if let Some((steps, before, now_ms)) = steps {
        let (rung, window) = steps.seal(epoch, ladder, before, now_ms).ok_or(CommitError::Mls)?;
        group_info = Some(SealedGroupInfo { rung, window, ..group_info.unwrap_or_default() });
    }
    let welcome_hash = welcome.as_ref().map(Part::hash);
    let commit = seal(welcome_hash, group_info.as_ref().map(SealedGroupInfo::hash), rng)?;
    Ok(Record { epoch: epoch.number, after: 0, access, commit, welcome, group_info })
}

/// The epoch that a commit begins, for who comes in by a link, where newcomers read what was before.
pub(super) fn for_newcomers(epoch: &Epoch, policy: &Policy) -> Option<Former> {
    let (secrets, authenticator) = (epoch.secrets().clone(), epoch.authenticator);
    // What began it is the record that says this.
    let former = Former { secrets, authenticator, began: crate::core::id::Digest([0; 32]) };
    (policy.history() != History::FromJoin).then_some(former)
}

/// What opens the room from this epoch on, when somebody went with the commit that led to it.
pub(super) fn access_of(epoch: &Epoch) -> AccessKey {
    access_key(&epoch.secrets().access_seed(epoch.room))
}

/// What a joiner's envelope is bound to: SHA-256 of the group context that it joins.
pub(super) fn join_context(context: &openmls::prelude::GroupContext) -> Option<crate::core::id::Digest> {
    Some(chain::digest(&context.tls_serialize_detached().ok()?))
}
