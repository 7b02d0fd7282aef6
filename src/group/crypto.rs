//! MLS's cryptography (RFC 9420 §5) over the crates that seal envelopes: no second implementation of anything.
//!
//! Two suites, both with HKDF-SHA256, AES-128-GCM and Ed25519: X-Wing for what must stay secret from quantum computers, and
//! X25519, RFC 9420's mandatory one. The X-Wing KEM is the `hpke` crate's (`0x647A`, seed as private key,
//! DeriveKeyPair of draft-ietf-hpke-pq).

use std::sync::{Mutex, PoisonError};

use aes_gcm::{
    Aes128Gcm, KeyInit as _,
    aead::{Aead as _, Payload},
};
use ed25519_dalek::{Signer as _, SigningKey};
use hkdf::{
    Hkdf,
    hmac::{Hmac, Mac as _},
};
use hpke::{
    Deserializable, OpModeR, OpModeS, Serializable,
    aead::AesGcm128,
    kdf::HkdfSha256,
    kem::{Kem, X25519HkdfSha256, XWing},
    setup_receiver, setup_sender_with_rng,
};
use openmls::prelude::tls_codec::SecretVLBytes;
use openmls_traits::{
    crypto::OpenMlsCrypto,
    random::OpenMlsRand,
    types::{
        AeadType, Ciphersuite, CryptoError, ExporterSecret, HashType, HpkeAeadType, HpkeCiphertext, HpkeConfig, HpkeKdfType,
        HpkeKemType, HpkeKeyPair, KemOutput, SignatureScheme,
    },
};
use sha2::{Digest as _, Sha256};

use crate::{core::id::Signature, seal::Random};

/// The suites that this build speaks, the preferred one first.
pub(super) const SUITES: [Ciphersuite; 2] =
    [Ciphersuite::MLS_128_MLKEM768X25519_AES128GCM_SHA256_Ed25519, Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519];

/// The primitives, with the injected randomness. Behind a mutex because MLS may seal a commit's path on several threads.
#[derive(Debug)]
pub(super) struct Crypto<'a, R> {
    rng: Mutex<&'a mut R>,
}

impl<'a, R: Random + Send> Crypto<'a, R> {
    pub(super) const fn new(rng: &'a mut R) -> Self {
        Self { rng: Mutex::new(rng) }
    }

    /// Nothing that holds the lock can panic half-way, so that a poisoned one is as good.
    fn with_rng<T>(&self, use_it: impl FnOnce(&mut R) -> T) -> T {
        use_it(&mut self.rng.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<R: Random + Send> OpenMlsRand for Crypto<'_, R> {
    type Error = core::convert::Infallible;

    fn random_array<const N: usize>(&self) -> Result<[u8; N], Self::Error> {
        Ok(self.with_rng(Random::bytes))
    }

    fn random_vec(&self, len: usize) -> Result<Vec<u8>, Self::Error> {
        let mut bytes = vec![0; len];
        self.with_rng(|rng| rng.fill_bytes(&mut bytes));
        Ok(bytes)
    }
}

const fn sha256_only(hash: HashType) -> Result<(), CryptoError> {
    match hash {
        HashType::Sha2_256 => Ok(()),
        HashType::Sha2_384 | HashType::Sha2_512 => Err(CryptoError::UnsupportedHashAlgorithm),
    }
}

fn aes(alg: AeadType, key: &[u8]) -> Result<Aes128Gcm, CryptoError> {
    match alg {
        AeadType::Aes128Gcm => Aes128Gcm::new_from_slice(key).map_err(|_| CryptoError::InvalidLength),
        AeadType::Aes256Gcm | AeadType::ChaCha20Poly1305 => Err(CryptoError::UnsupportedAeadAlgorithm),
    }
}

fn ed25519_only(alg: SignatureScheme) -> Result<(), CryptoError> {
    if alg == SignatureScheme::ED25519 { Ok(()) } else { Err(CryptoError::UnsupportedSignatureScheme) }
}

/// One KEM with HKDF-SHA256 and AES-128-GCM, in base mode (RFC 9180 §5.1.1), as MLS uses it.
trait Base: Kem + Sized {
    fn sender<T>(
        key: &[u8],
        info: &[u8],
        rng: &mut impl Random,
        finish: impl FnOnce(&mut hpke::aead::AeadCtxS<AesGcm128, HkdfSha256, Self>) -> Result<T, hpke::HpkeError>,
    ) -> Result<(Vec<u8>, T), CryptoError> {
        let key = Self::PublicKey::from_bytes(key).map_err(|_| CryptoError::InvalidPublicKey)?;
        let (enc, mut context) =
            setup_sender_with_rng(&OpModeS::Base, &key, info, rng).map_err(|_| CryptoError::SenderSetupError)?;
        let made = finish(&mut context).map_err(|_| CryptoError::HpkeEncryptionError)?;
        Ok((enc.to_bytes().to_vec(), made))
    }

    fn receiver<T>(
        key: &[u8],
        enc: &[u8],
        info: &[u8],
        finish: impl FnOnce(&mut hpke::aead::AeadCtxR<AesGcm128, HkdfSha256, Self>) -> Result<T, hpke::HpkeError>,
    ) -> Result<T, CryptoError> {
        let key = Self::PrivateKey::from_bytes(key).map_err(|_| CryptoError::InvalidLength)?;
        let enc = Self::EncappedKey::from_bytes(enc).map_err(|_| CryptoError::ReceiverSetupError)?;
        let mut context = setup_receiver(&OpModeR::Base, &key, &enc, info).map_err(|_| CryptoError::ReceiverSetupError)?;
        finish(&mut context).map_err(|_| CryptoError::HpkeDecryptionError)
    }

    fn key_pair(ikm: &[u8]) -> HpkeKeyPair {
        let (private, public) = Self::derive_keypair(ikm);
        HpkeKeyPair { private: private.to_bytes().to_vec().into(), public: public.to_bytes().to_vec() }
    }
}

impl Base for X25519HkdfSha256 {}
impl Base for XWing {}

/// Runs the expression with `Base` as the KEM that the configuration names.
macro_rules! with_kem {
    ($config:expr, $kem:ident => $run:expr) => {
        match $config {
            HpkeConfig(HpkeKemType::DhKem25519, HpkeKdfType::HkdfSha256, HpkeAeadType::AesGcm128) => {
                type $kem = X25519HkdfSha256;
                $run
            }
            HpkeConfig(HpkeKemType::XWingKemDraft6, HpkeKdfType::HkdfSha256, HpkeAeadType::AesGcm128) => {
                type $kem = XWing;
                $run
            }
            HpkeConfig(..) => Err(CryptoError::UnsupportedCiphersuite),
        }
    };
}

impl<R: Random + Send> OpenMlsCrypto for Crypto<'_, R> {
    fn supports(&self, suite: Ciphersuite) -> Result<(), CryptoError> {
        if SUITES.contains(&suite) { Ok(()) } else { Err(CryptoError::UnsupportedCiphersuite) }
    }

    fn supported_ciphersuites(&self) -> Vec<Ciphersuite> {
        SUITES.to_vec()
    }

    fn hkdf_extract(&self, hash: HashType, salt: &[u8], ikm: &[u8]) -> Result<SecretVLBytes, CryptoError> {
        sha256_only(hash)?;
        Ok(Hkdf::<Sha256>::extract(Some(salt), ikm).0.to_vec().into())
    }

    fn hmac(&self, hash: HashType, key: &[u8], message: &[u8]) -> Result<SecretVLBytes, CryptoError> {
        sha256_only(hash)?;
        let mut mac = Hmac::<Sha256>::new_from_slice(key).map_err(|_| CryptoError::InvalidLength)?;
        mac.update(message);
        Ok(mac.finalize().into_bytes().to_vec().into())
    }

    fn hkdf_expand(&self, hash: HashType, prk: &[u8], info: &[u8], len: usize) -> Result<SecretVLBytes, CryptoError> {
        sha256_only(hash)?;
        let mut okm = vec![0; len];
        let hkdf = Hkdf::<Sha256>::from_prk(prk).map_err(|_| CryptoError::InvalidLength)?;
        hkdf.expand(info, &mut okm).map_err(|_| CryptoError::HkdfOutputLengthInvalid)?;
        Ok(okm.into())
    }

    fn hash(&self, hash: HashType, data: &[u8]) -> Result<Vec<u8>, CryptoError> {
        sha256_only(hash)?;
        Ok(Sha256::digest(data).to_vec())
    }

    fn aead_encrypt(&self, alg: AeadType, key: &[u8], data: &[u8], nonce: &[u8], aad: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let nonce = nonce.try_into().map_err(|_| CryptoError::InvalidLength)?;
        aes(alg, key)?.encrypt(nonce, Payload { msg: data, aad }).map_err(|_| CryptoError::TooMuchData)
    }

    fn aead_decrypt(&self, alg: AeadType, key: &[u8], ct_tag: &[u8], nonce: &[u8], aad: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let nonce = nonce.try_into().map_err(|_| CryptoError::InvalidLength)?;
        aes(alg, key)?.decrypt(nonce, Payload { msg: ct_tag, aad }).map_err(|_| CryptoError::AeadDecryptionError)
    }

    fn signature_key_gen(&self, alg: SignatureScheme) -> Result<(Vec<u8>, Vec<u8>), CryptoError> {
        ed25519_only(alg)?;
        let key = SigningKey::from_bytes(&self.with_rng(Random::bytes));
        Ok((key.to_bytes().to_vec(), key.verifying_key().to_bytes().to_vec()))
    }

    fn verify_signature(&self, alg: SignatureScheme, data: &[u8], pk: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        ed25519_only(alg)?;
        let key: &[u8; 32] = pk.try_into().map_err(|_| CryptoError::InvalidPublicKey)?;
        let signature: [u8; Signature::LEN] = signature.try_into().map_err(|_| CryptoError::SignatureDecodingError)?;
        if Signature::from(signature).verifies(key, data) { Ok(()) } else { Err(CryptoError::InvalidSignature) }
    }

    fn sign(&self, alg: SignatureScheme, data: &[u8], key: &[u8]) -> Result<Vec<u8>, CryptoError> {
        ed25519_only(alg)?;
        let key = key.try_into().map_err(|_| CryptoError::InvalidLength)?;
        Ok(SigningKey::from_bytes(key).sign(data).to_bytes().to_vec())
    }

    fn hpke_seal(
        &self,
        config: HpkeConfig,
        pk_r: &[u8],
        info: &[u8],
        aad: &[u8],
        ptxt: &[u8],
    ) -> Result<HpkeCiphertext, CryptoError> {
        let (enc, ciphertext) =
            self.with_rng(|rng| with_kem!(config, K => K::sender(pk_r, info, rng, |context| context.seal(ptxt, aad))))?;
        Ok(HpkeCiphertext { kem_output: enc.into(), ciphertext: ciphertext.into() })
    }

    fn hpke_open(
        &self,
        config: HpkeConfig,
        input: &HpkeCiphertext,
        sk_r: &[u8],
        info: &[u8],
        aad: &[u8],
    ) -> Result<Vec<u8>, CryptoError> {
        let (enc, ciphertext) = (input.kem_output.as_slice(), input.ciphertext.as_slice());
        with_kem!(config, K => K::receiver(sk_r, enc, info, |context| context.open(ciphertext, aad)))
    }

    fn hpke_setup_sender_and_export(
        &self,
        config: HpkeConfig,
        pk_r: &[u8],
        info: &[u8],
        exporter_context: &[u8],
        exporter_length: usize,
    ) -> Result<(KemOutput, ExporterSecret), CryptoError> {
        let mut secret = vec![0; exporter_length];
        let (enc, ()) = self.with_rng(
            |rng| with_kem!(config, K => K::sender(pk_r, info, rng, |context| context.export(exporter_context, &mut secret))),
        )?;
        Ok((enc, secret.into()))
    }

    fn hpke_setup_receiver_and_export(
        &self,
        config: HpkeConfig,
        enc: &[u8],
        sk_r: &[u8],
        info: &[u8],
        exporter_context: &[u8],
        exporter_length: usize,
    ) -> Result<ExporterSecret, CryptoError> {
        let mut secret = vec![0; exporter_length];
        with_kem!(config, K => K::receiver(sk_r, enc, info, |context| context.export(exporter_context, &mut secret)))?;
        Ok(secret.into())
    }

    fn derive_hpke_keypair(&self, config: HpkeConfig, ikm: &[u8]) -> Result<HpkeKeyPair, CryptoError> {
        with_kem!(config, K => Ok(K::key_pair(ikm)))
    }
}
