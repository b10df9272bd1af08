//! The network of the lab without anybody in it: a home agent's host, two platforms' hosts and a correspondent.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use harness::{DelayLine, Namespace, Way};

/// The home agent's address.
pub const ANCHOR: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);

/// The correspondent's IPv4 address.
pub const CORRESPONDENT_IPV4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 12);

/// A host.
#[derive(Debug)]
pub struct Host {
    /// Its namespace.
    pub namespace: Arc<Namespace>,
    /// Its address.
    pub address: Ipv6Addr,
}

/// The address for tunnels alone of the host with this address: in the same network.
#[must_use]
pub fn user_plane(address: Ipv6Addr) -> Ipv6Addr {
    let mut segments = address.segments();
    segments[7] = 0x5213;
    segments.into()
}

/// The hosts and what joins them. What is for 2001:db8:f::/48 comes to the home agent.
#[derive(Debug)]
pub struct Wires {
    /// The home agent.
    pub anchor: Host,
    /// The two platforms.
    pub platforms: [Host; 2],
    /// The correspondent, behind the home agent.
    pub correspondent: Host,
    /// The line between home agent and platforms, where there is one.
    pub line: Option<DelayLine>,
    /// The router between that and the platforms.
    pub edge: Arc<Namespace>,
}

/// A router's namespace.
///
/// # Errors
/// What the kernel says.
pub fn namespace() -> Result<Arc<Namespace>> {
    let namespace = Namespace::new()?;
    for name in ["ipv6/conf/all/forwarding", "ipv6/conf/default/forwarding", "ipv4/ip_forward"] {
        namespace.sysctl(&format!("net/{name}"), "1")?;
    }
    // Nobody here has to find out whether an address is taken.
    namespace.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
    namespace.sysctl("net/ipv6/conf/default/dad_transmits", "0")?;
    Ok(Arc::new(namespace))
}

/// Joins two namespaces by a link, each with its interface's name and address there.
///
/// # Errors
/// What the kernel says.
pub fn join(first: (&Namespace, &str, &str), second: (&Namespace, &str, &str)) -> Result<()> {
    let there = second.0.path();
    let mut command = Command::new("ip");
    command.args(["link", "add", first.1, "type", "veth", "peer", "name", second.1, "netns"]).arg(there);
    first.0.run(&mut command)?;
    for (namespace, name, address) in [first, second] {
        namespace.ip(&format!("link set {name} up"))?;
        if !address.is_empty() {
            namespace.ip(&format!("address add {address} dev {name} nodad"))?;
        }
    }
    Ok(())
}

/// Has the kernel itself, with `netem`, delay what goes between these two, without a line.
pub(crate) fn add_netem(anchor: &Namespace, edge: &Namespace, round_trip: Duration) -> Result<()> {
    for (namespace, interface) in [(anchor, "edge"), (edge, "anchor")] {
        let delay = format!("{}us", (round_trip / 2).as_micros());
        let mut command = Command::new("tc");
        command.args(["qdisc", "add", "dev", interface, "root", "netem", "delay", &delay, "limit", "100000"]);
        namespace.run(&mut command)?;
    }
    Ok(())
}

impl Wires {
    /// Makes them. With a seed the home agent is behind a perfect line, which decides by it what happens to frames when it
    /// is made a bad one; without, all is as fast as the kernel is.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn lay(seed: Option<u64>) -> Result<Self> {
        let [anchor, edge, correspondent] = [namespace()?, namespace()?, namespace()?];
        let (above, below) = ("2001:db8:1::1/64", "2001:db8:1::2/64");
        let line = match seed {
            Some(seed) => {
                let line = DelayLine::join((&anchor, "edge"), (&edge, "anchor"), seed)?;
                anchor.ip(&format!("address add {above} dev edge nodad"))?;
                edge.ip(&format!("address add {below} dev anchor nodad"))?;
                Some(line)
            }
            None => {
                join((&anchor, "edge", above), (&edge, "anchor", below))?;
                None
            }
        };
        join((&anchor, "cn", "2001:db8:c::1/64"), (&correspondent, "anchor", "2001:db8:c::c/64"))?;
        correspondent.ip("-6 route add default via 2001:db8:c::1")?;
        // Only here is there IPv4.
        anchor.ip("address add 203.0.113.1/24 dev cn")?;
        correspondent.ip(&format!("address add {CORRESPONDENT_IPV4}/24 dev anchor"))?;
        correspondent.ip("route add default via 203.0.113.1")?;
        anchor.ip("-6 route add default via 2001:db8:1::2")?;
        edge.ip("-6 route add default via 2001:db8:1::1")?;
        let platforms = [platform(&edge, 0xa)?, platform(&edge, 0xb)?];
        let anchor = Host { namespace: anchor, address: ANCHOR };
        let address = Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 0xc);
        let correspondent = Host { namespace: correspondent, address };
        Ok(Self { anchor, platforms, correspondent, line, edge })
    }

    /// Makes the way from a platform to the home agent and back take so long.
    pub fn set_round_trip(&self, round_trip: Duration) {
        if let Some(line) = &self.line {
            line.set_both(Way::delay(round_trip / 2));
        }
    }
}

fn platform(edge: &Namespace, number: u16) -> Result<Host> {
    let own = namespace()?;
    let address = Ipv6Addr::new(0x2001, 0xdb8, number, 0, 0, 0, 0, 1);
    let router = Ipv6Addr::new(0x2001, 0xdb8, number, 0, 0, 0, 0, 2);
    let name = format!("to-{number:x}");
    join((&own, "edge", &format!("{address}/64")), (edge, &name, &format!("{router}/64")))?;
    own.ip(&format!("-6 route add default via {router}"))?;
    Ok(Host { namespace: own, address })
}
