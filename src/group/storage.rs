//! Where openmls keeps a group: a map in memory that serialises whole. A client keeps the snapshot as it keeps its other state,
//! so that a commit is either in it with everything that belongs to it, or not at all.

use std::{cell::RefCell, collections::BTreeMap};

use openmls::prelude::KeyPackageBundle;
use openmls_traits::storage::{CURRENT_VERSION as V, Entity, StorageProvider, traits};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize as _;

/// What a value is, before its key. The numbers are part of the snapshot's format.
#[derive(Debug, Clone, Copy, Serialize)]
#[repr(u8)]
enum Table {
    JoinConfig,
    OwnLeafNodes,
    Proposal,
    ProposalRefs,
    Tree,
    TranscriptHash,
    Context,
    ConfirmationTag,
    State,
    MessageSecrets,
    ResumptionPsks,
    OwnLeafIndex,
    EpochSecrets,
    SignatureKeys,
    EncryptionKeys,
    EpochKeys,
    KeyPackage,
    Psk,
}

/// A value that is not what it should be: the snapshot is damaged, or of another version of openmls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the group's snapshot is damaged")]
pub struct SnapshotError;

/// The map. Secrets are in it.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct Storage {
    values: RefCell<BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl core::fmt::Debug for Storage {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Storage({} values)", self.values.borrow().len())
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.values.get_mut().values_mut().for_each(|value| value.zeroize());
    }
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>, SnapshotError> {
    postcard::to_allocvec(value).map_err(|_| SnapshotError)
}

impl Storage {
    fn put(&self, table: Table, key: &impl Serialize, value: &impl Serialize) -> Result<(), SnapshotError> {
        let value = encode(value)?;
        if let Some(mut old) = self.values.borrow_mut().insert(encode(&(table, key))?, value) {
            old.zeroize();
        }
        Ok(())
    }

    /// Takes the key packages out, into a store of their own.
    pub(super) fn split_key_packages(&self) -> Self {
        let mut values = self.values.borrow_mut();
        let all = core::mem::take(&mut *values);
        // A key begins with its table's number.
        let is_key_package = |key: &[u8]| key.first() == Some(&(Table::KeyPackage as u8));
        let (packages, rest) = all.into_iter().partition(|(key, _)| is_key_package(key));
        *values = rest;
        Self { values: RefCell::new(packages) }
    }

    /// A copy of what everybody knows of a group, without the proposals that wait.
    pub(super) fn public_part(&self) -> Self {
        const PUBLIC: [u8; 4] =
            [Table::Tree as u8, Table::TranscriptHash as u8, Table::Context as u8, Table::ConfirmationTag as u8];
        let values = self.values.borrow();
        let is_public = |key: &[u8]| key.first().is_some_and(|table| PUBLIC.contains(table));
        let public = values.iter().filter(|(key, _)| is_public(key)).map(|(key, value)| (key.clone(), value.clone()));
        Self { values: RefCell::new(public.collect()) }
    }

    /// Drops the proposals that wait.
    pub(super) fn forget_proposals(&self) {
        let is_one =
            |key: &[u8]| matches!(key.first(), Some(table) if [Table::Proposal as u8, Table::ProposalRefs as u8].contains(table));
        self.values.borrow_mut().retain(|key, _| !is_one(key));
    }

    /// Drops the key packages that are not `wanted`; returns how many stay.
    pub(super) fn retain_key_packages(&self, wanted: impl Fn(&KeyPackageBundle) -> bool) -> usize {
        let mut kept = 0;
        self.values.borrow_mut().retain(|key, value| {
            if key.first() != Some(&(Table::KeyPackage as u8)) {
                return true;
            }
            let keep = postcard::from_bytes(value).is_ok_and(|bundle| wanted(&bundle));
            kept += usize::from(keep);
            if !keep {
                value.zeroize();
            }
            keep
        });
        kept
    }

    fn find<T: Entity<V>>(&self, table: Table, key: &impl Serialize) -> Result<Option<T>, SnapshotError> {
        let values = self.values.borrow();
        let value = values.get(&encode(&(table, key))?);
        value.map(|bytes| postcard::from_bytes(bytes).map_err(|_| SnapshotError)).transpose()
    }

    fn delete(&self, table: Table, key: &impl Serialize) -> Result<(), SnapshotError> {
        if let Some(mut old) = self.values.borrow_mut().remove(&encode(&(table, key))?) {
            old.zeroize();
        }
        Ok(())
    }

    /// Lists are one value, of encoded items.
    fn list<T: Entity<V>>(&self, table: Table, key: &impl Serialize) -> Result<Vec<T>, SnapshotError> {
        let items: Vec<Vec<u8>> = self.items(table, key)?;
        items.iter().map(|item| postcard::from_bytes(item).map_err(|_| SnapshotError)).collect()
    }

    fn items(&self, table: Table, key: &impl Serialize) -> Result<Vec<Vec<u8>>, SnapshotError> {
        let values = self.values.borrow();
        let value = values.get(&encode(&(table, key))?);
        value.map_or_else(|| Ok(Vec::new()), |bytes| postcard::from_bytes(bytes).map_err(|_| SnapshotError))
    }

    fn append(&self, table: Table, key: &impl Serialize, item: &impl Serialize) -> Result<(), SnapshotError> {
        let mut items = self.items(table, key)?;
        items.push(encode(item)?);
        self.put(table, key, &items)
    }
}

/// Values that a group has one of.
macro_rules! of_a_group {
    ($($table:ident: $entity:ident, $write:ident, $read:ident, $delete:ident;)*) => {$(
        fn $write<G: traits::GroupId<V>, T: traits::$entity<V>>(&self, group: &G, value: &T) -> Result<(), SnapshotError> {
            self.put(Table::$table, group, value)
        }

        fn $read<G: traits::GroupId<V>, T: traits::$entity<V>>(&self, group: &G) -> Result<Option<T>, SnapshotError> {
            self.find(Table::$table, group)
        }

        fn $delete<G: traits::GroupId<V>>(&self, group: &G) -> Result<(), SnapshotError> {
            self.delete(Table::$table, group)
        }
    )*};
}

impl StorageProvider<V> for Storage {
    type Error = SnapshotError;

    of_a_group! {
        Tree: TreeSync, write_tree, tree, delete_tree;
        TranscriptHash: InterimTranscriptHash, write_interim_transcript_hash, interim_transcript_hash, delete_interim_transcript_hash;
        Context: GroupContext, write_context, group_context, delete_context;
        ConfirmationTag: ConfirmationTag, write_confirmation_tag, confirmation_tag, delete_confirmation_tag;
        MessageSecrets: MessageSecrets, write_message_secrets, message_secrets, delete_message_secrets;
        ResumptionPsks: ResumptionPskStore, write_resumption_psk_store, resumption_psk_store, delete_all_resumption_psk_secrets;
        OwnLeafIndex: LeafNodeIndex, write_own_leaf_index, own_leaf_index, delete_own_leaf_index;
        EpochSecrets: GroupEpochSecrets, write_group_epoch_secrets, group_epoch_secrets, delete_group_epoch_secrets;
    }

    fn write_mls_join_config<G: traits::GroupId<V>, T: traits::MlsGroupJoinConfig<V>>(
        &self,
        group: &G,
        value: &T,
    ) -> Result<(), SnapshotError> {
        self.put(Table::JoinConfig, group, &serde_json::to_vec(value).map_err(|_| SnapshotError)?)
    }

    /// JSON, because openmls reads one of its fields by trying (an untagged enum), for which postcard is too terse.
    fn mls_group_join_config<G: traits::GroupId<V>, T: traits::MlsGroupJoinConfig<V>>(
        &self,
        group: &G,
    ) -> Result<Option<T>, SnapshotError> {
        let json: Option<Vec<u8>> = self.find(Table::JoinConfig, group)?;
        json.map(|json| serde_json::from_slice(&json).map_err(|_| SnapshotError)).transpose()
    }

    fn delete_group_config<G: traits::GroupId<V>>(&self, group: &G) -> Result<(), SnapshotError> {
        self.delete(Table::JoinConfig, group)
    }

    fn write_group_state<T: traits::GroupState<V>, G: traits::GroupId<V>>(
        &self,
        group: &G,
        value: &T,
    ) -> Result<(), SnapshotError> {
        self.put(Table::State, group, value)
    }

    fn group_state<T: traits::GroupState<V>, G: traits::GroupId<V>>(&self, group: &G) -> Result<Option<T>, SnapshotError> {
        self.find(Table::State, group)
    }

    fn delete_group_state<G: traits::GroupId<V>>(&self, group: &G) -> Result<(), SnapshotError> {
        self.delete(Table::State, group)
    }

    fn append_own_leaf_node<G: traits::GroupId<V>, T: traits::LeafNode<V>>(
        &self,
        group: &G,
        leaf: &T,
    ) -> Result<(), SnapshotError> {
        self.append(Table::OwnLeafNodes, group, leaf)
    }

    fn own_leaf_nodes<G: traits::GroupId<V>, T: traits::LeafNode<V>>(&self, group: &G) -> Result<Vec<T>, SnapshotError> {
        self.list(Table::OwnLeafNodes, group)
    }

    fn delete_own_leaf_nodes<G: traits::GroupId<V>>(&self, group: &G) -> Result<(), SnapshotError> {
        self.delete(Table::OwnLeafNodes, group)
    }

    fn queue_proposal<G: traits::GroupId<V>, P: traits::ProposalRef<V>, T: traits::QueuedProposal<V>>(
        &self,
        group: &G,
        reference: &P,
        proposal: &T,
    ) -> Result<(), SnapshotError> {
        self.put(Table::Proposal, &(group, reference), proposal)?;
        self.append(Table::ProposalRefs, group, reference)
    }

    fn queued_proposal_refs<G: traits::GroupId<V>, P: traits::ProposalRef<V>>(&self, group: &G) -> Result<Vec<P>, SnapshotError> {
        self.list(Table::ProposalRefs, group)
    }

    fn queued_proposals<G: traits::GroupId<V>, P: traits::ProposalRef<V>, T: traits::QueuedProposal<V>>(
        &self,
        group: &G,
    ) -> Result<Vec<(P, T)>, SnapshotError> {
        let references: Vec<P> = self.list(Table::ProposalRefs, group)?;
        let with_proposal = |reference: P| {
            let proposal = self.find(Table::Proposal, &(group, &reference))?.ok_or(SnapshotError)?;
            Ok((reference, proposal))
        };
        references.into_iter().map(with_proposal).collect()
    }

    fn remove_proposal<G: traits::GroupId<V>, P: traits::ProposalRef<V>>(
        &self,
        group: &G,
        reference: &P,
    ) -> Result<(), SnapshotError> {
        let removed = encode(reference)?;
        let mut items = self.items(Table::ProposalRefs, group)?;
        items.retain(|item| *item != removed);
        self.put(Table::ProposalRefs, group, &items)?;
        self.delete(Table::Proposal, &(group, reference))
    }

    fn clear_proposal_queue<G: traits::GroupId<V>, P: traits::ProposalRef<V>>(&self, group: &G) -> Result<(), SnapshotError> {
        for reference in self.list::<P>(Table::ProposalRefs, group)? {
            self.delete(Table::Proposal, &(group, &reference))?;
        }
        self.delete(Table::ProposalRefs, group)
    }

    fn write_signature_key_pair<K: traits::SignaturePublicKey<V>, T: traits::SignatureKeyPair<V>>(
        &self,
        key: &K,
        pair: &T,
    ) -> Result<(), SnapshotError> {
        self.put(Table::SignatureKeys, key, pair)
    }

    fn signature_key_pair<K: traits::SignaturePublicKey<V>, T: traits::SignatureKeyPair<V>>(
        &self,
        key: &K,
    ) -> Result<Option<T>, SnapshotError> {
        self.find(Table::SignatureKeys, key)
    }

    fn delete_signature_key_pair<K: traits::SignaturePublicKey<V>>(&self, key: &K) -> Result<(), SnapshotError> {
        self.delete(Table::SignatureKeys, key)
    }

    fn write_encryption_key_pair<K: traits::EncryptionKey<V>, T: traits::HpkeKeyPair<V>>(
        &self,
        key: &K,
        pair: &T,
    ) -> Result<(), SnapshotError> {
        self.put(Table::EncryptionKeys, key, pair)
    }

    fn encryption_key_pair<T: traits::HpkeKeyPair<V>, K: traits::EncryptionKey<V>>(
        &self,
        key: &K,
    ) -> Result<Option<T>, SnapshotError> {
        self.find(Table::EncryptionKeys, key)
    }

    fn delete_encryption_key_pair<K: traits::EncryptionKey<V>>(&self, key: &K) -> Result<(), SnapshotError> {
        self.delete(Table::EncryptionKeys, key)
    }

    fn write_encryption_epoch_key_pairs<G: traits::GroupId<V>, E: traits::EpochKey<V>, T: traits::HpkeKeyPair<V>>(
        &self,
        group: &G,
        epoch: &E,
        leaf: u32,
        pairs: &[T],
    ) -> Result<(), SnapshotError> {
        let items: Vec<_> = pairs.iter().map(encode).collect::<Result<_, _>>()?;
        self.put(Table::EpochKeys, &(group, epoch, leaf), &items)
    }

    fn encryption_epoch_key_pairs<G: traits::GroupId<V>, E: traits::EpochKey<V>, T: traits::HpkeKeyPair<V>>(
        &self,
        group: &G,
        epoch: &E,
        leaf: u32,
    ) -> Result<Vec<T>, SnapshotError> {
        self.list(Table::EpochKeys, &(group, epoch, leaf))
    }

    fn delete_encryption_epoch_key_pairs<G: traits::GroupId<V>, E: traits::EpochKey<V>>(
        &self,
        group: &G,
        epoch: &E,
        leaf: u32,
    ) -> Result<(), SnapshotError> {
        self.delete(Table::EpochKeys, &(group, epoch, leaf))
    }

    fn write_key_package<K: traits::HashReference<V>, T: traits::KeyPackage<V>>(
        &self,
        reference: &K,
        key_package: &T,
    ) -> Result<(), SnapshotError> {
        self.put(Table::KeyPackage, reference, key_package)
    }

    fn key_package<K: traits::HashReference<V>, T: traits::KeyPackage<V>>(
        &self,
        reference: &K,
    ) -> Result<Option<T>, SnapshotError> {
        self.find(Table::KeyPackage, reference)
    }

    fn delete_key_package<K: traits::HashReference<V>>(&self, reference: &K) -> Result<(), SnapshotError> {
        self.delete(Table::KeyPackage, reference)
    }

    fn write_psk<K: traits::PskId<V>, T: traits::PskBundle<V>>(&self, id: &K, psk: &T) -> Result<(), SnapshotError> {
        self.put(Table::Psk, id, psk)
    }

    fn psk<T: traits::PskBundle<V>, K: traits::PskId<V>>(&self, id: &K) -> Result<Option<T>, SnapshotError> {
        self.find(Table::Psk, id)
    }

    fn delete_psk<K: traits::PskId<V>>(&self, id: &K) -> Result<(), SnapshotError> {
        self.delete(Table::Psk, id)
    }
}
