use std::cell::Cell;
use std::ops::ControlFlow;
use std::{fs, io};

use super::{IngestError, IngestOptions, RestoreError, Restored, ingest, restore, restore_to};
use crate::testing::{SmallDisk, noise, text};
use crate::{BLOCK_BYTES, ImageTree, Manifest, RawImage, ReadImage, Scope, Seeds, Store, StoreError};

const GO_ON: ControlFlow<()> = ControlFlow::Continue(());

fn sample(path: &std::path::Path) -> RawImage {
    let image = RawImage::create(path, (40 << 20) + 777).unwrap();
    image.write_at(0, &noise(1, 3 << 20)).unwrap();
    image.write_at(10 << 20, &text(2, 6 << 20)).unwrap();
    image.write_at(40 << 20, &noise(3, 777)).unwrap();
    image
}

fn ingested() -> (tempfile::TempDir, Store, RawImage, Manifest) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    let image = sample(&dir.path().join("a.raw"));
    let manifest = ingest(&store, &image, &IngestOptions::default(), &|_| {}).unwrap();
    (dir, store, image, manifest)
}

#[test]
fn everything_may_cross_threads() {
    fn crosses<T: Send + Sync + 'static>() {}
    crosses::<(Store, Seeds, RawImage, crate::Replica, crate::Pass, ImageTree, crate::Pin)>();
}

/// Every kind of content, at aligned and odd places: data with and without structure, repetition, short runs of
/// zeroes, holes, an odd end.
fn motley() -> Vec<u8> {
    let mut bytes = noise(1, 5 << 20);
    bytes.extend(text(2, (3 << 20) + 4321));
    bytes.resize(bytes.len() + 300_000, 0);
    bytes.extend(vec![7; 700_001]);
    bytes.extend((0..900_000).map(|at| u8::from(at % 70_000 == 0)));
    bytes.resize(18 << 20, 0);
    bytes.extend(noise(3, (2 << 20) + 777));
    bytes[1 << 20..(1 << 20) + 50_000].fill(0);
    bytes
}

/// What the format says, cut, hashed and encoded: images that are published must be found again by every later version. The
/// root is that of the first; the cuts are those of 2026-11-29.
#[test]
fn cuts_names_and_roots_are_those_of_the_format() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let manifest = ingest(&store, &motley(), &IngestOptions::default(), &|_| {}).unwrap();
    assert_eq!(
        manifest.root().to_string(),
        "9c8e122fdd63eb23a7b64a5b2bfa6051695c3287ca0bfa4e85bfa30540685abb"
    );
    assert_eq!(manifest.extents().count(), 166);
    assert_eq!(
        blake3::hash(&manifest.encode()).to_hex().as_str(),
        "c45f6dc6683b325b2bfe7a8b1c0d1323fc6bcec598ff1641de5081d2dba64a81"
    );
}

#[test]
fn an_image_goes_in_and_comes_out_sparse() {
    let (dir, store, image, manifest) = ingested();
    let mut tree = ImageTree::new(image.size());
    tree.mark_all();
    tree.refresh(&image).unwrap();
    assert_eq!((manifest.root(), manifest.size()), (tree.root(), image.size()));

    store.publish("base", &manifest).unwrap();
    let target = RawImage::create(dir.path().join("b.raw"), image.size()).unwrap();
    target.write_at(20 << 20, &noise(9, 1 << 20)).unwrap();
    let done = Cell::new(0);
    restore(&store, &Seeds::new(), &store.manifest("base").unwrap(), &target, &|bytes| {
        done.set(bytes);
        GO_ON
    })
    .unwrap();
    assert_eq!(done.get(), image.size());
    assert!(fs::read(image.path()).unwrap() == fs::read(target.path()).unwrap());
    assert!(target.allocated_bytes().unwrap() <= image.allocated_bytes().unwrap() + 65536);
    assert!(store.stats().unwrap().stored_bytes < 4 << 20);
}

#[test]
fn a_second_time_adds_nothing() {
    let (_dir, store, image, manifest) = ingested();
    let before = store.stats().unwrap();
    assert_eq!(ingest(&store, &image, &IngestOptions::default(), &|_| {}).unwrap(), manifest);
    assert_eq!(store.stats().unwrap(), before);
}

#[test]
fn failures_say_what_to_do() {
    let (dir, store, image, manifest) = ingested();
    let small = RawImage::create(dir.path().join("c.raw"), 4096).unwrap();
    let error = restore(&store, &Seeds::new(), &manifest, &small, &|_| GO_ON).unwrap_err();
    assert!(matches!(error, RestoreError::Size { target_bytes: 4096, .. }), "{error}");

    let empty = Store::open(dir.path().join("empty")).unwrap();
    let target = RawImage::create(dir.path().join("d.raw"), manifest.size()).unwrap();
    let error = restore(&empty, &Seeds::new(), &manifest, &target, &|_| GO_ON).unwrap_err();
    assert!(matches!(error, RestoreError::Store(StoreError::Missing { .. })), "{error}");

    fs::OpenOptions::new().write(true).open(image.path()).unwrap().set_len(1 << 20).unwrap();
    let error = ingest(&store, &image, &IngestOptions::default(), &|_| {}).unwrap_err();
    assert!(matches!(error, IngestError::Read(_)) && error.to_string().contains("shrank"), "{error}");
}

#[test]
fn any_number_of_threads_and_any_level_make_the_same_image() {
    let dir = tempfile::tempdir().unwrap();
    let mut made = Vec::new();
    for (threads, level) in [(1, 1), (3, 1), (8, 9)] {
        let store = Store::open(dir.path().join(format!("{threads}-{level}"))).unwrap();
        let options = IngestOptions { level, threads: threads.try_into().unwrap() };
        let done = Cell::new(0);
        made.push(ingest(&store, &motley(), &options, &|bytes| done.set(bytes)).unwrap());
        assert_eq!(done.get(), motley().size());
        assert!(made[0].chunks().all(|id| store.get(&id).is_ok()));
    }
    assert!(made.iter().all(|manifest| *manifest == made[0]));
}

#[test]
fn a_reader_that_fails_ends_the_ingest() {
    struct Bad;
    impl ReadImage for Bad {
        fn size(&self) -> u64 {
            1 << 40
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
            if offset > 20 << 20 {
                return Err(io::Error::other("bad sector"));
            }
            buf.copy_from_slice(&noise(offset, buf.len()));
            Ok(())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let error = ingest(&store, &Bad, &IngestOptions::default(), &|_| {}).unwrap_err();
    assert!(matches!(error, IngestError::Read(_)) && error.to_string().contains("bad sector"), "{error}");
    assert!(store.stats().unwrap().chunks > 100);
}

#[test]
fn a_store_that_is_full_ends_the_ingest_and_stays_whole() {
    let Some(disk) = SmallDisk::mount(3_000_000) else {
        eprintln!("skipped: not allowed to mount a tmpfs");
        return;
    };
    let store = Store::open(disk.path()).unwrap();
    let error = ingest(&store, &noise(1, 60 << 20), &IngestOptions::default(), &|_| {}).unwrap_err();
    assert!(matches!(&error, IngestError::Store(error) if error.is_full()), "{error}");
    assert!(
        store.stats().unwrap().chunks > 10
            && store.verify(&Scope::Whole, &|_| ControlFlow::Continue(())).unwrap().is_clean()
    );
}

#[test]
fn a_restore_writes_only_what_differs() {
    let (dir, store, image, manifest) = ingested();
    let target = dir.path().join("b.raw");
    fs::copy(image.path(), &target).unwrap();
    let target = RawImage::open_write(&target).unwrap();
    let again = || restore(&store, &Seeds::new(), &manifest, &target, &|_| GO_ON).unwrap();
    assert_eq!(again().written_bytes, 0);
    assert_eq!(again(), Restored::default());
    // Two bytes side by side in two blocks, one elsewhere, and data in a hole.
    target.write_at(8191, &[1, 2]).unwrap();
    target.write_at(12 << 20, &[3]).unwrap();
    target.write_at(25 << 20, &noise(9, 8192)).unwrap();
    assert_eq!(again(), Restored { written_bytes: 3 * BLOCK_BYTES, zeroed_bytes: 8192 });
    assert!(fs::read(image.path()).unwrap() == fs::read(target.path()).unwrap());
}

#[test]
fn a_restore_takes_what_seeds_have_from_them() {
    let (dir, _store, image, manifest) = ingested();
    let empty = Store::open(dir.path().join("empty")).unwrap();
    let seeds = Seeds::new();
    seeds.add_image(image.path(), &manifest).unwrap();
    let path = dir.path().join("b.raw");
    let restored = restore_to(&empty, &seeds, &manifest, &path, Some(&image), &|_| GO_ON).unwrap();
    assert!(restored.written_bytes <= manifest.data_bytes());
    assert!(fs::read(image.path()).unwrap() == fs::read(&path).unwrap());
    let error = restore_to(&empty, &seeds, &manifest, &path, None, &|_| GO_ON).unwrap_err();
    assert!(matches!(&error, RestoreError::Target(error) if error.to_string().contains("exists")), "{error}");
    assert!(path.exists());
}

#[test]
fn a_target_that_fills_its_disk_is_an_error_and_harms_no_store() {
    let Some(disk) = SmallDisk::mount(2_000_000) else {
        eprintln!("skipped: not allowed to mount a tmpfs");
        return;
    };
    let (_dir, store, _image, manifest) = ingested();
    let path = disk.path().join("b.raw");
    let error = restore_to(&store, &Seeds::new(), &manifest, &path, None, &|_| GO_ON).unwrap_err();
    assert!(matches!(&error, RestoreError::Target(error) if error.is_full()), "{error}");
    assert!(error.to_string().contains("free some space") && !path.exists(), "{error}");
    assert!(store.verify(&Scope::Whole, &|_| ControlFlow::Continue(())).unwrap().is_clean());
}

#[test]
fn seeds_give_what_an_image_still_holds() {
    let (_dir, _store, image, manifest) = ingested();
    let seeds = Seeds::new();
    seeds.add_image(image.path(), &manifest).unwrap();
    let first = manifest.chunks().next().unwrap();
    assert!(manifest.chunks().all(|id| seeds.contains(&id) && seeds.get(&id).is_some()));

    let writer = RawImage::open_write(image.path()).unwrap();
    writer.write_at(100, b"changed").unwrap();
    assert_eq!(seeds.get(&first), None);
    assert!(!seeds.contains(&first));
    seeds.forget(image.path());
    assert!(manifest.chunks().all(|id| seeds.get(&id).is_none()));
}
