//! How the records of a hand-off stand in a journal file. Pure: bytes in, records out.
//!
//! A journal is a header and then records, each appended and made durable before anything that follows from it:
//!
//! | bytes | content |
//! |---|---|
//! | 8 | `LHJRNL` and the version, 1, as two bytes, little endian |
//! | then, a record: 4 | length of the payload, little endian |
//! | 8 | the first 8 bytes of BLAKE3 over the payload |
//! | length | the payload: a [`Record`] in bincode 2's standard configuration |
//!
//! A record is durable before the next is begun, so a crash leaves at most one that is not whole, at the end: it was
//! never acknowledged to anybody, and is cut. Anything else that does not match its checksum is damage: it may hide that
//! a VM was given away, so it is refused, not cut.

use crate::handoff::Record;
use crate::wire;

/// The first bytes of a journal file.
pub const HEADER: [u8; 8] = *b"LHJRNL\x01\x00";

/// The longest payload a record may have: an offer's plan and a little more.
pub const MAX_RECORD_BYTES: usize = wire::MAX_PLAN_BYTES + 4096;

/// A file that is not a journal of a version we know.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// The header is another one.
    #[error("this is not a longhaul journal of version 1")]
    Header,
    /// A record that was durable is no more what it was.
    #[error(
        "the journal is damaged at byte {0}. It says who may run a VM, so nothing is done on its word: find out where \
         the VM runs, and then decide with `longhaul resolve VM`"
    )]
    Damaged(usize),
    /// The record cannot be written.
    #[error("a journal record cannot be encoded: {0}")]
    Encode(#[from] wire::FrameError),
    /// The record is too long to be read again.
    #[error("a journal record of {0} bytes is longer than {MAX_RECORD_BYTES}")]
    TooLong(usize),
}

/// The bytes to append for `record`.
pub fn encode(record: &Record) -> Result<Vec<u8>, JournalError> {
    let payload = wire::to_bytes(record)?;
    if payload.len() > MAX_RECORD_BYTES {
        return Err(JournalError::TooLong(payload.len()));
    }
    let mut bytes = Vec::with_capacity(PREFIX_BYTES + payload.len());
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&checksum(&payload));
    bytes.extend_from_slice(&payload);
    Ok(bytes)
}

/// The records of a journal file, and how many of its bytes are good: the rest is a torn tail, to be cut.
///
/// An empty file, or one torn inside its header, has no records and no good bytes.
pub fn decode(bytes: &[u8]) -> Result<(Vec<Record>, usize), JournalError> {
    if !bytes.starts_with(&HEADER) {
        let torn = HEADER.starts_with(bytes) || bytes.iter().all(|&byte| byte == 0);
        return if torn { Ok((Vec::new(), 0)) } else { Err(JournalError::Header) };
    }
    let mut records = Vec::new();
    let mut good = HEADER.len();
    while let Some(payload) = whole_record(&bytes[good..]) {
        // Written whole, and yet no record of ours.
        records.push(wire::from_bytes(payload).map_err(|_| JournalError::Damaged(good))?);
        good += PREFIX_BYTES + payload.len();
    }
    if is_torn(good, &bytes[good..]) { Ok((records, good)) } else { Err(JournalError::Damaged(good)) }
}

/// The whole records that a damaged journal begins with. They tell which VM it is about, and no more: what follows the
/// damage may say the opposite.
pub fn decode_before_damage(bytes: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    let mut rest = bytes.strip_prefix(&HEADER).unwrap_or_default();
    while let Some(payload) = whole_record(rest) {
        let Ok(record) = wire::from_bytes(payload) else { break };
        records.push(record);
        rest = rest.get(PREFIX_BYTES + payload.len()..).unwrap_or_default();
    }
    records
}

/// Length and checksum.
const PREFIX_BYTES: usize = 12;

/// What a disk writes whole or not at all, at the least.
const SECTOR_BYTES: usize = 512;

/// The payload of the record that these bytes begin with, if its checksum is right.
fn whole_record(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<8>()?;
    let length = u32::from_le_bytes(*length) as usize;
    if length == 0 || length > MAX_RECORD_BYTES {
        return None;
    }
    let payload = rest.get(..length)?;
    (checksum(payload) == *sum).then_some(payload)
}

/// Whether a crash in the middle of one write can leave this tail, at `offset` in the file, where no whole record begins.
fn is_torn(offset: usize, tail: &[u8]) -> bool {
    // A whole record that follows was begun after the bad one was durable.
    if (1..tail.len()).any(|at| whole_record(&tail[at..]).is_some()) {
        return false;
    }
    let Some((prefix, payload)) = tail.split_first_chunk::<PREFIX_BYTES>() else { return true };
    let (length, sum) = prefix.split_at(4);
    if payload.is_empty() {
        return true;
    }
    // All of its bytes are there, and a disk writes them together.
    let complete = length == (payload.len() as u32).to_le_bytes();
    let one_sector = offset / SECTOR_BYTES == (offset + tail.len() - 1) / SECTOR_BYTES;
    // Only its length is wrong.
    let relabelled = checksum(payload)[..] == *sum;
    !(complete && one_sector || relabelled)
}

fn checksum(payload: &[u8]) -> [u8; 8] {
    let mut sum = [0; 8];
    sum.copy_from_slice(&blake3::hash(payload).as_bytes()[..8]);
    sum
}

#[cfg(test)]
mod tests;
