//! The tasks that run cargo: bench, test and ci, and what they build first.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use harness::Lab;
use harness::lab::{apt, workspace};

use crate::{fuzz, tidy, xen};

/// CI has an hour, and the Xen lab takes up to a quarter of one where it has to be made first.
const TIME_FOR_XEN: Duration = Duration::from_secs(40 * 60);

/// Builds the product's programs where the tests and the demo look for them.
pub(crate) fn build() -> Result<()> {
    cargo(&["build", "--workspace", "--bins"], &[])
}

/// Installs, builds and runs everything that can be tested; gives the closing line, which is printed.
pub(crate) fn test() -> Result<String> {
    apt::setup()?;
    apt::install(apt::ORACLES)?;
    build()?;
    // Here rather than in the first test that needs it, where it would look like a slow test.
    let lab = Lab::open()?;
    lab.small_base()?;
    lab.base()?;
    let start = Instant::now();
    let totals = run_tests()?;
    let closing = format!(
        "\nall tests: {} passed, {} failed, {} ignored in {} programs, {:.0} s",
        totals.passed,
        totals.failed,
        totals.ignored,
        totals.programs,
        start.elapsed().as_secs_f64()
    );
    println!("{closing}");
    if totals.failed > 0 || !totals.success {
        bail!("the tests did not all pass; what failed stands above");
    }
    Ok(closing)
}

/// Builds the benchmarks and runs one; what its words mean is its own business.
pub(crate) fn bench(words: &[&str]) -> Result<()> {
    let run = ["run", "--quiet", "--package", "benches", "--bin", "bench", "--"];
    cargo(&[&run, words].concat(), &[])
}

/// What CI runs: all of `test` and, when the hour that it has is not spent by then, the short form of the Xen lab.
pub(crate) fn ci() -> Result<()> {
    let started = Instant::now();
    cargo(&["fmt", "--all", "--check"], &[])?;
    cargo(&["fmt", "--manifest-path", fuzz::MANIFEST, "--check"], &[])?;
    // Fails when its lock file is not that of its crates: nothing else here resolves them.
    cargo(&["tree", "--manifest-path", fuzz::MANIFEST, "--locked", "--depth", "0"], &[])?;
    tidy()?;
    cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], &[])?;
    cargo(&["doc", "--workspace", "--no-deps"], &[("RUSTDOCFLAGS", "-D warnings")])?;
    let closing = test()?;
    if started.elapsed() < TIME_FOR_XEN {
        xen::run(&xen::Options::parse(&["--smoke"])?)?;
        println!("\nXen: a guest was moved alive and back cold, and has every record");
    } else {
        println!("\nXen: left out, it is late; `cargo xtask lab xen --smoke` runs it");
    }
    println!("{closing}");
    Ok(())
}

/// Prints every broken rule.
pub(crate) fn tidy() -> Result<()> {
    let broken = tidy::check(&workspace())?;
    for line in &broken {
        println!("{line}");
    }
    if broken.is_empty() {
        println!("tidy: all rules kept");
        return Ok(());
    }
    bail!("tidy: {} broken rules", broken.len())
}

/// What the test programs counted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    programs: u32,
    passed: u32,
    failed: u32,
    ignored: u32,
    success: bool,
}

fn run_tests() -> Result<Totals> {
    let mut command = cargo_command();
    command.args(["test", "--workspace", "--no-fail-fast"]).stdout(Stdio::piped());
    println!("$ cargo test --workspace --no-fail-fast");
    let mut child = command.spawn().context("starting cargo test")?;
    let output = child.stdout.take().context("cargo test's output")?;
    let mut totals = Totals::default();
    for line in BufReader::new(output).lines() {
        let line = line.context("reading cargo test's output")?;
        totals.count(&line);
        println!("{line}");
    }
    totals.success = child.wait()?.success();
    Ok(totals)
}

impl Totals {
    /// Adds a test program's closing line: `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
    fn count(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        self.programs += 1;
        let words: Vec<&str> = result.split([' ', ';']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            let Ok(number) = pair[0].parse::<u32>() else { continue };
            match pair[1] {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

fn cargo(arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    println!("$ cargo {}", arguments.join(" "));
    let status = cargo_command()
        .args(arguments)
        .envs(environment.iter().copied())
        .status()
        .with_context(|| format!("starting cargo {}", arguments[0]))?;
    if !status.success() {
        bail!("`cargo {}` failed", arguments.join(" "));
    }
    Ok(())
}

pub(crate) fn cargo_command() -> Command {
    let cargo = std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from);
    let mut command = Command::new(cargo);
    command.current_dir(workspace());
    // What `cargo run` sets for this program is not for what it builds: ring's build script watches these variables, and
    // everything above it would be built again whenever cargo is called by hand in between.
    let own = std::env::vars_os().map(|(name, _)| name);
    for name in own.filter(|name| {
        name.to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
    }) {
        command.env_remove(name);
    }
    command
}

#[cfg(test)]
mod tests;
