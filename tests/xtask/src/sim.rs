//! `cargo xtask sim`: the simulation of the hand-off, which stands among the tests of longhaul-proto, over as many seeds as
//! one likes. It only starts it and reads how it ended.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::tasks::cargo_command;

/// The test that runs the seeds.
const TEST: [&str; 8] = [
    "test",
    "--package",
    "longhaul-proto",
    "--lib",
    "--",
    "handoff::tests::seeds::many_seeds",
    "--exact",
    "--nocapture",
];
/// What the test begins a line with that is meant to be seen.
const SHOWN: &str = "sim: ";

/// Which seeds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    seeds: u64,
    first: u64,
}

impl Options {
    /// Reads the words after `sim`.
    ///
    /// # Errors
    /// Names the word that it does not know.
    pub(crate) fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self { seeds: 100_000, first: 0 };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut number = || -> Result<u64> {
                let text = words.next().with_context(|| format!("{word} needs a number"))?;
                text.parse().with_context(|| format!("{word} takes a number, not {text:?}"))
            };
            match *word {
                "--seeds" => options.seeds = number()?,
                "--from" => options.first = number()?,
                _ => bail!("sim has no option `{word}`; it has --seeds N and --from S"),
            }
        }
        if options.seeds == 0 {
            bail!("--seeds takes a number from 1 on");
        }
        Ok(options)
    }
}

/// Builds the simulation and runs it on all processors. Everything is shown of a single seed, and of one that fails.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut command = cargo_command();
    command
        .args(TEST)
        .env("LONGHAUL_SEEDS", options.seeds.to_string())
        .env("LONGHAUL_FIRST_SEED", options.first.to_string())
        .env("RUST_BACKTRACE", "0")
        .stdout(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn().context("starting cargo test")?;
    let output = child.stdout.take().context("the simulation's output")?;
    let clean = follow(output, options.seeds == 1)?;
    let ended = child.wait().context("waiting for the simulation")?;
    let seconds = start.elapsed().as_secs_f64();
    if !ended.success() {
        bail!(
            "a promise is broken; what happened stands above. Run the seed that it names again: \
             cargo xtask sim --seeds 1 --from SEED"
        );
    }
    if !clean {
        bail!("the simulation did not say that its seeds are clean: is {} still its name?", TEST[5]);
    }
    println!("sim: {seconds:.0} s, building included");
    Ok(())
}

/// Shows the lines of the test; whether it said that all seeds are clean.
fn follow(output: impl Read, all: bool) -> Result<bool> {
    let mut clean = false;
    for line in BufReader::new(output).lines() {
        let line = line.context("reading the simulation's output")?;
        if all || line.starts_with(SHOWN) {
            println!("{line}");
        }
        clean |= line.starts_with(SHOWN) && line.contains(" are clean: ");
    }
    Ok(clean)
}

#[cfg(test)]
mod tests;
