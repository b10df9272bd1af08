//! The lab: everything a real guest needs, built once and kept under `.cache/lab` (or `LONGHAUL_LAB`).
//!
//! A kernel and its modules from Debian's package, an initramfs with our own `/init`, disk images that are real Debian
//! root file systems. What is built is named by a key of its recipe, so a changed recipe builds anew and an unchanged
//! one costs nothing. Several processes may ask at once; a lock lets one build. It never runs a guest.

pub mod apt;
mod base;
mod cpio;
mod initramfs;
mod kernel;
pub mod peer;
pub mod trial;
mod xen;

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::files;
pub use base::{Age, BaseImage};
pub use trial::Trial;
pub use xen::XenFiles;

/// The built lab.
#[derive(Debug, Clone)]
pub struct Lab {
    dir: PathBuf,
    kernel: PathBuf,
    /// The directory under which its modules lie.
    modules: PathBuf,
    initrd: PathBuf,
}

impl Lab {
    /// The lab with kernel and initramfs, built if need be. The host's packages must be there: see [`apt::setup`].
    ///
    /// # Errors
    /// Says which step failed and why.
    pub fn open() -> Result<Self> {
        let dir = directory();
        files::create_dir(&dir)?;
        let _lock = files::lock(&dir.join("lock"))?;
        let kernel = kernel::fetch(&dir)?;
        let initrd = initramfs::build(&dir, &kernel, &workspace())?;
        Ok(Self { dir, kernel: kernel.image, modules: kernel.modules, initrd })
    }

    /// The kernel.
    #[must_use]
    pub fn kernel(&self) -> &Path {
        &self.kernel
    }

    /// The initramfs whose `/init` is the workload.
    #[must_use]
    pub fn initrd(&self) -> &Path {
        &self.initrd
    }

    /// A base image: a Debian root file system with some 800 MiB of data on a sparse disk of 4 GiB. Built on first use,
    /// which needs root.
    ///
    /// # Errors
    /// Says which step failed and why.
    pub fn base(&self) -> Result<PathBuf> {
        self.image(&BaseImage::full())
    }

    /// A small one for quick tests: some 150 MiB of data on a sparse disk of 1 GiB.
    ///
    /// # Errors
    /// As for [`Lab::base`].
    pub fn small_base(&self) -> Result<PathBuf> {
        self.image(&BaseImage::small())
    }

    /// What a Xen host boots from. Built on first use, which needs root.
    ///
    /// # Errors
    /// As for [`Lab::base`].
    pub fn xen(&self) -> Result<XenFiles> {
        let _lock = files::lock(&self.dir.join("lock"))?;
        xen::build(&self.dir, &self.kernel)
    }

    /// Any other image of this kind.
    ///
    /// # Errors
    /// As for [`Lab::base`].
    pub fn image(&self, image: &BaseImage) -> Result<PathBuf> {
        let _lock = files::lock(&self.dir.join("lock"))?;
        image.build(&self.dir)
    }
}

/// The top of the source tree.
#[must_use]
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// Where the lab is kept.
#[must_use]
pub fn directory() -> PathBuf {
    std::env::var_os("LONGHAUL_LAB").map_or_else(|| workspace().join(".cache/lab"), PathBuf::from)
}

/// Says on standard error what takes time.
pub(crate) fn say(message: &str) {
    eprintln!("lab: {message}");
}

#[cfg(test)]
mod tests;
