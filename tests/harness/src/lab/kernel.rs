//! Debian's cloud kernel out of its package: downloaded by apt, unpacked in the cache. Nothing is installed
//! on the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{apt, say};
use crate::{files, shell};

/// Raise when what is made of the package changes.
const RECIPE: u32 = 2;
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// An unpacked kernel.
#[derive(Debug, Clone)]
pub(super) struct Kernel {
    /// The kernel, as QEMU's `-kernel` takes it.
    pub(super) image: PathBuf,
    /// The directory under which its modules lie.
    pub(super) modules: PathBuf,
}

/// The kernel, downloaded and unpacked on first use.
pub(super) fn fetch(lab: &Path) -> Result<Kernel> {
    let dir = lab.join(format!("kernel-{RECIPE}"));
    files::build_once(&dir, |partial| unpack(partial).context("preparing the guest's kernel"))?;
    Ok(Kernel { image: dir.join("vmlinuz"), modules: dir.join("lib/modules") })
}

fn unpack(dir: &Path) -> Result<()> {
    files::create_dir(dir)?;
    let package = match resolve() {
        Ok(package) => package,
        Err(_) => {
            apt::update()?;
            resolve()?
        }
    };
    say(&format!("downloading {package}"));
    if download(dir, &package).is_err() {
        // The usual reason is a package list older than the mirror.
        apt::update()?;
        download(dir, &resolve()?)?;
    }
    let deb = find(dir, |name| name.ends_with(".deb"))?;
    shell::run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(dir))?;
    files::remove(&deb)?;
    let image = find(&dir.join("boot"), |name| name.starts_with("vmlinuz-"))?;
    fs::rename(&image, dir.join("vmlinuz")).with_context(|| format!("renaming {}", image.display()))
}

/// The package with the kernel itself, which the meta package depends on.
fn resolve() -> Result<String> {
    let depends = shell::run(Command::new("apt-cache").args(["depends", META_PACKAGE]))?;
    depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .filter(|name| name.starts_with("linux-image-"))
        .map(str::to_owned)
        .with_context(|| format!("{META_PACKAGE} depends on no linux-image package"))
}

fn download(dir: &Path, package: &str) -> Result<()> {
    shell::run(Command::new("apt-get").args(["download", "-q", package]).current_dir(dir)).map(drop)
}

fn find(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    fs::read_dir(dir)
        .with_context(|| format!("reading {}", dir.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.file_name().is_some_and(|name| wanted(&name.to_string_lossy())))
        .with_context(|| format!("what the package {META_PACKAGE} brought is not in {}", dir.display()))
}
