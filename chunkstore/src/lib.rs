//! What is on the disk: images read as bytes, cut into content-defined chunks, named by their hash, kept in a store,
//! and kept as replicas that are whole at every moment.
//!
//! | module | what it is for |
//! |---|---|
//! | [`image`](ReadImage) | raw image files and block devices; holes stay holes |
//! | [`FileId`], [`in_use`] | which image a path stands for, and who uses it right now |
//! | [`pieces`] | an image as holes and chunks, a function of its content only |
//! | [`ImageTree`] | one hash over a whole image, cheap to bring up to date |
//! | [`Store`] | chunks in append-only packs, images as named references to them |
//! | [`export`], [`import`] | published images as one stream that a disk can carry |
//! | [`Seeds`] | chunks that live in image files outside the store |
//! | [`Replica`] | one disk's warm copy, replaced generation by generation |
//!
//! Every byte on disk is specified in FORMAT.md. Synchronous code: this crate never opens a socket, never logs,
//! never reads a clock and knows nothing of virtual machines.

mod archive;
mod chunk;
mod cuts;
mod direct;
mod disk;
mod encoded;
mod file_error;
mod files;
mod gear;
mod id;
mod image;
mod manifest;
mod map;
mod open;
mod parse;
mod pieces;
mod pipeline;
mod replica;
mod seeds;
mod spool;
mod store;
mod sync;
#[cfg(test)]
mod testing;
mod transfer;
mod tree;
mod usage;
mod windows;
mod writeback;
mod zero;

pub use archive::{ExportError, ExportReport, ImportError, ImportReport, export, import};
pub use chunk::{Chunk, Group};
pub use encoded::{Codec, DecodeError, Encoded};
pub use file_error::FileError;
pub use files::{remove_temporary, write_atomic};
pub use id::{ChunkId, ImageRoot, ParseIdError};
pub use image::{RawImage, ReadImage, copy_sparse, copy_sparse_while, reflink};
pub use manifest::{Manifest, ManifestError, ManifestExtent, ManifestWriter, PlacedExtent};
pub use open::{FileId, open_regular};
pub use pieces::{Piece, PieceData, Pieces, pieces, pieces_in, scan};
pub use replica::{Generation, Pass, Place, Prepared, Replica, ReplicaError, SetId, Still, commit_set};
pub use seeds::Seeds;
pub use store::{
    BrokenReference, GcOptions, GcPlan, GcProgress, GcReport, IndexError, OpenError, PackPlan, Pin,
    Reference, Scope, Stats, Store, StoreError, UnreadablePack, VerifyReport,
};
pub use transfer::{IngestError, IngestOptions, RestoreError, Restored, ingest, restore, restore_to};
pub use tree::ImageTree;
pub use usage::{Process, Use, in_use};
pub use zero::is_zero;

/// The decoders of this crate that are not public, for the fuzz targets: each reads bytes and panics when what it read
/// breaks a promise.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::replica::fuzzing::{log, logs, state, states, tree, trees};
    pub use crate::store::fuzzing::{pack, packs};
}

/// Bytes of an image under one leaf of its [`ImageTree`].
pub const LEAF_BYTES: u64 = 65536;

/// zstd level at which chunks are kept, unless their owner says otherwise.
pub const LEVEL: i32 = 2;

/// Chunks are compressed together in groups of about so many bytes, and of [`MAX_GROUP_BYTES`] at most: half of it takes more room,
/// or time for the same, and all of a group is to be decoded for one of its chunks.
pub const GROUP_BYTES: usize = 2 << 20;

/// No group of chunks is longer than this: one of 4 MiB less the longest chunk.
pub const MAX_GROUP_BYTES: usize = (4 << 20) - MAX_CHUNK_BYTES;

/// No batch of an image has more extents; see [`Manifest::batches`].
pub const MAX_BATCH_EXTENTS: usize = 1024;

/// No chunk is shorter, but for the last one of a data run.
pub const MIN_CHUNK_BYTES: usize = 16 * 1024;

/// Chunks of real data are about this long.
pub const AVERAGE_CHUNK_BYTES: usize = 64 * 1024;

/// Zeroes become a hole from this length on; shorter runs are part of the data around them.
pub const MIN_HOLE_BYTES: u64 = 65536;

/// No chunk is longer than this.
pub const MAX_CHUNK_BYTES: usize = 256 * 1024;

/// The unit in which zeroes are looked for and dirt is tracked.
pub const BLOCK_BYTES: u64 = 4096;
