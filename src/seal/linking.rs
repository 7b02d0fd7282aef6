//! Making a fresh device one of a person's: the device shows a code, the person gives the code to a device that is theirs, and that one
//! hands over what makes the other one theirs, sealed to the key in the code.
//!
//! The code travels by screen, camera or clipboard, from the fresh device to the other one. Who reads it on its way can open nothing: what
//! answers it is sealed to a key whose private half never leaves the fresh device. Who exchanges it for their own would become the
//! person: therefore both devices show six words of it, to be compared. The secret in it is for the other direction: only who has
//! seen the code can make what the fresh device opens.

use core::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use bytes::Bytes;
use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{
    Random,
    hpke::{XWingPrivate, XWingPublic},
    identity::{Certificate, Identity, UserKey, inbox_id},
    message::{OpenError, SealError, open_hand_over, seal_hand_over_from},
    words::words,
};
use crate::core::{
    chain,
    id::{DeviceKey, Digest, RoomId, UnixMillis},
};

/// With what a code begins.
const PREFIX: &str = "waxwing:device:";
const FORMAT: u8 = 1;
/// How long a code is good for: ten minutes.
pub const CODE_LIFE_MS: u64 = 10 * 60 * 1000;
/// For what it is: part of `info`.
const TO_LINK: &str = "link";
/// How many devices are told of.
const DEVICES_MAX: usize = 30;

/// What a fresh device shows.
#[derive(Clone, PartialEq, Eq)]
pub struct DeviceCode {
    /// The device.
    pub device: DeviceKey,
    /// Its X-Wing key.
    pub inbox: XWingPublic,
    /// Known to who has seen the code.
    pub secret: [u8; 16],
    /// The last moment at which it is good, by the clock of the fresh device.
    pub expires_ms: UnixMillis,
}

impl fmt::Debug for DeviceCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceCode").field("device", &self.device).finish_non_exhaustive()
    }
}

/// Text that is no code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not a device's code, or it is cut short: it begins with waxwing:device:")]
pub struct CodeError;

impl DeviceCode {
    /// `format ‖ device ‖ secret ‖ expires u64 LE ‖ X-Wing key`.
    fn bytes(&self) -> Vec<u8> {
        [&[FORMAT][..], &self.device.0, &self.secret, &self.expires_ms.to_le_bytes(), &self.inbox.to_bytes()].concat()
    }

    /// Six words that both devices show.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        words(&chain::digest(&[&b"waxwing device code v1"[..], &self.bytes()].concat()).0)
    }

    /// Stands in the place of the issuer's certificate, which the fresh device does not know.
    fn issuer(secret: &[u8; 16]) -> Digest {
        chain::digest(&[&b"waxwing device secret v1"[..], secret].concat())
    }
}

impl fmt::Display for DeviceCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", BASE64.encode(self.bytes()))
    }
}

impl core::str::FromStr for DeviceCode {
    type Err = CodeError;

    fn from_str(text: &str) -> Result<Self, CodeError> {
        let bytes = BASE64.decode(text.trim().strip_prefix(PREFIX).ok_or(CodeError)?).map_err(|_| CodeError)?;
        let (format, rest) = bytes.split_first().ok_or(CodeError)?;
        let (device, rest) = rest.split_first_chunk().filter(|_| *format == FORMAT).ok_or(CodeError)?;
        let (secret, rest) = rest.split_first_chunk().ok_or(CodeError)?;
        let (expires, inbox) = rest.split_first_chunk().ok_or(CodeError)?;
        let inbox = XWingPublic::from_bytes(inbox).map_err(|_| CodeError)?;
        Ok(Self { device: DeviceKey(*device), inbox, secret: *secret, expires_ms: u64::from_le_bytes(*expires) })
    }
}

/// What makes a fresh device a person's. postcard, in this order.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Format of this record: 1.
    pub format: u8,
    /// Who hands it over.
    pub issuer: Certificate,
    /// The fresh device's.
    pub certificate: Certificate,
    /// The person's seed.
    pub user: [u8; 32],
    /// What the person wants to be called.
    pub name: String,
    /// The person's other devices.
    pub devices: Vec<Certificate>,
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grant").field("issuer", &self.issuer.device).finish_non_exhaustive()
    }
}

impl Grant {
    /// What this device gives to the one that shows the code.
    #[must_use]
    pub fn new(code: &DeviceCode, identity: &Identity, devices: &[Certificate], now_ms: UnixMillis) -> Self {
        Self {
            format: 1,
            issuer: identity.certificate().clone(),
            certificate: identity.certify_device(code.device, &code.inbox, now_ms),
            user: identity.secrets().user,
            name: identity.name().to_owned(),
            devices: devices.iter().take(DEVICES_MAX).cloned().collect(),
        }
    }

    /// Seals it to who shows the code. Returns the inbox to post to and the envelope.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn seal(&self, code: &DeviceCode, identity: &Identity, rng: &mut impl Random) -> Result<(RoomId, Bytes), SealError> {
        let body = self.encode();
        let (inbox, issuer) = (inbox_id(&code.inbox), DeviceCode::issuer(&code.secret));
        Ok((inbox, seal_hand_over_from(issuer, &code.inbox, inbox, TO_LINK, identity, &body, rng)?))
    }

    fn encode(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(postcard::to_allocvec(self).expect("a grant encodes into memory"))
    }

    /// Opens one that was made by who has seen the code with this secret, for this device.
    ///
    /// # Errors
    /// [`OpenError`]; [`OpenError::Malformed`] also where it is for another device, or of another person than it says.
    pub fn open(
        device: DeviceKey,
        (with, public): (&XWingPrivate, &XWingPublic),
        secret: &[u8; 16],
        envelope: &[u8],
    ) -> Result<Self, OpenError> {
        let opened = open_hand_over(with, public, inbox_id(public), TO_LINK, DeviceCode::issuer(secret), envelope)?;
        let grant: Self = opened.verify_with(|grant: &Self| grant.issuer.verify().is_ok().then_some(grant.issuer.device))?;
        let user = UserKey(SigningKey::from_bytes(&grant.user).verifying_key().to_bytes());
        let own = &grant.certificate;
        let for_this = own.device == device && own.inbox == public.to_bytes() && own.verify().is_ok();
        let of_one = own.user == user && grant.issuer.user == user;
        if grant.format == 1 && for_this && of_one { Ok(grant) } else { Err(OpenError::Malformed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_opens_for_who_shows_the_code_by_who_has_seen_it() {
        let rng = &mut rand_core::UnwrapErr(getrandom::SysRng);
        let (ann, fresh, other) = (Identity::generate(rng, 0), Identity::generate(rng, 0), Identity::generate(rng, 0));
        let code = DeviceCode {
            device: fresh.device(),
            inbox: XWingPublic::from_bytes(&fresh.inbox_public().to_bytes()).unwrap(),
            secret: rng.bytes(),
            expires_ms: 9,
        };
        let read: DeviceCode = code.to_string().parse().unwrap();
        assert!(read == code && read.words() == code.words());
        let text = code.to_string();
        assert_eq!(text[..text.len() - 1].parse::<DeviceCode>(), Err(CodeError));
        assert_eq!("https://x".parse::<DeviceCode>(), Err(CodeError));
        let (inbox, envelope) = Grant::new(&read, &ann, &[], 1).seal(&read, &ann, rng).unwrap();
        assert_eq!(inbox, fresh.inbox_id());
        let keys = (fresh.inbox(), fresh.inbox_public());
        let grant = Grant::open(fresh.device(), keys, &code.secret, &envelope).unwrap();
        assert_eq!((grant.certificate.user, grant.issuer.device), (ann.user(), ann.device()));
        // Who has not seen the code, or makes it for another device, or in another person's name.
        let unseen = DeviceCode { secret: [0; 16], ..read.clone() };
        let (_, envelope) = Grant::new(&unseen, &ann, &[], 1).seal(&unseen, &ann, rng).unwrap();
        assert!(matches!(Grant::open(fresh.device(), keys, &code.secret, &envelope), Err(OpenError::Hpke(_))));
        let elsewhere = DeviceCode { device: other.device(), ..read.clone() };
        let (_, envelope) = Grant::new(&elsewhere, &ann, &[], 1).seal(&read, &ann, rng).unwrap();
        assert_eq!(Grant::open(fresh.device(), keys, &code.secret, &envelope), Err(OpenError::Malformed));
        let foreign = Grant { user: other.secrets().user, ..Grant::new(&read, &ann, &[], 1) };
        let (_, envelope) = foreign.seal(&read, &ann, rng).unwrap();
        assert_eq!(Grant::open(fresh.device(), keys, &code.secret, &envelope), Err(OpenError::Malformed));
        let (_, envelope) = Grant::new(&read, &ann, &[], 1).seal(&read, &other, rng).unwrap();
        assert_eq!(Grant::open(fresh.device(), keys, &code.secret, &envelope), Err(OpenError::Signature));
    }
}
