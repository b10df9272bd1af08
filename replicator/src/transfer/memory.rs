//! Relays a hypervisor's memory stream to another hypervisor, byte for byte, without interpreting it. The source reads no
//! more from its hypervisor than keeps the path busy: QEMU counts a byte as sent once it is read from the socket, and pauses
//! the guest when the rest seems to take no time.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use longhaul_proto::JobId;
use longhaul_proto::wire::{self, Open, Taken};
use quinn::{Connection, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use crate::error_kind::{HasKind, Kind};
use crate::service::net::lanes::{LaneRecv, LaneSend};
use crate::service::net::{self, NetError, Network};

/// Taken from a stream at once.
const RELAY_BYTES: u64 = wire::MAX_PIECE_BYTES as u64;
/// A piece begins with its length.
const PIECE_HEADER_BYTES: usize = 4;
/// The receiver reports when it has taken so much, or when nothing more comes for a moment: the source measures the
/// way by the reports, and a report that waits for later bytes would tell it of a slow one.
const REPORT_BYTES: u64 = 64 << 10;
const REPORT_IDLE: Duration = Duration::from_millis(2);

const FIRST_WINDOW_BYTES: u64 = 1 << 20;
/// What the lanes hold.
const MAX_WINDOW_BYTES: u64 = wire::MAX_LANES as u64 * wire::CELL_BYTES as u64;
/// How long bytes may wait on the way beyond what the way itself takes. A guest that is paused waits as long.
const SLACK: Duration = Duration::from_millis(25);
/// The shortest delay is that of the last one or two of these: paths change.
const BASE_PERIOD: Duration = Duration::from_secs(5);

/// Why a relay ended before the end of the memory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
    /// The hypervisor's end.
    #[error("the hypervisor's memory stream: {0}")]
    Hypervisor(#[source] io::Error),
    /// The way between the platforms.
    #[error("the memory's way between the platforms: {0}")]
    Net(#[from] NetError),
    /// The receiver counts bytes that it was not sent.
    #[error("the other side says that it has taken {taken} bytes of memory, {sent} were sent")]
    Count {
        taken: u64,
        /// What it may say at most.
        sent: u64,
    },
}

impl HasKind for RelayError {
    fn kind(&self) -> Kind {
        match self {
            RelayError::Hypervisor(error) => Kind::of_io(error),
            RelayError::Net(error) => error.kind(),
            RelayError::Count { .. } => Kind::Peer,
        }
    }
}

/// The two directions of a memory stream at its source, on a connection of their own: what fills the disks' streams does
/// not hold up the memory, nor the other way round.
pub(crate) struct MemoryStream {
    send: LaneSend,
    recv: RecvStream,
    /// Closed when the stream has ended, if it is used by nothing else.
    own: Option<Connection>,
}

impl MemoryStream {
    /// Opens the memory stream of a job. A peer that cannot be dialled a second time gets it on `connection`.
    pub(crate) async fn open(
        network: &Network,
        peer: &str,
        connection: &Connection,
        job: JobId,
    ) -> Result<Self, NetError> {
        let own = network.dial(peer).await.ok();
        let (send, recv) = own.as_ref().unwrap_or(connection).open_bi().await?;
        let mut send = LaneSend::begin(own.as_ref().unwrap_or(connection), send).await?;
        net::send(&mut send, &Open::Memory { job }).await?;
        Ok(MemoryStream { send, recv, own })
    }
}

impl Drop for MemoryStream {
    fn drop(&mut self) {
        if let Some(own) = &self.own {
            own.close(0_u8.into(), b"done");
        }
    }
}

/// Relays the memory to the other side until the hypervisor ends it and everything has arrived. At least `floor_bytes` may
/// be under way at any time. After an error the other side does not take what it has for the whole.
pub(crate) async fn send(
    mut memory: impl AsyncRead + Unpin,
    mut stream: MemoryStream,
    floor_bytes: u64,
    count: impl Fn(u64),
) -> Result<(), RelayError> {
    relay(&mut memory, &mut stream, floor_bytes, count).await?;
    stream.send.finish().await?;
    stream.send.stopped().await;
    // It ends its reports when its hypervisor has everything, or with the connection.
    while let Ok(Some(_)) =
        net::soon(async { Ok(stream.recv.read_chunk(RELAY_BYTES as usize, true).await?) }).await
    {}
    Ok(())
}

async fn relay(
    memory: &mut (impl AsyncRead + Unpin),
    stream: &mut MemoryStream,
    floor_bytes: u64,
    count: impl Fn(u64),
) -> Result<(), RelayError> {
    let MemoryStream { send, recv, own: _ } = stream;
    let (told, mut taken) = watch::channel(0);
    let reports = async move {
        while let Some(Taken { bytes }) = net::receive(recv).await? {
            told.send_replace(bytes);
        }
        // It ends its reports with the memory only.
        std::future::pending::<Result<(), NetError>>().await
    };
    tokio::pin!(reports);
    let origin = Instant::now();
    let mut window = Window::new(floor_bytes);
    let header = if send.is_striped() { PIECE_HEADER_BYTES } else { 0 };
    let mut buffer = vec![0; header + RELAY_BYTES as usize];
    let mut watch = tokio::time::interval(net::KEEP_ALIVE);
    let mut reported = Instant::now();
    loop {
        let room = window.room().min(RELAY_BYTES) as usize;
        tokio::select! {
            broken = &mut reports => broken?,
            changed = taken.changed() => if changed.is_ok() {
                let bytes = *taken.borrow_and_update();
                let sent = window.sent;
                window.take(origin.elapsed(), bytes).ok_or(RelayError::Count { taken: bytes, sent })?;
                reported = Instant::now();
            },
            read = memory.read(&mut buffer[header..header + room]), if room > 0 => {
                let length = read.map_err(RelayError::Hypervisor)?;
                if length == 0 {
                    return Ok(());
                }
                if window.sent == window.taken {
                    reported = Instant::now();
                }
                window.send(origin.elapsed(), length as u64);
                let prefix = (length as u32).to_le_bytes();
                buffer[..header].copy_from_slice(&prefix[..header]);
                send.write_chunk(Bytes::copy_from_slice(&buffer[..header + length])).await?;
                count(length as u64);
            }
            _ = watch.tick() => {
                if window.sent > window.taken && reported.elapsed() > net::SILENCE {
                    return Err(NetError::Silent.into());
                }
                // A piece of no bytes: the guest may be paused for long, or its hypervisor at work.
                send.write_chunk(Bytes::from_static(&[0; PIECE_HEADER_BYTES]).slice(..header)).await?;
            }
        }
    }
}

/// Relays the memory from the other side into the hypervisor until its end, and tells how far it is. A stream that
/// breaks is an error: what the hypervisor has is not the whole.
pub(crate) async fn receive(
    mut memory: impl AsyncWrite + Unpin,
    recv: LaneRecv,
    mut send: SendStream,
    count: impl Fn(u64),
) -> Result<(), RelayError> {
    let mut pieces = Pieces { recv, header: BytesMut::new(), left: 0 };
    let (mut taken, mut told) = (0, 0);
    loop {
        let idle = tokio::select! {
            biased;
            chunk = pieces.next() => {
                let Some(chunk) = chunk? else { break };
                memory.write_all(&chunk).await.map_err(RelayError::Hypervisor)?;
                taken += chunk.len() as u64;
                count(chunk.len() as u64);
                false
            }
            () = tokio::time::sleep(REPORT_IDLE), if taken > told => true,
        };
        if idle || taken - told >= REPORT_BYTES {
            told = taken;
            // A source that has sent everything no longer listens, and one that is gone ends the stream.
            let _ = net::send(&mut send, &Taken { bytes: taken }).await;
        }
    }
    memory.shutdown().await.map_err(RelayError::Hypervisor)
}

/// The pieces of a memory stream: their lengths taken off. A source of the protocol before sends bytes only, and may be
/// silent for long.
struct Pieces {
    recv: LaneRecv,
    header: BytesMut,
    /// Of the piece that has begun.
    left: usize,
}

impl Pieces {
    /// The next bytes; none where the source only says that it is there. Nothing is lost when the future is dropped.
    async fn next(&mut self) -> Result<Option<Bytes>, NetError> {
        if !self.recv.is_striped() {
            return self.recv.read_chunk(RELAY_BYTES as usize).await;
        }
        while self.left == 0 {
            let missing = PIECE_HEADER_BYTES - self.header.len();
            match net::soon(self.recv.read_chunk(missing)).await? {
                Some(bytes) => self.header.extend_from_slice(&bytes),
                None if self.header.is_empty() => return Ok(None),
                None => return Err(NetError::Ended),
            }
            let Ok(header) = <[u8; PIECE_HEADER_BYTES]>::try_from(&self.header[..]) else { continue };
            self.header.clear();
            match u32::from_le_bytes(header) {
                0 => return Ok(Some(Bytes::new())),
                length if length > wire::MAX_PIECE_BYTES => {
                    return Err(NetError::Lanes(format!("a piece of memory of {length} bytes")));
                }
                length => self.left = length as usize,
            }
        }
        let chunk = net::soon(self.recv.read_chunk(self.left)).await?.ok_or(NetError::Ended)?;
        self.left -= chunk.len();
        Ok(Some(chunk))
    }
}

/// How many bytes may be under way: as many as arrive in the time that the way takes, and [`SLACK`]. It grows while
/// it is what holds the source back, and shrinks as soon as bytes wait longer.
#[derive(Debug)]
struct Window {
    size: u64,
    /// It is never smaller.
    floor: u64,
    sent: u64,
    taken: u64,
    /// For each piece under way: the end of it in the stream, when it was sent, and what had been taken then.
    pieces: VecDeque<(u64, Duration, u64)>,
    /// The shortest delays of this period and the one before.
    base: [Option<Duration>; 2],
    period_ends: Duration,
    /// It doubles in each round trip until bytes wait for the first time.
    starting: bool,
    /// The source would have sent more.
    limited: bool,
    /// No second cut until what was sent before the last one has arrived.
    cut_at: u64,
}

impl Window {
    fn new(floor: u64) -> Self {
        Window {
            size: FIRST_WINDOW_BYTES.max(floor),
            floor,
            sent: 0,
            taken: 0,
            pieces: VecDeque::new(),
            base: [None; 2],
            period_ends: BASE_PERIOD,
            starting: true,
            limited: false,
            cut_at: 0,
        }
    }

    /// Bytes that may be sent now.
    fn room(&mut self) -> u64 {
        let room = self.size.saturating_sub(self.sent - self.taken);
        self.limited |= room == 0;
        room
    }

    fn send(&mut self, now: Duration, bytes: u64) {
        self.sent += bytes;
        self.pieces.push_back((self.sent, now, self.taken));
    }

    /// The receiver has taken `total` bytes in all. `None` when that cannot be.
    fn take(&mut self, now: Duration, total: u64) -> Option<()> {
        if total > self.sent || total < self.taken {
            return None;
        }
        let acked = total - self.taken;
        self.taken = total;
        let mut newest = None;
        while self.pieces.front().is_some_and(|(end, ..)| *end <= total) {
            newest = self.pieces.pop_front();
        }
        let limited = std::mem::take(&mut self.limited);
        let Some((_, sent_at, taken_then)) = newest else { return Some(()) };
        let delay = now.saturating_sub(sent_at).max(Duration::from_micros(1));
        let wanted = self.base(now, delay) + SLACK;
        if delay > wanted {
            if total >= self.cut_at {
                // What arrived in `delay`, scaled to the time that it should take.
                let arrived = (total - taken_then) as f64;
                let size = arrived * wanted.as_secs_f64() / delay.as_secs_f64();
                self.size = self.size.min(size as u64).max(self.floor);
                self.cut_at = self.sent;
            }
            self.starting = false;
        } else if limited {
            let growth = if self.starting { acked } else { acked / 4 };
            self.size = (self.size + growth).min(MAX_WINDOW_BYTES);
        }
        Some(())
    }

    /// The shortest delay of late.
    fn base(&mut self, now: Duration, delay: Duration) -> Duration {
        if now >= self.period_ends {
            self.base = [None, self.base[0]];
            self.period_ends = now + BASE_PERIOD;
        }
        let least = self.base[0].map_or(delay, |base| base.min(delay));
        self.base[0] = Some(least);
        self.base[1].map_or(least, |before| before.min(least))
    }
}

#[cfg(test)]
mod tests;
