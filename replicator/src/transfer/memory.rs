//! A hypervisor's memory stream on its way to another hypervisor, byte for byte. The source takes no more from its
//! hypervisor than the path needs to stay busy: a hypervisor pauses its guest when it believes that what is left will
//! take no time, and it takes for done what we have swallowed. It knows nothing of what the bytes mean.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use longhaul_proto::wire::Taken;
use quinn::{RecvStream, SendStream, VarInt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use crate::net::{self, NetError};

/// Taken from a stream at once.
const RELAY_BYTES: u64 = 256 << 10;
/// The receiver reports when it has taken so much, or when nothing more comes for a moment: the source measures the
/// way by the reports, and a report that waits for later bytes would tell it of a slow one.
const REPORT_BYTES: u64 = 64 << 10;
const REPORT_IDLE: Duration = Duration::from_millis(2);

const FIRST_WINDOW_BYTES: u64 = 1 << 20;
const MAX_WINDOW_BYTES: u64 = 64 << 20;
/// How long bytes may wait on the way beyond what the way itself takes. A guest that is paused waits as long.
const SLACK: Duration = Duration::from_millis(25);
/// The shortest delay is that of the last one or two of these: paths change.
const BASE_PERIOD: Duration = Duration::from_secs(5);

/// Why a relay ended before the end of the memory.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The hypervisor's end.
    #[error("the hypervisor's memory stream: {0}")]
    Hypervisor(#[source] io::Error),
    /// The way between the platforms.
    #[error("the memory's way between the platforms: {0}")]
    Net(#[from] NetError),
    /// The receiver counts bytes that it was not sent.
    #[error("the other side says that it has taken {taken} bytes of memory, {sent} were sent")]
    Count {
        /// What it says.
        taken: u64,
        /// What it may say at most.
        sent: u64,
    },
}

/// Relays the memory to the other side until the hypervisor ends it and everything has arrived. At least `floor_bytes` may
/// be under way at any time. After an error the other side does not take what it has for the whole.
pub async fn send(
    mut memory: impl AsyncRead + Unpin,
    mut send: SendStream,
    recv: RecvStream,
    floor_bytes: u64,
    count: impl Fn(u64),
) -> Result<(), RelayError> {
    let relayed = relay(&mut memory, &mut send, recv, floor_bytes, count).await;
    match relayed {
        Ok(()) => {
            let _ = send.finish();
            // An answer or none: the hand-off hears from the other side how it ended.
            let _ = send.stopped().await;
        }
        Err(_) => drop(send.reset(VarInt::from_u32(1))),
    }
    relayed
}

async fn relay(
    memory: &mut (impl AsyncRead + Unpin),
    send: &mut SendStream,
    mut recv: RecvStream,
    floor_bytes: u64,
    count: impl Fn(u64),
) -> Result<(), RelayError> {
    let (told, mut taken) = watch::channel(0);
    let reports = async move {
        while let Some(Taken { bytes }) = net::receive(&mut recv).await? {
            told.send_replace(bytes);
        }
        // It ends its reports with the memory only.
        std::future::pending::<Result<(), NetError>>().await
    };
    tokio::pin!(reports);
    let origin = Instant::now();
    let mut window = Window::new(floor_bytes);
    let mut buffer = vec![0; RELAY_BYTES as usize];
    loop {
        let room = window.room().min(RELAY_BYTES) as usize;
        tokio::select! {
            broken = &mut reports => broken?,
            changed = taken.changed() => if changed.is_ok() {
                let bytes = *taken.borrow_and_update();
                let sent = window.sent;
                window.take(origin.elapsed(), bytes).ok_or(RelayError::Count { taken: bytes, sent })?;
            },
            read = memory.read(&mut buffer[..room]), if room > 0 => {
                let length = read.map_err(RelayError::Hypervisor)?;
                if length == 0 {
                    return Ok(());
                }
                window.send(origin.elapsed(), length as u64);
                let chunk = Bytes::copy_from_slice(&buffer[..length]);
                send.write_chunk(chunk).await.map_err(NetError::from)?;
                count(length as u64);
            }
        }
    }
}

/// Relays the memory from the other side into the hypervisor until its end, and tells how far it is. A stream that
/// breaks is an error: what the hypervisor has is not the whole.
pub async fn receive(
    mut memory: impl AsyncWrite + Unpin,
    mut recv: RecvStream,
    mut send: SendStream,
    count: impl Fn(u64),
) -> Result<(), RelayError> {
    let (mut taken, mut told) = (0, 0);
    loop {
        let idle = tokio::select! {
            biased;
            chunk = recv.read_chunk(RELAY_BYTES as usize, true) => {
                let Some(chunk) = chunk.map_err(NetError::from)? else { break };
                memory.write_all(&chunk.bytes).await.map_err(RelayError::Hypervisor)?;
                taken += chunk.bytes.len() as u64;
                count(chunk.bytes.len() as u64);
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
