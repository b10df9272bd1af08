//! What a gateway leaves behind on its host: nothing, neither when it ends nor, once the next has started, when it dies. And
//! what others have told the kernel stays.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::process::Command;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use harness::Namespace;
use mobility::DataPlane;
use mobility::access::AccessGateway;
use mobility_lab::network::{NODE, gateway_config, join, link, namespace};
use mobility_lab::{Planes, Running};
use tokio::runtime::Runtime;

mobility_lab::on_each_plane!(
    a_gateway_that_ends_leaves_nothing_behind,
    a_guest_that_is_detached_leaves_nothing_behind,
    what_a_crash_leaves_is_the_next_starts,
    what_a_crash_leaves_half_made_is_removed,
    an_interface_that_is_gone_does_not_keep_a_gateway_from_ending,
);

const PLATFORM: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 1);
const ANCHOR: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 2);

/// All that the gateway could have changed, as lines of text, once the kernel has come to rest.
fn shown(host: &Namespace) -> BTreeSet<String> {
    let words = ["-6 rule", "-6 route show table all", "-details address", "-6 neighbour show proxy"];
    let look = || -> BTreeSet<String> {
        let filters = host.run(Command::new("tc").arg("qdisc")).unwrap();
        let texts = words.map(|words| host.ip(words).unwrap());
        let lines = texts.iter().chain([&filters]).flat_map(|text| text.lines());
        // What the kernel makes up anew for each tunnel interface.
        lines
            .filter(|line| !line.contains("stable-privacy") && !line.contains("dev lh-mag table local"))
            .map(str::to_owned)
            .collect()
    };
    let mut last = look();
    loop {
        sleep(Duration::from_millis(50));
        let now = look();
        if now == last {
            return now;
        }
        last = now;
    }
}

fn assert_same(one: &BTreeSet<String>, other: &BTreeSet<String>) {
    let changes: Vec<_> = one.symmetric_difference(other).collect();
    assert!(changes.is_empty(), "{changes:#?}");
}

/// Once it has an interface in store too, where the data plane has such: it is made by and by.
fn start(host: &Arc<Namespace>, plane: DataPlane) -> Running<AccessGateway> {
    let config = gateway_config(PLATFORM, ANCHOR, plane);
    let gateway = Running::start(host, async move || {
        let gateway = AccessGateway::start(config).await?;
        gateway.attach(NODE, link()).await?;
        Ok::<_, mobility::AgentError>(gateway)
    })
    .unwrap();
    let patience = Instant::now() + Duration::from_secs(10);
    // The second, since the first is the home agent's. Its inner one of two joined interfaces is set up last.
    let is_ready =
        |links: &str| links.lines().any(|line| line.contains("lh-mag.1x@") && line.contains("LOWER_UP"));
    while gateway.handle.plane() == DataPlane::Seg6 && !is_ready(&host.ip("link").unwrap()) {
        assert!(Instant::now() < patience, "there is no interface in store");
        sleep(Duration::from_millis(20));
    }
    gateway
}

/// A platform with a guest's link, and rules and routes that are not ours, some of them much like ours.
fn host() -> (Arc<Namespace>, [Arc<Namespace>; 2]) {
    let [host, edge, guest] = [namespace().unwrap(), namespace().unwrap(), namespace().unwrap()];
    join((&host, "edge", &format!("{PLATFORM}/64")), (&edge, "host", &format!("{ANCHOR}/64"))).unwrap();
    join((&host, "tap-vm", ""), (&guest, "eth0", "")).unwrap();
    for words in [
        &format!("-6 route add default via {ANCHOR}"),
        "link set tap-vm alias somebody-else's",
        "-6 rule add iif tap-vm lookup 77 priority 5213",
        "-6 rule add from 2001:db8:f:9::/64 lookup 5213 priority 7000",
        "-6 route add 2001:db8:f:9::/64 dev edge table 5214",
        "-6 route add unreachable 2001:db8:f:8::/64 table 5213",
        "-6 route add 2001:db8:f:7::/64 dev tap-vm proto static",
    ] {
        host.ip(words).unwrap();
    }
    (host, [edge, guest])
}

fn a_gateway_that_ends_leaves_nothing_behind([_, plane, _]: Planes) {
    let (host, _others) = host();
    let before = shown(&host);
    let gateway = start(&host, plane);
    assert_ne!(shown(&host), before);
    Runtime::new().unwrap().block_on(gateway.handle.end());
    assert_same(&shown(&host), &before);
}

fn a_guest_that_is_detached_leaves_nothing_behind([_, plane, _]: Planes) {
    let (host, _others) = host();
    let before = shown(&host);
    let gateway = start(&host, plane);
    Runtime::new().unwrap().block_on(async {
        let attached = shown(&host);
        gateway.handle.detach(NODE).await.unwrap();
        // Attached again, and attached twice, is attached.
        for _ in 0..2 {
            gateway.handle.attach(NODE, link()).await.unwrap();
            assert_same(&shown(&host), &attached);
        }
        gateway.handle.end().await;
    });
    assert_same(&shown(&host), &before);
}

fn what_a_crash_leaves_is_the_next_starts([_, plane, _]: Planes) {
    let (host, _others) = host();
    let before = shown(&host);
    let mut gateway = start(&host, plane);
    let running = shown(&host);
    gateway.kill();
    assert_ne!(shown(&host), before, "the crash took everything with it: this test proves nothing");
    let gateway = start(&host, plane);
    // All but the number of its new tunnel interface.
    let but_tunnel =
        |lines: BTreeSet<String>| lines.into_iter().filter(|line| !line.contains(": lh-mag:")).collect();
    assert_same(&but_tunnel(shown(&host)), &but_tunnel(running));
    Runtime::new().unwrap().block_on(gateway.handle.end());
    assert_same(&shown(&host), &before);
}

/// It has its group, which it is made with, and not yet its alias.
fn what_a_crash_leaves_half_made_is_removed([_, plane, _]: Planes) {
    let (host, _others) = host();
    let group = 0x5213_0000 + 213;
    host.ip(&format!("link add lh-mag.9 group {group} type veth peer name lh-mag.9x")).unwrap();
    host.ip("link add lh-mag.8 group 5213 type veth peer name lh-mag.8x").unwrap();
    let gateway = start(&host, plane);
    let links = host.ip("link").unwrap();
    assert!(!links.contains("lh-mag.9") && links.contains("lh-mag.8"), "{links}");
    Runtime::new().unwrap().block_on(gateway.handle.end());
    assert!(host.ip("link").unwrap().contains("lh-mag.8"));
}

fn an_interface_that_is_gone_does_not_keep_a_gateway_from_ending([_, plane, _]: Planes) {
    let (host, _others) = host();
    let gateway = start(&host, plane);
    host.ip("link delete tap-vm").unwrap();
    Runtime::new().unwrap().block_on(async {
        gateway.handle.detach(NODE).await.unwrap();
        gateway.handle.end().await;
    });
    let left = host.ip("-6 rule").unwrap();
    assert!(!left.contains("lh-mag") && left.matches("tap-vm").count() == 1, "{left}");
}
