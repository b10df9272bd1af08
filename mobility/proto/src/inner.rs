//! The packets inside the tunnels between anchor and gateways: whose they are, and the end marker behind which nothing
//! more comes on an old path. Never looks beyond the IP header.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::wire::Ipv6Prefix;

const HEADER_BYTES: usize = 40;
const IPV4_HEADER_BYTES: usize = 20;
const NO_NEXT_HEADER: u8 = 59;

/// From whom to whom a packet goes. Addresses of an IPv4 packet are IPv4-mapped ones, as in [`Ipv6Prefix`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inner {
    /// Its source.
    pub source: Ipv6Addr,
    /// Its destination.
    pub destination: Ipv6Addr,
}

impl Inner {
    /// Reads the header of an IPv6 or IPv4 packet; `None` when it is none, or of IPv6 with an IPv4-mapped address, which
    /// nobody may send.
    #[must_use]
    pub fn parse(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            6 => Self::parse_ipv6(packet.first_chunk()?),
            4 => Self::parse_ipv4(packet.first_chunk()?),
            _ => None,
        }
    }

    fn parse_ipv6(header: &[u8; HEADER_BYTES]) -> Option<Self> {
        let address =
            |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&header[at..at + 16]).unwrap_or_default());
        let (source, destination) = (address(8), address(24));
        let is_mapped = |address: Ipv6Addr| address.to_ipv4_mapped().is_some();
        (!is_mapped(source) && !is_mapped(destination)).then_some(Self { source, destination })
    }

    fn parse_ipv4(header: &[u8; IPV4_HEADER_BYTES]) -> Option<Self> {
        let address = |at: usize| {
            let octets = <[u8; 4]>::try_from(&header[at..at + 4]).unwrap_or_default();
            Ipv4Addr::from(octets).to_ipv6_mapped()
        };
        let header_bytes = 4 * usize::from(header[0] & 0xf);
        (header_bytes >= IPV4_HEADER_BYTES).then(|| Self { source: address(12), destination: address(16) })
    }

    /// Whether the packet is one of IPv4.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.destination.to_ipv4_mapped().is_some()
    }
}

/// The packet that an anchor sends behind the last one on the way to a gateway that a mobile node has left: from the
/// anchor to the prefix's Subnet-Router anycast address (RFC 4291 section 2.6.1), with nothing behind the header. The
/// gateway forwards it as any other packet, so it comes to the next gateway behind all that was sent the old way.
#[must_use]
pub fn end_marker(anchor: Ipv6Addr, prefix: Ipv6Prefix) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, NO_NEXT_HEADER, 64];
    packet.extend(anchor.octets());
    packet.extend(prefix.address().octets());
    packet
}

/// Whether this is that packet. Each router on its way has taken one from its hop limit.
#[must_use]
pub fn is_end_marker(packet: &[u8], anchor: Ipv6Addr, prefix: Ipv6Prefix) -> bool {
    const HOP_LIMIT_AT: usize = 7;
    let marker = end_marker(anchor, prefix);
    packet.len() == marker.len()
        && packet[..HOP_LIMIT_AT] == marker[..HOP_LIMIT_AT]
        && packet[HOP_LIMIT_AT + 1..] == marker[HOP_LIMIT_AT + 1..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_versions_are_read_and_none_is_taken_for_the_other() {
        let mut old = [0; 24];
        old[0] = 0x45;
        old[12..20].copy_from_slice(&[198, 51, 100, 10, 203, 0, 113, 1]);
        let inner = Inner::parse(&old).unwrap();
        let mapped = |a, b, c, d| Ipv4Addr::new(a, b, c, d).to_ipv6_mapped();
        assert_eq!((inner.source, inner.destination), (mapped(198, 51, 100, 10), mapped(203, 0, 113, 1)));
        assert!(inner.is_ipv4());
        assert_eq!(Inner::parse(&old[..19]), None);
        old[0] = 0x44;
        assert_eq!(Inner::parse(&old), None);

        let packet = |source: Ipv6Addr, destination: Ipv6Addr| {
            [&[0x60, 0, 0, 0, 0, 0, 59, 64][..], &source.octets(), &destination.octets()].concat()
        };
        let (other, old) = (Ipv6Addr::LOCALHOST, mapped(198, 51, 100, 10));
        assert!(!Inner::parse(&packet(other, other)).unwrap().is_ipv4());
        assert_eq!(Inner::parse(&packet(old, other)), None);
        assert_eq!(Inner::parse(&packet(other, old)), None);
        for bytes in [&[][..], &[0x45], &[0x60], &[0x75; 60]] {
            assert_eq!(Inner::parse(bytes), None);
        }
    }

    #[test]
    fn an_end_marker_is_one_after_some_routers_and_nothing_else_is() {
        let anchor = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
        let prefix = Ipv6Prefix::new(Ipv6Addr::new(0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 0), 64).unwrap();
        let mut marker = end_marker(anchor, prefix);
        assert!(is_end_marker(&marker, anchor, prefix));
        marker[7] -= 2;
        assert!(is_end_marker(&marker, anchor, prefix));
        assert!(!is_end_marker(&marker[..39], anchor, prefix) && !is_end_marker(&[], anchor, prefix));
        assert!(!is_end_marker(&marker, Ipv6Addr::LOCALHOST, prefix));
        marker[6] = 17;
        assert!(!is_end_marker(&marker, anchor, prefix));
    }
}
