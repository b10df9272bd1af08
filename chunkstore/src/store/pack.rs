//! Pack files: opening one (by its index, or by a scan that cuts a torn tail), reading records, appending them,
//! sealing. It never decides which pack a chunk goes to.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::OpenError;
use super::record::{self, Entry, PACK_HEADER_BYTES, PACK_MAGIC};
use crate::map::Map;
use crate::{FileError, is_zero};

/// A pack file, open.
pub(super) struct Pack {
    pub(super) number: u32,
    pub(super) path: PathBuf,
    file: File,
    /// Set once the pack is sealed.
    map: OnceLock<Map>,
}

/// A pack as found on the disk.
pub(super) struct Found {
    pub(super) pack: Pack,
    pub(super) entries: Vec<Entry>,
    /// Where to append; `None` when the pack is sealed.
    pub(super) append_at: Option<u64>,
}

impl Pack {
    /// Starts a new pack. A failure leaves no file.
    pub(super) fn create(dir: &Path, number: u32) -> Result<Pack, FileError> {
        let path = dir.join(file_name(number));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(FileError::at("create the pack", &path))?;
        if let Err(error) = file.write_all_at(&record::pack_header(number), 0) {
            let _ = std::fs::remove_file(&path);
            return Err(FileError::at("write the pack", &path)(error));
        }
        Ok(Pack { number, path, file, map: OnceLock::new() })
    }

    /// Opens the pack of this number. `Ok(None)`: its creation was interrupted and there is nothing in it.
    pub(super) fn open(dir: &Path, number: u32) -> Result<Option<Found>, OpenError> {
        let path = dir.join(file_name(number));
        let opening = || FileError::at("open the pack", &path);
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(opening())?;
        let len = file.metadata().map_err(opening())?.len();
        if len < PACK_HEADER_BYTES {
            return Ok(None);
        }
        let map = Map::of(&file).map_err(opening())?;
        if record::parse_pack_header(map.bytes()) != Some(number) {
            // A crash right after the creation can leave the length without the bytes.
            if is_zero(map.bytes()) {
                return Ok(None);
            }
            let begins = |magic: &[u8]| map.bytes().starts_with(magic);
            let newer = begins(&PACK_MAGIC[..6]) && !begins(PACK_MAGIC);
            return Err(OpenError::UnknownPack { path, newer });
        }
        if let Some(entries) = record::parse_index(map.bytes()) {
            let pack = Pack { number, path, file, map: OnceLock::from(map) };
            return Ok(Some(Found { pack, entries, append_at: None }));
        }
        let scan = record::scan(map.bytes());
        drop(map);
        if scan.end < len {
            file.set_len(scan.end).map_err(FileError::at("cut the torn end of", &path))?;
        }
        let pack = Pack { number, path, file, map: OnceLock::new() };
        Ok(Some(Found { pack, entries: scan.entries, append_at: Some(scan.end) }))
    }

    /// The bytes of one record as they lie in the file, given to `read`.
    pub(super) fn with_record<T>(
        &self,
        offset: u64,
        len: usize,
        read: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, FileError> {
        if let Some(map) = self.map.get() {
            let bytes = usize::try_from(offset).ok().and_then(|start| map.bytes().get(start..start + len));
            let outside = || FileError::at("read", &self.path)(io::ErrorKind::UnexpectedEof.into());
            return bytes.map(read).ok_or_else(outside);
        }
        let mut buffer = vec![0; len];
        self.file.read_exact_at(&mut buffer, offset).map_err(FileError::at("read", &self.path))?;
        Ok(read(&buffer))
    }

    /// Writes at the end of the pack; a failure leaves the pack as it was before, as far as the disk lets it.
    pub(super) fn append(&self, at: u64, bytes: &[u8]) -> Result<(), FileError> {
        self.file.write_all_at(bytes, at).map_err(|error| {
            // A tail that stays is cut by the next open.
            let _ = self.file.set_len(at);
            FileError::at("write a chunk to", &self.path)(error)
        })
    }

    /// Ends the pack at `at` with its index; from here on it does not change.
    pub(super) fn seal(&self, at: u64, entries: &mut [Entry]) -> Result<(), FileError> {
        self.append(at, &record::encode_index(entries, at))?;
        // Not being mapped only makes reads slower.
        if let Ok(map) = Map::of(&self.file) {
            let _ = self.map.set(map);
        }
        Ok(())
    }

    /// Length of the file.
    pub(super) fn bytes(&self) -> Result<u64, FileError> {
        Ok(self.file.metadata().map_err(FileError::at("look at", &self.path))?.len())
    }

    pub(super) fn sync(&self) -> Result<(), FileError> {
        self.file.sync_data().map_err(FileError::at("sync", &self.path))
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
