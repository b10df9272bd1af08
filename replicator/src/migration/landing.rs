//! Where the disks of a VM that comes in stand on this platform: which file or device, whether it may be written, what it
//! starts from, and when it takes its place. A path is only a name: what it leads to is looked at, and whose it is. A file
//! that was there before the migration is neither written nor replaced before the VM is ours.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chunkstore::{FileId, RawImage, ReadImage};
use longhaul_proto::JobId;
use migrate_driver::{DiskFormat, VmDefinition, VmName};

use crate::error_kind::{HasKind, Kind};
use crate::files;
use crate::migration::{Plan, PlanDisk};
use crate::service::config::HypervisorKind;
use crate::service::platform::MigrationCx;

/// Room left on the disk beyond what the images take.
const SPARE_BYTES: u64 = 64 << 20;

/// How long another VM's disk may take to be looked at.
const LOOKED_AT: Duration = Duration::from_secs(5);

/// Why a disk cannot stand here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LandingError {
    /// A file of ours.
    #[error("cannot {doing} {path}: {source}", path = .path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// A device of that name is there, and nothing says that it is this VM's.
    #[error(
        "cannot create the image {path} of VM '{vm}': it is a device, and no VM of that name is known here; remove it, then \
         try again",
        path = .path.display()
    )]
    ForeignDevice { path: PathBuf, vm: String },
    /// It is another VM's by now.
    #[error(
        "cannot take VM '{vm}' back: its disk {path} is a disk of VM '{owner}' by now; forget the old place with \
         `longhaul vm remove {vm}` here, then try again",
        path = .path.display()
    )]
    Taken {
        path: PathBuf,
        /// The VM that comes.
        vm: String,
        /// The VM whose disk it is.
        owner: String,
    },
    /// Somebody uses it.
    #[error(
        "cannot take VM '{vm}' back: its disk {path} is in use here ({user}); end that, or forget the old place with \
         `longhaul vm remove {vm}` here, then try again",
        path = .path.display()
    )]
    InUse {
        path: PathBuf,
        /// The VM that comes.
        vm: String,
        user: String,
    },
    /// A device of another size.
    #[error(
        "cannot write the disk of VM '{vm}' to {path}: the device has {has} bytes, the disk {needs}; give it that size, or \
         forget the old place with `longhaul vm remove {vm}` here, then try again",
        path = .path.display()
    )]
    DeviceSize { path: PathBuf, vm: String, has: u64, needs: u64 },
    /// It leads nowhere.
    #[error(
        "cannot write the disk of VM '{vm}' to {path}: the device or link is there in name only; activate the volume, or \
         forget the place with `longhaul vm remove {vm}` here, then try again",
        path = .path.display()
    )]
    Missing { path: PathBuf, vm: String },
    /// No room.
    #[error(
        "{path} has {free} bytes free, and the VM's disks need {needed} (an image that it left there stays until it is back): \
         make room there, then try again",
        path = .path.display()
    )]
    NoSpace { path: PathBuf, free: u64, needed: u64 },
}

impl HasKind for LandingError {
    fn kind(&self) -> Kind {
        match self {
            LandingError::Io { source, .. } => Kind::of_io(source),
            LandingError::ForeignDevice { .. }
            | LandingError::Taken { .. }
            | LandingError::InUse { .. }
            | LandingError::DeviceSize { .. } => Kind::Denied,
            LandingError::Missing { .. } => Kind::Io,
            LandingError::NoSpace { .. } => Kind::Space,
        }
    }
}

fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LandingError + use<> {
    let path = path.to_owned();
    move |source| LandingError::Io { doing, path, source }
}

/// The definition as it is on this platform: a VM that was here before keeps its paths.
pub(crate) fn local_definition(cx: &MigrationCx, plan: &Plan) -> VmDefinition {
    let mut definition = plan.definition.clone();
    for disk in &mut definition.disks {
        disk.path = image_path(cx, &definition.name, &disk.name);
        // What comes here are the disk's bytes, whatever they are kept in elsewhere.
        disk.format = DiskFormat::Raw;
    }
    definition
}

/// Where a disk's image is on this platform: where it was when the VM was here before.
fn image_path(cx: &MigrationCx, vm: &VmName, disk: &str) -> PathBuf {
    let known = cx.guests.vms.definition(vm.as_str()).ok();
    let known =
        known.as_ref().and_then(|known| known.disk(disk)).filter(|disk| disk.format == DiskFormat::Raw);
    known.map_or_else(|| cx.guests.layout.image(vm.as_str(), disk), |disk| disk.path.clone())
}

/// `path` with something after its name.
fn beside(path: &Path, what: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(what);
    path.with_file_name(name)
}

/// Where a job writes the image that is to stand at `path`: under that name and the job's, in place of an earlier job's.
fn incoming(path: &Path, job: JobId) -> PathBuf {
    const MARK_BYTES: usize = 33;
    let name = path.file_name().unwrap_or_default().as_bytes();
    let (stem, mark) = name.split_at(name.len().saturating_sub(MARK_BYTES));
    let is_marked = !stem.is_empty() && mark[0] == b'.' && mark[1..].iter().all(u8::is_ascii_hexdigit);
    let stem = if is_marked { path.with_file_name(OsStr::from_bytes(stem)) } else { path.to_owned() };
    beside(&stem, &format!(".{job}"))
}

/// Where a migration that came to nothing leaves what it had: a name that nobody else gives.
fn partial(path: &Path) -> PathBuf {
    beside(path, ".longhaul-partial")
}

/// What a migration of this disk to here would start from, if anything.
pub(crate) fn existing_image(cx: &MigrationCx, peer: &str, vm: &str, disk: &str) -> Option<RawImage> {
    let path = image_path(cx, &VmName::new(vm).ok()?, disk);
    let candidates = [Some(path.clone()), Some(partial(&path)), replica(cx, peer, vm, disk)];
    candidates.into_iter().flatten().find_map(|path| RawImage::open_read(path).ok())
}

/// What there is where a disk is to stand.
pub(crate) enum There {
    /// Nothing.
    Nothing,
    /// A file that is not known to be this VM's: it stays, and the disk stands beside it.
    Foreign,
    /// The VM's image of earlier.
    Image(RawImage),
    /// The VM's device, of the right size.
    Device,
}

/// The replica that a peer keeps here of a VM's disk.
fn replica(cx: &MigrationCx, peer: &str, vm: &str, disk: &str) -> Option<PathBuf> {
    cx.images.replicas.image_of(&cx.reach.peers.get(peer).ok()?.fingerprint, vm, disk)
}

/// The image of one disk on its way in.
pub(crate) struct Landing {
    image: Arc<RawImage>,
    like: Option<Arc<RawImage>>,
}

impl Landing {
    /// Looks at what `path` leads to, and whether the disk can stand there. Changes nothing.
    pub(crate) fn check(
        cx: &MigrationCx,
        vm: &VmName,
        disk: &PlanDisk,
        path: &Path,
    ) -> Result<There, LandingError> {
        let kind = match fs::metadata(path) {
            Ok(metadata) => metadata.file_type(),
            // A volume that is not active, or what a link leads to: a file in its place would be another disk.
            Err(error)
                if error.kind() == ErrorKind::NotFound
                    && (path.starts_with("/dev") || fs::symlink_metadata(path).is_ok()) =>
            {
                return Err(LandingError::Missing { path: path.to_owned(), vm: vm.to_string() });
            }
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(There::Nothing),
            Err(error) => return Err(at("look at", path)(error)),
        };
        if !is_place_of(cx, vm, &disk.name, path) {
            if kind.is_block_device() {
                return Err(LandingError::ForeignDevice { path: path.to_owned(), vm: vm.to_string() });
            }
            return Ok(There::Foreign);
        }
        check_free(cx, vm, path)?;
        let image = RawImage::open_read(path).map_err(at("open", path))?;
        if !kind.is_block_device() {
            return Ok(There::Image(image));
        }
        if image.size() != disk.size {
            let (path, vm, has) = (path.to_owned(), vm.to_string(), image.size());
            return Err(LandingError::DeviceSize { path, vm, has, needs: disk.size });
        }
        Ok(There::Device)
    }

    /// Opens the image to be written: a device in place, anything else beside `path`, under a name of the job's own. Costs
    /// no more than a look: where the file system cannot share blocks, what there is of the disk is not copied but read
    /// while the transfer goes on.
    pub(crate) fn prepare(
        cx: &MigrationCx,
        peer: &str,
        vm: &VmName,
        disk: &PlanDisk,
        path: &Path,
        job: JobId,
        room: &mut Room,
    ) -> Result<Self, LandingError> {
        let old = match Landing::check(cx, vm, disk, path)? {
            There::Device => {
                let image = RawImage::open_write(path).map_err(at("open", path))?;
                return Ok(Landing { image: Arc::new(image), like: None });
            }
            There::Image(image) => Some(image),
            There::Nothing | There::Foreign => None,
        };
        let dir = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(dir).map_err(at("create", dir))?;
        let replica = || replica(cx, peer, vm.as_str(), &disk.name);
        // A replica that cannot be read is no reason to refuse: its bytes are sent.
        let like = old.or_else(|| RawImage::open_read(replica()?).ok());
        let (target, left) = (incoming(path, job), partial(path));
        let is_made = if is_leftover(&left, disk.size) {
            fs::rename(&left, &target).map_err(at("take up", &left))?;
            true
        } else if let Some(like) = like.as_ref().filter(|like| like.size() == disk.size) {
            // Where blocks cannot be shared, nothing is made.
            chunkstore::reflink(like.path(), &target).map_err(at("create", &target))?
        } else {
            false
        };
        let image =
            if is_made { RawImage::open_write(&target) } else { RawImage::create(&target, disk.size) };
        let image = image.map_err(at("create", &target))?;
        let held = image.allocated_bytes().map_err(at("look at", &target))?;
        room.take(dir, disk.data_bytes.saturating_sub(held))?;
        files::sync_dir(dir).map_err(at("make durable", dir))?;
        Ok(Landing { image: Arc::new(image), like: like.map(Arc::new) })
    }

    /// The image to be written, under the name that it has meanwhile.
    pub(crate) fn image(&self) -> &Arc<RawImage> {
        &self.image
    }

    /// What may hold the same bytes at the same places.
    pub(crate) fn like(&self) -> Option<Arc<RawImage>> {
        self.like.clone()
    }
}

/// Whether the VM's definition here has that disk at that path.
fn is_place_of(cx: &MigrationCx, vm: &VmName, disk: &str, path: &Path) -> bool {
    let known = cx.guests.vms.definition(vm.as_str()).ok();
    known.as_ref().and_then(|known| known.disk(disk)).is_some_and(|disk| disk.path == path)
}

/// Whether that is what an earlier migration left, of this size, and nobody has it.
fn is_leftover(path: &Path, size: u64) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.len() == size)
        && matches!(chunkstore::in_use(path), Ok(None))
}

/// The room that the disks of one migration will take, by file system.
#[derive(Default)]
pub(crate) struct Room(HashMap<u64, u64>);

impl Room {
    fn take(&mut self, dir: &Path, bytes: u64) -> Result<(), LandingError> {
        let device = fs::metadata(dir).map_err(at("look at", dir))?.dev();
        let free = files::free_bytes(dir).map_err(at("look at", dir))?;
        let needed = self.0.entry(device).or_default();
        *needed = needed.saturating_add(bytes);
        if free < needed.saturating_add(SPARE_BYTES) {
            return Err(LandingError::NoSpace { path: dir.to_owned(), free, needed: *needed });
        }
        Ok(())
    }
}

/// Refuses a disk's place of earlier that somebody else uses by now.
fn check_free(cx: &MigrationCx, vm: &VmName, path: &Path) -> Result<(), LandingError> {
    let id = FileId::of_path(path).map_err(at("look at", path))?;
    for other in cx.guests.vms.list().iter().filter(|definition| definition.name != *vm) {
        if other.disks.iter().any(|disk| is_file(&disk.path, id)) {
            let (path, vm, owner) = (path.to_owned(), vm.to_string(), other.name.to_string());
            return Err(LandingError::Taken { path, vm, owner });
        }
    }
    if let Some(user) = chunkstore::in_use(path).map_err(at("look at", path))? {
        let (path, vm, user) = (path.to_owned(), vm.to_string(), user.to_string());
        return Err(LandingError::InUse { path, vm, user });
    }
    Ok(())
}

/// Whether a path leads to that file. One that cannot be looked at, like one on a mount that is gone, does not: the file can be.
fn is_file(path: &Path, id: FileId) -> bool {
    let path = path.to_owned();
    files::within(LOOKED_AT, move || FileId::of_path(&path).is_ok_and(|found| found == id)).unwrap_or(false)
}

/// The VM is ours: its images take their places, and what the VM had there before is gone. Gives the definition as it is
/// from now on. May be called again. An image whose place is not free, or not the VM's, stays where it was written, which
/// is its place then; so does every image under Xen, whose tools keep the path under which they have opened it.
pub(crate) fn settle(cx: &MigrationCx, plan: &Plan, job: JobId) -> Result<VmDefinition, LandingError> {
    let mut definition = local_definition(cx, plan);
    for disk in &mut definition.disks {
        let written = incoming(&disk.path, job);
        if disk.path == written || !written.try_exists().map_err(at("look at", &written))? {
            continue;
        }
        let vm = &plan.definition.name;
        let is_free = match fs::symlink_metadata(&disk.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => true,
            _ => is_place_of(cx, vm, &disk.name, &disk.path) && check_free(cx, vm, &disk.path).is_ok(),
        };
        if cx.rules.hypervisor == HypervisorKind::Xen {
            if is_free && fs::symlink_metadata(&disk.path).is_ok_and(|old| old.is_file()) {
                fs::remove_file(&disk.path).map_err(at("remove the old image", &disk.path))?;
            }
            disk.path = written;
            continue;
        }
        // A link stays, and what it leads to is replaced; beyond a file system's end that cannot be.
        let target = disk.path.canonicalize().unwrap_or_else(|_| disk.path.clone());
        let moved =
            if is_free { fs::rename(&written, &target) } else { Err(ErrorKind::CrossesDevices.into()) };
        match moved {
            Ok(()) => {
                let dir = target.parent().unwrap_or(Path::new("/"));
                files::sync_dir(dir).map_err(at("make durable", dir))?;
            }
            Err(error) if error.kind() == ErrorKind::CrossesDevices => {
                tracing::warn!(
                    "{} is not free: the image stays at {}",
                    disk.path.display(),
                    written.display()
                );
                disk.path = written;
            }
            Err(error) => return Err(at("put into its place", &written)(error)),
        }
    }
    Ok(definition)
}

/// The VM will not come: the images that the job has written are put aside. What was there before is untouched. What
/// cannot be put aside stays under the job's name.
pub(crate) fn put_aside(cx: &MigrationCx, plan: &Plan, job: JobId) {
    for disk in local_definition(cx, plan).disks {
        let written = incoming(&disk.path, job);
        match fs::rename(&written, partial(&disk.path)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!("{} is left behind: {error}", written.display());
            }
            _ => {}
        }
    }
}
