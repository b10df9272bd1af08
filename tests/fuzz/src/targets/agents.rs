//! A home agent, two gateways and a mobile node under orders and messages in any order, proved or not: a binding is only ever
//! where a key was given for or the mobile node has been, no epoch comes back, and nobody gets more out than is put in.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::time::Duration;

use mobility_proto::anchor::{self, Anchor, Authorization, Output, Registrant};
use mobility_proto::auth::{Algorithm, Covered, SharedKey};
use mobility_proto::gateway::{self, Gateway, Grant};
use mobility_proto::node::{self, MobileNode};
use mobility_proto::wire::*;

use super::mobility::reprs;

const ANCHOR: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const HOME: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xf, 1, 0, 0, 0, 0);
const HOME_IPV4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// What a NAT makes of the mobile node's IPv4 addresses.
const NAT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 7), 4001);
const NAME: &[u8] = b"vm";
/// The home address of the mobile node, and its name.
const NODES_HOME: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xf, 2, 0, 0, 0, 0x10);
const NODE: &[u8] = b"node";
const START_NS: u64 = 1_700_000_000_000_000_000;
const BUFFER_BYTES: usize = 4096;
/// An update and a revocation for each key are the most that may follow from one message.
const MOST_ANSWERS: usize = 1 + anchor::MAX_KEYS_PER_NODE;

/// The platforms take turns: the gateway of an epoch.
fn address(epoch: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0x100 + u16::from(epoch % 2), 0, 0, 0, 0, 1)
}

fn grant(epoch: u8) -> Grant {
    let key = SharedKey::new(300 + u32::from(epoch), Algorithm::HmacSha256_128, &[epoch; 32]);
    let prefix = Ipv6Prefix::new(HOME, 64).expect("64 is at most 128");
    Grant { key, node: NAME.to_vec(), prefix, ipv4: Ipv4Interface::new(HOME_IPV4, 24) }
}

/// Where the mobile node may be: over IPv6, and over IPv4 behind a NAT.
fn nodes_care_of(at: u8) -> Ipv6Addr {
    if at & 2 == 0 { address(at) } else { Ipv4Addr::new(192, 168, 1, at & 1).to_ipv6_mapped() }
}

fn nodes_key() -> SharedKey {
    SharedKey::new(400, Algorithm::HmacSha1_96, b"the mobile node's")
}

struct World {
    now: Duration,
    anchor: Anchor,
    gateways: [Gateway; 2],
    node: MobileNode,
    epoch: u64,
    /// For which care-of addresses of the mobile node there was ever a proof.
    proved: Vec<Ipv6Addr>,
}

impl World {
    fn new() -> Self {
        let mut anchor = Anchor::new(anchor::Config {
            address: ANCHOR,
            user_plane: Some(ANCHOR),
            max_nodes: 2,
            max_lifetime: BindingLifetime::from_secs(600),
            max_transient: TransientLifetime::from_ms(10_000),
            restart_counter: 1,
            started_unix_ns: START_NS,
        });
        for epoch in 1..=4 {
            let Grant { key, node, prefix, ipv4 } = grant(epoch);
            let registrant = Registrant::Gateway { address: address(epoch), epoch: epoch.into() };
            let authorized = anchor.authorize(Authorization { key, node, prefix, ipv4, registrant });
            authorized.expect("four keys are not too many");
        }
        let gateways = [0, 1].map(|number| {
            Gateway::new(gateway::Config {
                address: address(number),
                anchor: ANCHOR,
                user_plane: None,
                lifetime: BindingLifetime::from_secs(60),
                transient: TransientLifetime::from_ms(5000),
                buffer_bytes: BUFFER_BYTES,
                settle: Duration::from_millis(500),
            })
        });
        let prefix = Ipv6Prefix::new(NODES_HOME, 128).expect("128 is at most 128");
        let (key, name, registrant) = (nodes_key(), NODE.to_vec(), Registrant::MobileNode);
        let node = name.clone();
        let authorized = anchor.authorize(Authorization { key, node, prefix, ipv4: None, registrant });
        authorized.expect("there is room for two");
        let node = MobileNode::new(node::Config {
            home_address: NODES_HOME,
            home_agent: ANCHOR,
            name,
            key: nodes_key(),
            lifetime: BindingLifetime::from_secs(60),
        });
        Self { now: Duration::ZERO, anchor, gateways, node, epoch: 0, proved: Vec::new() }
    }

    fn unix_ns(&self) -> u64 {
        START_NS + self.now.as_nanos() as u64
    }

    /// Gives a packet to whoever it is for; what follows must be little, and go where it may. It is delivered in turn when
    /// `depth` allows.
    fn deliver(&mut self, packet: &[u8], depth: u8) {
        let (now, unix_ns) = (self.now, self.unix_ns());
        let _ = self.anchor.handle_packet(now, unix_ns, packet);
        let _ = self.anchor.handle_datagram(now, unix_ns, NAT, packet);
        for gateway in &mut self.gateways {
            let _ = gateway.handle_packet(now, unix_ns, packet);
        }
        let _ = self.node.handle_packet(now, unix_ns, packet);
        let sent = self.drain();
        assert!(sent.len() <= MOST_ANSWERS, "{} packets follow from one", sent.len());
        if depth > 0 {
            sent.iter().for_each(|packet| self.deliver(packet, depth - 1));
        }
    }

    fn drain(&mut self) -> Vec<Vec<u8>> {
        let mut sent = Vec::new();
        while let Some(output) = self.anchor.poll_output() {
            if let Output::Send(packet) | Output::SendDatagram { packet, .. } = output {
                sent.push(packet);
            }
        }
        for gateway in &mut self.gateways {
            while let Some(output) = gateway.poll_output() {
                if let gateway::Output::Send(packet) = output {
                    sent.push(packet);
                }
            }
        }
        while let Some(output) = self.node.poll_output() {
            if let node::Output::Send(packet) | node::Output::SendDatagram(packet) = output {
                sent.push(packet);
            }
        }
        if let Some((care_of, _)) = self.anchor.binding(NODE) {
            assert!(self.proved.contains(&care_of), "bound where the mobile node never was");
        }
        if let Some((care_of, epoch)) = self.anchor.binding(NAME) {
            assert!(epoch >= self.epoch, "epoch {epoch} comes back after {}", self.epoch);
            assert_eq!(care_of, address(epoch as u8), "bound where no key was given for");
            self.epoch = epoch;
        }
        sent
    }

    /// A message, proved with the key of an epoch or with none, from one of the three to another.
    fn message(&mut self, words: [u8; 4], more: &[u8]) {
        let [what, ends, epoch, number] = words;
        let all = reprs();
        let mut repr = all[usize::from(what) % all.len()].clone();
        if let Message::BindingUpdate(update) = &mut repr.message {
            update.sequence = SequenceNumber(number.into());
            update.lifetime = BindingLifetime((ends >> 4).into());
        }
        let sent_ns = self.unix_ns().saturating_add_signed(i64::from(number as i8) * 1_000_000);
        if ends & 1 == 0 {
            repr.options = vec![
                MobilityOption::MobileNodeIdentifier { kind: IdentifierType::NAI, identifier: NAME.to_vec() },
                MobilityOption::HomeNetworkPrefix(grant(1).prefix),
                MobilityOption::HandoffIndicator(HandoffIndicator::BETWEEN_GATEWAYS),
                MobilityOption::AccessTechnologyType(AccessTechnology::ETHERNET),
                MobilityOption::Timestamp(Timestamp::from_unix_ns(sent_ns)),
            ];
            if ends & 2 == 0 {
                let lifetime = TransientLifetime(number);
                repr.options.push(MobilityOption::TransientBinding { late_path_switch: true, lifetime });
            }
        }
        let hosts = [ANCHOR, address(0), address(1), HOME];
        let (from, to) = (hosts[usize::from(ends >> 2 & 3)], hosts[usize::from(more.len() % 3)]);
        let addresses = Addresses::direct(from, to);
        let covered = Covered { care_of: if from == ANCHOR { to } else { from }, peer: HOME };
        let emitted = match epoch % 8 {
            0 => repr.emit(addresses.endpoints()),
            epoch => grant(epoch).key.emit(&repr, addresses.endpoints(), covered),
        };
        if let Ok(message) = emitted
            && let Ok(header) = MobilityHeader::new_checked(&message)
        {
            self.deliver(&addresses.emit(header), 2);
        }
    }

    fn order(&mut self, [what, epoch, ..]: [u8; 4]) {
        let (now, unix_ns, epoch) = (self.now, self.unix_ns(), 1 + epoch % 4);
        let (own, other) = (usize::from(epoch % 2), address(epoch + 1));
        let gateway = &mut self.gateways[own];
        match what % 7 {
            0 => gateway.serve(now, unix_ns, grant(epoch)),
            1 => gateway.expect(now, unix_ns, grant(epoch), other),
            2 => gateway.forward(now, unix_ns, grant(epoch % 4 + 1), other, now),
            3 => gateway.arrived(now, unix_ns, NAME),
            4 => gateway.stay(now, unix_ns, NAME),
            5 => gateway.forget(now, unix_ns, NAME),
            _ => gateway.remember(now, unix_ns, NAME),
        }
        let sent = self.drain();
        sent.iter().for_each(|packet| self.deliver(packet, 2));
    }

    fn node_order(&mut self, [what, at, ..]: [u8; 4], packet: &[u8]) {
        let (now, unix_ns) = (self.now, self.unix_ns());
        let care_of = nodes_care_of(at);
        match what % 5 {
            0 | 1 => {
                self.proved.push(care_of);
                self.node.attach(now, unix_ns, care_of);
            }
            2 => self.node.come_home(now, unix_ns),
            3 => self.node.end(now, unix_ns),
            _ => {
                self.node.handle_tunnelled(if at % 2 == 0 { ANCHOR } else { care_of }, packet.to_vec());
                self.node.handle_own(packet.to_vec());
            }
        }
        let sent = self.drain();
        sent.iter().for_each(|packet| self.deliver(packet, 2));
    }

    /// What somebody sends who has the mobile node's key.
    fn node_message(&mut self, [what, ends, at, number]: [u8; 4], skew_ms: i8) {
        let all = reprs();
        let mut repr = all[usize::from(what) % all.len()].clone();
        if let Message::BindingUpdate(update) = &mut repr.message {
            update.sequence = SequenceNumber(number.into());
            update.lifetime = BindingLifetime((ends >> 4).into());
            update.flags = BindingUpdateFlags::HOME_REGISTRATION;
        }
        let sent_ns = self.unix_ns().saturating_add_signed(i64::from(skew_ms) * 100_000_000);
        if ends & 1 == 0 {
            repr.options = vec![MobilityOption::MessageIdentification(NtpTimestamp::from_unix_ns(sent_ns))];
        }
        let care_of = nodes_care_of(at);
        let addresses = if let Some(address) = care_of.to_ipv4_mapped() {
            repr.options.push(MobilityOption::Ipv4CareOfAddress(address));
            let (from, to) = if ends & 2 == 0 { (NODES_HOME, ANCHOR) } else { (ANCHOR, NODES_HOME) };
            Addresses::direct(from, to)
        } else if ends & 2 == 0 {
            Addresses { home_address: Some(NODES_HOME), ..Addresses::direct(care_of, ANCHOR) }
        } else {
            Addresses { routed_to: Some(NODES_HOME), ..Addresses::direct(ANCHOR, care_of) }
        };
        let covered = Covered { care_of, peer: NODES_HOME };
        if let Ok(message) = nodes_key().emit(&repr, addresses.endpoints(), covered)
            && let Ok(header) = MobilityHeader::new_checked(&message)
        {
            self.proved.push(care_of);
            self.deliver(&addresses.emit(header), 2);
        }
    }

    fn data(&mut self, [what, from, ..]: [u8; 4], packet: &[u8]) {
        let from = [ANCHOR, address(0), address(1), HOME][usize::from(from % 4)];
        let mut whole = vec![0x60; 8];
        whole.extend(from.octets());
        whole.extend(HOME.octets());
        whole.extend(packet);
        let mut whole_ipv4 = vec![0x45; 12];
        whole_ipv4.extend(if what & 8 == 0 { HOME_IPV4 } else { *NAT.ip() }.octets());
        whole_ipv4.extend(if what & 8 == 0 { *NAT.ip() } else { HOME_IPV4 }.octets());
        let gateway = &mut self.gateways[usize::from(what % 2)];
        match what % 4 {
            0 | 1 => gateway.handle_tunnelled(self.now, from, whole),
            2 if what & 4 == 0 => gateway.handle_tunnelled(self.now, from, packet.to_vec()),
            2 => gateway.handle_tunnelled(self.now, from, whole_ipv4),
            3 if what & 4 == 0 => gateway.handle_guest(whole_ipv4),
            _ => gateway.handle_guest(packet.to_vec()),
        }
        self.drain();
    }
}

/// Orders of five bytes: what, four words; and what follows is for whoever wants it.
pub(super) fn orders(bytes: &[u8]) {
    let mut world = World::new();
    let mut rest = bytes;
    while let Some(([what, words @ ..], behind)) = rest.split_first_chunk::<5>() {
        rest = behind;
        match what % 7 {
            0 => world.message(*words, rest),
            1 => world.order(*words),
            2 => world.data(*words, &rest[..rest.len().min(64)]),
            3 => world.deliver(rest, 1),
            5 => world.node_order(*words, &rest[..rest.len().min(64)]),
            6 => world.node_message(*words, rest.len() as i8),
            _ => {
                world.now += Duration::from_millis(u64::from(words[0]) * 50);
                let (now, unix_ns) = (world.now, world.unix_ns());
                world.anchor.handle_timeout(now);
                world.gateways.iter_mut().for_each(|gateway| gateway.handle_timeout(now, unix_ns));
                world.node.handle_timeout(now, unix_ns);
                let sent = world.drain();
                sent.iter().for_each(|packet| world.deliver(packet, 2));
            }
        }
    }
}

pub(super) fn histories() -> Vec<Vec<u8>> {
    let order = |what: u8, epoch: u8| [1, what, epoch, 0, 0];
    let wait = [4, 20, 0, 0, 0];
    let a_move = [order(0, 0), order(1, 1), wait, order(6, 0), order(2, 0), order(3, 1), wait, wait];
    let given_up = [order(0, 0), order(1, 1), wait, order(2, 0), order(4, 0), order(5, 1), wait, wait];
    let messages =
        [[0, 16, 0xf4, 1, 1], [0, 16, 0xf4, 2, 2], [0, 5, 0, 1, 1], [2, 0, 0, 0, 0], [3, 0, 0, 0, 0]];
    let node = |what: u8, at: u8| [5, what, at, 0, 0];
    let roams = [node(0, 0), wait, node(0, 1), node(4, 0), wait, node(2, 0), node(0, 0), node(3, 0), wait];
    let behind_nats = [node(0, 2), wait, node(0, 3), wait, node(0, 1), wait, node(0, 2), node(3, 0), wait];
    let posing =
        [[6, 16, 0xf0, 1, 1], [6, 16, 0x10, 0, 2], [6, 17, 0xf2, 1, 3], node(0, 0), [6, 16, 0, 1, 9]];
    [
        a_move.concat(),
        given_up.concat(),
        messages.concat(),
        roams.concat(),
        behind_nats.concat(),
        posing.concat(),
    ]
    .into()
}
