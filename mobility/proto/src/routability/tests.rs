//! A mobile node and a correspondent on virtual time, over a network that loses, repeats and delays; and others who want the
//! node's packets.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv6Addr;

use proptest::prelude::*;

use super::*;
use crate::auth::{BindingKey, CorrespondentKey, Covered, VerifyError};
use crate::received::Refusal;
use crate::wire::*;

const HOME: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xf, 1, 0, 0, 0, 0x10);
const CORRESPONDENT: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 1);
const ATTACKER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xbad, 0, 0, 0, 0, 1);

fn care_of(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0x200 + number, 0, 0, 0, 0, 9)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn correspondent() -> Correspondent {
    let key = CorrespondentKey([3; 20]);
    Correspondent::new(CorrespondentConfig { address: CORRESPONDENT, key, max_bindings: 2 })
}

/// One way takes 10 ms, through the tunnel 30.
struct World {
    now: Duration,
    correspondent: Correspondent,
    node: Initiator,
    fates: VecDeque<u8>,
    under_way: BTreeMap<(Duration, u64), (bool, Vec<u8>)>,
    seen: Vec<(bool, Vec<u8>)>,
    events: Vec<Happened>,
    next_nonce: Duration,
}

impl World {
    fn new(fates: Vec<u8>) -> Self {
        let node = Initiator::new(InitiatorConfig {
            home_address: HOME,
            correspondent: CORRESPONDENT,
            secret: [5; 16],
        });
        Self {
            now: Duration::ZERO,
            correspondent: correspondent(),
            node,
            fates: fates.into(),
            under_way: BTreeMap::new(),
            seen: Vec::new(),
            events: Vec::new(),
            next_nonce: Duration::ZERO,
        }
    }

    fn put(&mut self, to_correspondent: bool, delay: Duration, packet: Vec<u8>) {
        for _ in 0..self.fates.pop_front().unwrap_or(1) {
            let key = (self.now + delay, self.under_way.len() as u64 + self.seen.len() as u64 * 8);
            self.under_way.insert(key, (to_correspondent, packet.clone()));
        }
        self.seen.push((to_correspondent, packet));
    }

    fn drain(&mut self) {
        while let Some(packet) = self.correspondent.poll_output() {
            let to = Signalling::parse(&packet).unwrap().addresses.destination;
            self.put(false, if to == HOME { ms(30) } else { ms(10) }, packet);
        }
        while let Some(output) = self.node.poll_output() {
            match output {
                Output::Send(packet) => self.put(true, ms(10), packet),
                Output::Tunnel(packet) => self.put(true, ms(30), packet),
                Output::Event(happened) => self.events.push(happened),
            }
        }
    }

    fn arrive(&mut self, to_correspondent: bool, packet: &[u8]) -> Result<(), Refusal> {
        let taken = if to_correspondent {
            self.correspondent.handle_packet(self.now, packet)
        } else {
            self.node.handle_packet(self.now, packet)
        };
        self.drain();
        taken
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.drain();
            let arrival = self.under_way.first_key_value().map(|((at, _), _)| *at);
            let times = [arrival, self.node.deadline(), self.correspondent.deadline(), Some(self.next_nonce)];
            let Some(next) = times.into_iter().flatten().min().filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            if self.next_nonce <= self.now {
                self.correspondent.renew_nonce(self.now, (self.now.as_secs() + 77).to_be_bytes());
                self.next_nonce = self.now + Duration::from_secs(30);
            }
            if arrival == Some(next)
                && let Some((_, (to_correspondent, packet))) = self.under_way.pop_first()
            {
                let _ = self.arrive(to_correspondent, &packet);
            }
            self.correspondent.handle_timeout(self.now);
            self.node.handle_timeout(self.now);
        }
        self.now = end;
    }

    fn attach(&mut self, number: u16) {
        self.node.attach(self.now, care_of(number));
        self.drain();
    }

    fn bound(&self) -> Option<Ipv6Addr> {
        self.correspondent.care_of(HOME)
    }
}

#[test]
fn both_tests_and_an_update_bind_and_a_new_care_of_address_needs_one_test() {
    let mut world = World::new(vec![]);
    world.run(ms(1));
    world.attach(1);
    // The home test takes 60 ms, the update 10, its answer 10.
    world.run(ms(69));
    assert_eq!(world.bound(), None);
    world.run(ms(1));
    assert_eq!((world.bound(), world.events.len()), (Some(care_of(1)), 0));
    world.run(ms(10));
    assert_eq!(world.events, [Happened::Bound(care_of(1))]);
    world.attach(2);
    world.run(ms(30));
    assert_eq!(world.bound(), Some(care_of(2)));
    // It stays so, with ever new tokens.
    world.run(Duration::from_secs(3000));
    assert_eq!(world.bound(), Some(care_of(2)));
    assert!(!world.events.contains(&Happened::Unbound), "{:?}", world.events);
    world.node.come_home(world.now);
    world.run(ms(100));
    assert_eq!((world.bound(), world.events.last()), (None, Some(&Happened::Unbound)));
    assert!(world.seen.len() < 300, "{} packets", world.seen.len());
}

#[test]
fn who_is_not_reached_at_both_addresses_cannot_bind() {
    let mut world = World::new(vec![]);
    world.run(ms(1));
    world.attach(1);
    world.run(ms(100));
    // Somebody who is reached at an address of its own only, and guesses the other token.
    let test = Repr { message: Message::CareOfTestInit(*b"attacker"), options: vec![] };
    let addresses = Addresses::direct(ATTACKER, CORRESPONDENT);
    let message = test.emit(addresses.endpoints()).unwrap();
    world
        .correspondent
        .handle_packet(world.now, &addresses.emit(MobilityHeader::new_checked(&message).unwrap()))
        .unwrap();
    let answer = world.correspondent.poll_output().unwrap();
    let found = Signalling::parse(&answer).unwrap();
    assert_eq!(found.addresses, Addresses::direct(CORRESPONDENT, ATTACKER));
    let header = MobilityHeader::new_checked(found.message).unwrap();
    let Message::CareOfTest(told) = Repr::parse(&header, found.addresses.endpoints()).unwrap().message else {
        panic!("no Care-of Test")
    };
    assert_eq!(told.cookie, *b"attacker");
    let stolen = |token: KeygenToken, home_address: Option<Ipv6Addr>| {
        let update = BindingUpdate {
            sequence: SequenceNumber(900),
            flags: BindingUpdateFlags::ACKNOWLEDGE,
            lifetime: BindingLifetime::from_secs(60),
        };
        let indices = MobilityOption::NonceIndices { home: told.nonce_index, care_of: told.nonce_index };
        let repr = Repr { message: Message::BindingUpdate(update), options: vec![indices] };
        let addresses = Addresses { home_address, ..Addresses::direct(ATTACKER, CORRESPONDENT) };
        let covered = Covered { care_of: ATTACKER, peer: CORRESPONDENT };
        let key = BindingKey::new(token, Some(told.token));
        let message = key.emit(&repr, addresses.endpoints(), covered).unwrap();
        addresses.emit(MobilityHeader::new_checked(&message).unwrap())
    };
    for token in [told.token, [0; 8]] {
        let refused = world.correspondent.handle_packet(world.now, &stolen(token, Some(HOME)));
        assert_eq!((refused, world.bound()), (Err(Refusal::Proof(VerifyError::Wrong)), Some(care_of(1))));
        assert_eq!(world.correspondent.poll_output(), None);
    }
    // Nor does a packet of it pass for the node's.
    assert!(world.correspondent.accepts(care_of(1), HOME));
    assert!(!world.correspondent.accepts(ATTACKER, HOME));
    let error = world.correspondent.poll_output().unwrap();
    let found = Signalling::parse(&error).unwrap();
    let repr = Repr::parse(&MobilityHeader::new_checked(found.message).unwrap(), found.addresses.endpoints());
    let status = BindingErrorStatus::UNKNOWN_BINDING;
    assert_eq!(repr.unwrap().message, Message::BindingError { status, home_address: HOME });
    assert_eq!(world.correspondent.poll_output(), None);
}

#[test]
fn an_update_that_comes_again_after_the_binding_ended_binds_no_more() {
    let mut world = World::new(vec![]);
    world.run(ms(1));
    world.attach(1);
    world.run(ms(100));
    let update = world.seen.iter().rev().find(|seen| seen.0).unwrap().1.clone();
    world.node.come_home(world.now);
    world.run(ms(200));
    assert_eq!(world.bound(), None);
    // While its tokens could be used its number is known; then the nonces are over.
    for seconds in [1, 100, 130, 20, 400] {
        world.run(Duration::from_secs(seconds));
        let _ = world.correspondent.handle_packet(world.now, &update);
        assert_eq!(world.bound(), None, "after {:?}", world.now);
    }
    assert_eq!(world.correspondent.deadline(), None);
}

#[test]
fn a_correspondent_remembers_no_more_nodes_than_it_may() {
    let mut correspondent = correspondent();
    correspondent.renew_nonce(ms(0), [9; 8]);
    let mut events = Vec::new();
    for number in 0..3 {
        let home_address = care_of(100 + number);
        let config =
            InitiatorConfig { home_address, correspondent: CORRESPONDENT, secret: [number as u8; 16] };
        let mut node = Initiator::new(config);
        node.attach(ms(0), care_of(number));
        while let Some(output) = node.poll_output() {
            match output {
                Output::Send(packet) | Output::Tunnel(packet) => {
                    correspondent.handle_packet(ms(0), &packet).unwrap()
                }
                Output::Event(happened) => events.push(happened),
            }
            while let Some(packet) = correspondent.poll_output() {
                node.handle_packet(ms(0), &packet).unwrap();
            }
        }
    }
    let full = Happened::Refused(Status::INSUFFICIENT_RESOURCES);
    assert_eq!(events, [Happened::Bound(care_of(0)), Happened::Bound(care_of(1)), full]);
}

#[derive(Debug, Clone)]
enum Step {
    Attach(u16),
    Home,
    Run(u64),
    Replay(prop::sample::Index),
    Forge(prop::sample::Index, prop::sample::Index),
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0_u16..3).prop_map(Step::Attach),
        1 => Just(Step::Home),
        4 => prop_oneof![1_u64..100, 100_u64..300_000].prop_map(Step::Run),
        3 => any::<prop::sample::Index>().prop_map(Step::Replay),
        2 => (any::<prop::sample::Index>(), any::<prop::sample::Index>())
            .prop_map(|(which, bit)| Step::Forge(which, bit)),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..30)
}

proptest! {
    /// Whatever is lost, repeated, replayed and forgotten: the correspondent sends only where the node has been, and once
    /// packets arrive again where it is.
    #[test]
    fn the_correspondent_sends_where_the_node_is(
        steps in steps(),
        fates in prop::collection::vec(0_u8..3, 0..60),
    ) {
        let mut world = World::new(fates);
        world.run(ms(1));
        let mut last = 0;
        for step in steps {
            match step {
                Step::Attach(number) => {
                    last = number;
                    world.attach(number);
                }
                Step::Home => world.node.come_home(world.now),
                Step::Run(time) => world.run(ms(time)),
                Step::Replay(which) if !world.seen.is_empty() => {
                    let (to_correspondent, packet) = world.seen[which.index(world.seen.len())].clone();
                    let _ = world.arrive(to_correspondent, &packet);
                }
                Step::Forge(which, bit) if !world.seen.is_empty() => {
                    let (to_correspondent, mut packet) = world.seen[which.index(world.seen.len())].clone();
                    let bit = bit.index(8 * (packet.len() - 8));
                    packet[8 + bit / 8] ^= 1 << (bit % 8);
                    let _ = world.arrive(to_correspondent, &packet);
                }
                Step::Restart => {
                    world.correspondent = correspondent();
                    world.next_nonce = world.now;
                }
                _ => {}
            }
            let reached = world.bound();
            prop_assert!(reached.is_none_or(|reached| (0..3).any(|number| reached == care_of(number))));
        }
        world.fates.clear();
        world.run(Duration::from_secs(1));
        world.attach(last);
        world.run(Duration::from_secs(300));
        prop_assert_eq!(world.bound(), Some(care_of(last)));
        for (to_correspondent, packet) in world.seen.clone() {
            let _ = world.arrive(to_correspondent, &packet);
            prop_assert_eq!(world.bound(), Some(care_of(last)));
        }
    }
}
