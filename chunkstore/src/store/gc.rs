//! Giving back the room of chunks that no reference reaches, while everything else goes on. Packs with too much waste in
//! them are rewritten: what is needed is copied into new packs, then the old one goes.
//!
//! A collection never removes what a running job counts on, in this way:
//! 1. From its beginning every chunk that anybody asks for, and every chunk of a reference that is replaced or removed,
//!    is noted as live. New chunks go to new packs, which this collection leaves alone.
//! 2. It waits for the jobs that began before (their [`Pin`]s): what they asked for was not noted, but is referred to by
//!    the time they end, or not needed. Later jobs do not wait for it, nor it for them.
//! 3. It notes all chunks of all references.
//! 4. Pack by pack it copies what is live, and forgets the rest, looking at the note once more at the same moment.
//!    Copies are durable before the pack is removed.

use std::collections::HashMap;
use std::mem;
use std::ops::ControlFlow;
use std::sync::{Arc, TryLockError};

use bytes::Bytes;

use super::index::Seen;
use super::live::LiveSet;
use super::location::{Location, slice};
use super::pins::Pin;
use super::record::Record;
use super::{Pack, Store, StoreError, in_groups, pack, record};
use crate::chunk::join;
use crate::sync::{lock, read, write};
use crate::{Chunk, ChunkId, GROUP_BYTES, LEVEL, files};

/// How a collection is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct GcOptions {
    /// A pack is rewritten when this many percent of it are not needed any more; 1 to 100.
    pub waste_percent: u8,
}

impl Default for GcOptions {
    /// A quarter: beyond that the room is worth the copying.
    fn default() -> GcOptions {
        GcOptions { waste_percent: 25 }
    }
}

/// What a collection would do.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct GcPlan {
    /// Chunks in the store.
    pub chunks: u64,
    /// Of those, needed by no reference. Some of them stay in packs with little waste.
    pub chunks_dead: u64,
    /// Their bytes in packs.
    pub bytes_dead: u64,
    /// Bytes to be copied into new packs.
    pub bytes_to_copy: u64,
    /// Bytes that the store's files will be less.
    pub bytes_to_free: u64,
    /// The packs that go, by number.
    pub packs: Vec<PackPlan>,
}

/// A pack that is to go.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct PackPlan {
    /// Its number.
    pub number: u32,
    /// Length of its file.
    pub bytes: u64,
    /// Bytes of it that are copied into a new pack first.
    pub live_bytes: u64,
    /// The chunks in them.
    pub live_chunks: u64,
}

/// What a collection did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct GcReport {
    /// Chunks that are gone.
    pub chunks_removed: u64,
    /// Chunks that moved to another pack.
    pub chunks_moved: u64,
    /// Chunks that were needed and whose bytes are bad: they have to be fetched again.
    pub chunks_damaged: u64,
    /// Packs that are gone, rewritten ones included.
    pub packs_removed: u64,
    /// Packs whose last chunks moved to another one.
    pub packs_rewritten: u64,
    /// Bytes of pack files given back.
    pub bytes_freed: u64,
}

/// How far a collection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GcProgress {
    /// It waits for this many jobs that were there before it.
    Waiting(usize),
    /// It reads references: done, of all.
    Marking(u64, u64),
    /// It goes through the packs that are to go: bytes done, of all.
    Sweeping(u64, u64),
}

/// What the caller of a collection gets to see, and how it stops one.
pub(super) type Watch<'a> = &'a dyn Fn(GcProgress) -> ControlFlow<()>;

fn go_on(watch: Watch<'_>, progress: GcProgress) -> Result<(), StoreError> {
    if watch(progress).is_break() { Err(StoreError::Stopped) } else { Ok(()) }
}

/// Ends the noting of what is asked for, however the collection ends.
struct Noting<'a>(&'a Store, Arc<LiveSet>);

impl Drop for Noting<'_> {
    fn drop(&mut self) {
        self.0.index.keep_in(None);
    }
}

impl Store {
    /// Keeps what is found from now on from being collected, until the pin is dropped. Never waits.
    pub fn pin(&self) -> Pin {
        self.gate.pin()
    }

    /// Removes chunks that no reference reaches, as far as that empties enough of their pack. Everything else goes on
    /// meanwhile; it waits for pins that are there when it begins (so never call it while holding one). Refuses to work
    /// when a reference cannot be read, since its chunks would be lost. When it is stopped or fails, nothing is lost.
    pub fn gc(&self, options: &GcOptions, watch: Watch<'_>) -> Result<GcReport, StoreError> {
        let _one = self.begin_collection()?;
        let noting = self.note_what_is_asked_for();
        let new_from = lock(&self.writer).begin_anew();
        self.gate.wait_for_older(|older| go_on(watch, GcProgress::Waiting(older)))?;
        self.mark(&noting.1, watch)?;
        let plan = self.plan(&noting.1, new_from, options)?;
        self.sweep(&plan, &noting.1, watch)
    }

    /// What [`gc`](Store::gc) would do now.
    pub fn gc_plan(&self, options: &GcOptions, watch: Watch<'_>) -> Result<GcPlan, StoreError> {
        let _one = self.begin_collection()?;
        let live = LiveSet::for_chunks(self.index.sums().chunks);
        self.mark(&live, watch)?;
        self.plan(&live, u32::MAX, options)
    }

    fn begin_collection(&self) -> Result<std::sync::MutexGuard<'_, ()>, StoreError> {
        match self.collecting.try_lock() {
            Ok(guard) => Ok(guard),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => Err(StoreError::Collecting),
        }
    }

    fn note_what_is_asked_for(&self) -> Noting<'_> {
        // No reference may go between the noting and the marking without being noted.
        let _refs = lock(&self.refs);
        let live = Arc::new(LiveSet::for_chunks(self.index.sums().chunks));
        self.index.keep_in(Some(live.clone()));
        Noting(self, live)
    }

    /// Before a reference goes: a job may have read it, and a running collection not yet.
    pub(super) fn keep_chunks_of(&self, name: &str) -> Result<(), StoreError> {
        let Some(live) = self.index.live() else { return Ok(()) };
        match self.manifest(name) {
            Ok(manifest) => manifest.chunks().for_each(|id| live.add(&id)),
            // New, or nothing that a job could have read.
            Err(StoreError::UnknownName { .. } | StoreError::BadReference { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn mark(&self, live: &LiveSet, watch: Watch<'_>) -> Result<(), StoreError> {
        let names = self.names()?;
        for (done, name) in (0..).zip(&names) {
            go_on(watch, GcProgress::Marking(done, names.len() as u64))?;
            match self.manifest(name) {
                Ok(manifest) => manifest.chunks().for_each(|id| live.add(&id)),
                // Removed meanwhile; then its chunks were noted.
                Err(StoreError::UnknownName { .. }) if !self.names()?.contains(name) => {}
                Err(source) => {
                    return Err(StoreError::CannotCollect { name: name.clone(), source: Box::new(source) });
                }
            }
        }
        Ok(())
    }

    fn plan(&self, live: &LiveSet, new_from: u32, options: &GcOptions) -> Result<GcPlan, StoreError> {
        let mut plan = GcPlan::default();
        let mut kept: HashMap<u32, (u64, u64)> = HashMap::new();
        self.index.each(|id, location| {
            plan.chunks += 1;
            let bytes = location.record_bytes();
            if live.contains(id) {
                let (live_bytes, live_chunks) = kept.entry(location.pack).or_default();
                *live_bytes += bytes;
                *live_chunks += 1;
            } else {
                plan.chunks_dead += 1;
                plan.bytes_dead += bytes;
            }
        })?;
        let packs: Vec<_> = read(&self.packs).range(..new_from).map(|(_, pack)| pack.clone()).collect();
        for pack in packs {
            let (live_bytes, live_chunks) = kept.get(&pack.number).copied().unwrap_or_default();
            let bytes = pack.bytes()?;
            let waste = bytes.saturating_sub(live_bytes);
            if live_chunks == 0 || waste * 100 >= bytes * u64::from(options.waste_percent.clamp(1, 100)) {
                plan.bytes_to_copy += live_bytes;
                plan.bytes_to_free += waste;
                plan.packs.push(PackPlan { number: pack.number, bytes, live_bytes, live_chunks });
            }
        }
        Ok(plan)
    }

    fn sweep(&self, plan: &GcPlan, live: &LiveSet, watch: Watch<'_>) -> Result<GcReport, StoreError> {
        let mut report = GcReport::default();
        let all: u64 = plan.packs.iter().map(|pack| pack.bytes).sum();
        let mut done = 0;
        // In groups, so that room is given back before all of it is needed for copies, and syncs are few.
        for group in plan.packs.chunk_by(|a, b| a.number / GROUP_PACKS == b.number / GROUP_PACKS) {
            let mut emptied = Vec::new();
            for planned in group {
                go_on(watch, GcProgress::Sweeping(done, all))?;
                done += planned.bytes;
                let Some(pack) = read(&self.packs).get(&planned.number).cloned() else { continue };
                let moved = self.empty(&pack, live, &mut report)?;
                report.packs_rewritten += u64::from(moved);
                emptied.push(pack);
            }
            for (id, pack) in self.index.broken()? {
                if emptied.iter().any(|emptied| emptied.number == pack) && !live.contains(&id) {
                    self.index.forget_broken(&id)?;
                }
            }
            self.drop_packs(&emptied, &mut report)?;
        }
        Ok(report)
    }

    /// Moves what is live out of a pack and forgets the rest. `true` when something moved.
    fn empty(&self, pack: &Pack, live: &LiveSet, report: &mut GcReport) -> Result<bool, StoreError> {
        let (mut needed, mut dead) = (Vec::new(), Vec::new());
        let (here, seen) = self.here(pack)?;
        for (id, location) in here {
            if live.contains(&id) { needed.push((id, location)) } else { dead.push((id, location)) }
        }
        let candidates = dead.len();
        // Somebody may have asked for one of them since.
        let late = self.index.collect(dead, seen)?;
        report.chunks_removed += (candidates - late.len()) as u64;
        needed.extend(late);
        needed.sort_unstable_by_key(|(_, location)| location.order());
        let mut rest = Rest { seen, chunks: Vec::new(), bytes: 0, damaged: 0 };
        for record in needed.chunk_by(|(_, a), (_, b)| a.offset == b.offset) {
            report.chunks_moved += self.relocate(record, pack, &mut rest)? as u64;
            if rest.bytes >= GROUP_BYTES {
                self.append_rest(&mut rest)?;
            }
        }
        self.append_rest(&mut rest)?;
        report.chunks_damaged += rest.damaged;
        Ok(!needed.is_empty())
    }

    /// The chunks of which this pack holds the copy that counts.
    pub(super) fn here(&self, pack: &Pack) -> Result<(Vec<(ChunkId, Location)>, Seen), StoreError> {
        // While a sync seals a pack, its entries are neither with the writer nor in the file: it would pass for empty, and be
        // removed with all that is needed of it.
        let (unsealed, sealed) = {
            let _no_sync = lock(&self.syncing);
            (lock(&self.writer).unsealed_entries(pack.number), pack.entries()?)
        };
        let entries = sealed.unwrap_or_else(|| Box::new(unsealed.unwrap_or_default().into_iter().map(Ok)));
        self.index.counting(pack.number, entries)
    }

    /// Moves chunks of one record: as it is when all of it is needed, otherwise by adding them to the `rest`. Gives how
    /// many are not bad: those are left behind, and marked.
    fn relocate(
        &self,
        chunks: &[(ChunkId, Location)],
        pack: &Pack,
        rest: &mut Rest,
    ) -> Result<usize, StoreError> {
        enum Read {
            Whole(Vec<u8>),
            Plain(Bytes),
            Bad,
        }
        let Some((_, first)) = chunks.first() else { return Ok(0) };
        let read = pack.with_record(first.offset, |bytes| {
            let Some(record) = Record::parse(bytes) else { return Ok(Read::Bad) };
            if record.is_current() && record.chunks().count() == chunks.len() && record.is_intact() {
                return Ok(Read::Whole(record.bytes.to_vec()));
            }
            Ok(record.decode_intact()?.map_or(Read::Bad, Read::Plain))
        })?;
        let plain = match read {
            Read::Whole(record) => {
                self.append_copy(&record, chunks.iter().map(|(id, location)| (*id, *location)), rest.seen)?;
                return Ok(chunks.len());
            }
            Read::Plain(plain) => plain,
            Read::Bad => Bytes::new(),
        };
        let mut moved = 0;
        for (id, location) in chunks {
            match slice(&plain, location).map(Chunk::of).filter(|chunk| chunk.id() == *id) {
                Some(chunk) => {
                    moved += 1;
                    rest.bytes += chunk.plain().len();
                    rest.chunks.push((chunk, *location));
                }
                None => {
                    rest.damaged += 1;
                    self.index.set_broken(id, *location)?;
                }
            }
        }
        Ok(moved)
    }

    /// Stores what is left of records, together.
    fn append_rest(&self, rest: &mut Rest) -> Result<(), StoreError> {
        rest.bytes = 0;
        let moved = mem::take(&mut rest.chunks);
        let chunks: Vec<&Chunk> = moved.iter().map(|(chunk, _)| chunk).collect();
        let mut from = moved.iter().map(|(chunk, location)| (chunk.id(), *location));
        for together in in_groups(&chunks) {
            let record = record::compress_chunks(together, &join(together), LEVEL);
            self.append_copy(&record, from.by_ref().take(together.len()), rest.seen)?;
        }
        Ok(())
    }

    /// Appends a record with chunks that lie elsewhere so far. One may have been found bad and put again meanwhile.
    fn append_copy(
        &self,
        record: &[u8],
        from: impl Iterator<Item = (ChunkId, Location)>,
        seen: Seen,
    ) -> Result<(), StoreError> {
        let mut writer = lock(&self.writer);
        let copies = self.append_record(&mut writer, record)?;
        for ((id, to), (_, from)) in copies.into_iter().zip(from) {
            self.index.relocate(&id, from, to, seen)?;
        }
        Ok(())
    }

    /// Removes packs in which nothing is needed any more.
    fn drop_packs(&self, packs: &[Arc<Pack>], report: &mut GcReport) -> Result<(), StoreError> {
        let mut rows = lock(&self.syncing);
        // The copies must be durable before the originals go, and the index must know that these are gone. After a crash in
        // between it meets them as packs it does not know: they are then collected once more.
        self.make_durable(&mut rows, 0, packs)?;
        for pack in packs {
            report.bytes_freed += pack.bytes()?;
            report.packs_removed += 1;
            write(&self.packs).remove(&pack.number);
            lock(&self.writer).forget(pack.number);
            files::remove(&*self.disk, &self.packs_dir.join(pack::file_name(pack.number)))?;
        }
        Ok(files::sync_dir(&*self.disk, &self.packs_dir)?)
    }
}

/// Chunks of records that go in part, on their way into new ones.
struct Rest {
    /// When they were seen where they are.
    seen: Seen,
    chunks: Vec<(Chunk, Location)>,
    bytes: usize,
    damaged: u64,
}

/// Packs are emptied this many numbers at a time: 2 GiB of copies at most before originals are removed.
const GROUP_PACKS: u32 = 8;
