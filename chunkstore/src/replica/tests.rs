use std::fs;
use std::io;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::{Generation, Replica, ReplicaError, format, names};
use crate::testing::{SmallDisk, noise, scratch, snapshot};
use crate::{ImageTree, IngestOptions, Manifest, RawImage, ReadImage, ingest, pieces};

const SIZE: u64 = 3_000_000;

pub(super) fn generation(number: u64, bytes: &[u8]) -> Generation {
    let mut tree = ImageTree::new(bytes.size());
    tree.mark_all();
    tree.refresh(&bytes.to_vec()).unwrap();
    let size = bytes.size();
    let (root, taken_unix_ms) = (tree.root(), 1_700_000_000_000);
    Generation { number, size, root, taken_unix_ms, source: "a".to_owned(), set: None }
}

fn content(image: &dyn ReadImage) -> Vec<u8> {
    let mut bytes = vec![0xaa; image.size() as usize];
    image.read_at(0, &mut bytes).unwrap();
    bytes
}

fn image_of(replica: &Replica) -> Vec<u8> {
    content(&replica.image().unwrap().unwrap())
}

/// A replica at generation 1, with its content.
fn first_generation(dir: &Path) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    bytes[..1_000_000].copy_from_slice(&noise(1, 1_000_000));
    let replica = Replica::open(dir).unwrap();
    let pass = replica.begin(SIZE).unwrap();
    assert_eq!(pass.base(), None);
    pass.write_at(0, &bytes[..1_000_000]).unwrap();
    pass.commit(generation(1, &bytes)).unwrap();
    bytes
}

/// Changes of every kind, also to `bytes`.
fn change(pass: &super::Pass, bytes: &mut [u8]) {
    let writes = [(500_000, noise(2, 300_000)), (2_000_000, noise(3, 4096)), (2_001_000, noise(4, 100))];
    for (at, data) in writes {
        pass.write_at(at as u64, &data).unwrap();
        bytes[at..at + data.len()].copy_from_slice(&data);
    }
    for (at, len) in [(0, 4096), (600_000, 50_000), (2_900_000, 100_000)] {
        pass.zero(at as u64, len as u64).unwrap();
        bytes[at..at + len].fill(0);
    }
    pass.write_at(620_000, &noise(5, 10)).unwrap();
    bytes[620_000..620_010].copy_from_slice(&noise(5, 10));
}

#[test]
fn a_new_replica_is_empty() {
    let dir = scratch();
    let replica = Replica::open(dir.path().join("vm/disk")).unwrap();
    assert_eq!(replica.generation(), None);
    assert!(replica.image().unwrap().is_none());
    let error = replica.restore_to(dir.path().join("out")).unwrap_err();
    assert!(matches!(error, ReplicaError::Empty { .. }), "{error}");
    let Err(error) = Replica::open(dir.path().join("vm/disk")) else { panic!("opened twice") };
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
}

#[test]
fn passes_follow_each_other() {
    let dir = scratch();
    let mut bytes = first_generation(dir.path());
    let replica = Replica::open(dir.path()).unwrap();
    assert!(image_of(&replica) == bytes);
    for number in 2..5 {
        let before = bytes.clone();
        let pass = replica.begin(SIZE).unwrap();
        assert_eq!(pass.base().map(|base| base.number), Some(number - 1));
        assert!(matches!(replica.begin(SIZE), Err(ReplicaError::Busy { .. })));
        change(&pass, &mut bytes);
        pass.write_at(number * 100_000, &noise(number, 1000)).unwrap();
        bytes[number as usize * 100_000..][..1000].copy_from_slice(&noise(number, 1000));
        assert!(content(&pass) == bytes);
        assert!(image_of(&replica) == before, "an open pass does not touch the image");
        pass.commit(generation(number, &bytes)).unwrap();
        assert!(image_of(&replica) == bytes);
        assert_eq!(replica.generation(), Some(generation(number, &bytes)));
    }
    drop(replica);
    let replica = Replica::open(dir.path()).unwrap();
    assert_eq!(replica.generation(), Some(generation(4, &bytes)));
    assert!(image_of(&replica) == bytes);
    assert!(!dir.path().join(names::LOG).exists());
}

#[test]
fn a_dropped_pass_leaves_nothing() {
    let dir = scratch();
    let mut bytes = first_generation(dir.path());
    let replica = Replica::open(dir.path()).unwrap();
    let before = bytes.clone();
    change(&replica.begin(SIZE).unwrap(), &mut bytes);
    replica.begin(SIZE * 2).unwrap().write_at(SIZE, b"x").unwrap();
    assert!(image_of(&replica) == before);
    for name in [names::LOG, names::PARTIAL] {
        assert!(!dir.path().join(name).exists(), "{name}");
    }
}

#[test]
fn another_size_starts_from_zeroes() {
    let dir = scratch();
    first_generation(dir.path());
    let replica = Replica::open(dir.path()).unwrap();
    for (number, size) in [(2, SIZE + 4096), (3, 5000)] {
        let pass = replica.begin(size).unwrap();
        assert_eq!(pass.base(), None);
        pass.write_at(1000, b"changed").unwrap();
        let mut bytes = vec![0; size as usize];
        bytes[1000..1007].copy_from_slice(b"changed");
        assert!(content(&pass) == bytes);
        pass.commit(generation(number, &bytes)).unwrap();
        assert!(image_of(&replica) == bytes);
    }
}

#[test]
fn only_a_later_generation_of_the_right_size_is_committed() {
    let dir = scratch();
    let bytes = first_generation(dir.path());
    let replica = Replica::open(dir.path()).unwrap();
    let good = generation(2, &bytes);
    let bad = [
        Generation { number: 1, ..good.clone() },
        Generation { size: SIZE - 1, ..good.clone() },
        Generation { source: "x".repeat(1025), ..good },
    ];
    for bad in bad {
        let error = replica.begin(SIZE).unwrap().commit(bad).unwrap_err();
        assert!(matches!(error, ReplicaError::BadGeneration { .. }), "{error}");
    }
    let pass = replica.begin(SIZE).unwrap();
    for (offset, len) in [(SIZE, 1), (SIZE - 1, 2), (u64::MAX, 1)] {
        assert!(matches!(pass.write_at(offset, &vec![0; len]), Err(ReplicaError::OutOfRange { .. })));
        assert!(matches!(pass.zero(offset, len as u64), Err(ReplicaError::OutOfRange { .. })));
        assert!(pass.read_at(offset, &mut vec![0; len]).is_err());
    }
}

#[test]
fn restores_are_sparse_and_replace_nothing() {
    let dir = scratch();
    let bytes = first_generation(&dir.path().join("replica"));
    let replica = Replica::open(dir.path().join("replica")).unwrap();
    let out = dir.path().join("out.raw");
    assert_eq!(replica.restore_to(&out).unwrap().number, 1);
    let image = RawImage::open_read(&out).unwrap();
    assert!(content(&image) == bytes);
    assert!(image.allocated_bytes().unwrap() < 1_100_000);
    let error = replica.restore_to(&out).unwrap_err();
    assert!(matches!(error, ReplicaError::Exists { .. }), "{error}");
}

/// Rot in the middle of the image. Gives the offset of its leaf.
fn rot(replica: &Replica) -> u64 {
    let image = RawImage::open_write(replica.image_path()).unwrap();
    image.write_at(500_000, b"ROT").unwrap();
    500_000 / crate::LEAF_BYTES * crate::LEAF_BYTES
}

#[test]
fn damage_is_not_restored_and_the_image_is_not_believed_any_more() {
    let dir = scratch();
    first_generation(&dir.path().join("replica"));
    let replica = Replica::open(dir.path().join("replica")).unwrap();
    replica.save_tree(&read_tree(&replica)).unwrap();
    replica.hold_still().unwrap().verify(&|_| ControlFlow::Continue(())).unwrap();
    let leaf = rot(&replica);
    let out = dir.path().join("out.raw");
    for known in [Some(leaf), None] {
        let error = replica.restore_to(&out).unwrap_err();
        let ReplicaError::Rotten { number: 1, place, .. } = error else { panic!("{error}") };
        assert_eq!(place.offset, known, "the tree tells where, and is forgotten");
        assert!(!out.exists());
        assert!(replica.tree().is_none());
    }
    let still = replica.hold_still().unwrap();
    assert!(matches!(still.verify(&|_| ControlFlow::Break(())), Err(ReplicaError::Stopped)));
    assert!(matches!(still.verify(&|_| ControlFlow::Continue(())), Err(ReplicaError::Rotten { .. })));
}

/// An image on a disk with a bad place.
struct BadPlace(RawImage, Range<u64>);

impl ReadImage for BadPlace {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if offset < self.1.end && self.1.start < offset + buf.len() as u64 {
            return Err(rustix::io::Errno::IO.into());
        }
        self.0.read_at(offset, buf)
    }
}

#[test]
fn what_the_disk_cannot_read_is_damage_that_the_next_pass_mends() {
    let dir = scratch();
    first_generation(dir.path());
    let replica = Replica::open(dir.path()).unwrap();
    replica.save_tree(&read_tree(&replica)).unwrap();
    let still = replica.hold_still().unwrap();
    let image = BadPlace(RawImage::open_read(replica.image_path()).unwrap(), 500_000..500_512);
    let place = still.first_damage(&image, &|_| ControlFlow::Continue(())).unwrap().unwrap();
    assert!(place.unreadable && place.offset.unwrap() <= 500_000, "{place}");
    assert!(replica.tree().is_some());
    let error = still.rotten(place).unwrap_err();
    assert!(error.to_string().contains("cannot read the image at offset"), "{error}");
    assert!(replica.tree().is_none(), "the next pass reads all of it");
}

#[test]
fn a_copy_that_reads_back_wrong_says_nothing_of_the_replica() {
    let dir = scratch();
    let bytes = first_generation(&dir.path().join("replica"));
    let replica = Replica::open(dir.path().join("replica")).unwrap();
    replica.save_tree(&read_tree(&replica)).unwrap();
    let still = replica.hold_still().unwrap();
    let copy = dir.path().join("copy.raw");
    fs::write(&copy, vec![1; bytes.len()]).unwrap();
    let error = still.check_copy(&copy).unwrap_err();
    assert!(matches!(&error, ReplicaError::BadCopy { path, .. } if *path == copy), "{error}");
    assert!(replica.tree().is_some());
    still.restore_to(dir.path().join("nowhere/copy.raw")).unwrap_err();
    assert!(replica.tree().is_some());
    // Both are bad: the replica is what matters.
    rot(&replica);
    assert!(matches!(still.check_copy(&copy), Err(ReplicaError::Rotten { .. })));
}

#[test]
fn a_pass_is_committed_in_the_middle_of_a_verification() {
    const PIECES: u64 = 40;
    const PIECE: u64 = 64 << 20;
    let dir = scratch();
    let replica = Replica::open(dir.path()).unwrap();
    let commit = |number: u64| {
        let pass = replica.begin(PIECES * PIECE).unwrap();
        (0..PIECES).for_each(|piece| pass.write_at(piece * PIECE, &[number as u8; 4096]).unwrap());
        let mut tree = ImageTree::new(PIECES * PIECE);
        tree.mark_all();
        tree.refresh(&pass).unwrap();
        let (size, root, source) = (PIECES * PIECE, tree.root(), String::new());
        pass.commit(Generation { number, size, root, taken_unix_ms: 0, source, set: None }).unwrap();
        tree
    };
    replica.save_tree(&commit(1)).unwrap();
    let (begin, begun) = mpsc::channel();
    let (committed, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let (replica, commit, is_committed) = (&replica, &commit, &committed);
        scope.spawn(move || {
            begun.recv().unwrap();
            let tree = commit(2);
            is_committed.store(true, Ordering::SeqCst);
            replica.save_tree(&tree).unwrap();
        });
        let watch = |_| {
            if reads.fetch_add(1, Ordering::SeqCst) == 0 {
                begin.send(()).unwrap();
            }
            // It has ten seconds in all, as long as commits are let in.
            if !committed.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(250));
            }
            ControlFlow::Continue(())
        };
        replica.verify(&watch).unwrap();
        assert!(committed.load(Ordering::SeqCst));
    });
    assert_eq!(reads.into_inner(), PIECES, "each once");
    rot(&replica);
    assert!(matches!(replica.verify(&|_| ControlFlow::Continue(())), Err(ReplicaError::Rotten { .. })));
}

#[test]
fn a_look_opens_nothing_unless_something_is_to_be_finished() {
    let dir = scratch();
    assert_eq!(Replica::look(dir.path().join("nowhere")).unwrap(), None);
    let bytes = first_generation(dir.path());
    fs::remove_file(dir.path().join("LOCK")).unwrap();
    assert_eq!(Replica::look(dir.path()).unwrap(), Some(generation(1, &bytes)));
    assert!(!dir.path().join("LOCK").exists());
    let (dir, log, _, after) = before_the_redo();
    fs::write(dir.path().join(names::LOG), log).unwrap();
    assert_eq!(Replica::look(dir.path()).unwrap(), Some(generation(2, &after)));
    assert!(fs::read(Replica::image_in(dir.path())).unwrap() == after);
    fs::remove_file(dir.path().join(names::IMAGE)).unwrap();
    assert!(matches!(Replica::look(dir.path()), Err(ReplicaError::Damaged { reason: "is missing", .. })));
}

#[test]
fn a_manifest_is_kept_for_its_generation_only() {
    let dir = scratch();
    first_generation(&dir.path().join("replica"));
    let replica = Replica::open(dir.path().join("replica")).unwrap();
    assert_eq!(replica.manifest(), None);
    let store = crate::Store::open(dir.path().join("store")).unwrap();
    let image = replica.image().unwrap().unwrap();
    let manifest = ingest(&store, &image, &IngestOptions::default(), &|_| {}).unwrap();
    replica.save_manifest(&manifest).unwrap();
    assert_eq!(replica.manifest(), Some(manifest.clone()));
    let stale = Manifest::of(ImageTree::new(1).root(), manifest.extents()).unwrap();
    replica.save_manifest(&stale).unwrap();
    assert_eq!(replica.manifest(), None);
}

/// A directory as it is right before the redo log of a committed second pass is applied, the log, and both contents.
fn before_the_redo() -> (TempDir, Vec<u8>, Vec<u8>, Vec<u8>) {
    let dir = scratch();
    let before = first_generation(dir.path());
    let mut after = before.clone();
    let replica = Replica::open(dir.path()).unwrap();
    let pass = replica.begin(SIZE).unwrap();
    change(&pass, &mut after);
    let mut log = fs::read(dir.path().join(names::LOG)).unwrap();
    drop(pass);
    log.extend(format::encode_commit(&generation(2, &after), 7));
    (dir, log, before, after)
}

/// Ends of the records of a log.
fn boundaries(log: &[u8]) -> Vec<usize> {
    let mut ends = vec![format::LOG_HEADER_BYTES];
    while let Some(header) = log.get(ends[ends.len() - 1]..).filter(|rest| !rest.is_empty()) {
        let payload = u32::from_le_bytes(header[24..28].try_into().unwrap()) as usize;
        ends.push(ends[ends.len() - 1] + format::RECORD_HEADER_BYTES + payload);
    }
    ends
}

#[test]
fn a_crash_at_any_byte_of_the_log_leaves_a_whole_generation() {
    let (dir, log, before, after) = before_the_redo();
    let ends = boundaries(&log);
    assert_eq!((ends.len(), *ends.last().unwrap()), (9, log.len()));
    // Every boundary, a byte around each, the middle of each record, and every byte of the commit record.
    let commit = ends[7]..log.len();
    let mut cuts: Vec<usize> = ends
        .windows(2)
        .flat_map(|pair| [pair[0] - 1, pair[0], pair[0] + 1, (pair[0] + pair[1]) / 2])
        .collect();
    cuts.extend([0, 1]);
    cuts.extend(commit);
    for cut in cuts {
        for torn in [log[..cut].to_vec(), [&log[..cut], &vec![0; log.len() - cut][..]].concat()] {
            fs::write(dir.path().join(names::LOG), torn).unwrap();
            let replica = Replica::open(dir.path()).unwrap();
            assert_eq!(replica.generation(), Some(generation(1, &before)), "cut at {cut}");
            assert!(!dir.path().join(names::LOG).exists());
        }
    }
    assert!(image_of(&Replica::open(dir.path()).unwrap()) == before);
    fs::write(dir.path().join(names::LOG), &log).unwrap();
    let replica = Replica::open(dir.path()).unwrap();
    assert_eq!(replica.generation(), Some(generation(2, &after)));
    assert!(image_of(&replica) == after);
}

#[test]
fn a_flipped_bit_in_the_log_undoes_the_pass() {
    let (dir, log, before, _) = before_the_redo();
    for at in (0..log.len()).step_by(4999).chain(log.len() - 120..log.len()) {
        let mut bad = log.clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(dir.path().join(names::LOG), bad).unwrap();
        assert_eq!(
            Replica::open(dir.path()).unwrap().generation(),
            Some(generation(1, &before)),
            "bit at {at}"
        );
    }
}

#[test]
fn bytes_called_zero_are_ignored() {
    let (dir, mut log, _, after) = before_the_redo();
    log[24..32].copy_from_slice(&[7; 8]);
    let check = crate::parse::check8(&[&log[..32]]);
    log[32..40].copy_from_slice(&check);
    fs::write(dir.path().join(names::LOG), &log).unwrap();
    assert_eq!(Replica::open(dir.path()).unwrap().generation(), Some(generation(2, &after)));
}

#[test]
fn a_log_of_another_version_is_left_alone() {
    let (dir, mut log, ..) = before_the_redo();
    log[7] = 3;
    fs::write(dir.path().join(names::LOG), &log).unwrap();
    assert!(matches!(Replica::open(dir.path()), Err(ReplicaError::OtherVersion { .. })));
    assert!(fs::read(dir.path().join(names::LOG)).unwrap() == log);
}

#[test]
fn a_crash_while_the_log_is_applied_is_finished_later() {
    let (dir, log, _, after) = before_the_redo();
    let image = fs::read(dir.path().join(names::IMAGE)).unwrap();
    for half in [0, 550_000, 700_000, SIZE as usize] {
        // Applied up to here; the state still says generation 1.
        let mixed = [&after[..half], &image[half..]].concat();
        let crashed = scratch();
        snapshot(dir.path(), crashed.path());
        fs::write(crashed.path().join(names::IMAGE), mixed).unwrap();
        fs::write(crashed.path().join(names::LOG), &log).unwrap();
        let replica = Replica::open(crashed.path()).unwrap();
        assert_eq!(replica.generation(), Some(generation(2, &after)));
        assert!(image_of(&replica) == after);
    }
}

#[test]
fn a_log_that_was_applied_is_not_applied_to_a_later_generation() {
    let (dir, log, ..) = before_the_redo();
    let mut latest = vec![0; SIZE as usize];
    latest[5] = 5;
    let replica = Replica::open(dir.path()).unwrap();
    let pass = replica.begin(SIZE).unwrap();
    pass.zero(0, SIZE).unwrap();
    pass.write_at(5, &[5]).unwrap();
    pass.commit(generation(3, &latest)).unwrap();
    drop(replica);
    fs::write(dir.path().join(names::LOG), log).unwrap();
    let replica = Replica::open(dir.path()).unwrap();
    assert_eq!(replica.generation(), Some(generation(3, &latest)));
    assert!(image_of(&replica) == latest);
}

#[test]
fn a_crash_around_a_new_image_leaves_a_whole_generation() {
    for has_first in [false, true] {
        let dir = scratch();
        let first = has_first.then(|| first_generation(dir.path()));
        let expected_before = first.as_ref().map(|bytes| generation(1, bytes));
        let second = noise(7, 10_000);
        let replica = Replica::open(dir.path()).unwrap();
        let pass = replica.begin(10_000).unwrap();
        pass.write_at(0, &second[..5000]).unwrap();
        // Killed while writing, and killed with everything but the commit.
        let writing = scratch();
        snapshot(dir.path(), writing.path());
        pass.write_at(5000, &second[5000..]).unwrap();
        let written = scratch();
        snapshot(dir.path(), written.path());
        let state = format::encode_state(&generation(2, &second));
        for uncommitted in [&writing, &written] {
            fs::write(uncommitted.path().join(".state.next.tmp"), &state[..state.len() / 2]).unwrap();
            let replica = Replica::open(uncommitted.path()).unwrap();
            assert_eq!(replica.generation(), expected_before);
            assert_eq!(replica.image().unwrap().map(|image| content(&image)), first);
            assert!(!uncommitted.path().join(names::PARTIAL).exists());
        }
        // Killed after the commit, and after each step that follows it.
        drop(pass);
        drop(replica);
        for step in 0..3 {
            let crashed = scratch();
            snapshot(dir.path(), crashed.path());
            let image = if step == 0 { names::PARTIAL } else { names::IMAGE };
            let name = if step == 2 { names::STATE } else { names::NEXT_STATE };
            fs::write(crashed.path().join(image), &second).unwrap();
            fs::write(crashed.path().join(name), &state).unwrap();
            let replica = Replica::open(crashed.path()).unwrap();
            assert_eq!(replica.generation(), Some(generation(2, &second)), "step {step}");
            assert!(image_of(&replica) == second);
        }
    }
}

#[test]
fn damage_is_named() {
    let dir = scratch();
    first_generation(dir.path());
    let state = fs::read(dir.path().join(names::STATE)).unwrap();
    for at in 0..state.len() {
        let mut bad = state.clone();
        bad[at] ^= 1;
        fs::write(dir.path().join(names::STATE), bad).unwrap();
        let opened = Replica::open(dir.path());
        if at == 6 || at == 7 {
            assert!(matches!(opened, Err(ReplicaError::OtherVersion { .. })));
        } else {
            assert!(matches!(opened, Err(ReplicaError::Damaged { .. })));
        }
    }
    fs::write(dir.path().join(names::STATE), vec![0; 1 << 20]).unwrap();
    assert!(matches!(Replica::open(dir.path()), Err(ReplicaError::Damaged { .. })));
    fs::write(dir.path().join(names::STATE), state).unwrap();
    RawImage::open_write(dir.path().join(names::IMAGE)).unwrap();
    fs::write(dir.path().join(names::IMAGE), b"short").unwrap();
    let Err(error) = Replica::open(dir.path()) else { panic!("opened") };
    assert!(error.to_string().contains("image.raw does not have the size"), "{error}");
    fs::remove_file(dir.path().join(names::IMAGE)).unwrap();
    assert!(matches!(Replica::open(dir.path()), Err(ReplicaError::Damaged { reason: "is missing", .. })));
}

#[test]
fn a_commit_that_cannot_be_applied_is_finished_by_the_next_pass() {
    let dir = scratch();
    let mut bytes = first_generation(dir.path());
    let replica = Replica::open(dir.path()).unwrap();
    let pass = replica.begin(SIZE).unwrap();
    change(&pass, &mut bytes);
    let (image, away) = (dir.path().join(names::IMAGE), dir.path().join("away"));
    fs::rename(&image, &away).unwrap();
    let error = pass.commit(generation(2, &bytes)).unwrap_err();
    assert!(matches!(error, ReplicaError::Unfinished { number: 2, .. }), "{error}");
    assert!(replica.begin(SIZE).is_err());
    assert!(replica.restore_to(dir.path().join("out")).is_err());
    fs::rename(&away, &image).unwrap();
    let pass = replica.begin(SIZE).unwrap();
    assert_eq!(pass.base(), Some(&generation(2, &bytes)));
    assert!(content(&pass) == bytes);
}

#[test]
fn a_full_disk_leaves_the_generation_before() {
    let Some(disk) = SmallDisk::mount(5_000_000) else {
        eprintln!("skipped: not allowed to mount a tmpfs");
        return;
    };
    let dir = disk.path().join("replica");
    let bytes = first_generation(&dir);
    let replica = Replica::open(&dir).unwrap();
    let pass = replica.begin(SIZE).unwrap();
    let error = (0..50).find_map(|seed| pass.write_at(0, &noise(seed, 200_000)).err()).unwrap();
    assert!(error.is_full() && error.to_string().contains("free some space"), "{error}");
    // The log still takes what fits, and reads right.
    assert!(content(&pass)[200_000..] == bytes[200_000..]);
    drop(pass);
    assert!(image_of(&replica) == bytes);
    let pass = replica.begin(SIZE).unwrap();
    pass.write_at(0, b"fits").unwrap();
    let expected = [b"fits", &bytes[4..]].concat();
    pass.commit(generation(2, &expected)).unwrap();
    assert!(image_of(&replica) == expected);
}

fn writes() -> impl Strategy<Value = Vec<(u64, u64, bool)>> {
    prop::collection::vec((0..400_000_u64, 1..60_000_u64, any::<bool>()), 0..25)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// A pass reads like an array, in holes and pieces too, and so does what it leaves.
    #[test]
    fn a_pass_is_an_array(writes in writes(), first in writes()) {
        const SIZE: usize = 460_000;
        let dir = scratch();
        let replica = Replica::open(dir.path()).unwrap();
        let mut bytes = vec![0; SIZE];
        for (number, writes) in [(1, first), (2, writes)] {
            let pass = replica.begin(SIZE as u64).unwrap();
            for (index, (at, len, data)) in writes.into_iter().enumerate() {
                let range = at as usize..(at + len) as usize;
                if data {
                    bytes[range.clone()].copy_from_slice(&noise(index as u64, range.len()));
                    pass.write_at(at, &bytes[range]).unwrap();
                } else {
                    bytes[range].fill(0);
                    pass.zero(at, len).unwrap();
                }
            }
            prop_assert!(content(&pass) == bytes);
            let mut at = 0;
            while let Some(data) = pass.next_data(at).unwrap() {
                prop_assert!(data.start >= at && data.end > data.start && data.end <= SIZE as u64);
                prop_assert!(crate::is_zero(&bytes[at as usize..data.start as usize]));
                at = data.end;
            }
            prop_assert!(crate::is_zero(&bytes[at as usize..]));
            let (mine, plain) = (pieces(&pass).map(Result::unwrap), pieces(&bytes).map(Result::unwrap));
            prop_assert!(mine.eq(plain));
            pass.commit(generation(number, &bytes)).unwrap();
            prop_assert!(image_of(&replica) == bytes);
        }
    }

    #[test]
    fn garbage_logs_never_happened(garbage in prop::collection::vec(any::<u8>(), 0..300), headed in any::<bool>()) {
        let head = format::LogHeader { size: 4096, base: 1 }.encode();
        let log = if headed { [&head[..], &garbage].concat() } else { garbage };
        prop_assert!(format::read_log(&mut &log[..]).unwrap().is_none());
    }
}

/// The tree of a replica's image, from reading it.
fn read_tree(replica: &Replica) -> ImageTree {
    let image = replica.image().unwrap().unwrap();
    let mut tree = ImageTree::new(image.size());
    tree.mark_all();
    tree.refresh(&image).unwrap();
    tree
}

#[test]
fn a_tree_is_kept_for_its_generation_only() {
    let dir = scratch();
    let mut bytes = first_generation(dir.path());
    let replica = Replica::open(dir.path()).unwrap();
    assert!(replica.tree().is_none());
    let mut tree = read_tree(&replica);
    replica.save_tree(&tree).unwrap();
    drop(replica);
    let replica = Replica::open(dir.path()).unwrap();
    assert_eq!(replica.tree().map(|tree| tree.root()), Some(tree.root()));

    // A pass that is dropped changes nothing; one that is committed makes it a tree of something else.
    drop(replica.begin(SIZE).unwrap());
    assert!(replica.tree().is_some());
    let pass = replica.begin(SIZE).unwrap();
    change(&pass, &mut bytes);
    pass.commit(generation(2, &bytes)).unwrap();
    assert!(replica.tree().is_none());
    // Neither the old one nor one that is not up to date is kept for the new generation.
    replica.save_tree(&tree).unwrap();
    assert!(replica.tree().is_none());
    tree = read_tree(&replica);
    tree.mark(0..1);
    replica.save_tree(&tree).unwrap();
    assert!(replica.tree().is_none());
    replica.save_tree(&read_tree(&replica)).unwrap();
    assert_eq!(replica.tree().map(|tree| tree.root()), Some(read_tree(&replica).root()));
}

#[test]
fn a_tree_is_not_believed_once_the_image_was_touched_or_it_is_damaged() {
    let dir = scratch();
    first_generation(dir.path());
    let replica = Replica::open(dir.path()).unwrap();
    replica.save_tree(&read_tree(&replica)).unwrap();
    let path = dir.path().join(names::TREE);
    let kept = fs::read(&path).unwrap();
    for cut in [0, 1, 63, 64, kept.len() / 2, kept.len() - 1] {
        fs::write(&path, &kept[..cut]).unwrap();
        assert!(replica.tree().is_none(), "{cut} bytes of it");
    }
    fs::write(&path, &kept).unwrap();
    assert!(replica.tree().is_some());
    // Even the same bytes, and the time they were written at put back.
    let image = fs::File::options().write(true).open(replica.image_path()).unwrap();
    let modified = image.metadata().unwrap().modified().unwrap();
    // A file system's clock ticks every few milliseconds.
    thread::sleep(Duration::from_millis(20));
    std::os::unix::fs::FileExt::write_all_at(&image, &noise(1, 1), 0).unwrap();
    image.set_modified(modified).unwrap();
    assert!(replica.tree().is_none());
}

#[test]
fn a_crash_leaves_no_tree_of_another_image() {
    // Wherever the redo log's application was when it crashed, the tree is that of the generation before.
    let (dir, log, _, after) = before_the_redo();
    let replica = Replica::open(dir.path()).unwrap();
    replica.save_tree(&read_tree(&replica)).unwrap();
    assert!(replica.tree().is_some());
    drop(replica);
    fs::write(dir.path().join(names::LOG), &log).unwrap();
    let replica = Replica::open(dir.path()).unwrap();
    assert!(image_of(&replica) == after);
    assert!(replica.tree().is_none());
}
