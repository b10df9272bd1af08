//! Signalling and tunnelled packets in UDP over IPv4 (RFC 5555), as whole packets of IPv6 or IPv4: the home agent's end, which
//! listens, and a mobile node's, which is on one link. Decides nothing about a packet.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, UdpSocket as StdSocket};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::UdpSocket;

use crate::error::{AgentError, opening};
use crate::raw::set_buffers;

/// The home agent's port for Dual-Stack Mobile IPv6 (RFC 5555 section 9).
pub(crate) const PORT: u16 = 4191;
/// How many datagrams are taken before anything else gets its turn.
const BATCH: usize = 64;
/// After an error, before the next.
const PAUSE: Duration = Duration::from_millis(10);
const MOBILITY_HEADER: u8 = 135;

/// A socket, when there is one.
#[derive(Debug, Default)]
pub(crate) struct Datagrams {
    socket: Option<UdpSocket>,
    buffer: Vec<u8>,
}

impl Datagrams {
    /// A home agent's, at its IPv4 address.
    pub(crate) fn listen(address: Ipv4Addr) -> Result<Self, AgentError> {
        let open = || {
            let socket = socket()?;
            socket.bind(&SocketAddrV4::new(address, PORT).into())?;
            Self::of(socket)
        };
        open().map_err(opening(&format!("a socket for mobile nodes at {address}, UDP port {PORT}")))
    }

    /// A mobile node's on this interface, to the home agent at this address alone; and the address that it has there.
    pub(crate) fn connect(interface: &str, home_agent: Ipv4Addr) -> io::Result<(Self, Ipv4Addr)> {
        let socket = socket()?;
        socket.bind_device(Some(interface.as_bytes()))?;
        socket.connect(&SocketAddrV4::new(home_agent, PORT).into())?;
        let own = socket.local_addr()?.as_socket_ipv4().ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok((Self::of(socket)?, *own.ip()))
    }

    fn of(socket: Socket) -> io::Result<Self> {
        Ok(Self { socket: Some(UdpSocket::from_std(StdSocket::from(socket))?), buffer: vec![0; 65_535] })
    }

    /// Waits until something has come; gives at once all that has, with from where.
    pub(crate) async fn receive(&mut self) -> Vec<(SocketAddrV4, Vec<u8>)> {
        let Some(socket) = &self.socket else { return std::future::pending().await };
        loop {
            let mut received = Vec::new();
            let mut failed = socket.readable().await.err();
            while received.len() < BATCH {
                match socket.try_recv_from(&mut self.buffer) {
                    Ok((len, SocketAddr::V4(from))) => received.push((from, self.buffer[..len].to_vec())),
                    Ok(_) => {}
                    Err(error) => {
                        failed = Some(error).filter(|error| error.kind() != io::ErrorKind::WouldBlock);
                        break;
                    }
                }
            }
            if !received.is_empty() {
                return received;
            }
            // What has become of a packet that was sent, or of the link. It is no reason to end.
            if let Some(error) = failed {
                tracing::debug!("receiving datagrams: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Sends a packet; a full socket loses it, as a router's queue would.
    pub(crate) fn send(&self, to: SocketAddrV4, packet: &[u8]) {
        let sent = self.socket.as_ref().map(|socket| SockRef::from(socket).send_to(packet, &to.into()));
        if let Some(Err(error)) = sent {
            tracing::debug!("a packet for {to} was lost: {error}");
        }
    }
}

fn socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    set_buffers(&socket);
    Ok(socket)
}

/// Whether this is an IPv6 packet for this address with a Mobility Header at once: over UDP there is no other way for signalling.
pub(crate) fn is_signalling(packet: &[u8], own: Ipv6Addr) -> bool {
    packet.first().is_some_and(|first| first >> 4 == 6)
        && packet.get(6) == Some(&MOBILITY_HEADER)
        && packet.get(24..40) == Some(&own.octets())
}
