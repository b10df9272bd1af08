use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode};

use super::{FileId, open_regular};
use crate::testing::LoopDevice;
use crate::{RawImage, copy_sparse, reflink};

/// Fails when it does not come back.
fn without_waiting<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, outcome) = channel();
    thread::spawn(move || done.send(work()));
    outcome.recv_timeout(Duration::from_secs(20)).expect("it waits for somebody else")
}

fn refused(path: &Path, kind: &str) {
    let opens: [fn(&Path) -> io::Result<()>; 5] = [
        |path| open_regular(path).map(drop),
        |path| RawImage::open_read(path).map(drop),
        |path| RawImage::open_write(path).map(drop),
        |path| copy_sparse(path, path.with_extension("copy")),
        |path| reflink(path, path.with_extension("copy")).map(drop),
    ];
    for open in opens {
        let path = path.to_owned();
        let error = without_waiting(move || open(&path)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains(kind), "{error}");
    }
    assert_eq!(FileId::of_path(path).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert!(!path.with_extension("copy").exists());
}

#[test]
fn what_is_no_image_is_refused_without_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let (pipe, socket) = (dir.path().join("pipe"), dir.path().join("socket"));
    rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let _listener = UnixListener::bind(&socket).unwrap();
    symlink(&pipe, dir.path().join("link")).unwrap();
    refused(&pipe, "a named pipe");
    refused(&dir.path().join("link"), "a named pipe");
    refused(&socket, "a socket");
    refused(dir.path(), "a directory");
    refused(Path::new("/dev/null"), "a character device");
    assert_eq!(open_regular(dir.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn an_image_is_the_same_by_every_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for name in ["a", "b"] {
        fs::write(path(name), name).unwrap();
    }
    let image = RawImage::open_read(path("a")).unwrap();
    fs::hard_link(path("a"), path("hard")).unwrap();
    symlink("hard", path("soft")).unwrap();
    let ids: HashSet<FileId> =
        ["a", "hard", "soft"].iter().map(|name| FileId::of_path(path(name)).unwrap()).collect();
    assert_eq!(ids, HashSet::from([image.id().unwrap()]));
    assert_ne!(FileId::of_path(path("b")).unwrap(), image.id().unwrap());

    // The open image stays what it was when another file takes its name.
    fs::rename(path("b"), path("a")).unwrap();
    assert_eq!(image.id().unwrap(), FileId::of_path(path("hard")).unwrap());
    assert_ne!(image.id().unwrap(), FileId::of_path(path("a")).unwrap());
}

#[test]
fn a_device_is_its_number_not_its_node() {
    let dir = tempfile::tempdir().unwrap();
    let backing = dir.path().join("backing");
    RawImage::create(&backing, 1 << 20).unwrap();
    // Nothing to test for who may not make a device.
    let Some(device) = LoopDevice::of(&backing) else { return };
    let image = RawImage::open_write(device.path()).unwrap();
    assert_eq!(crate::ReadImage::size(&image), 1 << 20);
    let node = dir.path().join("node");
    let FileId::BlockDevice { number } = image.id().unwrap() else { panic!("not a device") };
    rustix::fs::mknodat(CWD, &node, FileType::BlockDevice, Mode::RUSR | Mode::WUSR, number).unwrap();
    assert_eq!(FileId::of_path(&node).unwrap(), image.id().unwrap());
    assert_ne!(FileId::of_path(&backing).unwrap(), image.id().unwrap());
}
