//! The program as a shell or cron sees it: exit codes, what goes to standard output and what to standard error. A
//! daemon that answers what a test wants stands at the other end of the control socket.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;

use serde_json::{Value, json};
use tempfile::TempDir;

const JOB: &str = "000102030405060708090a0b0c0d0e0f";

fn longhaul(root: &Path, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longhaul"));
    command.arg("--root").arg(root).args(line.split_whitespace()).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Answers one connection's requests, one after the other, each with a status and a body.
fn daemon(answers: Vec<(u16, String)>) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("run")).unwrap();
    let listener = UnixListener::bind(dir.path().join("run/longhaul.sock")).unwrap();
    thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        for (status, body) in answers {
            skip_request(&mut reader);
            let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n", body.len());
            writer.write_all((head + &body).as_bytes()).unwrap();
        }
    });
    dir
}

fn skip_request(reader: &mut impl BufRead) {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap() == 0 || line == "\r\n" {
            break;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    reader.read_exact(&mut vec![0; length]).unwrap();
}

/// A job's report in this state.
fn report(state: &str, error: Option<&str>) -> Value {
    json!({
        "job": JOB, "kind": "replicate", "subject": "web", "peer": "b", "state": state, "error": error,
        "summary": "VM 'web' replicated to 'b': root at generation 2 (dirty blocks)",
        "started_unix_ms": 1, "total_ms": 512.0,
        "phases": [{ "name": "dirty blocks", "ms": 500.0, "wire_bytes": 1048576 }],
        "image_bytes": 4194304, "scanned_bytes": 4194304, "data_bytes": 2097152, "wire_bytes_disk": 1048576,
        "wire_bytes_memory": 0, "rounds": 0, "dedup_saved_bytes": 0, "compression_saved_bytes": 0,
        "downtime_ms": null, "disk_switchover_ms": null, "notes": []
    })
}

/// A daemon that begins a job, and then says only this of it.
fn daemon_with_job(last: &Value) -> TempDir {
    daemon(vec![(200, json!({ "job": JOB }).to_string()), (200, format!("{last}\n"))])
}

#[test]
fn a_wrong_command_line_is_2_and_help_is_0() {
    let dir = tempfile::tempdir().unwrap();
    for line in ["fly", "migrate web", "migrate web --to b --max-downtime 3"] {
        let output = longhaul(dir.path(), line);
        assert_eq!(code(&output), 2, "{line}");
        assert!(out(&output).is_empty() && !err(&output).is_empty(), "{line}");
    }
    for line in ["--help", "--version", "migrate --help"] {
        let output = longhaul(dir.path(), line);
        assert_eq!(code(&output), 0, "{line}");
        assert!(err(&output).is_empty() && !out(&output).is_empty(), "{line}");
    }
}

#[test]
fn no_daemon_is_3_and_says_how_to_start_one() {
    let dir = tempfile::tempdir().unwrap();
    let output = longhaul(dir.path(), "vm list");
    assert_eq!(code(&output), 3);
    assert!(err(&output).contains("longhaul daemon"), "{}", err(&output));
    assert!(out(&output).is_empty());
}

#[test]
fn identity_and_the_example_need_no_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let first = longhaul(dir.path(), "--json identity");
    let value: Value = serde_json::from_str(&out(&first)).unwrap();
    assert_eq!(value["fingerprint"].as_str().unwrap().len(), 64);
    assert_eq!(out(&longhaul(dir.path(), "identity --json")), out(&first), "the same platform");
    let example = longhaul(dir.path(), "example-config");
    assert!(out(&example).contains("listen = "));
}

#[test]
fn a_vm_that_is_busy_is_4_and_another_refusal_1() {
    let refusal = |status, body: Value| daemon(vec![(status, body.to_string())]);
    // The kind decides. A daemon of an older version gives none, a newer one may give others; then the status does.
    for (status, kind, exit) in [
        (423, json!("busy"), 4),
        (423, Value::Null, 4),
        (423, json!("of a newer version"), 4),
        (404, json!("not_found"), 1),
        (409, Value::Null, 1),
        (507, json!("space"), 1),
        (500, json!("bug"), 1),
    ] {
        let dir = refusal(status, json!({ "error": "not now", "kind": kind }));
        let output = longhaul(dir.path(), "replicate web --to b");
        assert_eq!((code(&output), err(&output).as_str()), (exit, "longhaul: not now\n"), "{status} {kind}");
    }
}

#[test]
fn a_job_that_is_done_is_0_with_one_line_of_output() {
    let dir = daemon_with_job(&report("done", None));
    let output = longhaul(dir.path(), "replicate web --to b");
    assert_eq!(code(&output), 0, "{}", err(&output));
    let expected =
        "VM 'web' replicated to 'b': root at generation 2 (dirty blocks); 0.5 s, 1.00 MiB on the wire\n";
    assert_eq!(out(&output), expected);
    assert!(!err(&output).contains('\r'), "plain lines, for this is no terminal: {:?}", err(&output));
}

#[test]
fn a_job_that_failed_is_1_with_its_reason() {
    let dir = daemon_with_job(&report("failed", Some("the link was lost")));
    let output = longhaul(dir.path(), "replicate web --to b");
    assert_eq!(code(&output), 1);
    assert!(err(&output).contains("failed: the link was lost"), "{}", err(&output));
    assert!(out(&output).is_empty());
}

#[test]
fn a_job_that_found_its_peer_busy_is_4() {
    for (field, value, exit) in [
        ("error_kind", json!("busy"), 4),
        // Of an older version.
        ("busy", json!(true), 4),
        ("error_kind", json!("space"), 1),
    ] {
        let mut report = report("failed", Some("a pass into the replica is running already"));
        report[field] = value;
        let dir = daemon_with_job(&report);
        let output = longhaul(dir.path(), "replicate web --to b");
        assert_eq!(code(&output), exit, "{field}: {}", err(&output));
    }
}

#[test]
fn json_is_one_object_on_standard_output_whatever_came_of_the_job() {
    for (state, error, exit) in [("done", None, 0), ("failed", Some("no room"), 1)] {
        let expected = report(state, error);
        let dir = daemon_with_job(&expected);
        let output = longhaul(dir.path(), "--json replicate web --to b");
        assert_eq!(code(&output), exit, "{}", err(&output));
        assert_eq!(out(&output).lines().count(), 1);
        let printed: Value = serde_json::from_str(&out(&output)).unwrap();
        for (name, value) in expected.as_object().unwrap() {
            assert_eq!(&printed[name], value, "{name}");
        }
    }
}

#[test]
fn a_daemon_that_ends_under_a_job_is_1_and_says_where_to_look() {
    let dir = daemon_with_job(&report("running", None));
    let output = longhaul(dir.path(), "replicate web --to b");
    assert_eq!(code(&output), 1);
    assert!(err(&output).contains("longhaul job list"), "{}", err(&output));
}

#[test]
fn a_list_is_a_table_and_an_empty_one_says_so() {
    let rows = json!([{ "name": "web", "status": "Running" }, { "name": "database", "status": "Stopped" }]);
    let dir = daemon(vec![(200, rows.to_string())]);
    let output = longhaul(dir.path(), "vm list");
    assert_eq!(out(&output), "NAME      STATUS\nweb       Running\ndatabase  Stopped\n");
    let dir = daemon(vec![(200, "[]".to_owned())]);
    assert_eq!(out(&longhaul(dir.path(), "vm list")), "none\n");
}

#[test]
fn the_probe_measures_both_ways_and_draws() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let at = |name: &str| root.join(name).display().to_string();
    let (there, back) = (at("there.svg"), at("back.svg"));
    thread::scope(|scope| {
        let line = format!("--json probe serve 127.0.0.1:{port} --for 3s --echo --svg {there}");
        let serve = scope.spawn(move || longhaul(root, &line));
        thread::sleep(std::time::Duration::from_millis(700));
        let line =
            format!("probe send 127.0.0.1:{port} --interval 2ms --count 50 --size 100 --echo --svg {back}");
        let sent = longhaul(root, &line);
        assert_eq!((code(&sent), err(&sent)), (0, String::new()));
        assert!(out(&sent).starts_with("sent 50 packets in 0.") && out(&sent).contains("(round-trip time)"));
        let served = serve.join().unwrap();
        let report: Value = serde_json::from_str(&out(&served)).unwrap();
        let streams = report["streams"].as_object().unwrap();
        let stream = streams.values().next().unwrap();
        assert_eq!((code(&served), streams.len(), &stream["received"]), (0, 1, &json!(50)));
        assert_eq!((&stream["lost"], &stream["latency"]["of"]), (&json!(0), &json!("one_way")));
    });
    for picture in [there, back] {
        assert!(std::fs::read_to_string(picture).unwrap().contains("50 received, 0 lost"));
    }
    let refused = longhaul(root, "probe send 127.0.0.1:9 --size 63");
    assert_eq!(code(&refused), 2);
}
