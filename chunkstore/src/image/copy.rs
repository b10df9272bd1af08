//! Images as a whole, from file to file: shared blocks where the file system can, copied data where it cannot. It never
//! replaces a file, and removes only what it made itself.

use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::io::Errno;

use super::{RawImage, ReadImage};

/// Bytes between two questions whether to go on.
const STEP_BYTES: u64 = 1 << 20;

/// Zeroes, that cost less, between two questions.
const ZERO_STEP_BYTES: u64 = 64 << 20;

/// Copies a raw image, holes as holes, sharing blocks where the file system can. `to` must not exist, or be a block
/// device that is large enough. What is at `to` is durable afterwards; a half-made file is removed.
pub fn copy_sparse(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
    copy_sparse_while(from, to, |_| true)
}

/// As [`copy_sparse`], asking after every MiB whether to go on, and saying how many bytes were copied so far. When it is not
/// to go on, what was made is removed and the error is `Interrupted`.
pub fn copy_sparse_while(
    from: impl AsRef<Path>,
    to: impl AsRef<Path>,
    mut go_on: impl FnMut(u64) -> bool,
) -> io::Result<()> {
    let (from, to) = (RawImage::open_read(from)?, to.as_ref());
    let mut watch = Watch { copied: 0, go_on: &mut go_on };
    if fs::metadata(to).is_ok_and(|metadata| metadata.file_type().is_block_device()) {
        let target = RawImage::open_write(to)?;
        zero(&target, from.size, &mut watch)?;
        copy_data(&from, &target, &mut watch)?;
        return target.sync_all();
    }
    let target = RawImage::create(to, from.size)?;
    let copied = match clone_into(&from, &target) {
        Ok(true) => Ok(()),
        Ok(false) => copy_data(&from, &target, &mut watch),
        Err(error) => Err(error),
    };
    let copied = copied.and_then(|()| target.sync_all());
    if copied.is_err() {
        let _ = fs::remove_file(to);
    }
    copied
}

/// Makes the new file `to` with the bytes of `from` in blocks that both share until one of them is written. `false`, and no
/// file, where the file system cannot. `AlreadyExists` rather than replacing a file. Not durable.
pub fn reflink(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<bool> {
    let (from, to) = (RawImage::open_read(from)?, to.as_ref());
    let target = RawImage::create(to, 0)?;
    let cloned = clone_into(&from, &target);
    if !matches!(cloned, Ok(true)) {
        let _ = fs::remove_file(to);
    }
    cloned
}

/// `false` where the file system cannot.
fn clone_into(from: &RawImage, to: &RawImage) -> io::Result<bool> {
    if !from.file.metadata()?.is_file() {
        return Ok(false);
    }
    match rustix::fs::ioctl_ficlone(&to.file, &from.file) {
        Ok(()) => Ok(true),
        // Another file system, or one that has no such feature, or not for this file.
        Err(
            Errno::OPNOTSUPP
            | Errno::XDEV
            | Errno::INVAL
            | Errno::NOTTY
            | Errno::NOSYS
            | Errno::PERM
            | Errno::TXTBSY,
        ) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// The caller, who may not want more.
struct Watch<'a> {
    copied: u64,
    go_on: &'a mut dyn FnMut(u64) -> bool,
}

impl Watch<'_> {
    fn step(&mut self, copied: u64) -> io::Result<()> {
        self.copied += copied;
        match (self.go_on)(self.copied) {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::Interrupted, "the copy was stopped")),
        }
    }
}

fn zero(image: &RawImage, len: u64, watch: &mut Watch<'_>) -> io::Result<()> {
    let mut at = 0;
    while at < len {
        let now = (len - at).min(ZERO_STEP_BYTES);
        image.zero(at, now)?;
        watch.step(0)?;
        at += now;
    }
    Ok(())
}

fn copy_data(from: &RawImage, to: &RawImage, watch: &mut Watch<'_>) -> io::Result<()> {
    let mut at = 0;
    while let Some(data) = from.next_data(at)? {
        copy_range(from, to, data.clone(), watch)?;
        at = data.end;
    }
    Ok(())
}

/// In the kernel where it can, through a buffer where it cannot.
fn copy_range(from: &RawImage, to: &RawImage, range: Range<u64>, watch: &mut Watch<'_>) -> io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(STEP_BYTES) as usize;
        let (mut source, mut target) = (at, at);
        match rustix::fs::copy_file_range(&from.file, Some(&mut source), &to.file, Some(&mut target), len) {
            Ok(0) => return from.check_not_shrunk().and(Err(io::ErrorKind::UnexpectedEof.into())),
            Ok(copied) => {
                at += copied as u64;
                watch.step(copied as u64)?;
            }
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                return copy_through_buffer(from, to, at..range.end, watch);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn copy_through_buffer(
    from: &RawImage,
    to: &RawImage,
    range: Range<u64>,
    watch: &mut Watch<'_>,
) -> io::Result<()> {
    let mut buffer = vec![0; (range.end - range.start).min(STEP_BYTES) as usize];
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(buffer.len() as u64) as usize;
        from.read_at(at, &mut buffer[..len])?;
        to.write_at(at, &buffer[..len])?;
        watch.step(len as u64)?;
        at += len as u64;
    }
    Ok(())
}
