//! The paper's Table 1 with our columns beside it: as text, as figures one a line, and drawn. Pure.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use super::Figures;
use super::live::Moved;

/// One way to move a guest.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Column {
    /// In the figures.
    case: &'static str,
    /// For people.
    title: &'static str,
    /// What was measured, once for each move, in the order of [`METRICS`].
    samples: [Samples; METRICS.len()],
}

/// Names and units.
const METRICS: [(&str, &str); 4] =
    [("unreachable", "ms"), ("total", "ms"), ("disk_bytes", "bytes"), ("memory_bytes", "bytes")];
const UNREACHABLE: usize = 0;

/// At least one value, least first.
#[derive(Debug, Clone, PartialEq)]
struct Samples(Vec<f64>);

impl Samples {
    fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        if self.0.len().is_multiple_of(2) {
            (self.0[middle - 1] + self.0[middle]) / 2.0
        } else {
            self.0[middle]
        }
    }
}

/// What the paper gives for its Experiment 2: seconds for the whole, a 4 GB image and 256 MB of memory over a gigabit link.
const PAPER_CASE: &str = "paper";
const SCP_CASE: &str = "scp";
const SHARED_CASE: &str = "xl_shared";
const PAPER: [f64; 4] = [181_000.0, 181_000.0, 4e9, 256e6];

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn column(case: &'static str, title: &'static str, moves: &[[f64; 4]]) -> Column {
    let samples = std::array::from_fn(|metric| {
        let mut values: Vec<f64> = moves.iter().map(|of| of[metric]).collect();
        values.sort_by(f64::total_cmp);
        Samples(values)
    });
    Column { case, title, samples }
}

/// The columns of one run.
pub(super) fn columns(figures: &Figures) -> Vec<Column> {
    let shared = figures.shared.iter().map(|moved| {
        let (unreachable, total) = (ms(moved.unreachable), ms(moved.total));
        [unreachable, total, 0.0, moved.bytes as f64]
    });
    let copied = figures.copied.iter().map(|copied| {
        let [disk, memory] = copied.bytes.map(|bytes| bytes as f64);
        [ms(copied.unreachable), ms(copied.parts.iter().sum()), disk, memory]
    });
    let ours = |moves: &[Moved]| {
        let moves = moves.iter().map(|moved| {
            let bytes = |key: &str| moved.report[key].as_f64().unwrap_or(f64::NAN);
            let (disk, memory) = (bytes("wire_bytes_disk"), bytes("wire_bytes_memory"));
            [ms(moved.unreachable), ms(moved.total), disk, memory]
        });
        moves.collect::<Vec<_>>()
    };
    [
        (PAPER_CASE, "paper", vec![PAPER]),
        (SCP_CASE, "its method here", copied.collect()),
        ("longhaul_cold", "longhaul cold", ours(&figures.cold)),
        ("longhaul_live", "longhaul live", ours(&figures.live)),
        (SHARED_CASE, "xl, shared disk", shared.collect()),
    ]
    .into_iter()
    .filter(|(_, _, moves)| !moves.is_empty())
    .map(|(case, title, moves)| column(case, title, &moves))
    .collect()
}

fn shown(value: f64, unit: &str) -> String {
    match unit {
        "ms" => format!("{:.1} s", value / 1e3),
        _ => format!("{:.1} MB", value / 1e6),
    }
}

/// For people: medians.
pub(super) fn text(columns: &[Column]) -> String {
    let mut out = format!("{:<14}", "");
    for column in columns {
        let _ = write!(out, "{:>18}", column.title);
    }
    for (at, (metric, unit)) in METRICS.into_iter().enumerate() {
        let _ = write!(out, "\n{metric:<14}");
        for column in columns {
            let _ = write!(out, "{:>18}", shown(column.samples[at].median(), unit));
        }
    }
    out
}

/// One object a line, in the form of all benchmarks; the peer is the paper's method in the same run, and for the time that
/// a live migration makes the guest unreachable once more `xl migrate` with a shared disk.
pub(super) fn figures(columns: &[Column]) -> Vec<Value> {
    let of = |case: &str| columns.iter().find(|column| column.case == case);
    let mut out = Vec::new();
    for column in columns {
        let peer = of(SCP_CASE).filter(|_| column.case.starts_with("longhaul"));
        for at in 0..METRICS.len() {
            out.push(figure(column, at, peer));
        }
        if let Some(shared) = of(SHARED_CASE).filter(|_| column.case == "longhaul_live") {
            out.push(figure(column, UNREACHABLE, Some(shared)));
        }
    }
    out
}

fn figure(column: &Column, at: usize, peer: Option<&Column>) -> Value {
    let (metric, unit) = METRICS[at];
    let (samples, value) = (&column.samples[at].0, column.samples[at].median());
    let peer_value = peer.map(|peer| peer.samples[at].median());
    json!({
        "bench": "xen", "case": column.case, "metric": metric, "value": value, "unit": unit,
        "peer": peer.map(|peer| peer.case), "peer_value": peer_value,
        "ratio": peer_value.map(|peer| peer / value),
        "runs": samples.len(), "min": samples.first(), "max": samples.last(),
    })
}

/// Drawn: how long the guest was not reached, on a logarithmic scale.
pub(super) fn svg(columns: &[Column]) -> String {
    const WIDTH: f64 = 480.0;
    let height = 40 + columns.len() * 36;
    let unreachable = |column: &Column| column.samples[UNREACHABLE].median();
    let longest = columns.iter().map(unreachable).fold(1000.0, f64::max).log10();
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 720 {height}\" font-family=\"sans-serif\" font-size=\"14\">\n\
         <text x=\"8\" y=\"20\">A guest is unreachable while it moves (logarithmic, from 0.1 s)</text>\n"
    );
    for (index, column) in columns.iter().enumerate() {
        let y = 36 + index * 36;
        let length = WIDTH * (unreachable(column).log10() - 2.0).max(0.01) / (longest - 2.0);
        let _ = writeln!(
            out,
            "<text x=\"8\" y=\"{}\">{}</text><rect x=\"130\" y=\"{y}\" width=\"{length:.0}\" height=\"24\" fill=\"#47a\"/>\
             <text x=\"{:.0}\" y=\"{}\">{}</text>",
            y + 17,
            column.title,
            136.0 + length,
            y + 17,
            shown(unreachable(column), "ms")
        );
    }
    out + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::super::plain::{Copied, Shared};
    use super::*;

    fn moved(unreachable_ms: u64) -> Moved {
        Moved {
            unreachable: Duration::from_millis(unreachable_ms),
            total: Duration::from_secs(40),
            report: json!({"wire_bytes_disk": 2e6, "wire_bytes_memory": 1e8}),
        }
    }

    #[test]
    fn the_peer_is_the_papers_method_and_ours_is_the_median() {
        let second = Duration::from_secs;
        let copied =
            Copied { unreachable: second(50), parts: [second(10); 4], bytes: [256_000_000, 100_000_000] };
        let shared = Shared { unreachable: second(4), total: second(20), bytes: 100_000_000 };
        let columns = columns(&Figures {
            shared: vec![shared],
            copied: Some(copied),
            cold: vec![moved(12_000)],
            live: vec![moved(9000), moved(4000), moved(5000)],
        });
        let figures = figures(&columns);
        assert_eq!(figures.len(), 5 * 4 + 1);
        let of = |peer: &str, metric: &str| {
            let ours = figures.iter().filter(|f| f["case"] == "longhaul_live");
            ours.clone().find(|f| f["peer"] == peer && f["metric"] == metric).unwrap().clone()
        };
        let number = |value: &Value, key: &str| value[key].as_f64().unwrap();
        let unreachable = of("scp", "unreachable");
        assert_eq!((number(&unreachable, "value"), number(&unreachable, "ratio")), (5000.0, 10.0));
        assert_eq!((number(&unreachable, "min"), number(&unreachable, "max")), (4000.0, 9000.0));
        assert_eq!(unreachable["runs"], 3);
        assert_eq!(number(&of("scp", "disk_bytes"), "ratio"), 128.0);
        assert_eq!(number(&of("xl_shared", "unreachable"), "ratio"), 0.8);
        assert!(figures[0]["peer"].is_null());
        assert!(text(&columns).contains("181.0 s") && svg(&columns).contains("5.0 s"));
    }
}
