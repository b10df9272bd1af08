//! Running statistics of one stream of probe packets, in bounded memory. Fed with arrivals, it never asks for the time.

use serde::{Deserialize, Serialize};

use super::distribution::{Distribution, Summary};
use super::packet::{Packet, WORDS};

/// How far back, in sequence numbers, a packet is still recognised as late or duplicated: 22 minutes at 50 packets a
/// second, 8 KiB of memory.
pub const WINDOW: u64 = 1 << 16;

/// A pause between two arrivals that followed each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// How long nothing arrived, in nanoseconds.
    pub ns: u64,
    /// When it began, in nanoseconds of the receiver's clock.
    pub at_ns: u64,
    /// The sequence number that arrived before the pause.
    pub before: u64,
    /// The sequence number that ended it.
    pub after: u64,
}

impl Gap {
    /// The pause in milliseconds.
    #[must_use]
    pub fn ms(&self) -> f64 {
        self.ns as f64 / 1e6
    }
}

/// What a stream looks like so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct StreamSnapshot {
    /// Packets that arrived, duplicates included.
    pub received: u64,
    /// Sequence numbers between the lowest and the highest seen that never arrived.
    pub lost: u64,
    /// Packets whose number had arrived before.
    pub duplicated: u64,
    /// Packets that arrived after one with a higher number, for the first time.
    pub reordered: u64,
    /// Packets more than [`WINDOW`] behind the highest: too old to tell which of the above they are.
    pub stale: u64,
    /// The lowest and the highest sequence number seen.
    pub first_seq: u64,
    /// The highest sequence number seen.
    pub last_seq: u64,
    /// The longest pause between arrivals.
    pub longest_gap: Gap,
    /// Interarrival jitter per RFC 3550 section 6.4.1, in nanoseconds.
    pub jitter_ns: u64,
    /// The highest that the jitter has been.
    pub jitter_max_ns: u64,
    /// The maximum of each application word.
    pub word_max: [u64; WORDS],
    /// When the first packet arrived, in nanoseconds of the receiver's clock.
    pub first_arrival_ns: u64,
    /// When the latest packet arrived.
    pub last_arrival_ns: u64,
}

/// The state behind a [`StreamSnapshot`].
#[derive(Debug, Clone)]
pub struct StreamStats {
    snapshot: StreamSnapshot,
    /// Numbers seen in `last_seq - WINDOW + 1 ..= last_seq`, bit `seq % WINDOW`.
    seen: Box<[u64]>,
    unique: u64,
    /// RFC 3550 A.8 keeps the estimate scaled by 16, so that integer division loses nothing.
    jitter_x16: u64,
    last_sent_ns: u64,
    last_arrived_seq: u64,
    transit: Distribution,
}

impl Default for StreamStats {
    fn default() -> Self {
        Self::new()
    }
}

impl StreamStats {
    /// A stream of which nothing has arrived.
    #[must_use]
    pub fn new() -> Self {
        Self {
            snapshot: StreamSnapshot::default(),
            seen: vec![0; (WINDOW / 64) as usize].into_boxed_slice(),
            unique: 0,
            jitter_x16: 0,
            last_sent_ns: 0,
            last_arrived_seq: 0,
            transit: Distribution::new(),
        }
    }

    /// Takes note of one arrival. `arrival_ns` is the receiver's monotonic clock and must not run backwards.
    pub fn arrived(&mut self, arrival_ns: u64, packet: &Packet) {
        if self.snapshot.received == 0 {
            self.start(arrival_ns, packet);
        } else {
            self.timing(arrival_ns, packet);
            self.sequence(packet.seq);
        }
        self.transit.add(packet.transit_ns(arrival_ns));
        let s = &mut self.snapshot;
        s.received += 1;
        s.last_arrival_ns = arrival_ns;
        for (max, word) in s.word_max.iter_mut().zip(packet.words) {
            *max = (*max).max(word);
        }
        self.last_sent_ns = packet.sent_ns;
        self.last_arrived_seq = packet.seq;
    }

    /// The stream so far.
    #[must_use]
    pub fn snapshot(&self) -> StreamSnapshot {
        let mut s = self.snapshot;
        if s.received > 0 {
            let span = (s.last_seq - s.first_seq).saturating_add(1);
            s.lost = span.saturating_sub(self.unique);
            s.jitter_ns = self.jitter_x16 / 16;
        }
        s
    }

    /// How long the packets took by the two ends' clocks, in nanoseconds: latency where both have the same clock, else
    /// only differences mean anything. None before the first packet.
    #[must_use]
    pub fn transit(&self) -> Option<Summary> {
        self.transit.summary()
    }

    fn start(&mut self, arrival_ns: u64, packet: &Packet) {
        self.snapshot.first_seq = packet.seq;
        self.snapshot.last_seq = packet.seq;
        self.snapshot.first_arrival_ns = arrival_ns;
        self.mark(packet.seq);
    }

    fn timing(&mut self, arrival_ns: u64, packet: &Packet) {
        let waited = arrival_ns.saturating_sub(self.snapshot.last_arrival_ns);
        if waited > self.snapshot.longest_gap.ns {
            self.snapshot.longest_gap = Gap {
                ns: waited,
                at_ns: self.snapshot.last_arrival_ns,
                before: self.last_arrived_seq,
                after: packet.seq,
            };
        }
        // D(i-1,i) of RFC 3550: the difference of the two packets' transit times, whatever the clocks' offset.
        let sent = i128::from(packet.sent_ns) - i128::from(self.last_sent_ns);
        let transit = (i128::from(waited) - sent).unsigned_abs().min(u128::from(u64::MAX / 32)) as u64;
        self.jitter_x16 = self.jitter_x16.saturating_add(transit) - (self.jitter_x16 + 8) / 16;
        self.snapshot.jitter_max_ns = self.snapshot.jitter_max_ns.max(self.jitter_x16 / 16);
    }

    fn sequence(&mut self, seq: u64) {
        let last = self.snapshot.last_seq;
        if seq > last {
            self.advance(last, seq);
            self.snapshot.last_seq = seq;
            self.mark(seq);
        } else if last - seq >= WINDOW {
            self.snapshot.stale += 1;
        } else if self.is_seen(seq) {
            self.snapshot.duplicated += 1;
        } else {
            self.snapshot.reordered += 1;
            self.snapshot.first_seq = self.snapshot.first_seq.min(seq);
            self.mark(seq);
        }
    }

    /// Forgets what the window leaves behind when its upper end moves from `from` to `to`.
    fn advance(&mut self, from: u64, to: u64) {
        if to - from >= WINDOW {
            self.seen.fill(0);
        } else {
            for seq in from + 1..=to {
                let bit = seq % WINDOW;
                self.seen[(bit / 64) as usize] &= !(1 << (bit % 64));
            }
        }
    }

    fn mark(&mut self, seq: u64) {
        let bit = seq % WINDOW;
        self.seen[(bit / 64) as usize] |= 1 << (bit % 64);
        self.unique += 1;
    }

    fn is_seen(&self, seq: u64) -> bool {
        let bit = seq % WINDOW;
        self.seen[(bit / 64) as usize] & (1 << (bit % 64)) != 0
    }
}
