//! A guest's disk as it was at the moment of a pass. It writes nothing.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use chunkstore::{LEAF_BYTES, ReadImage};
use migrate_driver::nbd::Overlay;

use crate::lease::Leased;
use crate::service::disks::Cut;

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
