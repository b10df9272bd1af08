//! What an anchor has its owner do, and the places of mobile nodes that it speaks of.

use std::net::{Ipv6Addr, SocketAddrV4};

use crate::wire::*;

/// Where a mobile node is reached, or will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The care-of address: tunnelled packets come from there. IPv4-mapped when it is one of IPv4, as the node itself sees it.
    pub care_of: Ipv6Addr,
    /// Where its tunnelled packets come from and go to in UDP, when its care-of address is one of IPv4.
    pub udp: Option<SocketAddrV4>,
    /// Where a gateway takes tunnelled packets, as it has said itself (RFC 7389).
    pub user_plane: Option<Ipv6Addr>,
}

/// The other end of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TunnelEnd {
    /// Packets are in IPv6.
    Ipv6(Ipv6Addr),
    /// Packets are in UDP over IPv4.
    Udp(SocketAddrV4),
}

impl Place {
    /// Where tunnelled packets go.
    #[must_use]
    pub fn tunnel_end(&self) -> TunnelEnd {
        self.udp.map_or(TunnelEnd::Ipv6(self.user_plane.unwrap_or(self.care_of)), TunnelEnd::Udp)
    }

    /// Where they come from.
    pub(super) fn source(&self) -> TunnelEnd {
        self.udp.map_or(TunnelEnd::Ipv6(self.care_of), TunnelEnd::Udp)
    }
}

/// What is to be done, in this order. A mobile node with an IPv4 address has two prefixes, and each is told of by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send what is for the prefix there.
    SwitchRoute {
        /// The mobile node's prefix.
        prefix: Ipv6Prefix,
        /// Where it is reached from now on.
        place: Place,
        /// Where the mobile node was reached until now, when nothing more of it is sent there from now on: what is sent last is
        /// [`end_marker`](crate::inner::end_marker).
        before: Option<Place>,
    },
    /// Take what comes from the prefix from these places, and from no other. A transient binding's is among them
    /// (RFC 6058 section 4.2).
    TakeFrom {
        /// The mobile node's prefix.
        prefix: Ipv6Prefix,
        /// None, one or two.
        places: Vec<Place>,
    },
    /// The prefix is reached nowhere.
    RemoveRoute {
        /// The mobile node's prefix.
        prefix: Ipv6Prefix,
    },
    /// What must outlive a crash has changed: it is to be on the disk before anything that comes behind is sent.
    Keep {
        /// The mobile node's identifier.
        node: Vec<u8>,
        /// What must.
        kept: Kept,
    },
    /// Send this IPv6 packet.
    Send(Vec<u8>),
    /// Send this IPv6 packet in UDP.
    SendDatagram {
        /// To whom.
        to: SocketAddrV4,
        /// The packet.
        packet: Vec<u8>,
    },
}

/// What is known of a mobile node after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// The mobile node's prefix.
    pub prefix: Ipv6Prefix,
    /// The highest epoch in which it was bound.
    pub floor: u64,
    /// Where it is reached, and since which epoch.
    pub bound: Option<(Place, u64)>,
}
