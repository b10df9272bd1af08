//! An image as a sequence of holes and chunks. What comes out depends on the image's content only: not on how the
//! file is allocated, not on how it is read. So a base image and its clone give the same chunks.
//!
//! A run of zero blocks (4 KiB, aligned in the image) of at least [`MIN_HOLE_BYTES`] is a hole; what lies between
//! two holes is a data run, cut by FastCDC (v2020, normalisation 1) from its beginning. It never writes and keeps no
//! more than a few MiB for each thread.

use std::io;
use std::iter::FusedIterator;
use std::num::NonZeroUsize;
use std::ops::{ControlFlow, Range};

use bytes::Bytes;

use crate::cuts::{BATCH_BYTES, Cut, Cuts};
use crate::pipeline::in_order;
use crate::{ChunkId, ReadImage};

/// No chunk is shorter, but for the last one of a data run.
pub const MIN_CHUNK_BYTES: usize = 16 * 1024;

/// Chunks of real data are about this long.
pub const AVERAGE_CHUNK_BYTES: usize = 64 * 1024;

/// Zeroes become a hole from this length on; shorter runs are part of the data around them.
pub const MIN_HOLE_BYTES: u64 = 65536;

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
        self.cuts.forget_reads();
        self.cuts.next().map(|cut| cut.map(Piece::of))
    }
}

impl FusedIterator for Pieces<'_> {}

/// Calls `take` with every piece in order, on the caller's thread, until it breaks. `threads` threads read, cut and
/// hash ahead of it, by at most `window_bytes` of chunks, or one MiB for each thread if that is more.
pub fn scan(
    image: &dyn ReadImage,
    threads: usize,
    window_bytes: usize,
    mut take: impl FnMut(Piece) -> ControlFlow<()>,
) -> io::Result<()> {
    let mut cuts = Cuts::new(image, 0..image.size());
    let ended = in_order(
        NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN),
        window_bytes / BATCH_BYTES,
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
            Some(bytes) => PieceData::Chunk { id: ChunkId::of(&bytes), bytes },
            None => PieceData::Hole,
        };
        Piece { offset: cut.offset, len: cut.len, data }
    }
}

#[cfg(test)]
mod tests;
