use std::fs;
use std::io;
use std::path::Path;
use std::thread;

use super::{remove_temporary, write_atomic};

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

#[test]
fn writers_at_once_never_mix() {
    let dir = tempfile::tempdir().unwrap();
    // Names that differ in their ending only, and of each two writers.
    let content = |name: &str, writer: usize| format!("{name} {writer}\n").repeat(1 + writer * 3000);
    thread::scope(|scope| {
        for name in ["a.x", "a.y", "a"] {
            for writer in 0..2 {
                let path = dir.path().join(name);
                scope.spawn(move || {
                    for _ in 0..50 {
                        write_atomic(&path, content(name, writer).as_bytes()).unwrap();
                        let found = fs::read_to_string(&path).unwrap();
                        assert!((0..2).any(|writer| found == content(name, writer)), "{name} is mixed");
                    }
                });
            }
        }
    });
    assert_eq!(names(dir.path()), ["a", "a.x", "a.y"]);
}

#[test]
fn a_failed_write_leaves_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("there");
    fs::create_dir(&path).unwrap();
    assert!(write_atomic(&path, b"new").is_err());
    assert_eq!(names(dir.path()), ["there"]);
    assert_eq!(write_atomic(dir.path().join("none/x"), b"").unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(write_atomic("/", b"").unwrap_err().kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn only_what_a_crash_left_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let kept = [".1-2.tmp", ".a.1-.tmp", ".a.12.tmp", ".a.1-2", ".a.1-2-3.tmp", ".a.tmp", "a.1-2.tmp", "a"];
    for name in kept.iter().copied().chain([".a.1-2.tmp", ".a.b.77-0.tmp"]) {
        fs::write(dir.path().join(name), "x").unwrap();
    }
    fs::create_dir(dir.path().join(".d.1-2.tmp")).unwrap();
    remove_temporary(dir.path()).unwrap();
    let mut left: Vec<_> = kept.iter().map(|name| (*name).to_owned()).collect();
    left.push(".d.1-2.tmp".to_owned());
    left.sort_unstable();
    assert_eq!(names(dir.path()), left);
}
