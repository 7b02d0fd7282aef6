//! The shard: its contract in scenarios, what it does at scale, counted in work and not in time, and against a reference model:
//! random publishes, retries, subscriptions, slow readers, cut connections, slices of any size, a log that is trimmed behind
//! its back, a busy and failing engine, and crashes that lose what was not yet on disk.
#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it does"
)]

mod answers;
#[path = "../common/mod.rs"]
mod common;
mod contract;
mod dropbox;
mod handshakes;
mod model;
mod packages;
mod scale;
mod slices;
mod world;
