//! The file system as a [`Disk`]. It passes everything on and decides nothing, but for what is written past the page cache.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::appended::{Appended, Below};
use super::{Disk, DiskFile, DiskImage};
use crate::map::Map;
use crate::open::open_checked;
use crate::{RawImage, direct};

/// The file system.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RealDisk;

impl Disk for RealDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            match entry.file_type() {
                // A link may lead to a file.
                Ok(kind) if kind.is_file() || kind.is_symlink() => names.push(entry.file_name()),
                // Such as lost+found.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(names)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(open_checked(path, OpenOptions::new().read(true).write(true))?))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(create_file(path)?))
    }

    fn create_appended(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = create_file(path)?;
        Ok(match direct::reopen(&file, true) {
            Some(direct) => Arc::new(Appended::new(Direct { file, direct })),
            None => Arc::new(file),
        })
    }

    fn create_image(&self, path: &Path, size: u64) -> io::Result<Arc<dyn DiskImage>> {
        Ok(Arc::new(RawImage::create(path, size)?))
    }

    fn open_image(&self, path: &Path) -> io::Result<Arc<dyn DiskImage>> {
        Ok(Arc::new(RawImage::open_write(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}

fn create_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).open(path)
}

impl DiskFile for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buf, offset)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_all_at(data, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn map(&self) -> io::Result<Map> {
        Map::of(self)
    }
}

impl DiskImage for RawImage {
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        RawImage::write_at(self, offset, data)
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        RawImage::zero(self, offset, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }
}

/// A file that is read and written in whole blocks past the page cache.
#[derive(Debug)]
struct Direct {
    file: File,
    /// The same file.
    direct: File,
}

impl DiskFile for Direct {
    fn len(&self) -> io::Result<u64> {
        DiskFile::len(&self.file)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.direct.read_exact_at(buf, offset)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.direct.write_all_at(data, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn map(&self) -> io::Result<Map> {
        Map::of(&self.file)
    }
}

impl Below for Direct {
    fn reserve(&self, from: u64, to: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, from, to - from) {
            // It finds room when it is written to.
            Err(Errno::OPNOTSUPP) => Ok(()),
            done => Ok(done?),
        }
    }
}
