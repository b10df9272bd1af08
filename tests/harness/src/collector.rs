//! The receiver of the guests' probe packets: what a guest has acknowledged, whether it ever ran twice, how long it was
//! not heard. Only listens; never answers.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::Namespace;
use ::guest::word;
use anyhow::{Context, Result, bail};
use mobility_proto::probe::{PACKET_BYTES, Packet, StreamSnapshot, StreamStats};

/// How often the receiving thread looks whether it should end.
const TICK: Duration = Duration::from_millis(50);
/// More boots than this in one test are a mistake; further ones are ignored.
const MAX_BOOTS: usize = 64;

/// Receives on a port of the loopback until dropped.
#[derive(Debug)]
pub struct Collector {
    port: u16,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    started: Instant,
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct State {
    boots: BTreeMap<u64, Boot>,
    latest: Option<u64>,
}

/// One boot of a guest, as heard from outside.
#[derive(Debug, Clone)]
struct Boot {
    stats: StreamStats,
    last: Packet,
    mark: Mark,
}

/// What has been heard since [`Collector::mark`].
#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    longest_ns: u64,
}

impl Collector {
    /// Listens on a free port.
    ///
    /// # Errors
    /// When there is none.
    pub fn start() -> Result<Self> {
        Self::listen(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)))
    }

    /// As [`Collector::start`], at `address` in a network namespace.
    ///
    /// # Errors
    /// As for [`Collector::start`].
    pub fn within(namespace: &Namespace, address: IpAddr) -> Result<Self> {
        Self::listen(namespace.enter(|| UdpSocket::bind((address, 0)))?)
    }

    fn listen(socket: std::io::Result<UdpSocket>) -> Result<Self> {
        let socket = socket.context("binding the probe packets' receiver")?;
        socket.set_read_timeout(Some(TICK))?;
        let port = socket.local_addr()?.port();
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            started: Instant::now(),
            state: Mutex::default(),
            arrived: Condvar::new(),
        });
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || receive(&socket, &shared)
        });
        Ok(Self { port, shared, thread: Some(thread) })
    }

    /// The port to give to the guest.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The number of the last record that the guest booted last says is durable.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.snapshot().map_or(0, |s| s.word_max[word::ACKED])
    }

    /// The random number of the guest booted last; none before its first packet.
    #[must_use]
    pub fn instance(&self) -> Option<u64> {
        self.state().latest
    }

    /// The random numbers of all boots heard: more than one means that a guest was started again.
    #[must_use]
    pub fn instances(&self) -> Vec<u64> {
        self.state().boots.keys().copied().collect()
    }

    /// The stream of the guest booted last.
    #[must_use]
    pub fn snapshot(&self) -> Option<StreamSnapshot> {
        let state = self.state();
        state.boots.get(&state.latest?).map(|boot| boot.stats.snapshot())
    }

    /// The latest packet of the guest booted last.
    #[must_use]
    pub fn last(&self) -> Option<Packet> {
        let state = self.state();
        state.boots.get(&state.latest?).map(|boot| boot.last)
    }

    /// How many packets came twice, over all boots. Each is a moment that a guest lived twice.
    #[must_use]
    pub fn duplicates(&self) -> u64 {
        self.state().boots.values().map(|boot| boot.stats.snapshot().duplicated).sum()
    }

    /// Starts a new measurement of the longest pause: see [`Collector::longest_since_mark`].
    pub fn mark(&self) {
        let mut state = self.state();
        state.boots.values_mut().for_each(|boot| boot.mark = Mark::default());
    }

    /// The longest pause between two packets of the guest booted last, of which the second came after
    /// [`Collector::mark`].
    #[must_use]
    pub fn longest_since_mark(&self) -> Duration {
        let state = self.state();
        let boot = state.latest.and_then(|instance| state.boots.get(&instance));
        Duration::from_nanos(boot.map_or(0, |boot| boot.mark.longest_ns))
    }

    /// Waits until the guest booted last has acknowledged record `number`.
    ///
    /// # Errors
    /// When that takes longer than `timeout`; the error says how far it came.
    pub fn wait_acked(&self, number: u64, timeout: Duration) -> Result<u64> {
        self.wait("acknowledged records", number, timeout, |packet| packet.words[word::ACKED])
    }

    /// Waits for `more` records beyond what is acknowledged now: the guest is alive and its disk works.
    ///
    /// # Errors
    /// As for [`Collector::wait_acked`].
    pub fn wait_progress(&self, more: u64, timeout: Duration) -> Result<u64> {
        self.wait_acked(self.acked() + more, timeout)
    }

    /// Waits until a packet with a higher sequence number than `seq` arrives.
    ///
    /// # Errors
    /// When none does within `timeout`.
    pub fn wait_seq(&self, seq: u64, timeout: Duration) -> Result<u64> {
        self.wait("packets", seq + 1, timeout, |packet| packet.seq)
    }

    /// Whether nothing arrives for as long as `quiet`.
    #[must_use]
    pub fn is_silent(&self, quiet: Duration) -> bool {
        let before = self.received();
        std::thread::sleep(quiet);
        self.received() == before
    }

    fn received(&self) -> u64 {
        self.state().boots.values().map(|boot| boot.stats.snapshot().received).sum()
    }

    fn wait(&self, what: &str, least: u64, timeout: Duration, of: impl Fn(&Packet) -> u64) -> Result<u64> {
        let until = Instant::now() + timeout;
        let mut state = self.state();
        loop {
            let boot = state.latest.and_then(|i| state.boots.get(&i));
            let now = boot.map_or(0, |boot| of(&boot.last));
            if now >= least {
                return Ok(now);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let last = boot.map(|boot| Duration::from_nanos(boot.stats.snapshot().last_arrival_ns));
                let heard = last.map_or("never heard".to_owned(), |last| {
                    format!("last heard {:?} ago", self.shared.started.elapsed().saturating_sub(last))
                });
                bail!(
                    "waited {timeout:?} for the guest's {what} to reach {least}, they are at {now}; it was {heard}"
                );
            }
            state = self
                .shared
                .arrived
                .wait_timeout(state, left.min(TICK * 4))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn receive(socket: &UdpSocket, shared: &Shared) {
    let mut buffer = [0; PACKET_BYTES + 1];
    while !shared.stop.load(Ordering::Relaxed) {
        // A time-out and the errors of earlier ICMP messages alike mean: try again.
        let Ok((bytes, _)) = socket.recv_from(&mut buffer) else { continue };
        let at_ns = shared.started.elapsed().as_nanos() as u64;
        if let Ok(packet) = Packet::parse(&buffer[..bytes]) {
            shared.state.lock().unwrap_or_else(PoisonError::into_inner).take(at_ns, packet);
            shared.arrived.notify_all();
        }
    }
}

impl State {
    fn take(&mut self, at_ns: u64, packet: Packet) {
        let instance = packet.words[word::INSTANCE];
        if !self.boots.contains_key(&instance) {
            if self.boots.len() >= MAX_BOOTS {
                return;
            }
            self.latest = Some(instance);
        }
        let boot = self.boots.entry(instance).or_insert_with(|| Boot {
            stats: StreamStats::new(),
            last: packet,
            mark: Mark::default(),
        });
        let before = boot.stats.snapshot();
        if before.received > 0 {
            boot.mark.longest_ns = boot.mark.longest_ns.max(at_ns.saturating_sub(before.last_arrival_ns));
        }
        boot.stats.arrived(at_ns, &packet);
        if packet.seq >= boot.last.seq {
            boot.last = packet;
        }
    }
}

#[cfg(test)]
mod tests;
