use std::io;
use std::ops::Range;

use proptest::prelude::*;

use super::{ImageTree, RootStream, leaf_hashes};
use crate::cuts::Cuts;
use crate::testing::{Holed, noise};
use crate::{ImageRoot, LEAF_BYTES, ReadImage};

fn root_of(image: &dyn ReadImage) -> ImageRoot {
    let mut tree = ImageTree::new(image.size());
    tree.mark_all();
    tree.refresh(image).unwrap();
    tree.root()
}

#[test]
fn zeroes_are_the_empty_tree_however_they_are_stored() {
    for size in [0, 1, 65536, 65537, 20 << 20] {
        let empty = ImageTree::new(size as u64).root();
        assert_eq!(root_of(&vec![0; size]), empty);
        assert_eq!(root_of(&Holed { bytes: vec![0; size], data: vec![] }), empty);
    }
    assert_ne!(ImageTree::new(65536).root(), ImageTree::new(65537).root());
}

#[test]
fn only_marked_leaves_are_read() {
    let mut bytes = noise(1, 40 * 65536 + 100);
    let mut tree = ImageTree::new(bytes.size());
    tree.mark_all();
    assert_eq!(tree.refresh(&bytes).unwrap(), 41);
    let before = tree.root();
    bytes[5 * 65536] ^= 1;
    assert_eq!(tree.refresh(&bytes).unwrap(), 0);
    assert_eq!(tree.root(), before);
    tree.mark(5 * 65536 - 1..5 * 65536 + 1);
    tree.mark(u64::MAX - 1..u64::MAX);
    assert_eq!((tree.marked_leaves(), tree.refresh(&bytes).unwrap()), (2, 2));
    assert_ne!(tree.root(), before);
    assert_eq!(tree.root(), root_of(&bytes));
    bytes[5 * 65536] ^= 1;
    tree.mark(5 * 65536..5 * 65536 + 1);
    tree.refresh(&bytes).unwrap();
    assert_eq!(tree.root(), before);
}

#[test]
fn large_images_take_two_levels_and_two_threads() {
    // 300 leaves: two nodes under the root, more than one thread's share.
    let mut bytes = noise(1, 300 * 65536);
    bytes[100 * 65536..180 * 65536].fill(0);
    let holed =
        Holed { bytes: bytes.clone(), data: vec![0..100 * LEAF_BYTES, 180 * LEAF_BYTES..300 * LEAF_BYTES] };
    let mut tree = ImageTree::new(bytes.size());
    tree.mark_all();
    assert_eq!(tree.refresh(&holed).unwrap(), 220);
    assert_eq!(tree.root(), root_of(&bytes));
}

/// Fails once it has read so much.
struct Failing<'a>(&'a [u8], u64);

impl ReadImage for Failing<'_> {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if offset >= self.1 { Err(io::Error::other("bad sector")) } else { self.0.read_at(offset, buf) }
    }
}

#[test]
fn a_failed_refresh_loses_no_mark() {
    // Batches of 2048 leaves: the first one is taken over before the second fails.
    let bytes = noise(1, 2100 * 65536);
    let mut tree = ImageTree::new(bytes.size());
    tree.mark_all();
    assert!(tree.refresh(&Failing(&bytes, 2060 * LEAF_BYTES)).is_err());
    tree.refresh(&bytes).unwrap();
    assert_eq!(tree.root(), root_of(&bytes));
    assert!(tree.refresh(&vec![0; 65536]).is_err());
}

#[test]
fn a_stream_of_leaves_is_a_tree_of_any_height() {
    for leaves in [0, 1, 2, 255, 256, 257, 511, 512, 513, 65535, 65536, 65537, 70_000] {
        let size = leaves * LEAF_BYTES;
        let (mut tree, mut stream) = (ImageTree::new(size), RootStream::new(size));
        for number in (0..leaves).filter(|number| !(300..2000).contains(number) && number % 7 != 3) {
            let hash = *blake3::hash(&number.to_le_bytes()).as_bytes();
            tree.set_leaf(number, hash);
            stream.leaf(number, hash);
        }
        tree.rebuild();
        assert_eq!(stream.finish(), tree.root(), "{leaves} leaves");
    }
}

/// An image as data and zero runs of arbitrary length.
fn runs() -> impl Strategy<Value = Vec<(bool, usize)>> {
    prop::collection::vec((any::<bool>(), 1..200_000_usize), 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// However the image's holes are told, and wherever the reads begin and end.
    #[test]
    fn a_stream_of_reads_gives_the_same_root(runs in runs(), known in any::<u8>()) {
        let mut holed = Holed { bytes: Vec::new(), data: Vec::new() };
        for (index, (data, len)) in runs.iter().enumerate() {
            let start = holed.bytes.size();
            holed.bytes.extend(if *data { noise(3, *len) } else { vec![0; *len] });
            if *data || known >> (index % 8) & 1 == 0 {
                holed.data.push(start..holed.bytes.size());
            }
        }
        let mut stream = RootStream::new(holed.size());
        let mut cuts = Cuts::new(&holed, 0..holed.size());
        while let Some(batch) = cuts.batch().unwrap() {
            for read in batch.reads {
                let hashes = leaf_hashes(holed.size(), read.offset, &read.bytes);
                hashes.into_iter().for_each(|(number, hash)| stream.leaf(number, hash));
            }
        }
        prop_assert_eq!(stream.finish(), root_of(&holed.bytes));
    }

    #[test]
    fn marks_in_any_order_lead_to_the_same_root(
        writes in prop::collection::vec((0..3_000_000_u64, 1..200_000_u64, any::<bool>()), 1..12),
    ) {
        let mut bytes = vec![0; 3_000_000];
        let mut tree = ImageTree::new(bytes.size());
        for (index, (start, len, data)) in writes.into_iter().enumerate() {
            let range: Range<usize> = start as usize..(start + len).min(3_000_000) as usize;
            let content = if data { noise(index as u64, range.len()) } else { vec![0; range.len()] };
            bytes[range.clone()].copy_from_slice(&content);
            tree.mark(range.start as u64..start + len);
            if index % 3 == 0 {
                tree.refresh(&bytes).unwrap();
            }
        }
        tree.refresh(&bytes).unwrap();
        prop_assert_eq!(tree.root(), root_of(&bytes));
    }
}

/// An image of any size with a little data in it.
struct Thin {
    size: u64,
    /// Sorted; a leaf each.
    data: Vec<u64>,
}

impl ReadImage for Thin {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        assert!(self.data.contains(&(offset / LEAF_BYTES)), "a hole is read");
        buf.fill(1);
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let next = self.data.iter().find(|leaf| (*leaf + 1) * LEAF_BYTES > offset);
        Ok(next.map(|leaf| (leaf * LEAF_BYTES).max(offset)..(leaf + 1) * LEAF_BYTES))
    }
}

#[test]
fn the_holes_of_a_huge_image_cost_nothing() {
    // 64 TiB: it would take minutes and 32 GiB, leaf by leaf.
    let size = 64 << 40;
    let mut image = Thin { size, data: vec![0, 1, 255, 65536 * 256, size / LEAF_BYTES - 1] };
    let mut tree = ImageTree::new(size);
    tree.mark_all();
    assert_eq!(tree.marked_leaves(), 1 << 30);
    assert_eq!(tree.refresh(&image).unwrap(), 5);
    let mut stream = RootStream::new(size);
    let hash = *blake3::hash(&vec![1; LEAF_BYTES as usize]).as_bytes();
    image.data.iter().for_each(|leaf| stream.leaf(*leaf, hash));
    assert_eq!(stream.finish(), tree.root());
    let runs: Vec<_> = tree.leaf_runs().map(|(first, run)| (first, run.len())).collect();
    assert_eq!(runs, [(0, 2), (255, 1), (65536 * 256, 1), (size / LEAF_BYTES - 1, 1)]);

    // What is not marked stays as it was, though it is a hole by now.
    image.data.clear();
    tree.mark(LEAF_BYTES..size - LEAF_BYTES);
    assert_eq!(tree.refresh(&image).unwrap(), 0);
    let left: Vec<_> = tree.leaf_runs().map(|(first, run)| (first, run.len())).collect();
    assert_eq!(left, [(0, 1), (size / LEAF_BYTES - 1, 1)]);
    tree.mark_all();
    tree.refresh(&image).unwrap();
    assert_eq!(tree.root(), ImageTree::new(size).root());
    assert_eq!(tree.leaf_runs().count(), 0);
}
