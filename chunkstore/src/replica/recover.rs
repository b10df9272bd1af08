//! The steps that make a committed pass the present generation, and the same steps again after a crash. Each can be
//! repeated; none of them decides whether a pass is committed.

use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::path::Path;

use super::error::ReplicaError;
use super::extents::{Extents, Source};
use super::generation::Generation;
use super::names::{IMAGE, LOG, NEXT_STATE, PARTIAL, STATE};
use super::{format, guard};
use crate::disk::{Disk, DiskFile, DiskImage};
use crate::{FileError, files};

/// Bytes of the log put into the image with one write.
const APPLY_BYTES: usize = 1 << 20;

/// Brings the directory into order and gives the generation it holds.
pub(super) fn recover(disk: &dyn Disk, dir: &Path) -> Result<Option<Generation>, ReplicaError> {
    guard::settle(disk, dir)?;
    if let Some(generation) = read_state(disk, &dir.join(NEXT_STATE))? {
        place_image(disk, dir, &generation)?;
    } else {
        files::remove(disk, &dir.join(PARTIAL))?;
    }
    let Some(generation) = read_state(disk, &dir.join(STATE))? else {
        files::remove(disk, &dir.join(LOG))?;
        return Ok(None);
    };
    check_image(disk, &dir.join(IMAGE), &generation)?;
    recover_log(disk, dir, generation).map(Some)
}

/// Applies the redo log if it is committed and starts from this generation.
fn recover_log(disk: &dyn Disk, dir: &Path, generation: Generation) -> Result<Generation, ReplicaError> {
    let path = dir.join(LOG);
    let log = match disk.open(&path) {
        Ok(log) => log,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(generation),
        Err(error) => return Err(FileError::at("open the redo log", &path)(error).into()),
    };
    let reading = || FileError::at("read the redo log", &path);
    let len = log.len().map_err(reading())?;
    let mut magic = [0; 8];
    if len >= 8 {
        log.read_at(0, &mut magic).map_err(reading())?;
    }
    if format::is_other_version(&magic) {
        return Err(ReplicaError::OtherVersion { path });
    }
    let mut reader = BufReader::with_capacity(1 << 20, LogReader { log: &*log, at: 0, len });
    match format::read_log(&mut reader).map_err(reading())? {
        // A log that starts from another generation has been applied already.
        Some(committed) if committed.header.base == generation.number => {
            check_image(disk, &dir.join(IMAGE), &committed.generation)?;
            finish_log(disk, dir, &*log, &committed.extents, &committed.generation)?;
            Ok(committed.generation)
        }
        _ => {
            files::remove(disk, &path)?;
            Ok(generation)
        }
    }
}

/// A log from its beginning to its end.
struct LogReader<'a> {
    log: &'a dyn DiskFile,
    at: u64,
    len: u64,
}

impl Read for LogReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = (self.len - self.at).min(buf.len() as u64) as usize;
        self.log.read_at(self.at, &mut buf[..count])?;
        self.at += count as u64;
        Ok(count)
    }
}

pub(super) fn read_state(disk: &dyn Disk, path: &Path) -> Result<Option<Generation>, ReplicaError> {
    let bytes = match files::read_bounded(disk, path, format::MAX_STATE_BYTES as u64) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Vec::new(),
        Err(error) => return Err(FileError::at("read", path)(error).into()),
    };
    if format::is_other_version(&bytes) {
        return Err(ReplicaError::OtherVersion { path: path.to_owned() });
    }
    let damaged = || ReplicaError::Damaged { path: path.to_owned(), reason: "is not a state file" };
    format::parse_state(&bytes).map(Some).ok_or_else(damaged)
}

pub(super) fn check_image(disk: &dyn Disk, path: &Path, generation: &Generation) -> Result<(), ReplicaError> {
    let damaged = |reason| ReplicaError::Damaged { path: path.to_owned(), reason };
    match disk.open(path).and_then(|image| image.len()) {
        Ok(len) if len == generation.size => Ok(()),
        Ok(_) => Err(damaged("does not have the size of its generation")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(damaged("is missing")),
        Err(error) => Err(FileError::at("look at", path)(error).into()),
    }
}

/// Makes a committed new image the present one. The image's name must be durable before the state's.
pub(super) fn place_image(disk: &dyn Disk, dir: &Path, generation: &Generation) -> Result<(), ReplicaError> {
    let (partial, image) = (dir.join(PARTIAL), dir.join(IMAGE));
    match disk.rename(&partial, &image) {
        // Renamed before the crash.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        renamed => renamed.map_err(FileError::at("put the new image in place of", &image))?,
    }
    check_image(disk, &image, generation)?;
    files::sync_dir(disk, dir)?;
    let state = dir.join(STATE);
    disk.rename(&dir.join(NEXT_STATE), &state)
        .map_err(FileError::at("put the new state in place of", &state))?;
    Ok(files::sync_dir(disk, dir)?)
}

/// Makes a committed redo log the present generation.
pub(super) fn finish_log(
    disk: &dyn Disk,
    dir: &Path,
    log: &dyn DiskFile,
    extents: &Extents,
    generation: &Generation,
) -> Result<(), ReplicaError> {
    let path = dir.join(IMAGE);
    let applying = || FileError::at("apply the redo log to", &path);
    let image = disk.open_image(&path).map_err(applying())?;
    apply(log, extents, &*image).and_then(|()| image.sync()).map_err(applying())?;
    files::replace(disk, dir, STATE, [&format::encode_state(generation)[..]])?;
    files::remove(disk, &dir.join(LOG))?;
    Ok(files::sync_dir(disk, dir)?)
}

/// Writes every changed range to the image, neighbours together.
fn apply(log: &dyn DiskFile, extents: &Extents, image: &dyn DiskImage) -> io::Result<()> {
    let mut gathered = Gathered { start: 0, bytes: Vec::with_capacity(APPLY_BYTES) };
    for (range, source) in extents.iter() {
        match source {
            Source::Zero => image.zero(range.start, range.end - range.start)?,
            Source::Log(at) => gathered.add(log, at, range, image)?,
        }
    }
    gathered.flush(image)
}

struct Gathered {
    start: u64,
    bytes: Vec<u8>,
}

impl Gathered {
    fn add(
        &mut self,
        log: &dyn DiskFile,
        mut at: u64,
        mut range: Range<u64>,
        image: &dyn DiskImage,
    ) -> io::Result<()> {
        while !range.is_empty() {
            let full = self.bytes.len() == APPLY_BYTES;
            if full || self.start + self.bytes.len() as u64 != range.start {
                self.flush(image)?;
                self.start = range.start;
            }
            let held = self.bytes.len();
            let now = (range.end - range.start).min((APPLY_BYTES - held) as u64);
            self.bytes.resize(held + now as usize, 0);
            log.read_at(at, &mut self.bytes[held..])?;
            at += now;
            range.start += now;
        }
        Ok(())
    }

    fn flush(&mut self, image: &dyn DiskImage) -> io::Result<()> {
        if !self.bytes.is_empty() {
            image.write_at(self.start, &self.bytes)?;
            self.bytes.clear();
        }
        Ok(())
    }
}

/// Reads changed ranges over an image: the image as it will be once the log is applied.
pub(super) fn read_over(
    image: &dyn DiskImage,
    log: &dyn DiskFile,
    extents: &Extents,
    offset: u64,
    buf: &mut [u8],
) -> io::Result<()> {
    let end = offset + buf.len() as u64;
    let mut at = offset;
    while at < end {
        let changed = extents.next(at).filter(|(range, _)| range.start < end);
        let stop = match &changed {
            Some((range, _)) if range.start > at => range.start,
            Some((range, _)) => range.end.min(end),
            None => end,
        };
        let part = &mut buf[(at - offset) as usize..(stop - offset) as usize];
        match changed {
            Some((range, Source::Log(from))) if range.start == at => log.read_at(from, part)?,
            Some((range, Source::Zero)) if range.start == at => part.fill(0),
            _ => image.read_at(at, part)?,
        }
        at = stop;
    }
    Ok(())
}

/// The next data at or after `offset`, of the image with the changed ranges over it.
pub(super) fn next_data_over(
    image: &dyn DiskImage,
    extents: &Extents,
    mut offset: u64,
) -> io::Result<Option<Range<u64>>> {
    while offset < image.size() {
        let changed = extents.next(offset);
        match &changed {
            Some((range, Source::Log(_))) if range.start == offset => return Ok(Some(range.clone())),
            Some((range, Source::Zero)) if range.start == offset => {
                offset = range.end;
                continue;
            }
            _ => {}
        }
        let stop = changed.map_or(image.size(), |(range, _)| range.start);
        match image.next_data(offset)? {
            Some(data) if data.start < stop => return Ok(Some(data.start..data.end.min(stop))),
            _ => offset = stop,
        }
    }
    Ok(None)
}
