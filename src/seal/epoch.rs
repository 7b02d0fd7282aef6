//! The keys of a room's epochs.

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::{
    derive,
    hpke::{Psk, X25519Private, X25519Public},
};
use crate::core::id::{AccessKey, Digest, RoomId};

/// Three secrets of 32 bytes: what an epoch consists of, whatever its source. Whoever holds them reads the epoch.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct EpochSecrets {
    /// Key material for suite 1 (RFC 9180 DeriveKeyPair).
    pub x25519: [u8; 32],
    /// The X-Wing private key of suite 2.
    pub xwing: [u8; 32],
    /// The pre-shared key of suite 1.
    pub psk: [u8; 32],
}

impl core::fmt::Debug for EpochSecrets {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("EpochSecrets(…)")
    }
}

impl EpochSecrets {
    /// Fresh ones.
    #[must_use]
    pub fn random(rng: &mut impl super::Random) -> Self {
        Self { x25519: rng.bytes(), xwing: rng.bytes(), psk: rng.bytes() }
    }

    /// The seed of the key that opens the room at the server: HKDF of the PSK.
    #[must_use]
    pub fn access_seed(&self, room: RoomId) -> [u8; 32] {
        derive(&self.psk, "waxwing room access v1", &room.0)
    }
}

/// The public half of an access seed.
#[must_use]
pub fn access_key(seed: &[u8; 32]) -> AccessKey {
    AccessKey(ed25519_dalek::SigningKey::from_bytes(seed).verifying_key().to_bytes())
}

/// One epoch, ready for use.
#[derive(Debug, Clone)]
pub struct Epoch {
    /// The room.
    pub room: RoomId,
    /// Its number, from 1.
    pub number: u64,
    /// Binds every envelope to the group that agreed on the epoch.
    pub authenticator: Digest,
    secrets: EpochSecrets,
    private: X25519Private,
    public: X25519Public,
    psk_id: Vec<u8>,
}

impl Epoch {
    /// Derives the key pair.
    #[must_use]
    pub fn new(room: RoomId, number: u64, authenticator: Digest, secrets: EpochSecrets) -> Self {
        let (private, public) = X25519Private::derive(&secrets.x25519);
        let psk_id = [&room.0[..], &number.to_le_bytes()].concat();
        Self { room, number, authenticator, secrets, private, public, psk_id }
    }

    /// What it was made of.
    #[must_use]
    pub const fn secrets(&self) -> &EpochSecrets {
        &self.secrets
    }

    pub(crate) const fn private(&self) -> &X25519Private {
        &self.private
    }

    pub(crate) const fn public(&self) -> &X25519Public {
        &self.public
    }

    pub(super) fn psk(&self) -> Psk<'_> {
        Psk { key: &self.secrets.psk, id: &self.psk_id }
    }
}
