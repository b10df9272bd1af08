use std::sync::Arc;

use proptest::prelude::*;

use super::{Manifest, ManifestError, ManifestExtent, ManifestWriter};
use crate::disk::RealDisk;
use crate::testing::scratch;
use crate::{ChunkId, ImageRoot, MAX_CHUNK_BYTES};

const ROOT: ImageRoot = ImageRoot::from_bytes([9; 32]);

fn extents() -> [ManifestExtent; 3] {
    [
        ManifestExtent::Data { len: 65536, id: ChunkId::of(b"a") },
        ManifestExtent::Hole { len: 1 << 40 },
        ManifestExtent::Data { len: 7, id: ChunkId::of(b"b") },
    ]
}

fn sample() -> Manifest {
    Manifest::of(ROOT, extents()).unwrap()
}

/// The same bytes with a checksum that fits them.
fn with_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
    let body = bytes.len() - 32;
    let check = blake3::hash(&bytes[..body]);
    bytes[body..].copy_from_slice(check.as_bytes());
    bytes
}

#[test]
fn comes_back() {
    assert_eq!(Manifest::decode(&sample().encode()).unwrap(), sample());
    let empty = Manifest::of(ROOT, []).unwrap();
    assert_eq!(Manifest::decode(&empty.encode()).unwrap(), empty);
    let offsets: Vec<u64> = sample().placed().map(|placed| placed.offset).collect();
    assert_eq!(offsets, [0, 65536, (1 << 40) + 65536]);
    assert!(sample().extents().eq(extents()));
    let sums = (sample().size(), sample().root(), sample().data_bytes());
    assert_eq!(sums, ((1 << 40) + 65543, ROOT, 65543));
}

#[test]
fn stays_under_forty_bytes_a_chunk() {
    let manifest =
        Manifest::of(ROOT, [ManifestExtent::Data { len: 1, id: ChunkId::of(b"a") }; 1000]).unwrap();
    assert!(manifest.encode().len() <= 40 * 1000);
}

#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    let bytes = sample().encode();
    for at in 0..bytes.len() {
        assert!(Manifest::decode(&bytes[..at]).is_err());
        for bit in 0..8 {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << bit;
            assert!(Manifest::decode(&bad).is_err());
        }
    }
    assert_eq!(Manifest::decode(b"not a manifest at all"), Err(ManifestError::Unknown));
}

#[test]
fn lies_with_a_good_checksum_are_refused() {
    let bytes = sample().encode();
    let mut lies = Vec::new();
    for (at, value) in [(8, 0), (8, u64::MAX), (48, u64::MAX), (48, 2), (48, 4), (48, u64::MAX / 36)] {
        let mut bad = bytes.clone();
        bad[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
        lies.push(bad);
    }
    for len in [MAX_CHUNK_BYTES as u32 + 1, u32::MAX, 1] {
        let mut bad = bytes.clone();
        bad[56..60].copy_from_slice(&len.to_le_bytes());
        lies.push(bad);
    }
    for hole in [0, u64::MAX] {
        let mut bad = bytes.clone();
        bad[96..104].copy_from_slice(&u64::to_le_bytes(hole));
        lies.push(bad);
    }
    for lie in lies {
        assert!(matches!(Manifest::decode(&with_checksum(lie)), Err(ManifestError::Damaged { .. })));
    }
}

/// Cut by a byte, with a checksum that begins with the one that is missing, as one root in 256 has it.
#[test]
fn a_header_does_not_end_in_the_checksum() {
    let mut cuts = (0..u16::MAX).map(|number| {
        let [low, high] = number.to_le_bytes();
        let root = std::array::from_fn(|at| if at == 0 { low } else { high });
        let whole = Manifest::of(ImageRoot::from_bytes(root), []).unwrap().encode();
        with_checksum(whole[..whole.len() - 1].to_vec())
    });
    let cut = cuts.find(|cut| cut[cut.len() - 32] == 0).unwrap();
    assert!(matches!(Manifest::decode(&cut), Err(ManifestError::Damaged { .. })));
}

#[test]
fn a_manifest_that_is_written_is_the_same_in_memory_and_in_a_file() {
    let dir = scratch();
    for count in [0, 3, 1000] {
        let extent = |number: u64| match number % 3 {
            0 => ManifestExtent::Hole { len: number + 1 },
            _ => ManifestExtent::Data { len: number as u32, id: ChunkId::of(&number.to_le_bytes()) },
        };
        let mut writer = ManifestWriter::new(Arc::new(RealDisk), dir.path()).unwrap();
        (0..count).for_each(|number| writer.push(extent(number)).unwrap());
        let bad = [
            ManifestExtent::Hole { len: 0 },
            ManifestExtent::Data { len: 0, id: ChunkId::of(b"") },
            ManifestExtent::Data { len: MAX_CHUNK_BYTES as u32 + 1, id: ChunkId::of(b"") },
        ];
        for extent in bad {
            assert!(writer.push(extent).is_err());
            assert!(Manifest::of(ROOT, [extent]).is_err());
        }
        let manifest = writer.finish(ROOT).unwrap();
        assert_eq!(manifest, Manifest::of(ROOT, (0..count).map(extent)).unwrap());
        assert_eq!(manifest, Manifest::decode(&manifest.encode()).unwrap());
        assert!(manifest.extents().eq((0..count).map(extent)));
    }
    let too_many = [ManifestExtent::Hole { len: u64::MAX }, ManifestExtent::Hole { len: 1 }];
    assert!(Manifest::of(ROOT, too_many).is_err());
}

proptest! {
    #[test]
    fn garbage_is_refused(mut bytes in prop::collection::vec(any::<u8>(), 40..400)) {
        bytes[..8].copy_from_slice(b"LHMANI\x00\x01");
        prop_assert!(Manifest::decode(&bytes).is_err());
        let _ = Manifest::decode(&with_checksum(bytes));
    }
}
