//! Bytes that are written once, from the first to the last, and then read any number of times: in memory while they are
//! few, in a file without a name when they are not. Nothing of it is durable, and nothing stays when its owner is gone,
//! however that ends. It never looks at what the bytes mean.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::FileError;
use crate::disk::{Disk, DiskFile};
use crate::map::{IN_MEMORY_BYTES, Map};

/// Distinguishes the files of this process in their directory, which no other process uses.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// The bytes on their way.
#[derive(Debug)]
pub(crate) struct Spool {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    file: Option<Arc<dyn DiskFile>>,
    /// Bytes in the file.
    written: u64,
    /// What follows them.
    buffer: Vec<u8>,
}

impl Spool {
    /// For bytes that belong into `dir`, on its disk.
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: &Path) -> Spool {
        Spool { disk, dir: dir.to_owned(), file: None, written: 0, buffer: Vec::new() }
    }

    /// Appends.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() > IN_MEMORY_BYTES { self.flush() } else { Ok(()) }
    }

    /// Writes over what is at the beginning, no further than what was written so far.
    pub(crate) fn write_head(&mut self, head: &[u8]) -> Result<(), FileError> {
        match &self.file {
            Some(file) => file.write_at(0, head).map_err(self.failed()),
            None => {
                self.buffer[..head.len()].copy_from_slice(head);
                Ok(())
            }
        }
    }

    /// BLAKE3 of everything so far.
    pub(crate) fn hash(&self) -> Result<blake3::Hash, FileError> {
        let mut hasher = blake3::Hasher::new();
        if let Some(file) = &self.file {
            let (mut window, mut at) = (vec![0; IN_MEMORY_BYTES], 0);
            while at < self.written {
                let len = (self.written - at).min(window.len() as u64);
                file.read_at(at, &mut window[..len as usize]).map_err(self.failed())?;
                hasher.update(&window[..len as usize]);
                at += len;
            }
        }
        Ok(hasher.update(&self.buffer).finalize())
    }

    /// Everything, to be read.
    pub(crate) fn finish(mut self) -> Result<Map, FileError> {
        if self.file.is_some() {
            self.flush()?;
        }
        match &self.file {
            Some(file) => file.map().map_err(self.failed()),
            None => Ok(Map::from(self.buffer)),
        }
    }

    fn flush(&mut self) -> Result<(), FileError> {
        let file = match &self.file {
            Some(file) => file.clone(),
            None => self.file.insert(self.create()?).clone(),
        };
        file.write_at(self.written, &self.buffer).map_err(self.failed())?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// A file that is there as long as somebody has it open. No reference has the name that it has for a moment, and a
    /// crash in that moment leaves what the next opening removes.
    fn create(&self) -> Result<Arc<dyn DiskFile>, FileError> {
        let path = self.dir.join(format!(".~{}.tmp", NEXT.fetch_add(1, Ordering::Relaxed)));
        let failed = || FileError::at("create", &path);
        crate::files::remove(&*self.disk, &path)?;
        let file = self.disk.create(&path).map_err(failed())?;
        self.disk.remove(&path).map_err(failed())?;
        Ok(file)
    }

    /// An error of this spool.
    pub(crate) fn failed(&self) -> impl FnOnce(std::io::Error) -> FileError {
        FileError::at("write a temporary file in", &self.dir)
    }
}

#[cfg(test)]
mod tests;
