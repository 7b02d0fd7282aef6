//! The one table of close codes and refusals. `docs/protocol.md` prints it.

use serde::{Deserialize, Serialize};

use super::id::{ClientSeq, Seq};

/// Why a connection ends. Sent in band (`Closing`) on every transport; also the WebSocket close code and the
/// WebTransport/QUIC application error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum CloseCode {
    /// The peer said goodbye.
    #[error("closed as asked")]
    Normal,
    /// The server stops; another one, or this one again, takes over.
    #[error("the server is shutting down")]
    GoingAway,
    /// Bytes that are no frame, or a frame where it must not come.
    #[error("the peer broke the protocol")]
    Protocol,
    /// A frame larger than the limit.
    #[error("a frame exceeded the limit")]
    TooLarge,
    /// The hello names a version that the server does not speak.
    #[error("the protocol version is not supported")]
    Version,
    /// The signature, the token, or the dialled name was not accepted.
    #[error("not authenticated")]
    Unauthenticated,
    /// No login within the time allowed, or too many bytes before it.
    #[error("the handshake took too long or too much")]
    Handshake,
    /// Nothing was heard for too long, or the peer reads nothing.
    #[error("the connection was idle or stalled")]
    Idle,
    /// The server is too busy for another connection.
    #[error("the server is overloaded")]
    Overloaded,
    /// The server failed in a way that is not the peer's doing.
    #[error("internal error")]
    Internal,
}

impl CloseCode {
    /// Every code, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::Normal,
        Self::GoingAway,
        Self::Protocol,
        Self::TooLarge,
        Self::Version,
        Self::Unauthenticated,
        Self::Handshake,
        Self::Idle,
        Self::Overloaded,
        Self::Internal,
    ];

    /// The WebSocket close code (RFC 6455 §7.4): standard where one fits, else from the private range 4000–4999.
    #[must_use]
    pub const fn websocket(self) -> u16 {
        match self {
            Self::Normal => 1000,
            Self::GoingAway => 1001,
            Self::Protocol => 1002,
            Self::TooLarge => 1009,
            Self::Internal => 1011,
            Self::Overloaded => 1013,
            Self::Version => 4000,
            Self::Unauthenticated => 4001,
            Self::Handshake => 4002,
            Self::Idle => 4003,
        }
    }

    /// The application error code on QUIC and WebTransport: the WebSocket one.
    #[must_use]
    pub const fn quic(self) -> u32 {
        self.websocket() as u32
    }

    /// The code of a WebSocket, QUIC or WebTransport number; an unknown one is [`CloseCode::Internal`].
    #[must_use]
    pub fn from_number(number: u64) -> Self {
        Self::ALL.into_iter().find(|code| u64::from(code.websocket()) == number).unwrap_or(Self::Internal)
    }

    /// A short name for metrics and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::GoingAway => "going_away",
            Self::Protocol => "protocol",
            Self::TooLarge => "too_large",
            Self::Version => "version",
            Self::Unauthenticated => "unauthenticated",
            Self::Handshake => "handshake",
            Self::Idle => "idle",
            Self::Overloaded => "overloaded",
            Self::Internal => "internal",
        }
    }
}

/// Why an operation was not done. It had no effect, except [`Refusal::OutcomeUnknown`], which says just that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// There is no such room, or the session has not entered it.
    #[error("no such room, or not entered")]
    NoAccess,
    /// A room of that id exists already.
    #[error("the room exists already")]
    RoomExists,
    /// Only the room's creator may do that.
    #[error("only the creator of the room may do that")]
    NotCreator,
    /// The envelope is malformed, or does not belong in this log.
    #[error("the envelope is malformed or does not belong here")]
    BadEnvelope,
    /// The envelope exceeds the limit.
    #[error("the envelope exceeds {max} bytes")]
    TooLarge {
        /// The limit in bytes.
        max: u32,
    },
    /// The publish is not the next of its producer; what precedes it has not been stored.
    #[error("out of order: {expected} is the next of this producer")]
    OutOfOrder {
        /// The next number that would be accepted.
        expected: ClientSeq,
    },
    /// This number was used before with other bytes.
    #[error("the number was used before with other bytes")]
    Conflict,
    /// Too long ago to say whether it was stored. It is not stored now.
    #[error("too old to decide whether it was stored")]
    Expired,
    /// The sender had not processed the room's newest handshake record. Proves that nothing was stored.
    #[error("the newest handshake of the room is {handshake}")]
    StaleEpoch {
        /// The seq of that record; 0 when there is none.
        handshake: Seq,
    },
    /// The device uses too many outboxes in this room.
    #[error("too many producers of this device in this room")]
    TooManyProducers,
    /// Too many operations; try again later.
    #[error("rate limit; retry after {retry_after_ms} ms")]
    RateLimited {
        /// Milliseconds to wait.
        retry_after_ms: u32,
    },
    /// The session has entered as many rooms as it may, or the device created as many as it may.
    #[error("too many rooms")]
    TooManyRooms,
    /// The room keeps as many bytes as it may.
    #[error("the room is full")]
    RoomFull,
    /// The server's disk is at its reserve. Reading goes on.
    #[error("the server's disk is full")]
    DiskFull,
    /// The server's queues are full; try again later.
    #[error("the server is overloaded")]
    Overloaded,
    /// The server cannot tell whether it was stored. Retry the same bytes.
    #[error("the outcome is unknown; retry the same bytes")]
    OutcomeUnknown,
    /// The cursor is beyond the log's head: this log is not the one that the client knew.
    #[error("the cursor is beyond the head {head}")]
    CursorAhead {
        /// The newest seq.
        head: Seq,
    },
    /// The access proof does not verify.
    #[error("the access proof does not verify")]
    BadProof,
    /// The server failed; nothing was done.
    #[error("internal error")]
    Internal,
    /// The device would have more key packages than it may.
    #[error("a device may have {max} key packages")]
    TooManyPackages {
        /// The limit.
        max: u32,
    },
}

impl Refusal {
    /// A short name for metrics and logs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::NoAccess => "no_access",
            Self::RoomExists => "room_exists",
            Self::NotCreator => "not_creator",
            Self::BadEnvelope => "bad_envelope",
            Self::TooLarge { .. } => "too_large",
            Self::OutOfOrder { .. } => "out_of_order",
            Self::Conflict => "conflict",
            Self::Expired => "expired",
            Self::StaleEpoch { .. } => "stale_epoch",
            Self::TooManyProducers => "too_many_producers",
            Self::RateLimited { .. } => "rate_limited",
            Self::TooManyRooms => "too_many_rooms",
            Self::RoomFull => "room_full",
            Self::DiskFull => "disk_full",
            Self::Overloaded => "overloaded",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::CursorAhead { .. } => "cursor_ahead",
            Self::BadProof => "bad_proof",
            Self::Internal => "internal",
            Self::TooManyPackages { .. } => "too_many_packages",
        }
    }

    /// Whether the same request may succeed later without any change.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::RateLimited { .. } | Self::DiskFull | Self::Overloaded | Self::OutcomeUnknown | Self::OutOfOrder { .. }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_codes_map_one_to_one() {
        for code in CloseCode::ALL {
            assert_eq!(CloseCode::from_number(u64::from(code.websocket())), code);
        }
        assert_eq!(CloseCode::from_number(77), CloseCode::Internal);
    }
}
