//! Named references: one manifest file for each name, replaced in one step. It never looks at chunks.

use std::io;
use std::path::Path;

use super::error::StoreError;
use crate::disk::Disk;
use crate::manifest::MAX_MANIFEST_BYTES;
use crate::{FileError, Manifest, files};

/// Longest name of a reference, in bytes.
const MAX_NAME_BYTES: usize = 128;

pub(crate) fn check_name(name: &str) -> Result<(), StoreError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:@+".contains(&byte);
    if (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with('.') {
        Ok(())
    } else {
        Err(StoreError::BadName { name: name.chars().take(MAX_NAME_BYTES).collect() })
    }
}

pub(super) fn publish(
    disk: &dyn Disk,
    dir: &Path,
    name: &str,
    manifest: &Manifest,
) -> Result<(), StoreError> {
    check_name(name)?;
    Ok(files::replace(disk, dir, name, manifest.parts())?)
}

pub(super) fn load(disk: &dyn Disk, dir: &Path, name: &str) -> Result<Manifest, StoreError> {
    check_name(name)?;
    let path = dir.join(name);
    let content =
        files::load_bounded(disk, &path, MAX_MANIFEST_BYTES).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => StoreError::UnknownName { name: name.to_owned() },
            _ => FileError::at("read the reference", &path)(error).into(),
        })?;
    Manifest::parse(content).map_err(|source| StoreError::BadReference { name: name.to_owned(), source })
}

/// All names, sorted. Files that cannot be references (the half-written one of a crash) are passed over.
pub(super) fn names(disk: &dyn Disk, dir: &Path) -> Result<Vec<String>, StoreError> {
    let mut names = Vec::new();
    for name in disk.list(dir).map_err(FileError::at("list", dir))? {
        if let Some(name) = name.to_str().filter(|name| check_name(name).is_ok()) {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

pub(super) fn remove(disk: &dyn Disk, dir: &Path, name: &str) -> Result<(), StoreError> {
    check_name(name)?;
    let path = dir.join(name);
    disk.remove(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => StoreError::UnknownName { name: name.to_owned() },
        _ => FileError::at("remove the reference", &path)(error).into(),
    })?;
    Ok(files::sync_dir(disk, dir)?)
}

/// Removes what a crash in [`publish`] left.
pub(super) fn remove_temporary(disk: &dyn Disk, dir: &Path) -> Result<(), FileError> {
    for name in disk.list(dir).map_err(FileError::at("list", dir))? {
        if name.to_str().is_some_and(|name| name.starts_with('.') && name.ends_with(".tmp")) {
            files::remove(disk, &dir.join(name))?;
        }
    }
    Ok(())
}
