//! A virtual machine's link as its gateway is told of it. It touches no interface.

use std::net::{Ipv4Addr, Ipv6Addr};

use mobility_proto::wire::{Ipv4Interface, Ipv6Prefix};

/// The link between a virtual machine and its gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The interface on the platform's side. It may not exist before the machine does.
    pub interface: String,
    /// The machine's prefix.
    pub prefix: Ipv6Prefix,
    /// The machine's IPv4 address, if it has one, with its network. DHCP gives it to the machine. It may have any router: all
    /// other addresses are answered for.
    pub ipv4: Option<Ipv4Interface>,
    /// The machine's link-layer address: no packet waits for it to be found.
    pub link_layer: [u8; 6],
}

impl Link {
    /// Whether the machine has this address, which is IPv4-mapped when it is one of IPv4.
    pub(super) fn has(&self, address: Ipv6Addr) -> bool {
        self.prefix.contains(address) || self.ipv4_address().map(|own| own.to_ipv6_mapped()) == Some(address)
    }

    pub(super) fn ipv4_address(&self) -> Option<Ipv4Addr> {
        self.ipv4.map(Ipv4Interface::address)
    }
}
