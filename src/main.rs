//! The `waxwing` command.

use std::process::ExitCode;

/// Messages are made on one thread and freed on another, which costs the C library's allocator a lock each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    waxwing::cli::run()
}
