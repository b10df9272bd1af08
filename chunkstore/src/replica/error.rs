//! What can go wrong with a replica, for the person who has to do something about it.

use std::path::PathBuf;

use super::place::Place;
use crate::FileError;

/// Why a replica could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// Another process has it open.
    #[error("the replica {dir} is in use by process {pid}: wait for it to finish, or stop it", dir = .dir.display())]
    InUse {
        /// The replica.
        dir: PathBuf,
        /// The process that holds it, as it said itself.
        pid: String,
    },
    /// One pass at a time.
    #[error("a pass into the replica {dir} is running already: wait for it to finish", dir = .dir.display())]
    Busy {
        /// The replica.
        dir: PathBuf,
    },
    /// There is no generation yet.
    #[error("the replica {dir} holds no finished generation yet: run a pass first", dir = .dir.display())]
    Empty {
        /// The replica.
        dir: PathBuf,
    },
    /// A file of it is not what was written.
    #[error("the replica is damaged: {path} {reason}; remove its directory and run a full pass", path = .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A file of it has a format that this version does not know.
    #[error(
        "{path} was written by another version of longhaul: use that one, or remove the replica's directory and run a \
         full pass",
        path = .path.display()
    )]
    OtherVersion {
        /// The file.
        path: PathBuf,
    },
    /// A generation that cannot follow the one there is.
    #[error("generation {number} cannot be committed: {reason}")]
    BadGeneration {
        /// Its number.
        number: u64,
        /// Why not.
        reason: &'static str,
    },
    /// A write outside of the image.
    #[error("{len} bytes at {offset} do not fit into an image of {size} bytes")]
    OutOfRange {
        /// Where.
        offset: u64,
        /// How many.
        len: u64,
        /// The image's size.
        size: u64,
    },
    /// A file that a restore would overwrite.
    #[error("{path} exists already: remove it, or restore to another path", path = .path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Bytes of the image are not what the pass has written.
    #[error(
        "generation {number} of the replica {dir} is damaged: {place}; run a new pass, which reads the whole replica and \
         mends it",
        dir = .dir.display()
    )]
    Rotten {
        /// The replica.
        dir: PathBuf,
        /// The generation's number.
        number: u64,
        /// Where, as far as it is known.
        place: Place,
    },
    /// What was written to a restore's target is not what reads back. The replica itself is whole.
    #[error("{path} does not read back as it was written: {place}; check that disk, or restore to another", path = .path.display())]
    BadCopy {
        /// The target.
        path: PathBuf,
        /// Where, as far as it is known.
        place: Place,
    },
    /// Somebody stopped it.
    #[error("stopped")]
    Stopped,
    /// The pass is committed, and will be finished by the next one or the next start.
    #[error(
        "generation {number} is safely stored but not yet in place ({cause}); it will be at the next pass or restart"
    )]
    Unfinished {
        /// Its number.
        number: u64,
        /// What went wrong.
        cause: Box<ReplicaError>,
    },
    /// A file could not be read or written. The generation before is whole.
    #[error(transparent)]
    File(#[from] FileError),
}

impl ReplicaError {
    /// True when there was no room left. The generation before is whole.
    pub fn is_full(&self) -> bool {
        match self {
            ReplicaError::File(error) => error.is_full(),
            ReplicaError::Unfinished { cause, .. } => cause.is_full(),
            _ => false,
        }
    }
}
