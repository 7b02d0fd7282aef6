//! An invitation: what leads into a room, handed to a device through its inbox as a kind 6 envelope that the server stores.
//!
//! The issuer's signature is the envelope's inner one; the recipient knows the issuer's certificate hash beforehand, because the
//! issuer is another device of the same person.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Random,
    hpke::{XWingPrivate, XWingPublic},
    identity::{Certificate, Identity, inbox_id},
    message::{OpenError, SealError, open_hand_over, seal_hand_over},
};
use crate::core::id::{Digest, RoomId};

/// For whom it is: part of `info`.
pub const FOR_DEVICE: &str = "device";

/// The record. postcard, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// Format of this record: 2.
    pub format: u8,
    /// Who hands it over.
    pub issuer: Certificate,
    /// What the client makes of it: a room's link, and what opens the time before.
    pub room: Bytes,
}

/// Why an invitation is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvitationError {
    /// It does not open or verify.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A format that this build does not know.
    #[error("invitation format {0} is not known")]
    Format(u8),
}

impl Invitation {
    /// Seals what leads into a room to another device of the same person. Returns the inbox to post to and the envelope.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn seal(room: &[u8], to: &XWingPublic, identity: &Identity, rng: &mut impl Random) -> Result<(RoomId, Bytes), SealError> {
        let record = Self { format: 2, issuer: identity.certificate().clone(), room: Bytes::copy_from_slice(room) };
        let body = record.encode();
        let inbox = inbox_id(to);
        Ok((inbox, seal_hand_over(to, inbox, FOR_DEVICE, identity, &body, rng)?))
    }

    fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("an invitation encodes into memory")
    }

    /// Opens one that the holder of the certificate `issuer` sealed to `public`.
    ///
    /// # Errors
    /// [`InvitationError`].
    pub fn open(with: &XWingPrivate, public: &XWingPublic, issuer: Digest, envelope: &[u8]) -> Result<Bytes, InvitationError> {
        let opened = open_hand_over(with, public, inbox_id(public), FOR_DEVICE, issuer, envelope)?;
        let record: Self = opened.verify_with(|record: &Self| {
            let certificate = &record.issuer;
            (certificate.hash() == issuer && certificate.verify().is_ok()).then_some(certificate.device)
        })?;
        if record.format != 2 {
            return Err(InvitationError::Format(record.format));
        }
        Ok(record.room)
    }
}
