//! Where a mobile node is: which of the routers that it hears is the one of its link (RFC 6275 section 11.5.1). A state
//! machine on virtual time.
//!
//! A link whose carrier has come back may be another one, so the first router that is heard then is taken, the same or not;
//! routers are asked to speak at once. A new router that is heard without that may have come beside the present one or in
//! its place: the present one is asked whether it is still there, and left when it is silent. So a node among several
//! routers stays with one.
//!
//! As long as no router is heard since the link came, there may be a link that has IPv4 only.
//!
//! It makes no address and sends nothing itself.

use std::collections::VecDeque;
use std::net::Ipv6Addr;
use std::time::Duration;

use crate::discovery::{Heard, Router};

/// After how long routers are asked again, the first time; each further time doubles it. A switch may not pass anything on
/// in the first moment.
const FIRST_SOLICITATION: Duration = Duration::from_millis(50);
const LONGEST_SOLICITATION: Duration = Duration::from_secs(32);
/// How long a router has to be heard before IPv4 is tried: it is asked twice within that time.
const FIRST_IPV4: Duration = Duration::from_millis(150);
/// How often it is tried while none is heard; addresses come and go there without that the link does.
const NEXT_IPV4: Duration = Duration::from_millis(250);
/// How long the present router has to answer that it is still there: many times what a neighbour takes. One that is slower
/// is left, and nothing is lost but an update.
const PROBE: Duration = Duration::from_millis(30);
/// How often it is asked within that time.
const PROBES: u32 = 2;

/// What is to be done, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Ask all routers to advertise.
    SolicitRouters,
    /// Ask whether this router is still there.
    SolicitNeighbor(Ipv6Addr),
    /// This is the node's router from now on, or again.
    Settle(Router),
    /// No router is heard: see whether there is a way over IPv4, and whether it is still the same.
    TryIpv4,
}

/// A question to the present router.
#[derive(Debug)]
struct Probe {
    /// Whoever is to take its place.
    candidate: Router,
    asked: u32,
    next: Duration,
}

/// Where the node is.
#[derive(Debug, Default)]
pub struct Movement {
    present: Option<Router>,
    /// When routers are asked again, and after how long once more; while nothing is known since the link came.
    solicit: Option<(Duration, Duration)>,
    /// When IPv4 is tried next; while nothing is known since the link came.
    ipv4: Option<Duration>,
    probe: Option<Probe>,
    outputs: VecDeque<Output>,
}

impl Movement {
    /// The link is there, for the first time or again.
    pub fn link_up(&mut self, now: Duration) {
        self.solicit = Some((now, FIRST_SOLICITATION));
        self.ipv4 = Some(now + FIRST_IPV4);
        self.probe = None;
        self.handle_timeout(now);
    }

    /// Something was heard on the link.
    pub fn heard(&mut self, now: Duration, heard: Heard) {
        let is_present = |address| self.present.is_some_and(|present| present.address == address);
        match heard {
            Heard::Neighbor(address) if is_present(address) => self.probe = None,
            Heard::Neighbor(_) => {}
            Heard::Router(router) if self.solicit.is_some() || self.present.is_none() => self.settle(router),
            Heard::Router(router) if self.present == Some(router) => self.probe = None,
            // The router itself says that its link has another prefix now.
            Heard::Router(router) if is_present(router.address) => self.settle(router),
            Heard::Router(candidate) => match &mut self.probe {
                Some(probe) => probe.candidate = candidate,
                None => self.probe = Some(Probe { candidate, asked: 0, next: now }),
            },
        }
        self.handle_timeout(now);
    }

    fn settle(&mut self, router: Router) {
        (self.present, self.solicit, self.ipv4, self.probe) = (Some(router), None, None, None);
        self.outputs.push_back(Output::Settle(router));
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Duration) {
        if let Some((next, wait)) = self.solicit
            && next <= now
        {
            self.outputs.push_back(Output::SolicitRouters);
            self.solicit = Some((now + wait, (wait * 2).min(LONGEST_SOLICITATION)));
        }
        if let Some(next) = self.ipv4
            && next <= now
        {
            self.outputs.push_back(Output::TryIpv4);
            self.ipv4 = Some(now + NEXT_IPV4);
        }
        let Some(probe) = self.probe.as_mut().filter(|probe| probe.next <= now) else { return };
        match self.present.filter(|_| probe.asked < PROBES) {
            Some(present) => {
                probe.asked += 1;
                probe.next = now + PROBE / PROBES;
                self.outputs.push_back(Output::SolicitNeighbor(present.address));
            }
            None => {
                let candidate = probe.candidate;
                self.settle(candidate);
            }
        }
    }

    /// What is to be done next, if anything.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called, if nothing comes before.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let solicit = self.solicit.map(|(next, _)| next);
        solicit.into_iter().chain(self.ipv4).chain(self.probe.as_ref().map(|probe| probe.next)).min()
    }
}

#[cfg(test)]
mod tests;
