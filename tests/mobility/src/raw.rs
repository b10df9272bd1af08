//! Packets that no honest host sends, and the raw sockets to send and to hear them. Never checks what it sends.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV6};
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result};
use harness::Namespace;
use mobility::access::Grant;
use mobility::auth::Covered;
use mobility::wire::*;
use rustix::net::{
    AddressFamily, Protocol, RawProtocol, RecvFlags, SendFlags, SocketType, recvfrom, sendto, socket, sockopt,
};

use crate::network::ANCHOR;

/// The Mobility Header.
pub const SIGNALLING: u8 = 135;
/// IPv6 in IPv6.
pub const TUNNEL: u8 = 41;
/// IPv4 in IPv6.
pub const TUNNEL_IPV4: u8 = 4;
/// ICMPv6.
pub const ICMPV6: u8 = 58;
/// UDP.
const UDP: u8 = 17;
/// A socket of this protocol sends packets with the header that they bring.
const WHOLE_PACKETS: u8 = 255;

/// A raw socket in a namespace.
#[derive(Debug)]
pub struct Raw(OwnedFd);

impl Raw {
    /// Sends whole packets, from whomever they say.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn sender(namespace: &Namespace) -> Result<Self> {
        Self::open(namespace, WHOLE_PACKETS)
    }

    /// Hears what comes of `protocol`, as any other socket of it does.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(namespace: &Namespace, protocol: u8) -> Result<Self> {
        let protocol = RawProtocol::new(protocol.into()).map(Protocol::from_raw);
        let open = || socket(AddressFamily::INET6, SocketType::RAW, protocol);
        Ok(Self(namespace.enter(open)?.context("opening a raw socket")?))
    }

    /// Sends a whole packet.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn send(&self, packet: &[u8]) -> Result<()> {
        let to = packet.get(24..40).and_then(|to| <[u8; 16]>::try_from(to).ok()).context("no IPv6 header")?;
        sendto(&self.0, packet, SendFlags::empty(), &SocketAddrV6::new(to.into(), 0, 0, 0))
            .context("sending a raw packet")?;
        Ok(())
    }

    /// Sends to `to` what the kernel puts its header, or fragments, around.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn send_payload(&self, to: Ipv6Addr, payload: &[u8]) -> Result<()> {
        sendto(&self.0, payload, SendFlags::empty(), &SocketAddrV6::new(to, 0, 0, 0))
            .context("sending by a raw socket")?;
        Ok(())
    }

    /// The next packet, without its header, if one comes in time.
    ///
    /// # Errors
    /// When the kernel refuses the time.
    pub fn hear(&self, patience: Duration) -> Result<Option<(Ipv6Addr, Vec<u8>)>> {
        sockopt::set_socket_timeout(&self.0, sockopt::Timeout::Recv, Some(patience))?;
        let mut buffer = vec![0; 65_535];
        let Ok((len, _, from)) = recvfrom(&self.0, &mut buffer, RecvFlags::empty()) else { return Ok(None) };
        let from =
            from.and_then(|from| SocketAddrV6::try_from(from).ok()).context("a packet from nowhere")?;
        buffer.truncate(len);
        Ok(Some((*from.ip(), buffer)))
    }
}

/// An IPv6 packet of `protocol`.
#[must_use]
pub fn packet(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([protocol, 64]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

/// A proxy registration by the gateway at `address`, proved with the key of `grant`, as a whole packet that comes from there:
/// later than all that a gateway sends by its clock.
///
/// # Panics
/// When the identifier is too long for an option.
#[must_use]
pub fn registration(grant: &Grant, address: Ipv6Addr, sequence: u16, seconds: u32) -> Vec<u8> {
    registration_at(grant, address, None, sequence, seconds)
}

/// As [`registration`], by a gateway that takes tunnelled packets at `user_plane`.
///
/// # Panics
/// When the identifier is too long for an option.
#[must_use]
pub fn registration_at(
    grant: &Grant,
    address: Ipv6Addr,
    user_plane: Option<Ipv6Addr>,
    sequence: u16,
    seconds: u32,
) -> Vec<u8> {
    let update = BindingUpdate {
        sequence: SequenceNumber(sequence),
        flags: BindingUpdateFlags::ACKNOWLEDGE | BindingUpdateFlags::PROXY,
        lifetime: BindingLifetime::from_secs(seconds),
    };
    let mut options = vec![
        MobilityOption::MobileNodeIdentifier { kind: IdentifierType::NAI, identifier: grant.node.clone() },
        MobilityOption::HomeNetworkPrefix(grant.prefix),
        MobilityOption::HandoffIndicator(HandoffIndicator::BETWEEN_GATEWAYS),
        MobilityOption::AccessTechnologyType(AccessTechnology::ETHERNET),
        MobilityOption::Timestamp(Timestamp(u64::MAX - 1000 + u64::from(sequence))),
    ];
    options.extend(user_plane.map(|address| MobilityOption::LmaUserPlaneAddress(address.into())));
    let repr = Repr { message: Message::BindingUpdate(update), options };
    let addresses = Addresses::direct(address, ANCHOR);
    let covered = Covered { care_of: address, peer: grant.prefix.address() };
    let message = grant.key.emit(&repr, addresses.endpoints(), covered).expect("it is short");
    addresses.emit(MobilityHeader::new_checked(&message).expect("it was just made"))
}

/// An IPv6 packet with a UDP datagram in it.
#[must_use]
pub fn udp(from: Ipv6Addr, to: Ipv6Addr, port: u16, payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len()) as u16;
    let mut datagram = [port.to_be_bytes(), port.to_be_bytes(), len.to_be_bytes(), [0; 2]].concat();
    datagram.extend(payload);
    let header = [&from.octets()[..], &to.octets(), &u32::from(len).to_be_bytes(), &[0, 0, 0, UDP]].concat();
    let sum = sum(&header) + sum(&datagram);
    let sum = (sum & 0xffff) + (sum >> 16);
    let folded = !((sum & 0xffff) + (sum >> 16)) as u16;
    datagram[6..8].copy_from_slice(&folded.to_be_bytes());
    packet(from, to, UDP, &datagram)
}

/// An IPv4 packet with a UDP datagram in it, which has no checksum.
#[must_use]
pub fn udp_ipv4(from: Ipv4Addr, to: Ipv4Addr, port: u16, payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len()) as u16;
    let mut packet = [&[0x45, 0][..], &(20 + len).to_be_bytes(), &[0, 0, 0, 0, 64, UDP, 0, 0]].concat();
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = sum(&packet);
    packet[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    packet.extend([port.to_be_bytes(), port.to_be_bytes(), len.to_be_bytes(), [0; 2]].concat());
    packet.extend(payload);
    packet
}

fn sum(bytes: &[u8]) -> u32 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from);
    bytes.chunks(2).map(word).sum()
}
