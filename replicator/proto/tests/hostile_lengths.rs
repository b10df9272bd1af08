//! How much memory bytes from the wire can make us take. In a file of its own, for it needs its own allocator.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use longhaul_proto::handoff::{Message, Record};
use longhaul_proto::wire::{
    self, Fetched, MAX_FRAME_BYTES, Open, PeerStatus, TargetStatus, ToReceiver, ToSender,
};

struct Counting;

thread_local! {
    static TAKEN: Cell<usize> = const { Cell::new(0) };
}

fn count(bytes: usize) {
    TAKEN.with(|taken| taken.set(taken.get() + bytes));
}

// SAFETY: every call goes to the system's allocator unchanged; counting in a `const` thread-local of `Cell` allocates
// nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes taken from the allocator, given back or not, while these are read as a message of every kind.
fn taken(bytes: &[u8]) -> usize {
    let before = TAKEN.get();
    let _ = wire::from_bytes::<Open>(bytes);
    let _ = wire::from_bytes::<ToReceiver>(bytes);
    let _ = wire::from_bytes::<ToSender>(bytes);
    let _ = wire::from_bytes::<PeerStatus>(bytes);
    let _ = wire::from_bytes::<Fetched>(bytes);
    let _ = wire::from_bytes::<TargetStatus>(bytes);
    let _ = wire::from_bytes::<Message>(bytes);
    let _ = wire::from_bytes::<Record>(bytes);
    TAKEN.get() - before
}

/// A number as bincode writes it: here always in 8 bytes.
fn number(value: u64) -> Vec<u8> {
    [&[253][..], &value.to_le_bytes()].concat()
}

/// A length claimed anywhere in a short message costs at most what one frame may hold, whatever it is.
#[test]
fn a_claimed_length_costs_no_more_than_a_frame() {
    let lengths = [
        1 << 12,
        1 << 16,
        1 << 20,
        1 << 22,
        (1 << 22) + 1,
        1 << 31,
        1 << 32,
        1 << 60,
        u64::MAX >> 1,
        u64::MAX,
    ];
    let mut most = 0;
    // Up to four small numbers lead to every field of every message that is a length; job ids need 16 bytes more.
    for before in 0..6usize.pow(4) {
        let digits: Vec<u8> = (0..4).map(|place| (before / 6usize.pow(place) % 6) as u8).collect();
        for count in 0..=4 {
            for length in lengths {
                let start = [&digits[..count], &number(length), &[0; 40]].concat();
                most = most.max(taken(&start));
                let with_job =
                    [&digits[..1], &[0; 16], &digits[1..count.max(1)], &number(length), &[0; 40]].concat();
                most = most.max(taken(&with_job));
            }
        }
    }
    // Seven kinds are tried, each with its error text.
    assert!(most <= 7 * (MAX_FRAME_BYTES + 4096), "{most} bytes");
}

/// Many small elements in a whole frame cost no more than a few frames: two bytes of hole are 40 in memory.
#[test]
fn a_full_frame_costs_a_few_frames() {
    let mut most = 0;
    for variant in 0..6u8 {
        for element in [[0, 0], [1, 0], [0, 1], [1, 1]] {
            for length in [1 << 10, 1 << 21, 1 << 22] {
                let mut frame = [&[variant, 0][..], &number(length)].concat();
                while frame.len() + 2 <= MAX_FRAME_BYTES {
                    frame.extend(element);
                }
                most = most.max(taken(&frame));
                most = most.max(taken(&frame[1..]));
            }
        }
    }
    assert!(most <= 7 * (MAX_FRAME_BYTES + 4096), "{most} bytes");
}
