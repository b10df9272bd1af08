//! A mobile node and its home agent on virtual time, with a network between them that loses, repeats, delays and keeps
//! signalling, and clocks that differ.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::anchor::{Anchor, Authorization, Config as AnchorConfig, Output as AnchorOutput, Registrant};
use crate::auth::{Algorithm, VerifyError};

const ANCHOR: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const HOME: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xf, 1, 0, 0, 0, 0x10);
const CORRESPONDENT: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 1);
const NAME: &[u8] = b"node@example.org";
const START_NS: u64 = 1_700_000_000_000_000_000;

fn care_of(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0x200 + number, 0, 0, 0, 0, 9)
}

fn key() -> SharedKey {
    SharedKey::new(300, Algorithm::HmacSha256_128, b"shared")
}

fn node() -> MobileNode {
    MobileNode::new(Config {
        home_address: HOME,
        home_agent: ANCHOR,
        name: NAME.to_vec(),
        key: key(),
        lifetime: BindingLifetime::from_secs(60),
    })
}

fn anchor(started_unix_ns: u64) -> Anchor {
    let mut anchor = Anchor::new(AnchorConfig {
        address: ANCHOR,
        user_plane: None,
        max_nodes: 1,
        max_lifetime: BindingLifetime::from_secs(40),
        max_transient: TransientLifetime::from_ms(1000),
        restart_counter: 0,
        started_unix_ns,
    });
    let prefix = Ipv6Prefix::new(HOME, 128).unwrap();
    let registrant = Registrant::MobileNode;
    anchor
        .authorize(Authorization { key: key(), node: NAME.to_vec(), prefix, ipv4: None, registrant })
        .unwrap();
    anchor
}

fn inner(source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, 59, 64];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What the update in this packet says.
fn update(packet: &[u8]) -> (Addresses, BindingUpdate, NtpTimestamp) {
    let found = Signalling::parse(packet).unwrap();
    let header = MobilityHeader::new_checked(found.message).unwrap();
    let repr = Repr::parse(&header, found.addresses.endpoints()).unwrap();
    let MobilityOption::MessageIdentification(time) = repr.options[1] else { panic!("{repr:?}") };
    match repr.message {
        Message::BindingUpdate(update) => (found.addresses, update, time),
        other => panic!("{other:?}"),
    }
}

/// Delays are one way. `fates` says how often the next packets arrive, in turn; once, when there is none left.
struct World {
    now: Duration,
    anchor: Anchor,
    node: MobileNode,
    delay: Duration,
    /// The node's clock, in ms against the home agent's.
    skew_ms: i64,
    fates: VecDeque<u8>,
    under_way: BTreeMap<(Duration, u64), (bool, Vec<u8>)>,
    /// All that was ever sent, to be replayed.
    seen: Vec<(bool, Vec<u8>)>,
    numbered: u64,
    events: Vec<Happened>,
    updates: Vec<Duration>,
    delivered: usize,
}

impl World {
    fn new(delay: Duration, skew_ms: i64, fates: Vec<u8>) -> Self {
        Self {
            now: Duration::ZERO,
            anchor: anchor(0),
            node: node(),
            delay,
            skew_ms,
            fates: fates.into(),
            under_way: BTreeMap::new(),
            seen: Vec::new(),
            numbered: 0,
            events: Vec::new(),
            updates: Vec::new(),
            delivered: 0,
        }
    }

    fn anchors_clock(&self) -> u64 {
        START_NS + self.now.as_nanos() as u64
    }

    fn nodes_clock(&self) -> u64 {
        self.anchors_clock().saturating_add_signed(self.skew_ms * 1_000_000)
    }

    fn put(&mut self, to_anchor: bool, packet: Vec<u8>) {
        for _ in 0..self.fates.pop_front().unwrap_or(1) {
            self.numbered += 1;
            self.under_way.insert((self.now + self.delay, self.numbered), (to_anchor, packet.clone()));
        }
        self.seen.push((to_anchor, packet));
    }

    fn drain(&mut self) {
        while let Some(output) = self.anchor.poll_output() {
            if let AnchorOutput::Send(packet) = output {
                self.put(false, packet);
            }
        }
        while let Some(output) = self.node.poll_output() {
            match output {
                Output::Send(packet) => {
                    self.updates.push(self.now);
                    self.put(true, packet);
                }
                Output::SendDatagram(_) => panic!("it has IPv6"),
                Output::Event(happened) => self.events.push(happened),
                Output::Deliver(_) => self.delivered += 1,
                Output::Tunnel(packet) => {
                    let source = Inner::parse(&packet).unwrap().source;
                    assert_eq!(source, HOME);
                }
            }
        }
    }

    fn arrive(&mut self, to_anchor: bool, packet: &[u8]) -> Result<(), Refusal> {
        let (now, anchors_clock, nodes_clock) = (self.now, self.anchors_clock(), self.nodes_clock());
        let taken = if to_anchor {
            self.anchor.handle_packet(now, anchors_clock, packet)
        } else {
            self.node.handle_packet(now, nodes_clock, packet)
        };
        self.drain();
        taken
    }

    /// Goes on for so long, from one thing that happens to the next.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.drain();
            let arrival = self.under_way.first_key_value().map(|((at, _), _)| *at);
            let deadlines = [arrival, self.anchor.deadline(), self.node.deadline()];
            let Some(next) = deadlines.into_iter().flatten().min().filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            if arrival == Some(next)
                && let Some((_, (to_anchor, packet))) = self.under_way.pop_first()
            {
                let _ = self.arrive(to_anchor, &packet);
            }
            self.anchor.handle_timeout(self.now);
            let (now, clock) = (self.now, self.nodes_clock());
            self.node.handle_timeout(now, clock);
        }
        self.now = end;
    }

    fn attach(&mut self, number: u16) {
        let (now, clock) = (self.now, self.nodes_clock());
        self.node.attach(now, clock, care_of(number));
        self.drain();
    }

    fn bound(&self) -> Option<Ipv6Addr> {
        self.anchor.binding(NAME).map(|(care_of, _)| care_of)
    }
}

#[test]
fn a_node_registers_where_it_is_and_is_reached_there_after_one_way() {
    let mut world = World::new(ms(50), 0, vec![]);
    world.attach(1);
    let (addresses, told, _) = update(&world.seen[0].1);
    let homed = Addresses { home_address: Some(HOME), ..Addresses::direct(care_of(1), ANCHOR) };
    assert_eq!((addresses, told.lifetime.as_secs()), (homed, 60));
    let flags = BindingUpdateFlags::ACKNOWLEDGE | BindingUpdateFlags::HOME_REGISTRATION;
    assert_eq!((told.flags, told.sequence), (flags, SequenceNumber(1)));
    world.run(ms(50));
    assert_eq!((world.bound(), world.events.len()), (Some(care_of(1)), 0));
    world.run(ms(50));
    assert_eq!(world.events, [Happened::Registered(care_of(1))]);
    // It is refreshed at half of what was granted, which is less than it asked for.
    world.run(ms(20_000));
    assert_eq!(world.updates, [ms(0), ms(20_100)]);
    world.attach(2);
    world.run(ms(100));
    assert_eq!(
        (world.bound(), world.events.last()),
        (Some(care_of(2)), Some(&Happened::Registered(care_of(2))))
    );
    assert_eq!((world.node.dropped(), world.node.is_over()), (0, false));
}

#[test]
fn what_is_not_answered_is_sent_again_after_the_times_of_rfc_6275() {
    let mut world = World::new(ms(10), 0, vec![0; 8]);
    world.attach(1);
    world.run(ms(150_000));
    let at = |seconds: &[f64]| seconds.iter().map(|s| Duration::from_secs_f64(*s)).collect::<Vec<_>>();
    // 1.5 s, doubled up to 32 s; the ninth arrives.
    assert_eq!(world.updates[..9], at(&[0.0, 1.5, 4.5, 10.5, 22.5, 46.5, 78.5, 110.5, 142.5]));
    assert_eq!(world.bound(), Some(care_of(1)));
    let sequences: Vec<u16> =
        world.seen.iter().filter(|seen| seen.0).map(|seen| update(&seen.1).1.sequence.0).collect();
    assert_eq!(sequences[..9], [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    // From then on it begins with 1 s.
    world.updates.clear();
    world.fates = vec![0; 2].into();
    world.attach(2);
    world.run(ms(4000));
    assert_eq!(world.updates, at(&[150.0, 151.0, 153.0]));
}

#[test]
fn a_clock_that_is_wrong_is_set_by_the_home_agents() {
    for skew_ms in [-9000, 9000, -500_000_000, 500_000_000] {
        let mut world = World::new(ms(20), skew_ms, vec![]);
        world.attach(1);
        world.run(ms(80));
        assert_eq!((world.bound(), world.updates.len()), (Some(care_of(1)), 2), "{skew_ms} ms");
        world.attach(2);
        world.run(ms(40));
        assert_eq!((world.bound(), world.updates.len()), (Some(care_of(2)), 3), "{skew_ms} ms");
        assert!(!world.events.iter().any(|event| matches!(event, Happened::Refused(_))));
    }
}

#[test]
fn a_number_that_was_forgotten_is_learned_again() {
    let mut world = World::new(ms(20), 0, vec![]);
    for number in 0..5 {
        world.attach(number);
        world.run(ms(1000));
    }
    // The node starts anew; its home agent remembers.
    world.node = node();
    world.attach(7);
    world.run(ms(80));
    assert_eq!((world.bound(), world.updates.len()), (Some(care_of(7)), 7));
}

/// Answers to a node that was here before, with another clock, are none.
#[test]
fn a_node_that_starts_anew_is_not_misled_by_answers_to_the_one_before() {
    let mut world = World::new(ms(36), 500_000, vec![]);
    world.attach(0);
    world.run(ms(100));
    world.node = node();
    world.attach(0);
    world.node = node();
    world.attach(0);
    world.run(ms(6000));
    world.attach(1);
    world.run(ms(10_000));
    assert_eq!(world.bound(), Some(care_of(1)));
}

/// An update that was refused because its time was to come is not accepted when that has come.
#[test]
fn a_time_to_come_is_never_accepted() {
    let mut world = World::new(ms(10), 30_000, vec![]);
    world.attach(0);
    let early = world.seen[0].1.clone();
    world.run(ms(100));
    world.attach(1);
    for _ in 0..100 {
        world.run(ms(500));
        let _ = world.arrive(true, &early);
        assert_eq!(world.bound(), Some(care_of(1)));
    }
}

#[test]
fn a_home_agent_that_was_restarted_takes_nothing_that_it_may_have_taken_before() {
    let mut world = World::new(ms(20), -100, vec![]);
    world.attach(1);
    world.run(ms(1000));
    world.attach(2);
    world.run(ms(1000));
    let before: Vec<_> = world.seen.iter().filter(|seen| seen.0).map(|seen| seen.1.clone()).collect();
    world.anchor = anchor(world.anchors_clock());
    let now = world.now;
    world.anchor.restore_mobile_node(now, NAME, care_of(2));
    world.drain();
    for packet in before {
        assert_eq!(world.arrive(true, &packet), Ok(()));
        assert_eq!(world.bound(), Some(care_of(2)));
    }
    world.under_way.clear();
    // Its clock is behind: the first is refused, the second has the home agent's time.
    world.attach(3);
    world.run(ms(80));
    assert_eq!(world.bound(), Some(care_of(3)));
}

#[test]
fn a_node_that_comes_home_or_ends_is_bound_no_more() {
    let mut world = World::new(ms(20), 0, vec![]);
    world.attach(1);
    world.run(ms(40));
    let (now, clock) = (world.now, world.nodes_clock());
    world.node.come_home(now, clock);
    world.drain();
    let (addresses, told, _) = update(&world.seen.last().unwrap().1);
    assert_eq!((addresses, told.lifetime), (Addresses::direct(HOME, ANCHOR), BindingLifetime::ZERO));
    world.run(ms(40));
    assert_eq!((world.bound(), world.events.last()), (None, Some(&Happened::Deregistered)));
    // At home nothing is tunnelled.
    world.node.handle_own(inner(HOME, CORRESPONDENT));
    assert_eq!((world.node.poll_output(), world.node.dropped()), (None, 1));

    world.attach(2);
    world.run(ms(1000));
    assert_eq!(world.bound(), Some(care_of(2)));
    let (now, clock) = (world.now, world.nodes_clock());
    world.node.end(now, clock);
    world.run(ms(40));
    assert_eq!((world.bound(), world.node.is_over()), (None, true));
    // Four times, when nobody answers.
    world.attach(3);
    world.run(ms(1000));
    world.updates.clear();
    world.fates = vec![0; 9].into();
    let (now, clock) = (world.now, world.nodes_clock());
    world.node.end(now, clock);
    world.run(ms(600_000));
    assert_eq!((world.updates.len(), world.node.is_over(), world.node.deadline()), (4, true, None));
}

#[test]
fn a_binding_that_is_not_renewed_is_known_to_have_ended() {
    let mut world = World::new(ms(20), 0, vec![1, 1]);
    world.attach(1);
    world.run(ms(100));
    world.fates = vec![0; 100].into();
    world.run(ms(100_000));
    assert_eq!(world.events, [Happened::Registered(care_of(1)), Happened::Expired]);
    assert_eq!(world.bound(), None);
    world.fates.clear();
    world.run(ms(40_000));
    assert_eq!(world.bound(), Some(care_of(1)));
}

#[test]
fn a_refusal_is_told_and_asked_again_late() {
    let mut world = World::new(ms(20), 0, vec![]);
    // The home agent knows the key under another home address.
    world.anchor.withdraw(300);
    let prefix = Ipv6Prefix::new(CORRESPONDENT, 128).unwrap();
    let registrant = Registrant::MobileNode;
    let authorization = Authorization { key: key(), node: NAME.to_vec(), prefix, ipv4: None, registrant };
    world.anchor.authorize(authorization).unwrap();
    world.attach(1);
    world.run(ms(33_000));
    assert_eq!(world.events, [Happened::Refused(Status::NOT_HOME_AGENT); 2]);
    assert_eq!(world.updates, [ms(0), ms(32_040)]);
}

#[test]
fn a_link_that_comes_and_goes_is_no_flood() {
    let mut world = World::new(ms(20), 0, vec![]);
    for number in 0..100 {
        world.attach(number % 2);
        world.run(ms(10));
    }
    world.run(ms(2000));
    assert!(world.updates.len() <= 3 * 3 + 1, "{} updates", world.updates.len());
    assert_eq!(world.bound(), Some(care_of(1)));
}

#[test]
fn only_the_home_agent_is_believed_and_only_its_tunnel_is_taken() {
    let mut world = World::new(ms(20), 0, vec![]);
    world.attach(1);
    world.run(ms(20));
    let (_, acknowledgement) = world.seen.pop().unwrap();
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = acknowledgement.clone();
        change(&mut packet);
        node_at(care_of(1)).handle_packet(ms(20), START_NS, &packet).unwrap_err()
    };
    assert_eq!(refused(&|packet| packet.truncate(60)), Refusal::Packet(SignallingError::NotIpv6(60)));
    assert_eq!(refused(&|packet| packet[23] ^= 2), Refusal::Message(ParseError::Checksum));
    assert_eq!(refused(&|packet| packet[39] ^= 2), Refusal::Destination(care_of_with(1, 0xb)));
    // Sums stay right when two bits change places.
    assert_eq!(
        refused(&|packet| (packet[21], packet[23]) = (1, 0)),
        Refusal::Address(with_last(ANCHOR, 0x1_0000))
    );
    let flip = |packet: &mut Vec<u8>| {
        let at = packet.len() - 16;
        packet.swap(at, at + 2);
    };
    let refusal = refused(&flip);
    assert!(matches!(refusal, Refusal::Proof(VerifyError::Wrong)), "{refusal:?}");

    let node = &mut world.node;
    node.handle_tunnelled(ANCHOR, inner(CORRESPONDENT, HOME));
    assert_eq!(node.poll_output(), Some(Output::Deliver(inner(CORRESPONDENT, HOME))));
    node.handle_own(inner(HOME, CORRESPONDENT));
    assert_eq!(node.poll_output(), Some(Output::Tunnel(inner(HOME, CORRESPONDENT))));
    for (from, packet) in [
        (CORRESPONDENT, inner(CORRESPONDENT, HOME)),
        (ANCHOR, inner(CORRESPONDENT, care_of(1))),
        (ANCHOR, vec![0x60; 39]),
    ] {
        node.handle_tunnelled(from, packet);
    }
    node.handle_own(inner(care_of(1), CORRESPONDENT));
    assert_eq!((node.poll_output(), node.dropped()), (None, 4));
}

fn care_of_with(number: u16, last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0x200 + number, 0, 0, 0, 0, last)
}

fn with_last(address: Ipv6Addr, last: u128) -> Ipv6Addr {
    (u128::from(address) >> 16 << 16 | last).into()
}

/// A node that has just sent its first update from there.
fn node_at(care_of: Ipv6Addr) -> MobileNode {
    let mut node = node();
    node.attach(ms(0), START_NS, care_of);
    node
}

#[test]
fn a_care_of_address_lies_in_its_prefix_and_is_the_nodes_own() {
    let prefix = |number| Ipv6Prefix::new(care_of(number), 64).unwrap();
    let own = care_of_address(prefix(1), HOME);
    assert!(prefix(1).contains(own));
    assert_eq!(own, care_of_address(prefix(1), HOME));
    assert_ne!(own, care_of_address(prefix(1), CORRESPONDENT));
    let identifier = |address: Ipv6Addr| u128::from(address) as u64;
    assert_ne!(identifier(own), identifier(care_of_address(prefix(2), HOME)));
}

#[derive(Debug, Clone)]
enum Step {
    Attach(u16),
    Run(u64),
    Replay(prop::sample::Index),
    Forge(prop::sample::Index, prop::sample::Index),
    RestartAnchor,
    RestartNode,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0_u16..4).prop_map(Step::Attach),
        4 => prop_oneof![1_u64..200, 100_u64..30_000].prop_map(Step::Run),
        3 => any::<prop::sample::Index>().prop_map(Step::Replay),
        2 => (any::<prop::sample::Index>(), any::<prop::sample::Index>())
            .prop_map(|(which, bit)| Step::Forge(which, bit)),
        1 => Just(Step::RestartAnchor),
        1 => Just(Step::RestartNode),
    ];
    prop::collection::vec(step, 1..40)
}

proptest! {
    /// Whatever is lost, repeated, replayed and restarted: once packets arrive again the node is bound where it is, and
    /// nothing that was sent before changes that.
    #[test]
    fn the_address_ends_up_where_the_node_is(
        steps in steps(),
        fates in prop::collection::vec(0_u8..3, 0..60),
        // Not far ahead: what was sent with a time to come and never arrived can be held back until then (RFC 4285 section 6
        // has no remedy). What arrived is remembered.
        skew_ms in prop_oneof![-3000_i64..3000, -100_000_i64..3000],
        delay_ms in 0_u64..300,
    ) {
        let mut world = World::new(ms(delay_ms), skew_ms, fates);
        let mut last = 0;
        for step in steps {
            match step {
                Step::Attach(number) => {
                    last = number;
                    world.attach(number);
                }
                Step::Run(time) => world.run(ms(time)),
                Step::Replay(which) if !world.seen.is_empty() => {
                    let (to_anchor, packet) = world.seen[which.index(world.seen.len())].clone();
                    let _ = world.arrive(to_anchor, &packet);
                }
                Step::Forge(which, bit) if !world.seen.is_empty() => {
                    let (to_anchor, mut packet) = world.seen[which.index(world.seen.len())].clone();
                    // What it said may be believed when the bit is one that means nothing; nothing else.
                    let said = Signalling::parse(&packet).unwrap().addresses.source;
                    let before = world.bound();
                    let bit = bit.index(8 * (packet.len() - 8));
                    packet[8 + bit / 8] ^= 1 << (bit % 8);
                    let _ = world.arrive(to_anchor, &packet);
                    prop_assert!(world.bound() == before || (to_anchor && world.bound() == Some(said)));
                }
                Step::RestartAnchor => {
                    let bound = world.bound();
                    world.anchor = anchor(world.anchors_clock());
                    if let Some(care_of) = bound {
                        let now = world.now;
                        world.anchor.restore_mobile_node(now, NAME, care_of);
                    }
                    world.drain();
                }
                Step::RestartNode => {
                    world.node = node();
                    world.attach(last);
                }
                _ => {}
            }
        }
        world.fates.clear();
        world.attach(last);
        world.run(ms(40_000));
        prop_assert_eq!(world.bound(), Some(care_of(last)));
        prop_assert_eq!(world.events.last(), Some(&Happened::Registered(care_of(last))));
        let sent = world.updates.len();
        for (to_anchor, packet) in world.seen.clone() {
            let _ = world.arrive(to_anchor, &packet);
            prop_assert_eq!(world.bound(), Some(care_of(last)));
        }
        world.run(ms(1000));
        prop_assert!(world.updates.len() <= sent + 3, "what is replayed makes the node send");
        prop_assert_eq!(world.bound(), Some(care_of(last)));
    }
}
