//! What a guest has written since a tap began: a sparse scratch file without a name, and two bitmaps over it.
//!
//! *covered*: the overlay holds this block. *dirty*: it was written since the last [`Overlay::take_dirty`]. Only whole
//! blocks are taken (the last may be short), so that a covered block is exact: QEMU's mirror and copy-before-write
//! never send less. Never syncs: after a crash the pass begins again.

#[cfg(test)]
#[path = "overlay_tests.rs"]
mod tests;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::fs::{FallocateFlags, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

/// The unit of writes and of dirt.
pub const BLOCK_BYTES: u64 = 4096;
/// Largest disk: the largest image of the store. The scratch directory's file system may have a lower limit for a file (ext4:
/// 16 TiB).
const MAX_SIZE_BYTES: u64 = 64 << 40;

/// One disk's overlay. All methods may be called from any thread.
#[derive(Debug)]
pub struct Overlay {
    size: u64,
    scratch: File,
    covered: Bits,
    dirty: Bits,
    /// In blocks; the count of set bits in `dirty`.
    dirty_blocks: AtomicU64,
    written_bytes: AtomicU64,
    failure: Mutex<Option<String>>,
    /// A write found its file system full.
    full: AtomicBool,
}

impl Overlay {
    /// An empty overlay for a disk of `size` bytes, with its data in an unnamed file in `scratch_dir`.
    pub fn new(size: u64, scratch_dir: &Path) -> io::Result<Overlay> {
        if size == 0 || size > MAX_SIZE_BYTES {
            let message = format!("an overlay of {size} bytes is not possible: use 1 to {MAX_SIZE_BYTES}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let scratch = File::from(rustix::fs::open(scratch_dir, flags, Mode::RUSR | Mode::WUSR)?);
        scratch.set_len(size).map_err(|error| {
            let dir = scratch_dir.display();
            io::Error::new(
                error.kind(),
                format!("{dir} cannot hold a sparse file of {size} bytes: {error}; use XFS"),
            )
        })?;
        let blocks = size.div_ceil(BLOCK_BYTES);
        Ok(Overlay {
            size,
            scratch,
            covered: Bits::new(blocks),
            dirty: Bits::new(blocks),
            dirty_blocks: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            failure: Mutex::new(None),
            full: AtomicBool::new(false),
        })
    }

    /// The disk's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Takes whole blocks at `offset`.
    pub fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let blocks = self.blocks(offset, data.len() as u64)?;
        // Data before bits: whoever sees the bit finds the data.
        self.scratch.write_all_at(data, offset)?;
        self.mark(blocks, data.len() as u64);
        Ok(())
    }

    /// Takes whole blocks of zeroes at `offset`.
    pub fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        let blocks = self.blocks(offset, len)?;
        // What was never covered is a hole already.
        if self.covered.any(blocks.clone()) {
            self.punch(offset, len)?;
        }
        self.mark(blocks, len);
        Ok(())
    }

    /// The ranges written since the last call, in order, joined, clipped to the disk; from now on they are clean. A
    /// write that happens meanwhile is in this answer or in the next. What was written stays readable.
    pub fn take_dirty(&self) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        self.dirty.take(|run| {
            self.dirty_blocks.fetch_sub(run.end - run.start, Ordering::Relaxed);
            let (start, end) = (run.start * BLOCK_BYTES, (run.end * BLOCK_BYTES).min(self.size));
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => ranges.push(start..end),
            }
        });
        ranges
    }

    /// What `take_dirty` would give, in bytes, counted in blocks. A counter: cheap, exact when nobody writes, and a few blocks
    /// high after two writes of the same blocks at once.
    pub fn dirty_bytes(&self) -> u64 {
        (self.dirty_blocks.load(Ordering::Relaxed) * BLOCK_BYTES).min(self.size)
    }

    /// All bytes taken so far, repeated ones too.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    /// Whether the overlay holds all of `range`.
    pub fn covers(&self, range: Range<u64>) -> bool {
        let range = range.start..range.end.min(self.size);
        range.is_empty() || self.covered.all(range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES))
    }

    /// Reads what the overlay holds; what it does not hold reads as zeroes.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check(offset, buf.len() as u64)?;
        self.scratch.read_exact_at(buf, offset)
    }

    /// The first range at or after `offset` that may read as something else than zeroes; `None` when there is none.
    pub fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let unknown = |from: u64| Ok((from < self.size).then_some(from..self.size));
        let start = match rustix::fs::seek(&self.scratch, SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return unknown(offset),
            Err(error) => return Err(error.into()),
        };
        match rustix::fs::seek(&self.scratch, SeekFrom::Hole(start)) {
            Ok(end) => Ok(Some(start..end.min(self.size))),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => unknown(start),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads the disk as it was at a copy-before-write tap: `base(offset, buf)` reads the live image.
    ///
    /// The order matters. Before a block of the image changes, its old content is in here and marked covered. So when
    /// the base is read first and the block turns out not to be covered after that, what was read was still old.
    /// The other way round, the block could be covered and overwritten between the look and the read.
    pub fn read_over(
        &self,
        offset: u64,
        buf: &mut [u8],
        base: impl FnOnce(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let end = self.check(offset, buf.len() as u64)?;
        base(offset, buf)?;
        if buf.is_empty() {
            return Ok(());
        }
        let blocks = offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES);
        self.covered.runs(blocks, |run| {
            let from = (run.start * BLOCK_BYTES).max(offset);
            let to = (run.end * BLOCK_BYTES).min(end);
            let part = &mut buf[(from - offset) as usize..(to - offset) as usize];
            self.scratch.read_exact_at(part, from)
        })
    }

    /// Remembers that something meant for this overlay is missing. The first reason stays.
    pub fn fail(&self, reason: impl Into<String>) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert_with(|| reason.into());
    }

    /// Why the overlay is not whole, if it is not: a failed write, or a client that went away without a goodbye.
    pub fn failed(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a write failed because the scratch directory's file system or quota is full.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// As [`Overlay::fail`], for a write that failed with `error`.
    pub(super) fn fail_write(&self, error: &io::Error, reason: String) {
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            self.full.store(true, Ordering::Release);
        }
        self.fail(reason);
    }

    fn mark(&self, blocks: Range<u64>, bytes: u64) {
        self.covered.set(blocks.clone());
        self.mark_dirty(blocks);
        self.written_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn mark_dirty(&self, blocks: Range<u64>) {
        // Counted before they can be taken, so that the counter never goes below zero.
        let blocks_len = blocks.end - blocks.start;
        self.dirty_blocks.fetch_add(blocks_len, Ordering::Relaxed);
        let newly = self.dirty.set(blocks);
        self.dirty_blocks.fetch_sub(blocks_len - newly, Ordering::Relaxed);
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.scratch, flags, offset, len) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.write_zeroes(offset, len),
            Err(error) => Err(error.into()),
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        let zeroes = vec![0; len.min(1 << 20) as usize];
        let mut done = 0;
        while done < len {
            let part = (len - done).min(zeroes.len() as u64) as usize;
            self.scratch.write_all_at(&zeroes[..part], offset + done)?;
            done += part as u64;
        }
        Ok(())
    }

    /// The blocks of a write; an error unless they are whole.
    fn blocks(&self, offset: u64, len: u64) -> io::Result<Range<u64>> {
        let end = self.check(offset, len)?;
        if offset.is_multiple_of(BLOCK_BYTES) && (end.is_multiple_of(BLOCK_BYTES) || end == self.size) {
            return Ok(offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES));
        }
        let message = format!("{len} bytes at {offset} are no whole {BLOCK_BYTES}-byte blocks");
        Err(io::Error::new(io::ErrorKind::InvalidInput, message))
    }

    /// The end of a range within the disk.
    fn check(&self, offset: u64, len: u64) -> io::Result<u64> {
        offset.checked_add(len).filter(|&end| end <= self.size).ok_or_else(|| {
            let message = format!("{len} bytes at {offset} are beyond the disk's {} bytes", self.size);
            io::Error::new(io::ErrorKind::InvalidInput, message)
        })
    }
}

/// Words of one chunk: with 4 KiB blocks, a chunk stands for 64 MiB of the disk.
const CHUNK_WORDS: usize = 256;
const CHUNK_BITS: u64 = 64 * CHUNK_WORDS as u64;

/// An atomic bitmap in chunks, which are there once a part of them was set: it costs memory by what is written, not by the
/// disk's size.
#[derive(Debug)]
struct Bits(Vec<Slot>);

/// A chunk's place.
#[derive(Debug, Default)]
struct Slot {
    /// All of its bits are set, whatever the chunk says.
    full: AtomicBool,
    chunk: OnceLock<Box<Chunk>>,
}

/// Some words, with one summary bit for each, so that a few set bits are found fast.
#[derive(Debug)]
struct Chunk {
    words: [AtomicU64; CHUNK_WORDS],
    summary: [AtomicU64; CHUNK_WORDS / 64],
}

impl Chunk {
    fn new() -> Box<Chunk> {
        let words = [const { AtomicU64::new(0) }; CHUNK_WORDS];
        Box::new(Chunk { words, summary: [const { AtomicU64::new(0) }; CHUNK_WORDS / 64] })
    }

    fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.load(Ordering::Acquire).count_ones())).sum()
    }

    fn set(&self, at: usize, mask: u64) -> u64 {
        let before = self.words[at].fetch_or(mask, Ordering::AcqRel);
        // Word before summary: a taker that misses the summary bit leaves it to the next taker.
        self.summary[at / 64].fetch_or(1 << (at % 64), Ordering::AcqRel);
        u64::from((mask & !before).count_ones())
    }

    /// Clears all words, calling `each` with those that had bits.
    fn take(&self, mut each: impl FnMut(usize, u64)) {
        for (group, summary) in self.summary.iter().enumerate() {
            if summary.load(Ordering::Acquire) == 0 {
                continue;
            }
            let mut left = summary.swap(0, Ordering::AcqRel);
            while left != 0 {
                let at = group * 64 + left.trailing_zeros() as usize;
                left &= left - 1;
                each(at, self.words[at].swap(0, Ordering::AcqRel));
            }
        }
    }
}

impl Bits {
    fn new(bits: u64) -> Bits {
        Bits(std::iter::repeat_with(Slot::default).take(bits.div_ceil(CHUNK_BITS) as usize).collect())
    }

    fn word(&self, index: usize) -> u64 {
        let slot = &self.0[index / CHUNK_WORDS];
        if slot.full.load(Ordering::Acquire) {
            return u64::MAX;
        }
        slot.chunk.get().map_or(0, |chunk| chunk.words[index % CHUNK_WORDS].load(Ordering::Acquire))
    }

    /// Sets a range; how many bits were new.
    fn set(&self, range: Range<u64>) -> u64 {
        let mut newly = 0;
        let mut start = range.start;
        while start < range.end {
            let number = start / CHUNK_BITS;
            let end = range.end.min((number + 1) * CHUNK_BITS);
            let slot = &self.0[number as usize];
            if end - start == CHUNK_BITS {
                if !slot.full.swap(true, Ordering::AcqRel) {
                    newly += CHUNK_BITS - slot.chunk.get().map_or(0, |chunk| chunk.count());
                }
            } else if !slot.full.load(Ordering::Acquire) {
                let chunk = slot.chunk.get_or_init(Chunk::new);
                newly +=
                    masks(start..end).map(|(index, mask)| chunk.set(index % CHUNK_WORDS, mask)).sum::<u64>();
            }
            start = end;
        }
        newly
    }

    fn any(&self, range: Range<u64>) -> bool {
        masks(range).any(|(index, mask)| self.word(index) & mask != 0)
    }

    fn all(&self, range: Range<u64>) -> bool {
        masks(range).all(|(index, mask)| self.word(index) & mask == mask)
    }

    /// Calls `each` with the runs of set bits within a range, not joined across words.
    fn runs(&self, range: Range<u64>, mut each: impl FnMut(Range<u64>) -> io::Result<()>) -> io::Result<()> {
        for (index, mask) in masks(range) {
            word_runs(index, self.word(index) & mask).try_for_each(&mut each)?;
        }
        Ok(())
    }

    /// Clears everything, calling `each` with the runs that were set, in order, not joined across words.
    fn take(&self, mut each: impl FnMut(Range<u64>)) {
        for (number, slot) in self.0.iter().enumerate() {
            let is_full = slot.full.load(Ordering::Acquire) && slot.full.swap(false, Ordering::AcqRel);
            if is_full {
                // What the chunk knows besides is within this: whoever reads it after this call finds its data.
                each(number as u64 * CHUNK_BITS..(number as u64 + 1) * CHUNK_BITS);
            }
            let Some(chunk) = slot.chunk.get() else { continue };
            chunk.take(|at, word| {
                if !is_full {
                    word_runs(number * CHUNK_WORDS + at, word).for_each(&mut each);
                }
            });
        }
    }
}

/// The words a range touches, each with the bits in it.
fn masks(range: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    let words = if range.is_empty() { 0..0 } else { range.start / 64..(range.end - 1) / 64 + 1 };
    words.map(move |word| {
        let from = range.start.saturating_sub(word * 64).min(63);
        let to = (range.end - word * 64).min(64);
        (word as usize, (u64::MAX << from) & (u64::MAX >> (64 - to)))
    })
}

/// The runs of set bits in one word, as bit numbers of the whole map.
fn word_runs(index: usize, mut word: u64) -> impl Iterator<Item = Range<u64>> {
    std::iter::from_fn(move || {
        if word == 0 {
            return None;
        }
        let start = word.trailing_zeros();
        let len = (word >> start).trailing_ones();
        word &= if start + len == 64 { 0 } else { u64::MAX << (start + len) };
        let first = index as u64 * 64 + u64::from(start);
        Some(first..first + u64::from(len))
    })
}
