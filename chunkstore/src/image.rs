//! Disk images as bytes: raw files and block devices, with their holes. It never caches, never locks and never
//! interprets what it reads.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use crate::open::{open_checked, open_regular};
use crate::usage::{Use, in_use};
use crate::{FileId, direct};

/// A disk image as bytes.
pub trait ReadImage: Send + Sync {
    /// Its length in bytes.
    fn size(&self) -> u64;

    /// Fills `buf` from `offset` on; `UnexpectedEof` when the image ends before.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// The first range at or after `offset` that may hold data, clipped to start at `offset`; everything before it
    /// reads as zeroes. `None` when only zeroes are left. An image that does not know its holes is one range.
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        Ok((offset < self.size()).then(|| offset..self.size()))
    }
}

impl<T: ReadImage + ?Sized> ReadImage for &T {
    fn size(&self) -> u64 {
        (**self).size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buf)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        (**self).next_data(offset)
    }
}

impl<T: ReadImage + ?Sized> ReadImage for Arc<T> {
    fn size(&self) -> u64 {
        (**self).size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buf)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        (**self).next_data(offset)
    }
}

/// Bytes in memory are an image without holes.
impl ReadImage for [u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let source = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(buf.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(source);
        Ok(())
    }
}

impl ReadImage for Vec<u8> {
    fn size(&self) -> u64 {
        self.as_slice().size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.as_slice().read_at(offset, buf)
    }
}

/// Zeroes written at once where a hole cannot be punched.
static ZEROES: [u8; 65536] = [0; 65536];

/// A raw image: a regular file or a block device; nothing else can be opened as one, and no open waits for somebody else.
/// Its size is taken when it is opened.
#[derive(Debug)]
pub struct RawImage {
    file: File,
    path: PathBuf,
    size: u64,
}

impl RawImage {
    /// Opens an image to read it.
    pub fn open_read(path: impl AsRef<Path>) -> io::Result<RawImage> {
        RawImage::from_file(open_regular(&path)?, path.as_ref())
    }

    /// Opens an image to read and write it. It keeps its size.
    pub fn open_write(path: impl AsRef<Path>) -> io::Result<RawImage> {
        let file = open_checked(path.as_ref(), OpenOptions::new().read(true).write(true))?;
        RawImage::from_file(file, path.as_ref())
    }

    /// Creates a file of `size` bytes that is one hole. `AlreadyExists` rather than replacing one.
    pub fn create(path: impl AsRef<Path>, size: u64) -> io::Result<RawImage> {
        let path = path.as_ref();
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        if let Err(error) = file.set_len(size) {
            let _ = fs::remove_file(path);
            return Err(error);
        }
        Ok(RawImage { file, path: path.to_owned(), size })
    }

    /// Creates a file of `size` bytes. With `like`, on a file system that can, it begins with that image's bytes in
    /// blocks that both share until one of them is written; otherwise it is one hole. `AlreadyExists` rather than
    /// replacing one.
    pub(crate) fn create_like(
        path: impl AsRef<Path>,
        size: u64,
        like: Option<&RawImage>,
    ) -> io::Result<RawImage> {
        let image = RawImage::create(path, size)?;
        // Any refusal (other file system, no such feature, a device) just means to begin with nothing.
        if like.is_some_and(|like| rustix::fs::ioctl_ficlone(&image.file, &like.file).is_ok())
            && let Err(error) = image.file.set_len(size)
        {
            let _ = fs::remove_file(&image.path);
            return Err(error);
        }
        Ok(image)
    }

    fn from_file(file: File, path: &Path) -> io::Result<RawImage> {
        let size = current_size(&file)?;
        Ok(RawImage { file, path: path.to_owned(), size })
    }

    /// What it is, whatever its path leads to by now.
    pub fn id(&self) -> io::Result<FileId> {
        FileId::of_file(&self.file)
    }

    /// Who else uses it right now; see [`in_use`](crate::in_use).
    pub fn in_use(&self) -> io::Result<Option<Use>> {
        in_use(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes `data` at `offset`; it must end inside the image.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check_range(offset, data.len() as u64)?;
        self.file.write_all_at(data, offset)
    }

    /// Makes `len` bytes from `offset` on read as zeroes, as a hole where the file system can. Cheap where there is
    /// a hole already.
    pub fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_range(offset, len)?;
        let end = offset + len;
        match self.data_start(offset)? {
            Some(start) if start < end => self.punch(start, end),
            _ => Ok(()),
        }
    }

    fn punch(&self, start: u64, end: u64) -> io::Result<()> {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, punch, start, end - start) {
            Ok(()) => Ok(()),
            // Not every file system punches, and a device only in units of its sectors.
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NODEV | Errno::NOSYS) => {
                self.write_zeroes(start, end)
            }
            Err(errno) => Err(errno.into()),
        }
    }

    fn write_zeroes(&self, start: u64, end: u64) -> io::Result<()> {
        let mut at = start;
        while at < end {
            let len = (end - at).min(ZEROES.len() as u64);
            self.file.write_all_at(&ZEROES[..len as usize], at)?;
            at += len;
        }
        Ok(())
    }

    /// Makes the bytes durable.
    pub fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Makes the bytes and the file's metadata durable.
    pub fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Room that the file takes on its disk, in bytes; the size, for a device.
    pub fn allocated_bytes(&self) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt;
        let metadata = self.file.metadata()?;
        Ok(if metadata.is_file() { metadata.blocks() * 512 } else { self.size })
    }

    /// The file, when it is one hole, to write past the page cache: only whole blocks of [`BLOCK_BYTES`], that begin with one in
    /// memory too. `None` when there is data, or the file system cannot do it so.
    pub(crate) fn direct_if_hole(&self) -> Option<File> {
        let hole = self.file.metadata().ok()?.is_file() && matches!(self.data_start(0), Ok(None));
        if hole { direct::reopen(&self.file, false) } else { None }
    }

    fn check_range(&self, offset: u64, len: u64) -> io::Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{len} bytes at {offset} do not fit into {} of {} bytes",
                    self.path.display(),
                    self.size
                ),
            )),
        }
    }

    /// Where data begins at or after `offset`.
    pub(crate) fn data_start(&self, offset: u64) -> io::Result<Option<u64>> {
        if offset >= self.size {
            return Ok(None);
        }
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(start) => Ok(Some(start).filter(|start| *start < self.size)),
            Err(Errno::NXIO) => self.check_not_shrunk().map(|()| None),
            // A device or file system that cannot tell.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(offset)),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Seeking finds no data behind the end of a file, as it does in a hole: a file that was cut must not be taken
    /// for one that ends in zeroes.
    fn check_not_shrunk(&self) -> io::Result<()> {
        let size = current_size(&self.file)?;
        if size >= self.size {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("{} shrank from {} to {size} bytes while it was read", self.path.display(), self.size),
        ))
    }
}

/// Positional reads and writes only, so a moving file position harms no one.
fn current_size(file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    if metadata.is_file() {
        return Ok(metadata.len());
    }
    Ok(rustix::fs::seek(file, SeekFrom::End(0))?)
}

impl ReadImage for RawImage {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let result = self.file.read_exact_at(buf, offset);
        if matches!(&result, Err(error) if error.kind() == io::ErrorKind::UnexpectedEof) {
            self.check_not_shrunk()?;
        }
        result
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let Some(start) = self.data_start(offset)? else { return Ok(None) };
        match rustix::fs::seek(&self.file, SeekFrom::Hole(start)) {
            Ok(end) => Ok(Some(start..end.min(self.size))),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(start..self.size)),
            Err(errno) => Err(errno.into()),
        }
    }
}

mod copy;

pub use copy::{copy_sparse, copy_sparse_while, reflink};

#[cfg(test)]
mod tests;
