use chunkstore::RawImage;

use super::*;
use crate::chunking::scheme::data_runs;

fn write(tree: &Path, path: &str, bytes: &[u8]) {
    fs::create_dir_all(tree.join(path).parent().unwrap()).unwrap();
    fs::write(tree.join(path), bytes).unwrap();
}

#[test]
fn an_image_is_upgraded_in_place_and_laid_out_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (old, new, image) = (path("old"), path("new"), path("image"));
    for (tree, byte) in [(&old, 1), (&new, 2)] {
        write(tree, "usr/bin/changed", &[byte; 100_000]);
        write(tree, "usr/bin/kept", &[3; 100_000]);
    }
    write(&old, "gone", b"old");
    write(&new, "usr/share/a name with spaces", b"new");
    lay_out_anew(&old, 32 << 20, &image).unwrap();
    assert_eq!(upgrade_in_place(&image, &old, &new, dir.path()).unwrap(), 2);

    let back = path("back");
    extract(&image, &back).unwrap();
    fs::remove_dir(back.join("lost+found")).unwrap();
    assert_eq!(entries(&back).unwrap(), entries(&new).unwrap());
    assert!(same(&back.join("usr/bin/changed"), &new.join("usr/bin/changed")).unwrap());
    assert!(same(&back.join("usr/bin/kept"), &old.join("usr/bin/kept")).unwrap());
}

#[test]
fn so_many_pages_are_rewritten_and_no_hole_is_filled() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let mut before = vec![1_u8; 8 << 20];
    before[1 << 20..2 << 20].fill(0);
    fs::write(&path, &before).unwrap();
    let runs = data_runs(&RawImage::open_read(&path).unwrap()).unwrap();
    rewrite_pages(&path, &runs).unwrap();
    let after = fs::read(&path).unwrap();
    let changed = before.chunks(4096).zip(after.chunks(4096)).filter(|(a, b)| a != b).count();
    // A page may be chosen twice.
    assert!((PAGES - 30..=PAGES).contains(&changed), "{changed}");
    assert_eq!(after[1 << 20..2 << 20], before[1 << 20..2 << 20]);
}
