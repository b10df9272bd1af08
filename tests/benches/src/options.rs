//! The command line of a benchmark, parsed before anything is done.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use mobility::DataPlane;

/// Nobody waits for more runs than this.
const MAX_RUNS: u32 = 100;

/// Chunks in an index: a TiB has 16 million.
const ENTRIES: u64 = 10_000_000;
const ENTRIES_QUICK: u64 = 500_000;
const MIN_ENTRIES: u64 = 100_000;
/// More than 100 GB of index.
const MAX_ENTRIES: u64 = 1_000_000_000;

/// Which benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bench {
    Store,
    Chunking,
    Index,
    Mobility,
}

/// Round trips between a platform and the home agent, in ms.
const POINTS: [u32; 6] = [0, 25, 50, 100, 200, 300];
const POINTS_QUICK: [u32; 2] = [0, 100];
/// Nobody is further away, and a move waits for several round trips.
const MAX_POINT: u32 = 2000;

/// What of the mobility benchmark is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// How fast tunnels are.
    Rates,
    /// How soon a large anchor switches.
    Bindings,
    /// Gaps and losses of moves.
    Moves,
    /// The same in a guest with Debian's kernel.
    Guest,
    /// In that guest: with the delay of its kernel.
    Netem,
    /// Nothing: the drawing is made again, of the figures in the file.
    Drawing,
}

impl Part {
    const NAMES: [(&str, Self); 6] = [
        ("rates", Self::Rates),
        ("bindings", Self::Bindings),
        ("moves", Self::Moves),
        ("guest", Self::Guest),
        ("netem", Self::Netem),
        ("drawing", Self::Drawing),
    ];

    fn parse(text: &str) -> Result<Self> {
        let found = Self::NAMES.into_iter().find(|(name, _)| *name == text);
        found.map(|(_, part)| part).with_context(|| {
            let names = Self::NAMES.map(|(name, _)| name).join(", ");
            format!("--part takes one of {names}, not {text:?}")
        })
    }
}

/// How to run it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) bench: Bench,
    /// Where the figures go, one JSON object a line.
    pub(crate) json: Option<PathBuf>,
    /// The small image or index, and one run.
    pub(crate) quick: bool,
    /// How often each is measured.
    pub(crate) runs: u32,
    /// Entries in the index; for that benchmark only.
    pub(crate) entries: u64,
    /// Round trips in ms, for mobility only.
    pub(crate) points: Vec<u32>,
    /// On which data plane the guest moves, for mobility only; the best of this kernel's when none is named.
    pub(crate) plane: Option<DataPlane>,
    /// The only part that is measured, for mobility only: else rates, bindings and moves.
    pub(crate) part: Option<Part>,
}

impl Options {
    /// # Errors
    /// Names the word that it does not know.
    pub(crate) fn parse(words: &[&str]) -> Result<Self> {
        let (name, rest) =
            words.split_first().context("name a benchmark: store, chunking, index or mobility")?;
        let bench = match *name {
            "store" => Bench::Store,
            "chunking" => Bench::Chunking,
            "index" => Bench::Index,
            "mobility" => Bench::Mobility,
            _ => bail!("there is no benchmark `{name}`; there are store, chunking, index and mobility"),
        };
        let (mut json, mut quick, mut runs, mut entries, mut points, mut plane) = Default::default();
        let mut part = None;
        let mut rest = rest.iter();
        while let Some(word) = rest.next() {
            let mut value = || rest.next().with_context(|| format!("{word} needs a value"));
            match *word {
                "--json" => json = Some(PathBuf::from(value()?)),
                "--runs" => runs = Some(parse_runs(value()?)?),
                "--quick" => quick = true,
                "--entries" if bench == Bench::Index => entries = Some(parse_entries(value()?)?),
                "--points" if bench == Bench::Mobility => points = Some(parse_points(value()?)?),
                "--plane" if bench == Bench::Mobility => plane = Some(parse_plane(value()?)?),
                "--part" if bench == Bench::Mobility => part = Some(Part::parse(value()?)?),
                _ => bail!(
                    "bench {name} has no option `{word}`; there are --json FILE, --runs N and --quick, for index --entries N, \
                     for mobility --points MS,MS, --plane NAME and --part NAME"
                ),
            }
        }
        let all_runs = if bench == Bench::Mobility { 20 } else { 3 };
        let runs = runs.unwrap_or(if quick { 1 } else { all_runs });
        let points = points.unwrap_or(if quick { POINTS_QUICK.to_vec() } else { POINTS.to_vec() });
        let entries = entries.unwrap_or(if quick { ENTRIES_QUICK } else { ENTRIES });
        Ok(Self { bench, json, quick, runs, entries, points, plane, part })
    }
}

fn parse_runs(text: &str) -> Result<u32> {
    let runs = text.parse().ok().filter(|runs| (1..=MAX_RUNS).contains(runs));
    runs.with_context(|| format!("--runs takes a number from 1 to {MAX_RUNS}, not {text:?}"))
}

fn parse_entries(text: &str) -> Result<u64> {
    let entries = text.parse().ok().filter(|entries| (MIN_ENTRIES..=MAX_ENTRIES).contains(entries));
    entries.with_context(|| {
        format!("--entries takes a number from {MIN_ENTRIES} to {MAX_ENTRIES}, not {text:?}")
    })
}

fn parse_plane(text: &str) -> Result<DataPlane> {
    text.parse().ok().with_context(|| format!("--plane takes ip6tnl, seg6 or tun, not {text:?}"))
}

fn parse_points(text: &str) -> Result<Vec<u32>> {
    let point = |word: &str| word.parse().ok().filter(|point| *point <= MAX_POINT);
    let points: Option<Vec<u32>> = text.split(',').map(point).collect();
    points.with_context(|| {
        format!("--points takes round trips in ms up to {MAX_POINT}, as in 0,100, not {text:?}")
    })
}

#[cfg(test)]
mod tests;
