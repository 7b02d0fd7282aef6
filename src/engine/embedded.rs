//! The embedded engine: a write-ahead log that acks, and a redb file that keeps history in chunks.
//!
//! A write is acked when the log has it; a second thread applies what was logged to redb, much at a time and sorted by
//! room. Until then it lies in a memtable, from which readers complete what redb has.

mod apply;
pub mod chunk;
mod layout;
mod memtable;
mod read;
mod retain;
mod tables;
#[cfg(test)]
mod tests;
