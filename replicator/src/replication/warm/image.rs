//! An image or a block device that belongs to no VM, copied to a peer, where it is kept as a replica.

use std::io;
use std::path::Path;
use std::sync::Arc;

use chunkstore::{ImageTree, RawImage, ReadImage};
use longhaul_proto::JobId;
use longhaul_proto::wire::Target;

use super::{WarmError, flatten};
use crate::lease::{Lease, Leased};
use crate::service::jobs::{self, JobHandle, JobKind};
use crate::service::net::NetError;
use crate::service::platform::ReplicationCx;
use crate::transfer::sender::Sender;

/// Begins to copy a raw image or a block device to a peer, where it is kept as the replica `name`.
pub(crate) fn send_image(
    cx: &Arc<ReplicationCx>,
    image: &Path,
    peer: &str,
    name: &str,
) -> Result<JobId, WarmError> {
    cx.reach.peers.get(peer).map_err(NetError::from)?;
    let open =
        RawImage::open_read(image).map_err(|source| WarmError::Open { path: image.to_owned(), source })?;
    let job = jobs::new_id();
    let handle = cx.jobs.begin(job, JobKind::ImageSend, name, Some(peer));
    handle.update(|report| report.image_bytes = open.size());
    let (cx, peer, name) = (cx.clone(), peer.to_owned(), name.to_owned());
    let (jobs, sending) = (cx.jobs.clone(), handle.clone());
    jobs.run(&handle, (), move |lease| async move {
        let image = Arc::new(Leased::new(open, &lease));
        let path = image.get()?.path().display().to_string();
        let sent = lease.run(send_one(&cx, &sending, &lease, image, &path, &peer, &name));
        sent.await.unwrap_or_else(|revoked| Err(revoked.into()))
    });
    Ok(job)
}

async fn send_one(
    cx: &ReplicationCx,
    handle: &JobHandle,
    lease: &Lease,
    image: Arc<Leased<RawImage>>,
    path: &str,
    peer: &str,
    name: &str,
) -> Result<String, WarmError> {
    let connection = cx.reach.network.dial(peer).await?;
    let transfer = |source| WarmError::Transfer { disk: path.to_owned(), source };
    let taken = jobs::unix_ms();
    let target =
        Target::Replica { vm: name.to_owned(), disk: crate::replication::replicas::IMAGE_DISK.to_owned() };
    handle.phase("scan");
    let (mut sender, status) =
        Sender::open(&connection, target, image.size(), cx.reach.transfers, handle.counters())
            .await
            .map_err(transfer)?;
    // Hashed from the file a second time, and compared with what the other side wrote: an image that changes while
    // it is sent is found out.
    let hashed = {
        let image = image.clone();
        lease.run_blocking(move || {
            let mut tree = ImageTree::new(image.size());
            tree.mark_all();
            tree.refresh(&*image).map(|_| tree.root())
        })
    };
    sender.scan(image.clone(), path).await.map_err(transfer)?;
    let root = flatten(hashed.await, "hashing the image")?;
    let generation = sender.commit(root, status.generation, taken).await.map_err(|source| {
        if source.is_divergence() {
            return WarmError::Io {
                what: format!("sending {path}"),
                source: io::Error::other(
                    "the image changed while it was read; stop whoever writes to it, or `replicate` its VM",
                ),
            };
        }
        transfer(source)
    })?;
    Ok(format!("{path} is on '{peer}' as '{name}', generation {generation}"))
}
