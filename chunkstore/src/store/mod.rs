//! The chunk store: a directory of append-only packs, an index of them in a database, and named references. One process
//! at a time, any number of threads: reads and puts go on beside everything else. FORMAT.md has the bytes.
//!
//! What is put is durable after [`Store::sync`] or [`Store::publish`], not before, and no sync is ever done for a
//! single chunk. A crash loses at most what was put since. The store never changes or removes a chunk but in
//! [`Store::gc`]. Its memory does not grow with what it holds.

mod decoded;
mod error;
mod found;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod gc;
mod index;
mod live;
mod location;
mod pack;
mod pack_index;
mod pins;
pub(crate) mod record;
mod refs;
mod verify;
mod writer;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use bytes::Bytes;

pub use error::{IndexError, OpenError, StoreError};
pub use gc::{GcOptions, GcPlan, GcProgress, GcReport, PackPlan};
pub use pins::Pin;
pub(crate) use refs::check_name;
pub use verify::{BrokenReference, Scope, UnreadablePack, VerifyReport};

use crate::chunk::join;
use crate::disk::{Disk, RealDisk};
use crate::files::{self, DirLock, LockError};
use crate::spool::Spool;
use crate::sync::{lock, read, write};
use crate::{
    Chunk, ChunkId, Encoded, FileError, GROUP_BYTES, Group, LEVEL, MAX_CHUNK_BYTES, MAX_GROUP_BYTES,
    Manifest, ManifestExtent, ManifestWriter,
};
use decoded::Decoded;
use found::{FoundPacks, pack_numbers};
use index::{Flush, Index, PackRows, PackState};
use location::{Location, slice};
use pack::Pack;
use pins::Gate;
use record::{MAX_GROUP_CHUNKS, Record};
use writer::Writer;

/// A pack is sealed when it has grown to this.
const PACK_BYTES: u64 = 256 << 20;

/// What a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Stats {
    /// Chunks.
    pub chunks: u64,
    /// Their plain bytes.
    pub plain_bytes: u64,
    /// Their bytes as stored.
    pub stored_bytes: u64,
    /// Pack files.
    pub packs: u64,
    /// Named references.
    pub references: u64,
    /// Chunks whose bytes were found to be bad and that have not been put again.
    pub broken: u64,
}

/// A named reference.
#[derive(Debug)]
pub struct Reference {
    /// Its name.
    pub name: String,
    /// The image, or why it cannot be read.
    pub image: Result<Manifest, StoreError>,
}

/// A store, open. All methods take `&self`; locks are taken in the order of the fields.
pub struct Store {
    disk: Arc<dyn Disk>,
    packs_dir: PathBuf,
    refs_dir: PathBuf,
    /// Held while a collection runs.
    collecting: Mutex<()>,
    gate: Arc<Gate>,
    /// Held while references change.
    refs: Mutex<()>,
    /// Held by whoever makes puts durable, so that nobody believes to be durable what another is still syncing.
    syncing: Mutex<PackRows>,
    writer: Mutex<Writer>,
    index: Index,
    packs: RwLock<BTreeMap<u32, Arc<Pack>>>,
    decoded: Decoded,
    sync_failed: AtomicBool,
    warnings: Vec<String>,
    _lock: Option<DirLock>,
}

impl Store {
    /// Opens the store at `dir`, creating it if need be. After a crash this cuts half-written tails. Reads the packs that
    /// the index does not know, and all of them where there is no index or none that can be used. What else lies there is left
    /// alone; what is wrong with it is in [`warnings`](Store::warnings).
    pub fn open(dir: impl AsRef<Path>) -> Result<Store, OpenError> {
        Store::open_with(dir.as_ref(), PACK_BYTES)
    }

    fn open_with(dir: &Path, pack_bytes: u64) -> Result<Store, OpenError> {
        RealDisk.create_dir(dir).map_err(FileError::at("create the directory", dir))?;
        let lock = DirLock::acquire(dir).map_err(|error| match error {
            LockError::InUse { pid } => OpenError::InUse { dir: dir.to_owned(), pid },
            LockError::File(error) => OpenError::File(error),
        })?;
        let mut store = Store::open_on(Arc::new(RealDisk), dir, pack_bytes)?;
        store._lock = Some(lock);
        Ok(store)
    }

    /// On a disk that nobody else uses.
    fn open_on(disk: Arc<dyn Disk>, dir: &Path, pack_bytes: u64) -> Result<Store, OpenError> {
        let (packs_dir, refs_dir) = (dir.join("packs"), dir.join("refs"));
        for dir in [dir, &packs_dir, &refs_dir] {
            disk.create_dir(dir).map_err(FileError::at("create the directory", dir))?;
        }
        refs::remove_temporary(&*disk, &refs_dir)?;
        let mut numbers = pack_numbers(&*disk, &packs_dir)?;
        let mut warnings = Vec::new();
        let (mut index, state) = Index::open(&*disk, dir)?;
        let mut empty = state != index::Opened::Loaded;
        if let (index::Opened::Replaced(reason), false) = (&state, numbers.is_empty()) {
            warnings.push(rebuilding(dir, reason));
        }
        files::sync_dir(&*disk, dir)?;
        let mut found = FoundPacks::default();
        if !empty && !found.read(&disk, &packs_dir, &numbers, index.packs()?)? {
            warnings.push(rebuilding(dir, "it knows packs that are not there"));
            drop(index);
            index = Index::create(&*disk, &dir.join(index::FILE_NAME))?;
            files::sync_dir(&*disk, dir)?;
            empty = true;
        }
        if empty {
            found = FoundPacks::default();
            // The first reading may have removed what a crash left.
            numbers = pack_numbers(&*disk, &packs_dir)?;
            found.read(&disk, &packs_dir, &numbers, Default::default())?;
        }
        if let Err(error) = found.tell(&index, empty) {
            drop(index);
            if empty {
                // Half filled it would be believed by the next opening.
                files::remove(&*disk, &dir.join(index::FILE_NAME))?;
            }
            return Err(error);
        }
        warnings.append(&mut found.warnings);
        let next_number = numbers.last().map_or(1, |last| last.saturating_add(1));
        let FoundPacks { packs, unsealed, rows, .. } = found;
        Ok(Store {
            writer: Mutex::new(Writer::new(
                disk.clone(),
                packs_dir.clone(),
                pack_bytes,
                next_number,
                unsealed,
            )),
            disk,
            packs_dir,
            refs_dir,
            collecting: Mutex::new(()),
            gate: Arc::default(),
            refs: Mutex::new(()),
            syncing: Mutex::new(rows),
            index,
            packs: RwLock::new(packs),
            decoded: Decoded::default(),
            sync_failed: AtomicBool::new(false),
            warnings,
            _lock: None,
        })
    }

    /// What was found to be wrong when it was opened, for the person who looks after it. The store works all the same.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Is the chunk here? An index that cannot be read has it not: it is then put once more. Hold a [`Pin`] while it
    /// matters that the answer stays true.
    pub fn contains(&self, id: &ChunkId) -> bool {
        self.index.get(id).is_ok_and(|location| location.is_some())
    }

    /// The chunk's bytes, checked against its name: perhaps a slice of the group it lies in, which stays in memory as
    /// long as one slice of it does.
    pub fn get(&self, id: &ChunkId) -> Result<Bytes, StoreError> {
        let (plain, location, pack) = self.reading(id, |pack, location| self.plain(pack, location))?;
        match plain {
            Some(plain) if ChunkId::of(&plain) == *id => Ok(plain),
            _ => Err(self.damaged(id, location, &pack)),
        }
    }

    /// Reads with `read` what lies where the chunk is, and gives that place too.
    fn reading<T>(
        &self,
        id: &ChunkId,
        read: impl Fn(&Pack, &Location) -> Result<T, FileError>,
    ) -> Result<(T, Location, Arc<Pack>), StoreError> {
        let mut last = None;
        loop {
            let (location, pack) = self.locate(id)?;
            match read(&pack, &location) {
                Ok(found) => return Ok((found, location, pack)),
                // A collection has moved it, and then removed the pack's file, since it was looked up.
                Err(error) if error.is_absent() && last.replace(location) != Some(location) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What lies there, not checked; `None` when it cannot be decoded.
    fn plain(&self, pack: &Pack, location: &Location) -> Result<Option<Bytes>, FileError> {
        enum Read {
            Chunk(Bytes),
            Group(Bytes),
        }
        if let Some(group) = self.decoded.get(location.record()) {
            return Ok(slice(&group, location));
        }
        let read = pack.with_record(location.offset, |bytes| {
            let Some(record) = Record::parse(bytes) else { return Ok(None) };
            Ok(match record.plain() {
                Some(plain) => plain.get(location.range()).map(Bytes::copy_from_slice).map(Read::Chunk),
                None => record.decode_intact()?.map(Read::Group),
            })
        })?;
        Ok(match read {
            Some(Read::Group(group)) => {
                let plain = slice(&group, location);
                if group.len() > location.plain_len as usize {
                    self.decoded.add(location.record(), group);
                }
                plain
            }
            Some(Read::Chunk(plain)) => Some(plain),
            None => None,
        })
    }

    /// The first of the `wanted` chunks, given with their lengths, as one group, and how many they are: as it lies in its
    /// pack where they are together there, compressed anew at zstd `level` otherwise. A group that is passed on as it
    /// lies is checked by checksum against decay on the disk, not against names: who decodes it does that.
    pub fn group(&self, wanted: &[(ChunkId, u32)], level: i32) -> Result<(usize, Encoded), StoreError> {
        if let Some(whole) = self.whole_group(wanted)? {
            return Ok(whole);
        }
        let (mut plain, mut count) = (Vec::new(), 0);
        for (id, len) in wanted {
            let bytes = self.get(id)?;
            // Somebody else's word on the length is not covered by the chunk's name.
            if bytes.len() != *len as usize {
                return Err(StoreError::OtherLength { id: *id, len: bytes.len() as u32, claimed: *len });
            }
            plain.extend_from_slice(&bytes);
            count += 1;
            let full = plain.len() >= GROUP_BYTES || count == MAX_GROUP_CHUNKS;
            if full || self.whole_group(&wanted[count..])?.is_some() {
                break;
            }
        }
        Ok((count, Encoded::encode(plain.into(), level)))
    }

    /// The group that the first of these chunks make up, if they do.
    fn whole_group(&self, wanted: &[(ChunkId, u32)]) -> Result<Option<(usize, Encoded)>, StoreError> {
        let Some((first, _)) = wanted.first() else { return Ok(None) };
        let (group, _, _) = self.reading(first, |pack, location| {
            if location.start > 0 {
                return Ok(None);
            }
            pack.with_record(location.offset, |bytes| {
                let Some(record) = Record::parse(bytes) else { return Ok(None) };
                let count = record.chunks().count();
                let same =
                    wanted.get(..count).is_some_and(|wanted| record.chunks().eq(wanted.iter().copied()));
                Ok((same && record.is_intact()).then(|| (count, record.encoded())))
            })
        })?;
        Ok(group)
    }

    /// Adds a chunk, compressing it when that pays; `false` when it is here already, which costs a look into the index.
    pub fn put(&self, id: &ChunkId, data: &[u8]) -> Result<bool, StoreError> {
        if self.contains(id) {
            return Ok(false);
        }
        check_length(data.len())?;
        self.put_named(id, Group::of(vec![Chunk::of(Bytes::copy_from_slice(data))]))
    }

    /// Adds a chunk as it came from a peer, after decoding it and checking its name; `false` when it is here
    /// already, which is not checked again.
    pub fn put_encoded(&self, id: &ChunkId, encoded: Encoded) -> Result<bool, StoreError> {
        if self.contains(id) {
            return Ok(false);
        }
        let lens = [encoded.plain_len];
        let group = Group::decode(encoded, &lens);
        self.put_named(id, group.map_err(|source| StoreError::Undecodable { id: *id, source })?)
    }

    fn put_named(&self, id: &ChunkId, group: Group) -> Result<bool, StoreError> {
        if group.chunks().iter().any(|chunk| chunk.id() != *id) {
            return Err(StoreError::WrongContent { id: *id });
        }
        Ok(self.put_group(&group, LEVEL)? > 0)
    }

    /// Adds chunks: as they came, when none of them is here yet; otherwise those that are not, compressed together at
    /// zstd `level` where that pays. Gives how many they were.
    pub fn put_group(&self, group: &Group, level: i32) -> Result<usize, StoreError> {
        let chunks = group.chunks();
        chunks.iter().try_for_each(|chunk| check_length(chunk.plain().len()))?;
        let mut seen = HashSet::with_capacity(chunks.len());
        let absent: Vec<&Chunk> =
            chunks.iter().filter(|chunk| !self.contains(&chunk.id()) && seen.insert(chunk.id())).collect();
        if let (Some(encoded), true) = (group.encoded(), absent.len() == chunks.len())
            && (1..=MAX_GROUP_CHUNKS).contains(&absent.len())
        {
            return self.append(&absent, &record::encode_chunks(&absent, encoded));
        }
        let mut added = 0;
        for together in in_groups(&absent) {
            let all = group.plain().filter(|_| together.len() == chunks.len());
            let plain = all.cloned().unwrap_or_else(|| join(together));
            added += self.append(together, &record::compress_chunks(together, &plain, level))?;
        }
        Ok(added)
    }

    /// Appends the record of these chunks if one of them is not here; gives how many were not.
    fn append(&self, chunks: &[&Chunk], record: &[u8]) -> Result<usize, StoreError> {
        let added = {
            let mut writer = lock(&self.writer);
            let absent: Vec<bool> = chunks.iter().map(|chunk| !self.contains(&chunk.id())).collect();
            if absent.contains(&true) {
                for ((id, location), absent) in
                    self.append_record(&mut writer, record)?.into_iter().zip(&absent)
                {
                    match absent {
                        true => self.index.add(&id, location),
                        false => self.index.set(&id, location)?,
                    }
                }
            }
            absent.into_iter().filter(|absent| *absent).count()
        };
        if self.index.pending() >= index::MAX_PENDING {
            self.sync()?;
        }
        Ok(added)
    }

    /// Gives where the record's chunks lie now. The caller holds the writer until the index has what of it is to count,
    /// so what is in the index and not in `writer` any more is what the next sync covers.
    fn append_record(
        &self,
        writer: &mut Writer,
        record: &[u8],
    ) -> Result<Vec<(ChunkId, Location)>, StoreError> {
        let record = Record::parse(record).expect("it was made or read just now");
        let (pack, entries) = writer.append(&record)?;
        let number = pack.number;
        write(&self.packs).entry(number).or_insert(pack);
        Ok(entries.iter().map(|entry| (entry.id, Location::of(number, entry))).collect())
    }

    /// Makes everything put so far durable.
    pub fn sync(&self) -> Result<(), StoreError> {
        let mut rows = lock(&self.syncing);
        self.make_durable(&mut rows, index::MAX_PENDING, &[])
    }

    /// Syncs, and writes the index when it has that many changes. The index is written after what it points to. The packs
    /// `gone` are not needed any more, whatever comes of them in the same sync.
    fn make_durable(
        &self,
        rows: &mut PackRows,
        flush_at: usize,
        gone: &[Arc<Pack>],
    ) -> Result<(), StoreError> {
        if self.sync_failed.load(Ordering::Acquire) {
            return Err(StoreError::SyncFailed);
        }
        let (mut due, flush) = {
            let mut writer = lock(&self.writer);
            let flush = (self.index.pending() >= flush_at).then(|| self.index.take_pending());
            (writer.take_unsynced(), flush)
        };
        let synced = due.sync(&*self.disk, &self.packs_dir);
        if synced.is_err() {
            // The kernel reports a lost write once and then forgets it.
            self.sync_failed.store(true, Ordering::Release);
        }
        rows.extend(synced?);
        rows.extend(gone.iter().map(|pack| (pack.number, PackState::Gone)));
        let (sealed, unsealed) = due.seal();
        lock(&self.writer).give_back(sealed, unsealed);
        if let Some(flush) = flush {
            self.flush(rows, &flush);
        }
        Ok(())
    }

    /// What cannot be written (the disk may be full) stays in memory until the next time; the packs have it anyway.
    fn flush(&self, rows: &mut PackRows, flush: &Flush) {
        if self.index.commit(flush, rows).is_ok() {
            rows.clear();
        }
    }

    /// Publishes an image under `name`, in place of what had that name: syncs, then replaces the reference in one
    /// step. All its chunks must be here.
    pub fn publish(&self, name: &str, manifest: &Manifest) -> Result<(), StoreError> {
        self.publish_all(&[(name, manifest)], true)
    }

    /// Publishes images one after the other, after one sync. None of them when one is not to replace what has its name.
    pub(crate) fn publish_all(&self, images: &[(&str, &Manifest)], replace: bool) -> Result<(), StoreError> {
        images.iter().try_for_each(|(name, _)| check_name(name))?;
        // From the look at their chunks to the references that keep them nothing may be collected.
        let _pin = self.pin();
        for extent in images.iter().flat_map(|(_, manifest)| manifest.extents()) {
            if let ManifestExtent::Data { len, id } = extent {
                let location = self.index.get(&id)?.ok_or(StoreError::Missing { id })?;
                if location.plain_len != len {
                    return Err(StoreError::OtherLength { id, len: location.plain_len, claimed: len });
                }
            }
        }
        self.sync()?;
        let _refs = lock(&self.refs);
        if !replace {
            self.check_free(images.iter().map(|(name, _)| *name))?;
        }
        for (name, manifest) in images {
            self.keep_chunks_of(name)?;
            refs::publish(&*self.disk, &self.refs_dir, name, manifest)?;
        }
        Ok(())
    }

    /// No image has any of these names.
    pub(crate) fn check_free<'a>(&self, mut names: impl Iterator<Item = &'a str>) -> Result<(), StoreError> {
        let taken = self.names()?;
        match names.find(|name| taken.binary_search_by(|taken| taken.as_str().cmp(name)).is_ok()) {
            Some(name) => Err(StoreError::Exists { name: name.to_owned() }),
            None => Ok(()),
        }
    }

    /// Begins the manifest of an image whose chunks are put here.
    pub fn manifest_writer(&self) -> Result<ManifestWriter, StoreError> {
        Ok(ManifestWriter::new(self.disk.clone(), &self.refs_dir)?)
    }

    /// A temporary file of the store, for what is about to become a manifest.
    pub(crate) fn spool(&self) -> Spool {
        Spool::new(self.disk.clone(), &self.refs_dir)
    }

    /// The image published under `name`.
    pub fn manifest(&self, name: &str) -> Result<Manifest, StoreError> {
        refs::load(&*self.disk, &self.refs_dir, name)
    }

    /// All published names, sorted.
    pub fn names(&self) -> Result<Vec<String>, StoreError> {
        refs::names(&*self.disk, &self.refs_dir)
    }

    /// All references, by name.
    pub fn references(&self) -> Result<Vec<Reference>, StoreError> {
        let named = self.names()?.into_iter().map(|name| Reference { image: self.manifest(&name), name });
        // Removed meanwhile.
        let there = named.filter(|found| !matches!(found.image, Err(StoreError::UnknownName { .. })));
        Ok(there.collect())
    }

    /// Removes a reference. Its chunks stay until the next [`gc`](Store::gc).
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        let _refs = lock(&self.refs);
        self.keep_chunks_of(name)?;
        refs::remove(&*self.disk, &self.refs_dir, name)
    }

    /// What is here.
    pub fn stats(&self) -> Result<Stats, StoreError> {
        let sums = self.index.sums();
        Ok(Stats {
            chunks: sums.chunks,
            plain_bytes: sums.plain_bytes,
            stored_bytes: sums.stored_bytes,
            packs: read(&self.packs).len() as u64,
            references: self.names()?.len() as u64,
            broken: self.index.broken()?.len() as u64,
        })
    }

    /// Where the chunk lies, and the pack.
    fn locate(&self, id: &ChunkId) -> Result<(Location, Arc<Pack>), StoreError> {
        let mut last = None;
        loop {
            let location = self.index.get(id)?.ok_or(StoreError::Missing { id: *id })?;
            if let Some(pack) = read(&self.packs).get(&location.pack) {
                return Ok((location, pack.clone()));
            }
            // A collection has moved it, and then removed the pack, between the two looks.
            if last.replace(location) == Some(location) {
                return Err(StoreError::Missing { id: *id });
            }
        }
    }

    /// Marks a chunk whose bytes are bad, so that it is not served and the next put stores it anew.
    fn damaged(&self, id: &ChunkId, location: Location, pack: &Pack) -> StoreError {
        self.decoded.forget(location.record());
        match self.index.set_broken(id, location) {
            Ok(()) => StoreError::Damaged { id: *id, path: pack.path.clone() },
            Err(error) => error.into(),
        }
    }
}

fn rebuilding(dir: &Path, reason: &str) -> String {
    let path = dir.join(index::FILE_NAME);
    format!("the index {} could not be used ({reason}): it was made again from the packs", path.display())
}

/// Chunks in the groups that they are compressed in: a group takes no more when it has [`GROUP_BYTES`], but what fits into one stays
/// together.
fn in_groups<'a, 'b>(mut chunks: &'a [&'b Chunk]) -> impl Iterator<Item = &'a [&'b Chunk]> {
    std::iter::from_fn(move || {
        let all: usize = chunks.iter().map(|chunk| chunk.plain().len()).sum();
        let mut bytes = 0;
        let full = chunks.iter().position(|chunk| {
            bytes += chunk.plain().len();
            bytes >= GROUP_BYTES && all > MAX_GROUP_BYTES
        });
        let count = full.map_or(chunks.len(), |last| last + 1).min(MAX_GROUP_CHUNKS);
        let (group, rest) = chunks.split_at(count);
        chunks = rest;
        (!group.is_empty()).then_some(group)
    })
}

fn check_length(len: usize) -> Result<(), StoreError> {
    if (1..=MAX_CHUNK_BYTES).contains(&len) { Ok(()) } else { Err(StoreError::BadLength { len }) }
}

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod group_tests;
#[cfg(test)]
mod tests;
