//! The incoming side of a migration's data: images to be written, the waiting hypervisor, the check before the promise.
//! Each function is one action of the hand-off; what follows from its outcome is the hand-off's to say.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use chunkstore::{ImageTree, ReadImage};
use longhaul_proto::JobId;
use longhaul_proto::handoff::Root;
use migrate_driver::{DriverError, GuestStatus, StopHow, VmDefinition};
use quinn::SendStream;
use tokio::sync::watch;

use crate::error_kind::{HasKind, Kind};
use crate::lease::{Lease, Leased};
use crate::migration::landing::{self, Landing, LandingError, Room};
use crate::migration::{BootFile, Plan};
use crate::service::net::lanes::LaneRecv;
use crate::service::platform::MigrationCx;
use crate::service::vms::VmError;
use crate::transfer::memory::{self, RelayError};
use crate::transfer::sink::{Assembly, InPlace, MigrationSink};

/// Why an action failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IncomingError {
    /// The hypervisor.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The VM's definition cannot be kept.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// Where a disk's image is to stand.
    #[error(transparent)]
    Landing(#[from] LandingError),
    /// A thread of ours broke.
    #[error("a worker of the migration ended unexpectedly")]
    Worker,
    /// A kernel or initial RAM disk is not here.
    #[error("the VM boots from {path}, which is {what} on this platform: copy it here, then try again")]
    BootFile {
        path: PathBuf,
        /// Missing, or another.
        what: &'static str,
    },
    /// The memory stream.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// What arrived is not what the source has.
    #[error(
        "disk '{disk}' is not what the source has after the last block (root {found}, expected {expected})"
    )]
    Root { disk: String, found: String, expected: String },
    /// A message out of place.
    #[error("the source speaks of disks that this migration does not have")]
    NoSuchDisk,
    /// A message too early.
    #[error("the images of this migration are not ready")]
    NotOpen,
}

impl HasKind for IncomingError {
    fn kind(&self) -> Kind {
        match self {
            IncomingError::Driver(error) => error.kind(),
            IncomingError::Vm(error) => error.kind(),
            IncomingError::Landing(error) => error.kind(),
            IncomingError::Relay(error) => error.kind(),
            IncomingError::Root { .. } | IncomingError::NoSuchDisk => Kind::Peer,
            IncomingError::BootFile { .. } | IncomingError::NotOpen => Kind::Denied,
            IncomingError::Worker => Kind::Bug,
        }
    }
}

struct Disk {
    name: String,
    landing: Landing,
    tree: Arc<Mutex<ImageTree>>,
    /// Everything is in the image, durable and hashed.
    applied: watch::Sender<bool>,
    taken: std::sync::atomic::AtomicBool,
}

/// The images of one incoming migration.
pub(crate) struct Incoming {
    cx: Arc<MigrationCx>,
    /// With the paths under which the images are written.
    definition: VmDefinition,
    disks: Vec<Disk>,
    lease: Lease,
}

impl Incoming {
    /// Whether the VM can come in, as far as that can be known before anything moves: the files it boots from, the places
    /// of its disks, and whether the hypervisor can run it. Changes nothing. `progress` is called whenever more of that
    /// is known.
    pub(crate) async fn judge(
        cx: &Arc<MigrationCx>,
        plan: &Plan,
        lease: &Lease,
        progress: impl Fn() + Send + 'static,
    ) -> Result<(), IncomingError> {
        let (at, looked_at, work) = (cx.clone(), plan.clone(), lease.clone());
        let looked = lease.run_blocking(move || {
            let definition = landing::local_definition(&at, &looked_at);
            for file in &looked_at.boot_files {
                work.check().map_err(|_| IncomingError::Worker)?;
                check_boot_file(file)?;
                progress();
            }
            for (disk, planned) in definition.disks.iter().zip(&looked_at.disks) {
                Landing::check(&at, &definition.name, planned, &disk.path)?;
            }
            Ok::<_, IncomingError>(definition)
        });
        let definition = looked.await.map_err(|_| IncomingError::Worker)??;
        let sizes: Vec<_> = plan.disks.iter().map(|disk| disk.size).collect();
        Ok(cx.guests.hypervisor.probe(&definition, &sizes, plan.facts.as_ref()).await?)
    }

    /// Judges the plan and creates the images, from whatever there is of the VM's disks: an image that was left here,
    /// a replica.
    pub(crate) async fn prepare(
        cx: &Arc<MigrationCx>,
        peer: &str,
        plan: &Plan,
        job: JobId,
        lease: &Lease,
        progress: impl Fn() + Clone + Send + 'static,
    ) -> Result<Self, IncomingError> {
        Incoming::judge(cx, plan, lease, progress.clone()).await?;
        let (at, peer, plan, work) = (cx.clone(), peer.to_owned(), plan.clone(), lease.clone());
        let prepared = lease.run_blocking(move || {
            let mut definition = landing::local_definition(&at, &plan);
            if let Some(facts) = &plan.facts {
                definition = facts.pinned(&definition);
            }
            let (mut disks, mut room) = (Vec::new(), Room::default());
            for (disk, planned) in definition.disks.iter_mut().zip(&plan.disks) {
                work.check().map_err(|_| IncomingError::Worker)?;
                let landing =
                    Landing::prepare(&at, &peer, &plan.definition.name, planned, &disk.path, job, &mut room)?;
                progress();
                disk.path = landing.image().path().to_owned();
                let mut tree = ImageTree::new(planned.size);
                tree.mark_all();
                disks.push(Disk {
                    name: planned.name.clone(),
                    landing,
                    tree: Arc::new(Mutex::new(tree)),
                    applied: watch::Sender::new(false),
                    taken: false.into(),
                });
            }
            Ok::<_, IncomingError>((definition, disks))
        });
        let (definition, disks) = prepared.await.map_err(|_| IncomingError::Worker)??;
        Ok(Incoming { cx: cx.clone(), definition, disks, lease: lease.clone() })
    }

    /// The lease under which everything that writes to the images must run.
    pub(crate) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// A sink for a disk's transfer; each disk has one.
    pub(crate) fn sink(&self, disk: u32, size: u64) -> Result<MigrationSink, IncomingError> {
        let disk = self.disks.get(disk as usize).ok_or(IncomingError::NoSuchDisk)?;
        let image = disk.landing.image();
        if image.size() != size || disk.taken.swap(true, std::sync::atomic::Ordering::Relaxed) {
            return Err(IncomingError::NoSuchDisk);
        }
        let holdings = self.cx.images.holdings.clone();
        let image = InPlace(Leased::new(image.clone(), &self.lease));
        let assembly = Assembly::new(image, disk.tree.clone(), holdings, None).like(disk.landing.like());
        Ok(MigrationSink::new(assembly, disk.applied.clone()))
    }

    /// Starts the hypervisor, waiting for memory.
    pub(crate) async fn start_hypervisor(&self) -> Result<(), IncomingError> {
        Ok(self.cx.guests.hypervisor.start_incoming(&self.definition).await?)
    }

    /// Feeds the memory stream to the hypervisor until it is loaded. A broken stream is an error.
    pub(crate) async fn load_memory(
        &self,
        (send, recv): (SendStream, LaneRecv),
        count: impl Fn(u64),
    ) -> Result<(), IncomingError> {
        let name = &self.definition.name;
        let hypervisor = self.cx.guests.hypervisor.open_incoming(name).await?;
        memory::receive(hypervisor, recv, send, count).await?;
        Ok(self.cx.guests.hypervisor.incoming_loaded(name).await?)
    }

    /// Waits until the last blocks are durable and hashed, which began when they came, and compares the images' roots
    /// with the source's.
    pub(crate) async fn seal(&self, roots: Vec<Root>) -> Result<(), IncomingError> {
        if roots.len() != self.disks.len() {
            return Err(IncomingError::NoSuchDisk);
        }
        for (disk, expected) in self.disks.iter().zip(roots) {
            // The sender lives in the disk, so waiting cannot fail.
            let _ = disk.applied.subscribe().wait_for(|applied| *applied).await;
            let found = disk.tree.lock().unwrap_or_else(PoisonError::into_inner).root();
            if found.as_bytes() != &expected {
                let expected = chunkstore::ImageRoot::from_bytes(expected).to_string();
                return Err(IncomingError::Root {
                    disk: disk.name.clone(),
                    found: found.to_string(),
                    expected,
                });
            }
        }
        Ok(())
    }
}

fn check_boot_file(file: &BootFile) -> Result<(), IncomingError> {
    let what = match BootFile::read(&file.path) {
        Ok(found) if found == *file => return Ok(()),
        Ok(_) => "another file",
        Err(_) => "missing or unreadable",
    };
    Err(IncomingError::BootFile { path: file.path.clone(), what })
}

/// Lets the guest run here. Gives its definition here, and true when its memory was lost and it was booted from its disks.
pub(crate) async fn resume(
    cx: &Arc<MigrationCx>,
    plan: &Plan,
    job: JobId,
    lease: &Lease,
) -> Result<(VmDefinition, bool), IncomingError> {
    let (at, landed) = (cx.clone(), plan.clone());
    let landing = lease.run_blocking(move || landing::settle(&at, &landed, job));
    let definition = landing.await.map_err(|_| IncomingError::Worker)??;
    let hypervisor = &cx.guests.hypervisor;
    let cold = match hypervisor.status(&definition.name).await? {
        GuestStatus::Running => false,
        // One that does not answer at the moment may have the guest's memory: it is not ended for being slow.
        GuestStatus::Paused | GuestStatus::DiskError | GuestStatus::Unresponsive => {
            hypervisor.resume(&definition.name).await?;
            false
        }
        GuestStatus::Stopped => {
            hypervisor.start(&definition).await?;
            true
        }
        // Its memory never arrived whole, or it broke while it was loaded: what is on the disks counts.
        _ => {
            hypervisor.stop(&definition.name, StopHow::Kill).await?;
            hypervisor.start(&definition).await?;
            true
        }
    };
    Ok((definition, cold))
}

/// Keeps the definition of a VM that runs here by now.
pub(crate) async fn keep_definition(
    cx: &MigrationCx,
    definition: VmDefinition,
    lease: &Lease,
) -> Result<(), IncomingError> {
    let vms = cx.guests.vms.clone();
    let kept = lease.run_blocking(move || vms.define(definition));
    Ok(kept.await.map_err(|_| IncomingError::Worker)??)
}

/// Ends what there is of a VM that will not come. Its images are put aside: they spare the next migration the same bytes.
pub(crate) async fn take_back(
    cx: &Arc<MigrationCx>,
    plan: &Plan,
    job: JobId,
    lease: &Lease,
) -> Result<(), IncomingError> {
    cx.guests.hypervisor.stop(&plan.definition.name, StopHow::Kill).await?;
    let (at, plan) = (cx.clone(), plan.clone());
    let put_aside = lease.run_blocking(move || landing::put_aside(&at, &plan, job));
    put_aside.await.map_err(|_| IncomingError::Worker)
}
