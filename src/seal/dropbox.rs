//! A room's drop-box, where somebody outside posts what only members read.
//!
//! Its *host*, a member, announces an X-Wing key: signed, counted, for seven days. The server gives the announcement to whoever asks;
//! posters know the host from the drop-box's address and refuse any other's, and any with a lower counter than they have seen. The key
//! is shared with the members in sealed traffic. A post proves that its author had the address, and nothing else.
//!
//! The address's secret is derived from the host's own seed, so that each device of the host can announce the next key, and every
//! former key can be forgotten without the address being another one.

use core::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Random,
    body::{Content, SharedDropBox},
    derive,
    epoch::access_key,
    hpke::{XWingPrivate, XWingPublic},
    identity::{CertificateError, Identity, Statement, UserKey, sign_with_seed},
    message::{OpenError, SealError, open_post, seal_post},
};
use crate::core::{
    chain,
    dropbox::{ANNOUNCEMENT_LEN_MAX, PATH, post_message},
    id::{AccessKey, DeviceKey, Digest, MessageId, RoomId, Signature, UnixMillis},
};

/// How long posters use a key: seven days.
pub const LIFE_MS: u64 = 7 * 24 * 3600 * 1000;
/// How much longer members read posts with it: a day.
pub const READ_ON_MS: u64 = 24 * 3600 * 1000;
/// How much later than a poster's clock says an announcement may begin: a day, because nobody has a common clock.
const EARLY_MS: u64 = 24 * 3600 * 1000;
const FORMAT: u8 = 1;

/// What posters are told. postcard, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// Format of this record: 1.
    format: u8,
    /// The room.
    pub room: RoomId,
    /// Higher replaces lower. Posts name it as the epoch in their headers.
    pub counter: u64,
    /// The counter with which the drop-box was opened: the address's secret belongs to it.
    pub opening: u64,
    /// To this X-Wing key posts are sealed.
    key: Bytes,
    /// With this key posts are signed: the public half of the address's secret.
    pub poster: AccessKey,
    /// From when on.
    pub not_before_ms: UnixMillis,
    /// The last moment at which posters use it.
    pub expires_ms: UnixMillis,
    /// Who announces it.
    device: DeviceKey,
    /// Whose device that is.
    host: Statement,
    signature: Signature,
}

/// Why an announcement is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnnouncementError {
    /// Not the bytes of any announcement.
    #[error("the announcement is malformed")]
    Malformed,
    /// Made by a newer Waxwing.
    #[error("the announcement has format {0}, which this version does not know: update waxwing")]
    Format(u8),
    /// Of another room.
    #[error("the announcement is of another room")]
    Room,
    /// Somebody else hosts it than the address says.
    #[error("the drop-box is announced by somebody else than its address says")]
    Host,
    /// Its posters have another address.
    #[error("the drop-box was opened anew: it has another address")]
    Poster,
    /// The device is not the host's.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The device did not sign it.
    #[error("the announcement's signature does not verify")]
    Signature,
    /// An older one than is known.
    #[error("the server gave announcement {counter}, and {known} is known: an old one")]
    Counter {
        /// Its counter.
        counter: u64,
        /// The lowest that is accepted.
        known: u64,
    },
    /// Its time is over, or has not begun.
    #[error("the announcement is not for now: the drop-box's host has to be online once a week")]
    Time,
}

impl Announcement {
    /// Announces the key with this seed, from now on.
    #[must_use]
    pub fn new((room, counter, opening): (RoomId, u64, u64), seed: &[u8; 32], host: &Identity, now_ms: UnixMillis) -> Self {
        let mut announcement = Self {
            format: FORMAT,
            room,
            counter,
            opening,
            key: XWingPrivate::from_seed(seed).1.to_bytes().into(),
            poster: access_key(&secret(host, room, opening)),
            not_before_ms: now_ms,
            expires_ms: now_ms.saturating_add(LIFE_MS),
            device: host.device(),
            host: host.certificate().statement(),
            signature: [0; 64].into(),
        };
        announcement.signature = host.sign(&announcement.message());
        announcement
    }

    /// `"waxwing drop-box announcement v1"` and the encoding without the signature.
    fn message(&self) -> Vec<u8> {
        let encoded = self.encode();
        let unsigned = encoded.len().saturating_sub(Signature::LEN);
        [&b"waxwing drop-box announcement v1"[..], encoded.get(..unsigned).unwrap_or_default()].concat()
    }

    /// The bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        postcard::to_allocvec(self).expect("an announcement encodes into memory").into()
    }

    /// Names it: posts are bound to this.
    #[must_use]
    pub fn hash(&self) -> Digest {
        chain::digest(&self.encode())
    }

    /// Who hosts the drop-box, if the announcement [verifies](Self::verify).
    #[must_use]
    pub const fn host(&self) -> UserKey {
        self.host.user
    }

    /// Reads one that is spelled as [`Announcement::encode`] does, and checks that the host's device has signed it. For which room it
    /// is, and whether anybody wants it, is another question.
    ///
    /// # Errors
    /// [`AnnouncementError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, AnnouncementError> {
        if bytes.len() > ANNOUNCEMENT_LEN_MAX {
            return Err(AnnouncementError::Malformed);
        }
        match bytes.first() {
            Some(&FORMAT) => {}
            Some(&format) => return Err(AnnouncementError::Format(format)),
            None => return Err(AnnouncementError::Malformed),
        }
        let announcement: Self = postcard::from_bytes(bytes).map_err(|_| AnnouncementError::Malformed)?;
        if announcement.encode() != bytes {
            return Err(AnnouncementError::Malformed);
        }
        announcement.host.verify(announcement.device)?;
        if !announcement.signature.verifies(&announcement.device.0, &announcement.message()) {
            return Err(AnnouncementError::Signature);
        }
        announcement.public()?;
        Ok(announcement)
    }

    /// Reads what the server gives to somebody who has the address, and has seen no counter above `known`.
    ///
    /// # Errors
    /// [`AnnouncementError`]: nothing is to be posted.
    pub fn verify(bytes: &[u8], address: &Address, known: u64, now_ms: UnixMillis) -> Result<Self, AnnouncementError> {
        let announcement = Self::decode(bytes)?;
        let Self { room, counter, not_before_ms, expires_ms, .. } = announcement;
        match () {
            () if room != address.room => Err(AnnouncementError::Room),
            () if announcement.host() != address.host => Err(AnnouncementError::Host),
            () if counter < known => Err(AnnouncementError::Counter { counter, known }),
            () if announcement.poster != access_key(&address.secret) => Err(AnnouncementError::Poster),
            () if !announcement.is_short() || now_ms >= expires_ms || not_before_ms > now_ms.saturating_add(EARLY_MS) => {
                Err(AnnouncementError::Time)
            }
            () => Ok(announcement),
        }
    }

    /// Whether it is for seven days at most.
    #[must_use]
    pub const fn is_short(&self) -> bool {
        self.expires_ms.saturating_sub(self.not_before_ms) <= LIFE_MS
    }

    /// Whether members have no use for its key any more.
    #[must_use]
    pub const fn is_over(&self, now_ms: UnixMillis) -> bool {
        now_ms > self.expires_ms.saturating_add(READ_ON_MS)
    }

    fn public(&self) -> Result<XWingPublic, AnnouncementError> {
        XWingPublic::from_bytes(&self.key).map_err(|_| AnnouncementError::Malformed)
    }

    /// The address, for a device of the host.
    #[must_use]
    pub fn address(&self, origin: &str, host: &Identity) -> Address {
        Address::hosted(origin, self.room, self.opening, host)
    }
}

/// What the holders of an address sign with.
fn secret(host: &Identity, room: RoomId, opening: u64) -> [u8; 32] {
    derive(&host.secrets().user, "waxwing drop-box v1", &[&room.0[..], &opening.to_le_bytes()].concat())
}

/// What a post says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostBody {
    /// What its author calls itself. It proves nothing.
    pub name: String,
    /// What it says.
    pub content: Content,
}

impl PostBody {
    fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("a post encodes into memory")
    }
}

/// A post as it is sent: the proof, and the envelope.
///
/// # Errors
/// [`SealError`].
pub fn post(
    address: &Address,
    announcement: &Announcement,
    body: &PostBody,
    rng: &mut impl Random,
) -> Result<(Signature, Bytes), SealError> {
    let to = XWingPublic::from_bytes(&announcement.key)?;
    let (room, counter) = (announcement.room, announcement.counter);
    let envelope = seal_post(&to, (room, counter), announcement.hash(), &address.secret, &body.encode(), rng)?;
    let (_, proof) = sign_with_seed(&address.secret, &post_message(room, chain::digest(&envelope)));
    Ok((proof, envelope))
}

/// What a member opens posts with.
#[derive(Debug)]
pub struct PostingKey {
    /// The announcement that brought it.
    pub announcement: Announcement,
    hash: Digest,
    private: XWingPrivate,
}

impl PostingKey {
    /// A key that was shared, if it is the announced one.
    #[must_use]
    pub fn new(shared: &SharedDropBox) -> Option<Self> {
        let announcement = Announcement::decode(&shared.announcement).ok()?;
        let (private, public) = XWingPrivate::from_seed(&shared.seed);
        let is_it = announcement.key == public.to_bytes();
        is_it.then(|| Self { hash: announcement.hash(), announcement, private })
    }

    /// Opens a post that somebody with the address has made.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(&self, envelope: &[u8]) -> Result<(MessageId, PostBody), OpenError> {
        let Announcement { room, counter, poster, .. } = self.announcement;
        let opened = open_post(&self.private, (room, counter), self.hash, envelope)?;
        let message = opened.header().message;
        Ok((message, opened.verify_with(|_: &PostBody| Some(DeviceKey(poster.0)))?))
    }
}

/// Where somebody outside posts, and with what: `https://host/post/ROOM#p…`. What follows `#` is for the poster alone: base64url of
/// `format (1) ‖ host (32) ‖ secret (32)`.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    /// Scheme and authority of the edge.
    pub origin: String,
    /// The room.
    pub room: RoomId,
    /// Whose announcements are to be used.
    pub host: UserKey,
    /// Posts are signed with this seed.
    pub secret: [u8; 32],
}

impl Address {
    /// Of the drop-box that the host opened with this counter.
    #[must_use]
    pub fn hosted(origin: &str, room: RoomId, opening: u64, host: &Identity) -> Self {
        Self { origin: origin.to_owned(), room, host: host.user(), secret: secret(host, room, opening) }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address").field("origin", &self.origin).field("room", &self.room).finish_non_exhaustive()
    }
}

/// Text that is no address of a drop-box.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not the address of a drop-box: it looks like https://host/post/ROOM#p and 87 letters, copied whole")]
pub struct AddressError;

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [&[FORMAT][..], &self.host.0, &self.secret].concat();
        write!(f, "{}{PATH}{}#p{}", self.origin, self.room, BASE64.encode(bytes))
    }
}

impl core::str::FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (before, fragment) = text.trim().split_once("#p").ok_or(AddressError)?;
        let (origin, room) = before.split_once(PATH).ok_or(AddressError)?;
        let (scheme, authority) = origin.split_once("://").ok_or(AddressError)?;
        if !matches!(scheme, "http" | "https") || authority.is_empty() || authority.contains('/') {
            return Err(AddressError);
        }
        let bytes: [u8; 65] = BASE64.decode(fragment).ok().and_then(|bytes| bytes.try_into().ok()).ok_or(AddressError)?;
        let [FORMAT, keys @ ..] = bytes else { return Err(AddressError) };
        let (host, secret) = (keys.first_chunk().ok_or(AddressError)?, keys.last_chunk().ok_or(AddressError)?);
        let room = room.parse().map_err(|_| AddressError)?;
        Ok(Self { origin: origin.to_owned(), room, host: UserKey(*host), secret: *secret })
    }
}

#[cfg(test)]
mod tests;
