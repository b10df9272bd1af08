//! The guests' initramfs: our `/init`, busybox, and the kernel modules it needs with their dependencies, in order.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use super::kernel::Kernel;
use crate::{files, shell};

/// What a guest needs beyond what Debian's kernel has built in. A name that is no module there is built in.
const MODULES: [&str; 6] = ["virtio_pci", "virtio_blk", "virtio_net", "xen_blkfront", "xen_netfront", "ext4"];
pub(super) const BUSYBOX: &str = "/bin/busybox";
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The initramfs for `kernel` with the current sources' `/init`.
pub(super) fn build(lab: &Path, kernel: &Kernel, workspace: &Path) -> Result<PathBuf> {
    let init = build_init(lab, workspace)?;
    let busybox = fs::read(BUSYBOX).with_context(|| format!("reading {BUSYBOX} (package busybox-static)"))?;
    let archive = assemble(&init, &busybox, &load_order(&kernel.modules, &MODULES)?)?;
    let key = blake3::hash(&archive).to_hex();
    let path = lab.join(format!("initrd-{}.cpio", &key[..16]));
    files::build_once(&path, |partial| {
        remove_older(lab)?;
        files::write(partial, &archive)
    })?;
    Ok(path)
}

/// Builds the guest's program: static, since the initramfs has no libraries, and in a target directory of its own, so
/// that its flags do not make the workspace build again.
fn build_init(lab: &Path, workspace: &Path) -> Result<Vec<u8>> {
    let target = lab.join("guest-target");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--quiet", "--release", "--package", "guest", "--bin", "guest-init"])
        .args(["--target", TARGET, "--target-dir"])
        .arg(&target)
        .current_dir(workspace)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    shell::run(&mut command).context("building the guest's program")?;
    let program = target.join(TARGET).join("release/guest-init");
    fs::read(&program).with_context(|| format!("reading {}", program.display()))
}

fn assemble(init: &[u8], busybox: &[u8], modules: &[PathBuf]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "disk", "lib", "lib/modules", "proc", "sys"] {
        archive.directory(directory);
    }
    // The kernel gives /init its console only if this exists before /dev is mounted.
    archive.character_device("dev/console", 5, 1);
    archive.program("init", init);
    archive.program("bin/busybox", busybox);
    let mut order = String::new();
    for path in modules {
        let name = path.file_name().context("a module's file name")?.to_string_lossy();
        archive.file(&format!("lib/modules/{name}"), &fs::read(path)?);
        order.push_str(&name);
        order.push('\n');
    }
    archive.file(::guest::MODULES_LIST.trim_start_matches('/'), order.as_bytes());
    Ok(archive.finish())
}

/// The modules' files, each after those it depends on.
pub(super) fn load_order(modules: &Path, wanted: &[&str]) -> Result<Vec<PathBuf>> {
    let mut found = HashMap::new();
    collect(modules, &mut found)?;
    let mut order = Vec::new();
    for name in wanted {
        if found.contains_key(*name) {
            visit(name, &found, &mut order, 0)?;
        }
    }
    Ok(order)
}

fn visit(name: &str, found: &HashMap<String, PathBuf>, order: &mut Vec<PathBuf>, depth: u32) -> Result<()> {
    let path = found.get(name).with_context(|| format!("the kernel package lacks the module {name}"))?;
    if depth > 32 {
        bail!("the modules' dependencies go round in a circle at {name}");
    }
    if order.contains(path) {
        return Ok(());
    }
    for dependency in depends(&fs::read(path)?) {
        visit(&dependency, found, order, depth + 1)?;
    }
    order.push(path.clone());
    Ok(())
}

/// A module's dependencies: the `depends=` entry of its `.modinfo`, a section of NUL-terminated strings.
pub(super) fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = &module[at + KEY.len()..];
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

fn collect(dir: &Path, found: &mut HashMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let (path, kind) = entry.and_then(|e| Ok((e.path(), e.file_type()?)))?;
        if kind.is_dir() {
            collect(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "ko") {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().replace('-', "_");
            found.insert(name, path);
        }
    }
    Ok(())
}

fn remove_older(lab: &Path) -> Result<()> {
    for entry in fs::read_dir(lab)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "cpio") {
            files::remove(&path)?;
        }
    }
    Ok(())
}
