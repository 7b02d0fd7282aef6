//! Counts syncs and allocations: this program's own `fdatasync` and `fsync` stand before libc's, for Rust and for SQLite's C
//! alike, and its allocator before the server's. A measured server shares what it counts with who measures it, in a file
//! that both map.

use std::{
    alloc::{GlobalAlloc, Layout},
    ffi::c_int,
    fs::OpenOptions,
    os::fd::AsRawFd as _,
    path::Path,
    ptr,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering},
    time::Instant,
};

use anyhow::bail;
use mimalloc::MiMalloc;

use crate::histogram::{self, BUCKETS};

static SYNCS: AtomicU64 = AtomicU64::new(0);
static SKIPPING: AtomicBool = AtomicBool::new(false);
/// Where a measured server counts; null in every other process.
static SHARED: AtomicPtr<Shared> = AtomicPtr::new(ptr::null_mut());
/// The same, once allocations are to be counted.
static ALLOCATIONS: AtomicPtr<Shared> = AtomicPtr::new(ptr::null_mut());

/// What a server tells: it lies in the file as it is here.
#[derive(Debug)]
#[repr(C)]
pub struct Shared {
    syncs: AtomicU64,
    sync_nanos: AtomicU64,
    allocations: AtomicU64,
    allocated: AtomicU64,
    tasks: AtomicU64,
    sync_micros: [AtomicU64; BUCKETS],
}

impl Shared {
    /// Maps the file, which is made if it is not there.
    pub fn map(path: &Path) -> anyhow::Result<&'static Self> {
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
        file.set_len(size_of::<Self>() as u64)?;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a fresh mapping of a file that is as long, page-aligned and never unmapped; any bytes are valid, and
        // atomics may be shared between processes.
        unsafe {
            let place = libc::mmap(ptr::null_mut(), size_of::<Self>(), protection, flags, file.as_raw_fd(), 0);
            if place == libc::MAP_FAILED {
                bail!("cannot map the counters: {}", std::io::Error::last_os_error());
            }
            Ok(&*place.cast::<Self>())
        }
    }

    pub fn read(&self) -> Counts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            syncs: load(&self.syncs),
            sync_nanos: load(&self.sync_nanos),
            allocations: load(&self.allocations),
            allocated: load(&self.allocated),
            tasks: load(&self.tasks),
            sync_micros: self.sync_micros.iter().map(load).collect(),
        }
    }
}

/// The counts of one moment, or what was counted between two.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    pub syncs: u64,
    pub sync_nanos: u64,
    pub allocations: u64,
    pub allocated: u64,
    /// Tasks that are alive now.
    pub tasks: u64,
    sync_micros: Vec<u64>,
}

impl Counts {
    /// What was counted since `before`.
    pub fn since(&self, before: &Self) -> Self {
        let sync_micros = self.sync_micros.iter().zip(&before.sync_micros).map(|(now, before)| now - before).collect();
        Self {
            syncs: self.syncs - before.syncs,
            sync_nanos: self.sync_nanos - before.sync_nanos,
            allocations: self.allocations - before.allocations,
            allocated: self.allocated - before.allocated,
            tasks: self.tasks,
            sync_micros,
        }
    }

    /// Microseconds that this share of syncs did not exceed; NaN when there were none.
    pub fn sync_quantile(&self, share: f64) -> f64 {
        histogram::quantile(&self.sync_micros, share).map_or(f64::NAN, |micros| micros as f64)
    }
}

/// Counts in this file from now on, and allocations too if asked to.
pub fn share(path: &Path, allocations: bool) -> anyhow::Result<()> {
    let place = ptr::from_ref(Shared::map(path)?).cast_mut();
    SHARED.store(place, Ordering::Release);
    if allocations {
        ALLOCATIONS.store(place, Ordering::Release);
    }
    Ok(())
}

/// Tells how many tasks are alive.
pub fn set_tasks(count: usize) {
    // SAFETY: null, or a mapping that is never unmapped.
    if let Some(shared) = unsafe { SHARED.load(Ordering::Acquire).as_ref() } {
        shared.tasks.store(count as u64, Ordering::Relaxed);
    }
}

/// Syncs return at once from now on: what is then missing is what they cost.
pub fn skip_syncs() {
    SKIPPING.store(true, Ordering::Relaxed);
}

/// Syncs that this process has asked for since it began.
pub fn syncs() -> u64 {
    SYNCS.load(Ordering::Relaxed)
}

fn sync(call: libc::c_long, file: c_int) -> c_int {
    SYNCS.fetch_add(1, Ordering::Relaxed);
    if SKIPPING.load(Ordering::Relaxed) {
        return 0;
    }
    let begin = Instant::now();
    // SAFETY: both calls take one file descriptor and no memory.
    let result = unsafe { libc::syscall(call, file) };
    // SAFETY: null, or a mapping that is never unmapped.
    if let Some(shared) = unsafe { SHARED.load(Ordering::Acquire).as_ref() } {
        let took = begin.elapsed();
        shared.syncs.fetch_add(1, Ordering::Relaxed);
        shared.sync_nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let bucket = histogram::bucket(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        if let Some(count) = usize::try_from(bucket).ok().and_then(|bucket| shared.sync_micros.get(bucket)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
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

/// The server's allocator, counted where that was asked for.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocated(bytes: usize) {
    // SAFETY: null, or a mapping that is never unmapped.
    if let Some(shared) = unsafe { ALLOCATIONS.load(Ordering::Relaxed).as_ref() } {
        shared.allocations.fetch_add(1, Ordering::Relaxed);
        shared.allocated.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

// SAFETY: every call is that allocator's own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        allocated(layout.size());
        // SAFETY: as asked.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        allocated(layout.size());
        // SAFETY: as asked.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        allocated(size);
        // SAFETY: as asked.
        unsafe { MiMalloc.realloc(place, layout, size) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as asked.
        unsafe { MiMalloc.dealloc(place, layout) }
    }
}
