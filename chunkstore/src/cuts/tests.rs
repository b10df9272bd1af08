use proptest::prelude::*;

use super::*;
use crate::testing::{noise, text};
use crate::{ImageRoot, Manifest, ManifestExtent};

/// A stretch of an image: content, length, seed.
type Stretch = (u8, usize, u64);

fn build(stretches: &[Stretch]) -> Vec<u8> {
    let bytes = stretches.iter().flat_map(|(kind, len, seed)| match kind % 5 {
        0 | 1 => noise(*seed, 4 * len),
        2 => text(*seed, 4 * len),
        // Chunks of it are the longest.
        3 => vec![7; 3 * len],
        _ => vec![0; *len],
    });
    bytes.collect()
}

fn stretches() -> impl Strategy<Value = Vec<Stretch>> {
    prop::collection::vec((any::<u8>(), 1..300_000_usize, 0..4_u64), 0..8)
}

fn batches(image: &dyn ReadImage) -> Vec<Batch> {
    let mut cuts = Cuts::new(image, 0..image.size());
    std::iter::from_fn(|| cuts.batch().unwrap()).collect()
}

fn chunks_of(batch: &Batch) -> Vec<Bytes> {
    let chunks = batch.cuts.iter().filter_map(|cut| match &cut.data {
        CutData::Chunk(bytes) => Some(bytes.clone()),
        CutData::Hole => None,
    });
    chunks.collect()
}

#[test]
fn what_is_compressed_together_lies_together() {
    let batches = batches(&noise(1, 20 * GROUP_BYTES));
    assert_eq!(batches.len(), 20);
    for batch in batches {
        let together = batch.together.as_ref().expect("one data run");
        assert_eq!(*together, chunks_of(&batch).concat());
        // In the chunk's own memory: nothing was copied.
        assert_eq!(together.as_ptr(), chunks_of(&batch)[0].as_ptr());
    }
}

/// As in an image with little in it: no batch for each of them.
#[test]
fn islands_share_a_batch() {
    let mut image = vec![0; 64 << 20];
    image.chunks_mut(1 << 20).for_each(|part| part[..65536].copy_from_slice(&noise(1, 65536)));
    let batches = batches(&image);
    assert_eq!(batches.len(), 4);
    assert!(batches.iter().all(|batch| batch.together.is_none() && chunks_of(batch).len() >= 16));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Batches are all pieces in order, and who has only the manifest finds the same ends.
    #[test]
    fn batches_follow_from_the_places(stretches in stretches()) {
        let image = build(&stretches);
        let batches = batches(&image);
        let mut placed = Vec::new();
        let mut at = 0;
        for batch in &batches {
            for cut in &batch.cuts {
                prop_assert_eq!(cut.offset, at);
                at += cut.len;
                placed.push(match &cut.data {
                    CutData::Hole => ManifestExtent::Hole { len: cut.len },
                    CutData::Chunk(bytes) => {
                        ManifestExtent::Data { len: bytes.len() as u32, id: crate::ChunkId::of(bytes) }
                    }
                });
            }
            if let Some(together) = &batch.together {
                prop_assert_eq!(&together[..], chunks_of(batch).concat());
            }
        }
        prop_assert_eq!(at, image.len() as u64);
        let manifest = Manifest::of(ImageRoot::from_bytes([0; 32]), placed.iter().copied()).unwrap();
        let read_back: Vec<usize> = manifest.batches().map(|batch| batch.len()).collect();
        prop_assert_eq!(read_back, batches.iter().map(|batch| batch.cuts.len()).collect::<Vec<_>>());
    }
}
