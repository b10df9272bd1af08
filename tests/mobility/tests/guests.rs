//! What a guest sees of its gateway: a router that tells it all it needs, and nobody else's packets.

#![allow(clippy::unwrap_used)]

use std::net::{Ipv6Addr, UdpSocket};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use harness::Namespace;
use mobility::DataPlane;
use mobility::access::{Grant, Happened};
use mobility::auth::{Algorithm, SharedKey};
use mobility::wire::Ipv6Prefix;
use mobility_lab::connections::Connection;
use mobility_lab::network::HOME;
use mobility_lab::raw::udp;
use mobility_lab::{Network, Planes, Raw};
use tokio::runtime::Runtime;

mobility_lab::on_each_plane!(
    a_guest_learns_its_prefix_its_router_and_how_long_packets_may_be,
    two_guests_on_one_platform_reach_each_other_and_cannot_pass_for_each_other,
    who_sends_packets_that_are_too_big_is_told_so,
);

const PATIENCE: Duration = Duration::from_secs(10);

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn prefix_of(number: u16) -> Ipv6Prefix {
    Ipv6Prefix::new(Ipv6Addr::new(0x2001, 0xdb8, 0xf, number, 0, 0, 0, 0), 64).unwrap()
}

/// A guest that has to learn everything, registered at the first platform: its namespace and the address it has made.
async fn newcomer(network: &Network, number: u16) -> (Arc<Namespace>, Ipv6Addr) {
    let (name, prefix) = (format!("vm-{number}"), prefix_of(number));
    let guest = network.add_guest(0, &name, prefix).await.unwrap();
    let key = SharedKey::new(2000 + u32::from(number), Algorithm::HmacSha256_128, &number.to_be_bytes());
    let grant = Grant { key, node: name.into_bytes(), prefix, ipv4: None };
    network.authorize_for(0, 1, grant.clone()).await.unwrap();
    let mut watch = network.watch(0);
    network.platforms[0].gateway.handle.serve(grant).await.unwrap();
    watch.until(Happened::Registered).await.unwrap();
    let shown = until(|| {
        let shown = guest.ip("-6 -o address show dev eth0 scope global").unwrap();
        (!shown.is_empty()).then_some(shown)
    });
    let word = shown.split_whitespace().find_map(|word| word.strip_suffix("/64")).unwrap();
    (guest, word.parse().unwrap())
}

fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "waited for nothing");
        sleep(Duration::from_millis(20));
    }
}

fn a_guest_learns_its_prefix_its_router_and_how_long_packets_may_be(planes: Planes) {
    let network = Network::direct(planes).unwrap();
    runtime().block_on(async {
        let (guest, address) = newcomer(&network, 2).await;
        assert!(prefix_of(2).contains(address), "{address}");
        let routes = guest.ip("-6 route show").unwrap();
        let default = routes.lines().find(|line| line.starts_with("default")).unwrap();
        assert!(default.contains("via fe80::200:5eff:fe00:5213 dev eth0 proto ra"), "{routes}");
        // In UDP there is room for less.
        let mtu = if planes[1] == DataPlane::Tun { 1452 } else { 1460 };
        assert!(default.contains(&format!("mtu {mtu}")), "{routes}");
        // Other addresses of the prefix are not on the link.
        assert!(!routes.contains("2001:db8:f:2::/64"), "{routes}");
        let lines = Connection::interactive(&network.correspondent, &guest, (address, 4000).into()).unwrap();
        sleep(Duration::from_millis(100));
        assert!(lines.finish().unwrap() > 0);
    });
}

fn two_guests_on_one_platform_reach_each_other_and_cannot_pass_for_each_other(planes: Planes) {
    let network = Network::direct(planes).unwrap();
    runtime().block_on(async {
        let (one, first) = newcomer(&network, 2).await;
        let (other, second) = newcomer(&network, 3).await;
        let lines = Connection::interactive(&one, &other, (second, 4000).into()).unwrap();
        let bulk = Connection::bulk(&other, &one, (first, 4001).into()).unwrap();
        sleep(Duration::from_millis(300));
        assert!(lines.finish().unwrap() > 0);
        assert!(bulk.finish().unwrap() > 1 << 20);

        let correspondent = "2001:db8:c::c".parse::<Ipv6Addr>().unwrap();
        let bind = || UdpSocket::bind((correspondent, 4002)).unwrap();
        let listener = network.correspondent.enter(bind).unwrap();
        listener.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let sender = Raw::sender(&one).unwrap();
        let mut buffer = [0; 64];
        for from in [second, HOME, network.platforms[0].address] {
            sender.send(&udp(from, correspondent, 4002, b"as another")).unwrap();
        }
        assert!(listener.recv_from(&mut buffer).is_err(), "{}", String::from_utf8_lossy(&buffer));
        sender.send(&udp(first, correspondent, 4002, b"as itself")).unwrap();
        assert_eq!(listener.recv_from(&mut buffer).unwrap().0, b"as itself".len());
    });
}

/// The guest does not listen to advertisements: its link has an MTU of 1500.
fn who_sends_packets_that_are_too_big_is_told_so(planes: Planes) {
    let network = Network::direct(planes).unwrap();
    network.guest.sysctl("net/ipv6/conf/br0/accept_ra", "0").unwrap();
    runtime().block_on(async {
        network.appear(0, 1).await.unwrap();
        for (from, to) in [(&network.correspondent, &network.guest), (&network.guest, &network.correspondent)]
        {
            let target = if Arc::ptr_eq(to, &network.guest) {
                Network::target(4000)
            } else {
                "[2001:db8:c::c]:4000".parse().unwrap()
            };
            // Or it would tell the other end how much it may send.
            to.ip("-6 route flush cache").unwrap();
            let bulk = Connection::bulk(from, to, target).unwrap();
            sleep(Duration::from_millis(300));
            assert!(bulk.finish().unwrap() > 1 << 20);
            let route = from.ip(&format!("-6 route get {}", target.ip())).unwrap();
            assert!(route.contains("mtu 1460"), "{route}");
        }
    });
}
