//! The root of an image in one pass over it. It keeps no tree.

use super::node::{FANOUT, Hash, NODE_CONTEXT, ZERO, hash_node, root_of};
use crate::{ImageRoot, LEAF_BYTES};

/// The root of an image whose leaves pass by once, from the first to the last: a few KiB of memory, whatever the
/// image's size.
#[derive(Debug)]
pub(crate) struct RootStream {
    size: u64,
    leaves: u64,
    /// At every height the hashes that have no node above them yet.
    open: Vec<Vec<Hash>>,
    node_hasher: blake3::Hasher,
}

impl RootStream {
    /// For an image of `size` bytes.
    pub(crate) fn new(size: u64) -> RootStream {
        let node_hasher = blake3::Hasher::new_derive_key(NODE_CONTEXT);
        RootStream { size, leaves: 0, open: Vec::new(), node_hasher }
    }

    /// The next leaf that is not zero, or may not be.
    pub(crate) fn leaf(&mut self, number: u64, hash: Hash) {
        self.zeroes_to(number);
        self.push(0, hash);
        self.leaves += 1;
    }

    /// All leaves that did not come are zero.
    pub(crate) fn finish(mut self) -> ImageRoot {
        self.zeroes_to(self.size.div_ceil(LEAF_BYTES));
        let top_height = self.open.len().saturating_sub(1);
        let mut below: Option<Hash> = None;
        for (height, mut level) in self.open.into_iter().enumerate() {
            level.extend(below.take());
            below = match level.as_slice() {
                [] => None,
                [top] if height == top_height => Some(*top),
                _ => Some(hash_node(&self.node_hasher, height + 1, &level)),
            };
        }
        root_of(self.size, &below.unwrap_or(ZERO))
    }

    /// As few steps as there are nodes over nothing but zeroes.
    fn zeroes_to(&mut self, number: u64) {
        while self.leaves < number {
            let (mut height, mut leaves) = (0, 1_u64);
            while let Some(more) = leaves.checked_mul(FANOUT as u64)
                && self.leaves.is_multiple_of(more)
                && number - self.leaves >= more
            {
                (height, leaves) = (height + 1, more);
            }
            self.push(height, ZERO);
            self.leaves += leaves;
        }
    }

    fn push(&mut self, height: usize, hash: Hash) {
        while self.open.len() <= height {
            self.open.push(Vec::with_capacity(FANOUT));
        }
        self.open[height].push(hash);
        if self.open[height].len() == FANOUT {
            let node = hash_node(&self.node_hasher, height + 1, &self.open[height]);
            self.open[height].clear();
            self.push(height + 1, node);
        }
    }
}
