//! Upkeep of the chunk store: collection, verification and healing, each a job that can be watched and stopped. It decides
//! nothing about chunks: the store does.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use chunkstore::{
    ChunkId, Encoded, ExportError, ExportReport, GcOptions, GcProgress, ImportError, Scope, Store,
    StoreError, VerifyReport,
};
use longhaul_proto::JobId;
use longhaul_proto::wire::{Fetched, MAX_BATCH_EXTENTS, Open};
use quinn::{Connection, SendStream};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error_kind::{HasKind, Kind};
use crate::lease::Lease;
use crate::service::jobs::{self, JobHandle, JobKind};
use crate::service::net::lanes::{LaneRecv, LaneSend};
use crate::service::net::{self, NetError};
use crate::service::platform::ImagesCx;
use crate::transfer::sink::Holdings;
use crate::transfer::{Counters, pack, unpack};

/// Compression of chunks that lie in images, when a peer asks for them.
const FETCH_LEVEL: i32 = 1;

/// Why upkeep failed. What it touched is whole.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpkeepError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Writing an archive.
    #[error("{path}: {source}", path = .path.display())]
    Export { path: PathBuf, source: ExportError },
    /// Reading an archive.
    #[error("{path}: {source}", path = .path.display())]
    Import { path: PathBuf, source: ImportError },
    /// A file.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, to what.
        what: String,
        source: std::io::Error,
    },
    /// Somebody has to do something.
    #[error(
        "{damaged} chunks were found damaged, {missing} are missing from {references} references: `longhaul store verify --heal` \
         fetches them from replicas here and from peers; else add the base again{}", no_pack(*.packs)
    )]
    Unsound {
        damaged: usize,
        /// Chunks that references lack.
        missing: usize,
        /// References that lack chunks or cannot be read.
        references: usize,
        /// Packs that the disk cannot read at all.
        packs: usize,
    },
    /// A thread of ours broke.
    #[error("the worker ended unexpectedly")]
    Worker,
}

impl HasKind for UpkeepError {
    fn kind(&self) -> Kind {
        match self {
            UpkeepError::Store(error) => error.kind(),
            UpkeepError::Export { source, .. } => source.kind(),
            UpkeepError::Import { source, .. } => source.kind(),
            UpkeepError::Io { source, .. } => Kind::of_named_path(source),
            UpkeepError::Unsound { .. } => Kind::Io,
            UpkeepError::Worker => Kind::Bug,
        }
    }
}

fn no_pack(packs: usize) -> String {
    match packs {
        0 => String::new(),
        _ => format!(
            ". The disk cannot read {packs} pack files at all, which the report names: if it stays so, move them out of \
             the store, restart the daemon and heal"
        ),
    }
}

/// What `store gc` is asked.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct GcRequest {
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
    /// See [`GcOptions`].
    pub waste_percent: Option<u8>,
}

/// What `store verify` is asked.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct VerifyRequest {
    /// One chunk in so many, instead of all.
    pub sample: Option<u32>,
    /// Only this base.
    pub base: Option<String>,
    /// At most so much of the disk, in MiB per second.
    pub limit_mib_s: Option<u32>,
    /// Fetch what is missing.
    #[serde(default)]
    pub heal: bool,
}

/// Begins a collection.
pub(crate) fn gc(cx: &Arc<ImagesCx>, request: GcRequest) -> JobId {
    let options = request.waste_percent.map_or_else(GcOptions::default, |waste_percent| GcOptions {
        waste_percent: waste_percent.clamp(1, 100),
    });
    begin(cx, JobKind::StoreGc, "store", move |cx, handle, lease| async move {
        let store = cx.images.store().clone();
        let progress = Phases::new(&handle);
        stoppable(&lease, move |stop| {
            let watch = |now: GcProgress| {
                progress.gc(now);
                stop()
            };
            if request.dry_run {
                let plan = store.gc_plan(&options, &watch)?;
                let summary = format!(
                    "would remove {} packs and give back {} bytes, after copying {}; {} of {} chunks are needed by no base",
                    plan.packs.len(),
                    plan.bytes_to_free,
                    plan.bytes_to_copy,
                    plan.chunks_dead,
                    plan.chunks
                );
                return Ok((summary, json!(plan)));
            }
            let report = store.gc(&options, &watch)?;
            let summary = format!(
                "{} chunks removed, {} moved, {} packs removed, {} bytes given back",
                report.chunks_removed, report.chunks_moved, report.packs_removed, report.bytes_freed
            );
            Ok((summary, json!(report)))
        })
        .await
    })
}

/// Begins a verification.
pub(crate) fn verify(cx: &Arc<ImagesCx>, request: VerifyRequest) -> Result<JobId, UpkeepError> {
    if let Some(base) = &request.base {
        cx.images.store().manifest(base)?;
    }
    let subject = request.base.clone().unwrap_or_else(|| "store".to_owned());
    Ok(begin(cx, JobKind::StoreVerify, &subject, move |cx, handle, lease| async move {
        handle.phase("verify");
        let report = read_back(&cx, &handle, &lease, &request).await?;
        let mut healed = 0;
        if request.heal {
            handle.phase("heal");
            healed = lease.run(heal(&cx, &handle, &lease)).await.map_err(|_| StoreError::Stopped)??;
        }
        let store = cx.images.store().clone();
        let missing = blocking(&lease, move || Ok(store.missing()?)).await?;
        // What was bad and has been healed is sound again; what is bad and no base needs does no harm after that.
        let unhealed = if request.heal { 0 } else { report.damaged.len() };
        let unreadable = report.broken.iter().filter(|broken| broken.error.is_some()).count();
        let packs = report.unreadable_packs.len();
        let clean = unhealed == 0 && unreadable == 0 && missing.is_empty() && packs == 0;
        let mut result = json!(report);
        result["clean"] = clean.into();
        result["missing"] = json!(missing);
        result["healed"] = healed.into();
        if !clean {
            handle.update(|report| report.result = Some(result));
            let (damaged, missing, references) = (report.damaged.len(), missing.len(), report.broken.len());
            return Err(UpkeepError::Unsound { damaged, missing, references, packs });
        }
        let summary = format!(
            "{} chunks read, {} bytes; {} damaged, {healed} healed",
            report.chunks,
            report.stored_bytes,
            report.damaged.len()
        );
        Ok((summary, result))
    }))
}

/// Begins to write bases and all their chunks into an archive; all bases when `names` is empty.
pub(crate) fn export(cx: &Arc<ImagesCx>, path: &Path, names: Vec<String>) -> Result<JobId, UpkeepError> {
    let names = if names.is_empty() { cx.images.store().names()? } else { names };
    for name in &names {
        cx.images.store().manifest(name)?;
    }
    let (path, subject) = (path.to_owned(), names.join(", "));
    Ok(begin(cx, JobKind::StoreExport, &subject, move |cx, handle, lease| async move {
        handle.phase("export");
        let (store, counters) = (cx.images.store().clone(), handle.counters());
        stoppable(&lease, move |stop| {
            let watch = |bytes| {
                counters.scanned.store(bytes, Ordering::Relaxed);
                stop()
            };
            let io =
                |source| UpkeepError::Io { what: format!("writing the archive {}", path.display()), source };
            let file = std::fs::File::create_new(&path).map_err(io)?;
            let written = write_archive(&store, &path, file, &names, &watch);
            if written.is_err() {
                let _ = std::fs::remove_file(&path);
            }
            Ok((format!("{} is in {}", names.join(", "), path.display()), json!(written?)))
        })
        .await
    }))
}

fn write_archive(
    store: &Store,
    path: &Path,
    mut file: std::fs::File,
    names: &[String],
    watch: &dyn Fn(u64) -> ControlFlow<()>,
) -> Result<ExportReport, UpkeepError> {
    let report = chunkstore::export(store, names, &mut file, watch)
        .map_err(|source| UpkeepError::Export { path: path.to_owned(), source })?;
    let what = || format!("making the archive {} durable", path.display());
    file.sync_all().map_err(|source| UpkeepError::Io { what: what(), source })?;
    Ok(report)
}

/// Begins to bring an archive's images and chunks into the store.
pub(crate) fn import(cx: &Arc<ImagesCx>, path: &Path, replace: bool) -> Result<JobId, UpkeepError> {
    let io = |source| UpkeepError::Io { what: format!("reading the archive {}", path.display()), source };
    let mut file = chunkstore::open_regular(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    let (path, subject) = (path.to_owned(), path.display().to_string());
    Ok(begin(cx, JobKind::StoreImport, &subject, move |cx, handle, lease| async move {
        handle.phase("import");
        handle.update(|report| report.image_bytes = length);
        let (store, counters, origins) =
            (cx.images.store().clone(), handle.counters(), cx.images.origins.clone());
        stoppable(&lease, move |stop| {
            let watch = |bytes| {
                counters.scanned.store(bytes, Ordering::Relaxed);
                stop()
            };
            let report = chunkstore::import(&store, &mut file, replace, &watch)
                .map_err(|source| UpkeepError::Import { path, source })?;
            for name in &report.names {
                let what = "noting where a base comes from".to_owned();
                let noted = origins.publish(name, None, || Ok(()), |_| Ok(()));
                noted.map_err(|source: std::io::Error| UpkeepError::Io { what, source })?;
            }
            Ok((format!("imported {}", report.names.join(", ")), json!(report)))
        })
        .await
    }))
}

/// Begins a job whose outcome is a line and a value.
fn begin<F>(
    cx: &Arc<ImagesCx>,
    kind: JobKind,
    subject: &str,
    work: impl FnOnce(Arc<ImagesCx>, JobHandle, Lease) -> F + Send + 'static,
) -> JobId
where
    F: Future<Output = Result<(String, Value), UpkeepError>> + Send + 'static,
{
    let handle = cx.jobs.begin(jobs::new_id(), kind, subject, None);
    let (job, cx) = (handle.clone(), cx.clone());
    let jobs = cx.jobs.clone();
    jobs.run(&handle, (), move |lease| async move {
        let (summary, result) = work(cx, job.clone(), lease).await?;
        job.update(|report| report.result = Some(result));
        Ok::<_, UpkeepError>(summary)
    });
    handle.id()
}

async fn blocking<T: Send + 'static>(
    lease: &Lease,
    work: impl FnOnce() -> Result<T, UpkeepError> + Send + 'static,
) -> Result<T, UpkeepError> {
    lease.run_blocking(work).await.map_err(|_| UpkeepError::Worker)?
}

/// Runs synchronous work off the runtime; it learns by the question it is given that somebody has cancelled the job.
async fn stoppable<T: Send + 'static>(
    lease: &Lease,
    work: impl FnOnce(&dyn Fn() -> ControlFlow<()>) -> Result<T, UpkeepError> + Send + 'static,
) -> Result<T, UpkeepError> {
    let asked = lease.clone();
    blocking(lease, move || {
        work(&|| if asked.check().is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })
    .await
}

/// Turns a collection's progress into phases of its job.
struct Phases {
    handle: JobHandle,
    phase: std::cell::Cell<&'static str>,
}

impl Phases {
    fn new(handle: &JobHandle) -> Phases {
        Phases { handle: handle.clone(), phase: std::cell::Cell::new("") }
    }

    fn gc(&self, now: GcProgress) {
        let (phase, done, all) = match now {
            GcProgress::Waiting(_) => ("wait", 0, 0),
            GcProgress::Marking(done, all) => ("mark", done, all),
            GcProgress::Sweeping(done, all) => ("sweep", done, all),
        };
        if self.phase.replace(phase) != phase {
            self.handle.phase(phase);
        }
        if phase == "sweep" {
            self.handle.counters().scanned.store(done, Ordering::Relaxed);
            self.handle.update(|report| report.image_bytes = all);
        }
    }
}

async fn read_back(
    cx: &Arc<ImagesCx>,
    handle: &JobHandle,
    lease: &Lease,
    request: &VerifyRequest,
) -> Result<VerifyReport, UpkeepError> {
    let scope = match (&request.base, request.sample) {
        (Some(base), _) => Scope::Reference(base.clone()),
        // Another choice every day, so that in time everything is read.
        (None, Some(one_in)) => Scope::Sample { one_in: one_in.max(1), seed: jobs::unix_ms() / 86_400_000 },
        (None, None) => Scope::Whole,
    };
    let (store, counters) = (cx.images.store().clone(), handle.counters());
    let limit = request.limit_mib_s.map(|mib| f64::from(mib.max(1)) * f64::from(1 << 20));
    stoppable(lease, move |stop| {
        let started = Instant::now();
        let watch = |bytes: u64| {
            counters.scanned.store(bytes, Ordering::Relaxed);
            if let Some(limit) = limit {
                // In steps, so that a job that is cancelled ends soon.
                while started.elapsed().as_secs_f64() < bytes as f64 / limit && stop().is_continue() {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
            stop()
        };
        Ok(store.verify(&scope, &watch)?)
    })
    .await
}

/// Fetches what references lack: from images here, then from peers. Gives the number of chunks that are back.
async fn heal(cx: &Arc<ImagesCx>, handle: &JobHandle, lease: &Lease) -> Result<usize, UpkeepError> {
    let holdings = cx.images.holdings.clone();
    let (mut healed, mut missing) = blocking(lease, move || from_seeds(&holdings)).await?;
    for (peer, _) in cx.reach.peers.list() {
        if missing.is_empty() {
            break;
        }
        match from_peer(cx, handle, &peer, &mut missing).await {
            Ok(fetched) => healed += fetched,
            Err(error) => {
                handle.update(|report| report.notes.push(format!("nothing more from '{peer}': {error}")))
            }
        }
    }
    let store = cx.images.store().clone();
    blocking(lease, move || Ok(store.sync()?)).await?;
    Ok(healed)
}

fn from_seeds(holdings: &Holdings) -> Result<(usize, HashSet<ChunkId>), UpkeepError> {
    let mut missing: HashSet<ChunkId> = holdings.store.missing()?.into_iter().collect();
    let before = missing.len();
    for id in missing.clone() {
        if let Some(bytes) = holdings.seeds.get(&id) {
            holdings.store.put(&id, &bytes)?;
            missing.remove(&id);
        }
    }
    Ok((before - missing.len(), missing))
}

/// Why a peer did not serve.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("it sent what cannot be read: {0}")]
    Bad(longhaul_proto::wire::Refusal),
}

async fn from_peer(
    cx: &Arc<ImagesCx>,
    handle: &JobHandle,
    peer: &str,
    missing: &mut HashSet<ChunkId>,
) -> Result<usize, FetchError> {
    let connection = cx.reach.network.dial(peer).await?;
    let wanted: Vec<ChunkId> = missing.iter().copied().collect();
    let mut fetched = 0;
    for ids in wanted.chunks(MAX_BATCH_EXTENTS) {
        for (id, encoded) in fetch(&connection, handle, ids).await? {
            // The store decodes it and checks its name before it takes it.
            cx.images.store().put_encoded(&id, encoded)?;
            missing.remove(&id);
            fetched += 1;
        }
    }
    Ok(fetched)
}

async fn fetch(
    connection: &Connection,
    handle: &JobHandle,
    ids: &[ChunkId],
) -> Result<Vec<(ChunkId, Encoded)>, FetchError> {
    let (mut send, receive) = connection.open_bi().await.map_err(NetError::from)?;
    let names = ids.iter().map(|id| *id.as_bytes()).collect();
    let mut bytes = net::send(&mut send, &Open::Fetch { names }).await?;
    let mut receive = LaneRecv::answer(connection, receive).await?;
    let mut found = Vec::new();
    for id in ids {
        let Fetched { data } = net::expect(&mut receive).await?;
        if let Some(data) = data {
            bytes += data.bytes.len() as u64;
            found.push((*id, unpack(data).map_err(FetchError::Bad)?));
        }
    }
    Counters::add(&handle.counters().wire, bytes);
    Ok(found)
}

/// Answers a peer's `Fetch`: each chunk that is here, from the store or an image outside it.
pub(crate) async fn serve_fetch(
    cx: &Arc<ImagesCx>,
    connection: &Connection,
    send: SendStream,
    names: Vec<[u8; 32]>,
) -> Result<(), NetError> {
    let mut send = LaneSend::begin(connection, send).await?;
    for name in names {
        let holdings = cx.images.holdings.clone();
        let found = tokio::task::spawn_blocking(move || find(&holdings, &ChunkId::from_bytes(name))).await;
        let data = found.ok().flatten().map(pack);
        net::send(&mut send, &Fetched { data }).await?;
    }
    send.finish().await
}

fn find(holdings: &Holdings, id: &ChunkId) -> Option<Encoded> {
    let found = holdings.store.get(id).ok().or_else(|| holdings.seeds.get(id));
    found.map(|bytes| Encoded::encode(bytes, FETCH_LEVEL))
}
