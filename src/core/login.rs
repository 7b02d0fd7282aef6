//! What a device signs to open a session, and what proves access to a room.
//!
//! The login signature covers the role, the authority that the client dialled, both nonces and, where the platform has one,
//! the TLS exporter (RFC 9266's use of RFC 8446 §7.5): a hostile edge that relays a login is caught by the authority, and by
//! the exporter where there is one.
//!
//! A client that logged in before may resume: it signs, instead of a challenge of this connection, the ticket that the server
//! gave it then, and what the server's clock should say now. The server takes each such login once.

use sha2::{Digest as _, Sha256};

use super::{
    frame::Hello,
    id::{Digest, Nonce, RoomId, UnixMillis},
};

/// Longest authority that a hello may name, in bytes (a DNS name and a port).
pub const AUTHORITY_LEN_MAX: usize = 262;
/// Longest agent string of a hello, in bytes.
pub const AGENT_LEN_MAX: usize = 128;
/// Longest token of a hello, in bytes.
pub const TOKEN_LEN_MAX: usize = 2048;
/// Longest ticket, in bytes.
pub const TICKET_LEN_MAX: usize = 128;
/// How far the time that a resume states may lie from the server's clock, in milliseconds.
pub const RESUME_SKEW_MS: u64 = 30_000;
/// The label of the TLS exporter (RFC 8446 §7.5); the context is empty, the length 32 bytes.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-waxwing-login";

/// Everything that both sides know of one login.
#[derive(Debug, Clone, Copy)]
pub struct Transcript<'a> {
    /// The client's first frame.
    pub hello: &'a Hello,
    /// The server's nonce.
    pub challenge: Nonce,
    /// The TLS exporter, when the hello says that it is signed.
    pub exporter: Option<&'a [u8; 32]>,
}

impl Transcript<'_> {
    /// The message that the device key signs:
    /// `"waxwing login v1" ‖ 'c' ‖ version u16 LE ‖ device ‖ client nonce ‖ server nonce ‖ authority length u16 LE ‖ authority
    /// ‖ exporter flag u8 ‖ exporter or nothing ‖ SHA-256(token)`.
    #[must_use]
    pub fn message(&self) -> Vec<u8> {
        signed(b"waxwing login v1c", self.hello, &self.challenge.0, self.exporter)
    }

    /// Names this login in access proofs: SHA-256 of [`Transcript::message`].
    #[must_use]
    pub fn binding(&self) -> Digest {
        binding(&self.message())
    }
}

/// The message that the device key signs to resume; laid out as [`Transcript::message`], with another label, and in the place
/// of the server's nonce `time_ms u64 LE ‖ SHA-256(ticket)`.
///
/// Its hash is the session's binding: the client knows it before the server has answered.
#[must_use]
pub fn resume_message(hello: &Hello, time_ms: UnixMillis, ticket: &[u8], exporter: Option<&[u8; 32]>) -> Vec<u8> {
    let freshness = [&time_ms.to_le_bytes()[..], &Sha256::digest(ticket)].concat();
    signed(b"waxwing resume v1c", hello, &freshness, exporter)
}

/// Names a login by the message that was signed for it: SHA-256.
#[must_use]
pub fn binding(message: &[u8]) -> Digest {
    Digest(Sha256::digest(message).into())
}

fn signed(label: &[u8], hello: &Hello, freshness: &[u8], exporter: Option<&[u8; 32]>) -> Vec<u8> {
    let mut message = Vec::with_capacity(256);
    message.extend_from_slice(label);
    message.extend_from_slice(&hello.version.to_le_bytes());
    message.extend_from_slice(&hello.device.0);
    message.extend_from_slice(&hello.nonce.0);
    message.extend_from_slice(freshness);
    // Longer authorities are refused before; saturating keeps the encoding unambiguous all the same.
    message.extend_from_slice(&u16::try_from(hello.authority.len()).unwrap_or(u16::MAX).to_le_bytes());
    message.extend_from_slice(hello.authority.as_bytes());
    message.push(u8::from(exporter.is_some()));
    message.extend_from_slice(exporter.map_or(&[][..], |exporter| exporter));
    message.extend_from_slice(&Sha256::digest(&hello.token));
    message
}

/// The message that a room's access key signs: `"waxwing access v1" ‖ login binding ‖ room`. Good for one session only.
#[must_use]
pub fn access_message(binding: Digest, room: RoomId) -> Vec<u8> {
    [&b"waxwing access v1"[..], &binding.0, &room.0].concat()
}
