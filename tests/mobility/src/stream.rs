//! A stream of numbered packets to the guest, and what of it was heard when.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use harness::Namespace;
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};

/// The payload of the paper's stream, in bytes: G.711 with its headers.
const PAYLOAD_BYTES: usize = 210;
/// Room in the receiving socket.
const RECEIVE_BYTES: usize = 16 << 20;

/// What was heard of a stream.
#[derive(Debug, Clone, Copy, Default)]
pub struct Heard {
    /// Packets sent.
    pub sent: u64,
    /// Different packets heard.
    pub received: u64,
    /// Packets that came after a later one.
    pub reordered: u64,
    /// Packets that came again.
    pub duplicates: u64,
    /// The longest time without a packet, from the first to the last.
    pub longest_gap: Duration,
}

impl Heard {
    /// Packets that never came.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.sent - self.received
    }
}

/// A stream under way.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Result<u64>>,
    receiver: JoinHandle<Result<Vec<(Instant, u64)>>>,
    quiet: Arc<AtomicBool>,
}

impl Stream {
    /// Sends from one namespace to `target` in another, a packet every `interval`.
    ///
    /// # Errors
    /// When the receiving socket cannot be had.
    pub fn start(
        from: &Arc<Namespace>,
        to: &Arc<Namespace>,
        target: SocketAddr,
        interval: Duration,
    ) -> Result<Self> {
        let (stop, quiet) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let socket =
            to.enter(|| UdpSocket::bind(target))?.with_context(|| format!("listening at {target}"))?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        // What has waited comes all at once: nothing of it is lost here.
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BYTES)?;
        let receiver = thread::spawn({
            let quiet = Arc::clone(&quiet);
            move || {
                let (mut heard, mut buffer) = (Vec::new(), [0; PAYLOAD_BYTES]);
                while !quiet.load(Ordering::Relaxed) {
                    if let Ok((PAYLOAD_BYTES, _)) = socket.recv_from(&mut buffer) {
                        let number = u64::from_be_bytes(buffer[..8].try_into()?);
                        heard.push((Instant::now(), number));
                    }
                }
                Ok(heard)
            }
        });
        let socket =
            from.enter(|| UdpSocket::bind(if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }))??;
        let sender = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                keep_to_one_processor();
                let mut payload = [0; PAYLOAD_BYTES];
                let (start, mut sent) = (Instant::now(), 0_u64);
                while !stop.load(Ordering::Relaxed) {
                    payload[..8].copy_from_slice(&sent.to_be_bytes());
                    // What the system refuses is a packet lost.
                    let _ = socket.send_to(&payload, target);
                    sent += 1;
                    let next = start + interval * u32::try_from(sent)?;
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                }
                Ok(sent)
            }
        });
        Ok(Self { stop, sender, receiver, quiet })
    }

    /// Ends it; waits `patience` for what is under way.
    ///
    /// # Errors
    /// When a thread broke.
    pub fn finish(self, patience: Duration) -> Result<Heard> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
        thread::sleep(patience);
        self.quiet.store(true, Ordering::Relaxed);
        let arrivals = self.receiver.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))??;
        let mut heard = Heard { sent, ..Heard::default() };
        let mut seen = std::collections::HashSet::new();
        let mut highest = None;
        for (_, number) in &arrivals {
            if !seen.insert(*number) {
                heard.duplicates += 1;
            } else if highest.is_some_and(|highest| *number < highest) {
                heard.reordered += 1;
            }
            highest = highest.max(Some(*number));
        }
        heard.received = seen.len() as u64;
        let gaps = arrivals.windows(2).map(|pair| pair[1].0 - pair[0].0);
        heard.longest_gap = gaps.max().unwrap_or_default();
        Ok(heard)
    }
}

/// From now on the calling thread stays on the processor it is on. What is sent between namespaces waits at the sender's
/// processor: a thread that goes from a busy one to another in between overtakes itself, as nothing does on one wire.
fn keep_to_one_processor() {
    let mut this = CpuSet::new();
    this.set(sched_getcpu());
    // It is allowed: the thread is there already.
    let _ = sched_setaffinity(None, &this);
}
