//! A view of the bytes of one Mobility Header. Interprets no message.

use super::Endpoints;
use super::checksum::checksum;
use super::error::ParseError;
use super::layout::{FIXED_BYTES, HEADER_LEN_AT, PAYLOAD_PROTO_AT, TYPE_AT, UNCOUNTED_BYTES};
use super::numbers::MhType;

/// The bytes of one Mobility Header (RFC 6275 section 6.1.1), all that its Header Len says and nothing behind it.
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 1 | Payload Proto, 59 |
/// | 1 | 1 | Header Len, in units of 8 bytes without the first 8 |
/// | 2 | 1 | MH Type |
/// | 3 | 1 | reserved |
/// | 4 | 2 | checksum |
/// | 6 | | message data, then options |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MobilityHeader<'a>(&'a [u8]);

impl<'a> MobilityHeader<'a> {
    /// Where the checksum is.
    pub(crate) const CHECKSUM_AT: usize = 4;

    /// A view of the Mobility Header that `bytes` begin with.
    ///
    /// # Errors
    /// [`ParseError::CutOff`] when there are fewer bytes than its Header Len says.
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let len = bytes.get(HEADER_LEN_AT).map_or(0, |len| 8 * usize::from(*len)) + UNCOUNTED_BYTES;
        bytes.get(..len).map(Self).ok_or(ParseError::CutOff { needs: len, has: bytes.len() })
    }

    /// All of its bytes, 8 to 2048.
    #[must_use]
    pub fn as_bytes(&self) -> &'a [u8] {
        self.0
    }

    /// What follows: 59, nothing.
    #[must_use]
    pub fn payload_proto(&self) -> u8 {
        self.0[PAYLOAD_PROTO_AT]
    }

    /// Its length in units of 8 bytes, without the first 8.
    #[must_use]
    pub fn header_len(&self) -> u8 {
        self.0[HEADER_LEN_AT]
    }

    /// Which message it is.
    #[must_use]
    pub fn mh_type(&self) -> MhType {
        MhType(self.0[TYPE_AT])
    }

    /// The checksum as it was sent.
    #[must_use]
    pub fn checksum(&self) -> u16 {
        u16::from_be_bytes([self.0[Self::CHECKSUM_AT], self.0[Self::CHECKSUM_AT + 1]])
    }

    /// Whether the checksum is right for these addresses.
    #[must_use]
    pub fn is_intact(&self, ends: Endpoints) -> bool {
        checksum(ends, self.0) == 0
    }

    /// The message and its options, without the part that all share.
    #[must_use]
    pub fn data(&self) -> &'a [u8] {
        &self.0[FIXED_BYTES..]
    }
}
