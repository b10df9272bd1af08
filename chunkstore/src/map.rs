//! A file mapped into memory, or bytes that stand for one. The one place of this crate with `unsafe`; it never maps a
//! file that may still change.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;

/// What a reader leaves in memory behind it: asking the kernel more often would cost more than it gives back.
pub(crate) const WINDOW_BYTES: usize = 1 << 20;

/// As many bytes are kept in memory; more go to a file or stay in theirs. The images of tests are small.
pub(crate) const IN_MEMORY_BYTES: usize = if cfg!(test) { 512 } else { 1 << 20 };

/// The bytes of a file that does not change while it is mapped.
pub(crate) struct Map(Bytes);

enum Bytes {
    Mapped(memmap2::Mmap),
    /// Too few to be worth a map, or of a disk that has no files.
    Owned(Vec<u8>),
}

impl From<Vec<u8>> for Map {
    fn from(bytes: Vec<u8>) -> Map {
        Map(Bytes::Owned(bytes))
    }
}

impl Map {
    /// Maps all of `file`. The caller holds the lock on the directory that the file is in, and nothing writes to the
    /// file or cuts it while the map lives. That its name goes, or another file takes it, does no harm: the map keeps
    /// the bytes.
    pub(crate) fn of(file: &File) -> io::Result<Map> {
        // SAFETY: the mapping is sound while no one changes the file's bytes or cuts it. Only this process may,
        // since it holds the exclusive lock on the store or replica, and what it maps is never written again, only
        // unlinked, which leaves the mapping valid: a manifest (its name is given to another file when it is replaced), a
        // spool that is complete. What is read through a map is checked before it is used. A page that the disk cannot
        // read ends the process, though. So only manifests and spools are mapped, not packs, which are nearly all of a
        // store: a spool was written just now, and a manifest is read once by calls before it is mapped, where a bad
        // sector is an error.
        let map = unsafe { memmap2::Mmap::map(file)? };
        Ok(Map(Bytes::Mapped(map)))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.0 {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }

    /// These bytes are not needed for now: what of the file the process has in its memory may go. Reading them again
    /// gets them back.
    pub(crate) fn let_go(&self, range: Range<usize>) {
        if let Bytes::Mapped(map) = &self.0 {
            let end = range.end.min(map.len());
            let start = range.start.min(end);
            // SAFETY: the range lies in the map, which is shared and only read: what it loses it gets back from the file,
            // the same bytes as before, and nobody who reads them meanwhile can tell. A refusal costs memory, no more.
            let _ =
                unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
        }
    }
}

/// Lets go of what lies behind a reader that goes once from the beginning to the end: a MiB of it stays.
pub(crate) struct Behind<'a> {
    map: &'a Map,
    kept_from: usize,
}

impl<'a> Behind<'a> {
    pub(crate) fn of(map: &'a Map) -> Behind<'a> {
        Behind { map, kept_from: 0 }
    }

    /// The reader is there.
    pub(crate) fn pass(&mut self, at: usize) {
        if at.saturating_sub(self.kept_from) >= WINDOW_BYTES {
            self.map.let_go(self.kept_from..at);
            self.kept_from = at;
        }
    }
}

impl std::fmt::Debug for Map {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.bytes().len())
    }
}
