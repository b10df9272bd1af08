//! What an older longhaul wrote is still read, and goes on being used. `tests/data` keeps one directory for each version
//! of a format, as the code of that version left it; nothing here ever writes there.
//!
//! `store-v1`, `store-v2`: two sealed packs, one that is not, no index; `base` and `base-2`. `replica-v1`: generation 1
//! in place, generation 2 committed in the redo log. `archive-v1`, `archive-v2`: both images of the store.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use chunkstore::{
    GcOptions, ImageRoot, ImageTree, IngestOptions, RawImage, ReadImage, Replica, Scope, Seeds, Store,
    export, import, ingest, restore,
};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// A copy to work on.
fn copy_of(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy(&data(name), dir.path());
    dir
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        match from.is_dir() {
            true => copy(&from, &to),
            false => assert!(fs::copy(&from, &to).is_ok(), "{}", from.display()),
        }
    }
}

/// Bytes that do not compress, always the same for a seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Bytes that compress well.
fn text(seed: u64, len: usize) -> Vec<u8> {
    let words = noise(seed, len / 15 + 1);
    words.iter().flat_map(|byte| format!("line {byte:03} of it\n").into_bytes()).take(len).collect()
}

/// Zeroes but for these pieces.
fn image(size: usize, pieces: &[(usize, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = vec![0; size];
    for (at, piece) in pieces {
        bytes[*at..at + piece.len()].copy_from_slice(piece);
    }
    bytes
}

fn base() -> Vec<u8> {
    image((3 << 20) + 777, &[(0, noise(1, 9_000)), (1 << 20, text(2, 150_000)), (3 << 20, noise(3, 777))])
}

fn base_2() -> Vec<u8> {
    let mut bytes = base();
    bytes[2 << 20..][..60_000].copy_from_slice(&text(4, 60_000));
    bytes
}

fn images() -> [(&'static str, Vec<u8>); 2] {
    [("base", base()), ("base-2", base_2())]
}

fn root_of(image: &dyn ReadImage) -> ImageRoot {
    let mut tree = ImageTree::new(image.size());
    tree.mark_all();
    tree.refresh(image).unwrap();
    tree.root()
}

/// The store's image of that name is this one, by its root and by every byte that comes out.
fn assert_holds(store: &Store, name: &str, image: &Vec<u8>) {
    let manifest = store.manifest(name).unwrap();
    assert_eq!((manifest.size(), manifest.root()), (image.size(), root_of(image)), "{name}");
    let dir = tempfile::tempdir().unwrap();
    let target = RawImage::create(dir.path().join("image"), manifest.size()).unwrap();
    restore(store, &Seeds::new(), &manifest, &target, &|_| GO_ON).unwrap();
    assert!(fs::read(target.path()).unwrap() == *image, "{name}");
}

const GO_ON: ControlFlow<()> = ControlFlow::Continue(());

#[test]
fn a_store_of_version_1_is_read_and_goes_on() {
    is_read_and_goes_on("store-v1");
}

#[test]
fn a_store_of_version_2_is_read_and_goes_on() {
    is_read_and_goes_on("store-v2");
}

fn is_read_and_goes_on(name: &str) {
    let dir = copy_of(name);
    let packs = (1..=3).map(|number| fs::read(data(&format!("{name}/packs/000{number}.pack"))).unwrap());
    assert!(packs.map(|pack| pack.ends_with(b"LHSEALED")).eq([true, true, false]));
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.names().unwrap(), ["base", "base-2"]);
    images().iter().for_each(|(name, image)| assert_holds(&store, name, image));
    // It was cut by other rules: what is brought in again is stored again, but only once.
    let again = |_| ingest(&store, &base_2(), &IngestOptions::default(), &|_| {}).unwrap();
    let made = [0, 1].map(|time| (again(time), store.stats().unwrap()));
    assert_eq!(made[0], made[1]);
    store.publish("again", &made[0].0).unwrap();
    assert_holds(&store, "again", &base_2());

    let more = image(1 << 20, &[(0, noise(7, 70_000))]);
    store.publish("more", &ingest(&store, &more, &IngestOptions::default(), &|_| {}).unwrap()).unwrap();
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert_holds(&store, "more", &more);
    images().iter().for_each(|(name, image)| assert_holds(&store, name, image));
    assert!(store.verify(&Scope::Whole, &|_| GO_ON).unwrap().is_clean());
    // Whoever has only the older version can still tell what is not of it.
    let headers =
        |number| fs::read(dir.path().join(format!("packs/000{number}.pack"))).unwrap()[..8].to_vec();
    assert_eq!(headers(3) == *b"LHPACK\x00\x01", name == "store-v1");
    store.gc(&GcOptions { waste_percent: 1 }, &|_| GO_ON).unwrap();
    assert_holds(&store, "more", &more);
    store.remove("base").unwrap();
    store.remove("more").unwrap();
    store.gc(&GcOptions { waste_percent: 1 }, &|_| GO_ON).unwrap();
    assert_holds(&store, "base-2", &base_2());
    assert!(store.verify(&Scope::Whole, &|_| GO_ON).unwrap().is_clean());
}

#[test]
fn a_replica_of_version_1_finishes_its_pass() {
    let first = image(200_000, &[(65_536, noise(5, 5_000))]);
    assert!(fs::read(data("replica-v1/image.raw")).unwrap() == first);
    let mut second = image(200_000, &[(65_536, noise(5, 5_000)), (100_000, noise(6, 3_000))]);
    second[65_536..69_632].fill(0);

    let dir = copy_of("replica-v1");
    let replica = Replica::open(dir.path()).unwrap();
    let generation = replica.generation().unwrap();
    assert_eq!((generation.number, generation.size, generation.root), (2, 200_000, root_of(&second)));
    assert_eq!((generation.taken_unix_ms, generation.source.as_str()), (1_764_000_000_000, "an older site"));
    assert!(fs::read(replica.image_path()).unwrap() == second);

    let pass = replica.begin(200_000).unwrap();
    assert_eq!(pass.base(), Some(&generation));
    pass.write_at(0, b"newer").unwrap();
    let mut newer = generation;
    (newer.number, newer.root) = (3, root_of(&pass));
    pass.commit(newer.clone()).unwrap();
    drop(replica);
    let replica = Replica::open(dir.path()).unwrap();
    assert_eq!(replica.generation(), Some(newer));
    second[..5].copy_from_slice(b"newer");
    assert!(fs::read(replica.image_path()).unwrap() == second);
}

#[test]
fn archives_of_older_versions_are_read_and_todays_is_written_the_same() {
    for (name, current) in [("archive-v1", false), ("archive-v2", true)] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let archive = data(name);
        let report = import(&store, &mut File::open(&archive).unwrap(), false, &|_| GO_ON).unwrap();
        assert_eq!(report.names, ["base", "base-2"]);
        assert_eq!(report.bytes, archive.metadata().unwrap().len());
        images().iter().for_each(|(name, image)| assert_holds(&store, name, image));

        let mut again = Vec::new();
        export(&store, &["base-2", "base"], &mut again, &|_| GO_ON).unwrap();
        assert_eq!(again == fs::read(&archive).unwrap(), current);
    }
}
