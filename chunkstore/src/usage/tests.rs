use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::{Use, in_use, unescaped};
use crate::testing::LoopDevice;
use crate::{RawImage, copy_sparse};

/// `qemu-io` with an image open. Ends with the test.
struct QemuIo(Child);

impl QemuIo {
    /// `None` where there is no such program. Comes back when it has the image open.
    fn open(options: &[&str], image: &Path) -> Option<QemuIo> {
        let mut command = Command::new("qemu-io");
        command.args(["-f", "raw"]).args(options).arg(image).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().ok()?;
        writeln!(child.stdin.as_mut().unwrap(), "length").unwrap();
        let answer = BufReader::new(child.stdout.as_mut().unwrap()).lines().next().unwrap().unwrap();
        assert!(answer.contains("MiB"), "{answer}");
        Some(QemuIo(child))
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn image(dir: &tempfile::TempDir) -> PathBuf {
    let path = dir.path().join("image raw");
    RawImage::create(&path, 4 << 20).unwrap();
    path
}

#[test]
fn who_writes_to_an_image_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir);
    let own = RawImage::open_write(&path).unwrap();
    assert_eq!(in_use(&path).unwrap(), None);
    let Some(qemu) = QemuIo::open(&[], &path) else { return };
    let used = in_use(&path).unwrap().expect("qemu-io holds it");
    let Use::Locked { writes: true, process: Some(process) } = &used else { panic!("{used}") };
    assert_eq!((process.pid, process.name.as_str()), (qemu.0.id(), "qemu-io"));
    assert_eq!(own.in_use().unwrap(), Some(used));
    // By another name too.
    fs::hard_link(&path, dir.path().join("other")).unwrap();
    assert!(matches!(in_use(dir.path().join("other")).unwrap(), Some(Use::Locked { writes: true, .. })));
    // Asking has taken nothing: it can still be opened once more after this one.
    drop(qemu);
    assert_eq!(in_use(&path).unwrap(), None);
    drop(QemuIo::open(&[], &path).unwrap());
}

#[test]
fn who_only_reads_an_image_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir);
    let Some(_qemu) = QemuIo::open(&["-r"], &path) else { return };
    let used = in_use(&path).unwrap().expect("qemu-io holds it");
    assert!(matches!(used, Use::Locked { writes: false, .. }), "{used}");
    assert!(used.to_string().contains("which reads it"), "{used}");
}

#[test]
fn a_loop_device_uses_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir);
    let Some(device) = LoopDevice::of(&path) else { return };
    assert_eq!(in_use(&path).unwrap(), Some(Use::Loop { device: device.path().to_owned() }));
    assert_eq!(in_use(device.path()).unwrap(), None);
    let exclusive = {
        use std::os::unix::fs::OpenOptionsExt;
        let flags = rustix::fs::OFlags::EXCL.bits() as i32;
        fs::OpenOptions::new().read(true).custom_flags(flags).open(device.path()).unwrap()
    };
    assert_eq!(in_use(device.path()).unwrap(), Some(Use::Claimed { holders: vec![] }));
    drop(exclusive);
    assert_eq!(in_use(device.path()).unwrap(), None);
    let Some(_qemu) = QemuIo::open(&[], device.path()) else { return };
    assert!(matches!(in_use(device.path()).unwrap(), Some(Use::Locked { writes: true, .. })));
}

#[test]
fn a_mounted_device_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let (path, at) = (image(&dir), dir.path().join("mounted here"));
    fs::create_dir(&at).unwrap();
    let Some(device) = LoopDevice::of(&path) else { return };
    let run = |program: &str, args: &[&Path]| {
        Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status()
    };
    if !run("mkfs.ext4", &[device.path()]).is_ok_and(|status| status.success())
        || !run("mount", &[device.path(), &at]).is_ok_and(|status| status.success())
    {
        return;
    }
    let used = in_use(device.path());
    assert!(run("umount", &[&at]).unwrap().success());
    assert_eq!(used.unwrap(), Some(Use::Mounted { at }));
    assert_eq!(in_use(device.path()).unwrap(), None);
}

#[test]
fn paths_of_the_kernel_are_read_as_it_writes_them() {
    assert_eq!(unescaped(br"/a\040b\134c\"), Path::new("/a b\\c\\"));
    assert_eq!(unescaped(br"/\400\04"), Path::new(r"/\400\04"));
}

#[test]
fn a_device_takes_a_copy() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), image(&dir));
    let Some(device) = LoopDevice::of(&to) else { return };
    RawImage::open_write(device.path()).unwrap().write_at(1 << 20, &[7; 4096]).unwrap();
    RawImage::create(&from, 3 << 20).unwrap().write_at(2 << 20, b"here").unwrap();
    copy_sparse(&from, device.path()).unwrap();
    assert!(fs::read(device.path()).unwrap()[..3 << 20] == fs::read(&from).unwrap());
}
