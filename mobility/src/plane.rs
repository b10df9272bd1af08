//! The data plane in user space: a TUN interface to the kernel on one side, a raw socket for IPv6 in IPv6 (RFC 2473) on the
//! other. Works on every Linux; decides nothing about a packet.

use std::io;
use std::net::Ipv6Addr;

use tun_rs::{AsyncDevice, DeviceBuilder, GROTable, IDEAL_BATCH_SIZE, Layer, VIRTIO_NET_HDR_LEN};

use crate::raw::{IPV6, RawSocket};

/// What a packet may have inside a tunnel over a network of 1500 bytes.
pub(crate) const INNER_MTU: u16 = 1460;
/// The largest packet that the kernel hands over before it is cut into those of the MTU.
const LARGEST: usize = VIRTIO_NET_HDR_LEN + 65_535;
/// How many packets one that the kernel hands over is cut into at most: Linux sends no TCP segments with less than 36 bytes
/// of payload.
const CUTS: usize = 2048;
/// How many packets may wait for the agent: 10 ms at 3 Gb/s.
const QUEUE: u32 = 2500;
/// How many packets are taken from a socket before anything else gets its turn.
const BATCH: usize = IDEAL_BATCH_SIZE;

/// The two ends of the tunnels of one agent.
pub(crate) struct Plane {
    tun: AsyncDevice,
    outer: RawSocket,
    whole: Vec<u8>,
    cut: Vec<Vec<u8>>,
    sizes: Vec<usize>,
    merged: GROTable,
    /// What waits for the next flush.
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
    /// Makes the interface `name`, which goes with this value, and opens the tunnels at `address`.
    pub(crate) fn open(name: &str, address: Ipv6Addr) -> io::Result<Self> {
        let tun = DeviceBuilder::new().name(name).layer(Layer::L3).offload(true).build_async()?;
        tun.set_tx_queue_len(QUEUE)?;
        Ok(Self {
            tun,
            outer: RawSocket::open(IPV6, address, 0)?,
            whole: vec![0; LARGEST],
            cut: vec![vec![0; usize::from(INNER_MTU) + 64]; CUTS],
            sizes: vec![0; CUTS],
            merged: GROTable::default(),
            to_kernel: Vec::new(),
            // Memory that is not written to is not taken.
            batch: (0..BATCH).map(|_| Vec::with_capacity(2 * VIRTIO_NET_HDR_LEN + LARGEST)).collect(),
            received: vec![0; 65_535],
        })
    }

    /// Nothing is taken out of tunnels that comes in by these interfaces.
    pub(crate) fn refuse_from(&self, interfaces: &[u32]) -> io::Result<()> {
        self.outer.refuse_from(interfaces)
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

    /// What has come through tunnels, with where it came from.
    pub(crate) fn tunnelled(&mut self) -> Vec<(Ipv6Addr, Vec<u8>)> {
        let Self { outer, received, .. } = self;
        std::iter::from_fn(|| {
            let (len, from) = outer.try_receive(received)?;
            Some((from, received[..len].to_vec()))
        })
        .take(BATCH)
        .collect()
    }

    /// Sends a packet through the tunnel to `to`; a full socket loses it, as a router's queue would.
    pub(crate) fn send(&self, to: Ipv6Addr, packet: &[u8]) {
        if let Err(error) = self.outer.send(packet, to, 0) {
            tracing::debug!("a packet for {to} was lost: {error}");
        }
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

/// A UDP checksum that comes out as zero is sent as ones (RFC 8200 section 8.1): zero means that there is none, and with IPv6
/// such a packet is thrown away. The library that completes what the kernel has left to be computed forgets this once in
/// 65,536 packets.
fn complete_checksum(packet: &mut [u8]) {
    const UDP: u8 = 17;
    const CHECKSUM_AT: usize = 40 + 6;
    if packet.get(6) == Some(&UDP)
        && let Some(checksum @ [0, 0]) = packet.get_mut(CHECKSUM_AT..CHECKSUM_AT + 2)
    {
        checksum.fill(0xff);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_udp_checksum_of_zero_becomes_ones_and_nothing_else_changes() {
        let packet = |protocol, checksum: [u8; 2]| {
            let mut packet = vec![0; 50];
            packet[6] = protocol;
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
