//! Disks whose generations become the present ones together. Each disk of a set is prepared: its pass is durable and has
//! its commit, which a guard beside it keeps from counting. One record for all of them, in the directory above theirs,
//! then decides: a guard that names the record's set is lifted, any other one takes its commit with it. FORMAT.md has the
//! bytes and the order of the steps.

use std::path::Path;
use std::sync::Mutex;

use super::guard::{self, RECORD, Settled, above, lift, read_guard, read_record, settle};
use super::pass::Pass;
use super::{Generation, Replica, ReplicaError, SetId, format};
use crate::sync::lock;
use crate::{FileError, files};

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

impl Pass {
    /// Makes what was written durable as one disk of the set that `generation` names. It becomes the present generation
    /// with all other disks of the set, by [`commit_set`](crate::commit_set), or not at all.
    pub fn prepare(self, generation: Generation) -> Result<Prepared, ReplicaError> {
        self.check_generation(&generation)?;
        let number = generation.number;
        let set = generation.set.ok_or(ReplicaError::BadGeneration { number, reason: "it is of no set" })?;
        self.make_durable()?;
        let prepared = guard::write_guard(&*self.shared.disk, &self.shared.dir, &set)
            .and_then(|()| self.write_commit(&generation));
        // Held from here on: what is on the disk must be undone when it is dropped.
        let held = Prepared { pass: self, generation, set, placed: false };
        prepared.map(|()| held)
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
    if let Some(other) = disks.iter().find(|other| other.set != set || guard::above(other.dir()) != above) {
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

#[cfg(test)]
mod tests;
