//! Where every chunk lies: a redb database beside the packs, and in front of it, in memory, what has changed since it was
//! last written. It is a cache of what the packs say: it may be lost, and is then made again from them, and it never
//! knows of a record that is not durable. Its memory is bounded, whatever the store's size.
//!
//! # Why redb
//! `cargo xtask bench index`, one run at each size, everything in the page cache:
//!
//! | | redb, 10 million | LMDB, 10 million | redb, 64 million | LMDB, 64 million |
//! |---|---|---|---|---|
//! | a hit, µs | 5.6 | 1.4 | 10.2 | 1.9 |
//! | a miss, µs | 5.1 | 1.8 | 8.5 | 2.2 |
//! | durable inserts, thousands a second | 33 | 65 | 15 | 31 |
//! | resident memory, MiB | 74 | 650 | 84 | 4145 |
//!
//! LMDB answers faster, out of a file that it maps and that must stay in memory for that: 4 GiB for 4 TiB of chunks, on
//! hosts whose memory is there for guests. Either way asking costs less than a tenth of hashing a chunk of 64 KiB and
//! compressing it. And redb takes a disk of ours below it, so that its crashes are tested with those of the packs.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use redb::{
    Database, Durability, ReadOnlyTable, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition,
};

use super::error::{IndexError, OpenError, StoreError};
use super::live::LiveSet;
use super::location::Location;
use super::pack_index::Entries;
use crate::disk::{Disk, DiskFile};
use crate::parse::Fields;
use crate::sync::{read, write};
use crate::{ChunkId, FileError, file_error};

/// The database's file.
pub(super) const FILE_NAME: &str = "index.redb";

/// redb's own cache, which is nearly all the memory the index takes. What does not fit is read through the page cache.
const CACHE_BYTES: usize = 64 << 20;

/// Changes kept in memory before they are written. Fewer cost more each: their keys are spread over the whole database.
pub(super) const MAX_PENDING: usize = 65_536;

/// Entries written in one transaction when everything is written anew.
const REBUILD_BATCH: usize = 1 << 18;

/// Raise when a table changes; a database of another version is made again.
const VERSION: u64 = 2;

type Key = [u8; 32];
type Value = [u8; 24];

/// Chunk to place: pack, offset of the record, start in it, plain length, part of the record's stored length.
const CHUNKS: TableDefinition<&Key, &Value> = TableDefinition::new("chunks");
/// Packs of which every entry is in `CHUNKS`, with the length of their file.
const PACKS: TableDefinition<u32, u64> = TableDefinition::new("packs");
/// Chunks whose bytes were found to be bad, and the pack they lie in.
const BROKEN: TableDefinition<&Key, u32> = TableDefinition::new("broken");
/// Sums over `CHUNKS`, and the version.
const SUMS: TableDefinition<&str, u64> = TableDefinition::new("sums");

/// What is in an index, summed up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) chunks: u64,
    pub(super) plain_bytes: u64,
    pub(super) stored_bytes: u64,
}

impl Sums {
    fn add(&mut self, location: &Location) {
        self.chunks += 1;
        self.plain_bytes += u64::from(location.plain_len);
        self.stored_bytes += u64::from(location.stored_len);
    }

    fn subtract(&mut self, location: &Location) {
        self.chunks = self.chunks.saturating_sub(1);
        self.plain_bytes = self.plain_bytes.saturating_sub(location.plain_len.into());
        self.stored_bytes = self.stored_bytes.saturating_sub(location.stored_len.into());
    }

    fn replace(&mut self, old: Option<&Location>, new: Option<&Location>) {
        old.inspect(|location| self.subtract(location));
        new.inspect(|location| self.add(location));
    }
}

/// What became of a chunk since the database was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    At(Location),
    /// Collected.
    Gone,
    /// Its bytes in this pack are bad.
    Broken(u32),
}

impl Change {
    fn location(self) -> Option<Location> {
        match self {
            Change::At(location) => Some(location),
            Change::Gone | Change::Broken(_) => None,
        }
    }
}

type Changes = HashMap<ChunkId, Change>;

type Table = ReadOnlyTable<&'static Key, &'static Value>;

/// What was seen is of this state of the database.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen(u64);

/// A collection forgets this many chunks before it lets others in.
const COLLECTED_AT_ONCE: usize = 1024;

/// What became of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PackState {
    /// All its entries are in the index; its file has this length and does not change any more.
    Whole(u64),
    /// Nothing in it counts any more; its file goes next.
    Gone,
}

/// What became of packs, to be told to the index when it is next written.
pub(super) type PackRows = Vec<(u32, PackState)>;

struct View {
    pending: Changes,
    /// What is being written at this moment.
    flushing: Arc<Changes>,
    table: Table,
    /// How often the database was written.
    commits: u64,
    sums: Sums,
    /// While a collection runs, every chunk that is asked for is kept.
    live: Option<Arc<LiveSet>>,
}

/// The index, open. One flush at a time; everything else from any thread.
pub(super) struct Index {
    path: PathBuf,
    db: Database,
    view: RwLock<View>,
}

/// How an index came to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Opened {
    /// As it was left.
    Loaded,
    /// It is new, for this reason, and to be filled from all packs.
    Replaced(String),
}

/// Changes on their way into the database.
pub(super) struct Flush(Arc<Changes>);

impl Index {
    /// Opens the index in `dir`; a file that cannot be used is replaced by an empty one.
    pub(super) fn open(disk: &dyn Disk, dir: &Path) -> Result<(Index, Opened), FileError> {
        let path = dir.join(FILE_NAME);
        let reason = match disk.open(&path) {
            Ok(file) => match Index::load(&path, file) {
                Ok(index) => return Ok((index, Opened::Loaded)),
                Err(error) => error.to_string(),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => "it is missing".to_owned(),
            Err(error) => return Err(FileError::at("open the index", &path)(error)),
        };
        Ok((Index::create(disk, &path)?, Opened::Replaced(reason)))
    }

    /// An empty index, in place of what there is.
    pub(super) fn create(disk: &dyn Disk, path: &Path) -> Result<Index, FileError> {
        let failed = || FileError::at("make the index", path);
        match disk.remove(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed()(error)),
            _ => {}
        }
        let file = disk.create(path).map_err(failed())?;
        let made = || -> Result<Index, redb::Error> {
            let db = database(file)?;
            let transaction = db.begin_write()?;
            transaction.open_table(CHUNKS)?;
            transaction.open_table(PACKS)?;
            transaction.open_table(BROKEN)?;
            transaction.open_table(SUMS)?.insert("version", VERSION)?;
            transaction.commit()?;
            Index::of(path, db, Sums::default())
        };
        made().map_err(|error| failed()(into_io(error)))
    }

    fn load(path: &Path, file: Arc<dyn DiskFile>) -> Result<Index, redb::Error> {
        // redb believes what it reads of a file that was closed in order, and panics where that is nonsense.
        let loaded = catch_unwind(AssertUnwindSafe(|| {
            let db = database(file)?;
            let transaction = db.begin_read()?;
            let sums = transaction.open_table(SUMS)?;
            let sum = |name| Ok::<_, redb::Error>(sums.get(name)?.map_or(0, |sum| sum.value()));
            if sum("version")? != VERSION {
                return Err(redb::Error::Corrupted("another version".to_owned()));
            }
            let sums = Sums {
                chunks: sum("chunks")?,
                plain_bytes: sum("plain_bytes")?,
                stored_bytes: sum("stored_bytes")?,
            };
            transaction.open_table(PACKS)?;
            transaction.open_table(BROKEN)?;
            Index::of(path, db, sums)
        }));
        loaded.unwrap_or_else(|_| Err(redb::Error::Corrupted("not readable".to_owned())))
    }

    fn of(path: &Path, db: Database, sums: Sums) -> Result<Index, redb::Error> {
        let table = db.begin_read()?.open_table(CHUNKS)?;
        let view =
            View { pending: Changes::new(), flushing: Arc::default(), table, commits: 0, sums, live: None };
        Ok(Index { path: path.to_owned(), db, view: RwLock::new(view) })
    }

    /// Where the chunk lies, if it is here. During a collection that keeps it.
    pub(super) fn get(&self, id: &ChunkId) -> Result<Option<Location>, IndexError> {
        let view = read(&self.view);
        let location = view.get(id).map_err(|error| self.error(error))?;
        if let (Some(live), Some(_)) = (&view.live, location) {
            live.add(id);
        }
        Ok(location)
    }

    /// Of entries of this pack, sorted by chunk, those that count, with what a collection needs to change them. Keeps
    /// nothing.
    pub(super) fn counting(
        &self,
        pack: u32,
        entries: Entries<'_>,
    ) -> Result<(Vec<(ChunkId, Location)>, Seen), StoreError> {
        let (changes, table, seen) = self.snapshot()?;
        let mut rows = Rows { table: &table, at: None };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            let counts = match changes.get(&entry.id) {
                Some(change) => change.location(),
                None => rows.get(&entry.id).map_err(|error| self.error(error))?,
            };
            let location = Location::of(pack, &entry);
            if counts == Some(location) {
                found.push((entry.id, location));
            }
        }
        Ok((found, seen))
    }

    /// The database as it was last written, and what has changed since.
    fn snapshot(&self) -> Result<(Changes, Table, Seen), IndexError> {
        let view = read(&self.view);
        let mut changes = (*view.flushing).clone();
        changes.extend(view.pending.iter().map(|(id, change)| (*id, *change)));
        let table = self.db.begin_read().map_err(redb::Error::from).and_then(|t| Ok(t.open_table(CHUNKS)?));
        Ok((changes, table.map_err(|error| self.error(error))?, Seen(view.commits)))
    }

    /// What a running collection keeps.
    pub(super) fn live(&self) -> Option<Arc<LiveSet>> {
        read(&self.view).live.clone()
    }

    /// The chunk, which is not here so far, lies there from now on.
    pub(super) fn add(&self, id: &ChunkId, location: Location) {
        write(&self.view).change(id, None, Change::At(location));
    }

    /// The chunk lies there from now on.
    pub(super) fn set(&self, id: &ChunkId, location: Location) -> Result<(), IndexError> {
        let mut view = write(&self.view);
        let old = view.get(id).map_err(|error| self.error(error))?;
        view.change(id, old, Change::At(location));
        Ok(())
    }

    /// The chunk lies at `to` from now on, unless it lies elsewhere than at `from` by now.
    pub(super) fn relocate(
        &self,
        id: &ChunkId,
        from: Location,
        to: Location,
        seen: Seen,
    ) -> Result<(), IndexError> {
        let mut view = write(&self.view);
        if view.is_still(id, from, seen).map_err(|error| self.error(error))? {
            view.change(id, Some(from), Change::At(to));
        }
        Ok(())
    }

    /// The chunk's bytes at that place are bad.
    pub(super) fn set_broken(&self, id: &ChunkId, location: Location) -> Result<(), IndexError> {
        let mut view = write(&self.view);
        // It may have been put again meanwhile.
        if view.get(id).map_err(|error| self.error(error))? == Some(location) {
            view.change(id, Some(location), Change::Broken(location.pack));
        }
        Ok(())
    }

    /// Nobody needs the broken chunk any more.
    pub(super) fn forget_broken(&self, id: &ChunkId) -> Result<(), IndexError> {
        let mut view = write(&self.view);
        if view.get(id).map_err(|error| self.error(error))?.is_none() {
            view.change(id, None, Change::Gone);
        }
        Ok(())
    }

    /// Forgets those of `candidates` that are where they were and that nobody has asked for since the collection began;
    /// gives the others.
    pub(super) fn collect(
        &self,
        candidates: Vec<(ChunkId, Location)>,
        seen: Seen,
    ) -> Result<Vec<(ChunkId, Location)>, IndexError> {
        let mut kept = Vec::new();
        for candidates in candidates.chunks(COLLECTED_AT_ONCE) {
            let mut view = write(&self.view);
            let Some(live) = view.live.clone() else { return Ok(candidates.to_vec()) };
            for (id, location) in candidates {
                if live.contains(id) {
                    kept.push((*id, *location));
                } else if view.is_still(id, *location, seen).map_err(|error| self.error(error))? {
                    view.change(id, Some(*location), Change::Gone);
                }
            }
        }
        Ok(kept)
    }

    /// From now on, until `None`, every chunk that is asked for is added to the set.
    pub(super) fn keep_in(&self, live: Option<Arc<LiveSet>>) {
        write(&self.view).live = live;
    }

    /// The sums over everything here.
    pub(super) fn sums(&self) -> Sums {
        read(&self.view).sums
    }

    /// Changes that are not in the database yet.
    pub(super) fn pending(&self) -> usize {
        read(&self.view).pending.len()
    }

    /// Calls `look` with every chunk, in no order that means anything.
    pub(super) fn each(&self, mut look: impl FnMut(&ChunkId, &Location)) -> Result<(), IndexError> {
        let (changes, table, _) = self.snapshot()?;
        let mut walk = || -> Result<(), redb::Error> {
            for entry in table.iter()? {
                let (key, value) = entry?;
                let id = ChunkId::from_bytes(*key.value());
                if let (false, Some(location)) = (changes.contains_key(&id), parse(value.value())) {
                    look(&id, &location);
                }
            }
            for (id, change) in &changes {
                if let Change::At(location) = change {
                    look(id, location);
                }
            }
            Ok(())
        };
        walk().map_err(|error| self.error(error))
    }

    /// Chunks that were found broken and have not been put again, with the pack they lie in.
    pub(super) fn broken(&self) -> Result<Vec<(ChunkId, u32)>, IndexError> {
        let view = read(&self.view);
        let mut broken = HashMap::new();
        let stored = || -> Result<Vec<(ChunkId, u32)>, redb::Error> {
            let table = self.db.begin_read()?.open_table(BROKEN)?;
            table
                .iter()?
                .map(|entry| entry.map(|(id, pack)| (ChunkId::from_bytes(*id.value()), pack.value())))
                .collect::<Result<_, _>>()
                .map_err(redb::Error::from)
        };
        broken.extend(stored().map_err(|error| self.error(error))?);
        for (id, change) in view.flushing.iter().chain(&view.pending) {
            match change {
                Change::Broken(pack) => drop(broken.insert(*id, *pack)),
                Change::At(_) | Change::Gone => drop(broken.remove(id)),
            }
        }
        let mut broken: Vec<_> = broken.into_iter().collect();
        broken.sort_unstable();
        Ok(broken)
    }

    /// The packs that are whole, with the length of their file.
    pub(super) fn packs(&self) -> Result<HashMap<u32, u64>, IndexError> {
        let load = || -> Result<HashMap<u32, u64>, redb::Error> {
            let table = self.db.begin_read()?.open_table(PACKS)?;
            let rows = table.iter()?.map(|row| row.map(|(number, len)| (number.value(), len.value())));
            Ok(rows.collect::<Result<_, _>>()?)
        };
        load().map_err(|error| self.error(error))
    }

    /// Takes all changes so far for [`Index::commit`]. What they point to must be durable before that.
    pub(super) fn take_pending(&self) -> Flush {
        let mut view = write(&self.view);
        let pending = std::mem::take(&mut view.pending);
        view.flushing = Arc::new(pending);
        Flush(view.flushing.clone())
    }

    /// Writes changes, and what became of packs, into the database. A failure (the disk may be full) loses nothing: the
    /// changes are pending again.
    pub(super) fn commit(&self, flush: &Flush, packs: &[(u32, PackState)]) -> Result<(), IndexError> {
        let result = self.write(&flush.0, packs);
        let mut view = write(&self.view);
        let flushed = std::mem::take(&mut view.flushing);
        match result {
            Ok(table) => {
                view.table = table;
                view.commits += 1;
                Ok(())
            }
            Err(error) => {
                for (id, change) in flushed.iter() {
                    view.pending.entry(*id).or_insert(*change);
                }
                Err(self.error(error))
            }
        }
    }

    fn write(&self, changes: &Changes, packs: &[(u32, PackState)]) -> Result<Table, redb::Error> {
        let mut sorted: Vec<_> = changes.iter().collect();
        sorted.sort_unstable_by_key(|(id, _)| **id);
        let mut transaction = self.db.begin_write()?;
        // After a crash the database then opens at once, however large it is.
        transaction.set_quick_repair(true);
        {
            let mut sums = transaction.open_table(SUMS)?;
            let mut sum = read_sums(&sums)?;
            let mut chunks = transaction.open_table(CHUNKS)?;
            let mut broken = transaction.open_table(BROKEN)?;
            for (id, change) in sorted {
                let (key, new) = (id.as_bytes(), change.location());
                let old = match &new {
                    Some(location) => chunks.insert(key, &encode(location))?,
                    None => chunks.remove(key)?,
                };
                sum.replace(old.and_then(|old| parse(old.value())).as_ref(), new.as_ref());
                match change {
                    Change::Broken(pack) => broken.insert(key, pack)?,
                    Change::At(_) | Change::Gone => broken.remove(key)?,
                };
            }
            write_sums(&mut sums, &sum)?;
            let mut rows = transaction.open_table(PACKS)?;
            for (number, state) in packs {
                match state {
                    PackState::Whole(len) => rows.insert(number, len)?,
                    PackState::Gone => rows.remove(number)?,
                };
            }
        }
        transaction.commit()?;
        Ok(self.db.begin_read()?.open_table(CHUNKS)?)
    }

    /// Fills an empty index from packs, each with its entries sorted by chunk and place. A chunk that is in several
    /// places lies in the pack with the highest number, there at the highest offset.
    pub(super) fn fill(
        &self,
        packs: Vec<(u32, Entries<'_>)>,
        whole: &[(u32, PackState)],
    ) -> Result<(), OpenError> {
        let fill = || -> Result<Result<(), FileError>, redb::Error> {
            let mut merged = Merged::new(packs).peekable();
            let mut sums = Sums::default();
            while merged.peek().is_some() {
                let mut transaction = self.db.begin_write()?;
                transaction.set_durability(Durability::None)?;
                {
                    let mut chunks = transaction.open_table(CHUNKS)?;
                    for next in merged.by_ref().take(REBUILD_BATCH) {
                        let (id, location) = match next {
                            Ok(next) => next,
                            Err(error) => return Ok(Err(error)),
                        };
                        sums.add(&location);
                        chunks.insert(id.as_bytes(), &encode(&location))?;
                    }
                }
                transaction.commit()?;
            }
            let transaction = self.db.begin_write()?;
            write_sums(&mut transaction.open_table(SUMS)?, &sums)?;
            {
                let mut rows = transaction.open_table(PACKS)?;
                for (number, state) in whole {
                    if let PackState::Whole(len) = state {
                        rows.insert(number, len)?;
                    }
                }
            }
            transaction.commit()?;
            let mut view = write(&self.view);
            view.table = self.db.begin_read()?.open_table(CHUNKS)?;
            view.commits += 1;
            view.sums = sums;
            Ok(Ok(()))
        };
        Ok(fill().map_err(|error| self.error(error))??)
    }

    /// Adds the entries of one pack to an index that has others, in any order.
    pub(super) fn add_pack(&self, number: u32, entries: Entries<'_>) -> Result<(), OpenError> {
        for entry in entries {
            let entry = entry?;
            let location = Location::of(number, &entry);
            let known = self.get(&entry.id)?;
            if known.is_none_or(|known| known.order() < location.order()) {
                self.set(&entry.id, location)?;
            }
        }
        Ok(())
    }

    fn error(&self, error: impl Into<redb::Error>) -> IndexError {
        let error = error.into();
        let is_full = matches!(&error, redb::Error::Io(error) if file_error::is_full(error));
        IndexError { path: self.path.clone(), reason: error.to_string(), is_full }
    }
}

impl View {
    fn get(&self, id: &ChunkId) -> Result<Option<Location>, redb::Error> {
        if let Some(change) = self.pending.get(id).or_else(|| self.flushing.get(id)) {
            return Ok(change.location());
        }
        Ok(self.table.get(id.as_bytes())?.and_then(|value| parse(value.value())))
    }

    /// The chunk lies where it was seen. As long as the database has not been written, it need not be asked again.
    fn is_still(&self, id: &ChunkId, location: Location, seen: Seen) -> Result<bool, redb::Error> {
        match self.pending.get(id).or_else(|| self.flushing.get(id)) {
            Some(change) => Ok(change.location() == Some(location)),
            None if seen.0 == self.commits => Ok(true),
            None => Ok(self.get(id)? == Some(location)),
        }
    }

    fn change(&mut self, id: &ChunkId, old: Option<Location>, change: Change) {
        self.sums.replace(old.as_ref(), change.location().as_ref());
        self.pending.insert(*id, change);
    }
}

/// The rows of a table asked for in ascending order: where they are near to each other they are walked through, which is
/// many times as fast as looking each one up.
struct Rows<'a> {
    table: &'a Table,
    at: Option<redb::Range<'static, &'static Key, &'static Value>>,
}

/// Rows walked through before the next one is looked up.
const NEAR: usize = 32;

impl Rows<'_> {
    fn get(&mut self, id: &ChunkId) -> Result<Option<Location>, redb::Error> {
        if let Some(rows) = &mut self.at {
            for row in rows.take(NEAR) {
                let (key, value) = row?;
                match key.value().cmp(id.as_bytes()) {
                    Ordering::Less => {}
                    Ordering::Equal => return Ok(parse(value.value())),
                    // This row may be the next one's.
                    Ordering::Greater => break,
                }
            }
        }
        let mut rows = self.table.range::<&Key>(id.as_bytes()..)?;
        let first = rows.next().transpose()?;
        self.at = Some(rows);
        let found = first.filter(|(key, _)| key.value() == id.as_bytes());
        Ok(found.and_then(|(_, value)| parse(value.value())))
    }
}

/// Entries of many packs, each sorted, as one sorted sequence in which every chunk comes once.
struct Merged<'a> {
    packs: Vec<(u32, Entries<'a>)>,
    heads: BinaryHeap<Head>,
    failed: Option<FileError>,
}

/// The next entry of a pack; the greatest comes first, so the order is turned round.
struct Head {
    id: ChunkId,
    location: Location,
    from: usize,
}

impl Head {
    /// By chunk, then the place that holds first.
    fn key(&self) -> (ChunkId, std::cmp::Reverse<(u32, u64, u32)>) {
        (self.id, std::cmp::Reverse(self.location.order()))
    }
}

impl Ord for Head {
    fn cmp(&self, other: &Head) -> Ordering {
        other.key().cmp(&self.key())
    }
}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Head) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Head) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Head {}

impl<'a> Merged<'a> {
    fn new(packs: Vec<(u32, Entries<'a>)>) -> Merged<'a> {
        let mut merged = Merged { packs, heads: BinaryHeap::new(), failed: None };
        (0..merged.packs.len()).for_each(|from| merged.pull(from));
        merged
    }

    fn pull(&mut self, from: usize) {
        let (number, entries) = &mut self.packs[from];
        match entries.next() {
            Some(Ok(entry)) => {
                self.heads.push(Head { id: entry.id, location: Location::of(*number, &entry), from });
            }
            Some(Err(error)) => self.failed = Some(error),
            None => {}
        }
    }
}

impl Iterator for Merged<'_> {
    type Item = Result<(ChunkId, Location), FileError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.failed.take() {
            self.heads.clear();
            return Some(Err(error));
        }
        let first = self.heads.pop()?;
        self.pull(first.from);
        // Within a pack the places of one chunk ascend, so a later one may still beat what came first.
        let mut best = first.location;
        while self.heads.peek().is_some_and(|head| head.id == first.id) {
            let Some(other) = self.heads.pop() else { break };
            if other.location.order() > best.order() {
                best = other.location;
            }
            self.pull(other.from);
        }
        Some(Ok((first.id, best)))
    }
}

fn encode(location: &Location) -> Value {
    let mut value = [0; 24];
    value[..4].copy_from_slice(&location.pack.to_le_bytes());
    value[4..12].copy_from_slice(&location.offset.to_le_bytes());
    value[12..16].copy_from_slice(&location.start.to_le_bytes());
    value[16..20].copy_from_slice(&location.plain_len.to_le_bytes());
    value[20..].copy_from_slice(&location.stored_len.to_le_bytes());
    value
}

/// What is no location is no chunk: the record decides, when it is read.
fn parse(value: &Value) -> Option<Location> {
    let mut fields = Fields::new(value);
    let (pack, offset, start) = (fields.u32()?, fields.u64()?, fields.u32()?);
    let (plain_len, stored_len) = (fields.u32()?, fields.u32()?);
    let location = Location { pack, offset, start, plain_len, stored_len };
    location.fits().then_some(location)
}

fn read_sums(table: &impl ReadableTable<&'static str, u64>) -> Result<Sums, redb::Error> {
    let sum = |name| Ok::<_, redb::Error>(table.get(name)?.map_or(0, |sum| sum.value()));
    Ok(Sums { chunks: sum("chunks")?, plain_bytes: sum("plain_bytes")?, stored_bytes: sum("stored_bytes")? })
}

fn write_sums(table: &mut redb::Table<'_, &'static str, u64>, sums: &Sums) -> Result<(), redb::Error> {
    table.insert("chunks", sums.chunks)?;
    table.insert("plain_bytes", sums.plain_bytes)?;
    table.insert("stored_bytes", sums.stored_bytes)?;
    Ok(())
}

fn database(file: Arc<dyn DiskFile>) -> Result<Database, redb::Error> {
    Ok(redb::Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(Backend(file))?)
}

fn into_io(error: redb::Error) -> io::Error {
    match error {
        redb::Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

/// A file of ours as redb wants it. The store's lock keeps others out.
#[derive(Debug)]
struct Backend(Arc<dyn DiskFile>);

impl StorageBackend for Backend {
    fn len(&self) -> Result<u64, io::Error> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.0.read_at(offset, out)
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.0.write_at(offset, data)
    }
}

#[cfg(test)]
mod tests;
