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

use std::ops::RangeInclusive;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use harness::lab::apt;
use harness::{Collector, Lab, XenPair};

use crate::tasks;
use machine::Machine;

/// How often the guest moves by `xl migrate` alone, and by `longhaul migrate --cold`.
const SHARED_MOVES: usize = 3;
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

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    /// Build, boot, one `xl migrate`, and no more.
    smoke: bool,
    /// Without what Xen does by itself.
    alone: bool,
    /// How often the guest moves.
    moves: usize,
    /// Where the figures go; a drawing of them beside it.
    json: Option<PathBuf>,
    /// Two hosts with a guest, for a person to look at, instead.
    hold: bool,
    /// The drivers' conformance suite instead.
    conformance: bool,
    /// A guest whose address follows it instead.
    mobility: bool,
    /// Domains of other kinds instead.
    kinds: bool,
    /// Which faults to walk through instead.
    walk: Option<RangeInclusive<usize>>,
}

impl Options {
    /// Reads the words after `lab xen`.
    ///
    /// # Errors
    /// Names the word that it does not know.
    pub(crate) fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self {
            smoke: false,
            alone: false,
            moves: 3,
            json: None,
            hold: false,
            conformance: false,
            mobility: false,
            kinds: false,
            walk: None,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "--smoke" => options.smoke = true,
                "--alone" => options.alone = true,
                "--hold" => options.hold = true,
                "--conformance" => options.conformance = true,
                "--mobility" => options.mobility = true,
                "--kinds" => options.kinds = true,
                "--moves" => {
                    let moves = words.next().and_then(|word| word.parse().ok());
                    options.moves =
                        moves.filter(|moves| (1..=100).contains(moves)).context("--moves takes 1 to 100")?;
                }
                "--json" => options.json = Some(words.next().context("--json needs a file")?.into()),
                "--walk" => {
                    let range = words.next().and_then(|word| {
                        let (from, to) = word.split_once('-')?;
                        Some(from.parse().ok()?..=to.parse().ok()?)
                    });
                    options.walk = Some(range.context("--walk takes FROM-TO, as 1-33")?);
                }
                _ => bail!(
                    "lab xen has no option `{word}`; it has --smoke, --alone, --hold, --conformance, --mobility, --kinds, --moves N, --json FILE and --walk FROM-TO"
                ),
            }
        }
        Ok(options)
    }
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
    if options.hold {
        return hold(&pair);
    }
    if options.conformance {
        return self::conformance::run(&pair);
    }
    if options.mobility {
        return mobility::run(&pair);
    }
    if options.kinds {
        return kinds::run(&pair);
    }
    let mut figures = Figures::default();
    if !options.alone {
        figures.shared = plain::live(&pair, if options.smoke { 1 } else { SHARED_MOVES })?;
    }
    if options.smoke {
        return Ok(());
    }
    if !options.alone {
        figures.copied = Some(plain::copied(&pair)?);
    }
    let collector = pair.collector()?;
    live::prepare(&pair, &collector)?;
    let mut hosts = [&pair.a, &pair.b];
    match &options.walk {
        Some(range) => walk::run(&pair, &mut hosts, &collector, range.clone())?,
        None => {
            figures.live = live::run(&mut hosts, &collector, options.moves, "")?;
            figures.cold = live::run(&mut hosts, &collector, COLD_MOVES, "--cold")?;
        }
    }
    let last = hosts[0].name().to_owned();
    prove(pair, &collector, &last)?;
    report(options, &figures)
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
    let (last, path) = match host {
        "a" => (&pair.a, "/disk.raw"),
        _ => (&pair.b, "/var/images/u1/xvda.raw"),
    };
    // From then on nothing is acknowledged.
    last.run(&format!("xl pause {}; sleep 1; sync", machine::VM))?;
    let instance = collector.instance().context("a guest that was heard")?;
    let acked = collector.acked();
    let (_dir, image) = pair.into_file(host, path)?;
    let records = harness::verify_records(&image, instance, acked)?;
    println!("    {records:?}");
    ensure!(records.is_whole() && records.found > 0, "acknowledged records are missing: {records:?}");
    Ok(())
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
