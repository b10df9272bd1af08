//! A guest that looks after its address itself moves between two foreign links: real packets, real kernel, real routers, the
//! real agents.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::time::{Duration, SystemTime};

use harness::Way;
use mobility::DataPlane;
use mobility::auth::{Algorithm, Covered, SharedKey};
use mobility::wire::*;
use mobility_lab::connections::Connection;
use mobility_lab::network::{ANCHOR, HOME};
use mobility_lab::raw::{SIGNALLING, packet};
use mobility_lab::roaming::key;
use mobility_lab::{Raw, Roaming, Stream};
use tokio::runtime::Runtime;

/// The home agent's.
const PLANE: DataPlane = DataPlane::Seg6;
const PAUSE: Duration = Duration::from_millis(20);
const SILENCE: Duration = Duration::from_millis(300);
const DESTINATION_OPTIONS: u8 = 60;
const ROUTING: u8 = 43;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

#[test]
fn a_node_that_moves_is_reached_where_it_is() {
    let lab = Roaming::start(PLANE, Duration::from_millis(40)).unwrap();
    runtime().block_on(async {
        lab.appear(0).await.unwrap();
        let interval = Duration::from_millis(5);
        let stream = Stream::start(&lab.correspondent, &lab.guest, Roaming::target(4000), interval).unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        lab.move_to(1, PAUSE).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        lab.slip_to(0).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let heard = stream.finish(Duration::from_millis(200)).unwrap();
        println!("{heard:?}");
        assert_eq!((heard.reordered, heard.duplicates), (0, 0), "{heard:?}");
        assert!(heard.received > 100 && heard.lost() < 150, "{heard:?}");
        assert!(lab.is_at(lab.care_of().await.unwrap().unwrap(), 0));
    });
}

/// Ten moves back and forth under a bulk transfer and a conversation.
fn connections_survive_ten_moves(round_trip: Duration) {
    let lab = Roaming::start(PLANE, round_trip).unwrap();
    runtime().block_on(async {
        lab.appear(0).await.unwrap();
        let (from, to) = (&lab.correspondent, &lab.guest);
        let bulk = Connection::bulk(from, to, Roaming::target(4001)).unwrap();
        let lines = Connection::interactive(from, to, Roaming::target(4002)).unwrap();
        for number in 0..10 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            lab.move_to((number + 1) % 2, PAUSE).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (lines, bytes) = (lines.finish().unwrap(), bulk.finish().unwrap());
        println!("{lines} lines, {bytes} bytes at {round_trip:?}");
        assert!(lines > 10 && bytes > 1 << 20, "{lines} lines, {bytes} bytes");
        assert!(lab.is_at(lab.care_of().await.unwrap().unwrap(), 0));
    });
}

#[test]
fn connections_survive_ten_moves_on_a_short_way() {
    connections_survive_ten_moves(Duration::ZERO);
}

#[test]
fn connections_survive_ten_moves_on_a_long_way() {
    connections_survive_ten_moves(Duration::from_millis(50));
}

/// All that a node could have changed in its guest, once the kernel has come to rest.
fn shown(guest: &harness::Namespace) -> BTreeSet<String> {
    let words = [
        "-6 rule",
        "-6 route show table 5215",
        "-6 route show table 5216",
        "-6 -o address show scope global",
    ];
    // A table that was never used is an error to `ip`.
    let texts = words.map(|words| guest.ip(words).unwrap_or_default());
    // The kernel's own address of the advertised prefix, and how long it lasts, are none of the node's.
    texts
        .iter()
        .flat_map(|text| text.lines())
        .filter(|line| !line.contains("dynamic"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_node_that_ends_is_bound_no_more_and_leaves_nothing_behind() {
    let mut lab = Roaming::start(PLANE, Duration::ZERO).unwrap();
    runtime().block_on(async {
        lab.appear(0).await.unwrap();
        let running = shown(&lab.guest);
        assert!(running.iter().any(|line| line.contains("lookup 5216")), "{running:#?}");
        // One that dies leaves the rest to the next start.
        let mut events = {
            lab.restart_node().unwrap();
            lab.node.handle.events()
        };
        lab.registered(&mut events, 0).await.unwrap();
        assert_eq!(shown(&lab.guest).len(), running.len());
        lab.node.handle.end().await;
        assert_eq!(lab.care_of().await.unwrap(), None);
        let left = shown(&lab.guest);
        assert!(
            left.iter().all(|line| line.contains("lookup local") || line.contains("lookup main")),
            "{left:#?}"
        );
    });
}

#[test]
fn a_home_agent_that_dies_knows_the_node_again() {
    let mut lab = Roaming::start(PLANE, Duration::from_millis(4)).unwrap();
    runtime().block_on(async {
        lab.appear(0).await.unwrap();
        let lines = Connection::interactive(&lab.correspondent, &lab.guest, Roaming::target(4002)).unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        lab.restart_home_agent().await.unwrap();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(lab.is_at(lab.care_of().await.unwrap().unwrap(), 0));
        lab.move_to(1, PAUSE).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(lines.finish().unwrap() > 20);
    });
}

/// Lost and repeated signalling, over a bad line.
#[test]
fn a_node_is_found_over_a_bad_line() {
    let lab = Roaming::start(PLANE, Duration::from_millis(20)).unwrap();
    lab.set_line(Way { loss: 0.3, duplicate: 0.3, ..Way::delay(Duration::from_millis(10)) });
    runtime().block_on(async {
        lab.appear(0).await.unwrap();
        for number in 0..4 {
            lab.move_to((number + 1) % 2, PAUSE).await.unwrap();
            assert!(lab.is_at(lab.care_of().await.unwrap().unwrap(), (number + 1) % 2));
        }
    });
}

#[test]
fn forged_and_replayed_updates_are_neither_believed_nor_answered() {
    let lab = Roaming::start(PLANE, Duration::from_millis(4)).unwrap();
    runtime().block_on(async {
        let heard_by_anchor = Raw::open(&lab.anchor, DESTINATION_OPTIONS).unwrap();
        lab.appear(0).await.unwrap();
        lab.move_to(1, PAUSE).await.unwrap();
        let bound = lab.care_of().await.unwrap();
        let attacker: Ipv6Addr = "2001:db8:c::c".parse().unwrap();
        let answers = [
            Raw::open(&lab.correspondent, SIGNALLING).unwrap(),
            Raw::open(&lab.correspondent, ROUTING).unwrap(),
        ];
        let sender = Raw::sender(&lab.correspondent).unwrap();
        // What the node itself has sent, word for word, and as if from elsewhere.
        let mut heard = Vec::new();
        while let Some((from, payload)) = heard_by_anchor.hear(SILENCE).unwrap() {
            heard.push((from, payload));
        }
        assert!(heard.len() >= 2, "{} updates", heard.len());
        for (from, payload) in &heard {
            for source in [*from, attacker] {
                sender.send(&packet(source, ANCHOR, DESTINATION_OPTIONS, payload)).unwrap();
            }
        }
        // What somebody sends who guesses the key, to take the address and to end it.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
        for guessed in [&b"guessed"[..], &[0; 32]] {
            for (seconds, sequence) in [(300, 7), (0, 9)] {
                let key = SharedKey::new(key().spi(), Algorithm::HmacSha256_128, guessed);
                sender.send(&update(&key, attacker, sequence, seconds, now)).unwrap();
            }
        }
        for socket in &answers {
            assert_eq!(socket.hear(SILENCE).unwrap(), None);
        }
        assert_eq!(lab.care_of().await.unwrap(), bound);
        // The right key takes it: the forgeries were well made.
        sender.send(&update(&key(), attacker, 7, 300, now)).unwrap();
        assert!(answers[1].hear(SILENCE).unwrap().is_some());
        assert_eq!(lab.care_of().await.unwrap(), Some(attacker));
    });
}

/// A home registration from this care-of address, as a whole packet.
fn update(key: &SharedKey, care_of: Ipv6Addr, sequence: u16, seconds: u32, unix_ns: u64) -> Vec<u8> {
    let update = BindingUpdate {
        sequence: SequenceNumber(sequence),
        flags: BindingUpdateFlags::ACKNOWLEDGE | BindingUpdateFlags::HOME_REGISTRATION,
        lifetime: BindingLifetime::from_secs(seconds),
    };
    let options = vec![MobilityOption::MessageIdentification(NtpTimestamp::from_unix_ns(unix_ns))];
    let addresses = Addresses { home_address: Some(HOME), ..Addresses::direct(care_of, ANCHOR) };
    let covered = Covered { care_of, peer: HOME };
    let repr = Repr { message: Message::BindingUpdate(update), options };
    let message = key.emit(&repr, addresses.endpoints(), covered).unwrap();
    addresses.emit(MobilityHeader::new_checked(&message).unwrap())
}
