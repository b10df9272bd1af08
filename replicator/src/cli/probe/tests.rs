use clap::Parser;

use super::*;

#[derive(Parser)]
struct Tool {
    #[command(subcommand)]
    command: ProbeCommand,
}

fn options(line: &str) -> Result<SendOptions, clap::Error> {
    let words = ["probe", "send", "[::1]:4434"].into_iter().chain(line.split_whitespace());
    match Tool::try_parse_from(words)?.command {
        ProbeCommand::Send(args) => Ok(args.options()),
        ProbeCommand::Serve { .. } => unreachable!(),
    }
}

#[test]
fn a_call_unless_told_otherwise() {
    let usual = options("").unwrap();
    assert_eq!((usual.bytes, usual.interval, usual.count), (210, Duration::from_millis(20), None));
    assert_eq!(options("--interval 250us").unwrap().interval, Duration::from_micros(250));
    let fast = options("--size 1250 --rate 10M").unwrap();
    assert_eq!((fast.bytes, fast.interval), (1250, Duration::from_millis(1)));
}

#[test]
fn nonsense_is_refused_with_a_hint() {
    for (line, hint) in [
        ("--interval 20", "20ms"),
        ("--interval 0s", "1us"),
        ("--rate 0", "within 1 and 100G"),
        ("--rate fast", "64k"),
        ("--size 63", "64 and 65507"),
        ("--rate 1M --interval 1s", "cannot be used with"),
        ("--svg picture.svg", "--echo"),
    ] {
        let error = options(line).unwrap_err().to_string();
        assert!(error.contains(hint), "{line}: {error}");
    }
}

#[test]
fn a_report_reads_well() {
    let report: StreamReport = serde_json::from_value(serde_json::json!({
        "from": "192.0.2.1:5000", "since_unix_ms": 1_700_000_000_123_u64,
        "received": 98, "lost": 3, "duplicated": 1, "reordered": 2, "stale": 0, "first_seq": 1, "last_seq": 100,
        "longest_gap": { "ns": 86_000_000, "at_ns": 3_500_000_000_u64, "before": 50, "after": 54 },
        "jitter_ns": 120_000, "jitter_max_ns": 5_000_000, "word_max": [0, 0, 0, 0],
        "first_arrival_ns": 2_000_000_000, "last_arrival_ns": 4_000_000_000_u64,
        "latency": { "of": "above_smallest", "min_ns": 0, "mean_ns": 1_500_000, "p95_ns": 2_000_000, "max_ns": 9_000_000 },
    }))
    .unwrap();
    let report = Report { streams: [(7, report)].into(), ignored: 4 };
    let expected = "\
stream 7 from 192.0.2.1:5000
  received     98 in 2.0 s
  lost         3 (3.00 %)
  duplicated   1
  reordered    2
  longest gap  86.0 ms, 1.5 s after the first packet (22:13:21.623 UTC), between numbers 50 and 54
  latency      min 0.000, mean 1.500, p95 2.000, max 9.000 ms (latency above the smallest)
  jitter       0.120 ms at the end, 5.000 ms at most
ignored 4 datagrams that are no probe packets, or of too many streams
";
    assert_eq!(received(&report), expected);
    assert_eq!(received(&Report::default()), "no stream\n");
    assert_eq!(
        sent(&Sent { packets: 3, refused: 1, took_ns: 60_000_000, answers: None }),
        "sent 3 packets in 0.1 s, 1 refused\n"
    );
}
