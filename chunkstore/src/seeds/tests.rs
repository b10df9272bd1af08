use super::Seeds;
use crate::{ChunkId, ImageRoot, Manifest, ManifestExtent};

fn manifest_of(chunks: &[&[u8]]) -> Manifest {
    let extents: Vec<_> =
        chunks.iter().map(|c| ManifestExtent::Data { len: c.len() as u32, id: ChunkId::of(c) }).collect();
    let size = extents.iter().map(ManifestExtent::len).sum();
    Manifest { size, root: ImageRoot::from_bytes([0; 32]), extents }
}

#[test]
fn adding_again_replaces_and_lies_are_harmless() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    std::fs::write(&path, b"onetwo").unwrap();
    let seeds = Seeds::new();
    seeds.add_image(&path, &manifest_of(&[b"one", b"two"])).unwrap();
    assert_eq!(seeds.get(&ChunkId::of(b"two")).unwrap(), &b"two"[..]);
    seeds.add_image(&path, &manifest_of(&[b"three", b"behind the end"])).unwrap();
    for chunk in [&b"one"[..], b"two", b"three", b"behind the end"] {
        assert_eq!(seeds.get(&ChunkId::of(chunk)), None);
    }
    assert!(seeds.add_image(dir.path().join("none"), &manifest_of(&[])).is_err());
}
