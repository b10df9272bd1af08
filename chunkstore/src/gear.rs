//! Where FastCDC (v2020, normalisation 1, seed 0) cuts. The cuts are those of crate `fastcdc`, whose tables these are;
//! only the way to them is shorter. It looks at bytes and keeps none.
//!
//! FastCDC's hash over the last bytes is one long chain of additions, each waiting for the one before: the processor
//! idles. But what has been shifted out of the 64 bits is forgotten, so the hash at any place follows from the
//! [`REACH`] bytes before it alone, and a stretch can be searched in [`LANES`] places at once.

use std::borrow::Cow;
use std::sync::LazyLock;

use fastcdc::v2020;

use crate::{AVERAGE_CHUNK_BYTES, MAX_CHUNK_BYTES, MIN_CHUNK_BYTES};

/// FastCDC's masks for [`AVERAGE_CHUNK_BYTES`] at normalisation level 1: one bit more below the average, one less
/// above it.
const AVERAGE_BITS: usize = AVERAGE_CHUNK_BYTES.ilog2() as usize;
const MASK_SMALL: u64 = v2020::MASKS[AVERAGE_BITS + 1];
const MASK_LARGE: u64 = v2020::MASKS[AVERAGE_BITS - 1];

/// Bytes that the masked bits of a hash depend on: what is older has been shifted out of them.
const REACH: usize = 64 - (MASK_SMALL | MASK_LARGE).leading_zeros() as usize;

/// Places searched at once.
const LANES: usize = 4;

/// How far each goes before it is asked who was first: far where a cut is rare.
const SMALL_LANE_PAIRS: usize = 1536;
const LARGE_LANE_PAIRS: usize = 512;

/// What a byte adds to the hash, and twice that, which lets two bytes be taken in one step.
struct Gear {
    once: [u64; 256],
    twice: [u64; 256],
}

static GEAR: LazyLock<Gear> = LazyLock::new(|| {
    let (once, twice) = v2020::get_gear_with_seed(0);
    let table = |values: Cow<'_, [u64]>| values.as_ref().try_into().expect("one value for each byte");
    Gear { once: table(once), twice: table(twice) }
});

/// Length of the first chunk of `data`, if what follows cannot change it; `None` when there is no cut in `data`. Of
/// the lengths below `searched` it is known that there is none.
pub(crate) fn cut(data: &[u8], searched: usize) -> Option<usize> {
    // FastCDC looks at pairs of bytes: an odd one at the end is not looked at.
    let end = data.len().min(MAX_CHUNK_BYTES) & !1;
    let search = Search { gear: &GEAR, data };
    let from = searched.max(MIN_CHUNK_BYTES) & !1;
    search
        .first::<SMALL_LANE_PAIRS>(from, end.min(AVERAGE_CHUNK_BYTES), MASK_SMALL)
        .or_else(|| search.first::<LARGE_LANE_PAIRS>(from.max(AVERAGE_CHUNK_BYTES), end, MASK_LARGE))
        .or((data.len() >= MAX_CHUNK_BYTES).then_some(MAX_CHUNK_BYTES))
}

type Pair = [u8; 2];

struct Search<'a> {
    gear: &'a Gear,
    data: &'a [u8],
}

impl Search<'_> {
    /// The first place in `from..to`, both even, where the hash fits the mask.
    fn first<const LANE_PAIRS: usize>(&self, from: usize, to: usize, mask: u64) -> Option<usize> {
        let stretch_bytes = LANES * LANE_PAIRS * 2;
        let mut at = from;
        while at + stretch_bytes <= to {
            if let Some(found) = self.first_in_stretch::<LANE_PAIRS>(at, mask) {
                return Some(found);
            }
            at += stretch_bytes;
        }
        self.first_in_line(at, to, mask)
    }

    fn first_in_stretch<const LANE_PAIRS: usize>(&self, at: usize, mask: u64) -> Option<usize> {
        let start_of = |lane: usize| at + lane * LANE_PAIRS * 2;
        let index = self.first_in_lanes(
            std::array::from_fn(|lane| self.hash_before(start_of(lane))),
            std::array::from_fn(|lane| self.data[start_of(lane)..start_of(lane + 1)].as_chunks().0),
            mask,
        )?;
        // One lane has got there, but those before it are not through.
        (0..LANES).find_map(|lane| self.first_in_line(start_of(lane) + 2 * index, start_of(lane + 1), mask))
    }

    /// The first pair that fits in any lane. Hashes by name stay in registers; an array of them would not.
    fn first_in_lanes(&self, hashes: [u64; LANES], lanes: [&[Pair]; LANES], mask: u64) -> Option<usize> {
        let [mut a, mut b, mut c, mut d] = hashes;
        let mut pairs = lanes[0].iter().zip(lanes[1]).zip(lanes[2]).zip(lanes[3]);
        pairs.position(|(((in_a, in_b), in_c), in_d)| {
            self.step(&mut a, in_a, mask).is_some()
                || self.step(&mut b, in_b, mask).is_some()
                || self.step(&mut c, in_c, mask).is_some()
                || self.step(&mut d, in_d, mask).is_some()
        })
    }

    fn first_in_line(&self, from: usize, to: usize, mask: u64) -> Option<usize> {
        let mut hash = self.hash_before(from);
        let pairs = self.data.get(from..to)?.as_chunks().0;
        pairs.iter().enumerate().find_map(|(index, pair)| {
            let byte = self.step(&mut hash, pair, mask)?;
            Some(from + 2 * index + byte)
        })
    }

    /// Takes two bytes into the hash; says which of them made it fit.
    #[inline(always)]
    fn step(&self, hash: &mut u64, pair: &Pair, mask: u64) -> Option<usize> {
        let twice = (*hash << 2).wrapping_add(self.gear.twice[usize::from(pair[0])]);
        if twice & (mask << 1) == 0 {
            return Some(0);
        }
        *hash = twice.wrapping_add(self.gear.once[usize::from(pair[1])]);
        (*hash & mask == 0).then_some(1)
    }

    /// The hash before the byte at `at`. Bytes that no chunk can end in do not count.
    fn hash_before(&self, at: usize) -> u64 {
        let from = at.saturating_sub(REACH).max(MIN_CHUNK_BYTES);
        let bytes = self.data.get(from..at).unwrap_or_default();
        bytes.iter().fold(0, |hash: u64, byte| (hash << 1).wrapping_add(self.gear.once[usize::from(*byte)]))
    }
}

#[cfg(test)]
mod tests;
