//! What an image is made of: its extents in order, each a chunk by name or a hole, and the root over all of it. The
//! encoding is specified in FORMAT.md. It never looks a chunk up.

use crate::parse::Fields;
use crate::{ChunkId, ImageRoot, MAX_CHUNK_BYTES};

const MAGIC: &[u8; 8] = b"LHMANI\x00\x01";
const HEADER_BYTES: usize = 8 + 8 + 32 + 8;
const CHECK_BYTES: usize = 32;
const DATA_BYTES: usize = 4 + 32;
const HOLE_BYTES: usize = 4 + 8;

/// A manifest of 16 TiB in chunks of 64 KiB has 9 GiB; more is not read.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 16 << 30;

/// An image as a sequence of extents, from its first byte to its last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The image's length in bytes: the sum of all extents.
    pub size: u64,
    /// The hash over the image.
    pub root: ImageRoot,
    /// The extents, in order.
    pub extents: Vec<ManifestExtent>,
}

/// One extent of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ManifestExtent {
    /// A chunk.
    Data {
        /// Its length in bytes, 1..=[`MAX_CHUNK_BYTES`](crate::MAX_CHUNK_BYTES).
        len: u32,
        /// Its name.
        id: ChunkId,
    },
    /// Zeroes.
    Hole {
        /// How many, at least one.
        len: u64,
    },
}

/// An extent with its place in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlacedExtent {
    /// Where it starts.
    pub offset: u64,
    /// What is there.
    pub extent: ManifestExtent,
}

/// Why bytes are no manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Written by something else, or by a newer version.
    #[error("this is no manifest that this version of longhaul knows")]
    Unknown,
    /// Damaged on the way or on the disk.
    #[error("the manifest is damaged ({reason}): make it again from the image, or fetch it again")]
    Damaged {
        /// What was wrong.
        reason: &'static str,
    },
}

impl ManifestExtent {
    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            ManifestExtent::Data { len, .. } => u64::from(*len),
            ManifestExtent::Hole { len } => *len,
        }
    }

    /// True for no extent that a manifest may hold.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Manifest {
    /// The extents with their places in the image.
    pub fn placed(&self) -> impl Iterator<Item = PlacedExtent> {
        let mut next = 0_u64;
        self.extents.iter().map(move |extent| {
            let offset = next;
            next = next.saturating_add(extent.len());
            PlacedExtent { offset, extent: *extent }
        })
    }

    /// The names of all chunks, in order, each as often as it occurs.
    pub fn chunks(&self) -> impl Iterator<Item = ChunkId> {
        self.extents.iter().filter_map(|extent| match extent {
            ManifestExtent::Data { id, .. } => Some(*id),
            ManifestExtent::Hole { .. } => None,
        })
    }

    /// Bytes of the image that are in chunks.
    pub fn data_bytes(&self) -> u64 {
        self.extents
            .iter()
            .filter(|extent| matches!(extent, ManifestExtent::Data { .. }))
            .map(|e| e.len())
            .sum()
    }

    /// The bytes of a manifest file.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.extents.len() * DATA_BYTES + CHECK_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.size.to_le_bytes());
        bytes.extend_from_slice(self.root.as_bytes());
        bytes.extend_from_slice(&(self.extents.len() as u64).to_le_bytes());
        for extent in &self.extents {
            match extent {
                ManifestExtent::Data { len, id } => {
                    bytes.extend_from_slice(&len.to_le_bytes());
                    bytes.extend_from_slice(id.as_bytes());
                }
                ManifestExtent::Hole { len } => {
                    bytes.extend_from_slice(&0_u32.to_le_bytes());
                    bytes.extend_from_slice(&len.to_le_bytes());
                }
            }
        }
        let check = blake3::hash(&bytes);
        bytes.extend_from_slice(check.as_bytes());
        bytes
    }

    /// Reads what [`encode`](Manifest::encode) wrote. Allocates no more than a small multiple of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        let damaged = |reason| ManifestError::Damaged { reason };
        if bytes.get(..MAGIC.len()).is_some_and(|magic| magic != MAGIC) {
            return Err(ManifestError::Unknown);
        }
        let body_len = bytes.len().checked_sub(CHECK_BYTES).ok_or(damaged("cut short"))?;
        let (body, check) = bytes.split_at(body_len);
        if blake3::hash(body).as_bytes() != check {
            return Err(damaged("checksum"));
        }
        Manifest::decode_body(body).ok_or(damaged("its fields contradict each other"))
    }

    fn decode_body(body: &[u8]) -> Option<Manifest> {
        let mut fields = Fields::new(body);
        fields.take(MAGIC.len())?;
        let size = fields.u64()?;
        let root = ImageRoot::from_bytes(fields.array()?);
        let count = usize::try_from(fields.u64()?).ok()?;
        if count > fields.rest().len() / HOLE_BYTES {
            return None;
        }
        let mut extents = Vec::with_capacity(count);
        let mut total = 0_u64;
        for _ in 0..count {
            let extent = match fields.u32()? {
                0 => ManifestExtent::Hole { len: fields.u64()? },
                len => ManifestExtent::Data { len, id: ChunkId::from_bytes(fields.array()?) },
            };
            let too_long =
                matches!(extent, ManifestExtent::Data { len, .. } if len as usize > MAX_CHUNK_BYTES);
            if extent.is_empty() || too_long {
                return None;
            }
            total = total.checked_add(extent.len())?;
            extents.push(extent);
        }
        (fields.rest().is_empty() && total == size).then_some(Manifest { size, root, extents })
    }
}

#[cfg(test)]
mod tests;
