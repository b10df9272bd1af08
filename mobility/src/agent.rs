//! What the agents are made of: a socket for signalling, a tunnel interface, rtnetlink and a clock. Decides nothing.

use std::net::Ipv6Addr;
use std::time::SystemTime;

use mobility_proto::inner::Inner;
use rtnetlink::packet_route::route::RouteProtocol;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::checks::check_forwarding;
use crate::data_plane::{DataPlane, PlaneChoice};
use crate::error::{AgentError, opening};
use crate::links::Links;
use crate::plane::{BUNDLES_PORT, INNER_MTU, Plane};
use crate::raw::{MOBILITY_HEADER, RawSocket};
use crate::tunnels::{Own, Tunnels};

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
