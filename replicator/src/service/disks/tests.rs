//! A disk that is another file, or larger, than the guest knows.

use chunkstore::LEAF_BYTES;
use migrate_driver::DiskFormat;

use super::*;

const LEAF: usize = LEAF_BYTES as usize;

#[test]
fn a_file_that_has_grown_is_read_as_far_as_the_guest_knows_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    let image = RawImage::create(&path, 3 * LEAF_BYTES).unwrap();
    image.write_at(LEAF_BYTES, &[1; 2 * LEAF]).unwrap();
    let disk = DiskDefinition { name: "root".to_owned(), path, format: DiskFormat::Raw };
    let file = FileId::of_path(&disk.path).unwrap();
    let open = |size| Cut::open(&disk, Some(Seen { file, size })).unwrap();
    let cut = open(2 * LEAF_BYTES);
    assert_eq!(cut.size(), 2 * LEAF_BYTES);
    assert_eq!(cut.next_data(0).unwrap(), Some(LEAF_BYTES..2 * LEAF_BYTES));
    assert_eq!(cut.next_data(2 * LEAF_BYTES).unwrap(), None);
    // What the hypervisor calls the size of a file that ends in the middle of a sector.
    assert_eq!(open(3 * LEAF_BYTES + 100).size(), 3 * LEAF_BYTES);
    assert_eq!(open(0).size(), 3 * LEAF_BYTES, "not known");
    // Another file of that name is not the guest's disk; neither is none.
    std::fs::rename(&disk.path, dir.path().join("old")).unwrap();
    let gone = Cut::open(&disk, Some(Seen { file, size: 3 * LEAF_BYTES }));
    std::fs::copy(dir.path().join("old"), &disk.path).unwrap();
    let replaced = Cut::open(&disk, Some(Seen { file, size: 3 * LEAF_BYTES }));
    for refused in [gone, replaced] {
        assert!(matches!(refused, Err(DiskError::Replaced { .. })));
    }
}
