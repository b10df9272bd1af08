//! A link between two platforms that can be slow, lossy or cut: a relay for UDP datagrams in user space. It looks at no
//! datagram's content and keeps no more than a bounded queue.

use std::cmp::{Ordering as Order, Reverse};
use std::collections::{BinaryHeap, HashMap};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How often a thread that waits for datagrams looks whether it should end.
const TICK: Duration = Duration::from_millis(50);
/// More senders than this behind one relay are a mistake; further ones are ignored.
const MAX_CLIENTS: usize = 64;
const MAX_DATAGRAM_BYTES: usize = 65_536;

/// What the link does to datagrams, in each direction by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkSettings {
    /// How long a datagram takes.
    pub delay: Duration,
    /// How much passes in a second; no bound when absent.
    pub rate_bytes_s: Option<u64>,
    /// How many of a thousand datagrams are lost, at random but the same in each run.
    pub loss_permille: u32,
    /// How many bytes may wait; what comes on top is lost.
    pub queue_bytes: usize,
}

impl Default for LinkSettings {
    /// A perfect link with a queue of 1 MiB.
    fn default() -> Self {
        Self { delay: Duration::ZERO, rate_bytes_s: None, loss_permille: 0, queue_bytes: 1 << 20 }
    }
}

/// What has passed so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RelayCounts {
    /// Datagrams sent on.
    pub forwarded: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Datagrams lost: by chance, by a full queue or by a cut.
    pub dropped: u64,
}

/// A relay in front of one address. Ends when dropped.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    link: Mutex<Link>,
    changed: Condvar,
}

#[derive(Debug)]
struct Link {
    settings: LinkSettings,
    cut: bool,
    queue: BinaryHeap<Reverse<Datagram>>,
    queued_bytes: usize,
    next: u64,
    random: u64,
    /// When the last datagram accepted has left the sender, for each direction.
    free_at: [Instant; 2],
    counts: RelayCounts,
}

#[derive(Debug)]
struct Datagram {
    due: Instant,
    number: u64,
    socket: Arc<UdpSocket>,
    to: SocketAddr,
    bytes: Box<[u8]>,
}

impl PartialEq for Datagram {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Order::Equal
    }
}
impl Eq for Datagram {}
impl PartialOrd for Datagram {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}
impl Ord for Datagram {
    fn cmp(&self, other: &Self) -> Order {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}

#[derive(Debug, Clone, Copy)]
enum Direction {
    Forth = 0,
    Back = 1,
}

impl Relay {
    /// Relays between whoever sends to [`Relay::address`] and `target`.
    ///
    /// # Errors
    /// When no socket can be had.
    pub fn start(target: SocketAddr, settings: LinkSettings) -> Result<Self> {
        let front = Arc::new(listen().context("opening the relay's socket")?);
        let address = front.local_addr()?;
        let now = Instant::now();
        let link = Link {
            settings,
            cut: false,
            queue: BinaryHeap::new(),
            queued_bytes: 0,
            next: 0,
            random: 0x6c6f_6e67_6861_756c,
            free_at: [now; 2],
            counts: RelayCounts::default(),
        };
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            link: Mutex::new(link),
            changed: Condvar::new(),
        });
        let threads = vec![
            thread::spawn({
                let shared = Arc::clone(&shared);
                move || forth(&front, target, &shared)
            }),
            thread::spawn({
                let shared = Arc::clone(&shared);
                move || deliver(&shared)
            }),
        ];
        Ok(Self { address, shared, threads })
    }

    /// The address that stands for the target.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the link; what is under way keeps its time.
    pub fn set(&self, settings: LinkSettings) {
        self.shared.link().settings = settings;
    }

    /// Loses everything from now on, also what is under way.
    pub fn cut(&self) {
        let mut link = self.shared.link();
        link.cut = true;
        link.counts.dropped += link.queue.len() as u64;
        link.queue.clear();
        link.queued_bytes = 0;
    }

    /// Ends a cut.
    pub fn heal(&self) {
        self.shared.link().cut = false;
    }

    /// What has passed so far.
    #[must_use]
    pub fn counts(&self) -> RelayCounts {
        self.shared.link().counts
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn listen() -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(TICK))?;
    Ok(socket)
}

/// Takes what the clients send, opening for each a socket of its own towards the target.
fn forth(front: &Arc<UdpSocket>, target: SocketAddr, shared: &Arc<Shared>) {
    let mut clients: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut backs = Vec::new();
    let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
    while !shared.stopped() {
        let Ok((bytes, client)) = front.recv_from(&mut buffer) else { continue };
        if !clients.contains_key(&client) {
            let Ok(socket) = listen() else { continue };
            if clients.len() >= MAX_CLIENTS {
                continue;
            }
            let socket = Arc::new(socket);
            clients.insert(client, Arc::clone(&socket));
            let (front, shared) = (Arc::clone(front), Arc::clone(shared));
            backs.push(thread::spawn(move || back(&socket, &front, client, &shared)));
        }
        shared.accept(Direction::Forth, &clients[&client], target, &buffer[..bytes]);
    }
    for back in backs {
        let _ = back.join();
    }
}

/// Takes what the target answers to one client.
fn back(socket: &UdpSocket, front: &Arc<UdpSocket>, client: SocketAddr, shared: &Shared) {
    let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
    while !shared.stopped() {
        if let Ok((bytes, _)) = socket.recv_from(&mut buffer) {
            shared.accept(Direction::Back, front, client, &buffer[..bytes]);
        }
    }
}

/// Sends what is due.
fn deliver(shared: &Shared) {
    let mut link = shared.link();
    while !shared.stopped() {
        let now = Instant::now();
        let wait = match link.queue.peek() {
            Some(Reverse(datagram)) if datagram.due <= now => Duration::ZERO,
            Some(Reverse(datagram)) => (datagram.due - now).min(TICK),
            None => TICK,
        };
        if !wait.is_zero() {
            link = shared.changed.wait_timeout(link, wait).unwrap_or_else(PoisonError::into_inner).0;
            continue;
        }
        if let Some(Reverse(datagram)) = link.queue.pop() {
            link.queued_bytes -= datagram.bytes.len();
            link.counts.forwarded += 1;
            link.counts.bytes += datagram.bytes.len() as u64;
            drop(link);
            // A refused datagram is a lost one: nobody listens there at the moment.
            let _ = datagram.socket.send_to(&datagram.bytes, datagram.to);
            link = shared.link();
        }
    }
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(&self, direction: Direction, socket: &Arc<UdpSocket>, to: SocketAddr, bytes: &[u8]) {
        self.link().accept(Instant::now(), direction, socket, to, bytes);
        self.changed.notify_one();
    }
}

impl Link {
    fn accept(
        &mut self,
        now: Instant,
        direction: Direction,
        socket: &Arc<UdpSocket>,
        to: SocketAddr,
        bytes: &[u8],
    ) {
        let full = self.queued_bytes + bytes.len() > self.settings.queue_bytes;
        if self.cut || full || self.chance() < self.settings.loss_permille {
            self.counts.dropped += 1;
            return;
        }
        let free_at = &mut self.free_at[direction as usize];
        let start = (*free_at).max(now);
        let busy = self.settings.rate_bytes_s.map_or(0.0, |rate| bytes.len() as f64 / rate.max(1) as f64);
        *free_at = start + Duration::from_secs_f64(busy);
        let due = *free_at + self.settings.delay;
        self.queued_bytes += bytes.len();
        self.next += 1;
        let (number, socket) = (self.next, Arc::clone(socket));
        self.queue.push(Reverse(Datagram { due, number, socket, to, bytes: bytes.into() }));
    }

    /// A number below 1000 (xorshift64).
    fn chance(&mut self) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        ((self.random >> 33) % 1000) as u32
    }
}

#[cfg(test)]
mod tests;
