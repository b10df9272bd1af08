//! A store of many small chunks, half of them garbage: for `gc` and `rss_index`, which depend on the number of chunks
//! and not on what is in them.

use anyhow::Result;
use chunkstore::{ChunkId, ImageTree, Manifest, ManifestExtent, Store};

/// Bytes of a chunk.
const CHUNK_BYTES: u64 = 512;

/// Puts `chunks` chunks of random bytes into the store. Every second one belongs to the published image `live`, the
/// others to none: each pack is half waste.
///
/// # Errors
/// What the store reports.
pub(crate) fn fill(store: &Store, chunks: u64) -> Result<()> {
    let mut random = blake3::Hasher::new().update(b"a store to collect").finalize_xof();
    let mut bytes = [0; CHUNK_BYTES as usize];
    let mut extents = Vec::new();
    for number in 0..chunks {
        random.fill(&mut bytes);
        let id = ChunkId::of(&bytes);
        store.put(&id, &bytes)?;
        if number % 2 == 0 {
            extents.push(ManifestExtent::Data { len: CHUNK_BYTES as u32, id });
        }
    }
    let size = extents.len() as u64 * CHUNK_BYTES;
    // Nobody restores this image: its root is that of zeroes.
    store.publish("live", &Manifest { size, root: ImageTree::new(size).root(), extents })?;
    Ok(())
}
