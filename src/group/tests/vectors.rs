//! The MLS working group's vectors (`github.com/mlswg/mls-implementations`, cipher suite 1), through the cryptography and the storage that
//! groups run on: single operations, the key schedule, and whole clients that only read.

use openmls::{
    group::{JoinBuilder, MlsGroup, MlsGroupJoinConfig},
    prelude::{
        KeyPackageBundle, MlsMessageBodyIn, MlsMessageIn, PURE_PLAINTEXT_WIRE_FORMAT_POLICY, ProcessedMessageContent,
        ProcessedWelcome, RatchetTreeIn,
        tls_codec::{DeserializeBytes as _, Serialize as _, VLBytes},
    },
    schedule::PreSharedKeyId,
};
use openmls_traits::{
    OpenMlsProvider as _,
    crypto::OpenMlsCrypto,
    storage::StorageProvider as _,
    types::{HashType, HpkeCiphertext, HpkeConfig, SignatureScheme},
};
use serde::{Deserialize, Deserializer};

use super::{Rng, Suite};
use crate::group::{crypto::Crypto, device::Provider, storage::Storage};

/// Bytes, in hex.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Hex(Vec<u8>);

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let byte = |pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
        Ok(Self(text.as_bytes().chunks(2).map(byte).collect()))
    }
}

impl core::ops::Deref for Hex {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

#[derive(Deserialize)]
struct Vectors {
    crypto_basics: Basics,
    key_schedule: KeySchedule,
    psk_secret: Vec<PskSecret>,
    passive_clients: Vec<PassiveClient>,
}

fn vectors() -> Vectors {
    serde_json::from_str(include_str!("../../../tests/vectors/mls.json")).unwrap()
}

#[derive(Deserialize)]
struct Basics {
    ref_hash: RefHash,
    expand_with_label: Expand,
    derive_secret: Expand,
    derive_tree_secret: Expand,
    sign_with_label: Sign,
    encrypt_with_label: Encrypt,
}

#[derive(Deserialize)]
struct RefHash {
    label: String,
    value: Hex,
    out: Hex,
}

#[derive(Deserialize)]
struct Expand {
    secret: Hex,
    label: String,
    #[serde(default)]
    context: Hex,
    #[serde(default)]
    generation: u32,
    out: Hex,
}

#[derive(Deserialize)]
struct Sign {
    r#priv: Hex,
    r#pub: Hex,
    content: Hex,
    label: String,
    signature: Hex,
}

#[derive(Deserialize)]
struct Encrypt {
    r#priv: Hex,
    r#pub: Hex,
    label: String,
    context: Hex,
    plaintext: Hex,
    kem_output: Hex,
    ciphertext: Hex,
}

/// A vector of RFC 9420 §2.1.2.
fn vector(bytes: &[u8]) -> Vec<u8> {
    VLBytes::new(bytes.to_vec()).tls_serialize_detached().unwrap()
}

/// RFC 9420 §5.1.2, §5.1.3, §8: what signatures, ciphertexts and derived secrets are labelled with.
fn labelled(label: &str, context: &[u8]) -> Vec<u8> {
    [vector(format!("MLS 1.0 {label}").as_bytes()), vector(context)].concat()
}

fn expand(crypto: &impl OpenMlsCrypto, secret: &[u8], label: &str, context: &[u8], len: usize) -> Vec<u8> {
    let info = [&[0, u8::try_from(len).unwrap()], &labelled(label, context)[..]].concat();
    crypto.hkdf_expand(HashType::Sha2_256, secret, &info, len).unwrap().as_slice().to_vec()
}

fn derive(crypto: &impl OpenMlsCrypto, secret: &[u8], label: &str) -> Vec<u8> {
    expand(crypto, secret, label, b"", 32)
}

fn extract(crypto: &impl OpenMlsCrypto, salt: &[u8], ikm: &[u8]) -> Vec<u8> {
    crypto.hkdf_extract(HashType::Sha2_256, salt, ikm).unwrap().as_slice().to_vec()
}

fn hpke() -> HpkeConfig {
    Suite::X25519.mls().hpke_config()
}

#[test]
fn crypto_basics() {
    let rng = &mut Rng(1);
    let crypto = Crypto::new(rng);
    let Basics { ref_hash, expand_with_label, derive_secret, derive_tree_secret, sign_with_label, encrypt_with_label } =
        vectors().crypto_basics;

    let input = [vector(ref_hash.label.as_bytes()), vector(&ref_hash.value)].concat();
    assert_eq!(crypto.hash(HashType::Sha2_256, &input).unwrap(), ref_hash.out.0);

    for Expand { secret, label, context, out, .. } in [expand_with_label, derive_secret] {
        assert_eq!(expand(&crypto, &secret, &label, &context, out.len()), out.0);
    }
    let Expand { secret, label, generation, out, .. } = derive_tree_secret;
    let generation: Vec<u8> = generation.to_le_bytes().into_iter().rev().collect();
    assert_eq!(expand(&crypto, &secret, &label, &generation, out.len()), out.0);

    let Sign { r#priv, r#pub, content, label, signature } = sign_with_label;
    let content = labelled(&label, &content);
    assert_eq!(crypto.sign(SignatureScheme::ED25519, &content, &r#priv).unwrap(), signature.0);
    assert!(crypto.verify_signature(SignatureScheme::ED25519, &content, &r#pub, &signature).is_ok());
    assert!(crypto.verify_signature(SignatureScheme::ED25519, &content[1..], &r#pub, &signature).is_err());

    let Encrypt { r#priv, r#pub, label, context, plaintext, kem_output, ciphertext } = encrypt_with_label;
    let info = labelled(&label, &context);
    let theirs = HpkeCiphertext { kem_output: kem_output.0.into(), ciphertext: ciphertext.0.into() };
    let ours = crypto.hpke_seal(hpke(), &r#pub, &info, b"", &plaintext).unwrap();
    for sealed in [theirs, ours] {
        assert_eq!(crypto.hpke_open(hpke(), &sealed, &r#priv, &info, b"").unwrap(), plaintext.0);
        assert!(crypto.hpke_open(hpke(), &sealed, &r#priv, b"", b"").is_err());
    }
}

#[derive(Deserialize)]
struct KeySchedule {
    initial_init_secret: Hex,
    epochs: Vec<Epoch>,
}

#[derive(Deserialize)]
struct Epoch {
    commit_secret: Hex,
    psk_secret: Hex,
    group_context: Hex,
    joiner_secret: Hex,
    welcome_secret: Hex,
    init_secret: Hex,
    sender_data_secret: Hex,
    encryption_secret: Hex,
    exporter_secret: Hex,
    epoch_authenticator: Hex,
    external_secret: Hex,
    external_pub: Hex,
    confirmation_key: Hex,
    membership_key: Hex,
    resumption_psk: Hex,
    exporter: Exported,
}

#[derive(Deserialize)]
struct Exported {
    label: String,
    context: Hex,
    length: usize,
    secret: Hex,
}

#[test]
fn key_schedule() {
    let rng = &mut Rng(1);
    let crypto = Crypto::new(rng);
    let KeySchedule { initial_init_secret, epochs } = vectors().key_schedule;
    let mut init = initial_init_secret.0;
    assert!(!epochs.is_empty());
    for epoch in epochs {
        let joiner = expand(&crypto, &extract(&crypto, &init, &epoch.commit_secret), "joiner", &epoch.group_context, 32);
        assert_eq!(joiner, epoch.joiner_secret.0);
        let member = extract(&crypto, &joiner, &epoch.psk_secret);
        assert_eq!(derive(&crypto, &member, "welcome"), epoch.welcome_secret.0);
        let secret = expand(&crypto, &member, "epoch", &epoch.group_context, 32);
        for (label, expected) in [
            ("init", &epoch.init_secret),
            ("sender data", &epoch.sender_data_secret),
            ("encryption", &epoch.encryption_secret),
            ("exporter", &epoch.exporter_secret),
            ("authentication", &epoch.epoch_authenticator),
            ("external", &epoch.external_secret),
            ("confirm", &epoch.confirmation_key),
            ("membership", &epoch.membership_key),
            ("resumption", &epoch.resumption_psk),
        ] {
            assert_eq!(derive(&crypto, &secret, label), expected.0, "{label}");
        }
        assert_eq!(crypto.derive_hpke_keypair(hpke(), &epoch.external_secret).unwrap().public, epoch.external_pub.0);
        let Exported { label, context, length, secret } = epoch.exporter;
        let hash = crypto.hash(HashType::Sha2_256, &context).unwrap();
        let exported = expand(&crypto, &derive(&crypto, &epoch.exporter_secret, &label), "exported", &hash, length);
        assert_eq!(exported, secret.0);
        init = epoch.init_secret.0;
    }
}

#[derive(Deserialize)]
struct PskSecret {
    psks: Vec<Psk>,
    psk_secret: Hex,
}

#[derive(Deserialize)]
struct Psk {
    psk_id: Hex,
    psk: Hex,
    #[serde(default)]
    psk_nonce: Hex,
}

#[test]
fn psk_secret() {
    let rng = &mut Rng(1);
    let crypto = Crypto::new(rng);
    for PskSecret { psks, psk_secret } in vectors().psk_secret {
        let count = u8::try_from(psks.len()).unwrap();
        let mut secret = vec![0; 32];
        for (index, Psk { psk_id, psk, psk_nonce }) in (0..).zip(psks) {
            let label = [&[1][..], &vector(&psk_id), &vector(&psk_nonce), &[0, index, 0, count]].concat();
            let input = expand(&crypto, &extract(&crypto, &[0; 32], &psk), "derived psk", &label, 32);
            secret = extract(&crypto, &input, &secret);
        }
        assert_eq!(secret, psk_secret.0);
    }
}

#[derive(Deserialize)]
struct PassiveClient {
    name: String,
    external_psks: Vec<Psk>,
    key_package: Hex,
    encryption_priv: Hex,
    init_priv: Hex,
    welcome: Hex,
    ratchet_tree: Option<Hex>,
    initial_epoch_authenticator: Hex,
    epochs: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    proposals: Vec<Hex>,
    commit: Hex,
    epoch_authenticator: Hex,
}

#[test]
fn passive_clients() {
    let clients = vectors().passive_clients;
    assert_eq!(clients.len(), 11);
    clients.iter().for_each(follow);
}

fn message(bytes: &[u8]) -> MlsMessageIn {
    MlsMessageIn::tls_deserialize_exact_bytes(bytes).unwrap()
}

/// A client that comes in by a welcome and reads what the others do.
fn follow(client: &PassiveClient) {
    let (storage, rng) = (Storage::default(), &mut Rng(1));
    let provider = Provider::new(&storage, rng);
    for Psk { psk_id, psk, .. } in &client.external_psks {
        PreSharedKeyId::external(psk_id.to_vec(), Vec::new()).store(&provider, psk).unwrap();
    }
    let MlsMessageBodyIn::KeyPackage(package) = message(&client.key_package).extract() else { panic!("{}", client.name) };
    // openmls makes bundles itself only, and takes no key package that has expired, as these have; a bundle encodes as its parts do.
    let bundle = postcard::to_allocvec(&(package, &client.init_priv.0, &client.encryption_priv.0)).unwrap();
    let bundle: KeyPackageBundle = postcard::from_bytes(&bundle).unwrap();
    storage.write_key_package(&bundle.key_package().hash_ref(provider.crypto()).unwrap(), &bundle).unwrap();

    let config =
        MlsGroupJoinConfig::builder().wire_format_policy(PURE_PLAINTEXT_WIRE_FORMAT_POLICY).number_of_resumption_psks(16).build();
    let MlsMessageBodyIn::Welcome(welcome) = message(&client.welcome).extract() else { panic!("{}", client.name) };
    let tree = client.ratchet_tree.as_ref().map(|tree| RatchetTreeIn::tls_deserialize_exact_bytes(tree).unwrap());
    let welcome = ProcessedWelcome::new_from_welcome(&provider, &config, welcome).unwrap();
    let mut join = JoinBuilder::new(&provider, welcome).skip_lifetime_validation();
    if let Some(tree) = tree {
        join = join.with_ratchet_tree(tree);
    }
    let mut group = join.build().unwrap().into_group(&provider).unwrap();
    assert_eq!(group.epoch_authenticator().as_slice(), &*client.initial_epoch_authenticator, "{}", client.name);
    for Step { proposals, commit, epoch_authenticator } in &client.epochs {
        for bytes in proposals.iter().chain([commit]) {
            take(&mut group, &provider, bytes);
        }
        assert_eq!(group.epoch_authenticator().as_slice(), &**epoch_authenticator, "{}", client.name);
    }
}

fn take(group: &mut MlsGroup, provider: &Provider<'_, Rng>, bytes: &[u8]) {
    let processed = group.process_message(provider, message(bytes).try_into_protocol_message().unwrap()).unwrap();
    match processed.into_content() {
        ProcessedMessageContent::ProposalMessage(proposal) => {
            group.store_pending_proposal(provider.storage(), *proposal).unwrap();
        }
        ProcessedMessageContent::StagedCommitMessage(staged) => group.merge_staged_commit(provider, *staged).unwrap(),
        other => panic!("{other:?}"),
    }
}
