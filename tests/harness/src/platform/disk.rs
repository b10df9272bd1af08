//! Small disks below a platform's root, to be filled: a tmpfs each. What is mounted below a root is unmounted with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::{files, shell};

/// Mounts a disk of `mib` MiB at `dir`.
pub(super) fn mount(dir: &Path, mib: u32) -> Result<()> {
    files::create_dir(dir)?;
    let size = format!("size={mib}m");
    shell::run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "longhaul-test"]).arg(dir)).map(drop)
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
