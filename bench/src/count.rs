//! Counts syncs: this program's own `fdatasync` and `fsync` stand before libc's, for Rust and for SQLite's C alike.

use std::{
    ffi::c_int,
    sync::atomic::{AtomicU64, Ordering},
};

static SYNCS: AtomicU64 = AtomicU64::new(0);

/// Syncs that this process has asked for since it began.
pub fn syncs() -> u64 {
    SYNCS.load(Ordering::Relaxed)
}

fn sync(call: libc::c_long, file: c_int) -> c_int {
    SYNCS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: both calls take one file descriptor and no memory.
    let result = unsafe { libc::syscall(call, file) };
    if result == 0 { 0 } else { -1 }
}

#[unsafe(no_mangle)]
extern "C" fn fdatasync(file: c_int) -> c_int {
    sync(libc::SYS_fdatasync, file)
}

#[unsafe(no_mangle)]
extern "C" fn fsync(file: c_int) -> c_int {
    sync(libc::SYS_fsync, file)
}
