//! A pack file mapped into memory. The one place of this crate with `unsafe`; it never maps a file that may still
//! grow or shrink.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;

/// The bytes of a file that does not change while it is mapped.
pub(crate) struct Map(Bytes);

enum Bytes {
    Mapped(memmap2::Mmap),
    /// Of a disk that has no files.
    #[cfg(test)]
    Owned(Vec<u8>),
}

#[cfg(test)]
impl From<Vec<u8>> for Map {
    fn from(bytes: Vec<u8>) -> Map {
        Map(Bytes::Owned(bytes))
    }
}

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
        Ok(Map(Bytes::Mapped(map)))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.0 {
            Bytes::Mapped(map) => map,
            #[cfg(test)]
            Bytes::Owned(bytes) => bytes,
        }
    }
}
