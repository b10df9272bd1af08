//! The ways of guests' packets through a gateway's host: what the kernel carries, and what passes through this program. When
//! which is right stands in [`crate::tunnels`].

use std::collections::{BTreeMap, HashSet};
use std::net::Ipv6Addr;
use std::time::Duration;

use mobility_proto::gateway::Carrier;
use mobility_proto::wire::Ipv6Prefix;
use tokio::time::Instant;

use super::Link;
use crate::agent::AgentError;
use crate::links::{FROM_ANCHOR, FROM_GUESTS, LinkError, Links, TO_GUESTS, Way, everything};
use crate::plane::Plane;
use crate::tunnels::{DataPlane, Own, Peer, Tunnels};

/// For how long no packet may have come to this program before the kernel takes over: many times what it takes to tell it.
const QUIET: Duration = Duration::from_millis(2);
/// For how long no two packets may have come closer together than that: in a fast stream such a pause is a busy machine's, at
/// whose end packets come all at once, while the kernel takes its time to be told.
const CALM: Duration = Duration::from_millis(100);
/// For how long calm is waited for; then as long again for quiet alone.
const IMPATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked for when no packet comes.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Who carries what comes for a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carried {
    Kernel,
    Program,
    /// This program, though the kernel may since then.
    ProgramSince(Instant),
}

#[derive(Debug)]
pub(super) struct Ways {
    links: Links,
    tunnels: Tunnels,
    /// The TUN interface.
    program: (String, u32),
    carried: BTreeMap<String, (Ipv6Prefix, Carried)>,
    pace: Pace,
}

/// How packets come to this program.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// When one came last.
    last: Instant,
    /// When one came last that was close behind another.
    rushed: Instant,
}

impl Pace {
    fn came(&mut self, now: Instant) {
        if now - self.last < QUIET {
            self.rushed = now;
        }
        self.last = now;
    }

    /// Whether they come so that the kernel, which may since `since`, can take over before the next; `waiting`, if one has
    /// come that was not taken yet.
    fn allows(self, now: Instant, since: Instant, waiting: bool) -> bool {
        let waited = now - since;
        let is_calm = now - self.rushed >= CALM || waited >= IMPATIENCE;
        let is_quiet = now - self.last >= QUIET && !waiting;
        is_calm && is_quiet || waited >= 2 * IMPATIENCE
    }
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
        let (carried, now) = (BTreeMap::new(), Instant::now());
        let pace = Pace { last: now, rushed: now };
        let mut ways = Self { links, tunnels, program, carried, pace };
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
        let (way, carried) = match (by, carried) {
            _ if !self.is_in_kernel() => return Ok(()),
            (Carrier::Anyone, Some(Carried::Kernel | Carried::ProgramSince(_)))
            | (Carrier::Gateway, Some(Carried::Program))
            | (Carrier::Nobody, None) => return Ok(()),
            (Carrier::Anyone, Some(Carried::Program)) => (None, Carried::ProgramSince(Instant::now())),
            (Carrier::Gateway, Some(Carried::ProgramSince(_))) => (None, Carried::Program),
            (Carrier::Anyone, None) => (Some(index), Carried::Kernel),
            (Carrier::Gateway, _) => (Some(self.program.1), Carried::Program),
            (Carrier::Nobody, Some(_)) => return self.release(node).await,
        };
        if let Some(index) = way {
            self.links.route(FROM_ANCHOR, link.prefix, Way::Interface(index)).await?;
        }
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

    /// A packet has come to this program.
    pub(super) fn came(&mut self) {
        self.pace.came(Instant::now());
    }

    /// When the kernel may take over from this program.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let waits = self.carried.values().any(|(_, carried)| matches!(carried, Carried::ProgramSince(_)));
        waits.then(|| Instant::now() + LOOK_EVERY)
    }

    /// The guests that the kernel takes over now, if any.
    pub(super) fn due(&self, plane: &Plane) -> Vec<String> {
        let since = |(_, carried): &(Ipv6Prefix, Carried)| match carried {
            Carried::ProgramSince(since) => Some(*since),
            _ => None,
        };
        let Some(first) = self.carried.values().filter_map(since).min() else { return Vec::new() };
        if !self.pace.allows(Instant::now(), first, !plane.is_quiet()) {
            return Vec::new();
        }
        let due = self.carried.iter().filter(|(_, carried)| since(carried).is_some());
        due.map(|(node, _)| node.clone()).collect()
    }

    /// The kernel takes over what comes for a guest.
    pub(super) async fn take_over(&mut self, node: &str, link: &Link, index: u32) -> Result<(), LinkError> {
        self.links.route(FROM_ANCHOR, link.prefix, Way::Interface(index)).await?;
        self.carried.insert(node.to_owned(), (link.prefix, Carried::Kernel));
        Ok(())
    }

    /// Removes what a crash has left for others than the guests with these links.
    pub(super) async fn keep_only<'a>(
        &self,
        guests: impl Iterator<Item = &'a Link>,
    ) -> Result<(), LinkError> {
        let (mut keep, mut addresses) = (self.tunnels.names(), HashSet::new());
        keep.insert(self.program.0.clone());
        for link in guests {
            keep.insert(link.interface.clone());
            addresses.extend(link.ipv4);
        }
        self.links.clear_guests_but(&keep, &addresses).await
    }

    /// Takes everything back.
    pub(super) async fn end(&mut self) -> Result<(), LinkError> {
        let ended = self.tunnels.end().await;
        self.links.clear_gateway().await.and(ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When the kernel takes over a stream whose packets come at these times, in microseconds after it may for the first time.
    fn taken_over(packets: impl Iterator<Item = u64>) -> u64 {
        let since = Instant::now() + Duration::from_secs(1);
        let at = |us: u64| since + Duration::from_micros(us);
        let mut pace = Pace { last: since, rushed: since };
        let mut packets = packets.peekable();
        (0..)
            .step_by(1000)
            .find(|now| {
                while let Some(came) = packets.next_if(|came| came <= now) {
                    pace.came(at(came));
                }
                pace.allows(at(*now), since, false)
            })
            .unwrap_or(u64::MAX)
    }

    const MS: u64 = 1000;

    #[test]
    fn a_pause_in_a_fast_stream_is_not_taken_for_its_end() {
        // Five packets a millisecond; each 50 ms nothing for 6, and then what has waited at once.
        let at = |number: u64| match number * 200 {
            us if us % (50 * MS) < 6 * MS => us - us % (50 * MS) + 6 * MS,
            us => us,
        };
        let taken = taken_over((0..).map(at));
        assert!((5000 * MS..5100 * MS).contains(&taken), "after {taken} us");
        assert_eq!(taken_over((0..).map(|number| number * 200)), 10_000 * MS, "no pause at all");
    }

    #[test]
    fn the_kernel_takes_over_a_slow_stream_between_two_packets() {
        assert_eq!(taken_over(std::iter::empty()), 100 * MS);
        // Two at once at first, then one each 20 ms.
        let taken = taken_over([0, 500].into_iter().chain((1..).map(|number| number * 20 * MS)));
        assert_eq!(taken, 102 * MS);
    }
}
