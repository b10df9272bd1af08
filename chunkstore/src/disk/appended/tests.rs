use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::disk::sim::SimDisk;
use crate::disk::{Disk, RealDisk};

#[derive(Debug, Clone)]
enum Step {
    Append {
        len: usize,
        byte: u8,
    },
    /// To so many thousandths of its length.
    Cut(u64),
    Sync,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = prop_oneof![1..10usize, 1..20_000usize, Just(4096usize), 3_000_000..9_000_000usize];
    let step = prop_oneof![
        6 => (len, 1u8..).prop_map(|(len, byte)| Step::Append { len, byte }),
        1 => (0..=1000u64).prop_map(Step::Cut),
        2 => Just(Step::Sync),
    ];
    prop::collection::vec(step, 1..12)
}

/// Does the steps with a file and with plain memory; gives the file and what it is to hold.
fn grow(file: Arc<dyn DiskFile>, steps: &[Step]) -> (Arc<dyn DiskFile>, Vec<u8>) {
    let mut expected = Vec::new();
    for step in steps {
        match *step {
            Step::Append { len, byte } => {
                let data: Vec<u8> = (0..len).map(|at| byte ^ (at / 4096) as u8).collect();
                file.write_at(expected.len() as u64, &data).unwrap();
                expected.extend_from_slice(&data);
            }
            Step::Cut(thousandths) => {
                expected.truncate((expected.len() as u64 * thousandths / 1000) as usize);
                file.set_len(expected.len() as u64).unwrap();
            }
            Step::Sync => file.sync().unwrap(),
        }
        assert_eq!(file.len().unwrap(), expected.len() as u64);
        for from in [0, expected.len() / 3, expected.len().saturating_sub(5000)] {
            let mut found = vec![0; (expected.len() - from) / 2 + (expected.len() - from) % 2];
            file.read_at(from as u64, &mut found).unwrap();
            assert!(found == expected[from..from + found.len()], "from {from} after {step:?}");
        }
    }
    let past = file.read_at(expected.len() as u64, &mut [0]).unwrap_err();
    assert_eq!(past.kind(), io::ErrorKind::UnexpectedEof);
    (file, expected)
}

/// On a file system that can be written past the page cache.
fn dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let file = std::fs::File::create(dir.path().join("probe")).unwrap();
    assert!(crate::direct::reopen(&file, false).is_some(), "this test needs another file system");
    dir
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_file_on_the_disk_holds_what_was_written(steps in steps(), map in any::<bool>()) {
        let dir = dir();
        let path = dir.path().join("file");
        let (file, expected) = grow(RealDisk.create_appended(&path).unwrap(), &steps);
        if map {
            prop_assert!(file.map().unwrap().bytes() == expected);
            prop_assert_eq!(file.write_at(expected.len() as u64, b"more").unwrap_err().kind(), io::ErrorKind::Unsupported);
        }
        drop(file);
        prop_assert!(std::fs::read(&path).unwrap() == expected);
    }

    #[test]
    fn what_is_synced_is_there_after_a_crash(steps in steps(), more in 1..100_000usize, seed: u64) {
        let disk = SimDisk::default();
        let path = Path::new("/file");
        let (file, expected) = grow(disk.create_appended(path).unwrap(), &steps);
        file.sync().unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        let _ = file.write_at(expected.len() as u64, &vec![7; more]);
        let _ = file.sync();
        let crashed = disk.after_crash(seed);
        prop_assert!(crashed.files()[path].starts_with(&expected));
    }
}

#[test]
fn a_cut_after_a_sync_leaves_no_trace_of_what_was_there() {
    let disk = SimDisk::default();
    let path = Path::new("/file");
    let file = disk.create_appended(path).unwrap();
    file.write_at(0, &[1; 10_000]).unwrap();
    file.sync().unwrap();
    file.set_len(5000).unwrap();
    file.sync().unwrap();
    let found = &disk.files()[path];
    assert!(found[..5000] == [1; 5000] && found[5000..].iter().all(|byte| *byte == 0) && found.len() <= 8192);
}

#[test]
fn a_write_that_is_not_at_the_end_is_refused() {
    let file = SimDisk::default().create_appended(Path::new("/file")).unwrap();
    file.write_at(0, b"one").unwrap();
    for offset in [0, 2, 4] {
        assert_eq!(file.write_at(offset, b"x").unwrap_err().kind(), io::ErrorKind::Unsupported);
    }
    assert_eq!(file.len().unwrap(), 3);
}

#[test]
fn a_write_that_failed_behind_the_callers_back_is_told_to_all_who_come_later() {
    let disk = SimDisk::default();
    let file = disk.create_appended(Path::new("/file")).unwrap();
    file.write_at(0, b"header").unwrap();
    file.sync().unwrap();
    disk.cut_power_at(disk.operations());
    let data = vec![1; WRITE_BYTES];
    // The disk learns of it; who writes does not wait for that.
    file.write_at(6, &data).unwrap();
    let at = file.len().unwrap();
    assert_eq!(file.write_at(at, &data).unwrap_err().to_string(), "no power");
    for later in [file.sync(), file.read_at(0, &mut [0]), file.set_len(6)] {
        assert!(later.unwrap_err().to_string().contains("an earlier write to it failed"));
    }
}
