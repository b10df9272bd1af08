//! Where each base image came from: made here, or pushed by a peer. A peer may replace what it pushed itself, and nothing
//! else. Kept in `bases.json` beside the store; a base that is not in it counts as made here.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::files;
use crate::service::identity::Fingerprint;

type Map = BTreeMap<String, Fingerprint>;

/// The peers that pushed bases, by base.
pub(crate) struct Origins {
    path: PathBuf,
    /// Also held while a base is published, so that its origin fits it.
    pushed: Mutex<Map>,
}

impl Origins {
    /// Those kept at `path`. A file that cannot be read is left out: then every base counts as made here.
    pub(crate) fn load(path: &Path) -> Self {
        let pushed = match files::read_regular(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Map::new()),
            Err(error) => Err(error),
        };
        let pushed = pushed.unwrap_or_else(|error| {
            tracing::warn!("{}: {error}; peers cannot replace the bases they pushed", path.display());
            Map::new()
        });
        Origins { path: path.to_owned(), pushed: Mutex::new(pushed) }
    }

    /// The peer that pushed a base; none for one made here.
    pub(crate) fn of(&self, base: &str) -> Option<Fingerprint> {
        self.lock().get(base).copied()
    }

    /// Notes where a base comes from, durably, and then publishes it, with no other base published meanwhile. `publish` is
    /// told the origin there was.
    pub(crate) fn publish<T, E: From<io::Error>>(
        &self,
        base: &str,
        from: Option<Fingerprint>,
        publish: impl FnOnce() -> Result<T, E>,
        allowed: impl FnOnce(Option<Fingerprint>) -> Result<(), E>,
    ) -> Result<T, E> {
        let mut pushed = self.lock();
        let before = pushed.get(base).copied();
        allowed(before)?;
        if before != from {
            let mut changed = pushed.clone();
            match from {
                Some(peer) => drop(changed.insert(base.to_owned(), peer)),
                None => drop(changed.remove(base)),
            }
            files::write_atomic(&self.path, &serde_json::to_vec_pretty(&changed).map_err(io::Error::from)?)?;
            *pushed = changed;
        }
        publish()
    }

    fn lock(&self) -> MutexGuard<'_, Map> {
        self.pushed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_regular_file_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bases.json");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert_eq!(Origins::load(&path).of("debian"), None);
    }
}
