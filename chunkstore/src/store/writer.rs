//! Which pack the next chunk goes to, and what is not durable yet. It never reads a chunk.

use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::index::PackState;
use super::pack::Pack;
use super::record::{Entry, PACK_HEADER_BYTES, Record};
use crate::disk::Disk;
use crate::{FileError, files};

/// A pack that is not sealed.
pub(super) struct Open {
    pub(super) pack: Arc<Pack>,
    /// Where the next record goes.
    pub(super) end: u64,
    pub(super) entries: Vec<Entry>,
}

pub(super) struct Writer {
    disk: Arc<dyn Disk>,
    packs_dir: PathBuf,
    pack_bytes: u64,
    next_number: u32,
    active: Option<Open>,
    /// The active pack has records that are not synced.
    dirty: bool,
    /// Packs that take no more records and wait for the next sync to be sealed.
    full: Vec<Open>,
    /// Packs whose index is written and waits for the next sync.
    sealed: Vec<Arc<Pack>>,
    /// The directory has names that are not synced.
    dir_dirty: bool,
}

/// What one sync has to do.
pub(super) struct Unsynced {
    active: Option<Arc<Pack>>,
    full: Vec<Open>,
    sealed: Vec<Arc<Pack>>,
    dir_dirty: bool,
}

impl Writer {
    /// `unsealed` in ascending order. All of it counts as not durable: whoever wrote it may have crashed before.
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        packs_dir: PathBuf,
        pack_bytes: u64,
        next_number: u32,
        mut unsealed: Vec<Open>,
    ) -> Writer {
        let active = unsealed.pop_if(|last| last.pack.current && last.end < pack_bytes);
        Writer {
            disk,
            packs_dir,
            pack_bytes,
            next_number,
            dirty: active.is_some(),
            active,
            full: unsealed,
            sealed: Vec::new(),
            dir_dirty: true,
        }
    }

    /// Appends a record; gives the pack it went to, and its entries.
    pub(super) fn append(&mut self, record: &Record<'_>) -> Result<(Arc<Pack>, Vec<Entry>), FileError> {
        if self.active.as_ref().is_some_and(|open| open.end >= self.pack_bytes) {
            self.retire();
        }
        if self.active.is_none() {
            let pack = Arc::new(Pack::create(&self.disk, &self.packs_dir, self.next_number)?);
            self.next_number += 1;
            self.dir_dirty = true;
            self.active = Some(Open { pack, end: PACK_HEADER_BYTES, entries: Vec::new() });
        }
        let Some(open) = &mut self.active else { unreachable!("made above") };
        open.pack.append(open.end, record.bytes)?;
        let entries: Vec<_> = record.entries(open.end).collect();
        open.end += record.bytes.len() as u64;
        open.entries.extend_from_slice(&entries);
        self.dirty = true;
        Ok((open.pack.clone(), entries))
    }

    /// The active pack takes no more records.
    pub(super) fn retire(&mut self) {
        self.full.extend(self.active.take());
        self.dirty = false;
    }

    /// Every pack from this number on is new: none before it takes another record.
    pub(super) fn begin_anew(&mut self) -> u32 {
        self.retire();
        self.next_number
    }

    /// The entries of a pack that is not sealed, sorted by chunk, then place.
    pub(super) fn unsealed_entries(&self, number: u32) -> Option<Vec<Entry>> {
        let open = self.full.iter().chain(&self.active).find(|open| open.pack.number == number)?;
        let mut entries = open.entries.clone();
        entries.sort_unstable_by_key(Entry::order);
        Some(entries)
    }

    /// A pack is about to leave the disk.
    pub(super) fn forget(&mut self, number: u32) {
        self.full.retain(|open| open.pack.number != number);
        self.sealed.retain(|pack| pack.number != number);
        self.dir_dirty = true;
    }

    pub(super) fn take_unsynced(&mut self) -> Unsynced {
        Unsynced {
            active: self.active.as_ref().filter(|_| mem::take(&mut self.dirty)).map(|open| open.pack.clone()),
            full: mem::take(&mut self.full),
            sealed: mem::take(&mut self.sealed),
            dir_dirty: mem::take(&mut self.dir_dirty),
        }
    }

    /// What [`Unsynced::seal`] gave.
    pub(super) fn give_back(&mut self, sealed: Vec<Arc<Pack>>, unsealed: Vec<Open>) {
        self.sealed.extend(sealed);
        self.full.extend(unsealed);
    }
}

impl Unsynced {
    /// Makes everything so far durable. Gives the packs that are now whole for good.
    pub(super) fn sync(&self, disk: &dyn Disk, packs_dir: &Path) -> Result<Vec<(u32, PackState)>, FileError> {
        let full = self.full.iter().map(|open| &open.pack);
        self.active.iter().chain(full).try_for_each(|pack| pack.settle().map(drop))?;
        let mut whole = Vec::new();
        for pack in &self.sealed {
            whole.extend(pack.settle()?.map(|len| (pack.number, PackState::Whole(len))));
        }
        if self.dir_dirty {
            files::sync_dir(disk, packs_dir)?;
        }
        Ok(whole)
    }

    /// Seals full packs, after their records are durable: an index must never vouch for bytes that a crash took. Gives
    /// those that are sealed now, and those that there was no room to seal; these lose nothing but a quicker opening.
    pub(super) fn seal(&mut self) -> (Vec<Arc<Pack>>, Vec<Open>) {
        let (mut sealed, mut unsealed) = (Vec::new(), Vec::new());
        for mut open in mem::take(&mut self.full) {
            match open.pack.seal(open.end, &mut open.entries) {
                Ok(()) => sealed.push(open.pack),
                Err(_) => unsealed.push(open),
            }
        }
        (sealed, unsealed)
    }
}
