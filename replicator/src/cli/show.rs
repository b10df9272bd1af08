//! How answers are shown: JSON when asked for, else tables and sentences; progress on a terminal as one line that moves,
//! elsewhere as plain lines.

use std::io::{IsTerminal, Write};

use serde_json::Value;

use crate::service::jobs::{JobKind, JobState, Report};

/// The paper's Table 1, in seconds: what each part took for a 4 GB image without shared storage.
const PAPER: [(&str, f64); 6] = [
    ("save", 6.0),
    ("image copy", 126.0),
    ("memory copy", 13.0),
    ("restore", 1.0),
    ("IP mobility", 8.0),
    ("VM unreachable", 181.0),
];

/// Shows an answer.
pub(super) fn value(value: &Value, json: bool) {
    if json {
        crate::say!("{value}");
        return;
    }
    match value {
        Value::Array(rows) if rows.is_empty() => crate::say!("none"),
        Value::Array(rows) => table(rows),
        Value::Object(fields) => {
            for (name, field) in fields {
                crate::say!("{:<22} {}", name.replace('_', " "), cell(field));
            }
        }
        other => crate::say!("{}", cell(other)),
    }
}

fn table(rows: &[Value]) {
    // A job's report has more fields than a line has room.
    let names: Vec<&String> = match rows.first() {
        Some(Value::Object(first)) if first.contains_key("phases") => {
            let wanted = ["job", "kind", "subject", "peer", "state", "error"];
            first.keys().filter(|name| wanted.contains(&name.as_str())).collect()
        }
        // Most have nothing to say there.
        Some(Value::Object(first)) => {
            let silent = |name: &str| name == "error" && rows.iter().all(|row| row[name].is_null());
            first.keys().filter(|name| !silent(name)).collect()
        }
        _ => return rows.iter().for_each(|row| crate::say!("{}", cell(row))),
    };
    let cells: Vec<Vec<String>> = std::iter::once(names.iter().map(|name| name.to_uppercase()).collect())
        .chain(rows.iter().map(|row| names.iter().map(|name| cell(&row[name.as_str()])).collect()))
        .collect();
    let widths: Vec<usize> = (0..names.len())
        .map(|column| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    for row in cells {
        let line: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        crate::say!("{}", line.join("  ").trim_end());
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, field)| format!("{name} {}", cell(field)))
            .collect::<Vec<_>>()
            .join(", "),
        other => other.to_string(),
    }
}

/// A job's progress on standard error.
pub(super) struct Progress {
    terminal: bool,
    plain: bool,
    phase: usize,
}

impl Progress {
    /// For this process's standard error; `plain`: whether to print lines where that is no terminal.
    pub(super) fn new(plain: bool) -> Self {
        Progress { terminal: std::io::stderr().is_terminal(), plain, phase: 0 }
    }

    /// The job stands so.
    pub(super) fn report(&mut self, report: &Report) {
        let sent = mib(report.wire_bytes_disk + report.wire_bytes_memory);
        if self.terminal {
            let phase = report.phases.last().map_or("", |phase| &phase.name);
            let percent = (100 * report.scanned_bytes).checked_div(report.image_bytes).unwrap_or(0).min(100);
            crate::service::output::error_text(format_args!(
                "\r\x1b[K{} {phase}: {percent} % looked at, {sent:.1} MiB sent",
                report.subject
            ));
            let _ = std::io::stderr().flush();
            return;
        }
        let lines = if self.plain { &report.phases[..] } else { &[] };
        for phase in lines.iter().skip(self.phase) {
            crate::complain!("{} {}: {sent:.1} MiB sent so far", report.subject, phase.name);
        }
        self.phase = report.phases.len();
    }

    /// Nothing more comes.
    pub(super) fn end(&self) {
        if self.terminal {
            crate::service::output::error_text(format_args!("\r\x1b[K"));
        }
    }
}

/// What came of a job, in a line or two.
pub(super) fn outcome(report: &Report) {
    match (&report.error, &report.summary) {
        (Some(error), _) => crate::complain!("longhaul: failed: {error}"),
        (None, Some(summary)) => crate::say!(
            "{summary}; {:.1} s, {:.2} MiB on the wire",
            report.total_ms / 1e3,
            mib(report.wire_bytes_disk + report.wire_bytes_memory)
        ),
        (None, None) => crate::say!("job {} goes on", report.job),
    }
    for note in &report.notes {
        crate::say!("note: {note}");
    }
}

/// A job's whole report.
pub(super) fn report(report: &Report) {
    let state = match report.state {
        JobState::Running => "running",
        JobState::Done => "done",
        JobState::Failed => "failed",
    };
    crate::say!("job {}: {:?} of '{}', {state}", report.job, report.kind, report.subject);
    outcome(report);
    crate::say!("");
    crate::say!("{:<14} {:>12} {:>16}", "phase", "ms", "bytes on wire");
    for phase in &report.phases {
        crate::say!("{:<14} {:>12.1} {:>16}", phase.name, phase.ms, phase.wire_bytes);
    }
    crate::say!(
        "{:<14} {:>12.1} {:>16}",
        "in all",
        report.total_ms,
        report.wire_bytes_disk + report.wire_bytes_memory
    );
    crate::say!("");
    crate::say!("image {:.1} MiB, of it data {:.1} MiB", mib(report.image_bytes), mib(report.data_bytes));
    crate::say!(
        "not sent because the other side held it {:.1} MiB; taken off by compression {:.1} MiB",
        mib(report.dedup_saved_bytes),
        mib(report.compression_saved_bytes)
    );
    crate::say!(
        "disk on the wire {:.2} MiB, memory {:.2} MiB, {} rounds",
        mib(report.wire_bytes_disk),
        mib(report.wire_bytes_memory),
        report.rounds
    );
    if let (JobKind::MigrateOut, Some(downtime)) = (report.kind, report.downtime_ms) {
        paper(report, downtime);
    }
}

/// Beside the paper: its parts are all downtime, ours happen while the guest runs, but for the switchover.
fn paper(report: &Report, downtime_ms: f64) {
    let phase = |name: &str| {
        report
            .phases
            .iter()
            .filter(|phase| phase.name == name)
            .map(|phase| phase.ms)
            .fold(0.0, |sum, ms| sum + ms)
    };
    let disk = phase("bulk") + phase("precopy");
    let ours = [
        ("-", "nothing is saved to a file".to_owned()),
        ("running", format!("{:.2} s", disk / 1e3)),
        ("running", format!("{:.2} s", phase("memory") / 1e3)),
        ("still", format!("{:.3} s of it disk", report.disk_switchover_ms.unwrap_or(0.0) / 1e3)),
        ("running", "the destination's report says it".to_owned()),
        ("still", format!("{:.3} s", downtime_ms / 1e3)),
    ];
    crate::say!("");
    crate::say!("{:<16} {:>10}   {:<10} this migration", "", "the paper", "the guest");
    for ((part, seconds), (guest, ours)) in PAPER.iter().zip(ours) {
        crate::say!("{part:<16} {seconds:>8.0} s   {guest:<10} {ours}");
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests;
