//! Replicas as the receiving side of a transfer writes them: pass by pass, and what a bad pass leaves.

use std::thread;

use chunkstore::{Chunk, ChunkId, Group, PieceData, RawImage, Store, pieces};
use longhaul_proto::JobId;
use longhaul_proto::handoff::Root;
use longhaul_proto::wire::RefusalKind;

use super::restore::{Outcome, Restored};
use super::*;
use crate::service::peers::Peer;
use crate::transfer::sink::Sink;

const DISK: &str = "root";
const MIB: usize = 1 << 20;

struct Site {
    replicas: Arc<Replicas>,
    holdings: Holdings,
    peers: Arc<Peers>,
    dir: tempfile::TempDir,
}

/// The peer of this name and key.
fn source(name: &str, key: u8) -> Source {
    Source { name: name.to_owned(), fingerprint: [key; 32].into() }
}

fn load(dir: &Path, seeds: &Arc<Seeds>, peers: &Arc<Peers>) -> Arc<Replicas> {
    let replicas = Replicas::load(&dir.join("replicas"), seeds.clone(), peers.clone());
    replicas._seeding.wait();
    Arc::new(replicas)
}

impl Site {
    fn new() -> Site {
        let dir = tempfile::tempdir().unwrap();
        let seeds = Arc::new(Seeds::new());
        let store = Arc::new(Store::open(dir.path().join("store")).unwrap());
        let peers = Arc::new(Peers::load(dir.path()).unwrap());
        let site = Site {
            replicas: load(dir.path(), &seeds, &peers),
            holdings: Holdings { store, seeds },
            peers,
            dir,
        };
        site.knows("a", 1);
        site
    }

    fn knows(&self, name: &str, key: u8) {
        let peer = Peer { address: "192.0.2.1:4433".to_owned(), fingerprint: [key; 32].into() };
        self.peers.add(name, peer).unwrap();
    }

    /// The site after its daemon was started again.
    fn restarted(self) -> Site {
        let Site { replicas, holdings: Holdings { store, .. }, peers, dir } = self;
        drop(replicas);
        let seeds = Arc::new(Seeds::new());
        let replicas = load(dir.path(), &seeds, &peers);
        Site { replicas, holdings: Holdings { store, seeds }, peers, dir }
    }

    fn sink(&self, name: &str, size: usize) -> ReplicaSink {
        self.sink_of(name, DISK, size, &source("a", 1), None).unwrap()
    }

    fn sink_of(
        &self,
        name: &str,
        disk: &str,
        size: usize,
        of: &Source,
        set: Option<SetOf>,
    ) -> Result<ReplicaSink, ReplicasError> {
        self.replicas.sink(name, disk, size as u64, of, set, self.holdings.clone())
    }

    /// A whole pass of another peer.
    fn pass_of(&self, name: &str, content: &[u8], of: &Source) -> u64 {
        let mut sink = self.sink_of(name, DISK, content.len(), of, None).unwrap();
        let after = sink.status().generation;
        self.scan(&mut sink, content);
        sink.commit(self.root(content), after, 5, true).unwrap()
    }

    fn replica_dir(&self, name: &str) -> PathBuf {
        self.dir.path().join("replicas").join(name).join(DISK)
    }

    fn status(&self, name: &str) -> TargetStatus {
        self.replicas.status(name, DISK, &source("a", 1))
    }

    fn restore(&self, name: &str, path: &str) -> Result<Vec<Restored>, ReplicasError> {
        let path = self.dir.path().join(path);
        let done = self.replicas.restore(name, &RestoreRequest { path, ..RestoreRequest::default() })?;
        assert_eq!(done.left_out, []);
        Ok(done.restored)
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
        let after = self.status(name).generation;
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
    assert_eq!(site.status("web"), empty);
    assert_eq!(site.replicas.image("web", DISK), None);
    assert_eq!(site.pass("web", &image(1)), (1, 2 * MIB));
    assert_eq!(site.content("web"), image(1));
    let root = site.root(&image(1));
    assert_eq!(site.status("web"), TargetStatus { generation: 1, root: Some(root) });
    let [listed] = &site.replicas.list()[..] else { panic!("one replica") };
    assert_eq!((listed.name.as_str(), listed.disk.as_str(), listed.generation), ("web", DISK, Some(1)));
    let source = listed.source.as_deref();
    assert_eq!((listed.size, source, listed.taken_unix_ms), (Some(3 * MIB as u64), Some("a"), Some(5)));
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
    assert_eq!(site.status("web"), status);
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
    let second = site.sink_of("web", DISK, MIB, &source("a", 1), None);
    assert_eq!(second.err().map(|error| error.refusal().kind), Some(RefusalKind::Busy));
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
    assert!(matches!(site.restore("web", "out"), Err(ReplicasError::Unknown { .. })));
    site.pass("web", &image(1));
    let [restored] = &site.restore("web", "out").unwrap()[..] else { panic!("one disk") };
    assert_eq!((restored.generation, restored.path.clone()), (1, site.dir.path().join("out")));
    assert_eq!(std::fs::read(site.dir.path().join("out")).unwrap(), image(1));
    let again = site.restore("web", "out");
    assert!(matches!(again, Err(ReplicasError::Replica(ReplicaError::Exists { .. }))));
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

/// Bytes of the image at `path` decay.
fn rot(path: &Path) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"ROT", 100_000).unwrap();
}

#[test]
fn damage_is_not_handed_out_and_the_next_pass_mends_it() {
    let site = Site::new();
    let mut content = image(1);
    site.pass("web", &content);
    rot(&site.replica_dir("web").join("image.raw"));
    assert!(matches!(site.restore("web", "out"), Err(ReplicasError::Replica(ReplicaError::Rotten { .. }))));
    assert!(!site.dir.path().join("out").exists());
    assert!(site.replicas.list()[0].state.starts_with("damaged"), "{:?}", site.replicas.list());
    // What was damaged is known to the next pass: blocks alone cannot lead to the right root.
    content[2 * MIB..2 * MIB + 4096].copy_from_slice(&noise(9, 4096));
    let mut sink = site.sink("web", content.len());
    sink.write(2 * MIB as u64, &noise(9, 4096)).unwrap();
    assert_eq!(kind(sink.commit(site.root(&content), 1, 6, false)), RefusalKind::Diverged);
    drop(sink);
    assert_eq!(site.pass("web", &content).0, 2);
    assert_eq!(site.content("web"), content);
    assert_eq!(site.replicas.list()[0].state, "ok");
    site.restore("web", "out").unwrap();
}

#[test]
fn two_peers_have_a_vm_of_one_name() {
    let site = Site::new();
    let (a, c) = (source("a", 1), source("c", 3));
    site.knows("c", 3);
    assert_eq!(site.pass_of("web", &image(1), &a), 1);
    assert_eq!(site.pass_of("web", &image(7), &c), 1, "of its own, not after a's");
    assert_eq!(site.pass_of("web", &image(7), &c), 2);
    let site = site.restarted();
    let listed = site.replicas.list();
    let listed: Vec<_> = listed
        .iter()
        .map(|l| (l.name.as_str(), l.source.as_deref().unwrap(), l.generation.unwrap()))
        .collect();
    assert_eq!(listed, [("web", "a", 1), ("web", "c", 2)]);
    assert_eq!(std::fs::read(site.replica_dir("web").join("image.raw")).unwrap(), image(1));
    assert_eq!(std::fs::read(site.replica_dir("web@c").join("image.raw")).unwrap(), image(7));
    let of = |peer: u8| site.replicas.image_of(&[peer; 32].into(), "web", DISK);
    assert_eq!(of(3), Some(site.replica_dir("web@c").join("image.raw")));
    // Which one is meant has to be said.
    let restore = |name: &str, from: Option<&str>, path: &str| {
        let (path, from) = (site.dir.path().join(path), from.map(str::to_owned));
        site.replicas.restore(name, &RestoreRequest { path, from, ..RestoreRequest::default() })
    };
    assert!(matches!(restore("web", None, "x"), Err(ReplicasError::Ambiguous { .. })));
    assert!(matches!(restore("web", Some("d"), "x"), Err(ReplicasError::Unknown { .. })));
    restore("web", Some("c"), "of-c").unwrap();
    restore("web@c", None, "of-c-too").unwrap();
    restore("web", Some("a"), "of-a").unwrap();
    assert_eq!(std::fs::read(site.dir.path().join("of-c")).unwrap(), image(7));
    assert_eq!(std::fs::read(site.dir.path().join("of-a")).unwrap(), image(1));
}

#[test]
fn a_peer_is_known_by_its_key_whatever_its_name() {
    let site = Site::new();
    site.pass("web", &image(1));
    // The same platform under another name goes on with its replicas; another platform under the old name does not.
    site.peers.remove("a").unwrap();
    site.knows("renamed", 1);
    assert_eq!(site.pass_of("web", &image(2), &source("renamed", 1)), 2);
    site.knows("a", 9);
    assert_eq!(site.pass_of("web", &image(3), &source("a", 9)), 1);
    assert_eq!(std::fs::read(site.replica_dir("web").join("image.raw")).unwrap(), image(2));
    assert_eq!(site.replicas.list()[1].source.as_deref(), Some("renamed"));
    // And a third one of that name.
    assert_eq!(site.pass_of("web", &image(4), &source("a", 10)), 1);
    assert_eq!(std::fs::read(site.replica_dir("web@a").join("image.raw")).unwrap(), image(3));
}

#[test]
fn replicas_of_before_there_were_owners_are_their_source_s() {
    let site = Site::new();
    site.pass("web", &image(1));
    let owner = site.replica_dir("web").with_file_name("owner");
    let noted = std::fs::read(&owner).unwrap();
    std::fs::remove_file(&owner).unwrap();
    let site = site.restarted();
    assert_eq!(std::fs::read(&owner).unwrap(), noted, "its source is a peer that is known");
    std::fs::remove_file(&owner).unwrap();
    site.peers.remove("a").unwrap();
    let site = site.restarted();
    assert!(!owner.exists(), "its source is not known");
    assert_eq!(site.pass_of("web", &image(2), &source("c", 3)), 1, "not after a's");
    assert_eq!(site.pass_of("web", &image(1), &source("a", 1)), 2, "after its own");
    assert!(owner.exists());
}

#[test]
fn a_replica_that_the_disk_cannot_read_is_asked_for_whole() {
    let site = Site::new();
    let mut content = image(1);
    site.pass("web", &content);
    // As a verification leaves it that met the place.
    std::fs::remove_file(site.replica_dir("web").join("tree")).unwrap();
    content[2 * MIB..2 * MIB + 4096].copy_from_slice(&noise(9, 4096));
    let mut sink = site.sink("web", content.len());
    sink.assembly.as_mut().unwrap().image.bad = Some(100_000);
    sink.write(2 * MIB as u64, &noise(9, 4096)).unwrap();
    let refused = sink.commit(site.root(&content), 1, 6, false).unwrap_err();
    assert!(refused.reason.contains("cannot be read"), "{refused}");
    assert_eq!(refused.kind, RefusalKind::Diverged);
    drop(sink);
    assert_eq!(site.pass("web", &content).0, 2);
    assert_eq!(site.content("web"), content);
}

#[test]
fn a_pass_does_not_begin_while_its_replica_is_restored() {
    let site = Site::new();
    site.pass("web", &image(1));
    let kept = lock(&site.replicas.vms)["web"].disks[DISK].clone();
    kept.restoring.fetch_add(1, Ordering::AcqRel);
    let refused = site.sink_of("web", DISK, MIB, &source("a", 1), None).map(drop).unwrap_err();
    assert!(matches!(refused, ReplicasError::Restoring { .. }), "{refused}");
    assert_eq!(refused.refusal().kind, RefusalKind::Busy);
    kept.restoring.fetch_sub(1, Ordering::AcqRel);
    site.restore("web", "out").unwrap();
    site.pass("web", &image(1));
}

#[test]
fn a_target_that_cannot_be_written_is_no_damage_of_the_replica() {
    let site = Site::new();
    site.pass("web", &image(1));
    std::fs::write(site.dir.path().join("file"), "").unwrap();
    assert!(site.restore("web", "file/out").is_err());
    assert_eq!(site.replicas.list()[0].state, "ok");
}

/// Passes of both disks of a VM, side by side: each of one content, or refused.
fn pass_of_set(
    site: &Site,
    id: u8,
    contents: [&[u8]; 2],
    announced: [&[u8]; 2],
) -> [Result<u64, Refusal>; 2] {
    let set = Some(SetOf { id: JobId([id; 16]), disks: 2 });
    let sinks = ["root", "data"].map(|disk| {
        let content = if disk == "root" { contents[0] } else { contents[1] };
        site.sink_of("web", disk, content.len(), &source("a", 1), set).unwrap()
    });
    thread::scope(|scope| {
        let mut sinks = sinks.into_iter();
        let mut commit = |index: usize| {
            let mut sink = sinks.next().unwrap();
            scope.spawn(move || {
                let after = sink.status().generation;
                for (at, block) in contents[index].chunks(chunkstore::MAX_CHUNK_BYTES).enumerate() {
                    let (offset, chunk) =
                        (at * chunkstore::MAX_CHUNK_BYTES, Chunk::of(block.to_vec().into()));
                    sink.expect(offset as u64, block.len() as u32, ChunkId::of(block)).unwrap();
                    sink.chunks(&Group::of(vec![chunk]), &[vec![offset as u64]]).unwrap();
                }
                sink.commit(root_of(announced[index]), after, 5, true)
            })
        };
        let (root, data) = (commit(0), commit(1));
        [root.join().unwrap(), data.join().unwrap()]
    })
}

fn root_of(content: &[u8]) -> Root {
    let mut tree = ImageTree::new(content.len() as u64);
    tree.mark_all();
    tree.refresh(&content.to_vec()).unwrap();
    *tree.root().as_bytes()
}

#[test]
fn the_disks_of_a_pass_are_committed_together_or_not_at_all() {
    let site = Site::new();
    let [a, b, c, d] = [1, 2, 3, 4].map(|seed| noise(seed, MIB));
    assert_eq!(pass_of_set(&site, 1, [&a, &b], [&a, &b]), [Ok(1), Ok(1)]);
    // One of them is not what its sender says: neither is committed.
    let outcome = pass_of_set(&site, 2, [&c, &d], [&c, &a]);
    assert_eq!(outcome[1].as_ref().map_err(|refusal| refusal.kind), Err(RefusalKind::Diverged));
    assert!(outcome[0].is_err());
    let listed =
        || site.replicas.list().iter().map(|l| (l.disk.clone(), l.generation.unwrap())).collect::<Vec<_>>();
    assert_eq!(listed(), [("data".to_owned(), 1), ("root".to_owned(), 1)]);
    // And both at the next try, which is possible at once.
    assert_eq!(pass_of_set(&site, 3, [&c, &d], [&c, &d]), [Ok(2), Ok(2)]);
    let site = site.restarted();
    let restored = site.restore("web", "all").unwrap();
    assert_eq!(restored.iter().map(|disk| disk.generation).collect::<Vec<_>>(), [2, 2]);
    assert!(std::fs::read(site.dir.path().join("all/root.raw")).unwrap() == c);
    assert!(std::fs::read(site.dir.path().join("all/data.raw")).unwrap() == d);
    // One that is passed no longer is of an older set than the others.
    let mut sink = site
        .sink_of("web", "root", MIB, &source("a", 1), Some(SetOf { id: JobId([4; 16]), disks: 1 }))
        .unwrap();
    site.scan(&mut sink, &b);
    assert_eq!(sink.commit(site.root(&b), 2, 6, true), Ok(3));
    drop(sink);
    let path = site.dir.path().join("root only");
    let done = site.replicas.restore("web", &RestoreRequest { path: path.clone(), ..Default::default() });
    let Outcome { restored, left_out } = done.unwrap();
    assert_eq!((restored.len(), restored[0].generation), (1, 3));
    assert_eq!(left_out, [LeftOut { disk: "data".to_owned(), generation: 2, taken_unix_ms: 5 }]);
    assert!(std::fs::read(path).unwrap() == b);
    // A disk by itself is of another moment.
    site.pass("web", &a);
    assert!(matches!(site.restore("web", "mixed"), Err(ReplicasError::Mixed { .. })));
    assert!(!site.dir.path().join("mixed").exists());
}

#[test]
fn a_disk_that_never_comes_ends_its_set() {
    let site = Site::new();
    let set = Some(SetOf { id: JobId([1; 16]), disks: 2 });
    let open = |disk: &str| site.sink_of("web", disk, MIB, &source("a", 1), set);
    let content = noise(1, MIB);
    let commit = |sink: &mut ReplicaSink| {
        site.scan(sink, &content);
        sink.commit(site.root(&content), 0, 5, true)
    };
    // The other one was not even opened.
    let mut alone = open("root").unwrap();
    assert_eq!(kind(commit(&mut alone)), RefusalKind::Protocol);
    drop(alone);
    // It was given up while the first waited for it.
    let (mut root, data) = (open("root").unwrap(), open("data").unwrap());
    assert!(matches!(open("third"), Err(ReplicasError::Refused(_))), "two disks, no more");
    let outcome = thread::scope(|scope| {
        let waiting = scope.spawn(move || commit(&mut root));
        drop(data);
        waiting.join().unwrap()
    });
    assert_eq!(kind(outcome), RefusalKind::Failed);
    assert!(site.replicas.list().is_empty());
    let site = site.restarted();
    assert!(site.replicas.list().is_empty());
    assert_eq!(pass_of_set(&site, 2, [&content, &content], [&content, &content]), [Ok(1), Ok(1)]);
}

#[test]
fn broken_replicas_are_left_out_and_the_next_pass_starts_them_anew() {
    let site = Site::new();
    for name in ["good", "stateless", "imageless", "foreign"] {
        site.pass(name, &image(1));
    }
    let dir = site.dir.path().join("replicas");
    std::fs::write(site.replica_dir("stateless").join("state"), b"").unwrap();
    std::fs::remove_file(site.replica_dir("imageless").join("image.raw")).unwrap();
    std::fs::write(site.replica_dir("foreign").join("state"), b"LHREPL\x00\x09 of another version").unwrap();
    std::fs::create_dir_all(dir.join("empty/disk")).unwrap();
    std::fs::create_dir_all(dir.join("lost+found")).unwrap();
    std::fs::create_dir_all(dir.join("good/lost+found")).unwrap();
    std::fs::write(dir.join("README"), b"x").unwrap();
    std::os::unix::fs::symlink("/nonexistent", dir.join("dead")).unwrap();
    std::os::unix::fs::symlink("/nonexistent", dir.join("good/dead")).unwrap();
    let site = site.restarted();
    let listed = site.replicas.list();
    let damaged: Vec<_> = listed.iter().filter(|l| l.state != "ok").map(|l| l.name.as_str()).collect();
    assert_eq!((listed.len(), damaged), (4, vec!["foreign", "imageless", "stateless"]));
    let unknown = listed.iter().filter(|l| l.state != "ok").map(|l| (l.generation, l.size, l.taken_unix_ms));
    assert!(unknown.eq([(None, None, None); 3]), "{listed:?}");
    assert!(matches!(site.restore("imageless", "out"), Err(ReplicasError::Damaged { .. })));
    site.restore("good", "good.raw").unwrap();
    for name in ["imageless", "stateless", "empty", "good"] {
        let generation = if name == "good" { 2 } else { 1 };
        assert_eq!(site.pass(name, &image(1)).0, generation, "{name}");
        assert_eq!(site.content(name), image(1));
    }
    let aside = std::fs::read_dir(dir.join("stateless")).unwrap().flatten();
    let aside = aside
        .map(|entry| entry.path())
        .find(|path| path.join("image.raw").exists() && *path != site.replica_dir("stateless"));
    assert_eq!(std::fs::read(aside.unwrap().join("image.raw")).unwrap(), image(1), "kept aside, not deleted");
    let site = site.restarted();
    assert_eq!(site.replicas.list().iter().filter(|l| l.state == "ok").count(), 4);
}

/// Open files of this process below a directory.
fn open_files(below: &Path) -> usize {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    entries.filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|path| path.starts_with(below))).count()
}

#[test]
fn a_thousand_replicas_take_no_time_and_no_open_files() {
    let site = Site::new();
    let content = noise(1, 4096);
    site.pass("vm-0", &content);
    let dir = site.dir.path().join("replicas");
    for number in 1..1000 {
        let (from, to) = (site.replica_dir("vm-0"), site.replica_dir(&format!("vm-{number}")));
        std::fs::create_dir_all(&to).unwrap();
        for file in ["image.raw", "state", "manifest", "tree"] {
            std::fs::copy(from.join(file), to.join(file)).unwrap();
        }
        std::fs::write(
            to.with_file_name("owner"),
            format!(r#"{{"vm":"vm-{number}","peer":"a","fingerprint":"{}"}}"#, "01".repeat(32)),
        )
        .unwrap();
    }
    let site = site.restarted();
    // The best of a few: the machine does other things too.
    let quickest = |work: &dyn Fn()| {
        let times = (0..5).map(|_| {
            let started = std::time::Instant::now();
            work();
            started.elapsed()
        });
        times.min().unwrap()
    };
    let loading = quickest(&|| drop(Replicas::load(&dir, Arc::new(Seeds::new()), site.peers.clone())));
    let listing = quickest(&|| assert_eq!(site.replicas.list().len(), 1000));
    assert!(loading.as_millis() < 100 && listing.as_millis() < 100, "load {loading:?}, list {listing:?}");
    assert_eq!(open_files(&dir), 0);
    site.pass("vm-7", &noise(2, 4096));
    assert_eq!(open_files(&dir), 0);
}
