//! A pack file mapped into memory. The one place of this crate with `unsafe`; it never maps a file that may still
//! grow or shrink.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;

/// The bytes of a file that does not change while it is mapped.
pub(crate) struct Map(memmap2::Mmap);

impl Map {
    /// Maps all of `file`. The caller holds the store's lock and does not write to or truncate the file while the
    /// map lives.
    pub(crate) fn of(file: &File) -> io::Result<Map> {
        // SAFETY: the mapping is sound while no one changes the file's bytes or cuts it. Only this process may,
        // since it holds the exclusive lock on the store, and it maps a pack only when it is sealed (never written
        // again, only unlinked, which leaves the mapping valid) or for the one scan at opening, whose map is
        // dropped before the tail is cut. A person who edits the files behind the lock can make reads fail, as
        // with any mapped file; content read through the map is checked against its hash before it is used.
        let map = unsafe { memmap2::Mmap::map(file)? };
        Ok(Map(map))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}
