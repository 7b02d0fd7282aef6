//! The write-ahead log: what makes a write durable with one sync.
//!
//! It knows rooms only as far as its entries name them. Segments, their layout and their recovery are described in the
//! modules below.

use crate::core::{
    id::{LogId, RoomId},
    log::{Append, LogMeta},
};

/// The number of an entry: 1, 2, 3 … without gap, over the life of a store.
pub type Lsn = u64;

/// One logged write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A log was made.
    Create {
        /// Its room.
        room: RoomId,
        /// As it was made.
        meta: LogMeta,
    },
    /// A record was appended to the life `log` of its room.
    Append {
        /// The log's life.
        log: LogId,
        /// The record.
        append: Append,
    },
    /// The life `log` of a room ended.
    Delete {
        /// Its room.
        room: RoomId,
        /// The log's life.
        log: LogId,
    },
}
