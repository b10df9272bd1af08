//! The hashes at one height of a tree: of those under one node all or none are in memory, none when all of them are zero.
//! It never hashes.

use std::collections::BTreeMap;
use std::ops::Range;

use super::node::{FANOUT, Hash, ZERO};

/// So many hashes, all zero at first.
#[derive(Debug, Clone)]
pub(super) struct Level {
    len: u64,
    /// By the number of the node above them.
    blocks: BTreeMap<u64, Box<[Hash; FANOUT]>>,
}

impl Level {
    pub(super) fn new(len: u64) -> Level {
        Level { len, blocks: BTreeMap::new() }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn get(&self, at: u64) -> Hash {
        let (block, index) = place(at);
        self.blocks.get(&block).map_or(ZERO, |block| block[index])
    }

    /// `false`: it was that already.
    pub(super) fn set(&mut self, at: u64, hash: Hash) -> bool {
        let (number, index) = place(at);
        if hash == ZERO {
            let Some(block) = self.blocks.get_mut(&number) else { return false };
            let changed = block[index] != ZERO;
            block[index] = ZERO;
            if changed && block.iter().all(|hash| *hash == ZERO) {
                self.blocks.remove(&number);
            }
            return changed;
        }
        let block = self.blocks.entry(number).or_insert_with(|| Box::new([ZERO; FANOUT]));
        let changed = block[index] != hash;
        block[index] = hash;
        changed
    }

    /// What is under one node; nothing when all of it is zero.
    pub(super) fn under(&self, node: u64) -> &[Hash] {
        let here = self.len.saturating_sub(node.saturating_mul(FANOUT as u64)).min(FANOUT as u64);
        self.blocks.get(&node).map_or(&[], |block| &block[..here as usize])
    }

    /// In this range, those that are not zero.
    pub(super) fn not_zero(&self, range: Range<u64>) -> impl Iterator<Item = u64> {
        let (first, last) = (range.start / FANOUT as u64, range.end.div_ceil(FANOUT as u64));
        let blocks = self.blocks.range(first..last.max(first));
        let all = blocks.flat_map(|(number, block)| {
            let start = number * FANOUT as u64;
            (start..).zip(block.iter()).filter(|(_, hash)| **hash != ZERO).map(|(at, _)| at)
        });
        all.filter(move |at| range.contains(at))
    }

    /// Those that are not zero, in order, in runs without a gap; of two runs the second may follow on the first.
    pub(super) fn runs(&self) -> impl Iterator<Item = (u64, &[Hash])> {
        self.blocks.iter().flat_map(|(number, block)| {
            let runs = block.chunk_by(|a, b| (*a == ZERO) == (*b == ZERO));
            let start = number * FANOUT as u64;
            let placed = runs.scan(start, |at, run| {
                let start = *at;
                *at += run.len() as u64;
                Some((start, run))
            });
            placed.filter(|(_, run)| run[0] != ZERO)
        })
    }
}

fn place(at: u64) -> (u64, usize) {
    (at / FANOUT as u64, (at % FANOUT as u64) as usize)
}
