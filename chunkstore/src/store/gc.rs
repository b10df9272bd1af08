//! Giving back the room of chunks that no reference reaches. Packs with little left in them are rewritten. It never
//! runs beside a job that is about to refer to chunks: such a job holds a [`Pin`].

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::{Location, Pack, Store, StoreError, record};
use crate::sync::{lock, read, write};
use crate::{ChunkId, FileError, files};

/// What a collection did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct GcReport {
    /// Chunks that are gone.
    pub chunks_removed: u64,
    /// Packs that are gone, rewritten ones included.
    pub packs_removed: u64,
    /// Packs whose last chunks moved to another one.
    pub packs_rewritten: u64,
    /// Bytes of pack files given back.
    pub bytes_freed: u64,
}

/// While it lives, no chunk is collected. Hold one from the first question what the store has until the reference
/// that needs the answer is published.
pub struct Pin {
    gate: Arc<Gate>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        lock(&self.gate.state).pins -= 1;
        self.gate.changed.notify_all();
    }
}

#[derive(Default)]
pub(super) struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    pins: usize,
    collecting: bool,
}

/// A pack and the live chunks in it.
type PackUse = (Arc<Pack>, Vec<(ChunkId, Location)>);

struct Collecting<'a>(&'a Gate);

impl Gate {
    fn collect(&self) -> Collecting<'_> {
        let state = lock(&self.state);
        let mut state = self
            .changed
            .wait_while(state, |state| state.collecting || state.pins > 0)
            .unwrap_or_else(PoisonError::into_inner);
        state.collecting = true;
        Collecting(self)
    }
}

impl Drop for Collecting<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).collecting = false;
        self.0.changed.notify_all();
    }
}

impl Store {
    /// Keeps the collector out until the pin is dropped; waits for one that is running.
    pub fn pin(&self) -> Pin {
        let state = lock(&self.gate.state);
        let mut state = self
            .gate
            .changed
            .wait_while(state, |state| state.collecting)
            .unwrap_or_else(PoisonError::into_inner);
        state.pins += 1;
        Pin { gate: self.gate.clone() }
    }

    /// Removes chunks that no reference reaches, as far as that empties a quarter of their pack. Waits until no pin
    /// is held (so never call it while holding one); pins wait for it. Refuses to work when a reference cannot be
    /// read, since its chunks would be lost.
    pub fn gc(&self) -> Result<GcReport, StoreError> {
        let _collecting = self.gate.collect();
        let live = self.live()?;
        let mut report = GcReport::default();
        // All are chosen before the first chunk moves: what moves must not land in a pack that is about to go.
        let obsolete = self.obsolete(&live)?;
        for (pack, kept) in &obsolete {
            report.packs_rewritten += u64::from(!kept.is_empty());
            for (id, location) in kept {
                self.relocate(id, *location, pack)?;
            }
        }
        // The copies must be durable before the originals go.
        self.sync()?;
        for (pack, kept) in obsolete {
            let kept_bytes: u64 = kept.iter().map(|(_, location)| location.record_bytes() as u64).sum();
            report.bytes_freed += pack.bytes()?.saturating_sub(kept_bytes);
            report.packs_removed += 1;
            report.chunks_removed += self.drop_pack(&pack)?;
        }
        files::sync_dir(&self.packs_dir)?;
        Ok(report)
    }

    /// Packs that are to go, with what is to be kept of them. None of them takes another chunk.
    fn obsolete(&self, live: &HashSet<ChunkId>) -> Result<Vec<PackUse>, StoreError> {
        // No chunk may come in between looking and choosing.
        let mut writer = lock(&self.writer);
        let mut obsolete = Vec::new();
        for (pack, kept) in self.by_pack(live) {
            let kept_bytes: u64 = kept.iter().map(|(_, location)| location.record_bytes() as u64).sum();
            if kept_bytes < pack.bytes()? / 4 * 3 {
                if writer.active_number() == Some(pack.number) {
                    writer.retire();
                }
                obsolete.push((pack, kept));
            }
        }
        Ok(obsolete)
    }

    fn live(&self) -> Result<HashSet<ChunkId>, StoreError> {
        let mut live = HashSet::new();
        for name in self.names()? {
            live.extend(self.manifest(&name)?.chunks());
        }
        Ok(live)
    }

    /// Every pack with the live chunks in it, in the order they lie there.
    fn by_pack(&self, live: &HashSet<ChunkId>) -> Vec<PackUse> {
        let mut kept: BTreeMap<u32, Vec<(ChunkId, Location)>> = BTreeMap::new();
        for (id, location) in read(&self.index).iter().filter(|(id, _)| live.contains(*id)) {
            kept.entry(location.pack).or_default().push((*id, *location));
        }
        let packs: Vec<_> = read(&self.packs).values().cloned().collect();
        packs
            .into_iter()
            .map(|pack| {
                let mut kept = kept.remove(&pack.number).unwrap_or_default();
                kept.sort_unstable_by_key(|(_, location)| location.offset);
                (pack, kept)
            })
            .collect()
    }

    /// Copies a record to the active pack. A bad one is left behind.
    fn relocate(&self, id: &ChunkId, location: Location, pack: &Pack) -> Result<(), StoreError> {
        let record = pack.with_record(location.offset, location.record_bytes(), |bytes| {
            record::parse_record(bytes, location.offset).map(|(entry, _)| (entry, bytes.to_vec()))
        })?;
        match record {
            Some((entry, bytes)) if entry.id == *id => {
                self.append_record(&mut lock(&self.writer), &bytes, entry)
            }
            _ => {
                self.forget(id, location);
                Ok(())
            }
        }
    }

    /// Removes a pack and everything the index still has in it; gives the number of those chunks.
    fn drop_pack(&self, pack: &Pack) -> Result<u64, StoreError> {
        let mut index = write(&self.index);
        let before = index.len();
        index.retain(|_, location| location.pack != pack.number);
        let removed = (before - index.len()) as u64;
        drop(index);
        write(&self.packs).remove(&pack.number);
        lock(&self.writer).forget(pack.number);
        std::fs::remove_file(&pack.path).map_err(FileError::at("remove the pack", &pack.path))?;
        Ok(removed)
    }
}
