//! Processes that outlive us: found again by a file with their id, and ended.
//!
//! Signals only a process that a pidfd and its command line prove to be the one meant.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::definition::VmName;
use crate::hypervisor::DriverError;

/// How long a process may take to be gone after SIGKILL.
const EXIT_TIMEOUT: Duration = Duration::from_secs(30);
/// A dropped wait leaves its thread busy for no longer than this.
const EXIT_SLICE: Duration = Duration::from_millis(200);

pub(crate) fn io_error(
    vm: &VmName,
    doing: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> DriverError {
    let (vm, path) = (vm.clone(), path.to_owned());
    move |source| DriverError::Io { vm, doing, path, source }
}

/// A handle that cannot point to another process, however pids are reused.
pub(crate) struct Process(Arc<OwnedFd>);

impl Process {
    /// The process whose id is in `pid_path`, if it lives and one of its arguments names `mark`, a path that no other
    /// program is started with.
    pub(crate) fn find(vm: &VmName, pid_path: &Path, mark: &Path) -> Result<Option<Process>, DriverError> {
        let text = match fs::read_to_string(pid_path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error(vm, "read", pid_path)(error)),
        };
        let Some(pid) = text.trim().parse().ok().filter(|&pid| pid > 1).and_then(Pid::from_raw) else {
            return Ok(None);
        };
        let found = Process::open(pid).map_err(io_error(vm, "open the process of", pid_path))?;
        Ok(found.filter(|_| {
            let mark = mark.as_os_str().as_bytes();
            command_line(pid).windows(mark.len()).any(|part| part == mark)
        }))
    }

    /// A process with this option and its value, a path, among its arguments, wherever its id is written: it may not have come to
    /// write that.
    pub(crate) fn with_option(
        vm: &VmName,
        option: &str,
        value: &Path,
    ) -> Result<Option<Process>, DriverError> {
        let words = [b"\0", option.as_bytes(), b"\0", value.as_os_str().as_bytes(), b"\0"].concat();
        let is_it = |pid| command_line(pid).windows(words.len()).any(|part| part == words);
        let proc = Path::new("/proc");
        for entry in fs::read_dir(proc).map_err(io_error(vm, "list the processes in", proc))? {
            let name = entry.map_err(io_error(vm, "list the processes in", proc))?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else {
                continue;
            };
            if is_it(pid)
                && let Some(process) =
                    Process::open(pid).map_err(io_error(vm, "open the process of", value))?
                && is_it(pid)
            {
                return Ok(Some(process));
            }
        }
        Ok(None)
    }

    /// `None` when there is none of this id. While it lives, /proc/PID is it.
    fn open(pid: Pid) -> io::Result<Option<Process>> {
        match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(fd) => Ok(Some(Process(Arc::new(fd)))),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
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
    pub(crate) async fn kill(&self, vm: &VmName, pid_path: &Path) -> Result<(), DriverError> {
        match pidfd_send_signal(&*self.0, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(io_error(vm, "kill the process of", pid_path)(error.into())),
        }
        if self.ended(EXIT_TIMEOUT).await {
            return Ok(());
        }
        Err(DriverError::Timeout {
            vm: vm.clone(),
            doing: "ending a killed process",
            after: EXIT_TIMEOUT,
            hint: "it may hang in the kernel on its disk",
        })
    }
}

/// Arguments, each with a NUL behind it; none of a process that has ended.
fn command_line(pid: Pid) -> Vec<u8> {
    fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default()
}

/// A pidfd is readable once its process has ended, reaped or not.
fn is_readable(fd: &OwnedFd, bound: Duration) -> bool {
    let bound = Timespec { tv_sec: bound.as_secs() as i64, tv_nsec: bound.subsec_nanos().into() };
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&bound)), Ok(count) if count > 0)
}
