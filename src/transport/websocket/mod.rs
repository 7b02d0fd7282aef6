//! WebSocket (RFC 6455), over HTTP/1.1 and over HTTP/2 (RFC 8441): the handshake, and a codec of our own around
//! tungstenite's frame headers.
//!
//! The codec exists for its bounds. A reader holds what has arrived of one frame, not of one message, and refuses a frame
//! of ours by its length before the rest of it comes; reader and writer share nothing but the writing half, where answers
//! to pings wait.

mod codec;
#[cfg(feature = "test-utils")]
mod echo;
mod handshake;
mod socket;

#[cfg(feature = "test-utils")]
pub use echo::echo;
pub use handshake::{Upgrade, UpgradeError, upgrade};
pub use socket::{Socket, Tcp};

#[cfg(feature = "client")]
pub(super) use handshake::request;

pub(super) use codec::{Reader, Writer};

use bytes::BytesMut;

use super::{Connection, FrameReader, FrameWriter, Info, Sink, Source};

/// The path of the endpoint.
pub const PATH: &str = "/ws";

/// Which end of the connection this is: clients mask what they send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Sends masked frames, receives unmasked ones.
    Client,
    /// The other way round.
    Server,
}

/// A connection over a socket whose handshake is done; `leftover` was read behind it.
#[must_use]
pub fn connection(socket: Socket, leftover: &[u8], role: Role, info: Info, frame_max: u32) -> Connection {
    let (reader, writer) = codec::halves(socket, BytesMut::from(leftover), role);
    Connection {
        info,
        reader: FrameReader::new(Source::WebSocket(reader), frame_max),
        writer: FrameWriter::new(Sink::WebSocket(writer)),
    }
}
