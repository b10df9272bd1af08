//! Base images out of the store again: into a new file, or over what an image holds already. It writes where it was told
//! and nowhere else, and refuses to write over what this platform lives on.

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use chunkstore::{Manifest, RawImage, ReadImage, Restored, Seeds, Store, StoreError};
use longhaul_proto::JobId;
use serde::Deserialize;
use serde_json::json;

use crate::error_kind::{HasKind, Kind};
use crate::files;
use crate::images::targets::{self, Lost, TargetError};
use crate::lease::Lease;
use crate::service::jobs::{self, JobHandle, JobKind};
use crate::service::platform::ImagesCx;
use crate::transfer::Counters;
use crate::transfer::sink::Holdings;

/// Why a base was not written out. What was refused touched nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestoreError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A new file was asked for, and there is one.
    #[error("{path} exists: name a new file, or have only what differs written into it with --in-place", path = .path.display())]
    Exists { path: PathBuf },
    /// An image to be written into was asked for, and this is none of that size.
    #[error(
        "{path} has {has} bytes, the base {needs}: --in-place needs an image of the base's size; leave it out for a new file",
        path = .path.display()
    )]
    WrongSize { path: PathBuf, has: u64, needs: u64 },
    /// What is not to be written to.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// There is nothing to share with an image that is there already.
    #[error("--like is for a new file: with --in-place {path} itself is what the base is compared with", path = .path.display())]
    LikeInPlace { path: PathBuf },
    /// A file is out of reach.
    #[error("{what} {path}: {source}", path = .path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// A new file was not finished. It is gone.
    #[error("writing {path}: {source}", path = .path.display())]
    NewFile { path: PathBuf, source: chunkstore::RestoreError },
    /// An image was not finished. It is neither what it was nor the base.
    #[error(
        "writing into {path}: {source}. It is incomplete now: neither what it was nor the base; run the same command again, which writes only what is still missing",
        path = .path.display()
    )]
    InPlace { path: PathBuf, source: chunkstore::RestoreError },
    /// Somebody cancelled it.
    #[error("cancelled; {path} was removed", path = .path.display())]
    Cancelled { path: PathBuf },
    /// Somebody cancelled it half-way.
    #[error(
        "cancelled; {path} is incomplete now: neither what it was nor the base. `longhaul base restore --in-place` again writes only what is still missing",
        path = .path.display()
    )]
    CancelledInPlace { path: PathBuf },
    /// A thread of ours broke.
    #[error("the worker ended unexpectedly")]
    Worker,
}

impl HasKind for RestoreError {
    fn kind(&self) -> Kind {
        match self {
            RestoreError::Store(error) => error.kind(),
            RestoreError::Target(error) => error.kind(),
            RestoreError::LikeInPlace { .. } => Kind::Invalid,
            RestoreError::Exists { .. }
            | RestoreError::WrongSize { .. }
            | RestoreError::Cancelled { .. }
            | RestoreError::CancelledInPlace { .. } => Kind::Denied,
            RestoreError::Io { source, .. } => Kind::of_named_path(source),
            RestoreError::NewFile { source, .. } => source.kind(),
            RestoreError::InPlace { source, .. } => source.kind(),
            RestoreError::Worker => Kind::Bug,
        }
    }
}

/// What `base restore` is asked.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RestoreRequest {
    /// Where to, absolute.
    pub path: PathBuf,
    /// Write into the image that is there.
    #[serde(default)]
    pub in_place: bool,
    /// An image on the same file system that the new file may share blocks with.
    #[serde(default)]
    pub like: Option<PathBuf>,
}

/// Begins to write base `name` out of the store. What is refused is refused here, before there is a job.
pub(crate) fn restore(
    cx: &Arc<ImagesCx>,
    name: &str,
    request: &RestoreRequest,
) -> Result<JobId, RestoreError> {
    let manifest = cx.images.store().manifest(name)?;
    targets::check(&cx.guests.layout, &cx.guests.vms, &request.path, Lost::Kept)?;
    let target = Target::open(request, manifest.size())?;
    let handle = cx.jobs.begin(jobs::new_id(), JobKind::BaseRestore, name, None);
    handle.update(|report| report.image_bytes = manifest.size());
    let (job, holdings, name) = (handle.clone(), cx.images.holdings.clone(), name.to_owned());
    cx.jobs.run(&handle, (), move |lease| async move {
        job.phase("restore");
        let (path, restored) = write_out(holdings, &job, &lease, manifest, target).await?;
        job.update(|report| report.result = Some(json!(restored)));
        Ok::<_, RestoreError>(format!(
            "base '{name}' is in {}: {} bytes written, {} bytes of data became a hole",
            path.display(),
            restored.written_bytes,
            restored.zeroed_bytes
        ))
    });
    Ok(handle.id())
}

/// Where a base goes, looked at and open as far as it is there.
enum Target {
    New { path: PathBuf, like: Option<RawImage> },
    InPlace(RawImage),
}

impl Target {
    fn open(request: &RestoreRequest, size: u64) -> Result<Target, RestoreError> {
        let path = request.path.clone();
        let opening = |path: &Path| {
            let path = path.to_owned();
            move |source| RestoreError::Io { what: "opening", path, source }
        };
        if !request.in_place {
            // Creating it finds out for certain; to find it out here makes no job.
            if fs::symlink_metadata(&path).is_ok() {
                return Err(RestoreError::Exists { path });
            }
            let like = request.like.as_ref().map(|like| RawImage::open_read(like).map_err(opening(like)));
            return Ok(Target::New { path, like: like.transpose()? });
        }
        if request.like.is_some() {
            return Err(RestoreError::LikeInPlace { path });
        }
        let image = RawImage::open_write(&path).map_err(opening(&path))?;
        match image.size() {
            has if has == size => Ok(Target::InPlace(image)),
            has => Err(RestoreError::WrongSize { path, has, needs: size }),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Target::New { path, .. } => path,
            Target::InPlace(image) => image.path(),
        }
    }

    /// Writes the image. `watch` gets the bytes that are done, and may stop it.
    fn write(
        &self,
        store: &Store,
        seeds: &Seeds,
        manifest: &Manifest,
        watch: &dyn Fn(u64) -> ControlFlow<()>,
    ) -> Result<Restored, RestoreError> {
        let path = self.path().to_owned();
        match self {
            Target::New { like, .. } => {
                let restored = chunkstore::restore_to(store, seeds, manifest, &path, like.as_ref(), watch)
                    .map_err(|source| {
                        let path = path.clone();
                        match source {
                            chunkstore::RestoreError::Stopped => RestoreError::Cancelled { path },
                            source => RestoreError::NewFile { path, source },
                        }
                    })?;
                let dir = path.parent().unwrap_or(Path::new("/"));
                let what = "making durable the name";
                files::sync_dir(dir).map_err(|source| RestoreError::Io { what, path, source })?;
                Ok(restored)
            }
            Target::InPlace(image) => {
                chunkstore::restore(store, seeds, manifest, image, watch).map_err(|source| match source {
                    chunkstore::RestoreError::Stopped => RestoreError::CancelledInPlace { path },
                    source => RestoreError::InPlace { path, source },
                })
            }
        }
    }
}

/// Writes on a blocking thread, which learns by its progress that somebody has cancelled the job.
async fn write_out(
    holdings: Holdings,
    handle: &JobHandle,
    lease: &Lease,
    manifest: Manifest,
    target: Target,
) -> Result<(PathBuf, Restored), RestoreError> {
    let counters = handle.counters();
    Counters::add(&counters.data, manifest.data_bytes());
    let asked = lease.clone();
    let working = lease.run_blocking(move || {
        // The base may be removed meanwhile; what it is made of stays until this is done.
        let _pin = holdings.store.pin();
        let watch = |done| {
            counters.scanned.store(done, Ordering::Relaxed);
            if asked.check().is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let restored = target.write(&holdings.store, &holdings.seeds, &manifest, &watch)?;
        Ok((target.path().to_owned(), restored))
    });
    working.await.map_err(|_| RestoreError::Worker)?
}

#[cfg(test)]
mod tests;
