//! What keeps the commit of one disk of a set from counting before the set is decided, and the record that decides it.
//! Each step can be repeated.

use std::io;
use std::path::Path;

use super::error::ReplicaError;
use super::generation::SetId;
use super::{format, names};
use crate::disk::Disk;
use crate::{FileError, files};

/// In the directory above those of the disks.
pub(super) const RECORD: &str = "set";

/// What became of a guarded commit.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// There was none.
    Nothing,
    /// It counts.
    Committed,
    /// It is gone.
    Undone,
}

/// Decides a guarded commit by the record, if there is one.
pub(super) fn settle(disk: &dyn Disk, dir: &Path) -> Result<Settled, ReplicaError> {
    let Some(set) = read_guard(disk, dir)? else { return Ok(Settled::Nothing) };
    let above = above(dir);
    // What is read must be what another reader finds after a crash.
    files::sync_dir(disk, above)?;
    if read_record(disk, above)? == Some(set) {
        lift(disk, dir)?;
        return Ok(Settled::Committed);
    }
    for name in [names::NEXT_STATE, names::LOG, names::PARTIAL] {
        files::remove(disk, &dir.join(name))?;
    }
    files::sync_dir(disk, dir)?;
    lift(disk, dir)?;
    Ok(Settled::Undone)
}

pub(super) fn write_guard(disk: &dyn Disk, dir: &Path, set: &SetId) -> Result<(), ReplicaError> {
    Ok(files::replace(disk, dir, names::GUARD, [&format::encode_guard(set)[..]])?)
}

pub(super) fn lift(disk: &dyn Disk, dir: &Path) -> Result<(), ReplicaError> {
    files::remove(disk, &dir.join(names::GUARD))?;
    Ok(files::sync_dir(disk, dir)?)
}

pub(super) fn read_guard(disk: &dyn Disk, dir: &Path) -> Result<Option<SetId>, ReplicaError> {
    read_set(disk, &dir.join(names::GUARD), format::parse_guard)
}

pub(super) fn read_record(disk: &dyn Disk, above: &Path) -> Result<Option<SetId>, ReplicaError> {
    read_set(disk, &above.join(RECORD), format::parse_set_record)
}

fn read_set(
    disk: &dyn Disk,
    path: &Path,
    parse: impl Fn(&[u8]) -> Option<SetId>,
) -> Result<Option<SetId>, ReplicaError> {
    let bytes = match files::read_bounded(disk, path, format::SET_FILE_BYTES as u64) {
        Ok(bytes) => bytes,
        // `NotADirectory`: the path leads through a file, which is no disk.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Vec::new(),
        Err(error) => return Err(FileError::at("read", path)(error).into()),
    };
    if format::is_other_version(&bytes) {
        return Err(ReplicaError::OtherVersion { path: path.to_owned() });
    }
    let damaged = || ReplicaError::Damaged { path: path.to_owned(), reason: "does not name a set" };
    parse(&bytes).map(Some).ok_or_else(damaged)
}

pub(super) fn above(dir: &Path) -> &Path {
    dir.parent().unwrap_or(Path::new("."))
}
