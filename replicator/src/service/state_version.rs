//! The version of all that a platform keeps, in one file that every version of the daemon meets before it acts: earlier ones take
//! it for a journal that they cannot read, and do not start. They would not see who owns the VMs that have moved, and two
//! platforms would run them.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use longhaul_proto::JobId;

use crate::files;

/// Grows when an earlier daemon would lose or misread what this one writes.
const VERSION: u32 = 2;
/// The journal of this job is no journal. Jobs' ids are random.
pub(crate) const JOB: JobId = JobId([0xff; 16]);
/// As a journal's header, with a version that no journal has.
const HEADER: &[u8] = b"LHJRNL\xff\xff\n";
const MAX_BYTES: u64 = 4096;

/// The state is not for this daemon.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// It was written by a later one.
    #[error(
        "cannot use the state in {dir}: a newer longhaul has written it (version {found}; this one knows {VERSION}); start that one",
        dir = .dir.display()
    )]
    Newer { dir: PathBuf, found: u32 },
    /// The file is out of reach or damaged.
    #[error(
        "cannot read the version of this platform's state from {path}: {source}; start the longhaul that ran here last. If no \
         newer one than this ever did, remove that file and start this one",
        path = .path.display()
    )]
    Io { path: PathBuf, source: io::Error },
}

/// Refuses state of a later version; notes that it is of this version from now on. `dir` has the journals.
pub(crate) fn take_over(dir: &Path) -> Result<(), StateError> {
    let path = dir.join(format!("{JOB}.journal"));
    let io = |source| StateError::Io { path: path.clone(), source };
    let found = match std::fs::metadata(&path) {
        Ok(there) if there.is_file() && there.len() <= MAX_BYTES => {
            let bytes = std::fs::read(&path).map_err(io)?;
            Some(version(&bytes).ok_or_else(|| io(io::Error::other("it holds no version")))?)
        }
        Ok(_) => return Err(io(io::Error::other("it is not a small regular file"))),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(io(error)),
    };
    match found {
        Some(VERSION) => Ok(()),
        Some(found) if found > VERSION => Err(StateError::Newer { dir: dir.to_owned(), found }),
        _ => {
            let text = format!(
                "{VERSION}\nThis is the version of the state of a longhaul platform. An earlier longhaul must not use it: it would take\n\
                 VMs for its own that have moved away. Start the version that has written it.\n"
            );
            files::write_atomic(&path, &[HEADER, text.as_bytes()].concat()).map_err(io)
        }
    }
}

fn version(bytes: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(bytes.strip_prefix(HEADER)?).ok()?;
    text.lines().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::journal;

    #[test]
    fn a_later_version_is_refused_and_an_earlier_one_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(format!("{JOB}.journal"));
        let write = |version: &str| std::fs::write(&path, [HEADER, version.as_bytes()].concat()).unwrap();
        take_over(dir.path()).unwrap();
        take_over(dir.path()).unwrap();
        write("3\n");
        let error = take_over(dir.path()).unwrap_err();
        assert!(matches!(error, StateError::Newer { found: 3, .. }), "{error}");
        write("1\n");
        take_over(dir.path()).unwrap();
        assert_eq!(version(&std::fs::read(&path).unwrap()), Some(VERSION));
        for damaged in ["", "x\n", "99999999999\n"] {
            write(damaged);
            assert!(matches!(take_over(dir.path()), Err(StateError::Io { .. })), "{damaged:?}");
        }
    }

    #[test]
    fn it_is_no_journal_here_and_an_unreadable_one_to_earlier_versions() {
        let dir = tempfile::tempdir().unwrap();
        take_over(dir.path()).unwrap();
        let journals = journal::load_all(dir.path()).unwrap();
        assert!(journals.open.is_empty() && journals.ended.is_empty() && journals.damaged.is_empty());
        let bytes = std::fs::read(dir.path().join(format!("{JOB}.journal"))).unwrap();
        assert!(longhaul_proto::journal::decode(&bytes).is_err());
    }
}
