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
//! | 32 | 32 | four application words, opaque here |
//! | 64 | 146 | padding, zero when sent, ignored when received |

/// The size of every probe packet, in bytes of UDP payload: a G.711-like voice frame, as in the paper's measurements.
pub const PACKET_BYTES: usize = 210;

/// How many application words a packet carries.
pub const WORDS: usize = 4;

const MAGIC: &[u8; 8] = b"LHPROBE1";

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
    /// The datagram has another length.
    #[error("a probe packet has {PACKET_BYTES} bytes, this datagram has {0}")]
    Length(usize),
    /// The datagram does not start with the magic.
    #[error("the datagram does not start with the probe's magic")]
    Magic,
}

impl Packet {
    /// The packet as it goes on the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; PACKET_BYTES] {
        let mut out = [0; PACKET_BYTES];
        out[..8].copy_from_slice(MAGIC);
        let fields = [self.stream, self.seq, self.sent_ns].into_iter().chain(self.words);
        for (slot, field) in out[8..].chunks_exact_mut(8).zip(fields) {
            slot.copy_from_slice(&field.to_be_bytes());
        }
        out
    }

    /// Reads a datagram.
    ///
    /// # Errors
    /// [`ParseError`] when the length or the magic is another.
    pub fn parse(datagram: &[u8]) -> Result<Self, ParseError> {
        let bytes: &[u8; PACKET_BYTES] =
            datagram.try_into().map_err(|_| ParseError::Length(datagram.len()))?;
        if &bytes[..8] != MAGIC {
            return Err(ParseError::Magic);
        }
        let mut fields = [0u64; 3 + WORDS];
        for (field, slot) in fields.iter_mut().zip(bytes[8..].chunks_exact(8)) {
            *field = slot.iter().fold(0, |value, byte| (value << 8) | u64::from(*byte));
        }
        let [stream, seq, sent_ns, words @ ..] = fields;
        Ok(Self { stream, seq, sent_ns, words })
    }
}
