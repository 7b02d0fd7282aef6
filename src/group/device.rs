//! A device as MLS sees it: how it signs, what its leaf says, and the key packages by which others add it.

use bytes::Bytes;
use openmls::prelude::{
    BasicCredential, Capabilities, Ciphersuite, CredentialType, CredentialWithKey, Extension, ExtensionType, Extensions,
    KeyPackageIn, LeafNode, Lifetime, MlsMessageBodyIn, MlsMessageIn, MlsMessageOut, ProposalType, ProtocolVersion,
    RequiredCapabilitiesExtension, UnknownExtension, tls_codec::DeserializeBytes as _,
};
use openmls_traits::{
    OpenMlsProvider,
    signatures::{Signer, SignerError},
    types::SignatureScheme,
};
use serde::{Deserialize, Serialize};

use super::{
    Suite,
    crypto::Crypto,
    policy::{LinkId, Member},
    storage::{SnapshotError, Storage},
};
use crate::{
    core::id::{DeviceKey, RoomId, UnixMillis},
    seal::{
        Random,
        body::{NAME_LEN_MAX, tidy},
        identity::{Identity, Statement, UserKey, inbox_of},
    },
};

/// Extension of a group's context: [`super::Policy`]. All four numbers are of the range for private use (RFC 9420 §17.3).
pub(super) const POLICY: u16 = 0xF7A0;
/// Extension of a leaf: the link by which the device came in.
const VIA: u16 = 0xF7A1;
/// Extension of a leaf: what the device's person wants to be called, UTF-8, at most [`NAME_LEN_MAX`] bytes.
const NAME: u16 = 0xF7A3;
/// Extension of a key package: until when it may be used, u64 LE.
const EXPIRES: u16 = 0xF7A2;

/// What openmls is given to work with.
#[derive(Debug)]
pub(super) struct Provider<'a, R> {
    crypto: Crypto<'a, R>,
    storage: &'a Storage,
}

impl<'a, R: Random + Send> Provider<'a, R> {
    pub(super) const fn new(storage: &'a Storage, rng: &'a mut R) -> Self {
        Self { crypto: Crypto::new(rng), storage }
    }
}

impl<'a, R: Random + Send> OpenMlsProvider for Provider<'a, R> {
    type CryptoProvider = Crypto<'a, R>;
    type RandProvider = Crypto<'a, R>;
    type StorageProvider = Storage;

    fn storage(&self) -> &Storage {
        self.storage
    }

    fn crypto(&self) -> &Crypto<'a, R> {
        &self.crypto
    }

    fn rand(&self) -> &Crypto<'a, R> {
        &self.crypto
    }
}

/// Signs with the device's own key: a leaf's signature key is the key with which its device logs in.
pub(super) struct DeviceSigner<'a>(pub(super) &'a Identity);

impl Signer for DeviceSigner<'_> {
    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, SignerError> {
        Ok(self.0.sign(payload).to_bytes().to_vec())
    }

    fn signature_scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

/// A basic credential (RFC 9420 §5.3) whose identity is the person's statement that the device is theirs.
pub(super) fn credential(identity: &Identity) -> CredentialWithKey {
    let statement = postcard::to_allocvec(&identity.certificate().statement()).expect("a statement encodes into memory");
    CredentialWithKey { credential: BasicCredential::new(statement).into(), signature_key: identity.device().0.as_slice().into() }
}

/// The device of a leaf, and what a person says of it.
pub(super) fn statement(leaf: &LeafNode) -> Option<(DeviceKey, Statement)> {
    let device = DeviceKey(leaf.signature_key().as_slice().try_into().ok()?);
    let basic = BasicCredential::try_from(leaf.credential().clone()).ok()?;
    Some((device, postcard::from_bytes(basic.identity()).ok()?))
}

/// What a leaf says, if the person that it names signed that.
pub(super) fn member(index: u32, leaf: &LeafNode) -> Option<Member> {
    let (device, statement) = statement(leaf)?;
    statement.verify(device).ok()?;
    known_member(index, leaf)
}

/// What a leaf says that was verified when it came into the tree.
pub(super) fn known_member(index: u32, leaf: &LeafNode) -> Option<Member> {
    let (device, Statement { user, .. }) = statement(leaf)?;
    let via = match leaf.extensions().unknown(VIA) {
        Some(extension) => Some(LinkId(extension.0.as_slice().try_into().ok()?)),
        None => None,
    };
    Some(Member { leaf: index, device, user, via })
}

/// What a leaf says that its person is called, made fit to be shown; empty where it says nothing.
pub(super) fn name(leaf: &LeafNode) -> String {
    let name = leaf.extensions().unknown(NAME).filter(|name| name.0.len() <= NAME_LEN_MAX);
    name.and_then(|name| core::str::from_utf8(&name.0).ok()).map(tidy).unwrap_or_default()
}

/// Where something is posted for a leaf's device.
pub(super) fn inbox(leaf: &LeafNode) -> Option<(DeviceKey, RoomId)> {
    statement(leaf).map(|(device, statement)| (device, inbox_of(statement.inbox)))
}

/// A leaf's extensions: how its device came in, and what its person is called.
pub(super) fn leaf_extensions(via: Option<LinkId>, identity: &Identity) -> Extensions<LeafNode> {
    let via = via.map(|id| Extension::Unknown(VIA, UnknownExtension(id.0.to_vec())));
    let name = Some(identity.name()).filter(|name| !name.is_empty());
    let name = name.map(|name| Extension::Unknown(NAME, UnknownExtension(name.as_bytes().to_vec())));
    Extensions::from_vec(via.into_iter().chain(name).collect()).expect("an unknown extension may be in a leaf")
}

/// What every leaf of every group of ours can do: the same for all, so that nobody is left out of anything.
pub(super) fn capabilities(suite: Ciphersuite) -> Capabilities {
    Capabilities::builder()
        .versions(vec![ProtocolVersion::Mls10])
        .ciphersuites(vec![suite])
        .extensions(
            [POLICY, VIA, EXPIRES, NAME].map(ExtensionType::Unknown).into_iter().chain([ExtensionType::LastResort]).collect(),
        )
        .proposals(vec![ProposalType::SelfRemove])
        .credentials(vec![CredentialType::Basic])
        .build()
}

/// What a group's context requires of its members (RFC 9420 §11.1).
pub(super) fn required() -> Extension {
    Extension::RequiredCapabilities(RequiredCapabilitiesExtension::new(
        &[ExtensionType::Unknown(POLICY)],
        &[ProposalType::SelfRemove],
        &[CredentialType::Basic],
    ))
}

/// The lifetime of every leaf (RFC 9420 §7.2): always. Whether a commit is valid must not depend on a member's clock; a key
/// package says by an extension when it expires, which whoever adds it looks at.
pub(super) fn lifetime() -> Lifetime {
    Lifetime::init(0, u64::MAX)
}

/// A key package that may be handed out: by it others add the device while it is away (RFC 9420 §10).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPackage(pub Bytes);

/// What a key package says, after it was verified.
#[derive(Debug, Clone)]
pub struct VerifiedKeyPackage {
    /// The device that it adds.
    pub device: DeviceKey,
    /// Whose.
    pub user: UserKey,
    /// What the person says of the device.
    pub statement: Statement,
    /// Until when it may be used.
    pub expires_ms: UnixMillis,
    /// Whether it may be handed out more than once.
    pub last_resort: bool,
    pub(super) inner: openmls::prelude::KeyPackage,
}

/// Why a key package is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyPackageError {
    /// Not a key package, or one that breaks a rule.
    #[error("malformed key package")]
    Malformed,
    /// Nobody signed that the device is theirs.
    #[error("the key package's device is nobody's")]
    Credential,
    /// For groups of another suite.
    #[error("the key package is of another suite")]
    Suite,
}

impl KeyPackage {
    /// Verifies the signatures and reads what it says. The caller compares `expires_ms` with its clock.
    ///
    /// # Errors
    /// [`KeyPackageError`].
    pub fn verify(&self, suite: Suite, rng: &mut (impl Random + Send)) -> Result<VerifiedKeyPackage, KeyPackageError> {
        let message = MlsMessageIn::tls_deserialize_exact_bytes(&self.0).map_err(|_| KeyPackageError::Malformed)?;
        let MlsMessageBodyIn::KeyPackage(unverified) = message.extract() else { return Err(KeyPackageError::Malformed) };
        verify(unverified, suite, &Crypto::new(rng))
    }
}

fn verify<R: Random + Send>(
    unverified: KeyPackageIn,
    suite: Suite,
    crypto: &Crypto<'_, R>,
) -> Result<VerifiedKeyPackage, KeyPackageError> {
    let inner = unverified.validate(crypto, ProtocolVersion::Mls10).map_err(|_| KeyPackageError::Malformed)?;
    if inner.ciphersuite() != suite.mls() {
        return Err(KeyPackageError::Suite);
    }
    let leaf = inner.leaf_node();
    let Member { device, user, .. } = member(0, leaf).ok_or(KeyPackageError::Credential)?;
    let (_, statement) = statement(leaf).ok_or(KeyPackageError::Credential)?;
    if *inner.life_time() != lifetime() || *leaf.capabilities() != capabilities(suite.mls()) {
        return Err(KeyPackageError::Malformed);
    }
    let expires_ms = expires(&inner).ok_or(KeyPackageError::Malformed)?;
    Ok(VerifiedKeyPackage { device, user, statement, expires_ms, last_resort: inner.last_resort(), inner })
}

/// Until when a key package may be used.
fn expires(package: &openmls::prelude::KeyPackage) -> Option<UnixMillis> {
    Some(u64::from_le_bytes(package.extensions().unknown(EXPIRES)?.0.as_slice().try_into().ok()?))
}

/// The private halves of the key packages that a device published. Secrets are in it.
#[derive(Debug, Clone, Default)]
pub struct KeyPackages {
    pub(super) storage: Storage,
}

impl KeyPackages {
    /// Makes one, to be published.
    ///
    /// # Errors
    /// [`SnapshotError`] when the store is damaged.
    pub fn make(
        &mut self,
        identity: &Identity,
        suite: Suite,
        expires_ms: UnixMillis,
        last_resort: bool,
        rng: &mut (impl Random + Send),
    ) -> Result<KeyPackage, SnapshotError> {
        let expires = Extension::Unknown(EXPIRES, UnknownExtension(expires_ms.to_le_bytes().to_vec()));
        let mut builder = openmls::prelude::KeyPackage::builder()
            .key_package_lifetime(lifetime())
            .key_package_extensions(Extensions::single(expires).map_err(|_| SnapshotError)?)
            .leaf_node_capabilities(capabilities(suite.mls()))
            .leaf_node_extensions(leaf_extensions(None, identity));
        if last_resort {
            builder = builder.mark_as_last_resort();
        }
        let provider = Provider::new(&self.storage, rng);
        let bundle =
            builder.build(suite.mls(), &provider, &DeviceSigner(identity), credential(identity)).map_err(|_| SnapshotError)?;
        let message = MlsMessageOut::from(bundle.into_key_package());
        Ok(KeyPackage(message.to_bytes().map_err(|_| SnapshotError)?.into()))
    }

    /// Forgets those that expired before this time. Returns how many are left.
    pub fn forget_expired(&mut self, before_ms: UnixMillis) -> usize {
        self.storage.retain_key_packages(|bundle| expires(bundle.key_package()).is_some_and(|at_ms| at_ms >= before_ms))
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.storage.retain_key_packages(|_| true)
    }

    /// The state, to be kept.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        postcard::to_allocvec(&self.storage).expect("a store encodes into memory")
    }

    /// As kept.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn restore(snapshot: &[u8]) -> Result<Self, SnapshotError> {
        let storage = postcard::from_bytes(snapshot).map_err(|_| SnapshotError)?;
        Ok(Self { storage })
    }
}
