//! What the tests of the server's side share: keys, envelopes that look real to a blind server, an engine in memory.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::indexing_slicing,
    reason = "each test binary uses a part, and helpers fail like their tests"
)]

pub mod audit;
pub mod client;
pub mod engine;
pub mod home;
#[cfg(feature = "client")]
pub mod person;
pub mod relay;
pub mod server;

use bytes::Bytes;
use ed25519_dalek::{Signer as _, SigningKey};
use waxwing::core::{
    envelope::{HEADER_LEN, Header, Kind, Suite, TAG_LEN},
    handshake::{TRAILER_LEN, Trailer},
    id::{AccessKey, DeviceKey, Digest, MessageId, RoomId, Seq, Signature},
    login,
};

/// The epoch that every envelope in the tests names.
pub const EPOCH: u64 = 1;

/// A signing key from a number.
pub fn key(seed: u64) -> SigningKey {
    let mut bytes = [0x5a; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    SigningKey::from_bytes(&bytes)
}

pub fn device_of(key: &SigningKey) -> DeviceKey {
    DeviceKey(key.verifying_key().to_bytes())
}

pub fn access_of(key: &SigningKey) -> AccessKey {
    AccessKey(key.verifying_key().to_bytes())
}

pub fn sign(key: &SigningKey, message: &[u8]) -> Signature {
    key.sign(message).to_bytes().into()
}

/// The access key of a room in the tests.
pub fn room_key(room: RoomId) -> SigningKey {
    SigningKey::from_bytes(&[room.0, room.0].concat().try_into().unwrap())
}

/// Proves access to `room` in the session of `binding`.
pub fn proof(room: RoomId, binding: Digest) -> Signature {
    sign(&room_key(room), &login::access_message(binding, room))
}

/// An envelope with a valid header and `payload` where the ciphertext would be.
pub fn envelope(kind: Kind, room: RoomId, payload: &[u8]) -> Bytes {
    let suite = if kind == Kind::Keyring { Suite::XWing } else { Suite::X25519Psk };
    let mut message = [0; 16];
    let len = payload.len().min(16);
    message[..len].copy_from_slice(&payload[..len]);
    let header = Header { kind, suite, room, epoch: EPOCH, leaf: 1, message: MessageId(message) };
    let mut bytes = header.to_bytes().to_vec();
    bytes.resize(HEADER_LEN + suite.enc_len() + TAG_LEN, 0);
    bytes.extend_from_slice(payload);
    bytes.into()
}

/// A handshake record that follows the one at `after`, with `payload` for a commit, and beside it so many bytes.
pub fn handshake(room: RoomId, after: Seq, access: Option<AccessKey>, payload: &[u8], beside: (u32, u32)) -> Bytes {
    let mut bytes = envelope(Kind::Handshake, room, payload).to_vec();
    let (welcome_len, group_info_len) = beside;
    bytes.resize(bytes.len() + (welcome_len + group_info_len) as usize, 0xee);
    let trailer = Trailer { after, access, welcome_len, group_info_len, beside_len: 0, is_outline: false };
    bytes.extend_from_slice(&trailer.to_bytes());
    bytes.into()
}

/// The payload of such a record with nothing beside it.
pub fn handshake_payload(record: &Bytes) -> Bytes {
    payload(&record.slice(..record.len() - TRAILER_LEN))
}

/// The payload of such an envelope.
pub fn payload(envelope: &Bytes) -> Bytes {
    let suite = if envelope[2] == 2 { Suite::XWing } else { Suite::X25519Psk };
    envelope.slice(HEADER_LEN + suite.enc_len() + TAG_LEN..)
}
