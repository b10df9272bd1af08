//! A guest that looks after its address itself on links that have IPv4 only, behind NATs: the kernel's, real packets, the real
//! agents.

#![allow(clippy::unwrap_used)]

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant, SystemTime};

use harness::Namespace;
use mobility::DataPlane;
use mobility::auth::{Algorithm, Covered, SharedKey};
use mobility::wire::*;
use mobility_lab::connections::Connection;
use mobility_lab::network::{ANCHOR, HOME};
use mobility_lab::raw::udp;
use mobility_lab::roaming::{ANCHOR_IPV4, BEHIND_NAT, Kind, key};
use mobility_lab::{Roaming, Stream};
use tokio::runtime::Runtime;

/// The home agent's.
const PLANE: DataPlane = DataPlane::Seg6;
const PAUSE: Duration = Duration::from_millis(20);
const SILENCE: Duration = Duration::from_millis(300);
const CORRESPONDENT: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 0xc);
/// UDP port of the home agent (RFC 5555 section 9).
const DSMIPV6: u16 = 4191;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// A socket at this address, which waits for a moment.
fn socket(namespace: &Namespace, address: SocketAddr) -> UdpSocket {
    let socket = namespace.enter(|| UdpSocket::bind(address).unwrap()).unwrap();
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    socket
}

/// Moves from one link to the other and back under a bulk transfer each way and a conversation.
fn connections_survive_moves(kinds: [Kind; 2]) {
    let lab = Roaming::start_between(PLANE, Duration::from_millis(20), kinds).unwrap();
    runtime().block_on(async {
        lab.appear(0).await.unwrap();
        let (correspondent, guest) = (&lab.correspondent, &lab.guest);
        let bulks = [
            Connection::bulk(correspondent, guest, Roaming::target(4001)).unwrap(),
            Connection::bulk(guest, correspondent, (CORRESPONDENT, 4001).into()).unwrap(),
        ];
        let lines = Connection::interactive(correspondent, guest, Roaming::target(4002)).unwrap();
        for number in 0..6 {
            tokio::time::sleep(Duration::from_millis(700)).await;
            let to = (number + 1) % 2;
            lab.move_to(to, PAUSE).await.unwrap();
            assert!(lab.is_at(lab.care_of().await.unwrap().unwrap(), to));
        }
        tokio::time::sleep(Duration::from_millis(700)).await;
        let lines = lines.finish().unwrap();
        let bytes = bulks.map(|bulk| bulk.finish().unwrap());
        println!("{lines} lines, {bytes:?} bytes");
        assert!(lines > 10 && bytes.iter().all(|bytes| *bytes > 1 << 20), "{lines} lines, {bytes:?} bytes");
    });
}

#[test]
fn connections_survive_moves_between_nats_that_have_the_same_addresses_inside() {
    connections_survive_moves([Kind::BehindNat; 2]);
}

#[test]
fn connections_survive_moves_between_ipv6_and_a_nat() {
    connections_survive_moves([Kind::Advertised, Kind::BehindNat]);
}

#[test]
fn a_stream_is_whole_behind_a_nat_and_goes_on_behind_another() {
    let lab = Roaming::start_between(PLANE, Duration::from_millis(20), [Kind::BehindNat; 2]).unwrap();
    runtime().block_on(async {
        let took = lab.appear(0).await.unwrap();
        let stream = || {
            let interval = Duration::from_millis(5);
            Stream::start(&lab.correspondent, &lab.guest, Roaming::target(4000), interval).unwrap()
        };
        let still = stream();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let still = still.finish(SILENCE).unwrap();
        assert_eq!((still.lost(), still.reordered, still.duplicates), (0, 0, 0), "{still:?}");
        let moving = stream();
        tokio::time::sleep(SILENCE).await;
        lab.move_to(1, PAUSE).await.unwrap();
        tokio::time::sleep(SILENCE).await;
        let moving = moving.finish(SILENCE).unwrap();
        println!("registered after {took:?}; moved: {moving:?}");
        assert!(moving.received > 50 && moving.reordered == 0, "{moving:?}");
        assert!(moving.longest_gap < Duration::from_secs(2), "{moving:?}");
    });
}

/// The NAT forgets a way on which nothing has come for 27 s.
#[test]
fn a_node_that_is_silent_is_still_reached_behind_a_nat_that_forgets() {
    let lab = Roaming::start_between(PLANE, Duration::ZERO, [Kind::BehindNat; 2]).unwrap();
    for name in ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"] {
        lab.router(0).sysctl(&format!("net/netfilter/{name}"), "27").unwrap();
    }
    runtime().block_on(async {
        lab.appear(0).await.unwrap();
        let at_guest = socket(&lab.guest, Roaming::target(4004));
        let at_correspondent = socket(&lab.correspondent, (CORRESPONDENT, 4004).into());
        let (mut buffer, start) = ([0; 64], Instant::now());
        while start.elapsed() < Duration::from_secs(62) {
            tokio::time::sleep(Duration::from_secs(31)).await;
            at_correspondent.send_to(b"still there?", Roaming::target(4004)).unwrap();
            assert_eq!(at_guest.recv_from(&mut buffer).unwrap().0, b"still there?".len());
        }
    });
}

#[test]
fn what_is_forged_in_udp_is_neither_believed_nor_passed_on() {
    let lab = Roaming::start_between(PLANE, Duration::from_millis(4), [Kind::BehindNat; 2]).unwrap();
    runtime().block_on(async {
        lab.appear(0).await.unwrap();
        let bound = lab.care_of().await.unwrap();
        let at_guest = socket(&lab.guest, Roaming::target(4004));
        let at_correspondent = socket(&lab.correspondent, (CORRESPONDENT, 4004).into());
        let from_node = udp(HOME, CORRESPONDENT, 4004, b"from the node");
        let foreign = udp("2001:db8:f:9::1".parse().unwrap(), CORRESPONDENT, 4004, b"foreign");
        let guessed = SharedKey::new(key().spi(), Algorithm::HmacSha256_128, b"guessed");
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
        let home_agent = (ANCHOR_IPV4, DSMIPV6);
        // Somebody elsewhere, and somebody behind the same NAT.
        let attackers =
            [&lab.correspondent, &lab.guest].map(|namespace| socket(namespace, "0.0.0.0:0".parse().unwrap()));
        for attacker in &attackers {
            for packet in [&from_node[..], &foreign, &from_node[..39], &[], &[0x45; 20], &[0x60; 80]] {
                attacker.send_to(packet, home_agent).unwrap();
            }
            for seconds in [0, 300] {
                attacker.send_to(&update(&guessed, 900, seconds, now), home_agent).unwrap();
            }
        }
        let mut buffer = [0; 256];
        for socket in attackers.iter().chain([&at_guest, &at_correspondent]) {
            assert!(socket.recv_from(&mut buffer).is_err(), "{}", String::from_utf8_lossy(&buffer));
        }
        assert_eq!(lab.care_of().await.unwrap(), bound);
        // The node itself is heard, and who has its key: the forgeries were well made.
        at_guest.send_to(b"itself", (CORRESPONDENT, 4004)).unwrap();
        assert_eq!(at_correspondent.recv_from(&mut buffer).unwrap().0, b"itself".len());
        attackers[0].send_to(&update(&key(), 900, 300, now), home_agent).unwrap();
        assert!(attackers[0].recv_from(&mut buffer).is_ok());
        attackers[0].send_to(&from_node, home_agent).unwrap();
        assert_eq!(at_correspondent.recv_from(&mut buffer).unwrap().0, b"from the node".len());
    });
}

/// A home registration over UDP, as the packet in it.
fn update(key: &SharedKey, sequence: u16, seconds: u32, unix_ns: u64) -> Vec<u8> {
    let flags = BindingUpdateFlags::ACKNOWLEDGE | BindingUpdateFlags::HOME_REGISTRATION;
    let update = BindingUpdate {
        sequence: SequenceNumber(sequence),
        flags: flags | BindingUpdateFlags::FORCE_UDP,
        lifetime: BindingLifetime::from_secs(seconds),
    };
    let options = vec![
        MobilityOption::MessageIdentification(NtpTimestamp::from_unix_ns(unix_ns)),
        MobilityOption::Ipv4CareOfAddress(BEHIND_NAT),
    ];
    let addresses = Addresses::direct(HOME, ANCHOR);
    let covered = Covered { care_of: BEHIND_NAT.to_ipv6_mapped(), peer: HOME };
    let repr = Repr { message: Message::BindingUpdate(update), options };
    let message = key.emit(&repr, addresses.endpoints(), covered).unwrap();
    addresses.emit(MobilityHeader::new_checked(&message).unwrap())
}
