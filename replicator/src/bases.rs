//! Base images: into the store, and from store to store.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use chunkstore::{IngestOptions, Manifest, RawImage, ReadImage, Reference};
use longhaul_proto::JobId;
use longhaul_proto::wire::Target;
use serde::Serialize;

use crate::files;
use crate::jobs::{self, JobHandle, JobKind};
use crate::lease::{Leased, Revoked};
use crate::net::NetError;
use crate::platform::Platform;
use crate::transfer::sender::Sender;
use crate::transfer::{Counters, TransferError};

/// Something that cannot be done to a base image.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// Its name.
    #[error("{0}")]
    Name(String),
    /// The image file.
    #[error("base image {path}: {source}")]
    Image {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] chunkstore::StoreError),
    /// Reading the image into the store.
    #[error("adding {path}: {source}")]
    Ingest {
        /// Which.
        path: String,
        /// Why.
        source: chunkstore::IngestError,
    },
    /// The peer.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The transfer.
    #[error("pushing base '{name}' to '{peer}': {source}")]
    Transfer {
        /// Which.
        name: String,
        /// Whereto.
        peer: String,
        /// Why.
        source: TransferError,
    },
    /// A part of our own ended without a word.
    #[error("a worker ended unexpectedly")]
    Worker,
    /// A person.
    #[error(transparent)]
    Cancelled(#[from] Revoked),
}

/// A base image as it is listed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Listed {
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
pub fn list(platform: &Platform) -> Result<Vec<Listed>, BaseError> {
    let listed = platform.store().references()?.into_iter().map(|Reference { name, image }| match image {
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
pub fn add(platform: &Arc<Platform>, name: &str, image: &Path) -> Result<JobId, BaseError> {
    files::check_name("base image", name).map_err(BaseError::Name)?;
    let path = image.display().to_string();
    let image =
        RawImage::open_read(image).map_err(|source| BaseError::Image { path: path.clone(), source })?;
    let handle = platform.jobs.begin(jobs::new_id(), JobKind::BaseAdd, name, None);
    handle.update(|report| report.image_bytes = image.size());
    let (job, adding, name) = (handle.clone(), platform.clone(), name.to_owned());
    platform.jobs.run(&handle, (), move |lease| async move {
        job.phase("ingest");
        let image = Leased::new(image, &lease);
        let working = lease.run_blocking(move || ingest(&adding, &job, &image, &path, &name));
        working.await.map_err(|_| BaseError::Worker)?
    });
    Ok(handle.id())
}

fn ingest(
    platform: &Platform,
    handle: &JobHandle,
    image: &Leased<RawImage>,
    path: &str,
    name: &str,
) -> Result<String, BaseError> {
    let counters = handle.counters();
    let store = platform.store();
    let pin = store.pin();
    let progress = |done| counters.scanned.store(done, Ordering::Relaxed);
    let options = IngestOptions { level: platform.config.store_level, ..IngestOptions::default() };
    let manifest = chunkstore::ingest(store, image, &options, &progress)
        .map_err(|source| BaseError::Ingest { path: path.to_owned(), source })?;
    Counters::add(&counters.data, manifest.data_bytes());
    store.publish(name, &manifest)?;
    drop(pin);
    Ok(format!(
        "base '{name}': {} chunks, {} bytes of data",
        manifest.chunks().count(),
        manifest.data_bytes()
    ))
}

/// Begins to push base `name` to peers, one after the other.
pub fn push(platform: &Arc<Platform>, name: &str, peers: Vec<String>) -> Result<JobId, BaseError> {
    for peer in &peers {
        platform.peers.get(peer).map_err(NetError::from)?;
    }
    let manifest = platform.store().manifest(name)?;
    let handle = platform.jobs.begin(jobs::new_id(), JobKind::BasePush, name, Some(&peers.join(", ")));
    handle.update(|report| report.image_bytes = manifest.size() * peers.len() as u64);
    let (job, pushing, name) = (handle.clone(), platform.clone(), name.to_owned());
    platform.jobs.run(&handle, (), move |lease| async move {
        lease.run(push_to_all(&pushing, &job, &name, &manifest, &peers)).await?
    });
    Ok(handle.id())
}

async fn push_to_all(
    platform: &Platform,
    handle: &JobHandle,
    name: &str,
    manifest: &Manifest,
    peers: &[String],
) -> Result<String, BaseError> {
    let store = platform.store().clone();
    let pin = tokio::task::spawn_blocking(move || store.pin()).await.map_err(|_| BaseError::Worker)?;
    for peer in peers {
        handle.phase(&format!("push to {peer}"));
        let transfer = |source| BaseError::Transfer { name: name.to_owned(), peer: peer.clone(), source };
        let connection = platform.network.dial(peer).await?;
        let target = Target::Base { name: name.to_owned() };
        let settings = platform.transfer_settings();
        let (mut sender, _) = Sender::open(&connection, target, manifest.size(), settings, handle.counters())
            .await
            .map_err(transfer)?;
        sender.manifest(platform.store().clone(), manifest.clone()).await.map_err(transfer)?;
        sender.commit(manifest.root(), 0, jobs::unix_ms()).await.map_err(transfer)?;
    }
    drop(pin);
    Ok(format!("base '{name}' is on {}", peers.join(", ")))
}
