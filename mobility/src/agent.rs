//! What the agents are made of: a socket for signalling, a tunnel interface, rtnetlink and a clock. Decides nothing.

use std::io;
use std::net::Ipv6Addr;
use std::time::SystemTime;

use mobility_proto::inner::Inner;
use rtnetlink::packet_route::route::RouteProtocol;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::links::{LinkError, Links};
use crate::plane::{BUNDLES_PORT, INNER_MTU, Plane};
use crate::raw::{MOBILITY_HEADER, RawSocket};
use crate::tunnels::{DataPlane, Own, PlaneChoice, Tunnels};

/// Why an agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A socket or an interface cannot be had.
    #[error("{what}: {source}; {}", hint(source))]
    Open {
        /// What was to be opened.
        what: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The kernel did not do what it was asked.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Segment routing has no address to take packets at.
    #[error(
        "data plane seg6 needs an address for tunnels alone: set user_plane to one that nobody has, in the network of the \
         agent's own"
    )]
    NoUserPlane,
    /// Somebody else uses segment routing here, with another source address.
    #[error(
        "data plane seg6 needs its own source address for all segment routing of this host, which has {0} already: see \
         `ip sr tunsrc show`, or choose another data plane"
    )]
    TunnelSource(Ipv6Addr),
    /// The host does not forward IPv4 packets, and there are IPv4 addresses.
    #[error(
        "this host forwards no IPv4, which IPv4 home addresses need: run `sysctl -w net.ipv4.ip_forward=1`"
    )]
    NoIpv4Forwarding,
    /// The host judges IPv4 packets on all interfaces by where their sources are reached.
    #[error(
        "this host takes IPv4 packets only from where it would send to their sources, which is not where guests' come from: run \
         `sysctl -w net.ipv4.conf.all.rp_filter=0` (what each other interface's own rp_filter says stays so)"
    )]
    ReversePath,
    /// The host does not forward packets.
    #[error(
        "this host forwards no IPv6: run `sysctl -w net.ipv6.conf.all.forwarding=1` (an interface that gets its own \
         routes from advertisements then needs accept_ra = 2)"
    )]
    NoForwarding,
    /// The agent has ended.
    #[error("the mobility agent is not running any more; see the log")]
    Ended,
}

/// What to do about it.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrNotAvailable => "is it an address of this host, and up?",
        io::ErrorKind::ResourceBusy => "is another daemon running here, or has another interface that name?",
        io::ErrorKind::PermissionDenied => "it needs root, or CAP_NET_ADMIN and CAP_NET_RAW",
        _ => "see `ip link` and `ip -6 address`, and whether the kernel has /dev/net/tun",
    }
}

/// What an agent works with. The interface goes with this value.
pub(crate) struct Ends {
    pub(crate) links: Links,
    pub(crate) signalling: RawSocket,
    pub(crate) plane: Plane,
    pub(crate) tunnels: Tunnels,
    /// The TUN interface's.
    pub(crate) index: u32,
}

impl Ends {
    /// Opens all of it for an agent of this origin, with the TUN interface up.
    pub(crate) async fn open(
        origin: RouteProtocol,
        own: &Own,
        choice: PlaneChoice,
    ) -> Result<Self, AgentError> {
        check_forwarding()?;
        let Own { address, interface, .. } = own;
        let (address, interface) = (*address, interface.as_str());
        let links = Links::connect(origin).map_err(opening("rtnetlink"))?;
        let signalling = RawSocket::open(MOBILITY_HEADER, address, 0)
            .map_err(opening(&format!("a socket for signalling at {address}")))?;
        let mut plane = Plane::open(interface, address)
            .map_err(opening(&format!("the tunnel interface {interface} at {address}")))?;
        let index = links.index(interface).await?;
        links.up(index, INNER_MTU.into()).await?;
        let tunnels = Tunnels::start(&links, own, choice).await?;
        if tunnels.plane() == DataPlane::Tun
            && let Err(error) = plane.bundle(address)
        {
            tracing::warn!(
                "packets to others with data plane tun go one by one, at a quarter of the rate: UDP port {BUNDLES_PORT} at \
                 {address}, which another daemon may have, cannot be opened: {error}"
            );
        }
        Ok(Self { links, signalling, plane, tunnels, index })
    }
}

pub(crate) fn opening(what: &str) -> impl FnOnce(io::Error) -> AgentError {
    let what = format!("opening {what}");
    move |source| AgentError::Open { what, source }
}

/// Both agents make this host a router.
fn check_forwarding() -> Result<(), AgentError> {
    let forwards = is_set("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
    if forwards { Ok(()) } else { Err(AgentError::NoForwarding) }
}

pub(crate) fn check_ipv4_forwarding() -> Result<(), AgentError> {
    let forwards = is_set("/proc/sys/net/ipv4/ip_forward", "1")?;
    if forwards { Ok(()) } else { Err(AgentError::NoIpv4Forwarding) }
}

/// What a gateway's program gives to the kernel comes from anywhere.
pub(crate) fn check_reverse_path() -> Result<(), AgentError> {
    let is_off = is_set("/proc/sys/net/ipv4/conf/all/rp_filter", "0")?;
    if is_off { Ok(()) } else { Err(AgentError::ReversePath) }
}

fn is_set(path: &str, value: &str) -> Result<bool, AgentError> {
    let read = std::fs::read_to_string(path);
    read.map(|set| set.trim() == value)
        .map_err(|source| AgentError::Open { what: format!("reading {path}"), source })
}

pub(crate) fn unix_ns() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// The IPv6 packet around a Mobility Header that a socket gave without.
pub(crate) fn packet_of(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    packet_with(MOBILITY_HEADER, from, to, message)
}

/// The IPv6 packet around what a socket of `protocol` gave.
pub(crate) fn packet_with(protocol: u32, from: Ipv6Addr, to: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes());
    packet.extend([protocol as u8, 64]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

/// Sends a packet as it is, by a socket for whole packets.
pub(crate) fn send_whole(socket: &RawSocket, packet: &[u8]) {
    let Some(Inner { destination, .. }) = Inner::parse(packet) else { return };
    if let Err(error) = socket.send(packet, destination, 0) {
        tracing::debug!("signalling for {destination} was lost: {error}");
    }
}

/// Sends a packet of signalling: the kernel makes its header again.
pub(crate) fn send_signalling(socket: &RawSocket, packet: &[u8]) {
    let Some((inner, message)) = Inner::parse(packet).zip(packet.get(40..)) else { return };
    if let Err(error) = socket.send(message, inner.destination, 0) {
        tracing::debug!("signalling for {} was lost: {error}", inner.destination);
    }
}

/// Never, when there is nothing to wait for.
pub(crate) async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The way to tell a running agent something. The agent ends when all clones of it are dropped.
#[derive(Debug)]
pub(crate) struct Orders<Command>(pub(crate) mpsc::Sender<Command>);

impl<Command> Clone for Orders<Command> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<Command> Orders<Command> {
    pub(crate) async fn tell(&self, command: Command) -> Result<(), AgentError> {
        self.0.send(command).await.map_err(|_| AgentError::Ended)
    }

    pub(crate) async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, AgentError> {
        let (reply, answer) = oneshot::channel();
        self.tell(command(reply)).await?;
        answer.await.map_err(|_| AgentError::Ended)
    }
}
