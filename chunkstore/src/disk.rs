//! What a store asks of the disk below it, and no more, so that a test can take the power away at any write: [`Disk`]
//! for names, [`DiskFile`] for bytes. [`RealDisk`] is the file system.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::ReadImage;
use crate::map::Map;
pub(crate) use real::RealDisk;

/// A directory tree. Names last from [`Disk::sync_dir`] on, bytes from [`DiskFile::sync`] on.
pub(crate) trait Disk: Send + Sync + fmt::Debug {
    /// Makes a directory and those above it; nothing to do when it is there.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// The names of the files in a directory.
    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>>;
    /// Opens a file to read and write it.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Creates a file; `AlreadyExists` rather than opening one.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// As [`Disk::create`], a file that is written at its end and cut, and nothing else, until it is [ended](DiskFile::end).
    /// Until then, and after a crash, zeroes may lie behind its end.
    fn create_appended(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Creates an image of `size` bytes that is one hole; `AlreadyExists` rather than opening one.
    fn create_image(&self, path: &Path, size: u64) -> io::Result<Arc<dyn DiskImage>>;
    /// Opens an image to read and write it.
    fn open_image(&self, path: &Path) -> io::Result<Arc<dyn DiskImage>>;
    /// Gives a file another name, in place of what had that one.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a name. Who has the file open keeps it.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// A file, open.
pub(crate) trait DiskFile: Send + Sync + fmt::Debug {
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Fills `buf`; `UnexpectedEof` when the file ends before.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Writes all of `data`, making the file longer where need be.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Cuts the file, or lengthens it by zeroes.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes its bytes durable.
    fn sync(&self) -> io::Result<()>;
    /// It is not changed any more: lets it end where it is said to for whoever opens it. Not durable.
    fn end(&self) -> io::Result<()> {
        Ok(())
    }
    /// All its bytes. Only for a file that does not change while the map lives, see [`Map`].
    fn map(&self) -> io::Result<Map>;
}

/// A disk image, open. It keeps its size.
pub(crate) trait DiskImage: ReadImage + fmt::Debug {
    /// Writes all of `data`, which must end inside the image.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Makes a range read as zeroes, as a hole where that is possible.
    fn zero(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Makes its bytes durable.
    fn sync(&self) -> io::Result<()>;
}

mod appended;
mod real;

#[cfg(test)]
pub(crate) mod hooked;
#[cfg(test)]
pub(crate) mod sim;
