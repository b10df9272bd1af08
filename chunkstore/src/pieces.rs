//! An image as a sequence of holes and chunks. What comes out depends on the image's content only: not on how the
//! file is allocated, not on how it is read. So a base image and its clone give the same chunks.
//!
//! A run of zero blocks (4 KiB, aligned in the image) of at least [`MIN_HOLE_BYTES`] is a hole; what lies between
//! two holes is a data run, cut by FastCDC (v2020, normalisation 1) from its beginning. It never writes and keeps no
//! more than a few MiB.
//!
//! # Why so
//! `cargo xtask bench chunking`, on two versions of a Debian root file system with some 870 MiB of data each. MiB
//! that are new in the second version, when it was *made* anew from updated packages, *updated* in place, laid *out*
//! otherwise with the same files, or had 264 random 4 KiB *pages* rewritten; what the two versions of the first case
//! take together, compressed chunk by chunk at zstd 1 and 3; a manifest. And the speed of cutting and hashing, in
//! GB/s of a core's own time (`--quick --runs 7`, on a busy machine):
//!
//! | cut | made | updated | out | pages | zstd 1 | zstd 3 | manifest | GB/s |
//! |---|---|---|---|---|---|---|---|---|
//! | FastCDC 16 KiB | 390 | 397 | 53 | 9.8 | 405 | 396 | 1.44 | 1.1 |
//! | FastCDC 32 KiB | 418 | 437 | 85 | 19 | 408 | 398 | 0.74 | 1.2 |
//! | **FastCDC 64 KiB** | 435 | 476 | 128 | 30 | 410 | 397 | 0.39 | 1.2 |
//! | FastCDC 128 KiB | 457 | 523 | 188 | 52 | 412 | 396 | 0.21 | 1.0 |
//! | FastCDC 256 KiB | 481 | 579 | 268 | 93 | 416 | 394 | 0.12 | 1.2 |
//! | fixed 4 KiB | 363 | 364 | 13 | 1.0 | 424 | 418 | 7.64 | 1.8 |
//! | fixed 16 KiB | 677 | 430 | 590 | 4.1 | 518 | 508 | 1.91 | 2.6 |
//! | fixed 64 KiB | 699 | 476 | 842 | 16 | 517 | 501 | 0.48 | 2.5 |
//! | fixed 256 KiB | 709 | 575 | 871 | 64 | 493 | 471 | 0.12 | 2.6 |
//!
//! - Between images, content-defined cuts win: a file may start at any block, and fixed blocks of 16 KiB or more find
//!   little of it again. Blocks of 4 KiB would, as file systems allocate in them, but they compress worse, by more than
//!   they save (in the other layout: by nearly as much), and cost 20 times the manifest, the index and the questions to
//!   the other side.
//! - For writes in place, fixed blocks win, the smaller the better: dirt is tracked and sent in [`BLOCK_BYTES`], not in
//!   chunks. Where both versions are at hand, the difference never passes through here.
//! - What updated packages take in all hardly depends on the average, since smaller chunks share more and compress
//!   worse. What a clone has new does, and so does the number of chunks. 64 KiB is between: 16 million chunks in a TiB.

use std::io;
use std::iter::FusedIterator;
use std::ops::{ControlFlow, Range};
use std::sync::mpsc::sync_channel;

use bytes::Bytes;
use fastcdc::v2020;

use crate::{BLOCK_BYTES, ChunkId, MAX_CHUNK_BYTES, ReadImage, is_zero};

/// No chunk is shorter, but for the last one of a data run.
pub const MIN_CHUNK_BYTES: usize = 16 * 1024;

/// Chunks of real data are about this long.
pub const AVERAGE_CHUNK_BYTES: usize = 64 * 1024;

/// Zeroes become a hole from this length on; shorter runs are part of the data around them.
pub const MIN_HOLE_BYTES: u64 = 65536;

/// Bytes read at once: more is slower, since they leave the cache before they are hashed.
const WINDOW_BYTES: u64 = 1 << 20;

/// FastCDC's masks for [`AVERAGE_CHUNK_BYTES`] at normalisation level 1: one bit more below the average, one less
/// above it.
const AVERAGE_BITS: usize = AVERAGE_CHUNK_BYTES.ilog2() as usize;
const MASK_SMALL: u64 = v2020::MASKS[AVERAGE_BITS + 1];
const MASK_LARGE: u64 = v2020::MASKS[AVERAGE_BITS - 1];

/// One piece of an image; pieces follow each other without a gap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Where it starts in the image.
    pub offset: u64,
    /// Its length in bytes, never 0.
    pub len: u64,
    /// What it holds.
    pub data: PieceData,
}

/// What a piece holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PieceData {
    /// Zeroes.
    Hole,
    /// Data, at most [`MAX_CHUNK_BYTES`](crate::MAX_CHUNK_BYTES) of it.
    Chunk {
        /// Its name.
        id: ChunkId,
        /// Its bytes: a slice of the window (up to 1.4 MiB) they were read in, which stays in memory as long as
        /// one slice of it does. Copy what is kept for long.
        bytes: Bytes,
    },
}

/// All pieces of an image, in order, read and hashed on the caller's thread.
pub fn pieces(image: &dyn ReadImage) -> Pieces<'_> {
    pieces_in(image, 0..image.size())
}

/// The pieces of one range of an image (clipped to it), as if the range were all of it.
pub fn pieces_in(image: &dyn ReadImage, range: Range<u64>) -> Pieces<'_> {
    Pieces { cuts: Cuts::new(image, range) }
}

/// The iterator of [`pieces`]. It ends after the first error.
pub struct Pieces<'a> {
    cuts: Cuts<'a>,
}

impl Iterator for Pieces<'_> {
    type Item = io::Result<Piece>;

    fn next(&mut self) -> Option<io::Result<Piece>> {
        self.cuts.next().map(|cut| cut.map(Cut::name))
    }
}

impl FusedIterator for Pieces<'_> {}

/// Calls `take` with every piece in order, until it breaks. With two `threads` or more, reading and cutting run on a
/// second thread ahead of `take`, by at most `window_bytes` of chunks and one read; hashing stays on the caller's.
pub fn scan(
    image: &dyn ReadImage,
    threads: usize,
    window_bytes: usize,
    mut take: impl FnMut(Piece) -> ControlFlow<()>,
) -> io::Result<()> {
    if threads < 2 {
        for piece in pieces(image) {
            if take(piece?).is_break() {
                break;
            }
        }
        return Ok(());
    }
    // Batches, since waking a thread for every chunk costs more than the hash of it.
    let batch_bytes = (window_bytes / 4).clamp(1, 1 << 20);
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel::<io::Result<Vec<Cut>>>(2);
        scope.spawn(move || {
            let mut cuts = Cuts::new(image, 0..image.size());
            while let Some(batch) = next_batch(&mut cuts, batch_bytes) {
                // The receiver is gone when `take` has had enough.
                if sender.send(batch).is_err() {
                    break;
                }
            }
        });
        for batch in receiver {
            for cut in batch? {
                if take(cut.name()).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    })
}

fn next_batch(cuts: &mut Cuts<'_>, batch_bytes: usize) -> Option<io::Result<Vec<Cut>>> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while bytes < batch_bytes && batch.len() < 1024 {
        match cuts.next() {
            Some(Ok(cut)) => {
                bytes += cut.data.as_ref().map_or(0, Bytes::len);
                batch.push(cut);
            }
            // The error comes again as the next batch's first item.
            Some(Err(error)) if batch.is_empty() => return Some(Err(error)),
            Some(Err(error)) => {
                cuts.failed = Some(error);
                break;
            }
            None => break,
        }
    }
    (!batch.is_empty()).then_some(Ok(batch))
}

/// A piece that is not hashed yet; no data is a hole.
struct Cut {
    offset: u64,
    len: u64,
    data: Option<Bytes>,
}

impl Cut {
    fn name(self) -> Piece {
        let data = match self.data {
            Some(bytes) => PieceData::Chunk { id: ChunkId::of(&bytes), bytes },
            None => PieceData::Hole,
        };
        Piece { offset: self.offset, len: self.len, data }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Run {
    /// In data; its end when that is known.
    Data { end: Option<u64> },
    /// In zeroes that are a hole.
    Hole,
}

/// The cutter. `at <= scanned`; in data, the window holds everything from `at` to the data's end or `scanned`.
struct Cuts<'a> {
    image: &'a dyn ReadImage,
    end: u64,
    /// Next byte to come out.
    at: u64,
    run: Run,
    /// Up to here blocks are known to be zero or not.
    scanned: u64,
    /// Start of the zero blocks that end at `scanned`.
    zeroes_from: Option<u64>,
    window: Bytes,
    window_at: u64,
    /// The data that the image told of last. Asking for every window anew would take some file systems through the
    /// whole file each time.
    data: Range<u64>,
    /// An error to come next.
    failed: Option<io::Error>,
    done: bool,
}

impl<'a> Cuts<'a> {
    fn new(image: &'a dyn ReadImage, range: Range<u64>) -> Cuts<'a> {
        let end = range.end.min(image.size());
        let at = range.start.min(end);
        Cuts {
            image,
            end,
            at,
            run: Run::Data { end: None },
            scanned: at,
            zeroes_from: None,
            window: Bytes::new(),
            window_at: at,
            data: at..at,
            failed: None,
            done: false,
        }
    }

    fn step(&mut self) -> io::Result<Option<Cut>> {
        while self.at < self.end {
            let cut = match self.run {
                Run::Hole => self.hole()?,
                Run::Data { .. } => self.chunk()?,
            };
            if cut.is_some() {
                return Ok(cut);
            }
        }
        Ok(None)
    }

    /// The rest of the hole that `at` is in.
    fn hole(&mut self) -> io::Result<Option<Cut>> {
        while self.scanned < self.end {
            if self.scanned >= self.window_end() {
                self.fill()?;
            } else if is_zero(self.block()) {
                self.scanned = self.block_end();
            } else {
                break;
            }
        }
        let cut = Cut { offset: self.at, len: self.scanned - self.at, data: None };
        self.at = self.scanned;
        self.run = Run::Data { end: None };
        self.zeroes_from = None;
        Ok(Some(cut))
    }

    /// The next chunk of the data run that `at` is in; nothing at the end of the run.
    fn chunk(&mut self) -> io::Result<Option<Cut>> {
        // A cut may depend on all of the longest chunk: look that far, or to the end of the run, before cutting.
        let limit = loop {
            if let Run::Data { end: Some(end) } = self.run {
                break end;
            }
            let solid = self.zeroes_from.unwrap_or(self.scanned);
            if solid - self.at >= MAX_CHUNK_BYTES as u64 {
                break solid;
            }
            self.look_on()?;
        };
        if limit == self.at {
            self.run = Run::Hole;
            return Ok(None);
        }
        let start = (self.at - self.window_at) as usize;
        let reach = (limit - self.at).min(MAX_CHUNK_BYTES as u64) as usize;
        let len = cut_length(&self.window[start..start + reach]);
        let data = self.window.slice(start..start + len);
        let cut = Cut { offset: self.at, len: len as u64, data: Some(data) };
        self.at += len as u64;
        Ok(Some(cut))
    }

    /// Looks at one more block of a data run, reading on when needed.
    fn look_on(&mut self) -> io::Result<()> {
        if self.scanned == self.end {
            self.run = Run::Data { end: Some(self.end) };
        } else if self.scanned >= self.window_end() {
            self.fill()?;
        } else {
            let zero = is_zero(self.block());
            let block_end = self.block_end();
            if zero {
                self.zeroes_to(block_end);
            } else {
                self.zeroes_from = None;
                self.scanned = block_end;
            }
        }
        Ok(())
    }

    /// Zeroes follow up to `end`: the run's end, when they are many enough.
    fn zeroes_to(&mut self, end: u64) {
        let from = *self.zeroes_from.get_or_insert(self.scanned);
        self.scanned = end;
        if end - from >= MIN_HOLE_BYTES {
            self.run = Run::Data { end: Some(from) };
        }
    }

    /// Reads on at `scanned`, which is the window's end or behind it; or skips a hole of the file without reading.
    fn fill(&mut self) -> io::Result<()> {
        let data = self.data_from(self.scanned)?;
        let gap = data.start - self.scanned;
        match self.run {
            Run::Hole if gap > 0 => {
                self.scanned = data.start;
                return Ok(());
            }
            Run::Data { .. } if gap >= MIN_HOLE_BYTES => {
                self.zeroes_to(data.start);
                return Ok(());
            }
            _ => {}
        }
        let read_end = self.read_end(data.end)?;
        let from = if self.run == Run::Hole { self.scanned } else { self.at };
        let kept = &self.window[self.window.len() - (self.scanned - from) as usize..];
        let mut window = vec![0; (read_end - from) as usize];
        window[..kept.len()].copy_from_slice(kept);
        self.image.read_at(self.scanned, &mut window[kept.len()..])?;
        self.window = window.into();
        self.window_at = from;
        Ok(())
    }

    /// Where to stop reading: at the end of the data, or across short holes as far as a window reaches.
    fn read_end(&mut self, data_end: u64) -> io::Result<u64> {
        let reach = self.scanned - self.scanned % BLOCK_BYTES + WINDOW_BYTES;
        let limit = self.end.min(reach);
        let mut read_end = data_end;
        while read_end < limit {
            let next = self.data_from(read_end)?;
            if next.start - read_end >= MIN_HOLE_BYTES {
                break;
            }
            read_end = next.end;
        }
        Ok(read_end.min(limit))
    }

    /// The next data at or after `offset`, in whole blocks; empty, at the range's end, when there is none.
    fn data_from(&mut self, offset: u64) -> io::Result<Range<u64>> {
        if !self.data.contains(&offset) {
            self.data = self.image.next_data(offset)?.map_or(self.end..self.end, |data| {
                let start = (data.start - data.start % BLOCK_BYTES).clamp(offset, self.end);
                let least = (start - start % BLOCK_BYTES).saturating_add(BLOCK_BYTES).min(self.end);
                let end = data.end.checked_next_multiple_of(BLOCK_BYTES).unwrap_or(self.end);
                start..end.clamp(least, self.end)
            });
        }
        Ok(self.data.start.max(offset)..self.data.end.max(offset))
    }

    fn window_end(&self) -> u64 {
        self.window_at + self.window.len() as u64
    }

    fn block_end(&self) -> u64 {
        (self.scanned - self.scanned % BLOCK_BYTES + BLOCK_BYTES).min(self.end)
    }

    /// The block at `scanned`. Windows end at block boundaries or the range's end, so it is all there.
    fn block(&self) -> &[u8] {
        let start = (self.scanned - self.window_at) as usize;
        let end = (self.block_end() - self.window_at) as usize;
        &self.window[start..end]
    }
}

impl Iterator for Cuts<'_> {
    type Item = io::Result<Cut>;

    fn next(&mut self) -> Option<io::Result<Cut>> {
        if let Some(error) = self.failed.take() {
            return Some(Err(error));
        }
        if self.done {
            return None;
        }
        let cut = self.step().transpose();
        self.done = !matches!(cut, Some(Ok(_)));
        cut
    }
}

/// Length of the first chunk of `data`, which reaches to the end of its run or as far as a chunk can.
fn cut_length(data: &[u8]) -> usize {
    let (_, len) = v2020::cut(
        data,
        MIN_CHUNK_BYTES,
        AVERAGE_CHUNK_BYTES,
        MAX_CHUNK_BYTES,
        MASK_SMALL,
        MASK_LARGE,
        MASK_SMALL << 1,
        MASK_LARGE << 1,
    );
    len
}

#[cfg(test)]
mod tests;
