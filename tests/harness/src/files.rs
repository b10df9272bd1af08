//! Files as the lab needs them: sparse copies, locks between processes, atomic publication of what was built.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, SeekFrom, copy_file_range, flock, seek};
use rustix::io::Errno;

/// Copied at once between two file systems.
const COPY_BYTES: u64 = 1 << 20;

/// Copies a file and leaves its holes holes.
///
/// # Errors
/// When either file cannot be opened or the copy fails, for instance because the disk is full.
pub fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    copy(from, to).with_context(|| format!("copying {} to {}", from.display(), to.display()))
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let target = OpenOptions::new().write(true).create(true).truncate(true).open(to)?;
    let size = source.metadata()?.len();
    target.set_len(size)?;
    let mut at = 0;
    while let Some((start, end)) = next_data(&source, at, size)? {
        let (mut read, mut write) = (start, start);
        while read < end {
            let want = usize::try_from(end - read).unwrap_or(usize::MAX).min(1 << 30);
            match copy_file_range(&source, Some(&mut read), &target, Some(&mut write), want) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(Errno::XDEV) => {
                    let part = (end - read).min(COPY_BYTES);
                    let mut bytes = vec![0; part as usize];
                    source.read_exact_at(&mut bytes, read)?;
                    target.write_all_at(&bytes, write)?;
                    (read, write) = (read + part, write + part);
                }
                Err(error) => return Err(error.into()),
            }
        }
        at = end;
    }
    Ok(())
}

fn next_data(file: &File, at: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) if start < size => start,
        Ok(_) | Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = seek(file, SeekFrom::Hole(start))?;
    Ok(Some((start, end.min(size))))
}

/// Holds a lock file's exclusive lock until dropped. Waits for it.
#[derive(Debug)]
pub struct Locked(#[expect(dead_code, reason = "closing the file releases the lock")] File);

/// Waits for the exclusive lock on `path`, which is created when missing.
///
/// # Errors
/// When the file cannot be created or locked.
pub fn lock(path: &Path) -> Result<Locked> {
    let doing = || format!("locking {}", path.display());
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path).with_context(doing)?;
    flock(&file, FlockOperation::LockExclusive).with_context(doing)?;
    Ok(Locked(file))
}

/// Builds `path` under a temporary name with `build` and moves it into place: what exists under `path` is whole.
/// An existing `path` is left as it is.
///
/// # Errors
/// What `build` reports, or a failed rename.
pub fn build_once(path: &Path, build: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let name = path.file_name().context("a path with a file name")?.to_string_lossy();
    let partial = path.with_file_name(format!("{name}.partial"));
    remove(&partial)?;
    build(&partial).inspect_err(|_| {
        let _ = remove(&partial);
    })?;
    fs::rename(&partial, path).with_context(|| format!("moving {} into place", path.display()))
}

/// Removes a file or a tree; what is not there is fine.
///
/// # Errors
/// When something is there and stays.
pub fn remove(path: &Path) -> Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    };
    result.with_context(|| format!("removing {}", path.display()))
}

/// Creates a directory and its parents.
///
/// # Errors
/// When that is impossible.
pub fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))
}

/// Writes a whole file.
///
/// # Errors
/// When it cannot be created or written.
pub fn write(path: &Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    File::create(path)
        .and_then(|mut file| file.write_all(bytes.as_ref()))
        .with_context(|| format!("writing {}", path.display()))
}

/// The bytes of a file that are allocated on the disk.
///
/// # Errors
/// When the file is not there.
pub fn allocated(path: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(fs::metadata(path).with_context(|| format!("looking at {}", path.display()))?.blocks() * 512)
}
