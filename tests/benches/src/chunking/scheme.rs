//! Ways to cut an image, and the chunks that come out. Zeroes never become chunks. It never writes.

use std::io;
use std::ops::Range;

use chunkstore::{PieceData, ReadImage, is_zero};
use fastcdc::v2020;

/// Bytes read at once.
const WINDOW_BYTES: usize = 4 << 20;

/// A way to cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// FastCDC 2020 at normalisation 1; no chunk is shorter than a quarter of the average or longer than four times of it.
    Content { average: usize },
    /// The same rules, but asked only where two blocks of 4 KiB meet, and of what follows there, as the store does it.
    Meeting { average: usize },
    /// Blocks of one length, aligned in the image.
    Fixed { len: usize },
}

const KIB: usize = 1024;

/// Bytes that are looked at before and behind a place where two blocks meet.
const SIGHT_BYTES: usize = 64;

/// Those that are compared.
pub(crate) const ALL: [Scheme; 12] = [
    Scheme::Content { average: 16 * KIB },
    Scheme::Content { average: 32 * KIB },
    Scheme::Content { average: 64 * KIB },
    Scheme::Content { average: 128 * KIB },
    Scheme::Content { average: 256 * KIB },
    Scheme::Meeting { average: 32 * KIB },
    Scheme::Meeting { average: 64 * KIB },
    Scheme::Meeting { average: 128 * KIB },
    Scheme::Fixed { len: 4 * KIB },
    Scheme::Fixed { len: 16 * KIB },
    Scheme::Fixed { len: 64 * KIB },
    Scheme::Fixed { len: 256 * KIB },
];

impl Scheme {
    /// Its name in tables and figures.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Content { average } => format!("FastCDC {} KiB", average / KIB),
            Self::Meeting { average } => format!("blocks meet, {} KiB", average / KIB),
            Self::Fixed { len } => format!("fixed {} KiB", len / KIB),
        }
    }

    fn longest(self) -> usize {
        match self {
            Self::Content { average } | Self::Meeting { average } => average * 4,
            Self::Fixed { len } => len,
        }
    }

    /// The length of the first chunk of `data`, which starts at `offset` in the image and reaches to the end of its run
    /// or as far as a chunk can.
    fn cut(self, offset: u64, data: &[u8]) -> usize {
        match self {
            Self::Content { average } => {
                let bits = average.ilog2() as usize;
                let (small, large) = (v2020::MASKS[bits + 1], v2020::MASKS[bits - 1]);
                v2020::cut(data, average / 4, average, average * 4, small, large, small << 1, large << 1).1
            }
            Self::Meeting { average } => cut_where_blocks_meet(average, offset, data),
            Self::Fixed { len } => data.len().min(len - (offset % len as u64) as usize),
        }
    }

    /// Gives the bytes of every chunk of the image's data `runs` to `take`, in order.
    ///
    /// # Errors
    /// When the image cannot be read.
    pub(crate) fn chunks(
        self,
        image: &dyn ReadImage,
        runs: &[Range<u64>],
        mut take: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let longest = self.longest() as u64;
        let mut window = vec![0; WINDOW_BYTES];
        for run in runs {
            let mut at = run.start;
            while at < run.end {
                let len = (run.end - at).min(WINDOW_BYTES as u64) as usize;
                image.read_at(at, &mut window[..len])?;
                let end = at + len as u64;
                let from = at;
                while at < end && (end == run.end || end - at >= longest) {
                    let rest = &window[(at - from) as usize..len];
                    let chunk = &rest[..self.cut(at, &rest[..rest.len().min(longest as usize)])];
                    if !is_zero(chunk) {
                        take(chunk);
                    }
                    at += chunk.len() as u64;
                }
            }
        }
        Ok(())
    }
}

fn cut_where_blocks_meet(average: usize, offset: u64, data: &[u8]) -> usize {
    let first = ((offset + average as u64 / 4).next_multiple_of(4096) - offset) as usize;
    let bits = (average / 4096).ilog2();
    let (gear, _) = v2020::get_gear_with_seed(0);
    let found = (first..data.len()).step_by(4096).find(|place| {
        data.get(*place..place + SIGHT_BYTES).is_some_and(|behind| {
            let add = |hash: u64, byte: &u8| (hash << 1).wrapping_add(gear[usize::from(*byte)]);
            let zeroes = behind.iter().fold(0, add).leading_zeros();
            if *place < average {
                zeroes > bits
            } else {
                zeroes + 1 >= bits || is_zero(&data[place - SIGHT_BYTES..*place])
            }
        })
    });
    found.unwrap_or(data.len()).min(average * 4)
}

/// What lies between the holes of an image.
///
/// # Errors
/// When the image cannot be read.
pub(crate) fn data_runs(image: &dyn ReadImage) -> io::Result<Vec<Range<u64>>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for piece in chunkstore::pieces(image) {
        let piece = piece?;
        if piece.data == PieceData::Hole {
            continue;
        }
        match runs.last_mut() {
            Some(run) if run.end == piece.offset => run.end += piece.len,
            _ => runs.push(piece.offset..piece.offset + piece.len),
        }
    }
    Ok(runs)
}

#[cfg(test)]
mod tests;
