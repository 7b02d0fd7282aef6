//! Frames: everything that crosses a connection, one enum per direction, encoded with postcard.
//!
//! A transport carries whole frames: one WebSocket binary message holds one frame or several, each preceded by its length;
//! on a stream the same. The length is a postcard varint (u32, at most 5 bytes). `docs/protocol.md` gives the bytes.

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use super::delimit::{peek_delimited, peek_varint, put_delimited, put_length, put_varint, take_delimited};
use super::{
    close::{CloseCode, Refusal},
    id::{AccessKey, ClientSeq, DeviceKey, Digest, LogId, Nonce, ProducerId, RoomId, Seq, Signature, UnixMillis},
    limits::Limits,
    packages::Suite,
};

/// The protocol version of the hello.
pub const PROTOCOL_VERSION: u16 = 1;
/// The WebSocket subprotocol.
pub const SUBPROTOCOL: &str = "waxwing.v1";
/// The ALPN of raw QUIC.
pub const ALPN: &[u8] = b"waxwing/1";

/// What kind of log a creation asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LogKind {
    /// A room: whoever proves the access key reads and publishes.
    Room,
    /// An inbox: whoever proves the access key reads; any device may post to it.
    Inbox,
}

/// From client to server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientFrame {
    /// First frame of a connection.
    Hello(Hello),
    /// Answer to the challenge.
    Authenticate {
        /// By the device key over [`super::login::Transcript`].
        signature: Signature,
    },
    /// Makes a log. The creating device is its owner.
    Create {
        /// Its id, random (a room) or derived from a public key (an inbox).
        room: RoomId,
        /// What opens it.
        access: AccessKey,
        /// Room or inbox.
        kind: LogKind,
    },
    /// Proves access; needed before any frame below that names the room.
    Enter {
        /// The room.
        room: RoomId,
        /// The newest handshake record that the client has processed; 0 when none.
        handshake: Seq,
        /// Over [`super::login::access_message`], by the access key that is in force after that record.
        proof: Signature,
    },
    /// Forgets the room in this session.
    Leave {
        /// The room.
        room: RoomId,
    },
    /// Everything after `after`, live without end.
    Subscribe {
        /// The room.
        room: RoomId,
        /// The last seq that the client has; 0 for everything.
        after: Seq,
    },
    /// Ends the subscription; the room stays entered.
    Unsubscribe {
        /// The room.
        room: RoomId,
    },
    /// One page of what precedes `before`, newest page first.
    Fetch {
        /// Chosen by the client, echoed.
        request: u32,
        /// The room.
        room: RoomId,
        /// Only records with a smaller seq; [`u64::MAX`] for the newest.
        before: Seq,
        /// At most this many records.
        count_max: u32,
    },
    /// Stores an envelope.
    Publish(Publish),
    /// Passes an envelope of kind 7 to who is there now.
    Ephemeral {
        /// The sealed bytes.
        envelope: Bytes,
    },
    /// Deletes the room, for its creator.
    Delete {
        /// The room.
        room: RoomId,
    },
    /// Asks for a [`ServerFrame::Pong`].
    Ping {
        /// Echoed.
        token: u64,
    },
    /// Goodbye: nothing follows.
    Close,
    /// Asks where a time lies in the log.
    Seek {
        /// Chosen by the client, echoed.
        request: u32,
        /// The room.
        room: RoomId,
        /// The server's clock.
        time_ms: UnixMillis,
    },
    /// First frame of a connection, instead of the hello: the client was here before, and proves it at once.
    Resume(Resume),
    /// Asks for a handshake record, without reading the log.
    Handshake {
        /// Chosen by the client, echoed.
        request: u32,
        /// The room.
        room: RoomId,
        /// [`u64::MAX`], or anything beyond the newest, for the newest one. Else the record at `before − 1`, if it is one: each
        /// names the one before it.
        before: Seq,
        /// All of it, and not its outline.
        whole: bool,
    },
    /// Adds key packages to those that others may take of this device.
    PublishKeyPackages {
        /// Chosen by the client, echoed.
        request: u32,
        /// For groups of which suite they are, all of them.
        suite: Suite,
        /// They are handed out in this order.
        packages: Vec<KeyPackage>,
        /// Whether those that are there go first.
        replace: bool,
    },
    /// Takes a key package of a device; nobody else gets that one.
    TakeKeyPackage {
        /// Chosen by the client, echoed.
        request: u32,
        /// Whose.
        device: DeviceKey,
        /// For a group of which suite.
        suite: Suite,
    },
    /// Opens the room's drop-box, or puts this in the place of what it was opened with; for members.
    PutDropBox {
        /// The room.
        room: RoomId,
        /// Nothing closes it.
        offer: Option<DropBoxOffer>,
    },
}

/// What lets somebody who is no member post into a room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropBoxOffer {
    /// Posts carry it in their headers; those with another one are refused.
    pub epoch: u64,
    /// Posters sign with this key.
    pub poster: AccessKey,
    /// What posters are told; the server does not look at it.
    pub announcement: Bytes,
}

/// Keys with which somebody can be added to a group while away (RFC 9420 §10).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPackage {
    /// By the server's clock: it is not handed out from then on.
    pub expires_ms: UnixMillis,
    /// Handed out again and again when there is no other (RFC 9750 §5.1 has what that costs). A device has one at most for each suite.
    pub last_resort: bool,
    /// The package; the server does not look at it.
    pub bytes: Bytes,
}

/// The first frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`].
    pub version: u16,
    /// 32 fresh random bytes.
    pub nonce: Nonce,
    /// Who will sign.
    pub device: DeviceKey,
    /// The authority (`host:port`) that the client dialled, as it typed it. Signed: a relay cannot change it.
    pub authority: String,
    /// Whether the client signs the TLS exporter of this connection.
    pub exporter: bool,
    /// What the deployment's token check wants; empty when it wants none.
    pub token: Bytes,
    /// Name and version of the client's software, for operators.
    pub agent: String,
}

/// A hello that brings a ticket of an earlier login, signed for this connection. Other frames may follow it at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// As in an ordinary login, with a fresh nonce: when the ticket is not accepted, it is one.
    pub hello: Hello,
    /// What the client thinks that the server's clock says now.
    pub time_ms: UnixMillis,
    /// As the server gave it in a welcome.
    pub ticket: Bytes,
    /// By the device key over [`super::login::resume_message`].
    pub signature: Signature,
}

/// A message for the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// The log.
    pub room: RoomId,
    /// The outbox.
    pub producer: ProducerId,
    /// Its number there.
    pub client_seq: ClientSeq,
    /// The newest handshake record that the sender has processed; 0 when none. Stored only if it is the log's newest.
    pub handshake: Seq,
    /// The sealed bytes; of a handshake record all of it.
    pub envelope: Bytes,
}

/// From server to client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerFrame {
    /// Answer to the hello.
    Challenge {
        /// 32 fresh random bytes.
        nonce: Nonce,
    },
    /// The session is open.
    Welcome {
        /// The server's software, for people.
        agent: String,
        /// What this session may do.
        limits: Limits,
        /// The server's clock.
        time_ms: UnixMillis,
        /// With this the next login takes one round trip less; empty when the server gives none.
        ticket: Bytes,
    },
    /// The log was made (or this device had made the very same one before).
    Created {
        /// The room.
        room: RoomId,
        /// Its life.
        log: LogId,
    },
    /// The proof was accepted.
    Entered {
        /// The room.
        room: RoomId,
        /// The state of its log.
        position: Position,
        /// The seq of its newest handshake record, which publishes must name; 0 when there was none.
        handshake: Seq,
    },
    /// Delivery begins after `page.after`.
    Subscribed {
        /// The room.
        room: RoomId,
        /// Where delivery begins: the seq asked for, or `floor − 1` if that is later.
        after: Seq,
        /// The chain value at `after`.
        chain: Digest,
        /// The state of its log.
        position: Position,
    },
    /// Records of a subscription: live ones and older ones alike.
    Deliver(Page),
    /// Answer to a fetch, and to [`ClientFrame::Handshake`].
    Fetched {
        /// The request.
        request: u32,
        /// The records; empty when there are none before, or no handshake record there.
        page: Page,
    },
    /// The publish is on disk.
    Ack {
        /// The log.
        room: RoomId,
        /// The outbox.
        producer: ProducerId,
        /// Its number there.
        client_seq: ClientSeq,
        /// Its place in the log.
        seq: Seq,
    },
    /// The publish was not stored (but see [`Refusal::OutcomeUnknown`]).
    Refused {
        /// The log.
        room: RoomId,
        /// The outbox.
        producer: ProducerId,
        /// Its number there.
        client_seq: ClientSeq,
        /// Why.
        why: Refusal,
    },
    /// Another operation on a room was not done.
    Failed {
        /// The room.
        room: RoomId,
        /// Which operation.
        what: Operation,
        /// Why.
        why: Refusal,
    },
    /// Devices that came or went. Sent after [`ServerFrame::Subscribed`] with all that are there.
    Presence {
        /// The room.
        room: RoomId,
        /// Now there.
        online: Vec<DeviceKey>,
        /// No longer there.
        offline: Vec<DeviceKey>,
    },
    /// An envelope of kind 7.
    Ephemeral {
        /// The sealed bytes.
        envelope: Bytes,
    },
    /// The room is gone; nothing follows for it.
    Deleted {
        /// The room.
        room: RoomId,
    },
    /// Answer to a ping.
    Pong {
        /// As sent.
        token: u64,
    },
    /// The connection ends after this frame.
    Closing {
        /// Why.
        code: CloseCode,
        /// Milliseconds to wait before the next attempt.
        retry_after_ms: u32,
    },
    /// Answer to a seek.
    Sought {
        /// The request.
        request: u32,
        /// The room.
        room: RoomId,
        /// The first seq that was stored at or after that time; `head + 1` when there is none.
        seq: Seq,
    },
    /// Answer to [`ClientFrame::PublishKeyPackages`].
    KeyPackages {
        /// The request.
        request: u32,
        /// Packages of that suite that can be taken now, the last resort not counted; or why nothing has changed.
        result: Result<u32, Refusal>,
    },
    /// Answer to [`ClientFrame::TakeKeyPackage`].
    KeyPackage {
        /// The request.
        request: u32,
        /// The package; nothing if the device has none.
        result: Result<Option<Bytes>, Refusal>,
    },
    /// Answer to [`ClientFrame::PutDropBox`]: it is on disk.
    DropBox {
        /// The room.
        room: RoomId,
        /// What posters are told; nothing if it is closed.
        announcement: Option<Bytes>,
    },
}

/// Which operation a [`ServerFrame::Failed`] answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Operation {
    /// [`ClientFrame::Create`].
    Create,
    /// [`ClientFrame::Enter`].
    Enter,
    /// [`ClientFrame::Subscribe`], or delivery that cannot go on.
    Subscribe,
    /// [`ClientFrame::Fetch`].
    Fetch,
    /// [`ClientFrame::Ephemeral`].
    Ephemeral,
    /// [`ClientFrame::Delete`].
    Delete,
    /// [`ClientFrame::Seek`].
    Seek,
    /// [`ClientFrame::Handshake`].
    Handshake,
    /// [`ClientFrame::PutDropBox`].
    DropBox,
}

/// Where a log stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The log's life.
    pub log: LogId,
    /// The newest durable seq; 0 when empty.
    pub head: Seq,
    /// The oldest seq kept; 1 when nothing was trimmed, `head + 1` when everything was.
    pub floor: Seq,
}

/// Consecutive records of one log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// The room.
    pub room: RoomId,
    /// The state of its log.
    pub position: Position,
    /// The seq of the first item.
    pub first: Seq,
    /// The chain value before the first item, at `first − 1`.
    pub chain: Digest,
    /// The records, with consecutive seqs.
    pub items: Vec<Item>,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// When the server stored it.
    pub time_ms: UnixMillis,
    /// The sealed bytes.
    pub envelope: Bytes,
}

/// Why bytes are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Not an encoding of any frame of this direction.
    #[error("malformed frame: {0}")]
    Malformed(postcard::Error),
    /// A frame, and then something more.
    #[error("{0} bytes follow the frame")]
    Trailing(usize),
    /// A length prefix that exceeds the limit.
    #[error("a frame of {len} bytes exceeds {max}")]
    TooLarge {
        /// Bytes announced.
        len: u32,
        /// The limit.
        max: u32,
    },
    /// A length prefix that is no varint of 32 bits.
    #[error("malformed length prefix")]
    Prefix,
    /// The message ends within a frame.
    #[error("the message ends within a frame")]
    Truncated,
}

impl DecodeError {
    /// The close code that answers it.
    #[must_use]
    pub const fn close_code(&self) -> CloseCode {
        match self {
            Self::TooLarge { .. } => CloseCode::TooLarge,
            _ => CloseCode::Protocol,
        }
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let (frame, rest) = postcard::take_from_bytes(bytes).map_err(DecodeError::Malformed)?;
    if rest.is_empty() { Ok(frame) } else { Err(DecodeError::Trailing(rest.len())) }
}

/// Writes into a vector that was made large enough, so that nothing is copied twice.
struct Buffer(Vec<u8>);

impl postcard::ser_flavors::Flavor for Buffer {
    type Output = Vec<u8>;

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<Vec<u8>> {
        Ok(self.0)
    }
}

fn encode<T: Serialize>(frame: &T, capacity: usize) -> Bytes {
    let buffer = Buffer(Vec::with_capacity(capacity));
    // Serialising into a growing vector fails only for types without a known length; frames have none.
    postcard::serialize_with_flavor(frame, buffer).expect("a frame encodes into memory").into()
}

/// More than any frame takes besides its variable parts, and usually enough for those that have some.
const SMALL: usize = 160;

impl Page {
    /// At least the bytes of its encoding within a frame.
    fn encoded_len_max(&self) -> usize {
        // Varints: the time takes up to 10 bytes, the length of an envelope up to 5.
        SMALL + self.items.iter().map(|item| item.envelope.len() + 15).sum::<usize>()
    }
}

impl ClientFrame {
    /// Reads exactly one frame.
    ///
    /// # Errors
    /// [`DecodeError`]; the connection closes with its [`DecodeError::close_code`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode(bytes)
    }

    /// The frame's bytes, without a length.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let capacity = match self {
            Self::Publish(publish) => SMALL + publish.envelope.len(),
            Self::PublishKeyPackages { packages, .. } => {
                SMALL + packages.iter().map(|package| package.bytes.len() + 16).sum::<usize>()
            }
            Self::PutDropBox { offer, .. } => SMALL + offer.as_ref().map_or(0, |offer| offer.announcement.len()),
            Self::Resume(resume) => 2 * SMALL + resume.hello.token.len() + resume.hello.authority.len(),
            _ => SMALL,
        };
        encode(self, capacity)
    }
}

impl ServerFrame {
    /// Reads exactly one frame.
    ///
    /// # Errors
    /// [`DecodeError`]; the connection closes with its [`DecodeError::close_code`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode(bytes)
    }

    /// The frame's bytes, without a length.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let capacity = match self {
            Self::Deliver(page) | Self::Fetched { page, .. } => page.encoded_len_max(),
            Self::Presence { online, offline, .. } => SMALL + 32 * (online.len() + offline.len()),
            Self::Ephemeral { envelope } => SMALL + envelope.len(),
            // Small ones are many: what they do not use they do not hold on to.
            Self::Ack { .. } => 52,
            _ => SMALL,
        };
        encode(self, capacity)
    }
}
