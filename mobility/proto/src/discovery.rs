//! What a mobile node says to routers and hears of them (Neighbor Discovery, RFC 4861): it reads advertisements, and builds
//! solicitations that need no address of its own. Decides nothing; what an advertisement says is proved by nobody.

use std::net::Ipv6Addr;

use crate::wire::Ipv6Prefix;

/// The protocol number of ICMPv6.
const ICMPV6: u8 = 58;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;
const SOURCE_LINK_LAYER: u8 = 1;
const PREFIX_INFORMATION: u8 = 3;
/// A: addresses may be made of the prefix.
const AUTONOMOUS: u8 = 0x40;
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// Where options begin in an advertisement, in bytes.
const OPTIONS_AT: usize = 16;

/// A router that offers a prefix on the node's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Router {
    /// Its link-local address.
    pub address: Ipv6Addr,
    /// Its link-layer address, when it has told.
    pub link_layer: Option<[u8; 6]>,
    /// The first prefix of 64 bits of which an address may be made.
    pub prefix: Ipv6Prefix,
}

/// What a node hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// A default router that offers a prefix.
    Router(Router),
    /// Whoever has this address is there.
    Neighbor(Ipv6Addr),
}

impl Heard {
    /// Reads an ICMPv6 message from `source` that came with a hop limit of 255, so from the link itself. `None` when it is
    /// another one, malformed, or offers nothing.
    #[must_use]
    pub fn parse(source: Ipv6Addr, message: &[u8]) -> Option<Self> {
        match *message.first()? {
            ROUTER_ADVERTISEMENT => router(source, message).map(Self::Router),
            NEIGHBOR_ADVERTISEMENT => {
                let target: [u8; 16] = message.get(8..24)?.try_into().ok()?;
                Some(Self::Neighbor(target.into()))
            }
            _ => None,
        }
    }
}

fn router(source: Ipv6Addr, message: &[u8]) -> Option<Router> {
    let lifetime_s = u16::from_be_bytes([*message.get(6)?, *message.get(7)?]);
    if lifetime_s == 0 || !source.is_unicast_link_local() {
        return None;
    }
    let (mut link_layer, mut prefix) = (None, None);
    let mut rest = message.get(OPTIONS_AT..)?;
    while let [kind, units, ..] = *rest {
        // An option without a length makes the whole message invalid (RFC 4861 section 4.6).
        let option = rest.get(..8 * usize::from(units)).filter(|option| !option.is_empty())?;
        match kind {
            SOURCE_LINK_LAYER => link_layer = option[2..8].try_into().ok(),
            PREFIX_INFORMATION => prefix = prefix.or_else(|| offered(option)),
            _ => {}
        }
        rest = &rest[option.len()..];
    }
    Some(Router { address: source, link_layer, prefix: prefix? })
}

/// The prefix of a Prefix Information option, when an address may be made of it.
fn offered(option: &[u8]) -> Option<Ipv6Prefix> {
    let valid_s = u32::from_be_bytes(option.get(4..8)?.try_into().ok()?);
    let octets: [u8; 16] = option.get(16..32)?.try_into().ok()?;
    let prefix = Ipv6Prefix::new(octets.into(), option[2]).filter(|prefix| prefix.len() == 64)?;
    let is_usable = option[3] & AUTONOMOUS != 0 && valid_s > 0;
    let is_global = !prefix.address().is_unicast_link_local() && !prefix.address().is_multicast();
    (is_usable && is_global).then_some(prefix)
}

/// The packet that asks all routers on the link to advertise, and whereto it is to be sent.
#[must_use]
pub fn solicit_routers() -> (Ipv6Addr, Vec<u8>) {
    (ALL_ROUTERS, packet(ALL_ROUTERS, [ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0].to_vec()))
}

/// The packet that asks whether `target` is on the link, and whereto it is to be sent. Like a test for duplicates, so that
/// the answer comes to all nodes (RFC 4862 section 5.4.3).
#[must_use]
pub fn solicit_neighbor(target: Ipv6Addr) -> (Ipv6Addr, Vec<u8>) {
    let low = u128::from(target) & 0x00ff_ffff;
    let group = (u128::from(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0)) | low).into();
    let mut message = vec![NEIGHBOR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    (group, packet(group, message))
}

/// An IPv6 packet from nobody, with the ICMPv6 message and its checksum.
fn packet(to: Ipv6Addr, mut message: Vec<u8>) -> Vec<u8> {
    let mut sum = message.len() as u32 + u32::from(ICMPV6);
    for part in [&to.octets()[..], &message] {
        sum += part.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum::<u32>();
    }
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut packet = vec![0x60, 0, 0, 0, 0, message.len() as u8, ICMPV6, 255];
    packet.extend([0; 16]);
    packet.extend(to.octets());
    packet.extend(message);
    packet
}

#[cfg(test)]
mod tests;
