//! The IPv6 packet around a Mobility Header: finds the header behind the extension headers, and builds the packet for a
//! socket that takes whole ones. Handles no IPsec and no fragments: the kernel has taken both off before.

use std::net::Ipv6Addr;

use super::checksum::MOBILITY_HEADER;
use super::extension::{ExtensionError, extension};
use super::{DestinationOptions, Endpoints, MobilityHeader, RoutingHeader};

const IPV6_HEADER_BYTES: usize = 40;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION_OPTIONS: u8 = 60;

/// The addresses of an IPv6 packet, those of mobility among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// The packet's source: with a Home Address option the care-of address.
    pub source: Ipv6Addr,
    /// The packet's destination: with a type 2 routing header the care-of address.
    pub destination: Ipv6Addr,
    /// The address of the Home Address option.
    pub home_address: Option<Ipv6Addr>,
    /// The address of the type 2 routing header, whose segments left were 1.
    pub routed_to: Option<Ipv6Addr>,
}

/// An IPv6 packet that carries a Mobility Header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signalling<'a> {
    /// From whom to whom.
    pub addresses: Addresses,
    /// From the Mobility Header to the packet's end.
    pub message: &'a [u8],
    /// Where that begins in the packet, in bytes: an ICMP Parameter Problem counts from the packet's start.
    pub message_at: usize,
}

/// Why a packet is no signalling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignallingError {
    /// Not version 6, or shorter than its own length.
    #[error("no whole IPv6 packet in {0} bytes")]
    NotIpv6(usize),
    /// The headers lead to another protocol.
    #[error("the packet carries protocol {0}, not a Mobility Header (135)")]
    OtherProtocol(u8),
    /// An extension header is malformed, or must not be skipped.
    #[error("the extension header at byte {at} of the packet is not taken")]
    Extension {
        /// Where it begins.
        at: usize,
        /// Why.
        source: ExtensionError,
    },
}

impl<'a> Signalling<'a> {
    /// Finds the Mobility Header in an IPv6 packet. At most one destination options header and one routing header are
    /// taken for mobility's; a routing header whose segments left are 0 says nothing about the final destination.
    ///
    /// # Errors
    /// [`SignallingError`].
    pub fn parse(packet: &'a [u8]) -> Result<Self, SignallingError> {
        let not_ipv6 = SignallingError::NotIpv6(packet.len());
        let header: &[u8; IPV6_HEADER_BYTES] = packet.first_chunk().ok_or(not_ipv6)?;
        let end = IPV6_HEADER_BYTES + usize::from(u16::from_be_bytes([header[4], header[5]]));
        if header[0] >> 4 != 6 || packet.len() < end {
            return Err(not_ipv6);
        }
        let mut addresses = Addresses {
            source: address(&header[8..24]),
            destination: address(&header[24..40]),
            home_address: None,
            routed_to: None,
        };
        let (mut next_header, mut at) = (header[6], IPV6_HEADER_BYTES);
        while next_header != MOBILITY_HEADER {
            let (next, len) = addresses.skip(next_header, &packet[at..end]).map_err(|error| match error {
                Some(source) => SignallingError::Extension { at, source },
                None => SignallingError::OtherProtocol(next_header),
            })?;
            next_header = next;
            at += len;
        }
        Ok(Self { addresses, message: &packet[at..end], message_at: at })
    }
}

impl Addresses {
    /// A packet straight from one to the other.
    #[must_use]
    pub fn direct(source: Ipv6Addr, destination: Ipv6Addr) -> Self {
        Self { source, destination, home_address: None, routed_to: None }
    }

    /// Takes note of one extension header: what follows it, and its length. No error says that it is none.
    fn skip(&mut self, kind: u8, bytes: &[u8]) -> Result<(u8, usize), Option<ExtensionError>> {
        match kind {
            HOP_BY_HOP => {
                let header = extension(bytes)?;
                Ok((header[0], header.len()))
            }
            DESTINATION_OPTIONS => {
                let (options, len) = DestinationOptions::parse(bytes)?;
                if self.home_address.is_some() && options.home_address.is_some() {
                    return Err(Some(ExtensionError::SecondHomeAddress { at: 2 }));
                }
                self.home_address = self.home_address.or(options.home_address);
                Ok((options.next_header, len))
            }
            ROUTING => {
                let (routing, len) = RoutingHeader::parse(bytes)?;
                if routing.segments_left == 1 {
                    self.routed_to = Some(routing.home_address);
                }
                Ok((routing.next_header, len))
            }
            _ => Err(None),
        }
    }

    /// The addresses that the checksum covers.
    #[must_use]
    pub fn endpoints(&self) -> Endpoints {
        Endpoints {
            source: self.home_address.unwrap_or(self.source),
            destination: self.routed_to.unwrap_or(self.destination),
        }
    }

    /// The whole IPv6 packet around `message`, hop limit 64, with the extension headers that the addresses call for, in
    /// the order of RFC 6275 section 6.3: routing, then destination options. The message's checksum must be the one for
    /// [`endpoints`](Self::endpoints).
    #[must_use]
    pub fn emit(&self, message: MobilityHeader<'_>) -> Vec<u8> {
        let (mut next_header, mut extensions) = (MOBILITY_HEADER, Vec::new());
        if self.home_address.is_some() {
            extensions = DestinationOptions { next_header, home_address: self.home_address }.emit();
            next_header = DESTINATION_OPTIONS;
        }
        if let Some(home_address) = self.routed_to {
            extensions.splice(..0, RoutingHeader { next_header, segments_left: 1, home_address }.emit());
            next_header = ROUTING;
        }
        let mut out = vec![0x60, 0, 0, 0];
        // A Mobility Header has at most 2048 bytes.
        out.extend(((extensions.len() + message.as_bytes().len()) as u16).to_be_bytes());
        out.extend([next_header, 64]);
        out.extend(self.source.octets());
        out.extend(self.destination.octets());
        out.extend(extensions);
        out.extend(message.as_bytes());
        out
    }
}

fn address(octets: &[u8]) -> Ipv6Addr {
    octets.iter().fold(0, |address: u128, octet| address << 8 | u128::from(*octet)).into()
}
