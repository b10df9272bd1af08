//! A mobile node (RFC 6275 chapter 11) that proves itself with a key shared with its home agent (RFC 4285): wherever it is
//! attached, what is for its home address comes to it, and what is from there goes out, by way of the home agent. A state
//! machine on virtual time.
//!
//! ```text
//! attach, come_home, end           where it is
//! handle_packet                    signalling that came
//! handle_tunnelled, handle_own     packets, from the tunnel, and from its own programs
//! handle_timeout                   at the time that `deadline` gave
//! poll_output                      until it is empty
//! ```
//!
//! A move, as the node sees it:
//!
//! ```text
//! attach (a new care-of address) -- BU --> home agent -- BA --> Registered ... refreshed at half its lifetime
//! ```
//!
//! What it sends is tunnelled from the moment its update is out: the home agent takes the update first.
//!
//! A node that has IPv4 only attaches with its IPv4 address as an IPv4-mapped one: its signalling and its packets then go to the home
//! agent in UDP over IPv4, through NATs too (RFC 5555), which it keeps awake by registering as often as it is told to.
//!
//! It never finds a care-of address itself, believes nothing that its home agent has not proved, and asks nobody else.

mod registration;

use std::collections::VecDeque;
use std::net::Ipv6Addr;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::auth::{Covered, SharedKey};
use crate::inner::Inner;
use crate::received::{Received, Refusal};
use crate::wire::*;
use registration::{Answered, Due, Registration};

/// What the node is told once.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its home address, which it keeps.
    pub home_address: Ipv6Addr,
    /// Its home agent's address.
    pub home_agent: Ipv6Addr,
    /// The name it is known by there (RFC 4283), 1 to 254 bytes.
    pub name: Vec<u8>,
    /// The key that it shares with its home agent.
    pub key: SharedKey,
    /// For how long it registers.
    pub lifetime: BindingLifetime,
}

/// What has happened, for the node's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happened {
    /// The home agent sends what is for the home address to this care-of address.
    Registered(Ipv6Addr),
    /// The home agent has refused. It is asked again, after a while.
    Refused(Status),
    /// The home agent has not answered before the binding ended. It is asked again.
    Expired,
    /// The binding has ended as it was to.
    Deregistered,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send this IPv6 packet: signalling.
    Send(Vec<u8>),
    /// Send this packet to the home agent in UDP: signalling.
    SendDatagram(Vec<u8>),
    /// Send this packet through the tunnel to the home agent.
    Tunnel(Vec<u8>),
    /// Give this packet to the node's own programs.
    Deliver(Vec<u8>),
    /// Something has happened.
    Event(Happened),
}

/// The node.
#[derive(Debug)]
pub struct MobileNode {
    config: Config,
    /// Where it is; its home address when it is at home.
    care_of: Option<Ipv6Addr>,
    registration: Registration,
    /// Packets that came from elsewhere or for somebody else, or that had nowhere to go.
    dropped: u64,
    outputs: VecDeque<Output>,
}

impl MobileNode {
    /// A node that is attached nowhere yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let registration = Registration::new(config.lifetime);
        Self { config, care_of: None, registration, dropped: 0, outputs: VecDeque::new() }
    }

    /// It can be reached at this care-of address from now on, or again: it registers there. An IPv4-mapped one is of IPv4.
    pub fn attach(&mut self, now: Duration, unix_ns: u64, care_of: Ipv6Addr) {
        self.care_of = Some(care_of);
        self.registration.begin(now);
        self.handle_timeout(now, unix_ns);
    }

    /// It is on its home link, where its home address needs no binding (RFC 6275 section 11.5.5).
    pub fn come_home(&mut self, now: Duration, unix_ns: u64) {
        self.care_of = Some(self.config.home_address);
        self.registration.end(now);
        self.handle_timeout(now, unix_ns);
    }

    /// It will not be reached any more: its binding ends, if it has one.
    pub fn end(&mut self, now: Duration, unix_ns: u64) {
        self.registration.end(now);
        self.handle_timeout(now, unix_ns);
    }

    /// Takes an IPv6 packet with signalling.
    ///
    /// # Errors
    /// [`Refusal`]: nothing has changed, and nothing is sent.
    pub fn handle_packet(&mut self, now: Duration, unix_ns: u64, packet: &[u8]) -> Result<(), Refusal> {
        let care_of = self.care_of.unwrap_or(self.config.home_address);
        // In UDP it is for the home address.
        let own = if is_ipv4(care_of) { self.config.home_address } else { care_of };
        let Received { addresses, header, repr, spi } = Received::parse(packet, own)?;
        let Config { home_address, home_agent, key, .. } = &self.config;
        if addresses.source != *home_agent || addresses.home_address.is_some() {
            return Err(Refusal::Address(addresses.source));
        }
        // The type 2 routing header is there exactly when the node is away (RFC 6275 section 11.7.3 and 6.4).
        if addresses.endpoints().destination != *home_address {
            return Err(Refusal::Destination(addresses.endpoints().destination));
        }
        if spi != key.spi() {
            return Err(Refusal::UnknownKey(spi));
        }
        key.verify(&header, Covered { care_of, peer: *home_address })?;
        let Message::BindingAcknowledgement(told) = repr.message else {
            return Err(Refusal::Type(repr.message.kind()));
        };
        let happened = match self.registration.acknowledged(now, unix_ns, &told, &repr.options) {
            Answered::Nothing => None,
            Answered::Bound => Some(Happened::Registered(care_of)),
            Answered::Ended => Some(Happened::Deregistered),
            Answered::Refused(status) => Some(Happened::Refused(status)),
        };
        self.outputs.extend(happened.map(Output::Event));
        self.handle_timeout(now, unix_ns);
        Ok(())
    }

    /// Takes the packet that came in a tunnel from `from`.
    pub fn handle_tunnelled(&mut self, from: Ipv6Addr, packet: Vec<u8>) {
        let is_ours =
            Inner::parse(&packet).is_some_and(|inner| inner.destination == self.config.home_address);
        if from == self.config.home_agent && is_ours {
            self.outputs.push_back(Output::Deliver(packet));
        } else {
            self.dropped += 1;
        }
    }

    /// Takes a packet that the node's own programs have sent.
    pub fn handle_own(&mut self, packet: Vec<u8>) {
        let is_ours = Inner::parse(&packet).is_some_and(|inner| inner.source == self.config.home_address);
        if is_ours && self.is_away() {
            self.outputs.push_back(Output::Tunnel(packet));
        } else {
            self.dropped += 1;
        }
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Duration, unix_ns: u64) {
        if self.registration.expire(now) {
            self.outputs.push_back(Output::Event(Happened::Expired));
        }
        if let Some(care_of) = self.care_of
            && let Some(due) = self.registration.poll(now, unix_ns)
        {
            self.send(care_of, due);
        }
    }

    /// What is to be done next, if anything.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called, if nothing comes before.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        self.registration.deadline()
    }

    /// Whether there is nothing more to be asked of the home agent: after [`end`](Self::end), that it knows or was told
    /// often enough.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.registration.is_over()
    }

    /// How many packets were not passed on so far.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn is_away(&self) -> bool {
        self.care_of.is_some_and(|care_of| care_of != self.config.home_address)
    }

    /// The update of RFC 6275 section 11.7.1: from the care-of address, with the Home Address option; at home from there, and
    /// in UDP from the home address too, with the care-of address in an option (RFC 5555 section 3.3.1).
    fn send(&mut self, care_of: Ipv6Addr, due: Due) {
        let Config { home_address, home_agent, name, key, .. } = &self.config;
        let flags = BindingUpdateFlags::ACKNOWLEDGE | BindingUpdateFlags::HOME_REGISTRATION;
        let update = BindingUpdate {
            sequence: due.sequence,
            flags: if is_ipv4(care_of) { flags | BindingUpdateFlags::FORCE_UDP } else { flags },
            lifetime: due.lifetime,
        };
        let mut options = vec![
            MobilityOption::MobileNodeIdentifier { kind: IdentifierType::NAI, identifier: name.clone() },
            MobilityOption::MessageIdentification(due.time),
        ];
        let mut addresses = Addresses::direct(care_of, *home_agent);
        if let Some(address) = care_of.to_ipv4_mapped() {
            addresses.source = *home_address;
            options.push(MobilityOption::Ipv4CareOfAddress(address));
        } else {
            addresses.home_address = Some(*home_address).filter(|home_address| *home_address != care_of);
        }
        let repr = Repr { message: Message::BindingUpdate(update), options };
        let covered = Covered { care_of, peer: *home_address };
        // All that is sent is short: a name has at most 254 bytes.
        let Ok(message) = key.emit(&repr, addresses.endpoints(), covered) else { return };
        if let Ok(header) = MobilityHeader::new_checked(&message) {
            let packet = addresses.emit(header);
            self.outputs.push_back(match is_ipv4(care_of) {
                true => Output::SendDatagram(packet),
                false => Output::Send(packet),
            });
        }
    }
}

fn is_ipv4(care_of: Ipv6Addr) -> bool {
    care_of.to_ipv4_mapped().is_some()
}

/// The care-of address that a node makes of a prefix of 64 bits or less: its interface identifier is an opaque one (RFC 7217
/// section 5) of prefix and home address. Since nobody else has that home address nobody else makes this address, and the
/// node need not wait to find out whether it is taken.
#[must_use]
pub fn care_of_address(prefix: Ipv6Prefix, home_address: Ipv6Addr) -> Ipv6Addr {
    let mut hash = Sha256::new();
    hash.update(prefix.address().octets());
    hash.update(home_address.octets());
    let digest = u128::from_be_bytes(hash.finalize()[..16].try_into().unwrap_or_default());
    let identifier = digest >> 64;
    (u128::from(prefix.address()) | identifier).into()
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod udp_tests;
