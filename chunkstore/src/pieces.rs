//! An image as a sequence of holes and chunks. What comes out depends on the image's content only: not on how the
//! file is allocated, not on how it is read. So a base image and its clone give the same chunks.
//!
//! A run of zero blocks (4 KiB, aligned in the image) of at least [`MIN_HOLE_BYTES`](crate::MIN_HOLE_BYTES) is a hole; what lies between
//! two holes is a data run, cut from its beginning by FastCDC's rules (v2020, normalisation 1), but only where two blocks meet;
//! the whole of it is in FORMAT.md. It never writes and keeps no more than a few MiB for each thread.
//!
//! # Why so
//! `cargo xtask bench chunking`, on two versions of a Debian root file system with some 870 MiB of data each. MiB
//! that are new in the second version, when it was *made* anew from updated packages, *updated* in place, laid *out*
//! otherwise with the same files, or had 264 random 4 KiB *pages* rewritten; what the two versions of the first case
//! take together, compressed chunk by chunk at zstd 1 and 3; a manifest. And the speed of cutting and hashing, in
//! GB/s of a core's own time (an Intel Xeon at 2.1 GHz with AVX-512; two runs, 10 % apart at most):
//!
//! | cut | made | updated | out | pages | zstd 1 | zstd 3 | manifest | GB/s |
//! |---|---|---|---|---|---|---|---|---|
//! | FastCDC 16 KiB | 391 | 399 | 53 | 9.3 | 405 | 397 | 1.45 | 0.8 |
//! | FastCDC 32 KiB | 420 | 439 | 84 | 17 | 409 | 398 | 0.74 | 0.8 |
//! | FastCDC 64 KiB | 437 | 478 | 128 | 28 | 411 | 398 | 0.39 | 0.9 |
//! | FastCDC 128 KiB | 460 | 526 | 186 | 52 | 413 | 396 | 0.21 | 0.8 |
//! | FastCDC 256 KiB | 488 | 583 | 266 | 92 | 418 | 396 | 0.12 | 0.9 |
//! | where blocks meet, 32 KiB | 426 | 440 | 63 | 13 | 416 | 406 | 0.91 | 2.5 |
//! | **where blocks meet, 64 KiB** | 441 | 473 | 103 | 24 | 416 | 403 | 0.45 | 2.8 |
//! | where blocks meet, 128 KiB | 455 | 517 | 164 | 44 | 413 | 397 | 0.23 | 2.9 |
//! | fixed 4 KiB | 364 | 364 | 13 | 1.0 | 425 | 418 | 7.64 | 2.1 |
//! | fixed 16 KiB | 619 | 435 | 590 | 4.1 | 497 | 488 | 1.91 | 2.6 |
//! | fixed 64 KiB | 679 | 477 | 843 | 16 | 508 | 493 | 0.48 | 3.0 |
//! | fixed 256 KiB | 689 | 577 | 871 | 63 | 484 | 463 | 0.12 | 2.8 |
//!
//! - Between images, content-defined cuts win: a file may start at any block, and fixed blocks of 16 KiB or more find
//!   little of it again. Blocks of 4 KiB would, as file systems allocate in them, but they compress worse, by more than
//!   they save (in the other layout: by nearly as much), and cost 20 times the manifest, the index and the questions to
//!   the other side.
//! - What file systems move, they move by blocks. So cuts inside a block find hardly more than those between blocks, which cost
//!   next to nothing to find: they ask the bytes that follow, and are glad of the end of a file. (FastCDC in four lanes at once,
//!   as this crate had it, came to 1.1 GB/s here.) They do find a little more in files that hold files unaligned, such as
//!   archives: 1 % of what is stored. An image whose partitions begin at an odd multiple of 512 bytes, as they did before 2010,
//!   shares with others that do, and with no one else.
//! - For writes in place, fixed blocks win, the smaller the better: dirt is tracked and sent in [`BLOCK_BYTES`](crate::BLOCK_BYTES),
//!   not in chunks. Where both versions are at hand, the difference never passes through here.
//! - What updated packages take in all hardly depends on the average, since smaller chunks share more and compress
//!   worse. What a clone has new does, and so does the number of chunks. 64 KiB is between: 16 to 18 million chunks in a TiB.

use std::io;
use std::iter::FusedIterator;
use std::num::NonZeroUsize;
use std::ops::{ControlFlow, Range};

use bytes::Bytes;

use crate::cuts::{BATCH_BYTES, Cut, CutData, Cuts};
use crate::pipeline::in_order;
use crate::{ChunkId, ReadImage};

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
        /// Its bytes: a slice of the window (up to 2.7 MiB) they were read in, which stays in memory as long as
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
        self.cuts.forget_reads();
        self.cuts.next().map(|cut| cut.map(Piece::of))
    }
}

impl FusedIterator for Pieces<'_> {}

/// Calls `take` with every piece in order, on the caller's thread, until it breaks. `threads` threads read, cut and
/// hash ahead of it, by at most `window_bytes` of chunks, or [`GROUP_BYTES`](crate::GROUP_BYTES) for each thread if that is more.
pub fn scan(
    image: &dyn ReadImage,
    threads: usize,
    window_bytes: usize,
    mut take: impl FnMut(Piece) -> ControlFlow<()>,
) -> io::Result<()> {
    let mut cuts = Cuts::new(image, 0..image.size());
    let ended = in_order(
        NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN),
        window_bytes / BATCH_BYTES as usize,
        || cuts.batch().map_err(Some),
        |batch| Ok(batch.cuts.into_iter().map(Piece::of).collect::<Vec<_>>()),
        |pieces| match pieces.into_iter().try_for_each(&mut take) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(None),
        },
    );
    match ended {
        Err(Some(error)) => Err(error),
        _ => Ok(()),
    }
}

impl Piece {
    /// Names what was cut.
    fn of(cut: Cut) -> Piece {
        let data = match cut.data {
            CutData::Hole => PieceData::Hole,
            CutData::Chunk(bytes) => PieceData::Chunk { id: ChunkId::of(&bytes), bytes },
        };
        Piece { offset: cut.offset, len: cut.len, data }
    }
}

#[cfg(test)]
mod tests;
