//! A mobile node that has IPv4 only, behind a NAT or not, and its home agent.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::*;
use crate::anchor::{
    Anchor, Authorization, Config as AnchorConfig, Output as AnchorOutput, Place, Registrant, TunnelEnd,
};
use crate::auth::Algorithm;

const ANCHOR: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const HOME: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 0x10);
const PRIVATE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 5);
const NAME: &[u8] = b"node@example.org";
const START_NS: u64 = 1_700_000_000_000_000_000;

fn key() -> SharedKey {
    SharedKey::new(0x1000, Algorithm::HmacSha256_128, &[7; 32])
}

fn nat(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 7), port)
}

fn pair() -> (MobileNode, Anchor) {
    let mut anchor = Anchor::new(AnchorConfig {
        address: ANCHOR,
        user_plane: None,
        max_nodes: 1,
        max_lifetime: BindingLifetime::from_secs(600),
        max_transient: TransientLifetime::from_ms(10_000),
        restart_counter: 0,
        started_unix_ns: 0,
    });
    let (prefix, registrant) = (Ipv6Prefix::new(HOME, 128).unwrap(), Registrant::MobileNode);
    anchor
        .authorize(Authorization { key: key(), node: NAME.to_vec(), prefix, ipv4: None, registrant })
        .unwrap();
    let node = MobileNode::new(Config {
        home_address: HOME,
        home_agent: ANCHOR,
        name: NAME.to_vec(),
        key: key(),
        lifetime: BindingLifetime::from_secs(300),
    });
    (node, anchor)
}

fn sent(node: &mut MobileNode) -> Vec<u8> {
    match node.poll_output() {
        Some(Output::SendDatagram(packet)) => packet,
        other => panic!("{other:?} is no datagram"),
    }
}

/// Takes an update to the anchor as from there, and the answer back; gives what the anchor does before.
fn exchange(
    node: &mut MobileNode,
    anchor: &mut Anchor,
    at_s: u64,
    from: SocketAddrV4,
) -> (Vec<AnchorOutput>, Vec<MobilityOption>) {
    let (now, ns) = (Duration::from_secs(at_s), START_NS + at_s * 1_000_000_000);
    anchor.handle_datagram(now, ns, from, &sent(node)).unwrap();
    let mut outputs: Vec<_> = std::iter::from_fn(|| anchor.poll_output()).collect();
    let at = outputs.iter().position(|output| matches!(output, AnchorOutput::SendDatagram { .. })).unwrap();
    let AnchorOutput::SendDatagram { to, packet } = outputs.remove(at) else { unreachable!() };
    assert_eq!(to, from);
    let Signalling { addresses, message, .. } = Signalling::parse(&packet).unwrap();
    assert_eq!(addresses, Addresses::direct(ANCHOR, HOME));
    let header = MobilityHeader::new_checked(message).unwrap();
    let options = Repr::parse(&header, addresses.endpoints()).unwrap().options;
    node.handle_packet(now, ns, &packet).unwrap();
    (outputs, options)
}

#[test]
fn a_node_behind_a_nat_is_reached_where_it_came_from_and_keeps_the_way_awake() {
    let (mut node, mut anchor) = pair();
    node.attach(Duration::ZERO, START_NS, PRIVATE.to_ipv6_mapped());
    let (outputs, told) = exchange(&mut node, &mut anchor, 0, nat(4001));
    let prefix = Ipv6Prefix::new(HOME, 128).unwrap();
    let place = Place { care_of: PRIVATE.to_ipv6_mapped(), udp: Some(nat(4001)), user_plane: None };
    assert_eq!(outputs[0], AnchorOutput::SwitchRoute { prefix, place, before: None });
    assert!(told.contains(&MobilityOption::NatDetection { force: false, refresh_s: 25 }));
    assert_eq!(node.poll_output(), Some(Output::Event(Happened::Registered(PRIVATE.to_ipv6_mapped()))));
    assert_eq!(node.deadline(), Some(Duration::from_secs(25)));
    assert_eq!(anchor.care_of(HOME), Some(TunnelEnd::Udp(nat(4001))));
    assert!(anchor.accepts(HOME, TunnelEnd::Udp(nat(4001))));
    let others =
        [TunnelEnd::Udp(nat(4002)), TunnelEnd::Ipv6(PRIVATE.to_ipv6_mapped()), TunnelEnd::Ipv6(HOME)];
    assert!(others.iter().all(|other| !anchor.accepts(HOME, *other)));

    // The NAT has forgotten it: the next update says where it is.
    node.handle_timeout(Duration::from_secs(25), START_NS + 25_000_000_000);
    let (outputs, _) = exchange(&mut node, &mut anchor, 25, nat(4009));
    assert!(matches!(outputs[0], AnchorOutput::SwitchRoute { before: Some(before), .. } if before == place));
    assert_eq!(anchor.care_of(HOME), Some(TunnelEnd::Udp(nat(4009))));
    assert!(!anchor.accepts(HOME, TunnelEnd::Udp(nat(4001))));
}

#[test]
fn a_node_without_a_nat_is_told_to_use_udp_and_need_not_keep_anything_awake() {
    let (mut node, mut anchor) = pair();
    let own = nat(5000);
    node.attach(Duration::ZERO, START_NS, own.ip().to_ipv6_mapped());
    let (_, told) = exchange(&mut node, &mut anchor, 0, own);
    assert!(told.contains(&MobilityOption::NatDetection { force: true, refresh_s: u32::MAX }));
    while node.poll_output().is_some() {}
    assert_eq!(node.deadline(), Some(Duration::from_secs(150)));

    // Where it hears a router it goes on over IPv6, and may come back.
    let native = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 5);
    let at = Duration::from_secs(10);
    node.attach(at, START_NS + 10_000_000_000, native);
    let Some(Output::Send(update)) = node.poll_output() else { panic!("no packet") };
    anchor.handle_packet(at, START_NS + 10_000_000_000, &update).unwrap();
    assert_eq!(anchor.care_of(HOME), Some(TunnelEnd::Ipv6(native)));
    node.attach(Duration::from_secs(20), START_NS + 20_000_000_000, PRIVATE.to_ipv6_mapped());
    exchange(&mut node, &mut anchor, 20, nat(4001));
    assert_eq!(anchor.care_of(HOME), Some(TunnelEnd::Udp(nat(4001))));
}

#[test]
fn what_is_forged_repeated_or_comes_the_wrong_way_changes_nothing() {
    let (mut node, mut anchor) = pair();
    node.attach(Duration::ZERO, START_NS, PRIVATE.to_ipv6_mapped());
    let update = sent(&mut node);
    let mut refused = |from: Option<SocketAddrV4>, packet: &[u8]| {
        let taken = match from {
            Some(from) => anchor.handle_datagram(Duration::ZERO, START_NS, from, packet),
            None => anchor.handle_packet(Duration::ZERO, START_NS, packet),
        };
        assert!(taken.is_err());
        assert_eq!((anchor.poll_output(), anchor.care_of(HOME)), (None, None));
    };
    // It is one of UDP, whatever its address says: without, its proof would cover another one.
    refused(None, &update);
    for at in 0..update.len() {
        let mut changed = update.clone();
        changed[at] ^= 0x10;
        // The version's class and flow label and the hop limit are nobody's.
        if !matches!(at, 1..=3 | 7) {
            refused(Some(nat(4001)), &changed);
        }
    }
    for len in 0..update.len() {
        refused(Some(nat(4001)), &update[..len]);
    }
    // What a node has sent over IPv6 is not for UDP.
    let (mut other, _) = pair();
    other.attach(Duration::ZERO, START_NS, Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 5));
    let Some(Output::Send(native)) = other.poll_output() else { panic!("no packet") };
    refused(Some(nat(4001)), &native);

    // Once more from elsewhere: it is answered, since its proof is right, and not followed.
    anchor.handle_datagram(Duration::ZERO, START_NS, nat(4001), &update).unwrap();
    while anchor.poll_output().is_some() {}
    anchor.handle_datagram(Duration::from_secs(1), START_NS + 1_000_000_000, nat(666), &update).unwrap();
    assert_eq!(anchor.care_of(HOME), Some(TunnelEnd::Udp(nat(4001))));
    let answers: Vec<_> = std::iter::from_fn(|| anchor.poll_output()).collect();
    assert!(
        matches!(&answers[..], [AnchorOutput::SendDatagram { to, .. }] if *to == nat(666)),
        "{answers:?}"
    );
}

#[test]
fn a_gateway_does_not_register_over_udp() {
    let (_, mut anchor) = pair();
    anchor.withdraw(key().spi());
    let prefix = Ipv6Prefix::new(HOME, 64).unwrap();
    let registrant = Registrant::Gateway { address: HOME, epoch: 1 };
    anchor
        .authorize(Authorization { key: key(), node: NAME.to_vec(), prefix, ipv4: None, registrant })
        .unwrap();
    let (mut node, _) = pair();
    node.attach(Duration::ZERO, START_NS, PRIVATE.to_ipv6_mapped());
    let taken = anchor.handle_datagram(Duration::ZERO, START_NS, nat(4001), &sent(&mut node));
    assert!(taken.is_err() && anchor.poll_output().is_none());
}
