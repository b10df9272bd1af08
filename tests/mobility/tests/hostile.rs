//! Signalling and tunnelled packets of those who have no right to them, from the correspondent's side and from a
//! platform's: none is accepted, none is answered, and the agents go on.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

use harness::Namespace;
use mobility::DataPlane;
use mobility::access::Grant;
use mobility::auth::{Algorithm, Covered, SharedKey};
use mobility::wire::*;
use mobility_lab::connections::Connection;
use mobility_lab::network::{ANCHOR, HOME, NODE, grant, prefix};
use mobility_lab::raw::{ICMPV6, SIGNALLING, TUNNEL, packet, registration, udp};
use mobility_lab::wires::user_plane;
use mobility_lab::{Network, Planes, Raw, Stream};
use tokio::runtime::Runtime;

mobility_lab::on_each_plane!(
    forged_and_malformed_signalling_is_neither_believed_nor_answered,
    replayed_and_stale_signalling_changes_nothing,
    no_gateway_forwards_because_of_signalling_that_is_forged_or_played_back,
    tunnelled_packets_pass_only_from_where_the_guest_is_and_only_with_its_addresses,
    packets_cut_very_small_pass_and_end_no_agent,
    only_a_question_is_answered_in_udp_and_no_longer_than_it_was,
);

const CORRESPONDENT: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 0xc);
/// Where data planes in user space take tunnelled packets in UDP.
const IN_UDP: u16 = 1021;
const ROUND_TRIP: Duration = Duration::from_millis(4);
/// Many times what an answer takes.
const SILENCE: Duration = Duration::from_millis(300);

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// The key of an epoch with another secret.
fn forged(epoch: u64) -> Grant {
    Grant { key: SharedKey::new(1000 + epoch as u32, Algorithm::HmacSha256_128, b"guessed"), ..grant(epoch) }
}

/// What is sent to an agent at `to`, as if from `from`: none of it is proved.
fn unproved(from: Ipv6Addr, to: Ipv6Addr) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    let address = |repr: &[u8]| packet(from, to, SIGNALLING, repr);
    // Random bytes, nothing, all types with a right checksum and no proof, and more than any message has.
    packets.push(address(&[]));
    packets.push(address(&[0x5a; 37]));
    packets.push(address(&[0xff; 1400]));
    let ends = Addresses::direct(from, to).endpoints();
    let heartbeat = Message::Heartbeat { response: false, unsolicited: false, sequence: 7 };
    let revocation = Message::BindingRevocationIndication {
        trigger: RevocationTrigger::HANDOVER_SAME_ACCESS_TYPE,
        sequence: 1,
        flags: RevocationFlags::PROXY,
    };
    for message in [heartbeat, revocation] {
        packets.push(address(&Repr { message, options: vec![] }.emit(ends).unwrap()));
    }
    for kind in 0..=30 {
        // Header Len 1: 16 bytes, with the checksum over them.
        let mut message = [59, 1, kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let sum = checksum(from, to, &message);
        message[4..6].copy_from_slice(&sum.to_be_bytes());
        packets.push(address(&message));
    }
    packets
}

fn checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let header =
        [&from.octets()[..], &to.octets(), &(message.len() as u32).to_be_bytes(), &[0, 0, 0, 135]].concat();
    let words = header.chunks(2).chain(message.chunks(2));
    let sum: u32 = words.map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// Nothing has come to these sockets but what the kernel itself asks neighbours and answers them (133 to 136), and what the
/// one that has `ip6tnl` here, which knows of Mobile IPv6, says of headers whose first two fields are wrong (RFC 6275 section 9.2).
fn assert_silence(sockets: &[Raw], planes: Planes) {
    let knows_mobility = planes.contains(&DataPlane::Ip6tnl);
    for socket in sockets {
        while let Some((from, message)) = socket.hear(SILENCE).unwrap() {
            let is_of_form = message.starts_with(&[4, 0]) && matches!(message[4..8], [0, 0, 0, 40 | 41]);
            assert!((133..=136).contains(&message[0]) || knows_mobility && is_of_form, "{from}: {message:?}");
        }
    }
}

async fn assert_still_at(network: &Network, platform: usize, epoch: u64) {
    let binding = network.home_agent.handle.binding(NODE).await.unwrap().unwrap();
    assert_eq!((binding.care_of, binding.epoch), (network.platforms[platform].address, epoch));
}

fn forged_and_malformed_signalling_is_neither_believed_nor_answered(planes: Planes) {
    let network = Network::start(planes, ROUND_TRIP).unwrap();
    runtime().block_on(async {
        network.appear(0, 1).await.unwrap();
        network.authorize(1, 2).await.unwrap();
        let [a, b] = [network.platforms[0].address, network.platforms[1].address];
        for (namespace, own) in
            [(&network.correspondent, CORRESPONDENT), (&network.platforms[1].namespace, b)]
        {
            let answers = [Raw::open(namespace, SIGNALLING).unwrap(), Raw::open(namespace, ICMPV6).unwrap()];
            let sender = Raw::sender(namespace).unwrap();
            for to in [ANCHOR, a] {
                for packet in unproved(own, to) {
                    sender.send(&packet).unwrap();
                }
            }
            for epoch in [1, 2, 3] {
                for seconds in [0, 300] {
                    sender.send(&registration(&forged(epoch), own, 1, seconds)).unwrap();
                    // A key that is right, from an address that it was not given for.
                    sender.send(&registration(&grant(epoch), CORRESPONDENT, 1, seconds)).unwrap();
                    // As if from who has the key.
                    sender.send(&registration(&forged(epoch), a, 1, seconds)).unwrap();
                    sender.send(&registration(&forged(epoch), b, 1, seconds)).unwrap();
                }
            }
            // More than a Mobility Header has, in fragments.
            let large = Raw::open(namespace, SIGNALLING).unwrap();
            large.send_payload(ANCHOR, &[0xff; 20_000]).unwrap();
            large.send_payload(a, &[0xff; 20_000]).unwrap();
            drop(large);
            assert_silence(&answers, planes);
            assert_still_at(&network, 0, 1).await;
        }
        network.move_proactive(1, 3, ROUND_TRIP).await.unwrap();
        assert_still_at(&network, 1, 3).await;
    });
}

fn replayed_and_stale_signalling_changes_nothing(planes: Planes) {
    let network = Network::start(planes, ROUND_TRIP).unwrap();
    runtime().block_on(async {
        let [a, b] = [network.platforms[0].address, network.platforms[1].address];
        let heard_by_anchor = Raw::open(&network.anchor, SIGNALLING).unwrap();
        network.appear(0, 1).await.unwrap();
        network.move_proactive(1, 2, ROUND_TRIP).await.unwrap();
        // What the first gateway and the second have sent, word for word.
        let mut heard = Vec::new();
        while let Some((from, message)) = heard_by_anchor.hear(SILENCE).unwrap() {
            heard.push(packet(from, ANCHOR, SIGNALLING, &message));
        }
        assert!(heard.len() >= 3, "{} messages", heard.len());
        for namespace in [&network.correspondent, &network.platforms[0].namespace] {
            let sender = Raw::sender(namespace).unwrap();
            for packet in heard.iter().chain(&heard) {
                sender.send(packet).unwrap();
            }
            // An earlier epoch with its own key and any time, and an end of it.
            sender.send(&registration(&grant(1), a, 900, 300)).unwrap();
            sender.send(&registration(&grant(1), a, 901, 0)).unwrap();
            // The present one from where it is not.
            sender.send(&registration(&grant(2), a, 902, 0)).unwrap();
            tokio::time::sleep(SILENCE).await;
            assert_still_at(&network, 1, 2).await;
        }
        // To the gateways: replayed to who has not sent them and to who has not been sent them.
        let sender = Raw::sender(&network.correspondent).unwrap();
        for to in [a, b] {
            for message in &heard {
                sender.send(&packet(ANCHOR, to, SIGNALLING, &message[40..])).unwrap();
            }
        }
        tokio::time::sleep(SILENCE).await;
        assert_still_at(&network, 1, 2).await;
        network.move_proactive(0, 3, ROUND_TRIP).await.unwrap();
        assert_still_at(&network, 0, 3).await;
    });
}

/// What one gateway asks another, proved with the key of `grant`.
fn handover(grant: &Grant, from: Ipv6Addr, to: Ipv6Addr, code: HandoverInitiateCode) -> Vec<u8> {
    let flags = HandoverInitiateFlags::PROXY | HandoverInitiateFlags::FORWARD;
    let message = Message::HandoverInitiate { sequence: 900, flags, code };
    let options = vec![
        MobilityOption::MobileNodeIdentifier { kind: IdentifierType::NAI, identifier: grant.node.clone() },
        MobilityOption::HomeNetworkPrefix(grant.prefix),
    ];
    let addresses = Addresses::direct(from, to);
    let covered = Covered { care_of: from, peer: grant.prefix.address() };
    let message = grant.key.emit(&Repr { message, options }, addresses.endpoints(), covered).unwrap();
    addresses.emit(MobilityHeader::new_checked(&message).unwrap())
}

fn no_gateway_forwards_because_of_signalling_that_is_forged_or_played_back(planes: Planes) {
    let network = Network::start(planes, ROUND_TRIP).unwrap();
    runtime().block_on(async {
        let [a, b] = [network.platforms[0].address, network.platforms[1].address];
        let ears = [0, 1].map(|at| Raw::open(&network.platforms[at].namespace, SIGNALLING).unwrap());
        network.appear(0, 1).await.unwrap();
        network.move_proactive(1, 2, ROUND_TRIP).await.unwrap();
        network.until_owned_by(1).await.unwrap();
        network.move_proactive(0, 3, ROUND_TRIP).await.unwrap();
        network.until_owned_by(0).await.unwrap();
        // Acknowledgements, revocations and both sides' handovers, word for word.
        let (mut heard, mut kinds) = (Vec::new(), BTreeSet::new());
        for (ear, to) in ears.iter().zip([a, b]) {
            while let Some((from, message)) = ear.hear(SILENCE).unwrap() {
                kinds.insert(message[2]);
                heard.push(packet(from, to, SIGNALLING, &message));
            }
        }
        assert!([6, 14, 15, 16].iter().all(|kind| kinds.contains(kind)), "{kinds:?}");

        let stream = Stream::start(
            &network.correspondent,
            &network.guest,
            Network::target(4000),
            Duration::from_millis(5),
        )
        .unwrap();
        for namespace in [&network.correspondent, &network.platforms[1].namespace] {
            let sender = Raw::sender(namespace).unwrap();
            for packet in heard.iter().chain(&heard) {
                sender.send(packet).unwrap();
            }
            for (from, to) in [(b, a), (CORRESPONDENT, a), (a, b), (ANCHOR, a)] {
                for grant in [forged(2), forged(3), grant(2), grant(3)] {
                    for code in [HandoverInitiateCode::START, HandoverInitiateCode::FORWARDING_COMPLETE] {
                        sender.send(&handover(&grant, from, to, code)).unwrap();
                    }
                }
            }
        }
        tokio::time::sleep(SILENCE).await;
        let heard = stream.finish(SILENCE).unwrap();
        assert_eq!((heard.lost(), heard.reordered, heard.duplicates), (0, 0, 0), "{heard:?}");
        assert_still_at(&network, 0, 3).await;
    });
}

fn tunnelled_packets_pass_only_from_where_the_guest_is_and_only_with_its_addresses(planes: Planes) {
    let network = Network::start(planes, ROUND_TRIP).unwrap();
    runtime().block_on(async {
        network.appear(0, 1).await.unwrap();
        let [a, b] = [network.platforms[0].address, network.platforms[1].address];
        let listen = |namespace, address| {
            let bind = || UdpSocket::bind((address, 4004)).unwrap();
            let socket = harness::Namespace::enter(namespace, bind).unwrap();
            socket.set_read_timeout(Some(SILENCE)).unwrap();
            socket
        };
        let at_guest = listen(&network.guest, HOME);
        let at_correspondent = listen(&network.correspondent, CORRESPONDENT);
        let [from_a, from_b] = [0, 1].map(|at| Raw::sender(&network.platforms[at].namespace).unwrap());
        let from_correspondent = Raw::sender(&network.correspondent).unwrap();
        // As any user there has it.
        let port_of_a = network.platforms[0].namespace.enter(|| UdpSocket::bind((a, 0)).unwrap()).unwrap();
        let to_guest = udp(CORRESPONDENT, HOME, 4004, b"to the guest");
        let to_correspondent = udp(HOME, CORRESPONDENT, 4004, b"from the guest");
        let foreign = udp(Ipv6Addr::new(0x2001, 0xdb8, 0xf, 9, 0, 0, 0, 1), CORRESPONDENT, 4004, b"foreign");
        let anchors_own = udp(ANCHOR, CORRESPONDENT, 4004, b"the anchor's");

        // Whether or not it takes packets there.
        let ends = |own| [own, user_plane(own)];
        for end in ends(ANCHOR) {
            from_b.send(&packet(b, end, TUNNEL, &to_correspondent)).unwrap();
            from_b.send(&udp(b, end, IN_UDP, &to_correspondent)).unwrap();
            from_correspondent.send(&packet(CORRESPONDENT, end, TUNNEL, &to_correspondent)).unwrap();
            from_correspondent.send(&udp(CORRESPONDENT, end, IN_UDP, &to_correspondent)).unwrap();
            port_of_a.send_to(&to_correspondent, (end, IN_UDP)).unwrap();
            for inner in [&foreign, &anchors_own, &to_correspondent[..39], &[]] {
                from_a.send(&packet(a, end, TUNNEL, inner)).unwrap();
                from_a.send(&udp(a, end, IN_UDP, inner)).unwrap();
            }
        }
        for end in ends(a) {
            from_b.send(&packet(b, end, TUNNEL, &to_guest)).unwrap();
            from_b.send(&udp(b, end, IN_UDP, &to_guest)).unwrap();
            from_correspondent.send(&packet(CORRESPONDENT, end, TUNNEL, &to_guest)).unwrap();
            from_correspondent.send(&udp(CORRESPONDENT, end, IN_UDP, &to_guest)).unwrap();
        }
        for end in ends(b) {
            from_correspondent.send(&packet(CORRESPONDENT, end, TUNNEL, &to_guest)).unwrap();
        }
        let mut buffer = [0; 64];
        for socket in [&at_guest, &at_correspondent] {
            assert!(socket.recv_from(&mut buffer).is_err(), "{}", String::from_utf8_lossy(&buffer));
        }
        assert!(network.platforms[0].gateway.handle.dropped().await.unwrap().foreign >= 2);

        // A guest that claims to be the home agent: by its own link nobody speaks for a tunnel, or for the end of a way.
        let from_guest = Raw::sender(&network.guest).unwrap();
        for end in ends(a) {
            from_guest.send(&packet(ANCHOR, end, TUNNEL, &to_guest)).unwrap();
            from_guest.send(&packet(b, end, TUNNEL, &to_guest)).unwrap();
            from_guest.send(&udp(ANCHOR, end, IN_UDP, &to_guest)).unwrap();
        }
        assert!(at_guest.recv_from(&mut buffer).is_err(), "{}", String::from_utf8_lossy(&buffer));

        // The same is delivered from where it may come.
        let taken = |plane, own| if plane == DataPlane::Seg6 { ends(own).to_vec() } else { vec![own] };
        for end in taken(planes[0], ANCHOR) {
            from_a.send(&packet(a, end, TUNNEL, &to_correspondent)).unwrap();
            assert_eq!(at_correspondent.recv_from(&mut buffer).unwrap().0, b"from the guest".len());
        }
        for end in taken(planes[1], a) {
            Raw::sender(&network.anchor).unwrap().send(&packet(ANCHOR, end, TUNNEL, &to_guest)).unwrap();
            assert_eq!(at_guest.recv_from(&mut buffer).unwrap().0, b"to the guest".len());
        }
        if planes[0] == DataPlane::Tun {
            from_a.send(&udp(a, ANCHOR, IN_UDP, &to_correspondent)).unwrap();
            assert_eq!(at_correspondent.recv_from(&mut buffer).unwrap().0, b"from the guest".len());
        }
        if planes[1] == DataPlane::Tun {
            let from_anchor = Raw::sender(&network.anchor).unwrap();
            from_anchor.send(&udp(ANCHOR, a, IN_UDP, &to_guest)).unwrap();
            assert_eq!(at_guest.recv_from(&mut buffer).unwrap().0, b"to the guest".len());
        }
        assert!(at_guest.recv_from(&mut buffer).is_err(), "it came twice");
        drop(at_guest);

        let target = Network::target(4000);
        let interval = Duration::from_millis(5);
        let stream = Stream::start(&network.correspondent, &network.guest, target, interval).unwrap();
        tokio::time::sleep(SILENCE).await;
        assert_eq!(stream.finish(SILENCE).unwrap().lost(), 0);
        assert_eq!(network.platforms[0].gateway.handle.dropped().await.unwrap().overflow, 0);
        assert_eq!(prefix(), grant(1).prefix);
    });
}

fn only_a_question_is_answered_in_udp_and_no_longer_than_it_was(planes: Planes) {
    let network = Network::direct(planes).unwrap();
    let bind = |port| {
        let bind = || UdpSocket::bind((CORRESPONDENT, port)).unwrap();
        let socket = network.correspondent.enter(bind).unwrap();
        socket.set_read_timeout(Some(SILENCE)).unwrap();
        socket
    };
    let (peer, other) = (bind(IN_UDP), bind(0));
    let mut buffer = [0; 2000];
    let question = [0, 1, 2, 3, 4, 5, 6, 7, 8];
    for malformed in
        [&[][..], &[0], &question[..8], &[1, 1, 2, 3, 4, 5, 6, 7, 8], &[2; 1452], &[0xff; 9], &[0x5f; 40]]
    {
        peer.send_to(malformed, (ANCHOR, IN_UDP)).unwrap();
    }
    other.send_to(&question, (ANCHOR, IN_UDP)).unwrap();
    for silent in [&peer, &other] {
        assert!(silent.recv_from(&mut buffer).is_err());
    }
    peer.send_to(&question, (ANCHOR, IN_UDP)).unwrap();
    if planes[0] == DataPlane::Tun {
        let (len, from) = peer.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from), (&[1, 1, 2, 3, 4, 5, 6, 7, 8][..], (ANCHOR, IN_UDP).into()));
    }
    assert!(peer.recv_from(&mut buffer).is_err());
}

/// Its first; a guest's comes with an advertisement.
async fn default_route(namespace: &Namespace) -> String {
    let start = Instant::now();
    loop {
        let routes = namespace.ip("-6 route show default").unwrap();
        if let Some(first) = routes.lines().next() {
            return first.to_owned();
        }
        assert!(start.elapsed() < Duration::from_secs(10), "no default route");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The kernel hands over up to 64 KiB at a time, to be cut by the agent: here into many hundreds.
fn packets_cut_very_small_pass_and_end_no_agent(planes: Planes) {
    let network = Network::direct(planes).unwrap();
    runtime().block_on(async {
        network.appear(0, 1).await.unwrap();
        for namespace in [&network.guest, &network.correspondent] {
            let default = default_route(namespace).await.replace("pref medium", "");
            namespace.ip(&format!("-6 route change {default} advmss 60")).unwrap();
        }
        for (from, to, target) in [
            (&network.correspondent, &network.guest, Network::target(4005)),
            (&network.guest, &network.correspondent, (CORRESPONDENT, 4005).into()),
        ] {
            let bulk = Connection::bulk(from, to, target).unwrap();
            tokio::time::sleep(SILENCE).await;
            assert!(bulk.finish().unwrap() > 1 << 18);
        }
        assert_still_at(&network, 0, 1).await;
    });
}
