//! The chunk store: a directory of append-only packs, an index of them in a database, and named references. One process
//! at a time, any number of threads: reads and puts go on beside everything else. FORMAT.md has the bytes.
//!
//! What is put is durable after [`Store::sync`] or [`Store::publish`], not before, and no sync is ever done for a
//! single chunk. A crash loses at most what was put since. The store never changes or removes a chunk but in
//! [`Store::gc`]. Its memory does not grow with what it holds.

mod error;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod gc;
mod index;
mod live;
mod pack;
pub(crate) mod record;
mod refs;
mod verify;
mod writer;

use std::collections::{BTreeMap, HashMap};
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use bytes::Bytes;

pub use error::{OpenError, StoreError};
pub use gc::{GcOptions, GcPlan, GcProgress, GcReport, PackPlan, Pin};
pub use index::IndexError;
pub(crate) use refs::check_name;
pub use verify::{BrokenReference, Scope, VerifyReport};

use crate::disk::{Disk, RealDisk};
use crate::encoded::{compress, decode};
use crate::files::{self, DirLock, LockError};
use crate::sync::{lock, read, write};
use crate::{Chunk, ChunkId, Codec, Encoded, FileError, MAX_CHUNK_BYTES, Manifest};
use gc::Gate;
use index::{Flush, Index, PackState};
use pack::{Found, Pack};
use record::Entry;
use writer::{Open, Writer};

/// A pack is sealed when it has grown to this.
const PACK_BYTES: u64 = 256 << 20;

/// zstd level of what is put plain: about the fastest that still compresses.
const LEVEL: i32 = 1;

/// Where a chunk lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Location {
    pack: u32,
    codec: Codec,
    plain_len: u32,
    stored_len: u32,
    offset: u64,
}

impl Location {
    fn of(pack: u32, entry: &Entry) -> Location {
        let Entry { id: _, offset, codec, plain_len, stored_len } = *entry;
        Location { pack, codec, plain_len, stored_len, offset }
    }

    fn record_bytes(&self) -> usize {
        record::RECORD_HEADER_BYTES + self.stored_len as usize
    }

    /// Of two places of one chunk the later one holds: it was put again because the first was bad, or moved.
    fn order(&self) -> (u32, u64) {
        (self.pack, self.offset)
    }

    /// Lengths that a chunk can have.
    fn lengths_fit(&self) -> bool {
        (1..=MAX_CHUNK_BYTES).contains(&(self.plain_len as usize))
            && (1..=self.plain_len).contains(&self.stored_len)
    }
}

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
    syncing: Mutex<Rows>,
    writer: Mutex<Writer>,
    index: Index,
    packs: RwLock<BTreeMap<u32, Arc<Pack>>>,
    sync_failed: AtomicBool,
    _lock: Option<DirLock>,
}

/// What became of packs, to be told to the index when it is next written.
type Rows = Vec<(u32, PackState)>;

impl Store {
    /// Opens the store at `dir`, creating it if need be. After a crash this cuts half-written tails. Reads the packs that
    /// the index does not know, and all of them where there is no index.
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
        let numbers = pack_numbers(&*disk, &packs_dir)?;
        let (mut index, mut empty) = Index::open(&*disk, dir)?;
        files::sync_dir(&*disk, dir)?;
        let mut found = FoundPacks::default();
        if !empty && !found.read(&disk, &packs_dir, &numbers, index.packs()?)? {
            drop(index);
            index = Index::create(&*disk, &dir.join(index::FILE_NAME))?;
            files::sync_dir(&*disk, dir)?;
            empty = true;
        }
        if empty {
            found = FoundPacks::default();
            found.read(&disk, &packs_dir, &numbers, Default::default())?;
        }
        found.tell(&index, empty)?;
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
            sync_failed: AtomicBool::new(false),
            _lock: None,
        })
    }

    /// Is the chunk here? An index that cannot be read has it not: it is then put once more. Hold a [`Pin`] while it
    /// matters that the answer stays true.
    pub fn contains(&self, id: &ChunkId) -> bool {
        self.index.get(id).is_ok_and(|location| location.is_some())
    }

    /// The chunk's bytes, checked against its name.
    pub fn get(&self, id: &ChunkId) -> Result<Bytes, StoreError> {
        let (location, pack) = self.locate(id)?;
        let plain = pack.with_record(location.offset, location.record_bytes(), |bytes| {
            let (entry, _) = record::parse_header(bytes, location.offset)?;
            let payload = &bytes[record::RECORD_HEADER_BYTES..];
            if entry.id != *id {
                return None;
            }
            decode(location.codec, location.plain_len, payload, MAX_CHUNK_BYTES).ok()
        })?;
        match plain {
            Some(plain) if ChunkId::of(&plain) == *id => Ok(plain.into()),
            _ => Err(self.damaged(id, location, &pack)),
        }
    }

    /// The chunk as it lies in its pack, to be sent on without compressing it again. Checked by checksum against
    /// decay on the disk, not against its name: who decodes it does that.
    pub fn get_encoded(&self, id: &ChunkId) -> Result<Encoded, StoreError> {
        let (location, pack) = self.locate(id)?;
        let payload = pack.with_record(location.offset, location.record_bytes(), |bytes| {
            let (entry, payload) = record::parse_record(bytes, location.offset)?;
            (entry.id == *id).then(|| Bytes::copy_from_slice(payload))
        })?;
        match payload {
            Some(bytes) => Ok(Encoded { codec: location.codec, plain_len: location.plain_len, bytes }),
            None => Err(self.damaged(id, location, &pack)),
        }
    }

    /// Adds a chunk, compressing it when that pays; `false` when it is here already, which costs a look into memory.
    pub fn put(&self, id: &ChunkId, data: &[u8]) -> Result<bool, StoreError> {
        if self.contains(id) {
            return Ok(false);
        }
        check_length(data.len())?;
        if ChunkId::of(data) != *id {
            return Err(StoreError::WrongContent { id: *id });
        }
        match compress(data, LEVEL) {
            Some(payload) => self.append(id, Codec::Zstd, data.len() as u32, &payload),
            None => self.append(id, Codec::Raw, data.len() as u32, data),
        }
    }

    /// Adds a chunk as it came from a peer, after decoding it and checking its name; `false` when it is here
    /// already, which is not checked again.
    pub fn put_encoded(&self, id: &ChunkId, encoded: &Encoded) -> Result<bool, StoreError> {
        if self.contains(id) {
            return Ok(false);
        }
        check_length(encoded.plain_len as usize)?;
        let plain =
            encoded.decode(MAX_CHUNK_BYTES).map_err(|source| StoreError::Undecodable { id: *id, source })?;
        if ChunkId::of(&plain) != *id {
            return Err(StoreError::WrongContent { id: *id });
        }
        // A frame that gained nothing is legal to send, but not to keep.
        match encoded.codec {
            Codec::Zstd if encoded.bytes.len() >= plain.len() => self.put(id, &plain),
            codec => self.append(id, codec, encoded.plain_len, &encoded.bytes),
        }
    }

    fn append(&self, id: &ChunkId, codec: Codec, plain_len: u32, payload: &[u8]) -> Result<bool, StoreError> {
        let record = record::encode_record(id, codec, plain_len, payload);
        let stored_len = payload.len() as u32;
        let mut writer = lock(&self.writer);
        if self.contains(id) {
            return Ok(false);
        }
        let entry = Entry { id: *id, offset: 0, codec, plain_len, stored_len };
        self.append_record(&mut writer, &record, entry)?;
        drop(writer);
        if self.index.pending() >= index::MAX_PENDING {
            self.sync()?;
        }
        Ok(true)
    }

    /// The caller holds the writer, so what is in the index and not in `writer` any more is what the next sync covers.
    fn append_record(&self, writer: &mut Writer, record: &[u8], entry: Entry) -> Result<(), StoreError> {
        let (pack, entry) = writer.append(record, entry)?;
        let number = pack.number;
        write(&self.packs).entry(number).or_insert(pack);
        Ok(self.index.set(&entry.id, Location::of(number, &entry))?)
    }

    /// Makes everything put so far durable.
    pub fn sync(&self) -> Result<(), StoreError> {
        let mut rows = lock(&self.syncing);
        self.make_durable(&mut rows, index::MAX_PENDING)
    }

    /// Syncs, and writes the index when it has that many changes. The index is written after what it points to.
    fn make_durable(&self, rows: &mut Rows, flush_at: usize) -> Result<(), StoreError> {
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
        let (sealed, unsealed) = due.seal();
        lock(&self.writer).give_back(sealed, unsealed);
        if let Some(flush) = flush {
            self.flush(rows, &flush);
        }
        Ok(())
    }

    /// What cannot be written (the disk may be full) stays in memory until the next time; the packs have it anyway.
    fn flush(&self, rows: &mut Rows, flush: &Flush) {
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
        for id in images.iter().flat_map(|(_, manifest)| manifest.chunks()) {
            self.index.get(&id)?.ok_or(StoreError::Missing { id })?;
        }
        self.sync()?;
        let _refs = lock(&self.refs);
        if !replace {
            self.check_free(images.iter().map(|(name, _)| *name))?;
        }
        for (name, manifest) in images {
            self.keep_chunks_of(name);
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

    /// The image published under `name`.
    pub fn manifest(&self, name: &str) -> Result<Manifest, StoreError> {
        refs::load(&*self.disk, &self.refs_dir, name)
    }

    /// All published names, sorted.
    pub fn names(&self) -> Result<Vec<String>, StoreError> {
        refs::names(&*self.disk, &self.refs_dir)
    }

    /// Removes a reference. Its chunks stay until the next [`gc`](Store::gc).
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        let _refs = lock(&self.refs);
        self.keep_chunks_of(name);
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
        match self.index.set_broken(id, location) {
            Ok(()) => StoreError::Damaged { id: *id, path: pack.path.clone() },
            Err(error) => error.into(),
        }
    }
}

/// The packs of a store that is being opened.
#[derive(Default)]
struct FoundPacks {
    packs: BTreeMap<u32, Arc<Pack>>,
    /// Those that the index does not know, ascending.
    unknown: Vec<Arc<Pack>>,
    unsealed: Vec<Open>,
    rows: Rows,
}

impl FoundPacks {
    /// Opens all packs. `false`: the index knows what is not there, and is not to be believed.
    fn read(
        &mut self,
        disk: &Arc<dyn Disk>,
        dir: &Path,
        numbers: &[u32],
        mut known: HashMap<u32, u64>,
    ) -> Result<bool, OpenError> {
        for number in numbers.iter().copied() {
            if let Some(len) = known.remove(&number) {
                let Some(pack) = Pack::sealed(disk, dir, number, len)? else { return Ok(false) };
                self.packs.insert(number, Arc::new(pack));
                continue;
            }
            let pack = match Pack::open(disk, dir, number)? {
                Found::Nothing => {
                    files::remove(&**disk, &dir.join(pack::file_name(number)))?;
                    continue;
                }
                Found::Sealed(pack) => Arc::new(pack),
                Found::Unsealed { pack, entries, end } => {
                    let pack = Arc::new(pack);
                    self.unsealed.push(Open { pack: pack.clone(), end, entries });
                    pack
                }
            };
            // What is about to be indexed may still be in the cache of a system that goes on after a crash of ours.
            if let Some(len) = pack.settle()? {
                self.rows.push((number, PackState::Whole(len)));
            }
            self.packs.insert(number, pack.clone());
            self.unknown.push(pack);
        }
        Ok(known.is_empty())
    }

    /// Tells the index of the packs it does not know.
    fn tell(&mut self, index: &Index, empty: bool) -> Result<(), OpenError> {
        let mut entries: Vec<(u32, Box<dyn Iterator<Item = Entry> + '_>)> = Vec::new();
        for pack in &self.unknown {
            let sorted: Box<dyn Iterator<Item = Entry>> = match pack.entries()? {
                Some(entries) => entries,
                None => {
                    let open = self.unsealed.iter().find(|open| open.pack.number == pack.number);
                    let mut entries = open.map(|open| open.entries.clone()).unwrap_or_default();
                    entries.sort_unstable_by_key(|entry| (entry.id, entry.offset));
                    Box::new(entries.into_iter())
                }
            };
            entries.push((pack.number, sorted));
        }
        if empty {
            index.fill(entries, &mem::take(&mut self.rows))?;
            return Ok(());
        }
        for (number, entries) in entries {
            index.add_pack(number, entries)?;
        }
        if index.pending() >= index::MAX_PENDING && index.commit(&index.take_pending(), &self.rows).is_ok() {
            self.rows.clear();
        }
        Ok(())
    }
}

impl Store {
    /// Adds a chunk that is proven already, as it came, or compressed at zstd `level` when that pays; `false` when it
    /// is here already.
    pub fn put_chunk(&self, chunk: &Chunk, level: i32) -> Result<bool, StoreError> {
        let id = chunk.id();
        if self.contains(&id) {
            return Ok(false);
        }
        check_length(chunk.plain().len())?;
        let encoded = chunk.encoded(level);
        self.append(&id, encoded.codec, encoded.plain_len, &encoded.bytes)
    }
}

fn check_length(len: usize) -> Result<(), StoreError> {
    if (1..=MAX_CHUNK_BYTES).contains(&len) { Ok(()) } else { Err(StoreError::BadLength { len }) }
}

fn pack_numbers(disk: &dyn Disk, dir: &Path) -> Result<Vec<u32>, FileError> {
    let names = disk.list(dir).map_err(FileError::at("list", dir))?;
    let mut numbers: Vec<u32> =
        names.iter().filter_map(|name| pack::parse_file_name(name.to_str()?)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod tests;
