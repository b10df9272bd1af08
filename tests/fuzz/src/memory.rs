//! A bound on what reading an input may allocate. libFuzzer's own (`-malloc_limit_mb`) needs a sanitizer's allocator,
//! which stable Rust does not have. Counts Rust's allocations; zstd's own are not seen.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes that are allocated now.
static LIVE: AtomicUsize = AtomicUsize::new(0);
/// What [`LIVE`] must not exceed.
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Runs `work`; ends the process, as a crash that libFuzzer sees, when it holds more than `bytes` at any time.
pub(crate) fn at_most(bytes: usize, work: impl FnOnce()) {
    LIMIT.store(LIVE.load(Relaxed).saturating_add(bytes), Relaxed);
    work();
    LIMIT.store(usize::MAX, Relaxed);
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn take(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Relaxed).saturating_add(bytes);
    if live > LIMIT.load(Relaxed) {
        over(bytes, live);
    }
}

#[cold]
fn over(bytes: usize, live: usize) -> ! {
    // To say so takes memory too.
    let limit = LIMIT.swap(usize::MAX, Relaxed);
    eprintln!("an allocation of {bytes} bytes makes it {} bytes too many for this input", live - limit);
    std::process::abort();
}

// SAFETY: every call goes to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both may be there while the bytes are moved.
        take(size);
        LIVE.fetch_sub(layout.size(), Relaxed);
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}
