//! What an open replica, its pass and its prepared disk share: the directory, the state, and the locks on both.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use super::error::ReplicaError;
use super::generation::Generation;
use super::recover;
use crate::disk::Disk;
use crate::files::DirLock;
use crate::sync::{lock, write};

pub(super) struct Shared {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
    pub(super) state: Mutex<State>,
    /// Held for writing while the image changes, for reading by who needs it to hold still.
    pub(super) image: RwLock<()>,
    /// None on a disk that is no file system.
    pub(super) _lock: Option<DirLock>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) generation: Option<Generation>,
    /// A committed pass could not be finished: recover before anything else.
    pub(super) unfinished: bool,
    pub(super) in_pass: bool,
}

impl Shared {
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The state, after finishing what a failed commit left over. The image's lock comes before the state's.
    pub(super) fn settled(&self) -> Result<MutexGuard<'_, State>, ReplicaError> {
        loop {
            let state = lock(&self.state);
            if !state.unfinished {
                return Ok(state);
            }
            drop(state);
            let _changing = write(&self.image);
            let mut state = lock(&self.state);
            if state.unfinished {
                state.generation = recover::recover(&*self.disk, &self.dir)?;
                state.unfinished = false;
            }
        }
    }
}
