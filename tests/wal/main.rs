//! The write-ahead log on files that fail: what it must keep, and how it says what is lost.

#![expect(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says its seed"
)]

mod crashes;
mod damage;
mod disk;
mod model;
#[path = "../common/seeds.rs"]
mod seeds;
mod segments;
