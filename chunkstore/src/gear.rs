//! Where a data run is cut: by FastCDC's rules (v2020, normalisation 1: a mask of one bit more than the average asks for below
//! it, of one less above it), but asked only where two blocks of the image meet. It looks at bytes and keeps none.
//!
//! File systems put what a file holds at the beginning of a block. So what was moved was moved by blocks, and no cut inside one
//! would find more of it; and to ask at one place of 4096 costs next to nothing. See [`pieces`](crate::pieces()) for figures.

use std::borrow::Cow;
use std::sync::LazyLock;

use fastcdc::v2020;

use crate::{AVERAGE_CHUNK_BYTES, BLOCK_BYTES, MAX_CHUNK_BYTES, MIN_CHUNK_BYTES, is_zero};

/// Bytes of the block behind a place that its hash is over, and of the block before it that may be the end of a file. What is
/// farther away has been shifted out of the 64 bits of the hash.
pub(crate) const SIGHT_BYTES: usize = 64;

const AVERAGE_BITS: u32 = (AVERAGE_CHUNK_BYTES as u64 / BLOCK_BYTES).ilog2();

/// What each byte adds to a hash.
static GEAR: LazyLock<[u64; 256]> = LazyLock::new(|| {
    let table: Cow<'_, [u64]> = v2020::get_gear_with_seed(0).0;
    table.as_ref().try_into().expect("one value for each byte")
});

/// Length of the first chunk of `data`, which lies at `offset` in the image, if what follows cannot change it; `None` when no cut
/// is seen in `data`: then there is none [`SIGHT_BYTES`] before its end or earlier. Of the lengths below `searched` it is known
/// that there is none.
pub(crate) fn cut(offset: u64, data: &[u8], searched: usize) -> Option<usize> {
    let from = offset + searched.max(MIN_CHUNK_BYTES) as u64;
    let first = (from.next_multiple_of(BLOCK_BYTES) - offset) as usize;
    let end = data.len().min(MAX_CHUNK_BYTES);
    (first..end)
        .step_by(BLOCK_BYTES as usize)
        .find(|place| {
            data.get(*place..place + SIGHT_BYTES).is_some_and(|behind| match *place < AVERAGE_CHUNK_BYTES {
                true => has_zero_bits(behind, AVERAGE_BITS + 1),
                // A file seldom fills its last block, and one that is found again is found from its beginning.
                false => {
                    has_zero_bits(behind, AVERAGE_BITS - 1) || is_zero(&data[place - SIGHT_BYTES..*place])
                }
            })
        })
        .or((data.len() >= MAX_CHUNK_BYTES).then_some(MAX_CHUNK_BYTES))
}

/// So many of the first bits of the hash of these bytes, which are so many ones in a mask.
fn has_zero_bits(bytes: &[u8], bits: u32) -> bool {
    let hash = bytes.iter().fold(0, |hash: u64, byte| (hash << 1).wrapping_add(GEAR[usize::from(*byte)]));
    hash.leading_zeros() >= bits
}

#[cfg(test)]
pub(crate) mod tests;
