//! The `waxwing` command.

use std::process::ExitCode;

/// Messages are made on one thread and freed on another, which costs the C library's allocator a lock each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // A huge page is there whole however little of it is in use, and finding one can take milliseconds of everybody's ack.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    waxwing::cli::run()
}
