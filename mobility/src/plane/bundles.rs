//! Tunnelled packets in UDP over IPv6 (as in RFC 5555, a packet of IPv6 or IPv4 is all that a datagram has), between two ends in
//! user space. Packets of IPv6 in IPv6 are sent and received one by one; of UDP the kernel cuts and joins one call's
//! dozens itself, at about a quarter of the cost for each. Decides nothing about a packet but whether it can go this way.
//!
//! Whether the way to a peer can be gone is asked (see [`paths`](super::paths)): a datagram as large as any is sent there, and must be
//! answered. So with a peer of another kind, behind a firewall or over a link with a smaller MTU packets go as ever; if such a thing comes
//! between later, those of some seconds are lost.
//!
//! ```text
//! question   0   nonce, 8 bytes   zeros to 1452 bytes
//! answer     1   nonce, 8 bytes
//! ```
//! The first half-byte of a packet is 6 or 4.

use std::io::{self, IoSliceMut};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};

use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::paths::Paths;
use crate::raw::{refuse_all, refuse_from, set_buffers};

/// At both ends. For experiments (RFC 4727 section 6), and below 1024: as of raw sockets, only root has the use of it.
pub(crate) const PORT: u16 = 1021;
/// What a packet may have, over a network of 1500 bytes.
pub(super) const MTU: usize = 1500 - 40 - 8;
/// The most that one call sends.
const LARGEST: usize = 65_535 - 8;
/// How many that the kernel has joined are taken at once.
const BATCH: usize = 8;

const QUESTION: u8 = 0;
const ANSWER: u8 = 1;

/// The socket, and what is known of the ways to peers.
pub(super) struct Bundles {
    socket: UdpSocket,
    state: UdpSocketState,
    paths: Paths,
    outgoing: Vec<u8>,
    incoming: Vec<Vec<u8>>,
}

impl Bundles {
    /// Nothing is received before [`refuse_from`](Self::refuse_from) says what is not.
    pub(super) fn open(address: Ipv6Addr) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_only_v6(true)?;
        set_buffers(&socket);
        refuse_all(&socket)?;
        socket.bind(&SocketAddrV6::new(address, PORT, 0, 0).into())?;
        let state = UdpSocketState::new((&socket).into())?;
        let socket = UdpSocket::from_std(socket.into())?;
        let incoming = vec![vec![0; 65_535]; BATCH];
        Ok(Self { socket, state, paths: Paths::default(), outgoing: Vec::with_capacity(LARGEST), incoming })
    }

    pub(super) fn refuse_from(&self, interfaces: &[u32]) -> io::Result<()> {
        refuse_from(&self.socket, interfaces, &[])
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Asks whether packets for this peer can go this way.
    pub(super) fn meet(&mut self, peer: Ipv6Addr) {
        self.paths.meet(peer);
        self.ask(Instant::now(), peer);
    }

    fn ask(&mut self, now: Instant, peer: Ipv6Addr) {
        let Some(nonce) = self.paths.question(now, peer) else { return };
        let mut question = vec![QUESTION];
        question.extend(nonce);
        question.resize(MTU, 0);
        self.transmit(peer, &question, None);
    }

    /// Whether a packet for this peer goes this way.
    pub(super) fn takes(&mut self, now: Instant, to: Ipv6Addr, packet: &[u8]) -> bool {
        self.ask(now, to);
        self.paths.takes(now, to, packet.len() <= MTU)
    }

    /// Sends packets that go this way, as many with each call as can.
    pub(super) fn send(&mut self, to: Ipv6Addr, mut packets: &[&[u8]]) {
        let mut outgoing = std::mem::take(&mut self.outgoing);
        while let Some(first) = packets.first() {
            let (next, rest) = packets.split_at(fitting(packets, self.state.max_gso_segments()));
            outgoing.clear();
            next.iter().for_each(|packet| outgoing.extend_from_slice(packet));
            self.transmit(to, &outgoing, (next.len() > 1).then_some(first.len()));
            packets = rest;
        }
        self.outgoing = outgoing;
    }

    fn transmit(&self, to: Ipv6Addr, contents: &[u8], segment_size: Option<usize>) {
        let destination = SocketAddrV6::new(to, PORT, 0, 0).into();
        let transmit = Transmit { destination, ecn: None, contents, segment_size, src_ip: None };
        // A full socket loses them, as a router's queue would.
        if let Err(error) = self.state.try_send((&self.socket).into(), &transmit) {
            tracing::debug!("{} bytes for {to} in UDP were lost: {error}", contents.len());
        }
    }

    /// Takes what has come, with from where; answers questions.
    pub(super) fn receive(&mut self, packets: &mut Vec<(Ipv6Addr, Vec<u8>)>) {
        let mut incoming = std::mem::take(&mut self.incoming);
        let mut metas = [RecvMeta::default(); BATCH];
        let mut slices: Vec<_> = incoming.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
        let received = self
            .socket
            .try_io(Interest::READABLE, || self.state.recv((&self.socket).into(), &mut slices, &mut metas));
        for (buffer, meta) in incoming.iter().zip(&metas).take(received.unwrap_or(0)) {
            // What any user there can send comes from other ports.
            let SocketAddr::V6(from) = meta.addr else { continue };
            if from.port() != PORT {
                continue;
            }
            for datagram in buffer[..meta.len].chunks(meta.stride.max(1)) {
                match datagram.first().map(|first| first >> 4) {
                    Some(4 | 6) => packets.push((*from.ip(), datagram.to_vec())),
                    _ => self.asked_or_answered(*from.ip(), datagram),
                }
            }
        }
        self.incoming = incoming;
    }

    fn asked_or_answered(&mut self, from: Ipv6Addr, datagram: &[u8]) {
        let Some((kind, nonce)) =
            datagram.split_first().and_then(|(kind, rest)| Some((*kind, rest.first_chunk()?)))
        else {
            return;
        };
        match kind {
            QUESTION => self.transmit(from, &[&[ANSWER], nonce.as_slice()].concat(), None),
            ANSWER => self.paths.answered(Instant::now(), from, *nonce),
            _ => {}
        }
    }
}

/// How many of these packets one call can send, at least one: all but the last must be of one length, and the last no longer.
fn fitting(packets: &[&[u8]], most: usize) -> usize {
    let Some(len) = packets.first().map(|first| first.len()) else { return 0 };
    let most = most.min(LARGEST / len.max(1)).max(1);
    let equal = packets.iter().take(most).take_while(|packet| packet.len() == len).count();
    let last = packets.get(equal).filter(|last| equal < most && (1..len).contains(&last.len()));
    equal + usize::from(last.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_call_sends_what_is_of_one_length_and_a_shorter_one_behind() {
        let packets = |lens: &[usize]| lens.iter().map(|len| vec![0x60; *len]).collect::<Vec<_>>();
        for (lens, most, fit) in [
            (vec![100], 64, 1),
            (vec![100; 70], 64, 64),
            (vec![100; 70], 1, 1),
            (vec![1452; 70], 64, 45),
            (vec![100, 100, 60, 100], 64, 3),
            (vec![100, 100, 101], 64, 2),
            (vec![100, 60, 60], 64, 2),
            (vec![100, 60], 1, 1),
            (vec![60, 100], 64, 1),
        ] {
            let packets = packets(&lens);
            let packets: Vec<_> = packets.iter().map(Vec::as_slice).collect();
            assert_eq!(fitting(&packets, most), fit, "{lens:?}, {most}");
        }
    }
}
