//! `cargo xtask lab xen`: two real Xen hosts in emulators, and guests that move between them. Each hour of a real site
//! costs minutes here; what must hold on Xen is shown on Xen. Reaches the product only through its command line.

mod live;
mod machine;
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
    /// Which faults to walk through instead.
    walk: Option<RangeInclusive<usize>>,
}

impl Options {
    /// Reads the words after `lab xen`.
    ///
    /// # Errors
    /// Names the word that it does not know.
    pub(crate) fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self { smoke: false, alone: false, moves: 3, json: None, walk: None };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "--smoke" => options.smoke = true,
                "--alone" => options.alone = true,
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
                    options.walk = Some(range.context("--walk takes FROM-TO, as 1-16")?);
                }
                _ => bail!(
                    "lab xen has no option `{word}`; it has --smoke, --alone, --moves N, --json FILE and --walk FROM-TO"
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
    let plain = if options.alone { None } else { Some(plain::live(&pair)?) };
    if options.smoke {
        return Ok(());
    }
    let copied = if options.alone { None } else { Some(plain::copied(&pair)?) };
    let collector = pair.collector()?;
    live::prepare(&pair, &collector)?;
    let (moved, last) = match &options.walk {
        Some(range) => (Vec::new(), walk::run(&pair, &collector, range.clone())?),
        None => live::run(&pair, &collector, options.moves)?,
    };
    let last = last.name().to_owned();
    prove(pair, &collector, &last)?;
    for moved in &moved {
        println!(
            "    longhaul without shared storage: not heard for {:.0} ms",
            moved.unreachable.as_secs_f64() * 1e3
        );
    }
    if let Some(plain) = plain {
        println!("    xl migrate with a shared disk: not heard for {:.0} ms", plain.as_secs_f64() * 1e3);
    }
    if let Some(copied) = copied {
        report(options, &table::columns(&copied, &moved))?;
    }
    Ok(())
}

/// Prints the table; figures and drawing go where they are wanted.
fn report(options: &Options, columns: &[table::Column]) -> Result<()> {
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
