//! A guest that looks after its address itself, as a mobile node: it moves between two foreign links, each with a router of
//! the paper's kind, radvd, or with IPv4 only behind a NAT, the kernel's. The platforms know nothing of it.
//!
//! ```text
//!   correspondent --- home agent ===(delay line)=== edge --- platform a (radvd or NAT) --+
//!                                                       --- platform b (radvd or NAT) --+-- guest (mobile node)
//! ```

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::ops::Deref;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use harness::lab::apt::{self, NAT, ROUTER};
use harness::{DelayLine, Namespace, Way};
use mobility::DataPlane;
use mobility::anchor::{Authorization, Registrant};
use mobility::auth::{Algorithm, SharedKey};
use mobility::home_agent::{self, HomeAgent};
use mobility::mobile_node::{Config, Happened, MobileNode};
use mobility::wire::Ipv6Prefix;
use tokio::sync::broadcast::Receiver;
use tokio::time::{sleep, timeout};

use crate::Running;
use crate::network::{HOME, home_agent_config};
use crate::port::set_port;
use crate::raw::{ICMPV6, Raw};
use crate::wires::{ANCHOR, Host, Wires, add_netem, join};

/// The node's name.
pub const NAI: &str = "node@example.org";
/// The guest's interface, a bridge of which one port at a time is connected: it has a carrier where it is plugged in.
pub const LINK: &str = "eth0";
const ROUTER_ADVERTISEMENT: u8 = 134;
/// Longer than anything takes here, on a busy machine too: a node asks again after the times of RFC 6275, ten times in this time,
/// and over a line that loses three of ten one of two tries is answered.
const PATIENCE: Duration = Duration::from_secs(200);

/// The home agent's IPv4 address.
pub const ANCHOR_IPV4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The guest's address behind either NAT.
pub const BEHIND_NAT: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 5);

/// What a foreign link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It has IPv6 and a router that advertises.
    Advertised,
    /// It has IPv4 only, with a NAT as its router. Both such links have the same addresses.
    BehindNat,
}

/// One of the two foreign links.
#[derive(Debug)]
struct Site {
    /// Where the router is.
    namespace: Arc<Namespace>,
    kind: Kind,
    prefix: Ipv6Prefix,
    /// The guest's interface on this link.
    port: &'static str,
    /// The program that advertises.
    router: Option<(Child, tempfile::NamedTempFile)>,
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some((router, _)) = &mut self.router {
            let _ = router.kill();
            let _ = router.wait();
        }
    }
}

/// The network without anybody in it.
#[derive(Debug)]
pub struct ForeignLinks {
    /// The guest's namespace.
    pub guest: Arc<Namespace>,
    /// The correspondent's namespace.
    pub correspondent: Arc<Namespace>,
    /// The home agent's namespace.
    pub anchor: Arc<Namespace>,
    /// The line between home agent and platforms.
    pub line: Option<DelayLine>,
    sites: [Site; 2],
    _edge: Arc<Namespace>,
}

/// The lab: the network, with a home agent and a node.
#[derive(Debug)]
pub struct Roaming {
    /// The home agent.
    pub home_agent: Running<HomeAgent>,
    /// The node, in the guest.
    pub node: Running<MobileNode>,
    plane: DataPlane,
    /// The network.
    pub links: ForeignLinks,
}

impl Deref for Roaming {
    type Target = ForeignLinks;

    fn deref(&self) -> &ForeignLinks {
        &self.links
    }
}

/// The key that node and home agent share.
#[must_use]
pub fn key() -> SharedKey {
    SharedKey::new(0x1_0001, Algorithm::HmacSha256_128, &[7; 32])
}

/// What lets the node register.
///
/// # Panics
/// Never: 128 is a length.
#[must_use]
pub fn authorization() -> Authorization {
    let prefix = Ipv6Prefix::new(HOME, 128).expect("128 is a length");
    Authorization { key: key(), node: NAI.into(), prefix, ipv4: None, registrant: Registrant::MobileNode }
}

impl ForeignLinks {
    /// Makes it; the guest is plugged in nowhere. From a platform to the home agent and back takes `round_trip`.
    ///
    /// # Errors
    /// What the kernel or a router says.
    pub fn lay(round_trip: Duration) -> Result<Self> {
        Self::lay_of(round_trip, [Kind::Advertised; 2])
    }

    /// As [`lay`](Self::lay), with links of these kinds.
    ///
    /// # Errors
    /// What the kernel or a router says.
    pub fn lay_of(round_trip: Duration, kinds: [Kind; 2]) -> Result<Self> {
        apt::install(ROUTER)?;
        apt::install(NAT)?;
        let wires = Wires::lay(Some(1))?;
        wires.set_round_trip(round_trip);
        Self::between(wires, kinds)
    }

    fn between(wires: Wires, kinds: [Kind; 2]) -> Result<Self> {
        let Wires { anchor, platforms: [a, b], correspondent, line, edge } = wires;
        let guest = Arc::new(Namespace::new()?);
        guest.ip(&format!("link add {LINK} type bridge mcast_snooping 0 ageing_time 0"))?;
        guest.ip(&format!("link set {LINK} address 02:00:00:00:00:10 up"))?;
        anchor.namespace.ip(&format!("address add {ANCHOR_IPV4}/24 dev edge"))?;
        edge.ip("address add 192.0.2.2/24 dev anchor")?;
        anchor.namespace.ip("route add default via 192.0.2.2")?;
        let sites =
            [site(&a, &edge, &guest, "port-a", kinds[0])?, site(&b, &edge, &guest, "port-b", kinds[1])?];
        for platform in [&a, &b] {
            // Refused, but from now on the neighbours on the way know each other, as those of a network in use do.
            let _ = platform
                .namespace
                .enter(|| TcpStream::connect_timeout(&(ANCHOR, 1).into(), Duration::from_secs(5)))?;
        }
        let (anchor, correspondent) = (anchor.namespace, correspondent.namespace);
        Ok(Self { guest, correspondent, anchor, line, sites, _edge: edge })
    }

    /// Changes the line, both ways.
    pub fn set_line(&self, way: Way) {
        if let Some(line) = &self.line {
            line.set_both(way);
        }
    }

    /// The guest is plugged in nowhere.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn unplug(&self, site: usize) -> Result<()> {
        set_port(&self.guest, self.sites[site].port, false)?;
        self.guest.ip(&format!("-4 address flush dev {LINK}")).map(drop)
    }

    /// The guest is plugged in at this site.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn plug(&self, site: usize) -> Result<()> {
        set_port(&self.guest, self.sites[site].port, true)?;
        if self.sites[site].kind == Kind::BehindNat {
            // As a DHCP client does.
            self.guest.ip(&format!("address replace {BEHIND_NAT}/24 dev {LINK}"))?;
            self.guest.ip(&format!("route replace default via 192.168.1.1 dev {LINK}"))?;
        }
        Ok(())
    }

    /// Where a site's router is.
    #[must_use]
    pub fn router(&self, site: usize) -> &Namespace {
        &self.sites[site].namespace
    }

    /// Whether this address is of a site's link.
    #[must_use]
    pub fn is_at(&self, care_of: Ipv6Addr, site: usize) -> bool {
        let Site { kind, prefix, .. } = &self.sites[site];
        match kind {
            Kind::Advertised => prefix.contains(care_of),
            Kind::BehindNat => care_of == BEHIND_NAT.to_ipv6_mapped(),
        }
    }
}

impl Roaming {
    /// Makes the network and starts the agents, the home agent's packets on `plane`.
    ///
    /// # Errors
    /// What the kernel or an agent says.
    pub fn start(plane: DataPlane, round_trip: Duration) -> Result<Self> {
        Self::start_between(plane, round_trip, [Kind::Advertised; 2])
    }

    /// As [`start`](Self::start), with links of these kinds.
    ///
    /// # Errors
    /// What the kernel or an agent says.
    pub fn start_between(plane: DataPlane, round_trip: Duration, kinds: [Kind; 2]) -> Result<Self> {
        Self::on(ForeignLinks::lay_of(round_trip, kinds)?, plane)
    }

    /// As [`start`](Self::start), with the kernel's own delay, `netem`, in place of the line: for kernels that have it. The program
    /// that advertises has to be there.
    ///
    /// # Errors
    /// What the kernel or an agent says.
    pub fn with_netem(plane: DataPlane, round_trip: Duration) -> Result<Self> {
        let wires = Wires::lay(None)?;
        add_netem(&wires.anchor.namespace, &wires.edge, round_trip)?;
        Self::on(ForeignLinks::between(wires, [Kind::Advertised; 2])?, plane)
    }

    fn on(links: ForeignLinks, plane: DataPlane) -> Result<Self> {
        let home_agent = start_home_agent(&links.anchor, plane, None)?;
        let node = start_node(&links.guest)?;
        Ok(Self { home_agent, node, plane, links })
    }

    /// The guest appears at `site`: how long until it is registered.
    ///
    /// # Errors
    /// When it is not.
    pub async fn appear(&self, site: usize) -> Result<Duration> {
        let mut events = self.node.handle.events();
        self.plug(site)?;
        let start = Instant::now();
        self.registered(&mut events, site).await?;
        Ok(start.elapsed())
    }

    /// The guest moves to `to`, and is paused for `pause`. Ends when it is registered there.
    ///
    /// # Errors
    /// When it is not.
    pub async fn move_to(&self, to: usize, pause: Duration) -> Result<()> {
        let mut events = self.node.handle.events();
        self.unplug(1 - to)?;
        sleep(pause).await;
        self.plug(to)?;
        self.registered(&mut events, to).await
    }

    /// The guest moves to `to` without that its link was away for a moment.
    ///
    /// # Errors
    /// When it is not registered there.
    pub async fn slip_to(&self, to: usize) -> Result<()> {
        let mut events = self.node.handle.events();
        self.plug(to)?;
        self.unplug(1 - to)?;
        self.registered(&mut events, to).await
    }

    /// Where the home agent sends what is for the guest.
    ///
    /// # Errors
    /// When the home agent has ended.
    pub async fn care_of(&self) -> Result<Option<Ipv6Addr>> {
        Ok(self.home_agent.handle.binding(NAI).await?.map(|binding| binding.care_of))
    }

    /// Where the correspondent sends to.
    #[must_use]
    pub fn target(port: u16) -> SocketAddr {
        (HOME, port).into()
    }

    /// Puts another home agent in place of the present one, which dies as in a crash.
    ///
    /// # Errors
    /// What the agent says.
    pub async fn restart_home_agent(&mut self) -> Result<()> {
        let care_of = self.care_of().await?;
        self.home_agent.kill();
        self.home_agent = start_home_agent(&self.links.anchor, self.plane, care_of)?;
        Ok(())
    }

    /// Puts another node in place of the present one, which dies as in a crash.
    ///
    /// # Errors
    /// What the agent says.
    pub fn restart_node(&mut self) -> Result<()> {
        self.node.kill();
        self.node = start_node(&self.links.guest)?;
        Ok(())
    }

    /// Waits until the node is registered at `site`.
    ///
    /// # Errors
    /// When it is not.
    pub async fn registered(&self, events: &mut Receiver<Happened>, site: usize) -> Result<()> {
        let wait = async {
            loop {
                match events.recv().await.context("the node has ended")? {
                    Happened::Registered(care_of) if self.is_at(care_of, site) => return Ok(()),
                    Happened::Refused(status) => bail!("the home agent refuses: {status}"),
                    _ => {}
                }
            }
        };
        timeout(PATIENCE, wait).await.context("waiting for the node to be registered")?
    }
}

/// A home agent that lets the node register, and knows where it was.
fn start_home_agent(
    anchor: &Arc<Namespace>,
    plane: DataPlane,
    care_of: Option<Ipv6Addr>,
) -> Result<Running<HomeAgent>> {
    Running::start(anchor, async move || {
        let config = home_agent::Config { ipv4_address: Some(ANCHOR_IPV4), ..home_agent_config(plane) };
        let home_agent = HomeAgent::start(config, None).await?;
        home_agent.authorize(authorization()).await??;
        if let Some(care_of) = care_of {
            home_agent.restore_mobile_node(NAI, care_of).await?;
        }
        anyhow::Ok(home_agent)
    })
}

fn start_node(guest: &Arc<Namespace>) -> Result<Running<MobileNode>> {
    Running::start(guest, async || {
        MobileNode::start(Config {
            home_address: HOME,
            home_agent: ANCHOR,
            home_agent_ipv4: Some(ANCHOR_IPV4),
            name: NAI.to_owned(),
            key: key(),
            link: LINK.to_owned(),
            interface: "lh-node".to_owned(),
        })
        .await
    })
}

/// A link at a platform.
fn site(host: &Host, edge: &Namespace, guest: &Namespace, port: &'static str, kind: Kind) -> Result<Site> {
    let Host { namespace, address: platform } = host;
    let mut segments = platform.segments();
    (segments[3], segments[7]) = (1, 0);
    let prefix = Ipv6Prefix::new(segments.into(), 64).context("64 is a length")?;
    segments[7] = 1;
    let router = Ipv6Addr::from(segments);
    join((namespace, "guests", &format!("{router}/64")), (guest, port, ""))?;
    guest.ip(&format!("link set {port} master {LINK}"))?;
    set_port(guest, port, false)?;
    edge.ip(&format!("-6 route add {prefix} via {platform}"))?;
    let router = match kind {
        Kind::Advertised => Some(advertise(namespace, prefix)?),
        Kind::BehindNat => {
            translate(namespace, edge, platform.segments()[2])?;
            None
        }
    };
    Ok(Site { namespace: Arc::clone(namespace), kind, prefix, port, router })
}

/// Makes the platform with this number the NAT of its link, which sends from another port each time that it has forgotten one.
fn translate(namespace: &Namespace, edge: &Namespace, number: u16) -> Result<()> {
    namespace.ip("-6 address flush dev guests")?;
    namespace.ip("address add 192.168.1.1/24 dev guests")?;
    namespace.ip(&format!("address add 100.64.{number}.1/24 dev edge"))?;
    edge.ip(&format!("address add 100.64.{number}.2/24 dev to-{number:x}"))?;
    namespace.ip(&format!("route add default via 100.64.{number}.2"))?;
    let chain = "type nat hook postrouting priority srcnat; oifname \"edge\" masquerade random;";
    let mut command = Command::new("nft");
    command.arg(format!("table ip nat {{ chain out {{ {chain} }}; }}"));
    namespace.run(&mut command).map(drop)
}

/// A router that advertises as often as the paper's.
fn advertise(namespace: &Arc<Namespace>, prefix: Ipv6Prefix) -> Result<(Child, tempfile::NamedTempFile)> {
    let config = tempfile::NamedTempFile::new()?;
    let text = format!(
        "interface guests {{ AdvSendAdvert on; MinRtrAdvInterval 0.03; MaxRtrAdvInterval 0.07;\n\
         MinDelayBetweenRAs 0.03; AdvIntervalOpt on;\n\
         prefix {prefix} {{ AdvOnLink on; AdvAutonomous on; }}; }};\n"
    );
    std::fs::write(config.path(), text)?;
    let mut command = Command::new("radvd");
    command.args(["--nodaemon", "--logmethod", "none", "--pidfile"]).arg(config.path().with_extension("pid"));
    command.arg("--config").arg(config.path()).stdout(Stdio::null()).stderr(Stdio::null());
    let hears = Raw::open(namespace, ICMPV6)?;
    let mut router = namespace.spawn(&mut command)?;
    let start = Instant::now();
    let moment = Duration::from_millis(100);
    while hears.hear(moment)?.is_none_or(|(_, message)| message[0] != ROUTER_ADVERTISEMENT) {
        let ended = router.try_wait()?;
        if ended.is_some() || start.elapsed() > PATIENCE {
            let _ = router.kill();
            let state = ended.map_or("runs".to_owned(), |status| format!("has ended with {status}"));
            bail!("radvd, which {state}, advertises nothing of {prefix}");
        }
    }
    Ok((router, config))
}
