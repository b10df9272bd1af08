//! The rules of this source tree that no compiler checks: what is absent from where, and documents that must follow the
//! code. Reads the tree; changes nothing.

mod circles;
mod crates;
mod documents;
mod sources;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Every broken rule, one a line, starting with the file's name.
///
/// # Errors
/// When the tree cannot be read.
pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    let mut broken = top_level(root)?;
    let files = walk(root)?;
    for file in files.iter().filter(|file| file.extension().is_some_and(|e| e == "rs")) {
        let name = file.strip_prefix(root).unwrap_or(file).display().to_string();
        broken.extend(sources::check(&name, &read(file)?));
    }
    for folder in circles::CRATES {
        let sources = files.iter().filter_map(|file| {
            let name = file.strip_prefix(root.join(folder)).ok()?.to_str()?;
            name.ends_with(".rs").then(|| Ok((name.to_owned(), read(file)?)))
        });
        broken.extend(circles::check(folder, &sources.collect::<Result<BTreeMap<_, _>>>()?));
    }
    broken.extend(crates::check(root)?);
    broken.extend(documents::check(root, &files)?);
    Ok(broken)
}

/// The customer has fixed the top level; everything else nests below it or is a dotfile.
const TOP_LEVEL: [&str; 9] = [
    "Cargo.toml",
    "Cargo.lock",
    "README.md",
    "chunkstore",
    "migrate-driver",
    "mobility",
    "replicator",
    "tests",
    "target",
];

fn top_level(root: &Path) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    for entry in fs::read_dir(root).with_context(|| format!("reading {}", root.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && !TOP_LEVEL.contains(&name.as_str()) {
            broken.push(format!("{name}: the top level is fixed; nest it or make it a dotfile"));
        }
    }
    broken.sort();
    Ok(broken)
}

/// All files below `root` except hidden ones and what builds leave behind.
fn walk(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') || name == "target" {
                continue;
            }
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))
}

#[cfg(test)]
mod tests;
