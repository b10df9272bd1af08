//! The packets inside the tunnels between anchor and gateways: whose they are, and the end marker behind which nothing
//! more comes on an old path. Never looks beyond the IPv6 header.

use std::net::Ipv6Addr;

use crate::wire::Ipv6Prefix;

const HEADER_BYTES: usize = 40;
const NO_NEXT_HEADER: u8 = 59;

/// From whom to whom a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inner {
    /// Its source.
    pub source: Ipv6Addr,
    /// Its destination.
    pub destination: Ipv6Addr,
}

impl Inner {
    /// Reads the IPv6 header; `None` when it is none.
    #[must_use]
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let header: &[u8; HEADER_BYTES] = packet.first_chunk()?;
        let address =
            |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&header[at..at + 16]).unwrap_or_default());
        (header[0] >> 4 == 6).then(|| Self { source: address(8), destination: address(24) })
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
