//! The proof: which of the records that a guest had acknowledged are on a disk image, looked up outside the guest.
//!
//! Works on a copy. The file system's journal is replayed, the file system must then be faultless, and each record must
//! be whole. Never writes to the image it is given, never mounts anything.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::Command;

use ::guest::RECORDS_PATH;
use ::guest::record::{HEADER_BYTES, Record, first_kept};
use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::{files, shell};

/// What was found on an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RecordReport {
    /// The number of the last record the guest had acknowledged.
    pub acked: u64,
    /// The lowest record number that must be there; lower ones have left the ring.
    pub first: u64,
    /// The highest record number that is there. It may be above `acked`: written, but not yet reported.
    pub newest: u64,
    /// How many records from `first` to `acked` are there and valid.
    pub found: u64,
    /// How many of them are missing or damaged.
    pub bad: u64,
}

impl RecordReport {
    /// Whether every acknowledged record is there.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.bad == 0
    }

    /// How many records had to be there.
    #[must_use]
    pub fn expected(&self) -> u64 {
        self.found + self.bad
    }
}

/// Checks the records that the boot `instance` had acknowledged up to `acked` on a raw image.
///
/// # Errors
/// When the image cannot be copied, when its file system is damaged beyond what its journal repairs, or when the ring
/// file is missing.
pub fn verify_records(image: &Path, instance: u64, acked: u64) -> Result<RecordReport> {
    let scratch = tempfile::Builder::new().prefix("lh-verify-").tempdir().context("a scratch directory")?;
    let copy = scratch.path().join("image.raw");
    files::copy_sparse(image, &copy)?;
    check_file_system(&copy).with_context(|| format!("checking the file system on {}", image.display()))?;
    let ring = scratch.path().join("records");
    shell::run(
        Command::new("debugfs").arg("-R").arg(format!("dump {RECORDS_PATH} {}", ring.display())).arg(&copy),
    )?;
    if !ring.exists() {
        bail!("there is no {RECORDS_PATH} on {}: has the guest ever run on it?", image.display());
    }
    let file = File::open(&ring)?;
    let ring_bytes = file.metadata()?.len();
    check_ring(&file, ring_bytes, instance, acked).context("reading the ring file")
}

/// Replays the journal, then demands that nothing is left to repair: that is what a crash-consistent image means.
fn check_file_system(copy: &Path) -> Result<()> {
    let replay = shell::output(Command::new("e2fsck").args(["-y", "-E", "journal_only"]).arg(copy))?;
    if !matches!(replay.status.code(), Some(0 | 1)) {
        bail!("the journal cannot be replayed: {}", shell::tail(&replay.stdout));
    }
    let check = shell::output(Command::new("e2fsck").args(["-f", "-n"]).arg(copy))?;
    if !check.status.success() {
        bail!("the file system is damaged: {}", shell::tail(&check.stdout));
    }
    Ok(())
}

/// Reads a ring file of `ring_bytes` and counts the records of `instance` in it.
fn check_ring(ring: impl Read, ring_bytes: u64, instance: u64, acked: u64) -> io::Result<RecordReport> {
    let records = read_ring(ring, ring_bytes, instance)?;
    let slots = records.slots.len() as u64;
    if slots == 0 {
        return Ok(RecordReport { acked, first: 1, newest: 0, found: 0, bad: acked });
    }
    let newest = records.slots.iter().flatten().copied().max().unwrap_or(0);
    let first = first_kept(newest.max(acked), slots, records.group);
    let expected = (acked + 1).saturating_sub(first);
    let found = (first..=acked)
        .filter(|number| {
            let slot = ::guest::record::slot_of(*number, slots) as usize;
            records.slots.get(slot).copied().flatten() == Some(*number)
        })
        .count() as u64;
    Ok(RecordReport { acked, first, newest, found, bad: expected - found })
}

struct Ring {
    /// The number of the valid record of the instance in each slot.
    slots: Vec<Option<u64>>,
    group: u64,
}

fn read_ring(mut ring: impl Read, ring_bytes: u64, instance: u64) -> io::Result<Ring> {
    let mut bytes = Vec::new();
    ring.read_to_end(&mut bytes)?;
    // Any record of the instance tells the slots' size; which one does not matter.
    let length = bytes
        .chunks_exact(*::guest::record::LENGTHS.start() as usize)
        .filter(|chunk| chunk.len() >= HEADER_BYTES && chunk[8..16] == instance.to_le_bytes())
        .find_map(Record::claimed_length);
    let Some(length) = length else { return Ok(Ring { slots: Vec::new(), group: 1 }) };
    let mut group = 1;
    let slots = bytes
        .chunks_exact(length as usize)
        .take(usize::try_from(ring_bytes / u64::from(length)).unwrap_or(usize::MAX))
        .map(|slot| match Record::decode(slot) {
            Ok(record) if record.instance == instance => {
                group = u64::from(record.group);
                Some(record.number)
            }
            _ => None,
        })
        .collect();
    Ok(Ring { slots, group })
}

#[cfg(test)]
mod tests;
