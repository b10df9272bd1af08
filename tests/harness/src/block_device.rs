//! Real block devices for tests: a loop device over a file. It goes away with the process, however that ends.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::lab::apt;
use crate::shell;

/// A block device whose sectors are a file's bytes.
#[derive(Debug)]
pub struct BlockDevice {
    path: PathBuf,
    /// Detached already, the device lives exactly as long as somebody has it open.
    _open: File,
}

impl BlockDevice {
    /// Attaches a device to `file`, whose length is a multiple of 512.
    ///
    /// # Errors
    /// When the caller is not root, or the kernel has no loop device to give.
    pub fn over(file: &Path) -> Result<Self> {
        if !apt::is_root() {
            bail!("attaching a loop device needs root: run the tests that need one with sudo");
        }
        let shown = shell::run(Command::new("losetup").args(["--find", "--show"]).arg(file))?;
        let path = PathBuf::from(shown.trim());
        let open = File::open(&path);
        shell::run(Command::new("losetup").arg("--detach").arg(&path))?;
        let open = open.with_context(|| format!("opening {}", path.display()))?;
        Ok(BlockDevice { path, _open: open })
    }

    /// Its path, such as /dev/loop0.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}
