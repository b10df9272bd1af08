//! One hash over a whole image, independent of how it is cut into chunks: a tree over leaves of 64 KiB, 256 children
//! to a node. A node over nothing but zeroes is the constant 0, so an empty image costs nothing. It never writes to
//! an image and keeps none of its bytes.

use std::io;
use std::ops::Range;

use crate::{ImageRoot, LEAF_BYTES, ReadImage, is_zero};

/// Children of one inner node.
const FANOUT: usize = 256;

/// BLAKE3 contexts, so that no leaf can stand for a node and no node for a root.
const NODE_CONTEXT: &str = "longhaul 2026 image tree: node";
const ROOT_CONTEXT: &str = "longhaul 2026 image tree: root";

/// The hash of zeroes, at every height.
const ZERO: [u8; 32] = [0; 32];

/// Marked leaves hashed by one thread in one go: enough to be worth waking it, bounded in memory.
const BATCH_LEAVES: usize = 2048;

/// Fewer leaves than this are not worth a second thread.
const PARALLEL_LEAVES: usize = 64;

/// Leaves read at once when they follow each other.
const RUN_LEAVES: usize = 16;

pub(crate) type Hash = [u8; 32];

/// The hash tree of an image of a fixed size: 32 bytes of memory for each leaf that is not zero.
///
/// Changing the image is: write, [`mark`](ImageTree::mark) what was written, and sooner or later
/// [`refresh`](ImageTree::refresh); until then [`root`](ImageTree::root) is that of the image before.
#[derive(Debug, Clone)]
pub struct ImageTree {
    size: u64,
    /// `levels[0]` are the leaves, the last level is one node.
    levels: Vec<Vec<Hash>>,
    marked: Bits,
    /// Leaves that differ from what the nodes above them say.
    stale: Bits,
    node_hasher: blake3::Hasher,
}

impl ImageTree {
    /// The tree of `size` zero bytes.
    pub fn new(size: u64) -> ImageTree {
        let leaves = usize::try_from(size.div_ceil(LEAF_BYTES)).expect("an image's leaves fit into memory");
        let mut levels = vec![vec![ZERO; leaves.max(1)]];
        let mut nodes = leaves.max(1);
        while nodes > 1 {
            nodes = nodes.div_ceil(FANOUT);
            levels.push(vec![ZERO; nodes]);
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
            let leaves = (range.start / LEAF_BYTES) as usize..end.div_ceil(LEAF_BYTES) as usize;
            self.marked.set(leaves);
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
            if data.start >= bytes.end {
                self.set_leaf(leaf, ZERO);
            } else {
                batch.push(leaf);
            }
            next = self.marked.next(leaf + 1);
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
        let top = self.levels.last().and_then(|level| level.first()).copied().unwrap_or(ZERO);
        root_of(self.size, &top)
    }

    /// The hashes of the leaves, as of the last refresh.
    pub(crate) fn leaves(&self) -> &[Hash] {
        let leaves = self.size.div_ceil(LEAF_BYTES) as usize;
        &self.levels[0][..leaves]
    }

    /// Nothing is marked, and the root is that of the leaves.
    pub(crate) fn is_settled(&self) -> bool {
        self.marked.count() + self.stale.count() == 0
    }

    /// Takes a leaf's hash from who has kept it, in place of reading the image. What there is no leaf of is ignored.
    /// [`rebuild`](ImageTree::rebuild) after the last one.
    pub(crate) fn keep_leaf(&mut self, number: u64, hash: Hash) {
        if number < self.leaves().len() as u64 {
            self.set_leaf(number as usize, hash);
        }
    }

    fn leaf_range(&self, leaf: usize) -> Range<u64> {
        let start = leaf as u64 * LEAF_BYTES;
        start..start.saturating_add(LEAF_BYTES).min(self.size)
    }

    fn set_leaf(&mut self, leaf: usize, hash: Hash) {
        if self.levels[0][leaf] != hash {
            self.levels[0][leaf] = hash;
            self.stale.set(leaf..leaf + 1);
        }
    }

    /// Hashes the nodes above changed ones anew, level by level.
    pub(crate) fn rebuild(&mut self) {
        let mut changed = self.stale.clone();
        self.stale.clear();
        for height in 1..self.levels.len() {
            let (below, level) = {
                let (lower, upper) = self.levels.split_at_mut(height);
                (&lower[height - 1], &mut upper[0])
            };
            let mut above = Bits::new(level.len());
            let mut next = changed.next(0);
            while let Some(child) = next {
                let node = child / FANOUT;
                let children = &below[node * FANOUT..below.len().min((node + 1) * FANOUT)];
                level[node] = hash_node(&self.node_hasher, height, children);
                above.set(node..node + 1);
                next = changed.next((node + 1) * FANOUT);
            }
            changed = above;
        }
    }
}

fn root_of(size: u64, top: &Hash) -> ImageRoot {
    let mut hasher = blake3::Hasher::new_derive_key(ROOT_CONTEXT);
    hasher.update(&size.to_le_bytes());
    hasher.update(top);
    ImageRoot::from_bytes(*hasher.finalize().as_bytes())
}

fn hash_node(hasher: &blake3::Hasher, height: usize, children: &[Hash]) -> Hash {
    if children.iter().all(|child| *child == ZERO) {
        return ZERO;
    }
    let mut hasher = hasher.clone();
    hasher.update(&[u8::try_from(height).unwrap_or(u8::MAX)]);
    hasher.update(children.as_flattened());
    *hasher.finalize().as_bytes()
}

fn hash_leaf(bytes: &[u8]) -> Hash {
    if is_zero(bytes) { ZERO } else { *blake3::hash(bytes).as_bytes() }
}

/// Hashes leaves in order, on two threads when they are many.
fn hash_batch(image: &dyn ReadImage, leaves: &[usize], size: u64) -> io::Result<Vec<Hash>> {
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

fn hash_leaves(image: &dyn ReadImage, leaves: &[usize], size: u64) -> io::Result<Vec<Hash>> {
    let mut hashes = Vec::with_capacity(leaves.len());
    let mut buffer = vec![0; RUN_LEAVES * LEAF_BYTES as usize];
    for run in leaves.chunk_by(|a, b| a + 1 == *b).flat_map(|run| run.chunks(RUN_LEAVES)) {
        let start = run[0] as u64 * LEAF_BYTES;
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

    fn zeroes_to(&mut self, number: u64) {
        while self.leaves < number {
            self.push(0, ZERO);
            self.leaves += 1;
        }
    }

    fn push(&mut self, height: usize, hash: Hash) {
        if self.open.len() == height {
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

/// A fixed number of bits, all clear at first.
#[derive(Debug, Clone)]
struct Bits {
    words: Vec<u64>,
}

impl Bits {
    fn new(len: usize) -> Bits {
        Bits { words: vec![0; len.div_ceil(64)] }
    }

    fn set(&mut self, range: Range<usize>) {
        let mut at = range.start;
        while at < range.end {
            let (word, bit) = (at / 64, at % 64);
            let count = (64 - bit).min(range.end - at);
            self.words[word] |= (u64::MAX >> (64 - count)) << bit;
            at += count;
        }
    }

    fn clear(&mut self) {
        self.words.fill(0);
    }

    /// The first set bit at or after `from`.
    fn next(&self, from: usize) -> Option<usize> {
        let mut word = from / 64;
        let mut bits = self.words.get(word)? & (u64::MAX << (from % 64));
        while bits == 0 {
            word += 1;
            bits = *self.words.get(word)?;
        }
        Some(word * 64 + bits.trailing_zeros() as usize)
    }

    fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }
}

#[cfg(test)]
mod tests;
