//! Which way a frame takes to a client, where the transport has several.

use bytes::Bytes;

/// What matters of a frame to a transport: how urgent it is, and whether it may be lost. On one ordered stream all lanes are
/// the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Answers, and whatever has no lane of its own: first.
    Control,
    /// Pages for live subscribers: next.
    Live,
    /// Pages for those who catch up or look back: after everything else.
    History,
    /// Ephemeral envelopes: worth nothing later, so that they may be dropped.
    Ephemeral,
}

/// An encoded frame on its way to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Which way.
    pub lane: Lane,
    /// The frame's bytes, without a length.
    pub frame: Bytes,
}

impl Outgoing {
    /// An answer.
    #[must_use]
    pub const fn control(frame: Bytes) -> Self {
        Self { lane: Lane::Control, frame }
    }
}
