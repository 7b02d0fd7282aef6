//! People and their devices. A person is an Ed25519 key that certifies devices; a device has a signing key, with which it
//! logs in and signs messages, and an X-Wing key, to which things are sealed for it.

use core::fmt;

use ed25519_dalek::{Signer as _, SigningKey};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::{
    Random,
    body::tidy,
    derive,
    epoch::access_key,
    hpke::{XWingPrivate, XWingPublic},
    words::words,
};
use crate::core::{
    chain,
    id::{AccessKey, DeviceKey, Digest, RoomId, Signature, UnixMillis},
};

/// How long a certificate is good for: ten years. Nothing renews one.
pub const CERTIFICATE_LIFE_MS: u64 = 10 * 365 * 24 * 3600 * 1000;

/// A person's public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UserKey(pub [u8; 32]);

impl fmt::Display for UserKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        DeviceKey(self.0).fmt(f)
    }
}

impl fmt::Debug for UserKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UserKey({self})")
    }
}

impl UserKey {
    /// Six words for people to compare.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        words(&chain::digest(&[&b"waxwing person v1"[..], &self.0].concat()).0)
    }
}

/// A person's statement that a device is theirs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// The person.
    pub user: UserKey,
    /// The device's signing key.
    pub device: DeviceKey,
    /// The device's X-Wing public key, 1216 bytes.
    pub inbox: Vec<u8>,
    /// The last moment at which it is good.
    pub not_after_ms: UnixMillis,
    /// Higher replaces lower, for the same device.
    pub counter: u32,
    signature: Signature,
}

/// Why a certificate is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// The person's signature does not verify.
    #[error("the certificate's signature does not verify")]
    Signature,
    /// The device's inbox key is malformed.
    #[error("the certificate's inbox key is malformed")]
    InboxKey,
}

impl Certificate {
    /// Checks the signature and the inbox key.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn verify(&self) -> Result<XWingPublic, CertificateError> {
        self.statement().verify(self.device)?;
        XWingPublic::from_bytes(&self.inbox).map_err(|_| CertificateError::InboxKey)
    }

    /// What the person signed, without the device's keys.
    #[must_use]
    pub fn statement(&self) -> Statement {
        let Self { user, not_after_ms, counter, signature, .. } = *self;
        Statement { user, inbox: chain::digest(&self.inbox), not_after_ms, counter, signature }
    }

    /// Names the certificate: SHA-256 of its postcard encoding.
    #[must_use]
    pub fn hash(&self) -> Digest {
        chain::digest(&postcard::to_allocvec(self).expect("a certificate encodes into memory"))
    }
}

/// A certificate for those who know the device's key already and do not post to its inbox: 1.2 KB less for each member of a
/// group. The signature is the certificate's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// The person.
    pub user: UserKey,
    /// SHA-256 of the device's X-Wing public key.
    pub inbox: Digest,
    /// The last moment at which it is good.
    pub not_after_ms: UnixMillis,
    /// Higher replaces lower, for the same device.
    pub counter: u32,
    signature: Signature,
}

impl Statement {
    /// `"waxwing certificate v1" ‖ user ‖ device ‖ SHA-256(inbox) ‖ not_after u64 LE ‖ counter u32 LE`.
    fn message(user: UserKey, device: DeviceKey, inbox: Digest, not_after_ms: u64, counter: u32) -> Vec<u8> {
        let mut message = b"waxwing certificate v1".to_vec();
        message.extend_from_slice(&user.0);
        message.extend_from_slice(&device.0);
        message.extend_from_slice(&inbox.0);
        message.extend_from_slice(&not_after_ms.to_le_bytes());
        message.extend_from_slice(&counter.to_le_bytes());
        message
    }

    /// Checks that the person says this of `device`.
    ///
    /// # Errors
    /// [`CertificateError::Signature`].
    pub fn verify(&self, device: DeviceKey) -> Result<(), CertificateError> {
        let message = Self::message(self.user, device, self.inbox, self.not_after_ms, self.counter);
        if self.signature.verifies(&self.user.0, &message) { Ok(()) } else { Err(CertificateError::Signature) }
    }
}

/// The id of the log to which things are posted for the holder of an X-Wing key:
/// the first 16 bytes of `SHA-256("waxwing inbox v1" ‖ SHA-256(key))`.
#[must_use]
pub fn inbox_id(key: &XWingPublic) -> RoomId {
    inbox_of(chain::digest(&key.to_bytes()))
}

/// The same, for who knows only the key's SHA-256, as every member of a group does of every other ([`Statement`]).
#[must_use]
pub fn inbox_of(key: Digest) -> RoomId {
    let hash = chain::digest(&[&b"waxwing inbox v1"[..], &key.0].concat());
    RoomId(hash.0.first_chunk().copied().unwrap_or_default())
}

/// The seed of the key that opens the inbox of an X-Wing seed's holder at the server.
#[must_use]
pub fn inbox_access_seed(xwing_seed: &[u8; 32]) -> [u8; 32] {
    derive(xwing_seed, "waxwing inbox access v1", &[])
}

/// The three secrets of a device's identity, as they are stored.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct IdentitySecrets {
    /// The person's Ed25519 seed.
    pub user: [u8; 32],
    /// The device's Ed25519 seed.
    pub device: [u8; 32],
    /// The device's X-Wing seed.
    pub inbox: [u8; 32],
}

impl fmt::Debug for IdentitySecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdentitySecrets(…)")
    }
}

/// This device, able to sign.
#[derive(Debug, Clone)]
pub struct Identity {
    secrets: IdentitySecrets,
    signer: SigningKey,
    inbox: XWingPrivate,
    inbox_public: XWingPublic,
    certificate: Certificate,
    name: String,
}

impl Identity {
    /// A new person with a first device.
    #[must_use]
    pub fn generate(rng: &mut impl Random, now_ms: UnixMillis) -> Self {
        let user = rng.bytes();
        Self::add_device(user, rng, now_ms)
    }

    /// A new device of the person whose seed this is.
    #[must_use]
    pub fn add_device(user: [u8; 32], rng: &mut impl Random, now_ms: UnixMillis) -> Self {
        let secrets = IdentitySecrets { user, device: rng.bytes(), inbox: rng.bytes() };
        Self::certify(secrets, now_ms.saturating_add(CERTIFICATE_LIFE_MS), 1)
    }

    /// As stored. Ed25519 is deterministic, so the certificate comes out the same.
    #[must_use]
    pub fn certify(secrets: IdentitySecrets, not_after_ms: UnixMillis, counter: u32) -> Self {
        let signer = SigningKey::from_bytes(&secrets.device);
        let (inbox, inbox_public) = XWingPrivate::from_seed(&secrets.inbox);
        let device = DeviceKey(signer.verifying_key().to_bytes());
        let certificate = certificate(&secrets.user, device, inbox_public.to_bytes(), not_after_ms, counter);
        Self { secrets, signer, inbox, inbox_public, certificate, name: String::new() }
    }

    /// Signs with the person's key.
    #[must_use]
    pub(super) fn sign_as_person(&self, message: &[u8]) -> Signature {
        sign(&SigningKey::from_bytes(&self.secrets.user), message)
    }

    /// This person's statement that another device, whose public keys these are, is theirs.
    #[must_use]
    pub fn certify_device(&self, device: DeviceKey, inbox: &XWingPublic, now_ms: UnixMillis) -> Certificate {
        certificate(&self.secrets.user, device, inbox.to_bytes(), now_ms.saturating_add(CERTIFICATE_LIFE_MS), 1)
    }

    /// With what the person wants to be called. Not unique, not proof of anything.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        Self { name: tidy(name), ..self }
    }

    /// What the person wants to be called; empty when nothing was said.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is stored.
    #[must_use]
    pub const fn secrets(&self) -> &IdentitySecrets {
        &self.secrets
    }

    /// The device's certificate.
    #[must_use]
    pub const fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// The person.
    #[must_use]
    pub const fn user(&self) -> UserKey {
        self.certificate.user
    }

    /// The device.
    #[must_use]
    pub const fn device(&self) -> DeviceKey {
        self.certificate.device
    }

    /// Signs with the device's key.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Signature {
        sign(&self.signer, message)
    }

    /// The private half of the device's X-Wing key.
    #[must_use]
    pub const fn inbox(&self) -> &XWingPrivate {
        &self.inbox
    }

    /// The public half.
    #[must_use]
    pub const fn inbox_public(&self) -> &XWingPublic {
        &self.inbox_public
    }

    /// The id of this device's inbox.
    #[must_use]
    pub fn inbox_id(&self) -> RoomId {
        inbox_id(&self.inbox_public)
    }

    /// The seed of the key that opens this device's inbox.
    #[must_use]
    pub fn inbox_access_seed(&self) -> [u8; 32] {
        inbox_access_seed(&self.secrets.inbox)
    }
}

/// The statement of the person with this seed that a device is theirs.
fn certificate(person: &[u8; 32], device: DeviceKey, inbox: Vec<u8>, not_after_ms: UnixMillis, counter: u32) -> Certificate {
    let person = SigningKey::from_bytes(person);
    let user = UserKey(person.verifying_key().to_bytes());
    let message = Statement::message(user, device, chain::digest(&inbox), not_after_ms, counter);
    let signature = person.sign(&message).to_bytes().into();
    Certificate { user, device, inbox, not_after_ms, counter, signature }
}

/// Signs with an Ed25519 seed: an access key's, say.
#[must_use]
pub fn sign_with_seed(seed: &[u8; 32], message: &[u8]) -> (AccessKey, Signature) {
    (access_key(seed), sign(&SigningKey::from_bytes(seed), message))
}

fn sign(key: &SigningKey, message: &[u8]) -> Signature {
    key.sign(message).to_bytes().into()
}
