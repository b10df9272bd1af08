//! The probe over real sockets: send a stream of packets, or receive streams and report on them. Answers nothing unless
//! told to, and never an answer.

mod streams;

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use mobility_proto::probe::{Packet, SIZES, WORDS, word};
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until, timeout_at};

use streams::{Arrival, Streams};
pub use streams::{Latency, LatencyKind, MAX_STREAMS, Report, StreamReport};

/// How long a sender waits for answers after its last packet.
const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// A sender that is later than this, and later than its interval, gives the lost time up: a stream with a burst in it
/// would measure its own sender.
const MAX_LAG: Duration = Duration::from_millis(5);
/// What may wait in the system while this program does not run.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;

/// How to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendOptions {
    /// The stream's id, under which the receiver reports it.
    pub stream: u64,
    /// Time between two packets.
    pub interval: Duration,
    /// Bytes of UDP payload in a packet.
    pub bytes: usize,
    /// How many packets; without bound when absent.
    pub count: Option<u64>,
    /// Stamp packets with the time of day, for a receiver whose clock is kept in step with ours.
    pub wall_clock: bool,
    /// Take answers in, from a receiver that sends them.
    pub echo: bool,
    /// Draw the answers.
    pub draw: bool,
}

/// How to receive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServeOptions {
    /// Send each packet back to where it came from.
    pub echo: bool,
    /// Draw what arrives.
    pub draw: bool,
}

/// What was sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Sent {
    /// Packets handed to the system.
    pub packets: u64,
    /// Packets the system refused, for instance because nobody listens there.
    pub refused: u64,
    /// How long that took, in nanoseconds: longer than asked for when this machine cannot send so fast.
    pub took_ns: u64,
    /// The answers, when they were asked for and any came. What was lost is counted up to the last packet sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answers: Option<StreamReport>,
}

/// What came of it, and the picture that was asked for, as SVG.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome<T> {
    /// The figures.
    pub report: T,
    /// The picture.
    pub svg: Option<String>,
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
    /// A size was asked for that no packet can have.
    #[error("a probe packet has {} to {} bytes, not {bytes}", SIZES.start(), SIZES.end())]
    Size {
        /// The size.
        bytes: usize,
    },
}

/// Sends a stream to `target` until the count is reached or `stop` resolves.
///
/// # Errors
/// [`ProbeError`] when the stream cannot start. A packet refused on the way is counted, not an error.
pub async fn send(
    target: SocketAddr,
    options: SendOptions,
    stop: impl Future<Output = ()>,
) -> Result<Outcome<Sent>, ProbeError> {
    if options.interval.is_zero() {
        return Err(ProbeError::Interval);
    }
    if !SIZES.contains(&options.bytes) {
        return Err(ProbeError::Size { bytes: options.bytes });
    }
    let local = if target.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = bind(local).await?;
    socket.connect(target).await.map_err(|source| ProbeError::Target { address: target, source })?;
    let machine = machine();
    let mut words = [0; WORDS];
    words[word::CLOCK] = if options.wall_clock { word::WALL_CLOCK } else { machine };
    let mut packet = Packet { stream: options.stream, seq: 0, sent_ns: 0, words };
    let (mut sent, mut answers) = (Sent::default(), Streams::new(machine, options.draw));
    let (mut datagram, mut buffer) = (vec![0; options.bytes], buffer());
    let start = Instant::now();
    let mut due = start;
    tokio::pin!(stop);
    while options.count.is_none_or(|count| packet.seq < count) {
        tokio::select! {
            received = socket.recv(&mut buffer), if options.echo => {
                if let Ok(bytes) = received {
                    answers.arrived(now(), target, answer(&buffer[..bytes], options.stream));
                }
                continue;
            }
            () = sleep_until(due) => {}
            () = &mut stop => break,
        }
        packet.seq += 1;
        packet.sent_ns = if options.wall_clock { now().unix_ns } else { now().monotonic_ns };
        packet.write(&mut datagram);
        match socket.send(&datagram).await {
            Ok(_) => sent.packets += 1,
            Err(_) => sent.refused += 1,
        }
        due += options.interval;
        let now = Instant::now();
        if now > due + options.interval.max(MAX_LAG) {
            due = now;
        }
    }
    let end = Instant::now();
    sent.took_ns = (end - start).as_nanos() as u64;
    let until = end + ANSWER_WAIT;
    while options.echo && answers.unique(options.stream) < sent.packets {
        let Ok(received) = timeout_at(until, socket.recv(&mut buffer)).await else { break };
        if let Ok(bytes) = received {
            answers.arrived(now(), target, answer(&buffer[..bytes], options.stream));
        }
    }
    answers.are_answers();
    sent.answers = answers.report().streams.remove(&options.stream);
    if let Some(report) = &mut sent.answers {
        report.arrivals.lost = sent.packets.saturating_sub(answers.unique(options.stream));
    }
    Ok(Outcome { report: sent, svg: options.draw.then(|| answers.draw()) })
}

/// The packet in a datagram, if it is an answer in this stream.
fn answer(datagram: &[u8], stream: u64) -> Option<Packet> {
    let packet = Packet::parse(datagram).ok()?;
    (packet.stream == stream && packet.words[word::ANSWER] == word::ANSWERED).then_some(packet)
}

/// Opens the socket for [`serve`].
///
/// # Errors
/// [`ProbeError::Bind`].
pub async fn bind(address: SocketAddr) -> Result<UdpSocket, ProbeError> {
    let socket = UdpSocket::bind(address).await.map_err(|source| ProbeError::Bind { address, source })?;
    // More than the system's bound with the right to it, else up to the bound.
    let _ = set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER_BYTES)
        .or_else(|_| set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER_BYTES));
    Ok(socket)
}

/// Receives streams until `stop` resolves.
pub async fn serve(
    socket: UdpSocket,
    options: ServeOptions,
    stop: impl Future<Output = ()>,
) -> Outcome<Report> {
    let mut streams = Streams::new(machine(), options.draw);
    let mut buffer = buffer();
    tokio::pin!(stop);
    loop {
        let (bytes, from) = tokio::select! {
            received = socket.recv_from(&mut buffer) => match received {
                Ok(received) => received,
                // An ICMP message about something else on this socket.
                Err(_) => continue,
            },
            () = &mut stop => break,
        };
        let arrival = now();
        let packet = Packet::parse(&buffer[..bytes]).ok();
        if options.echo
            && let Some(mut packet) = packet
            && packet.words[word::ANSWER] == 0
        {
            packet.words[word::ANSWER] = word::ANSWERED;
            packet.write(&mut buffer[..bytes]);
            // What the system does not take at once is lost, as on any full link.
            let _ = socket.try_send_to(&buffer[..bytes], from);
        }
        streams.arrived(arrival, from, packet);
    }
    Outcome { report: streams.report(), svg: options.draw.then(|| streams.draw()) }
}

fn now() -> Arrival {
    let [monotonic_ns, unix_ns] = [ClockId::Monotonic, ClockId::Realtime].map(|clock| {
        let time = clock_gettime(clock);
        time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
    });
    Arrival { monotonic_ns, unix_ns }
}

/// The first half of the boot id: two programs that read the same one have the same monotonic clock. 0 when there is none.
fn machine() -> u64 {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = id.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    u64::from_str_radix(&digits, 16).unwrap_or(0)
}

/// One byte more than a packet can have, so that a longer datagram is not cut to look like one.
fn buffer() -> Vec<u8> {
    vec![0; SIZES.end() + 1]
}

#[cfg(test)]
mod tests;
