//! The hash tree of a replica's image as a file beside it, so that whoever opens the replica need not read the image to
//! know it. A cache: it is believed only when it is of this generation, of an image file that nobody has touched since,
//! and leads to the generation's root; so it is not made durable either. It never says what the generation is.

use std::io::{self, Read, Write};
use std::ops::Range;

use crate::parse::Fields;
use crate::{ImageRoot, ImageTree, LEAF_BYTES};

const MAGIC: &[u8; 8] = b"LHTREE\x00\x01";
pub(super) const HEADER_BYTES: usize = 8 + 8 + 32 + 8 + 4 + 4;
const RUN_BYTES: usize = 8 + 8;

/// Hashes read at once.
const STEP_HASHES: usize = 4096;

/// What a tree is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) size: u64,
    pub(super) root: ImageRoot,
    /// When the image's file was last changed (ctime), in seconds and nanoseconds: who writes to it, moves it or puts
    /// another in its place cannot help changing that.
    pub(super) changed: (u64, u32),
}

impl Subject {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(MAGIC);
        header[8..16].copy_from_slice(&self.size.to_le_bytes());
        header[16..48].copy_from_slice(self.root.as_bytes());
        header[48..56].copy_from_slice(&self.changed.0.to_le_bytes());
        header[56..60].copy_from_slice(&self.changed.1.to_le_bytes());
        header
    }

    /// `None` for what is no header of this version.
    pub(super) fn parse(bytes: &[u8]) -> Option<Subject> {
        let mut fields = Fields::new(bytes);
        (fields.take(MAGIC.len())? == MAGIC).then_some(())?;
        let size = fields.u64()?;
        let root = ImageRoot::from_bytes(fields.array()?);
        Some(Subject { size, root, changed: (fields.u64()?, fields.u32()?) })
    }

    fn leaves(&self) -> u64 {
        self.size.div_ceil(LEAF_BYTES)
    }
}

/// Writes the tree.
pub(super) fn write(out: &mut dyn Write, of: &Subject, tree: &ImageTree) -> io::Result<()> {
    let mut hasher = blake3::Hasher::new();
    let mut put = |bytes: &[u8]| {
        hasher.update(bytes);
        out.write_all(bytes)
    };
    put(&of.encode())?;
    let (mut at, mut hashes) = (0, tree.leaf_runs());
    for run in runs(tree) {
        put(&(run.start - at).to_le_bytes())?;
        put(&(run.end - run.start).to_le_bytes())?;
        at = run.start;
        while at < run.end
            && let Some((_, part)) = hashes.next()
        {
            put(part.as_flattened())?;
            at += part.len() as u64;
        }
    }
    if at < of.leaves() {
        put(&(of.leaves() - at).to_le_bytes())?;
        put(&0_u64.to_le_bytes())?;
    }
    let check = hasher.finalize();
    out.write_all(check.as_bytes())
}

/// Where the leaves are that are not zero; between two runs there is one that is.
fn runs(tree: &ImageTree) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for (first, hashes) in tree.leaf_runs() {
        let end = first + hashes.len() as u64;
        match runs.last_mut() {
            Some(last) if last.end == first => last.end = end,
            _ => runs.push(first..end),
        }
    }
    runs
}

/// Reads what [`write`] wrote, if it is of this very subject. The root is not compared with the leaves: do that. Takes
/// no more memory than the tree of an image of that size.
pub(super) fn read(input: &mut dyn Read, of: &Subject) -> Option<ImageTree> {
    let mut input = Hashed { input, hasher: blake3::Hasher::new() };
    let mut header = [0; HEADER_BYTES];
    input.fill(&mut header)?;
    // What is ignored is the last of it.
    (header[..HEADER_BYTES - 4] == of.encode()[..HEADER_BYTES - 4]).then_some(())?;
    let mut tree = ImageTree::new(of.size);
    let (mut at, leaves) = (0_u64, of.leaves());
    let mut step = vec![0; STEP_HASHES * 32];
    while at < leaves {
        let mut run = [0; RUN_BYTES];
        input.fill(&mut run)?;
        let mut fields = Fields::new(&run);
        let (zeroes, hashes) = (fields.u64()?, fields.u64()?);
        let first = at.checked_add(zeroes)?;
        let end = first.checked_add(hashes).filter(|end| at < *end && *end <= leaves)?;
        at = first;
        while at < end {
            let count = (end - at).min(STEP_HASHES as u64);
            let bytes = &mut step[..count as usize * 32];
            input.fill(bytes)?;
            for (leaf, hash) in (at..).zip(bytes.as_chunks::<32>().0) {
                tree.keep_leaf(leaf, *hash);
            }
            at += count;
        }
    }
    let found = input.hasher.finalize();
    let mut check = [0; 32];
    input.fill(&mut check)?;
    (found.as_bytes() == &check && input.fill(&mut [0]).is_none()).then_some(())?;
    tree.rebuild();
    Some(tree)
}

struct Hashed<'a> {
    input: &'a mut dyn Read,
    hasher: blake3::Hasher,
}

impl Hashed<'_> {
    /// `None` when it ends before, or cannot be read.
    fn fill(&mut self, buffer: &mut [u8]) -> Option<()> {
        self.input.read_exact(buffer).ok()?;
        self.hasher.update(buffer);
        Some(())
    }
}

#[cfg(test)]
mod tests;
