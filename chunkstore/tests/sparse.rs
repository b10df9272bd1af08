//! What a huge image with little data in it costs: memory and files by its data, not by its size. In a process of its own,
//! whose memory is measured.

use std::fs;
use std::io;
use std::ops::Range;

use chunkstore::{
    Generation, ImageTree, IngestOptions, LEAF_BYTES, RawImage, ReadImage, Replica, Store, ingest,
};

const MIB: u64 = 1 << 20;

/// Two MiB of data in an image of any size.
struct Thin(u64);

impl Thin {
    fn data(&self) -> [Range<u64>; 2] {
        let middle = self.0 / 3 / LEAF_BYTES * LEAF_BYTES;
        [0..MIB, middle..middle + MIB]
    }
}

impl ReadImage for Thin {
    fn size(&self) -> u64 {
        self.0
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        for (at, byte) in (offset..).zip(buf) {
            *byte = if self.data().iter().any(|data| data.contains(&at)) { (at % 251) as u8 } else { 0 };
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        Ok(self
            .data()
            .into_iter()
            .find(|data| data.end > offset)
            .map(|data| data.start.max(offset)..data.end))
    }
}

/// The most that this process has had in memory.
fn peak_mib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("every process has one");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next());
    peak.and_then(|kib| kib.parse::<u64>().ok()).expect("it is told in KiB") / 1024
}

#[test]
fn a_huge_image_with_little_data_takes_little() {
    let before = peak_mib();
    for tib in [4, 16, 64] {
        let image = Thin(tib << 40);
        let mut tree = ImageTree::new(image.size());
        for _ in 0..2 {
            tree.mark_all();
            assert_eq!(tree.refresh(&image).unwrap(), 2 * MIB / LEAF_BYTES);
        }
        let kept = tree.clone();

        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        let manifest = ingest(&store, &image, &IngestOptions::default(), &|_| ()).unwrap();
        assert_eq!(manifest.root(), kept.root(), "{tib} TiB");
        assert_eq!(manifest.data_bytes(), 2 * MIB);
        assert!(peak_mib() - before < 100, "{} MiB for {tib} TiB", peak_mib() - before);
    }
}

#[test]
fn a_replica_of_a_huge_image_keeps_a_small_tree() {
    let image = Thin(4 << 40);
    let dir = tempfile::tempdir().unwrap();
    let replica = Replica::open(dir.path()).unwrap();
    let pass = replica.begin(image.size()).unwrap();
    let mut tree = ImageTree::new(image.size());
    for data in image.data() {
        let mut bytes = vec![0; MIB as usize];
        image.read_at(data.start, &mut bytes).unwrap();
        pass.write_at(data.start, &bytes).unwrap();
        tree.mark(data);
    }
    tree.refresh(&pass).unwrap();
    let generation = Generation {
        set: None,
        number: 1,
        size: image.size(),
        root: tree.root(),
        taken_unix_ms: 0,
        source: "test".to_owned(),
    };
    pass.commit(generation).unwrap();
    replica.save_tree(&tree).unwrap();
    assert!(fs::metadata(dir.path().join("tree")).unwrap().len() < 10_000);
    drop(replica);
    let again = Replica::open(dir.path()).unwrap();
    let mut kept = again.tree().expect("the tree is there");
    assert_eq!(kept.root(), tree.root());
    kept.mark_all();
    kept.refresh(&RawImage::open_read(again.image_path()).unwrap()).unwrap();
    assert_eq!(kept.root(), tree.root());
}
