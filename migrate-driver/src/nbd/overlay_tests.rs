//! The overlay against a model: what is dirty, what is covered, what reads back.

#![allow(clippy::single_range_in_vec_init)]

use proptest::prelude::*;
use rustix::io::Errno;

use super::*;

fn overlay(size: u64) -> Overlay {
    Overlay::new(size, &std::env::temp_dir()).unwrap()
}

#[test]
fn sizes_are_bounded_and_blocks_whole() {
    assert!(Overlay::new(0, &std::env::temp_dir()).is_err());
    assert!(Overlay::new(u64::MAX, &std::env::temp_dir()).is_err());
    let overlay = overlay(10_000);
    for (offset, len) in [(1, 4096), (0, 4095), (8192, 4096), (12288, 1), (u64::MAX, 2), (4096, 5000)] {
        let data = vec![1; len];
        let error = overlay.write(offset, &data).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{offset} {len}");
        assert!(overlay.zero(offset, len as u64).is_err());
    }
    assert_eq!(overlay.written_bytes(), 0);
    // The last block is short.
    overlay.write(8192, &[7; 1808]).unwrap();
    assert_eq!(overlay.take_dirty(), [8192..10_000]);
    assert!(overlay.covers(8192..10_000));
    assert!(!overlay.covers(0..10_000));
}

#[test]
fn runs_join_across_words_and_counters_follow() {
    let size = 1 << 30;
    let overlay = overlay(size);
    overlay.zero(62 * 4096, 5 * 4096).unwrap();
    overlay.zero(63 * 4096, 4096).unwrap();
    overlay.zero(size - 4096, 4096).unwrap();
    assert_eq!(overlay.dirty_bytes(), 6 * 4096);
    assert_eq!(overlay.written_bytes(), 7 * 4096);
    let taken = overlay.take_dirty();
    assert_eq!(taken, [62 * 4096..67 * 4096, size - 4096..size]);
    assert_eq!((overlay.dirty_bytes(), overlay.take_dirty().len()), (0, 0));
    overlay.zero(0, size).unwrap();
    assert_eq!(overlay.take_dirty(), [0..size]);
}

/// A disk as large as an image may be: on a tmpfs, since not every file system has files of that size.
#[test]
fn a_huge_disk_costs_memory_by_what_is_written() {
    let resident = || -> u64 {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    let before = resident();
    let size = 64_u64 << 40;
    let overlay = Overlay::new(size, Path::new("/dev/shm")).unwrap();
    assert!(Overlay::new(size + 1, Path::new("/dev/shm")).is_err());
    let ends = [0..4096, (32 << 40)..(32 << 40) + 8192, size - 4096..size];
    for range in &ends {
        overlay.write(range.start, &vec![1; (range.end - range.start) as usize]).unwrap();
    }
    assert_eq!((overlay.dirty_bytes(), overlay.take_dirty()), (4 * 4096, ends.to_vec()));
    assert!(!overlay.covers(0..8192) && overlay.covers(size - 4096..size));
    // QEMU's mirror zeroes all of a new target, in pieces that end one block before a round number.
    let piece = (2 << 30) - 4096;
    let mut at = 0;
    let zeroed = 4_u64 << 40;
    while at < zeroed {
        let len = piece.min(zeroed - at);
        overlay.mark(at / BLOCK_BYTES..(at + len) / BLOCK_BYTES, len);
        at += len;
    }
    assert!(overlay.covers(0..zeroed) && !overlay.covers(0..zeroed + 4096));
    assert_eq!((overlay.dirty_bytes(), overlay.take_dirty()), (zeroed, vec![0..zeroed]));
    assert_eq!(overlay.dirty_bytes(), 0);
    let cost = resident().saturating_sub(before);
    assert!(cost < 100 << 20, "{} MiB", cost >> 20);
}

#[test]
fn the_first_failure_stays() {
    let overlay = overlay(4096);
    assert_eq!(overlay.failed(), None);
    overlay.fail("first");
    overlay.fail("second");
    assert_eq!(overlay.failed().as_deref(), Some("first"));
}

#[test]
fn a_write_that_finds_no_room_is_told_from_another_failure() {
    for (errno, is_full) in [(Errno::NOSPC, true), (Errno::DQUOT, true), (Errno::IO, false)] {
        let overlay = overlay(4096);
        overlay.fail_write(&errno.into(), "a write".into());
        assert_eq!((overlay.failed().as_deref(), overlay.is_full()), (Some("a write"), is_full), "{errno}");
    }
}

/// A copy-before-write guest against a reader of the point in time.
#[test]
fn read_over_never_sees_the_future() {
    const BLOCKS: u64 = 64;
    let overlay = overlay(BLOCKS * 4096);
    let image = File::from(
        rustix::fs::open(std::env::temp_dir(), OFlags::TMPFILE | OFlags::RDWR, Mode::RUSR | Mode::WUSR)
            .unwrap(),
    );
    image.write_all_at(&vec![1; (BLOCKS * 4096) as usize], 0).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for block in (0..BLOCKS).rev() {
                let mut old = [0; 4096];
                image.read_exact_at(&mut old, block * 4096).unwrap();
                overlay.write(block * 4096, &old).unwrap();
                image.write_all_at(&[2; 4096], block * 4096).unwrap();
                std::thread::sleep(std::time::Duration::from_micros(200));
            }
            done.store(true, Ordering::Release);
        });
        let mut buf = vec![0; (BLOCKS * 4096) as usize];
        while !done.load(Ordering::Acquire) {
            overlay.read_over(0, &mut buf, |offset, buf| image.read_exact_at(buf, offset)).unwrap();
            assert!(buf.iter().all(|&byte| byte == 1));
        }
    });
}

/// Nothing written is ever missing from the sum of what takers got.
#[test]
fn concurrent_writers_lose_no_dirt() {
    const BLOCKS: u64 = 8192;
    let overlay = overlay(BLOCKS * 4096);
    let mut taken = vec![false; BLOCKS as usize];
    let note = |taken: &mut Vec<bool>| {
        for range in overlay.take_dirty() {
            (range.start / 4096..range.end / 4096).for_each(|block| taken[block as usize] = true);
        }
    };
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let overlay = &overlay;
                scope.spawn(move || {
                    (writer..BLOCKS).step_by(4).for_each(|block| overlay.zero(block * 4096, 4096).unwrap());
                })
            })
            .collect();
        while writers.iter().any(|writer| !writer.is_finished()) {
            note(&mut taken);
        }
    });
    note(&mut taken);
    assert!(taken.iter().all(|&taken| taken));
    assert_eq!(overlay.dirty_bytes(), 0);
}

#[derive(Debug, Clone)]
enum Op {
    Write(u64, u64, u8),
    Zero(u64, u64),
    Take,
}

fn op(blocks: u64) -> impl Strategy<Value = Op> {
    let range = move || (0..blocks, 1..80u64);
    prop_oneof![
        4 => (range(), 1..=255u8).prop_map(|((at, len), byte)| Op::Write(at, len, byte)),
        2 => range().prop_map(|(at, len)| Op::Zero(at, len)),
        1 => Just(Op::Take),
    ]
}

proptest! {
    #[test]
    fn behaves_like_three_arrays(
        short in 0..4096u64,
        ops in proptest::collection::vec(op(300), 1..40),
        window in (0..1_228_800u64, 0..200_000u64),
    ) {
        let size = 300 * 4096 - short;
        let overlay = overlay(size);
        let mut data = vec![0u8; size as usize];
        let mut covered = vec![false; 300];
        let mut dirty = vec![false; 300];
        for op in ops {
            match op {
                Op::Write(at, len, byte) => {
                    let end = ((at + len) * 4096).min(size);
                    let part = &mut data[(at * 4096) as usize..end as usize];
                    part.fill(byte);
                    overlay.write(at * 4096, part).unwrap();
                    let blocks = at as usize..end.div_ceil(4096) as usize;
                    covered[blocks.clone()].fill(true);
                    dirty[blocks].fill(true);
                }
                Op::Zero(at, len) => {
                    let end = ((at + len) * 4096).min(size);
                    data[(at * 4096) as usize..end as usize].fill(0);
                    overlay.zero(at * 4096, end - at * 4096).unwrap();
                    let blocks = at as usize..end.div_ceil(4096) as usize;
                    covered[blocks.clone()].fill(true);
                    dirty[blocks].fill(true);
                }
                Op::Take => {
                    let mut model: Vec<Range<u64>> = Vec::new();
                    for block in (0..300u64).filter(|&block| dirty[block as usize]) {
                        let (start, end) = (block * 4096, ((block + 1) * 4096).min(size));
                        match model.last_mut() {
                            Some(last) if last.end == start => last.end = end,
                            _ => model.push(start..end),
                        }
                    }
                    dirty.fill(false);
                    prop_assert_eq!(&overlay.take_dirty(), &model);
                }
            }
            let count = dirty.iter().filter(|&&dirty| dirty).count() as u64;
            prop_assert_eq!(overlay.dirty_bytes(), (count * 4096).min(size));
        }
        let start = window.0.min(size);
        let end = (start + window.1).min(size);
        let mut buf = vec![9; (end - start) as usize];
        overlay.read_at(start, &mut buf).unwrap();
        prop_assert_eq!(&buf[..], &data[start as usize..end as usize]);
        overlay.read_over(start, &mut buf, |_, buf| { buf.fill(0xbb); Ok(()) }).unwrap();
        for (at, &byte) in (start..end).zip(&buf) {
            let expected = if covered[(at / 4096) as usize] { data[at as usize] } else { 0xbb };
            prop_assert_eq!(byte, expected);
        }
        let all = start == end || covered[(start / 4096) as usize..end.div_ceil(4096) as usize].iter().all(|&c| c);
        prop_assert_eq!(overlay.covers(start..end), all);
    }
}
