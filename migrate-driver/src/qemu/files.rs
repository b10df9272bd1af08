//! Which files a running QEMU has its guest's disks in: by its open descriptors, since a path may lead to another file by
//! now.
//!
//! When QEMU has started, the files are where their paths say: their identities are kept in RUN_DIR/NAME/disks.json. Later
//! each is looked for among QEMU's descriptors. A QEMU that an older daemon has started has no such list; then the file
//! counts to which the path leads, if it is among the descriptors.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::timeout;

use super::blocks::{self, Names, Nodes};
use super::paths::VmPaths;
use super::session::Session;
use crate::definition::VmDefinition;
use crate::hypervisor::{DiskFile, DriverError, GuestDisk};
use crate::process::{Process, io_error};

/// How long the host's file systems may take to tell of some open files.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);

/// Identities by disk.
type Known = BTreeMap<String, DiskFile>;

/// The files of the disks of a VM that runs.
pub(crate) async fn disks(s: &Session, def: &VmDefinition) -> Result<Vec<GuestDisk>, DriverError> {
    let vm = &s.vm.name;
    let names: Vec<Names> = def.disks.iter().map(|disk| Names::of(&disk.name)).collect();
    blocks::check_devices(s, names.iter()).await?;
    let nodes = Nodes::query(s).await?;
    let mut wanted = Vec::new();
    for (names, disk) in names.iter().zip(&def.disks) {
        blocks::check_disk(s, &nodes, &names.disk)?;
        let path = nodes.file_name(names).map_or_else(|| disk.path.clone(), PathBuf::from);
        let size_bytes = nodes.size(names).unwrap_or(0);
        wanted.push((names.disk.clone(), path, disk.path.clone(), size_bytes, disk.format));
    }
    let pid_path = s.vm.paths.pid();
    let Some(process) = Process::find(vm, &pid_path, &pid_path).await? else {
        return Err(DriverError::NotRunning { vm: vm.clone() });
    };
    let (known_path, fds) = (s.vm.paths.disks(), PathBuf::from(format!("/proc/{}/fd", process.id())));
    let (name, doing) = (vm.clone(), "look at the files of its disks");
    let look = tokio::task::spawn_blocking(move || {
        let known = read_known(&known_path);
        let open = open_files(&fds).map_err(io_error(&name, "list", &fds))?;
        let paths: Vec<(&str, &Path)> =
            wanted.iter().map(|(disk, path, ..)| (disk.as_str(), path.as_path())).collect();
        let found = assign(&paths, &known, &open);
        let disks = wanted.iter().zip(found).map(|((disk, path, defined, size_bytes, format), found)| {
            let Some((file, descriptor)) = found else {
                return Err(DriverError::LostFile {
                    vm: name.clone(),
                    disk: disk.clone(),
                    path: path.clone(),
                });
            };
            let is_replaced = DiskFile::at(defined).ok() != Some(file);
            let (name, path, format) = (disk.clone(), path.clone(), *format);
            Ok(GuestDisk { name, file, descriptor, path, is_replaced, size_bytes: *size_bytes, format })
        });
        disks.collect()
    });
    match timeout(LOOK_TIMEOUT, look).await {
        Ok(disks) => disks.map_err(|error| io_error(vm, "look into", &pid_path)(io::Error::other(error)))?,
        Err(_) => Err(DriverError::Unresponsive { vm: vm.clone(), doing, after: LOOK_TIMEOUT }),
    }
}

/// Keeps the identities of the files of a VM that has just started.
pub(crate) fn remember(def: &VmDefinition, paths: &VmPaths) -> Result<(), DriverError> {
    let mut known = Known::new();
    for disk in &def.disks {
        let file = DiskFile::at(&disk.path).map_err(io_error(&def.name, "look at", &disk.path))?;
        known.insert(disk.name.clone(), file);
    }
    let path = paths.disks();
    let written = serde_json::to_vec(&known).map_err(io::Error::from).and_then(|text| fs::write(&path, text));
    written.map_err(io_error(&def.name, "write", &path))
}

fn read_known(path: &Path) -> Known {
    fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// A process's open files, each with the path that opens it again.
fn open_files(fds: &Path) -> io::Result<Vec<(DiskFile, PathBuf)>> {
    let mut open = Vec::new();
    for entry in fs::read_dir(fds)? {
        let path = entry?.path();
        // One that has been closed meanwhile is none.
        if let Ok(file) = DiskFile::at(&path) {
            open.push((file, path));
        }
    }
    Ok(open)
}

/// Each disk's file among the open ones.
fn assign(
    disks: &[(&str, &Path)],
    known: &Known,
    open: &[(DiskFile, PathBuf)],
) -> Vec<Option<(DiskFile, PathBuf)>> {
    let opened = |file: &DiskFile| open.iter().find(|(other, _)| other == file).cloned();
    disks
        .iter()
        .map(|(name, path)| match known.get(*name) {
            Some(file) => opened(file),
            None => DiskFile::at(path).ok().as_ref().and_then(opened),
        })
        .collect()
}
