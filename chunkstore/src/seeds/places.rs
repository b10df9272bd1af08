//! Where the chunks of one image lie, in 16 bytes each: a replica of a TiB has 16 million. It never reads the image and
//! knows only the beginning of a chunk's name, so whoever reads what it points to compares the whole of it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::{ChunkId, MAX_CHUNK_BYTES};

const LEN_BITS: u32 = MAX_CHUNK_BYTES.ilog2();
/// Chunks lie before this byte of their image: 64 TiB.
const END_BYTES: u64 = 1 << (u64::BITS - LEN_BITS);
/// What a place becomes when it is forgotten. The longest chunk at the last byte: that is no place.
const FORGOTTEN: u64 = u64::MAX;

/// Offset and length of a chunk: the offset, and in the low 18 bits the length less one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(u64);

/// The chunks of one image, each once, sorted by the beginnings of their names. Hashes are spread evenly, so that no
/// two of an image begin with the same 8 bytes but for one in a hundred thousand images of a TiB; of such two the first
/// is kept.
pub(super) struct Places(Box<[Entry]>);

struct Entry {
    prefix: u64,
    /// A [`Place`], or [`FORGOTTEN`]: readers forget without waiting for each other.
    place: AtomicU64,
}

/// The first 8 bytes of a chunk's name.
pub(super) fn prefix(id: &ChunkId) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *id.as_bytes();
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

impl Place {
    /// `None`: no chunk is that long, or the place is too far out.
    pub(super) fn new(offset: u64, len: u32) -> Option<Place> {
        let fits = (1..=MAX_CHUNK_BYTES as u64).contains(&u64::from(len))
            && offset.checked_add(len.into()).is_some_and(|end| end <= END_BYTES);
        fits.then(|| Place(offset << LEN_BITS | u64::from(len - 1)))
    }

    pub(super) fn offset(self) -> u64 {
        self.0 >> LEN_BITS
    }

    pub(super) fn len(self) -> usize {
        (self.0 & ((1 << LEN_BITS) - 1)) as usize + 1
    }
}

impl Places {
    /// Of equal prefixes the one that lies first in the image is kept.
    pub(super) fn new(chunks: impl Iterator<Item = (u64, Place)>) -> Places {
        let mut entries: Vec<Entry> =
            chunks.map(|(prefix, place)| Entry { prefix, place: place.0.into() }).collect();
        entries.sort_unstable_by_key(|entry| (entry.prefix, entry.place.load(Ordering::Relaxed)));
        entries.dedup_by_key(|entry| entry.prefix);
        Places(entries.into_boxed_slice())
    }

    pub(super) fn find(&self, prefix: u64) -> Option<Place> {
        let place = self.entry(prefix)?.place.load(Ordering::Relaxed);
        (place != FORGOTTEN).then_some(Place(place))
    }

    pub(super) fn forget(&self, prefix: u64) {
        if let Some(entry) = self.entry(prefix) {
            entry.place.store(FORGOTTEN, Ordering::Relaxed);
        }
    }

    fn entry(&self, prefix: u64) -> Option<&Entry> {
        let at = self.0.binary_search_by_key(&prefix, |entry| entry.prefix).ok()?;
        self.0.get(at)
    }
}

#[cfg(test)]
mod tests;
