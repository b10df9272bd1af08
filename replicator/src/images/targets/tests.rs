//! What is not written to, by whatever name it is reached.

use std::os::unix::fs::symlink;

use super::*;

#[test]
fn the_platforms_own_files_and_disks_are_not_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("site");
    let layout = Layout::new(Some(&root));
    layout.create().unwrap();
    fs::write(layout.config(), "").unwrap();
    let disk = dir.path().join("disk.raw");
    fs::write(&disk, b"").unwrap();
    let gone = dir.path().join("gone.raw");
    symlink(&disk, dir.path().join("link.raw")).unwrap();
    fs::hard_link(&disk, dir.path().join("hard.raw")).unwrap();
    symlink(&root, dir.path().join("elsewhere")).unwrap();
    let check_as = |path: &str, lost: Lost| {
        let disks = [("web".to_owned(), disk.clone()), ("db".to_owned(), gone.clone())];
        check_not_ours(&layout, disks.into_iter(), &dir.path().join(path), lost)
    };
    let check = |path: &str| check_as(path, Lost::Kept);
    for (path, what) in [
        ("disk.raw", "a disk of VM 'web'"),
        ("link.raw", "a disk of VM 'web'"),
        ("hard.raw", "a disk of VM 'web'"),
        ("gone.raw", "a disk of VM 'db'"),
        ("site/store/new.raw", "keeps its own state"),
        ("site/replicas/new.raw", "keeps its own state"),
        ("site/images/new.raw", "keeps its own state"),
        ("site/run/../journal/new.raw", "keeps its own state"),
        ("elsewhere/vms/web.toml", "keeps its own state"),
        ("elsewhere/longhaul.toml", "keeps its own state"),
    ] {
        let message = check(path).unwrap_err().to_string();
        assert!(message.contains(what) && message.contains("choose another file"), "{path}: {message}");
    }
    for path in ["new.raw", "site/new.raw", "elsewhere/new.raw", "site/stores"] {
        check(path).unwrap();
    }
    // A replica may come back to where its VM's disk is missing, and nowhere else of these.
    check_as("gone.raw", Lost::Restored).unwrap();
    for path in ["disk.raw", "link.raw", "hard.raw", "site/store/new.raw"] {
        check_as(path, Lost::Restored).unwrap_err();
    }
    assert!(matches!(check("no/such/directory"), Err(TargetError::Io { .. })));
}

#[test]
fn a_device_is_overwritten_only_with_consent() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, b"").unwrap();
    check_device(&file, false).unwrap();
    let Some(device) = fs::read_dir("/dev")
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .find(|path| fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device()))
    else {
        eprintln!("skipped: no block device here");
        return;
    };
    assert!(matches!(check_device(&device, false), Err(TargetError::Device { .. })));
    check_device(&device, true).unwrap();
}
