//! The embedded engine on real redb: what every engine must do, and what this one does when its disk fails.

#![expect(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says its seed"
)]

mod answers;
mod conformance;
mod disk;
mod driver;
mod embedded;
mod faults;
mod files;
#[allow(dead_code, reason = "each test binary uses a part")]
mod machine;
#[path = "../common/seeds.rs"]
mod seeds;
