//! The network of the lab without anybody in it: a home agent's host, two platforms' hosts and a correspondent.

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use harness::{DelayLine, Namespace, Way};

use crate::network::{join, namespace};

/// A host.
#[derive(Debug)]
pub struct Host {
    /// Its namespace.
    pub namespace: Arc<Namespace>,
    /// Its address.
    pub address: Ipv6Addr,
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
    /// The line between home agent and platforms.
    pub line: DelayLine,
    _edge: Arc<Namespace>,
}

impl Wires {
    /// Makes them. From a platform to the home agent and back takes `round_trip`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn lay(round_trip: Duration) -> Result<Self> {
        let [anchor, edge, correspondent] = [namespace()?, namespace()?, namespace()?];
        let line = DelayLine::join((&anchor, "edge"), (&edge, "anchor"), 1)?;
        anchor.ip("address add 2001:db8:1::1/64 dev edge nodad")?;
        edge.ip("address add 2001:db8:1::2/64 dev anchor nodad")?;
        join((&anchor, "cn", "2001:db8:c::1/64"), (&correspondent, "anchor", "2001:db8:c::c/64"))?;
        correspondent.ip("-6 route add default via 2001:db8:c::1")?;
        anchor.ip("-6 route add default via 2001:db8:1::2")?;
        edge.ip("-6 route add default via 2001:db8:1::1")?;
        let platforms = [platform(&edge, 0xa)?, platform(&edge, 0xb)?];
        line.set_both(Way { delay: round_trip / 2, ..Way::default() });
        let anchor = Host { namespace: anchor, address: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1) };
        let address = Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 0xc);
        let correspondent = Host { namespace: correspondent, address };
        Ok(Self { anchor, platforms, correspondent, line, _edge: edge })
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
