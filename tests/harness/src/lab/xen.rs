//! What a Xen host boots from, out of Debian's packages: the hypervisor, the kernel of its first domain, an initramfs
//! and a root file system with xl and QEMU in it. Unpacked, never installed; nothing is changed outside the lab.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::base::{Age, BaseImage};
use super::cpio::Archive;
use super::{initramfs, kernel, say};
use crate::{files, shell};

/// Raise when the way it is made changes in a way that the key does not see.
const RECIPE: u32 = 1;
const HYPERVISOR: &str = "xen-4.17-amd64.gz";
/// What the first domain's kernel needs to find its root file system.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "ext4", "crc32c_generic"];
const INIT: &str = include_str!("xen/initrd-init.sh");
/// The first process of the first domain: no service manager, only what xl needs.
const DOM0_INIT: &str = include_str!("xen/dom0-init.sh");

#[rustfmt::skip]
const PACKAGES: &[&str] = &[
    "?essential", "mount", "iproute2", "bridge-utils", "iputils-ping", "kmod", "procps", "mawk", "socat", "python3",
    "openssh-client", "openssh-server", "linux-image-amd64", "xen-hypervisor-4.17-amd64", "xen-utils-4.17", "xenstore-utils",
    "qemu-system-xen", "qemu-utils",
];

/// The files of a Xen host.
#[derive(Debug, Clone)]
pub struct XenFiles {
    /// The hypervisor, as QEMU's `-kernel` takes it.
    pub hypervisor: PathBuf,
    /// The first domain's kernel.
    pub kernel: PathBuf,
    /// Its initramfs.
    pub initrd: PathBuf,
    /// Its root file system, a raw image. Shared by all hosts, so not to be written to.
    pub root: PathBuf,
    /// A kernel for guests.
    pub guest_kernel: PathBuf,
}

pub(super) fn build(lab: &Path, guest_image: &Path) -> Result<XenFiles> {
    let base = BaseImage { name: "xen", packages: PACKAGES, disk_mib: 1536, age: Age::Updated };
    let key = blake3::hash(format!("{RECIPE} {} {INIT} {DOM0_INIT}", base.key()).as_bytes()).to_hex();
    let dir = lab.join("xen").join(&key[..8]);
    files::create_dir(&lab.join("xen"))?;
    files::build_once(&dir, |partial| {
        files::create_dir(partial)?;
        make(&base, partial, guest_image).context("making what a Xen host boots from")
    })?;
    let file = |name| dir.join(name);
    Ok(XenFiles {
        hypervisor: file("xen"),
        kernel: file("vmlinux"),
        initrd: file("initrd.cpio"),
        root: file("root.raw"),
        guest_kernel: file("vmlinux-guest"),
    })
}

fn make(base: &BaseImage, dir: &Path, guest_image: &Path) -> Result<()> {
    let tree = dir.join("tree");
    base.unpack(&tree)?;
    say("taking hypervisor and kernels out of it");
    let boot = tree.join("boot");
    let packed = fs::read(boot.join(HYPERVISOR)).with_context(|| format!("the package's {HYPERVISOR}"))?;
    kernel::decompress("gzip", &packed, &dir.join("xen"))?;
    kernel::extract(&kernel::find(&boot, |name| name.starts_with("vmlinuz-"))?, &dir.join("vmlinux"))?;
    kernel::extract(guest_image, &dir.join("vmlinux-guest"))?;
    files::write(&dir.join("initrd.cpio"), initrd(&tree)?)?;
    // modprobe's index, which the kernel's package makes when it is installed.
    let version = kernel::find(&tree.join("lib/modules"), |_| true)?;
    let version = version.file_name().context("a kernel's version")?.to_owned();
    shell::run(Command::new("chroot").arg(&tree).arg("depmod").arg(version))?;
    base.format(&tree, &dir.join("root.raw"))?;
    files::remove(&tree)
}

fn initrd(tree: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "mnt", "proc", "sys", "modules"] {
        archive.directory(directory);
    }
    archive.character_device("dev/console", 5, 1);
    let busybox = fs::read(initramfs::BUSYBOX).with_context(|| format!("reading {}", initramfs::BUSYBOX))?;
    archive.program("bin/busybox", &busybox);
    archive.program("init", INIT.as_bytes());
    archive.program("dom0-init", DOM0_INIT.as_bytes());
    let mut order = String::new();
    for path in initramfs::load_order(&tree.join("lib/modules"), &MODULES)? {
        let name = path.file_name().context("a module's file name")?.to_string_lossy().into_owned();
        archive.file(&format!("modules/{name}"), &fs::read(&path)?);
        order.push_str(&format!("{name}\n"));
    }
    archive.file("modules/order", order.as_bytes());
    Ok(archive.finish())
}
