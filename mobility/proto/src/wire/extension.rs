//! The two extension headers of mobility: destination options with the Home Address option (RFC 6275 section 6.3) and the
//! type 2 routing header (section 6.4). Verifies no binding.

use std::net::Ipv6Addr;

use super::bytes::{Options, Reader, pad};

const HOME_ADDRESS_OPTION: u8 = 0xc9;
const PADN: u8 = 1;
const ROUTING_TYPE: u8 = 2;
const ROUTING_HEADER_LEN: u8 = 2;

/// Why an extension header is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ExtensionError {
    /// There are fewer bytes than its length says.
    #[error("an extension header is cut off after {has} bytes")]
    CutOff {
        /// What is there.
        has: usize,
    },
    /// An option goes beyond the end, or the Home Address option has no address.
    #[error("the destination option at byte {at} of its header is malformed")]
    Malformed {
        /// Where it begins.
        at: usize,
    },
    /// An option that is not known, whose type says that the packet must be discarded (RFC 8200 section 4.2).
    #[error("destination option {kind:#04x} at byte {at} of its header is not known and must not be skipped")]
    UnknownOption {
        /// Its type. Bits 7 and 6 say who is told: 01 nobody, 10 the source, 11 the source of what was not multicast; by
        /// ICMP Parameter Problem, code 2.
        kind: u8,
        /// Where it begins, which is where the ICMP message points, counted from this header.
        at: usize,
    },
    /// A second Home Address option (RFC 6275 section 6.3: at most one).
    #[error("the destination option at byte {at} of its header is a second Home Address option")]
    SecondHomeAddress {
        /// Where it begins.
        at: usize,
    },
    /// A routing header of another type, of another length, or with more than one segment left.
    #[error(
        "a routing header of type {kind}, length {len}, segments left {segments_left} is not the one of mobility"
    )]
    Routing {
        /// Its routing type.
        kind: u8,
        /// Its Hdr Ext Len.
        len: u8,
        /// Its Segments Left.
        segments_left: u8,
    },
}

/// A destination options header, and the one option in it that mobility knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DestinationOptions {
    /// The protocol number of what follows.
    pub next_header: u8,
    /// The address of the Home Address option.
    pub home_address: Option<Ipv6Addr>,
}

impl DestinationOptions {
    /// Reads the header that `bytes` begin with; its length in bytes comes with it.
    ///
    /// # Errors
    /// [`ExtensionError`], among them for an unknown option that must not be skipped.
    pub fn parse(bytes: &[u8]) -> Result<(Self, usize), ExtensionError> {
        let header = extension(bytes)?;
        let mut home_address = None;
        for raw in Options::new(&header[2..]) {
            let raw = raw.ok_or(ExtensionError::Malformed { at: header.len() })?;
            let at = 2 + raw.at;
            match raw.kind {
                0 | PADN => {}
                HOME_ADDRESS_OPTION if home_address.is_some() => {
                    return Err(ExtensionError::SecondHomeAddress { at });
                }
                HOME_ADDRESS_OPTION => {
                    let octets: [u8; 16] =
                        raw.data.try_into().map_err(|_| ExtensionError::Malformed { at })?;
                    home_address = Some(octets.into());
                }
                kind if kind >> 6 != 0 => return Err(ExtensionError::UnknownOption { kind, at }),
                _ => {}
            }
        }
        Ok((Self { next_header: header[0], home_address }, header.len()))
    }

    /// The header with a Home Address option at its alignment of 8n+6: 24 bytes, 8 without the option.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut out = vec![self.next_header, 0];
        if let Some(address) = self.home_address {
            pad(&mut out, (8, 6));
            out.extend([HOME_ADDRESS_OPTION, 16]);
            out.extend(address.octets());
        }
        pad(&mut out, (8, 0));
        out[1] = (out.len() / 8 - 1) as u8;
        out
    }
}

/// A type 2 routing header: the packet's final destination is the home address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoutingHeader {
    /// The protocol number of what follows.
    pub next_header: u8,
    /// 1 on the way, 0 when the home address has been put into the destination field.
    pub segments_left: u8,
    /// The home address; or, at the end of the way, the care-of address.
    pub home_address: Ipv6Addr,
}

impl RoutingHeader {
    /// Reads the header that `bytes` begin with; its length in bytes comes with it.
    ///
    /// # Errors
    /// [`ExtensionError::CutOff`]; [`ExtensionError::Routing`] when it is not the one of mobility.
    pub fn parse(bytes: &[u8]) -> Result<(Self, usize), ExtensionError> {
        let header = extension(bytes)?;
        let (len, kind, segments_left) = (header[1], header[2], header[3]);
        let mut address = Reader::new(&header[8..]);
        match address.ipv6() {
            Some(home_address) if kind == ROUTING_TYPE && len == ROUTING_HEADER_LEN && segments_left <= 1 => {
                let parsed = Self { next_header: header[0], segments_left, home_address };
                Ok((parsed, header.len()))
            }
            _ => Err(ExtensionError::Routing { kind, len, segments_left }),
        }
    }

    /// The header, 24 bytes.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut out =
            vec![self.next_header, ROUTING_HEADER_LEN, ROUTING_TYPE, self.segments_left, 0, 0, 0, 0];
        out.extend(self.home_address.octets());
        out
    }
}

/// The extension header that `bytes` begin with, at least 8 bytes.
pub(super) fn extension(bytes: &[u8]) -> Result<&[u8], ExtensionError> {
    let len = bytes.get(1).map_or(0, |len| 8 * usize::from(*len)) + 8;
    bytes.get(..len).ok_or(ExtensionError::CutOff { has: bytes.len() })
}
