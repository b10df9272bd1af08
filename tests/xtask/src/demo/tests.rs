use harness::RecordReport;
use serde_json::{Value, json};

use super::*;

fn report() -> Value {
    json!({
        "job": "1", "total_ms": 12345.678, "disk_switchover_ms": 9.5, "image_bytes": 4u64 << 30,
        "wire_bytes_disk": 1000, "wire_bytes_memory": 2000, "rounds": 3, "downtime_ms": 80.0
    })
}

const RECORDS: RecordReport = RecordReport { acked: 900, first: 101, newest: 901, found: 799, bad: 1 };

#[test]
fn the_options_are_read() {
    let plain = Options { json: None, preseed: true, mobility: false, runs: 1 };
    assert_eq!(Options::parse(&[]).unwrap(), plain);
    let all = Options::parse(&["--runs", "20", "--mobility", "--no-preseed", "--json", "/tmp/x"]).unwrap();
    assert_eq!(all, Options { json: Some("/tmp/x".into()), preseed: false, mobility: true, runs: 20 });
    for bad in [&["--runs"][..], &["--runs", "0"], &["--runs", "x"], &["--fast"]] {
        assert!(Options::parse(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn the_json_has_the_fields_that_were_asked_for() {
    let measured = Measured::new(&report(), &RECORDS, 101.23456, 2).unwrap();
    let json = serde_json::to_value(&measured).unwrap();
    let mut fields: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
    fields.sort_unstable();
    assert_eq!(
        fields,
        [
            "disk_switchover_ms",
            "downtime_ms",
            "image_bytes",
            "packets_lost",
            "records_acked",
            "records_bad",
            "records_found",
            "rounds",
            "total_s",
            "wire_bytes_disk",
            "wire_bytes_memory",
        ]
    );
    assert_eq!((&json["downtime_ms"], &json["total_s"]), (&json!(101.235), &json!(12.346)));
    assert_eq!((&json["records_acked"], &json["records_found"]), (&json!(800), &json!(799)));
}

#[test]
fn a_report_that_lacks_a_figure_is_an_error_that_names_it() {
    let mut short = report();
    short.as_object_mut().unwrap().remove("rounds");
    let error = Measured::new(&short, &RECORDS, 1.0, 0).unwrap_err().to_string();
    assert!(error.contains("`rounds`"), "{error}");
}

#[test]
fn several_runs_are_summed_up() {
    let run = |pause| Measured::new(&report(), &RECORDS, pause, 0).unwrap();
    let text = summary(&[run(30.0), run(10.0), run(20.5), run(21.5)]);
    let line = text.lines().find(|line| line.starts_with("downtime_ms")).unwrap();
    assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["downtime_ms", "10", "21", "30"]);
    assert_eq!(text.lines().count(), 12);
}
