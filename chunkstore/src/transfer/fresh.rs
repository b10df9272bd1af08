//! A restore into an image that is one hole. Nothing that is there has to be read, and nothing is read again soon, so
//! it is written past the page cache: to go through that costs a copy and a flush, and on a fast disk most of the time. It never
//! reads the target, and never changes what it holds: for that, see [`restore`](super::restore).
//!
//! Chunks of older cuts, or of other makers, end anywhere in a block, but only whole blocks can be written so. The image is
//! therefore restored in [`Part`]s that end with a block, each by one thread; a chunk that lies in two of them is read for both.

use std::fs::File;
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::FileExt;

use super::chunks::Chunks;
use super::outcome::{RestoreError, Restored};
use crate::direct::Aligned;
use crate::pipeline::{RESULTS_AHEAD, all_cores, in_order};
use crate::{
    BLOCK_BYTES, FileError, Manifest, ManifestExtent, PlacedExtent, RawImage, ReadImage, StoreError, is_zero,
};

/// A part takes so many batches as they were ingested: each is a group if all of it was new, and is decoded once. The longer
/// a write, the better for the disk; each thread needs the memory.
const PART_BATCHES: u32 = 2;

/// Threads beside those that keep the cores busy.
const WAITING_THREADS: usize = 2;

/// Restores all of `manifest` into `target`, whose size it has. `direct` writes to it past the page cache.
pub(super) fn restore(
    chunks: &Chunks,
    manifest: &Manifest,
    target: &RawImage,
    direct: &File,
    watch: &dyn Fn(u64) -> ControlFlow<()>,
) -> Result<Restored, RestoreError> {
    // Some of them wait for the disk.
    let threads = all_cores().saturating_add(WAITING_THREADS);
    let mut restored = Restored::default();
    in_order(
        threads,
        RESULTS_AHEAD,
        parts(manifest),
        |part| {
            let mut written = 0;
            for run in part.extents.chunk_by(|one, next| !is_wide(one) && !is_wide(next)) {
                if run.iter().any(|placed| placed.extent.is_data()) {
                    let blocks = chunks.blocks(run, &part.range)?;
                    written += blocks
                        .write(target, direct)
                        .map_err(FileError::at("write the image to", target.path()))?;
                }
            }
            Ok((part.range.end, written))
        },
        |(done, written)| {
            restored.written_bytes += written;
            if watch(done).is_break() { Err(RestoreError::Stopped) } else { Ok(()) }
        },
    )?;
    Ok(restored)
}

/// A hole with a whole block in it, wherever it begins. All others are written, as the zeroes that they are.
fn is_wide(placed: &PlacedExtent) -> bool {
    !placed.extent.is_data() && placed.extent.len() >= 2 * BLOCK_BYTES
}

/// What one thread restores at a time.
struct Part {
    /// Begins with a block and ends with one, or with the image.
    range: Range<u64>,
    /// All that have bytes in the range, in order.
    extents: Vec<PlacedExtent>,
}

/// The whole image, in order.
fn parts(manifest: &Manifest) -> impl FnMut() -> Result<Option<Part>, RestoreError> + Send {
    let (size, mut next) = (manifest.size(), manifest.batches());
    let (mut from, mut begun) = (0, Vec::<PlacedExtent>::new());
    move || {
        let mut extents = std::mem::take(&mut begun);
        let (mut batches, mut to) = (0, from);
        while to == from || batches < PART_BATCHES {
            batches += 1;
            let Some(batch) = next.next() else {
                to = size;
                break;
            };
            to = batch.last().map_or(to, |last| last.end() - last.end() % BLOCK_BYTES);
            extents.extend(batch);
        }
        begun.extend(extents.iter().filter(|placed| placed.end() > to));
        extents.retain(|placed| placed.offset < to);
        let range = std::mem::replace(&mut from, to)..to;
        Ok((!range.is_empty()).then_some(Part { range, extents }))
    }
}

impl Chunks<'_> {
    /// What `run`, which has data, holds of `range`.
    fn blocks(&self, run: &[PlacedExtent], range: &Range<u64>) -> Result<Blocks, StoreError> {
        let within = |placed: &PlacedExtent| placed.offset.max(range.start)..placed.end().min(range.end);
        let covered =
            run.first().map_or(0, |first| within(first).start)..run.last().map_or(0, |last| within(last).end);
        let mut blocks = Blocks::at(covered);
        for placed in run {
            let Range { start, end } = within(placed);
            match placed.extent {
                ManifestExtent::Hole { .. } => {
                    blocks.memory.resize(blocks.memory.len() + (end - start) as usize);
                }
                ManifestExtent::Data { len, id } => {
                    let within = (start - placed.offset) as usize..(end - placed.offset) as usize;
                    blocks.memory.extend(&self.get(id, len)?[within]);
                }
            }
        }
        Ok(blocks)
    }
}

/// Bytes of an image that begin with a block.
struct Blocks {
    offset: u64,
    memory: Aligned,
}

impl Blocks {
    /// Room for a range of the image. Zeroes come before it, if it does not begin with a block.
    fn at(range: Range<u64>) -> Blocks {
        let before = range.start % BLOCK_BYTES;
        let mut memory = Aligned::with_capacity((before + (range.end - range.start)) as usize);
        memory.resize(before as usize);
        Blocks { offset: range.start - before, memory }
    }

    /// Writes those that are not zero, with zeroes behind the last, and gives their bytes.
    fn write(mut self, target: &RawImage, direct: &File) -> io::Result<u64> {
        let end = self.offset + self.memory.len() as u64;
        let whole = end.next_multiple_of(BLOCK_BYTES);
        // The image itself may end in a block, and what is behind it is nobody's.
        let direct_to = if whole <= target.size() { whole } else { whole - BLOCK_BYTES };
        self.memory.resize((whole - self.offset) as usize);
        let bytes = |range: &Range<u64>| {
            &self.memory.bytes()[(range.start - self.offset) as usize..(range.end - self.offset) as usize]
        };
        let mut written = 0;
        let mut write = |data: Range<u64>| {
            written += data.end - data.start;
            direct.write_all_at(bytes(&data), data.start)
        };
        let mut data = self.offset..self.offset;
        for at in (self.offset..direct_to).step_by(BLOCK_BYTES as usize) {
            let block = at..at + BLOCK_BYTES;
            if is_zero(bytes(&block)) {
                continue;
            }
            if data.end != at {
                write(data)?;
                data = at..at;
            }
            data.end = block.end;
        }
        write(data)?;
        let last = direct_to..end.max(direct_to);
        if is_zero(bytes(&last)) {
            return Ok(written);
        }
        target.write_at(last.start, bytes(&last))?;
        Ok(written + (last.end - last.start))
    }
}

#[cfg(test)]
mod tests;
