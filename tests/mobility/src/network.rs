//! The namespaces of the lab, how they are joined, and the guest that moves.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use harness::{DelayLine, Namespace, Way};
use mobility::access::{self, AccessGateway, Grant, Link};
use mobility::anchor::{Authorization, Registrant};
use mobility::auth::{Algorithm, SharedKey};
use mobility::home_agent::{self, HomeAgent};
use mobility::wire::{Ipv4Interface, Ipv6Prefix};
use mobility::{DataPlane, PlaneChoice};

use crate::agents::Running;
use crate::port::set_port;
pub use crate::wires::{ANCHOR, join, namespace};
use crate::wires::{Host, Wires, add_netem, user_plane};

/// The guest's address, which it keeps.
pub const HOME: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xf, 1, 0, 0, 0, 0x10);
/// The guest's IPv4 address, which it keeps too.
pub const HOME_IPV4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// The DNS server that guests are told of.
pub const DNS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);
/// The guest's address that no gateway knows.
const PLAIN: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xe, 1, 0, 0, 0, 0x10);
/// The guest's identifier.
pub const NODE: &str = "vm";
/// The link-layer address of each guest: no two are on one link.
pub const GUEST_LINK_LAYER: [u8; 6] = [2, 0, 0, 0, 0, 0x10];
/// The interface of a platform to the guest.
const TAP: &str = "tap-vm";

/// The guest's prefix.
#[must_use]
pub fn prefix() -> Ipv6Prefix {
    Ipv6Prefix::new(HOME, 64).expect("64 is a length")
}

/// The key for one epoch of the guest, as the home agent gives it.
#[must_use]
pub fn grant(epoch: u64) -> Grant {
    let key = SharedKey::new(1000 + epoch as u32, Algorithm::HmacSha256_128, &[epoch as u8; 32]);
    Grant { key, node: NODE.as_bytes().to_vec(), prefix: prefix(), ipv4: Ipv4Interface::new(HOME_IPV4, 24) }
}

/// The link to the guest.
#[must_use]
pub fn link() -> Link {
    Link {
        interface: TAP.to_owned(),
        prefix: prefix(),
        ipv4: Ipv4Interface::new(HOME_IPV4, 24),
        link_layer: GUEST_LINK_LAYER,
    }
}

/// One of the two platforms.
#[derive(Debug)]
pub struct Platform {
    /// Its namespace.
    pub namespace: Arc<Namespace>,
    /// Its address.
    pub address: Ipv6Addr,
    /// Its gateway.
    pub gateway: Running<AccessGateway>,
    /// The guest's interface on this platform's link.
    port: &'static str,
    plane: DataPlane,
}

/// The lab.
#[derive(Debug)]
pub struct Network {
    /// The home agent's namespace.
    pub anchor: Arc<Namespace>,
    /// The correspondent's namespace.
    pub correspondent: Arc<Namespace>,
    /// The guest's namespace.
    pub guest: Arc<Namespace>,
    /// The two platforms.
    pub platforms: [Platform; 2],
    /// The line between home agent and platforms, where there is one.
    pub line: Option<DelayLine>,
    /// The home agent.
    pub home_agent: Running<HomeAgent>,
    edge: Arc<Namespace>,
}

/// The data planes of the home agent and of each of the platforms.
pub type Planes = [DataPlane; 3];

impl Network {
    /// Makes the network and starts the agents. From a platform to the home agent and back takes `round_trip`.
    ///
    /// # Errors
    /// What the kernel or an agent says.
    pub fn start(planes: Planes, round_trip: Duration) -> Result<Self> {
        Self::with_dice(planes, round_trip, 1)
    }

    /// As [`start`](Self::start); `seed` decides what happens to frames on a bad line.
    ///
    /// # Errors
    /// What the kernel or an agent says.
    pub fn with_dice(planes: Planes, round_trip: Duration, seed: u64) -> Result<Self> {
        let network = Self::make(planes, Some(seed))?;
        // After the signalling that setting up needs.
        network.set_line(Way::delay(round_trip / 2));
        Ok(network)
    }

    /// Without the line: as fast as the kernel is.
    ///
    /// # Errors
    /// What the kernel or an agent says.
    pub fn direct(planes: Planes) -> Result<Self> {
        Self::make(planes, None)
    }

    /// Without the line, but with the kernel's own delay, `netem`: for kernels that have it.
    ///
    /// # Errors
    /// What the kernel or an agent says.
    pub fn with_netem(planes: Planes, round_trip: Duration) -> Result<Self> {
        let network = Self::make(planes, None)?;
        add_netem(&network.anchor, &network.edge, round_trip)?;
        Ok(network)
    }

    fn make([at_home, at_first, at_second]: Planes, seed: Option<u64>) -> Result<Self> {
        let Wires { anchor, platforms: [a, b], correspondent, line, edge } = Wires::lay(seed)?;
        let (anchor, correspondent, guest) = (anchor.namespace, correspondent.namespace, namespace()?);
        // A virtual machine's link has no bridge that remembers on which side its router was.
        guest.ip("link add br0 type bridge mcast_snooping 0 ageing_time 0")?;
        // Of advertisements it takes what is new to it: how large packets may be.
        for (name, value) in [("accept_ra", "2"), ("autoconf", "0"), ("accept_ra_defrtr", "0")] {
            guest.sysctl(&format!("net/ipv6/conf/br0/{name}"), value)?;
        }
        guest.ip("link set br0 address 02:00:00:00:00:10 up")?;
        guest.ip(&format!("address add {HOME}/64 dev br0 nodad"))?;
        guest.ip("-6 route add default via fe80::200:5eff:fe00:5213 dev br0")?;
        guest.ip(&format!("address add {HOME_IPV4}/24 dev br0"))?;
        // There is none of this address.
        guest.ip("route add default via 198.51.100.1")?;

        let home_agent = start_home_agent(&anchor, at_home)?;
        let platforms = [platform(a, &guest, "port-a", at_first)?, platform(b, &guest, "port-b", at_second)?];
        for Platform { namespace, .. } in &platforms {
            // Refused, but from now on the neighbours on the way know each other, as those of a network in use do.
            let _ = namespace
                .enter(|| TcpStream::connect_timeout(&(ANCHOR, 1).into(), Duration::from_secs(5)))?;
        }
        Ok(Self { anchor, correspondent, guest, platforms, line, home_agent, edge })
    }

    /// Changes the line, both ways.
    pub fn set_line(&self, way: Way) {
        if let Some(line) = &self.line {
            line.set_both(way);
        }
    }

    /// Whether packets of UDP that are for home agents or gateways pass the router between them.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn let_udp_pass(&self, passes: bool) -> Result<()> {
        let change = if passes { "del" } else { "add" };
        self.edge.ip(&format!("-6 rule {change} ipproto udp dport 1021 priority 1 blackhole"))?;
        Ok(())
    }

    /// Where the correspondent sends to.
    #[must_use]
    pub fn target(port: u16) -> SocketAddr {
        (HOME, port).into()
    }

    /// Where it sends to over IPv4.
    #[must_use]
    pub fn target_ipv4(port: u16) -> SocketAddr {
        (HOME_IPV4, port).into()
    }

    /// Lets `platform` register the guest in `epoch`.
    ///
    /// # Errors
    /// What the home agent says.
    pub async fn authorize(&self, platform: usize, epoch: u64) -> Result<()> {
        self.authorize_for(platform, epoch, grant(epoch)).await
    }

    /// Lets `platform` register whom `grant` is for, in `epoch`.
    ///
    /// # Errors
    /// What the home agent says.
    pub async fn authorize_for(&self, platform: usize, epoch: u64, grant: Grant) -> Result<()> {
        let Grant { key, node, prefix, ipv4 } = grant;
        let registrant = Registrant::Gateway { address: self.platforms[platform].address, epoch };
        let authorization = Authorization { key, node, prefix, ipv4, registrant };
        Ok(self.home_agent.handle.authorize(authorization).await??)
    }

    /// Takes the permission for `epoch` back.
    ///
    /// # Errors
    /// When the home agent has ended.
    pub async fn withdraw(&self, epoch: u64) -> Result<()> {
        Ok(self.home_agent.handle.withdraw(1000 + epoch as u32).await?)
    }

    /// The guest stops: nothing reaches it, nothing comes from it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn pause(&self, platform: usize) -> Result<()> {
        set_port(&self.guest, self.platforms[platform].port, false)
    }

    /// The guest goes on at `platform`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn resume(&self, platform: usize) -> Result<()> {
        set_port(&self.guest, self.platforms[platform].port, true)
    }

    /// Another guest at `platform`, which knows nothing but that its router advertises: its namespace. Its link there is
    /// named as the guest is.
    ///
    /// # Errors
    /// What the kernel or the gateway says.
    pub async fn add_guest(&self, platform: usize, name: &str, prefix: Ipv6Prefix) -> Result<Arc<Namespace>> {
        let guest = Namespace::new()?;
        // It is a host, as a virtual machine is.
        for (name, value) in [("dad_transmits", "0"), ("accept_dad", "0"), ("accept_ra", "1")] {
            guest.sysctl(&format!("net/ipv6/conf/default/{name}"), value)?;
        }
        let Platform { namespace, gateway, .. } = &self.platforms[platform];
        join((namespace, name, ""), (&guest, "eth0", ""))?;
        guest.ip("link set eth0 address 02:00:00:00:00:10")?;
        let link = Link { interface: name.to_owned(), prefix, ipv4: None, link_layer: GUEST_LINK_LAYER };
        gateway.handle.attach(name, link).await?;
        Ok(Arc::new(guest))
    }

    /// Another address of the guest, which is reached at the first platform as routers do it, without a tunnel.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add_plain_way(&self) -> Result<Ipv6Addr> {
        let Platform { namespace, address, .. } = &self.platforms[0];
        self.guest.ip(&format!("address add {PLAIN}/64 dev br0 nodad"))?;
        self.edge.ip(&format!("-6 route add {PLAIN}/128 via {address}"))?;
        namespace.ip(&format!("-6 route add {PLAIN}/128 dev {TAP}"))?;
        // Before the gateway's, which take all else that comes from the guest.
        namespace.ip(&format!("-6 rule add from {PLAIN} lookup main priority 100"))?;
        Ok(PLAIN)
    }

    /// The gateway of `platform` dies, as in a crash.
    pub fn kill_gateway(&mut self, platform: usize) {
        self.platforms[platform].gateway.kill();
    }

    /// Puts another gateway in place of one that was killed.
    ///
    /// # Errors
    /// What the kernel or the agent says.
    pub fn start_gateway(&mut self, platform: usize) -> Result<()> {
        let Platform { namespace, address, gateway, plane, .. } = &mut self.platforms[platform];
        *gateway = start_gateway(namespace, *address, *plane)?;
        Ok(())
    }

    /// The home agent dies, as in a crash.
    pub fn kill_home_agent(&mut self) {
        self.home_agent.kill();
    }

    /// Puts another home agent in place of one that was killed. It knows nothing yet.
    ///
    /// # Errors
    /// What the kernel or the agent says.
    pub fn start_home_agent(&mut self) -> Result<()> {
        let plane = self.home_agent.handle.plane();
        self.home_agent = start_home_agent(&self.anchor, plane)?;
        Ok(())
    }
}

fn start_home_agent(namespace: &Arc<Namespace>, plane: DataPlane) -> Result<Running<HomeAgent>> {
    Running::start(namespace, async move || HomeAgent::start(home_agent_config(plane), None).await)
}

/// How the lab's home agent is set up.
///
/// # Panics
/// Never: 48 is a length.
#[must_use]
pub fn home_agent_config(plane: DataPlane) -> home_agent::Config {
    home_agent::Config {
        address: ANCHOR,
        prefixes: vec![
            Ipv6Prefix::new(HOME, 48).expect("48 is a length"),
            Ipv6Prefix::of_ipv4(HOME_IPV4, 24).expect("24 is a length"),
        ],
        interface: "lh-anchor".to_owned(),
        plane: PlaneChoice::Only(plane),
        user_plane: Some(user_plane(ANCHOR)),
        ipv4_address: None,
        max_nodes: 1000,
        restart_counter: 1,
    }
}

fn platform(host: Host, guest: &Namespace, port: &'static str, plane: DataPlane) -> Result<Platform> {
    let Host { namespace, address } = host;
    join((&namespace, TAP, ""), (guest, port, ""))?;
    guest.ip(&format!("link set {port} master br0"))?;
    set_port(guest, port, false)?;
    let gateway = start_gateway(&namespace, address, plane)?;
    Ok(Platform { namespace, address, gateway, port, plane })
}

/// How a gateway of the lab is set up.
#[must_use]
pub fn gateway_config(address: Ipv6Addr, anchor: Ipv6Addr, plane: DataPlane) -> access::Config {
    access::Config {
        address,
        anchor,
        interface: "lh-mag".to_owned(),
        plane: PlaneChoice::Only(plane),
        user_plane: Some(user_plane(address)),
        buffer_bytes: 37_500_000,
        dns: vec![DNS.into()],
    }
}

fn start_gateway(
    namespace: &Arc<Namespace>,
    address: Ipv6Addr,
    plane: DataPlane,
) -> Result<Running<AccessGateway>> {
    let config = gateway_config(address, ANCHOR, plane);
    Running::start(namespace, async move || {
        let gateway = AccessGateway::start(config).await?;
        gateway.attach(NODE, link()).await?;
        Ok::<_, mobility::AgentError>(gateway)
    })
}
