use proptest::prelude::*;

use super::{Manifest, ManifestError, ManifestExtent};
use crate::{ChunkId, ImageRoot, MAX_CHUNK_BYTES};

fn sample() -> Manifest {
    let extents = vec![
        ManifestExtent::Data { len: 65536, id: ChunkId::of(b"a") },
        ManifestExtent::Hole { len: 1 << 40 },
        ManifestExtent::Data { len: 7, id: ChunkId::of(b"b") },
    ];
    Manifest { size: (1 << 40) + 65543, root: ImageRoot::from_bytes([9; 32]), extents }
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
    let empty = Manifest { size: 0, root: ImageRoot::from_bytes([0; 32]), extents: vec![] };
    assert_eq!(Manifest::decode(&empty.encode()).unwrap(), empty);
    let offsets: Vec<u64> = sample().placed().map(|placed| placed.offset).collect();
    assert_eq!(offsets, [0, 65536, (1 << 40) + 65536]);
    assert_eq!(sample().data_bytes(), 65543);
}

#[test]
fn stays_under_forty_bytes_a_chunk() {
    let extents = vec![ManifestExtent::Data { len: 1, id: ChunkId::of(b"a") }; 1000];
    let manifest = Manifest { size: 1000, root: ImageRoot::from_bytes([0; 32]), extents };
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

proptest! {
    #[test]
    fn garbage_is_refused(mut bytes in prop::collection::vec(any::<u8>(), 40..400)) {
        bytes[..8].copy_from_slice(b"LHMANI\x00\x01");
        prop_assert!(Manifest::decode(&bytes).is_err());
        let _ = Manifest::decode(&with_checksum(bytes));
    }
}
