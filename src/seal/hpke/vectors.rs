//! Published vectors: RFC 9180 for suite 1, draft-connolly-cfrg-xwing-kem and draft-ietf-hpke-pq for X-Wing. There are none for X-Wing with
//! AES-128-GCM; there the key schedule here, which RFC 9180's vectors confirm, says what must come out.

use hkdf::Hkdf;
use serde::Deserialize;
use sha2::Sha256;

use super::*;

#[derive(Deserialize)]
struct Vectors {
    rfc9180: Vec<Rfc9180>,
    xwing: Vec<Encapsulation>,
    hpke_pq: Vec<Derived>,
}

#[derive(Deserialize)]
struct Rfc9180 {
    mode: u8,
    info: String,
    #[serde(rename = "ikmE")]
    ikm_e: String,
    #[serde(rename = "ikmR")]
    ikm_r: String,
    #[serde(rename = "pkRm")]
    pk_rm: String,
    #[serde(rename = "ikmS", default)]
    ikm_s: String,
    #[serde(default)]
    psk: String,
    #[serde(default)]
    psk_id: String,
    enc: String,
    shared_secret: String,
    exporter_secret: String,
    aad: String,
    pt: String,
    ct: String,
    exports: Vec<Export>,
}

#[derive(Deserialize)]
struct Export {
    context: String,
    value: String,
}

#[derive(Deserialize)]
struct Encapsulation {
    sk: String,
    pk: String,
    eseed: String,
    ct: String,
    ss: String,
}

#[derive(Deserialize)]
struct Derived {
    #[serde(rename = "ikmR")]
    ikm_r: String,
    #[serde(rename = "skRm")]
    sk_rm: String,
    #[serde(rename = "pkRm")]
    pk_rm: String,
    enc: String,
    shared_secret: String,
}

fn vectors() -> Vectors {
    serde_json::from_str(include_str!("../../../tests/vectors/hpke.json")).unwrap()
}

fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn key(text: &str) -> [u8; 32] {
    unhex(text).try_into().unwrap()
}

/// Gives what a vector says was random, and nothing more.
struct Given(Vec<u8>);

impl rand_core::TryRng for Given {
    type Error = core::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        unreachable!("encapsulation takes bytes")
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        unreachable!("encapsulation takes bytes")
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        bytes.copy_from_slice(&self.0.drain(..bytes.len()).collect::<Vec<_>>());
        Ok(())
    }
}

impl rand_core::TryCryptoRng for Given {}

/// RFC 9180 §4 and §5.1, for a KEM with HKDF-SHA256 and AES-128-GCM.
struct Schedule {
    suite: [u8; 10],
    exporter_secret: [u8; 32],
}

impl Schedule {
    fn new(kem: [u8; 2], mode: u8, shared_secret: &[u8], info: &[u8], (psk, psk_id): (&[u8], &[u8])) -> Self {
        let suite = [b'H', b'P', b'K', b'E', kem[0], kem[1], 0, 1, 0, 1];
        let extract = |salt: &[u8], label: &[u8], ikm: &[u8]| {
            Hkdf::<Sha256>::extract(Some(salt), &[b"HPKE-v1", &suite[..], label, ikm].concat())
        };
        let (psk_id_hash, _) = extract(&[], b"psk_id_hash", psk_id);
        let (info_hash, _) = extract(&[], b"info_hash", info);
        let context = [&[mode][..], &psk_id_hash, &info_hash].concat();
        let (_, secret) = extract(shared_secret, b"secret", psk);
        let mut exporter_secret = [0; 32];
        secret.expand(&[&[0, 32], &b"HPKE-v1"[..], &suite, b"exp", &context].concat(), &mut exporter_secret).unwrap();
        Self { suite, exporter_secret }
    }

    fn export(&self, context: &[u8]) -> [u8; 32] {
        let mut value = [0; 32];
        let info = [&[0, 32], &b"HPKE-v1"[..], &self.suite, b"sec", context].concat();
        Hkdf::<Sha256>::from_prk(&self.exporter_secret).unwrap().expand(&info, &mut value).unwrap();
        value
    }
}

#[test]
fn rfc_9180() {
    let modes: Vec<_> = vectors().rfc9180.iter().map(check_rfc_9180).collect();
    assert_eq!(modes, [0, 1, 2]);
}

fn check_rfc_9180(vector: &Rfc9180) -> u8 {
    let [info, psk, psk_id, enc, aad, pt, ct] =
        [&vector.info, &vector.psk, &vector.psk_id, &vector.enc, &vector.aad, &vector.pt, &vector.ct].map(|text| unhex(text));
    let (private, public) = X25519Private::derive(&key(&vector.ikm_r));
    assert_eq!(public.to_bytes(), key(&vector.pk_rm));
    let schedule = Schedule::new([0, 0x20], vector.mode, &unhex(&vector.shared_secret), &info, (&psk, &psk_id));
    assert_eq!(schedule.exporter_secret, key(&vector.exporter_secret));
    for Export { context, value } in &vector.exports {
        assert_eq!(schedule.export(&unhex(context)), key(value));
    }
    let binder = schedule.export(BINDER_CONTEXT);
    let rng = &mut Given(unhex(&vector.ikm_e));
    let plaintext = |_: &[u8], bound: &Binder| {
        assert_eq!(*bound, binder);
        pt.clone()
    };
    match vector.mode {
        0 => {
            let sealed = seal::<X25519HkdfSha256>(&OpModeS::Base, &public.0, &info, &aad, rng, plaintext);
            assert_eq!(sealed, Ok((enc.clone(), ct.clone())));
            let opened = open::<X25519HkdfSha256>(&OpModeR::Base, &private.0, &enc, &info, &aad, &ct);
            assert_eq!(opened, Ok((pt.clone(), binder)));
        }
        1 => {
            let psk = Psk { key: &key(&vector.psk), id: &psk_id };
            assert_eq!(seal_x25519(&public, psk, &info, &aad, rng, plaintext), Ok((enc.clone(), ct.clone())));
            assert_eq!(open_x25519(&private, psk, &enc, &info, &aad, &ct), Ok((pt.clone(), binder)));
        }
        _ => {
            let (from, from_public) = X25519Private::derive(&key(&vector.ikm_s));
            let secret = schedule.export(SHARED_CONTEXT);
            let enc = key(&vector.enc);
            assert_eq!(share_secret((&from, &from_public), &public, &info, rng), Ok((enc, secret)));
            assert_eq!(shared_secret(&private, &from_public, &enc, &info), Ok(secret));
        }
    }
    vector.mode
}

/// What an encapsulation to X-Wing must yield in suite 2.
fn check_suite_2(private: &XWingPrivate, enc: &[u8], shared: &[u8]) {
    let enc = <XWing as Kem>::EncappedKey::from_bytes(enc).unwrap();
    assert_eq!(XWing::decap(&private.0, None, &enc).unwrap().0.as_slice(), shared);
    let info = b"in this context";
    let context = setup_receiver::<AesGcm128, HkdfSha256, XWing>(&OpModeR::Base, &private.0, &enc, info).unwrap();
    let mut binder = [0; 32];
    context.export(BINDER_CONTEXT, &mut binder).unwrap();
    assert_eq!(binder, Schedule::new([0x64, 0x7A], 0, shared, info, (&[], &[])).export(BINDER_CONTEXT));
}

#[test]
fn x_wing() {
    let Vectors { xwing, hpke_pq, .. } = vectors();
    assert_eq!((xwing.len(), hpke_pq.len()), (2, 1));
    for Encapsulation { sk, pk, eseed, ct, ss } in xwing {
        let (private, public) = XWingPrivate::from_seed(&key(&sk));
        assert_eq!(public.to_bytes(), unhex(&pk));
        let (enc, _) = seal_xwing(&public, b"", b"", &mut Given(unhex(&eseed)), |_, _| Vec::new()).unwrap();
        assert_eq!(enc, unhex(&ct));
        check_suite_2(&private, &enc, &unhex(&ss));
    }
    for Derived { ikm_r, sk_rm, pk_rm, enc, shared_secret } in hpke_pq {
        let (private, public) = XWing::derive_keypair(&unhex(&ikm_r));
        assert_eq!((private.to_bytes().to_vec(), public.to_bytes().to_vec()), (unhex(&sk_rm), unhex(&pk_rm)));
        check_suite_2(&XWingPrivate(private), &unhex(&enc), &unhex(&shared_secret));
    }
}
