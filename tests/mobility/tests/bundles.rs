//! Between two ends in user space packets go in UDP, dozens with one call, where the way carries it; else as ever.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use harness::Namespace;
use mobility::DataPlane;
use mobility_lab::{Connection, Network, Stream};
use tokio::runtime::Runtime;

const PLANES: [DataPlane; 3] = [DataPlane::Tun; 3];
const PATIENCE: Duration = Duration::from_secs(10);

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// How many calls have sent datagrams here.
fn datagrams(namespace: &Namespace) -> u64 {
    let counts = namespace.enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap()).unwrap();
    let count = counts.lines().find_map(|line| line.strip_prefix("Udp6OutDatagrams")).unwrap();
    count.trim().parse().unwrap()
}

fn stream(network: &Network, interval: Duration) -> Stream {
    Stream::start(&network.correspondent, &network.guest, Network::target(4000), interval).unwrap()
}

#[test]
fn what_there_is_much_of_goes_in_udp_by_dozens_both_ways() {
    let network = Network::direct(PLANES).unwrap();
    runtime().block_on(async {
        network.appear(0, 1).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let (correspondent, anchor) = ("[2001:db8:c::c]:4001".parse().unwrap(), &network.anchor);
        let platform = &network.platforms[0].namespace;
        for (from, to, target, sender) in [
            (&network.correspondent, &network.guest, Network::target(4001), anchor),
            (&network.guest, &network.correspondent, correspondent, platform),
        ] {
            let before = datagrams(sender);
            let bulk = Connection::bulk(from, to, target).unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
            let packets = bulk.finish().unwrap() / 1392;
            let calls = datagrams(sender) - before;
            assert!(calls > 50 && packets > 10 * calls, "{packets} packets, {calls} calls");
        }
    });
}

/// On an idle way a peer is asked when something is to be sent, so here it is not while nothing is.
#[test]
fn when_the_way_opens_a_fast_stream_takes_it_and_keeps_its_order() {
    let network = Network::start(PLANES, Duration::from_millis(10)).unwrap();
    network.let_udp_pass(false).unwrap();
    runtime().block_on(async {
        network.appear(0, 1).await.unwrap();
        let stream = stream(&network, Duration::from_micros(200));
        tokio::time::sleep(Duration::from_millis(500)).await;
        network.let_udp_pass(true).unwrap();
        let (before, start) = (datagrams(&network.anchor), Instant::now());
        while datagrams(&network.anchor) < before + 1000 {
            assert!(start.elapsed() < PATIENCE, "nothing goes in UDP");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let heard = stream.finish(Duration::from_millis(200)).unwrap();
        assert_eq!((heard.lost(), heard.reordered, heard.duplicates), (0, 0, 0), "{heard:?}");
    });
}

#[test]
fn a_way_that_is_closed_is_left() {
    let network = Network::start(PLANES, Duration::from_millis(10)).unwrap();
    runtime().block_on(async {
        network.appear(0, 1).await.unwrap();
        let before = stream(&network, Duration::from_millis(2));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(datagrams(&network.anchor) > 100);
        network.let_udp_pass(false).unwrap();
        tokio::time::sleep(Duration::from_millis(7500)).await;
        assert!(before.finish(Duration::from_millis(200)).unwrap().lost() > 0);
        let after = stream(&network, Duration::from_millis(2));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let heard = after.finish(Duration::from_millis(200)).unwrap();
        assert_eq!((heard.lost(), heard.reordered), (0, 0), "{heard:?}");
    });
}
