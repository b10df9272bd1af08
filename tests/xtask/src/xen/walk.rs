//! The fault walk on Xen: at every step of the hand-off a daemon dies, alone or with the xl beside it, or the line is cut;
//! and afterwards exactly one domain runs, under its own name, with nothing left of the attempt.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use harness::{Collector, XenHost, XenPair};
use serde_json::Value;

use super::live::names;
use super::machine::VM;
use super::{disk_of, product, step};

/// Where the guest is to be when all is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Before the point of no return: where it was.
    Back,
    /// After it: where it was to go.
    Forth,
    /// The promise is given, the decision is the source's: both are right.
    Either,
}
use Outcome::{Back, Either, Forth};

/// What is lost at that point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lost {
    /// The daemon dies; xl waits for the next one.
    Daemon,
    /// The daemon dies, and xl and its keeper on the same host.
    DaemonAndXl,
    /// The line between the hosts is cut, for longer than either daemon waits.
    Line,
    /// The daemon dies, and the domain with the guest's memory: xl is told GO and cannot let it run. The guest is booted from
    /// its disks.
    DaemonAndDomain,
}
use Lost::{Daemon, DaemonAndDomain, DaemonAndXl, Line};

/// One fault.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fault {
    point: &'static str,
    lost: Lost,
    outcome: Outcome,
}

const fn fault(point: &'static str, lost: Lost, outcome: Outcome) -> Fault {
    Fault { point, lost, outcome }
}

/// Every message of xl's handshake, every phase of the disk and what stands between them, in order; then the line; last what
/// costs the guest its memory.
pub(super) const FAULTS: [Fault; 34] = [
    fault("destination:action:prepare_disks", Daemon, Back),
    fault("source:action:copy_disks", Daemon, Back),
    fault("source:action:run_round", Daemon, Back),
    fault("destination:action:start_incoming", Daemon, Back),
    fault("destination:transmit:memory_ready", DaemonAndXl, Back),
    fault("source:action:send_memory", Daemon, Back),
    // The domain is suspended, READY not given.
    fault("source:action:drain_disks", Daemon, Back),
    fault("source:action:drain_disks", DaemonAndXl, Back),
    fault("source:action:send_final", Daemon, Back),
    // READY is given, and GO comes.
    fault("source:action:finish_memory", Daemon, Back),
    fault("source:transmit:final", Daemon, Back),
    fault("destination:action:seal_disks", Daemon, Back),
    // GO is lost with the xl that said it.
    fault("source:journal:released", DaemonAndXl, Back),
    fault("destination:journalled:ready", Daemon, Either),
    // The copy is whole, and nobody waits for GO any more.
    fault("destination:journalled:ready", DaemonAndXl, Either),
    fault("source:journalled:released", Daemon, Forth),
    fault("source:journalled:released", DaemonAndXl, Forth),
    fault("destination:journalled:owned", Daemon, Forth),
    fault("destination:journalled:owned", DaemonAndXl, Forth),
    // The report is lost.
    fault("destination:journal:resumed", Daemon, Forth),
    fault("source:action:retire", Daemon, Forth),
    fault("source:transmit:offer", Line, Back),
    fault("source:action:copy_disks", Line, Back),
    fault("source:action:run_round", Line, Back),
    fault("destination:transmit:memory_ready", Line, Back),
    fault("source:action:send_memory", Line, Back),
    fault("source:action:drain_disks", Line, Back),
    fault("source:transmit:final", Line, Back),
    fault("destination:transmit:ready", Line, Either),
    // Released, and nobody there to hear it until the line is mended.
    fault("source:journal:released", Line, Forth),
    fault("source:transmit:release", Line, Forth),
    fault("destination:journalled:owned", Line, Forth),
    fault("destination:transmit:resumed", Line, Forth),
    fault("destination:journalled:owned", DaemonAndDomain, Forth),
];

/// Where the source's image is what it was when the VM was released, and the destination's is what the VM will run on: neither
/// is written to until a daemon is started again.
const AT_RELEASE: [&str; 2] = ["source:journalled:released", "destination:journalled:owned"];

/// Longer than the daemons' `idle_timeout_s`.
const CUT: Duration = Duration::from_secs(15);
/// How long a migration and the recovery after it may take.
const ATTEMPT: Duration = Duration::from_secs(400);
const SETTLE: Duration = Duration::from_secs(150);
const ALIVE: Duration = Duration::from_secs(60);

/// Whether these faults, numbered from 1, can be walked through in one run: one that costs the guest its memory makes another
/// of it, which writes over the first one's records.
pub(super) fn go_together(faults: &[usize]) -> bool {
    faults.len() == 1 || !faults.iter().any(|number| costs_memory(*number))
}

/// All that go together.
pub(super) fn together() -> Vec<usize> {
    (1..=FAULTS.len()).filter(|number| !costs_memory(*number)).collect()
}

fn costs_memory(number: usize) -> bool {
    FAULTS[number - 1].lost == DaemonAndDomain
}

/// Walks through these faults, numbered from 1. The guest is on the first host before and after.
pub(super) fn run(
    pair: &XenPair,
    hosts: &mut [&XenHost; 2],
    collector: &Collector,
    faults: &[usize],
) -> Result<()> {
    for (number, fault) in FAULTS.iter().enumerate().map(|(index, fault)| (index + 1, fault)) {
        if !faults.contains(&number) {
            continue;
        }
        step(&format!("fault {number} of {}: {:?} lost at {}", FAULTS.len(), fault.lost, fault.point));
        let started = Instant::now();
        let outcome = attempt(pair, *hosts, collector, fault).with_context(|| {
            let logs = hosts.map(|host| format!("--- {}\n{}", host.name(), product::trouble(host, VM)));
            format!("{}\n{}", fault.point, logs.join("\n"))
        })?;
        println!(
            "    {outcome:?} after {:.1} s; one domain, alive, nothing left",
            started.elapsed().as_secs_f64()
        );
        if outcome == Forth {
            hosts.swap(0, 1);
        }
    }
    Ok(())
}

fn attempt(
    pair: &XenPair,
    [from, to]: [&XenHost; 2],
    collector: &Collector,
    fault: &Fault,
) -> Result<Outcome> {
    let victim = if fault.point.starts_with("source:") { from } else { to };
    let image = disk_of(from, VM, "xvda")?;
    product::kill_daemon(victim)?;
    let variable = if fault.lost == Line { "LONGHAUL_STOP_AT" } else { "LONGHAUL_CRASH_AT" };
    product::start_daemon(victim, &format!("{variable}={}", fault.point))?;
    // Not waited for: the other daemon may wait for an answer for a minute.
    from.run(&format!(
        "setsid /lab/longhaul --json migrate {VM} --to {} >/tmp/migrate.out 2>&1 &",
        to.name()
    ))?;
    match fault.lost {
        Line => {
            wait_for("the daemon to be halted", ATTEMPT, || {
                Ok(product::daemon(victim)? == product::Daemon::Halted)
            })?;
            pair.cut(true)?;
            product::signal_daemon(victim, "CONT")?;
            std::thread::sleep(CUT);
            pair.cut(false)?;
        }
        Daemon | DaemonAndXl | DaemonAndDomain => {
            wait_for("the daemon to be killed", ATTEMPT, || {
                Ok(product::daemon(victim)? == product::Daemon::Dead)
            })?;
            if AT_RELEASE.contains(&fault.point) {
                let arrived = names(to)?;
                let arrived = disk_of(to, arrived.first().context("a domain at the destination")?, "xvda")?;
                let sum = |host: &XenHost, path: &str| host.run(&format!("sha256sum <{path}"));
                ensure!(sum(from, &image)? == sum(to, &arrived)?, "the images differ at release");
                println!("    at release both images are the same, byte for byte");
            }
            if fault.lost == DaemonAndXl {
                // xl and its keeper, one the parent of the other, at once: neither can clean up after the other.
                victim.run(&format!(
                    "p=$(cat /run/longhaul/vm/{VM}/xl.pid); kill -9 $p $(pgrep -P $p); true"
                ))?;
            }
            if fault.lost == DaemonAndDomain {
                victim.run(&format!("xl destroy {VM}--incoming"))?;
            }
            product::start_daemon(victim, "")?;
        }
    }
    wait_for("both daemons' jobs to end", SETTLE, || Ok(settled(from)? && settled(to)?))?;
    let boots = if fault.lost == DaemonAndDomain { 2 } else { 1 };
    wait_for("the guest", ALIVE, || Ok(collector.instances().len() >= boots))?;
    collector.wait_progress(4, ALIVE).context("the guest is dead")?;
    let (left, right) = (names(from)?, names(to)?);
    let outcome = match (left.as_slice(), right.as_slice()) {
        ([name], []) if name == VM => Back,
        ([], [name]) if name == VM => Forth,
        _ => bail!("{} has {left:?}, {} has {right:?}", from.name(), to.name()),
    };
    ensure!(fault.outcome == Either || fault.outcome == outcome, "the guest went {outcome:?}");
    ensure!(collector.duplicates() == 0, "{} packets came twice", collector.duplicates());
    ensure!(collector.instances().len() == boots, "the guest was booted again");
    Ok(outcome)
}

fn settled(host: &XenHost) -> Result<bool> {
    let jobs = product::json(host, "job list")?;
    Ok(jobs.as_array().into_iter().flatten().all(|job: &Value| job["state"] != "running"))
}

fn wait_for(what: &str, bound: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !done()? {
        ensure!(started.elapsed() < bound, "waited {bound:?} for {what}");
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}
