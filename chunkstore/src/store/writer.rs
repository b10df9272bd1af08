//! Which pack the next chunk goes to, and what is not durable yet. It never reads a chunk.

use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::pack::Pack;
use super::record::Entry;
use crate::{FileError, files};

/// A pack that is not sealed.
pub(super) struct Open {
    pub(super) pack: Arc<Pack>,
    /// Where the next record goes.
    pub(super) end: u64,
    pub(super) entries: Vec<Entry>,
}

pub(super) struct Writer {
    packs_dir: PathBuf,
    pack_bytes: u64,
    next_number: u32,
    active: Option<Open>,
    /// The active pack has records that are not synced.
    dirty: bool,
    /// Packs that take no more records and wait for the next sync to be sealed.
    full: Vec<Open>,
    /// The directory has names that are not synced.
    dir_dirty: bool,
}

/// What one sync has to do.
pub(super) struct Unsynced {
    active: Option<Arc<Pack>>,
    full: Vec<Open>,
    dir_dirty: bool,
}

impl Writer {
    /// `unsealed` in ascending order. All of it counts as not durable: whoever wrote it may have crashed before.
    pub(super) fn new(
        packs_dir: PathBuf,
        pack_bytes: u64,
        next_number: u32,
        mut unsealed: Vec<Open>,
    ) -> Writer {
        let active = unsealed.pop_if(|last| last.end < pack_bytes);
        Writer {
            packs_dir,
            pack_bytes,
            next_number,
            dirty: active.is_some(),
            active,
            full: unsealed,
            dir_dirty: true,
        }
    }

    /// Appends a record; gives its entry with its place filled in.
    pub(super) fn append(&mut self, record: &[u8], entry: Entry) -> Result<(Arc<Pack>, Entry), FileError> {
        if self.active.as_ref().is_some_and(|open| open.end >= self.pack_bytes) {
            self.retire();
        }
        if self.active.is_none() {
            let pack = Arc::new(Pack::create(&self.packs_dir, self.next_number)?);
            self.next_number += 1;
            self.dir_dirty = true;
            self.active = Some(Open { pack, end: super::record::PACK_HEADER_BYTES, entries: Vec::new() });
        }
        let Some(open) = &mut self.active else { unreachable!("made above") };
        open.pack.append(open.end, record)?;
        let entry = Entry { offset: open.end, ..entry };
        open.end += record.len() as u64;
        open.entries.push(entry);
        self.dirty = true;
        Ok((open.pack.clone(), entry))
    }

    /// The active pack takes no more records.
    pub(super) fn retire(&mut self) {
        self.full.extend(self.active.take());
        self.dirty = false;
    }

    pub(super) fn active_number(&self) -> Option<u32> {
        self.active.as_ref().map(|open| open.pack.number)
    }

    /// A pack is gone from the disk.
    pub(super) fn forget(&mut self, number: u32) {
        self.full.retain(|open| open.pack.number != number);
        self.dir_dirty = true;
    }

    pub(super) fn take_unsynced(&mut self) -> Unsynced {
        Unsynced {
            active: self.active.as_ref().filter(|_| mem::take(&mut self.dirty)).map(|open| open.pack.clone()),
            full: mem::take(&mut self.full),
            dir_dirty: mem::take(&mut self.dir_dirty),
        }
    }

    /// Packs that could not be sealed this time.
    pub(super) fn give_back(&mut self, unsealed: Vec<Open>) {
        self.full.extend(unsealed);
    }
}

impl Unsynced {
    pub(super) fn sync(&self, packs_dir: &Path) -> Result<(), FileError> {
        let full = self.full.iter().map(|open| &open.pack);
        self.active.iter().chain(full).try_for_each(|pack| pack.sync())?;
        if self.dir_dirty { files::sync_dir(packs_dir) } else { Ok(()) }
    }

    /// Seals full packs, after their records are durable: an index must never vouch for bytes that a crash took.
    /// Gives back those that there was no room to seal; they lose nothing but a quicker opening.
    pub(super) fn seal(&mut self) -> Vec<Open> {
        let mut unsealed = Vec::new();
        for mut open in mem::take(&mut self.full) {
            if open.pack.seal(open.end, &mut open.entries).is_err() {
                unsealed.push(open);
            }
        }
        unsealed
    }
}
