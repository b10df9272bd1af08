//! Base images: into the store, and from store to store. A peer's push replaces no base but one that this peer pushed.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use chunkstore::{
    ChunkId, Group, IngestOptions, Manifest, ManifestExtent, RawImage, ReadImage, Reference, Store,
};
use longhaul_proto::JobId;
use longhaul_proto::handoff::Root;
use longhaul_proto::wire::{Refusal, RefusalKind, Target};
use serde::Serialize;

use crate::error_kind::{HasKind, Kind};
use crate::files;
use crate::images::origins::Origins;
use crate::lease::{Leased, Revoked};
use crate::service::identity::Fingerprint;
use crate::service::jobs::{self, JobHandle, JobKind};
use crate::service::net::NetError;
use crate::service::platform::ImagesCx;
use crate::transfer::sender::Sender;
use crate::transfer::sink::{BaseSink, Sink};
use crate::transfer::{Counters, TransferError};

/// Something that cannot be done to a base image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BaseError {
    /// Its name.
    #[error("{0}")]
    Name(String),
    /// The image file.
    #[error("base image {path}: {source}")]
    Image { path: String, source: std::io::Error },
    /// The store.
    #[error(transparent)]
    Store(#[from] chunkstore::StoreError),
    /// Reading the image into the store.
    #[error("adding {path}: {source}")]
    Ingest { path: String, source: chunkstore::IngestError },
    /// The peer.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The transfer.
    #[error("pushing base '{name}' to '{peer}': {source}")]
    Transfer { name: String, peer: String, source: TransferError },
    /// A part of our own ended without a word.
    #[error("a worker ended unexpectedly")]
    Worker,
    /// A person.
    #[error(transparent)]
    Cancelled(#[from] Revoked),
    /// The file that says where bases come from.
    #[error("cannot note where a base comes from: {0}")]
    Origin(#[from] std::io::Error),
}

impl HasKind for BaseError {
    fn kind(&self) -> Kind {
        match self {
            BaseError::Name(_) => Kind::Invalid,
            BaseError::Image { source, .. } => Kind::of_named_path(source),
            BaseError::Store(error) => error.kind(),
            BaseError::Ingest { source, .. } => source.kind(),
            BaseError::Net(error) => error.kind(),
            BaseError::Transfer { source, .. } => source.kind(),
            BaseError::Worker => Kind::Bug,
            BaseError::Cancelled(error) => error.kind(),
            BaseError::Origin(error) => Kind::of_io(error),
        }
    }
}

/// A base image as it is listed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Listed {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: Option<u64>,
    /// Of those neither hole nor zero.
    pub data_bytes: Option<u64>,
    /// Its chunks.
    pub chunks: Option<u64>,
    /// Its root.
    pub root: Option<chunkstore::ImageRoot>,
    /// Why the rest is not known: its reference is damaged.
    pub error: Option<String>,
}

/// All base images. One that cannot be read is listed with the reason.
pub(crate) fn list(cx: &ImagesCx) -> Result<Vec<Listed>, BaseError> {
    let listed = cx.images.store().references()?.into_iter().map(|Reference { name, image }| match image {
        Ok(manifest) => Listed {
            name,
            size: Some(manifest.size()),
            data_bytes: Some(manifest.data_bytes()),
            chunks: Some(manifest.chunks().count() as u64),
            root: Some(manifest.root()),
            error: None,
        },
        Err(error) => Listed {
            name,
            size: None,
            data_bytes: None,
            chunks: None,
            root: None,
            error: Some(error.to_string()),
        },
    });
    Ok(listed.collect())
}

/// Begins to add an image as base `name`; it replaces one of that name.
pub(crate) fn add(cx: &Arc<ImagesCx>, name: &str, image: &Path) -> Result<JobId, BaseError> {
    files::check_name("base image", name).map_err(BaseError::Name)?;
    let path = image.display().to_string();
    let image =
        RawImage::open_read(image).map_err(|source| BaseError::Image { path: path.clone(), source })?;
    let handle = cx.jobs.begin(jobs::new_id(), JobKind::BaseAdd, name, None);
    handle.update(|report| report.image_bytes = image.size());
    let (job, adding, name) = (handle.clone(), cx.clone(), name.to_owned());
    cx.jobs.run(&handle, (), move |lease| async move {
        job.phase("ingest");
        let image = Leased::new(image, &lease);
        let working = lease.run_blocking(move || ingest(&adding, &job, &image, &path, &name));
        working.await.map_err(|_| BaseError::Worker)?
    });
    Ok(handle.id())
}

fn ingest(
    cx: &ImagesCx,
    handle: &JobHandle,
    image: &Leased<RawImage>,
    path: &str,
    name: &str,
) -> Result<String, BaseError> {
    let counters = handle.counters();
    let store = cx.images.store();
    let pin = store.pin();
    let progress = |done| counters.scanned.store(done, Ordering::Relaxed);
    let options = IngestOptions { level: cx.store_level, ..IngestOptions::default() };
    let manifest = chunkstore::ingest(store, image, &options, &progress)
        .map_err(|source| BaseError::Ingest { path: path.to_owned(), source })?;
    Counters::add(&counters.data, manifest.data_bytes());
    cx.images.origins.publish(
        name,
        None,
        || store.publish(name, &manifest).map_err(BaseError::from),
        |_| Ok(()),
    )?;
    drop(pin);
    Ok(format!(
        "base '{name}': {} chunks, {} bytes of data",
        manifest.chunks().count(),
        manifest.data_bytes()
    ))
}

/// Removes a base, and what is known of where it came from.
pub(crate) fn remove(cx: &ImagesCx, name: &str) -> Result<(), BaseError> {
    cx.images.store().remove(name)?;
    cx.images.origins.publish(name, None, || Ok(()), |_| Ok(()))
}

/// Where a peer's push of base `name` goes. Refused at its first byte that differs from a base that is not the peer's.
pub(crate) fn sink(cx: &ImagesCx, peer: &str, name: &str, size: u64) -> Result<PushedBase, Refusal> {
    let failed = |error: &dyn std::fmt::Display| refusal(RefusalKind::Failed, error.to_string());
    let from = cx.reach.peers.get(peer).map_err(|error| failed(&error))?.fingerprint;
    let store = cx.images.store();
    let there = match store.names().map_err(|error| failed(&error))?.iter().any(|there| there == name) {
        true => Some(store.manifest(name).map_err(|error| failed(&error))?),
        false => None,
    };
    let protected = there.filter(|_| cx.images.origins.of(name) != Some(from));
    if protected.as_ref().is_some_and(|base| base.size() != size) {
        return Err(not_yours(name));
    }
    let base = BaseSink::new(store.clone(), name.to_owned(), size).map_err(|error| failed(&error))?;
    let (origins, store, same_as) =
        (cx.images.origins.clone(), store.clone(), protected.map(Comparison::new));
    Ok(PushedBase { base, name: name.to_owned(), from, store, origins, same_as })
}

fn refusal(kind: RefusalKind, reason: String) -> Refusal {
    Refusal { kind, reason }
}

fn not_yours(name: &str) -> Refusal {
    let reason = format!(
        "cannot replace base '{name}': another base of this name is there, which this peer did not push; push it under \
         another name, or have it removed there with `longhaul base remove {name}`"
    );
    refusal(RefusalKind::Failed, reason)
}

/// A base that a peer pushes.
pub(crate) struct PushedBase {
    base: BaseSink,
    name: String,
    from: Fingerprint,
    store: Arc<Store>,
    origins: Arc<Origins>,
    /// A base that must not be replaced: what comes has to be the same.
    same_as: Option<Comparison>,
}

impl PushedBase {
    fn check(&mut self, extent: ManifestExtent) -> Result<(), Refusal> {
        let same = self.same_as.as_mut().is_none_or(|base| base.goes_on_with(extent));
        if same { Ok(()) } else { Err(not_yours(&self.name)) }
    }
}

/// Compares extents, as they come, with those of a base. Holes may be cut differently.
struct Comparison {
    manifest: Manifest,
    /// Extents read from the manifest so far.
    read: usize,
    /// The next ones, the first one perhaps in part.
    next: VecDeque<ManifestExtent>,
}

impl Comparison {
    /// Extents held at once: 3 MiB.
    const READ_AHEAD: usize = 1 << 16;

    fn new(manifest: Manifest) -> Self {
        Comparison { manifest, read: 0, next: VecDeque::new() }
    }

    fn next(&mut self) -> Option<ManifestExtent> {
        if self.next.is_empty() {
            self.next.extend(self.manifest.extents().skip(self.read).take(Self::READ_AHEAD));
            self.read += self.next.len();
        }
        self.next.pop_front()
    }

    fn goes_on_with(&mut self, extent: ManifestExtent) -> bool {
        let ManifestExtent::Hole { len: mut left } = extent else { return self.next() == Some(extent) };
        while left > 0 {
            let Some(ManifestExtent::Hole { len }) = self.next() else { return false };
            if len > left {
                self.next.push_front(ManifestExtent::Hole { len: len - left });
            }
            left = left.saturating_sub(len);
        }
        true
    }
}

impl Sink for PushedBase {
    fn place(&mut self, offset: u64, len: u32, name: ChunkId) -> Result<bool, Refusal> {
        let held = self.base.place(offset, len, name)?;
        if held {
            self.check(ManifestExtent::Data { len, id: name })?;
        }
        Ok(held)
    }

    fn expect(&mut self, offset: u64, len: u32, name: ChunkId) -> Result<(), Refusal> {
        self.check(ManifestExtent::Data { len, id: name })?;
        self.base.expect(offset, len, name)
    }

    fn hole(&mut self, offset: u64, len: u64) -> Result<(), Refusal> {
        self.check(ManifestExtent::Hole { len })?;
        self.base.hole(offset, len)
    }

    fn chunks(&mut self, group: &Group, offsets: &[Vec<u64>]) -> Result<(), Refusal> {
        self.base.chunks(group, offsets)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.base.write(offset, bytes)
    }

    fn sync(&mut self, mark: u32) -> Result<(), Refusal> {
        self.base.sync(mark)
    }

    fn commit(&mut self, root: Root, after: u64, taken_unix_ms: u64, whole: bool) -> Result<u64, Refusal> {
        if self.same_as.is_some() && whole {
            // The same as what is there, which stays as it is.
            return Ok(1);
        }
        let (base, store, name, from) = (&mut self.base, &self.store, &self.name, self.from);
        let publish = || base.commit(root, after, taken_unix_ms, whole).map_err(PushError::Refused);
        // Since the push began another may have been published.
        let allowed = |origin| match store
            .names()
            .map_err(|error| PushError::Io(std::io::Error::other(error)))?
        {
            names if origin != Some(from) && names.contains(name) => Err(PushError::Refused(not_yours(name))),
            _ => Ok(()),
        };
        self.origins.publish(name, Some(from), publish, allowed).map_err(|error| match error {
            PushError::Refused(refusal) => refusal,
            PushError::Io(error) => crate::transfer::sink::io_refusal(&error),
        })
    }
}

enum PushError {
    Refused(Refusal),
    Io(std::io::Error),
}

impl From<std::io::Error> for PushError {
    fn from(error: std::io::Error) -> Self {
        PushError::Io(error)
    }
}

/// Begins to push base `name` to peers, one after the other.
pub(crate) fn push(cx: &Arc<ImagesCx>, name: &str, peers: Vec<String>) -> Result<JobId, BaseError> {
    for peer in &peers {
        cx.reach.peers.get(peer).map_err(NetError::from)?;
    }
    let manifest = cx.images.store().manifest(name)?;
    let handle = cx.jobs.begin(jobs::new_id(), JobKind::BasePush, name, Some(&peers.join(", ")));
    handle.update(|report| report.image_bytes = manifest.size() * peers.len() as u64);
    let (job, pushing, name) = (handle.clone(), cx.clone(), name.to_owned());
    cx.jobs.run(&handle, (), move |lease| async move {
        lease.run(push_to_all(&pushing, &job, &name, &manifest, &peers)).await?
    });
    Ok(handle.id())
}

async fn push_to_all(
    cx: &ImagesCx,
    handle: &JobHandle,
    name: &str,
    manifest: &Manifest,
    peers: &[String],
) -> Result<String, BaseError> {
    let store = cx.images.store().clone();
    let pin = tokio::task::spawn_blocking(move || store.pin()).await.map_err(|_| BaseError::Worker)?;
    for peer in peers {
        handle.phase(&format!("push to {peer}"));
        let transfer = |source| BaseError::Transfer { name: name.to_owned(), peer: peer.clone(), source };
        let connection = cx.reach.network.dial(peer).await?;
        let target = Target::Base { name: name.to_owned() };
        let settings = cx.reach.transfers;
        let (mut sender, _) = Sender::open(&connection, target, manifest.size(), settings, handle.counters())
            .await
            .map_err(transfer)?;
        sender.manifest(cx.images.store().clone(), manifest.clone()).await.map_err(transfer)?;
        sender.commit(manifest.root(), 0, jobs::unix_ms()).await.map_err(transfer)?;
    }
    drop(pin);
    Ok(format!("base '{name}' is on {}", peers.join(", ")))
}
