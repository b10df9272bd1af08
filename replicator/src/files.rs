//! Small things about files that several modules need: atomic writes, names that are safe in paths, free space,
//! calls that may not return.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// A file longer than this is none of ours.
const MAX_FILE_BYTES: u64 = 64 << 20;

pub(crate) use chunkstore::{remove_temporary, write_atomic};

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// The bytes of a file of ours. What is no regular file is refused without waiting for it.
pub(crate) fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    chunkstore::open_regular(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("it is longer than {MAX_FILE_BYTES} bytes"),
        ));
    }
    Ok(bytes)
}

/// A name that is safe as one part of a path, the same on both platforms: 1 to 64 of `a-z 0-9 _ - .`, not led by a dot.
pub(crate) fn check_name(what: &str, name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-' | '.');
    if (1..=64).contains(&name.len()) && name.chars().all(fits) && !name.starts_with('.') {
        return Ok(());
    }
    Err(format!(
        "'{name}' cannot be the name of a {what}: use 1 to 64 of a-z, 0-9, '_', '-' and '.', no dot first"
    ))
}

/// Bytes that an unprivileged writer could still write where `path` is.
pub(crate) fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// What `work` gives, unless it takes longer than `bound`: a call on a mount that is gone does not return, and its thread
/// stays with it.
pub(crate) fn within<T: Send + 'static>(
    bound: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (done, waiting) = mpsc::channel();
    thread::spawn(move || done.send(work()));
    waiting.recv_timeout(bound).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_return_is_not_waited_for() {
        let (_never, forever) = mpsc::channel::<()>();
        assert_eq!(within(Duration::from_millis(10), move || forever.recv()), None);
        assert_eq!(within(Duration::MAX, || 7), Some(7));
    }
}
