//! What an image is made of: its extents in order, each a chunk by name or a hole, and the root over all of it. The
//! encoding is specified in FORMAT.md, and is what a manifest is kept in: it is decoded as one looks at it. A large one
//! lies in a mapped file, and what was looked at leaves the memory again, so that a manifest takes a few MiB of it,
//! whatever the image's size. It never looks a chunk up.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::cuts::BatchEnd;
use crate::disk::Disk;
use crate::map::{Behind, Map, WINDOW_BYTES};
use crate::parse::Fields;
use crate::spool::Spool;
use crate::{ChunkId, FileError, ImageRoot, MAX_CHUNK_BYTES};

const MAGIC: &[u8; 8] = b"LHMANI\x00\x01";
const HEADER_BYTES: usize = 8 + 8 + 32 + 8;
const CHECK_BYTES: usize = 32;
const DATA_BYTES: usize = 4 + 32;
const HOLE_BYTES: usize = 4 + 8;

/// A manifest of 16 TiB in chunks of 64 KiB has 9 GiB; more is not read.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 16 << 30;

/// An image as a sequence of extents, from its first byte to its last. Clones share what they hold.
///
/// One that was loaded or written stays readable when its reference is replaced or removed: the file goes with the last
/// clone.
#[derive(Clone)]
pub struct Manifest {
    size: u64,
    root: ImageRoot,
    data_bytes: u64,
    content: Arc<Map>,
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

impl PlacedExtent {
    /// Where the next one starts.
    pub(crate) fn end(&self) -> u64 {
        self.offset.saturating_add(self.extent.len())
    }
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

    pub(crate) fn is_data(&self) -> bool {
        matches!(self, ManifestExtent::Data { .. })
    }

    fn fits(&self) -> bool {
        !self.is_empty() && (!self.is_data() || self.len() <= MAX_CHUNK_BYTES as u64)
    }

    fn parse(fields: &mut Fields<'_>) -> Option<ManifestExtent> {
        Some(match fields.u32()? {
            0 => ManifestExtent::Hole { len: fields.u64()? },
            len => ManifestExtent::Data { len, id: ChunkId::from_bytes(fields.array()?) },
        })
    }

    /// Its record, in the beginning of the array, and the length of that.
    fn encode(&self) -> ([u8; DATA_BYTES], usize) {
        let mut record = [0; DATA_BYTES];
        match self {
            ManifestExtent::Data { len, id } => {
                record[..4].copy_from_slice(&len.to_le_bytes());
                record[4..].copy_from_slice(id.as_bytes());
                (record, DATA_BYTES)
            }
            ManifestExtent::Hole { len } => {
                record[4..HOLE_BYTES].copy_from_slice(&len.to_le_bytes());
                (record, HOLE_BYTES)
            }
        }
    }
}

impl Manifest {
    /// Of extents that are few enough for memory. Refuses what no manifest may hold.
    pub fn of(
        root: ImageRoot,
        extents: impl IntoIterator<Item = ManifestExtent>,
    ) -> Result<Manifest, ManifestError> {
        let (mut bytes, mut sums) = (vec![0; HEADER_BYTES], Sums::default());
        for extent in extents {
            sums.add(&extent).ok_or(ManifestError::Damaged { reason: IMPOSSIBLE })?;
            let (record, len) = extent.encode();
            bytes.extend_from_slice(&record[..len]);
        }
        bytes[..HEADER_BYTES].copy_from_slice(&sums.header(&root));
        bytes.extend_from_slice(blake3::hash(&bytes).as_bytes());
        Ok(sums.manifest(root, bytes.into()))
    }

    /// The image's length in bytes: the sum of all extents.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The hash over the image.
    pub fn root(&self) -> ImageRoot {
        self.root
    }

    /// Bytes of the image that are in chunks.
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// The extents, in order.
    pub fn extents(&self) -> impl Iterator<Item = ManifestExtent> {
        Extents::of(&self.content)
    }

    /// The extents with their places in the image.
    pub fn placed(&self) -> impl Iterator<Item = PlacedExtent> {
        let mut next = 0_u64;
        self.extents().map(move |extent| {
            let offset = next;
            next = next.saturating_add(extent.len());
            PlacedExtent { offset, extent }
        })
    }

    /// The extents with their places, in the batches in which [`ingest`](crate::ingest) takes them: what was new of one lies in the
    /// store as one group. Each has 1 to [`MAX_BATCH_EXTENTS`](crate::MAX_BATCH_EXTENTS).
    pub fn batches(&self) -> impl Iterator<Item = Vec<PlacedExtent>> {
        let mut placed = self.placed().peekable();
        let data_bytes = |next: &PlacedExtent| if next.extent.is_data() { next.extent.len() } else { 0 };
        std::iter::from_fn(move || {
            let (mut batch, mut end) = (Vec::new(), BatchEnd::default());
            while let Some(next) = placed.next_if(|next| !end.is_before(next.offset, data_bytes(next))) {
                batch.push(next);
            }
            (!batch.is_empty()).then_some(batch)
        })
    }

    /// The names of all chunks, in order, each as often as it occurs.
    pub fn chunks(&self) -> impl Iterator<Item = ChunkId> {
        self.extents().filter_map(|extent| match extent {
            ManifestExtent::Data { id, .. } => Some(id),
            ManifestExtent::Hole { .. } => None,
        })
    }

    /// The bytes of a manifest file, all of them in memory.
    pub fn encode(&self) -> Vec<u8> {
        self.content.bytes().to_vec()
    }

    /// Reads what [`encode`](Manifest::encode) gave. Allocates no more than a small multiple of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        Manifest::parse(bytes.to_vec().into())
    }

    /// The bytes of a manifest file, in parts, each of which leaves the memory when the next one comes.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &[u8]> {
        parts(&self.content, self.content.bytes().len())
    }

    /// Length of a manifest file.
    pub(crate) fn encoded_bytes(&self) -> u64 {
        self.content.bytes().len() as u64
    }

    /// Looks once at all of it.
    pub(crate) fn parse(content: Map) -> Result<Manifest, ManifestError> {
        let damaged = |reason| ManifestError::Damaged { reason };
        let bytes = content.bytes();
        if bytes.get(..MAGIC.len()).is_some_and(|magic| magic != MAGIC) {
            return Err(ManifestError::Unknown);
        }
        let body_len = bytes.len().checked_sub(CHECK_BYTES).ok_or(damaged("cut short"))?;
        let mut hasher = blake3::Hasher::new();
        for part in parts(&content, body_len) {
            hasher.update(part);
        }
        let (body, check) = bytes.split_at(body_len);
        if hasher.finalize().as_bytes() != check {
            return Err(damaged("checksum"));
        }
        let root = body.get(16..48).and_then(|root| root.try_into().ok());
        let root = root.map(ImageRoot::from_bytes).ok_or(damaged("cut short"))?;
        let mut sums = Sums::default();
        let mut extents = Extents::of(&content);
        if !extents.all(|extent| sums.add(&extent).is_some())
            || extents.at != extents.end
            || body.get(..HEADER_BYTES) != Some(&sums.header(&root))
        {
            return Err(damaged(IMPOSSIBLE));
        }
        Ok(sums.manifest(root, content))
    }
}

const IMPOSSIBLE: &str = "its fields contradict each other";

impl PartialEq for Manifest {
    fn eq(&self, other: &Manifest) -> bool {
        self.size == other.size && self.root == other.root && self.parts().eq(other.parts())
    }
}

impl Eq for Manifest {}

impl fmt::Debug for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manifest").field("size", &self.size).field("root", &self.root).finish_non_exhaustive()
    }
}

/// A manifest being made, extent by extent. What is more than a MiB of it lies in a file without a name, in the directory
/// of the store or replica that it was begun for.
#[derive(Debug)]
pub struct ManifestWriter {
    spool: Spool,
    sums: Sums,
}

impl ManifestWriter {
    /// One for what `dir` is of; nobody else uses that.
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: &Path) -> Result<ManifestWriter, FileError> {
        let mut spool = Spool::new(disk, dir);
        // The header, when it is known.
        spool.write(&[0; HEADER_BYTES])?;
        Ok(ManifestWriter { spool, sums: Sums::default() })
    }

    /// The next extent. One that no manifest may hold is refused.
    pub fn push(&mut self, extent: ManifestExtent) -> Result<(), FileError> {
        if self.sums.add(&extent).is_none() {
            let what = format!("{extent:?} at {}", self.sums.size);
            return Err(self.spool.failed()(io::Error::new(io::ErrorKind::InvalidInput, what)));
        }
        let (record, len) = extent.encode();
        self.spool.write(&record[..len])
    }

    /// The manifest of an image that has these extents and this root.
    pub fn finish(mut self, root: ImageRoot) -> Result<Manifest, FileError> {
        self.spool.write_head(&self.sums.header(&root))?;
        let check = self.spool.hash()?;
        self.spool.write(check.as_bytes())?;
        Ok(self.sums.manifest(root, self.spool.finish()?))
    }
}

/// What is known of a manifest when its extents have passed by.
#[derive(Debug, Default)]
struct Sums {
    size: u64,
    data_bytes: u64,
    count: u64,
}

impl Sums {
    /// `None`: no manifest may hold it.
    fn add(&mut self, extent: &ManifestExtent) -> Option<()> {
        let size = self.size.checked_add(extent.len()).filter(|_| extent.fits())?;
        self.size = size;
        self.data_bytes += if extent.is_data() { extent.len() } else { 0 };
        self.count += 1;
        Some(())
    }

    fn header(&self, root: &ImageRoot) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(MAGIC);
        header[8..16].copy_from_slice(&self.size.to_le_bytes());
        header[16..48].copy_from_slice(root.as_bytes());
        header[48..].copy_from_slice(&self.count.to_le_bytes());
        header
    }

    fn manifest(&self, root: ImageRoot, content: Map) -> Manifest {
        Manifest { size: self.size, root, data_bytes: self.data_bytes, content: Arc::new(content) }
    }
}

/// The extents of a manifest file, until one is not whole.
struct Extents<'a> {
    content: &'a Map,
    behind: Behind<'a>,
    at: usize,
    end: usize,
}

impl Extents<'_> {
    fn of(content: &Map) -> Extents<'_> {
        let end = content.bytes().len().saturating_sub(CHECK_BYTES);
        Extents { content, behind: Behind::of(content), at: HEADER_BYTES.min(end), end }
    }
}

impl Iterator for Extents<'_> {
    type Item = ManifestExtent;

    fn next(&mut self) -> Option<ManifestExtent> {
        let mut fields = Fields::new(&self.content.bytes()[self.at..self.end]);
        let extent = ManifestExtent::parse(&mut fields)?;
        self.at = self.end - fields.rest().len();
        self.behind.pass(self.at);
        Some(extent)
    }
}

/// The first `len` bytes, each part until the next one is asked for.
fn parts(content: &Map, len: usize) -> impl Iterator<Item = &[u8]> {
    (0..len).step_by(WINDOW_BYTES).map(move |start| {
        content.let_go(start.saturating_sub(WINDOW_BYTES)..start);
        &content.bytes()[start..len.min(start + WINDOW_BYTES)]
    })
}

#[cfg(test)]
mod tests;
