//! `cargo xtask lab xen`: two real Xen hosts in emulators, and guests that move between them. Each hour of a real site
//! costs minutes here; what must hold on Xen is shown on Xen. Reaches the product only through its command line.

mod conformance;
mod kinds;
mod live;
mod machine;
mod mobility;
mod plain;
mod product;
mod table;
mod walk;
mod watch;

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use harness::lab::apt;
use harness::{Collector, Lab, XenHost, XenPair};
use serde_json::Value;

use crate::tasks;
use machine::Machine;

/// How often the guest moves by `longhaul migrate --cold`.
const COLD_MOVES: usize = 1;

/// What was measured.
#[derive(Debug, Default)]
struct Figures {
    /// Experiment 1: by xl alone, with a shared disk.
    shared: Vec<plain::Shared>,
    /// Experiment 2: saved, copied by scp, restored.
    copied: Option<plain::Copied>,
    cold: Vec<live::Moved>,
    live: Vec<live::Moved>,
}

/// What is run on the two hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    /// The figures, then all faults that can be walked through together.
    All,
    /// The figures alone.
    Figures,
    /// One move there, alive, and one back, cold, with proof.
    Smoke,
    /// These faults, with proof.
    Walk(Vec<usize>),
    /// The drivers' conformance suite.
    Conformance,
    /// Domains of other kinds.
    Kinds,
    /// A guest whose address follows it.
    Mobility,
    /// Nothing: they are left to a person.
    Hold,
}

/// What to run, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    what: What,
    /// Figures without Experiment 2, which takes longest.
    alone: bool,
    /// How often the guest moves for the figures, by `xl migrate` alone and by `longhaul migrate`.
    moves: usize,
    /// Where the figures go; a drawing of them beside it.
    json: Option<PathBuf>,
}

impl Options {
    /// Reads the words after `lab xen`.
    ///
    /// # Errors
    /// Names the word that it does not know.
    pub(crate) fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self { what: What::All, alone: false, moves: 3, json: None };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "--figures" => options.what = What::Figures,
                "--smoke" => options.what = What::Smoke,
                "--conformance" => options.what = What::Conformance,
                "--kinds" => options.what = What::Kinds,
                "--mobility" => options.what = What::Mobility,
                "--hold" => options.what = What::Hold,
                "--walk" => {
                    let faults = words.next().and_then(|list| faults(list));
                    let faults = faults.context("--walk takes numbers, as 1-6,20,30-33")?;
                    if !walk::go_together(&faults) {
                        bail!(
                            "--walk: the last fault costs the guest its memory, and so the proof of others: run it alone"
                        );
                    }
                    options.what = What::Walk(faults);
                }
                "--alone" => options.alone = true,
                "--moves" => {
                    let moves = words.next().and_then(|word| word.parse().ok());
                    options.moves =
                        moves.filter(|moves| (1..=100).contains(moves)).context("--moves takes 1 to 100")?;
                }
                "--json" => options.json = Some(words.next().context("--json needs a file")?.into()),
                _ => bail!(
                    "lab xen has no option `{word}`; it has --figures, --smoke, --walk FAULTS, --conformance, --kinds, \
                     --mobility, --hold, --alone, --moves N and --json FILE"
                ),
            }
        }
        Ok(options)
    }
}

/// Numbers and ranges of them.
fn faults(list: &str) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for range in list.split(',') {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        let (from, to): (usize, usize) = (from.parse().ok()?, to.parse().ok()?);
        all.extend(from.max(1)..=to.min(walk::FAULTS.len()));
    }
    Some(all)
}

/// Installs, builds, boots both hosts, and runs what was asked for.
pub(crate) fn run(options: &Options) -> Result<()> {
    step("installing what is missing");
    apt::setup()?;
    step("building");
    tasks::build()?;
    step("the lab: hypervisor, kernels, root file system");
    let lab = Lab::open()?;
    let machine = Machine::make(&lab)?;
    step("two Xen hosts");
    let pair = boot(&lab, &machine)?;
    match &options.what {
        What::Figures => measure(pair, options),
        What::All => {
            measure(pair, options)?;
            step("two Xen hosts anew, for the faults");
            let pair = boot(&lab, &machine)?;
            with_guest(pair, |pair, hosts, collector| walk::run(pair, hosts, collector, &walk::together()))
        }
        What::Smoke => with_guest(pair, |pair, hosts, collector| {
            live::run(pair, hosts, collector, 1, "")?;
            live::run(pair, hosts, collector, 1, "--cold").map(drop)
        }),
        What::Walk(faults) => {
            with_guest(pair, |pair, hosts, collector| walk::run(pair, hosts, collector, faults))
        }
        What::Conformance => self::conformance::run(&pair),
        What::Kinds => kinds::run(&pair),
        What::Mobility => mobility::run(&pair),
        What::Hold => hold(&pair),
    }
}

/// The paper's experiments and ours, and their table.
fn measure(pair: XenPair, options: &Options) -> Result<()> {
    let mut figures = Figures { shared: plain::live(&pair, options.moves)?, ..Figures::default() };
    if !options.alone {
        figures.copied = Some(plain::copied(&pair)?);
    }
    with_guest(pair, |pair, hosts, collector| {
        figures.live = live::run(pair, hosts, collector, options.moves, "")?;
        figures.cold = live::run(pair, hosts, collector, COLD_MOVES, "--cold")?;
        report(options, &figures)
    })
}

/// Has `work` done to the guest, which is on the first of the hosts before and after; then looks for every record.
fn with_guest(
    pair: XenPair,
    work: impl FnOnce(&XenPair, &mut [&XenHost; 2], &Collector) -> Result<()>,
) -> Result<()> {
    let collector = pair.collector()?;
    live::prepare(&pair, &collector)?;
    let mut hosts = [&pair.a, &pair.b];
    work(&pair, &mut hosts, &collector)?;
    let last = hosts[0].name().to_owned();
    prove(pair, &collector, &last)
}

/// Prints the table; figures and drawing go where they are wanted.
fn report(options: &Options, figures: &Figures) -> Result<()> {
    let columns = &table::columns(figures);
    println!("\n{}", table::text(columns));
    if let Some(file) = &options.json {
        let lines = table::figures(columns).iter().map(|line| format!("{line}\n")).collect::<String>();
        harness::files::write(file, lines)?;
        harness::files::write(&file.with_extension("svg"), table::svg(columns))?;
    }
    Ok(())
}

/// Every acknowledged record is on the disk of the host that the guest runs on.
fn prove(pair: XenPair, collector: &Collector, host: &str) -> Result<()> {
    step("stopping it, and looking for every acknowledged record on the disk");
    let last = if host == "a" { &pair.a } else { &pair.b };
    let path = disk_of(last, machine::VM, "xvda")?;
    let below = path.strip_prefix("/lab").with_context(|| format!("a disk below /lab, not {path}"))?;
    // From then on nothing is acknowledged.
    last.run(&format!("xl pause {}; sleep 1; sync", machine::VM))?;
    let instance = collector.instance().context("a guest that was heard")?;
    let acked = collector.acked();
    let (_dir, image) = pair.into_file(host, below)?;
    let records = harness::verify_records(&image, instance, acked)?;
    println!("    {records:?}");
    ensure!(records.is_whole() && records.found > 0, "acknowledged records are missing: {records:?}");
    Ok(())
}

/// Where the image of a running domain's disk is, as xl has it.
fn disk_of(host: &XenHost, domain: &str, device: &str) -> Result<String> {
    let list: Value = serde_json::from_str(&host.run(&format!("xl list -l {domain}"))?)?;
    let disks = list[0]["config"]["disks"].as_array().into_iter().flatten();
    let path = disks.filter(|disk| disk["vdev"] == device).find_map(|disk| disk["pdev_path"].as_str());
    path.map(str::to_owned).with_context(|| format!("a disk {device} of {domain} in {list}"))
}

/// Leaves the hosts to a person, with daemons and a guest on a, until standard input ends.
fn hold(pair: &XenPair) -> Result<()> {
    let collector = pair.collector()?;
    live::prepare(pair, &collector)?;
    step("the hosts are yours, until standard input ends; a shell on each:");
    for host in [&pair.a, &pair.b] {
        let namespace = pair.namespace().path();
        println!("    nsenter --net={} socat - TCP:{}:2222", namespace.display(), host.address());
    }
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

fn boot(lab: &Lab, machine: &Machine) -> Result<XenPair> {
    let started = std::time::Instant::now();
    let pair = XenPair::boot(lab, &machine.own_a(), &machine.own_b(), &machine.shared())?;
    println!("    xl works on both after {:.1} s", started.elapsed().as_secs_f64());
    for host in [&pair.a, &pair.b] {
        let info = host
            .run("xl info | grep -E '^(release|xen_version|total_memory|free_memory|virt_caps)'; xl list")?;
        println!("  {}:\n{}", host.name(), indent(&info));
    }
    Ok(pair)
}

/// Says what happens now.
fn step(what: &str) {
    println!("--- {what}");
}

fn indent(text: &str) -> String {
    text.trim().lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}
