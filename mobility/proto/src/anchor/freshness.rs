//! The order of the messages made with one key.

use crate::wire::*;

/// By what two messages with the same key are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Freshness {
    pub(super) sequence: SequenceNumber,
    /// The Timestamp, or the time of the replay protection option.
    pub(super) time: Option<u64>,
}
