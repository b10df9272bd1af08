//! Pack files: opening one (by its index, or by a scan that cuts a torn tail), reading records, appending them,
//! sealing. It never decides which pack a chunk goes to. Everything is read by calls and nothing through a map: where the disk
//! cannot read, a call fails, and a map takes the process down.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, RwLock};

use super::error::OpenError;
use super::pack_index::{self, Entries};
use super::record::{self, Entry, Head, PACK_HEADER_BYTES, PackHeader};
use crate::disk::{Disk, DiskFile};
use crate::sync::{read, write};
use crate::{BLOCK_BYTES, FileError, is_zero};

/// A pack file.
pub(super) struct Pack {
    pub(super) number: u32,
    pub(super) path: PathBuf,
    /// It takes records of today's format.
    pub(super) current: bool,
    disk: Arc<dyn Disk>,
    /// While the pack is not sealed. A sealed one is opened for each read, which costs little beside what is read: a store has
    /// more packs than a process may have files open.
    file: RwLock<Option<Arc<dyn DiskFile>>>,
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
        Pack { number, path, current: true, disk, file, sealed_len: OnceLock::new() }
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
        let reading = || FileError::at("read the pack", &path);
        let mut header = [0; PACK_HEADER_BYTES as usize];
        file.read_at(0, &mut header).map_err(reading())?;
        let parsed = record::parse_pack_header(&header);
        let Some(PackHeader { current, .. }) = parsed.filter(|header| header.number == number) else {
            // Torn: it is made durable before anything else is written.
            let mut rest = vec![0; (len.min(BLOCK_BYTES) - PACK_HEADER_BYTES) as usize];
            file.read_at(PACK_HEADER_BYTES, &mut rest).map_err(reading())?;
            if len <= BLOCK_BYTES && is_zero(&rest) {
                return Ok(Found::Nothing);
            }
            let newer = parsed.is_none() && record::is_some_pack(&header);
            return Err(OpenError::UnknownPack { path, newer });
        };
        let read = |at: u64, buffer: &mut [u8]| file.read_at(at, buffer);
        if pack_index::find(len, &read).map_err(reading())?.is_some() {
            let mut pack = Pack::new(disk, number, path, Some(file));
            pack.sealed_len = OnceLock::from(len);
            return Ok(Found::Sealed(pack));
        }
        let scan = record::scan(len, read).map_err(reading())?;
        if scan.end < len {
            file.set_len(scan.end).map_err(FileError::at("cut the torn end of", &path))?;
        }
        let mut pack = Pack::new(disk, number, path, Some(file));
        pack.current = current;
        Ok(Found::Unsealed { pack, entries: scan.entries, end: scan.end })
    }

    /// The entries of a sealed pack, sorted by chunk, then place. `None`: it is not sealed.
    pub(super) fn entries(&self) -> Result<Option<Entries<'_>>, FileError> {
        let Some(len) = self.sealed_len.get().copied() else { return Ok(None) };
        let failed = || FileError::at("read", &self.path);
        let file = self.reader()?;
        let read = |at: u64, buffer: &mut [u8]| file.read_at(at, buffer);
        if let Some(footer) = pack_index::find(len, &read).map_err(failed())? {
            // Opened anew for each part: these are kept of all packs at once.
            let read = move |at: u64, buffer: &mut [u8]| self.reader()?.read_at(at, buffer).map_err(failed());
            let damaged = move || failed()(io::ErrorKind::InvalidData.into());
            return Ok(Some(pack_index::entries(footer, read, damaged)));
        }
        // Its index has decayed since it was sealed.
        let mut entries = record::scan(len, read).map_err(failed())?.entries;
        entries.sort_unstable_by_key(Entry::order);
        Ok(Some(Box::new(entries.into_iter().map(Ok))))
    }

    /// The file, to be read.
    fn reader(&self) -> Result<Arc<dyn DiskFile>, FileError> {
        match read(&self.file).clone().filter(|_| self.sealed_len.get().is_none()) {
            Some(file) => Ok(file),
            None => self.disk.open(&self.path).map_err(FileError::at("open the pack", &self.path)),
        }
    }

    /// Reads the file's first bytes, to tell a bad place in it from a file that is out of reach.
    pub(super) fn read_beginning(&self) -> Result<(), FileError> {
        let mut header = [0; PACK_HEADER_BYTES as usize];
        self.reader()?.read_at(0, &mut header).map_err(FileError::at("read", &self.path))
    }

    /// The bytes of the record at `offset` as they lie in the file, or fewer where no record begins there, given to `look`.
    pub(super) fn with_record<T>(
        &self,
        offset: u64,
        look: impl FnOnce(&[u8]) -> io::Result<T>,
    ) -> Result<T, FileError> {
        let failed = || FileError::at("read", &self.path);
        let file = self.reader()?;
        let mut head = [0; record::MAX_HEAD_BYTES];
        file.read_at(offset, &mut head).map_err(failed())?;
        let Some(len) = Head::parse(&head).map(|head| head.record_bytes()) else {
            return look(&head).map_err(failed());
        };
        let mut record = vec![0; len];
        file.read_at(offset, &mut record).map_err(failed())?;
        look(&record).map_err(failed())
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
        let file = self.file()?;
        file.end().map_err(|error| {
            let _ = file.set_len(at);
            FileError::at("end the pack", &self.path)(error)
        })?;
        let _ = self.sealed_len.set(at + index.len() as u64);
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

pub(super) fn file_name(number: u32) -> String {
    format!("{number:04}.pack")
}

/// The number in a pack's file name.
pub(super) fn parse_file_name(name: &str) -> Option<u32> {
    let number = name.strip_suffix(".pack")?.parse().ok()?;
    (file_name(number) == name).then_some(number)
}
