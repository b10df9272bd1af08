//! What was measured: samples, their median and spread, the objects of `--json`, tables for people. Pure.

use serde::Serialize;

/// The runs of one measurement.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// Adds a run.
    pub(crate) fn push(&mut self, value: f64) {
        let at = self.0.partition_point(|other| *other <= value);
        self.0.insert(at, value);
    }

    /// The middle one; the mean of the two middle ones when their number is even.
    pub(crate) fn median(&self) -> Option<f64> {
        let half = self.0.len() / 2;
        match self.0.len() {
            0 => None,
            len if len % 2 == 1 => Some(self.0[half]),
            _ => Some(f64::midpoint(self.0[half - 1], self.0[half])),
        }
    }

    /// The smallest one that so large a part of all does not exceed.
    pub(crate) fn quantile(&self, part: f64) -> Option<f64> {
        let at = (part * self.0.len() as f64).ceil() as usize;
        self.0.get(at.clamp(1, self.0.len().max(1)) - 1).copied()
    }

    /// The same in another unit.
    pub(crate) fn scaled(&self, factor: f64) -> Self {
        Self(self.0.iter().map(|value| value * factor).collect())
    }

    fn runs(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn min(&self) -> Option<f64> {
        self.0.first().copied()
    }

    pub(crate) fn max(&self) -> Option<f64> {
        self.0.last().copied()
    }

    /// `median (min-max)`; only the median when there is nothing else to say, `-` without a run.
    pub(crate) fn show(&self) -> String {
        match (self.median(), self.min(), self.max()) {
            (Some(median), Some(min), Some(max)) if min < max => {
                format!("{} ({}-{})", short(median), short(min), short(max))
            }
            (Some(median), ..) => short(median),
            _ => "-".to_owned(),
        }
    }
}

impl From<f64> for Samples {
    fn from(value: f64) -> Self {
        Self(vec![value])
    }
}

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    More,
    Less,
}

/// A metric's name, unit and direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
}

impl Metric {
    /// Ours against the peer's: over 1 when ours is better.
    pub(crate) fn ratio(&self, ours: f64, peer: f64) -> f64 {
        match self.better {
            Better::More => ours / peer,
            Better::Less => peer / ours,
        }
    }
}

/// One line of `--json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Figure {
    bench: &'static str,
    case: String,
    metric: &'static str,
    value: f64,
    unit: &'static str,
    peer: Option<String>,
    peer_value: Option<f64>,
    ratio: Option<f64>,
    runs: usize,
    min: f64,
    max: f64,
}

impl Figure {
    /// Ours, against a peer's where there is one. Nothing without a run of ours.
    pub(crate) fn new(
        bench: &'static str,
        case: &str,
        metric: Metric,
        ours: &Samples,
        peer: Option<(&str, &Samples)>,
    ) -> Option<Self> {
        let value = ours.median()?;
        let peer_value = peer.and_then(|(_, samples)| samples.median());
        Some(Self {
            bench,
            case: case.to_owned(),
            metric: metric.name,
            value: rounded(value),
            unit: metric.unit,
            peer: peer_value.and(peer).map(|(name, _)| name.to_owned()),
            peer_value: peer_value.map(rounded),
            ratio: peer_value.map(|peer| rounded(metric.ratio(value, peer))),
            runs: ours.runs(),
            min: rounded(ours.min()?),
            max: rounded(ours.max()?),
        })
    }

    /// The same of a case elsewhere.
    pub(crate) fn within(mut self, place: &str) -> Self {
        self.case = format!("{place}-{}", self.case);
        self
    }
}

/// Figures as lines of JSON.
pub(crate) fn json_lines(figures: &[Figure]) -> Result<String, serde_json::Error> {
    figures.iter().map(|figure| Ok(serde_json::to_string(figure)? + "\n")).collect()
}

/// A table: the first column to the left, the others to the right.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// Three significant digits, all of those before the point.
pub(crate) fn short(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

/// Four decimals are more than any of these measurements has.
fn rounded(value: f64) -> f64 {
    (value * 10_000.0).round() / 10_000.0
}

/// Bytes in so many seconds, in GB/s.
pub(crate) fn gb_per_s(bytes: u64, seconds: f64) -> f64 {
    bytes as f64 / 1e9 / seconds
}

/// Bytes in MiB.
pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests;
