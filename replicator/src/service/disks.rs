//! A running guest's disks as its hypervisor has them: the very files, at the sizes that the guest knows. A path only names a
//! file; the file that the guest writes to is the one that its hypervisor has open. It writes nothing.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use chunkstore::{FileId, RawImage, ReadImage};
use migrate_driver::{DiskDefinition, DiskFile, DriverError, GuestDisk, Hypervisor, VmDefinition};

use crate::error_kind::{HasKind, Kind};

/// Why a guest's disk cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    /// The hypervisor.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The path leads to another file.
    #[error(
        "cannot copy disk '{disk}': {path} is not the file that the guest has open: it was replaced while the guest ran, and \
         the guest goes on in the old one; put that file back, or stop the VM and start it from the file that counts",
        path = .path.display()
    )]
    Replaced { disk: String, path: PathBuf },
    /// The file.
    #[error("cannot open disk '{disk}' at {path}: {source}", path = .path.display())]
    Io { disk: String, path: PathBuf, source: io::Error },
}

impl HasKind for DiskError {
    fn kind(&self) -> Kind {
        match self {
            DiskError::Driver(error) => error.kind(),
            DiskError::Replaced { .. } => Kind::Denied,
            DiskError::Io { source, .. } => Kind::of_io(source),
        }
    }
}

/// A disk of a running guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The file.
    pub file: FileId,
    /// The size that the guest knows; 0 where the hypervisor does not tell.
    pub size: u64,
}

impl Seen {
    fn of(disk: &GuestDisk) -> Seen {
        let DiskFile { dev, ino, rdev } = disk.file;
        let file = match rdev {
            Some(number) => FileId::BlockDevice { number },
            None => FileId::File { device: dev, inode: ino },
        };
        Seen { file, size: disk.size_bytes }
    }
}

/// The disks of a running guest, in the order of its definition; `None` for those that its hypervisor says nothing of.
pub(crate) async fn seen(
    hypervisor: &dyn Hypervisor,
    definition: &VmDefinition,
) -> Result<Vec<Option<Seen>>, DiskError> {
    let disks = hypervisor.disks(definition).await?;
    let seen = |definition: &DiskDefinition| match disks.iter().find(|disk| disk.name == definition.name) {
        Some(disk) if disk.is_replaced => {
            Err(DiskError::Replaced { disk: definition.name.clone(), path: definition.path.clone() })
        }
        disk => Ok(disk.map(Seen::of)),
    };
    definition.disks.iter().map(seen).collect()
}

/// An image up to the size that the guest knows: the file may have grown since.
pub(crate) struct Cut {
    image: RawImage,
    size: u64,
}

impl Cut {
    /// `image`, as far as `size`.
    pub(crate) fn new(image: RawImage, size: u64) -> Cut {
        Cut { image, size }
    }

    /// Opens the image of a disk. Blocks while its file system hangs.
    pub(crate) fn open(disk: &DiskDefinition, seen: Option<Seen>) -> Result<Cut, DiskError> {
        let replaced = || DiskError::Replaced { disk: disk.name.clone(), path: disk.path.clone() };
        let io = |source| DiskError::Io { disk: disk.name.clone(), path: disk.path.clone(), source };
        let image = match RawImage::open_read(&disk.path) {
            Err(error) if seen.is_some() && error.kind() == io::ErrorKind::NotFound => {
                return Err(replaced());
            }
            opened => opened.map_err(io)?,
        };
        let id = image.id().map_err(io)?;
        if seen.is_some_and(|seen| seen.file != id) {
            return Err(replaced());
        }
        // The hypervisor's size is rounded up to whole sectors.
        let known = seen.map(|seen| seen.size).filter(|size| *size > 0);
        let size = known.map_or(image.size(), |known| known.min(image.size()));
        Ok(Cut::new(image, size))
    }

    /// Room that the file takes on its disk, in bytes.
    pub(crate) fn allocated_bytes(&self) -> io::Result<u64> {
        self.image.allocated_bytes()
    }
}

impl ReadImage for Cut {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.image.read_at(offset, buf)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let data = self.image.next_data(offset)?;
        Ok(data.filter(|data| data.start < self.size).map(|data| data.start..data.end.min(self.size)))
    }
}

#[cfg(test)]
mod tests;
