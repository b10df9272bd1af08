//! The words that `xl migrate` and `xl migrate-receive` exchange around the stream, and what each end's keeper makes of
//! them. Pure.
//!
//! Each half of the handshake is answered by the platform that its xl runs on, never across the network: the hand-off's
//! own messages and journals join the two. So xl is told only what has been decided, and a link that is lost at any
//! moment leaves both halves where their daemons can end them.
//!
//! ```text
//!   xl migrate            the source's keeper      the destination's keeper       xl migrate-receive
//!       <- RECEIVER_READY     (at once)                 (swallowed)               RECEIVER_READY ->
//!       stream ->             relayed up to its last byte                         <- stream
//!                             wait_paused returns       incoming_loaded returns   READY ->
//!       <- READY              finish_memory
//!       GO ->                 kept: PostMigrate
//!                               ... release is journalled on both sides ...
//!                                                       resume                    <- GO
//!                                                                                 REPORT 0 ->
//!       <- REPORT 1, GO       rollback: xl resumes the guest
//! ```
//!
//! A cold migration has no `xl migrate`: the source's keeper runs `xl save -p`, whose stream is the same, and xl ends with
//! its domain paused. That is PostMigrate there; the destination sees no difference.
//!
//! Source: tools/xl/xl_migrate.c (4.17); all texts but the first end with a NUL.

#[cfg(test)]
mod tests;

/// Destination to source, first of all.
pub(crate) const RECEIVER_READY: &[u8] = b"xl migration receiver ready, send binary domain data.\n";
/// Destination to source: the domain is loaded and paused.
pub(crate) const READY: &[u8] = b"domain received, ready to unpause\0";
/// Source to destination: the source has given its domain up. Back to the source after a report of failure: resume it.
pub(crate) const GO: &[u8] = b"domain is yours, you are cleared to unpause\0";
/// Destination to source; a status follows in one byte.
pub(crate) const REPORT: &[u8] = b"my copy unpause results are as follows\0";
/// The status of a domain that runs.
pub(crate) const RUNNING: u8 = 0;
/// What we report of a domain that is to go on at the source.
pub(crate) const FAILED: u8 = 1;

/// xl said something else than what is due.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("xl said {found:?} where {expected:?} was due")]
pub(crate) struct Unexpected {
    expected: String,
    found: String,
}

/// Waits for one text, byte by byte.
#[derive(Debug)]
pub(crate) struct Due {
    text: &'static [u8],
    seen: usize,
}

impl Due {
    pub(crate) fn new(text: &'static [u8]) -> Due {
        Due { text, seen: 0 }
    }

    /// Takes bytes; returns how many of them belonged to the text.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<usize, Unexpected> {
        let rest = &self.text[self.seen..];
        let step = rest.len().min(bytes.len());
        if rest[..step] != bytes[..step] {
            let text = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
            return Err(Unexpected { expected: text(self.text), found: text(bytes) });
        }
        self.seen += step;
        Ok(step)
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.seen == self.text.len()
    }
}
