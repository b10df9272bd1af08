//! A chunk whose name has been proven. It never takes a name on trust, so that who holds one need not hash it again.

use bytes::Bytes;

use crate::encoded::Encoded;
use crate::{ChunkId, Codec, DecodeError, MAX_CHUNK_BYTES};

/// Plain bytes with their name, and the encoded form if they came in one. There is no way to make one but to hash.
#[derive(Debug, Clone)]
pub struct Chunk {
    id: ChunkId,
    plain: Bytes,
    encoded: Option<Encoded>,
}

impl Chunk {
    /// Names bytes.
    pub fn of(plain: Bytes) -> Chunk {
        Chunk { id: ChunkId::of(&plain), plain, encoded: None }
    }

    /// Decodes and names what came from elsewhere; whether that is the name it came under is for the caller to see.
    /// No more than [`MAX_CHUNK_BYTES`] is ever decoded.
    pub fn decode(encoded: Encoded) -> Result<Chunk, DecodeError> {
        let plain = encoded.decode(MAX_CHUNK_BYTES)?;
        // A frame that gained nothing is legal to send, but not to keep.
        let kept = encoded.codec == Codec::Raw || encoded.bytes.len() < plain.len();
        Ok(Chunk { id: ChunkId::of(&plain), plain, encoded: kept.then_some(encoded) })
    }

    /// Its name.
    pub fn id(&self) -> ChunkId {
        self.id
    }

    /// Its plain bytes.
    pub fn plain(&self) -> &Bytes {
        &self.plain
    }

    /// As it came, or encoded now at zstd `level`.
    pub(crate) fn encoded(&self, level: i32) -> Encoded {
        self.encoded.clone().unwrap_or_else(|| Encoded::encode(self.plain.clone(), level))
    }
}

#[cfg(test)]
mod tests;
