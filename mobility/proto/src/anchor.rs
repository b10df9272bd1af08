//! The binding cache of a home agent and local mobility anchor (RFC 6275 chapter 10, RFC 5213 chapter 5): who is reached
//! where. A state machine on virtual time: packets and time go in; routes to set and packets to send come out, in the order
//! in which they must happen, so that a route is switched before it is acknowledged.
//!
//! ```text
//! authorize, withdraw     who may register what: the only way into the table, so it is as large as its owner wants it
//! handle_packet           whatever came for the anchor; an error says why nothing of it was believed
//! handle_datagram         the same that came over UDP, from a mobile node that has IPv4 only (RFC 5555)
//! handle_timeout          at the time that `deadline` gave
//! poll_output             until it is empty
//! ```
//!
//! A virtual machine's moves are ordered by the ownership epoch of its hand-off, not by the hosts' clocks: each platform
//! registers with a key that was given for one machine, one gateway and one epoch, and a registration of a lower epoch than
//! the last one is refused, however it is timed. Within an epoch, each key's messages must each be newer than the last
//! (RFC 5213 section 5.5, RFC 6275 section 9.5.1, RFC 4285 section 6).
//!
//! It differs from RFC 5213 in that a binding's prefix comes with the authorization and outlives the binding. So nothing has
//! to wait for a late gateway: not a deregistration (10 s there), not a new registration (1.5 s).
//!
//! A mobile node behind a NAT is reached where its last update came from, which no proof can cover (RFC 5555 section 6.1): who
//! stands on its way can have its packets until the next one.
//!
//! It never answers what is not proved, sets no route itself, and keeps nothing on a disk.

mod config;
mod freshness;
mod node;
mod output;
mod update;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::time::Duration;

use crate::auth::Covered;
use crate::received::{Received, Refusal};
use crate::wire::*;
pub use config::{Authorization, Config, Registrant};
use node::{Grant, Node, Sender};
pub use output::{Kept, Output, Place, TunnelEnd};

/// How many keys one mobile node may have at a time: a move needs two, an aborted one before it another.
pub const MAX_KEYS_PER_NODE: usize = 4;

/// Why an authorization is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthorizeError {
    /// Another key has the SPI.
    #[error("SPI {0} is in use: withdraw it first")]
    SpiInUse(u32),
    /// The mobile node has another prefix, or another mobile node has a part of this one.
    #[error("prefix {0} is, in part, another mobile node's, or this one has another")]
    Prefix(Ipv6Prefix),
    /// Another mobile node has the IPv4 address, or this one has another.
    #[error("the IPv4 address {0} is another mobile node's, or this one has another, or none")]
    Ipv4(Ipv4Addr),
    /// The identifier fits no option.
    #[error("a mobile node's identifier has 1 to 254 bytes, this one has {0}")]
    Identifier(usize),
    /// The table is full.
    #[error("all {0} places for mobile nodes are taken: withdraw some, or raise the limit")]
    Full(usize),
    /// The mobile node has [`MAX_KEYS_PER_NODE`].
    #[error("the mobile node has {MAX_KEYS_PER_NODE} keys already: withdraw those of earlier epochs")]
    TooManyKeys,
}

/// The binding cache.
#[derive(Debug)]
pub struct Anchor {
    config: Config,
    nodes: BTreeMap<Vec<u8>, Node>,
    /// Whose a key is, by its SPI.
    keys: BTreeMap<u32, Vec<u8>>,
    /// Whose a prefix is, by its lowest address.
    prefixes: BTreeMap<Ipv6Addr, (Ipv6Prefix, Vec<u8>)>,
    /// When each node has something to do.
    deadlines: BTreeSet<(Duration, Vec<u8>)>,
    outputs: VecDeque<Output>,
}

impl Anchor {
    /// An anchor that serves nobody yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            nodes: BTreeMap::new(),
            keys: BTreeMap::new(),
            prefixes: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            outputs: VecDeque::new(),
        }
    }

    /// From now on this registrant may register this mobile node.
    ///
    /// # Errors
    /// [`AuthorizeError`]; nothing has changed then.
    pub fn authorize(&mut self, authorization: Authorization) -> Result<(), AuthorizeError> {
        let Authorization { key, node: name, prefix, ipv4, .. } = &authorization;
        if self.keys.contains_key(&key.spi()) {
            return Err(AuthorizeError::SpiInUse(key.spi()));
        }
        if !(1..=254).contains(&name.len()) {
            return Err(AuthorizeError::Identifier(name.len()));
        }
        if self.is_anothers(name, *prefix) {
            return Err(AuthorizeError::Prefix(*prefix));
        }
        if let Some(ipv4) = ipv4.filter(|ipv4| self.is_anothers(name, ipv4.host())) {
            return Err(AuthorizeError::Ipv4(ipv4.address()));
        }
        match self.nodes.get(name) {
            Some(node) if node.prefix != *prefix => return Err(AuthorizeError::Prefix(*prefix)),
            Some(node) if node.ipv4 != *ipv4 => {
                let either = ipv4.or(node.ipv4).map_or(Ipv4Addr::UNSPECIFIED, Ipv4Interface::address);
                return Err(AuthorizeError::Ipv4(either));
            }
            Some(node) if node.grants.len() >= MAX_KEYS_PER_NODE => return Err(AuthorizeError::TooManyKeys),
            None if self.nodes.len() >= self.config.max_nodes => {
                return Err(AuthorizeError::Full(self.config.max_nodes));
            }
            _ => {}
        }
        self.keys.insert(key.spi(), name.clone());
        let node = self.nodes.entry(name.clone()).or_insert_with(|| Node::new(name.clone(), *prefix, *ipv4));
        for prefix in node.prefixes() {
            self.prefixes.insert(prefix.address(), (prefix, name.clone()));
        }
        node.grants.push(Grant::new(authorization));
        Ok(())
    }

    /// Whether another than this mobile node has a part of the prefix.
    fn is_anothers(&self, name: &[u8], prefix: Ipv6Prefix) -> bool {
        let others = [
            self.prefixes.range(..=prefix.address()).next_back(),
            self.prefixes.range(prefix.address()..).next(),
        ];
        let overlap =
            |other: Ipv6Prefix| other.contains(prefix.address()) || prefix.contains(other.address());
        let mut others = others.into_iter().flatten().map(|(_, entry)| entry);
        others.any(|(other, owner)| overlap(*other) && (owner.as_slice(), *other) != (name, prefix))
    }

    /// The key with this SPI is worth nothing from now on. A binding made with it ends; with its last key a mobile node is
    /// forgotten, its epoch too.
    pub fn withdraw(&mut self, spi: u32) {
        let Some(name) = self.keys.remove(&spi) else { return };
        self.change(&name, |node, _, outputs| node.withdraw(spi, outputs));
        if let Some(node) = self.nodes.get(&name)
            && node.grants.is_empty()
        {
            for prefix in node.prefixes() {
                self.prefixes.remove(&prefix.address());
            }
            self.nodes.remove(&name);
        }
    }

    /// What was so before a restart: a gateway's epochs up to `floor` have been bound, and the binding was made with the key
    /// of SPI `active`, which is authorized again, by a gateway that took tunnelled packets at `user_plane`. It lasts for the
    /// longest lifetime, unless the gateway renews it.
    pub fn restore(
        &mut self,
        now: Duration,
        name: &[u8],
        floor: u64,
        active: Option<u32>,
        user_plane: Option<Ipv6Addr>,
    ) {
        self.alter(name, |node, config, outputs| {
            let expires = now + Duration::from_secs(config.max_lifetime.as_secs().into());
            if let Some(registration) = active.and_then(|spi| node.registration_of(spi, user_plane, expires))
            {
                node.bind(now, registration, outputs);
            }
            node.floor = node.floor.max(floor);
        });
    }

    /// What was so before a restart: a mobile node that registers itself, and whose key is authorized again, was bound to this
    /// care-of address. It lasts for the longest lifetime, unless the node renews it. What was over UDP is not restored: a node
    /// tells soon where it is.
    pub fn restore_mobile_node(&mut self, now: Duration, name: &[u8], care_of: Ipv6Addr) {
        if care_of.to_ipv4_mapped().is_some() {
            return;
        }
        self.alter(name, |node, config, outputs| {
            let expires = now + Duration::from_secs(config.max_lifetime.as_secs().into());
            if let Some(registration) = node.own_registration(care_of, expires) {
                node.bind(now, registration, outputs);
            }
        });
    }

    /// Takes an IPv6 packet that came at `now`; `unix_ns` is the wall clock's time.
    ///
    /// # Errors
    /// [`Refusal`]: nothing has changed, and nothing is sent.
    pub fn handle_packet(&mut self, now: Duration, unix_ns: u64, packet: &[u8]) -> Result<(), Refusal> {
        self.handle(now, unix_ns, packet, None)
    }

    /// Takes an IPv6 packet with signalling that came in UDP from `from`.
    ///
    /// # Errors
    /// As for [`handle_packet`](Self::handle_packet).
    pub fn handle_datagram(
        &mut self,
        now: Duration,
        unix_ns: u64,
        from: SocketAddrV4,
        packet: &[u8],
    ) -> Result<(), Refusal> {
        self.handle(now, unix_ns, packet, Some(from))
    }

    fn handle(
        &mut self,
        now: Duration,
        unix_ns: u64,
        packet: &[u8],
        udp: Option<SocketAddrV4>,
    ) -> Result<(), Refusal> {
        let Received { addresses, header, repr, spi } = Received::parse(packet, self.config.address)?;
        let name = self.keys.get(&spi).ok_or(Refusal::UnknownKey(spi))?.clone();
        let grant = self.nodes.get(&name).and_then(|node| node.grant(spi)).ok_or(Refusal::UnknownKey(spi))?;
        let sender = sender(&addresses, &repr, &grant.authorization, udp);
        let covered = sender.covered;
        grant.authorization.key.verify(&header, covered)?;
        // Over UDP, exactly a care-of address of IPv4 is registered, by nobody but the node itself.
        let is_allowed = match grant.authorization.registrant {
            Registrant::Gateway { address, .. } => covered.care_of == address && udp.is_none(),
            Registrant::MobileNode => udp.is_some() == covered.care_of.to_ipv4_mapped().is_some(),
        };
        if !is_allowed {
            return Err(Refusal::Address(covered.care_of));
        }
        match repr.message {
            Message::BindingUpdate(update) => {
                self.change(&name, |node, config, outputs| {
                    let came = update::Came { now, unix_ns, spi, sender, update, options: &repr.options };
                    node.update(&came, config, outputs);
                });
            }
            Message::BindingRevocationAcknowledgement { sequence, .. } => {
                self.change(&name, |node, _, _| node.revoked(spi, sequence));
            }
            Message::Heartbeat { response: false, sequence, .. } => {
                let message = Message::Heartbeat { response: true, unsolicited: false, sequence };
                let counter = MobilityOption::RestartCounter(self.config.restart_counter);
                self.change(&name, |node, config, outputs| {
                    node.send(spi, sender, Repr { message, options: vec![counter] }, config.address, outputs);
                });
            }
            _ => return Err(Refusal::Type(repr.message.kind())),
        }
        Ok(())
    }

    /// Does what is due at `now`: bindings end, revocations are sent again.
    pub fn handle_timeout(&mut self, now: Duration) {
        while let Some((deadline, name)) = self.deadlines.first().cloned()
            && deadline <= now
        {
            self.change(&name, |node, config, outputs| node.timeout(now, config, outputs));
        }
    }

    /// What is to be done next, if anything.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called, if nothing comes before.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Where a mobile node is reached, and in which epoch (0 when it registers itself).
    #[must_use]
    pub fn binding(&self, node: &[u8]) -> Option<(Ipv6Addr, u64)> {
        let active = self.nodes.get(node)?.active.as_ref()?;
        Some((active.sender.covered.care_of, active.epoch))
    }

    /// Where the gateway that a mobile node is bound at takes tunnelled packets, when it has named another address for that.
    #[must_use]
    pub fn user_plane(&self, node: &[u8]) -> Option<Ipv6Addr> {
        self.nodes.get(node)?.active.as_ref()?.user_plane
    }

    /// What is to be known of a mobile node after a restart.
    #[must_use]
    pub fn kept(&self, node: &[u8]) -> Option<Kept> {
        self.nodes.get(node).map(Node::kept)
    }

    /// The prefixes that are bound.
    pub fn bound(&self) -> impl Iterator<Item = Ipv6Prefix> {
        self.nodes.values().filter(|node| node.active.is_some()).flat_map(Node::prefixes)
    }

    /// Where a packet for this address is to be sent. A gateway takes IPv4 packets at its own address, as we do: addresses for
    /// tunnels alone are for tunnels of the kernel, and those carry IPv6.
    #[must_use]
    pub fn care_of(&self, address: Ipv6Addr) -> Option<TunnelEnd> {
        let place = self.node_of(address)?.active.as_ref()?.place();
        Some(if address.to_ipv4_mapped().is_some() { place.source() } else { place.tunnel_end() })
    }

    /// Whether a packet of this address may come from there: from where it is reached, or will be (RFC 6058 section 4.2).
    #[must_use]
    pub fn accepts(&self, address: Ipv6Addr, from: TunnelEnd) -> bool {
        self.node_of(address).is_some_and(|node| {
            node.active.iter().chain(&node.transient).any(|at| at.place().source() == from)
        })
    }

    fn node_of(&self, address: Ipv6Addr) -> Option<&Node> {
        let (_, (prefix, name)) = self.prefixes.range(..=address).next_back()?;
        self.nodes.get(name).filter(|_| prefix.contains(address))
    }

    /// Changes one node, and says what of it must outlive a crash: before the first packet that tells of it.
    fn change(&mut self, name: &[u8], work: impl FnOnce(&mut Node, &Config, &mut VecDeque<Output>)) {
        let (before, first) = (self.kept(name), self.outputs.len());
        self.alter(name, work);
        let Some(kept) = self.kept(name).filter(|kept| Some(*kept) != before) else { return };
        let tells = |output: &Output| matches!(output, Output::Send(_) | Output::SendDatagram { .. });
        let sent = self.outputs.iter().skip(first).position(tells);
        let at = sent.map_or(self.outputs.len(), |sent| first + sent);
        self.outputs.insert(at, Output::Keep { node: name.to_vec(), kept });
    }

    /// Changes one node and keeps its deadline.
    fn alter(&mut self, name: &[u8], work: impl FnOnce(&mut Node, &Config, &mut VecDeque<Output>)) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        if let Some(deadline) = node.deadline() {
            self.deadlines.remove(&(deadline, name.to_vec()));
        }
        let before = node.places();
        work(node, &self.config, &mut self.outputs);
        let places = node.places();
        if places != before {
            let told = node.prefixes().map(|prefix| Output::TakeFrom { prefix, places: places.clone() });
            self.outputs.extend(told);
        }
        if let Some(deadline) = node.deadline() {
            self.deadlines.insert((deadline, name.to_vec()));
        }
    }
}

/// The sender of a message. Its proof covers: of a gateway its own address and the prefix it registers, of a mobile node its
/// care-of address and its home address. Over UDP the care-of address is the one that an option names.
fn sender(
    addresses: &Addresses,
    repr: &Repr,
    authorization: &Authorization,
    udp: Option<SocketAddrV4>,
) -> Sender {
    let alternate = repr.options.iter().find_map(|option| match option {
        MobilityOption::Ipv4CareOfAddress(address) if udp.is_some() => Some(address.to_ipv6_mapped()),
        MobilityOption::AlternateCareOfAddress(address) if udp.is_none() => Some(*address),
        _ => None,
    });
    let peer = match authorization.registrant {
        Registrant::Gateway { .. } => authorization.prefix.address(),
        Registrant::MobileNode => addresses.home_address.unwrap_or(addresses.source),
    };
    Sender { covered: Covered { care_of: alternate.unwrap_or(addresses.source), peer }, udp }
}

#[cfg(test)]
mod tests;
