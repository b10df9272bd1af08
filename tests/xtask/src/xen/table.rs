//! The paper's Table 1 with our columns beside it: as text, as figures one a line, and drawn. Pure.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use super::live::Moved;
use super::plain::Copied;

/// One way to move a guest.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Column {
    /// In the figures.
    pub(super) case: &'static str,
    /// For people.
    pub(super) title: &'static str,
    pub(super) unreachable_ms: f64,
    pub(super) total_ms: f64,
    pub(super) disk_bytes: f64,
    pub(super) memory_bytes: f64,
}

/// What the paper gives: seconds for the whole, a 4 GB image and 256 MB of memory over a gigabit link.
const PAPER: Column = Column {
    case: "paper",
    title: "paper",
    unreachable_ms: 181_000.0,
    total_ms: 181_000.0,
    disk_bytes: 4e9,
    memory_bytes: 256e6,
};

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The columns of one run: of several moves the median by the time the guest was not heard.
pub(super) fn columns(copied: &Copied, moved: &[Moved]) -> Vec<Column> {
    let mut columns = vec![PAPER];
    columns.push(Column {
        case: "scp",
        title: "its method here",
        unreachable_ms: ms(copied.unreachable),
        total_ms: ms(copied.parts.iter().sum()),
        disk_bytes: copied.bytes[0] as f64,
        memory_bytes: copied.bytes[1] as f64,
    });
    let mut moved: Vec<&Moved> = moved.iter().collect();
    moved.sort_by_key(|moved| moved.unreachable);
    if let Some(median) = moved.get(moved.len() / 2) {
        let bytes = |key: &str| median.report[key].as_f64().unwrap_or(f64::NAN);
        columns.push(Column {
            case: "longhaul_live",
            title: "longhaul live",
            unreachable_ms: ms(median.unreachable),
            total_ms: ms(median.total),
            disk_bytes: bytes("wire_bytes_disk"),
            memory_bytes: bytes("wire_bytes_memory"),
        });
    }
    columns
}

/// Metric, unit, and how people read it.
type Row = (&'static str, &'static str, fn(&Column) -> f64);
const ROWS: [Row; 4] = [
    ("unreachable", "ms", |column| column.unreachable_ms),
    ("total", "ms", |column| column.total_ms),
    ("disk_bytes", "bytes", |column| column.disk_bytes),
    ("memory_bytes", "bytes", |column| column.memory_bytes),
];

fn shown(value: f64, unit: &str) -> String {
    match unit {
        "ms" => format!("{:.1} s", value / 1e3),
        _ => format!("{:.1} MB", value / 1e6),
    }
}

/// For people.
pub(super) fn text(columns: &[Column]) -> String {
    let mut out = format!("{:<14}", "");
    for column in columns {
        let _ = write!(out, "{:>18}", column.title);
    }
    for (metric, unit, of) in ROWS {
        let _ = write!(out, "\n{metric:<14}");
        for column in columns {
            let _ = write!(out, "{:>18}", shown(of(column), unit));
        }
    }
    out
}

/// One object a line, in the form of all benchmarks; the peer is the paper's method in the same run.
pub(super) fn figures(columns: &[Column], runs: usize) -> Vec<Value> {
    let peer = columns.iter().find(|column| column.case == "scp");
    let mut out = Vec::new();
    for column in columns {
        for (metric, unit, of) in ROWS {
            let value = of(column);
            let peer = peer.filter(|peer| column.case.starts_with("longhaul") && peer.case != column.case);
            let peer_value = peer.map(of);
            out.push(json!({
                "bench": "xen", "case": column.case, "metric": metric, "value": value, "unit": unit,
                "peer": peer.map(|peer| peer.case), "peer_value": peer_value,
                "ratio": peer_value.map(|peer| peer / value),
                "runs": if column.case.starts_with("longhaul") { runs } else { 1 },
                "min": value, "max": value,
            }));
        }
    }
    out
}

/// Drawn: how long the guest was not reached, on a logarithmic scale.
pub(super) fn svg(columns: &[Column]) -> String {
    const WIDTH: f64 = 480.0;
    let height = 40 + columns.len() * 36;
    let longest = columns.iter().map(|column| column.unreachable_ms).fold(1000.0, f64::max).log10();
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 720 {height}\" font-family=\"sans-serif\" font-size=\"14\">\n\
         <text x=\"8\" y=\"20\">A guest is unreachable while it moves (logarithmic, from 0.1 s)</text>\n"
    );
    for (index, column) in columns.iter().enumerate() {
        let y = 36 + index * 36;
        let length = WIDTH * (column.unreachable_ms.log10() - 2.0).max(0.01) / (longest - 2.0);
        let _ = writeln!(
            out,
            "<text x=\"8\" y=\"{}\">{}</text><rect x=\"130\" y=\"{y}\" width=\"{length:.0}\" height=\"24\" fill=\"#47a\"/>\
             <text x=\"{:.0}\" y=\"{}\">{}</text>",
            y + 17,
            column.title,
            136.0 + length,
            y + 17,
            shown(column.unreachable_ms, "ms")
        );
    }
    out + "</svg>\n"
}

#[cfg(test)]
mod tests {
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
        let copied = Copied {
            unreachable: Duration::from_secs(50),
            parts: [Duration::from_secs(10); 4],
            bytes: [256_000_000, 100_000_000],
        };
        let columns = columns(&copied, &[moved(9000), moved(4000), moved(5000)]);
        let figures = figures(&columns, 3);
        assert_eq!(figures.len(), 12);
        let of = |metric: &str| {
            figures.iter().find(|f| f["case"] == "longhaul_live" && f["metric"] == metric).unwrap().clone()
        };
        assert_eq!(
            (of("unreachable")["value"].as_f64(), of("unreachable")["ratio"].as_f64()),
            (Some(5000.0), Some(10.0))
        );
        assert_eq!(of("disk_bytes")["ratio"].as_f64(), Some(128.0));
        assert!(figures[0]["peer"].is_null());
        assert!(text(&columns).contains("181.0 s") && svg(&columns).contains("5.0 s"));
    }
}
