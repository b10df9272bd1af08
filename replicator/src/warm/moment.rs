//! A guest's disk as a pass reads it: the file that the guest has, as long as the guest knows it, and as it was at the
//! moment of the pass. It writes nothing.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use chunkstore::{FileId, LEAF_BYTES, RawImage, ReadImage};
use migrate_driver::nbd::Overlay;
use migrate_driver::{DiskDefinition, DiskFile, VmDefinition};

use super::WarmError;
use crate::lease::Leased;
use crate::platform::Platform;

/// A disk as its hypervisor has it.
pub(super) struct Seen {
    /// The file.
    pub(super) file: FileId,
    /// The size that the guest knows; 0 where the hypervisor does not tell.
    pub(super) size: u64,
}

/// The disks of a running guest, by name.
pub(super) async fn guest_disks(
    platform: &Platform,
    definition: &VmDefinition,
) -> Result<HashMap<String, Seen>, WarmError> {
    let disks = platform.hypervisor.disks(definition).await?;
    Ok(disks
        .into_iter()
        .map(|disk| (disk.name, Seen { file: file_id(disk.file), size: disk.size_bytes }))
        .collect())
}

fn file_id(DiskFile { dev, ino, rdev }: DiskFile) -> FileId {
    match rdev {
        Some(number) => FileId::BlockDevice { number },
        None => FileId::File { device: dev, inode: ino },
    }
}

/// An image up to the size that the guest knows: the file may have grown since.
pub(super) struct Cut {
    image: RawImage,
    size: u64,
}

impl Cut {
    pub(super) fn new(image: RawImage, size: u64) -> Cut {
        Cut { image, size }
    }

    pub(super) fn open(disk: &DiskDefinition, seen: Option<&Seen>) -> Result<Cut, WarmError> {
        let io = |source| WarmError::Io { what: format!("opening {}", disk.path.display()), source };
        let image = match RawImage::open_read(&disk.path) {
            Err(error) if seen.is_some() && error.kind() == io::ErrorKind::NotFound => {
                return Err(WarmError::Replaced { disk: disk.name.clone(), path: disk.path.clone() });
            }
            opened => opened.map_err(io)?,
        };
        let id = image.id().map_err(io)?;
        if seen.is_some_and(|seen| seen.file != id) {
            return Err(WarmError::Replaced { disk: disk.name.clone(), path: disk.path.clone() });
        }
        // The hypervisor's size is rounded up to whole sectors.
        let known = seen.map(|seen| seen.size).filter(|size| *size > 0);
        let size = known.map_or(image.size(), |known| known.min(image.size()));
        Ok(Cut::new(image, size))
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

/// The disk as it was at the tap: old data where the guest has written since, else the image.
pub(super) struct Moment {
    pub(super) image: Arc<Leased<Cut>>,
    pub(super) overlay: Arc<Overlay>,
}

impl ReadImage for Moment {
    fn size(&self) -> u64 {
        self.image.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.overlay.read_over(offset, buf, |offset, buf| self.image.read_at(offset, buf))
    }

    // A hole of the image may have been punched since: where the overlay has old data, there is data.
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let data = self.image.next_data(offset)?;
        let until = data.as_ref().map_or(self.size(), |data| data.start);
        // In that order: what is punched after the image was asked had its old data put into the overlay before.
        let mut at = offset;
        while at < until {
            let end = (at / LEAF_BYTES + 1) * LEAF_BYTES;
            if self.overlay.covers(at / LEAF_BYTES * LEAF_BYTES..end.min(self.size())) {
                return Ok(Some(at..end.min(self.size())));
            }
            at = end;
        }
        Ok(data)
    }
}

pub(super) fn leaves(range: &Range<u64>, size: u64) -> Range<u64> {
    let start = range.start / LEAF_BYTES * LEAF_BYTES;
    start..range.end.next_multiple_of(LEAF_BYTES).min(size)
}
