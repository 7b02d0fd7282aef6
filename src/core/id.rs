//! Identifiers. All are fixed-size byte strings; on the wire they are their raw bytes, for people they are base64url.

use core::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use serde::{Deserialize, Serialize};

/// A position in a room's log. The first record has 1; 0 means "before the first".
pub type Seq = u64;

/// A publisher's own number for a message, counted from 1 in each (room, producer).
pub type ClientSeq = u64;

/// Wall-clock time in milliseconds since the Unix epoch, as the server saw it. Not authenticated.
pub type UnixMillis = u64;

/// Text that does not spell an identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a base64url string of {expected} bytes")]
pub struct ParseIdError {
    /// Bytes that the identifier has.
    pub expected: usize,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Bytes of this identifier.
            pub const LEN: usize = $len;

            /// The raw bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&BASE64.encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl core::str::FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let wrong = ParseIdError { expected: $len };
                let bytes = BASE64.decode(text).map_err(|_| wrong)?;
                Ok(Self(bytes.try_into().map_err(|_| wrong)?))
            }
        }

        impl From<[u8; $len]> for $name {
            fn from(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }
        }
    };
}

id!(
    /// Names a log: a room, or an inbox (of a device or of an invitation).
    RoomId, 16
);
id!(
    /// Names one life of a log. New after a restore: a cursor from another life proves nothing.
    LogId, 16
);
id!(
    /// A sender's random number for one envelope; correlation only, never trusted.
    MessageId, 16
);
id!(
    /// Names one outbox of one device. A client that gives up a message starts a new one.
    ProducerId, 16
);
id!(
    /// A device's Ed25519 signing key: what a session authenticates as (RFC 8032, 32 bytes).
    DeviceKey, 32
);
id!(
    /// The Ed25519 key whose possession opens a room at the server. Derived from the room's secret.
    AccessKey, 32
);
id!(
    /// SHA-256 of an envelope, or of anything else that is named by its hash.
    Digest, 32
);
id!(
    /// 32 random bytes that one side contributes to a login.
    Nonce, 32
);

/// An Ed25519 signature (RFC 8032, 64 bytes). On the wire its 64 raw bytes.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature([[u8; 32]; 2]);

impl Signature {
    /// Bytes of a signature.
    pub const LEN: usize = 64;

    /// The raw bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&self.0[0]);
        bytes[32..].copy_from_slice(&self.0[1]);
        bytes
    }

    /// Whether this is `key`'s signature of `message`, by the strict rules (no small-order keys, canonical encodings).
    #[must_use]
    pub fn verifies(&self, key: &[u8; 32], message: &[u8]) -> bool {
        ed25519_dalek::VerifyingKey::from_bytes(key)
            .is_ok_and(|key| key.verify_strict(message, &ed25519_dalek::Signature::from_bytes(&self.to_bytes())).is_ok())
    }
}

impl From<[u8; 64]> for Signature {
    fn from(bytes: [u8; 64]) -> Self {
        let mut halves = [[0; 32]; 2];
        halves[0].copy_from_slice(&bytes[..32]);
        halves[1].copy_from_slice(&bytes[32..]);
        Self(halves)
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({}…)", BASE64.encode(&self.0[0][..6]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips_and_refuses_other_lengths() {
        let id = RoomId([7; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("AAAA".parse::<RoomId>(), Err(ParseIdError { expected: 16 }));
        assert_eq!("not base64!".parse::<RoomId>(), Err(ParseIdError { expected: 16 }));
    }

    #[test]
    fn a_signature_is_its_64_bytes_on_the_wire() {
        let bytes: [u8; 64] = core::array::from_fn(|i| u8::try_from(i).unwrap());
        let wire = postcard::to_allocvec(&Signature::from(bytes)).unwrap();
        assert_eq!(wire, bytes);
        assert_eq!(postcard::from_bytes::<Signature>(&wire).unwrap().to_bytes(), bytes);
    }
}
