//! One QEMU process: starting it daemonized, finding it again by its files, ending it.
//!
//! Signals only a process that a pidfd and its command line prove to be this VM's. Never ends one on its own account.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::process::Command;
use tokio::time::timeout;

use super::command::{Purpose, arguments};
use super::paths::VmPaths;
use crate::definition::{VmDefinition, VmName};
use crate::hypervisor::DriverError;

/// How long QEMU may take to set itself up, and to be gone after SIGKILL.
const START_TIMEOUT: Duration = Duration::from_secs(60);
const EXIT_TIMEOUT: Duration = Duration::from_secs(30);
/// A dropped wait leaves its thread busy for no longer than this.
const EXIT_SLICE: Duration = Duration::from_millis(200);
/// How much of QEMU's log an error quotes.
const LOG_TAIL_BYTES: usize = 2000;

/// Whether a process listens on the VM's monitor. A dead one's socket refuses.
pub(crate) async fn is_listening(paths: &VmPaths) -> bool {
    match tokio::net::UnixStream::connect(paths.qmp()).await {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused),
    }
}

/// Starts QEMU and returns when its monitor listens.
pub(crate) async fn start(def: &VmDefinition, paths: &VmPaths, purpose: Purpose) -> Result<(), DriverError> {
    let vm = &def.name;
    paths.check(vm)?;
    if is_listening(paths).await {
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
            // Not daemonized yet, so this is the process itself or its waiting parent.
            let _ = child.kill().await;
            return Err(failed(format!("not ready after {} s", START_TIMEOUT.as_secs())));
        }
    };
    if !status.success() {
        let tail = log_tail(paths);
        clear(paths);
        return Err(failed(tail));
    }
    Ok(())
}

fn prepare(vm: &VmName, paths: &VmPaths, purpose: Purpose) -> Result<(), DriverError> {
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
    for path in [paths.qmp(), paths.memory(), paths.pid(), paths.incoming_mark()] {
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove a leftover of a QEMU process");
        }
    }
}

fn with_absolute_paths(def: &VmDefinition) -> Result<VmDefinition, DriverError> {
    let mut def = def.clone();
    let name = def.name.clone();
    let disks = def.disks.iter_mut().map(|disk| &mut disk.path);
    for path in disks.chain(&mut def.qemu.kernel).chain(&mut def.qemu.initrd) {
        *path = std::path::absolute(&*path).map_err(io_error(&name, "resolve", path))?;
    }
    Ok(def)
}

fn is_block_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device())
}

pub(crate) fn io_error(
    vm: &VmName,
    doing: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> DriverError {
    let (vm, path) = (vm.clone(), path.to_owned());
    move |source| DriverError::Io { vm, doing, path, source }
}

/// The end of QEMU's log, on one line.
pub(crate) fn log_tail(paths: &VmPaths) -> String {
    let log = fs::read(paths.log()).unwrap_or_default();
    let tail =
        String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_TAIL_BYTES)..]).trim().replace('\n', " | ");
    if tail.is_empty() { format!("nothing (see {})", paths.log().display()) } else { tail }
}

/// A handle that cannot point to another process, however pids are reused.
pub(crate) struct Process(Arc<OwnedFd>);

impl Process {
    /// The VM's process, if there is one.
    pub(crate) fn find(vm: &VmName, paths: &VmPaths) -> Result<Option<Process>, DriverError> {
        let pid_path = paths.pid();
        let text = match fs::read_to_string(&pid_path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error(vm, "read", &pid_path)(error)),
        };
        let Some(pid) = text.trim().parse().ok().filter(|&pid| pid > 1).and_then(Pid::from_raw) else {
            return Ok(None);
        };
        let fd = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(io_error(vm, "open the process of", &pid_path)(error.into())),
        };
        // After the pidfd: while that process lives, /proc/PID is it.
        let command = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
        if !command.split(|&byte| byte == 0).any(|arg| arg == pid_path.as_os_str().as_bytes()) {
            return Ok(None);
        }
        Ok(Some(Process(Arc::new(fd))))
    }

    /// Waits until it has ended, for at most `bound`; false when it has not.
    pub(crate) async fn ended(&self, bound: Duration) -> bool {
        let deadline = Instant::now() + bound;
        loop {
            let fd = self.0.clone();
            let slice = deadline.saturating_duration_since(Instant::now()).min(EXIT_SLICE);
            if tokio::task::spawn_blocking(move || is_readable(&fd, slice)).await.unwrap_or(false) {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
        }
    }

    /// Kills it and waits.
    pub(crate) async fn kill(&self, vm: &VmName, paths: &VmPaths) -> Result<(), DriverError> {
        match pidfd_send_signal(&*self.0, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(io_error(vm, "kill the process of", &paths.pid())(error.into())),
        }
        if self.ended(EXIT_TIMEOUT).await {
            return Ok(());
        }
        Err(DriverError::Timeout {
            vm: vm.clone(),
            doing: "ending the killed QEMU process",
            after: EXIT_TIMEOUT,
            hint: "it may hang in the kernel on its disk",
        })
    }
}

/// A pidfd is readable once its process has ended, reaped or not.
fn is_readable(fd: &OwnedFd, bound: Duration) -> bool {
    let bound = Timespec { tv_sec: bound.as_secs() as i64, tv_nsec: bound.subsec_nanos().into() };
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&bound)), Ok(count) if count > 0)
}

/// After the process has ended: removes its sockets and marks.
pub(crate) fn forget(paths: &VmPaths) {
    clear(paths);
}
