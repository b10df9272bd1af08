//! The disks of one pass, as they come in side by side: they meet when each has all of its bytes, and are committed together
//! or not at all. A disk that is gone before ends the set for the others, which wait on a blocking thread each.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use chunkstore::{Prepared, commit_set};
use longhaul_proto::JobId;
use longhaul_proto::wire::{MAX_DISKS, Refusal, RefusalKind};

/// How long disks that have arrived wait while those that have not say nothing.
const PATIENCE: Duration = Duration::from_secs(300);

/// A pass, as its sender names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SetOf {
    /// The set.
    pub id: JobId,
    /// How many disks it has.
    pub disks: u32,
}

/// The sets that are under way, by the directory of their VM.
#[derive(Default)]
pub(super) struct Sets(Mutex<HashMap<(PathBuf, JobId), Weak<Set>>>);

struct Set {
    disks: usize,
    patience: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    joined: usize,
    /// Disks that have all their bytes, and are being looked at or prepared.
    arriving: usize,
    prepared: Vec<Prepared>,
    /// All are there, and it is being decided.
    deciding: bool,
    outcome: Option<Result<(), Refusal>>,
    heard: Instant,
}

/// A disk's part in its set. Dropped before the set is decided it ends the set.
pub(super) struct Member {
    set: Arc<Set>,
    disk: String,
}

impl Sets {
    /// Takes part in a set of the VM in `dir`.
    pub(super) fn join(&self, dir: &Path, of: SetOf, disk: &str) -> Result<Member, Refusal> {
        self.join_with(dir, of, disk, PATIENCE)
    }

    fn join_with(&self, dir: &Path, of: SetOf, disk: &str, patience: Duration) -> Result<Member, Refusal> {
        if of.disks == 0 || of.disks as usize > MAX_DISKS {
            return Err(refusal(RefusalKind::Protocol, format!("a pass of {} disks", of.disks)));
        }
        let mut sets = lock(&self.0);
        sets.retain(|_, set| set.strong_count() > 0);
        let key = (dir.to_owned(), of.id);
        let set = sets.get(&key).and_then(Weak::upgrade).unwrap_or_else(|| Set::new(of.disks, patience));
        sets.insert(key, Arc::downgrade(&set));
        let mut state = lock(&set.state);
        if let Some(Err(ended)) = &state.outcome {
            return Err(ended.clone());
        }
        if state.joined == set.disks || set.disks != of.disks as usize {
            let reason = format!("disk '{disk}' is more than the {} disks of its pass", set.disks);
            return Err(refusal(RefusalKind::Protocol, reason));
        }
        state.joined += 1;
        drop(state);
        Ok(Member { set, disk: disk.to_owned() })
    }
}

impl Set {
    fn new(disks: u32, patience: Duration) -> Arc<Set> {
        let state = State {
            joined: 0,
            arriving: 0,
            prepared: Vec::new(),
            deciding: false,
            outcome: None,
            heard: Instant::now(),
        };
        let (disks, changed) = (disks as usize, Condvar::new());
        Arc::new(Set { disks, patience, state: Mutex::new(state), changed })
    }

    /// Ends it, unless it is decided, or about to be.
    fn end(&self, reason: String) {
        let mut state = lock(&self.state);
        if state.outcome.is_none() && !state.deciding {
            state.outcome = Some(Err(refusal(RefusalKind::Failed, reason)));
            // Undone while nobody can take the set for decided.
            state.prepared.clear();
            self.changed.notify_all();
        }
    }
}

impl Member {
    /// Its disk is being written.
    pub(super) fn heard(&self) {
        lock(&self.set.state).heard = Instant::now();
    }

    /// Its disk has all its bytes. The other disks must have been opened by now.
    pub(super) fn arrive(&self) -> Result<(), Refusal> {
        let mut state = lock(&self.set.state);
        if state.joined < self.set.disks {
            let reason = format!("{} of the pass's {} disks were opened", state.joined, self.set.disks);
            return Err(refusal(RefusalKind::Protocol, reason));
        }
        state.arriving += 1;
        Ok(())
    }

    /// Commits this disk with all others of the set; returns when that is done.
    pub(super) fn commit(&self, prepared: Prepared) -> Result<(), Refusal> {
        let mut state = lock(&self.set.state);
        if let Some(Err(ended)) = &state.outcome {
            return Err(ended.clone());
        }
        state.prepared.push(prepared);
        if state.prepared.len() == self.set.disks {
            state.deciding = true;
            let all = std::mem::take(&mut state.prepared);
            drop(state);
            let outcome = commit_set(all).map_err(super::failed_commit);
            lock(&self.set.state).outcome = Some(outcome.clone());
            self.set.changed.notify_all();
            return outcome;
        }
        self.wait(state)
    }

    fn wait<'a>(&'a self, mut state: MutexGuard<'a, State>) -> Result<(), Refusal> {
        let set = &self.set;
        loop {
            if let Some(outcome) = &state.outcome {
                return outcome.clone();
            }
            let (woken, _) =
                set.changed.wait_timeout(state, set.patience / 4).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            if state.arriving < set.disks && state.heard.elapsed() > set.patience {
                drop(state);
                set.end("another disk of the pass has sent nothing for too long".to_owned());
                state = lock(&set.state);
            }
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.set.end(format!("disk '{}' of the pass was given up", self.disk));
    }
}

fn refusal(kind: RefusalKind, reason: String) -> Refusal {
    Refusal { kind, reason }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
