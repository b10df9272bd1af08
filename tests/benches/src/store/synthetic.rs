//! A store of many small chunks, half of them garbage: for `gc` and `rss_index`, which depend on the number of chunks
//! and not on what is in them.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use bytes::Bytes;
use chunkstore::{Chunk, ChunkId, Group, ImageTree, LEVEL, Manifest, ManifestExtent, Store};

/// Bytes of a chunk.
const CHUNK_BYTES: usize = 512;

/// Chunks put together: a MiB.
const GROUP_CHUNKS: u64 = 2048;

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
