//! Where a restore gets chunks. It never keeps any.

use bytes::Bytes;

use crate::{ChunkId, Seeds, Store, StoreError};

/// Where chunks come from.
pub(super) struct Chunks<'a> {
    pub(super) store: &'a Store,
    pub(super) seeds: &'a Seeds,
}

impl Chunks<'_> {
    /// A chunk of `len` bytes: the manifest's word on the length is not covered by the chunk's name.
    pub(super) fn get(&self, id: ChunkId, len: u32) -> Result<Bytes, StoreError> {
        let chunk = self.seeds.get(&id).map_or_else(|| self.store.get(&id), Ok)?;
        if chunk.len() != len as usize {
            return Err(StoreError::OtherLength { id, len: chunk.len() as u32, claimed: len });
        }
        Ok(chunk)
    }
}
