//! What operators do with a store: backup, restore, check, compact, migration, retention; as functions, and as commands.

#![expect(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test fails by panicking"
)]

mod commands;
#[path = "../engine/disk.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod disk;
#[path = "../engine/driver.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod driver;
mod faults;
#[path = "../engine/machine.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod machine;
mod migration;
mod operations;
mod retention;
#[path = "../common/seeds.rs"]
mod seeds;
