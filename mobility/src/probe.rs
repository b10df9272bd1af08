//! The probe over real sockets: send a stream of packets, or receive streams and report on them. Never answers a packet.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use mobility_proto::probe::{PACKET_BYTES, Packet, StreamSnapshot, StreamStats, WORDS};
use serde::{Deserialize, Serialize};
use tokio::net::UdpSocket;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};

/// Streams beyond this many are not followed: anybody can invent stream ids.
pub const MAX_STREAMS: usize = 256;

/// How to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendOptions {
    /// The stream's id, under which the receiver reports it.
    pub stream: u64,
    /// Time between two packets.
    pub interval: Duration,
    /// How many packets; without bound when absent.
    pub count: Option<u64>,
}

/// What was sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// Packets handed to the system.
    pub packets: u64,
    /// Packets the system refused, for instance because nobody listens there.
    pub refused: u64,
}

/// What was received, by stream id.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Each stream so far.
    pub streams: BTreeMap<u64, StreamSnapshot>,
    /// Datagrams that were no probe packets, or of more than [`MAX_STREAMS`] streams.
    pub ignored: u64,
}

/// Why a probe ended early.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The local address cannot be had.
    #[error("opening a UDP socket on {address}: {source}; is the port taken?")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
    /// There is no way to the target.
    #[error("sending probe packets to {address}: {source}")]
    Target {
        /// The target.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
    /// An interval of zero was asked for.
    #[error("the interval between probe packets must be longer than zero")]
    Interval,
}

/// Sends a stream to `target` until the count is reached or `stop` resolves.
///
/// # Errors
/// [`ProbeError`] when the stream cannot start. A packet refused on the way is counted, not an error.
pub async fn send(
    target: SocketAddr,
    options: SendOptions,
    stop: impl Future<Output = ()>,
) -> Result<Sent, ProbeError> {
    if options.interval.is_zero() {
        return Err(ProbeError::Interval);
    }
    let local = if target.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = bind(local).await?;
    socket.connect(target).await.map_err(|source| ProbeError::Target { address: target, source })?;
    let mut ticks = interval(options.interval);
    // A stream with a burst in it would measure its own sender.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let start = Instant::now();
    let mut sent = Sent::default();
    tokio::pin!(stop);
    for seq in 1..=options.count.unwrap_or(u64::MAX) {
        tokio::select! {
            _ = ticks.tick() => {}
            () = &mut stop => break,
        }
        let sent_ns = start.elapsed().as_nanos() as u64;
        let packet = Packet { stream: options.stream, seq, sent_ns, words: [0; WORDS] };
        match socket.send(&packet.encode()).await {
            Ok(_) => sent.packets += 1,
            Err(_) => sent.refused += 1,
        }
    }
    Ok(sent)
}

/// Opens the socket for [`serve`].
///
/// # Errors
/// [`ProbeError::Bind`].
pub async fn bind(address: SocketAddr) -> Result<UdpSocket, ProbeError> {
    UdpSocket::bind(address).await.map_err(|source| ProbeError::Bind { address, source })
}

/// Receives streams until `stop` resolves; gives `progress` the report every `every`.
pub async fn serve(
    socket: UdpSocket,
    every: Duration,
    mut progress: impl FnMut(&Report),
    stop: impl Future<Output = ()>,
) -> Report {
    let start = Instant::now();
    let every = every.max(Duration::from_millis(1));
    let mut ticks = interval_at(start + every, every);
    let mut streams: BTreeMap<u64, StreamStats> = BTreeMap::new();
    let mut ignored = 0;
    // One byte more than a packet, so that a longer datagram is not cut to look like one.
    let mut buffer = [0; PACKET_BYTES + 1];
    tokio::pin!(stop);
    loop {
        tokio::select! {
            received = socket.recv_from(&mut buffer) => {
                // An error here is an ICMP message about something else on this socket.
                let Ok((bytes, _)) = received else { continue };
                let at_ns = start.elapsed().as_nanos() as u64;
                match Packet::parse(&buffer[..bytes]) {
                    Ok(packet) if streams.len() < MAX_STREAMS || streams.contains_key(&packet.stream) => {
                        streams.entry(packet.stream).or_default().arrived(at_ns, &packet);
                    }
                    _ => ignored += 1,
                }
            }
            _ = ticks.tick() => progress(&report(&streams, ignored)),
            () = &mut stop => return report(&streams, ignored),
        }
    }
}

fn report(streams: &BTreeMap<u64, StreamStats>, ignored: u64) -> Report {
    Report { streams: streams.iter().map(|(id, stats)| (*id, stats.snapshot())).collect(), ignored }
}

#[cfg(test)]
mod tests;
