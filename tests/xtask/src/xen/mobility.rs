//! The guest's address follows it between two Xen hosts that are on networks of their own: a home agent here, a gateway in
//! each first domain, the guest on a bridge that nobody else is on.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Collector, Platform, XenHost, XenPair};

use super::live::names;
use super::machine::{Machine, VM};
use super::{product, step};

const ANCHOR: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
const CORRESPONDENT: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 1);
const GATEWAYS: [Ipv6Addr; 2] = [network(0xa, 1), network(0xb, 1)];
const ROUTERS: [Ipv6Addr; 2] = [network(0xa, 0xfe), network(0xb, 0xfe)];
const PREFIX: &str = "2001:db8:f:1::/64";
const MAC: &str = "00:16:3e:00:00:50";
/// Made of both.
const GUEST: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xf, 1, 0x216, 0x3eff, 0xfe00, 0x50);
const BUSYBOX: &str = "/bin/busybox";
/// The guest's own link on each host.
const BRIDGE: &str = "br-u1";
const PATIENCE: Duration = Duration::from_secs(120);

const fn network(number: u16, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, number, 0, 0, 0, 0, host)
}

/// Moves the guest from a to b and back; the same address answers before and after.
pub(super) fn run(pair: &XenPair) -> Result<()> {
    let home = lay(pair)?;
    let collector = Collector::within(pair.namespace(), CORRESPONDENT.into())?;
    begin(pair, &collector).with_context(|| said(pair, &home))?;
    for (from, to, gateway) in [(&pair.a, &pair.b, GATEWAYS[1]), (&pair.b, &pair.a, GATEWAYS[0])] {
        step(&format!("longhaul migrate {VM} --to {}, and its address with it", to.name()));
        collector.mark();
        let report = product::json(from, &format!("migrate {VM} --to {}", to.name()))
            .with_context(|| said(pair, &home))?;
        collector.wait_progress(5, PATIENCE).with_context(|| said(pair, &home))?;
        let care_of = home.cli(&["addresses"])?["home_agent"][0]["care_of"].clone();
        println!(
            "    not heard for {:.0} ms (guest stopped for {:.0} ms); {GUEST} is reached at {care_of} now",
            collector.longest_since_mark().as_secs_f64() * 1e3,
            report["downtime_ms"].as_f64().unwrap_or(f64::NAN)
        );
        ensure!(care_of == gateway.to_string(), "the home agent sends to {care_of}:\n{}", said(pair, &home));
        ping(pair).with_context(|| said(pair, &home))?;
        ensure!(collector.instances().len() == 1 && collector.duplicates() == 0, "the guest ran twice");
        ensure!(names(from)?.is_empty() && names(to)? == [VM], "it is not on {} alone", to.name());
    }
    Ok(())
}

/// Addresses, routes and daemons; the hosts reach each other by us only, as networks of their own do.
fn lay(pair: &XenPair) -> Result<Platform> {
    step("two networks, a home agent, a gateway on each host");
    let namespace = pair.namespace();
    namespace.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    for (address, length) in [(ANCHOR, 64), (CORRESPONDENT, 128), (ROUTERS[0], 64), (ROUTERS[1], 64)] {
        namespace.ip(&format!("-6 addr add {address}/{length} dev br0 nodad"))?;
    }
    for (host, (gateway, router)) in [&pair.a, &pair.b].into_iter().zip(GATEWAYS.into_iter().zip(ROUTERS)) {
        host.run(&format!(
            "for m in tun ip6_tunnel sch_ingress cls_u32 act_gact; do modprobe $m; done\n\
             sysctl -qw net.ipv6.conf.all.forwarding=1\n\
             ip -6 addr add {gateway}/64 dev xenbr0 nodad; ip -6 route add default via {router}\n\
             brctl addbr {BRIDGE}; ip link set {BRIDGE} up"
        ))?;
    }
    let config = format!("[home_agent]\naddress = \"{ANCHOR}\"\nprefixes = [\"2001:db8:f::/48\"]");
    let mut home = Platform::within(namespace, SocketAddr::from((ANCHOR, 4433)), "home", &config)?;
    home.start()?;
    let config = GATEWAYS.map(|own| {
        format!("[mobility]\naddress = \"{own}\"\nhome_agent = \"home\"\nhome_agent_address = \"{ANCHOR}\"\n")
    });
    product::start_at(pair, GATEWAYS.map(IpAddr::V6), config)?;
    for (host, gateway) in [&pair.a, &pair.b].into_iter().zip(GATEWAYS) {
        let address = SocketAddr::from((gateway, 4433)).to_string();
        home.cli(&["peer", "add", host.name(), &address, &product::fingerprint(host)?])?;
        product::json(host, &format!("peer add home [{ANCHOR}]:4433 {}", home.fingerprint()?))?;
    }
    Ok(home)
}

fn begin(pair: &XenPair, collector: &Collector) -> Result<()> {
    product::seed(pair)?;
    let definition = format!(
        "name = \"{VM}\"\nmemory_mib = 80\nvcpus = 1\ndisks = [{{ name = \"xvda\", path = \"/lab/disk.raw\" }}]\n\
         [network]\ninterface = \"{BRIDGE}\"\nmac = \"{MAC}\"\nprefix = \"{PREFIX}\"\n\
         [xen]\ntype = \"pvh\"\nkernel = \"/lab/vmlinux\"\nramdisk = \"/lab/initrd\"\nextra = \"{}\"\n\
         nics = [{{ mac = \"{MAC}\", bridge = \"{BRIDGE}\" }}]\n",
        Machine::append_to(CORRESPONDENT.into(), collector.port())
    );
    pair.a.run(&format!("cat > /tmp/{VM}.toml <<'END'\n{definition}END\n"))?;
    product::json(&pair.a, &format!("vm define /tmp/{VM}.toml"))?;
    product::json(&pair.a, &format!("vm start {VM}"))?;
    collector.wait_acked(5, PATIENCE).context("the guest, over its own address")?;
    ping(pair)
}

/// The guest answers at its own address.
fn ping(pair: &XenPair) -> Result<()> {
    let mut ping = Command::new(BUSYBOX);
    ping.args(["ping", "-6", "-c", "3", "-W", "5"]).arg(GUEST.to_string());
    let said = pair.namespace().run(&mut ping)?;
    ensure!(said.contains("3 packets received"), "{said}");
    Ok(())
}

fn said(pair: &XenPair, home: &Platform) -> String {
    let addresses =
        |host: &XenHost| host.run("/lab/longhaul addresses; ip -br addr; ip -6 route").unwrap_or_default();
    let hosts = [&pair.a, &pair.b]
        .map(|host| format!("--- {}\n{}\n{}", host.name(), addresses(host), product::trouble(host, VM)));
    format!(
        "--- home\n{}\n{}\n{}",
        home.cli_text(&["addresses"]).unwrap_or_default(),
        home.log(),
        hosts.join("\n")
    )
}
