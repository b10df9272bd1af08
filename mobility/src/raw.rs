//! Raw IPv6 sockets of one protocol: signalling (135, or an extension header before it), tunnelled packets (41 and 4) and
//! ICMPv6 (58). Sends and receives what is behind the IPv6 header; the kernel makes and takes off the header, but for
//! [`WHOLE_PACKETS`]. Needs CAP_NET_RAW.

use std::io::{self, IoSlice};
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::addr::SocketAddrArg;
use rustix::net::{
    AddressFamily, MMsgHdr, Protocol, RawProtocol, RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags,
    SocketType, bind, recvfrom, sendmmsg, sendto, socket_with, sockopt,
};
use socket2::{SockFilter, SockRef};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The Mobility Header (RFC 6275 section 6.1).
pub(crate) const MOBILITY_HEADER: u32 = 135;
/// IPv6 in IPv6 (RFC 2473).
pub(crate) const IPV6: u32 = 41;
/// IPv4 in IPv6.
pub(crate) const IPV4: u32 = 4;
/// ICMPv6.
pub(crate) const ICMPV6: u32 = 58;
/// Destination options, which a mobile node's signalling begins with. A raw socket is given a packet before the kernel judges
/// the header, so it matters not whether the kernel knows the Home Address option.
pub(crate) const DESTINATION_OPTIONS: u32 = 60;
/// The routing header, which a home agent's signalling to a mobile node begins with.
pub(crate) const ROUTING: u32 = 43;
/// A socket of this protocol receives nothing, and sends packets with the IPv6 header that they bring.
pub(crate) const WHOLE_PACKETS: u32 = 255;

/// Room for what may wait in a socket: 10 ms at 3 Gb/s.
const BUFFER_BYTES: usize = 4 << 20;

/// Classic BPF (linux/filter.h): load a word, jump, return how much of the packet is received.
const LOAD_WORD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
const LOAD_BYTE: u16 = 0x30;
/// Where a filter finds the hop limit: SKF_NET_OFF + 7.
const HOP_LIMIT: u32 = (-0x10_0000_i32 + 7) as u32;
/// That of a packet that no router has passed on.
const FROM_THE_LINK: u32 = 255;
/// Where a filter finds the index of the interface by which a packet came: SKF_AD_OFF + SKF_AD_IFINDEX.
const INPUT_INTERFACE: u32 = (-0x1000_i32 + 8) as u32;
/// Where it finds the IPv6 header's source address: SKF_NET_OFF, and 8 bytes behind that.
const SOURCE: u32 = (-0x10_0000_i32 + 8) as u32;
/// A filter has at most 4096 instructions: two for an interface, nine for a source.
const MAX_REFUSED: usize = 1000;
const MAX_REFUSED_SOURCES: usize = 200;

/// A raw socket of one protocol, bound to one address.
#[derive(Debug)]
pub(crate) struct RawSocket(AsyncFd<OwnedFd>);

impl RawSocket {
    /// `scope` is an interface's index for a link-local address, 0 otherwise.
    pub(crate) fn open(protocol: u32, address: Ipv6Addr, scope: u32) -> io::Result<Self> {
        let protocol = RawProtocol::new(protocol).map(Protocol::from_raw);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::INET6, SocketType::RAW, flags, protocol)?;
        set_buffers(&socket);
        if scope != 0 {
            // An address is not good for a moment after it was given to a link that is new itself.
            sockopt::set_ipv6_freebind(&socket, true)?;
        }
        bind(&socket, &SocketAddrV6::new(address, 0, 0, scope))?;
        // SAFETY: an `OwnedFd` is the same descriptor as long as it lives, and it lives in the `AsyncFd`.
        #[allow(unsafe_code)]
        let socket = unsafe { AsyncFd::register(socket) }?;
        Ok(Self(socket))
    }

    /// Nothing is received, also of what has come already, until [`refuse_from`](Self::refuse_from) says what is not.
    pub(crate) fn refuse_all(&self) -> io::Result<()> {
        refuse_all(self.0.get_ref())?;
        loop {
            match receive(self.0.get_ref(), &mut []) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// As [`refuse_from`].
    pub(crate) fn refuse_from(&self, interfaces: &[u32], sources: &[Ipv6Addr]) -> io::Result<()> {
        refuse_from(self.0.get_ref(), interfaces, sources)
    }

    /// From now on only what comes from the link of this interface itself is received.
    pub(crate) fn only_from_link(&self, interface: &str) -> io::Result<()> {
        let socket = SockRef::from(self.0.get_ref());
        socket.bind_device(Some(interface.as_bytes()))?;
        socket.attach_filter(&[
            SockFilter::new(LOAD_BYTE, 0, 0, HOP_LIMIT),
            SockFilter::new(JUMP_IF_EQUAL, 0, 1, FROM_THE_LINK),
            SockFilter::new(RETURN, 0, 0, u32::MAX),
            SockFilter::new(RETURN, 0, 0, 0),
        ])
    }

    /// Router advertisements must come from the link itself (RFC 4861 section 6.1.2).
    pub(crate) fn keep_on_link(&self) -> io::Result<()> {
        sockopt::set_ipv6_multicast_hops(self.0.get_ref(), 255)?;
        sockopt::set_ipv6_unicast_hops(self.0.get_ref(), Some(255))?;
        Ok(())
    }

    /// Sends `payload` at once or not at all, as a router does.
    pub(crate) fn send(&self, payload: &[u8], to: Ipv6Addr, scope: u32) -> io::Result<()> {
        let to = SocketAddrV6::new(to, 0, 0, scope);
        sendto(self.0.get_ref(), payload, SendFlags::DONTWAIT, &to)?;
        Ok(())
    }

    /// Sends each payload at once or not at all, in their order; gives how many were not, and why the last was not.
    pub(crate) fn send_all(&self, payloads: &[&[u8]], to: Ipv6Addr) -> (usize, Option<io::Error>) {
        let to = SocketAddrV6::new(to, 0, 0, 0).as_any();
        let slices: Vec<_> = payloads.iter().map(|payload| [IoSlice::new(payload)]).collect();
        let mut nothing: Vec<_> = payloads.iter().map(|_| SendAncillaryBuffer::default()).collect();
        let messages = slices.iter().zip(&mut nothing);
        let mut messages: Vec<_> =
            messages.map(|(slice, nothing)| MMsgHdr::new_with_addr(&to, slice, nothing)).collect();
        let (mut rest, mut lost, mut reason) = (&mut messages[..], 0, None);
        while !rest.is_empty() {
            let sent = match sendmmsg(self.0.get_ref(), rest, SendFlags::DONTWAIT) {
                Ok(sent) => sent,
                // It is the first one that was not sent.
                Err(error) => {
                    (lost, reason) = (lost + 1, Some(error.into()));
                    1
                }
            };
            rest = &mut std::mem::take(&mut rest)[sent..];
        }
        (lost, reason)
    }

    /// Waits until there is something to receive.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.0.readable().await?.retain_ready();
        Ok(())
    }

    /// What has come, if anything: its length and from whom.
    pub(crate) async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Ipv6Addr)> {
        loop {
            let mut ready = self.0.readable().await?;
            if let Ok(received) = ready.try_io(|fd| receive(fd.get_ref(), buffer)) {
                return received;
            }
        }
    }

    /// As [`receive`](Self::receive), without waiting.
    pub(crate) fn try_receive(&self, buffer: &mut [u8]) -> Option<(usize, Ipv6Addr)> {
        self.0.try_io(Interest::READABLE, |fd| receive(fd, buffer)).ok()
    }
}

/// Gives a socket room for what may wait in it: more than the system's limit, which root may have.
pub(crate) fn set_buffers(socket: impl AsFd) {
    let _ = sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER_BYTES);
    let _ = sockopt::set_socket_send_buffer_size_force(&socket, BUFFER_BYTES);
}

/// From now on nothing is received, until [`refuse_from`] says what is not.
pub(crate) fn refuse_all(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).attach_filter(&[SockFilter::new(RETURN, 0, 0, 0)])
}

/// From now on what comes in by these interfaces is not received: a guest must not speak for a gateway or a home agent,
/// whatever address it claims to have. Neither is what comes from these sources.
pub(crate) fn refuse_from(socket: &impl AsFd, interfaces: &[u32], sources: &[Ipv6Addr]) -> io::Result<()> {
    let mut program = vec![SockFilter::new(LOAD_WORD, 0, 0, INPUT_INTERFACE)];
    for interface in interfaces.iter().take(MAX_REFUSED) {
        program.push(SockFilter::new(JUMP_IF_EQUAL, 0, 1, *interface));
        program.push(SockFilter::new(RETURN, 0, 0, 0));
    }
    for source in sources.iter().take(MAX_REFUSED_SOURCES) {
        let octets = source.octets();
        let (words, _) = octets.as_chunks::<4>();
        for (number, word) in (0..).zip(words) {
            program.push(SockFilter::new(LOAD_WORD, 0, 0, SOURCE + 4 * number));
            // Another word: on behind what refuses this source.
            let rest = 2 * (3 - number as u8) + 1;
            program.push(SockFilter::new(JUMP_IF_EQUAL, 0, rest, u32::from_be_bytes(*word)));
        }
        program.push(SockFilter::new(RETURN, 0, 0, 0));
    }
    program.push(SockFilter::new(RETURN, 0, 0, u32::MAX));
    SockRef::from(socket).attach_filter(&program)
}

fn receive(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<(usize, Ipv6Addr)> {
    let (len, _, from) = recvfrom(fd, buffer, RecvFlags::DONTWAIT)?;
    let from = from.and_then(|from| SocketAddrV6::try_from(from).ok());
    Ok((len, from.map_or(Ipv6Addr::UNSPECIFIED, |from| *from.ip())))
}
