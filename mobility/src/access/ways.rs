//! The ways of guests' packets through a gateway's host: what the kernel carries, and what passes through this program. When
//! which is right stands in [`crate::tunnels`].

use std::collections::{BTreeMap, HashSet};
use std::net::Ipv6Addr;
use std::time::Duration;

use mobility_proto::gateway::Carrier;
use mobility_proto::wire::{Ipv4Interface, Ipv6Prefix};
use tokio::time::Instant;

use super::link::Link;
use crate::data_plane::{DataPlane, Peer};
use crate::error::AgentError;
use crate::error::LinkError;
use crate::links::{FROM_ANCHOR, FROM_GUESTS, Links, TO_GUESTS, Way, everything};
use crate::plane::{self, Plane};
use crate::tunnels::{Own, Tunnels};

/// For how long the kernel is left alone with packets that it was about to give to this program.
const UNDER_WAY: Duration = Duration::from_millis(2);
/// How often it is looked whether it is time when no packet comes.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Who carries what comes for a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carried {
    Kernel,
    Program,
    /// The kernel, once this program has passed on what it had been given by then, which was so many packets in all.
    Held {
        since: Instant,
        came: u64,
    },
}

#[derive(Debug)]
pub(super) struct Ways {
    links: Links,
    tunnels: Tunnels,
    /// The TUN interface.
    program: (String, u32),
    carried: BTreeMap<String, (Ipv6Prefix, Carried)>,
    /// How many packets the kernel has given to this program.
    came: u64,
}

impl Ways {
    /// Leads guests' packets to the home agent at `anchor`. On a data plane of the kernel what a crash has left stays as it is.
    pub(super) async fn start(
        links: Links,
        tunnels: Tunnels,
        own: &Own,
        index: u32,
        anchor: Ipv6Addr,
    ) -> Result<Self, AgentError> {
        let program = (own.interface.clone(), index);
        let mut ways = Self { links, tunnels, program, carried: BTreeMap::new(), came: 0 };
        if ways.is_in_kernel() {
            ways.links.route(FROM_ANCHOR, everything(), Way::Nowhere).await?;
            let peer = Peer { address: anchor, user_plane: anchor };
            ways.reach(ways.tunnels.before(anchor).unwrap_or(peer)).await?;
        } else {
            ways.links.clear_gateway().await?;
            ways.links.route(FROM_GUESTS, everything(), Way::Interface(index)).await?;
        }
        ways.links.look_up(&ways.program.0, TO_GUESTS).await?;
        Ok(ways)
    }

    /// Whether the kernel carries packets at all.
    pub(super) fn is_in_kernel(&self) -> bool {
        self.plane() != DataPlane::Tun
    }

    pub(super) fn plane(&self) -> DataPlane {
        self.tunnels.plane()
    }

    pub(super) fn taken_twice(&self) -> Vec<Ipv6Addr> {
        self.tunnels.taken_twice()
    }

    /// No guest speaks for the home agent: where the kernel would take its word for it, its link is filtered.
    pub(super) async fn close_doorway(&self, index: u32, anchor: Ipv6Addr) -> Result<(), LinkError> {
        match self.plane() {
            DataPlane::Ip6tnl => self.links.close_doorway(index, anchor).await,
            DataPlane::Seg6 | DataPlane::Tun => Ok(()),
        }
    }

    /// The home agent takes packets there: guests' go there from now on.
    pub(super) async fn reach(&mut self, anchor: Peer) -> Result<(), LinkError> {
        let Some((tunnel, name)) = self.tunnels.open(anchor).await? else { return Ok(()) };
        self.links.look_up(name, FROM_ANCHOR).await?;
        self.links.route(FROM_GUESTS, everything(), Way::Tunnel(tunnel)).await?;
        self.tunnels.clear_but(|peer| *peer == anchor).await
    }

    /// Guests' IPv4 packets come to this program, and go to guests from there: always, for what tunnels of the kernel carry is
    /// IPv6.
    pub(super) async fn carry_ipv4(&self) -> Result<(), AgentError> {
        let (name, index) = &self.program;
        self.links.carry_ipv4((name, *index)).await
    }

    /// Has what comes for a guest carried by whoever may; `index` is its interface's.
    pub(super) async fn assign(
        &mut self,
        node: &str,
        link: &Link,
        index: u32,
        by: Carrier,
    ) -> Result<(), LinkError> {
        let carried = self.carried.get(node).map(|(_, carried)| *carried);
        let carried = match (by, carried) {
            _ if !self.is_in_kernel() => return Ok(()),
            (Carrier::Anyone, Some(Carried::Kernel | Carried::Held { .. }))
            | (Carrier::Gateway, Some(Carried::Program))
            | (Carrier::Nobody, None) => return Ok(()),
            (Carrier::Nobody, Some(_)) => return self.release(node).await,
            // The guest gets what this program has, first.
            (Carrier::Anyone, Some(Carried::Program)) => {
                self.links.hold(FROM_ANCHOR, link.prefix, (&link.interface, index)).await?;
                Carried::Held { since: Instant::now(), came: self.came }
            }
            (Carrier::Anyone, None) => {
                self.links.route(FROM_ANCHOR, link.prefix, Way::Interface(index)).await?;
                self.links.wait_no_more(index).await;
                Carried::Kernel
            }
            (Carrier::Gateway, carried) => {
                if let Some(Carried::Held { .. }) = carried {
                    self.links
                        .let_go(FROM_ANCHOR, link.prefix, (&link.interface, index), link.link_layer)
                        .await?;
                }
                self.links.route(FROM_ANCHOR, link.prefix, Way::Interface(self.program.1)).await?;
                Carried::Program
            }
        };
        self.carried.insert(node.to_owned(), (link.prefix, carried));
        Ok(())
    }

    /// What comes for a guest, if anything is done with it, is carried by nobody from now on.
    pub(super) async fn release(&mut self, node: &str) -> Result<(), LinkError> {
        match self.carried.remove(node) {
            Some((prefix, _)) => self.links.unroute(FROM_ANCHOR, prefix).await,
            None => Ok(()),
        }
    }

    /// A guest's link is taken back, or is another from now on. What this program has to do with its packets, it still does.
    pub(super) async fn detach(&mut self, node: &str) -> Result<(), LinkError> {
        match self.carried.get(node) {
            Some((_, Carried::Program)) => Ok(()),
            _ => self.release(node).await,
        }
    }

    /// All whose packets are carried.
    pub(super) fn nodes(&self) -> Vec<String> {
        self.carried.keys().cloned().collect()
    }

    /// The kernel has given this program a packet.
    pub(super) fn came(&mut self) {
        self.came += 1;
    }

    /// When it is to be looked whether the kernel can take over from this program.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let waits = self.carried.values().any(|(_, carried)| matches!(carried, Carried::Held { .. }));
        waits.then(|| Instant::now() + LOOK_EVERY)
    }

    /// The guests that the kernel takes over now, if any: they have all that this program had been given for them.
    pub(super) fn due(&self, plane: &Plane) -> Vec<String> {
        let is_due = |(_, carried): &(Ipv6Prefix, Carried)| match carried {
            Carried::Held { since, came } => {
                // Of a stream for another guest there may always be something.
                let have_all_come = || plane.is_quiet() || self.came - came > u64::from(plane::QUEUE);
                since.elapsed() >= UNDER_WAY && have_all_come()
            }
            Carried::Kernel | Carried::Program => false,
        };
        let due = self.carried.iter().filter(|(_, carried)| is_due(carried));
        due.map(|(node, _)| node.clone()).collect()
    }

    /// The kernel takes over what comes for a guest, with what has waited for that.
    pub(super) async fn take_over(&mut self, node: &str, link: &Link, index: u32) -> Result<(), LinkError> {
        self.carried.insert(node.to_owned(), (link.prefix, Carried::Kernel));
        self.links.let_go(FROM_ANCHOR, link.prefix, (&link.interface, index), link.link_layer).await
    }

    /// Removes what a crash has left for others than the guests with these links.
    pub(super) async fn keep_only<'a>(
        &self,
        guests: impl Iterator<Item = &'a Link>,
    ) -> Result<(), LinkError> {
        let (mut keep, mut prefixes) = (self.tunnels.names(), HashSet::new());
        keep.insert(self.program.0.clone());
        for link in guests {
            keep.insert(link.interface.clone());
            prefixes.insert(link.prefix);
            prefixes.extend(link.ipv4.map(Ipv4Interface::host));
        }
        self.links.clear_guests_but(&keep, &prefixes).await
    }

    /// Takes everything back.
    pub(super) async fn end(&mut self) -> Result<(), LinkError> {
        let ended = self.tunnels.end().await;
        self.links.clear_gateway().await.and(ended)
    }
}
