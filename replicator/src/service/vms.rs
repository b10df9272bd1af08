//! The VMs of this platform: their definitions, who owns them, and which job has hold of one. It starts nothing.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longhaul_proto::handoff::Record;
use longhaul_proto::{Epoch, JobId};
use migrate_driver::definition::MAX_DEFINITION_BYTES;
use migrate_driver::{DefinitionError, VmDefinition};
use tokio::sync::Notify;

use crate::error_kind::{HasKind, Kind};
use crate::files;
use crate::migration::claims::Claims;
use crate::migration::journal::Claim;

/// Something that cannot be done to a VM.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmError {
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
    Busy { vm: String, job: JobId, what: &'static str },
    /// It moved away.
    #[error(
        "VM '{vm}' belongs to peer '{peer}' (epoch {epoch}); move it back with `longhaul migrate {vm}` there. If that \
         platform is gone for good, take the VM back with `longhaul resolve {vm} --keep`"
    )]
    Moved { vm: String, peer: String, epoch: Epoch },
    /// It may have been handed to us.
    #[error(
        "the owner of VM '{vm}' is undecided: waiting for peer '{peer}'. If that platform is gone for good, decide with `longhaul resolve {vm} --keep` or `--give-up`"
    )]
    Undecided { vm: String, peer: String },
    /// It is ours already.
    #[error(
        "VM '{vm}' is defined on this platform too and belongs to it (epoch {epoch}); rename one of them"
    )]
    Ours { vm: String, epoch: Epoch },
    /// A file that cannot be read may say that it is not ours.
    #[error(
        "cannot tell whether VM '{vm}' belongs to this platform: {file} cannot be read; find out where the VM runs, then \
         decide with `longhaul resolve {vm} --keep` or `--give-up`. `longhaul vm start {vm}` starts it when every peer \
         answers that it does not own it. If the file holds nothing newer of any VM, move {file} out of journal/",
        file = .file.display()
    )]
    InDoubt { vm: String, file: PathBuf },
    /// Its definition's file is none.
    #[error(
        "cannot read the definition of VM '{}', {}: {}; define it again with `longhaul vm define FILE`",
        .0.name, .0.path.display(), .0.why
    )]
    Damaged(DamagedDefinition),
    /// Its definition.
    #[error(transparent)]
    Definition(#[from] DefinitionError),
    /// The definition's file.
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
}

impl HasKind for VmError {
    fn kind(&self) -> Kind {
        match self {
            VmError::Unknown { .. } => Kind::NotFound,
            VmError::Busy { .. } => Kind::Busy,
            VmError::Moved { .. }
            | VmError::Undecided { .. }
            | VmError::Ours { .. }
            | VmError::InDoubt { .. } => Kind::Denied,
            VmError::Damaged(_) => Kind::Io,
            VmError::Definition(error) => error.kind(),
            VmError::Io { source, .. } => Kind::of_io(source),
        }
    }
}

/// The VMs of a platform.
pub(crate) struct Vms {
    dir: PathBuf,
    definitions: Mutex<Definitions>,
    claims: Claims,
    busy: Mutex<HashMap<String, (JobId, &'static str)>>,
    /// A hold has been given back.
    freed: Notify,
}

#[derive(Default)]
struct Definitions {
    whole: HashMap<String, VmDefinition>,
    /// By the file's name without its extension.
    damaged: BTreeMap<String, DamagedDefinition>,
}

/// A file among the definitions that is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DamagedDefinition {
    /// The VM it would define, by the file's name.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: String,
}

/// A VM is held by one job at a time; this is the hold.
pub(crate) struct Hold {
    vms: Arc<Vms>,
    vm: String,
}

impl Drop for Hold {
    fn drop(&mut self) {
        lock(&self.vms.busy).remove(&self.vm);
        self.vms.freed.notify_waiters();
    }
}

impl Vms {
    /// The definitions in `dir` and the claims in `journal`. A definition that cannot be read is left out, and told by
    /// [`Vms::damaged`].
    pub(crate) fn load(dir: &Path, journal: &Path) -> Result<Self, VmError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| VmError::Io { path, source }
        };
        let mut definitions = Definitions::default();
        for entry in std::fs::read_dir(dir).map_err(io(dir))? {
            let path = entry.map_err(io(dir))?.path();
            let Some(name) = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()) else {
                continue;
            };
            // Files that begin with a dot are an editor's.
            if path.extension().is_none_or(|extension| extension != "toml") || name.starts_with('.') {
                continue;
            }
            // Opening a pipe would wait for a writer.
            let is_file = std::fs::metadata(&path).and_then(|meta| match meta.is_file() {
                true => Ok(()),
                false => Err(std::io::Error::other("it is not a file")),
            });
            match is_file.map_err(io(&path)).and_then(|()| read_definition(&path)) {
                Ok(definition) if definition.name.as_str() == name => {
                    definitions.whole.insert(name, definition);
                }
                wrong => {
                    let why = match wrong {
                        Ok(definition) => format!(
                            "it defines VM '{vm}', which only {vm}.toml does; rename or remove the file",
                            vm = definition.name
                        ),
                        Err(error) => error.to_string(),
                    };
                    tracing::error!("{} is left out: {why}", path.display());
                    definitions.damaged.insert(name.clone(), DamagedDefinition { name, path, why });
                }
            }
        }
        let claims = Claims::load(journal).map_err(io(journal))?;
        let definitions = Mutex::new(definitions);
        let (busy, freed) = Default::default();
        Ok(Vms { dir: dir.to_owned(), definitions, claims, busy, freed })
    }

    /// What is known of who owns which VM.
    pub(crate) fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Takes note of a job's records as they stand now.
    pub(crate) fn note(&self, job: JobId, records: &[Record]) {
        self.claims.note(job, records);
    }

    /// Who may run `vm`, as the journals and definitions have it; `None` for a VM nobody here knows.
    pub(crate) fn ownership(&self, vm: &str) -> Option<Claim> {
        let definitions = lock(&self.definitions);
        let defined = definitions.whole.contains_key(vm) || definitions.damaged.contains_key(vm);
        drop(definitions);
        self.claims.of(vm, defined)
    }

    /// The epoch at which `vm` is ours, or why it is not.
    pub(crate) fn owned(&self, vm: &str) -> Result<Epoch, VmError> {
        let vm = vm.to_owned();
        match self.ownership(&vm) {
            Some(Claim::Ours(epoch)) => Ok(epoch),
            Some(Claim::Theirs(epoch, peer)) => Err(VmError::Moved { vm, peer, epoch }),
            Some(Claim::Undecided(_, peer)) => Err(VmError::Undecided { vm, peer }),
            Some(Claim::Unknown(_, file)) => Err(VmError::InDoubt { vm, file }),
            Some(Claim::Removed(_)) | None => Err(self.unknown(&vm)),
        }
    }

    /// Takes hold of a VM for a job.
    pub(crate) fn hold(self: &Arc<Self>, vm: &str, job: JobId, what: &'static str) -> Result<Hold, VmError> {
        let mut busy = lock(&self.busy);
        if let Some((job, what)) = busy.get(vm) {
            return Err(VmError::Busy { vm: vm.to_owned(), job: *job, what });
        }
        busy.insert(vm.to_owned(), (job, what));
        Ok(Hold { vms: self.clone(), vm: vm.to_owned() })
    }

    /// The job that has hold of it.
    pub(crate) fn holder(&self, vm: &str) -> Option<JobId> {
        lock(&self.busy).get(vm).map(|(job, _)| *job)
    }

    /// As [`Vms::hold`], waiting up to `within` for a job that is about to give it back.
    pub(crate) async fn hold_within(
        self: &Arc<Self>,
        vm: &str,
        job: JobId,
        what: &'static str,
        within: Duration,
    ) -> Result<Hold, VmError> {
        let deadline = tokio::time::Instant::now() + within;
        loop {
            let freed = self.freed.notified();
            match self.hold(vm, job, what) {
                Err(VmError::Busy { .. }) if tokio::time::timeout_at(deadline, freed).await.is_ok() => {}
                held => return held,
            }
        }
    }

    /// Whether a job has hold of it.
    pub(crate) fn is_held(&self, vm: &str) -> bool {
        lock(&self.busy).contains_key(vm)
    }

    /// The definition of `vm`.
    pub(crate) fn definition(&self, vm: &str) -> Result<VmDefinition, VmError> {
        let definitions = lock(&self.definitions);
        if let Some(definition) = definitions.whole.get(vm) {
            return Ok(definition.clone());
        }
        let damaged = definitions.damaged.get(vm).cloned();
        drop(definitions);
        Err(damaged.map_or_else(|| self.unknown(vm), VmError::Damaged))
    }

    /// All definitions, by name.
    pub(crate) fn list(&self) -> Vec<VmDefinition> {
        let mut all: Vec<_> = lock(&self.definitions).whole.values().cloned().collect();
        all.sort_by_key(|definition| definition.name.to_string());
        all
    }

    /// The files among the definitions that are none, by name.
    pub(crate) fn damaged(&self) -> Vec<DamagedDefinition> {
        lock(&self.definitions).damaged.values().cloned().collect()
    }

    /// Keeps a definition; it replaces one of the same name.
    pub(crate) fn define(&self, definition: VmDefinition) -> Result<(), VmError> {
        self.define_and(definition, || Ok(()))
    }

    /// Keeps a definition once `then` has succeeded too. When it fails, the definition there was before is put back.
    pub(crate) fn define_and<E: From<VmError>>(
        &self,
        definition: VmDefinition,
        then: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let path = self.dir.join(format!("{}.toml", definition.name));
        let text = definition.to_toml().map_err(VmError::from)?;
        let before = files::read_regular(&path).ok();
        let io = |source| VmError::Io { path: path.clone(), source };
        files::write_atomic(&path, text.as_bytes()).map_err(io)?;
        if let Err(error) = then() {
            let undone = match before {
                Some(before) => files::write_atomic(&path, &before),
                None => std::fs::remove_file(&path).and_then(|()| files::sync_dir(&self.dir)),
            };
            if let Err(undo) = undone {
                tracing::error!("cannot undo the definition in {}: {undo}", path.display());
            }
            return Err(error);
        }
        let mut definitions = lock(&self.definitions);
        definitions.damaged.remove(definition.name.as_str());
        definitions.whole.insert(definition.name.to_string(), definition);
        Ok(())
    }

    /// Forgets a definition. Nothing happens where there is none.
    pub(crate) fn undefine(&self, vm: &str) -> Result<(), VmError> {
        let known = lock(&self.definitions).damaged.get(vm).map(|damaged| damaged.path.clone());
        let path = known.unwrap_or_else(|| self.dir.join(format!("{vm}.toml")));
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(VmError::Io { path, source: error });
            }
            _ => {}
        }
        files::sync_dir(&self.dir).map_err(|source| VmError::Io { path: self.dir.clone(), source })?;
        let mut definitions = lock(&self.definitions);
        definitions.damaged.remove(vm);
        definitions.whole.remove(vm);
        Ok(())
    }

    fn unknown(&self, name: &str) -> VmError {
        let mut known: Vec<_> = lock(&self.definitions).whole.keys().cloned().collect();
        known.sort();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        VmError::Unknown { name: name.to_owned(), known }
    }
}

/// Reads a definition from a file.
pub(crate) fn read_definition(path: &Path) -> Result<VmDefinition, VmError> {
    let io = |source| VmError::Io { path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(io)?;
    file.take(MAX_DEFINITION_BYTES as u64 + 1).read_to_string(&mut text).map_err(io)?;
    Ok(VmDefinition::parse(&text, path)?)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
