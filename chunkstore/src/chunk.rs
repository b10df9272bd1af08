//! Chunks whose names have been proven, alone and in groups. Neither ever takes a name on trust, so that who holds one
//! need not hash it again.

use bytes::Bytes;

use crate::encoded::Encoded;
use crate::{ChunkId, Codec, DecodeError, MAX_CHUNK_BYTES, MAX_GROUP_BYTES};

/// Plain bytes with their name. There is no way to make one but to hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    id: ChunkId,
    plain: Bytes,
}

impl Chunk {
    /// Names bytes.
    pub fn of(plain: Bytes) -> Chunk {
        Chunk { id: ChunkId::of(&plain), plain }
    }

    /// Its name.
    pub fn id(&self) -> ChunkId {
        self.id
    }

    /// Its plain bytes.
    pub fn plain(&self) -> &Bytes {
        &self.plain
    }
}

/// Chunks that are compressed together, because that takes a tenth less room than one by one.
#[derive(Debug, Clone)]
pub struct Group {
    chunks: Vec<Chunk>,
    /// Their bytes, one behind the other, where they are at hand so.
    plain: Option<Bytes>,
    encoded: Option<Encoded>,
}

impl Group {
    /// Chunks that are still to be compressed.
    pub fn of(chunks: Vec<Chunk>) -> Group {
        Group { chunks, plain: None, encoded: None }
    }

    /// Such chunks, which were cut from `plain` one behind the other.
    pub(crate) fn cut_from(plain: Bytes, chunks: Vec<Chunk>) -> Group {
        Group { chunks, plain: Some(plain), encoded: None }
    }

    /// Decodes what came from elsewhere and names the chunks in it, which have these lengths; whether those are the names
    /// they came under is for the caller to see. No more than [`MAX_GROUP_BYTES`] is ever decoded.
    pub fn decode(encoded: Encoded, lens: &[u32]) -> Result<Group, DecodeError> {
        let damaged = |reason: String| DecodeError::Damaged { reason };
        let sum: u64 = lens.iter().map(|len| u64::from(*len)).sum();
        if let Some(len) = lens.iter().find(|len| !(1..=MAX_CHUNK_BYTES).contains(&(**len as usize))) {
            return Err(damaged(format!("a chunk of {len} bytes")));
        }
        if sum != u64::from(encoded.plain_len) {
            return Err(damaged(format!("{} bytes for chunks of {sum}", encoded.plain_len)));
        }
        let plain = encoded.decode(MAX_GROUP_BYTES)?;
        let mut rest = plain.clone();
        let chunks = lens.iter().map(|len| Chunk::of(rest.split_to(*len as usize))).collect();
        // A frame that gained nothing is legal to send, but not to keep.
        let kept = encoded.codec == Codec::Raw || encoded.bytes.len() < encoded.plain_len as usize;
        Ok(Group { chunks, plain: Some(plain), encoded: kept.then_some(encoded) })
    }

    /// The chunks.
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// The bytes of all chunks, one behind the other, if they are at hand so.
    pub(crate) fn plain(&self) -> Option<&Bytes> {
        self.plain.as_ref()
    }

    /// As it came.
    pub(crate) fn encoded(&self) -> Option<&Encoded> {
        self.encoded.as_ref()
    }
}

/// The bytes of chunks, one behind the other.
pub(crate) fn join(chunks: &[&Chunk]) -> Bytes {
    if let [chunk] = chunks {
        return chunk.plain.clone();
    }
    let mut plain = Vec::with_capacity(chunks.iter().map(|chunk| chunk.plain.len()).sum());
    chunks.iter().for_each(|chunk| plain.extend_from_slice(&chunk.plain));
    plain.into()
}

#[cfg(test)]
mod tests;
