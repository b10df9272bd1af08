//! One state of a disk as it is called and described. It holds no bytes of it.

use serde::{Deserialize, Serialize};

use crate::ImageRoot;

/// Names the disks of a VM that are of one moment.
pub type SetId = [u8; 16];

/// One whole state of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// Grows with every pass.
    pub number: u64,
    /// The image's length in bytes.
    pub size: u64,
    /// The hash over the image.
    pub root: ImageRoot,
    /// When it was taken, in milliseconds since 1970.
    pub taken_unix_ms: u64,
    /// The platform it came from; at most 1024 bytes.
    pub source: String,
    /// The disks of a VM whose generations name the same set are of one moment, and were committed together. `None` for a
    /// disk by itself.
    pub set: Option<SetId>,
}
