//! The writer: one record after another into the ring file, each group flushed, then acknowledged.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use guest::record::{Record, slot_of};
use guest::{RECORDS_PATH, Workload};
use rustix::fs::{FallocateFlags, fallocate};

use super::boot::ROOT;

/// A writer this far behind its schedule gives the lost time up instead of writing in a burst.
const MAX_LAG: Duration = Duration::from_secs(1);

/// What the threads of the workload share.
pub(crate) struct State {
    instance: u64,
    acked: AtomicU64,
}

impl State {
    /// A boot that has acknowledged nothing.
    pub(crate) fn new(instance: u64) -> Self {
        Self { instance, acked: AtomicU64::new(0) }
    }

    /// The random number of this boot.
    pub(crate) fn instance(&self) -> u64 {
        self.instance
    }

    /// The number of the last record that is on the disk.
    pub(crate) fn acked(&self) -> u64 {
        self.acked.load(Ordering::Acquire)
    }
}

/// Writes until an error. Without a rate it returns at once.
pub(crate) fn run(workload: &Workload, state: &State) -> io::Result<()> {
    if workload.rate == 0 {
        return Ok(());
    }
    let file = open_ring(workload)?;
    let mut slot = vec![0; workload.record_bytes as usize];
    let period = Duration::from_secs(1) * workload.group / workload.rate;
    let mut due = Instant::now();
    let mut number = 0;
    loop {
        for _ in 0..workload.group {
            number += 1;
            let record = Record {
                instance: state.instance,
                number,
                length: workload.record_bytes,
                group: workload.group,
            };
            record.encode(&mut slot);
            file.write_all_at(&slot, slot_of(number, workload.slots()) * u64::from(workload.record_bytes))?;
        }
        file.sync_data()?;
        state.acked.store(number, Ordering::Release);

        due += period;
        let now = Instant::now();
        if now > due + MAX_LAG {
            due = now;
        }
        thread::sleep(due.saturating_duration_since(now));
    }
}

fn open_ring(workload: &Workload) -> io::Result<File> {
    let path = PathBuf::from(format!("{ROOT}{RECORDS_PATH}"));
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    file.set_len(workload.ring_bytes())?;
    fallocate(&file, FallocateFlags::empty(), 0, workload.ring_bytes())?;
    file.sync_all()?;
    Ok(file)
}
