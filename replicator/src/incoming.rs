//! The incoming side of a migration's data: images to be written, the waiting hypervisor, the check before the promise.
//! Each function is one action of the hand-off; what follows from its outcome is the hand-off's to say.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use chunkstore::{ImageTree, RawImage, ReadImage};
use longhaul_proto::handoff::Root;
use migrate_driver::{DiskFormat, DriverError, GuestStatus, StopHow, VmDefinition};
use quinn::{RecvStream, SendStream};
use tokio::sync::watch;

use crate::files;
use crate::migrate::{BootFile, Plan};
use crate::platform::Platform;
use crate::transfer::memory::{self, RelayError};
use crate::transfer::sink::{Assembly, InPlace, MigrationSink};
use crate::vms::VmError;

/// Room left on the disk beyond what the images take.
const SPARE_BYTES: u64 = 64 << 20;

/// Why an action failed.
#[derive(Debug, thiserror::Error)]
pub enum IncomingError {
    /// The hypervisor.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The VM's definition cannot be kept.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// A file of ours.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A kernel or initial RAM disk is not here.
    #[error("the VM boots from {path}, which is {what} on this platform: copy it here, then try again")]
    BootFile {
        /// Which.
        path: PathBuf,
        /// Missing, or another.
        what: &'static str,
    },
    /// The memory stream.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// No room.
    #[error(
        "{path} has {free} bytes free, and the VM's disks need {needed}: make room there, then try again"
    )]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// What there is.
        free: u64,
        /// What it takes.
        needed: u64,
    },
    /// What arrived is not what the source has.
    #[error(
        "disk '{disk}' is not what the source has after the last block (root {found}, expected {expected})"
    )]
    Root {
        /// Which.
        disk: String,
        /// Ours.
        found: String,
        /// The source's.
        expected: String,
    },
    /// A message out of place.
    #[error("the source speaks of disks that this migration does not have")]
    NoSuchDisk,
    /// A message too early.
    #[error("the images of this migration are not ready")]
    NotOpen,
}

struct Disk {
    name: String,
    image: Arc<RawImage>,
    tree: Arc<Mutex<ImageTree>>,
    /// Everything is in the image, durable and hashed.
    applied: watch::Sender<bool>,
    taken: std::sync::atomic::AtomicBool,
}

/// The images of one incoming migration.
pub struct Incoming {
    platform: Arc<Platform>,
    definition: VmDefinition,
    disks: Vec<Disk>,
}

/// The definition as it is on this platform: a VM that was here before keeps its paths.
fn local_definition(platform: &Platform, plan: &Plan) -> VmDefinition {
    let mut definition = plan.definition.clone();
    for disk in &mut definition.disks {
        disk.path = image_path(platform, definition.name.as_str(), &disk.name);
        // What comes here are the disk's bytes, whatever they are kept in elsewhere.
        disk.format = DiskFormat::Raw;
    }
    definition
}

/// Where a disk's image is on this platform: where it was when the VM was here before.
fn image_path(platform: &Platform, vm: &str, disk: &str) -> PathBuf {
    let known = platform.vms.definition(vm).ok();
    let known =
        known.as_ref().and_then(|known| known.disk(disk)).filter(|disk| disk.format == DiskFormat::Raw);
    known.map_or_else(|| platform.layout.image(vm, disk), |disk| disk.path.clone())
}

impl Incoming {
    /// Judges the plan and creates the images, from whatever there is of the VM's disks: an image that was left here,
    /// a replica.
    pub async fn prepare(platform: &Arc<Platform>, plan: &Plan) -> Result<Self, IncomingError> {
        for file in &plan.boot_files {
            check_boot_file(file)?;
        }
        let definition = local_definition(platform, plan);
        let (platform, plan) = (platform.clone(), plan.clone());
        let prepared = tokio::task::spawn_blocking(move || {
            let vm = definition.name.to_string();
            let mut disks = Vec::new();
            for (disk, planned) in definition.disks.iter().zip(&plan.disks) {
                disks.push(prepare_disk(
                    &platform,
                    &vm,
                    &planned.name,
                    &disk.path,
                    planned.size,
                    planned.data_bytes,
                )?);
            }
            Ok(Incoming { platform, definition, disks })
        });
        prepared.await.map_err(|error| IncomingError::Io {
            path: PathBuf::from("images"),
            source: io::Error::other(error),
        })?
    }

    /// A sink for a disk's transfer; each disk has one.
    pub fn sink(&self, disk: u32, size: u64) -> Result<MigrationSink, IncomingError> {
        let disk = self.disks.get(disk as usize).ok_or(IncomingError::NoSuchDisk)?;
        if disk.image.size() != size || disk.taken.swap(true, std::sync::atomic::Ordering::Relaxed) {
            return Err(IncomingError::NoSuchDisk);
        }
        let holdings = self.platform.holdings.clone();
        let assembly = Assembly::new(InPlace(disk.image.clone()), disk.tree.clone(), holdings, None);
        Ok(MigrationSink::new(assembly, disk.applied.clone()))
    }

    /// Starts the hypervisor, waiting for memory.
    pub async fn start_hypervisor(&self) -> Result<(), IncomingError> {
        Ok(self.platform.hypervisor.start_incoming(&self.definition).await?)
    }

    /// Feeds the memory stream to the hypervisor until it is loaded. A broken stream is an error.
    pub async fn load_memory(
        &self,
        (send, recv): (SendStream, RecvStream),
        count: impl Fn(u64),
    ) -> Result<(), IncomingError> {
        let name = &self.definition.name;
        let hypervisor = self.platform.hypervisor.open_incoming(name).await?;
        memory::receive(hypervisor, recv, send, count).await?;
        Ok(self.platform.hypervisor.incoming_loaded(name).await?)
    }

    /// Waits until the last blocks are durable and hashed, which began when they came, and compares the images' roots
    /// with the source's.
    pub async fn seal(&self, roots: Vec<Root>) -> Result<(), IncomingError> {
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

/// Where a migration that came to nothing leaves what it had: it spares the next one the same bytes.
fn partial(path: &Path) -> PathBuf {
    path.with_extension("partial")
}

/// What a migration of this disk to here would start from, if anything.
pub fn existing_image(platform: &Platform, vm: &str, disk: &str) -> Option<RawImage> {
    let path = image_path(platform, vm, disk);
    let candidates = [Some(path.clone()), Some(partial(&path)), platform.replicas.image(vm, disk)];
    candidates.into_iter().flatten().find_map(|path| RawImage::open_read(path).ok())
}

fn prepare_disk(
    platform: &Platform,
    vm: &str,
    name: &str,
    path: &Path,
    size: u64,
    data_bytes: u64,
) -> Result<Disk, IncomingError> {
    let io = |source| IncomingError::Io { path: path.to_owned(), source };
    let dir = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(dir).map_err(io)?;
    let partial = partial(path);
    let fresh = !path.exists();
    if fresh && partial.exists() {
        std::fs::rename(&partial, path).map_err(io)?;
    } else if fresh && let Some(replica) = platform.replicas.image(vm, name) {
        chunkstore::copy_sparse(&replica, &partial).map_err(io)?;
        std::fs::rename(&partial, path).map_err(io)?;
    }
    let existing = if path.exists() { Some(RawImage::open_write(path).map_err(io)?) } else { None };
    let existing = existing.filter(|image| image.size() == size);
    let held = existing.as_ref().map_or(Ok(0), RawImage::allocated_bytes).map_err(io)?;
    let free = files::free_bytes(dir).map_err(io)?;
    let needed = data_bytes.saturating_sub(held);
    if free < needed.saturating_add(SPARE_BYTES) {
        return Err(IncomingError::NoSpace { path: dir.to_owned(), free, needed });
    }
    let mut tree = ImageTree::new(size);
    let image = match existing {
        Some(image) => {
            tree.mark_all();
            image
        }
        None => {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
                _ => {}
            }
            RawImage::create(path, size).map_err(io)?
        }
    };
    files::sync_dir(dir).map_err(io)?;
    Ok(Disk {
        name: name.to_owned(),
        image: Arc::new(image),
        tree: Arc::new(Mutex::new(tree)),
        applied: watch::Sender::new(false),
        taken: false.into(),
    })
}

/// Lets the guest run here. True when its memory was lost and it was booted from its disks.
pub async fn resume(platform: &Platform, plan: &Plan) -> Result<bool, IncomingError> {
    let definition = local_definition(platform, plan);
    let hypervisor = &platform.hypervisor;
    let cold = match hypervisor.status(&definition.name).await? {
        GuestStatus::Running => false,
        GuestStatus::Paused => {
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
    platform.vms.define(definition)?;
    Ok(cold)
}

/// Ends what there is of a VM that will not come. Images of a VM that was never here are put aside.
pub async fn take_back(platform: &Platform, plan: &Plan) -> Result<(), IncomingError> {
    platform.hypervisor.stop(&plan.definition.name, StopHow::Kill).await?;
    if platform.vms.definition(plan.definition.name.as_str()).is_ok() {
        return Ok(());
    }
    for disk in local_definition(platform, plan).disks {
        match std::fs::rename(&disk.path, partial(&disk.path)) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(IncomingError::Io { path: disk.path, source });
            }
            _ => {}
        }
    }
    Ok(())
}
