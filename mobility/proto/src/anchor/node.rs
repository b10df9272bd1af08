//! One mobile node in the binding cache: its keys, its binding, the one that is to come, and those that are revoked. What a
//! Binding Update does to it stands in `update`.

use std::collections::VecDeque;
use std::net::{Ipv6Addr, SocketAddrV4};
use std::time::Duration;

use super::config::{Authorization, Config, Registrant};
use super::freshness::Freshness;
use super::output::{Kept, Output, Place};
use crate::auth::Covered;
use crate::wire::*;

/// After how long a revocation is sent again; each further time doubles it (RFC 5846 section 7.4).
const REVOCATION_RETRY: Duration = Duration::from_secs(1);
const LONGEST_REVOCATION_RETRY: Duration = Duration::from_secs(4);
/// How many times to come are remembered for one key: a mobile node sets its clock after the first refusal.
const MAX_REFUSED: usize = 64;
/// How often a revocation is sent at most, in half a minute: a gateway that does not hear it believes until its next renewal
/// that the node is its own.
const REVOCATION_SENDS: u32 = 9;

#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: Vec<u8>,
    pub(super) prefix: Ipv6Prefix,
    pub(super) ipv4: Option<Ipv4Interface>,
    pub(super) grants: Vec<Grant>,
    /// The highest epoch in which it was bound. It stays when the binding ends.
    pub(super) floor: u64,
    pub(super) active: Option<Registration>,
    /// Registered ahead, to be activated or to expire (RFC 6058): nothing is sent there.
    pub(super) transient: Option<Registration>,
    /// Numbers the revocations.
    revocations: u16,
}

/// An authorization and what was done with it.
#[derive(Debug)]
pub(super) struct Grant {
    pub(super) authorization: Authorization,
    /// Of the last update that was accepted from it.
    pub(super) last: Option<Freshness>,
    /// Times to come with which updates were refused, the oldest first: else such an update could be replayed when its
    /// time has come.
    pub(super) refused: VecDeque<u64>,
    revocation: Option<Revocation>,
}

/// A binding.
#[derive(Debug, Clone)]
pub(super) struct Registration {
    pub(super) spi: u32,
    pub(super) epoch: u64,
    pub(super) sender: Sender,
    pub(super) user_plane: Option<Ipv6Addr>,
    pub(super) expires: Duration,
}

/// Who has sent a message, and is answered there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sender {
    /// What the message's proof covers.
    pub(super) covered: Covered,
    /// From where it came, when that was over UDP.
    pub(super) udp: Option<SocketAddrV4>,
}

impl Registration {
    pub(super) fn place(&self) -> Place {
        let Sender { covered, udp } = self.sender;
        Place { care_of: covered.care_of, udp, user_plane: self.user_plane }
    }
}

/// A revocation that is not acknowledged yet.
#[derive(Debug)]
struct Revocation {
    sequence: u16,
    sender: Sender,
    sent: u32,
    again: Duration,
}

impl Grant {
    pub(super) fn new(authorization: Authorization) -> Self {
        Self { authorization, last: None, refused: VecDeque::new(), revocation: None }
    }

    /// The ownership epoch of the key; 0 for a mobile node's own.
    pub(super) fn epoch(&self) -> u64 {
        match self.authorization.registrant {
            Registrant::Gateway { epoch, .. } => epoch,
            Registrant::MobileNode => 0,
        }
    }
}

impl Grant {
    /// An update with this time was refused for it.
    pub(super) fn refuse(&mut self, time: u64) {
        if !self.refused.contains(&time) {
            self.refused.push_back(time);
        }
        if self.refused.len() > MAX_REFUSED {
            self.refused.pop_front();
        }
    }
}

impl Node {
    pub(super) fn new(name: Vec<u8>, prefix: Ipv6Prefix, ipv4: Option<Ipv4Interface>) -> Self {
        let (grants, active, transient) = Default::default();
        Self { name, prefix, ipv4, grants, floor: 0, active, transient, revocations: 0 }
    }

    /// All that is its own, that of IPv6 last.
    pub(super) fn prefixes(&self) -> impl Iterator<Item = Ipv6Prefix> + use<> {
        self.ipv4.map(Ipv4Interface::host).into_iter().chain([self.prefix])
    }

    pub(super) fn grant(&self, spi: u32) -> Option<&Grant> {
        self.grants.iter().find(|grant| grant.authorization.key.spi() == spi)
    }

    pub(super) fn grant_mut(&mut self, spi: u32) -> Option<&mut Grant> {
        self.grants.iter_mut().find(|grant| grant.authorization.key.spi() == spi)
    }

    /// What a gateway's key registers.
    pub(super) fn registration_of(
        &self,
        spi: u32,
        user_plane: Option<Ipv6Addr>,
        expires: Duration,
    ) -> Option<Registration> {
        let grant = self.grant(spi)?;
        let Registrant::Gateway { address, epoch } = grant.authorization.registrant else { return None };
        let covered = Covered { care_of: address, peer: self.prefix.address() };
        let sender = Sender { covered, udp: None };
        Some(Registration { spi, epoch, sender, user_plane, expires })
    }

    /// What must outlive a crash.
    pub(super) fn kept(&self) -> Kept {
        let bound = self.active.as_ref().map(|active| (active.place(), active.epoch));
        Kept { prefix: self.prefix, floor: self.floor, bound }
    }

    /// From where its packets may come.
    pub(super) fn places(&self) -> Vec<Place> {
        let mut places: Vec<_> = self.active.iter().chain(&self.transient).map(Registration::place).collect();
        places.dedup();
        places
    }

    /// What a mobile node's own key registers.
    pub(super) fn own_registration(&self, care_of: Ipv6Addr, expires: Duration) -> Option<Registration> {
        let own = |grant: &&Grant| grant.authorization.registrant == Registrant::MobileNode;
        let grant = self.grants.iter().find(own)?;
        let sender = Sender { covered: Covered { care_of, peer: self.prefix.address() }, udp: None };
        let (spi, epoch) = (grant.authorization.key.spi(), grant.epoch());
        Some(Registration { spi, epoch, sender, user_plane: None, expires })
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        let registrations =
            self.active.iter().chain(&self.transient).map(|registration| registration.expires);
        let revocations = self.grants.iter().filter_map(|grant| Some(grant.revocation.as_ref()?.again));
        registrations.chain(revocations).min()
    }

    pub(super) fn timeout(&mut self, now: Duration, config: &Config, outputs: &mut VecDeque<Output>) {
        self.transient.take_if(|transient| transient.expires <= now);
        if self.active.take_if(|active| active.expires <= now).is_some() {
            self.remove_routes(outputs);
        }
        let due = |grant: &Grant| grant.revocation.as_ref().is_some_and(|revocation| revocation.again <= now);
        let due: Vec<u32> = self
            .grants
            .iter()
            .filter(|grant| due(grant))
            .map(|grant| grant.authorization.key.spi())
            .collect();
        for spi in due {
            self.send_revocation(now, spi, config, outputs);
        }
    }

    pub(super) fn withdraw(&mut self, spi: u32, outputs: &mut VecDeque<Output>) {
        self.grants.retain(|grant| grant.authorization.key.spi() != spi);
        self.end(spi, outputs);
    }

    /// Ends the bindings that were made with this key.
    pub(super) fn end(&mut self, spi: u32, outputs: &mut VecDeque<Output>) {
        self.transient.take_if(|transient| transient.spi == spi);
        if self.active.take_if(|active| active.spi == spi).is_some() {
            self.remove_routes(outputs);
        }
    }

    fn remove_routes(&self, outputs: &mut VecDeque<Output>) {
        outputs.extend(self.prefixes().map(|prefix| Output::RemoveRoute { prefix }));
    }

    /// Makes `registration` the binding: the route first, then whoever had it is told.
    pub(super) fn bind(&mut self, now: Duration, registration: Registration, outputs: &mut VecDeque<Output>) {
        self.floor = self.floor.max(registration.epoch);
        self.transient.take_if(|transient| transient.epoch <= registration.epoch);
        let (spi, place) = (registration.spi, registration.place());
        if let Some(grant) = self.grant_mut(spi) {
            grant.revocation = None;
        }
        let before = self.active.replace(registration);
        let reached = before.as_ref().map(Registration::place);
        if reached != Some(place) {
            outputs.extend(self.prefixes().map(|prefix| {
                let is_last = prefix == self.prefix;
                Output::SwitchRoute { prefix, place, before: reached.filter(|_| is_last) }
            }));
        }
        if let Some(before) = before.filter(|before| before.spi != spi) {
            self.revocations = self.revocations.wrapping_add(1);
            let sequence = self.revocations;
            if let Some(grant) = self.grant_mut(before.spi) {
                grant.revocation = Some(Revocation { sequence, sender: before.sender, sent: 0, again: now });
            }
        }
    }

    /// Sends the revocations that [`bind`](Self::bind) has begun. Apart from it, so that the new gateway hears first.
    pub(super) fn send_revocations(
        &mut self,
        now: Duration,
        config: &Config,
        outputs: &mut VecDeque<Output>,
    ) {
        let begun = |grant: &&Grant| grant.revocation.as_ref().is_some_and(|revocation| revocation.sent == 0);
        let begun: Vec<u32> =
            self.grants.iter().filter(begun).map(|grant| grant.authorization.key.spi()).collect();
        for spi in begun {
            self.send_revocation(now, spi, config, outputs);
        }
    }

    /// Sends a revocation once more; the last time it is forgotten: its binding has ended here anyway.
    fn send_revocation(&mut self, now: Duration, spi: u32, config: &Config, outputs: &mut VecDeque<Output>) {
        let options = vec![self.identifier(), MobilityOption::HomeNetworkPrefix(self.prefix)];
        let Some(grant) = self.grant_mut(spi) else { return };
        let Some(mut revocation) = grant.revocation.take() else { return };
        let (sequence, sender) = (revocation.sequence, revocation.sender);
        revocation.again = now + (REVOCATION_RETRY * (1 << revocation.sent)).min(LONGEST_REVOCATION_RETRY);
        revocation.sent += 1;
        grant.revocation = Some(revocation).filter(|revocation| revocation.sent < REVOCATION_SENDS);
        let trigger = RevocationTrigger::HANDOVER_SAME_ACCESS_TYPE;
        let message =
            Message::BindingRevocationIndication { trigger, sequence, flags: RevocationFlags::PROXY };
        self.send(spi, sender, Repr { message, options }, config.address, outputs);
    }

    /// The gateway has acknowledged its revocation.
    pub(super) fn revoked(&mut self, spi: u32, sequence: u16) {
        if let Some(grant) = self.grant_mut(spi) {
            grant.revocation.take_if(|revocation| revocation.sequence == sequence);
        }
    }

    pub(super) fn identifier(&self) -> MobilityOption {
        MobilityOption::MobileNodeIdentifier { kind: IdentifierType::NAI, identifier: self.name.clone() }
    }

    /// Sends a message with the proof of this key to the other end of `peer`: a mobile node behind a type 2 routing header, over
    /// UDP at its home address (RFC 5555 section 3.3.2).
    pub(super) fn send(
        &self,
        spi: u32,
        Sender { covered: peer, udp }: Sender,
        repr: Repr,
        address: Ipv6Addr,
        outputs: &mut VecDeque<Output>,
    ) {
        let Some(grant) = self.grant(spi) else { return };
        let mut addresses = Addresses::direct(address, peer.care_of);
        if udp.is_some() {
            addresses.destination = peer.peer;
        } else if grant.authorization.registrant == Registrant::MobileNode && peer.care_of != peer.peer {
            addresses.routed_to = Some(peer.peer);
        }
        // All that is sent is short: an identifier has at most 254 bytes.
        let Ok(message) = grant.authorization.key.emit(&repr, addresses.endpoints(), peer) else { return };
        if let Ok(header) = MobilityHeader::new_checked(&message) {
            let packet = addresses.emit(header);
            outputs.push_back(match udp {
                Some(to) => Output::SendDatagram { to, packet },
                None => Output::Send(packet),
            });
        }
    }
}
