//! `bench index`: the database that holds the store's index, redb, beside LMDB. Each step is a process of its own. It
//! measures the databases with the store's entries, not the store.
//!
//! A chunk's name (32 random bytes) leads to its place (24 bytes). The database is filled in order, as the store does
//! when it makes its index anew; then, opened again, it is asked for random names that it has and for such that it has
//! not, by one thread, after as many questions to warm it up; then random names are added, 65,536 in a durable
//! transaction.
//!
//! Memory is taken after the questions, in two ways. `rss_index` is what the process has for itself (RssAnon). LMDB has
//! next to nothing: it reads in a mapped file, whose pages are in the page cache, where the kernel takes them back when
//! somebody else needs room. `rss_index_mapped` counts these too (VmRSS), which is what people see; when the kernel has
//! taken them back, LMDB's questions go to the disk, as ours do beyond redb's cache and the page cache.
//!
//! One run, on 2 cores of an AMD EPYC with 23.5 GiB of memory, the file in the page cache:
//!
//! | | redb, 10 M | LMDB, 10 M | redb, 64 M | LMDB, 64 M |
//! |---|---|---|---|---|
//! | filled in order, entries/s | 498,000 | 3,133,000 | 551,000 | 2,038,000 |
//! | known names, 1/s | 180,000 | 733,000 | 98,400 | 527,000 |
//! | unknown names, 1/s | 196,000 | 564,000 | 117,000 | 464,000 |
//! | added, entries/s | 33,400 | 65,300 | 14,600 | 31,400 |
//! | file, MiB | 550 | 647 | 3521 | 4142 |
//! | memory of its own, MiB | 71 | 0.2 | 81 | 0.2 |
//! | with mapped pages, MiB | 74 | 650 | 84 | 4145 |
//!
//! So LMDB answers three to five times as fast, as long as all of its file lies in memory. The store keeps redb: at 100,000
//! questions a second an image of 64 KiB chunks is looked through at 6 GB/s, which is not what anybody waits for, and
//! its memory stays what it is however many chunks there are. fjall, an LSM tree, is left out: it alone takes more than
//! 20 s to build.

mod databases;
mod entries;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use harness::{files, lab};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::figures::{Better, Figure, Metric, Samples, json_lines, short, table};
use crate::machine::{self, status_bytes};
use crate::options::Options;
use crate::process::{measure, tree_bytes};
use databases::Database;
use entries::{entry, mixed, other, value};

const LOAD: Metric = Metric { name: "index_load", unit: "1/s", better: Better::More };
const HIT: Metric = Metric { name: "index_hit", unit: "1/s", better: Better::More };
const MISS: Metric = Metric { name: "index_miss", unit: "1/s", better: Better::More };
const INSERT: Metric = Metric { name: "index_insert", unit: "1/s", better: Better::More };
/// After filling.
const BYTES: Metric = Metric { name: "index_bytes", unit: "bytes", better: Better::Less };
const RSS: Metric = Metric { name: "rss_index", unit: "bytes", better: Better::Less };
const RSS_MAPPED: Metric = Metric { name: "rss_index_mapped", unit: "bytes", better: Better::Less };

const METRICS: [Metric; 7] = [LOAD, HIT, MISS, INSERT, BYTES, RSS, RSS_MAPPED];

/// As many as the store keeps before it writes them.
const BATCH: u64 = 65_536;

/// What was measured of a database, in the order of [`METRICS`].
type Measured = [Samples; METRICS.len()];

/// Runs the benchmark, prints its table and writes its figures.
///
/// # Errors
/// When a database fails or answers wrongly.
pub(crate) fn run(options: &Options) -> Result<()> {
    let lab = lab::directory();
    files::create_dir(&lab)?;
    let work = TempDir::with_prefix_in("bench-", lab).context("making a directory to work in")?;
    let mut measured: [Measured; databases::ALL.len()] = Default::default();
    for run in 1..=options.runs {
        for (database, samples) in databases::ALL.into_iter().zip(&mut measured) {
            let dir = work.path().join(database.name());
            measure_one(database, &dir, options.entries, samples)
                .with_context(|| format!("measuring {}", database.name()))?;
            println!("run {run} of {}: {}", options.runs, database.name());
        }
        // After each run, so that a later failure does not take the earlier figures with it.
        if let Some(file) = &options.json {
            files::write(file, json_lines(&figures(options.entries, &measured))?)?;
        }
    }
    println!("\n{}", report(options.entries, &measured)?);
    Ok(())
}

fn measure_one(database: Database, dir: &Path, entries: u64, samples: &mut Measured) -> Result<()> {
    files::remove(dir)?;
    files::create_dir(dir)?;
    let mut push = |metric, value| {
        if let Some(at) = METRICS.iter().position(|other| *other == metric) {
            samples[at].push(value);
        }
    };
    let worker = |step: &str| -> Result<Value> {
        let mut command = Command::new(std::env::current_exe().context("looking for this program's file")?);
        command.args(["worker", "index", step, database.name()]).arg(dir).arg(entries.to_string());
        let run = measure(&mut command)?;
        serde_json::from_str(&run.stdout).with_context(|| format!("a worker said {:?}", run.stdout))
    };
    let number = |answer: &Value, field: &str| {
        answer[field].as_f64().with_context(|| format!("a worker's answer has no number `{field}`: {answer}"))
    };
    let filled = worker("fill")?;
    push(LOAD, number(&filled, "per_s")?);
    push(BYTES, tree_bytes(dir)? as f64);
    let asked = worker("ask")?;
    push(HIT, number(&asked, "hits_per_s")?);
    push(MISS, number(&asked, "misses_per_s")?);
    push(RSS, number(&asked, "rss_anon")?);
    push(RSS_MAPPED, number(&asked, "rss")?);
    let inserted = worker("insert")?;
    push(INSERT, number(&inserted, "per_s")?);
    files::remove(dir)
}

/// What a worker does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Task {
    step: Step,
    database: Database,
    dir: PathBuf,
    entries: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Fill,
    Ask,
    Insert,
}

impl Task {
    /// The words after `worker index`.
    ///
    /// # Errors
    /// When they are no task.
    pub(crate) fn parse(words: &[&str]) -> Result<Self> {
        let [step, database, dir, entries] = *words else {
            bail!("there is no task `index {}`", words.join(" "))
        };
        let step = match step {
            "fill" => Step::Fill,
            "ask" => Step::Ask,
            "insert" => Step::Insert,
            _ => bail!("there is no task `index {step}`"),
        };
        let entries = entries.parse().context("the number of entries")?;
        Ok(Self { step, database: Database::parse(database)?, dir: dir.into(), entries })
    }

    /// Does it.
    ///
    /// # Errors
    /// What the database reports, or that it answered wrongly.
    pub(crate) fn run(&self) -> Result<Value> {
        match self.step {
            Step::Fill => self.fill(),
            Step::Ask => self.ask(),
            Step::Insert => self.insert(),
        }
    }

    fn fill(&self) -> Result<Value> {
        let entries = self.entries;
        let start = Instant::now();
        let mut all = (0..entries).map(|number| entry(number, entries));
        self.database.candidate().fill(&self.dir, &mut all)?;
        Ok(json!({ "per_s": per_s(entries, start) }))
    }

    fn ask(&self) -> Result<Value> {
        let entries = self.entries;
        // Enough to meet every part of the database; more would not be more exact.
        let questions = (entries / 8).clamp(100_000, 4_000_000);
        let mut answer = Value::Null;
        self.database.candidate().ask(&self.dir, &mut |get| {
            let mut hits = |from: u64| -> Result<f64> {
                let start = Instant::now();
                for question in from..from + questions {
                    let number = mixed(question) % entries;
                    let found = get(&entry(number, entries).0)?;
                    ensure!(found == Some(value(number)), "entry {number} is {found:?}");
                }
                Ok(per_s(questions, start))
            };
            hits(0)?;
            let hits_per_s = hits(questions)?;
            let start = Instant::now();
            for question in 0..questions {
                ensure!(get(&other(question))?.is_none(), "other {question} is here");
            }
            let misses_per_s = per_s(questions, start);
            let (rss_anon, rss) = (status_bytes("RssAnon")?, status_bytes("VmRSS")?);
            answer = json!({
                "hits_per_s": hits_per_s, "misses_per_s": misses_per_s, "rss_anon": rss_anon, "rss": rss
            });
            Ok(())
        })?;
        Ok(answer)
    }

    fn insert(&self) -> Result<Value> {
        let batches = (self.entries / 10 / BATCH).clamp(2, 16);
        let start = Instant::now();
        let mut all = (0..batches).map(|batch| {
            let mut added: Vec<_> =
                (batch * BATCH..(batch + 1) * BATCH).map(|number| (other(number), value(number))).collect();
            added.sort_unstable_by_key(|(key, _)| *key);
            added
        });
        self.database.candidate().insert(&self.dir, &mut all)?;
        Ok(json!({ "per_s": per_s(batches * BATCH, start) }))
    }
}

fn per_s(count: u64, start: Instant) -> f64 {
    count as f64 / start.elapsed().as_secs_f64()
}

/// How many entries, in short.
fn case(entries: u64) -> String {
    match entries {
        _ if entries.is_multiple_of(1_000_000) => format!("{}M", entries / 1_000_000),
        _ if entries.is_multiple_of(1_000) => format!("{}k", entries / 1_000),
        _ => entries.to_string(),
    }
}

fn figures(entries: u64, measured: &[Measured; databases::ALL.len()]) -> Vec<Figure> {
    let [ours, peer] = measured;
    let case = case(entries);
    let name = databases::ALL[1].name();
    let figure = |at: usize| Figure::new("index", &case, METRICS[at], &ours[at], Some((name, &peer[at])));
    (0..METRICS.len()).filter_map(figure).collect()
}

fn report(entries: u64, measured: &[Measured; databases::ALL.len()]) -> Result<String> {
    let mut text =
        format!("index: {} entries\n{}\nmedian (least-most)\n\n", case(entries), machine::describe()?);
    let names = databases::ALL.iter().map(|database| database.name().to_owned());
    let head = ["".to_owned()].into_iter().chain(names).chain(["redb to LMDB".to_owned()]);
    let mut rows = vec![head.collect::<Vec<_>>()];
    for (at, metric) in METRICS.iter().enumerate() {
        let (title, scale) = match metric.unit {
            "bytes" => (format!("{}, MiB", metric.name), f64::from(1 << 20)),
            _ => (format!("{}, 1000/s", metric.name), 1000.0),
        };
        let mut row = vec![title];
        row.extend(measured.iter().map(|samples| samples[at].scaled(1.0 / scale).show()));
        let values = measured[0][at].median().zip(measured[1][at].median());
        row.push(
            values.map_or("-".to_owned(), |(ours, peer)| format!("{} x", short(metric.ratio(ours, peer)))),
        );
        rows.push(row);
    }
    text += &table(&rows);
    Ok(text)
}

#[cfg(test)]
mod tests;
