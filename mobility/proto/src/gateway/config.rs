//! What a gateway is told: once, and of each virtual machine.

use std::net::Ipv6Addr;
use std::time::Duration;

use crate::auth::SharedKey;
use crate::wire::*;

/// What the gateway is told once.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Its own address, which is the care-of address of its virtual machines.
    pub address: Ipv6Addr,
    /// The anchor's.
    pub anchor: Ipv6Addr,
    /// Where it takes tunnelled packets of the anchor, when that is another address (RFC 7389).
    pub user_plane: Option<Ipv6Addr>,
    /// For how long it registers.
    pub lifetime: BindingLifetime,
    /// For how long it registers ahead.
    pub transient: TransientLifetime,
    /// How many bytes of packets may wait for one virtual machine.
    pub buffer_bytes: usize,
    /// How long packets of the new way wait for the end of the old one.
    pub settle: Duration,
}

/// The anchor's permission to register one virtual machine in one epoch.
#[derive(Debug, Clone)]
pub struct Grant {
    /// The key, with its SPI.
    pub key: SharedKey,
    /// The virtual machine's identifier (RFC 4283).
    pub node: Vec<u8>,
    /// What is its own.
    pub prefix: Ipv6Prefix,
    /// Its IPv4 home address, if it has one (RFC 5844).
    pub ipv4: Option<Ipv4Interface>,
}

impl Grant {
    /// All that is its own.
    pub(super) fn prefixes(&self) -> impl Iterator<Item = Ipv6Prefix> + use<> {
        self.ipv4.map(Ipv4Interface::host).into_iter().chain([self.prefix])
    }
}
