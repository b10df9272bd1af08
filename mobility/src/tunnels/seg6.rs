//! Tunnels by segment routing (RFC 8986): a route with one segment encapsulates (H.Encaps.Red, which with one segment leaves
//! the routing header out), another decapsulates (End.DT6). On the wire that is IPv6 in IPv6, as every other end of a tunnel
//! makes and takes it.
//!
//! Each tunnel is two joined interfaces. Packets are routed into the outer one, which knows how long they may be; behind the
//! inner one they are encapsulated. What comes from the peer is decapsulated and sent out by the inner one, so it comes in by
//! the outer one.
//!
//! ```text
//! rule    from inner, of our own address: main      what is encapsulated already
//! rule    from inner: table Into                    default, encapsulated to the peer's address for tunnels
//! rule    from the peer to our address for tunnels: table OutOf
//!                                                   that address: decapsulated, looked up in table Decapsulated
//! table Decapsulated                                default, by inner
//! ```
//!
//! A route takes packets for an address that is not the host's own. So it needs one for tunnels alone: on the interface of
//! the agent's own address, for neighbours to find it there, and not among the host's local addresses.

use std::net::Ipv6Addr;

use futures_util::future::BoxFuture;
use mobility_proto::wire::Ipv6Prefix;
use rtnetlink::LinkVeth;

use super::backend::{Backend, Own};
use super::tunnel_source::TunnelSource;
use crate::data_plane::{DataPlane, Peer};
use crate::error::{AgentError, LinkError, opening};
use crate::links::{Links, Remembered, Table, Tunnel, Way, everything, inner_name};

#[derive(Debug)]
pub(super) struct Seg6 {
    links: Links,
    own: Ipv6Addr,
    user_plane: Ipv6Addr,
}

impl Seg6 {
    pub(super) async fn open(links: &Links, own: &Own) -> Result<Self, AgentError> {
        let user_plane = own.user_plane.ok_or(AgentError::NoUserPlane)?;
        let mut source = TunnelSource::open().map_err(opening("segment routing in the kernel"))?;
        let before = source.get().map_err(opening("the source address of segment routing"))?;
        if !before.is_unspecified() && before != own.address {
            return Err(AgentError::TunnelSource(before));
        }
        links.try_segments(own.address, user_plane).await?;
        links.add_tunnel_address(own.address, user_plane).await?;
        source.set(own.address).map_err(opening("the source address of segment routing"))?;
        Ok(Self { links: links.clone(), own: own.address, user_plane })
    }
}

impl Backend for Seg6 {
    fn plane(&self) -> DataPlane {
        DataPlane::Seg6
    }

    fn user_plane(&self) -> Option<Ipv6Addr> {
        Some(self.user_plane)
    }

    fn make<'a>(&'a self, name: &'a str, _: Peer) -> BoxFuture<'a, Result<bool, LinkError>> {
        Box::pin(self.links.make(LinkVeth::new(name, &inner_name(name)).build()))
    }

    fn has_store(&self) -> bool {
        true
    }

    fn equip<'a>(&'a self, remembered: &'a Remembered) -> BoxFuture<'a, Result<Tunnel, LinkError>> {
        Box::pin(async move {
            let tunnel = self.links.set_tunnel(remembered).await?;
            self.links.set_joined(&remembered.name).await?;
            Ok(tunnel)
        })
    }

    fn fit_out<'a>(&'a self, remembered: &'a Remembered) -> BoxFuture<'a, Result<Tunnel, LinkError>> {
        Box::pin(async move {
            let tunnel = self.equip(remembered).await?;
            let Remembered { name, peer, .. } = remembered;
            let inner = self.links.index(&inner_name(name)).await?;
            let all = everything();
            self.links.encapsulate(tunnel.table(Table::Into), all, peer.user_plane, inner).await?;
            let into = tunnel.table(Table::Decapsulated);
            let end = Ipv6Prefix::new(self.user_plane, 128).expect("128 is a length");
            self.links.decapsulate(tunnel.table(Table::OutOf), end, into, inner).await?;
            let inner_end = Tunnel { index: inner, is_joined: true };
            self.links.route(into, all, Way::Tunnel(inner_end)).await?;
            self.links
                .segment_rules(tunnel, &inner_name(name), self.own, peer.address, self.user_plane)
                .await?;
            Ok(tunnel)
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<(), LinkError>> {
        Box::pin(async {
            let set = TunnelSource::open().and_then(|mut source| source.set(Ipv6Addr::UNSPECIFIED));
            if let Err(error) = set {
                tracing::warn!("the source address of segment routing stays: {error}");
            }
            self.links.remove_tunnel_address(self.user_plane).await
        })
    }
}
