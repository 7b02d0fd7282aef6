//! Sealing: what only a person's device does. The server is built without this module and cannot name it.
//!
//! A message is a single-shot HPKE envelope (RFC 9180) sealed to its room's epoch, with the sender's Ed25519 signature
//! inside. [`hpke`] composes the two suites, [`message`] lays out and verifies what is inside, [`epoch`] holds the keys of an
//! epoch, whatever their source, [`identity`] the people and devices, [`invitation`] and [`link`] lead into a room, [`returning`] back
//! into it, a [`card`] to a person; through [`dropbox`] somebody outside posts what only the room reads.

pub mod backup;
pub mod body;
pub mod card;
pub mod devices;
pub mod dropbox;
pub mod epoch;
pub mod hpke;
pub mod identity;
pub mod invitation;
pub mod link;
pub mod linking;
pub mod message;
pub mod returning;
pub mod vault;
pub mod words;

/// A source of randomness. Everything that needs some takes one, so that tests and the simulator are deterministic.
pub trait Random: rand_core::CryptoRng {
    /// `N` random bytes.
    fn bytes<const N: usize>(&mut self) -> [u8; N]
    where
        Self: Sized,
    {
        let mut bytes = [0; N];
        self.fill_bytes(&mut bytes);
        bytes
    }
}

impl<R: rand_core::CryptoRng> Random for R {}

/// HKDF-SHA256 (RFC 5869) of a uniformly random secret: 32 bytes for one purpose.
#[must_use]
pub fn derive(secret: &[u8; 32], label: &str, context: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    hkdf::Hkdf::<sha2::Sha256>::new(Some(label.as_bytes()), secret)
        .expand(context, &mut out)
        .expect("32 bytes are within HKDF's limit");
    out
}
