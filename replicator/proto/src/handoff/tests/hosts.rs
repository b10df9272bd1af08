//! What outlives a daemon: guests and what they were promised, images, hypervisors. Effects only; no time, no decisions.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::node::Fate;
use crate::handoff::Root;

pub(super) const BLOCKS: usize = 6;

/// The content of an image: for each block the number of the write that is in it, 0 for none.
pub(super) type Blocks = [u64; BLOCKS];

/// A VM as its user knows it.
#[derive(Debug, Default)]
pub(super) struct Guest {
    /// What its disk must be: every write was acknowledged.
    pub(super) truth: Blocks,
    /// Writes so far. Its memory is the number that it knows of.
    pub(super) writes: u64,
    /// The operator stopped it.
    pub(super) stopped: bool,
    /// Its hypervisor died while it ran.
    pub(super) died: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Domain {
    #[default]
    Absent,
    Running,
    Paused,
    /// Paused, and its memory is sent.
    PostMigrate,
    /// Waiting, or paused with the memory of a guest that knows of this many writes.
    Incoming(Option<u64>),
    Dead,
}

/// Writes on their way from the guest to the other side.
#[derive(Debug, Default)]
pub(super) struct Tap {
    pub(super) job: usize,
    /// Acknowledged to the guest, not yet with us.
    pub(super) pending: Vec<(usize, u64)>,
    /// With us, not yet sent.
    pub(super) dirty: BTreeMap<usize, u64>,
    /// Being sent.
    pub(super) under_way: Vec<(usize, u64)>,
}

impl Tap {
    /// Some writes arrive with us: all of them once the guest is drained.
    pub(super) fn arrive(&mut self, count: usize) {
        let count = count.min(self.pending.len());
        self.dirty.extend(self.pending.drain(..count));
    }

    pub(super) fn dirty_bytes(&self) -> u64 {
        (self.dirty.len() + self.pending.len()) as u64 * 65536
    }
}

/// One VM on one platform.
#[derive(Debug, Default)]
pub(super) struct Host {
    pub(super) domain: Domain,
    /// Since when a guest that is there has stood still.
    pub(super) paused_since: Option<Duration>,
    /// The file that the hypervisor has open.
    pub(super) open: usize,
    /// Files by their names, as numbers in [`Store`].
    pub(super) image: Option<usize>,
    pub(super) partial: Option<usize>,
    pub(super) replica: Option<usize>,
    /// It was at home here, and its image stays.
    pub(super) defined: bool,
    /// The image is durable, and was compared.
    pub(super) sealed: bool,
    pub(super) tap: Option<Tap>,
}

/// The files of one platform.
pub(super) type Store = Vec<Blocks>;

/// What the destination's daemon has open of one job.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) file: usize,
    /// Blocks whose hashes are known are not read again.
    pub(super) hashed: [Option<u64>; BLOCKS],
    /// Blocks that came and are not yet written.
    pub(super) queue: VecDeque<(usize, u64)>,
    pub(super) writing: bool,
    /// A block takes up to so many microseconds.
    pub(super) pace_us: u64,
    /// The last block has come.
    pub(super) complete: bool,
    pub(super) fate: Fate,
}

impl Incoming {
    pub(super) fn new(file: usize, pace_us: u64) -> Self {
        Incoming {
            file,
            hashed: [None; BLOCKS],
            queue: VecDeque::new(),
            writing: false,
            pace_us,
            complete: false,
            fate: Fate::Wanted,
        }
    }

    /// Writes the next block.
    pub(super) fn write(&mut self, store: &mut Store) {
        if let Some((block, write)) = self.queue.pop_front() {
            store[self.file][block] = write;
            self.hashed[block] = Some(write);
        }
    }

    pub(super) fn root(&mut self, store: &Store) -> Root {
        let file = store[self.file];
        let leaves = std::array::from_fn(|block| *self.hashed[block].get_or_insert(file[block]));
        root(&leaves)
    }
}

/// Stands for the image's root: equal for equal disks.
pub(super) fn root(blocks: &Blocks) -> Root {
    let mut hasher = blake3::Hasher::new();
    for block in blocks {
        hasher.update(&block.to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}
