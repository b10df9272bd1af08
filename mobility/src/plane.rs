//! The data plane in user space, whole or in part (see `tunnels`): a TUN interface to the kernel on one side, raw sockets for
//! IPv6 and IPv4 in IPv6 (RFC 2473) on the other, and UDP between two that are whole. Works on every Linux; decides nothing about
//! a packet.

mod bundles;
mod paths;

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use bundles::Bundles;
pub(crate) use bundles::PORT as BUNDLES_PORT;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::time::Instant;
use tun_rs::{
    AsyncDevice, DeviceBuilder, GROTable, IDEAL_BATCH_SIZE, Layer, VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_LEN, VirtioNetHdr, gso_split,
};

use crate::raw::{IPV4, IPV6, RawSocket};

/// What a packet may have inside a tunnel over a network of 1500 bytes.
pub(crate) const INNER_MTU: u16 = 1460;
/// What it may have to go in UDP as well.
pub(crate) const BUNDLED_MTU: u16 = bundles::MTU as u16;
/// The largest packet that the kernel hands over before it is cut into those of the MTU.
const LARGEST: usize = VIRTIO_NET_HDR_LEN + 65_535;
/// How many packets one that the kernel hands over is cut into at most: Linux sends no TCP segments with less than 36 bytes
/// of payload.
const CUTS: usize = 2048;
/// How many packets may wait for the agent: 10 ms at 3 Gb/s.
pub(crate) const QUEUE: u32 = 2500;
/// How many packets are taken from a socket before anything else gets its turn.
const BATCH: usize = IDEAL_BATCH_SIZE;

/// How many packets that have come at once are of a busy stream.
const BUSY: usize = 4;
/// For how long further ones are waited for then: what some forty take at 5 Gb/s.
const GATHERED: Duration = Duration::from_micros(100);

const TCP: u8 = 6;
const UDP: u8 = 17;
/// VIRTIO_NET_HDR_F_NEEDS_CSUM.
const NEEDS_CHECKSUM: u8 = 1;

/// The two ends of the tunnels of one agent.
pub(crate) struct Plane {
    tun: AsyncDevice,
    outer: Outer,
    whole: Vec<u8>,
    cut: Vec<Vec<u8>>,
    sizes: Vec<usize>,
    merged: GROTable,
    /// What waits for the next flush.
    to_tunnels: Vec<(Ipv6Addr, Vec<u8>)>,
    to_kernel: Vec<Vec<u8>>,
    /// One batch of it, with room for as much as packets of one flow are merged to.
    batch: Vec<Vec<u8>>,
    received: Vec<u8>,
}

/// From which side there is something to take.
pub(crate) enum Side {
    Kernel(usize),
    Tunnel,
}

impl Plane {
    /// Makes the interface `name`, which goes with this value, and opens the tunnels at `address`. Nothing is taken out of them
    /// before [`refuse_from`](Self::refuse_from) says what is not.
    pub(crate) fn open(name: &str, address: Ipv6Addr) -> io::Result<Self> {
        let tun = DeviceBuilder::new().name(name).layer(Layer::L3).offload(true).build_async()?;
        tun.set_tx_queue_len(QUEUE)?;
        let (ipv6, ipv4) = (RawSocket::open(IPV6, address, 0)?, RawSocket::open(IPV4, address, 0)?);
        ipv6.refuse_all().and_then(|()| ipv4.refuse_all())?;
        Ok(Self {
            tun,
            outer: Outer { ipv6, ipv4, bundles: None },
            whole: vec![0; LARGEST],
            cut: vec![vec![0; usize::from(INNER_MTU) + 64]; CUTS],
            sizes: vec![0; CUTS],
            merged: GROTable::default(),
            to_tunnels: Vec::new(),
            to_kernel: Vec::new(),
            // Memory that is not written to is not taken.
            batch: (0..BATCH).map(|_| Vec::with_capacity(2 * VIRTIO_NET_HDR_LEN + LARGEST)).collect(),
            received: vec![0; 65_535],
        })
    }

    /// Has packets go in UDP to peers that take it so. Nothing is taken before [`refuse_from`](Self::refuse_from), as above.
    pub(crate) fn bundle(&mut self, address: Ipv6Addr) -> io::Result<()> {
        self.outer.bundles = Some(Bundles::open(address)?);
        Ok(())
    }

    /// Nothing is taken out of tunnels that comes in by these interfaces, nor IPv6 packets from these sources.
    pub(crate) fn refuse_from(&self, interfaces: &[u32], sources: &[Ipv6Addr]) -> io::Result<()> {
        let Outer { ipv6, ipv4, bundles } = &self.outer;
        ipv6.refuse_from(interfaces, sources)?;
        ipv4.refuse_from(interfaces, &[])?;
        bundles.as_ref().map_or(Ok(()), |bundles| bundles.refuse_from(interfaces))
    }

    /// Whether the kernel has nothing for the tunnels.
    pub(crate) fn is_quiet(&self) -> bool {
        // SAFETY: the descriptor is the interface's, which lives as long as `self`, and this borrow does not outlive the call.
        #[allow(unsafe_code)]
        let tun = unsafe { BorrowedFd::borrow_raw(self.tun.as_raw_fd()) };
        let mut wanted = [PollFd::from_borrowed_fd(tun, PollFlags::IN)];
        matches!(poll(&mut wanted, Some(&Timespec::default())), Ok(0))
    }

    /// Waits until a packet can be taken from either side.
    pub(crate) async fn ready(&mut self) -> io::Result<Side> {
        tokio::select! {
            count = self.tun.recv_multiple(&mut self.whole, &mut self.cut, &mut self.sizes, 0) => {
                match count {
                    // Not the system's: the packet cannot be cut. Anybody can send such a one.
                    Err(error) if error.raw_os_error().is_none() => {
                        tracing::debug!("a packet was lost: {error}");
                        Ok(Side::Kernel(0))
                    }
                    count => {
                        let count = count?;
                        let cut = self.cut.iter_mut().zip(&self.sizes).take(count);
                        cut.for_each(|(packet, size)| complete_checksum(&mut packet[..*size]));
                        Ok(Side::Kernel(count))
                    }
                }
            }
            ready = self.outer.readable() => ready.map(|()| Side::Tunnel),
        }
    }

    /// What the kernel has for the tunnels.
    pub(crate) fn taken(&self, count: usize) -> impl Iterator<Item = &[u8]> {
        self.cut.iter().zip(&self.sizes).take(count).map(|(packet, size)| &packet[..*size])
    }

    /// What has come through tunnels, with where it came from, as it was on the wire: the kernel may have merged some.
    ///
    /// Of a busy stream they are waited for a moment: as they come one by one, each would be given to the kernel alone, and by
    /// the kernel to whom it is for, who would answer each.
    pub(crate) fn tunnelled(&mut self) -> Vec<(Ipv6Addr, Vec<u8>)> {
        let (mut bundled, mut packets, start) = (Vec::new(), Vec::new(), Instant::now());
        let Outer { ipv6, ipv4, bundles } = &mut self.outer;
        bundles.iter_mut().for_each(|bundles| bundles.receive(&mut bundled));
        let mut of_ipv6 = 0;
        for outer in [ipv6, ipv4] {
            let before = packets.len();
            of_ipv6 = before;
            // What has come without UDP was sent before what has come with it: all of it goes first. So does all of IPv4 before
            // what has come of IPv6, in which the end of a way is told to both.
            let is_first = bundled.is_empty() && packets.is_empty();
            let (enough, is_waited) = if is_first { (BATCH, true) } else { (QUEUE as usize, false) };
            while packets.len() < before + enough {
                let Some((len, from)) = outer.try_receive(&mut self.received) else {
                    if !is_waited || packets.len() - before < BUSY || start.elapsed() > GATHERED {
                        break;
                    }
                    std::thread::yield_now();
                    continue;
                };
                let packet = &mut self.received[..len];
                let Some(header) = whole(packet) else {
                    packets.push((from, packet.to_vec()));
                    continue;
                };
                let is_ipv6 = header.gso_type == VIRTIO_NET_HDR_GSO_TCPV6;
                match gso_split(packet, header, &mut self.cut, &mut self.sizes, 0, is_ipv6) {
                    Ok(count) => {
                        let cut = self.cut.iter().zip(&self.sizes).take(count);
                        packets.extend(cut.map(|(packet, size)| (from, packet[..*size].to_vec())));
                    }
                    Err(error) => tracing::debug!("a packet from {from} was lost: {error}"),
                }
            }
        }
        packets.rotate_left(of_ipv6);
        packets.append(&mut bundled);
        packets
    }

    /// Sends what the kernel has given through tunnels, each packet where `way` says.
    pub(crate) fn forward(&mut self, count: usize, way: impl Fn(&[u8]) -> Option<Ipv6Addr>) {
        let Self { cut, sizes, outer, .. } = self;
        let taken = cut.iter().zip(sizes).take(count).map(|(packet, size)| &packet[..*size]);
        outer.send_each(taken.filter_map(|packet| Some((way(packet)?, packet))));
    }

    /// Sends a packet through the tunnel to `to`.
    pub(crate) fn send(&mut self, to: Ipv6Addr, packet: &[u8]) {
        self.outer.send_each(std::iter::once((to, packet)));
    }

    /// Sends a packet through the tunnel to `to`, with the next [`flush_tunnels`](Self::flush_tunnels).
    pub(crate) fn send_soon(&mut self, to: Ipv6Addr, packet: Vec<u8>) {
        self.to_tunnels.push((to, packet));
    }

    pub(crate) fn flush_tunnels(&mut self) {
        self.outer.send_each(self.to_tunnels.iter().map(|(to, packet)| (*to, packet.as_slice())));
        self.to_tunnels.clear();
    }

    /// Sends an empty tunnelled packet, which nobody takes: so the routers on the way know their neighbours before packets are
    /// in a hurry. While a router asks for a neighbour it keeps few packets. And asks whether packets can go there in UDP.
    pub(crate) fn announce(&mut self, to: Ipv6Addr) {
        self.send(to, &[]);
        self.outer.bundles.iter_mut().for_each(|bundles| bundles.meet(to));
    }

    /// Gives a packet to the kernel, with the next [`flush`](Self::flush).
    pub(crate) fn deliver(&mut self, packet: Vec<u8>) {
        self.to_kernel.push(packet);
    }

    pub(crate) async fn flush(&mut self) {
        for packets in self.to_kernel.chunks(BATCH) {
            for (buffer, packet) in self.batch.iter_mut().zip(packets) {
                buffer.clear();
                buffer.resize(VIRTIO_NET_HDR_LEN, 0);
                buffer.extend_from_slice(packet);
            }
            let batch = &mut self.batch[..packets.len()];
            if let Err(error) = self.tun.send_multiple(&mut self.merged, batch, VIRTIO_NET_HDR_LEN).await {
                tracing::debug!("some of {} packets were lost: {error}", packets.len());
            }
        }
        self.to_kernel.clear();
    }
}

/// What tunnelled packets come by and go by.
struct Outer {
    ipv6: RawSocket,
    ipv4: RawSocket,
    bundles: Option<Bundles>,
}

/// By what a packet goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Bundles,
    Ipv6,
    Ipv4,
}

impl Outer {
    async fn readable(&self) -> io::Result<()> {
        let bundled = async {
            match &self.bundles {
                Some(bundles) => bundles.readable().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ready = self.ipv6.readable() => ready,
            ready = self.ipv4.readable() => ready,
            ready = bundled => ready,
        }
    }

    /// Sends packets; a full socket loses them, as a router's queue would. To tell the kernel of many at a time takes a fraction of
    /// the time.
    fn send_each<'a>(&mut self, packets: impl Iterator<Item = (Ipv6Addr, &'a [u8])>) {
        let (mut batch, mut way, now) = (Vec::with_capacity(BATCH), None, Instant::now());
        for (to, packet) in packets {
            let by = match packet.first().map(|first| first >> 4) {
                Some(4 | 6)
                    if self.bundles.as_mut().is_some_and(|bundles| bundles.takes(now, to, packet)) =>
                {
                    By::Bundles
                }
                Some(4) => By::Ipv4,
                _ => By::Ipv6,
            };
            if batch.len() == BATCH || way != Some((to, by)) {
                self.send_batch(way, &batch);
                batch.clear();
                way = Some((to, by));
            }
            batch.push(packet);
        }
        self.send_batch(way, &batch);
    }

    fn send_batch(&mut self, way: Option<(Ipv6Addr, By)>, batch: &[&[u8]]) {
        let Some((to, by)) = way else { return };
        let (lost, error) = match (by, &mut self.bundles) {
            (By::Bundles, Some(bundles)) => return bundles.send(to, batch),
            (By::Ipv4, _) => self.ipv4.send_all(batch, to),
            (By::Ipv6 | By::Bundles, _) => self.ipv6.send_all(batch, to),
        };
        if let Some(error) = error {
            tracing::debug!("{lost} of {} packets for {to} were lost: {error}", batch.len());
        }
    }
}

/// Makes a packet that the kernel has left unfinished what it was or will be on the wire. A packet between two interfaces of
/// one host may still lack its checksum; and packets of one TCP connection may have been merged, or not yet been cut: then
/// this is how to cut them.
fn whole(packet: &mut [u8]) -> Option<VirtioNetHdr> {
    let (is_long, header) = (packet.len() > usize::from(INNER_MTU), Header::parse(packet)?);
    let offset = match header.next {
        TCP => 16,
        UDP => 6,
        _ => return None,
    };
    let at = header.bytes + offset;
    if packet.get(at..at + 2)? != header.pseudo_sum(packet).to_be_bytes() {
        return None;
    }
    if header.next == TCP && is_long {
        let headers = header.bytes + 4 * usize::from(*packet.get(header.bytes + 12)? >> 4);
        return Some(VirtioNetHdr {
            flags: NEEDS_CHECKSUM,
            gso_type: if header.is_ipv6 { VIRTIO_NET_HDR_GSO_TCPV6 } else { VIRTIO_NET_HDR_GSO_TCPV4 },
            hdr_len: headers as u16,
            gso_size: INNER_MTU.checked_sub(headers as u16)?,
            csum_start: header.bytes as u16,
            csum_offset: offset as u16,
        });
    }
    let checksum = !fold(sum(&packet[header.bytes..]));
    packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    complete_checksum(packet);
    None
}

/// What of an IP header it takes to complete a packet.
#[derive(Debug, Clone, Copy)]
struct Header {
    is_ipv6: bool,
    bytes: usize,
    /// The protocol behind it.
    next: u8,
}

impl Header {
    /// `None` for a packet that is none, or only a part of one.
    fn parse(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            6 => Some(Self { is_ipv6: true, bytes: 40, next: *packet.get(6)? }),
            4 => {
                let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x3fff;
                let bytes = 4 * usize::from(packet[0] & 0xf);
                (fragment == 0 && bytes >= 20).then_some(Self {
                    is_ipv6: false,
                    bytes,
                    next: *packet.get(9)?,
                })
            }
            _ => None,
        }
        .filter(|header| packet.len() >= header.bytes)
    }

    /// What is in the place of a checksum that the kernel has not made yet (RFC 8200 section 8.1, RFC 9293 section 3.1).
    fn pseudo_sum(self, packet: &[u8]) -> u16 {
        let addresses = if self.is_ipv6 { 8..40 } else { 12..20 };
        let len = (packet.len() - self.bytes) as u64;
        fold(sum(&packet[addresses]) + (len >> 16) + (len & 0xffff) + u64::from(self.next))
    }
}

fn sum(bytes: &[u8]) -> u64 {
    let word = |pair: &[u8]| u64::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u64::from);
    bytes.chunks(2).map(word).sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// A UDP checksum that comes out as zero is sent as ones (RFC 8200 section 8.1): zero means that there is none, and with IPv6
/// such a packet is thrown away; with IPv4 it is as good as one that has it. The library that completes what the kernel has left
/// to be computed forgets this once in 65,536 packets.
fn complete_checksum(packet: &mut [u8]) {
    const CHECKSUM_AT: usize = 40 + 6;
    if Header::parse(packet).is_some_and(|header| header.is_ipv6 && header.next == UDP)
        && let Some(checksum @ [0, 0]) = packet.get_mut(CHECKSUM_AT..CHECKSUM_AT + 2)
    {
        checksum.fill(0xff);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A TCP segment of `payload` bytes, with the pseudo-header's sum in the place of its checksum.
    fn unfinished(is_ipv6: bool, payload: usize) -> Vec<u8> {
        let mut packet = Vec::new();
        if is_ipv6 {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend((20 + payload as u16).to_be_bytes());
            packet.extend([TCP, 64]);
            packet.extend((1..=32).collect::<Vec<u8>>());
        } else {
            packet.extend([0x46, 0]);
            packet.extend((44 + payload as u16).to_be_bytes());
            packet.extend([0, 1, 0x40, 0, 64, TCP, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1, 1, 0]);
        }
        let header_bytes = packet.len();
        if !is_ipv6 {
            let checksum = !fold(sum(&packet));
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        packet.extend([1, 2, 3, 4, 0, 0, 0, 1, 0, 0, 0, 2, 5 << 4, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
        packet.extend((0..payload).map(|number| number as u8));
        let sum = Header::parse(&packet).unwrap().pseudo_sum(&packet);
        packet[header_bytes + 16..header_bytes + 18].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    /// A right checksum makes this.
    fn is_right(packet: &[u8]) -> bool {
        let header = Header::parse(packet).unwrap();
        let is_header_right = header.is_ipv6 || fold(sum(&packet[..header.bytes])) == 0xffff;
        is_header_right && fold(u64::from(header.pseudo_sum(packet)) + sum(&packet[header.bytes..])) == 0xffff
    }

    #[test]
    fn what_the_kernel_has_left_unfinished_is_finished() {
        for (is_ipv6, last) in [(true, 860), (false, 796)] {
            let mut packet = unfinished(is_ipv6, 501);
            assert!(!is_right(&packet));
            assert!(whole(&mut packet).is_none() && is_right(&packet));
            let finished = packet.clone();
            assert!(whole(&mut packet).is_none() && packet == finished);

            let mut merged = unfinished(is_ipv6, 5000);
            let header = whole(&mut merged).unwrap();
            let (mut cut, mut sizes) = (vec![vec![0; 2000]; 8], [0; 8]);
            let count = gso_split(&mut merged, header, &mut cut, &mut sizes, 0, is_ipv6).unwrap();
            assert_eq!(sizes[..count], [1460, 1460, 1460, last]);
            assert!(cut.iter().zip(sizes).take(count).all(|(packet, size)| is_right(&packet[..size])));

            for len in [0, 6, 19, 20, 39, 40, 50, 57] {
                whole(&mut unfinished(is_ipv6, 20)[..len].to_vec());
            }
        }
        // Nothing of a packet that was cut into fragments is taken for its checksum.
        let mut fragment = unfinished(false, 501);
        fragment[6] = 0x20;
        let before = fragment.clone();
        assert!(whole(&mut fragment).is_none() && fragment == before);
    }

    #[test]
    fn a_udp_checksum_of_zero_becomes_ones_and_nothing_else_changes() {
        let packet = |protocol, checksum: [u8; 2]| {
            let mut packet = vec![0; 50];
            (packet[0], packet[6]) = (0x60, protocol);
            packet[46..48].copy_from_slice(&checksum);
            packet
        };
        for (protocol, before, after) in
            [(17, [0, 0], [0xff, 0xff]), (17, [0, 1], [0, 1]), (17, [1, 0], [1, 0]), (6, [0, 0], [0, 0])]
        {
            let mut completed = packet(protocol, before);
            complete_checksum(&mut completed);
            assert_eq!(completed, packet(protocol, after));
        }
        complete_checksum(&mut [0x60, 0, 0, 0, 0, 0, 17]);
        complete_checksum(&mut []);
    }
}
