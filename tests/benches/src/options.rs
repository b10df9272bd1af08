//! The command line of a benchmark, parsed before anything is done.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// Nobody waits for more runs than this.
const MAX_RUNS: u32 = 100;

/// Which benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bench {
    Store,
    Chunking,
}

/// How to run it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) bench: Bench,
    /// Where the figures go, one JSON object a line.
    pub(crate) json: Option<PathBuf>,
    /// The small image, and one run.
    pub(crate) quick: bool,
    /// How often each is measured.
    pub(crate) runs: u32,
}

impl Options {
    /// # Errors
    /// Names the word that it does not know.
    pub(crate) fn parse(words: &[&str]) -> Result<Self> {
        let (name, rest) = words.split_first().context("name a benchmark: store or chunking")?;
        let bench = match *name {
            "store" => Bench::Store,
            "chunking" => Bench::Chunking,
            _ => bail!("there is no benchmark `{name}`; there are store and chunking"),
        };
        let (mut json, mut quick, mut runs) = (None, false, None);
        let mut rest = rest.iter();
        while let Some(word) = rest.next() {
            let mut value = || rest.next().with_context(|| format!("{word} needs a value"));
            match *word {
                "--json" => json = Some(PathBuf::from(value()?)),
                "--runs" => runs = Some(parse_runs(value()?)?),
                "--quick" => quick = true,
                _ => bail!("bench has no option `{word}`; it has --json FILE, --runs N and --quick"),
            }
        }
        Ok(Self { bench, json, quick, runs: runs.unwrap_or(if quick { 1 } else { 3 }) })
    }
}

fn parse_runs(text: &str) -> Result<u32> {
    let runs = text.parse().ok().filter(|runs| (1..=MAX_RUNS).contains(runs));
    runs.with_context(|| format!("--runs takes a number from 1 to {MAX_RUNS}, not {text:?}"))
}

#[cfg(test)]
mod tests;
