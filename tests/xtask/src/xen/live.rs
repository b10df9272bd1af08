//! The main job on Xen: a running domain moves with its disk, and nothing that it was promised is lost.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::{Collector, XenHost, XenPair};
use serde_json::Value;

use super::machine::VM;
use super::watch::Watch;
use super::{product, step};

const BOOT: Duration = Duration::from_secs(90);
/// How long the guest writes after it has moved.
const AFTER: Duration = Duration::from_secs(3);

/// What one move brought.
#[derive(Debug, Clone)]
pub(super) struct Moved {
    /// How long the guest was not reached.
    pub(super) unreachable: Duration,
    /// From the command to its end.
    pub(super) total: Duration,
    /// The product's report.
    pub(super) report: Value,
}

/// Moves the running guest and looks at both hosts afterwards.
fn go(pair: &XenPair, [from, to]: [&XenHost; 2], collector: &Collector, how: &str) -> Result<Moved> {
    step(&format!("longhaul migrate {VM} --to {} {how}", to.name()));
    let watch = Watch::begin(pair, collector)?;
    let started = Instant::now();
    let report = product::migrate(from, to, how)?;
    let total = started.elapsed();
    collector
        .wait_progress(1, BOOT)
        .with_context(|| format!("the guest on {}\n{}", to.name(), product::trouble(to, VM)))?;
    thread::sleep(AFTER);
    let unreachable = watch.end()?;
    let moved = Moved { unreachable, total, report };
    println!("    {}", moved.line());
    product::show_logs([from, to])?;
    check(from, to, collector)?;
    Ok(moved)
}

/// One running domain under its own name, at the destination and nowhere else.
fn check(from: &XenHost, to: &XenHost, collector: &Collector) -> Result<()> {
    ensure!(
        collector.duplicates() == 0,
        "{} packets came twice: the guest ran twice",
        collector.duplicates()
    );
    ensure!(collector.instances().len() == 1, "the guest was booted again");
    let (left, right) = (names(from)?, names(to)?);
    ensure!(left.is_empty(), "{} still has {left:?}", from.name());
    ensure!(right == [VM], "{} has {right:?}", to.name());
    Ok(())
}

/// The names of a host's guests.
pub(super) fn names(host: &XenHost) -> Result<Vec<String>> {
    let list = host.run("xl list | tail -n +3")?;
    Ok(list.lines().filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect())
}

impl Moved {
    /// For people.
    pub(super) fn line(&self) -> String {
        let number = |key: &str| self.report[key].as_f64().unwrap_or(f64::NAN);
        let phases = self.report["phases"].as_array().into_iter().flatten();
        let phases = phases.map(|phase| {
            format!("{} {:.0}", phase["name"].as_str().unwrap_or("?"), phase["ms"].as_f64().unwrap_or(0.0))
        });
        format!(
            "not reached for {:.0} ms (by the product's own account {:.0} ms), {:.1} s in all; disk {:.0} KiB, memory {:.1} MiB; ms by phase: {}",
            self.unreachable.as_secs_f64() * 1e3,
            number("downtime_ms"),
            self.total.as_secs_f64(),
            number("wire_bytes_disk") / 1024.0,
            number("wire_bytes_memory") / (1 << 20) as f64,
            phases.collect::<Vec<_>>().join(", ")
        )
    }
}

/// Boots the guest on a, with the daemons and the base on both hosts.
pub(super) fn prepare(pair: &XenPair, collector: &Collector) -> Result<()> {
    product::start(pair)?;
    product::seed(pair)?;
    super::plain::boot(pair, collector, "/lab/disk.raw")?;
    product::adopt(&pair.a)
}

/// From the first host to the second, and back, `moves` times in all. The hosts are changed over with the guest: it is
/// on the first of them before and after.
pub(super) fn run(
    pair: &XenPair,
    hosts: &mut [&XenHost; 2],
    collector: &Collector,
    moves: usize,
    how: &str,
) -> Result<Vec<Moved>> {
    let mut all = Vec::new();
    for _ in 0..moves {
        all.push(go(pair, *hosts, collector, how)?);
        hosts.swap(0, 1);
    }
    Ok(all)
}
