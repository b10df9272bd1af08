//! The chunk store: a directory of append-only packs, an index of them in memory, and named references. One process
//! at a time, any number of threads: reads go on beside a put. FORMAT.md has the bytes.
//!
//! What is put is durable after [`Store::sync`] or [`Store::publish`], not before, and no sync is ever done for a
//! single chunk. A crash loses at most what was put since. The store never changes or removes a chunk but in
//! [`Store::gc`].

mod error;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod gc;
mod pack;
mod record;
mod refs;
mod verify;
mod writer;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use bytes::Bytes;

pub use error::{OpenError, StoreError};
pub use gc::{GcReport, Pin};
pub use verify::{BrokenReference, VerifyReport};

use crate::encoded::{compress, decode};
use crate::files::{self, DirLock, LockError};
use crate::sync::{lock, read, write};
use crate::{ChunkId, Codec, Encoded, FileError, MAX_CHUNK_BYTES, Manifest};
use gc::Gate;
use pack::{Found, Pack};
use record::Entry;
use writer::Writer;

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
}

/// A store, open. All methods take `&self`; locks are taken in the order of the fields.
pub struct Store {
    packs_dir: PathBuf,
    refs_dir: PathBuf,
    gate: Arc<Gate>,
    /// Held by whoever makes puts durable, so that nobody believes to be durable what another is still syncing.
    syncing: Mutex<()>,
    writer: Mutex<Writer>,
    index: RwLock<HashMap<ChunkId, Location>>,
    packs: RwLock<BTreeMap<u32, Arc<Pack>>>,
    sync_failed: AtomicBool,
    _lock: DirLock,
}

impl Store {
    /// Opens the store at `dir`, creating it if need be. After a crash this cuts half-written tails.
    pub fn open(dir: impl AsRef<Path>) -> Result<Store, OpenError> {
        Store::open_with(dir.as_ref(), PACK_BYTES)
    }

    fn open_with(dir: &Path, pack_bytes: u64) -> Result<Store, OpenError> {
        let (packs_dir, refs_dir) = (dir.join("packs"), dir.join("refs"));
        for dir in [dir, &packs_dir, &refs_dir] {
            fs::create_dir_all(dir).map_err(FileError::at("create the directory", dir))?;
        }
        let lock = DirLock::acquire(dir).map_err(|error| match error {
            LockError::InUse { pid } => OpenError::InUse { dir: dir.to_owned(), pid },
            LockError::File(error) => OpenError::File(error),
        })?;
        files::sync_dir(dir)?;
        refs::remove_temporary(&refs_dir)?;
        let mut index = HashMap::new();
        let mut packs = BTreeMap::new();
        let mut unsealed = Vec::new();
        let mut next_number = 1;
        for number in pack_numbers(&packs_dir)? {
            next_number = number.saturating_add(1);
            let Some(Found { pack, entries, append_at }) = Pack::open(&packs_dir, number)? else {
                files::remove(&packs_dir.join(pack::file_name(number)))?;
                continue;
            };
            // A chunk that lies in two packs was put again because the first copy was bad, or moved: the later holds.
            index.extend(entries.iter().map(|entry| (entry.id, Location::of(number, entry))));
            let pack = Arc::new(pack);
            packs.insert(number, pack.clone());
            if let Some(end) = append_at {
                unsealed.push(writer::Open { pack, end, entries });
            }
        }
        Ok(Store {
            writer: Mutex::new(Writer::new(packs_dir.clone(), pack_bytes, next_number, unsealed)),
            packs_dir,
            refs_dir,
            gate: Arc::default(),
            syncing: Mutex::new(()),
            index: RwLock::new(index),
            packs: RwLock::new(packs),
            sync_failed: AtomicBool::new(false),
            _lock: lock,
        })
    }

    /// Is the chunk here? Answered from memory. Hold a [`Pin`] while it matters that the answer stays true.
    pub fn contains(&self, id: &ChunkId) -> bool {
        read(&self.index).contains_key(id)
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
        self.append_record(&mut writer, &record, Entry { id: *id, offset: 0, codec, plain_len, stored_len })?;
        Ok(true)
    }

    /// Writes a record and points the index to it.
    fn append_record(&self, writer: &mut Writer, record: &[u8], entry: Entry) -> Result<(), StoreError> {
        let (pack, entry) = writer.append(record, entry)?;
        let number = pack.number;
        write(&self.packs).entry(number).or_insert(pack);
        write(&self.index).insert(entry.id, Location::of(number, &entry));
        Ok(())
    }

    /// Makes everything put so far durable.
    pub fn sync(&self) -> Result<(), StoreError> {
        let _one_at_a_time = lock(&self.syncing);
        if self.sync_failed.load(Ordering::Acquire) {
            return Err(StoreError::SyncFailed);
        }
        let mut due = lock(&self.writer).take_unsynced();
        let synced = due.sync(&self.packs_dir);
        if synced.is_err() {
            // The kernel reports a lost write once and then forgets it.
            self.sync_failed.store(true, Ordering::Release);
        }
        synced?;
        let unsealed = due.seal();
        lock(&self.writer).give_back(unsealed);
        Ok(())
    }

    /// Publishes an image under `name`, in place of what had that name: syncs, then replaces the reference in one
    /// step. All its chunks must be here.
    pub fn publish(&self, name: &str, manifest: &Manifest) -> Result<(), StoreError> {
        refs::check_name(name)?;
        // While references change, no collection may be reading them.
        let _pin = self.pin();
        if let Some(id) = manifest.chunks().find(|id| !self.contains(id)) {
            return Err(StoreError::Missing { id });
        }
        self.sync()?;
        refs::publish(&self.refs_dir, name, manifest)
    }

    /// The image published under `name`.
    pub fn manifest(&self, name: &str) -> Result<Manifest, StoreError> {
        refs::load(&self.refs_dir, name)
    }

    /// All published names, sorted.
    pub fn names(&self) -> Result<Vec<String>, StoreError> {
        refs::names(&self.refs_dir)
    }

    /// Removes a reference. Its chunks stay until the next [`gc`](Store::gc).
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        refs::remove(&self.refs_dir, name)
    }

    /// What is here.
    pub fn stats(&self) -> Result<Stats, StoreError> {
        let references = self.names()?.len() as u64;
        let index = read(&self.index);
        let packs = read(&self.packs).len() as u64;
        let start = Stats { chunks: index.len() as u64, packs, references, ..Stats::default() };
        Ok(index.values().fold(start, |mut stats, location| {
            stats.plain_bytes += u64::from(location.plain_len);
            stats.stored_bytes += u64::from(location.stored_len);
            stats
        }))
    }

    fn locate(&self, id: &ChunkId) -> Result<(Location, Arc<Pack>), StoreError> {
        // A pack leaves the map only after every location in it has left the index.
        let index = read(&self.index);
        let location = index.get(id).ok_or(StoreError::Missing { id: *id })?;
        let pack = read(&self.packs).get(&location.pack).cloned().ok_or(StoreError::Missing { id: *id })?;
        Ok((*location, pack))
    }

    fn damaged(&self, id: &ChunkId, location: Location, pack: &Pack) -> StoreError {
        self.forget(id, location);
        StoreError::Damaged { id: *id, path: pack.path.clone() }
    }

    /// Forgets a chunk whose bytes are bad, so that the next put stores it anew.
    fn forget(&self, id: &ChunkId, location: Location) {
        let mut index = write(&self.index);
        if index.get(id) == Some(&location) {
            index.remove(id);
        }
    }
}

fn check_length(len: usize) -> Result<(), StoreError> {
    if (1..=MAX_CHUNK_BYTES).contains(&len) { Ok(()) } else { Err(StoreError::BadLength { len }) }
}

fn pack_numbers(dir: &Path) -> Result<Vec<u32>, FileError> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir).map_err(FileError::at("list", dir))? {
        let name = entry.map_err(FileError::at("list", dir))?.file_name();
        numbers.extend(name.to_str().and_then(pack::parse_file_name));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

#[cfg(test)]
mod tests;
