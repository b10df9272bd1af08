//! Router advertisements to one guest (RFC 4861 section 4.2): its prefix, its router, its MTU, and DNS
//! servers (RFC 8106). The router is the same at every gateway (RFC 6543), so a guest that has moved notices nothing.

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use mobility_proto::wire::Ipv6Prefix;

use crate::links::{GATEWAY_LINK_LAYER, GATEWAY_LINK_LOCAL};
use crate::raw::{ICMPV6, RawSocket};

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Between two advertisements that nobody asked for.
const INTERVAL: Duration = Duration::from_secs(30);
const ROUTER_LIFETIME_S: u16 = 1800;
const PREFIX_LIFETIME_S: u32 = 86_400;
/// A: the guest makes its address of the prefix. Not L: other addresses of the prefix are not on the link.
const AUTONOMOUS: u8 = 0x40;

/// The advertisement of `prefix`, without checksum: the kernel makes it. Of `dns` what is IPv6.
fn advertisement(prefix: Ipv6Prefix, mtu: u16, dns: &[IpAddr]) -> Vec<u8> {
    let mut message = vec![ROUTER_ADVERTISEMENT, 0, 0, 0, 64, 0];
    message.extend(ROUTER_LIFETIME_S.to_be_bytes());
    message.extend([0; 8]);
    message.extend([1, 1]);
    message.extend(GATEWAY_LINK_LAYER);
    message.extend([5, 1, 0, 0]);
    message.extend(u32::from(mtu).to_be_bytes());
    message.extend([3, 4, prefix.len(), AUTONOMOUS]);
    message.extend(PREFIX_LIFETIME_S.to_be_bytes());
    message.extend(PREFIX_LIFETIME_S.to_be_bytes());
    message.extend([0; 4]);
    message.extend(prefix.address().octets());
    let servers = dns.iter().filter_map(|server| match server {
        IpAddr::V6(server) => Some(server.octets()),
        IpAddr::V4(_) => None,
    });
    let servers: Vec<_> = servers.collect();
    if !servers.is_empty() {
        message.extend([25, 1 + 2 * servers.len() as u8, 0, 0]);
        message.extend(u32::from(ROUTER_LIFETIME_S).to_be_bytes());
        message.extend(servers.concat());
    }
    message
}

/// The router of one guest's link.
#[derive(Debug)]
pub(crate) struct Router {
    socket: RawSocket,
    index: u32,
    message: Vec<u8>,
}

impl Router {
    pub(crate) fn open(index: u32, prefix: Ipv6Prefix, mtu: u16, dns: &[IpAddr]) -> io::Result<Self> {
        let socket = RawSocket::open(ICMPV6, GATEWAY_LINK_LOCAL, index)?;
        socket.keep_on_link()?;
        Ok(Self { socket, index, message: advertisement(prefix, mtu, dns) })
    }

    /// Advertises now.
    pub(crate) fn advertise(&self) {
        if let Err(error) = self.socket.send(&self.message, ALL_NODES, self.index) {
            tracing::debug!("an advertisement on interface {} was lost: {error}", self.index);
        }
    }

    /// Advertises now and again, and when the guest asks. Ends only when the socket is gone.
    pub(crate) async fn run(self: std::sync::Arc<Self>) {
        let mut buffer = [0; 128];
        let mut ticks = tokio::time::interval(INTERVAL);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.advertise(),
                received = self.socket.receive(&mut buffer) => match received {
                    Ok((len, _)) if len >= 8 && buffer[0] == ROUTER_SOLICITATION => self.advertise(),
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!("interface {} is not advertised to any more: {error}", self.index);
                        return;
                    }
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advertisement_says_what_the_guest_needs() {
        let prefix = Ipv6Prefix::new("2001:db8:a::".parse().unwrap(), 64).unwrap();
        let message = advertisement(prefix, 1452, &["192.0.2.53".parse().unwrap()]);
        assert_eq!(message.len(), 16 + 8 + 8 + 32);
        assert_eq!(message[16..24], [1, 1, 0, 0, 0x5e, 0, 0x52, 0x13]);
        assert_eq!(message[24..32], [5, 1, 0, 0, 0, 0, 0x05, 0xac]);
        assert_eq!(message[32..36], [3, 4, 64, 0x40]);
        assert_eq!(message[48..], "2001:db8:a::".parse::<Ipv6Addr>().unwrap().octets());
        let servers: [Ipv6Addr; 2] = ["2001:db8::53".parse().unwrap(), "2001:db8::54".parse().unwrap()];
        let more = advertisement(prefix, 1452, &servers.map(IpAddr::V6));
        assert_eq!(more[..64], message);
        assert_eq!(more[64..72], [25, 5, 0, 0, 0, 0, 0x07, 0x08]);
        assert_eq!(more[72..], servers.map(|server| server.octets()).concat());
    }
}
