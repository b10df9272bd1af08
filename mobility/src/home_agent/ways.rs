//! The ways of mobile nodes' packets through a home agent's host: a route into a tunnel for each that is bound at a gateway,
//! and by each tunnel only what comes from those that may be there. Others' packets pass through this program. When which is
//! right stands in [`crate::tunnels`].

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::Ipv6Addr;

use mobility_proto::anchor::Place;
use mobility_proto::wire::Ipv6Prefix;

use crate::data_plane::{DataPlane, Peer};
use crate::error::LinkError;
use crate::links::{Links, MAIN, Table, Tunnel, Way};
use crate::tunnels::Tunnels;

#[derive(Debug)]
pub(super) struct Ways {
    links: Links,
    tunnels: Tunnels,
    /// Those of which mobile nodes have a part.
    prefixes: Vec<Ipv6Prefix>,
    /// The TUN interface.
    program: u32,
    /// By which tunnels a prefix's packets may come.
    allowed: HashMap<Ipv6Prefix, BTreeSet<Peer>>,
}

impl Ways {
    /// Leads what is for the prefixes through this program, but for what a crash has left in the kernel.
    pub(super) async fn start(
        links: Links,
        tunnels: Tunnels,
        prefixes: &[Ipv6Prefix],
        program: u32,
    ) -> Result<Self, LinkError> {
        for prefix in prefixes {
            links.route(MAIN, *prefix, Way::Interface(program)).await?;
        }
        Ok(Self { links, tunnels, prefixes: prefixes.to_vec(), program, allowed: HashMap::new() })
    }

    pub(super) fn plane(&self) -> DataPlane {
        self.tunnels.plane()
    }

    /// Whether the kernel carries packets at all.
    pub(super) fn is_in_kernel(&self) -> bool {
        self.plane() != DataPlane::Tun
    }

    /// Whether the kernel carries packets of this prefix. Those of IPv4 pass through this program, which judges their sources: a
    /// routing table of the kernel does that for IPv6 only.
    fn is_for_kernel(&self, prefix: Ipv6Prefix) -> bool {
        self.is_in_kernel() && prefix.as_ipv4().is_none()
    }

    pub(super) fn taken_twice(&self) -> Vec<Ipv6Addr> {
        self.tunnels.taken_twice()
    }

    /// What is for the prefix goes there from now on.
    pub(super) async fn switch(&mut self, prefix: Ipv6Prefix, place: Place) -> Result<(), LinkError> {
        if !self.is_for_kernel(prefix) {
            return Ok(());
        }
        let tunnel = self.tunnel_to(place).await.unwrap_or_else(|error| {
            tracing::warn!("{error}; what is for {prefix} passes through this program");
            None
        });
        let way = tunnel.map_or(Way::Interface(self.program), |(_, tunnel)| Way::Tunnel(tunnel));
        self.links.route(MAIN, prefix, way).await
    }

    /// What is for the prefix goes nowhere.
    pub(super) async fn remove(&self, prefix: Ipv6Prefix) -> Result<(), LinkError> {
        match self.prefixes.contains(&prefix) {
            _ if !self.is_for_kernel(prefix) => Ok(()),
            true => self.links.route(MAIN, prefix, Way::Interface(self.program)).await,
            false => self.links.unroute(MAIN, prefix).await,
        }
    }

    /// What comes from the prefix may come from these places, and from no other.
    pub(super) async fn take_from(&mut self, prefix: Ipv6Prefix, places: &[Place]) -> Result<(), LinkError> {
        if !self.is_for_kernel(prefix) {
            return Ok(());
        }
        let mut allowed = BTreeSet::new();
        for place in places {
            if let Some((peer, tunnel)) = self.tunnel_to(*place).await? {
                self.links.allow(tunnel, prefix, true).await?;
                allowed.insert(peer);
            }
        }
        let before = if allowed.is_empty() {
            self.allowed.remove(&prefix)
        } else {
            self.allowed.insert(prefix, allowed.clone())
        };
        for peer in before.unwrap_or_default().difference(&allowed) {
            if let Some(tunnel) = self.tunnels.get(*peer) {
                self.links.allow(tunnel, prefix, false).await?;
            }
        }
        Ok(())
    }

    /// The tunnel of the kernel to a gateway. A mobile node has none: there may be very many.
    async fn tunnel_to(&mut self, place: Place) -> Result<Option<(Peer, Tunnel)>, LinkError> {
        let Place { care_of, user_plane: Some(user_plane), .. } = place else { return Ok(None) };
        let peer = Peer { address: care_of, user_plane };
        if let Some(tunnel) = self.tunnels.get(peer) {
            return Ok(Some((peer, tunnel)));
        }
        let Some((tunnel, name)) = self.tunnels.open(peer).await? else { return Ok(None) };
        self.links.guard(tunnel, name).await?;
        Ok(Some((peer, tunnel)))
    }

    /// Removes what a crash has left for others than these, which are bound.
    pub(super) async fn keep_only(&mut self, bound: &HashSet<Ipv6Prefix>) -> Result<(), LinkError> {
        let used: BTreeSet<Peer> = self.allowed.values().flatten().copied().collect();
        self.tunnels.clear_but(|peer| used.contains(peer)).await?;
        let mut allowed = HashSet::new();
        for (prefix, peers) in &self.allowed {
            let tunnels = peers.iter().filter_map(|peer| self.tunnels.get(*peer));
            allowed.extend(tunnels.map(|tunnel| (tunnel.table(Table::Sources), *prefix)));
        }
        self.links.forbid_but(&allowed).await?;
        let kept = |prefix: Ipv6Prefix| bound.contains(&prefix) || self.prefixes.contains(&prefix);
        self.links.unroute_but(kept).await
    }

    /// Takes everything back.
    pub(super) async fn end(&mut self) -> Result<(), LinkError> {
        let ended = self.tunnels.end().await;
        self.links.clear().await.and(ended)
    }
}
