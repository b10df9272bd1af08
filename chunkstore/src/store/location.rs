//! Where in the packs a chunk lies.

use std::ops::Range;

use bytes::Bytes;

use super::record::{self, Entry};
use crate::{MAX_CHUNK_BYTES, MAX_GROUP_BYTES};

/// Where a chunk lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) pack: u32,
    /// Of the record that holds it.
    pub(super) offset: u64,
    /// Where it starts in the record's plain bytes.
    pub(super) start: u32,
    pub(super) plain_len: u32,
    /// Its part of the record's stored bytes.
    pub(super) stored_len: u32,
}

impl Location {
    pub(super) fn of(pack: u32, entry: &Entry) -> Location {
        let Entry { id: _, offset, start, plain_len, stored_len } = *entry;
        Location { pack, offset, start, plain_len, stored_len }
    }

    /// About what it takes in a pack.
    pub(super) fn record_bytes(&self) -> u64 {
        let head = if self.start == 0 { record::GROUP_HEAD_BYTES } else { 0 };
        (head + record::TABLE_ENTRY_BYTES) as u64 + u64::from(self.stored_len)
    }

    pub(super) fn record(&self) -> (u32, u64) {
        (self.pack, self.offset)
    }

    /// In the record's plain bytes.
    pub(super) fn range(&self) -> Range<usize> {
        let start = self.start as usize;
        start..start + self.plain_len as usize
    }

    /// Of two places of one chunk the later one holds: it was put again because the first was bad, or moved.
    pub(super) fn order(&self) -> (u32, u64, u32) {
        (self.pack, self.offset, self.start)
    }

    /// Numbers that a place can have.
    pub(super) fn fits(&self) -> bool {
        (1..=MAX_CHUNK_BYTES).contains(&(self.plain_len as usize))
            && self.start as usize <= MAX_GROUP_BYTES - self.plain_len as usize
            && self.stored_len <= self.plain_len
    }
}

/// The chunk's part of a decoded group; `None` when it lies outside.
pub(super) fn slice(group: &Bytes, location: &Location) -> Option<Bytes> {
    let range = location.range();
    (range.end <= group.len()).then(|| group.slice(range))
}
