//! Where a replica is damaged.

/// Where an image is not what it should be, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Of the first leaf that does not match, or of the read that failed.
    pub offset: Option<u64>,
    /// The disk cannot read it.
    pub unreadable: bool,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.offset {
            Some(offset) if self.unreadable => {
                write!(f, "the disk cannot read the image at offset {offset} or just behind")
            }
            None if self.unreadable => f.write_str("the disk cannot read the image"),
            Some(offset) => write!(f, "the leaf at offset {offset} does not match its hash"),
            None => f.write_str("the image does not have the generation's root hash"),
        }
    }
}
