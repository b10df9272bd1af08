//! Replicas as the receiving side of a transfer writes them: pass by pass, and what a bad pass leaves.

use chunkstore::{Chunk, PieceData, RawImage, Store, pieces};

use super::*;

const DISK: &str = "root";
const MIB: usize = 1 << 20;

struct Site {
    replicas: Replicas,
    holdings: Holdings,
    dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Site {
        let dir = tempfile::tempdir().unwrap();
        let seeds = Arc::new(Seeds::new());
        let store = Arc::new(Store::open(dir.path().join("store")).unwrap());
        let replicas = Replicas::load(&dir.path().join("replicas"), seeds.clone()).unwrap();
        Site { replicas, holdings: Holdings { store, seeds }, dir }
    }

    /// The site after its daemon was started again.
    fn restarted(self) -> Site {
        let Site { replicas, holdings: Holdings { store, .. }, dir } = self;
        drop(replicas);
        let seeds = Arc::new(Seeds::new());
        let replicas = Replicas::load(&dir.path().join("replicas"), seeds.clone()).unwrap();
        Site { replicas, holdings: Holdings { store, seeds }, dir }
    }

    fn sink(&self, name: &str, size: usize) -> ReplicaSink {
        self.replicas.sink(name, DISK, size as u64, "a", self.holdings.clone()).unwrap()
    }

    /// Scans `content` into `sink` as a transfer would. Gives the bytes that had to be sent.
    fn scan(&self, sink: &mut ReplicaSink, content: &[u8]) -> usize {
        let mut sent = 0;
        let image = self.raw("scanned.raw", content);
        for piece in pieces(&image) {
            let piece = piece.unwrap();
            match piece.data {
                PieceData::Hole => sink.hole(piece.offset, piece.len).unwrap(),
                PieceData::Chunk { id, bytes } => {
                    let len = bytes.len() as u32;
                    if !sink.place(piece.offset, len, id).unwrap() {
                        sink.expect(piece.offset, len, id).unwrap();
                        sink.chunks(&Group::of(vec![Chunk::of(bytes.clone())]), &[vec![piece.offset]])
                            .unwrap();
                        sent += bytes.len();
                    }
                }
            }
        }
        sent
    }

    /// A whole pass of `content`. Gives its generation and the bytes that had to be sent.
    fn pass(&self, name: &str, content: &[u8]) -> (u64, usize) {
        let mut sink = self.sink(name, content.len());
        let after = self.replicas.status(name, DISK).generation;
        let sent = self.scan(&mut sink, content);
        (sink.commit(self.root(content), after, 5, true).unwrap(), sent)
    }

    fn root(&self, content: &[u8]) -> Root {
        let mut tree = ImageTree::new(content.len() as u64);
        tree.mark_all();
        tree.refresh(&self.raw("hashed.raw", content)).unwrap();
        *tree.root().as_bytes()
    }

    fn raw(&self, name: &str, content: &[u8]) -> RawImage {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        RawImage::open_read(&path).unwrap()
    }

    fn content(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.replicas.image(name, DISK).unwrap()).unwrap()
    }
}

/// Bytes that look like nothing else, but are the same for the same seed.
fn noise(seed: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

/// An image with data, a hole and data.
fn image(seed: u8) -> Vec<u8> {
    [noise(seed, MIB), vec![0; MIB], noise(seed + 1, MIB)].concat()
}

#[test]
fn the_first_pass_makes_generation_one() {
    let site = Site::new();
    let empty = TargetStatus { generation: 0, root: None };
    assert_eq!(site.replicas.status("web", DISK), empty);
    assert_eq!(site.replicas.image("web", DISK), None);
    assert_eq!(site.pass("web", &image(1)), (1, 2 * MIB));
    assert_eq!(site.content("web"), image(1));
    let root = site.root(&image(1));
    assert_eq!(site.replicas.status("web", DISK), TargetStatus { generation: 1, root: Some(root) });
    let [listed] = &site.replicas.list()[..] else { panic!("one replica") };
    assert_eq!((listed.name.as_str(), listed.disk.as_str(), listed.generation), ("web", DISK, 1));
    assert_eq!((listed.size, listed.source.as_str(), listed.taken_unix_ms), (3 * MIB as u64, "a", 5));
}

#[test]
fn a_second_pass_takes_only_what_changed() {
    let site = Site::new();
    let mut content = image(1);
    site.pass("web", &content);
    content[MIB / 2] ^= 1;
    let (generation, sent) = site.pass("web", &content);
    assert_eq!(generation, 2);
    assert!((1..=chunkstore::MAX_CHUNK_BYTES).contains(&sent), "one chunk, not {sent} bytes");
    assert_eq!(site.content("web"), content);
}

#[test]
fn a_delta_follows_a_scan_also_after_a_restart() {
    let site = Site::new();
    let mut content = image(1);
    site.pass("web", &content);
    let site = site.restarted();
    for generation in 1..=2 {
        let block = noise(9 + generation as u8, 4096);
        let at = generation as usize * 64 * 1024;
        content[at..at + 4096].copy_from_slice(&block);
        let mut sink = site.sink("web", content.len());
        sink.write(at as u64, &block).unwrap();
        let root = site.root(&content);
        assert_eq!(sink.commit(root, generation, 6, false).unwrap(), generation + 1);
        assert_eq!(site.content("web"), content);
    }
}

/// The replica is what it was: number, root, bytes, and ready for another pass.
fn unchanged(site: &Site, content: &[u8]) {
    let status = TargetStatus { generation: 1, root: Some(site.root(content)) };
    assert_eq!(site.replicas.status("web", DISK), status);
    assert_eq!(site.content("web"), content);
    assert_eq!(site.pass("web", &image(40)).0, 2);
}

fn kind(outcome: Result<u64, Refusal>) -> RefusalKind {
    outcome.unwrap_err().kind
}

#[test]
fn a_pass_that_ends_with_another_root_is_refused_and_the_generation_before_stays() {
    let site = Site::new();
    site.pass("web", &image(1));
    let mut sink = site.sink("web", 3 * MIB);
    site.scan(&mut sink, &image(7));
    assert_eq!(kind(sink.commit(site.root(&image(8)), 1, 6, true)), RefusalKind::Diverged);
    drop(sink);
    unchanged(&site, &image(1));
}

#[test]
fn a_delta_for_another_generation_is_refused_and_the_one_there_is_stays() {
    let site = Site::new();
    site.pass("web", &image(1));
    for after in [0, 2] {
        let mut sink = site.sink("web", 3 * MIB);
        sink.write(0, &noise(3, 4096)).unwrap();
        let mut content = image(1);
        content[..4096].copy_from_slice(&noise(3, 4096));
        assert_eq!(kind(sink.commit(site.root(&content), after, 6, false)), RefusalKind::Diverged);
    }
    unchanged(&site, &image(1));
}

#[test]
fn a_pass_that_is_given_up_leaves_the_generation_before() {
    let site = Site::new();
    site.pass("web", &image(1));
    let mut sink = site.sink("web", 3 * MIB);
    site.scan(&mut sink, &image(7));
    drop(sink);
    unchanged(&site, &image(1));
}

#[test]
fn a_first_copy_must_be_whole() {
    let site = Site::new();
    let mut sink = site.sink("web", MIB);
    sink.write(0, &noise(1, 4096)).unwrap();
    let content = [noise(1, 4096), vec![0; MIB - 4096]].concat();
    assert_eq!(kind(sink.commit(site.root(&content), 0, 6, false)), RefusalKind::Diverged);
    drop(sink);
    assert!(site.replicas.list().is_empty());
    assert_eq!(site.pass("web", &content).0, 1);
}

#[test]
fn a_disk_that_was_resized_is_copied_anew_as_the_next_generation() {
    let site = Site::new();
    site.pass("web", &image(1));
    let larger = [image(1), noise(5, MIB)].concat();
    let mut sink = site.sink("web", larger.len());
    sink.write(0, &noise(1, 4096)).unwrap();
    assert_eq!(kind(sink.commit(site.root(&larger), 1, 6, false)), RefusalKind::Diverged, "not by a delta");
    drop(sink);
    assert_eq!(site.pass("web", &larger).0, 2);
    assert_eq!(site.content("web"), larger);
    assert_eq!(site.pass("web", &image(1)).0, 3, "and smaller again");
}

#[test]
fn nothing_follows_a_commit() {
    let site = Site::new();
    let mut sink = site.sink("web", MIB);
    let content = noise(1, MIB);
    site.scan(&mut sink, &content);
    sink.commit(site.root(&content), 0, 6, true).unwrap();
    assert_eq!(sink.write(0, &[0; 4096]).unwrap_err().kind, RefusalKind::Protocol);
    assert_eq!(site.content("web"), content);
}

#[test]
fn one_pass_at_a_time() {
    let site = Site::new();
    let sink = site.sink("web", MIB);
    let second = site.replicas.sink("web", DISK, MIB as u64, "c", site.holdings.clone());
    assert!(matches!(second.err(), Some(ReplicaError::Busy { .. })));
    drop(sink);
    site.sink("web", MIB);
}

#[test]
fn what_one_replica_holds_is_not_sent_for_another_also_after_a_restart() {
    let site = Site::new();
    site.pass("web", &image(1));
    assert_eq!(site.pass("copy", &image(1)), (1, 0));
    let site = site.restarted();
    assert_eq!(site.pass("another", &image(1)), (1, 0));
    assert_eq!(site.content("another"), image(1));
    let names: Vec<_> = site.replicas.list().into_iter().map(|listed| listed.name).collect();
    assert_eq!(names, ["another", "copy", "web"]);
}

#[test]
fn a_restore_is_a_copy_and_overwrites_nothing() {
    let site = Site::new();
    let target = site.dir.path().join("restored.raw");
    assert!(matches!(site.replicas.restore("web", DISK, &target), Err(ReplicaError::Empty { .. })));
    site.pass("web", &image(1));
    assert_eq!(site.replicas.restore("web", DISK, &target).unwrap().number, 1);
    assert_eq!(std::fs::read(&target).unwrap(), image(1));
    assert!(matches!(site.replicas.restore("web", DISK, &target), Err(ReplicaError::Exists { .. })));
}

#[test]
fn after_a_restart_the_image_is_known_unless_somebody_has_touched_it() {
    let site = Site::new();
    let mut content = image(1);
    site.pass("web", &content);
    let unread = |site: &Site| {
        let sink = site.sink("web", content.len());
        sink.assembly.as_ref().unwrap().tree.lock().unwrap().marked_leaves()
    };
    let site = site.restarted();
    assert_eq!(unread(&site), 0);
    // The pass above was dropped, and took the tree that was in memory with it.
    assert_eq!(unread(&site), 0);
    let path = site.replicas.image("web", DISK).unwrap();
    // A file system's clock ticks every few milliseconds.
    std::thread::sleep(std::time::Duration::from_millis(20));
    let file = std::fs::File::options().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"x", 70_000).unwrap();
    let site = site.restarted();
    assert_eq!(unread(&site), content.len() as u64 / chunkstore::LEAF_BYTES);
    // A pass finds what was changed, since it reads all of it, and puts it right.
    content[MIB / 2] ^= 1;
    assert_eq!(site.pass("web", &content).0, 2);
    assert_eq!(site.content("web"), content);
}
