//! The layout of a probe packet: encode and parse, nothing else.
//!
//! All integers are big endian.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `LHPROBE1` |
//! | 8 | 8 | stream id |
//! | 16 | 8 | sequence number, one more for each packet sent |
//! | 24 | 8 | time of sending, nanoseconds of the sender's own monotonic clock |
//! | 32 | 32 | four application words, opaque here; [`word`] says what `longhaul probe send` puts there |
//! | 64 | 0 to 65,443 | padding, zero when sent, ignored when received |

use std::ops::RangeInclusive;

/// The size of a probe packet unless another is asked for, in bytes of UDP payload: a G.711-like voice frame, as in the
/// paper's measurements.
pub const PACKET_BYTES: usize = 210;

/// The sizes that a probe packet can have: from the fields alone to the longest UDP payload over IPv4.
pub const SIZES: RangeInclusive<usize> = HEADER_BYTES..=65_507;

const HEADER_BYTES: usize = 64;

/// How many application words a packet carries.
pub const WORDS: usize = 4;

const MAGIC: &[u8; 8] = b"LHPROBE1";

/// Meaning of the application words in the packets of `longhaul probe send`.
pub mod word {
    /// Whose clock `sent_ns` is of: the first half of the machine's boot id for its monotonic clock, [`WALL_CLOCK`] for
    /// the time since 1970, anything else for a clock that the receiver does not have.
    pub const CLOCK: usize = 0;
    /// 0 in what is sent, [`ANSWERED`] in what comes back: an answer is never answered.
    pub const ANSWER: usize = 1;
    /// See [`CLOCK`].
    pub const WALL_CLOCK: u64 = u64::from_be_bytes(*b"UNIXTIME");
    /// See [`ANSWER`].
    pub const ANSWERED: u64 = 1;
}

/// One probe packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Which stream the packet belongs to; chosen by the sender.
    pub stream: u64,
    /// The packet's number within its stream.
    pub seq: u64,
    /// When it was sent, in nanoseconds of the sender's clock (only differences mean anything).
    pub sent_ns: u64,
    /// Whatever the sender's application reports beside the stream.
    pub words: [u64; WORDS],
}

/// Why a datagram is not a probe packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The datagram's length is not in [`SIZES`].
    #[error("a probe packet has {} to {} bytes, this datagram has {bytes}", SIZES.start(), SIZES.end())]
    Length {
        /// Its length.
        bytes: usize,
    },
    /// The datagram does not start with the magic.
    #[error("the datagram does not start with the probe's magic")]
    Magic,
}

impl Packet {
    /// The packet as it goes on the wire, in the usual size.
    #[must_use]
    pub fn encode(&self) -> [u8; PACKET_BYTES] {
        let mut out = [0; PACKET_BYTES];
        self.write(&mut out);
        out
    }

    /// Writes the fields to the start of a datagram of any size; what has no room is left out.
    pub fn write(&self, datagram: &mut [u8]) {
        let fields = [u64::from_be_bytes(*MAGIC), self.stream, self.seq, self.sent_ns];
        for (slot, field) in datagram.chunks_exact_mut(8).zip(fields.into_iter().chain(self.words)) {
            slot.copy_from_slice(&field.to_be_bytes());
        }
    }

    /// Reads a datagram.
    ///
    /// # Errors
    /// [`ParseError`] when the length is not in [`SIZES`] or the magic is another.
    pub fn parse(datagram: &[u8]) -> Result<Self, ParseError> {
        if !SIZES.contains(&datagram.len()) {
            return Err(ParseError::Length { bytes: datagram.len() });
        }
        let (magic, rest) = datagram.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(ParseError::Magic);
        }
        let mut fields = [0u64; 3 + WORDS];
        for (field, slot) in fields.iter_mut().zip(rest.chunks_exact(8)) {
            *field = slot.iter().fold(0, |value, byte| (value << 8) | u64::from(*byte));
        }
        let [stream, seq, sent_ns, words @ ..] = fields;
        Ok(Self { stream, seq, sent_ns, words })
    }

    /// How long the packet took until `arrival_ns`, by the two ends' clocks.
    #[must_use]
    pub fn transit_ns(&self, arrival_ns: u64) -> i64 {
        // Clocks that have nothing to do with each other may differ either way.
        arrival_ns.wrapping_sub(self.sent_ns).cast_signed()
    }
}
