//! What the allocator keeps. It gives back what is free while it is asked for more; a server that has nothing to do asks for nothing,
//! so that it must be told.

// Its library is linked, whoever allocates with it.
use mimalloc as _;

#[allow(unsafe_code, reason = "one call into the allocator, which takes and returns no memory")]
mod ffi {
    unsafe extern "C" {
        fn mi_collect(force: bool);
    }

    pub(super) fn collect() {
        // SAFETY: any thread may call it at any time. Without force it gives back what the allocator would.
        unsafe { mi_collect(false) }
    }
}

/// Takes back what other threads have freed of this thread's memory, and gives what has been free for a second to the system. Of no
/// effect on who has another allocator.
pub(crate) fn give_back() {
    ffi::collect();
}
