//! A disk that reads slowly: an ext4 over a loop device whose reads the kernel's block I/O controller holds back.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::lab::apt;
use crate::{files, shell};

/// The limits of everybody's reads, by device (Linux, Documentation/admin-guide/cgroup-v1/blkio-controller.rst).
const READ_LIMITS: &str = "/sys/fs/cgroup/blkio/blkio.throttle.read_bps_device";

/// A mounted file system whose reads can be slowed down. Its limit goes with the value; it is unmounted with the platform
/// whose root it is in.
#[derive(Debug)]
pub struct SlowDisk {
    dir: PathBuf,
    device: String,
}

impl SlowDisk {
    /// Mounts an ext4 of `mib` MiB over the new file `image` at `dir`.
    ///
    /// # Errors
    /// When it cannot be made or mounted.
    pub(super) fn mount(dir: &Path, image: &Path, mib: u32) -> Result<Self> {
        if !apt::is_root() {
            bail!("mounting a disk needs root: run the tests that need one with sudo");
        }
        files::create_dir(dir)?;
        fs::File::create_new(image)?.set_len(u64::from(mib) << 20)?;
        shell::run(Command::new("mkfs.ext4").arg("-q").arg(image))?;
        shell::run(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(image).arg(dir))?;
        let device = fs::metadata(dir)?.dev();
        let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        Ok(SlowDisk { dir: dir.to_owned(), device })
    }

    /// From now on it reads so many bytes a second, and nothing of it is in memory; 0 for as fast as it can.
    ///
    /// # Errors
    /// When the kernel has no such control, or refuses.
    pub fn limit(&self, bytes_s: u64) -> Result<()> {
        shell::run(Command::new("sync").arg("--file-system").arg(&self.dir))?;
        fs::write("/proc/sys/vm/drop_caches", "1")?;
        fs::write(READ_LIMITS, format!("{} {bytes_s}", self.device))
            .with_context(|| format!("limiting the reads of device {}", self.device))
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        // Else whoever gets the device's number next has a slow disk.
        let _ = fs::write(READ_LIMITS, format!("{} 0", self.device));
    }
}
