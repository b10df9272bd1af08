//! The streams that one socket receives: their statistics, and what the senders' clocks allow to say of latency. Takes
//! the time as an argument.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use mobility_proto::probe::{Packet, StreamSnapshot, StreamStats, Summary, Timeline, svg, word};
use serde::{Deserialize, Serialize};

/// Streams beyond this many are not followed: anybody can invent stream ids.
pub const MAX_STREAMS: usize = 256;

/// What a latency is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LatencyKind {
    /// There and back.
    RoundTrip,
    /// One way: both ends are on one machine and have one clock.
    OneWay,
    /// One way by the two machines' time of day, as exact as these agree.
    OneWayTimeOfDay,
    /// One way, less the smallest: the two clocks have nothing in common.
    AboveSmallest,
}

impl LatencyKind {
    /// In words.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RoundTrip => "round-trip time",
            Self::OneWay => "one-way latency",
            Self::OneWayTimeOfDay => "one-way latency by the time of day",
            Self::AboveSmallest => "latency above the smallest",
        }
    }
}

/// How long packets took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// What it is of.
    pub of: LatencyKind,
    /// How it is spread.
    #[serde(flatten)]
    pub summary: Summary,
}

/// One stream so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StreamReport {
    /// Where its latest packet came from.
    pub from: SocketAddr,
    /// The time of day of its first packet, in milliseconds since 1970.
    pub since_unix_ms: u64,
    /// What arrived, and how regularly.
    #[serde(flatten)]
    pub arrivals: StreamSnapshot,
    /// How long packets took.
    pub latency: Latency,
}

/// What was received, by stream id.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Each stream so far.
    pub streams: BTreeMap<u64, StreamReport>,
    /// Datagrams that were no probe packets, or of more than [`MAX_STREAMS`] streams.
    pub ignored: u64,
}

/// When a packet arrived.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival {
    pub(super) monotonic_ns: u64,
    pub(super) unix_ns: u64,
}

/// All streams of one socket.
#[derive(Debug)]
pub(super) struct Streams {
    /// The id of this machine's monotonic clock, 0 when it has none.
    machine: u64,
    draw: bool,
    streams: BTreeMap<u64, Stream>,
    ignored: u64,
}

#[derive(Debug)]
struct Stream {
    from: SocketAddr,
    since_unix_ms: u64,
    of: LatencyKind,
    stats: StreamStats,
    /// Only of those that are drawn.
    timeline: Option<Timeline>,
}

impl Streams {
    pub(super) fn new(machine: u64, draw: bool) -> Self {
        Self { machine, draw, streams: BTreeMap::new(), ignored: 0 }
    }

    /// Takes note of a datagram; `packet` is none when it is not one of ours.
    pub(super) fn arrived(&mut self, arrival: Arrival, from: SocketAddr, packet: Option<Packet>) {
        let count = self.streams.len();
        let followed = |packet: &Packet| count < MAX_STREAMS || self.streams.contains_key(&packet.stream);
        let Some(mut packet) = packet.filter(followed) else {
            self.ignored += 1;
            return;
        };
        let stream = self.streams.entry(packet.stream).or_insert_with(|| Stream {
            from,
            since_unix_ms: arrival.unix_ns / 1_000_000,
            of: match packet.words[word::CLOCK] {
                word::WALL_CLOCK => LatencyKind::OneWayTimeOfDay,
                0 => LatencyKind::AboveSmallest,
                machine if machine == self.machine => LatencyKind::OneWay,
                _ => LatencyKind::AboveSmallest,
            },
            stats: StreamStats::new(),
            timeline: (self.draw && count < svg::MAX_PANELS).then(Timeline::default),
        });
        if stream.of == LatencyKind::OneWayTimeOfDay {
            // The same moment by our monotonic clock, in which arrivals are noted.
            packet.sent_ns = packet.sent_ns.wrapping_sub(arrival.unix_ns.wrapping_sub(arrival.monotonic_ns));
        }
        stream.from = from;
        stream.stats.arrived(arrival.monotonic_ns, &packet);
        if let Some(timeline) = &mut stream.timeline {
            timeline.arrived(arrival.monotonic_ns, &packet);
        }
    }

    pub(super) fn report(&self) -> Report {
        let streams = self.streams.iter().map(|(id, stream)| (*id, stream.report())).collect();
        Report { streams, ignored: self.ignored }
    }

    /// How many different packets of a stream arrived.
    pub(super) fn unique(&self, stream: u64) -> u64 {
        self.streams.get(&stream).map_or(0, |stream| {
            let s = stream.stats.snapshot();
            s.received - s.duplicated - s.stale
        })
    }

    /// Says of all streams that they are answers to what this machine sent.
    pub(super) fn are_answers(&mut self) {
        self.streams.values_mut().for_each(|stream| stream.of = LatencyKind::RoundTrip);
    }

    pub(super) fn draw(&self) -> String {
        let drawn = || self.streams.iter().filter_map(|(id, s)| Some((id, s, s.timeline.as_ref()?)));
        let titles: Vec<String> = drawn()
            .map(|(id, stream, _)| {
                let s = stream.stats.snapshot();
                let gap = s.longest_gap.ms();
                let (from, received, lost) = (stream.from, s.received, s.lost);
                format!("Stream {id} from {from}: {received} received, {lost} lost, longest gap {gap:.1} ms")
            })
            .collect();
        let panels: Vec<svg::Panel<'_>> = drawn()
            .zip(&titles)
            .map(|((_, stream, timeline), title)| svg::Panel {
                title,
                axis: stream.of.as_str(),
                origin_ns: stream.origin_ns(),
                timeline,
            })
            .collect();
        svg::draw(&panels)
    }
}

impl Stream {
    fn report(&self) -> StreamReport {
        let summary = self.stats.transit().unwrap_or_default().since(self.origin_ns());
        let latency = Latency { of: self.of, summary };
        let (from, since_unix_ms) = (self.from, self.since_unix_ms);
        StreamReport { from, since_unix_ms, arrivals: self.stats.snapshot(), latency }
    }

    /// The difference of the two clocks, as far as it is known.
    fn origin_ns(&self) -> i64 {
        match self.of {
            LatencyKind::AboveSmallest => self.stats.transit().unwrap_or_default().min_ns,
            LatencyKind::RoundTrip | LatencyKind::OneWay | LatencyKind::OneWayTimeOfDay => 0,
        }
    }
}
