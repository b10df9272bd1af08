//! The demo's figures: read out of the product's report and the proof, printed, summed up. Pure.

use std::fmt::Write;

use anyhow::{Context, Result};
use harness::RecordReport;
use serde::Serialize;
use serde_json::Value;

/// What one run measured: the demo's JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Measured {
    /// The longest pause in the guest's packets, as their receiver saw it.
    pub(super) downtime_ms: f64,
    /// The whole migration.
    pub(super) total_s: f64,
    /// The disk's part of the switchover.
    pub(super) disk_switchover_ms: f64,
    /// The size of the guest's disk.
    pub(super) image_bytes: u64,
    /// What the disk took on the wire.
    pub(super) wire_bytes_disk: u64,
    /// What the memory took on the wire.
    pub(super) wire_bytes_memory: u64,
    /// Records that the guest had acknowledged and that must be on the destination's disk.
    pub(super) records_acked: u64,
    /// Those that are there and valid.
    pub(super) records_found: u64,
    /// Those that are missing or damaged.
    pub(super) records_bad: u64,
    /// Sequence numbers of the stream that never arrived.
    pub(super) packets_lost: u64,
    /// Rounds of dirty blocks.
    pub(super) rounds: u64,
}

impl Measured {
    /// Puts the product's report, the proof and the stream together.
    pub(super) fn new(
        report: &Value,
        records: &RecordReport,
        pause_ms: f64,
        packets_lost: u64,
    ) -> Result<Self> {
        Ok(Self {
            downtime_ms: round3(pause_ms),
            total_s: round3(number(report, "total_ms")? / 1000.0),
            disk_switchover_ms: round3(number(report, "disk_switchover_ms")?),
            image_bytes: integer(report, "image_bytes")?,
            wire_bytes_disk: integer(report, "wire_bytes_disk")?,
            wire_bytes_memory: integer(report, "wire_bytes_memory")?,
            records_acked: records.expected(),
            records_found: records.found,
            records_bad: records.bad,
            packets_lost,
            rounds: integer(report, "rounds")?,
        })
    }
}

/// A number in the product's report.
pub(super) fn number(report: &Value, field: &str) -> Result<f64> {
    report
        .get(field)
        .and_then(Value::as_f64)
        .with_context(|| format!("the report has no number `{field}`: {report}"))
}

/// A whole number in the product's report.
pub(super) fn integer(report: &Value, field: &str) -> Result<u64> {
    report
        .get(field)
        .and_then(Value::as_u64)
        .with_context(|| format!("the report has no whole number `{field}`: {report}"))
}

fn round3(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// Minimum, median and maximum of every figure.
pub(super) fn summary(all: &[Measured]) -> String {
    type Figure = (&'static str, fn(&Measured) -> f64);
    const FIGURES: [Figure; 11] = [
        ("downtime_ms", |m| m.downtime_ms),
        ("total_s", |m| m.total_s),
        ("disk_switchover_ms", |m| m.disk_switchover_ms),
        ("image_bytes", |m| m.image_bytes as f64),
        ("wire_bytes_disk", |m| m.wire_bytes_disk as f64),
        ("wire_bytes_memory", |m| m.wire_bytes_memory as f64),
        ("records_acked", |m| m.records_acked as f64),
        ("records_found", |m| m.records_found as f64),
        ("records_bad", |m| m.records_bad as f64),
        ("packets_lost", |m| m.packets_lost as f64),
        ("rounds", |m| m.rounds as f64),
    ];
    let mut text = format!("{:<20} {:>14} {:>14} {:>14}", "", "min", "median", "max");
    for (name, of) in FIGURES {
        let mut values: Vec<f64> = all.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        let [Some(min), Some(max)] = [values.first(), values.last()] else { continue };
        let shown = [*min, median(&values), *max].map(show);
        let _ = write!(text, "\n{name:<20} {:>14} {:>14} {:>14}", shown[0], shown[1], shown[2]);
    }
    text
}

/// The middle of sorted values; the mean of the two middle ones when their number is even.
fn median(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[half] } else { f64::midpoint(sorted[half - 1], sorted[half]) }
}

fn show(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

/// Bytes for people.
pub(super) fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
