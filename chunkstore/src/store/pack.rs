//! Pack files: opening one (by its index, or by a scan that cuts a torn tail), reading records, appending them,
//! sealing. It never decides which pack a chunk goes to.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, RwLock};

use super::OpenError;
use super::record::{self, Entry, Head, PACK_HEADER_BYTES, PackHeader, PackIndex, Scan};
use crate::disk::{Disk, DiskFile};
use crate::map::{Behind, Map};
use crate::sync::{read, write};
use crate::{BLOCK_BYTES, FileError, is_zero};

/// A pack file.
pub(super) struct Pack {
    pub(super) number: u32,
    pub(super) path: PathBuf,
    /// It takes records of today's format.
    pub(super) current: bool,
    disk: Arc<dyn Disk>,
    /// While the pack is not sealed. A sealed one is opened when it is first read, and only its map is kept: a store has
    /// more packs than a process may have files open.
    file: RwLock<Option<Arc<dyn DiskFile>>>,
    /// Set once the pack is sealed.
    map: OnceLock<Map>,
    /// Length of the file once the pack is sealed.
    sealed_len: OnceLock<u64>,
}

/// A pack as found on the disk.
pub(super) enum Found {
    /// Its creation was interrupted, and there is nothing in it.
    Nothing,
    Sealed(Pack),
    Unsealed {
        pack: Pack,
        entries: Vec<Entry>,
        /// Where to append.
        end: u64,
    },
}

impl Pack {
    fn new(disk: &Arc<dyn Disk>, number: u32, path: PathBuf, file: Option<Arc<dyn DiskFile>>) -> Pack {
        let (disk, file) = (disk.clone(), RwLock::new(file));
        Pack { number, path, current: true, disk, file, map: OnceLock::new(), sealed_len: OnceLock::new() }
    }

    /// Starts a new pack. A failure leaves no file.
    pub(super) fn create(disk: &Arc<dyn Disk>, dir: &Path, number: u32) -> Result<Pack, FileError> {
        let path = dir.join(file_name(number));
        let file = disk.create_appended(&path).map_err(FileError::at("create the pack", &path))?;
        // Durable before the first record: a crash can then tear the header of a pack only while there is nothing in it.
        if let Err(error) = file.write_at(0, &record::pack_header(number)).and_then(|()| file.sync()) {
            let _ = disk.remove(&path);
            return Err(FileError::at("write the pack", &path)(error));
        }
        Ok(Pack::new(disk, number, path, Some(file)))
    }

    /// A pack that is known to be sealed and whole, if its file has this length.
    pub(super) fn sealed(
        disk: &Arc<dyn Disk>,
        dir: &Path,
        number: u32,
        len: u64,
    ) -> Result<Option<Pack>, FileError> {
        let path = dir.join(file_name(number));
        let found = disk.open(&path).and_then(|file| file.len());
        let found = found.map_err(FileError::at("open the pack", &path))?;
        let mut pack = Pack::new(disk, number, path, None);
        pack.sealed_len = OnceLock::from(len);
        Ok((found == len).then_some(pack))
    }

    /// Opens the pack of this number, reading its index, or all of it where there is none.
    pub(super) fn open(disk: &Arc<dyn Disk>, dir: &Path, number: u32) -> Result<Found, OpenError> {
        let path = dir.join(file_name(number));
        let opening = || FileError::at("open the pack", &path);
        let file = disk.open(&path).map_err(opening())?;
        let len = file.len().map_err(opening())?;
        if len < PACK_HEADER_BYTES {
            return Ok(Found::Nothing);
        }
        let map = file.map().map_err(opening())?;
        let header = record::parse_pack_header(map.bytes());
        let Some(PackHeader { current, .. }) = header.filter(|header| header.number == number) else {
            // Torn: it is made durable before anything else is written.
            if len <= BLOCK_BYTES && is_zero(&map.bytes()[PACK_HEADER_BYTES as usize..]) {
                return Ok(Found::Nothing);
            }
            let newer = header.is_none() && record::is_some_pack(map.bytes());
            return Err(OpenError::UnknownPack { path, newer });
        };
        if PackIndex::parse(map.bytes()).is_some() {
            let mut pack = Pack::new(disk, number, path, Some(file));
            pack.sealed_len = OnceLock::from(len);
            pack.map = OnceLock::from(map);
            return Ok(Found::Sealed(pack));
        }
        let scan = scan(&map);
        drop(map);
        if scan.end < len {
            file.set_len(scan.end).map_err(FileError::at("cut the torn end of", &path))?;
        }
        let mut pack = Pack::new(disk, number, path, Some(file));
        pack.current = current;
        Ok(Found::Unsealed { pack, entries: scan.entries, end: scan.end })
    }

    /// The entries of a sealed pack, sorted by chunk, then place. `None`: it is not sealed.
    pub(super) fn entries(&self) -> Result<Option<Box<dyn Iterator<Item = Entry> + '_>>, FileError> {
        let Some(map) = self.map()? else { return Ok(None) };
        Ok(Some(match PackIndex::parse(map.bytes()) {
            Some(index) => Box::new(index.entries()),
            None => {
                // Its index has decayed since it was sealed.
                let mut entries = scan(map).entries;
                entries.sort_unstable_by_key(Entry::order);
                Box::new(entries.into_iter())
            }
        }))
    }

    /// Nobody looks at its entries any more.
    pub(super) fn let_go(&self) {
        if let Some(map) = self.map.get() {
            map.let_go(0..map.bytes().len());
        }
    }

    /// `None`: the pack is not sealed.
    fn map(&self) -> Result<Option<&Map>, FileError> {
        if let Some(map) = self.map.get() {
            return Ok(Some(map));
        }
        if read(&self.file).is_some() {
            return Ok(None);
        }
        // It may have been sealed between the two looks; then it is mapped now, and the second map is dropped.
        let map = self.disk.open(&self.path).and_then(|file| file.map());
        let map = map.map_err(FileError::at("open the pack", &self.path))?;
        Ok(Some(self.map.get_or_init(|| map)))
    }

    /// The bytes of the record at `offset` as they lie in the file, and perhaps more behind it, given to `read`.
    pub(super) fn with_record<T>(&self, offset: u64, read: impl FnOnce(&[u8]) -> T) -> Result<T, FileError> {
        let failed = || FileError::at("read", &self.path);
        if let Some(map) = self.map()? {
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            let bytes =
                map.bytes().get(start..).ok_or_else(|| failed()(io::ErrorKind::UnexpectedEof.into()))?;
            let result = read(bytes);
            // Who reads all of a large image would have all of it in memory.
            let len = Head::parse(bytes).map_or(0, |head| head.record_bytes());
            map.let_go(start..start + len);
            return Ok(result);
        }
        let file = self.file()?;
        let mut buffer = vec![0; record::MAX_HEAD_BYTES];
        file.read_at(offset, &mut buffer).map_err(failed())?;
        if let Some(head) = Head::parse(&buffer) {
            buffer.resize(head.record_bytes(), 0);
            file.read_at(offset, &mut buffer).map_err(failed())?;
        }
        Ok(read(&buffer))
    }

    /// Writes at the end of the pack; a failure leaves the pack as it was before, as far as the disk lets it.
    pub(super) fn append(&self, at: u64, bytes: &[u8]) -> Result<(), FileError> {
        let file = self.file()?;
        file.write_at(at, bytes).map_err(|error| {
            // A tail that stays is cut by the next open.
            let _ = file.set_len(at);
            FileError::at("write a chunk to", &self.path)(error)
        })
    }

    /// Ends the pack at `at` with its index; from here on it does not change.
    pub(super) fn seal(&self, at: u64, entries: &mut [Entry]) -> Result<(), FileError> {
        let index = record::encode_index(entries, at);
        self.append(at, &index)?;
        let _ = self.sealed_len.set(at + index.len() as u64);
        // Not being mapped only makes reads slower.
        if let Ok(map) = self.file()?.map() {
            let _ = self.map.set(map);
        }
        Ok(())
    }

    /// Makes the pack durable and, when it is sealed, closes its file. Gives its length then.
    pub(super) fn settle(&self) -> Result<Option<u64>, FileError> {
        if let Some(file) = read(&self.file).clone() {
            file.sync().map_err(FileError::at("sync", &self.path))?;
        }
        let sealed_len = self.sealed_len.get().copied();
        if sealed_len.is_some() {
            *write(&self.file) = None;
        }
        Ok(sealed_len)
    }

    /// Length of the file.
    pub(super) fn bytes(&self) -> Result<u64, FileError> {
        match self.sealed_len.get() {
            Some(len) => Ok(*len),
            None => self.file()?.len().map_err(FileError::at("look at", &self.path)),
        }
    }

    fn file(&self) -> Result<Arc<dyn DiskFile>, FileError> {
        let sealed =
            || FileError::at("write to the sealed pack", &self.path)(io::ErrorKind::Unsupported.into());
        read(&self.file).clone().ok_or_else(sealed)
    }
}

fn scan(map: &Map) -> Scan {
    let mut behind = Behind::of(map);
    record::scan(map.bytes(), |at| behind.pass(at))
}

pub(super) fn file_name(number: u32) -> String {
    format!("{number:04}.pack")
}

/// The number in a pack's file name.
pub(super) fn parse_file_name(name: &str) -> Option<u32> {
    let number = name.strip_suffix(".pack")?.parse().ok()?;
    (file_name(number) == name).then_some(number)
}
