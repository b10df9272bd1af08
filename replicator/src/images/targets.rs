//! Files and block devices that a person names to be written to: refused where writing would harm this platform, a VM, or
//! what this host has in use. It compares what paths stand for, not their names, and writes nothing.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use chunkstore::{FileId, Use, in_use};

use crate::error_kind::{HasKind, Kind};
use crate::service::config::Layout;
use crate::service::vms::Vms;

/// Why a file or device is not written to. Nothing was touched.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub(crate) enum TargetError {
    /// Writing there would harm this platform.
    #[error("{path} is {what}: it is not written to; choose another file", path = .path.display())]
    Ours { path: PathBuf, what: String },
    /// Somebody uses it.
    #[error("{path} is {usage}: it is not written to; end that use, or choose another file", path = .path.display())]
    InUse { path: PathBuf, usage: Use },
    /// A device, without consent.
    #[error(
        "{path} is a block device: name a new file, or have the device overwritten with --in-place",
        path = .path.display()
    )]
    Device { path: PathBuf },
    /// A file is out of reach.
    #[error("{what} {path}: {source}", path = .path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
}

impl HasKind for TargetError {
    fn kind(&self) -> Kind {
        match self {
            TargetError::Ours { .. } | TargetError::InUse { .. } | TargetError::Device { .. } => Kind::Denied,
            TargetError::Io { source, .. } => Kind::of_named_path(source),
        }
    }
}

/// Refuses what the platform keeps its own things in, its VMs' disks by whatever name they are reached, and what this host
/// has in use.
pub(crate) fn check(layout: &Layout, vms: &Vms, path: &Path, lost: Lost) -> Result<(), TargetError> {
    let disks = vms.list().into_iter().flat_map(|definition| {
        let vm = definition.name.to_string();
        definition.disks.into_iter().map(move |disk| (vm.clone(), disk.path))
    });
    check_not_ours(layout, disks, path, lost)?;
    check_unused(path)
}

/// Refuses a block device unless it is to be overwritten.
pub(crate) fn check_device(path: &Path, in_place: bool) -> Result<(), TargetError> {
    let is_device = fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device());
    if is_device && !in_place { Err(TargetError::Device { path: path.to_owned() }) } else { Ok(()) }
}

fn check_unused(path: &Path) -> Result<(), TargetError> {
    match in_use(path) {
        Ok(None) => Ok(()),
        Ok(Some(usage)) => Err(TargetError::InUse { path: path.to_owned(), usage }),
        // Nothing there, or no image: that is refused, if need be, by who opens it.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => Ok(()),
        Err(source) => Err(TargetError::Io { what: "finding out who uses", path: path.to_owned(), source }),
    }
}

/// What is to become of the place of a VM's disk that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// It stays empty.
    Kept,
    /// A copy of the lost disk may stand there again.
    Restored,
}

/// See [`check`]; `disks` are those of VMs, with the VMs' names.
pub(crate) fn check_not_ours(
    layout: &Layout,
    disks: impl Iterator<Item = (String, PathBuf)>,
    path: &Path,
    lost: Lost,
) -> Result<(), TargetError> {
    let io = |what| move |source| TargetError::Io { what, path: path.to_owned(), source };
    let resolved = resolve(path).map_err(io("the directory of the file to be written,"))?;
    let ours = |what| TargetError::Ours { path: path.to_owned(), what };
    for own in layout.own() {
        if resolved.starts_with(resolve(&own).unwrap_or(own.clone())) {
            return Err(ours(format!("in {}, where this platform keeps its own state", own.display())));
        }
    }
    let target = storage(path);
    for (vm, disk) in disks {
        let same_bytes = storage(&disk).iter().any(|id| target.contains(id));
        let is_its_place = || resolve(&disk).is_ok_and(|disk| disk == resolved);
        if same_bytes || (lost == Lost::Kept && is_its_place()) {
            return Err(ours(format!("a disk of VM '{vm}'")));
        }
    }
    Ok(())
}

/// Without links. Of what is not there only the last part may be missing.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    path.canonicalize().or_else(|error| match (path.parent(), path.file_name()) {
        (Some(dir), Some(name)) => Ok(dir.canonicalize()?.join(name)),
        _ => Err(error),
    })
}

/// What holds the bytes of this file or device: itself, the whole device of a partition, the file behind a loop device.
fn storage(path: &Path) -> Vec<FileId> {
    let Ok(id) = FileId::of_path(path) else { return Vec::new() };
    let mut all = vec![id];
    if let FileId::BlockDevice { .. } = id
        && let Ok(metadata) = fs::metadata(path)
    {
        let (major, minor) = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
        let entry = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        if entry.join("partition").exists()
            && let Some(number) = whole_device(&entry)
        {
            all.push(FileId::BlockDevice { number });
        }
        if let Ok(file) = fs::read_to_string(entry.join("loop/backing_file"))
            && let Ok(id) = FileId::of_path(file.trim_end_matches('\n'))
        {
            all.push(id);
        }
    }
    all
}

/// The number of the device that this partition is one of.
fn whole_device(partition: &Path) -> Option<u64> {
    let whole = partition.canonicalize().ok()?.parent()?.join("dev");
    let number = fs::read_to_string(whole).ok()?;
    let (major, minor) = number.trim().split_once(':')?;
    Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests;
