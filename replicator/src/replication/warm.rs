//! Warm replication: one incremental pass of a VM's disks to a peer, as they are at one moment. The next pass sends what
//! the hypervisor saw written since; when that cannot be trusted, a whole scan, never "nothing".

mod image;
mod moment;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use chunkstore::{ImageRoot, ImageTree, ReadImage};
use longhaul_proto::JobId;
use longhaul_proto::wire::{RefusalKind, Target, TargetStatus};
use migrate_driver::nbd::{NbdServer, Overlay};
use migrate_driver::{
    DiskDefinition, DiskFormat, DriverError, GuestStatus, Tap, TapKind, VmDefinition, VmName,
};
use quinn::Connection;
use tokio::task::JoinSet;

use crate::error_kind::{HasKind, Kind};
use crate::lease::{Lease, Leased, Revoked};
use crate::migration::outgoing::OverlayImage;
use crate::service::disks::{self, Cut, DiskError};
use crate::service::jobs::{self, DiskReport, Found, JobHandle, JobKind};
use crate::service::net::{self, NetError};
use crate::service::platform::ReplicationCx;
use crate::service::vms::VmError;
use crate::transfer::TransferError;
use crate::transfer::sender::Sender;

pub(crate) use image::send_image;
use moment::{Moment, leaves};

/// A pass that failed. The replica is as it was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WarmError {
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
    Transfer { disk: String, source: TransferError },
    /// An image that a person named.
    #[error("opening {path}: {source}", path = .path.display())]
    Open { path: PathBuf, source: io::Error },
    /// A file or socket of ours.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, to what.
        what: String,
        source: io::Error,
    },
    /// The moment the pass shows was lost.
    #[error(
        "disk '{disk}': what the guest overwrote could not be kept ({reason}); make room in the scratch directory"
    )]
    Overlay { disk: String, reason: String, is_full: bool },
    /// A disk in a file that only its hypervisor can read.
    #[error(
        "disk '{disk}' is a {format} image, and only raw ones can be replicated: `qemu-img convert -O raw` it with the VM \
         stopped, or migrate the VM, which makes it raw"
    )]
    Format { disk: String, format: &'static str },
    /// A disk of the guest.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A thread of ours broke.
    #[error("a worker of the pass ended unexpectedly")]
    Worker,
    /// A person.
    #[error(transparent)]
    Cancelled(#[from] Revoked),
}

impl HasKind for WarmError {
    fn kind(&self) -> Kind {
        match self {
            WarmError::Vm(error) => error.kind(),
            WarmError::Net(error) => error.kind(),
            WarmError::Driver(error) => error.kind(),
            WarmError::Transfer { source, .. } => source.kind(),
            WarmError::Open { source, .. } => Kind::of_named_path(source),
            WarmError::Io { source, .. } => Kind::of_io(source),
            WarmError::Overlay { is_full, .. } => {
                if *is_full {
                    Kind::Space
                } else {
                    Kind::Io
                }
            }
            WarmError::Disk(error) => error.kind(),
            WarmError::Format { .. } => Kind::Denied,
            WarmError::Cancelled(error) => error.kind(),
            WarmError::Worker => Kind::Bug,
        }
    }
}

impl WarmError {
    /// Whether the peer's replica is not what was taken for it: a whole scan puts it right.
    fn is_divergence(&self) -> bool {
        matches!(self, WarmError::Transfer { source, .. } if source.is_divergence())
    }

    /// Of the errors of several disks the one that says most: a disk that was given up because of another one says least.
    fn weight(&self) -> u8 {
        match self {
            _ if self.is_divergence() => 3,
            WarmError::Transfer { source: TransferError::Refused(refusal), .. } => {
                u8::from(refusal.kind != RefusalKind::Failed)
            }
            _ => 2,
        }
    }
}

/// What the last pass of a disk left: what the peer holds, as a hash tree, and the bitmap that records writes since.
struct Warm {
    generation: u64,
    root: ImageRoot,
    tree: ImageTree,
}

/// By VM, disk and peer. Lost with the daemon: the first pass after a restart scans.
#[derive(Default)]
pub(crate) struct WarmStates {
    states: Mutex<HashMap<(String, String, String), Warm>>,
}

impl WarmStates {
    fn take(&self, key: &(String, String, String)) -> Option<Warm> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner).remove(key)
    }

    fn keep(&self, key: (String, String, String), warm: Warm) {
        self.states.lock().unwrap_or_else(PoisonError::into_inner).insert(key, warm);
    }

    /// Drops what is kept of a VM that is not here any more.
    pub(crate) fn forget_vm(&self, vm: &str) {
        self.states.lock().unwrap_or_else(PoisonError::into_inner).retain(|(of, _, _), _| of != vm);
    }

    /// Drops what is kept of what a peer holds that is not known any more.
    pub(crate) fn forget_peer(&self, peer: &str) {
        self.states.lock().unwrap_or_else(PoisonError::into_inner).retain(|(_, _, of), _| of != peer);
    }
}

/// Begins a pass of `vm` to `peer`.
pub(crate) fn start(cx: &Arc<ReplicationCx>, vm: &str, peer: &str) -> Result<JobId, WarmError> {
    cx.reach.peers.get(peer).map_err(NetError::from)?;
    let job = jobs::new_id();
    let definition = cx.guests.vms.definition(vm)?;
    let hold = cx.guests.vms.hold(vm, job, "replicate")?;
    cx.guests.vms.owned(vm)?;
    if let Some(disk) = definition.disks.iter().find(|disk| disk.format != DiskFormat::Raw) {
        return Err(WarmError::Format { disk: disk.name.clone(), format: disk.format.as_str() });
    }
    let handle = cx.jobs.begin(job, JobKind::Replicate, vm, Some(peer));
    let (jobs, cx, peer) = (cx.jobs.clone(), cx.clone(), peer.to_owned());
    let vm = definition.name.clone();
    let pass = Pass { cx, handle: handle.clone(), definition, vm, peer };
    jobs.run(&handle, hold, move |lease| async move {
        let outcome = lease
            .run(pass.run(&lease, &pass.definition.disks))
            .await
            .unwrap_or_else(|revoked| Err(revoked.into()));
        if outcome.is_err() {
            pass.clean_up(&pass.definition.disks).await;
        }
        outcome
    });
    Ok(job)
}

struct Pass {
    cx: Arc<ReplicationCx>,
    handle: JobHandle,
    definition: VmDefinition,
    vm: VmName,
    peer: String,
}

/// A disk on its way. All disks of a pass are opened before the moment that the pass shows.
struct Outgoing {
    name: String,
    path: String,
    image: Arc<Leased<Cut>>,
    sender: Sender,
    status: TargetStatus,
    /// What is known of it, when the blocks written since are enough.
    warm: Option<Warm>,
}

impl Outgoing {
    fn error(&self, source: TransferError) -> WarmError {
        WarmError::Transfer { disk: self.name.clone(), source }
    }

    fn found(&self) -> Found {
        match (&self.warm, self.status.generation) {
            (Some(_), _) => Found::DirtyBlocks,
            (None, 0) => Found::FirstCopy,
            (None, _) => Found::WholeScan,
        }
    }
}

/// A disk that has been sent.
struct Sent {
    outgoing: Outgoing,
    found: Found,
    tree: ImageTree,
}

/// The moment that a pass of a running VM shows.
struct Taps {
    overlays: Vec<Arc<Overlay>>,
    _server: NbdServer,
}

impl Pass {
    async fn run(&self, lease: &Lease, disks: &[DiskDefinition]) -> Result<String, WarmError> {
        let connection = self.cx.reach.network.dial(&self.peer).await?;
        let running = match self.cx.guests.hypervisor.status(&self.vm).await? {
            GuestStatus::Stopped => false,
            GuestStatus::Running | GuestStatus::Paused => true,
            status => {
                let vm = self.vm.clone();
                let hint = match status {
                    GuestStatus::DiskError => {
                        "make room on its disk and let it run again with `longhaul vm start`"
                    }
                    _ => "it is on its way or broken; `longhaul vm list` tells more",
                };
                return Err(DriverError::WrongState { vm, doing: "replicate", status, hint }.into());
            }
        };
        let reports = match self.attempt(lease, &connection, disks, running).await {
            Ok(Some(reports)) => reports,
            Ok(None) => self.again(lease, &connection, disks, running).await?,
            Err(error) if error.is_divergence() => {
                tracing::warn!("{error}; scanning the whole VM");
                self.again(lease, &connection, disks, running).await?
            }
            Err(error) => return Err(error),
        };
        let generations: Vec<_> =
            reports.iter().map(|disk| format!("{} at generation {}", disk.disk, disk.generation)).collect();
        let found: Vec<_> = reports.iter().map(|disk| disk.found.words()).collect();
        let summary = format!(
            "VM '{}' replicated to '{}': {} ({})",
            self.vm,
            self.peer,
            generations.join(", "),
            found.join(", ")
        );
        self.handle.update(|report| report.disks = reports);
        self.handle.refresh();
        Ok(summary)
    }

    /// A second attempt, in which all of it is scanned: the first has used up what was remembered.
    async fn again(
        &self,
        lease: &Lease,
        connection: &Connection,
        disks: &[DiskDefinition],
        running: bool,
    ) -> Result<Vec<DiskReport>, WarmError> {
        self.clean_up(disks).await;
        let reports = self.attempt(lease, connection, disks, running).await?;
        reports.ok_or_else(|| WarmError::Io {
            what: "replicating".to_owned(),
            source: io::Error::other("the disks changed while the pass began; try again"),
        })
    }

    /// All disks, as they are at one moment: committed at the peer together, or not at all. `None` when what was remembered
    /// turned out not to be enough; it is forgotten then.
    async fn attempt(
        &self,
        lease: &Lease,
        connection: &Connection,
        disks: &[DiskDefinition],
        running: bool,
    ) -> Result<Option<Vec<DiskReport>>, WarmError> {
        let outgoing = self.open_all(lease, connection, disks, running).await?;
        let (taken, taps) = match running {
            true => self.tap_all(&outgoing).await?,
            false => (jobs::unix_ms(), None),
        };
        let overlays: Vec<Option<Arc<Overlay>>> = match &taps {
            Some(taps) => taps.overlays.iter().cloned().map(Some).collect(),
            None => vec![None; outgoing.len()],
        };
        let (quick, whole): (Vec<_>, Vec<_>) =
            outgoing.into_iter().zip(overlays).partition(|(disk, _)| disk.warm.is_some());
        let mut sent = Vec::new();
        if !quick.is_empty() {
            self.handle.phase("dirty blocks");
            let names: Vec<&str> = quick.iter().map(|(disk, _)| disk.name.as_str()).collect();
            // From here on the bitmaps have forgotten what they told us: warm states are only kept when all has arrived.
            self.cx.guests.hypervisor.finish_dirty_all(&self.vm, &names).await?;
        }
        for (mut outgoing, overlay) in quick {
            let found = outgoing.found();
            let Some(tree) = self.dirty(lease, &mut outgoing, overlay).await? else { return Ok(None) };
            sent.push(Sent { outgoing, found, tree });
        }
        for (mut outgoing, overlay) in whole {
            self.handle.phase("scan");
            let found = outgoing.found();
            let tree = self.scan(lease, &mut outgoing, overlay).await?;
            sent.push(Sent { outgoing, found, tree });
        }
        let mut reports = self.commit(sent, taken, running).await?;
        reports.sort_by_key(|report| disks.iter().position(|disk| disk.name == report.disk));
        drop(taps);
        Ok(Some(reports))
    }

    async fn open_all(
        &self,
        lease: &Lease,
        connection: &Connection,
        disks: &[DiskDefinition],
        running: bool,
    ) -> Result<Vec<Outgoing>, WarmError> {
        let seen = if running {
            disks::seen(&*self.cx.guests.hypervisor, &self.definition).await?
        } else {
            vec![None; disks.len()]
        };
        let set = jobs::new_id();
        let mut outgoing = Vec::new();
        for (disk, seen) in disks.iter().zip(seen) {
            let opened = disk.clone();
            let image = lease.run_blocking(move || Cut::open(&opened, seen)).await;
            let image = image.map_err(|_| WarmError::Worker)??;
            let size = image.size();
            let image = Arc::new(Leased::new(image, lease));
            let (vm, name, count) = (self.vm.to_string(), disk.name.clone(), disks.len() as u32);
            let target = match net::is_current(connection) {
                true => Target::ReplicaSet { vm, disk: name.clone(), set, disks: count },
                // It commits each disk on its own.
                false => Target::Replica { vm, disk: name.clone() },
            };
            let settings = self.cx.reach.transfers;
            let (sender, status) = Sender::open(connection, target, size, settings, self.handle.counters())
                .await
                .map_err(|source| WarmError::Transfer { disk: name.clone(), source })?;
            let path = disk.path.display().to_string();
            let warm = if running { self.remembered(&name, size, &status).await? } else { None };
            outgoing.push(Outgoing { name, path, image, sender, status, warm });
        }
        let total = outgoing.iter().map(|disk| disk.image.size()).sum();
        self.handle.update(|report| report.image_bytes = total);
        Ok(outgoing)
    }

    /// What the last pass left of a disk, when it still holds. It is taken: only a pass that ends well leaves something.
    async fn remembered(
        &self,
        disk: &str,
        size: u64,
        status: &TargetStatus,
    ) -> Result<Option<Warm>, WarmError> {
        let Some(warm) = self.cx.warm.take(&self.key(disk)) else { return Ok(None) };
        let there = TargetStatus { generation: warm.generation, root: Some(*warm.root.as_bytes()) };
        let holds = warm.tree.size() == size
            && *status == there
            && self.cx.guests.hypervisor.bitmap_ok(&self.vm, disk, &self.bitmap()).await?;
        Ok(holds.then_some(warm))
    }

    /// Taps all disks in one moment. Gives it, and where the disks' old or dirty blocks arrive.
    async fn tap_all(&self, disks: &[Outgoing]) -> Result<(u64, Option<Taps>), WarmError> {
        let scratch = self.cx.guests.layout.scratch();
        let (mut exports, mut taps) = (Vec::new(), Vec::new());
        for disk in disks {
            let overlay = Overlay::new(disk.image.size(), &scratch).map_err(|source| WarmError::Io {
                what: format!("scratch file in {}", scratch.display()),
                source,
            })?;
            exports.push((disk.name.clone(), Arc::new(overlay)));
            let kind = match disk.warm {
                Some(_) => TapKind::Dirty { bitmap: self.bitmap() },
                None => TapKind::CopyBefore { bitmap: Some(self.bitmap()) },
            };
            taps.push(Tap { disk: disk.name.clone(), export: disk.name.clone(), kind });
        }
        let overlays = exports.iter().map(|(_, overlay)| overlay.clone()).collect();
        let server = self.cx.guests.serve_taps(&self.vm, exports);
        let server = server.map_err(|source| WarmError::Io { what: "NBD server".into(), source })?;
        let taken = jobs::unix_ms();
        self.cx.guests.hypervisor.tap_all(&self.vm, server.socket(), &taps).await?;
        Ok((taken, Some(Taps { overlays, _server: server })))
    }

    /// Sends the blocks that are in the overlay. `None` when a scan is needed instead.
    async fn dirty(
        &self,
        lease: &Lease,
        disk: &mut Outgoing,
        overlay: Option<Arc<Overlay>>,
    ) -> Result<Option<ImageTree>, WarmError> {
        let (Some(Warm { mut tree, .. }), Some(overlay)) = (disk.warm.take(), overlay) else {
            return Ok(None);
        };
        check(&overlay, &disk.name)?;
        let ranges = overlay.take_dirty();
        let whole_leaves = ranges.iter().all(|range| overlay.covers(leaves(range, disk.image.size())));
        if !whole_leaves {
            tracing::warn!(
                "disk '{}': the hypervisor's dirty blocks are smaller than ours; scanning",
                disk.name
            );
            return Ok(None);
        }
        let blocks: Arc<dyn ReadImage> = Arc::new(Leased::new(OverlayImage(overlay.clone()), lease));
        let hashed = {
            let (blocks, ranges) = (blocks.clone(), ranges.clone());
            lease.run_blocking(move || {
                ranges.iter().for_each(|range| tree.mark(range.clone()));
                tree.refresh(&*blocks).map(|_| tree)
            })
        };
        let sent = disk.sender.delta(blocks, ranges).await;
        sent.map_err(|source| disk.error(source))?;
        Ok(Some(flatten(hashed.await, "hashing dirty blocks")?))
    }

    /// Scans a disk, as it was at the tap when there is one, and sends what the other side lacks.
    async fn scan(
        &self,
        lease: &Lease,
        disk: &mut Outgoing,
        overlay: Option<Arc<Overlay>>,
    ) -> Result<ImageTree, WarmError> {
        let moment: Arc<dyn ReadImage> = match &overlay {
            Some(overlay) => Arc::new(Moment { image: disk.image.clone(), overlay: overlay.clone() }),
            None => disk.image.clone(),
        };
        let hashed = {
            let moment = moment.clone();
            lease.run_blocking(move || {
                let mut tree = ImageTree::new(moment.size());
                tree.mark_all();
                tree.refresh(&*moment).map(|_| tree)
            })
        };
        let scanned = disk.sender.scan(moment, &disk.path).await;
        scanned.map_err(|source| disk.error(source))?;
        let tree = flatten(hashed.await, "hashing the disk")?;
        if let Some(overlay) = &overlay {
            check(overlay, &disk.name)?;
            self.cx.guests.hypervisor.untap(&self.vm, &disk.name).await?;
        }
        Ok(tree)
    }

    /// Has the peer commit all disks, which it does together, and remembers them for the next pass.
    async fn commit(
        &self,
        disks: Vec<Sent>,
        taken: u64,
        running: bool,
    ) -> Result<Vec<DiskReport>, WarmError> {
        let mut commits = JoinSet::new();
        for Sent { outgoing, found, tree } in disks {
            commits.spawn(async move {
                let Outgoing { name, sender, status, .. } = outgoing;
                let generation = sender.commit(tree.root(), status.generation, taken).await;
                let generation =
                    generation.map_err(|source| WarmError::Transfer { disk: name.clone(), source });
                (name, found, tree, generation)
            });
        }
        let (mut committed, mut errors) = (Vec::new(), Vec::new());
        for (name, found, tree, generation) in commits.join_all().await {
            match generation {
                Ok(generation) => committed.push((name, found, tree, generation)),
                Err(error) => errors.push(error),
            }
        }
        if let Some(error) = errors.into_iter().max_by_key(WarmError::weight) {
            return Err(error);
        }
        let keep = |(name, found, tree, generation): (String, Found, ImageTree, u64)| {
            if running {
                let warm = Warm { generation, root: tree.root(), tree };
                self.cx.warm.keep(self.key(&name), warm);
            }
            DiskReport { disk: name, generation, found }
        };
        Ok(committed.into_iter().map(keep).collect())
    }

    /// The guest must not be left with a tap whose other end is gone.
    async fn clean_up(&self, disks: &[DiskDefinition]) {
        for disk in disks {
            if let Err(error) = self.cx.guests.hypervisor.untap(&self.vm, &disk.name).await
                && !matches!(error, DriverError::NotRunning { .. })
            {
                tracing::warn!("disk '{}' of VM '{}' may still be tapped: {error}", disk.name, self.vm);
            }
        }
    }

    fn bitmap(&self) -> String {
        format!("longhaul-{}", self.peer)
    }

    fn key(&self, disk: &str) -> (String, String, String) {
        (self.vm.to_string(), disk.to_owned(), self.peer.clone())
    }
}

fn check(overlay: &Overlay, disk: &str) -> Result<(), WarmError> {
    let Some(reason) = overlay.failed() else { return Ok(()) };
    Err(WarmError::Overlay { disk: disk.to_owned(), reason, is_full: overlay.is_full() })
}

fn flatten<T>(joined: Result<io::Result<T>, tokio::task::JoinError>, what: &str) -> Result<T, WarmError> {
    let result = joined.map_err(|_| WarmError::Worker)?;
    result.map_err(|source| WarmError::Io { what: what.to_owned(), source })
}

#[cfg(test)]
mod tests;
