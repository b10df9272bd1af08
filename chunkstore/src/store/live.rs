//! Which chunks a collection must keep: a Bloom filter that many threads add to while one sweeps. It may take a dead
//! chunk for a live one, about one in two thousand, and never the other way round.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::ChunkId;

/// Bits for each chunk of the store: with eight probes one dead chunk in 1,700 is kept until the next collection.
const BITS_PER_CHUNK: u64 = 16;

/// A chunk's name has eight words of 32 bits, which are as good as eight hashes, and reach this many bits.
const MAX_BITS: u64 = 1 << 32;

/// The set: 2 to 4 bytes for each chunk it is made for, 512 MiB at most.
pub(super) struct LiveSet {
    words: Vec<AtomicU64>,
}

impl LiveSet {
    /// For up to `chunks` chunks; with more it still never loses one.
    pub(super) fn for_chunks(chunks: u64) -> LiveSet {
        let bits = chunks.saturating_mul(BITS_PER_CHUNK).clamp(1 << 16, MAX_BITS).next_power_of_two();
        LiveSet { words: (0..bits / 64).map(|_| AtomicU64::new(0)).collect() }
    }

    pub(super) fn add(&self, id: &ChunkId) {
        for (word, bit) in self.places(id) {
            self.words[word].fetch_or(bit, Ordering::Relaxed);
        }
    }

    pub(super) fn contains(&self, id: &ChunkId) -> bool {
        self.places(id).all(|(word, bit)| self.words[word].load(Ordering::Relaxed) & bit != 0)
    }

    fn places(&self, id: &ChunkId) -> impl Iterator<Item = (usize, u64)> {
        let words = self.words.len();
        let (probes, _) = id.as_bytes().as_chunks::<4>();
        let probes: [[u8; 4]; 8] = std::array::from_fn(|index| probes[index]);
        probes.into_iter().map(move |probe| {
            let bit = u32::from_le_bytes(probe) as usize;
            (bit / 64 % words, 1 << (bit % 64))
        })
    }
}

#[cfg(test)]
mod tests;
