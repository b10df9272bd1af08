//! Two platforms at the ends of a line with a rate, a round trip and a queue, and an image that is sent over it: what a wide
//! area network does to a transfer. The line is a [`DelayLine`], packets are those of Ethernet.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::{DelayLine, Namespace, Platform, Way};

/// The rates of the matrix, in Mb/s.
pub const RATES: [u64; 4] = [100, 200, 500, 1000];
/// Its round trips, in ms.
pub const ROUND_TRIPS: [u64; 4] = [20, 50, 100, 200];
/// Its queues, in tenths of what is under way on the full line.
pub const QUEUES: [u64; 3] = [1, 10, 40];
/// Its congestion controls, as `longhaul.toml` names them.
pub const CONGESTION: [&str; 2] = ["cubic", "bbr"];
/// How long a transfer may take before the line counts as one on which nothing arrives.
const PATIENCE: Duration = Duration::from_secs(280);
const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 97, 0, 1), Ipv4Addr::new(10, 97, 0, 2)];
const PORT: u16 = 7411;

/// One line of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// The rate in Mb/s.
    pub rate_mb_s: u64,
    /// There and back, in ms.
    pub round_trip_ms: u64,
    /// The queue before it, in tenths of rate times round trip.
    pub queue_tenths: u64,
    /// The congestion control of both ends.
    pub congestion: &'static str,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rate_mb_s, round_trip_ms, queue_tenths, congestion } = self;
        let (whole, tenth) = (queue_tenths / 10, queue_tenths % 10);
        write!(f, "{rate_mb_s:>4} Mb/s {round_trip_ms:>3} ms {whole}.{tenth} BDP {congestion:<5}")
    }
}

/// What became of one transfer.
#[derive(Debug)]
pub struct Crossing {
    /// How long it took.
    pub took: Duration,
    /// Frames that the queue of the line refused, both ways.
    pub overflowed: u64,
}

/// Every line of the matrix.
#[must_use]
pub fn all() -> Vec<Line> {
    let mut lines = Vec::new();
    for congestion in CONGESTION {
        for rate_mb_s in RATES {
            for round_trip_ms in ROUND_TRIPS {
                let line = |queue_tenths| Line { rate_mb_s, round_trip_ms, queue_tenths, congestion };
                lines.extend(QUEUES.map(line));
            }
        }
    }
    lines
}

impl Line {
    /// What is under way on the full line, in bytes.
    #[must_use]
    pub fn product_bytes(&self) -> u64 {
        self.rate_mb_s * 1_000_000 / 8 * self.round_trip_ms / 1000
    }

    /// The bytes that may wait before it.
    #[must_use]
    pub fn queue_bytes(&self) -> u64 {
        self.product_bytes() * self.queue_tenths / 10
    }

    fn way(&self) -> Way {
        Way {
            rate_bits_s: Some(self.rate_mb_s * 1_000_000),
            queue_bytes: self.queue_bytes() as usize,
            ..Way::delay(Duration::from_millis(self.round_trip_ms) / 2)
        }
    }

    /// Sends `image` from one new platform to another over this line.
    ///
    /// # Errors
    /// When it does not arrive, with what the command said and the end of both logs.
    pub fn cross(&self, image: &Path) -> Result<Crossing> {
        let namespaces = [Arc::new(Namespace::new()?), Arc::new(Namespace::new()?)];
        let line = DelayLine::join((&namespaces[0], "line0"), (&namespaces[1], "line0"), 1)?;
        let config = format!("congestion = \"{}\"", self.congestion);
        let mut platforms = Vec::new();
        for ((namespace, address), name) in namespaces.iter().zip(ADDRESSES).zip(["a", "b"]) {
            namespace.ip(&format!("address add {address}/24 dev line0"))?;
            let mut platform = Platform::within(namespace, SocketAddr::from((address, PORT)), name, &config)?;
            platform.start()?;
            platforms.push(platform);
        }
        let [a, b] = &platforms[..] else { unreachable!("two were made") };
        a.trust(b, b.address())?;
        b.trust(a, a.address())?;
        line.set_both(self.way());
        let started = Instant::now();
        let run = a.begin(&["image", "send", &image.display().to_string(), "b:crossed"])?;
        let outcome = run.wait(PATIENCE);
        let took = started.elapsed();
        let arrived = outcome.as_ref().is_ok_and(|outcome| outcome.code == Some(0));
        ensure!(arrived, "{self}: {outcome:?}\n--- a\n{}\n--- b\n{}", a.log(), b.log());
        let counts = [crate::Direction::Forth, crate::Direction::Back].map(|way| line.counts(way));
        Ok(Crossing { took, overflowed: counts.iter().map(|counts| counts.overflowed).sum() })
    }
}
