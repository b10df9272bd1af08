use std::fs;
use std::ops::ControlFlow;

use proptest::prelude::*;

use crate::testing::noise;
use crate::{ChunkId, ImageRoot, ManifestExtent, RawImage, Seeds, Store, restore_to};

const GO_ON: ControlFlow<()> = ControlFlow::Continue(());

/// An extent: its bytes, or the length of a hole. As no cutter makes them, but as a manifest may have them: chunks and
/// holes of any length, at any place in a block, and zeroes in chunks.
fn extent() -> impl Strategy<Value = Result<Vec<u8>, usize>> {
    let len = || prop_oneof![1..100_usize, 4000..4200_usize, 1..40_000_usize, 200_000..=262_144_usize];
    prop_oneof![
        4 => (any::<u64>(), len(), 0..4_usize).prop_map(|(seed, len, zeroes)| {
            let mut bytes = noise(seed, len);
            let third = len / 3;
            bytes[third..third * (zeroes + 2) / 2 - third * zeroes / 4].fill(0);
            Ok(bytes)
        }),
        1 => len().prop_map(Err),
    ]
}

fn restored(extents: &[Result<Vec<u8>, usize>]) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    let mut writer = store.manifest_writer().unwrap();
    let mut image = Vec::new();
    for extent in extents {
        let extent = match extent {
            Ok(bytes) => {
                let id = ChunkId::of(bytes);
                store.put(&id, bytes).unwrap();
                image.extend(bytes);
                ManifestExtent::Data { len: bytes.len() as u32, id }
            }
            Err(len) => {
                image.resize(image.len() + len, 0);
                ManifestExtent::Hole { len: *len as u64 }
            }
        };
        writer.push(extent).unwrap();
    }
    let manifest = writer.finish(ImageRoot::from_bytes([0; 32])).unwrap();
    let path = dir.path().join("out");
    let report = restore_to(&store, &Seeds::new(), &manifest, &path, None, &|_| GO_ON).unwrap();
    assert!(fs::read(&path).unwrap() == image);
    let blocks = image.chunks(4096).filter(|block| !crate::is_zero(block)).count() as u64;
    let allocated = RawImage::open_read(&path).unwrap().allocated_bytes().unwrap();
    assert!(allocated <= (blocks + 4) * 4096, "{allocated} bytes for {blocks} blocks");
    assert!(report.written_bytes <= blocks * 4096, "{report:?} for {blocks} blocks");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_extents_come_out_sparse(extents in prop::collection::vec(extent(), 1..60)) {
        restored(&extents);
    }
}

#[test]
fn more_small_extents_than_a_part_takes_come_out() {
    let extents: Vec<_> = (0..6000_u64)
        .map(
            |at| if at % 5 == 4 { Err(1 + at as usize % 9000) } else { Ok(noise(at, 1 + at as usize % 700)) },
        )
        .collect();
    restored(&extents);
}

#[test]
fn this_file_system_is_written_past_the_page_cache() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let image = RawImage::create(dir.path().join("hole"), 1 << 20).unwrap();
    let direct = image.direct_if_hole();
    if direct.is_none() {
        eprintln!("skipped: the file system of {} cannot do it", dir.path().display());
        return;
    }
    image.write_at(5000, b"data").unwrap();
    assert!(image.direct_if_hole().is_none());
}
