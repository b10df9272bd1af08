//! How values are spread, in bounded memory: exact extremes and mean, quantiles from bins that widen when there are too
//! many of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// More bins than this are merged in pairs.
const MAX_BINS: usize = 4096;
/// The first width of a bin, in nanoseconds.
const BIN_NS: i64 = 1000;

/// What a distribution comes down to, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The smallest value.
    pub min_ns: i64,
    /// The mean.
    pub mean_ns: i64,
    /// 95 of 100 values are not above it, to a bin's width.
    pub p95_ns: i64,
    /// The largest value.
    pub max_ns: i64,
}

impl Summary {
    /// The same seen from `origin_ns`.
    #[must_use]
    pub fn since(&self, origin_ns: i64) -> Self {
        let since = |ns: i64| ns.saturating_sub(origin_ns);
        Self {
            min_ns: since(self.min_ns),
            mean_ns: since(self.mean_ns),
            p95_ns: since(self.p95_ns),
            max_ns: since(self.max_ns),
        }
    }
}

/// Values in nanoseconds.
#[derive(Debug, Clone)]
pub(super) struct Distribution {
    bins: BTreeMap<i64, u64>,
    width: i64,
    count: u64,
    sum: i128,
    min: i64,
    max: i64,
}

impl Distribution {
    pub(super) fn new() -> Self {
        Self { bins: BTreeMap::new(), width: BIN_NS, count: 0, sum: 0, min: i64::MAX, max: i64::MIN }
    }

    pub(super) fn add(&mut self, value: i64) {
        self.count += 1;
        self.sum += i128::from(value);
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        *self.bins.entry(value.div_euclid(self.width)).or_default() += 1;
        // Ends before the width overflows: by then all values share a few bins.
        while self.bins.len() > MAX_BINS {
            self.width *= 2;
            let mut wider = BTreeMap::new();
            for (bin, count) in std::mem::take(&mut self.bins) {
                *wider.entry(bin.div_euclid(2)).or_default() += count;
            }
            self.bins = wider;
        }
    }

    pub(super) fn summary(&self) -> Option<Summary> {
        let mean_ns = self.sum.checked_div(self.count.into())? as i64;
        Some(Summary { min_ns: self.min, mean_ns, p95_ns: self.quantile(95), max_ns: self.max })
    }

    /// The middle of the bin in which `percent` of all values are reached.
    fn quantile(&self, percent: u128) -> i64 {
        let wanted = (u128::from(self.count) * percent).div_ceil(100);
        let mut below = 0;
        for (bin, count) in &self.bins {
            below += u128::from(*count);
            if below >= wanted {
                return bin
                    .saturating_mul(self.width)
                    .saturating_add(self.width / 2)
                    .clamp(self.min, self.max);
            }
        }
        self.max
    }
}
