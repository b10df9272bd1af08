//! Waiting for the other disks of a pass ends.

use chunkstore::{Generation, ImageTree, Replica};

use super::*;

fn prepared(dir: &Path, disk: &str, set: JobId) -> (Replica, Prepared) {
    let replica = Replica::open(dir.join(disk)).unwrap();
    let pass = replica.begin(4096).unwrap();
    let (root, source) = (ImageTree::new(4096).root(), String::new());
    let generation = Generation { number: 1, size: 4096, root, taken_unix_ms: 0, source, set: Some(set.0) };
    let prepared = pass.prepare(generation).unwrap();
    (replica, prepared)
}

#[test]
fn a_disk_that_says_nothing_is_not_waited_for_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let (sets, of) = (Sets::default(), SetOf { id: JobId([1; 16]), disks: 2 });
    let patience = Duration::from_millis(50);
    let first = sets.join_with(dir.path(), of, "root", patience).unwrap();
    let _silent = sets.join_with(dir.path(), of, "data", patience).unwrap();
    let (replica, prepared) = prepared(dir.path(), "root", of.id);
    first.arrive().unwrap();
    assert_eq!(first.commit(prepared).unwrap_err().kind, RefusalKind::Failed);
    assert_eq!(replica.generation(), None);
    // A disk that comes later is told so.
    assert!(sets.join_with(dir.path(), of, "data", patience).is_err());
}

#[test]
fn a_disk_at_work_is_waited_for_however_long_it_takes() {
    let dir = tempfile::tempdir().unwrap();
    let (sets, of) = (Sets::default(), SetOf { id: JobId([1; 16]), disks: 2 });
    let patience = Duration::from_millis(20);
    let members = ["root", "data"].map(|disk| sets.join_with(dir.path(), of, disk, patience).unwrap());
    let [root, data] = ["root", "data"].map(|disk| prepared(dir.path(), disk, of.id));
    let [first, second] = &members;
    first.arrive().unwrap();
    second.arrive().unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(move || first.commit(root.1));
        // Hashing a large image.
        std::thread::sleep(patience * 5);
        second.commit(data.1).unwrap();
        waiting.join().unwrap().unwrap();
    });
    assert_eq!(root.0.generation().map(|generation| generation.number), Some(1));
    assert_eq!(data.0.generation().map(|generation| generation.number), Some(1));
}

#[test]
fn sets_have_bounds() {
    let (sets, dir) = (Sets::default(), Path::new("/vm"));
    for disks in [0, MAX_DISKS as u32 + 1, u32::MAX] {
        let refused = sets.join(dir, SetOf { id: JobId([1; 16]), disks }, "root");
        assert_eq!(refused.err().map(|refusal| refusal.kind), Some(RefusalKind::Protocol));
    }
    let of = |disks| SetOf { id: JobId([2; 16]), disks };
    let _first = sets.join(dir, of(2), "root").unwrap();
    assert!(sets.join(dir, of(3), "data").is_err(), "another number of disks");
    drop(_first);
    sets.join(Path::new("/other"), of(3), "data").unwrap();
}
