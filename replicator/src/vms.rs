//! The VMs of this platform: their definitions, who owns them, and which job has hold of one. It starts nothing.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use longhaul_proto::handoff::Record;
use longhaul_proto::{Epoch, JobId};
use migrate_driver::{DefinitionError, VmDefinition};

use crate::files;
use crate::journal::{self, Claim};

/// Something that cannot be done to a VM.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// Nobody of that name.
    #[error("there is no VM '{name}' here (known: {known}); describe it with `longhaul vm define FILE`")]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// Another job has hold of it.
    #[error(
        "VM '{vm}' is busy with job {job} ({what}); wait for it or cancel it with `longhaul job cancel {job}`"
    )]
    Busy {
        /// The VM.
        vm: String,
        /// The job.
        job: JobId,
        /// What it does.
        what: &'static str,
    },
    /// It moved away.
    #[error("VM '{vm}' belongs to peer '{peer}' (epoch {epoch}); move it back with `longhaul migrate` there")]
    Moved {
        /// The VM.
        vm: String,
        /// The owner.
        peer: String,
        /// Its epoch.
        epoch: Epoch,
    },
    /// It may have been handed to us.
    #[error(
        "whether VM '{vm}' is ours is for peer '{peer}' to say, which is being asked. If it is gone for good, decide in its place with `longhaul resolve {vm}`"
    )]
    Undecided {
        /// The VM.
        vm: String,
        /// Who decides.
        peer: String,
    },
    /// It is ours already.
    #[error(
        "VM '{vm}' is defined on this platform too and belongs to it (epoch {epoch}); rename one of them"
    )]
    Ours {
        /// The VM.
        vm: String,
        /// Our epoch.
        epoch: Epoch,
    },
    /// Its definition.
    #[error(transparent)]
    Definition(#[from] DefinitionError),
    /// The definition's file.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// The VMs of a platform.
pub struct Vms {
    dir: PathBuf,
    definitions: Mutex<HashMap<String, VmDefinition>>,
    /// What each job's journal says of its VM; of several the highest epoch counts.
    claims: Mutex<HashMap<JobId, (String, Claim)>>,
    busy: Mutex<HashMap<String, (JobId, &'static str)>>,
}

/// A VM is held by one job at a time; this is the hold.
pub struct Hold {
    vms: Arc<Vms>,
    vm: String,
}

impl Drop for Hold {
    fn drop(&mut self) {
        lock(&self.vms.busy).remove(&self.vm);
    }
}

impl Vms {
    /// The definitions in `dir`.
    pub fn load(dir: &Path) -> Result<Self, VmError> {
        let io = |source| VmError::Io { path: dir.to_owned(), source };
        let mut definitions = HashMap::new();
        for entry in std::fs::read_dir(dir).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                let definition = read_definition(&path)?;
                definitions.insert(definition.name.to_string(), definition);
            }
        }
        let (claims, busy) = Default::default();
        Ok(Vms { dir: dir.to_owned(), definitions: Mutex::new(definitions), claims, busy })
    }

    /// Takes note of a job's records as they stand now.
    pub fn note(&self, job: JobId, records: &[Record]) {
        let mut claims = lock(&self.claims);
        match journal::claim(records) {
            Some(claim) => claims.insert(job, claim),
            None => claims.remove(&job),
        };
    }

    /// Who may run `vm`, as the journals and definitions have it; `None` for a VM nobody here knows.
    pub fn ownership(&self, vm: &str) -> Option<Claim> {
        let claims = lock(&self.claims);
        let best = claims.values().filter(|(name, _)| name == vm).max_by_key(|(_, claim)| claim.epoch());
        match best {
            Some((_, claim)) => Some(claim.clone()),
            None => lock(&self.definitions).contains_key(vm).then_some(Claim::Ours(Epoch::FIRST)),
        }
    }

    /// The epoch at which `vm` is ours, or why it is not.
    pub fn owned(&self, vm: &str) -> Result<Epoch, VmError> {
        let vm = vm.to_owned();
        match self.ownership(&vm) {
            Some(Claim::Ours(epoch)) => Ok(epoch),
            Some(Claim::Theirs(epoch, peer)) => Err(VmError::Moved { vm, peer, epoch }),
            Some(Claim::Undecided(_, peer)) => Err(VmError::Undecided { vm, peer }),
            None => Err(self.unknown(&vm)),
        }
    }

    /// Takes hold of a VM for a job.
    pub fn hold(self: &Arc<Self>, vm: &str, job: JobId, what: &'static str) -> Result<Hold, VmError> {
        let mut busy = lock(&self.busy);
        if let Some((job, what)) = busy.get(vm) {
            return Err(VmError::Busy { vm: vm.to_owned(), job: *job, what });
        }
        busy.insert(vm.to_owned(), (job, what));
        Ok(Hold { vms: self.clone(), vm: vm.to_owned() })
    }

    /// Whether a job has hold of it.
    pub fn is_held(&self, vm: &str) -> bool {
        lock(&self.busy).contains_key(vm)
    }

    /// The definition of `vm`.
    pub fn definition(&self, vm: &str) -> Result<VmDefinition, VmError> {
        let known = lock(&self.definitions).get(vm).cloned();
        known.ok_or_else(|| self.unknown(vm))
    }

    /// All definitions, by name.
    pub fn list(&self) -> Vec<VmDefinition> {
        let mut all: Vec<_> = lock(&self.definitions).values().cloned().collect();
        all.sort_by_key(|definition| definition.name.to_string());
        all
    }

    /// Keeps a definition; it replaces one of the same name.
    pub fn define(&self, definition: VmDefinition) -> Result<(), VmError> {
        let path = self.dir.join(format!("{}.toml", definition.name));
        files::write_atomic(&path, definition.to_toml()?.as_bytes())
            .map_err(|source| VmError::Io { path, source })?;
        lock(&self.definitions).insert(definition.name.to_string(), definition);
        Ok(())
    }

    fn unknown(&self, name: &str) -> VmError {
        let mut known: Vec<_> = lock(&self.definitions).keys().cloned().collect();
        known.sort();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        VmError::Unknown { name: name.to_owned(), known }
    }
}

/// Reads a definition from a file.
pub fn read_definition(path: &Path) -> Result<VmDefinition, VmError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| VmError::Io { path: path.to_owned(), source })?;
    Ok(VmDefinition::parse(&text, path)?)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
