//! What a guest notices of an agent that dies and is started again, on a data plane of the kernel: nothing.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use mobility::access::Happened;
use mobility_lab::connections::Connection;
use mobility_lab::network::{NODE, grant, prefix};
use mobility_lab::{Network, Planes, Stream};
use tokio::runtime::Runtime;
use tokio::time::sleep;

mobility_lab::on_each_kernel_plane!(
    a_guest_notices_nothing_while_its_gateway_is_down,
    a_guest_notices_nothing_while_its_home_agent_is_down,
    bulk_transfers_outlive_a_gateway,
    bulk_transfers_outlive_a_home_agent,
    what_nobody_asks_for_after_a_crash_is_removed,
);

const ROUND_TRIP: Duration = Duration::from_millis(10);
const DOWN: Duration = Duration::from_millis(700);
const PAUSE: Duration = Duration::from_millis(20);

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// What goes on while an agent dies and comes again.
enum Traffic {
    /// A stream, of which nothing is to be missed, and a conversation.
    Light(Stream, Connection),
    /// A bulk transfer to the guest and one from it, which lose packets by themselves when they fill the line.
    Heavy([Connection; 2]),
}

impl Traffic {
    fn light(network: &Network) -> Self {
        let (outside, guest) = (&network.correspondent, &network.guest);
        let interval = Duration::from_millis(1);
        let stream = Stream::start(outside, guest, Network::target(4000), interval).unwrap();
        Self::Light(stream, Connection::interactive(outside, guest, Network::target(4002)).unwrap())
    }

    fn heavy(network: &Network) -> Self {
        let (outside, guest) = (&network.correspondent, &network.guest);
        Self::Heavy([
            Connection::bulk(outside, guest, Network::target(4001)).unwrap(),
            Connection::bulk(guest, outside, "[2001:db8:c::c]:4001".parse().unwrap()).unwrap(),
        ])
    }

    fn assert_unharmed(self) {
        match self {
            Self::Light(stream, lines) => {
                assert!(lines.finish().unwrap() > 20);
                let heard = stream.finish(Duration::from_millis(200)).unwrap();
                assert_eq!((heard.lost(), heard.reordered, heard.duplicates), (0, 0, 0), "{heard:?}");
                assert!(heard.longest_gap < DOWN, "{heard:?}");
            }
            Self::Heavy(both) => both.into_iter().for_each(|bulk| assert!(bulk.finish().unwrap() > 1 << 20)),
        }
    }
}

/// The guest moves on afterwards.
fn a_gateway_is_down(planes: Planes, traffic: fn(&Network) -> Traffic) {
    let mut network = Network::start(planes, ROUND_TRIP).unwrap();
    runtime().block_on(async {
        network.appear(0, 1).await.unwrap();
        let traffic = traffic(&network);
        sleep(DOWN).await;
        network.kill_gateway(0);
        sleep(DOWN).await;
        network.start_gateway(0).unwrap();
        let mut watch = network.watch(0);
        let gateway = &network.platforms[0].gateway.handle;
        gateway.serve(grant(1)).await.unwrap();
        watch.until(Happened::Registered).await.unwrap();
        gateway.keep_only().await.unwrap();
        sleep(DOWN).await;
        traffic.assert_unharmed();
        network.move_proactive(1, 2, PAUSE).await.unwrap();
        network.until_owned_by(1).await.unwrap();
    });
}

fn a_guest_notices_nothing_while_its_gateway_is_down(planes: Planes) {
    a_gateway_is_down(planes, Traffic::light);
}

fn bulk_transfers_outlive_a_gateway(planes: Planes) {
    a_gateway_is_down(planes, Traffic::heavy);
}

/// The guest moves on afterwards.
fn a_home_agent_is_down(planes: Planes, traffic: fn(&Network) -> Traffic) {
    let mut network = Network::start(planes, ROUND_TRIP).unwrap();
    runtime().block_on(async {
        network.appear(0, 1).await.unwrap();
        let before = network.home_agent.handle.binding(NODE).await.unwrap().unwrap();
        let traffic = traffic(&network);
        sleep(DOWN).await;
        network.kill_home_agent();
        sleep(DOWN).await;
        network.start_home_agent().unwrap();
        network.authorize(0, 1).await.unwrap();
        let home_agent = &network.home_agent.handle;
        let spi = grant(1).key.spi();
        home_agent.restore(NODE, 1, Some(spi), before.user_plane).await.unwrap();
        home_agent.keep_only().await.unwrap();
        sleep(DOWN).await;
        traffic.assert_unharmed();
        network.move_proactive(1, 2, PAUSE).await.unwrap();
        network.until_owned_by(1).await.unwrap();
    });
}

fn a_guest_notices_nothing_while_its_home_agent_is_down(planes: Planes) {
    a_home_agent_is_down(planes, Traffic::light);
}

fn bulk_transfers_outlive_a_home_agent(planes: Planes) {
    a_home_agent_is_down(planes, Traffic::heavy);
}

/// All rules and routes that are of an agent.
fn left(network: &Network) -> [String; 2] {
    [&network.platforms[0].namespace, &network.anchor].map(|host| {
        let routes = host.ip("-6 route show table all").unwrap();
        let prefix = prefix().to_string();
        routes.lines().filter(|line| line.contains(&prefix)).collect::<Vec<_>>().join("\n")
    })
}

/// The guest has gone while neither agent ran.
fn what_nobody_asks_for_after_a_crash_is_removed(planes: Planes) {
    let mut network = Network::start(planes, ROUND_TRIP).unwrap();
    runtime().block_on(async {
        network.appear(0, 1).await.unwrap();
        network.kill_gateway(0);
        network.kill_home_agent();
        let both = left(&network);
        assert!(both.iter().all(|left| !left.is_empty()), "{both:?}");
        network.start_gateway(0).unwrap();
        network.start_home_agent().unwrap();
        let gateway = &network.platforms[0].gateway.handle;
        gateway.detach(NODE).await.unwrap();
        gateway.keep_only().await.unwrap();
        network.home_agent.handle.keep_only().await.unwrap();
        assert_eq!(left(&network), ["", ""]);
        // What they need goes when they end.
        gateway.end().await;
        network.home_agent.handle.end().await;
        for host in [&network.platforms[0].namespace, &network.anchor] {
            let rules = host.ip("-6 rule").unwrap();
            assert_eq!(rules.lines().count(), 2, "{rules}");
            let links = host.ip("-o link").unwrap();
            assert!(!links.contains("lh-"), "{links}");
            assert!(!host.ip("-6 address").unwrap().contains("5213"));
        }
    });
}
