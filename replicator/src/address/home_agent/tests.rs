use super::*;

const PREFIX: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2001, 0xdb8, 0xf, 1, 0, 0, 0, 0), 64);
/// All that is the machine's own.
const OWN: ((Ipv6Addr, u8), Option<(Ipv4Addr, u8)>) = (PREFIX, None);

fn platform(number: u8) -> Fingerprint {
    Fingerprint::from([number; 32])
}

fn gateway(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, number.into(), 0, 0, 0, 0, 1)
}

/// A permit for the platform of this number.
fn permit(epoch: u64, number: u8, spi: u32) -> Permit {
    Permit { epoch, gateway: gateway(number), holder: platform(number), spi, key: Secret([number; 32]) }
}

/// A machine of platform 1, bound in epoch 1.
fn machine() -> Machine {
    Machine {
        prefix: PREFIX,
        ipv4: None,
        holder: platform(1),
        epoch: 1,
        bound: true,
        user_plane: None,
        permits: vec![permit(1, 1, 300)],
    }
}

fn bound(epoch: u64, number: u8) -> Binding {
    Binding { node: "vm".to_owned(), care_of: gateway(number), user_plane: None, epoch }
}

#[test]
fn only_the_owner_and_whom_it_names_get_permits() {
    let mut machine = machine();
    let (one, two, three) = (platform(1), platform(2), platform(3));
    assert_eq!(machine.judge(one, OWN, 1, one), Ok(()));
    assert_eq!(machine.judge(one, OWN, 2, two), Ok(()));
    for (peer, epoch, holder) in
        [(two, 2, two), (three, 9, three), (two, 1, two), (one, 0, one), (one, 1, two)]
    {
        assert!(machine.judge(peer, OWN, epoch, holder).is_err(), "{peer} for {holder} in {epoch}");
    }
    let other = (gateway(9), 64);
    assert!(machine.judge(one, (other, None), 1, one).unwrap_err().contains("2001:db8:f:1::/64"));
    let ipv4 = Some((Ipv4Addr::new(198, 51, 100, 10), 24));
    assert!(machine.judge(one, (PREFIX, ipv4), 1, one).unwrap_err().contains("none"));
    machine.ipv4 = ipv4;
    assert_eq!(machine.judge(one, (PREFIX, ipv4), 1, one), Ok(()));
    assert!(machine.judge(one, OWN, 1, one).unwrap_err().contains("198.51.100.10/24"));
    machine.ipv4 = None;

    // The successor that was named may ask once more for itself, as after a restart; still nobody else.
    machine.permit(permit(2, 2, 301));
    assert_eq!(machine.judge(two, OWN, 2, two), Ok(()));
    assert!(machine.judge(two, OWN, 2, three).is_err());
    assert!(machine.judge(two, OWN, 3, two).is_err());
    // Until it is bound the owner is the same.
    machine.take_over(1, Some(&bound(1, 1)));
    assert_eq!(machine.holder, one);
    machine.take_over(2, Some(&bound(2, 2)));
    assert_eq!((machine.holder, machine.epoch), (two, 2));
    assert!(machine.judge(one, OWN, 3, one).is_err(), "it has given the machine away");
    assert_eq!(machine.judge(two, OWN, 3, one), Ok(()));
    // Whoever was bound last stays the owner when the binding ends.
    machine.take_over(2, None);
    assert_eq!((machine.holder, machine.epoch, machine.bound), (two, 2, false));
    // Also of a successor that nobody has seen bound.
    machine.permit(permit(3, 1, 302));
    machine.take_over(3, None);
    assert_eq!((machine.holder, machine.epoch, machine.bound), (one, 3, false));
}

#[test]
fn the_same_permit_is_given_again_and_old_ones_end() {
    let mut machine = machine();
    let (again, over) = machine.permit(permit(1, 1, 999));
    assert!(again.spi == 300 && over.is_empty());
    // One successor after the other, of which none came to be one.
    assert!(machine.permit(permit(2, 2, 301)).1.is_empty());
    let (other, over) = machine.permit(permit(2, 3, 302));
    assert_eq!((other.spi, over), (302, vec![301]));
    machine.take_over(2, Some(&bound(2, 3)));
    // The key of the epoch that is over stays until the next permit, for its revocation to be understood.
    assert_eq!(machine.permits.len(), 2);
    assert_eq!(machine.permit(permit(3, 1, 303)).1, [300]);
    assert_eq!(machine.permits.iter().map(|permit| permit.spi).collect::<Vec<_>>(), [302, 303]);
}

#[test]
fn what_is_kept_is_read_again_and_never_printed() {
    let machine = machine();
    let text = serde_json::to_string(&machine).unwrap();
    assert_eq!(serde_json::from_str::<Machine>(&text).unwrap(), machine);
    assert!(!format!("{machine:?}").contains("1, 1, 1"));
}
