//! Warm replication: one incremental pass of a VM's disks to a peer, as they are at one moment. The next pass sends what
//! the hypervisor saw written since; when that cannot be trusted, a whole scan, never "nothing".

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use chunkstore::{ImageRoot, ImageTree, LEAF_BYTES, RawImage, ReadImage};
use longhaul_proto::JobId;
use longhaul_proto::wire::{RefusalKind, Target, TargetStatus};
use migrate_driver::nbd::{NbdServer, Overlay};
use migrate_driver::{DiskDefinition, DiskFormat, DriverError, GuestStatus, TapKind, VmName};
use quinn::Connection;

use crate::jobs::{self, JobHandle, JobKind};
use crate::lease::{Lease, Leased, Revoked};
use crate::net::NetError;
use crate::outgoing::OverlayImage;
use crate::platform::Platform;
use crate::transfer::TransferError;
use crate::transfer::sender::Sender;
use crate::vms::VmError;

/// A pass that failed. The replica is as it was.
#[derive(Debug, thiserror::Error)]
pub enum WarmError {
    /// The VM.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The peer.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The hypervisor.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// A transfer.
    #[error("disk '{disk}': {source}")]
    Transfer {
        /// Which disk.
        disk: String,
        /// Why.
        source: TransferError,
    },
    /// A file or socket of ours.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, to what.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The moment the pass shows was lost.
    #[error(
        "disk '{disk}': what the guest overwrote could not be kept ({reason}); make room in the scratch directory"
    )]
    Overlay {
        /// Which disk.
        disk: String,
        /// Why.
        reason: String,
    },
    /// A disk in a file that only its hypervisor can read.
    #[error(
        "disk '{disk}' is a {format} image, and only raw ones can be replicated: `qemu-img convert -O raw` it with the VM \
         stopped, or migrate the VM, which makes it raw"
    )]
    Format {
        /// Which.
        disk: String,
        /// What it is.
        format: &'static str,
    },
    /// A person.
    #[error(transparent)]
    Cancelled(#[from] Revoked),
}

impl WarmError {
    /// Whether another pass has hold of the replica: the same try may succeed later.
    fn is_busy(&self) -> bool {
        matches!(self, WarmError::Transfer { source: TransferError::Refused(refusal), .. } if refusal.kind == RefusalKind::Busy)
    }
}

/// Notes in the report whether trying again later makes sense.
fn noted(handle: &JobHandle, outcome: Result<String, WarmError>) -> Result<String, WarmError> {
    if outcome.as_ref().is_err_and(WarmError::is_busy) {
        handle.update(|report| report.busy = true);
    }
    outcome
}

/// What the last pass of a disk left: what the peer holds, as a hash tree, and the bitmap that records writes since.
struct Warm {
    generation: u64,
    root: ImageRoot,
    tree: ImageTree,
}

/// By VM, disk and peer. Lost with the daemon: the first pass after a restart scans.
#[derive(Default)]
pub struct WarmStates {
    states: Mutex<HashMap<(String, String, String), Warm>>,
}

impl WarmStates {
    fn take(&self, key: &(String, String, String)) -> Option<Warm> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner).remove(key)
    }

    fn keep(&self, key: (String, String, String), warm: Warm) {
        self.states.lock().unwrap_or_else(PoisonError::into_inner).insert(key, warm);
    }
}

/// Begins a pass of `vm` to `peer`.
pub fn start(platform: &Arc<Platform>, vm: &str, peer: &str) -> Result<JobId, WarmError> {
    platform.peers.get(peer).map_err(NetError::from)?;
    let job = jobs::new_id();
    let definition = platform.vms.definition(vm)?;
    let hold = platform.vms.hold(vm, job, "replicate")?;
    platform.vms.owned(vm)?;
    if let Some(disk) = definition.disks.iter().find(|disk| disk.format != DiskFormat::Raw) {
        return Err(WarmError::Format { disk: disk.name.clone(), format: disk.format.as_str() });
    }
    let handle = platform.jobs.begin(job, JobKind::Replicate, vm, Some(peer));
    let (jobs, platform, peer) = (platform.jobs.clone(), platform.clone(), peer.to_owned());
    let pass = Pass { platform, handle: handle.clone(), vm: definition.name.clone(), peer };
    jobs.run(&handle, hold, move |lease| async move {
        let outcome = lease
            .run(pass.run(&lease, &definition.disks))
            .await
            .unwrap_or_else(|revoked| Err(revoked.into()));
        if outcome.is_err() {
            pass.clean_up(&definition.disks).await;
        }
        noted(&pass.handle, outcome)
    });
    Ok(job)
}

struct Pass {
    platform: Arc<Platform>,
    handle: JobHandle,
    vm: VmName,
    peer: String,
}

impl Pass {
    async fn run(&self, lease: &Lease, disks: &[DiskDefinition]) -> Result<String, WarmError> {
        let connection = self.platform.network.dial(&self.peer).await?;
        let running = match self.platform.hypervisor.status(&self.vm).await? {
            GuestStatus::Stopped => false,
            GuestStatus::Running | GuestStatus::Paused => true,
            status => {
                let vm = self.vm.clone();
                let hint = "it is on its way or broken; `longhaul vm list` tells more";
                return Err(DriverError::WrongState { vm, doing: "replicate", status, hint }.into());
            }
        };
        let mut generations = Vec::new();
        let mut ways = Vec::new();
        for disk in disks {
            let (generation, way) = self.disk(lease, &connection, disk, running).await?;
            generations.push(format!("{} at generation {generation}", disk.name));
            ways.push(way);
        }
        self.handle.refresh();
        Ok(format!(
            "VM '{}' replicated to '{}': {} ({})",
            self.vm,
            self.peer,
            generations.join(", "),
            ways.join(", ")
        ))
    }

    /// One disk. Gives its new generation at the peer and how it was found what to send.
    async fn disk(
        &self,
        lease: &Lease,
        connection: &Connection,
        disk: &DiskDefinition,
        running: bool,
    ) -> Result<(u64, &'static str), WarmError> {
        let image = RawImage::open_read(&disk.path)
            .map_err(|source| WarmError::Io { what: format!("opening {}", disk.path.display()), source })?;
        let size = image.size();
        self.handle.update(|report| report.image_bytes += size);
        let key = (self.vm.to_string(), disk.name.clone(), self.peer.clone());
        let known = self.platform.warm.take(&key);
        let image = Arc::new(Leased::new(image, lease));
        if let (Some(warm), true) = (known, running) {
            self.handle.phase("dirty blocks");
            match self.dirty_pass(lease, connection, disk, &image, warm).await {
                Ok(Some(warm)) => {
                    let generation = warm.generation;
                    self.platform.warm.keep(key, warm);
                    return Ok((generation, "dirty blocks"));
                }
                Ok(None) => {}
                Err(WarmError::Transfer { source, .. }) if source.is_divergence() => {
                    tracing::warn!("{source}; scanning the whole disk");
                }
                Err(error) => return Err(error),
            }
        }
        self.handle.phase("scan");
        let (warm, way) = self.scan_pass(lease, connection, disk, &image, running).await?;
        let generation = warm.generation;
        if running {
            self.platform.warm.keep(key, warm);
        }
        Ok((generation, way))
    }

    /// `None` when a scan is needed instead.
    async fn dirty_pass(
        &self,
        lease: &Lease,
        connection: &Connection,
        disk: &DiskDefinition,
        image: &Arc<Leased<RawImage>>,
        mut warm: Warm,
    ) -> Result<Option<Warm>, WarmError> {
        let hypervisor = &self.platform.hypervisor;
        let bitmap = self.bitmap();
        if warm.tree.size() != image.size() || !hypervisor.bitmap_ok(&self.vm, &disk.name, &bitmap).await? {
            return Ok(None);
        }
        let (mut sender, status) = self.open(connection, disk, image.size()).await?;
        if status != (TargetStatus { generation: warm.generation, root: Some(*warm.root.as_bytes()) }) {
            return Ok(None);
        }
        let taken = jobs::unix_ms();
        let (overlay, server) = self.tap(disk, image.size(), TapKind::Dirty { bitmap }).await?;
        // From here on the bitmap has forgotten what it told us: the warm state is only kept when all has arrived.
        hypervisor.finish_dirty(&self.vm, &disk.name).await?;
        check(&overlay, disk)?;
        let ranges = overlay.take_dirty();
        let whole_leaves = ranges.iter().all(|range| overlay.covers(leaves(range, image.size())));
        if !whole_leaves {
            tracing::warn!(
                "disk '{}': the hypervisor's dirty blocks are smaller than ours; scanning",
                disk.name
            );
            return Ok(None);
        }
        let blocks: Arc<dyn ReadImage> = Arc::new(OverlayImage(overlay));
        let hashed = {
            let (blocks, ranges) = (blocks.clone(), ranges.clone());
            lease.run_blocking(move || {
                ranges.iter().for_each(|range| warm.tree.mark(range.clone()));
                warm.tree.refresh(&*blocks).map(|_| warm)
            })
        };
        let transfer = |source| WarmError::Transfer { disk: disk.name.clone(), source };
        sender.delta(blocks, ranges).await.map_err(transfer)?;
        let mut warm = flatten(hashed.await, "hashing dirty blocks")?;
        warm.root = warm.tree.root();
        warm.generation = sender.commit(warm.root, warm.generation, taken).await.map_err(transfer)?;
        drop(server);
        Ok(Some(warm))
    }

    async fn scan_pass(
        &self,
        lease: &Lease,
        connection: &Connection,
        disk: &DiskDefinition,
        image: &Arc<Leased<RawImage>>,
        running: bool,
    ) -> Result<(Warm, &'static str), WarmError> {
        let (mut sender, status) = self.open(connection, disk, image.size()).await?;
        let taken = jobs::unix_ms();
        let mut tap = None;
        if running {
            let kind = TapKind::CopyBefore { bitmap: Some(self.bitmap()) };
            tap = Some(self.tap(disk, image.size(), kind).await?);
        }
        let moment: Arc<dyn ReadImage> = match &tap {
            Some((overlay, _)) => Arc::new(Moment { image: image.clone(), overlay: overlay.clone() }),
            None => image.clone(),
        };
        let hashed = {
            let moment = moment.clone();
            lease.run_blocking(move || {
                let mut tree = ImageTree::new(moment.size());
                tree.mark_all();
                tree.refresh(&*moment).map(|_| tree)
            })
        };
        let transfer = |source| WarmError::Transfer { disk: disk.name.clone(), source };
        sender.scan(moment, &disk.path.display().to_string()).await.map_err(transfer)?;
        let tree = flatten(hashed.await, "hashing the disk")?;
        if let Some((overlay, _)) = &tap {
            check(overlay, disk)?;
            self.platform.hypervisor.untap(&self.vm, &disk.name).await?;
        }
        let root = tree.root();
        let generation = sender.commit(root, status.generation, taken).await.map_err(transfer)?;
        let way = if status.generation == 0 { "first copy" } else { "whole scan" };
        Ok((Warm { generation, root, tree }, way))
    }

    async fn open(
        &self,
        connection: &Connection,
        disk: &DiskDefinition,
        size: u64,
    ) -> Result<(Sender, TargetStatus), WarmError> {
        let target = Target::Replica { vm: self.vm.to_string(), disk: disk.name.clone() };
        let settings = self.platform.transfer_settings();
        Sender::open(connection, target, size, settings, self.handle.counters())
            .await
            .map_err(|source| WarmError::Transfer { disk: disk.name.clone(), source })
    }

    async fn tap(
        &self,
        disk: &DiskDefinition,
        size: u64,
        kind: TapKind,
    ) -> Result<(Arc<Overlay>, NbdServer), WarmError> {
        let scratch = self.platform.layout.scratch();
        let overlay = Overlay::new(size, &scratch).map_err(|source| WarmError::Io {
            what: format!("scratch file in {}", scratch.display()),
            source,
        })?;
        let overlay = Arc::new(overlay);
        let server = self.platform.serve_taps(&self.vm, vec![(disk.name.clone(), overlay.clone())]);
        let server = server.map_err(|source| WarmError::Io { what: "NBD server".into(), source })?;
        self.platform.hypervisor.tap(&self.vm, &disk.name, server.socket(), &disk.name, kind).await?;
        Ok((overlay, server))
    }

    /// The guest must not be left with a tap whose other end is gone.
    async fn clean_up(&self, disks: &[DiskDefinition]) {
        for disk in disks {
            if let Err(error) = self.platform.hypervisor.untap(&self.vm, &disk.name).await
                && !matches!(error, DriverError::NotRunning { .. })
            {
                tracing::warn!("disk '{}' of VM '{}' may still be tapped: {error}", disk.name, self.vm);
            }
        }
    }

    fn bitmap(&self) -> String {
        format!("longhaul-{}", self.peer)
    }
}

/// The disk as it was at the tap: old data where the guest has written since, else the image.
struct Moment {
    image: Arc<Leased<RawImage>>,
    overlay: Arc<Overlay>,
}

impl ReadImage for Moment {
    fn size(&self) -> u64 {
        self.image.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.overlay.read_over(offset, buf, |offset, buf| self.image.read_at(offset, buf))
    }

    // A hole of the image may have been punched since: where the overlay has old data, there is data.
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let data = self.image.next_data(offset)?;
        let until = data.as_ref().map_or(self.size(), |data| data.start);
        // In that order: what is punched after the image was asked had its old data put into the overlay before.
        let mut at = offset;
        while at < until {
            let end = (at / LEAF_BYTES + 1) * LEAF_BYTES;
            if self.overlay.covers(at / LEAF_BYTES * LEAF_BYTES..end.min(self.size())) {
                return Ok(Some(at..end.min(self.size())));
            }
            at = end;
        }
        Ok(data)
    }
}

fn leaves(range: &Range<u64>, size: u64) -> Range<u64> {
    let start = range.start / LEAF_BYTES * LEAF_BYTES;
    start..range.end.next_multiple_of(LEAF_BYTES).min(size)
}

fn check(overlay: &Overlay, disk: &DiskDefinition) -> Result<(), WarmError> {
    overlay.failed().map_or(Ok(()), |reason| Err(WarmError::Overlay { disk: disk.name.clone(), reason }))
}

fn flatten<T>(joined: Result<io::Result<T>, tokio::task::JoinError>, what: &str) -> Result<T, WarmError> {
    joined
        .map_err(io::Error::other)
        .and_then(|result| result)
        .map_err(|source| WarmError::Io { what: what.to_owned(), source })
}

/// Begins to copy a raw image or a block device to a peer, where it is kept as the replica `name`.
pub fn send_image(
    platform: &Arc<Platform>,
    image: &Path,
    peer: &str,
    name: &str,
) -> Result<JobId, WarmError> {
    platform.peers.get(peer).map_err(NetError::from)?;
    let open = RawImage::open_read(image)
        .map_err(|source| WarmError::Io { what: format!("opening {}", image.display()), source })?;
    let job = jobs::new_id();
    let handle = platform.jobs.begin(job, JobKind::ImageSend, name, Some(peer));
    handle.update(|report| report.image_bytes = open.size());
    let (platform, peer, name) = (platform.clone(), peer.to_owned(), name.to_owned());
    let (jobs, sending) = (platform.jobs.clone(), handle.clone());
    jobs.run(&handle, (), move |lease| async move {
        let image = Arc::new(Leased::new(open, &lease));
        let path = image.get()?.path().display().to_string();
        let sent = lease.run(send_one(&platform, &sending, &lease, image, &path, &peer, &name));
        noted(&sending, sent.await.unwrap_or_else(|revoked| Err(revoked.into())))
    });
    Ok(job)
}

async fn send_one(
    platform: &Platform,
    handle: &JobHandle,
    lease: &Lease,
    image: Arc<Leased<RawImage>>,
    path: &str,
    peer: &str,
    name: &str,
) -> Result<String, WarmError> {
    let connection = platform.network.dial(peer).await?;
    let transfer = |source| WarmError::Transfer { disk: path.to_owned(), source };
    let taken = jobs::unix_ms();
    let target = Target::Replica { vm: name.to_owned(), disk: crate::replicas::IMAGE_DISK.to_owned() };
    handle.phase("scan");
    let (mut sender, status) =
        Sender::open(&connection, target, image.size(), platform.transfer_settings(), handle.counters())
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

#[cfg(test)]
mod tests;
