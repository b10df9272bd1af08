//! The file system with somebody in between, who sees what is opened and read before it is, and may have it fail.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::{Disk, DiskFile, DiskImage, RealDisk};
use crate::map::Map;
use crate::sync::lock;

/// What is about to be done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Open,
    Read,
}

type Hook = Arc<dyn Fn(Op, &Path) -> io::Result<()> + Send + Sync>;

/// The disk; clones have the same hook.
#[derive(Clone, Default)]
pub(crate) struct HookedDisk(Arc<Mutex<Option<Hook>>>, Arc<Mutex<Option<BadBytes>>>);

type BadBytes = (PathBuf, Range<u64>);

impl HookedDisk {
    /// From now on, in place of what there was.
    pub(crate) fn hook(&self, hook: impl Fn(Op, &Path) -> io::Result<()> + Send + Sync + 'static) {
        *lock(&self.0) = Some(Arc::new(hook));
    }

    pub(crate) fn unhook(&self) {
        *lock(&self.0) = None;
        *lock(&self.1) = None;
    }

    /// From now on these bytes of this file cannot be read.
    pub(crate) fn set_bad(&self, path: &Path, bytes: Range<u64>) {
        *lock(&self.1) = Some((path.to_owned(), bytes));
    }

    fn is_bad(&self, path: &Path, offset: u64, len: u64) -> bool {
        let overlaps = |bad: &Range<u64>| offset < bad.end && bad.start < offset + len;
        lock(&self.1).as_ref().is_some_and(|(bad_path, bad)| bad_path == path && overlaps(bad))
    }

    fn before(&self, op: Op, path: &Path) -> io::Result<()> {
        let hook = lock(&self.0).clone();
        hook.map_or(Ok(()), |hook| hook(op, path))
    }

    fn file(&self, path: &Path, below: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(HookedFile { disk: self.clone(), path: path.to_owned(), below })
    }
}

impl fmt::Debug for HookedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HookedDisk")
    }
}

impl Disk for HookedDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_dir(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        RealDisk.list(dir)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.before(Op::Open, path)?;
        Ok(self.file(path, RealDisk.open(path)?))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(path, RealDisk.create(path)?))
    }

    fn create_appended(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(path, RealDisk.create_appended(path)?))
    }

    // No store has images.
    fn create_image(&self, path: &Path, size: u64) -> io::Result<Arc<dyn DiskImage>> {
        RealDisk.create_image(path, size)
    }

    fn open_image(&self, path: &Path) -> io::Result<Arc<dyn DiskImage>> {
        RealDisk.open_image(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        RealDisk.sync_dir(dir)
    }
}

#[derive(Debug)]
struct HookedFile {
    disk: HookedDisk,
    path: PathBuf,
    below: Arc<dyn DiskFile>,
}

impl DiskFile for HookedFile {
    fn len(&self) -> io::Result<u64> {
        self.below.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.disk.before(Op::Read, &self.path)?;
        if self.disk.is_bad(&self.path, offset, buf.len() as u64) {
            return Err(rustix::io::Errno::IO.into());
        }
        self.below.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.below.write_at(offset, data)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.below.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.below.sync()
    }

    fn end(&self) -> io::Result<()> {
        self.below.end()
    }

    fn map(&self) -> io::Result<Map> {
        self.below.map()
    }
}
