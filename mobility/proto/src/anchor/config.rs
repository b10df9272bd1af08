//! What an anchor is told: once, and of each mobile node.

use std::net::Ipv6Addr;

use crate::auth::SharedKey;
use crate::wire::*;

/// What the anchor is told once.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its own address.
    pub address: Ipv6Addr,
    /// Where it takes tunnelled packets (RFC 7389 section 3), when that is another address.
    pub user_plane: Option<Ipv6Addr>,
    /// How many mobile nodes it serves at most.
    pub max_nodes: usize,
    /// The longest lifetime it grants.
    pub max_lifetime: BindingLifetime,
    /// The longest lifetime it grants to a transient binding.
    pub max_transient: TransientLifetime,
    /// How often it has started (RFC 5847 section 4.1).
    pub restart_counter: u32,
    /// When it has started, by the wall clock in nanoseconds since 1970: what a mobile node has sent before may have been
    /// accepted, and forgotten.
    pub started_unix_ns: u64,
}

/// Who may register a mobile node, and how it proves that it is the one.
#[derive(Debug, Clone)]
pub struct Authorization {
    /// The key, of which the SPI is unique in the anchor.
    pub key: SharedKey,
    /// The mobile node's identifier (RFC 4283), 1 to 254 bytes.
    pub node: Vec<u8>,
    /// What is its own: a prefix, or its home address with 128 bits.
    pub prefix: Ipv6Prefix,
    /// Its IPv4 home address, if it has one (RFC 5844).
    pub ipv4: Option<Ipv4Interface>,
    /// Who holds the key.
    pub registrant: Registrant,
}

/// Who registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registrant {
    /// A mobile access gateway, with proxy registrations.
    Gateway {
        /// Its address, which is the care-of address.
        address: Ipv6Addr,
        /// The ownership epoch in which the mobile node is there.
        epoch: u64,
    },
    /// The mobile node itself, from any care-of address.
    MobileNode,
}
