//! The outgoing side of a migration's data: taps on the guest's disks, the transfers, the memory relay. Each method is one
//! action of the hand-off; what follows from its outcome is the hand-off's to say.

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use chunkstore::{ImageTree, ReadImage};
use longhaul_proto::handoff::{Limits, Root};
use longhaul_proto::wire::{FINAL_MARK, Target};
use migrate_driver::nbd::{NbdServer, Overlay};
use migrate_driver::{
    DiskDefinition, DiskFormat, DriverError, GuestStatus, MemoryParams, Mode, StopHow, TapKind, VmName,
};
use tokio::sync::oneshot;

use crate::address;
use crate::error_kind::{HasKind, Kind};
use crate::lease::{Lease, Leased, Revoked};
use crate::migration::link::Link;
use crate::migration::{Plan, PlanDisk};
use crate::service::disks::{self, Cut, DiskError};
use crate::service::jobs::JobHandle;
use crate::service::net::NetError;
use crate::service::platform::MigrationCx;
use crate::transfer::TransferError;
use crate::transfer::memory::{self, MemoryStream, RelayError};
use crate::transfer::sender::Sender;

/// Why an action failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutgoingError {
    /// The hypervisor.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// A transfer.
    #[error("disk '{disk}': {source}")]
    Transfer { disk: String, source: TransferError },
    /// The connection.
    #[error(transparent)]
    Net(#[from] NetError),
    /// A file or socket of ours.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, to what.
        what: String,
        source: std::io::Error,
    },
    /// The guest's writes could not be kept track of.
    #[error(
        "disk '{disk}': the guest's writes could not be recorded: {reason}; make room in the scratch directory"
    )]
    Overlay { disk: String, reason: String, is_full: bool },
    /// A disk of the guest.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Somebody has changed a disk's size.
    #[error("disk '{disk}' has another size than when the migration began: try again")]
    Resized { disk: String },
    /// A thread of ours broke.
    #[error("a worker of the migration ended unexpectedly")]
    Worker,
    /// The memory's way.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// The migration is being undone.
    #[error(transparent)]
    Revoked(#[from] Revoked),
    /// After a restart there is nothing to go on with.
    #[error("the disks of this migration are not open")]
    NotOpen,
}

impl HasKind for OutgoingError {
    fn kind(&self) -> Kind {
        match self {
            OutgoingError::Driver(error) => error.kind(),
            OutgoingError::Transfer { source, .. } => source.kind(),
            OutgoingError::Net(error) => error.kind(),
            OutgoingError::Io { source, .. } => Kind::of_io(source),
            OutgoingError::Overlay { is_full, .. } => {
                if *is_full {
                    Kind::Space
                } else {
                    Kind::Io
                }
            }
            OutgoingError::Disk(error) => error.kind(),
            OutgoingError::Relay(error) => error.kind(),
            OutgoingError::Revoked(error) => error.kind(),
            OutgoingError::Resized { .. } | OutgoingError::NotOpen => Kind::Denied,
            OutgoingError::Worker => Kind::Bug,
        }
    }
}

/// An overlay, read as an image: what the guest has written since its tap.
pub(crate) struct OverlayImage(pub Arc<Overlay>);

impl ReadImage for OverlayImage {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.0.read_at(offset, buf)
    }

    fn next_data(&self, offset: u64) -> std::io::Result<Option<Range<u64>>> {
        self.0.next_data(offset)
    }
}

struct Disk {
    name: String,
    /// All of the disk, as it is now.
    image: Arc<dyn ReadImage>,
    overlay: Arc<Overlay>,
    tree: Arc<Mutex<ImageTree>>,
    sender: Sender,
}

/// The data of one outgoing migration.
pub(crate) struct Outgoing {
    cx: Arc<MigrationCx>,
    handle: JobHandle,
    vm: VmName,
    link: Arc<Link>,
    disks: Vec<(PlanDisk, DiskDefinition)>,
    plan: Option<Plan>,
    mode: Mode,
    limits: Limits,
    open: tokio::sync::Mutex<Vec<Disk>>,
    server: Mutex<Option<NbdServer>>,
    stopped: OnceLock<Instant>,
}

impl Outgoing {
    /// For the disks of a plan; without `data` only [`Outgoing::roll_back`] and [`Outgoing::retire`] work.
    pub(crate) fn new(
        cx: Arc<MigrationCx>,
        handle: JobHandle,
        vm: VmName,
        link: Arc<Link>,
        data: Option<(Plan, Mode)>,
        limits: Limits,
    ) -> Self {
        let (plan, mode) = data.map_or((None, Mode::default()), |(plan, mode)| (Some(plan), mode));
        let disks = plan.as_ref().map_or_else(Vec::new, |plan| {
            plan.disks.iter().cloned().zip(plan.definition.disks.iter().cloned()).collect()
        });
        let (open, server, stopped) = Default::default();
        Outgoing { cx, handle, vm, link, disks, plan, mode, limits, open, server, stopped }
    }

    /// Since when the guest has stood still, once it does.
    pub(crate) fn stopped(&self) -> Option<Instant> {
        self.stopped.get().copied()
    }

    /// Taps every disk, then copies every disk once. Returns the bytes written meanwhile.
    pub(crate) async fn copy_disks(&self, lease: &Lease) -> Result<u64, OutgoingError> {
        let connection = self.link.connection().await?;
        let seen = match &self.plan {
            Some(plan) => disks::seen(&*self.cx.guests.hypervisor, &plan.definition).await?,
            None => return Err(OutgoingError::NotOpen),
        };
        let overlays = self.tap_disks().await?;
        let mut open = self.open.lock().await;
        for (index, ((disk, definition), overlay)) in self.disks.iter().zip(overlays).enumerate() {
            let image: Arc<dyn ReadImage> = match definition.format {
                // Of the file that the guest writes to, as it is now.
                DiskFormat::Raw => {
                    let (definition, seen) = (definition.clone(), seen.get(index).copied().flatten());
                    let opened = lease.run_blocking(move || Cut::open(&definition, seen));
                    let image = opened.await.map_err(|_| OutgoingError::Worker)??;
                    if image.size() != disk.size {
                        return Err(OutgoingError::Resized { disk: disk.name.clone() });
                    }
                    Arc::new(image)
                }
                // What only its hypervisor can read it has copied to the overlay, and goes on from there.
                DiskFormat::Qcow2 => {
                    overlay.take_dirty();
                    Arc::new(OverlayImage(overlay.clone()))
                }
            };
            let target = Target::Migration { job: self.handle.id(), disk: index as u32 };
            let settings = self.cx.reach.transfers;
            let (sender, _) = Sender::open(&connection, target, disk.size, settings, self.handle.counters())
                .await
                .map_err(|source| OutgoingError::Transfer { disk: disk.name.clone(), source })?;
            let mut tree = ImageTree::new(disk.size);
            tree.mark_all();
            let tree = Arc::new(Mutex::new(tree));
            open.push(Disk { name: disk.name.clone(), image, overlay, tree, sender });
        }
        for (disk, (_, definition)) in open.iter_mut().zip(&self.disks) {
            let hashed = refresh(disk, lease);
            let scanned = async {
                disk.sender
                    .scan(
                        Arc::new(Leased::new(disk.image.clone(), lease)),
                        &definition.path.display().to_string(),
                    )
                    .await?;
                disk.sender.sync(0).await
            };
            let (hashed, scanned) = tokio::join!(hashed, scanned);
            scanned.map_err(|source| OutgoingError::Transfer { disk: disk.name.clone(), source })?;
            hashed?;
        }
        self.handle.refresh();
        dirty_bytes(&open)
    }

    async fn tap_disks(&self) -> Result<Vec<Arc<Overlay>>, OutgoingError> {
        let scratch = self.cx.guests.layout.scratch();
        let mut exports = Vec::new();
        for (disk, _) in &self.disks {
            let overlay = Overlay::new(disk.size, &scratch).map_err(|source| OutgoingError::Io {
                what: format!("scratch file in {}", scratch.display()),
                source,
            })?;
            exports.push((disk.name.clone(), Arc::new(overlay)));
        }
        let server = self.cx.guests.serve_taps(&self.vm, exports.clone());
        let server = server.map_err(|source| OutgoingError::Io { what: "NBD server".into(), source })?;
        let socket = server.socket().to_owned();
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
        for (disk, definition) in &self.disks {
            let kind = match definition.format {
                DiskFormat::Raw => TapKind::Mirror,
                DiskFormat::Qcow2 => TapKind::Copy,
            };
            self.cx.guests.hypervisor.tap(&self.vm, &disk.name, &socket, &disk.name, kind).await?;
        }
        Ok(exports.into_iter().map(|(_, overlay)| overlay).collect())
    }

    /// Sends the blocks written since the last round. Returns their bytes, the time, and the bytes written meanwhile.
    pub(crate) async fn run_round(&self, lease: &Lease) -> Result<(u64, Duration, u64), OutgoingError> {
        let started = Instant::now();
        let mut open = self.open.lock().await;
        let mut sent = 0;
        for disk in open.iter_mut() {
            sent += send_dirty(disk, lease).await?;
        }
        if sent > 0 {
            for disk in open.iter_mut() {
                let hashed = refresh(disk, lease);
                let synced = disk.sender.sync(1);
                let (hashed, synced) = tokio::join!(hashed, synced);
                synced.map_err(|source| OutgoingError::Transfer { disk: disk.name.clone(), source })?;
                hashed?;
            }
        }
        self.handle.refresh();
        Ok((sent, started.elapsed(), dirty_bytes(&open)?))
    }

    /// Starts the memory stream, relays it, and returns once the guest is paused.
    pub(crate) async fn send_memory(&self, lease: &Lease) -> Result<(), OutgoingError> {
        let connection = self.link.connection().await?;
        // The hypervisor's share: the disk's last round, the device state and the resume want some of it too.
        let (mode, max_downtime) = (self.mode, self.limits.max_downtime / 2);
        let params = MemoryParams { mode, max_downtime, max_bandwidth_bytes_s: None };
        let memory = self.cx.guests.hypervisor.send_memory(&self.vm, &params).await?;
        let (network, peer, job) = (&self.cx.reach.network, self.link.peer(), self.handle.id());
        let stream = MemoryStream::open(network, peer, &connection, job).await?;
        let handle = self.handle.clone();
        let floor = self.cx.guests.hypervisor.memory_floor_bytes();
        // Ends with the hypervisor's stream or with the connection, of which the link tells; and when the migration is
        // undone, since a hypervisor that waits for its stream to be read answers nobody.
        let (failed, failure) = oneshot::channel();
        lease.spawn(async move {
            if let Err(error) = memory::send(memory, stream, floor, |bytes| handle.add_memory(bytes)).await {
                tracing::warn!(job = %handle.id(), "{error}");
                // Nobody waits for it once the guest is paused.
                let _ = failed.send(error);
            }
        });
        if let Some(plan) = &self.plan {
            address::leaves_soon(&self.cx.address, plan).await;
        }
        // A relay that ends badly is why the hypervisor then fails, and says more.
        let stopped = tokio::select! {
            biased;
            Ok(error) = failure => return Err(error.into()),
            stopped = self.cx.guests.hypervisor.wait_paused(&self.vm) => stopped?,
        };
        let _ = self.stopped.set(stopped);
        if let Some(plan) = &self.plan {
            address::leaving(&self.cx.address, plan, stopped).await;
        }
        Ok(())
    }

    /// With the guest paused: every write it was promised is in the overlays.
    pub(crate) async fn drain_disks(&self) -> Result<(), OutgoingError> {
        for (disk, _) in &self.disks {
            self.cx.guests.hypervisor.drain(&self.vm, &disk.name).await?;
        }
        dirty_bytes(&self.open.lock().await).map(drop)
    }

    /// Sends the last blocks and computes the roots from the source's own images.
    pub(crate) async fn send_final(&self, lease: &Lease) -> Result<Vec<Root>, OutgoingError> {
        let mut open = self.open.lock().await;
        if open.is_empty() && !self.disks.is_empty() {
            return Err(OutgoingError::NotOpen);
        }
        let mut roots = Vec::new();
        for disk in open.iter_mut() {
            send_dirty(disk, lease).await?;
            disk.sender
                .mark(FINAL_MARK)
                .await
                .map_err(|source| OutgoingError::Transfer { disk: disk.name.clone(), source })?;
        }
        for disk in open.iter_mut() {
            refresh(disk, lease).await?;
            let root = disk.tree.lock().unwrap_or_else(PoisonError::into_inner).root();
            roots.push(*root.as_bytes());
        }
        Ok(roots)
    }

    /// Lets the hypervisor send its last state; the guest then only exists on the other side, not running.
    pub(crate) async fn finish_memory(&self) -> Result<(), OutgoingError> {
        Ok(self.cx.guests.hypervisor.finish_memory(&self.vm).await?)
    }

    /// Undoes everything; the guest runs here.
    pub(crate) async fn roll_back(&self) -> Result<(), OutgoingError> {
        let status = self.cx.guests.hypervisor.rollback(&self.vm).await?;
        address::stays(&self.cx.address, self.vm.as_str()).await;
        self.close().await;
        if status != GuestStatus::Running {
            let note =
                format!("the guest is {status} here: it ended by itself; start it with `longhaul vm start`");
            self.handle.update(|report| report.notes.push(note));
        }
        Ok(())
    }

    /// The VM runs elsewhere: ends what is left of it here. Its disks stay, as the start of a way back.
    pub(crate) async fn retire(&self) -> Result<(), OutgoingError> {
        self.cx.guests.hypervisor.stop(&self.vm, StopHow::Kill).await?;
        address::left(&self.cx.address, self.vm.as_str()).await;
        self.close().await;
        Ok(())
    }

    async fn close(&self) {
        self.open.lock().await.clear();
        self.server.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

async fn send_dirty(disk: &mut Disk, lease: &Lease) -> Result<u64, OutgoingError> {
    let ranges: Vec<Range<u64>> = disk.overlay.take_dirty();
    if ranges.is_empty() {
        return Ok(0);
    }
    {
        let mut tree = disk.tree.lock().unwrap_or_else(PoisonError::into_inner);
        ranges.iter().for_each(|range| tree.mark(range.clone()));
    }
    disk.sender
        .delta(Arc::new(Leased::new(OverlayImage(disk.overlay.clone()), lease)), ranges)
        .await
        .map_err(|source| OutgoingError::Transfer { disk: disk.name.clone(), source })
}

/// Hashes again what was written, on a blocking thread. What is written meanwhile is marked again by a later round.
fn refresh(disk: &Disk, lease: &Lease) -> impl Future<Output = Result<(), OutgoingError>> + use<> {
    let (image, tree) = (Leased::new(disk.image.clone(), lease), disk.tree.clone());
    let hashed = lease
        .run_blocking(move || tree.lock().unwrap_or_else(PoisonError::into_inner).refresh(&image).map(drop));
    let name = disk.name.clone();
    async move {
        let io = |source| OutgoingError::Io { what: format!("hashing disk '{name}'"), source };
        hashed.await.map_err(|_| OutgoingError::Worker)?.map_err(io)
    }
}

/// Bytes written and not sent; an overlay that lost a write ends the migration.
fn dirty_bytes(disks: &[Disk]) -> Result<u64, OutgoingError> {
    for disk in disks {
        if let Some(reason) = disk.overlay.failed() {
            let (disk, is_full) = (disk.name.clone(), disk.overlay.is_full());
            return Err(OutgoingError::Overlay { disk, reason, is_full });
        }
    }
    Ok(disks.iter().map(|disk| disk.overlay.dirty_bytes()).sum())
}
