//! One hash over a whole image, independent of how it is cut into chunks: a tree over leaves of 64 KiB, 256 children
//! to a node. A node over nothing but zeroes is the constant 0, and what is below it is not kept: an image takes memory by
//! its data, not by its size. It never writes to an image and keeps none of its bytes.

use std::io;
use std::ops::Range;

use crate::{ImageRoot, LEAF_BYTES, ReadImage, is_zero};
use bits::Bits;
use level::Level;
pub(crate) use node::Hash;
use node::{FANOUT, NODE_CONTEXT, ZERO, hash_node, root_of};
pub(crate) use stream::RootStream;

/// Marked leaves hashed by one thread in one go: enough to be worth waking it, bounded in memory.
const BATCH_LEAVES: usize = 2048;

/// Fewer leaves than this are not worth a second thread.
const PARALLEL_LEAVES: usize = 64;

/// Leaves read at once when they follow each other.
const RUN_LEAVES: usize = 16;

/// The hash tree of an image of a fixed size. Memory: 8 KiB for each 16 MiB of the image in which there is data.
///
/// Changing the image is: write, [`mark`](ImageTree::mark) what was written, and sooner or later
/// [`refresh`](ImageTree::refresh); until then [`root`](ImageTree::root) is that of the image before.
#[derive(Debug, Clone)]
pub struct ImageTree {
    size: u64,
    /// `levels[0]` are the leaves, the last level is one node.
    levels: Vec<Level>,
    marked: Bits,
    /// Leaves that differ from what the nodes above them say.
    stale: Bits,
    node_hasher: blake3::Hasher,
}

impl ImageTree {
    /// The tree of `size` zero bytes.
    pub fn new(size: u64) -> ImageTree {
        let leaves = size.div_ceil(LEAF_BYTES);
        let mut nodes = leaves.max(1);
        let mut levels = vec![Level::new(nodes)];
        while nodes > 1 {
            nodes = nodes.div_ceil(FANOUT as u64);
            levels.push(Level::new(nodes));
        }
        let node_hasher = blake3::Hasher::new_derive_key(NODE_CONTEXT);
        ImageTree { size, levels, marked: Bits::new(leaves), stale: Bits::new(leaves), node_hasher }
    }

    /// The image's length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes in this range may have changed. What lies outside the image is ignored.
    pub fn mark(&mut self, range: Range<u64>) {
        let end = range.end.min(self.size);
        if range.start < end {
            self.marked.set(range.start / LEAF_BYTES..end.div_ceil(LEAF_BYTES));
        }
    }

    /// Everything may have changed.
    pub fn mark_all(&mut self) {
        self.mark(0..self.size);
    }

    /// Leaves that are marked and not read again yet.
    pub fn marked_leaves(&self) -> u64 {
        self.marked.count()
    }

    /// Reads the marked leaves again (all others are taken as they are) and clears the marks. Gives the number of
    /// leaves that were read and hashed; holes are not read. On an error the marks stay.
    pub fn refresh(&mut self, image: &dyn ReadImage) -> io::Result<u64> {
        if image.size() != self.size {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("the image has {} bytes, its hash tree is for {}", image.size(), self.size),
            ));
        }
        let mut hashed = 0;
        let mut data = 0..0;
        let mut batch = Vec::new();
        let mut next = self.marked.next(0);
        while let Some(leaf) = next {
            let bytes = self.leaf_range(leaf);
            if data.end <= bytes.start {
                data = image.next_data(bytes.start)?.unwrap_or(self.size..self.size.max(1));
            }
            let hole_end = if data.start < self.size { data.start / LEAF_BYTES } else { self.leaf_count() };
            if leaf < hole_end {
                self.zero_marked(leaf..hole_end);
                next = self.marked.next(hole_end);
            } else {
                batch.push(leaf);
                next = self.marked.next(leaf + 1);
            }
            if batch.len() == BATCH_LEAVES || next.is_none() {
                hashed += batch.len() as u64;
                for (leaf, hash) in batch.iter().zip(hash_batch(image, &batch, self.size)?) {
                    self.set_leaf(*leaf, hash);
                }
                batch.clear();
            }
        }
        self.rebuild();
        self.marked.clear();
        Ok(hashed)
    }

    /// The hash over the image, as of the last refresh.
    pub fn root(&self) -> ImageRoot {
        let top = self.levels.last().map_or(ZERO, |level| level.get(0));
        root_of(self.size, &top)
    }

    pub(crate) fn leaf_count(&self) -> u64 {
        self.size.div_ceil(LEAF_BYTES)
    }

    /// The hash of a leaf, as of the last refresh.
    pub(crate) fn leaf(&self, number: u64) -> Hash {
        self.levels[0].get(number)
    }

    /// The hashes of the leaves that are not zero, in order and in runs, each with the number of its first leaf, as of the
    /// last refresh. Of two runs the second may follow on the first without a gap.
    pub(crate) fn leaf_runs(&self) -> impl Iterator<Item = (u64, &[Hash])> {
        self.levels[0].runs()
    }

    /// The hashes of all leaves.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn leaves(&self) -> Vec<Hash> {
        (0..self.leaf_count()).map(|leaf| self.levels[0].get(leaf)).collect()
    }

    /// Nothing is marked, and the root is that of the leaves.
    pub(crate) fn is_settled(&self) -> bool {
        self.marked.is_empty() && self.stale.is_empty()
    }

    /// Takes a leaf's hash from who has kept it, in place of reading the image. What there is no leaf of is ignored.
    /// [`rebuild`](ImageTree::rebuild) after the last one.
    pub(crate) fn keep_leaf(&mut self, number: u64, hash: Hash) {
        if number < self.leaf_count() {
            self.set_leaf(number, hash);
        }
    }

    fn leaf_range(&self, leaf: u64) -> Range<u64> {
        let start = leaf * LEAF_BYTES;
        start..start.saturating_add(LEAF_BYTES).min(self.size)
    }

    fn set_leaf(&mut self, leaf: u64, hash: Hash) {
        if self.levels[0].set(leaf, hash) {
            self.stale.set(leaf..leaf + 1);
        }
    }

    /// The marked ones of these leaves are zero.
    fn zero_marked(&mut self, leaves: Range<u64>) {
        let marked = self.levels[0].not_zero(leaves).filter(|leaf| self.marked.contains(*leaf));
        for leaf in marked.collect::<Vec<_>>() {
            self.set_leaf(leaf, ZERO);
        }
    }

    /// Hashes the nodes above changed ones anew, level by level.
    pub(crate) fn rebuild(&mut self) {
        let none = Bits::new(self.leaf_count());
        let mut changed = std::mem::replace(&mut self.stale, none);
        for height in 1..self.levels.len() {
            let (lower, upper) = self.levels.split_at_mut(height);
            let (below, level) = (&lower[height - 1], &mut upper[0]);
            let mut above = Bits::new(level.len());
            let mut next = changed.next(0);
            while let Some(child) = next {
                let node = child / FANOUT as u64;
                level.set(node, hash_node(&self.node_hasher, height, below.under(node)));
                above.set(node..node + 1);
                next = changed.next((node + 1) * FANOUT as u64);
            }
            changed = above;
        }
    }
}

fn hash_leaf(bytes: &[u8]) -> Hash {
    if is_zero(bytes) { ZERO } else { *blake3::hash(bytes).as_bytes() }
}

/// Hashes leaves in order, on two threads when they are many.
fn hash_batch(image: &dyn ReadImage, leaves: &[u64], size: u64) -> io::Result<Vec<Hash>> {
    if leaves.len() < PARALLEL_LEAVES || std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        return hash_leaves(image, leaves, size);
    }
    let (first, second) = leaves.split_at(leaves.len() / 2);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| hash_leaves(image, second, size));
        let mut hashes = hash_leaves(image, first, size)?;
        hashes.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        Ok(hashes)
    })
}

fn hash_leaves(image: &dyn ReadImage, leaves: &[u64], size: u64) -> io::Result<Vec<Hash>> {
    let mut hashes = Vec::with_capacity(leaves.len());
    let mut buffer = vec![0; RUN_LEAVES * LEAF_BYTES as usize];
    for run in leaves.chunk_by(|a, b| a + 1 == *b).flat_map(|run| run.chunks(RUN_LEAVES)) {
        let start = run[0] * LEAF_BYTES;
        let len = (run.len() as u64 * LEAF_BYTES).min(size - start) as usize;
        image.read_at(start, &mut buffer[..len])?;
        hashes.extend(buffer[..len].chunks(LEAF_BYTES as usize).map(hash_leaf));
    }
    Ok(hashes)
}

/// The hashes of the leaves that `data` at `offset` reaches into, each with its leaf's number. The image has `size`
/// bytes, and where `data` begins or ends inside a leaf, the rest of that leaf is zero.
pub(crate) fn leaf_hashes(size: u64, offset: u64, data: &[u8]) -> Vec<(u64, Hash)> {
    let mut hashes = Vec::with_capacity(data.len() / LEAF_BYTES as usize + 2);
    let (mut at, mut rest) = (offset, data);
    while !rest.is_empty() {
        let leaf = at / LEAF_BYTES;
        let (start, end) = (leaf * LEAF_BYTES, size.min((leaf + 1) * LEAF_BYTES));
        let (now, later) = rest.split_at(rest.len().min((end - at) as usize));
        let hash = if now.len() as u64 == end - start {
            hash_leaf(now)
        } else {
            let mut padded = vec![0; (end - start) as usize];
            let from = (at - start) as usize;
            padded[from..from + now.len()].copy_from_slice(now);
            hash_leaf(&padded)
        };
        hashes.push((leaf, hash));
        at += now.len() as u64;
        rest = later;
    }
    hashes
}

mod bits;
mod level;
mod node;
mod stream;

#[cfg(test)]
mod tests;
