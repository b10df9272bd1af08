//! Debian's cloud kernel out of its package: downloaded by apt, unpacked in the cache. Nothing is installed
//! on the host.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

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

/// Takes the kernel proper out of its compressed image, without symbols. An emulated machine would take seconds to
/// unpack it.
pub(super) fn extract(image: &Path, out: &Path) -> Result<()> {
    const WAYS: [(&[u8], &str); 4] = [
        (b"\x02\x21\x4c\x18", "lz4"),
        (b"\xfd7zXZ\0", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"\x1f\x8b\x08", "gzip"),
    ];
    let bytes = fs::read(image).with_context(|| format!("reading {}", image.display()))?;
    for (magic, program) in WAYS {
        let starts = bytes.windows(magic.len()).enumerate().filter(|(_, window)| *window == magic);
        for (start, _) in starts {
            decompress(program, &bytes[start..], out)?;
            if fs::read(out)?.starts_with(b"\x7fELF") {
                return shell::run(Command::new("strip").arg("-s").arg(out)).map(drop);
            }
        }
    }
    bail!("{} holds no kernel that lz4, xz, zstd or gzip can unpack", image.display())
}

/// Whatever comes out: what follows the kernel in its image makes every program complain at the end.
pub(super) fn decompress(program: &str, bytes: &[u8], out: &Path) -> Result<()> {
    let to = File::create(out).with_context(|| format!("creating {}", out.display()))?;
    let mut child = Command::new(program)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(to)
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("starting {program}"))?;
    let mut input = child.stdin.take().context("the program's input")?;
    // It closes its input as soon as it does not understand it.
    let _ = input.write_all(bytes);
    drop(input);
    child.wait().with_context(|| format!("waiting for {program}"))?;
    Ok(())
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

pub(super) fn find(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    fs::read_dir(dir)
        .with_context(|| format!("reading {}", dir.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.file_name().is_some_and(|name| wanted(&name.to_string_lossy())))
        .with_context(|| format!("what a kernel's package brings is not in {}", dir.display()))
}
