//! One run: two platforms, a guest that moves from the first to the second, and the proof.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::guest::DISK;
use harness::{Collector, Guest, Lab, Namespace, Platform, RecordReport, pair, verify_records};
use mobility_lab::sites::GUEST;
use mobility_lab::{Answers, Ping, Sites};
use serde_json::Value;

use super::measured::{Measured, integer, mib, number};
use super::step;

const VM: &str = "demo";
const BASE: &str = "debian";
/// How long the guest writes before it moves, and after.
const BEFORE: Duration = Duration::from_secs(10);
const AFTER: Duration = Duration::from_secs(5);
const BOOT: Duration = Duration::from_secs(60);
const MIGRATE: Duration = Duration::from_secs(600);

/// What one run brought.
pub(super) struct Outcome {
    /// The demo's figures.
    pub(super) measured: Measured,
    /// The product's own report, as text.
    pub(super) report_text: String,
    /// What the guest answered at its own address, and what the destination says of it.
    answers: Option<Answers>,
    rebind_note: String,
    report: Value,
    records: RecordReport,
    duplicates: u64,
    boots: usize,
    acked_at_start: u64,
    acked_at_arrival: u64,
    source_runs: bool,
    written_bytes: u64,
    push_wire_bytes: Option<u64>,
}

/// Runs the scenario once, on new platforms.
pub(super) fn run(lab: &Lab, base: &Path, preseed: bool, mobility: bool) -> Result<Outcome> {
    if mobility {
        return run_mobile(lab, base, preseed);
    }
    step("two platforms on this machine, each with its own directory, that trust each other");
    let collector = Collector::start()?;
    let (a, b) = pair()?;
    println!(
        "    a: {} at {}    b: {} at {}",
        a.root().display(),
        a.address(),
        b.root().display(),
        b.address()
    );
    let guest = Guest::new(lab, VM, &a.place_disk(VM, base)?, collector.port());
    move_guest(&guest, base, preseed, &collector, (&a, &b), None).with_context(|| logs(&[&a, &b]))
}

/// The same in networks of their own, joined by a line of 20 ms there and back, with a home agent and a correspondent.
fn run_mobile(lab: &Lab, base: &Path, preseed: bool) -> Result<Outcome> {
    step("a home agent, two platforms and a correspondent, each in its own network namespace");
    let sites = Sites::start(lab, base, Duration::from_millis(20))?;
    let [a, b] = &sites.platforms;
    println!("    home agent {}    a {}    b {}", sites.home.address(), a.address(), b.address());
    let correspondent = &*sites.wires.correspondent.namespace;
    let moved = move_guest(&sites.guest, base, preseed, &sites.collector, (a, b), Some(correspondent));
    let mut outcome = moved.with_context(|| logs(&[&sites.home, a, b]))?;
    outcome.rebind_note = sites.rebind_note(1)?;
    Ok(outcome)
}

fn logs(platforms: &[&Platform]) -> String {
    let log = |platform: &&Platform| format!("the log of {} ends with\n{}", platform.name(), platform.log());
    platforms.iter().map(log).collect::<Vec<_>>().join("\n")
}

/// Moves the guest from the first platform to the second. A correspondent asks it all the while whether it is there.
fn move_guest(
    guest: &Guest,
    base: &Path,
    preseed: bool,
    collector: &Collector,
    (a, b): (&Platform, &Platform),
    correspondent: Option<&Namespace>,
) -> Result<Outcome> {
    let push_wire_bytes = seed(a, base, preseed)?;

    step(&format!("a guest on a copy of the base, on a; it writes records for {} s", BEFORE.as_secs()));
    let vm = guest.name.as_str();
    let started = Instant::now();
    a.start_guest(guest)?;
    collector.wait_acked(1, BOOT)?;
    println!("    first record after {:.1} s", started.elapsed().as_secs_f64());
    thread::sleep(BEFORE);

    step(&format!("migrate {vm} --to b"));
    let ping = correspondent.map(|from| Ping::start(from, GUEST, Duration::from_millis(20))).transpose()?;
    let acked_at_start = collector.acked();
    collector.mark();
    let report = a.begin_json(&["migrate", vm, "--to", b.name()])?.wait(MIGRATE)?.json()?;
    let acked_at_arrival = collector.acked();
    let source_runs = a.qemu(vm).is_some();

    step(&format!("the guest runs on b for {} s more", AFTER.as_secs()));
    ensure!(b.qemu(vm).is_some(), "no QEMU runs the guest on b after the migration");
    thread::sleep(AFTER);
    collector.wait_acked(acked_at_arrival + 1, BOOT).context("the guest on b")?;
    let pause = collector.longest_since_mark();
    let answers = ping.map(Ping::finish).transpose()?;

    step("stopping it, and looking for every acknowledged record on b's disk");
    b.cli(&["vm", "stop", vm, "--kill"])?;
    let instance = collector.instance().context("a guest that was heard")?;
    let records = verify_records(&b.image(vm, DISK), instance, collector.acked())?;
    let stream = collector.snapshot().context("a guest that was heard")?;

    let job = report["job"].as_str().context("the migration's report names no job")?;
    Ok(Outcome {
        answers,
        rebind_note: String::new(),
        measured: Measured::new(&report, &records, pause.as_secs_f64() * 1000.0, stream.lost)?,
        report_text: a.cli_text(&["report", job])?,
        records,
        duplicates: collector.duplicates(),
        boots: collector.instances().len(),
        acked_at_start,
        acked_at_arrival,
        source_runs,
        written_bytes: collector.acked() * u64::from(guest.workload.record_bytes),
        push_wire_bytes,
        report,
    })
}

/// Puts the base into a's store and, unless not wanted, into b's. Returns what the push took on the wire.
fn seed(a: &Platform, base: &Path, preseed: bool) -> Result<Option<u64>> {
    step("base add: the base image goes into a's chunk store");
    let start = Instant::now();
    a.cli(&["base", "add", BASE, &base.display().to_string()])?;
    println!("    {:.1} s", start.elapsed().as_secs_f64());
    if !preseed {
        return Ok(None);
    }
    step("base push: b gets the base before any guest moves");
    let start = Instant::now();
    let report = a.cli(&["base", "push", BASE, "b"])?;
    let wire_bytes = integer(&report, "wire_bytes_disk").ok();
    let took = start.elapsed().as_secs_f64();
    println!("    {took:.1} s{}", wire_bytes.map_or(String::new(), |b| format!(", {} on the wire", mib(b))));
    Ok(wire_bytes)
}

impl Outcome {
    /// The figures for people.
    pub(super) fn text(&self) -> String {
        let m = &self.measured;
        let data = integer(&self.report, "data_bytes").unwrap_or(m.image_bytes).max(1);
        let share = m.wire_bytes_disk as f64 / data as f64 * 100.0;
        let own =
            number(&self.report, "downtime_ms").map_or("unknown".to_owned(), |ms| format!("{ms:.0} ms"));
        let push =
            self.push_wire_bytes.map_or("base not pushed".to_owned(), |b| format!("base push {}", mib(b)));
        let rebind = self.answers.as_ref().map(|answers| {
            format!(
                "rebind    {GUEST}: {} of {} echo requests answered, longest gap {:.0} ms; {}",
                answers.answered.len(),
                answers.sent,
                answers.longest_gap().as_secs_f64() * 1e3,
                self.rebind_note
            )
        });
        let mut lines = vec![
            format!(
                "records   {} acknowledged ({} before the move, {} when it was over), {} of {} found on b's disk, {} bad",
                self.records.acked,
                self.acked_at_start,
                self.acked_at_arrival,
                m.records_found,
                m.records_acked,
                m.records_bad
            ),
            format!(
                "one life  {} boot, {} packets received twice, source {}",
                self.boots,
                self.duplicates,
                if self.source_runs { "STILL RUNS" } else { "gone" }
            ),
            format!(
                "stream    longest pause {:.0} ms, {} packets lost (the product's own estimate of the pause: {own})",
                m.downtime_ms, m.packets_lost
            ),
            format!(
                "time      {:.1} s in all, disk part of the switchover {:.1} ms, {} rounds",
                m.total_s, m.disk_switchover_ms, m.rounds
            ),
            format!(
                "wire      disk {} ({share:.2} % of the image's {} of data; the guest wrote {}), memory {}, {push}",
                mib(m.wire_bytes_disk),
                mib(data),
                mib(self.written_bytes),
                mib(m.wire_bytes_memory)
            ),
        ];
        lines.extend(rebind);
        lines.join("\n")
    }

    /// Fails unless everything that must hold holds.
    pub(super) fn proof(&self) -> Result<()> {
        let r = &self.records;
        ensure!(r.expected() > 0, "no record had to be there: nothing was proved");
        ensure!(r.is_whole(), "{} acknowledged records are missing or damaged on b's disk", r.bad);
        ensure!(
            r.newest >= r.acked,
            "the newest record on b's disk is {}, acknowledged was {}",
            r.newest,
            r.acked
        );
        ensure!(
            self.boots == 1,
            "the guest was booted {} times; it was to move, not to start again",
            self.boots
        );
        ensure!(self.duplicates == 0, "{} packets came twice: the guest ran twice", self.duplicates);
        if let Some(answers) = &self.answers {
            ensure!(answers.lost() == 0, "{} echo requests were not answered", answers.lost());
        }
        ensure!(!self.source_runs, "the guest still runs on a");
        ensure!(r.acked > self.acked_at_arrival, "the guest's counter stood still on b");
        Ok(())
    }
}
