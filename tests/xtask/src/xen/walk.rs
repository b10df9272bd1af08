//! The fault walk on Xen: at every step of the hand-off a daemon dies, alone or with the xl beside it, and afterwards
//! exactly one domain runs, under its own name, with nothing left of the attempt.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use harness::{Collector, XenHost, XenPair};
use serde_json::Value;

use super::live::names;
use super::machine::VM;
use super::{product, step};

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

/// What dies at that point besides the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum With {
    /// Nothing: xl waits for the next daemon.
    Alone,
    /// xl and its keeper on the same host.
    Xl,
}
use With::{Alone, Xl};

/// One fault.
#[derive(Debug, Clone, Copy)]
struct Fault {
    point: &'static str,
    with: With,
    outcome: Outcome,
}

const fn fault(point: &'static str, with: With, outcome: Outcome) -> Fault {
    Fault { point, with, outcome }
}

/// Every message of xl's handshake and what stands between them, in order.
const FAULTS: [Fault; 16] = [
    fault("dest:action:start_incoming", Alone, Back),
    fault("source:action:send_memory", Alone, Back),
    fault("dest:transmit:memory_ready", Xl, Back),
    // The domain is suspended, READY not given.
    fault("source:action:drain_disks", Alone, Back),
    fault("source:action:drain_disks", Xl, Back),
    // READY is given, and GO comes.
    fault("source:action:finish_memory", Alone, Back),
    fault("source:transmit:final", Alone, Back),
    // GO is lost with the xl that said it.
    fault("source:journal:released", Xl, Back),
    fault("dest:journalled:ready", Alone, Either),
    // The copy is whole, and nobody waits for GO any more.
    fault("dest:journalled:ready", Xl, Either),
    fault("source:journalled:released", Alone, Forth),
    fault("source:journalled:released", Xl, Forth),
    fault("dest:journalled:owned", Alone, Forth),
    fault("dest:journalled:owned", Xl, Forth),
    // The report is lost.
    fault("dest:journal:resumed", Alone, Forth),
    fault("source:action:retire", Alone, Forth),
];

/// How long a migration and the recovery after it may take.
const ATTEMPT: Duration = Duration::from_secs(400);
const SETTLE: Duration = Duration::from_secs(150);
const ALIVE: Duration = Duration::from_secs(60);

/// Walks through the faults `from` to `to`, numbered from 1. The guest runs on a; where it runs in the end.
pub(super) fn run<'a>(
    pair: &'a XenPair,
    collector: &Collector,
    range: std::ops::RangeInclusive<usize>,
) -> Result<&'a XenHost> {
    let (mut at, mut other) = (&pair.a, &pair.b);
    for (number, fault) in FAULTS.iter().enumerate().map(|(index, fault)| (index + 1, fault)) {
        if !range.contains(&number) {
            continue;
        }
        step(&format!("fault {number} of {}: {} killed, {:?}", FAULTS.len(), fault.point, fault.with));
        let started = Instant::now();
        let outcome = attempt(at, other, collector, fault).with_context(|| {
            let logs = [at, other].map(|host| format!("--- {}\n{}", host.name(), product::trouble(host)));
            format!("{}\n{}", fault.point, logs.join("\n"))
        })?;
        println!(
            "    {outcome:?} after {:.1} s; one domain, alive, nothing left",
            started.elapsed().as_secs_f64()
        );
        if outcome == Forth {
            (at, other) = (other, at);
        }
    }
    Ok(at)
}

fn attempt(from: &XenHost, to: &XenHost, collector: &Collector, fault: &Fault) -> Result<Outcome> {
    let victim = if fault.point.starts_with("source:") { from } else { to };
    product::kill_daemon(victim)?;
    product::start_daemon(victim, &format!("LONGHAUL_CRASH_AT={}", fault.point))?;
    // Not waited for: the other daemon may wait for an answer for a minute.
    from.run(&format!(
        "setsid /lab/longhaul --json migrate {VM} --to {} >/tmp/migrate.out 2>&1 &",
        to.name()
    ))?;
    wait_for("the daemon to be killed", ATTEMPT, || Ok(!product::is_daemon_running(victim)?))?;
    if fault.with == Xl {
        // xl and its keeper, one the parent of the other, at once: neither can clean up after the other.
        victim.run(&format!("p=$(cat /run/longhaul/vm/{VM}/xl.pid); kill -9 $p $(pgrep -P $p); true"))?;
    }
    product::start_daemon(victim, "")?;
    wait_for("both daemons' jobs to end", SETTLE, || Ok(settled(from)? && settled(to)?))?;
    collector.wait_progress(4, ALIVE).context("the guest is dead")?;
    let (left, right) = (names(from)?, names(to)?);
    let outcome = match (left.as_slice(), right.as_slice()) {
        ([name], []) if name == VM => Back,
        ([], [name]) if name == VM => Forth,
        _ => bail!("{} has {left:?}, {} has {right:?}", from.name(), to.name()),
    };
    ensure!(fault.outcome == Either || fault.outcome == outcome, "the guest went {outcome:?}");
    ensure!(collector.duplicates() == 0, "{} packets came twice", collector.duplicates());
    ensure!(collector.instances().len() == 1, "the guest was booted again");
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
