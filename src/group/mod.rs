//! Groups by MLS (RFC 9420): who is in a room, and the secrets of its epochs. Pure: records in, records out; time is an argument
//! where there is any, and randomness is injected.
//!
//! A room's log carries [`Record`]s, each of which leads from an epoch to the next. [`Group::commit`] makes one, and waits;
//! [`Group::process`] takes what the log says, one's own records too. Two members that change the group at once make two records for the
//! same epoch: the log takes one, and the other one's maker gets its [`Change`] back and makes it anew. A record that breaks a
//! rule is skipped by every member alike ([`policy`](Policy) is a function of the state and the record), and the next one may
//! take its epoch.
//!
//! From each epoch MLS exports (§8.5) what [`Epoch`] consists of, so that envelopes are as they were.

mod commit;
mod crypto;
mod device;
mod join;
mod ladder;
mod onlooker;
mod policy;
mod process;
mod record;
mod storage;
#[cfg(test)]
pub(crate) mod tests;
mod window;

use std::collections::BTreeMap;

use openmls::prelude::{
    Ciphersuite, Extension, Extensions, GroupContext, GroupEpoch, GroupId, LeafNodeIndex, MlsGroup, MlsGroupCreateConfig,
    MlsGroupJoinConfig, PURE_PLAINTEXT_WIRE_FORMAT_POLICY, UnknownExtension,
};
use serde::{Deserialize, Serialize};

pub use self::{
    commit::{Change, CommitError},
    device::{KeyPackage, KeyPackageError, KeyPackages, VerifiedKeyPackage},
    join::{Entrance, GroupInfo, JoinError, Joining},
    ladder::{Former, Place, Roster, Rung},
    onlooker::Onlooker,
    policy::{
        DAYS_MAX, Forbidden, History, LARGE_MEMBERS_MAX, LINKS_MAX, LinkId, LinkKeys, LiveLink, MEMBERS_MAX, Member, Policy,
        Role, TITLE_LEN_MAX,
    },
    process::{Applied, Event, Invalid, Skipped},
    record::{Part, Record, RecordError, SealedGroupInfo, SealedKey},
    storage::SnapshotError,
    window::{RungKey, WINDOW_MAX},
};
use self::{
    device::{DeviceSigner, POLICY, Provider, capabilities, credential, leaf_extensions, lifetime, required},
    storage::Storage,
    window::{LadderSecret, Window},
};
pub use crate::core::packages::Suite;
use crate::{
    core::id::{DeviceKey, Digest, RoomId},
    seal::{
        Random,
        epoch::{Epoch, EpochSecrets},
        identity::{Identity, Statement},
    },
};

impl Suite {
    /// How many devices a group of it may have.
    #[must_use]
    pub const fn members_max(self) -> usize {
        match self {
            Self::XWing => MEMBERS_MAX,
            Self::X25519 => LARGE_MEMBERS_MAX,
        }
    }

    const fn mls(self) -> Ciphersuite {
        match self {
            Self::XWing => Ciphersuite::MLS_128_MLKEM768X25519_AES128GCM_SHA256_Ed25519,
            Self::X25519 => Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519,
        }
    }
}

/// A device's place in a room's group.
#[derive(Debug)]
pub struct Group {
    room: RoomId,
    mls: MlsGroup,
    storage: Storage,
    epoch: Epoch,
    ladder: LadderSecret,
    /// SHA-256 of the record that began it; zero for epoch 0.
    began: Digest,
    /// What the record brought of it; empty unless newcomers read the last days.
    window: Window,
    pending: Option<Pending>,
}

/// A commit of one's own that the log has not ordered yet.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Pending {
    change: Change,
    record: Digest,
}

/// A group as it is kept. postcard, in this order.
#[derive(Serialize, Deserialize)]
struct Snapshot {
    format: u8,
    room: RoomId,
    storage: Storage,
    began: Digest,
    window: Window,
    pending: Option<Pending>,
}

const SNAPSHOT_FORMAT: u8 = 3;

fn group_id(room: RoomId) -> GroupId {
    GroupId::from_slice(&room.0)
}

/// No past epochs, no messages of MLS itself: rooms seal their messages with [`Epoch`].
fn join_config() -> MlsGroupJoinConfig {
    MlsGroupJoinConfig::builder()
        .wire_format_policy(PURE_PLAINTEXT_WIRE_FORMAT_POLICY)
        .max_past_epochs(0)
        .number_of_resumption_psks(0)
        .use_ratchet_tree_extension(true)
        .build()
}

fn context_extensions(policy: &Policy) -> Extensions<GroupContext> {
    let policy = Extension::Unknown(POLICY, UnknownExtension(policy.encode()));
    Extensions::from_vec(vec![required(), policy]).expect("both may be in a group's context")
}

fn policy_in(extensions: &Extensions<GroupContext>) -> Option<Policy> {
    let policy = Policy::decode(&extensions.unknown(POLICY)?.0)?;
    // Nothing else may be in a context: what this build does not know it could not judge.
    (*extensions == context_extensions(&policy)).then_some(policy)
}

/// What MLS exports for an epoch: (secrets, authenticator, what leads down from it).
type Exported = (EpochSecrets, Digest, LadderSecret);

/// MLS-Exporter (RFC 9420 §8.5) for the three secrets and the ladder's, by `export(label)`.
fn epoch_secrets(export: impl Fn(&str) -> Option<Vec<u8>>) -> Option<(EpochSecrets, LadderSecret)> {
    let secret = |label| export(label)?.try_into().ok();
    let secrets =
        EpochSecrets { x25519: secret("waxwing x25519")?, xwing: secret("waxwing xwing")?, psk: secret("waxwing psk")? };
    Some((secrets, LadderSecret(secret("waxwing ladder")?)))
}

impl Group {
    /// A new group with one member: epoch 0 of the room.
    ///
    /// # Errors
    /// [`SnapshotError`] never, unless openmls breaks a promise.
    pub fn create(
        room: RoomId,
        suite: Suite,
        identity: &Identity,
        rng: &mut (impl Random + Send),
    ) -> Result<Self, SnapshotError> {
        let storage = Storage::default();
        let provider = Provider::new(&storage, rng);
        let config = MlsGroupCreateConfig::builder()
            .ciphersuite(suite.mls())
            .wire_format_policy(PURE_PLAINTEXT_WIRE_FORMAT_POLICY)
            .max_past_epochs(0)
            .number_of_resumption_psks(0)
            .use_ratchet_tree_extension(true)
            .lifetime(lifetime())
            .capabilities(capabilities(suite.mls()))
            .with_leaf_node_extensions(leaf_extensions(None, identity))
            .map_err(|_| SnapshotError)?
            .with_group_context_extensions(context_extensions(&Policy::new(identity.user())))
            .build();
        let signer = DeviceSigner(identity);
        let mls = MlsGroup::new_with_group_id(&provider, &signer, &config, group_id(room), credential(identity))
            .map_err(|_| SnapshotError)?;
        Self::with(room, mls, storage, Digest([0; 32]), rng)
    }

    fn with(
        room: RoomId,
        mls: MlsGroup,
        storage: Storage,
        began: Digest,
        rng: &mut (impl Random + Send),
    ) -> Result<Self, SnapshotError> {
        let (epoch, ladder) = epoch_of(room, &mls, rng).ok_or(SnapshotError)?;
        Ok(Self { room, mls, storage, epoch, ladder, began, window: Window::default(), pending: None })
    }

    /// The room.
    #[must_use]
    pub const fn room(&self) -> RoomId {
        self.room
    }

    /// The epoch's keys, for envelopes.
    #[must_use]
    pub const fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// Whether this device is still in it, as far as it has read.
    #[must_use]
    pub fn is_member(&self) -> bool {
        self.mls.is_active()
    }

    /// Whether a commit of one's own waits for the log.
    #[must_use]
    pub const fn is_waiting(&self) -> bool {
        self.pending.is_some()
    }

    /// What the commit that waits is for.
    #[must_use]
    pub fn waiting(&self) -> Option<&Change> {
        self.pending.as_ref().map(|pending| &pending.change)
    }

    /// The cryptography.
    #[must_use]
    pub fn suite(&self) -> Suite {
        self.view().suite()
    }

    /// This device's leaf.
    #[must_use]
    pub fn leaf(&self) -> u32 {
        self.mls.own_leaf_index().u32()
    }

    /// Who is in it, by ascending leaf.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        self.view().members()
    }

    /// The persons' statements that these devices are theirs, as their leaves have them.
    #[must_use]
    pub fn statements(&self) -> Vec<(DeviceKey, Statement)> {
        let leaf = |index: LeafNodeIndex| self.mls.public_group().leaf(index);
        self.mls.members().filter_map(|found| leaf(found.index)).filter_map(device::statement).collect()
    }

    /// What each device's person wants to be called, made fit to be shown, by leaf; empty where nothing was said.
    #[must_use]
    pub fn names(&self) -> BTreeMap<u32, String> {
        self.view().names()
    }

    /// Where something is posted for each device, by ascending leaf.
    #[must_use]
    pub fn inboxes(&self) -> Vec<(DeviceKey, RoomId)> {
        self.mls.members().filter_map(|found| device::inbox(self.mls.public_group().leaf(found.index)?)).collect()
    }

    /// Roles and live links.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.view().policy()
    }

    fn leaf_of(&self, device: DeviceKey) -> Option<u32> {
        self.members().iter().find(|member| member.device == device).map(|member| member.leaf)
    }

    /// The state, to be kept. Secrets are in it.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        let Self { room, storage, began, window, pending, .. } = self;
        let (storage, window, pending) = (storage.clone(), window.clone(), pending.clone());
        let snapshot = Snapshot { format: SNAPSHOT_FORMAT, room: *room, storage, began: *began, window, pending };
        postcard::to_allocvec(&snapshot).expect("a group encodes into memory")
    }

    /// As kept. An older snapshot than the newest reads on from where it is: what others did meanwhile it processes; where a commit
    /// of its own lies between, it takes its place anew ([`Skipped::Lost`]).
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn restore(snapshot: &[u8], rng: &mut (impl Random + Send)) -> Result<Self, SnapshotError> {
        let snapshot = postcard::from_bytes(snapshot).map_err(|_| SnapshotError)?;
        let Snapshot { format, room, storage, began, window, pending } = snapshot;
        if format != SNAPSHOT_FORMAT {
            return Err(SnapshotError);
        }
        let mls = MlsGroup::load(&storage, &group_id(room))?.ok_or(SnapshotError)?;
        Ok(Self { window, pending, ..Self::with(room, mls, storage, began, rng)? })
    }
}

fn number(epoch: GroupEpoch) -> u64 {
    epoch.as_u64()
}

fn epoch_of(room: RoomId, mls: &MlsGroup, rng: &mut (impl Random + Send)) -> Option<(Epoch, LadderSecret)> {
    let crypto = crypto::Crypto::new(rng);
    let (secrets, ladder) = epoch_secrets(|label| mls.export_secret(&crypto, label, &[], 32).ok())?;
    let authenticator = Digest(mls.epoch_authenticator().as_slice().try_into().ok()?);
    Some((Epoch::new(room, number(mls.epoch()), authenticator, secrets), ladder))
}
