//! What went wrong with a file, for the person who has to do something about it. It never touches one.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// An operation on a file that failed: what was being done, to which file, and why.
#[derive(Debug)]
pub struct FileError {
    doing: &'static str,
    path: PathBuf,
    cause: io::Error,
}

impl FileError {
    /// Wraps a failure to do `doing` ("write the chunk to") with the file at `path`.
    pub(crate) fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
        let path = path.to_owned();
        move |cause| FileError { doing, path, cause }
    }

    /// The file or directory it happened to.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the operating system said.
    pub fn cause(&self) -> &io::Error {
        &self.cause
    }

    /// The file is not there.
    pub(crate) fn is_absent(&self) -> bool {
        self.cause.kind() == io::ErrorKind::NotFound
    }

    /// The disk cannot read what is there.
    pub(crate) fn is_bad_medium(&self) -> bool {
        is_bad_medium(&self.cause)
    }

    /// What is there can never be read: the disk cannot, or the file ends before it.
    pub(crate) fn is_lost(&self) -> bool {
        self.is_bad_medium() || self.cause.kind() == io::ErrorKind::UnexpectedEof
    }

    /// True when there was no room left.
    pub fn is_full(&self) -> bool {
        is_full(&self.cause)
    }
}

/// ENOSPC and EDQUOT.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The disk, or the file system by its own checksums, says that the bytes are lost. Any other failure may be over soon.
pub(crate) fn is_bad_medium(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::IO, Errno::UCLEAN, Errno::BADMSG]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "could not {} {}: {}", self.doing, self.path.display(), self.cause)?;
        if self.is_full() {
            f.write_str("; nothing was lost: free some space there and try again")?;
        }
        Ok(())
    }
}

/// The cause is part of the message, so it is not repeated as a source.
impl std::error::Error for FileError {}
