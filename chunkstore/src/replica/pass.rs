//! A pass that is writing the next generation. Until its commit it changes nothing that the present one needs; it is
//! read as the image it will become. It never commits by itself: dropping it is to abandon it.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, RwLock};

use super::extents::{Extents, Source};
use super::format::{self, LogHeader, MAX_PAYLOAD_BYTES, MAX_SOURCE_BYTES, RECORD_HEADER_BYTES};
use super::{Generation, ReplicaError, Shared, recover};
use crate::disk::RealDisk;
use crate::sync::{lock, read, write};
use crate::{FileError, RawImage, ReadImage, files};

/// A pass into a [`Replica`](crate::Replica). Its methods take `&self` and may be called from several threads; it
/// reads as an image.
pub struct Pass {
    shared: Arc<Shared>,
    base: Option<Generation>,
    size: u64,
    target: Target,
}

enum Target {
    /// A new image.
    Whole(RawImage),
    /// A redo log over the present image.
    Log { image: RawImage, file: File, log: RwLock<Log> },
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
        let target = match &base {
            None => {
                let path = shared.path(recover::PARTIAL);
                files::remove(&RealDisk, &path)?;
                Target::Whole(RawImage::create(&path, size).map_err(FileError::at("create", &path))?)
            }
            Some(base) => {
                let (image_path, path) = (shared.path(recover::IMAGE), shared.path(recover::LOG));
                let image =
                    RawImage::open_read(&image_path).map_err(FileError::at("open the image", &image_path))?;
                files::remove(&RealDisk, &path)?;
                let file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create_new(true)
                    .open(&path)
                    .map_err(FileError::at("create the redo log", &path))?;
                let header = LogHeader { size, base: base.number }.encode();
                file.write_all_at(&header, 0).map_err(FileError::at("write the redo log", &path))?;
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
            Target::Whole(image) => {
                Ok(image.write_at(offset, data).map_err(FileError::at("write to", image.path()))?)
            }
            Target::Log { file, log, .. } => {
                let mut at = offset;
                for part in data.chunks(MAX_PAYLOAD_BYTES) {
                    let record = format::encode_data(at, part);
                    let mut log = write(log);
                    let payload_at = log.end + RECORD_HEADER_BYTES as u64;
                    let range = at..at + part.len() as u64;
                    at = range.end;
                    self.append(file, &mut log, &record, range, Source::Log(payload_at))?;
                }
                Ok(())
            }
        }
    }

    /// Makes `len` bytes from `offset` on zero in the next generation.
    pub fn zero(&self, offset: u64, len: u64) -> Result<(), ReplicaError> {
        self.check_range(offset, len)?;
        match &self.target {
            Target::Whole(image) => {
                Ok(image.zero(offset, len).map_err(FileError::at("write to", image.path()))?)
            }
            Target::Log { .. } if len == 0 => Ok(()),
            Target::Log { file, log, .. } => {
                let record = format::encode_zero(offset, len);
                self.append(file, &mut write(log), &record, offset..offset + len, Source::Zero)
            }
        }
    }

    fn append(
        &self,
        file: &File,
        log: &mut Log,
        record: &[u8],
        range: Range<u64>,
        source: Source,
    ) -> Result<(), ReplicaError> {
        // A torn record is overwritten by the next one, or ends the log for who reads it after a crash.
        file.write_all_at(record, log.end)
            .map_err(FileError::at("write the redo log", &self.shared.path(recover::LOG)))?;
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

    /// Makes what was written the present generation. On an error the generation before stands, whole, but for
    /// [`ReplicaError::Unfinished`]: then the new one is durable and comes into place later.
    pub fn commit(self, generation: Generation) -> Result<(), ReplicaError> {
        self.check_generation(&generation)?;
        match &self.target {
            Target::Whole(image) => {
                image.sync_all().map_err(FileError::at("sync", image.path()))?;
                self.commit_image(&generation)?;
                self.finish(generation, recover::place_image)
            }
            Target::Log { file, log, .. } => {
                let log = write(log);
                self.commit_log(file, &log, &generation)?;
                self.finish(generation, |dir, generation| {
                    recover::finish_log(dir, file, &log.extents, generation)
                })
            }
        }
    }

    /// Puts a committed generation into place.
    fn finish(
        &self,
        generation: Generation,
        place: impl FnOnce(&Path, &Generation) -> Result<(), ReplicaError>,
    ) -> Result<(), ReplicaError> {
        let _changing = write(&self.shared.image);
        let placed = place(&self.shared.dir, &generation);
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

    /// Makes the new image's name durable, then the state that commits it: never the other way round.
    fn commit_image(&self, generation: &Generation) -> Result<(), ReplicaError> {
        let dir = &self.shared.dir;
        files::sync_dir(&RealDisk, dir)?;
        let written =
            files::replace(&RealDisk, dir, recover::NEXT_STATE, [&format::encode_state(generation)[..]]);
        if let Err(error) = written {
            // Perhaps it is there all the same. It must be gone before the image that it speaks for.
            let next = self.shared.path(recover::NEXT_STATE);
            if files::remove(&RealDisk, &next).and_then(|()| files::sync_dir(&RealDisk, dir)).is_err() {
                lock(&self.shared.state).unfinished = true;
            }
            return Err(error.into());
        }
        Ok(())
    }

    /// Makes the log durable, then its commit record.
    fn commit_log(&self, file: &File, log: &Log, generation: &Generation) -> Result<(), ReplicaError> {
        let path = self.shared.path(recover::LOG);
        let writing = || FileError::at("write the redo log", &path);
        // Bytes of a record that failed to be written must not follow the last good one.
        file.set_len(log.end).and_then(|()| file.sync_all()).map_err(writing())?;
        files::sync_dir(&RealDisk, &self.shared.dir)?;
        let record = format::encode_commit(generation, log.records);
        file.write_all_at(&record, log.end).and_then(|()| file.sync_all()).map_err(writing())?;
        Ok(())
    }

    fn check_generation(&self, generation: &Generation) -> Result<(), ReplicaError> {
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
            let _ = files::remove(&RealDisk, &self.shared.path(recover::PARTIAL));
            let _ = files::remove(&RealDisk, &self.shared.path(recover::LOG));
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
                recover::read_over(image, file, &read(log).extents, offset, buf)
            }
        }
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        match &self.target {
            Target::Whole(image) => image.next_data(offset),
            Target::Log { image, log, .. } => recover::next_data_over(image, &read(log).extents, offset),
        }
    }
}
