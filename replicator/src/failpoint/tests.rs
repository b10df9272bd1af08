//! The point is reached in a process of its own: it kills whoever reaches it.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use super::*;

const LABEL: &str = "source:journal:released";

/// Run by the tests below, in a process with or without the variable. Says how far it came.
#[test]
fn child() {
    for pass in 1..=3 {
        reach("dest", "journal", "released");
        reach("source", "journal", "started");
        reach("source", "journalled", "released");
        println!("before {pass}");
        reach("source", "journal", "released");
        println!("after {pass}");
    }
}

/// How the child ends with this value of the variable, and the last it said.
fn ends(value: Option<&str>) -> (Option<i32>, String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "failpoint::tests::child", "--nocapture"]).stderr(Stdio::null());
    command.env_remove("LONGHAUL_CRASH_AT");
    if let Some(value) = value {
        command.env("LONGHAUL_CRASH_AT", value);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = text.lines().rfind(|line| line.starts_with("before") || line.starts_with("after"));
    (output.status.signal(), last.unwrap_or_default().to_owned())
}

#[test]
fn without_the_variable_nothing_happens() {
    assert_eq!(ends(None), (None, "after 3".to_owned()));
}

#[test]
fn at_its_label_the_process_is_gone_as_by_sigkill() {
    assert_eq!(ends(Some(LABEL)), (Some(9), "before 1".to_owned()));
    assert_eq!(ends(Some(&format!("{LABEL}#3"))), (Some(9), "before 3".to_owned()));
}

#[test]
fn another_label_or_none_that_can_be_read_does_nothing() {
    for value in ["source:journal", "dest:journal:ready", "", &format!("{LABEL}#many"), &format!("{LABEL}#4")]
    {
        assert_eq!(ends(Some(value)), (None, "after 3".to_owned()), "{value}");
    }
}

#[test]
fn a_halted_process_goes_on_when_it_is_told() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "failpoint::tests::child", "--nocapture"]).stderr(Stdio::null());
    command.env_remove("LONGHAUL_CRASH_AT").env("LONGHAUL_STOP_AT", LABEL).stdout(Stdio::piped());
    let child = command.spawn().unwrap();
    let stat = format!("/proc/{}/stat", child.id());
    let halted = || std::fs::read_to_string(&stat).unwrap().contains(") T ");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !halted() {
        assert!(std::time::Instant::now() < deadline, "it is not halted");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::CONT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("after 3"));
}
