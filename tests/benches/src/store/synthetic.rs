//! What depends on the number of chunks and not on what is in them: a store of many small chunks, half of them garbage, for
//! `gc` and `rss_index`; a large image that takes no room, for `rss_ingest`.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use bytes::Bytes;
use chunkstore::{
    AVERAGE_CHUNK_BYTES, Chunk, ChunkId, GROUP_BYTES, Group, ImageTree, LEVEL, MIN_CHUNK_BYTES, Manifest,
    ManifestExtent, ReadImage, Store,
};

/// Bytes of a chunk.
const CHUNK_BYTES: usize = 512;

/// Chunks put together.
const GROUP_CHUNKS: u64 = (GROUP_BYTES / CHUNK_BYTES) as u64;

/// Puts `chunks` chunks of random bytes into the store. Every second one belongs to the published image `live`, the
/// others to none: each pack, and each group in it, is half waste.
///
/// # Errors
/// What the store reports.
pub(crate) fn fill(store: &Store, chunks: u64) -> Result<()> {
    let mut random = blake3::Hasher::new().update(b"a store to collect").finalize_xof();
    let mut live = Vec::new();
    for start in (0..chunks).step_by(GROUP_CHUNKS as usize) {
        let group = random_group(&mut random, GROUP_CHUNKS.min(chunks - start));
        live.extend(group.chunks().iter().step_by(2).map(Chunk::id));
        store.put_group(&group, LEVEL)?;
    }
    publish(store, "live", &live)
}

/// Puts chunks until `done`, publishes them as the image `beside`, and gives their number.
///
/// # Errors
/// What the store reports.
pub(crate) fn ingest_until(store: &Store, done: &AtomicBool) -> Result<u64> {
    let mut random = blake3::Hasher::new().update(b"what comes meanwhile").finalize_xof();
    let pin = store.pin();
    let mut ids = Vec::new();
    while !done.load(Ordering::Relaxed) {
        let group = random_group(&mut random, GROUP_CHUNKS);
        ids.extend(group.chunks().iter().map(Chunk::id));
        store.put_group(&group, LEVEL)?;
    }
    publish(store, "beside", &ids)?;
    drop(pin);
    Ok(ids.len() as u64)
}

fn random_group(random: &mut blake3::OutputReader, chunks: u64) -> Group {
    let chunk = |_| {
        let mut bytes = vec![0; CHUNK_BYTES];
        random.fill(&mut bytes);
        Chunk::of(Bytes::from(bytes))
    };
    Group::of((0..chunks).map(chunk).collect())
}

fn publish(store: &Store, name: &str, ids: &[ChunkId]) -> Result<()> {
    let extent = |id: &ChunkId| ManifestExtent::Data { len: CHUNK_BYTES as u32, id: *id };
    let size = (ids.len() * CHUNK_BYTES) as u64;
    // Nobody restores this image: its root is that of zeroes.
    let root = ImageTree::new(size).root();
    Ok(store.publish(name, &Manifest::of(root, ids.iter().map(extent))?)?)
}

/// Bytes that the cutter looks at behind a place.
const MARK_BYTES: usize = 64;

/// Chunks of a large image before it repeats itself.
const UNITS: usize = 1000;

/// An image of any size in the shortest chunks, without a hole: the same 16 MiB again and again.
pub(crate) struct Repeated {
    unit: Vec<u8>,
    size: u64,
}

impl Repeated {
    /// Of `size` bytes.
    ///
    /// # Errors
    /// None that happens.
    pub(crate) fn new(size: u64) -> Result<Self> {
        let mut random = blake3::Hasher::new().update(b"an image that repeats itself").finalize_xof();
        let mut bytes = vec![0; 16 << 20];
        random.fill(&mut bytes);
        // Where one chunk is cut early, every chunk is cut that is followed by the same bytes.
        let cut = chunkstore::pieces(&bytes)
            .flatten()
            .find(|piece| (piece.len as usize) < AVERAGE_CHUNK_BYTES)
            .context("a short chunk in random bytes")?;
        let end = (cut.offset + cut.len) as usize;
        let mark = &bytes[end..end + MARK_BYTES];
        let mut unit = vec![0; UNITS * MIN_CHUNK_BYTES];
        random.fill(&mut unit);
        unit.chunks_mut(MIN_CHUNK_BYTES).for_each(|chunk| chunk[..MARK_BYTES].copy_from_slice(mark));
        Ok(Repeated { unit, size })
    }
}

impl ReadImage for Repeated {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut at = (offset % self.unit.len() as u64) as usize;
        while !buf.is_empty() {
            let len = buf.len().min(self.unit.len() - at);
            let (now, later) = buf.split_at_mut(len);
            now.copy_from_slice(&self.unit[at..at + len]);
            (buf, at) = (later, 0);
        }
        Ok(())
    }
}
