//! The envelope's 48-byte header: all that the server reads of a message, and the AAD of its sealing.
//!
//! | offset | length | field |
//! |---|---|---|
//! | 0 | 1 | version = 1 |
//! | 1 | 1 | kind |
//! | 2 | 1 | suite |
//! | 3 | 1 | flags, all zero |
//! | 4 | 16 | room (or inbox) id |
//! | 20 | 8 | key epoch, u64 LE |
//! | 28 | 4 | sender leaf, u32 LE, `0xFFFF_FFFF` = not a member |
//! | 32 | 16 | message id |
//! | 48 | 32 or 1120 | `enc` (RFC 9180 §4), by suite |
//! | … | | AEAD(signature ‖ body ‖ padding) |

use super::id::{MessageId, RoomId};

/// Bytes of the header.
pub const HEADER_LEN: usize = 48;
/// The version this build speaks.
pub const VERSION: u8 = 1;
/// The leaf of a sender that is not (yet) a member.
pub const NOT_A_MEMBER: u32 = u32::MAX;
/// The most bytes a whole ephemeral envelope (kind 7) may have, so that it fits one datagram.
pub const EPHEMERAL_LEN_MAX: usize = 1150;
/// The AEAD tag of both suites, in bytes.
pub const TAG_LEN: usize = 16;

/// What an envelope is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A message of a room's member.
    Room = 1,
    /// A post by someone who cannot read the room.
    DropBox = 2,
    /// To one device's inbox.
    Device = 3,
    /// A change of the group (MLS handshake).
    Handshake = 4,
    /// A new member's first keys (MLS Welcome).
    Welcome = 5,
    /// A room's epoch secrets, handed over.
    Keyring = 6,
    /// Typing, presence: never stored, no seq.
    Ephemeral = 7,
}

/// The HPKE suite (RFC 9180 §7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Suite {
    /// DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-128-GCM, `mode_psk`.
    X25519Psk = 1,
    /// X-Wing, HKDF-SHA256, AES-128-GCM, `mode_base`.
    XWing = 2,
}

impl Suite {
    /// Bytes of `enc` in this suite.
    #[must_use]
    pub const fn enc_len(self) -> usize {
        match self {
            Self::X25519Psk => 32,
            Self::XWing => 1120,
        }
    }
}

/// The header of one envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What it is for.
    pub kind: Kind,
    /// How it is sealed.
    pub suite: Suite,
    /// The log it belongs to.
    pub room: RoomId,
    /// The epoch whose keys opened it.
    pub epoch: u64,
    /// The sender's leaf, or [`NOT_A_MEMBER`].
    pub leaf: u32,
    /// Random, for correlation.
    pub message: MessageId,
}

/// Why bytes are not an envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// Fewer bytes than the header, `enc` and an empty ciphertext need.
    #[error("envelope of {len} bytes is cut short: {need} are needed")]
    Truncated {
        /// Bytes given.
        len: usize,
        /// Bytes needed at least.
        need: usize,
    },
    /// A version that this build does not speak.
    #[error("envelope version {0} is not known")]
    Version(u8),
    /// A kind outside 1–7.
    #[error("envelope kind {0} is not known")]
    Kind(u8),
    /// A suite outside 1–2.
    #[error("envelope suite {0} is not known")]
    Suite(u8),
    /// A flag that this build does not know.
    #[error("envelope flags {0:#04x} are not known")]
    Flags(u8),
    /// A suite that this kind must not use.
    #[error("an envelope of kind {kind:?} must not use suite {suite:?}")]
    Pair {
        /// The kind.
        kind: Kind,
        /// The suite.
        suite: Suite,
    },
    /// An ephemeral envelope that does not fit a datagram.
    #[error("ephemeral envelope of {0} bytes exceeds {EPHEMERAL_LEN_MAX}")]
    EphemeralTooLarge(usize),
}

/// Whether bytes begin as an envelope of kind 4 does: with these a log's newest handshake record is told from the others.
#[must_use]
pub const fn is_handshake(envelope: &[u8]) -> bool {
    matches!(envelope, [VERSION, kind, ..] if *kind == Kind::Handshake as u8)
}

impl Header {
    /// Reads the header of `envelope` and checks all that can be checked without keys: version, kind, suite, the pair of
    /// both, flags, and that `enc` and an AEAD tag fit.
    ///
    /// # Errors
    /// [`EnvelopeError`], by the first check that fails.
    pub fn parse(envelope: &[u8]) -> Result<Self, EnvelopeError> {
        let truncated = |need| EnvelopeError::Truncated { len: envelope.len(), need };
        let (header, rest) = envelope.split_first_chunk::<HEADER_LEN>().ok_or_else(|| truncated(HEADER_LEN))?;
        let [version, kind, suite, flags, fields @ ..] = header;
        if *version != VERSION {
            return Err(EnvelopeError::Version(*version));
        }
        let kind = match kind {
            1 => Kind::Room,
            2 => Kind::DropBox,
            3 => Kind::Device,
            4 => Kind::Handshake,
            5 => Kind::Welcome,
            6 => Kind::Keyring,
            7 => Kind::Ephemeral,
            other => return Err(EnvelopeError::Kind(*other)),
        };
        let suite = match suite {
            1 => Suite::X25519Psk,
            2 => Suite::XWing,
            other => return Err(EnvelopeError::Suite(*other)),
        };
        if *flags != 0 {
            return Err(EnvelopeError::Flags(*flags));
        }
        let field = |from: usize, to: usize| fields.get(from..to).unwrap_or_default();
        let header = Self {
            kind,
            suite,
            room: RoomId(field(0, 16).try_into().unwrap_or_default()),
            epoch: u64::from_le_bytes(field(16, 24).try_into().unwrap_or_default()),
            leaf: u32::from_le_bytes(field(24, 28).try_into().unwrap_or_default()),
            message: MessageId(field(28, 44).try_into().unwrap_or_default()),
        };
        if !header.pair_allowed() {
            return Err(EnvelopeError::Pair { kind, suite });
        }
        if rest.len() < suite.enc_len() + TAG_LEN {
            return Err(truncated(HEADER_LEN + suite.enc_len() + TAG_LEN));
        }
        if kind == Kind::Ephemeral && envelope.len() > EPHEMERAL_LEN_MAX {
            return Err(EnvelopeError::EphemeralTooLarge(envelope.len()));
        }
        Ok(header)
    }

    /// The 48 bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..4].copy_from_slice(&[VERSION, self.kind as u8, self.suite as u8, 0]);
        bytes[4..20].copy_from_slice(&self.room.0);
        bytes[20..28].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.leaf.to_le_bytes());
        bytes[32..].copy_from_slice(&self.message.0);
        bytes
    }

    /// Kinds 1, 7 and a member's 4 use suite 1; 2, 3, 5, 6 and an external join (4) use suite 2; nothing else is allowed.
    const fn pair_allowed(&self) -> bool {
        match (self.kind, self.suite) {
            (Kind::Room | Kind::Ephemeral, Suite::X25519Psk) => true,
            (Kind::Handshake, Suite::X25519Psk) => self.leaf != NOT_A_MEMBER,
            (Kind::Handshake, Suite::XWing) => self.leaf == NOT_A_MEMBER,
            (Kind::DropBox | Kind::Device | Kind::Welcome | Kind::Keyring, Suite::XWing) => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: Kind, suite: Suite, leaf: u32) -> Header {
        Header { kind, suite, room: RoomId([3; 16]), epoch: 0x0102_0304, leaf, message: MessageId([9; 16]) }
    }

    fn envelope(header: &Header) -> Vec<u8> {
        let mut bytes = header.to_bytes().to_vec();
        bytes.resize(HEADER_LEN + header.suite.enc_len() + TAG_LEN, 0);
        bytes
    }

    #[test]
    fn only_the_documented_pairs_are_envelopes() {
        use Kind::*;
        for kind in [Room, DropBox, Device, Handshake, Welcome, Keyring, Ephemeral] {
            for (suite, leaf) in
                [(Suite::X25519Psk, 1), (Suite::XWing, 1), (Suite::X25519Psk, NOT_A_MEMBER), (Suite::XWing, NOT_A_MEMBER)]
            {
                let header = header(kind, suite, leaf);
                let allowed = match kind {
                    Room => suite == Suite::X25519Psk,
                    Ephemeral => suite == Suite::X25519Psk,
                    Handshake => (suite == Suite::X25519Psk) == (leaf != NOT_A_MEMBER),
                    DropBox | Device | Welcome | Keyring => suite == Suite::XWing,
                };
                let bytes = envelope(&header);
                // A minimal suite 2 envelope of kind 7 would also be too long, but its pair is refused first.
                assert_eq!(Header::parse(&bytes), if allowed { Ok(header) } else { Err(EnvelopeError::Pair { kind, suite }) });
            }
        }
    }

    #[test]
    fn every_byte_before_the_room_is_checked() {
        let good = envelope(&header(Kind::Room, Suite::X25519Psk, 1));
        let with = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            Header::parse(&bytes)
        };
        assert_eq!(with(0, 2), Err(EnvelopeError::Version(2)));
        assert_eq!(with(1, 0), Err(EnvelopeError::Kind(0)));
        assert_eq!(with(1, 8), Err(EnvelopeError::Kind(8)));
        assert_eq!(with(2, 3), Err(EnvelopeError::Suite(3)));
        assert_eq!(with(3, 1), Err(EnvelopeError::Flags(1)));
        for len in 0..good.len() {
            assert!(matches!(Header::parse(&good[..len]), Err(EnvelopeError::Truncated { .. })));
        }
    }

    #[test]
    fn an_ephemeral_envelope_fits_a_datagram() {
        let mut bytes = envelope(&header(Kind::Ephemeral, Suite::X25519Psk, 1));
        bytes.resize(EPHEMERAL_LEN_MAX, 0);
        assert!(Header::parse(&bytes).is_ok());
        bytes.push(0);
        assert_eq!(Header::parse(&bytes), Err(EnvelopeError::EphemeralTooLarge(1151)));
    }
}
