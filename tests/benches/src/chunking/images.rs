//! Second versions of an image, made without mounting it: upgraded in place, laid out anew, pages rewritten.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use harness::{files, shell};

/// Pages that are rewritten, as many as in the comparison of tools that this project started from.
const PAGES: usize = 264;
const PAGE_BYTES: u64 = 4096;

/// Copies the tree in an ext4 image to the new directory `tree`.
///
/// # Errors
/// When debugfs fails.
pub(crate) fn extract(image: &Path, tree: &Path) -> Result<()> {
    files::create_dir(tree)?;
    debugfs(&["-R", &format!("rdump / {}", tree.display())], image)
}

/// A new image of the same tree: a larger disk, groups of half the size, their tables not gathered.
///
/// # Errors
/// When mke2fs fails.
pub(crate) fn lay_out_anew(tree: &Path, size: u64, image: &Path) -> Result<()> {
    let mut command = Command::new("mke2fs");
    command.args([
        "-q",
        "-F",
        "-t",
        "ext4",
        "-b",
        "4096",
        "-m",
        "0",
        "-O",
        "^flex_bg,^resize_inode",
        "-g",
        "16384",
    ]);
    command.args(["-E", "lazy_itable_init=0,lazy_journal_init=0", "-d"]).arg(tree).arg(image);
    shell::run(command.arg(format!("{}K", size / 1024 * 5 / 4)))?;
    shell::run(Command::new("fallocate").arg("--dig-holes").arg(image)).map(drop)
}

/// Makes the tree in the ext4 `image` that of `new`, as a package manager does: the new files are written beside the old
/// ones, which then go. `old` is what the image holds now. Gives the number of files written.
///
/// # Errors
/// When debugfs fails, or what the image holds afterwards is not `new`'s files.
pub(crate) fn upgrade_in_place(image: &Path, old: &Path, new: &Path, work: &Path) -> Result<usize> {
    let (before, after) = (entries(old)?, entries(new)?);
    let mut script = String::new();
    let mut changed = Vec::new();
    for (path, entry) in &after {
        let (dir, name) = split(path);
        match entry {
            Entry::Dir if !before.contains_key(path) => {
                writeln!(script, "cd \"/{dir}\"\nmkdir \"{name}\"")?;
            }
            Entry::File if before.get(path) != Some(entry) || !same(&old.join(path), &new.join(path))? => {
                let source = new.join(path);
                writeln!(script, "cd \"/{dir}\"\nwrite \"{}\" \"{name}.new\"", source.display())?;
                changed.push(path);
            }
            _ => {}
        }
    }
    let gone = before.keys().filter(|path| !after.contains_key(*path));
    let replaced = changed.iter().copied().filter(|path| before.contains_key(*path));
    for path in gone.chain(replaced).filter(|path| before[*path] != Entry::Dir) {
        let (dir, name) = split(path);
        writeln!(script, "cd \"/{dir}\"\nrm \"{name}\"")?;
    }
    for path in &changed {
        let (dir, name) = split(path);
        writeln!(script, "cd \"/{dir}\"\nlink \"{name}.new\" \"{name}\"\nunlink \"{name}.new\"")?;
    }
    let commands = work.join("upgrade.debugfs");
    files::write(&commands, script)?;
    debugfs(&["-w", "-f", &commands.display().to_string()], image)?;
    check_upgrade(image, &changed, new, work)?;
    Ok(changed.len())
}

/// Debugfs ends well whatever it met, so look: some of what was written, and the file system as a whole.
fn check_upgrade(image: &Path, changed: &[&String], new: &Path, work: &Path) -> Result<()> {
    shell::run(Command::new("e2fsck").args(["-f", "-n"]).arg(image))
        .context("checking the upgraded image")?;
    let dump = work.join("dumped");
    for path in changed.iter().step_by(changed.len().div_ceil(20).max(1)) {
        debugfs(&["-R", &format!("dump \"/{path}\" {}", dump.display())], image)?;
        if !same(&dump, &new.join(path))? {
            bail!("{path} was not upgraded");
        }
    }
    files::remove(&dump)
}

/// Rewrites random pages of an image's data `runs` with random bytes.
///
/// # Errors
/// When the image cannot be written.
pub(crate) fn rewrite_pages(image: &Path, runs: &[Range<u64>]) -> Result<()> {
    let pages: Vec<u64> =
        runs.iter().flat_map(|run| (run.start..run.end).step_by(PAGE_BYTES as usize)).collect();
    let mut random = blake3::Hasher::new().update(b"pages").finalize_xof();
    let writing = || format!("writing {}", image.display());
    let file = fs::OpenOptions::new().write(true).open(image).with_context(writing)?;
    let mut word = [0; 8];
    let mut page = [0; PAGE_BYTES as usize];
    for _ in 0..PAGES {
        random.fill(&mut word);
        random.fill(&mut page);
        let at = pages[(u64::from_le_bytes(word) % pages.len() as u64) as usize];
        file.write_all_at(&page, at).with_context(writing)?;
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    File,
    Dir,
    /// Links and devices: they are not in data blocks.
    Other,
}

/// Everything below `tree` by its path in it, directories before what is in them.
fn entries(tree: &Path) -> Result<BTreeMap<String, Entry>> {
    let mut entries = BTreeMap::new();
    let mut dirs = vec![PathBuf::new()];
    while let Some(dir) = dirs.pop() {
        let listed = tree.join(&dir);
        for entry in fs::read_dir(&listed).with_context(|| format!("listing {}", listed.display()))? {
            let entry = entry?;
            let path = dir.join(entry.file_name());
            let kind = match entry.file_type()? {
                kind if kind.is_dir() => Entry::Dir,
                kind if kind.is_file() => Entry::File,
                _ => Entry::Other,
            };
            if kind == Entry::Dir {
                dirs.push(path.clone());
            }
            entries.insert(path.to_string_lossy().into_owned(), kind);
        }
    }
    Ok(entries)
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn same(one: &Path, other: &Path) -> Result<bool> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
    let (a, b) = (fs::metadata(one), fs::metadata(other));
    if let (Ok(a), Ok(b)) = (a, b)
        && a.len() != b.len()
    {
        return Ok(false);
    }
    Ok(read(one)? == read(other)?)
}

fn debugfs(arguments: &[&str], image: &Path) -> Result<()> {
    shell::run(Command::new("debugfs").args(arguments).arg(image)).map(drop)
}

#[cfg(test)]
mod tests;
