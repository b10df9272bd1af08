//! A guest with an IPv4 home address too (RFC 5844), between platforms that have none themselves.

#![allow(clippy::unwrap_used)]

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use harness::Namespace;
use harness::lab::apt::{self, BUSYBOX};
use mobility::DataPlane;
use mobility_lab::connections::Connection;
use mobility_lab::network::{ANCHOR, DNS, GUEST_LINK_LAYER, HOME_IPV4};
use mobility_lab::raw::{TUNNEL_IPV4, packet, udp_ipv4};
use mobility_lab::wires::CORRESPONDENT_IPV4 as CORRESPONDENT;
use mobility_lab::{Network, Planes, Raw, Stream};
use tokio::runtime::Runtime;

mobility_lab::on_each_plane!(
    a_guest_that_was_expected_moves_and_loses_nothing_of_either_version,
    connections_survive_ten_moves,
    packets_pass_only_from_where_the_guest_is_and_only_with_its_address,
    the_router_of_any_address_is_the_gateway_and_nobody_has_the_guests_own,
    a_guest_is_given_its_address_by_dhcp_wherever_it_is,
    a_gateway_that_ends_leaves_nothing_behind,
);

const PAUSE: Duration = Duration::from_millis(20);
const HOLD: Duration = Duration::from_millis(200);
const SILENCE: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(5);
const PORT: u16 = 4004;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn a_guest_that_was_expected_moves_and_loses_nothing_of_either_version(planes: Planes) {
    let network = Network::start(planes, Duration::from_millis(40)).unwrap();
    runtime().block_on(async {
        network.appear(0, 1).await.unwrap();
        let streams = [Network::target_ipv4(4000), Network::target(4001)].map(|target| {
            let interval = Duration::from_millis(5);
            Stream::start(&network.correspondent, &network.guest, target, interval).unwrap()
        });
        for epoch in 2..5 {
            tokio::time::sleep(SILENCE).await;
            network.move_proactive((epoch as usize % 2) ^ 1, epoch, PAUSE).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(700)).await;
        for stream in streams {
            let heard = stream.finish(Duration::from_millis(200)).unwrap();
            assert!(heard.sent > 300, "{heard:?}");
            assert_eq!((heard.lost(), heard.reordered), (0, 0), "{heard:?}");
            // The end of the old way was recognized: it is waited for half a second otherwise.
            assert!(heard.longest_gap < PAUSE + Duration::from_millis(350), "{heard:?}");
        }
    });
}

/// What comes without UDP comes to it by two sockets, and the end of the old way by the one of IPv6: it is read while packets of
/// IPv4 that came before it wait in the other.
#[test]
fn a_gateway_that_is_behind_keeps_what_waits_in_order() {
    for behind in [0, 1] {
        let network = Network::start([DataPlane::Tun; 3], Duration::from_millis(40)).unwrap();
        network.let_udp_pass(false).unwrap();
        runtime().block_on(async {
            network.appear(0, 1).await.unwrap();
            let (from, to, target) = (&network.correspondent, &network.guest, Network::target_ipv4(4000));
            let stream = Stream::start(from, to, target, Duration::from_millis(1)).unwrap();
            tokio::time::sleep(SILENCE).await;
            network.prepare(1, 2).await.unwrap();
            network.leave(1, 2).await.unwrap();
            network.arrive(1).await.unwrap();
            // Its registration is under way; the end of the old way comes a round trip later.
            tokio::time::sleep(Duration::from_millis(5)).await;
            network.platforms[behind].gateway.hold(HOLD);
            network.until_owned_by(1).await.unwrap();
            tokio::time::sleep(HOLD + SILENCE).await;
            let heard = stream.finish(Duration::from_millis(200)).unwrap();
            assert!(heard.longest_gap > HOLD / 2, "it was not behind, which proves nothing: {heard:?}");
            assert_eq!((heard.lost(), heard.reordered), (0, 0), "{behind} was behind: {heard:?}");
        });
    }
}

/// Of either kind in turn, under bulk transfers both ways and a conversation.
fn connections_survive_ten_moves(planes: Planes) {
    let network = Network::start(planes, Duration::from_millis(10)).unwrap();
    runtime().block_on(async {
        network.appear(0, 1).await.unwrap();
        let (correspondent, guest) = (&network.correspondent, &network.guest);
        let target: fn(u16) -> SocketAddr = Network::target_ipv4;
        let connections = [
            Connection::bulk(correspondent, guest, target(4001)).unwrap(),
            Connection::bulk(guest, correspondent, (CORRESPONDENT, 4001).into()).unwrap(),
        ];
        let lines = Connection::interactive(correspondent, guest, target(4002)).unwrap();
        network.move_ten_times(PAUSE).await.unwrap();
        // They go on; an emulated machine takes its time.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let lines = lines.finish().unwrap();
        let bytes = connections.map(|connection| connection.finish().unwrap());
        println!("{lines} lines, {bytes:?} bytes");
        assert!(lines > 10 && bytes.iter().all(|bytes| *bytes > 1 << 20), "{lines} lines, {bytes:?} bytes");
    });
}

/// A socket at this address, which waits for a moment.
fn socket(namespace: &Namespace, address: Ipv4Addr) -> UdpSocket {
    let socket = namespace.enter(|| UdpSocket::bind((address, PORT)).unwrap()).unwrap();
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    socket
}

fn packets_pass_only_from_where_the_guest_is_and_only_with_its_address(planes: Planes) {
    let network = Network::start(planes, Duration::from_millis(4)).unwrap();
    runtime().block_on(async {
        network.appear(0, 1).await.unwrap();
        let [a, b] = [0, 1].map(|at| network.platforms[at].address);
        let others = Ipv4Addr::new(198, 51, 100, 66);
        network.guest.ip(&format!("address add {others}/24 dev br0")).unwrap();
        let at_guest = socket(&network.guest, HOME_IPV4);
        let forger = socket(&network.guest, others);
        let at_correspondent = socket(&network.correspondent, CORRESPONDENT);
        let [from_a, from_b, from_correspondent, from_anchor] = [
            &network.platforms[0].namespace,
            &network.platforms[1].namespace,
            &network.correspondent,
            &network.anchor,
        ]
        .map(|namespace| Raw::sender(namespace).unwrap());
        let to_guest = udp_ipv4(CORRESPONDENT, HOME_IPV4, PORT, b"to the guest");
        let to_correspondent = udp_ipv4(HOME_IPV4, CORRESPONDENT, PORT, b"from the guest");
        let foreign = udp_ipv4(others, CORRESPONDENT, PORT, b"foreign");
        let claimed = "2001:db8:c::c".parse().unwrap();

        // It finds its router as itself: as another it does not.
        let mut buffer = [0; 64];
        at_guest.send_to(b"first", (CORRESPONDENT, PORT)).unwrap();
        assert_eq!(at_correspondent.recv_from(&mut buffer).unwrap().0, b"first".len());
        forger.send_to(b"with another's address", (CORRESPONDENT, PORT)).unwrap();
        from_b.send(&packet(b, ANCHOR, TUNNEL_IPV4, &to_correspondent)).unwrap();
        from_correspondent.send(&packet(claimed, ANCHOR, TUNNEL_IPV4, &to_correspondent)).unwrap();
        for inner in [&foreign[..], &to_correspondent[..19], &[], &[0x45], &[0x4f; 21]] {
            from_a.send(&packet(a, ANCHOR, TUNNEL_IPV4, inner)).unwrap();
            from_anchor.send(&packet(ANCHOR, a, TUNNEL_IPV4, inner)).unwrap();
        }
        for to in [a, b] {
            from_correspondent.send(&packet(claimed, to, TUNNEL_IPV4, &to_guest)).unwrap();
        }
        from_b.send(&packet(b, a, TUNNEL_IPV4, &to_guest)).unwrap();
        // A guest that claims to be the home agent.
        Raw::sender(&network.guest).unwrap().send(&packet(ANCHOR, a, TUNNEL_IPV4, &to_guest)).unwrap();
        for socket in [&at_guest, &at_correspondent] {
            assert!(socket.recv_from(&mut buffer).is_err(), "{}", String::from_utf8_lossy(&buffer));
        }

        // The same is delivered from where it may come.
        from_a.send(&packet(a, ANCHOR, TUNNEL_IPV4, &to_correspondent)).unwrap();
        assert_eq!(at_correspondent.recv_from(&mut buffer).unwrap().0, b"from the guest".len());
        from_anchor.send(&packet(ANCHOR, a, TUNNEL_IPV4, &to_guest)).unwrap();
        assert_eq!(at_guest.recv_from(&mut buffer).unwrap().0, b"to the guest".len());
        for (from, to, address) in
            [(&at_guest, &at_correspondent, CORRESPONDENT), (&at_correspondent, &at_guest, HOME_IPV4)]
        {
            from.send_to(b"itself", (address, PORT)).unwrap();
            assert_eq!(to.recv_from(&mut buffer).unwrap().0, b"itself".len());
            assert!(to.recv_from(&mut buffer).is_err(), "it came twice");
        }
    });
}

/// The emulated machine has it, and no apt.
fn need_busybox() {
    if !Path::new("/bin/busybox").exists() {
        apt::install(BUSYBOX).unwrap();
    }
}

fn the_router_of_any_address_is_the_gateway_and_nobody_has_the_guests_own(planes: Planes) {
    need_busybox();
    let network = Network::direct(planes).unwrap();
    runtime().block_on(async {
        network.appear(0, 1).await.unwrap();
        let asks = |words: &str| {
            let mut command = Command::new("busybox");
            command.args(["arping", "-I", "br0", "-c", "2", "-w", "2"]).args(words.split(' '));
            let output = network.guest.output(&mut command).unwrap();
            String::from_utf8_lossy(&output.stdout).to_lowercase()
        };
        for address in ["198.51.100.1", "198.51.100.77", "192.0.2.1"] {
            let answer = asks(&format!("-s {HOME_IPV4} {address}"));
            assert!(answer.contains("00:00:5e:00:52:13"), "{answer}");
        }
        // As when it sets its interface up: it looks for others, and tells of itself.
        for words in ["-D", "-U", "-A"] {
            let answer = asks(&format!("{words} {HOME_IPV4}"));
            assert!(!answer.contains("00:00:5e:00:52:13"), "{words}: {answer}");
        }
        // Another's address it cannot use.
        let answer = asks("-s 198.51.100.66 198.51.100.1");
        assert!(!answer.contains("00:00:5e:00:52:13"), "{answer}");
        assert!(network.platforms[0].namespace.ip("-4 address show scope global").unwrap().is_empty());
    });
}

fn a_guest_is_given_its_address_by_dhcp_wherever_it_is(planes: Planes) {
    need_busybox();
    let network = Network::direct(planes).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (script, told) = (dir.path().join("script"), dir.path().join("told"));
    std::fs::write(
        &script,
        format!("#!/bin/busybox sh\n[ $1 != bound ] || busybox env >{}\n", told.display()),
    )
    .unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    runtime().block_on(async {
        network.appear(0, 1).await.unwrap();
        for at in 0..2 {
            if at > 0 {
                network.move_proactive(at, 2, PAUSE).await.unwrap();
                network.until_owned_by(at).await.unwrap();
            }
            // As a guest that has just booted.
            network.guest.ip(&format!("address del {HOME_IPV4}/24 dev br0")).unwrap();
            let mut client = Command::new("busybox");
            client.args(["udhcpc", "-i", "br0", "-f", "-q", "-n", "-t", "5", "-s"]).arg(&script);
            let output = network.guest.output(&mut client).unwrap();
            assert!(output.status.success(), "{output:?}");
            let text = std::fs::read_to_string(&told).unwrap();
            for said in [
                format!("ip={HOME_IPV4}"),
                format!("dns={DNS}"),
                "mask=24".to_owned(),
                "router=198.51.100.1".to_owned(),
                "serverid=198.51.100.1".to_owned(),
                format!("mtu={}", if planes[1 + at] == DataPlane::Tun { 1452 } else { 1460 }),
                "lease=86400".to_owned(),
            ] {
                assert!(text.lines().any(|line| line == said), "no {said} in {text}");
            }
            std::fs::remove_file(&told).unwrap();

            // As one whose lease is half over: it asks everybody, and is answered alone.
            network.guest.ip(&format!("address add {HOME_IPV4}/24 dev br0")).unwrap();
            let client = network.guest.enter(|| UdpSocket::bind((HOME_IPV4, 68)).unwrap()).unwrap();
            client.set_broadcast(true).unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            client.send_to(&rebinding(), (Ipv4Addr::BROADCAST, 67)).unwrap();
            let mut answer = [0; 1500];
            let (length, from) = client.recv_from(&mut answer).unwrap();
            assert_eq!(from, (Ipv4Addr::new(198, 51, 100, 1), 67).into());
            assert!(length >= 300 && answer[16..20] == HOME_IPV4.octets(), "{:02x?}", &answer[..length]);
            // That it is acknowledged (RFC 2132 section 9.6).
            assert_eq!(answer[240..243], [53, 1, 5]);
        }
    });
}

/// The guest asks whether it may keep its address (RFC 2131 section 4.3.2, DHCPREQUEST generated during REBINDING state).
fn rebinding() -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0, 0x52, 0x13, 0, 1, 0, 0, 0, 0];
    message.extend(HOME_IPV4.octets());
    message.extend([0; 12]);
    message.extend(GUEST_LINK_LAYER);
    message.extend([0; 10 + 64 + 128]);
    message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 3, 255]);
    message
}

fn a_gateway_that_ends_leaves_nothing_behind(planes: Planes) {
    let mut network = Network::direct(planes).unwrap();
    let shown = |namespace: &Namespace| {
        ["-4 rule", "-4 route show table all"].map(|words| namespace.ip(words).unwrap()).concat()
    };
    let answers = |namespace: &Namespace| {
        let read = || std::fs::read_to_string("/proc/sys/net/ipv4/conf/tap-vm/proxy_arp").unwrap();
        namespace.enter(read).unwrap().trim() == "1"
    };
    runtime().block_on(async {
        let home = network.anchor.clone();
        network.appear(0, 1).await.unwrap();
        let platform = network.platforms[0].namespace.clone();
        assert!(shown(&platform).contains("5213") && answers(&platform));
        assert!(shown(&home).contains("198.51.100.0/24"));
        // What a crash has left is taken over, and goes in the end.
        network.kill_gateway(0);
        network.start_gateway(0).unwrap();
        network.platforms[0].gateway.handle.keep_only().await.unwrap();
        assert!(shown(&platform).contains("5213") && answers(&platform));
        network.platforms[0].gateway.handle.end().await;
        network.home_agent.handle.end().await;
        let left = shown(&platform) + &shown(&home);
        assert!(!left.contains("198.51.100") && !left.contains("521"), "{left}");
        assert!(!answers(&platform));
    });
}
