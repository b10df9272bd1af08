use super::*;

const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

fn prefix() -> Ipv6Prefix {
    Ipv6Prefix::new(Ipv6Addr::new(0x2001, 0xdb8, 0xa, 1, 0, 0, 0, 0), 64).unwrap()
}

/// An advertisement as radvd makes it: source link-layer address, MTU, prefix.
fn advertisement() -> Vec<u8> {
    let mut message = vec![134, 0, 0xab, 0xcd, 64, 0, 0, 30, 0, 0, 0, 0, 0, 0, 0, 0];
    message.extend([1, 1, 2, 0, 0, 0, 0, 7]);
    message.extend([5, 1, 0, 0, 0, 0, 5, 0xdc]);
    message.extend([3, 4, 64, 0xc0, 0, 0, 14, 16, 0, 0, 7, 8, 0, 0, 0, 0]);
    message.extend(prefix().address().octets());
    message
}

#[test]
fn an_advertisement_offers_a_router_and_a_prefix() {
    let router = Router { address: ROUTER, link_layer: Some([2, 0, 0, 0, 0, 7]), prefix: prefix() };
    assert_eq!(Heard::parse(ROUTER, &advertisement()), Some(Heard::Router(router)));
    let without = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut message = advertisement();
        change(&mut message);
        Heard::parse(ROUTER, &message)
    };
    let silent = Router { link_layer: None, ..router };
    assert_eq!(without(&|message| message[16] = 14), Some(Heard::Router(silent)));
    // No default router, no use of the prefix, another length, none that is valid, options that are cut off or empty.
    for (at, value) in [(7, 0), (35, 0x80), (34, 56), (39, 0), (33, 5), (17, 0), (17, 200)] {
        let change = |message: &mut Vec<u8>| {
            message[at] = value;
            if at == 39 {
                message[38] = 0;
            }
        };
        assert_eq!(without(&change), None, "byte {at}");
    }
    assert_eq!(Heard::parse(prefix().address(), &advertisement()), None);
    for len in 0..advertisement().len() {
        assert_eq!(Heard::parse(ROUTER, &advertisement()[..len]), None, "{len} bytes");
    }
}

#[test]
fn an_answer_says_who_is_there() {
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(ROUTER.octets());
    assert_eq!(Heard::parse(ROUTER, &message), Some(Heard::Neighbor(ROUTER)));
    assert_eq!(Heard::parse(ROUTER, &message[..23]), None);
    assert_eq!(Heard::parse(ROUTER, &[128; 24]), None);
}

#[test]
fn solicitations_come_from_nobody_and_have_right_checksums() {
    let (to, packet) = solicit_routers();
    assert_eq!(to, "ff02::2".parse::<Ipv6Addr>().unwrap());
    // 58 + 8 + ff02 + 0002 + 8500 = 18446 -> 8447; inverted.
    assert_eq!(packet[40..], [133, 0, 0x7b, 0xb8, 0, 0, 0, 0]);
    assert_eq!(packet[..8], [0x60, 0, 0, 0, 0, 8, 58, 255]);
    assert_eq!(packet[8..24], [0; 16]);

    let (to, packet) = solicit_neighbor("fe80::1:2ab:cdef".parse().unwrap());
    assert_eq!(to, "ff02::1:ffab:cdef".parse::<Ipv6Addr>().unwrap());
    assert_eq!((packet.len(), packet[40], &packet[24..40]), (64, 135, &to.octets()[..]));
}
