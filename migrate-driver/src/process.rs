//! Processes that outlive us: found again by a file with their id, and ended.
//!
//! Signals only a process that a pidfd and its command line prove to be the one meant.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Signal, getpid, pidfd_getfd, pidfd_open, pidfd_send_signal,
};
use tokio::time::timeout;

use crate::definition::VmName;
use crate::hypervisor::DriverError;

/// How long a process may take to be gone after SIGKILL.
const EXIT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long looking at processes may take.
const PROC_TIMEOUT: Duration = Duration::from_secs(5);
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
pub(crate) struct Process {
    fd: Arc<OwnedFd>,
    pid: Pid,
}

impl Process {
    /// The process whose id is in `pid_path`, if it lives and one of its arguments names `mark`, a path that no other
    /// program is started with.
    pub(crate) async fn find(
        vm: &VmName,
        pid_path: &Path,
        mark: &Path,
    ) -> Result<Option<Process>, DriverError> {
        let (name, pid_path, mark) = (vm.clone(), pid_path.to_owned(), mark.to_owned());
        looked_up(vm, move || Process::find_now(&name, &pid_path, &mark)).await
    }

    /// A process with this option and its value, a path, among its arguments, wherever its id is written: it may not have
    /// come to write that.
    pub(crate) async fn with_option(
        vm: &VmName,
        option: &'static str,
        value: &Path,
    ) -> Result<Option<Process>, DriverError> {
        let (name, value) = (vm.clone(), value.to_owned());
        looked_up(vm, move || Process::with_option_now(&name, option, &value)).await
    }

    fn find_now(vm: &VmName, pid_path: &Path, mark: &Path) -> Result<Option<Process>, DriverError> {
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

    fn with_option_now(vm: &VmName, option: &str, value: &Path) -> Result<Option<Process>, DriverError> {
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
            Ok(fd) => Ok(Some(Process { fd: Arc::new(fd), pid })),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until it has ended, for at most `bound`; false when it has not.
    pub(crate) async fn ended(&self, bound: Duration) -> bool {
        let deadline = Instant::now() + bound;
        loop {
            let fd = self.fd.clone();
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
        match pidfd_send_signal(&*self.fd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(io_error(vm, "kill the process of", pid_path)(error.into())),
        }
        if self.ended(EXIT_TIMEOUT).await {
            return Ok(());
        }
        Err(DriverError::NotEnding {
            vm: vm.clone(),
            pid: self.id(),
            state: self.state(),
            after: EXIT_TIMEOUT,
        })
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// The kernel's letter for its state; `D` is a wait in the kernel that no signal ends. `?` when it has ended.
    fn state(&self) -> char {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap_or_default();
        // The name in parentheses may hold anything.
        stat.rsplit(") ").next().and_then(|rest| rest.chars().next()).unwrap_or('?')
    }
}

/// Looks into /proc on a thread of its own, and not for ever: reading a command line waits for a process that has its memory
/// locked in the kernel.
async fn looked_up(
    vm: &VmName,
    look: impl FnOnce() -> Result<Option<Process>, DriverError> + Send + 'static,
) -> Result<Option<Process>, DriverError> {
    match timeout(PROC_TIMEOUT, tokio::task::spawn_blocking(look)).await {
        Ok(found) => found.map_err(|error| io_error(vm, "read", Path::new("/proc"))(error.into()))?,
        Err(_) => {
            let (vm, doing) = (vm.clone(), "look at its process");
            Err(DriverError::Unresponsive { vm, doing, after: PROC_TIMEOUT })
        }
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

/// A socket of this process, without a hold on it: it may be closed at any time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SocketId {
    number: i32,
    inode: u64,
}

impl SocketId {
    /// That of an open socket.
    pub(crate) fn of(socket: impl AsFd) -> io::Result<SocketId> {
        let inode = rustix::fs::fstat(&socket)?.st_ino;
        Ok(SocketId { number: socket.as_fd().as_raw_fd(), inode })
    }

    /// Ends the traffic on it in both directions, if it is still open under its number: whoever waits at its other end is
    /// woken.
    pub(crate) fn sever(self) -> io::Result<()> {
        let ourselves = pidfd_open(getpid(), PidfdFlags::empty())?;
        // A second descriptor, so that the number cannot become another file between the look and the call.
        let socket = match pidfd_getfd(ourselves, self.number, PidfdGetfdFlags::empty()) {
            Ok(socket) => socket,
            Err(rustix::io::Errno::BADF) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if rustix::fs::fstat(&socket)?.st_ino == self.inode {
            rustix::net::shutdown(&socket, rustix::net::Shutdown::Both)?;
        }
        Ok(())
    }
}
