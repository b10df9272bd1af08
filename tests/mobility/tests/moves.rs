//! A guest moves between two platforms: real packets, real kernel, the real agents.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use harness::{Direction, Namespace};
use mobility::DataPlane;
use mobility::access::Happened;
use mobility_lab::connections::Connection;
use mobility_lab::network::NODE;
use mobility_lab::{Network, Planes, Stream};
use tokio::runtime::Runtime;

mobility_lab::on_each_plane!(
    a_guest_that_was_expected_moves_and_loses_nothing,
    a_source_that_has_taken_its_link_back_forwards_what_was_under_way,
    what_waits_of_a_fast_stream_comes_all_at_once,
    a_guest_that_was_not_expected_moves_in_order_and_loses_what_was_under_way,
    connections_survive_ten_moves_on_a_short_way,
    connections_survive_ten_moves_on_a_long_way,
);

const PAUSE: Duration = Duration::from_millis(20);

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// One at a time: while another makes or removes its namespaces, the kernel keeps a gateway waiting for up to half a second.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn stream(network: &Network, interval: Duration) -> Stream {
    Stream::start(&network.correspondent, &network.guest, Network::target(4000), interval).unwrap()
}

/// The kernel takes over once the guest has all that had come, and nothing waits any more.
async fn until_carried_by_kernel(platform: &Namespace) {
    let is_so = || {
        let ways = platform.ip("-6 route show table 5215").unwrap();
        let neighbours = platform.ip("-6 neighbour").unwrap();
        ways.contains("2001:db8:f:1::/64 dev tap-vm") && !neighbours.contains("fe80::521")
    };
    let patience = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < patience, "the kernel has not taken over");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn an_expected_guest_loses_nothing(planes: Planes, interval: Duration, pause: Duration) {
    let _alone = alone();
    let network = Network::start(planes, Duration::from_millis(40)).unwrap();
    runtime().block_on(async {
        network.appear(0, 1).await.unwrap();
        let stream = stream(&network, interval);
        tokio::time::sleep(Duration::from_millis(300)).await;
        network.move_proactive(1, 2, pause).await.unwrap();
        tokio::time::sleep(Duration::from_millis(700)).await;
        let heard = stream.finish(Duration::from_millis(200)).unwrap();
        assert!(heard.sent > 150, "{heard:?}");
        // What it may have left unread comes again.
        assert_eq!(heard.reordered, 0, "{heard:?}");
        let lines =
            [Direction::Forth, Direction::Back].map(|way| network.line.as_ref().map(|line| line.counts(way)));
        assert_eq!(heard.lost(), 0, "{heard:?}; of the line: {lines:?}");
        // The end of the old way was recognized: it is waited for half a second otherwise.
        assert!(heard.longest_gap < pause + Duration::from_millis(350), "{heard:?}");
        network.until_owned_by(1).await.unwrap();
        if planes[2] != DataPlane::Tun {
            until_carried_by_kernel(&network.platforms[1].namespace).await;
        }
    });
}

fn a_guest_that_was_expected_moves_and_loses_nothing(planes: Planes) {
    an_expected_guest_loses_nothing(planes, Duration::from_millis(5), PAUSE);
}

/// More than a thousand packets wait, and come all at once; some hundreds in an emulated machine, which is that much slower.
fn what_waits_of_a_fast_stream_comes_all_at_once(planes: Planes) {
    let is_emulated = planes.contains(&DataPlane::Ip6tnl);
    let interval = Duration::from_micros(if is_emulated { 1000 } else { 200 });
    an_expected_guest_loses_nothing(planes, interval, Duration::from_millis(250));
}

/// As a platform does once the guest runs elsewhere.
fn a_source_that_has_taken_its_link_back_forwards_what_was_under_way(planes: Planes) {
    let _alone = alone();
    let network = Network::start(planes, Duration::from_millis(60)).unwrap();
    runtime().block_on(async {
        network.appear(0, 1).await.unwrap();
        let (mut at_first, mut at_second) = (network.watch(0), network.watch(1));
        let stream = stream(&network, Duration::from_millis(2));
        tokio::time::sleep(Duration::from_millis(200)).await;
        network.prepare(1, 2).await.unwrap();
        network.leave(1, 2).await.unwrap();
        network.platforms[0].gateway.handle.detach(NODE).await.unwrap();
        tokio::time::sleep(PAUSE).await;
        network.arrive(1).await.unwrap();
        at_second.until(Happened::Registered).await.unwrap();
        at_first.until(Happened::Revoked).await.unwrap();
        at_first.until(Happened::Forgotten).await.unwrap();
        let heard = stream.finish(Duration::from_millis(200)).unwrap();
        assert_eq!((heard.lost(), heard.reordered), (0, 0), "{heard:?}");
        let routes = network.platforms[0].namespace.ip("-6 route show table all").unwrap();
        assert!(!routes.contains("2001:db8:f:1::/64"), "{routes}");
    });
}

fn a_guest_that_was_not_expected_moves_in_order_and_loses_what_was_under_way(planes: Planes) {
    let _alone = alone();
    let network = Network::start(planes, Duration::from_millis(40)).unwrap();
    runtime().block_on(async {
        network.appear(0, 1).await.unwrap();
        let (stream, mut at_first) = (stream(&network, Duration::from_millis(5)), network.watch(0));
        tokio::time::sleep(Duration::from_millis(300)).await;
        network.move_reactive(1, 2, PAUSE).await.unwrap();
        at_first.until(Happened::Revoked).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let heard = stream.finish(Duration::from_millis(200)).unwrap();
        assert_eq!((heard.reordered, heard.duplicates), (0, 0), "{heard:?}");
        // 20 ms of pause and a round trip are 12 packets; a busy machine adds some.
        assert!((1..80).contains(&heard.lost()), "{heard:?}");
        network.until_owned_by(1).await.unwrap();
    });
}

/// Ten moves back and forth, of either kind in turn, under a bulk transfer and a conversation.
fn connections_survive_ten_moves(planes: Planes, round_trip: Duration) {
    let _alone = alone();
    let network = Network::start(planes, round_trip).unwrap();
    runtime().block_on(async {
        network.appear(0, 1).await.unwrap();
        let (from, to) = (&network.correspondent, &network.guest);
        let target: fn(u16) -> SocketAddr = Network::target;
        let bulk = Connection::bulk(from, to, target(4001)).unwrap();
        let lines = Connection::interactive(from, to, target(4002)).unwrap();
        network.move_ten_times(PAUSE).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (lines, bytes) = (lines.finish().unwrap(), bulk.finish().unwrap());
        println!("{lines} lines, {bytes} bytes at {round_trip:?}");
        assert!(lines > 10 && bytes > 1 << 20, "{lines} lines, {bytes} bytes");
        network.until_owned_by(0).await.unwrap();
    });
}

fn connections_survive_ten_moves_on_a_short_way(planes: Planes) {
    connections_survive_ten_moves(planes, Duration::ZERO);
}

fn connections_survive_ten_moves_on_a_long_way(planes: Planes) {
    connections_survive_ten_moves(planes, Duration::from_millis(50));
}
