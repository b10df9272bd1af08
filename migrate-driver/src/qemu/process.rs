//! One QEMU process: starting it daemonized, and what it leaves when it ends. Never ends one on its own account.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use super::command::{PID_OPTION, Purpose, arguments};
use super::files;
use super::log::log_tail;
use super::paths::VmPaths;
use crate::definition::{VmDefinition, VmName};
use crate::hypervisor::DriverError;
use crate::process::{Process, io_error};

/// How long QEMU may take to set itself up.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Whether a process listens on the VM's monitor. A dead one's socket refuses.
pub(crate) async fn is_listening(paths: &VmPaths) -> bool {
    match tokio::net::UnixStream::connect(paths.qmp()).await {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused),
    }
}

/// A process that was started for the VM, be it that it has neither pid file nor monitor yet.
pub(crate) async fn starting(vm: &VmName, paths: &VmPaths) -> Result<Option<Process>, DriverError> {
    Process::with_option(vm, PID_OPTION, &paths.pid()).await
}

/// Starts QEMU and returns when its monitor listens.
pub(crate) async fn start(
    def: &VmDefinition,
    paths: &VmPaths,
    purpose: Purpose<'_>,
) -> Result<(), DriverError> {
    let vm = &def.name;
    paths.check(vm)?;
    if is_listening(paths).await || starting(vm, paths).await?.is_some() {
        return Err(DriverError::AlreadyRunning { vm: vm.clone() });
    }
    prepare(vm, paths, purpose)?;
    let def = with_absolute_paths(def)?;
    let log_path = paths.log();
    let log = fs::File::create(&log_path).map_err(io_error(vm, "create", &log_path))?;
    let mut command = Command::new(&def.qemu.binary);
    command
        .args(arguments(&def, paths, purpose, is_block_device))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    let failed = |message: String| DriverError::Start { vm: vm.clone(), message };
    let mut child = command.spawn().map_err(|error| {
        failed(format!("cannot run {}: {error}; install it or set qemu.binary", def.qemu.binary))
    })?;
    let status = match timeout(START_TIMEOUT, child.wait()).await {
        Ok(status) => status.map_err(|error| failed(error.to_string()))?,
        Err(_) => {
            // Not daemonized yet, so this is the process itself or its waiting parent; a child of its has its arguments.
            let _ = child.kill().await;
            while let Some(process) = starting(vm, paths).await? {
                process.kill(vm, &paths.pid()).await?;
            }
            clear(paths);
            return Err(failed(format!("not ready after {} s", START_TIMEOUT.as_secs())));
        }
    };
    if !status.success() {
        let tail = log_tail(paths);
        clear(paths);
        return Err(failed(tail));
    }
    files::remember(&def, paths)
}

fn prepare(vm: &VmName, paths: &VmPaths, purpose: Purpose<'_>) -> Result<(), DriverError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&paths.dir)
        .map_err(io_error(vm, "create", &paths.dir))?;
    clear(paths);
    if purpose == Purpose::Incoming {
        let mark = paths.incoming_mark();
        fs::write(&mark, b"").map_err(io_error(vm, "create", &mark))?;
    }
    Ok(())
}

/// Removes what a process that is gone left behind, but not its logs.
fn clear(paths: &VmPaths) {
    for path in [paths.qmp(), paths.memory(), paths.pid(), paths.disks(), paths.incoming_mark()] {
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove a leftover of a QEMU process");
        }
    }
}

pub(super) fn with_absolute_paths(def: &VmDefinition) -> Result<VmDefinition, DriverError> {
    let mut def = def.clone();
    let name = def.name.clone();
    let disks = def.disks.iter_mut().map(|disk| &mut disk.path);
    for path in disks.chain(&mut def.qemu.kernel).chain(&mut def.qemu.initrd) {
        *path = std::path::absolute(&*path).map_err(io_error(&name, "resolve", path))?;
    }
    Ok(def)
}

pub(super) fn is_block_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device())
}

/// After the process has ended: removes its sockets and marks.
pub(crate) fn forget(paths: &VmPaths) {
    clear(paths);
}
