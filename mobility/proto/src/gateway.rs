//! A mobile access gateway (RFC 5213 chapter 6) with the forwarding between gateways of RFC 5949: on a platform, it
//! registers the virtual machines that run there and moves their packets. A state machine on virtual time.
//!
//! ```text
//! serve, expect, remember, forward, arrived,
//! stay, forget                                      what happens to a virtual machine
//! handle_packet                                     signalling that came
//! handle_tunnelled, handle_guest, delivered         packets, from a tunnel, from a virtual machine, and out to it
//! handle_timeout                                    at the time that `deadline` gave
//! poll_output                                       until it is empty
//! ```
//!
//! A move, as the two gateways see it:
//!
//! ```text
//! source   serve .............. forward (paused: HI, packets go on to the target) ........ revoked, lingers, gone
//! target            expect (registers ahead, holds packets) ... arrived (delivers, registers) ... end marker
//! ```
//!
//! Packets that come the new way wait at the target until the anchor's end marker has come the old way, or for
//! [`Config::settle`], so that none overtakes another. What is held is bounded; the oldest goes first, and is counted.
//!
//! It never decides where a virtual machine runs: its owner says so, and the anchor judges by the ownership epoch.

mod buffer;
mod config;
mod heartbeat;
mod node;
mod output;
mod registration;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use crate::auth::Covered;
use crate::inner::{Inner, is_end_marker};
use crate::received::{Received, Refusal};
use crate::wire::*;
pub use config::{Config, Grant};
use heartbeat::{Beat, Heard, Heartbeat};
use node::{LINGER, Node, Place};
pub use output::{Carrier, Happened, Output};
use registration::{Answered, Wanted};

/// How many packets were not passed on, and why.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped {
    /// For or from nobody who is here, or from where they must not come.
    pub foreign: u64,
    /// The oldest ones, when more had to wait than may.
    pub overflow: u64,
}

/// The gateway.
#[derive(Debug)]
pub struct Gateway {
    config: Config,
    nodes: BTreeMap<Vec<u8>, Node>,
    /// Whose a prefix is, by its lowest address.
    prefixes: BTreeMap<Ipv6Addr, Vec<u8>>,
    heartbeat: Heartbeat,
    dropped: Dropped,
    /// Where the anchor takes tunnelled packets.
    anchor_at: Ipv6Addr,
    outputs: VecDeque<Output>,
}

impl Gateway {
    /// A gateway that serves nobody yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            nodes: BTreeMap::new(),
            prefixes: BTreeMap::new(),
            heartbeat: Heartbeat::default(),
            dropped: Dropped::default(),
            anchor_at: config.anchor,
            outputs: VecDeque::new(),
        }
    }

    /// The virtual machine runs here.
    pub fn serve(&mut self, now: Duration, unix_ns: u64, grant: Grant) {
        let node = grant.node.clone();
        self.insert(now, unix_ns, Node::new(now, grant, Place::Here, Wanted::Active));
        self.outputs.push_back(Output::Advertise { node });
    }

    /// The virtual machine will come from the gateway at `source`. Its packets wait for it from now on.
    pub fn expect(&mut self, now: Duration, unix_ns: u64, grant: Grant, source: Ipv6Addr) {
        let place = Place::Coming { source };
        self.insert(now, unix_ns, Node::new(now, grant, place, Wanted::Transient(self.config.transient)));
    }

    /// The virtual machine will be paused soon, to leave: what is delivered is remembered, until it is known whether it was
    /// still read.
    pub fn remember(&mut self, now: Duration, unix_ns: u64, name: &[u8]) {
        self.change(name, now, unix_ns, |node, _, _| node.remember());
    }

    /// The virtual machine, which stopped at `stopped`, goes to the gateway at `target`, which has been given `grant`: its
    /// packets go there from now on. With [`remember`](Self::remember) those too that were delivered since it stopped, or
    /// hardly before: a few may come twice, none is lost.
    pub fn forward(
        &mut self,
        now: Duration,
        unix_ns: u64,
        grant: Grant,
        target: Ipv6Addr,
        stopped: Duration,
    ) {
        let name = grant.node.clone();
        self.change(&name, now, unix_ns, |node, config, outputs| {
            if node.is_here() {
                node.forward(now, stopped, grant.key, target, config, outputs);
            }
        });
    }

    /// The virtual machine, which was expected, runs here.
    pub fn arrived(&mut self, now: Duration, unix_ns: u64, name: &[u8]) {
        self.change(name, now, unix_ns, |node, config, outputs| {
            let Place::Coming { source } = node.place else { return };
            node.registration.want(now, Wanted::Active);
            outputs.push_back(Output::Advertise { node: node.name().to_vec() });
            outputs.extend(node.old_way.take().into_iter().map(Output::Deliver));
            node.place = Place::Settling { source, until: now + config.settle };
        });
    }

    /// The virtual machine runs on here: the move was given up.
    pub fn stay(&mut self, now: Duration, unix_ns: u64, name: &[u8]) {
        self.change(name, now, unix_ns, |node, _, outputs| node.stay(now, outputs));
    }

    /// The virtual machine does not run here any more, or does not come. Its binding here ends, if it has one.
    pub fn forget(&mut self, now: Duration, unix_ns: u64, name: &[u8]) {
        self.change(name, now, unix_ns, |node, _, _| {
            node.place = Place::Gone;
            node.registration.want(now, Wanted::End);
        });
    }

    /// Takes an IPv6 packet with signalling.
    ///
    /// # Errors
    /// [`Refusal`]: nothing has changed, and nothing is sent.
    pub fn handle_packet(&mut self, now: Duration, unix_ns: u64, packet: &[u8]) -> Result<(), Refusal> {
        let Received { addresses, header, repr, spi } = Received::parse(packet, self.config.address)?;
        let from = addresses.source;
        let (name, node) =
            self.nodes.iter().find(|(_, node)| node.has_key(spi)).ok_or(Refusal::UnknownKey(spi))?;
        // The anchor's own proofs cover the gateway that it writes to; a gateway's cover itself.
        let care_of = if from == self.config.anchor { self.config.address } else { from };
        node.verify(spi, &header, Covered { care_of, peer: node.grant.prefix.address() })?;
        let name = name.clone();
        match repr.message {
            Message::BindingAcknowledgement(told) if from == self.config.anchor => {
                self.learn_anchor(&repr.options);
                self.change(&name, now, unix_ns, |node, _, outputs| {
                    let happened = match node.registration.acknowledged(now, &told) {
                        Answered::Accepted(Wanted::Transient(_)) => Happened::Prepared,
                        Answered::Accepted(Wanted::Active) => Happened::Registered,
                        // A later epoch is registered: its revocation has been lost.
                        Answered::Refused(Status::MAG_NOT_AUTHORIZED) => {
                            return node.revoked(now, outputs);
                        }
                        Answered::Refused(status) => Happened::Refused(status),
                        Answered::Nothing | Answered::Accepted(Wanted::End) => return,
                    };
                    outputs.push_back(Output::Event { node: node.name().to_vec(), happened });
                });
            }
            Message::BindingRevocationIndication { sequence, flags, .. } if from == self.config.anchor => {
                self.change(&name, now, unix_ns, |node, config, outputs| {
                    let message = Message::BindingRevocationAcknowledgement {
                        status: RevocationStatus::SUCCESS,
                        sequence,
                        flags,
                    };
                    node.send(&node.grant.key, config.address, config.anchor, message, Vec::new(), outputs);
                    node.revoked(now, outputs);
                });
            }
            Message::HandoverInitiate { sequence, code, .. } => {
                self.change(&name, now, unix_ns, |node, config, outputs| {
                    node.handover_initiated(from, sequence, code, config, outputs);
                });
            }
            Message::HandoverAcknowledge { sequence, .. } => {
                self.change(&name, now, unix_ns, |node, _, _| node.handover_acknowledged(from, sequence));
            }
            Message::Heartbeat { response: true, unsolicited: false, sequence }
                if from == self.config.anchor =>
            {
                let counter = repr.options.iter().find_map(|option| match option {
                    MobilityOption::RestartCounter(counter) => Some(*counter),
                    _ => None,
                });
                if self.heartbeat.answered(sequence, counter) == Heard::Back {
                    self.outputs.push_back(Output::Anchor { answers: true });
                    self.nodes.values_mut().for_each(|node| node.registration.renew(now));
                }
            }
            _ => return Err(Refusal::Type(repr.message.kind())),
        }
        Ok(())
    }

    /// Takes the packet that came in a tunnel from `from`.
    pub fn handle_tunnelled(&mut self, now: Duration, from: Ipv6Addr, packet: Vec<u8>) {
        let config = self.config;
        let to = Inner::parse(&packet).map(|inner| inner.destination);
        let Some(node) = to.and_then(|to| node_of(&self.prefixes, &mut self.nodes, to)) else {
            self.dropped.foreign += 1;
            return;
        };
        let outputs = &mut self.outputs;
        match node.place {
            Place::Here if from == config.anchor => node.deliver(now, packet, &config, outputs),
            Place::Leaving { .. } if from == config.anchor => node.send_on(packet, &config, outputs),
            Place::Coming { source } if from == source => {
                self.dropped.overflow += node.hold_old(packet, config.buffer_bytes);
            }
            Place::Settling { source, .. } if from == source => {
                if is_end_marker(&packet, config.anchor, node.grant.prefix) {
                    node.settled(now, &config, outputs);
                } else {
                    node.deliver(now, packet, &config, outputs);
                }
            }
            Place::Coming { .. } | Place::Settling { .. } if from == config.anchor => {
                self.dropped.overflow += node.hold_new(packet, config.buffer_bytes);
            }
            // The end of the old way was given up too early, or has overtaken what came before it.
            Place::Here if node.came_of_late_from(from, now) => {
                if is_end_marker(&packet, config.anchor, node.grant.prefix) {
                    node.came_from = None;
                } else {
                    node.came_from = Some((from, now + LINGER));
                    node.deliver(now, packet, &config, outputs);
                }
            }
            _ => self.dropped.foreign += 1,
        }
    }

    /// All packets that were to be delivered are out: only now is it known when a machine could read them.
    pub fn delivered(&mut self, now: Duration) {
        self.nodes.values_mut().for_each(|node| node.delivered(now));
    }

    /// Takes a packet that a virtual machine has sent.
    pub fn handle_guest(&mut self, packet: Vec<u8>) {
        let inner = Inner::parse(&packet);
        // What is at an address for tunnels alone takes IPv6.
        let to = if inner.is_some_and(|inner| inner.is_ipv4()) { self.config.anchor } else { self.anchor_at };
        let node = inner.and_then(|inner| node_of(&self.prefixes, &mut self.nodes, inner.source));
        if node.is_some_and(|node| node.is_here()) {
            self.outputs.push_back(Output::Tunnel { to, packet });
        } else {
            self.dropped.foreign += 1;
        }
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Duration, unix_ns: u64) {
        let is_due = |node: &&Node| node.deadline().is_some_and(|deadline| deadline <= now);
        let due: Vec<_> = self.nodes.values().filter(is_due).map(|node| node.name().to_vec()).collect();
        for name in due {
            self.change(&name, now, unix_ns, |_, _, _| {});
        }
        self.beat(now);
    }

    /// Asks the anchor whether it is there, with the key of a machine that is here.
    fn beat(&mut self, now: Duration) {
        let Some(node) = self.nodes.values().find(|node| node.is_here()) else {
            return self.heartbeat.rest();
        };
        let Some(Beat { sequence, falls_silent }) = self.heartbeat.poll(now) else { return };
        if falls_silent {
            self.outputs.push_back(Output::Anchor { answers: false });
        }
        let message = Message::Heartbeat { response: false, unsolicited: false, sequence };
        let Config { address, anchor, .. } = self.config;
        node.send(&node.grant.key, address, anchor, message, Vec::new(), &mut self.outputs);
    }

    /// What is to be done next, if anything.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called, if nothing comes before.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        self.nodes.values().filter_map(Node::deadline).chain(self.heartbeat.deadline()).min()
    }

    /// Who may carry what comes for a virtual machine.
    #[must_use]
    pub fn carrier(&self, name: &[u8]) -> Carrier {
        self.nodes.get(name).map_or(Carrier::Nobody, Node::carrier)
    }

    /// What was not passed on so far.
    #[must_use]
    pub fn dropped(&self) -> Dropped {
        self.dropped
    }

    fn learn_anchor(&mut self, options: &[MobilityOption]) {
        let at = options.iter().find_map(|option| match option {
            MobilityOption::LmaUserPlaneAddress(IpAddr::V6(address)) => Some(*address),
            _ => None,
        });
        let at = at.unwrap_or(self.config.anchor);
        if at != std::mem::replace(&mut self.anchor_at, at) {
            self.outputs.push_back(Output::AnchorAt(at));
        }
    }

    fn insert(&mut self, now: Duration, unix_ns: u64, node: Node) {
        let name = node.name().to_vec();
        if let Some(before) = self.nodes.get(&name) {
            before.grant.prefixes().for_each(|prefix| drop(self.prefixes.remove(&prefix.address())));
        }
        for prefix in node.grant.prefixes() {
            self.prefixes.insert(prefix.address(), name.clone());
        }
        self.nodes.insert(name.clone(), node);
        self.change(&name, now, unix_ns, |_, _, _| {});
    }

    /// Changes one node, then does what is due for it.
    fn change(
        &mut self,
        name: &[u8],
        now: Duration,
        unix_ns: u64,
        work: impl FnOnce(&mut Node, &Config, &mut VecDeque<Output>),
    ) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        work(node, &self.config, &mut self.outputs);
        node.timeout(now, unix_ns, &self.config, &mut self.outputs);
        if node.is_over() {
            node.grant.prefixes().for_each(|prefix| drop(self.prefixes.remove(&prefix.address())));
            self.dropped.overflow += node.waiting();
            self.nodes.remove(name);
            let happened = Happened::Forgotten;
            self.outputs.push_back(Output::Event { node: name.to_vec(), happened });
        }
    }
}

fn node_of<'a>(
    prefixes: &BTreeMap<Ipv6Addr, Vec<u8>>,
    nodes: &'a mut BTreeMap<Vec<u8>, Node>,
    address: Ipv6Addr,
) -> Option<&'a mut Node> {
    let (_, name) = prefixes.range(..=address).next_back()?;
    nodes.get_mut(name).filter(|node| node.grant.prefixes().any(|prefix| prefix.contains(address)))
}

#[cfg(test)]
mod tests;
