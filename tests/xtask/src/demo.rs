//! `cargo xtask demo`: the main job on real input. A real guest on a real Debian disk moves between two platforms that
//! share nothing, and the proof that nothing was lost follows. Reaches the product only through its command line.

mod measured;
mod scenario;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use harness::Lab;
use harness::lab::apt;

use crate::tasks;
use measured::{Measured, summary};

/// Nobody waits for more runs than this.
const MAX_RUNS: u32 = 1000;

/// How to run the demo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    /// Where the figures go as JSON: an object, or with several runs an array of them.
    json: Option<PathBuf>,
    /// Whether the destination gets the base image before the guest moves.
    preseed: bool,
    /// Whether the platforms are in networks of their own, and the guest's address follows it.
    mobility: bool,
    /// How often.
    runs: u32,
}

impl Options {
    /// Reads the words after `demo`.
    ///
    /// # Errors
    /// Names the word that it does not know.
    pub(crate) fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self { json: None, preseed: true, mobility: false, runs: 1 };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value"));
            match *word {
                "--json" => options.json = Some(PathBuf::from(value()?)),
                "--no-preseed" => options.preseed = false,
                "--mobility" => options.mobility = true,
                "--runs" => options.runs = parse_runs(value()?)?,
                _ => bail!(
                    "demo has no option `{word}`; it has --json FILE, --no-preseed, --mobility and --runs N"
                ),
            }
        }
        Ok(options)
    }
}

fn parse_runs(text: &str) -> Result<u32> {
    let runs = text.parse().ok().filter(|runs| (1..=MAX_RUNS).contains(runs));
    runs.with_context(|| format!("--runs takes a number from 1 to {MAX_RUNS}, not {text:?}"))
}

/// Installs, builds, makes the images, and runs the scenario as often as asked.
pub(crate) fn run(options: &Options) -> Result<()> {
    step("installing what is missing");
    apt::setup()?;
    step("building");
    tasks::build()?;
    step("the lab: kernel, initramfs, base image");
    let lab = Lab::open()?;
    let base = lab.base()?;

    let mut all = Vec::new();
    let mut last_report = String::new();
    for number in 1..=options.runs {
        if options.runs > 1 {
            println!("\n=== run {number} of {}", options.runs);
        }
        let outcome = scenario::run(&lab, &base, options.preseed, options.mobility)
            .with_context(|| format!("the demo, run {number}"))?;
        println!("\n{}", outcome.text());
        outcome.proof()?;
        all.push(outcome.measured);
        last_report = outcome.report_text;
        // After each run, so that a later failure does not take the earlier figures with it.
        if let Some(file) = &options.json {
            write_json(file, &all, options.runs)?;
        }
    }
    if options.runs > 1 {
        println!("\nall {} runs kept every acknowledged record\n{}", options.runs, summary(&all));
    }
    println!("\n{}", last_report.trim_end());
    Ok(())
}

fn write_json(file: &Path, all: &[Measured], runs: u32) -> Result<()> {
    let text = match all {
        [one] if runs == 1 => serde_json::to_string_pretty(one),
        _ => serde_json::to_string_pretty(all),
    };
    let text = text.context("the figures as JSON")? + "\n";
    std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

/// Says what happens now.
fn step(what: &str) {
    println!("--- {what}");
}

#[cfg(test)]
mod tests;
