//! Our side of a measurement, as a process of its own like the programs it is compared with. It uses only the public
//! interface of `chunkstore`, and prints one JSON object.

use std::ops::ControlFlow;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use chunkstore::{ChunkId, GcOptions, IngestOptions, PieceData, RawImage, Scope, Seeds, Store};
use serde_json::{Value, json};

use crate::index;
use crate::machine::status_bytes;
use crate::store::synthetic;

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Task {
    /// Brings an image into a store and publishes it, which makes it durable.
    Ingest { store: PathBuf, image: PathBuf, name: String, level: i32 },
    /// Writes an image out of a store to a new file.
    Restore { store: PathBuf, name: String, target: PathBuf },
    /// Cuts and hashes an image; nothing else.
    ChunkHash { image: PathBuf },
    /// Does with an image of so many GiB, in the shortest chunks, all that looks at each of them: brings it into a store,
    /// publishes it, verifies it and writes it into an archive that goes nowhere.
    Large { store: PathBuf, gib: u64 },
    /// Fills a store with small chunks, half of them unreachable.
    Fill { store: PathBuf, chunks: u64 },
    /// Opens a store, asks it for all that a reference has and for as much that it has not, and says what that keeps in
    /// memory.
    Open { store: PathBuf },
    /// Collects garbage while chunks come in.
    Gc { store: PathBuf },
    /// Something with a database that could hold the index.
    Index(index::Task),
}

impl Task {
    /// The words after `worker`.
    ///
    /// # Errors
    /// When they are no task.
    pub(crate) fn parse(words: &[&str]) -> Result<Self> {
        Ok(match *words {
            ["ingest", store, image, name, level] => Self::Ingest {
                store: store.into(),
                image: image.into(),
                name: name.to_owned(),
                level: level.parse().context("the zstd level")?,
            },
            ["restore", store, name, target] => {
                Self::Restore { store: store.into(), name: name.to_owned(), target: target.into() }
            }
            ["chunk-hash", image] => Self::ChunkHash { image: image.into() },
            ["large", store, gib] => {
                Self::Large { store: store.into(), gib: gib.parse().context("the size in GiB")? }
            }
            ["fill", store, chunks] => {
                Self::Fill { store: store.into(), chunks: chunks.parse().context("the number of chunks")? }
            }
            ["open", store] => Self::Open { store: store.into() },
            ["gc", store] => Self::Gc { store: store.into() },
            ["index", ref rest @ ..] => Self::Index(index::Task::parse(rest)?),
            _ => bail!("there is no task `{}`", words.join(" ")),
        })
    }

    /// Does it.
    ///
    /// # Errors
    /// What the store reports.
    pub(crate) fn run(&self) -> Result<Value> {
        match self {
            Self::Ingest { store, image, name, level } => ingest(store, image, name, *level),
            Self::Restore { store, name, target } => restore(store, name, target),
            Self::ChunkHash { image } => chunk_hash(image),
            Self::Large { store, gib } => large(store, *gib),
            Self::Fill { store, chunks } => {
                synthetic::fill(&Store::open(store)?, *chunks).map(|()| json!({}))
            }
            Self::Open { store } => open(store),
            Self::Gc { store } => gc(store),
            Self::Index(task) => task.run(),
        }
    }
}

fn ingest(store: &Path, image: &Path, name: &str, level: i32) -> Result<Value> {
    let store = Store::open(store)?;
    let image = RawImage::open_read(image).with_context(|| format!("opening {}", image.display()))?;
    let pin = store.pin();
    let options = IngestOptions { level, ..IngestOptions::default() };
    let manifest = chunkstore::ingest(&store, &image, &options, &|_| {})?;
    store.publish(name, &manifest)?;
    drop(pin);
    Ok(json!({ "data_bytes": manifest.data_bytes() }))
}

fn restore(store: &Path, name: &str, target: &Path) -> Result<Value> {
    let store = Store::open(store)?;
    let manifest = store.manifest(name)?;
    let target = RawImage::create(target, manifest.size())
        .with_context(|| format!("creating {}", target.display()))?;
    chunkstore::restore(&store, &Seeds::new(), &manifest, &target, &|_| ControlFlow::Continue(()))?;
    Ok(json!({ "data_bytes": manifest.data_bytes() }))
}

fn chunk_hash(image: &Path) -> Result<Value> {
    let image = RawImage::open_read(image).with_context(|| format!("opening {}", image.display()))?;
    let mut data_bytes = 0;
    for piece in chunkstore::pieces(&image) {
        let piece = piece?;
        if matches!(piece.data, PieceData::Chunk { .. }) {
            data_bytes += piece.len;
        }
    }
    Ok(json!({ "data_bytes": data_bytes }))
}

fn large(store: &Path, gib: u64) -> Result<Value> {
    let go_on = |_| ControlFlow::Continue(());
    let store = Store::open(store)?;
    let image = synthetic::Repeated::new(gib << 30)?;
    let manifest = chunkstore::ingest(&store, &image, &IngestOptions::default(), &|_| {})?;
    store.publish("large", &manifest)?;
    let extents = manifest.extents().count();
    drop(manifest);
    let report = store.verify(&Scope::Reference("large".to_owned()), &go_on)?;
    if !report.is_clean() {
        bail!("what was published is not all there: {report:?}");
    }
    chunkstore::export(&store, &["large"], &mut std::io::sink(), &go_on)?;
    Ok(json!({ "extents": extents }))
}

fn open(store: &Path) -> Result<Value> {
    let store = Store::open(store)?;
    let mut asked = 0_u64;
    for name in store.names()? {
        for id in store.manifest(&name)?.chunks() {
            let absent = ChunkId::of(id.as_bytes());
            if !store.contains(&id) || store.contains(&absent) {
                bail!("the index answered wrongly about {id}");
            }
            asked += 2;
        }
    }
    // Memory of this process that is not a file's.
    Ok(json!({ "asked": asked, "index_bytes": status_bytes("RssAnon")? }))
}

/// Collects while another thread brings chunks in, which are then published and must all be there.
fn gc(store: &Path) -> Result<Value> {
    let store = Store::open(store)?;
    let (begun, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let begin = |_| {
        begun.store(true, Ordering::Relaxed);
        ControlFlow::Continue(())
    };
    let (ms, report, ingested) = thread::scope(|scope| -> Result<_> {
        let ingest = scope.spawn(|| {
            // An ingest that was there before would be waited for.
            while !begun.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            synthetic::ingest_until(&store, &done)
        });
        let start = Instant::now();
        let report = store.gc(&GcOptions::default(), &begin);
        begun.store(true, Ordering::Relaxed);
        let ms = start.elapsed().as_secs_f64() * 1000.0;
        done.store(true, Ordering::Relaxed);
        let ingested = ingest.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        Ok((ms, report?, ingested))
    })?;
    let report = (report, store.verify(&Scope::Whole, &|_| ControlFlow::Continue(()))?);
    if !report.1.is_clean() {
        bail!("after the collection something is missing: {:?}", report.1);
    }
    let left = store.stats()?.chunks - ingested;
    Ok(json!({ "ms": ms, "chunks_removed": report.0.chunks_removed, "left": left, "ingested": ingested }))
}

#[cfg(test)]
mod tests;
