//! Small disks below a platform's root: a tmpfs to be filled, an XFS whose files can share blocks. What is mounted below a
//! root is unmounted with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::lab::apt;
use crate::{files, shell};

/// Mounts a disk of `mib` MiB at `dir`.
pub(super) fn mount(dir: &Path, mib: u32) -> Result<()> {
    files::create_dir(dir)?;
    let size = format!("size={mib}m");
    shell::run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "longhaul-test"]).arg(dir)).map(drop)
}

/// Mounts a disk of `mib` MiB at `dir`, an XFS over the file `image`; it takes of that what is written. XFS is not made
/// smaller than 300 MiB.
pub(super) fn mount_reflink(dir: &Path, image: &Path, mib: u32) -> Result<()> {
    if !apt::is_root() {
        bail!("mounting a disk needs root: run the tests that need one with sudo");
    }
    apt::install(apt::REFLINK)?;
    files::create_dir(dir)?;
    fs::File::create_new(image)?.set_len(u64::from(mib) << 20)?;
    shell::run(Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(image))?;
    // The loop device is detached when it is unmounted, by whomever.
    shell::run(Command::new("mount").args(["-t", "xfs", "-o", "loop"]).arg(image).arg(dir)).map(drop)
}

/// Unmounts everything below `root`, however busy it is.
pub(super) fn unmount_all(root: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let below = mounts.lines().filter_map(|line| line.split(' ').nth(1).map(PathBuf::from));
    for dir in below.filter(|dir| dir.starts_with(root)) {
        // Nothing more can be done about one that stays; removing the root then fails.
        let _ = shell::run(Command::new("umount").arg("--lazy").arg(dir));
    }
}
