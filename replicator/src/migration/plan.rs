//! What a source tells a destination about a VM before anything moves: the plan, and how it is made and read.

use std::io;
use std::path::{Path, PathBuf};

use chunkstore::{RawImage, ReadImage};
use longhaul_proto::wire::{MAX_IMAGE_BYTES, MAX_PLAN_BYTES};
use migrate_driver::{DiskDefinition, DiskFormat, GuestFacts, VmDefinition};
use serde::{Deserialize, Serialize};

use crate::address::PlanAddress;
use crate::error_kind::{HasKind, Kind};
use crate::service::disks::{Cut, DiskError, Seen};

/// What the source tells the destination about a VM; travels as JSON in the offer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The VM, with the source's paths.
    pub definition: VmDefinition,
    /// Its disks, in the order in which roots are given.
    pub disks: Vec<PlanDisk>,
    /// Files it boots from that do not travel: they must be on the destination, the same.
    pub boot_files: Vec<BootFile>,
    /// What the destination must offer, as the source's hypervisor has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<GuestFacts>,
    /// How its address follows it, when it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<PlanAddress>,
}

/// A disk in a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlanDisk {
    /// Its name in the definition.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes of it that take room.
    pub data_bytes: u64,
}

/// A kernel or an initial RAM disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BootFile {
    /// Its path on both platforms.
    pub path: PathBuf,
    /// BLAKE3 of its content, hexadecimal.
    pub blake3: String,
}

impl BootFile {
    /// The file as it stands here.
    pub(crate) fn read(path: &Path) -> std::io::Result<Self> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(chunkstore::open_regular(path)?)?;
        Ok(BootFile { path: path.to_owned(), blake3: hasher.finalize().to_hex().to_string() })
    }
}

/// A plan that cannot be made, sent or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanError {
    /// A disk of the guest.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A disk or boot file.
    #[error("cannot plan the migration of VM '{vm}': reading {path}: {source}")]
    File { vm: String, path: PathBuf, source: io::Error },
    /// It cannot be told.
    #[error("cannot send the plan of VM '{vm}': {why}")]
    Unsendable { vm: String, why: String },
    /// What a peer sent is none.
    #[error("cannot read the plan of VM '{vm}': {why}")]
    Malformed { vm: String, why: String },
}

impl HasKind for PlanError {
    fn kind(&self) -> Kind {
        match self {
            PlanError::Disk(error) => error.kind(),
            PlanError::File { source, .. } => Kind::of_io(source),
            PlanError::Unsendable { .. } => Kind::Denied,
            PlanError::Malformed { .. } => Kind::Peer,
        }
    }
}

impl Plan {
    /// What a migration of this VM would be; `seen` are its disks as a running guest has them. Reads the disks' sizes and
    /// all of its boot files: for a blocking thread.
    pub(crate) fn make(
        definition: VmDefinition,
        seen: &[Option<Seen>],
        facts: Option<GuestFacts>,
    ) -> Result<Plan, PlanError> {
        let file = |path: &Path, source| PlanError::File {
            vm: definition.name.to_string(),
            path: path.to_owned(),
            source,
        };
        let mut disks = Vec::new();
        let seen = seen.iter().copied().chain(std::iter::repeat(None));
        for (disk, seen) in definition.disks.iter().zip(seen) {
            let (size, data_bytes) = extent(disk, seen, file)?;
            disks.push(PlanDisk { name: disk.name.clone(), size, data_bytes });
        }
        let mut boot_files = Vec::new();
        for path in definition.boot_files() {
            boot_files.push(BootFile::read(path).map_err(|error| file(path, error))?);
        }
        Ok(Plan { definition, disks, boot_files, facts, address: None })
    }

    /// As it travels.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, PlanError> {
        let vm = || self.definition.name.to_string();
        let bytes = serde_json::to_vec(self)
            .map_err(|error| PlanError::Unsendable { vm: vm(), why: error.to_string() })?;
        if bytes.len() > MAX_PLAN_BYTES {
            let why = format!("it is {} bytes long, more than {MAX_PLAN_BYTES}", bytes.len());
            return Err(PlanError::Unsendable { vm: vm(), why });
        }
        Ok(bytes)
    }

    /// The plan with which `vm` is offered.
    pub(crate) fn decode(vm: &str, bytes: &[u8]) -> Result<Plan, PlanError> {
        let wrong = |why: String| PlanError::Malformed { vm: vm.to_owned(), why };
        let plan: Plan = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
        if plan.definition.name.as_str() != vm {
            return Err(wrong(format!("it describes VM '{}'", plan.definition.name)));
        }
        let names = plan.disks.iter().map(|disk| &disk.name);
        if !names.eq(plan.definition.disks.iter().map(|disk| &disk.name)) {
            return Err(wrong("its disks are not those of the definition".to_owned()));
        }
        if let Some(disk) = plan.disks.iter().find(|disk| disk.size == 0 || disk.size > MAX_IMAGE_BYTES) {
            let why = format!("disk '{}' has {} bytes, not 1 to {MAX_IMAGE_BYTES}", disk.name, disk.size);
            return Err(wrong(why));
        }
        Ok(plan)
    }

    /// Bytes of all its disks.
    pub(crate) fn image_bytes(&self) -> u64 {
        self.disks.iter().map(|disk| disk.size).sum()
    }
}

/// A disk's bytes as the guest sees it, and how many of them are data (of a qcow2 image, about).
fn extent(
    disk: &DiskDefinition,
    seen: Option<Seen>,
    file: impl Fn(&Path, io::Error) -> PlanError,
) -> Result<(u64, u64), PlanError> {
    let io = |source| file(&disk.path, source);
    match disk.format {
        DiskFormat::Raw => {
            let image = Cut::open(disk, seen)?;
            Ok((image.size(), image.allocated_bytes().map_err(io)?))
        }
        DiskFormat::Qcow2 => {
            let image = RawImage::open_read(&disk.path).map_err(io)?;
            Ok((qcow2_size(&image).map_err(io)?, image.allocated_bytes().map_err(io)?))
        }
    }
}

/// What the header says (QEMU, docs/interop/qcow2.txt): magic, version, the size of the disk from byte 24 on.
fn qcow2_size(image: &RawImage) -> io::Result<u64> {
    const MAGIC: &[u8] = b"QFI\xfb";
    let mut header = [0; 32];
    if image.size() >= header.len() as u64 {
        image.read_at(0, &mut header)?;
    }
    let (rest, size) = header.split_at(24);
    match size.try_into().map(u64::from_be_bytes) {
        Ok(size) if rest.starts_with(MAGIC) && size > 0 => Ok(size),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "its definition says qcow2 and it is none; see `format` there",
        )),
    }
}
