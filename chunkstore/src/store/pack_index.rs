//! The index at the end of a sealed pack, read a little at a time: all packs of a store are read side by side when its index is
//! made again. It never reads a record.

use std::io;

use super::record::{Entry, FOOTER_BYTES, FOOTER_CHECKED_BYTES, Footer, INDEX_ENTRY_BYTES};
use crate::FileError;

/// Entries kept in memory of each pack that is being read.
const WINDOW_ENTRIES: u64 = 64;

/// Bytes of an index hashed at once.
const HASH_BYTES: usize = INDEX_ENTRY_BYTES * 4096;

/// The entries of a pack, sorted by chunk, then place, until one cannot be read.
pub(super) type Entries<'a> = Box<dyn Iterator<Item = Result<Entry, FileError>> + 'a>;

/// Fills a buffer from an offset in the pack on.
pub(super) type ReadAt<'a> = dyn Fn(u64, &mut [u8]) -> io::Result<()> + 'a;

/// Finds the index of a pack of `len` bytes: whole, and every entry in it possible and in order. `None` when the pack is not
/// sealed, or its index is damaged.
pub(super) fn find(len: u64, read: &ReadAt<'_>) -> io::Result<Option<Footer>> {
    let mut bytes = [0; FOOTER_BYTES];
    let Some(footer_at) = len.checked_sub(FOOTER_BYTES as u64) else { return Ok(None) };
    read(footer_at, &mut bytes)?;
    let Some(footer) = Footer::parse(&bytes, len) else { return Ok(None) };
    let mut hasher = blake3::Hasher::new();
    let mut last = None;
    let mut window = vec![0; HASH_BYTES.min((footer_at - footer.index_at) as usize)];
    let mut at = footer.index_at;
    while at < footer_at {
        let part = &mut window[..HASH_BYTES.min((footer_at - at) as usize)];
        read(at, part)?;
        hasher.update(part);
        for bytes in part.chunks_exact(INDEX_ENTRY_BYTES) {
            let Some(order) = footer.entry(bytes).map(|entry| entry.order()) else { return Ok(None) };
            if last.is_some_and(|last| last >= order) {
                return Ok(None);
            }
            last = Some(order);
        }
        at += part.len() as u64;
    }
    hasher.update(&bytes[..FOOTER_CHECKED_BYTES]);
    Ok((hasher.finalize() == footer.check).then_some(footer))
}

/// The entries of the index that [`find`] found. `read` fills a buffer from an offset in the pack on.
pub(super) fn entries<'a>(
    footer: Footer,
    read: impl Fn(u64, &mut [u8]) -> Result<(), FileError> + 'a,
    damaged: impl Fn() -> FileError + 'a,
) -> Entries<'a> {
    let mut next = 0;
    let mut window = Vec::new().into_iter();
    let load = move |first: u64| {
        let count = (footer.entries - first).min(WINDOW_ENTRIES);
        let mut bytes = vec![0; count as usize * INDEX_ENTRY_BYTES];
        read(footer.index_at + first * INDEX_ENTRY_BYTES as u64, &mut bytes)?;
        let entries = bytes.chunks_exact(INDEX_ENTRY_BYTES).map(|bytes| footer.entry(bytes));
        // It was whole when it was found.
        entries.collect::<Option<Vec<Entry>>>().ok_or_else(&damaged)
    };
    Box::new(std::iter::from_fn(move || {
        if window.len() == 0 && next < footer.entries {
            match load(next) {
                Ok(entries) => {
                    next += entries.len() as u64;
                    window = entries.into_iter();
                }
                Err(error) => {
                    next = footer.entries;
                    return Some(Err(error));
                }
            }
        }
        window.next().map(Ok)
    }))
}

/// The entries of a pack in memory, if it has an index.
#[cfg(any(test, fuzzing))]
pub(super) fn of_bytes(pack: &[u8]) -> Option<Vec<Entry>> {
    use crate::ReadImage;
    let footer = find(pack.size(), &|at, buffer| pack.read_at(at, buffer)).expect("memory can be read")?;
    let read = |at: u64, buffer: &mut [u8]| {
        pack.read_at(at, buffer).map_err(FileError::at("read", std::path::Path::new("memory")))
    };
    let damaged = || FileError::at("read", std::path::Path::new("memory"))(io::ErrorKind::InvalidData.into());
    Some(entries(footer, read, damaged).collect::<Result<_, _>>().expect("memory can be read"))
}
