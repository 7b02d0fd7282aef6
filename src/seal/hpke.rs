//! The two suites over the `hpke` crate: set up a context, export the binder, sign, seal; and the same backwards.
//!
//! Single-shot on purpose: each envelope has an encapsulation of its own, so any one opens without the others, and no
//! restored snapshot can repeat a nonce.

use hpke::{
    Deserializable, OpModeR, OpModeS, PskBundle, Serializable,
    aead::AesGcm128,
    kdf::HkdfSha256,
    kem::{Kem, X25519HkdfSha256, XWing},
    setup_receiver, setup_sender_with_rng,
};
use rand_core::CryptoRng;

/// Exporter context of the binder (RFC 9180 §5.3).
const BINDER_CONTEXT: &[u8] = b"waxwing binder v1";

/// Exporter context of a shared secret.
const SHARED_CONTEXT: &[u8] = b"waxwing shared v1";

/// 32 bytes that both ends of an encapsulation know: what the inner signature is tied to.
pub type Binder = [u8; 32];

/// Why HPKE refused. It says no more on purpose: nothing else is safe to tell a sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HpkeError {
    /// A key or an encapsulation is malformed, or yields an all-zero shared secret.
    #[error("malformed key or encapsulation")]
    Key,
    /// The AEAD tag does not verify: other keys, other context, or changed bytes.
    #[error("does not open with these keys")]
    Open,
}

/// Whom to seal to, or with what to open, in suite 1 (X25519 with a pre-shared key) and suite 2 (X-Wing).
#[derive(Clone, Debug)]
pub struct X25519Public(<X25519HkdfSha256 as Kem>::PublicKey);
/// A private key of suite 1.
#[derive(Clone)]
pub struct X25519Private(<X25519HkdfSha256 as Kem>::PrivateKey);
/// A public key of suite 2, 1216 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XWingPublic(<XWing as Kem>::PublicKey);
/// A private key of suite 2: its 32-byte seed.
#[derive(Clone)]
pub struct XWingPrivate(<XWing as Kem>::PrivateKey);

impl core::fmt::Debug for X25519Private {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("X25519Private(…)")
    }
}

impl core::fmt::Debug for XWingPrivate {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("XWingPrivate(…)")
    }
}

impl X25519Private {
    /// DeriveKeyPair (RFC 9180 §7.1.3) of 32 random bytes.
    #[must_use]
    pub fn derive(ikm: &[u8; 32]) -> (Self, X25519Public) {
        let (private, public) = X25519HkdfSha256::derive_keypair(ikm);
        (Self(private), X25519Public(public))
    }
}

impl X25519Public {
    /// The encoding.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes().into()
    }

    /// Reads an encoding.
    ///
    /// # Errors
    /// [`HpkeError::Key`] when it is none.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, HpkeError> {
        <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(bytes).map(Self).map_err(|_| HpkeError::Key)
    }
}

impl XWingPrivate {
    /// The key whose seed this is. The seed is used as the private key itself: `DeriveKeyPair` differs between libraries.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> (Self, XWingPublic) {
        let private = <XWing as Kem>::PrivateKey::from_bytes(seed).expect("any 32 bytes are a seed");
        let public = XWing::sk_to_pk(&private);
        (Self(private), XWingPublic(public))
    }
}

impl XWingPublic {
    /// Bytes of the encoding.
    pub const LEN: usize = 1216;

    /// The encoding.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.to_bytes().to_vec()
    }

    /// Reads an encoding.
    ///
    /// # Errors
    /// [`HpkeError::Key`] when it is none.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, HpkeError> {
        <XWing as Kem>::PublicKey::from_bytes(bytes).map(Self).map_err(|_| HpkeError::Key)
    }
}

/// A pre-shared key and its name (RFC 9180 §5.1.2).
#[derive(Clone, Copy)]
pub struct Psk<'a> {
    /// 32 random bytes.
    pub key: &'a [u8; 32],
    /// Names the key.
    pub id: &'a [u8],
}

impl core::fmt::Debug for Psk<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Psk(…)")
    }
}

/// Seals in suite 1. `plaintext` is given the encapsulation and the binder and makes what is sealed under `aad`.
///
/// Returns (enc, ciphertext with tag).
///
/// # Errors
/// [`HpkeError::Key`] when the recipient's key is degenerate.
pub fn seal_x25519(
    to: &X25519Public,
    psk: Psk<'_>,
    info: &[u8],
    aad: &[u8],
    rng: &mut impl CryptoRng,
    plaintext: impl FnOnce(&[u8], &Binder) -> Vec<u8>,
) -> Result<(Vec<u8>, Vec<u8>), HpkeError> {
    let psk = PskBundle::new(psk.key, psk.id).map_err(|_| HpkeError::Key)?;
    seal::<X25519HkdfSha256>(&OpModeS::Psk(psk), &to.0, info, aad, rng, plaintext)
}

/// Seals in suite 2. As [`seal_x25519`], without a pre-shared key.
///
/// # Errors
/// [`HpkeError::Key`] when the recipient's key is degenerate.
pub fn seal_xwing(
    to: &XWingPublic,
    info: &[u8],
    aad: &[u8],
    rng: &mut impl CryptoRng,
    plaintext: impl FnOnce(&[u8], &Binder) -> Vec<u8>,
) -> Result<(Vec<u8>, Vec<u8>), HpkeError> {
    seal::<XWing>(&OpModeS::Base, &to.0, info, aad, rng, plaintext)
}

/// Opens what [`seal_x25519`] made. Returns the plaintext and the binder.
///
/// # Errors
/// [`HpkeError`].
pub fn open_x25519(
    with: &X25519Private,
    psk: Psk<'_>,
    enc: &[u8],
    info: &[u8],
    aad: &[u8],
    ciphertext: &[u8],
) -> Result<(Vec<u8>, Binder), HpkeError> {
    let psk = PskBundle::new(psk.key, psk.id).map_err(|_| HpkeError::Key)?;
    open::<X25519HkdfSha256>(&OpModeR::Psk(psk), &with.0, enc, info, aad, ciphertext)
}

/// Opens what [`seal_xwing`] made. Returns the plaintext and the binder.
///
/// # Errors
/// [`HpkeError`].
pub fn open_xwing(
    with: &XWingPrivate,
    enc: &[u8],
    info: &[u8],
    aad: &[u8],
    ciphertext: &[u8],
) -> Result<(Vec<u8>, Binder), HpkeError> {
    open::<XWing>(&OpModeR::Base, &with.0, enc, info, aad, ciphertext)
}

/// A secret that nobody has but the holders of `from` and of `to`'s private key: HPKE's auth mode (RFC 9180 §5.1.3) in suite 1,
/// exported. Returns (enc, secret). It proves to `to`'s holder that the other one holds `from`.
///
/// # Errors
/// [`HpkeError::Key`] when the recipient's key is degenerate.
pub fn share_secret(
    from: (&X25519Private, &X25519Public),
    to: &X25519Public,
    info: &[u8],
    rng: &mut impl CryptoRng,
) -> Result<([u8; 32], [u8; 32]), HpkeError> {
    let mode = OpModeS::Auth((from.0.0.clone(), from.1.0.clone()));
    let (enc, context) =
        setup_sender_with_rng::<AesGcm128, HkdfSha256, X25519HkdfSha256>(&mode, &to.0, info, rng).map_err(|_| HpkeError::Key)?;
    let mut secret = [0; 32];
    context.export(SHARED_CONTEXT, &mut secret).map_err(|_| HpkeError::Key)?;
    Ok((enc.to_bytes().into(), secret))
}

/// The secret that [`share_secret`] made.
///
/// # Errors
/// [`HpkeError::Key`].
pub fn shared_secret(with: &X25519Private, from: &X25519Public, enc: &[u8; 32], info: &[u8]) -> Result<[u8; 32], HpkeError> {
    let enc = <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(enc).map_err(|_| HpkeError::Key)?;
    let mode = OpModeR::Auth(from.0.clone());
    let context =
        setup_receiver::<AesGcm128, HkdfSha256, X25519HkdfSha256>(&mode, &with.0, &enc, info).map_err(|_| HpkeError::Key)?;
    let mut secret = [0; 32];
    context.export(SHARED_CONTEXT, &mut secret).map_err(|_| HpkeError::Key)?;
    Ok(secret)
}

fn seal<K: Kem>(
    mode: &OpModeS<'_, K>,
    to: &K::PublicKey,
    info: &[u8],
    aad: &[u8],
    rng: &mut impl CryptoRng,
    plaintext: impl FnOnce(&[u8], &Binder) -> Vec<u8>,
) -> Result<(Vec<u8>, Vec<u8>), HpkeError> {
    let (enc, mut context) =
        setup_sender_with_rng::<AesGcm128, HkdfSha256, K>(mode, to, info, rng).map_err(|_| HpkeError::Key)?;
    let enc = enc.to_bytes().to_vec();
    let mut binder = [0; 32];
    context.export(BINDER_CONTEXT, &mut binder).map_err(|_| HpkeError::Key)?;
    let ciphertext = context.seal(&plaintext(&enc, &binder), aad).map_err(|_| HpkeError::Key)?;
    Ok((enc, ciphertext))
}

fn open<K: Kem>(
    mode: &OpModeR<'_, K>,
    with: &K::PrivateKey,
    enc: &[u8],
    info: &[u8],
    aad: &[u8],
    ciphertext: &[u8],
) -> Result<(Vec<u8>, Binder), HpkeError> {
    let enc = K::EncappedKey::from_bytes(enc).map_err(|_| HpkeError::Key)?;
    let mut context = setup_receiver::<AesGcm128, HkdfSha256, K>(mode, with, &enc, info).map_err(|_| HpkeError::Key)?;
    let mut binder = [0; 32];
    context.export(BINDER_CONTEXT, &mut binder).map_err(|_| HpkeError::Key)?;
    let plaintext = context.open(ciphertext, aad).map_err(|_| HpkeError::Open)?;
    Ok((plaintext, binder))
}

#[cfg(test)]
mod vectors;
