//! What can go wrong with a store, for the person who has to do something about it.

use std::path::PathBuf;

use crate::{ChunkId, DecodeError, FileError, ManifestError};

/// The index could not be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "the index {path} cannot be used ({reason}): check that disk, then restart longhaul; removing the file is safe, it is made again from the packs",
    path = .path.display()
)]
pub struct IndexError {
    pub(super) path: PathBuf,
    pub(super) reason: String,
    pub(super) is_full: bool,
}

impl IndexError {
    /// True when there was no room left on the store's disk.
    pub fn is_full(&self) -> bool {
        self.is_full
    }
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("the store {dir} is in use by process {pid}: stop that one first, or use its control socket", dir = .dir.display())]
    InUse {
        /// The store.
        dir: PathBuf,
        /// The process that holds it, as it said itself.
        pid: String,
    },
    /// A pack file that this version does not understand.
    #[error(
        "{path} {what}: move it out of the store, then run `longhaul store verify` to see what is missing",
        path = .path.display(),
        what = if *.newer { "was written by another version of longhaul" } else { "is not a pack of this store" }
    )]
    UnknownPack {
        /// The file.
        path: PathBuf,
        /// It is a pack of some version.
        newer: bool,
    },
    /// The index could not be made or read.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A file could not be read, written or created.
    #[error(transparent)]
    File(#[from] FileError),
}

impl OpenError {
    /// It is about one pack that cannot be read, and would be about it at every opening. A pack of a newer version is not
    /// among these: who wrote it wants it to be used.
    pub(super) fn concerns_one_pack(&self) -> bool {
        match self {
            OpenError::UnknownPack { newer, .. } => !newer,
            OpenError::File(error) => error.is_bad_medium(),
            OpenError::InUse { .. } | OpenError::Index(_) => false,
        }
    }
}

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No such chunk.
    #[error("chunk {id} is not in the store")]
    Missing {
        /// The chunk.
        id: ChunkId,
    },
    /// The chunk's bytes on the disk are not what its name says. The store has forgotten it: put it again.
    #[error("chunk {id} is damaged in {path}: it has to be fetched again; check that disk", path = .path.display())]
    Damaged {
        /// The chunk.
        id: ChunkId,
        /// The pack it lies in.
        path: PathBuf,
    },
    /// Bytes were put under a name that is not theirs.
    #[error(
        "the bytes given for chunk {id} have another hash: they were damaged on the way, ask for them again"
    )]
    WrongContent {
        /// The name they were given under.
        id: ChunkId,
    },
    /// Encoded bytes that do not decode.
    #[error("chunk {id}: {source}")]
    Undecodable {
        /// The name they were given under.
        id: ChunkId,
        /// What was wrong.
        source: DecodeError,
    },
    /// An image counts on another length than the chunk has.
    #[error(
        "chunk {id} has {len} bytes, the image counts on {claimed}: the image's manifest is wrong, make it anew"
    )]
    OtherLength {
        /// The chunk.
        id: ChunkId,
        /// Its length.
        len: u32,
        /// What the image's manifest says.
        claimed: u32,
    },
    /// No chunk has this length.
    #[error("a chunk has 1 to 262144 bytes, not {len}")]
    BadLength {
        /// The length.
        len: usize,
    },
    /// A name that cannot be a reference.
    #[error("{name:?} cannot name an image: use 1 to 128 letters, digits or ._-:@+, the first one no dot")]
    BadName {
        /// The name.
        name: String,
    },
    /// No such reference.
    #[error("the store has no image named {name:?}")]
    UnknownName {
        /// The name.
        name: String,
    },
    /// An image has that name, and is not to be replaced.
    #[error(
        "the store has an image named {name:?} already: remove it first, or say that it is to be replaced"
    )]
    Exists {
        /// The name.
        name: String,
    },
    /// A reference that cannot be read.
    #[error("the reference {name:?} cannot be read: {source}")]
    BadReference {
        /// The name.
        name: String,
        /// What was wrong.
        source: ManifestError,
    },
    /// A reference that cannot be read may need any chunk.
    #[error(
        "nothing was collected: the image {name:?} cannot be read and may need any chunk ({source}); \
         put its file back, publish it again or remove it, then collect again"
    )]
    CannotCollect {
        /// Its name.
        name: String,
        /// Why it cannot be read.
        source: Box<StoreError>,
    },
    /// An earlier sync failed, so the kernel may have dropped bytes that it will never report again.
    #[error(
        "an earlier sync of the store failed, so nothing more is published: check the disk, then restart longhaul"
    )]
    SyncFailed,
    /// The caller had it stop.
    #[error("stopped before it was done; the store is whole, and the next run goes on")]
    Stopped,
    /// Another collection runs.
    #[error("another collection of this store is running: wait for it to end")]
    Collecting,
    /// The index could not be read.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl StoreError {
    /// True when there was no room left on the store's disk. The store is as it was before.
    pub fn is_full(&self) -> bool {
        match self {
            StoreError::File(error) => error.is_full(),
            StoreError::Index(error) => error.is_full(),
            _ => false,
        }
    }
}
