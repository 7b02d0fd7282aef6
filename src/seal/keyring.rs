//! The keyring: a room's epoch secrets, handed to who may read it, as a kind 6 envelope that the server stores.
//!
//! The issuer's signature is the envelope's inner one; the recipient knows the issuer's certificate hash beforehand (from the
//! link, or because the issuer is another device of the same person).

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Random,
    body::Seen,
    epoch::{Epoch, EpochSecrets, HandedOver},
    hpke::{XWingPrivate, XWingPublic},
    identity::{Certificate, Identity, UserKey, inbox_id},
    message::{OpenError, SealError, open_hand_over, seal_hand_over},
};
use crate::core::id::{Digest, RoomId};

/// For whom a keyring is: part of `info`, so that one cannot pass for the other.
pub const FOR_INVITATION: &str = "invitation";
/// A keyring for another device of the issuer's person.
pub const FOR_DEVICE: &str = "device";

/// The record. postcard, in this order.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keyring {
    /// Format of this record: 1.
    pub format: u8,
    /// The room.
    pub room: RoomId,
    /// Higher replaces lower; a client refuses a lower one than it has seen.
    pub counter: u64,
    /// Who hands it over.
    pub issuer: Certificate,
    /// Who made the room.
    pub creator: UserKey,
    /// The room's title at issue.
    pub title: String,
    /// The epoch for new messages.
    pub head_epoch: u64,
    /// What the issuer had verified of the room's log.
    pub seen: Seen,
    /// The seed of the invitation that the room's link carries.
    pub invitation: [u8; 32],
    /// The certificate hash that the link names.
    pub invitation_issuer: Digest,
    /// Every epoch that the recipient may read.
    pub epochs: Vec<KeyringEpoch>,
}

impl core::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Keyring").field("room", &self.room).field("counter", &self.counter).finish_non_exhaustive()
    }
}

/// One epoch of a keyring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyringEpoch {
    /// Its number.
    pub number: u64,
    /// Its secrets.
    pub secrets: EpochSecrets,
    /// Its authenticator.
    pub authenticator: Digest,
    /// Certificate hashes of its members, as attested by the issuer.
    pub roster: Vec<Digest>,
}

/// Why a keyring is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyringError {
    /// It does not open or verify.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A format that this build does not know.
    #[error("keyring format {0} is not known")]
    Format(u8),
    /// It names another room than the one it was fetched for.
    #[error("the keyring is another room's")]
    OtherRoom,
    /// It lacks the epoch that it calls the newest, or an authenticator does not belong to its secrets.
    #[error("the keyring contradicts itself")]
    Inconsistent,
}

impl Keyring {
    /// Seals it to an X-Wing key. Returns the inbox to post to and the envelope.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn seal(
        &self,
        to: &XWingPublic,
        purpose: &str,
        identity: &Identity,
        rng: &mut impl Random,
    ) -> Result<(RoomId, Bytes), SealError> {
        let body = self.encode();
        let inbox = inbox_id(to);
        Ok((inbox, seal_hand_over(to, inbox, purpose, identity, &body, rng)?))
    }

    fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("a keyring encodes into memory")
    }

    /// Opens one that the holder of the certificate `issuer` sealed to `public`.
    ///
    /// # Errors
    /// [`KeyringError`].
    pub fn open(
        with: &XWingPrivate,
        public: &XWingPublic,
        purpose: &str,
        issuer: Digest,
        envelope: &[u8],
    ) -> Result<Self, KeyringError> {
        let opened = open_hand_over(with, public, inbox_id(public), purpose, issuer, envelope)?;
        let keyring: Self = opened.verify_with(|keyring: &Self| {
            let certificate = &keyring.issuer;
            (certificate.hash() == issuer && certificate.verify().is_ok()).then_some(certificate.device)
        })?;
        if keyring.format != 1 {
            return Err(KeyringError::Format(keyring.format));
        }
        Ok(keyring)
    }

    /// The epochs, ready for use.
    ///
    /// # Errors
    /// [`KeyringError::Inconsistent`].
    pub fn epochs(&self) -> Result<HandedOver, KeyringError> {
        let mut epochs = Vec::with_capacity(self.epochs.len());
        for KeyringEpoch { number, secrets, authenticator, .. } in &self.epochs {
            if secrets.authenticator(self.room, *number, &self.creator.0) != *authenticator {
                return Err(KeyringError::Inconsistent);
            }
            epochs.push(Epoch::new(self.room, *number, *authenticator, secrets.clone()));
        }
        let newest = epochs.iter().position(|epoch| epoch.number == self.head_epoch).ok_or(KeyringError::Inconsistent)?;
        let newest = epochs.swap_remove(newest);
        Ok(HandedOver::new(newest, epochs))
    }
}
