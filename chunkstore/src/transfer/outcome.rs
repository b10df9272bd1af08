//! What comes of bringing an image into a store and out of it: a report, or an error for the person who has to do
//! something about it.

use std::io;

use crate::{FileError, StoreError};

/// What a restore did to its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Restored {
    /// Bytes written, in blocks of [`BLOCK_BYTES`](crate::BLOCK_BYTES).
    pub written_bytes: u64,
    /// Bytes of data that became a hole.
    pub zeroed_bytes: u64,
}

/// Why an image could not be brought into a store.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The image could not be read.
    #[error("could not read the image: {0}; nothing was published")]
    Read(io::Error),
    /// The store could not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why an image could not be written out of a store.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Another size than the manifest's.
    #[error("the target has {target_bytes} bytes, the image {image_bytes}: create it with the image's size")]
    Size {
        /// The target's.
        target_bytes: u64,
        /// The image's.
        image_bytes: u64,
    },
    /// A chunk could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The target could not be read, written or created. It is incomplete.
    #[error(transparent)]
    Target(#[from] FileError),
    /// The caller had it stop. The target is incomplete.
    #[error("stopped before it was done; the image is incomplete, and the next run writes what is missing")]
    Stopped,
}
