//! Two gateways and an anchor on virtual time, with a network between them that delays, loses and repeats signalling. A
//! correspondent sends a numbered packet every millisecond.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::anchor::{
    Anchor, Authorization, Config as AnchorConfig, Output as AnchorOutput, Registrant, TunnelEnd,
};
use crate::auth::{Algorithm, SharedKey, VerifyError};
use crate::inner::end_marker;

const ANCHOR: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const HOME: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 0x10);
const HOME_IPV4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
const CORRESPONDENT: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 1);
const NAME: &[u8] = b"vm@example.org";
const START_NS: u64 = 1_700_000_000_000_000_000;

fn gateway_address(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, number)
}

fn prefix() -> Ipv6Prefix {
    Ipv6Prefix::new(HOME, 64).unwrap()
}

/// The permission of one epoch.
fn grant(epoch: u64) -> Grant {
    let key = SharedKey::new(1000 + epoch as u32, Algorithm::HmacSha256_128, &epoch.to_be_bytes());
    Grant { key, node: NAME.to_vec(), prefix: prefix(), ipv4: Ipv4Interface::new(HOME_IPV4, 24) }
}

fn inner(source: Ipv6Addr, destination: Ipv6Addr, number: u32) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 4, 59, 64];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(number.to_be_bytes());
    packet
}

/// The same of IPv4.
fn inner_ipv4(source: Ipv4Addr, destination: Ipv4Addr, number: u32) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 24, 0, 0, 0, 0, 64, 59, 0, 0];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(number.to_be_bytes());
    packet
}

fn number(packet: &[u8]) -> u32 {
    u32::from_be_bytes(*packet.last_chunk().unwrap())
}

enum Wire {
    Signalling(Vec<u8>),
    Tunnelled(Ipv6Addr, Vec<u8>),
}

/// Delays in ms; what happens to each piece of signalling in turn.
struct World {
    now: Duration,
    anchor: Anchor,
    gateways: [Gateway; 2],
    /// By arrival, then by order of sending: fixed delays keep the order.
    under_way: BTreeMap<(Duration, u64), (Ipv6Addr, Wire)>,
    sent: u64,
    delay_to_anchor: u64,
    delay_between: u64,
    /// How often the next pieces of signalling arrive; once, when there is none left.
    fates: VecDeque<u8>,
    /// Where and which, in the order in which it came.
    delivered: Vec<(usize, u32)>,
    events: Vec<(usize, Happened)>,
    advertised: u32,
    /// Whether the anchor answers, as the gateways said.
    answers: Vec<bool>,
    anchor_at: Vec<Ipv6Addr>,
    numbered: u32,
}

fn anchor_config() -> AnchorConfig {
    AnchorConfig {
        address: ANCHOR,
        user_plane: None,
        max_nodes: 1,
        max_lifetime: BindingLifetime::from_secs(600),
        max_transient: TransientLifetime::from_ms(10_000),
        restart_counter: 0,
        started_unix_ns: 0,
    }
}

/// An anchor that knows every epoch's key and no binding.
fn anchor(config: AnchorConfig) -> Anchor {
    let mut anchor = Anchor::new(config);
    for epoch in 1..=4 {
        let address = gateway_address((epoch as u16 + 1) % 2);
        let Grant { key, node, prefix, ipv4 } = grant(epoch);
        let registrant = Registrant::Gateway { address, epoch };
        anchor.authorize(Authorization { key, node, prefix, ipv4, registrant }).unwrap();
    }
    anchor
}

impl World {
    fn new(delay_to_anchor: u64, delay_between: u64, fates: Vec<u8>) -> Self {
        let gateway = |number| {
            Gateway::new(Config {
                address: gateway_address(number),
                anchor: ANCHOR,
                user_plane: None,
                lifetime: BindingLifetime::from_secs(60),
                transient: TransientLifetime::from_ms(5000),
                buffer_bytes: 1 << 20,
                settle: Duration::from_secs(2),
            })
        };
        Self {
            now: Duration::ZERO,
            anchor: anchor(anchor_config()),
            gateways: [gateway(0), gateway(1)],
            under_way: BTreeMap::new(),
            sent: 0,
            delay_to_anchor,
            delay_between,
            fates: fates.into(),
            delivered: Vec::new(),
            events: Vec::new(),
            advertised: 0,
            answers: Vec::new(),
            anchor_at: Vec::new(),
            numbered: 0,
        }
    }

    fn unix_ns(&self) -> u64 {
        START_NS + self.now.as_nanos() as u64
    }

    fn put(&mut self, from: Ipv6Addr, to: Ipv6Addr, wire: Wire) {
        let delay = if from == ANCHOR || to == ANCHOR { self.delay_to_anchor } else { self.delay_between };
        let copies = match &wire {
            Wire::Signalling(_) => self.fates.pop_front().unwrap_or(1),
            Wire::Tunnelled(..) => 1,
        };
        for _ in 0..copies {
            self.sent += 1;
            let copy = match &wire {
                Wire::Signalling(packet) => Wire::Signalling(packet.clone()),
                Wire::Tunnelled(from, packet) => Wire::Tunnelled(*from, packet.clone()),
            };
            self.under_way.insert((self.now + Duration::from_millis(delay), self.sent), (to, copy));
        }
    }

    /// Carries out what anchor and gateways want done.
    fn drain(&mut self) {
        while let Some(output) = self.anchor.poll_output() {
            match output {
                AnchorOutput::Send(packet) => {
                    let to = Signalling::parse(&packet).unwrap().addresses.destination;
                    self.put(ANCHOR, to, Wire::Signalling(packet));
                }
                AnchorOutput::SwitchRoute { prefix, before: Some(before), .. } => {
                    self.put(ANCHOR, before.care_of, Wire::Tunnelled(ANCHOR, end_marker(ANCHOR, prefix)));
                }
                AnchorOutput::SendDatagram { .. }
                | AnchorOutput::SwitchRoute { .. }
                | AnchorOutput::RemoveRoute { .. }
                | AnchorOutput::TakeFrom { .. }
                | AnchorOutput::Keep { .. } => {}
            }
        }
        for at in 0..2 {
            let own = gateway_address(at as u16);
            self.gateways[at].delivered(self.now);
            while let Some(output) = self.gateways[at].poll_output() {
                match output {
                    Output::Send(packet) => {
                        let to = Signalling::parse(&packet).unwrap().addresses.destination;
                        self.put(own, to, Wire::Signalling(packet));
                    }
                    Output::Tunnel { to, packet } => self.put(own, to, Wire::Tunnelled(own, packet)),
                    Output::Deliver(packet) => self.delivered.push((at, number(&packet))),
                    Output::Advertise { .. } => self.advertised += 1,
                    Output::Anchor { answers } => self.answers.push(answers),
                    Output::AnchorAt(at) => self.anchor_at.push(at),
                    Output::Event { happened, .. } => self.events.push((at, happened)),
                }
            }
        }
    }

    /// Goes on for `ms`, with a packet for the machine each.
    fn run(&mut self, ms: u64) {
        for _ in 0..ms {
            self.now += Duration::from_millis(1);
            self.numbered += 1;
            // Of both versions in turn.
            let packet = match self.numbered % 2 {
                0 => inner(CORRESPONDENT, HOME, self.numbered),
                _ => inner_ipv4(Ipv4Addr::new(203, 0, 113, 1), HOME_IPV4, self.numbered),
            };
            let to = self.anchor.care_of(Inner::parse(&packet).unwrap().destination);
            if let Some(TunnelEnd::Ipv6(to)) = to {
                self.put(ANCHOR, to, Wire::Tunnelled(ANCHOR, packet));
            }
            while let Some(entry) = self.under_way.first_entry()
                && entry.key().0 <= self.now
            {
                let (to, wire) = entry.remove();
                let (now, unix_ns) = (self.now, self.unix_ns());
                let gateway = self.gateways.iter_mut().find(|gateway| gateway.config.address == to);
                match (wire, gateway) {
                    (Wire::Signalling(packet), Some(gateway)) => {
                        let _ = gateway.handle_packet(now, unix_ns, &packet);
                    }
                    (Wire::Tunnelled(from, packet), Some(gateway)) => {
                        gateway.handle_tunnelled(now, from, packet)
                    }
                    (Wire::Signalling(packet), None) => {
                        let _ = self.anchor.handle_packet(now, unix_ns, &packet);
                    }
                    (Wire::Tunnelled(from, packet), None) => {
                        let source = Inner::parse(&packet).unwrap().source;
                        assert!(self.anchor.accepts(source, TunnelEnd::Ipv6(from)));
                    }
                }
                self.drain();
            }
            let (now, unix_ns) = (self.now, self.unix_ns());
            self.anchor.handle_timeout(now);
            self.gateways.iter_mut().for_each(|gateway| gateway.handle_timeout(now, unix_ns));
            self.drain();
        }
    }

    fn with(&mut self, at: usize, work: impl FnOnce(&mut Gateway, Duration, u64)) {
        let (now, unix_ns) = (self.now, self.unix_ns());
        work(&mut self.gateways[at], now, unix_ns);
        self.drain();
    }

    /// Moves the machine from one gateway to the other in `epoch`: `paused` ms between leaving and arriving.
    fn move_to(&mut self, target: usize, epoch: u64, paused: u64) {
        let (from, to) = (gateway_address(1 - target as u16), gateway_address(target as u16));
        self.with(target, |gateway, now, ns| gateway.expect(now, ns, grant(epoch), from));
        self.run(2 * self.delay_to_anchor + 10);
        self.with(1 - target, |gateway, now, ns| gateway.forward(now, ns, grant(epoch), to, now));
        self.run(paused);
        self.with(target, |gateway, now, ns| gateway.arrived(now, ns, NAME));
    }

    fn all_delivered(&self) -> Vec<u32> {
        self.delivered.iter().map(|(_, number)| *number).collect()
    }

    fn count(&self, at: usize) -> usize {
        self.delivered.iter().filter(|(delivered_at, _)| *delivered_at == at).count()
    }
}

/// Serving at gateway 0, with packets coming.
fn served(delay_to_anchor: u64, delay_between: u64, fates: Vec<u8>) -> World {
    let mut world = World::new(delay_to_anchor, delay_between, fates);
    world.with(0, |gateway, now, ns| gateway.serve(now, ns, grant(1)));
    world.run(2 * delay_to_anchor + 20);
    world
}

/// All numbers, each the one after the one before.
fn assert_whole(world: &World) {
    let all = world.all_delivered();
    let gap = all.windows(2).find(|pair| pair[1] != pair[0] + 1);
    assert_eq!(gap, None);
    let first = *all.first().unwrap();
    let under_way = 2 * (world.delay_to_anchor + world.delay_between) as usize + 20;
    assert!(
        all.len() + under_way >= (world.numbered - first) as usize,
        "{} came of {}",
        all.len(),
        world.numbered
    );
}

#[test]
fn the_first_registration_takes_one_round_trip() {
    let mut world = World::new(50, 10, vec![]);
    world.with(0, |gateway, now, ns| gateway.serve(now, ns, grant(1)));
    world.run(99);
    assert_eq!(world.events, []);
    world.run(1);
    assert_eq!(world.events, [(0, Happened::Registered)]);
    assert_eq!(world.anchor.binding(NAME), Some((gateway_address(0), 1)));
}

#[test]
fn a_move_loses_nothing_and_keeps_the_order() {
    for (to_anchor, between) in [(0, 0), (50, 5), (5, 50), (150, 150), (1, 100)] {
        let mut world = served(to_anchor, between, vec![]);
        assert_eq!(world.advertised, 1);
        world.move_to(1, 2, 40);
        world.run(2500);
        assert_whole(&world);
        assert_eq!((world.advertised, world.gateways[1].dropped()), (2, Dropped::default()));
        assert_eq!(world.anchor.binding(NAME), Some((gateway_address(1), 2)));
        // And back, and there again.
        world.move_to(0, 3, 100);
        world.run(2500);
        world.move_to(1, 4, 1);
        world.run(2500);
        assert_whole(&world);
        assert_eq!(world.events.iter().filter(|(_, event)| *event == Happened::Revoked).count(), 3);
        assert_eq!(world.anchor.binding(NAME), Some((gateway_address(1), 4)));
        assert!(!world.gateways[0].nodes.contains_key(NAME));
    }
}

#[test]
fn what_a_machine_left_unread_when_it_stopped_goes_with_it() {
    let mut world = served(5, 5, vec![]);
    world.with(1, |gateway, now, ns| gateway.expect(now, ns, grant(2), gateway_address(0)));
    world.with(0, |gateway, now, ns| gateway.remember(now, ns, NAME));
    world.run(3000);
    // It stopped 30 ms before that was known.
    let (stopped, last_read) = (world.now, *world.all_delivered().last().unwrap());
    world.run(30);
    let unread = world.all_delivered().len();
    world.with(0, |gateway, now, ns| gateway.forward(now, ns, grant(2), gateway_address(1), stopped));
    world.run(20);
    world.with(1, |gateway, now, ns| gateway.arrived(now, ns, NAME));
    world.run(2500);
    let again: Vec<_> = world.all_delivered().split_off(unread);
    // From a few before the stop on, each once and in order.
    assert!((last_read - 7..=last_read).contains(&again[0]), "{} after {last_read}", again[0]);
    assert!(again.windows(2).all(|pair| pair[1] == pair[0] + 1));
    assert!(world.gateways[0].nodes.is_empty());
}

#[test]
fn a_machine_that_goes_on_before_its_last_move_has_settled_takes_along_what_waits() {
    let mut world = World::new(0, 0, vec![]);
    let (gateway, third) = (&mut world.gateways[1], gateway_address(2));
    let at = Duration::from_millis;
    gateway.expect(at(0), START_NS, grant(2), gateway_address(0));
    gateway.arrived(at(1), START_NS, NAME);
    gateway.remember(at(2), START_NS, NAME);
    while gateway.poll_output().is_some() {}
    let packet = |number| inner(CORRESPONDENT, HOME, number);
    // Two of the new way wait for the end of the old one, of which a packet comes and is not read any more.
    gateway.handle_tunnelled(at(3), ANCHOR, packet(2));
    gateway.handle_tunnelled(at(3), ANCHOR, packet(3));
    gateway.handle_tunnelled(at(4), gateway_address(0), packet(1));
    assert_eq!(gateway.poll_output(), Some(Output::Deliver(packet(1))));
    gateway.delivered(at(4));
    gateway.forward(at(5), START_NS, grant(3), third, at(4));
    gateway.handle_tunnelled(at(6), ANCHOR, packet(4));
    let forwarded: Vec<_> = std::iter::from_fn(|| gateway.poll_output())
        .filter_map(|output| match output {
            Output::Tunnel { to, packet } => Some((to, number(&packet))),
            _ => None,
        })
        .collect();
    assert_eq!(forwarded, [(third, 1), (third, 2), (third, 3), (third, 4)]);
}

#[test]
fn what_waits_is_bounded_and_the_oldest_goes_first() {
    let mut world = served(5, 5, vec![]);
    world.gateways[1].config.buffer_bytes = 100 * 44;
    world.move_to(1, 2, 500);
    world.run(2500);
    let dropped = world.gateways[1].dropped();
    assert!((350..450).contains(&dropped.overflow), "{dropped:?}");
    let all = world.all_delivered();
    assert!(all.is_sorted());
    assert_eq!(*all.last().unwrap() - all[0] + 1, all.len() as u32 + dropped.overflow as u32);
}

#[test]
fn a_move_that_is_given_up_leaves_everything_where_it_was() {
    let mut world = served(20, 5, vec![]);
    let (source, target) = (gateway_address(0), gateway_address(1));
    world.with(1, |gateway, now, ns| gateway.expect(now, ns, grant(2), source));
    world.run(100);
    world.with(0, |gateway, now, ns| gateway.forward(now, ns, grant(2), target, now));
    world.run(30);
    world.with(0, |gateway, now, ns| gateway.stay(now, ns, NAME));
    world.run(20);
    assert!(world.events.contains(&(1, Happened::ForwardingEnded)));
    world.with(1, |gateway, now, ns| gateway.forget(now, ns, NAME));
    let before = world.count(0);
    world.run(500);
    assert_eq!(world.anchor.binding(NAME), Some((source, 1)));
    assert!(world.count(0) >= before + 499 && world.count(1) == 0);
    // What came meanwhile too, and in its order.
    assert_whole(&world);
    assert!(world.gateways[1].nodes.is_empty() && world.gateways[1].prefixes.is_empty());
    // The next one succeeds.
    world.move_to(1, 4, 20);
    world.run(2500);
    assert_eq!(world.anchor.binding(NAME), Some((target, 4)));
}

#[test]
fn a_target_that_never_answers_leaves_the_source_in_charge() {
    let mut world = served(20, 5, vec![]);
    let (source, target) = (gateway_address(0), gateway_address(1));
    world.with(1, |gateway, now, ns| gateway.expect(now, ns, grant(2), source));
    world.run(100);
    world.gateways[1] = Gateway::new(world.gateways[1].config);
    world.with(0, |gateway, now, ns| gateway.forward(now, ns, grant(2), target, now));
    world.run(20_000);
    assert_eq!(world.anchor.binding(NAME), Some((source, 1)));
    world.with(0, |gateway, now, ns| gateway.stay(now, ns, NAME));
    let before = world.count(0);
    world.run(1000);
    assert!(world.count(0) >= before + 999);
    assert_whole(&world);
}

#[test]
fn only_a_machine_that_is_here_and_settled_may_be_served_without_the_gateway() {
    let mut world = served(5, 5, vec![]);
    let carriers = |world: &World| [0, 1].map(|at| world.gateways[at].carrier(NAME));
    assert_eq!(carriers(&world), [Carrier::Anyone, Carrier::Nobody]);
    world.with(1, |gateway, now, ns| gateway.expect(now, ns, grant(2), gateway_address(0)));
    world.with(0, |gateway, now, ns| gateway.remember(now, ns, NAME));
    assert_eq!(carriers(&world), [Carrier::Gateway, Carrier::Gateway]);
    world.with(0, |gateway, now, ns| gateway.stay(now, ns, NAME));
    assert_eq!(carriers(&world), [Carrier::Anyone, Carrier::Gateway]);
    world.with(0, |gateway, now, ns| gateway.forward(now, ns, grant(2), gateway_address(1), now));
    world.run(20);
    world.with(1, |gateway, now, ns| gateway.arrived(now, ns, NAME));
    assert_eq!(carriers(&world), [Carrier::Gateway, Carrier::Gateway]);
    world.run(20);
    assert_eq!(carriers(&world), [Carrier::Gateway, Carrier::Anyone]);
    // What the end marker has overtaken is delivered all the same, from the source and for a while.
    let late = || inner(CORRESPONDENT, HOME, u32::MAX);
    let count = |world: &World| world.delivered.iter().filter(|(_, number)| *number == u32::MAX).count();
    for (from, delivered) in [(gateway_address(0), 1), (gateway_address(3), 1)] {
        world.with(1, |gateway, now, _| gateway.handle_tunnelled(now, from, late()));
        assert_eq!(count(&world), delivered);
    }
    world.run(2500);
    world.with(1, |gateway, now, _| gateway.handle_tunnelled(now, gateway_address(0), late()));
    assert_eq!((count(&world), carriers(&world)), (1, [Carrier::Nobody, Carrier::Anyone]));
}

#[test]
fn a_gateway_learns_where_its_anchor_takes_packets() {
    let elsewhere = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x5213);
    let mut world = World::new(5, 5, vec![]);
    world.anchor = Anchor::new(AnchorConfig { user_plane: Some(elsewhere), ..anchor_config() });
    let Grant { key, node, prefix, ipv4 } = grant(1);
    let registrant = Registrant::Gateway { address: gateway_address(0), epoch: 1 };
    world.anchor.authorize(Authorization { key, node, prefix, ipv4, registrant }).unwrap();
    world.with(0, |gateway, now, ns| gateway.serve(now, ns, grant(1)));
    world.run(100);
    world.with(0, |gateway, now, ns| gateway.serve(now, ns, grant(1)));
    world.run(100);
    assert_eq!(world.anchor_at, [elsewhere]);
}

#[test]
fn a_lost_end_marker_only_costs_the_settling_time() {
    let mut world = served(20, 5, vec![]);
    world.move_to(1, 2, 10);
    // The source dies with what it was to forward.
    world.gateways[0] = Gateway::new(world.gateways[0].config);
    world.run(4000);
    let all = world.all_delivered();
    assert!(all.is_sorted() && all.len() as u32 + 60 >= *all.last().unwrap() - all[0]);
}

#[test]
fn a_guest_sends_only_what_is_its_own_and_only_while_it_is_here() {
    let mut world = served(5, 5, vec![]);
    let before = world.gateways[0].dropped().foreign;
    let elsewhere = Ipv4Addr::new(203, 0, 113, 1);
    world.with(0, |gateway, _, _| {
        gateway.handle_guest(inner(HOME, CORRESPONDENT, 1));
        gateway.handle_guest(inner_ipv4(HOME_IPV4, elsewhere, 1));
    });
    assert_eq!(world.gateways[0].dropped().foreign, before);
    world.with(0, |gateway, now, _| {
        gateway.handle_guest(inner(CORRESPONDENT, HOME, 1));
        gateway.handle_guest(inner_ipv4(elsewhere, HOME_IPV4, 1));
        gateway.handle_guest(inner_ipv4(Ipv4Addr::new(198, 51, 100, 11), elsewhere, 1));
        gateway.handle_guest(vec![0x60; 39]);
        gateway.handle_guest(vec![]);
        // Neither may another gateway send to it in a tunnel.
        gateway.handle_tunnelled(now, gateway_address(1), inner(CORRESPONDENT, HOME, 0));
        gateway.handle_tunnelled(now, ANCHOR, inner(CORRESPONDENT, gateway_address(3), 0));
    });
    assert_eq!(world.gateways[0].dropped().foreign, before + 7);
    assert!(!world.all_delivered().contains(&0));
}

#[test]
fn signalling_of_another_key_or_from_elsewhere_is_refused() {
    let mut world = served(5, 5, vec![]);
    let stranger = Grant { key: SharedKey::new(1001, Algorithm::HmacSha256_128, b"guessed"), ..grant(1) };
    let mut forger = Gateway::new(Config { address: gateway_address(1), ..world.gateways[1].config });
    forger.serve(world.now, START_NS, stranger.clone());
    forger.forward(world.now, START_NS, stranger, gateway_address(0), world.now);
    let outputs: Vec<_> = std::iter::from_fn(|| forger.poll_output()).collect();
    let [Output::Send(update), Output::Advertise { .. }, Output::Send(handover)] = &outputs[..] else {
        panic!("{outputs:?}")
    };
    let refused = world.gateways[0].handle_packet(world.now, START_NS, handover);
    assert_eq!(refused, Err(Refusal::Proof(VerifyError::Wrong)));
    assert_eq!(
        world.gateways[0].handle_packet(world.now, START_NS, update),
        Err(Refusal::Destination(ANCHOR))
    );
    assert_eq!(world.gateways[0].poll_output(), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Signalling is lost and repeated: in the end the anchor and the target agree, and nothing comes twice.
    #[test]
    fn lost_and_repeated_signalling_ends_at_the_owner(
        fates in proptest::collection::vec(0_u8..3, 0..30),
        to_anchor in 0_u64..60,
        between in 0_u64..60,
        paused in 0_u64..200,
        gives_up: bool,
    ) {
        let mut world = served(to_anchor, between, vec![]);
        world.fates = fates.into();
        let (source, target) = (gateway_address(0), gateway_address(1));
        world.with(1, |gateway, now, ns| gateway.expect(now, ns, grant(2), source));
        world.run(2 * to_anchor + 10);
        world.with(0, |gateway, now, ns| gateway.forward(now, ns, grant(2), target, now));
        world.run(paused);
        if gives_up {
            world.with(0, |gateway, now, ns| gateway.stay(now, ns, NAME));
            world.with(1, |gateway, now, ns| gateway.forget(now, ns, NAME));
        } else {
            world.with(1, |gateway, now, ns| gateway.arrived(now, ns, NAME));
        }
        world.run(40_000);
        let owner = usize::from(!gives_up);
        prop_assert_eq!(world.anchor.binding(NAME).map(|(at, _)| at), Some(gateway_address(owner as u16)));
        let before = world.count(owner);
        let other = world.count(1 - owner);
        world.run(1000);
        prop_assert!(world.count(owner) >= before + 999);
        prop_assert_eq!(world.count(1 - owner), other);
        let mut all = world.all_delivered();
        all.sort_unstable();
        prop_assert!(all.windows(2).all(|pair| pair[0] != pair[1]), "a packet came twice");
    }
}

#[test]
fn an_anchor_that_was_started_anew_is_asked_again_long_before_the_renewal() {
    let mut world = World::new(5, 1, vec![]);
    world.gateways[0].config.lifetime = BindingLifetime::from_secs(600);
    world.with(0, |gateway, now, ns| gateway.serve(now, ns, grant(1)));
    world.run(61_000);
    assert_eq!(world.anchor.binding(NAME), Some((gateway_address(0), 1)));
    world.anchor = anchor(AnchorConfig { restart_counter: 1, ..anchor_config() });
    world.run(60_000);
    assert_eq!(world.anchor.binding(NAME), Some((gateway_address(0), 1)));
    assert_eq!(world.answers, [true]);
}

#[test]
fn an_anchor_that_does_not_answer_is_told_of_once_and_when_it_is_back() {
    let mut world = served(5, 1, vec![]);
    world.run(61_000);
    assert_eq!(world.answers, []);
    world.fates = vec![0; 100].into();
    world.run(182_000);
    assert_eq!(world.answers, []);
    world.run(120_000);
    assert_eq!(world.answers, [false]);
    world.fates.clear();
    world.run(60_000);
    assert_eq!(world.answers, [false, true]);
    assert_eq!(world.anchor.binding(NAME), Some((gateway_address(0), 1)));
}

#[test]
fn an_answer_that_is_played_back_tells_nothing() {
    let mut heartbeat = Heartbeat::default();
    assert_eq!(heartbeat.poll(Duration::ZERO), None);
    let ask = |heartbeat: &mut Heartbeat, at| heartbeat.poll(Duration::from_secs(at)).unwrap().sequence;
    let first = ask(&mut heartbeat, 60);
    assert_eq!(heartbeat.answered(first, Some(7)), Heard::Alive);
    assert_eq!(heartbeat.answered(first, Some(8)), Heard::Nothing);
    let second = ask(&mut heartbeat, 120);
    assert_eq!(heartbeat.answered(first, Some(8)), Heard::Nothing);
    assert_eq!(heartbeat.answered(second, Some(8)), Heard::Back);
    heartbeat.rest();
    assert_eq!(heartbeat.deadline(), None);
}
