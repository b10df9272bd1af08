//! From the kernel's hands to a mounted disk: pseudo file systems, modules, network, the image's root file system.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use guest::{MODULES_LIST, Workload};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};
use rustix::time::{ClockId, clock_gettime};

/// Where the image's root file system is mounted.
pub(crate) const ROOT: &str = "/disk";
/// The first disk: virtio's, or Xen's.
const DISKS: [&str; 2] = ["/dev/vda", "/dev/xvda"];
const DEVICE_WAIT: Duration = Duration::from_secs(20);

/// Why the guest did not come up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    /// A system call or file operation failed.
    #[error("{0}: {1}")]
    Io(String, io::Error),
    /// The kernel command line is wrong.
    #[error("{0}")]
    Workload(String),
    /// A device did not appear.
    #[error("{0} did not appear: is the device in the machine and its driver in the initramfs?")]
    NoDevice(String),
    /// A helper program failed.
    #[error("`busybox {0}` failed: {1}")]
    Helper(String, String),
}

fn during<T>(what: impl Into<String>, result: Result<T, impl Into<io::Error>>) -> Result<T, BootError> {
    result.map_err(|error| BootError::Io(what.into(), error.into()))
}

/// Mounts /proc, /sys and /dev; returns the kernel's command line.
pub(crate) fn basics() -> Result<String, BootError> {
    for (fs, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        during(format!("mount {fs}"), mount(fs, at, fs, MountFlags::empty(), None))?;
    }
    during("read /proc/cmdline", std::fs::read_to_string("/proc/cmdline"))
}

/// Loads the modules that the initramfs lists.
pub(crate) fn modules() -> Result<(), BootError> {
    let list = during(MODULES_LIST, std::fs::read_to_string(MODULES_LIST))?;
    for name in list.lines() {
        let path = Path::new(MODULES_LIST).with_file_name(name);
        let file = during(path.display().to_string(), File::open(&path))?;
        match finit_module(&file, c"", 0) {
            // A driver of the other hypervisor finds nothing to drive.
            Ok(()) | Err(Errno::EXIST | Errno::NODEV) => {}
            Err(error) => return Err(BootError::Io(format!("load module {name}"), error.into())),
        }
    }
    Ok(())
}

/// Gives the network card its address.
pub(crate) fn network(workload: &Workload) -> Result<(), BootError> {
    busybox("ip link set lo up")?;
    if workload.port == 0 {
        return Ok(());
    }
    wait_for(&["/sys/class/net/eth0"])?;
    if workload.host.is_ipv6() {
        return busybox("ip link set eth0 up");
    }
    busybox(&format!("ip addr add {}/24 dev eth0", workload.address))?;
    busybox("ip link set eth0 up")?;
    busybox(&format!("ip route add default via {}", workload.gateway()))
}

/// Mounts the disk's root file system and runs a program of it, to show that it is one.
pub(crate) fn disk() -> Result<(), BootError> {
    let disk = wait_for(&DISKS)?;
    during(format!("mount {disk}"), mount(disk, ROOT, "ext4", MountFlags::NOATIME, None))?;
    let cat = Command::new("/bin/busybox").args(["chroot", ROOT, "/bin/cat", "/etc/debian_version"]).output();
    match cat {
        Ok(out) if out.status.success() => {
            println!("LONGHAUL-ROOT Debian {}", String::from_utf8_lossy(&out.stdout).trim());
        }
        _ => println!("LONGHAUL-ROOT without Debian programs"),
    }
    Ok(())
}

/// The random number of this boot.
pub(crate) fn instance() -> Result<u64, BootError> {
    let id = during("read boot_id", std::fs::read_to_string("/proc/sys/kernel/random/boot_id"))?;
    let hex: String = id.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    u64::from_str_radix(&hex, 16)
        .map_err(|_| BootError::Workload(format!("boot_id {id:?} is not hexadecimal")))
}

/// Time since the kernel started. It stands still while the machine is paused or on its way.
pub(crate) fn uptime() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Switches the machine off. Does not return unless the kernel refuses.
pub(crate) fn power_off() {
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        println!("LONGHAUL-ERROR power off: {error}");
    }
}

/// The first of these that appears.
fn wait_for(paths: &[&'static str]) -> Result<&'static str, BootError> {
    let start = Instant::now();
    loop {
        if let Some(path) = paths.iter().find(|path| Path::new(path).exists()) {
            return Ok(path);
        }
        if start.elapsed() > DEVICE_WAIT {
            return Err(BootError::NoDevice(paths.join(" or ")));
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn busybox(command: &str) -> Result<(), BootError> {
    let out = during("run busybox", Command::new("/bin/busybox").args(command.split(' ')).output())?;
    if out.status.success() {
        return Ok(());
    }
    Err(BootError::Helper(command.to_owned(), String::from_utf8_lossy(&out.stderr).trim().to_owned()))
}
