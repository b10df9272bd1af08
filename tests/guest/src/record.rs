//! A numbered, checksummed record as the guest writes it into its ring file, and how it is recognised again.
//!
//! | offset | bytes | field (integers little endian) |
//! |---|---|---|
//! | 0 | 8 | magic `LHRECORD` |
//! | 8 | 8 | instance: the random number of the boot that wrote it |
//! | 16 | 8 | number, from 1 |
//! | 24 | 4 | length of the whole record in bytes |
//! | 28 | 4 | records per flush of the writer |
//! | 32 | 32 | BLAKE3 of bytes 0..32 and of the payload |
//! | 64 | length - 64 | payload: pseudo-random bytes, so that nothing compresses or repeats by accident |
//!
//! Record `n` lies in slot `(n - 1) % slots`, at that slot's multiple of the length. This module does no I/O.

const MAGIC: &[u8; 8] = b"LHRECORD";
/// Bytes before the payload.
pub const HEADER_BYTES: usize = 64;
/// The smallest and the largest record.
pub const LENGTHS: std::ops::RangeInclusive<u32> = 512..=1 << 20;

/// The header of a valid record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Which boot of the guest wrote it.
    pub instance: u64,
    /// The record's number, from 1.
    pub number: u64,
    /// The length of the whole record in bytes.
    pub length: u32,
    /// How many records the writer puts between two flushes.
    pub group: u32,
}

/// Why bytes are not a valid record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Too short for a header, or the header's length is another than the slot's.
    #[error("the length does not fit the slot")]
    Length,
    /// There is no magic: most likely never written.
    #[error("no record here")]
    Magic,
    /// The checksum is wrong: torn or damaged.
    #[error("the checksum is wrong")]
    Checksum,
}

impl Record {
    /// Writes the record into `out`, whose length must be the record's.
    ///
    /// # Panics
    /// When `out` is shorter than a header or of another length than `self.length`.
    pub fn encode(&self, out: &mut [u8]) {
        assert!(
            out.len() >= HEADER_BYTES && out.len() == self.length as usize,
            "slot and record differ in length"
        );
        out[..8].copy_from_slice(MAGIC);
        out[8..16].copy_from_slice(&self.instance.to_le_bytes());
        out[16..24].copy_from_slice(&self.number.to_le_bytes());
        out[24..28].copy_from_slice(&self.length.to_le_bytes());
        out[28..32].copy_from_slice(&self.group.to_le_bytes());
        let mut state = self.instance ^ self.number.rotate_left(32);
        for word in out[HEADER_BYTES..].chunks_mut(8) {
            let random = splitmix(&mut state).to_le_bytes();
            word.copy_from_slice(&random[..word.len()]);
        }
        let sum = checksum(out);
        out[32..64].copy_from_slice(&sum);
    }

    /// Recognises a record that fills `slot` exactly.
    ///
    /// # Errors
    /// [`RecordError`], the first thing that is wrong.
    pub fn decode(slot: &[u8]) -> Result<Self, RecordError> {
        let header: &[u8; HEADER_BYTES] = slot.first_chunk().ok_or(RecordError::Length)?;
        if &header[..8] != MAGIC {
            return Err(RecordError::Magic);
        }
        let u64_at = |at: usize| header[at..at + 8].iter().rev().fold(0u64, |v, b| (v << 8) | u64::from(*b));
        let u32_at = |at: usize| header[at..at + 4].iter().rev().fold(0u32, |v, b| (v << 8) | u32::from(*b));
        let record = Self { instance: u64_at(8), number: u64_at(16), length: u32_at(24), group: u32_at(28) };
        if record.length as usize != slot.len() {
            return Err(RecordError::Length);
        }
        if header[32..] != checksum(slot) {
            return Err(RecordError::Checksum);
        }
        Ok(record)
    }

    /// The length that the record at the start of `bytes` claims, without checking anything else.
    #[must_use]
    pub fn claimed_length(bytes: &[u8]) -> Option<u32> {
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        let length = u32::from_le_bytes([header[24], header[25], header[26], header[27]]);
        (&header[..8] == MAGIC && LENGTHS.contains(&length)).then_some(length)
    }
}

/// The slot of record `number` (from 1) in a ring of `slots`.
#[must_use]
pub fn slot_of(number: u64, slots: u64) -> u64 {
    number.wrapping_sub(1) % slots.max(1)
}

/// The lowest number that is certainly still in a ring of `slots` when `newest` is known to be in it and the writer may
/// have up to `group` further records under way.
#[must_use]
pub fn first_kept(newest: u64, slots: u64, group: u64) -> u64 {
    newest.saturating_add(group).saturating_add(1).saturating_sub(slots).max(1)
}

fn checksum(record: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&record[..32]);
    hasher.update(&record[HEADER_BYTES..]);
    *hasher.finalize().as_bytes()
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
