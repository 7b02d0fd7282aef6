//! What leads into a room, handed to a device through its inbox as a kind 6 envelope that the server stores: an [`Invitation`] to
//! another device of the same person, a [`Contact`] to anybody.
//!
//! The issuer's signature is the envelope's inner one. Of an invitation the recipient knows the issuer's certificate hash beforehand; a
//! contact may come from somebody unknown, so that the certificate that it brings says who it is, and no more than that.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Random,
    hpke::{XWingPrivate, XWingPublic},
    identity::{Certificate, Identity, inbox_id},
    message::{ANYBODY, OpenError, SealError, open_hand_over, seal_hand_over, seal_hand_over_from},
};
use crate::core::id::{Digest, RoomId};

/// For whom an invitation is: part of `info`.
pub const FOR_DEVICE: &str = "device";
/// For whom a contact is.
pub const FOR_PERSON: &str = "person";

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

/// What somebody says to a device that may not know them. postcard, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    /// Format of this record: 1.
    pub format: u8,
    /// Who says it.
    pub issuer: Certificate,
    /// What they call themselves.
    pub name: String,
    /// What the client makes of it.
    pub content: Bytes,
}

impl Contact {
    /// Seals something to a device of anybody. Returns the inbox to post to and the envelope.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn seal(
        content: &[u8],
        to: &XWingPublic,
        identity: &Identity,
        rng: &mut impl Random,
    ) -> Result<(RoomId, Bytes), SealError> {
        let content = Bytes::copy_from_slice(content);
        let record = Self { format: 1, issuer: identity.certificate().clone(), name: identity.name().to_owned(), content };
        let body = record.encode();
        let inbox = inbox_id(to);
        Ok((inbox, seal_hand_over_from(ANYBODY, to, inbox, FOR_PERSON, identity, &body, rng)?))
    }

    fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("a contact encodes into memory")
    }

    /// Opens one that somebody sealed to `public`; the person in the certificate says that the device that signed it is theirs.
    ///
    /// # Errors
    /// [`InvitationError`].
    pub fn open(with: &XWingPrivate, public: &XWingPublic, envelope: &[u8]) -> Result<Self, InvitationError> {
        let opened = open_hand_over(with, public, inbox_id(public), FOR_PERSON, ANYBODY, envelope)?;
        let record: Self = opened.verify_with(|record: &Self| record.issuer.verify().ok().map(|_| record.issuer.device))?;
        if record.format != 1 {
            return Err(InvitationError::Format(record.format));
        }
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Randomness that nobody has to trust.
    struct Rng(u8);

    impl rand_core::TryRng for Rng {
        type Error = core::convert::Infallible;
        fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
            self.0 = self.0.wrapping_add(1);
            Ok(u32::from(self.0))
        }
        fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
            self.try_next_u32().map(u64::from)
        }
        fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
            self.0 = self.0.wrapping_add(1);
            bytes.fill(self.0);
            Ok(())
        }
    }

    impl rand_core::TryCryptoRng for Rng {}

    #[test]
    fn a_contact_is_read_by_who_it_is_for_and_names_who_sealed_it() {
        let rng = &mut Rng(0);
        let (ann, bob, eve) = (Identity::generate(rng, 0).named("Ann"), Identity::generate(rng, 0), Identity::generate(rng, 0));
        let content = b"hello".to_vec();
        let (inbox, envelope) = Contact::seal(&content, bob.inbox_public(), &ann, rng).unwrap();
        assert_eq!(inbox, bob.inbox_id());
        let open = |who: &Identity, envelope: &[u8]| Contact::open(who.inbox(), who.inbox_public(), envelope);
        let contact = open(&bob, &envelope).unwrap();
        assert_eq!(
            (contact.issuer, contact.name.as_str(), contact.content),
            (ann.certificate().clone(), "Ann", content.clone().into())
        );
        assert!(open(&eve, &envelope).is_err());
        let mut changed = envelope.to_vec();
        changed.iter_mut().last().into_iter().for_each(|byte| *byte ^= 1);
        assert!(open(&bob, &changed).is_err());
        // Eve cannot say it in Ann's name: the signature is the device's that the certificate names.
        let forged = Contact { format: 1, issuer: ann.certificate().clone(), name: "Ann".into(), content: content.into() };
        let envelope = seal_hand_over_from(ANYBODY, bob.inbox_public(), inbox, FOR_PERSON, &eve, &forged.encode(), rng).unwrap();
        assert_eq!(open(&bob, &envelope), Err(InvitationError::Open(OpenError::Signature)));
        // What is meant for a person's own devices is none.
        let (_, own) = Invitation::seal(b"room", bob.inbox_public(), &ann, rng).unwrap();
        assert!(open(&bob, &own).is_err());
    }
}
