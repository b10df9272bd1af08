//! What a stream looked like over time, for a picture: packets, the longest gaps, what was lost. In bounded memory: a
//! long stream is kept more coarsely, a gap or a loss is not.

use super::packet::Packet;
use super::stats::Gap;

/// Packets that are kept one by one; of a longer stream two, four, eight and so on share a sample.
pub const MAX_SAMPLES: usize = 100_000;
/// As many of the longest gaps are kept.
pub const MAX_GAPS: usize = 64;
/// As many separate losses are kept; later ones are not.
pub const MAX_LOSSES: usize = 4096;

/// One packet, or a few that followed each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// When the first of them arrived.
    pub from_ns: u64,
    /// When the last of them arrived.
    pub to_ns: u64,
    /// The shortest time that one took, by the two ends' clocks.
    pub least_ns: i64,
    /// The longest.
    pub most_ns: i64,
}

/// Consecutive numbers that never arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// When the packet before them arrived.
    pub from_ns: u64,
    /// When the one after them arrived.
    pub to_ns: u64,
    /// The first number missing.
    pub first: u64,
    /// The last number missing.
    pub last: u64,
}

/// A stream over time.
#[derive(Debug, Clone, Default)]
pub struct Timeline {
    samples: Vec<Sample>,
    /// How many packets share a sample: two to the power of this.
    doublings: u32,
    /// How many packets there were.
    count: u64,
    gaps: Vec<Gap>,
    losses: Vec<Loss>,
    /// The arrival before: when, and its number.
    before: Option<(u64, u64)>,
    highest: u64,
}

impl Timeline {
    /// Takes note of one arrival; `arrival_ns` must not run backwards.
    pub fn arrived(&mut self, arrival_ns: u64, packet: &Packet) {
        self.sample(arrival_ns, packet.transit_ns(arrival_ns));
        if let Some((at_ns, before)) = self.before {
            self.gap(Gap { ns: arrival_ns.saturating_sub(at_ns), at_ns, before, after: packet.seq });
            self.sequence(at_ns, arrival_ns, packet.seq);
        }
        self.highest = self.highest.max(packet.seq);
        self.before = Some((arrival_ns, packet.seq));
    }

    /// The packets, by time of arrival.
    #[must_use]
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// The longest pauses, in no order.
    #[must_use]
    pub fn gaps(&self) -> &[Gap] {
        &self.gaps
    }

    /// What did not arrive, by number.
    #[must_use]
    pub fn losses(&self) -> &[Loss] {
        &self.losses
    }

    /// How many packets share a sample.
    #[must_use]
    pub fn packets_per_sample(&self) -> u64 {
        1 << self.doublings
    }

    fn sample(&mut self, at_ns: u64, transit_ns: i64) {
        let new = Sample { from_ns: at_ns, to_ns: at_ns, least_ns: transit_ns, most_ns: transit_ns };
        let starts = self.count.is_multiple_of(self.packets_per_sample());
        self.count += 1;
        match self.samples.last_mut() {
            Some(last) if !starts => *last = last.with(&new),
            _ => self.samples.push(new),
        }
        if self.samples.len() > MAX_SAMPLES {
            self.samples = self.samples.chunks(2).map(|pair| pair[0].with(&pair[pair.len() - 1])).collect();
            self.doublings += 1;
        }
    }

    fn gap(&mut self, gap: Gap) {
        if self.gaps.len() < MAX_GAPS {
            self.gaps.push(gap);
        } else if let Some(shortest) = self.gaps.iter_mut().min_by_key(|gap| gap.ns)
            && shortest.ns < gap.ns
        {
            *shortest = gap;
        }
    }

    fn sequence(&mut self, from_ns: u64, to_ns: u64, seq: u64) {
        if seq > self.highest {
            if seq - self.highest > 1 && self.losses.len() < MAX_LOSSES {
                self.losses.push(Loss { from_ns, to_ns, first: self.highest + 1, last: seq - 1 });
            }
            return;
        }
        // Late, not lost: what is left of the loss are the numbers on either side.
        let index = self.losses.partition_point(|loss| loss.last < seq);
        let Some(loss) = self.losses.get(index).copied().filter(|loss| loss.first <= seq) else { return };
        let lower = (loss.first < seq).then(|| Loss { last: seq - 1, ..loss });
        let upper = (seq < loss.last).then(|| Loss { first: seq + 1, ..loss });
        self.losses.splice(index..=index, lower.into_iter().chain(upper));
        self.losses.truncate(MAX_LOSSES);
    }
}

impl Sample {
    fn with(&self, later: &Self) -> Self {
        Self {
            from_ns: self.from_ns,
            to_ns: later.to_ns,
            least_ns: self.least_ns.min(later.least_ns),
            most_ns: self.most_ns.max(later.most_ns),
        }
    }
}
