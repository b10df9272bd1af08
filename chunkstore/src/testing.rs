//! Material for the tests of this crate: bytes from a seed and images with holes of their own choosing. Never
//! compiled into the library.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;

use crate::ReadImage;

/// A directory where a sync costs nothing: in memory, if the machine has such a place.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Bytes that do not compress, always the same for a seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Bytes that compress well.
pub(crate) fn text(seed: u64, len: usize) -> Vec<u8> {
    noise(seed, len / 15 + 1)
        .iter()
        .flat_map(|byte| format!("line {byte:03} of it\n").into_bytes())
        .take(len)
        .collect()
}

/// Bytes of which some zero blocks are said to be holes.
pub(crate) struct Holed {
    pub(crate) bytes: Vec<u8>,
    /// Sorted, disjoint; everything outside is zero.
    pub(crate) data: Vec<Range<u64>>,
}

impl ReadImage for Holed {
    fn size(&self) -> u64 {
        self.bytes.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.bytes.read_at(offset, buf)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let next = self.data.iter().find(|data| data.end > offset);
        Ok(next.map(|data| data.start.max(offset)..data.end))
    }
}

/// Copies a flat directory, as a crash would leave it.
pub(crate) fn snapshot(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            snapshot(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// A file system of a few bytes, to fill up; gone when dropped. `None` for who may not mount.
pub(crate) struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    pub(crate) fn mount(bytes: usize) -> Option<SmallDisk> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(dir.path())
            .stderr(std::process::Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(SmallDisk(dir))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a file of the test may still be open.
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// A loop device; gone when dropped. `None` for who may not make one.
pub(crate) struct LoopDevice(std::path::PathBuf);

impl LoopDevice {
    pub(crate) fn of(backing: &Path) -> Option<LoopDevice> {
        let made =
            std::process::Command::new("losetup").args(["--find", "--show"]).arg(backing).output().ok()?;
        made.status.success().then(|| LoopDevice(String::from_utf8(made.stdout).unwrap().trim().into()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}
