//! Why bytes are no message and a message no bytes, and what is answered to that. Acts on nothing.

use super::layout::{HEADER_LEN_AT, MAX_BYTES, PAYLOAD_PROTO_AT};
use super::numbers::{MhType, OptionType};

/// Why bytes are no message that we read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// There are fewer bytes than the Header Len says.
    #[error("a Mobility Header of {needs} bytes is cut off after {has}")]
    CutOff {
        /// Its length.
        needs: usize,
        /// What is there.
        has: usize,
    },
    /// The checksum is wrong for the addresses.
    #[error("the checksum of the Mobility Header is wrong for its source and destination")]
    Checksum,
    /// The MH Type is none that we know.
    #[error("MH Type {} is not known", .0.0)]
    UnknownType(MhType),
    /// Something follows the Mobility Header.
    #[error("the Mobility Header's Payload Proto is {0}, not 59")]
    PayloadProto(u8),
    /// It is shorter than its message.
    #[error("a Mobility Header of {len} bytes is too short for: {kind}")]
    TooShort {
        /// The message.
        kind: MhType,
        /// The length it says it has.
        len: usize,
    },
    /// A Binding Revocation that is neither indication nor acknowledgement.
    #[error("a Binding Revocation has B.R. Type {0}, neither 1 nor 2")]
    UnknownRevocation(u8),
    /// An option goes beyond the end.
    #[error("the option at byte {at} of the Mobility Header goes beyond its end")]
    OptionCutOff {
        /// Where it begins.
        at: usize,
    },
    /// An option has a length or a value that its type does not allow.
    #[error("the option at byte {at} of the Mobility Header is malformed: {kind}")]
    Option {
        /// Its type.
        kind: OptionType,
        /// Where it begins.
        at: usize,
    },
}

/// What the receiver of an invalid message does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Nothing.
    Discard,
    /// Sends a Binding Error with status 2 (RFC 6275 section 9.3.3).
    BindingError,
    /// Sends an ICMP Parameter Problem, code 0, that points to this byte of the Mobility Header.
    ParameterProblem {
        /// Offset into the Mobility Header.
        at: usize,
    },
}

impl ParseError {
    /// What to do about it (RFC 6275 section 9.2).
    #[must_use]
    pub fn answer(&self) -> Answer {
        match self {
            Self::UnknownType(_) => Answer::BindingError,
            Self::PayloadProto(_) => Answer::ParameterProblem { at: PAYLOAD_PROTO_AT },
            Self::TooShort { .. } => Answer::ParameterProblem { at: HEADER_LEN_AT },
            _ => Answer::Discard,
        }
    }
}

/// Why a message cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EmitError {
    /// More data than an option can carry.
    #[error("{len} bytes of data are more than the 255 of an option: {kind}")]
    OptionTooLong {
        /// Its type.
        kind: OptionType,
        /// Its data, in bytes.
        len: usize,
    },
    /// What the option says cannot be said in it.
    #[error("an option with this content would be read as another or as malformed: {kind}")]
    OptionInvalid {
        /// Its type.
        kind: OptionType,
    },
    /// Longer than a Mobility Header can be.
    #[error("a message of {0} bytes is longer than the {MAX_BYTES} of a Mobility Header: send fewer options")]
    TooLong(usize),
}
