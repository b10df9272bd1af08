//! `bench store`: the store against restic, borg and casync. Each measurement is one process from its start to its end;
//! the programs take turns, the input lies in the page cache, the store is on the lab's disk. The end is when what was written
//! is on the disk. It never calls the store in this process.

mod programs;
pub(crate) mod synthetic;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use harness::lab::{self, BaseImage, apt};
use harness::{Lab, files, shell};
use serde_json::Value;
use tempfile::TempDir;

use crate::figures::{Better, Figure, Metric, Samples, gb_per_s, json_lines, mib, short, table};
use crate::machine;
use crate::options::Options;
use crate::process::{Run, measure, measure_durable, on_one_core, tree_bytes, warm};
use programs::Program;

const INGEST_NEW: Metric = Metric { name: "ingest_new", unit: "GB/s", better: Better::More };
/// What a core does of it in a second of its own time: says more than the clock does on a machine that others use too.
const INGEST_NEW_CPU: Metric = Metric { name: "ingest_new_cpu", unit: "GB/s", better: Better::More };
const INGEST_AGAIN: Metric = Metric { name: "ingest_again", unit: "GB/s", better: Better::More };
const INGEST_AGAIN_CORE: Metric = Metric { name: "ingest_again_core", unit: "GB/s", better: Better::More };
const INGEST_CHANGED: Metric = Metric { name: "ingest_changed", unit: "GB/s", better: Better::More };
const CHUNK_HASH: Metric = Metric { name: "chunk_hash", unit: "GB/s", better: Better::More };
const RESTORE: Metric = Metric { name: "restore", unit: "GB/s", better: Better::More };
const STORED: Metric = Metric { name: "stored_bytes", unit: "bytes", better: Better::Less };
const STORED_CHANGED: Metric = Metric { name: "stored_bytes_changed", unit: "bytes", better: Better::Less };
const RSS_INGEST: Metric = Metric { name: "rss_ingest", unit: "bytes", better: Better::Less };
/// Of a store of a million chunks, after two million questions. It is bounded by the index's cache, not by the chunks.
const RSS_INDEX: Metric = Metric { name: "rss_index", unit: "bytes", better: Better::Less };
const GC: Metric = Metric { name: "gc", unit: "ms", better: Better::Less };

/// What every program is measured by, in the order of the columns.
const COMPARED: [Metric; 8] =
    [INGEST_NEW, INGEST_NEW_CPU, INGEST_AGAIN, INGEST_CHANGED, RESTORE, STORED, STORED_CHANGED, RSS_INGEST];
/// What only ours is measured by.
const OWN: [Metric; 4] = [INGEST_AGAIN_CORE, CHUNK_HASH, RSS_INDEX, GC];

/// Sizes in GiB of images in the shortest chunks, of which 256 GiB have as many as a TiB of a usual image: what they take in
/// memory is to be the same.
const LARGE_GIB: [u64; 2] = [1, 256];
const LARGE_GIB_QUICK: [u64; 2] = [1, 8];

/// Chunks in the synthetic store.
const GC_CHUNKS: u64 = 1_000_000;
const GC_CHUNKS_QUICK: u64 = 50_000;

/// One image before and after an upgrade.
struct Images {
    image: PathBuf,
    changed: PathBuf,
    /// Bytes that are not holes.
    data_bytes: u64,
    changed_bytes: u64,
}

/// A program with what was measured of it, in the order of [`COMPARED`] or [`OWN`].
struct Measured {
    program: Program,
    version: String,
    compared: [Samples; COMPARED.len()],
}

/// What has no peer.
#[derive(Default)]
struct Own {
    /// In the order of [`OWN`].
    samples: [Samples; OWN.len()],
    /// Peak memory for each of the large images, by their size in GiB.
    large: Vec<(u64, Samples)>,
}

/// Runs the benchmark, prints its table and writes its figures.
///
/// # Errors
/// When an image cannot be made, a program fails, or what it restores is not what it was given.
pub(crate) fn run(options: &Options) -> Result<()> {
    if !options.quick {
        apt::install(programs::PACKAGES)?;
    }
    let images = images(options.quick)?;
    let mut measured = Vec::new();
    for program in programs::ALL {
        match version(program)? {
            Some(version) => measured.push(Measured { program, version, compared: Default::default() }),
            None => println!("{} is not installed: left out", program.name()),
        }
    }
    let work =
        TempDir::with_prefix_in("bench-", lab::directory()).context("making a directory to work in")?;
    let mut own = Own::default();
    for run in 1..=options.runs {
        for one in &mut measured {
            // Only once: the changed image says most by its size, which does not vary.
            one.measure(&images, work.path(), run == 1)
                .with_context(|| format!("measuring {}", one.program.name()))?;
            println!("run {run} of {}: {}", options.runs, one.program.name());
        }
        let store = measured[0].store(work.path());
        measure_own(&images, &store, options.quick, &mut own.samples)
            .context("measuring the rest of ours")?;
        if run == 1 {
            own.large = measure_large(&store, options.quick).context("measuring ours with large images")?;
        }
        // After each run, so that a later failure does not take the earlier figures with it.
        if let Some(file) = &options.json {
            files::write(file, json_lines(&figures(&images, &measured, &own))?)?;
        }
    }
    println!("\n{}", report(&images, &measured, &own)?);
    Ok(())
}

fn images(quick: bool) -> Result<Images> {
    apt::setup()?;
    let lab = Lab::open()?;
    let recipe = if quick { BaseImage::small() } else { BaseImage::large() };
    let (image, changed) = (lab.image(&recipe.clone().released())?, lab.image(&recipe)?);
    let (data_bytes, changed_bytes) = (files::allocated(&image)?, files::allocated(&changed)?);
    Ok(Images { image, changed, data_bytes, changed_bytes })
}

/// Nothing when it is not installed.
fn version(program: Program) -> Result<Option<String>> {
    match program.package() {
        None => Ok(Some(env!("CARGO_PKG_VERSION").to_owned())),
        Some(package) => Ok(apt::installed(package)),
    }
}

impl Measured {
    /// Where its store is.
    fn store(&self, work: &Path) -> PathBuf {
        work.join(self.program.name().replace([' ', ','], "-"))
    }

    fn push(&mut self, metric: Metric, value: f64) {
        push(&COMPARED, &mut self.compared, metric, value);
    }

    /// One run, into an empty store, which stays. With `all`, also what is done only once: the changed image, and the
    /// proof that what was restored is what went in.
    fn measure(&mut self, images: &Images, work: &Path, all: bool) -> Result<()> {
        let Images { image, changed, .. } = images;
        let (program, store, out) = (self.program, self.store(work), work.join("out"));
        for dir in [&store, &store.with_extension("borg"), &out] {
            files::remove(dir)?;
        }
        files::create_dir(&store)?;
        if let Some(mut init) = program.init(&store)? {
            shell::run(&mut init)?;
        }

        warm(image)?;
        let run = measure_durable(&mut program.ingest(&store, image, "new")?, &store)?;
        self.push(INGEST_NEW, gb_per_s(images.data_bytes, run.seconds));
        self.push(INGEST_NEW_CPU, gb_per_s(images.data_bytes, run.cpu_seconds));
        self.push(RSS_INGEST, run.rss_bytes as f64);
        self.push(STORED, tree_bytes(&store)? as f64);

        warm(image)?;
        let run = measure_durable(&mut program.ingest(&store, image, "again")?, &store)?;
        self.push(INGEST_AGAIN, gb_per_s(images.data_bytes, run.seconds));

        files::create_dir(&out)?;
        let run = measure_durable(&mut program.restore(&store, image, "new", &out)?, &out)?;
        self.push(RESTORE, gb_per_s(images.data_bytes, run.seconds));
        if all {
            let restored = out.join(image.file_name().context("an image with a file name")?);
            shell::run(Command::new("cmp").arg(image).arg(restored))
                .context("comparing what was restored")?;
        }
        files::remove(&out)?;

        if all {
            warm(changed)?;
            let run = measure_durable(&mut program.ingest(&store, changed, "changed")?, &store)?;
            self.push(INGEST_CHANGED, gb_per_s(images.changed_bytes, run.seconds));
            self.push(STORED_CHANGED, tree_bytes(&store)? as f64);
        }
        Ok(())
    }
}

/// What has no peer: `store` is ours and holds the image.
fn measure_own(images: &Images, store: &Path, quick: bool, own: &mut [Samples; OWN.len()]) -> Result<()> {
    let mut push = |metric, value| push(&OWN, own, metric, value);
    warm(&images.image)?;
    let mut ingest = programs::OURS.ingest(store, &images.image, "again")?;
    ingest = on_one_core(&ingest);
    let run = measure(&mut ingest)?;
    push(INGEST_AGAIN_CORE, gb_per_s(images.data_bytes, run.seconds));

    let mut chunk_hash = worker(&["chunk-hash"])?;
    let run = measure(&mut on_one_core(chunk_hash.arg(&images.image)))?;
    push(CHUNK_HASH, gb_per_s(images.data_bytes, run.seconds));

    let synthetic = store.with_extension("synthetic");
    files::remove(&synthetic)?;
    let chunks = if quick { GC_CHUNKS_QUICK } else { GC_CHUNKS };
    shell::run(worker(&["fill"])?.arg(&synthetic).arg(chunks.to_string()))?;
    let opened = answer(&measure(worker(&["open"])?.arg(&synthetic))?)?;
    push(RSS_INDEX, number(&opened, "index_bytes")?);
    let collected = answer(&measure(worker(&["gc"])?.arg(&synthetic))?)?;
    push(GC, number(&collected, "ms")?);
    files::remove(&synthetic)
}

/// Once: it hardly varies.
fn measure_large(store: &Path, quick: bool) -> Result<Vec<(u64, Samples)>> {
    let store = store.with_extension("large");
    let mut large = Vec::new();
    for gib in if quick { LARGE_GIB_QUICK } else { LARGE_GIB } {
        files::remove(&store)?;
        let run = measure(worker(&["large"])?.arg(&store).arg(gib.to_string()))?;
        large.push((gib, Samples::from(run.rss_bytes as f64)));
    }
    files::remove(&store)?;
    Ok(large)
}

fn push(metrics: &[Metric], samples: &mut [Samples], metric: Metric, value: f64) {
    if let Some(at) = metrics.iter().position(|other| *other == metric) {
        samples[at].push(value);
    }
}

fn worker(words: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("looking for this program's own file")?);
    command.arg("worker").args(words);
    Ok(command)
}

/// The object that a worker of ours printed.
fn answer(run: &Run) -> Result<Value> {
    serde_json::from_str(&run.stdout).with_context(|| format!("a worker said {:?}", run.stdout))
}

fn number(answer: &Value, field: &str) -> Result<f64> {
    answer[field].as_f64().with_context(|| format!("a worker's answer has no number `{field}`: {answer}"))
}

/// The image's recipe: the first part of its file's name.
fn case(images: &Images) -> String {
    let name = images.image.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.split('-').next().unwrap_or_default().to_owned()
}

/// All figures: what is compared once for each peer, then what is ours alone.
fn figures(images: &Images, measured: &[Measured], own: &Own) -> Vec<Figure> {
    let case = case(images);
    let mut compared = Vec::new();
    for (ours, peer) in rivals(measured) {
        let case = match ours.program {
            programs::OURS => case.clone(),
            other => format!("{case}, {}", other.name()),
        };
        let name = format!("{} {}", peer.program.name(), peer.version);
        for ((metric, ours), peer) in COMPARED.iter().zip(&ours.compared).zip(&peer.compared) {
            compared.extend(Figure::new("store", &case, *metric, ours, Some((&name, peer))));
        }
    }
    if let (true, Some(ours)) = (compared.is_empty(), measured.first()) {
        let alone = COMPARED.iter().zip(&ours.compared);
        compared.extend(alone.filter_map(|(metric, ours)| Figure::new("store", &case, *metric, ours, None)));
    }
    let samples = OWN
        .iter()
        .zip(&own.samples)
        .filter_map(|(metric, samples)| Figure::new("store", &case, *metric, samples, None));
    let large = own.large.iter().filter_map(|(gib, samples)| {
        Figure::new("store", &format!("{gib} GiB in short chunks"), RSS_INGEST, samples, None)
    });
    compared.into_iter().chain(samples).chain(large).collect()
}

/// Each peer, behind what of ours it is set against.
fn rivals(measured: &[Measured]) -> impl Iterator<Item = (&Measured, &Measured)> {
    let peers = measured.iter().filter(|one| one.program.package().is_some());
    peers.filter_map(|peer| {
        let ours = measured.iter().find(|one| one.program == peer.program.rival())?;
        Some((ours, peer))
    })
}

/// The tables for people.
fn report(images: &Images, measured: &[Measured], own: &Own) -> Result<String> {
    let programs: Vec<String> =
        measured.iter().map(|one| format!("{} {}", one.program.name(), one.version)).collect();
    let mut text = format!(
        "store: {}, {:.0} MiB of data; changed: {}, {:.0} MiB\n{}\n{}\nmedian (least-most)\n\n",
        images.image.display(),
        mib(images.data_bytes),
        images.changed.display(),
        mib(images.changed_bytes),
        machine::describe()?,
        programs.join(", "),
    );
    let names = measured.iter().map(|one| one.program.name());
    let mut rows = vec![std::iter::once(String::new()).chain(names).collect::<Vec<_>>()];
    for (at, metric) in COMPARED.iter().enumerate() {
        let cells = measured.iter().map(|one| shown(*metric, &one.compared[at]));
        rows.push(std::iter::once(title(*metric)).chain(cells).collect());
    }
    text += &table(&rows);
    let rivals: Vec<_> = rivals(measured).collect();
    let mut rows = vec![vec!["ours to".to_owned()], vec!["ours".to_owned()]];
    for (ours, peer) in &rivals {
        rows[0].push(peer.program.name());
        rows[1].push(ours.program.name());
    }
    for (at, metric) in COMPARED.iter().enumerate() {
        let ratios = rivals.iter().map(|(ours, peer)| {
            let values = ours.compared[at].median().zip(peer.compared[at].median());
            values.map_or("-".to_owned(), |(ours, peer)| format!("{} x", short(metric.ratio(ours, peer))))
        });
        rows.push(std::iter::once(metric.name.to_owned()).chain(ratios).collect());
    }
    if !rivals.is_empty() {
        text += &format!("\n{}", table(&rows));
    }
    let samples =
        OWN.iter().zip(&own.samples).map(|(metric, samples)| vec![title(*metric), shown(*metric, samples)]);
    let large = own.large.iter().map(|(gib, samples)| {
        vec![format!("{}, of {gib} GiB in short chunks", title(RSS_INGEST)), shown(RSS_INGEST, samples)]
    });
    text += &format!("\n{}", table(&samples.chain(large).collect::<Vec<_>>()));
    Ok(text)
}

fn title(metric: Metric) -> String {
    format!("{}, {}", metric.name, metric.unit.replace("bytes", "MiB"))
}

/// Sizes in MiB, everything else as it is.
fn shown(metric: Metric, samples: &Samples) -> String {
    let scale = if metric.unit.starts_with("bytes") { f64::from(1 << 20) } else { 1.0 };
    samples.scaled(1.0 / scale).show()
}

#[cfg(test)]
mod tests;
