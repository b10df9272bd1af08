//! The steps that make a committed pass the present generation, and the same steps again after a crash. Each can be
//! repeated; none of them decides whether a pass is committed.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::extents::{Extents, Source};
use super::format;
use super::{Generation, ReplicaError};
use crate::disk::RealDisk;
use crate::{FileError, RawImage, ReadImage, files};

pub(super) const IMAGE: &str = "image.raw";
pub(super) const PARTIAL: &str = "image.partial";
pub(super) const LOG: &str = "redo.log";
pub(super) const STATE: &str = "state";
/// The state that belongs to [`PARTIAL`]: once it is there, that image is committed.
pub(super) const NEXT_STATE: &str = "state.next";
pub(super) const MANIFEST: &str = "manifest";
pub(super) const TREE: &str = "tree";

/// Bytes of the log put into the image with one write.
const APPLY_BYTES: usize = 1 << 20;

/// Brings the directory into order and gives the generation it holds.
pub(super) fn recover(dir: &Path) -> Result<Option<Generation>, ReplicaError> {
    if let Some(generation) = read_state(&dir.join(NEXT_STATE))? {
        place_image(dir, &generation)?;
    } else {
        files::remove(&RealDisk, &dir.join(PARTIAL))?;
    }
    let Some(mut generation) = read_state(&dir.join(STATE))? else {
        files::remove(&RealDisk, &dir.join(LOG))?;
        return Ok(None);
    };
    check_image(&dir.join(IMAGE), &generation)?;
    let log_path = dir.join(LOG);
    match File::open(&log_path) {
        Ok(log) => {
            let reading = || FileError::at("read the redo log", &log_path);
            let mut magic = [0; 8];
            if log.read_at(&mut magic, 0).map_err(reading())? == 8 && format::is_other_version(&magic) {
                return Err(ReplicaError::OtherVersion { path: log_path });
            }
            let committed =
                format::read_log(&mut BufReader::with_capacity(1 << 20, &log)).map_err(reading())?;
            // A log that starts from another generation has been applied already.
            match committed {
                Some(committed) if committed.header.base == generation.number => {
                    check_image(&dir.join(IMAGE), &committed.generation)?;
                    finish_log(dir, &log, &committed.extents, &committed.generation)?;
                    generation = committed.generation;
                }
                _ => files::remove(&RealDisk, &log_path)?,
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(FileError::at("open the redo log", &log_path)(error).into()),
    }
    Ok(Some(generation))
}

fn read_state(path: &Path) -> Result<Option<Generation>, ReplicaError> {
    let bytes = match files::read_bounded(&RealDisk, path, format::MAX_STATE_BYTES as u64) {
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

fn check_image(path: &Path, generation: &Generation) -> Result<(), ReplicaError> {
    let damaged = |reason| ReplicaError::Damaged { path: path.to_owned(), reason };
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() == generation.size => Ok(()),
        Ok(_) => Err(damaged("does not have the size of its generation")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(damaged("is missing")),
        Err(error) => Err(FileError::at("look at", path)(error).into()),
    }
}

/// Makes a committed new image the present one. The image's name must be durable before the state's.
pub(super) fn place_image(dir: &Path, generation: &Generation) -> Result<(), ReplicaError> {
    let (partial, image) = (dir.join(PARTIAL), dir.join(IMAGE));
    match fs::rename(&partial, &image) {
        // Renamed before the crash.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        renamed => renamed.map_err(FileError::at("put the new image in place of", &image))?,
    }
    check_image(&image, generation)?;
    files::sync_dir(&RealDisk, dir)?;
    let state = dir.join(STATE);
    fs::rename(dir.join(NEXT_STATE), &state)
        .map_err(FileError::at("put the new state in place of", &state))?;
    Ok(files::sync_dir(&RealDisk, dir)?)
}

/// Makes a committed redo log the present generation.
pub(super) fn finish_log(
    dir: &Path,
    log: &File,
    extents: &Extents,
    generation: &Generation,
) -> Result<(), ReplicaError> {
    let path = dir.join(IMAGE);
    let applying = || FileError::at("apply the redo log to", &path);
    let image = RawImage::open_write(&path).map_err(applying())?;
    apply(log, extents, &image).and_then(|()| image.sync_all()).map_err(applying())?;
    files::replace(&RealDisk, dir, STATE, [&format::encode_state(generation)[..]])?;
    files::remove(&RealDisk, &dir.join(LOG))?;
    Ok(files::sync_dir(&RealDisk, dir)?)
}

/// Writes every changed range to the image, neighbours together.
fn apply(log: &File, extents: &Extents, image: &RawImage) -> io::Result<()> {
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
    fn add(&mut self, log: &File, mut at: u64, mut range: Range<u64>, image: &RawImage) -> io::Result<()> {
        while !range.is_empty() {
            let full = self.bytes.len() == APPLY_BYTES;
            if full || self.start + self.bytes.len() as u64 != range.start {
                self.flush(image)?;
                self.start = range.start;
            }
            let held = self.bytes.len();
            let now = (range.end - range.start).min((APPLY_BYTES - held) as u64);
            self.bytes.resize(held + now as usize, 0);
            log.read_exact_at(&mut self.bytes[held..], at)?;
            at += now;
            range.start += now;
        }
        Ok(())
    }

    fn flush(&mut self, image: &RawImage) -> io::Result<()> {
        if !self.bytes.is_empty() {
            image.write_at(self.start, &self.bytes)?;
            self.bytes.clear();
        }
        Ok(())
    }
}

/// Reads changed ranges over an image: the image as it will be once the log is applied.
pub(super) fn read_over(
    image: &RawImage,
    log: &File,
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
            Some((range, Source::Log(from))) if range.start == at => log.read_exact_at(part, from)?,
            Some((range, Source::Zero)) if range.start == at => part.fill(0),
            _ => image.read_at(at, part)?,
        }
        at = stop;
    }
    Ok(())
}

/// The next data at or after `offset`, of the image with the changed ranges over it.
pub(super) fn next_data_over(
    image: &RawImage,
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
