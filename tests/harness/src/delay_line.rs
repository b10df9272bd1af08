//! A line between two network namespaces that takes time, loses, doubles, holds back and queues frames: what netem does,
//! in user space, for kernels without it. It carries Ethernet frames and looks into none; it ends when dropped, and its
//! two interfaces with it.
//!
//! One thread reads both ends and waits in `ppoll` for the next frame or the next deadline, whichever is first. Deadlines
//! are absolute, so that what is late once is not late for ever.

mod queue;
mod tap;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

pub use queue::{Counts, Way};

use crate::namespace::Namespace;
use crate::shell;
use queue::Queue;

/// Frames read from one end before the deadlines are looked at again.
const BATCH: usize = 64;
/// The longest frame: an MTU of 65,521 and the Ethernet header.
const MAX_FRAME_BYTES: usize = 65_536;

/// The two directions, as an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the first namespace to the second.
    Forth = 0,
    /// From the second to the first.
    Back = 1,
}

/// A line between two interfaces. Ends when dropped.
#[derive(Debug)]
pub struct DelayLine {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    wake: OwnedFd,
    queues: Mutex<[Queue; 2]>,
}

impl DelayLine {
    /// Makes an interface in each namespace, under the name beside it, both up and joined by a perfect line. `seed`
    /// decides which frames are lost, doubled and held back.
    ///
    /// # Errors
    /// When the kernel refuses, or an interface of that name is there already.
    pub fn join(first: (&Namespace, &str), second: (&Namespace, &str), seed: u64) -> Result<Self> {
        let mut taps = Vec::new();
        for (namespace, name) in [first, second] {
            taps.push(namespace.enter(|| tap::make(name))??);
            namespace.ip(&format!("link set {name} up"))?;
        }
        let now = Instant::now();
        // Either direction has dice of its own, so that traffic one way does not change what is lost the other way.
        let queues = [seed, !seed].map(|seed| Queue::new(now, Way::default(), seed));
        let wake = eventfd(0, EventfdFlags::CLOEXEC).context("making an eventfd")?;
        let shared = Arc::new(Shared { stop: AtomicBool::new(false), wake, queues: Mutex::new(queues) });
        let thread = thread::Builder::new().name("delay-line".into()).spawn({
            let shared = Arc::clone(&shared);
            move || carry(&taps, &shared)
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Changes one direction. What is under way keeps its time, so that behind a shorter delay frames overtake, as on a
    /// shorter path.
    pub fn set(&self, direction: Direction, way: Way) {
        self.shared.queues()[direction as usize].way = way;
    }

    /// Changes both directions alike.
    pub fn set_both(&self, way: Way) {
        self.shared.queues().iter_mut().for_each(|queue| queue.way = way);
    }

    /// What has passed so far.
    #[must_use]
    pub fn counts(&self, direction: Direction) -> Counts {
        self.shared.queues()[direction as usize].counts
    }
}

impl Drop for DelayLine {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Cannot fail: the counter is far from its end.
        let _ = rustix::io::write(&self.shared.wake, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn queues(&self) -> MutexGuard<'_, [Queue; 2]> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread: `taps` are closed when it ends.
fn carry(taps: &[File], shared: &Shared) {
    be_punctual();
    let mut buffer = vec![0; MAX_FRAME_BYTES];
    while !shared.stop.load(Ordering::Relaxed) {
        let next = {
            let mut queues = shared.queues();
            for (queue, (from, to)) in queues.iter_mut().zip([(&taps[0], &taps[1]), (&taps[1], &taps[0])]) {
                read(queue, from, &mut buffer);
                deliver(queue, to);
            }
            queues.iter().filter_map(Queue::next).min()
        };
        let wait = next.map(|due| due.saturating_duration_since(Instant::now()));
        let wait = wait.and_then(|wait| Timespec::try_from(wait).ok());
        let mut files = [taps[0].as_fd(), taps[1].as_fd(), shared.wake.as_fd()]
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        // Interrupted or not, what there is to do is looked up again.
        let _ = poll(&mut files, wait.as_ref());
        // Somebody removed an interface: it does not come back.
        if files.iter().any(|file| file.revents().contains(PollFlags::ERR)) {
            return;
        }
    }
}

/// Runs the calling thread ahead of whatever else keeps the processors busy: otherwise, on a busy machine, a frame in
/// twenty comes more than 4 ms late. Without the right to, the thread is as punctual as it can be.
fn be_punctual() {
    let thread = rustix::thread::gettid().to_string();
    let _ = shell::output(Command::new("chrt").args(["--fifo", "--pid", "10", &thread]));
}

fn read(queue: &mut Queue, mut from: &File, buffer: &mut [u8]) {
    for _ in 0..BATCH {
        match from.read(buffer) {
            Ok(bytes) => queue.accept(Instant::now(), &buffer[..bytes]),
            // Nothing more to read.
            Err(_) => break,
        }
    }
}

fn deliver(queue: &mut Queue, mut to: &File) {
    while let Some(frame) = queue.pop(Instant::now()) {
        // Refused when the interface is down or its receive queue is full.
        match to.write_all(&frame) {
            Ok(()) => queue.counts.delivered += 1,
            Err(_) => queue.counts.overflowed += 1,
        }
    }
}

#[cfg(test)]
mod tests;
