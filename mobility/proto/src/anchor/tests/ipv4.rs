//! IPv4 home addresses in the binding cache (RFC 5844).

use super::*;

const OWN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);

fn interface() -> Ipv4Interface {
    Ipv4Interface::new(OWN, 24).unwrap()
}

fn with_ipv4(epoch: u64) -> Authorization {
    Authorization { ipv4: Some(interface()), ..Gateway::of(epoch).authorization() }
}

fn anchor_with_ipv4() -> Anchor {
    let mut anchor = Anchor::new(config());
    (1..=2).for_each(|epoch| anchor.authorize(with_ipv4(epoch)).unwrap());
    anchor
}

fn at(gateway: &Gateway) -> TunnelEnd {
    TunnelEnd::Ipv6(gateway.address)
}

fn asking(gateway: &mut Gateway, address: Ipv4Addr) -> Vec<u8> {
    let asked = Ipv4Interface::new(address, 0).unwrap();
    let repr = gateway.repr(300, vec![MobilityOption::Ipv4HomeAddressRequest(asked)]);
    gateway.packet(&repr)
}

fn told(gateway: &Gateway, output: &Output) -> (Status, Vec<MobilityOption>) {
    let Output::Send(packet) = output else { panic!("{output:?} is no packet") };
    let of_ipv4 = |option: &MobilityOption| {
        matches!(option.kind(), OptionType::IPV4_HOME_ADDRESS_REPLY | OptionType::IPV4_DEFAULT_ROUTER_ADDRESS)
    };
    let options = gateway.read(packet).options.into_iter().filter(of_ipv4).collect();
    (acknowledgement(gateway, output).status, options)
}

#[test]
fn the_address_goes_where_the_prefix_goes_and_its_route_first() {
    let (mut anchor, mut first, mut second) = (anchor_with_ipv4(), Gateway::of(1), Gateway::of(2));
    let own = interface().host();
    let switched = |prefix, gateway: &Gateway, before| Output::SwitchRoute {
        prefix,
        place: place(gateway.address),
        before,
    };
    let outputs = deliver(&mut anchor, 0, &asking(&mut first, OWN));
    assert_eq!(outputs[..2], [switched(own, &first, None), switched(prefix(), &first, None)]);
    let accepted = vec![
        MobilityOption::Ipv4HomeAddressReply { status: Ipv4AddressStatus::SUCCESS, interface: interface() },
        MobilityOption::Ipv4DefaultRouterAddress(Ipv4Addr::new(198, 51, 100, 1)),
    ];
    assert_eq!(told(&first, &outputs[2]), (Status::ACCEPTED, accepted.clone()));
    assert_eq!(anchor.bound().collect::<Vec<_>>(), [own, prefix()]);
    assert!(anchor.accepts(own.address(), at(&first)) && !anchor.accepts(own.address(), at(&second)));

    // The end of the old way is marked once, behind both.
    let outputs = deliver(&mut anchor, 1, &asking(&mut second, Ipv4Addr::UNSPECIFIED));
    let before = Some(place(first.address));
    assert_eq!(outputs[..2], [switched(own, &second, None), switched(prefix(), &second, before)]);
    assert_eq!(told(&second, &outputs[2]), (Status::ACCEPTED, accepted));
    assert_eq!(anchor.care_of(own.address()), Some(at(&second)));
    let neighbour = Ipv4Addr::new(198, 51, 100, 11).to_ipv6_mapped();
    assert!(anchor.care_of(neighbour).is_none() && !anchor.accepts(neighbour, at(&second)));

    let outputs = deliver(&mut anchor, 2, &second.update(0));
    assert_eq!(outputs[..2], [Output::RemoveRoute { prefix: own }, Output::RemoveRoute { prefix: prefix() }]);
    assert_eq!(anchor.care_of(own.address()), None);
}

#[test]
fn ipv4_packets_go_to_a_gateways_own_address() {
    let (mut anchor, mut gateway) = (anchor_with_ipv4(), Gateway::of(1));
    let user_plane = MobilityOption::LmaUserPlaneAddress(ANCHOR_USER_PLANE.into());
    let repr = gateway.repr(300, vec![user_plane]);
    deliver(&mut anchor, 0, &gateway.packet(&repr));
    assert_eq!(anchor.care_of(HOME), Some(TunnelEnd::Ipv6(ANCHOR_USER_PLANE)));
    assert_eq!(anchor.care_of(OWN.to_ipv6_mapped()), Some(at(&gateway)));
}

#[test]
fn an_address_that_is_not_its_own_is_refused_and_nothing_is_bound() {
    let (mut anchor, mut gateway) = (anchor_with_ipv4(), Gateway::of(1));
    let other = Ipv4Addr::new(198, 51, 100, 11);
    let outputs = deliver(&mut anchor, 0, &asking(&mut gateway, other));
    assert_eq!(told(&gateway, &outputs[0]), (Status::NOT_AUTHORIZED_FOR_IPV4_HOME_ADDRESS, vec![]));
    assert_eq!((outputs.len(), anchor.bound().count()), (1, 0));

    let (mut anchor, mut gateway) = (super::anchor(1), Gateway::of(1));
    let outputs = deliver(&mut anchor, 0, &asking(&mut gateway, OWN));
    assert_eq!(told(&gateway, &outputs[0]), (Status::NOT_AUTHORIZED_FOR_IPV4_MOBILITY, vec![]));
    assert_eq!((outputs.len(), anchor.bound().count()), (1, 0));
}

#[test]
fn an_address_belongs_to_one_node() {
    let mut anchor = anchor_with_ipv4();
    let prefix = Ipv6Prefix::new("2001:db8:b::".parse().unwrap(), 64).unwrap();
    let node = b"other".to_vec();
    let other = Authorization { node, prefix, ..with_ipv4(3) };
    assert_eq!(anchor.authorize(other.clone()), Err(AuthorizeError::Ipv4(OWN)));
    assert_eq!(anchor.authorize(Gateway::of(3).authorization()), Err(AuthorizeError::Ipv4(OWN)));
    // With the last key it is anybody's.
    [1001, 1002].into_iter().for_each(|spi| anchor.withdraw(spi));
    assert_eq!(anchor.authorize(other), Ok(()));
    assert_eq!(anchor.authorize(with_ipv4(1)), Err(AuthorizeError::Ipv4(OWN)));
}
