//! Tunnels that are interfaces of the kernel's `ip6tnl` (RFC 2473), one for each peer. Between own addresses: what comes from
//! a peer comes to this program's socket as well, which leaves it to the kernel. And since the kernel takes it by its addresses
//! alone, guests' links have to be filtered, for which it needs `cls_u32` and `act_gact` too.

use std::net::Ipv6Addr;

use futures_util::future::BoxFuture;
use rtnetlink::LinkIp6Tnl;
use rtnetlink::packet_route::IpProtocol;
use rtnetlink::packet_route::link::Ip6TunnelFlags;

use super::backend::{Backend, Own, STEM_BYTES};
use crate::data_plane::{DataPlane, Peer};
use crate::error::LinkError;
use crate::links::{Links, Remembered, Tunnel};

/// Documentation has addresses that no peer has (RFC 6666: packets to this one are discarded).
const NOBODY: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1);
const HOP_LIMIT: u8 = 64;

#[derive(Debug)]
pub(super) struct Ip6tnl {
    links: Links,
    own: Own,
}

impl Ip6tnl {
    /// Tries whether the kernel has them.
    pub(super) async fn open(links: &Links, own: &Own) -> Result<Self, LinkError> {
        let ip6tnl = Self { links: links.clone(), own: own.clone() };
        let peer = Peer { address: NOBODY, user_plane: NOBODY };
        let name = format!("{}.try", own.interface.chars().take(STEM_BYTES).collect::<String>());
        ip6tnl.interface(&name, peer).await?;
        let trial = Remembered { name, plane: DataPlane::Ip6tnl, peer };
        let tunnel = links.set_tunnel(&trial).await?;
        let filtered = links.close_doorway(tunnel.index, NOBODY).await;
        links.remove_tunnel(tunnel).await.and(filtered)?;
        Ok(ip6tnl)
    }

    async fn interface(&self, name: &str, peer: Peer) -> Result<bool, LinkError> {
        let link = LinkIp6Tnl::new(name)
            .local(self.own.address)
            .remote(peer.user_plane)
            .protocol(IpProtocol::Ipv6)
            .ttl(HOP_LIMIT)
            .set_flag(Ip6TunnelFlags::IgnEncapLimit, true);
        self.links.make(link.build()).await
    }
}

impl Backend for Ip6tnl {
    fn plane(&self) -> DataPlane {
        DataPlane::Ip6tnl
    }

    fn make<'a>(&'a self, name: &'a str, peer: Peer) -> BoxFuture<'a, Result<bool, LinkError>> {
        Box::pin(self.interface(name, peer))
    }

    fn equip<'a>(&'a self, remembered: &'a Remembered) -> BoxFuture<'a, Result<Tunnel, LinkError>> {
        Box::pin(self.links.set_tunnel(remembered))
    }

    fn close(&self) -> BoxFuture<'_, Result<(), LinkError>> {
        Box::pin(async { Ok(()) })
    }
}
