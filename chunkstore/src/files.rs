//! Files that survive a crash: whole-file replacement, directory syncs, and the lock that keeps a second process
//! out of a directory. It never looks at what the bytes mean.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::FlockOperation;

use crate::FileError;
use crate::disk::{Disk, DiskFile, RealDisk};
use crate::map::{IN_MEMORY_BYTES, Map, WINDOW_BYTES};

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(disk: &dyn Disk, dir: &Path) -> Result<(), FileError> {
    disk.sync_dir(dir).map_err(FileError::at("sync the directory", dir))
}

/// Replaces `dir/name` by `parts`, in one step that a crash cannot halve, and makes it durable.
pub(crate) fn replace<'a>(
    disk: &dyn Disk,
    dir: &Path,
    name: &str,
    parts: impl IntoIterator<Item = &'a [u8]>,
) -> Result<(), FileError> {
    let temporary = dir.join(format!(".{name}.tmp"));
    let written = write_synced(disk, &temporary, parts).and_then(|()| {
        disk.rename(&temporary, &dir.join(name)).map_err(FileError::at("rename into place", &temporary))
    });
    if written.is_err() {
        let _ = disk.remove(&temporary);
    }
    written?;
    sync_dir(disk, dir)
}

fn write_synced<'a>(
    disk: &dyn Disk,
    path: &Path,
    parts: impl IntoIterator<Item = &'a [u8]>,
) -> Result<(), FileError> {
    remove(disk, path)?;
    let write = || {
        let file = disk.create(path)?;
        let mut at = 0;
        for part in parts {
            file.write_at(at, part)?;
            at += part.len() as u64;
        }
        file.sync()
    };
    write().map_err(FileError::at("write", path))
}

/// Distinguishes the temporary files of this process.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Replaces the file by these bytes: after a crash it is the old or the new one, whole, and so it is for who reads it
/// meanwhile. Any number of writers at once: one of them is the last. A failure leaves the old one.
pub fn write_atomic(path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
    let path = path.as_ref();
    let (mut file, temporary) = create_temporary(path)?;
    let written =
        file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written?;
    RealDisk.sync_dir(parent(path))
}

/// Removes what crashes in [`write_atomic`] have left in a directory. Nobody may be writing there.
pub fn remove_temporary(dir: impl AsRef<Path>) -> io::Result<()> {
    for name in RealDisk.list(dir.as_ref())? {
        if is_temporary(name.as_encoded_bytes()) {
            std::fs::remove_file(dir.as_ref().join(name))?;
        }
    }
    Ok(())
}

/// A new file beside `path`.
fn create_temporary(path: &Path) -> io::Result<(File, PathBuf)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    loop {
        let mut temporary = OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{}-{}.tmp", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        let temporary = parent(path).join(temporary);
        match OpenOptions::new().write(true).create_new(true).open(&temporary) {
            Ok(file) => return Ok((file, temporary)),
            // Left by a process of before that had this number.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

/// As [`create_temporary`] names them.
fn is_temporary(name: &[u8]) -> bool {
    let Some(inner) = name.strip_prefix(b".").and_then(|name| name.strip_suffix(b".tmp")) else {
        return false;
    };
    let number = inner.rsplit(|byte| *byte == b'.').next().unwrap_or_default();
    let digits = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_digit);
    let mut parts = number.split(|byte| *byte == b'-');
    let pair = [parts.next(), parts.next()];
    number.len() < inner.len() && parts.next().is_none() && pair.iter().all(|part| part.is_some_and(digits))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Reads a whole file of at most `max_bytes`.
pub(crate) fn read_bounded(disk: &dyn Disk, path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let (file, len) = open_bounded(disk, path, max_bytes)?;
    read_all(&*file, len)
}

/// A file of at most `max_bytes` that is replaced, or removed, and never changed: read when it is small, mapped when not.
pub(crate) fn load_bounded(disk: &dyn Disk, path: &Path, max_bytes: u64) -> io::Result<Map> {
    let (file, len) = open_bounded(disk, path, max_bytes)?;
    if len <= IN_MEMORY_BYTES as u64 {
        return read_all(&*file, len).map(Map::from);
    }
    check_readable(&*file, len)?;
    file.map()
}

/// Reads it once by calls: what the disk cannot read is an error here, and the end of the process through a map.
fn check_readable(file: &dyn DiskFile, len: u64) -> io::Result<()> {
    let (mut window, mut at) = (vec![0; WINDOW_BYTES], 0);
    while at < len {
        let part = (len - at).min(WINDOW_BYTES as u64);
        file.read_at(at, &mut window[..part as usize])?;
        at += part;
    }
    Ok(())
}

fn open_bounded(disk: &dyn Disk, path: &Path, max_bytes: u64) -> io::Result<(Arc<dyn DiskFile>, u64)> {
    let file = disk.open(path)?;
    let len = file.len()?;
    if len > max_bytes {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{len} bytes are more than such a file can have ({max_bytes})"),
        ));
    }
    Ok((file, len))
}

fn read_all(file: &dyn DiskFile, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len as usize];
    file.read_at(0, &mut bytes)?;
    Ok(bytes)
}

/// Removes a file; that it is not there is no failure.
pub(crate) fn remove(disk: &dyn Disk, path: &Path) -> Result<(), FileError> {
    match disk.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::at("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Why a directory could not be locked.
pub(crate) enum LockError {
    InUse { pid: String },
    File(FileError),
}

impl From<FileError> for LockError {
    fn from(error: FileError) -> LockError {
        LockError::File(error)
    }
}

/// Sole use of a directory, for as long as this value lives. The kernel gives the lock back when the process ends,
/// however it ends.
pub(crate) struct DirLock {
    file: File,
}

impl Drop for DirLock {
    fn drop(&mut self) {
        // Closing would do, were it not for a child that is being spawned: until its exec it holds a copy of the file.
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}

impl DirLock {
    pub(crate) fn acquire(dir: &Path) -> Result<DirLock, LockError> {
        let path = dir.join("LOCK");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(FileError::at("open the lock file", &path))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                // Only a hint for the person who reads the message: the holder may not have written it yet.
                let _ = (&file).take(20).read_to_string(&mut pid);
                let pid = pid.trim().to_owned();
                return Err(LockError::InUse {
                    pid: if pid.is_empty() { "unknown".to_owned() } else { pid },
                });
            }
            Err(errno) => return Err(FileError::at("lock", &path)(errno.into()).into()),
        }
        // The content is a hint as well, so a full disk must not keep a store from being opened.
        let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(DirLock { file })
    }
}

#[cfg(test)]
mod tests;
