//! A disk in memory that loses its power: what is durable is kept apart from what is only written. After a crash every
//! write, every length and every name that was not synced may be there, or not, or in part, independently of all
//! others. Only the order of what touches the same bytes is kept.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::appended::{Appended, Below};
use super::{Disk, DiskFile, DiskImage};
use crate::ReadImage;
use crate::map::Map;

/// What a device writes in one piece; a torn write is torn between two of them, or at any byte of the last one.
const SECTOR: usize = 512;

#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    SetLen(usize),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Change::Write(offset, data) => {
                let end = offset + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*offset..end].copy_from_slice(data);
            }
            Change::SetLen(len) => bytes.resize(*len, 0),
        }
    }
}

#[derive(Debug, Default, Clone)]
struct Content {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// What makes `live` of `durable`.
    changes: Vec<Change>,
}

#[derive(Debug, Clone)]
enum NameChange {
    Set(PathBuf, usize),
    Unset(PathBuf),
    Rename(PathBuf, PathBuf, usize),
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            NameChange::Set(path, file) => drop(names.insert(path.clone(), *file)),
            NameChange::Unset(path) => drop(names.remove(path)),
            NameChange::Rename(from, to, file) => {
                names.remove(from);
                names.insert(to.clone(), *file);
            }
        }
    }

    fn is_in(&self, dir: &Path) -> bool {
        let (NameChange::Set(path, _) | NameChange::Unset(path) | NameChange::Rename(_, path, _)) = self;
        path.parent() == Some(dir)
    }
}

#[derive(Debug, Default)]
struct State {
    files: Vec<Content>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    name_changes: Vec<NameChange>,
    /// Operations that change something, so far.
    operations: u64,
    /// At this many the power goes.
    power_until: Option<u64>,
}

/// The disk; clones are the same disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct SimDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    file: usize,
}

/// Numbers that follow from a seed.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 16) % bound.max(1) as u64) as usize
    }
}

impl SimDisk {
    fn new_file(&self, path: &Path) -> io::Result<SimFile> {
        let mut state = self.state();
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.work()?;
        let file = state.files.len();
        state.files.push(Content::default());
        state.rename(NameChange::Set(path.to_owned(), file));
        Ok(SimFile { disk: self.clone(), file })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Operations that changed something, so far.
    pub(crate) fn operations(&self) -> u64 {
        self.state().operations
    }

    /// The power goes before the operation of this number; from then on everything fails.
    pub(crate) fn cut_power_at(&self, operations: u64) {
        self.state().power_until = Some(operations);
    }

    /// The disk as it may be found when the power is back.
    pub(crate) fn after_crash(&self, seed: u64) -> SimDisk {
        let state = self.state();
        let mut dice = Dice::new(seed);
        // One crash in four loses nothing or everything: the ends of the scale are cases of their own.
        let keep = match dice.below(8) {
            0 => 0,
            1 => 100,
            _ => dice.below(100),
        };
        let files = state
            .files
            .iter()
            .map(|content| {
                let mut bytes = content.durable.clone();
                for change in &content.changes {
                    survive(change, keep, &mut dice, &mut bytes);
                }
                Content { live: bytes.clone(), durable: bytes, changes: Vec::new() }
            })
            .collect();
        let mut names = state.durable_names.clone();
        for change in &state.name_changes {
            if dice.below(100) < keep {
                change.apply(&mut names);
            }
        }
        SimDisk(Arc::new(Mutex::new(State {
            files,
            durable_names: names.clone(),
            names,
            ..State::default()
        })))
    }
}

/// Applies as much of a change as the crash left of it.
fn survive(change: &Change, keep: usize, dice: &mut Dice, bytes: &mut Vec<u8>) {
    let whole = dice.below(100) < keep;
    match change {
        _ if whole => change.apply(bytes),
        Change::Write(offset, data) if dice.below(2) == 0 => {
            // Torn: some of its sectors, in no order, the last one of them cut anywhere.
            for (index, sector) in data.chunks(SECTOR).enumerate() {
                if dice.below(100) < keep {
                    let len = if dice.below(4) == 0 { dice.below(sector.len()) } else { sector.len() };
                    Change::Write(offset + index * SECTOR, sector[..len].to_vec()).apply(bytes);
                }
            }
        }
        // The length without the bytes: what ext4 in its default mode does not do, and others do.
        Change::Write(offset, data) if dice.below(4) == 0 => {
            let end = (offset + data.len()).max(bytes.len());
            bytes.resize(end, 0);
        }
        _ => {}
    }
}

impl State {
    /// Counts an operation that changes something.
    fn work(&mut self) -> io::Result<()> {
        self.powered()?;
        self.operations += 1;
        Ok(())
    }

    fn powered(&self) -> io::Result<()> {
        match self.power_until {
            Some(until) if self.operations >= until => Err(io::Error::other("no power")),
            _ => Ok(()),
        }
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        self.powered()?;
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn rename(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.name_changes.push(change);
    }

    fn change(&mut self, file: usize, change: Change) {
        change.apply(&mut self.files[file].live);
        self.files[file].changes.push(change);
    }
}

impl Disk for SimDisk {
    fn create_dir(&self, _path: &Path) -> io::Result<()> {
        self.state().powered()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let state = self.state();
        state.powered()?;
        let below = state.names.keys().filter_map(|path| path.strip_prefix(dir).ok());
        let inside: BTreeSet<OsString> =
            below.filter_map(|path| path.iter().next()).map(OsString::from).collect();
        Ok(inside.into_iter().collect())
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.state().find(path)?;
        Ok(Arc::new(SimFile { disk: self.clone(), file }))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(self.new_file(path)?))
    }

    fn create_appended(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(Appended::new(self.new_file(path)?)))
    }

    fn create_image(&self, path: &Path, size: u64) -> io::Result<Arc<dyn DiskImage>> {
        let file = self.new_file(path)?;
        DiskFile::set_len(&file, size)?;
        Ok(Arc::new(file))
    }

    fn open_image(&self, path: &Path) -> io::Result<Arc<dyn DiskImage>> {
        let file = self.state().find(path)?;
        Ok(Arc::new(SimFile { disk: self.clone(), file }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        let file = state.find(from)?;
        state.work()?;
        state.rename(NameChange::Rename(from.to_owned(), to.to_owned(), file));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.find(path)?;
        state.work()?;
        state.rename(NameChange::Unset(path.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.work()?;
        let changes = std::mem::take(&mut state.name_changes);
        let (synced, open): (Vec<_>, Vec<_>) = changes.into_iter().partition(|change| change.is_in(dir));
        state.name_changes = open;
        synced.iter().for_each(|change| change.apply(&mut state.durable_names));
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        let state = self.disk.state();
        state.powered()?;
        Ok(state.files[self.file].live.len() as u64)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let state = self.disk.state();
        state.powered()?;
        let start = offset as usize;
        let bytes = state.files[self.file].live.get(start..start + buf.len());
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        state.work()?;
        state.change(self.file, Change::Write(offset as usize, data.to_vec()));
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.work()?;
        state.change(self.file, Change::SetLen(len as usize));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.work()?;
        let content = &mut state.files[self.file];
        for change in std::mem::take(&mut content.changes) {
            change.apply(&mut content.durable);
        }
        Ok(())
    }

    fn map(&self) -> io::Result<Map> {
        let state = self.disk.state();
        state.powered()?;
        Ok(Map::from(state.files[self.file].live.clone()))
    }
}

/// All of it may be data.
impl ReadImage for SimFile {
    fn size(&self) -> u64 {
        self.disk.state().files[self.file].live.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        DiskFile::read_at(self, offset, buf)
    }
}

impl DiskImage for SimFile {
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        DiskFile::write_at(self, offset, data)
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        DiskFile::write_at(self, offset, &vec![0; len as usize])
    }

    fn sync(&self) -> io::Result<()> {
        DiskFile::sync(self)
    }
}

impl Below for SimFile {
    fn reserve(&self, _from: u64, _to: u64) -> io::Result<()> {
        self.disk.state().powered()
    }
}

/// The files of a disk, for looking at.
impl SimDisk {
    pub(crate) fn files(&self) -> HashMap<PathBuf, Vec<u8>> {
        let state = self.state();
        state.names.iter().map(|(path, file)| (path.clone(), state.files[*file].live.clone())).collect()
    }
}
