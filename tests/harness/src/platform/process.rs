//! The processes of a platform that are not this process's children: found by the pid files under its root, and only
//! believed when their command line names that root.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether a process with this id exists, zombies included.
pub(crate) fn exists(pid: i32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// The process that a pid file names, if it is alive and belongs to `root`.
pub(super) fn from_pid_file(file: &Path, root: &Path) -> Option<i32> {
    let pid: i32 = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    belongs(pid, root).then_some(pid)
}

/// Kills whatever still runs for `root`: a daemon left behind, then every QEMU.
pub(crate) fn end_all(root: &Path) {
    let vms = fs::read_dir(root.join("run/vm")).into_iter().flatten().flatten();
    let pid_files = std::iter::once(root.join(super::DAEMON_PID)).chain(vms.map(|vm| vm.path().join("pid")));
    for pid in pid_files.filter_map(|file| from_pid_file(&file, root)) {
        end(pid, root);
    }
}

fn end(pid: i32, root: &Path) {
    let Some(process) = Pid::from_raw(pid) else { return };
    if kill_process(process, Signal::KILL).is_err() {
        return;
    }
    let start = Instant::now();
    while belongs(pid, root) && start.elapsed() < END_TIMEOUT {
        thread::sleep(Duration::from_millis(5));
    }
}

/// A zombie has no command line, so it does not count.
fn belongs(pid: i32, root: &Path) -> bool {
    let Ok(cmdline) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let root = root.as_os_str().as_encoded_bytes();
    // The root's name must end there: /tmp/lh-1-1 is not /tmp/lh-1-10.
    cmdline
        .windows(root.len() + 1)
        .any(|part| part.starts_with(root) && !part[root.len()].is_ascii_alphanumeric())
}
