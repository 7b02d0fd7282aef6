//! Sealing and opening whole envelopes: context, signature, padding.
//!
//! `info` = `"waxwing envelope v1" ‖ kind ‖ suite ‖ room ‖ epoch u64 LE ‖ x`; x is the epoch authenticator for kinds 1 and 7, and
//! `sender certificate hash ‖ SHA-256(recipient key) ‖ purpose` for kind 6 (or something else that both sides know, in the place of that hash;
//! zero where the recipient may not know who writes: [`ANYBODY`]).
//!
//! Plaintext = `signature (64) ‖ body length u32 LE ‖ body ‖ zeroes`, so that the whole envelope has a bucket's size. The
//! signature is Ed25519 over `"waxwing signature v1" ‖ header ‖ enc ‖ binder ‖ SHA-256(body)`: all members share the epoch's
//! keys, so that something opens proves nothing about its sender. An [`Opened`] gives its body only to who names the key.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Random,
    body::Body,
    epoch::Epoch,
    hpke::{Binder, HpkeError, XWingPrivate, XWingPublic, open_x25519, open_xwing, seal_x25519, seal_xwing},
    identity::{Identity, sign_with_seed},
};
use crate::core::{
    chain,
    envelope::{EnvelopeError, HEADER_LEN, Header, Kind, Suite, TAG_LEN},
    id::{DeviceKey, Digest, MessageId, RoomId, Signature},
};

const LENGTH_LEN: usize = 4;
const SIGNATURE_LABEL: &[u8] = b"waxwing signature v1";
/// Bytes of `enc` of suite 1.
const X25519_ENC_LEN: usize = 32;
/// Largest envelope that this build makes, in bytes: the last bucket.
pub const ENVELOPE_LEN_MAX: usize = 64 << 10;
/// Largest change of a group, in bytes: a commit over a tree that has no inner keys yet seals to every member.
pub const HANDSHAKE_LEN_MAX: usize = crate::core::handshake::COMMIT_LEN_MAX;
/// Largest ephemeral envelope that this build makes: the last bucket below the limit.
const EPHEMERAL_BUCKET: usize = 1024;

/// In the place of the sender's certificate hash in what is handed to somebody who may not know the sender. The signature inside names
/// recipient, encapsulation and sender all the same: what is left out tells nobody anything that it would have proved.
pub const ANYBODY: Digest = Digest([0; 32]);

/// Why something was not sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The body does not fit the largest bucket (or a datagram, for kind 7).
    #[error("a message of {len} bytes is too large: {max} fit")]
    TooLarge {
        /// Bytes of the body.
        len: usize,
        /// Bytes that fit.
        max: usize,
    },
    /// The recipient's key is degenerate.
    #[error(transparent)]
    Hpke(#[from] HpkeError),
}

/// Why an envelope is not shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Not an envelope.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// Not of the kind, room or epoch that it was opened as.
    #[error("the envelope is of another kind, room or epoch")]
    Foreign,
    /// It does not open.
    #[error(transparent)]
    Hpke(#[from] HpkeError),
    /// It opens, but what is inside is not laid out as it must be.
    #[error("the sealed content is malformed")]
    Malformed,
    /// The sender's signature does not verify.
    #[error("the sender's signature does not verify")]
    Signature,
}

/// What comes before `x` in `info`.
fn info(header: &Header, x: &[u8]) -> Vec<u8> {
    let mut info = b"waxwing envelope v1".to_vec();
    info.extend_from_slice(&[header.kind as u8, header.suite as u8]);
    info.extend_from_slice(&header.room.0);
    info.extend_from_slice(&header.epoch.to_le_bytes());
    info.extend_from_slice(x);
    info
}

/// The context of what is handed over: who hands what to whom.
fn hand_over(issuer: Digest, to: &XWingPublic, purpose: &str) -> Vec<u8> {
    [&issuer.0[..], &chain::digest(&to.to_bytes()).0, purpose.as_bytes()].concat()
}

fn signed_message(header: &[u8], enc: &[u8], binder: &Binder, body: &[u8]) -> Vec<u8> {
    [SIGNATURE_LABEL, header, enc, binder, &chain::digest(body).0].concat()
}

/// The size that an envelope of `len` bytes is padded to: 384·2ᵏ or 512·2ᵏ, whichever is the next.
#[must_use]
pub fn bucket(len: usize) -> usize {
    let power = len.max(384).next_power_of_two();
    if len <= power / 4 * 3 && power > 384 { power / 4 * 3 } else { power }
}

/// The size that something large of `len` bytes is padded to: the leading bits of `len` are kept, as many as its length has bits
/// itself, and the others rounded up. At most 12 % are added, and 3 % at 256 KiB (Padmé: Nikitin et al., PoPETS 2019).
#[must_use]
pub fn padme(len: usize) -> usize {
    let exponent = len.max(2).ilog2();
    let kept = exponent.ilog2() + 1;
    len.next_multiple_of(1 << (exponent - kept.min(exponent)))
}

fn plaintext(identity: &Identity, header: &[u8; HEADER_LEN], enc: &[u8], binder: &Binder, body: &[u8]) -> Vec<u8> {
    signed_plaintext(|message| identity.sign(message), header, enc, binder, body)
}

fn signed_plaintext(
    sign: impl FnOnce(&[u8]) -> Signature,
    header: &[u8; HEADER_LEN],
    enc: &[u8],
    binder: &Binder,
    body: &[u8],
) -> Vec<u8> {
    let signature = sign(&signed_message(header, enc, binder, body));
    let overhead = HEADER_LEN + enc.len() + TAG_LEN;
    let len = Signature::LEN + LENGTH_LEN + body.len();
    let mut plaintext = Vec::with_capacity(bucket(overhead + len) - overhead);
    plaintext.extend_from_slice(&signature.to_bytes());
    plaintext.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    plaintext.extend_from_slice(body);
    plaintext.resize(bucket(overhead + len) - overhead, 0);
    plaintext
}

fn assemble(header: &[u8; HEADER_LEN], enc: &[u8], ciphertext: &[u8]) -> Bytes {
    [&header[..], enc, ciphertext].concat().into()
}

fn check_size(suite: Suite, kind: Kind, body: &[u8]) -> Result<(), SealError> {
    let envelope_max = match kind {
        Kind::Ephemeral => EPHEMERAL_BUCKET,
        Kind::Handshake => HANDSHAKE_LEN_MAX,
        _ => ENVELOPE_LEN_MAX,
    };
    let max = envelope_max - (HEADER_LEN + suite.enc_len() + TAG_LEN + Signature::LEN + LENGTH_LEN);
    if body.len() <= max { Ok(()) } else { Err(SealError::TooLarge { len: body.len(), max }) }
}

/// Seals a body to an epoch: kind 1 (to be stored) or kind 7 (ephemeral).
///
/// # Errors
/// [`SealError::TooLarge`] when it does not fit.
pub fn seal(
    epoch: &Epoch,
    kind: Kind,
    leaf: u32,
    message: MessageId,
    identity: &Identity,
    body: &Body,
    rng: &mut impl Random,
) -> Result<Bytes, SealError> {
    seal_to_epoch(epoch, kind, leaf, message, identity, &body.encode(), rng)
}

/// Seals a change of the group, kind 4, by a member, to the epoch that it ends.
///
/// # Errors
/// [`SealError::TooLarge`] when it does not fit.
pub fn seal_handshake(
    epoch: &Epoch,
    leaf: u32,
    identity: &Identity,
    body: &[u8],
    rng: &mut impl Random,
) -> Result<Bytes, SealError> {
    let message = MessageId(rng.bytes());
    seal_to_epoch(epoch, Kind::Handshake, leaf, message, identity, body, rng)
}

fn seal_to_epoch(
    epoch: &Epoch,
    kind: Kind,
    leaf: u32,
    message: MessageId,
    identity: &Identity,
    body: &[u8],
    rng: &mut impl Random,
) -> Result<Bytes, SealError> {
    let header = Header { kind, suite: Suite::X25519Psk, room: epoch.room, epoch: epoch.number, leaf, message };
    check_size(header.suite, kind, body)?;
    let info = info(&header, &epoch.authenticator.0);
    let header = header.to_bytes();
    let (enc, ciphertext) = seal_x25519(epoch.public(), epoch.psk(), &info, &header, rng, |enc, binder| {
        plaintext(identity, &header, enc, binder, body)
    })?;
    Ok(assemble(&header, &enc, &ciphertext))
}

/// Seals `body` to an X-Wing key, kind 6, posted to the log `inbox`, for who knows this device's certificate.
///
/// # Errors
/// [`SealError`].
pub fn seal_hand_over(
    to: &XWingPublic,
    inbox: RoomId,
    purpose: &str,
    identity: &Identity,
    body: &[u8],
    rng: &mut impl Random,
) -> Result<Bytes, SealError> {
    seal_hand_over_from(identity.certificate().hash(), to, inbox, purpose, identity, body, rng)
}

/// As [`seal_hand_over`], where the recipient does not know the sender's certificate beforehand: `issuer` is what it knows instead.
///
/// # Errors
/// [`SealError`].
pub fn seal_hand_over_from(
    issuer: Digest,
    to: &XWingPublic,
    inbox: RoomId,
    purpose: &str,
    identity: &Identity,
    body: &[u8],
    rng: &mut impl Random,
) -> Result<Bytes, SealError> {
    seal_letter(to, (inbox, 0), issuer, purpose, identity, body, rng)
}

/// Seals `body` to an X-Wing key, kind 6, posted to the log `inbox`, with `epoch` in its header: for who cannot know the sender's certificate
/// beforehand, and knows `bound` instead.
///
/// # Errors
/// [`SealError`].
pub(super) fn seal_letter(
    to: &XWingPublic,
    (inbox, epoch): (RoomId, u64),
    bound: Digest,
    purpose: &str,
    identity: &Identity,
    body: &[u8],
    rng: &mut impl Random,
) -> Result<Bytes, SealError> {
    let header = Header {
        kind: Kind::Keyring,
        suite: Suite::XWing,
        room: inbox,
        epoch,
        leaf: crate::core::envelope::NOT_A_MEMBER,
        message: MessageId(rng.bytes()),
    };
    check_size(header.suite, header.kind, body)?;
    let info = info(&header, &hand_over(bound, to, purpose));
    let header = header.to_bytes();
    let (enc, ciphertext) = seal_xwing(to, &info, &header, rng, |enc, binder| plaintext(identity, &header, enc, binder, body))?;
    Ok(assemble(&header, &enc, &ciphertext))
}

/// Seals a change of the group, kind 4, by a device that is not a member and comes in by itself: to the X-Wing key of the
/// epoch that it ends. `context` is bound by `info`.
///
/// # Errors
/// [`SealError`].
pub fn seal_external(
    to: &XWingPublic,
    (room, epoch): (RoomId, u64),
    context: &[u8],
    identity: &Identity,
    body: &[u8],
    rng: &mut impl Random,
) -> Result<Bytes, SealError> {
    let header = Header {
        kind: Kind::Handshake,
        suite: Suite::XWing,
        room,
        epoch,
        leaf: crate::core::envelope::NOT_A_MEMBER,
        message: MessageId(rng.bytes()),
    };
    check_size(header.suite, header.kind, body)?;
    let info = info(&header, context);
    let header = header.to_bytes();
    let (enc, ciphertext) = seal_xwing(to, &info, &header, rng, |enc, binder| plaintext(identity, &header, enc, binder, body))?;
    Ok(assemble(&header, &enc, &ciphertext))
}

/// Seals a post, kind 2, to a drop-box's key. `announced` names the announcement that brought the key, `secret` signs.
///
/// # Errors
/// [`SealError`].
pub(super) fn seal_post(
    to: &XWingPublic,
    (room, epoch): (RoomId, u64),
    announced: Digest,
    secret: &[u8; 32],
    body: &[u8],
    rng: &mut impl Random,
) -> Result<Bytes, SealError> {
    let header = Header {
        kind: Kind::DropBox,
        suite: Suite::XWing,
        room,
        epoch,
        leaf: crate::core::envelope::NOT_A_MEMBER,
        message: MessageId(rng.bytes()),
    };
    check_size(header.suite, header.kind, body)?;
    let info = info(&header, &announced.0);
    let header = header.to_bytes();
    let (enc, ciphertext) = seal_xwing(to, &info, &header, rng, |enc, binder| {
        signed_plaintext(|message| sign_with_seed(secret, message).1, &header, enc, binder, body)
    })?;
    Ok(assemble(&header, &enc, &ciphertext))
}

/// Opens what [`seal_post`] made.
///
/// # Errors
/// [`OpenError`].
pub(super) fn open_post(
    with: &XWingPrivate,
    (room, epoch): (RoomId, u64),
    announced: Digest,
    envelope: &[u8],
) -> Result<Opened, OpenError> {
    let header = Header::parse(envelope)?;
    let foreign = header.room != room || header.epoch != epoch || header.leaf != crate::core::envelope::NOT_A_MEMBER;
    if foreign || header.kind != Kind::DropBox {
        return Err(OpenError::Foreign);
    }
    let info = info(&header, &announced.0);
    let (aad, enc, ciphertext) = split(envelope, header.suite)?;
    let (plaintext, binder) = open_xwing(with, enc, &info, aad, ciphertext)?;
    Opened::new(header, aad, enc, &binder, &plaintext)
}

/// An envelope that opened, and whose sender is not yet known: its body cannot be had without naming the sender's key.
#[derive(Debug)]
#[must_use = "what opened is not verified yet"]
pub struct Opened {
    header: Header,
    signature: Signature,
    signed: Vec<u8>,
    body: Vec<u8>,
}

/// Opens an envelope of kind 1 or 7, or a member's of kind 4, with its epoch.
///
/// # Errors
/// [`OpenError`]: whatever it is, the envelope is not a message.
pub fn open(epoch: &Epoch, envelope: &[u8]) -> Result<Opened, OpenError> {
    let header = Header::parse(envelope)?;
    if header.room != epoch.room || header.epoch != epoch.number || header.suite != Suite::X25519Psk {
        return Err(OpenError::Foreign);
    }
    let info = info(&header, &epoch.authenticator.0);
    let (aad, enc, ciphertext) = split(envelope, header.suite)?;
    let (plaintext, binder) = open_x25519(epoch.private(), epoch.psk(), enc, &info, aad, ciphertext)?;
    Opened::new(header, aad, enc, &binder, &plaintext)
}

/// Opens an envelope of kind 6 for the holder of `with`, as one that the holder of the certificate `issuer` made, or [`ANYBODY`].
///
/// # Errors
/// [`OpenError`].
pub fn open_hand_over(
    with: &XWingPrivate,
    public: &XWingPublic,
    inbox: RoomId,
    purpose: &str,
    issuer: Digest,
    envelope: &[u8],
) -> Result<Opened, OpenError> {
    open_letter(with, public, (inbox, 0), issuer, purpose, envelope)
}

/// Opens what [`seal_letter`] made.
///
/// # Errors
/// [`OpenError`].
pub(super) fn open_letter(
    with: &XWingPrivate,
    public: &XWingPublic,
    (inbox, epoch): (RoomId, u64),
    bound: Digest,
    purpose: &str,
    envelope: &[u8],
) -> Result<Opened, OpenError> {
    let header = Header::parse(envelope)?;
    if header.kind != Kind::Keyring || header.room != inbox || header.epoch != epoch {
        return Err(OpenError::Foreign);
    }
    let info = info(&header, &hand_over(bound, public, purpose));
    let (aad, enc, ciphertext) = split(envelope, header.suite)?;
    let (plaintext, binder) = open_xwing(with, enc, &info, aad, ciphertext)?;
    Opened::new(header, aad, enc, &binder, &plaintext)
}

/// Opens an envelope that [`seal_external`] made for the epoch.
///
/// # Errors
/// [`OpenError`].
pub fn open_external(epoch: &Epoch, context: &[u8], envelope: &[u8]) -> Result<Opened, OpenError> {
    let header = Header::parse(envelope)?;
    let foreign = header.room != epoch.room || header.epoch != epoch.number;
    if foreign || header.kind != Kind::Handshake || header.suite != Suite::XWing {
        return Err(OpenError::Foreign);
    }
    let info = info(&header, context);
    let (aad, enc, ciphertext) = split(envelope, header.suite)?;
    let (private, _) = XWingPrivate::from_seed(&epoch.secrets().xwing);
    let (plaintext, binder) = open_xwing(&private, enc, &info, aad, ciphertext)?;
    Opened::new(header, aad, enc, &binder, &plaintext)
}

/// Header, `enc`, ciphertext.
type Parts<'a> = (&'a [u8], &'a [u8], &'a [u8]);

fn split(envelope: &[u8], suite: Suite) -> Result<Parts<'_>, OpenError> {
    let (aad, rest) = envelope.split_at_checked(HEADER_LEN).ok_or(OpenError::Malformed)?;
    let (enc, ciphertext) = rest.split_at_checked(suite.enc_len()).ok_or(OpenError::Malformed)?;
    Ok((aad, enc, ciphertext))
}

/// What a member's signature covers besides the body, for who does not have its epoch's keys: with the room, the message's id and
/// the body it shows that the device said this there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    epoch: u64,
    leaf: u32,
    enc: [u8; X25519_ENC_LEN],
    binder: Binder,
    signature: Signature,
}

impl Signed {
    /// Whether `sender` signed this body as the message of that id in that room.
    #[must_use]
    pub fn verifies(&self, room: RoomId, message: MessageId, sender: DeviceKey, body: &Body) -> bool {
        let Self { epoch, leaf, enc, binder, signature } = self;
        let header = Header { kind: Kind::Room, suite: Suite::X25519Psk, room, epoch: *epoch, leaf: *leaf, message };
        signature.verifies(&sender.0, &signed_message(&header.to_bytes(), enc, binder, &body.encode()))
    }
}

impl Opened {
    /// What can be shown to others of an envelope of suite 1.
    #[must_use]
    pub fn signed(&self) -> Option<Signed> {
        let Header { suite: Suite::X25519Psk, epoch, leaf, .. } = self.header else { return None };
        let rest = self.signed.get(SIGNATURE_LABEL.len() + HEADER_LEN..)?;
        let (enc, rest) = rest.split_first_chunk()?;
        Some(Signed { epoch, leaf, enc: *enc, binder: *rest.first_chunk()?, signature: self.signature })
    }

    fn new(header: Header, aad: &[u8], enc: &[u8], binder: &Binder, plaintext: &[u8]) -> Result<Self, OpenError> {
        let (signature, rest) = plaintext.split_first_chunk::<{ Signature::LEN }>().ok_or(OpenError::Malformed)?;
        let (len, rest) = rest.split_first_chunk::<LENGTH_LEN>().ok_or(OpenError::Malformed)?;
        let (body, padding) = rest.split_at_checked(u32::from_le_bytes(*len) as usize).ok_or(OpenError::Malformed)?;
        if padding.iter().any(|byte| *byte != 0) {
            return Err(OpenError::Malformed);
        }
        let signed = signed_message(aad, enc, binder, body);
        Ok(Self { header, signature: (*signature).into(), signed, body: body.to_vec() })
    }

    /// The header, which the AEAD authenticates.
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// The body of a kind 1 or 7 envelope, if the holder of `sender` signed it. It is spelled in one way, so that the signature can
    /// be shown with what it says.
    ///
    /// # Errors
    /// [`OpenError::Signature`], [`OpenError::Malformed`].
    pub fn verify(self, sender: DeviceKey) -> Result<Body, OpenError> {
        let body: Body = self.checked(|_| Some(sender))?;
        if body.encode() == self.body { Ok(body) } else { Err(OpenError::Malformed) }
    }

    /// The body, if it is signed by the key that `sender` finds for it: for bodies that bring their sender's certificate,
    /// which `sender` must check.
    ///
    /// # Errors
    /// [`OpenError::Signature`] also when `sender` finds no key; [`OpenError::Malformed`].
    pub fn verify_with<T: serde::de::DeserializeOwned>(
        self,
        sender: impl FnOnce(&T) -> Option<DeviceKey>,
    ) -> Result<T, OpenError> {
        self.checked(sender)
    }

    fn checked<T: serde::de::DeserializeOwned>(&self, sender: impl FnOnce(&T) -> Option<DeviceKey>) -> Result<T, OpenError> {
        let (body, rest): (T, _) = postcard::take_from_bytes(&self.body).map_err(|_| OpenError::Malformed)?;
        if !rest.is_empty() {
            return Err(OpenError::Malformed);
        }
        let key = sender(&body).ok_or(OpenError::Signature)?;
        if self.signature.verifies(&key.0, &self.signed) { Ok(body) } else { Err(OpenError::Signature) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_with_another_authenticator_opens_nothing_and_what_is_signed_is_spelled_in_one_way() {
        use crate::{
            core::id::{LogId, ProducerId},
            seal::{
                body::{Content, Message, Seen},
                epoch::EpochSecrets,
            },
        };
        let rng = &mut rand_core::UnwrapErr(getrandom::SysRng);
        let (room, message, identity) = (RoomId([1; 16]), MessageId([2; 16]), Identity::generate(rng, 0));
        let secrets = EpochSecrets::random(rng);
        let epoch = |authenticator: u8| Epoch::new(room, 3, Digest([authenticator; 32]), secrets.clone());
        let body = Body {
            session: ProducerId([3; 16]),
            counter: 1,
            previous: Digest([0; 32]),
            seen: Seen { log: LogId([4; 16]), seq: 5, chain: Digest([6; 32]) },
            content: Content::new(&Message::Text("x".into())),
        };
        let envelope = seal(&epoch(7), Kind::Room, 0, message, &identity, &body, rng).unwrap();
        assert!(matches!(open(&epoch(8), &envelope), Err(OpenError::Hpke(_))), "whoever reads is in the same epoch");
        let opened = open(&epoch(7), &envelope).unwrap();
        let signed = opened.signed().unwrap();
        assert_eq!(opened.verify(identity.device()), Ok(body.clone()));
        assert!(signed.verifies(room, message, identity.device(), &body));
        let other = Body { counter: 2, ..body.clone() };
        assert!(!signed.verifies(room, message, identity.device(), &other));
        assert!(!signed.verifies(RoomId([9; 16]), message, identity.device(), &body));
        assert!(!signed.verifies(room, MessageId([9; 16]), identity.device(), &body));
        assert!(!signed.verifies(room, message, Identity::generate(rng, 0).device(), &body));
        // The counter, behind the session, as a varint that is longer than it must be.
        let spelled = body.encode();
        let long = [&spelled[..16], &[0x81, 0], &spelled[17..]].concat();
        let envelope = seal_to_epoch(&epoch(7), Kind::Room, 0, message, &identity, &long, rng).unwrap();
        assert_eq!(open(&epoch(7), &envelope).unwrap().verify(identity.device()), Err(OpenError::Malformed));
    }

    #[test]
    fn buckets() {
        let sizes: Vec<_> = [1, 384, 385, 512, 513, 768, 769, 1024, 1025, 65_536].map(bucket).to_vec();
        assert_eq!(sizes, [384, 384, 512, 512, 768, 768, 1024, 1024, 1536, 65_536]);
        let sizes = [0, 1, 2, 9, 100, 1000, 1025, 280_000].map(padme);
        assert_eq!(sizes, [0, 1, 2, 10, 104, 1024, 1088, 286_720]);
        for len in (1..2_000_000).step_by(997) {
            let padded = padme(len);
            assert!(padded >= len && padded - len <= len / 8 && padme(padded) == padded, "{len}");
        }
    }
}
