//! A pass that is writing the next generation. Until its commit it changes nothing that the present one needs; it is
//! read as the image it will become. It never commits by itself: dropping it is to abandon it.

use std::io;
use std::ops::Range;
use std::sync::{Arc, RwLock};

use super::error::ReplicaError;
use super::extents::{Extents, Source};
use super::format::{self, LogHeader, MAX_PAYLOAD_BYTES, MAX_SOURCE_BYTES, RECORD_HEADER_BYTES};
use super::generation::Generation;
use super::shared::Shared;
use super::{names, recover};
use crate::disk::{DiskFile, DiskImage};
use crate::sync::{lock, read, write};
use crate::{FileError, ReadImage, files};

/// A pass into a [`Replica`](crate::Replica). Its methods take `&self` and may be called from several threads; it
/// reads as an image.
pub struct Pass {
    pub(super) shared: Arc<Shared>,
    base: Option<Generation>,
    size: u64,
    target: Target,
}

enum Target {
    /// A new image.
    Whole(Arc<dyn DiskImage>),
    /// A redo log over the present image.
    Log { image: Arc<dyn DiskImage>, file: Arc<dyn DiskFile>, log: RwLock<Log> },
}

/// A redo log as written so far.
struct Log {
    extents: Extents,
    end: u64,
    records: u64,
}

impl Pass {
    pub(super) fn start(
        shared: Arc<Shared>,
        base: Option<Generation>,
        size: u64,
    ) -> Result<Pass, ReplicaError> {
        let disk = &*shared.disk;
        let target = match &base {
            None => {
                let path = shared.path(names::PARTIAL);
                files::remove(disk, &path)?;
                Target::Whole(disk.create_image(&path, size).map_err(FileError::at("create", &path))?)
            }
            Some(base) => {
                let (image_path, path) = (shared.path(names::IMAGE), shared.path(names::LOG));
                let image =
                    disk.open_image(&image_path).map_err(FileError::at("open the image", &image_path))?;
                files::remove(disk, &path)?;
                let file = disk.create(&path).map_err(FileError::at("create the redo log", &path))?;
                let header = LogHeader { size, base: base.number }.encode();
                file.write_at(0, &header).map_err(FileError::at("write the redo log", &path))?;
                let log = Log { extents: Extents::default(), end: header.len() as u64, records: 0 };
                Target::Log { image, file, log: RwLock::new(log) }
            }
        };
        Ok(Pass { shared, base, size, target })
    }

    /// The generation this pass starts from; `None` when it starts from zeroes.
    pub fn base(&self) -> Option<&Generation> {
        self.base.as_ref()
    }

    /// Writes `data` at `offset` of the next generation.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), ReplicaError> {
        self.check_range(offset, data.len() as u64)?;
        match &self.target {
            Target::Whole(image) => Ok(image.write_at(offset, data).map_err(self.writing_partial())?),
            Target::Log { file, log, .. } => {
                let mut at = offset;
                for part in data.chunks(MAX_PAYLOAD_BYTES) {
                    let record = format::encode_data(at, part);
                    let mut log = write(log);
                    let payload_at = log.end + RECORD_HEADER_BYTES as u64;
                    let range = at..at + part.len() as u64;
                    at = range.end;
                    self.append(&**file, &mut log, &record, range, Source::Log(payload_at))?;
                }
                Ok(())
            }
        }
    }

    /// Makes `len` bytes from `offset` on zero in the next generation.
    pub fn zero(&self, offset: u64, len: u64) -> Result<(), ReplicaError> {
        self.check_range(offset, len)?;
        match &self.target {
            Target::Whole(image) => Ok(image.zero(offset, len).map_err(self.writing_partial())?),
            Target::Log { .. } if len == 0 => Ok(()),
            Target::Log { file, log, .. } => {
                let record = format::encode_zero(offset, len);
                self.append(&**file, &mut write(log), &record, offset..offset + len, Source::Zero)
            }
        }
    }

    fn append(
        &self,
        file: &dyn DiskFile,
        log: &mut Log,
        record: &[u8],
        range: Range<u64>,
        source: Source,
    ) -> Result<(), ReplicaError> {
        // A torn record is overwritten by the next one, or ends the log for who reads it after a crash.
        file.write_at(log.end, record)
            .map_err(FileError::at("write the redo log", &self.shared.path(names::LOG)))?;
        log.end += record.len() as u64;
        log.records += 1;
        log.extents.insert(range, source);
        Ok(())
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<(), ReplicaError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(ReplicaError::OutOfRange { offset, len, size: self.size }),
        }
    }

    fn writing_partial(&self) -> impl FnOnce(io::Error) -> FileError + use<> {
        let path = self.shared.path(names::PARTIAL);
        move |cause| FileError::at("write to", &path)(cause)
    }

    /// Makes what was written the present generation. On an error the generation before stands, whole, but for
    /// [`ReplicaError::Unfinished`]: then the new one is durable and comes into place later.
    pub fn commit(self, generation: Generation) -> Result<(), ReplicaError> {
        self.check_generation(&generation)?;
        self.make_durable()?;
        self.write_commit(&generation)?;
        self.place(generation)
    }

    /// Makes what was written durable, and the names of its files.
    pub(super) fn make_durable(&self) -> Result<(), ReplicaError> {
        match &self.target {
            Target::Whole(image) => {
                image.sync().map_err(FileError::at("sync", &self.shared.path(names::PARTIAL)))?;
            }
            Target::Log { file, log, .. } => {
                let end = write(log).end;
                // Bytes of a record that failed to be written must not follow the last good one.
                file.set_len(end)
                    .and_then(|()| file.sync())
                    .map_err(FileError::at("write the redo log", &self.shared.path(names::LOG)))?;
            }
        }
        Ok(files::sync_dir(&*self.shared.disk, &self.shared.dir)?)
    }

    /// Writes what commits the pass: the state of a new image, the last record of a log.
    pub(super) fn write_commit(&self, generation: &Generation) -> Result<(), ReplicaError> {
        match &self.target {
            Target::Whole(_) => self.commit_image(generation),
            Target::Log { file, log, .. } => {
                let log = write(log);
                let record = format::encode_commit(generation, log.records);
                let written = file.write_at(log.end, &record).and_then(|()| file.sync());
                Ok(written.map_err(FileError::at("write the redo log", &self.shared.path(names::LOG)))?)
            }
        }
    }

    /// Puts a committed generation into place.
    pub(super) fn place(&self, generation: Generation) -> Result<(), ReplicaError> {
        let (disk, dir) = (&*self.shared.disk, &self.shared.dir);
        let _changing = write(&self.shared.image);
        let placed = match &self.target {
            Target::Whole(_) => recover::place_image(disk, dir, &generation),
            Target::Log { file, log, .. } => {
                recover::finish_log(disk, dir, &**file, &read(log).extents, &generation)
            }
        };
        let mut state = lock(&self.shared.state);
        match placed {
            Ok(()) => {
                state.generation = Some(generation);
                Ok(())
            }
            Err(cause) => {
                state.unfinished = true;
                Err(ReplicaError::Unfinished { number: generation.number, cause: Box::new(cause) })
            }
        }
    }

    fn commit_image(&self, generation: &Generation) -> Result<(), ReplicaError> {
        let (disk, dir) = (&*self.shared.disk, &self.shared.dir);
        let written = files::replace(disk, dir, names::NEXT_STATE, [&format::encode_state(generation)[..]]);
        if let Err(error) = written {
            // Perhaps it is there all the same. It must be gone before the image that it speaks for.
            let next = self.shared.path(names::NEXT_STATE);
            if files::remove(disk, &next).and_then(|()| files::sync_dir(disk, dir)).is_err() {
                lock(&self.shared.state).unfinished = true;
            }
            return Err(error.into());
        }
        Ok(())
    }

    pub(super) fn check_generation(&self, generation: &Generation) -> Result<(), ReplicaError> {
        let before = lock(&self.shared.state).generation.as_ref().map_or(0, |before| before.number);
        let reason = if generation.size != self.size {
            "its size is not that of the pass"
        } else if generation.number <= before {
            "its number is not above that of the generation there is"
        } else if generation.source.len() > MAX_SOURCE_BYTES {
            "the name of its source is too long"
        } else {
            return Ok(());
        };
        Err(ReplicaError::BadGeneration { number: generation.number, reason })
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        if !state.unfinished {
            // Nothing is there any more after a commit; what stays because it cannot be removed, recovery removes.
            let _ = files::remove(&*self.shared.disk, &self.shared.path(names::PARTIAL));
            let _ = files::remove(&*self.shared.disk, &self.shared.path(names::LOG));
        }
        state.in_pass = false;
    }
}

/// The image as it will be.
impl ReadImage for Pass {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match &self.target {
            Target::Whole(image) => image.read_at(offset, buf),
            Target::Log { image, file, log } => {
                if self.check_range(offset, buf.len() as u64).is_err() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                recover::read_over(&**image, &**file, &read(log).extents, offset, buf)
            }
        }
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        match &self.target {
            Target::Whole(image) => image.next_data(offset),
            Target::Log { image, log, .. } => recover::next_data_over(&**image, &read(log).extents, offset),
        }
    }
}
