//! Disks whose generations become the present ones together. Each disk of a set is prepared: its pass is durable and has
//! its commit, which a guard beside it keeps from counting. One record for all of them, in the directory above theirs,
//! then decides: a guard that names the record's set is lifted, any other one takes its commit with it. FORMAT.md has the
//! bytes and the order of the steps.

use std::io;
use std::path::Path;
use std::sync::Mutex;

use super::pass::Pass;
use super::{Generation, Replica, ReplicaError, SetId, format, recover};
use crate::disk::Disk;
use crate::sync::lock;
use crate::{FileError, files};

/// In the directory above those of the disks.
const RECORD: &str = "set";

/// One at a time: a record replaces the one before, which must not be needed any more by then.
static DECIDING: Mutex<()> = Mutex::new(());

/// A pass that is durable and not visible. Dropped, it is undone, unless the set's record says that it is committed.
pub struct Prepared {
    pass: Pass,
    generation: Generation,
    set: SetId,
    placed: bool,
}

impl Prepared {
    pub(super) fn new(pass: Pass, generation: Generation, set: SetId) -> Prepared {
        Prepared { pass, generation, set, placed: false }
    }

    fn dir(&self) -> &Path {
        &self.pass.shared.dir
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if self.placed {
            return;
        }
        // Committed after all, or not to be told: that is for recovery, before anything else is done with the replica.
        let undone = settle(&*self.pass.shared.disk, self.dir());
        if !matches!(undone, Ok(Settled::Undone)) {
            lock(&self.pass.shared.state).unfinished = true;
        }
    }
}

impl Replica {
    /// The set that was committed last of those of the disks in the directory above this one.
    pub fn last_set(&self) -> Result<Option<SetId>, ReplicaError> {
        read_record(&*self.shared.disk, above(&self.shared.dir))
    }
}

/// Makes all disks of a set the present generations of their replicas. On an error none of them is, but for
/// [`ReplicaError::Unfinished`]: then all of them are durable, and those that could not be put into place come there
/// later. The replicas lie in one directory, and there is no other disk in the set.
pub fn commit_set(mut disks: Vec<Prepared>) -> Result<(), ReplicaError> {
    let Some(first) = disks.first() else { return Ok(()) };
    let (set, above) = (first.set, above(first.dir()).to_owned());
    if let Some(other) = disks.iter().find(|other| other.set != set || self::above(other.dir()) != above) {
        let reason = "its set is not that of the others";
        return Err(ReplicaError::BadGeneration { number: other.generation.number, reason });
    }
    decide(&disks, &above, &set)?;
    let mut outcome = Ok(());
    for disk in &mut disks {
        // A guard that cannot be lifted now is lifted by recovery, which knows the record.
        let lifted = lift(&*disk.pass.shared.disk, disk.dir());
        let placed = match lifted {
            Ok(()) => {
                disk.placed = true;
                disk.pass.place(disk.generation.clone())
            }
            Err(cause) => {
                Err(ReplicaError::Unfinished { number: disk.generation.number, cause: Box::new(cause) })
            }
        };
        outcome = outcome.and(placed);
    }
    outcome
}

/// Writes the record. Whether it is there after an error is found out by whoever reads it.
fn decide(disks: &[Prepared], above: &Path, set: &SetId) -> Result<(), ReplicaError> {
    let Some(disk) = disks.first().map(|first| first.pass.shared.disk.clone()) else { return Ok(()) };
    let disk = &*disk;
    let _one = lock(&DECIDING);
    // Disks of the set before that a failure has kept from seeing their record, and that are not in this one.
    // A record or guard that cannot be read decides nothing any more: recovery refuses its disk.
    if let Ok(Some(before)) = read_record(disk, above) {
        let names = disk.list(above).map_err(FileError::at("list", above))?;
        for dir in names.into_iter().map(|name| above.join(name)) {
            if matches!(read_guard(disk, &dir), Ok(Some(guard)) if guard == before) {
                lift(disk, &dir)?;
            }
        }
    }
    let record = format::encode_set_record(set);
    files::replace(disk, above, RECORD, [&record[..]]).inspect_err(|_| {
        let _ = disk.remove(&above.join(RECORD));
    })?;
    Ok(())
}

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
    for name in [recover::NEXT_STATE, recover::LOG, recover::PARTIAL] {
        files::remove(disk, &dir.join(name))?;
    }
    files::sync_dir(disk, dir)?;
    lift(disk, dir)?;
    Ok(Settled::Undone)
}

pub(super) fn write_guard(disk: &dyn Disk, dir: &Path, set: &SetId) -> Result<(), ReplicaError> {
    Ok(files::replace(disk, dir, recover::GUARD, [&format::encode_guard(set)[..]])?)
}

fn lift(disk: &dyn Disk, dir: &Path) -> Result<(), ReplicaError> {
    files::remove(disk, &dir.join(recover::GUARD))?;
    Ok(files::sync_dir(disk, dir)?)
}

fn read_guard(disk: &dyn Disk, dir: &Path) -> Result<Option<SetId>, ReplicaError> {
    read_set(disk, &dir.join(recover::GUARD), format::parse_guard)
}

fn read_record(disk: &dyn Disk, above: &Path) -> Result<Option<SetId>, ReplicaError> {
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

fn above(dir: &Path) -> &Path {
    dir.parent().unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests;
