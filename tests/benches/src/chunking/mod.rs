//! `bench chunking`: what ways to cut images find in common between two versions of one, and what they cost. It decides
//! nothing; what was decided stands in the documentation of chunkstore's `pieces`.

mod images;
mod scheme;

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use chunkstore::{ChunkId, RawImage, ReadImage};
use harness::lab::{self, BaseImage, apt};
use harness::{Lab, files};
use tempfile::TempDir;
use zstd::bulk::Compressor;

use crate::figures::{Better, Figure, Metric, Samples, gb_per_s, json_lines, mib, short, table};
use crate::machine;
use crate::options::Options;
use scheme::{Scheme, data_runs};

const CHUNK_HASH: Metric = Metric { name: "chunk_hash", unit: "GB/s", better: Better::More };
const UNIQUE: Metric = Metric { name: "unique_bytes", unit: "bytes", better: Better::Less };
const DEDUP: Metric = Metric { name: "dedup_ratio", unit: "x", better: Better::More };
const NEW: Metric = Metric { name: "new_bytes", unit: "bytes", better: Better::Less };
const ZSTD_1: Metric = Metric { name: "zstd1_bytes", unit: "bytes", better: Better::Less };
const ZSTD_3: Metric = Metric { name: "zstd3_bytes", unit: "bytes", better: Better::Less };
const MANIFEST: Metric = Metric { name: "manifest_bytes", unit: "bytes", better: Better::Less };

/// What a manifest takes for a chunk.
const MANIFEST_ENTRY_BYTES: usize = 36;
const LEVELS: [i32; 2] = [1, 3];

/// An image that is cut, with its data.
struct Image {
    file: RawImage,
    runs: Vec<Range<u64>>,
}

/// A version of an image and a later one, as indices.
struct Pair {
    name: &'static str,
    first: usize,
    second: usize,
}

/// One scheme on one pair.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Found {
    /// Bytes of both together, each chunk once.
    unique: u64,
    /// Both images' bytes to that.
    dedup: f64,
    /// Bytes of the second that the first has not.
    new: u64,
    /// The unique chunks, each compressed at [`LEVELS`].
    compressed: [u64; LEVELS.len()],
    /// The second image's manifest.
    manifest: u64,
}

/// A chunk's length, plain and compressed at [`LEVELS`].
#[derive(Debug, Clone, Copy)]
struct Sizes {
    plain: u64,
    compressed: [u64; LEVELS.len()],
}

/// Runs the benchmark, prints its table and writes its figures.
///
/// # Errors
/// When an image cannot be made or read.
pub(crate) fn run(options: &Options) -> Result<()> {
    apt::setup()?;
    let work =
        TempDir::with_prefix_in("bench-", lab::directory()).context("making a directory to work in")?;
    let (paths, pairs) = make_images(options.quick, work.path())?;
    let images: Vec<Image> = paths.iter().map(|path| Image::open(path)).collect::<Result<_>>()?;
    let case_of = |pair: &Pair, scheme: Scheme| format!("{}, {}", pair.name, scheme.name());
    let mut figures = Vec::new();
    let mut rows: Vec<Vec<Vec<String>>> = pairs.iter().map(|_| Vec::new()).collect();
    for scheme in scheme::ALL {
        let mut speed = Samples::default();
        for _ in 0..options.runs {
            speed.push(images[0].speed(scheme)?);
        }
        let mut sizes = HashMap::new();
        let cut: Vec<Vec<ChunkId>> =
            images.iter().map(|image| image.cut(scheme, &mut sizes)).collect::<Result<_>>()?;
        for (pair, rows) in pairs.iter().zip(&mut rows) {
            let found = Found::of(&cut[pair.first], &cut[pair.second], &sizes);
            let case = case_of(pair, scheme);
            figures.extend(found.figures(&case));
            figures.extend(Figure::new("chunking", &case, CHUNK_HASH, &speed, None));
            rows.push(found.row(scheme, &speed));
        }
        println!("{} done", scheme.name());
    }
    println!("\nchunking, one core of {}\nmedian (least-most); sizes in MiB", machine::describe()?);
    for (pair, rows) in pairs.iter().zip(&rows) {
        let data = |at: usize| mib(images[at].data_bytes());
        println!("\n{}: {:.0} and {:.0} MiB of data", pair.name, data(pair.first), data(pair.second));
        print!("{}", table(&[&[titles()], rows.as_slice()].concat()));
    }
    match &options.json {
        Some(file) => files::write(file, json_lines(&figures)?),
        None => Ok(()),
    }
}

/// All images, and which of them belong together.
fn make_images(quick: bool, work: &Path) -> Result<(Vec<PathBuf>, [Pair; 4])> {
    let lab = Lab::open()?;
    let recipe = if quick { BaseImage::small() } else { BaseImage::full() };
    let (old, new) = (lab.image(&recipe.clone().released())?, lab.image(&recipe)?);
    let (old_tree, new_tree) = (work.join("old"), work.join("new"));
    images::extract(&old, &old_tree)?;
    images::extract(&new, &new_tree)?;

    let upgraded = work.join("upgraded.raw");
    files::copy_sparse(&old, &upgraded)?;
    let written = images::upgrade_in_place(&upgraded, &old_tree, &new_tree, work)?;
    println!("{written} files upgraded in place");
    let relaid = work.join("relaid.raw");
    let size = RawImage::open_read(&new).with_context(|| format!("opening {}", new.display()))?.size();
    images::lay_out_anew(&new_tree, size, &relaid)?;
    let rewritten = work.join("rewritten.raw");
    files::copy_sparse(&new, &rewritten)?;
    images::rewrite_pages(&rewritten, &Image::open(&rewritten)?.runs)?;
    for tree in [old_tree, new_tree] {
        files::remove(&tree)?;
    }

    let pairs = [
        Pair { name: "updated packages, image made anew", first: 0, second: 1 },
        Pair { name: "updated in place", first: 0, second: 2 },
        Pair { name: "same files, other layout", first: 1, second: 3 },
        Pair { name: "264 random pages rewritten", first: 1, second: 4 },
    ];
    Ok((vec![old, new, upgraded, relaid, rewritten], pairs))
}

impl Image {
    fn open(path: &Path) -> Result<Self> {
        let reading = || format!("reading {}", path.display());
        let file = RawImage::open_read(path).with_context(reading)?;
        let runs = data_runs(&file).with_context(reading)?;
        Ok(Self { file, runs })
    }

    fn data_bytes(&self) -> u64 {
        self.runs.iter().map(|run| run.end - run.start).sum()
    }

    fn chunks(&self, scheme: Scheme, take: impl FnMut(&[u8])) -> Result<()> {
        let reading = || format!("reading {}", self.file.path().display());
        scheme.chunks(&self.file, &self.runs, take).with_context(reading)
    }

    /// GB/s of this thread's own time for cutting and hashing, with the reading from the page cache that this needs.
    fn speed(&self, scheme: Scheme) -> Result<f64> {
        let start = thread_seconds();
        self.chunks(scheme, |chunk| {
            std::hint::black_box(ChunkId::of(chunk));
        })?;
        Ok(gb_per_s(self.data_bytes(), thread_seconds() - start))
    }

    /// The names of its chunks in order; what `sizes` does not know yet is compressed.
    fn cut(&self, scheme: Scheme, sizes: &mut HashMap<ChunkId, Sizes>) -> Result<Vec<ChunkId>> {
        let mut compressors = Vec::new();
        for level in LEVELS {
            compressors.push(Compressor::new(level).context("making a compressor")?);
        }
        let mut ids = Vec::new();
        self.chunks(scheme, |chunk| {
            let id = ChunkId::of(chunk);
            ids.push(id);
            sizes.entry(id).or_insert_with(|| Sizes::of(chunk, &mut compressors));
        })?;
        Ok(ids)
    }
}

fn thread_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

impl Sizes {
    /// What does not shrink is stored plain.
    fn of(chunk: &[u8], compressors: &mut [Compressor<'_>]) -> Self {
        let plain = chunk.len() as u64;
        let mut compressed = [plain; LEVELS.len()];
        for (size, compressor) in compressed.iter_mut().zip(compressors) {
            let packed = compressor.compress(chunk).map_or(plain, |packed| packed.len() as u64);
            *size = plain.min(packed);
        }
        Self { plain, compressed }
    }
}

impl Found {
    /// All of `first`'s and `second`'s chunks are in `sizes`.
    fn of(first: &[ChunkId], second: &[ChunkId], sizes: &HashMap<ChunkId, Sizes>) -> Self {
        let plain = |id: &ChunkId| sizes[id].plain;
        let held: HashSet<&ChunkId> = first.iter().collect();
        let added: HashSet<&ChunkId> = second.iter().filter(|id| !held.contains(id)).collect();
        let all = || held.iter().chain(&added).copied();
        let unique: u64 = all().map(plain).sum();
        let both: u64 = first.iter().chain(second).map(plain).sum();
        let mut compressed = [0; LEVELS.len()];
        for (at, total) in compressed.iter_mut().enumerate() {
            *total = all().map(|id| sizes[id].compressed[at]).sum();
        }
        Self {
            unique,
            dedup: both as f64 / unique as f64,
            new: added.iter().map(|id| plain(id)).sum(),
            compressed,
            manifest: (second.len() * MANIFEST_ENTRY_BYTES) as u64,
        }
    }

    fn figures(&self, case: &str) -> Vec<Figure> {
        let values = [
            (UNIQUE, self.unique as f64),
            (DEDUP, self.dedup),
            (NEW, self.new as f64),
            (ZSTD_1, self.compressed[0] as f64),
            (ZSTD_3, self.compressed[1] as f64),
            (MANIFEST, self.manifest as f64),
        ];
        let figure = |(metric, value)| Figure::new("chunking", case, metric, &Samples::from(value), None);
        values.into_iter().filter_map(figure).collect()
    }

    /// In the order of [`titles`].
    fn row(&self, scheme: Scheme, speed: &Samples) -> Vec<String> {
        let size = |bytes: u64| short(mib(bytes));
        vec![
            scheme.name(),
            size(self.unique),
            format!("{:.3}", self.dedup),
            size(self.new),
            size(self.compressed[0]),
            size(self.compressed[1]),
            size(self.manifest),
            speed.show(),
        ]
    }
}

fn titles() -> Vec<String> {
    let titles =
        ["cut", "unique", "dedup", "new in second", "zstd 1", "zstd 3", "manifest", "chunk+hash GB/s"];
    titles.map(str::to_owned).into()
}

#[cfg(test)]
mod tests;
