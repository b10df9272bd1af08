//! What a line does to frames, decided from the time alone: no clock, no file, no thread.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

/// More than this under way is lost, in bytes: a second at 2 Gb/s.
const MAX_UNDER_WAY: usize = 256 << 20;

/// What one direction of a line does to frames. Chances are between 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Way {
    /// How long a frame takes, once it has left.
    pub delay: Duration,
    /// How fast frames leave; at once when absent.
    pub rate_bits_s: Option<u64>,
    /// How many bytes may wait to leave; what comes on top is lost. Means nothing without a rate.
    pub queue_bytes: usize,
    /// The chance that a frame is lost. 1 cuts the line.
    pub loss: f64,
    /// The chance that a frame arrives twice.
    pub duplicate: f64,
    /// The chance that a frame is held back for `held` more, so that others overtake it.
    pub reorder: f64,
    /// How long that is.
    pub held: Duration,
}

impl Default for Way {
    /// A perfect line, with a queue of 1 MiB once it has a rate, and 10 ms for what is held back.
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            rate_bits_s: None,
            queue_bytes: 1 << 20,
            loss: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            held: Duration::from_millis(10),
        }
    }
}

impl Way {
    /// A perfect line on which a frame takes `delay`.
    #[must_use]
    pub fn delay(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }
}

/// What has passed in one direction so far, in frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Given to the other end, second copies included.
    pub delivered: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Lost because too much waited already, or the other end took no more.
    pub overflowed: u64,
    /// Sent twice.
    pub duplicated: u64,
    /// Held back.
    pub reordered: u64,
    /// The latest that a frame was given to the other end after its time.
    pub latest: Duration,
}

/// When it is due, its number, its bytes.
type Frame = (Instant, u64, Box<[u8]>);

/// The frames under way in one direction.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) way: Way,
    pub(super) counts: Counts,
    frames: BinaryHeap<Reverse<Frame>>,
    bytes: usize,
    number: u64,
    /// When the frame accepted last has left.
    free_at: Instant,
    random: u64,
}

impl Queue {
    pub(super) fn new(now: Instant, way: Way, seed: u64) -> Self {
        // The generator below never leaves zero.
        let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).max(1);
        let (frames, counts) = (BinaryHeap::new(), Counts::default());
        Self { way, counts, frames, bytes: 0, number: 0, free_at: now, random }
    }

    /// Takes a frame that entered the line at `now`.
    pub(super) fn accept(&mut self, now: Instant, frame: &[u8]) {
        // Three draws for every frame, so that one chance changed leaves the others' dice as they were.
        let [lost, doubled, held] =
            [self.way.loss, self.way.duplicate, self.way.reorder].map(|chance| self.draw() < chance);
        if lost {
            self.counts.lost += 1;
            return;
        }
        let start = self.free_at.max(now);
        let (mut free_at, mut waiting) = (now, 0.0);
        if let Some(rate) = self.way.rate_bits_s {
            let bytes_s = rate.max(8) as f64 / 8.0;
            waiting = (start - now).as_secs_f64() * bytes_s;
            free_at = start + Duration::from_secs_f64(frame.len() as f64 / bytes_s);
        }
        let waits = waiting as usize + frame.len();
        if (waiting > 0.0 && waits > self.way.queue_bytes) || self.bytes + frame.len() > MAX_UNDER_WAY {
            self.counts.overflowed += 1;
            return;
        }
        self.free_at = free_at;
        let mut due = free_at + self.way.delay;
        if held {
            self.counts.reordered += 1;
            due += self.way.held;
        }
        if doubled {
            self.counts.duplicated += 1;
            self.push(due, frame.into());
        }
        self.push(due, frame.into());
    }

    /// When the next frame is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.frames.peek().map(|Reverse((due, ..))| *due)
    }

    /// The next frame, if it is due.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Box<[u8]>> {
        let late = now.checked_duration_since(self.next()?)?;
        self.counts.latest = self.counts.latest.max(late);
        let Reverse((.., frame)) = self.frames.pop()?;
        self.bytes -= frame.len();
        Some(frame)
    }

    fn push(&mut self, due: Instant, frame: Box<[u8]>) {
        self.number += 1;
        self.bytes += frame.len();
        self.frames.push(Reverse((due, self.number, frame)));
    }

    /// A number from 0 to below 1 (xorshift64).
    fn draw(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1_u64 << 53) as f64
    }
}
