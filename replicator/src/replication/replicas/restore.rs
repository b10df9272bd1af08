//! Replicas out again: one disk into a file, or all disks of a VM, of one moment, into a new directory. What is handed out
//! has been compared with what the generation says; damage is remembered, so that the next pass mends it.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chunkstore::{ImageRoot, Replica, ReplicaError, Still};
use longhaul_proto::JobId;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Damage, Kept, Replicas, ReplicasError, Vm, lock};
use crate::images::targets;
use crate::lease::Lease;
use crate::service::jobs::{self, JobHandle, JobKind};
use crate::service::platform::ImagesCx;
use crate::transfer::Counters;

/// How often all disks are looked at for one moment, while a pass puts them into place one after the other.
const TRIES: u32 = 100;
const BETWEEN_TRIES: Duration = Duration::from_millis(20);

/// What `replica restore` is asked.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct RestoreRequest {
    /// Where to, absolute: a new file, a device, or a new directory for all disks of a VM that has several.
    pub path: PathBuf,
    /// Only this disk.
    pub disk: Option<String>,
    /// Of this peer.
    pub from: Option<String>,
    /// A device may be overwritten.
    #[serde(default)]
    pub in_place: bool,
}

/// A disk that was written out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Restored {
    /// The disk.
    pub disk: String,
    /// Where it is.
    pub path: PathBuf,
    /// The generation's number.
    pub generation: u64,
    /// And its root.
    pub root: ImageRoot,
}

/// A disk that is of an older pass than those that were written out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct LeftOut {
    /// The disk.
    pub disk: String,
    /// The generation there is of it.
    pub generation: u64,
    /// When its image was so, in milliseconds since the Unix epoch.
    pub taken_unix_ms: u64,
}

/// What a restore did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Outcome {
    /// The disks of the pass that was committed last, or the one that was asked for.
    pub restored: Vec<Restored>,
    /// Disks that this pass did not bring.
    pub left_out: Vec<LeftOut>,
}

/// A disk that is to be written out.
struct Chosen {
    disk: String,
    kept: Arc<Kept>,
}

impl Replicas {
    /// Copies what is asked for: of a VM the disks of the pass that was committed last. `path` of the request has been looked
    /// at by [`targets::check`].
    pub(crate) fn restore(&self, name: &str, request: &RestoreRequest) -> Result<Outcome, ReplicasError> {
        targets::check_device(&request.path, request.in_place)?;
        let chosen = self.choose(name, request.from.as_deref(), request.disk.as_deref())?;
        let _restoring: Vec<_> = chosen.iter().map(|chosen| Restoring::begin(&chosen.kept)).collect();
        let replicas = chosen.iter().map(|chosen| chosen.kept.open()).collect::<Result<Vec<_>, _>>()?;
        let (still, left_out) = hold_still(name, &chosen, &replicas)?;
        let paths = paths(&request.path, &still)?;
        let mut restored = Vec::new();
        for ((chosen, still), path) in still.iter().zip(paths) {
            let written = still.restore_to(&path);
            if let Err(error) = written {
                note(&chosen.kept, &error);
                if request.path != path {
                    // Of this restore, all of it.
                    let _ = std::fs::remove_dir_all(&request.path);
                }
                return Err(error.into());
            }
            let (generation, root) = (still.generation().number, still.generation().root);
            restored.push(Restored { disk: chosen.disk.clone(), path, generation, root });
        }
        Ok(Outcome { restored, left_out })
    }

    /// The disks that are meant: the one named, else all that the VM has.
    fn choose(
        &self,
        name: &str,
        from: Option<&str>,
        disk: Option<&str>,
    ) -> Result<Vec<Chosen>, ReplicasError> {
        let vms = lock(&self.vms);
        let named = vms.iter().filter(|(key, vm)| vm.name == name || *key == name);
        let of_peer = |vm: &Vm| from.is_none_or(|from| vm.peer(&self.peers) == from);
        let found: Vec<&Vm> = named
            .map(|(_, vm)| vm)
            .filter(|vm| of_peer(vm) && vm.disks.values().any(|kept| kept.is_there()))
            .collect();
        let vm = match found[..] {
            [] => return Err(ReplicasError::Unknown { name: name.to_owned() }),
            [vm] => vm,
            _ => {
                let peers: Vec<_> = found.iter().map(|vm| vm.peer(&self.peers)).collect();
                return Err(ReplicasError::Ambiguous { name: name.to_owned(), peers: peers.join(", ") });
            }
        };
        let there = vm.disks.iter().filter(|(_, kept)| kept.is_there());
        let known: Vec<_> = there.clone().map(|(disk, _)| disk.as_str()).collect();
        let chosen: Vec<_> = there
            .filter(|(name, _)| disk.is_none_or(|disk| disk == *name))
            .map(|(disk, kept)| Chosen { disk: disk.clone(), kept: kept.clone() })
            .collect();
        if let (Some(disk), []) = (disk, &chosen[..]) {
            let (name, disk, known) = (name.to_owned(), disk.to_owned(), known.join(", "));
            return Err(ReplicasError::NoDisk { name, disk, known });
        }
        let unreadable = chosen.iter().find_map(|chosen| match &lock(&chosen.kept.state).damage {
            Some(Damage::Unreadable(damage)) => Some(damage.clone()),
            _ => None,
        });
        match unreadable {
            Some(damage) => Err(ReplicasError::Damaged { name: name.to_owned(), damage }),
            None => Ok(chosen),
        }
    }
}

impl Kept {
    fn is_there(&self) -> bool {
        let state = lock(&self.state);
        state.generation.is_some() || state.damage.is_some()
    }
}

/// Passes of this disk are refused while it lives.
struct Restoring(Arc<Kept>);

impl Restoring {
    fn begin(kept: &Arc<Kept>) -> Self {
        kept.restoring.fetch_add(1, Ordering::AcqRel);
        Restoring(kept.clone())
    }
}

impl Drop for Restoring {
    fn drop(&mut self) {
        self.0.restoring.fetch_sub(1, Ordering::AcqRel);
    }
}

type Held<'a> = Vec<(&'a Chosen, Still<'a>)>;

/// Holds them at one moment: one disk, or those of the set that was committed last. Also gives the disks that are of an
/// older set.
fn hold_still<'a>(
    name: &str,
    chosen: &'a [Chosen],
    replicas: &'a [Arc<Replica>],
) -> Result<(Held<'a>, Vec<LeftOut>), ReplicasError> {
    for attempt in 1..=TRIES {
        let still =
            replicas.iter().map(|replica| replica.hold_still()).collect::<Result<Vec<_>, ReplicaError>>()?;
        let sets: Vec<_> = still.iter().map(|still| still.generation().set).collect();
        let of_one_moment = sets.iter().all(|set| set.is_some() && *set == sets[0]);
        let held: Held<'a> = chosen.iter().zip(still).collect();
        if held.len() == 1 || of_one_moment {
            return Ok((held, Vec::new()));
        }
        // A disk that came by itself is of no set, and nobody can tell what it belongs with.
        if attempt == TRIES && sets.iter().all(Option::is_some) {
            let last = replicas.first().map(|replica| replica.last_set()).transpose()?.flatten();
            let (held, older): (Held<'a>, Held<'a>) =
                held.into_iter().partition(|(_, still)| still.generation().set == last);
            if !held.is_empty() {
                return Ok((held, older.iter().map(left_out).collect()));
            }
            break;
        }
        // A pass that has been decided puts its disks into place one after the other.
        drop(held);
        std::thread::sleep(BETWEEN_TRIES);
    }
    let disks: Vec<_> = chosen.iter().map(|chosen| chosen.disk.as_str()).collect();
    Err(ReplicasError::Mixed { name: name.to_owned(), disks: disks.join(", ") })
}

fn left_out((chosen, still): &(&Chosen, Still<'_>)) -> LeftOut {
    let generation = still.generation();
    let (number, taken_unix_ms) = (generation.number, generation.taken_unix_ms);
    LeftOut { disk: chosen.disk.clone(), generation: number, taken_unix_ms }
}

/// Where each disk goes. For several the directory is made.
fn paths(path: &Path, held: &Held<'_>) -> Result<Vec<PathBuf>, ReplicasError> {
    if held.len() == 1 {
        return Ok(vec![path.to_owned()]);
    }
    std::fs::create_dir(path).map_err(|source| {
        let path = path.to_owned();
        ReplicasError::Io { what: "the VM has several disks: creating a directory for them,", path, source }
    })?;
    Ok(held.iter().map(|(chosen, _)| path.join(format!("{}.raw", chosen.disk))).collect())
}

/// Remembers damage that was found.
fn note(kept: &Kept, error: &ReplicaError) {
    if let ReplicaError::Rotten { place, .. } = error {
        lock(&kept.state).damage = Some(Damage::Rotten(place.to_string()));
    }
}

/// Begins to compare replicas with their roots: those of one name, or all.
pub(crate) fn verify(cx: &Arc<ImagesCx>, name: Option<&str>) -> Result<JobId, ReplicasError> {
    let chosen = match name {
        Some(name) => {
            let vms = lock(&cx.images.replicas.vms);
            let named: Vec<_> = vms.iter().filter(|(key, vm)| vm.name == name || *key == name).collect();
            if named.is_empty() {
                return Err(ReplicasError::Unknown { name: name.to_owned() });
            }
            named.into_iter().flat_map(|(key, vm)| of_vm(key, vm)).collect()
        }
        None => lock(&cx.images.replicas.vms).iter().flat_map(|(key, vm)| of_vm(key, vm)).collect::<Vec<_>>(),
    };
    let subject = name.unwrap_or("replicas").to_owned();
    let handle = cx.jobs.begin(jobs::new_id(), JobKind::ReplicaVerify, &subject, None);
    handle.phase("verify");
    let working = handle.clone();
    cx.jobs.run(&handle, (), move |lease| async move {
        let asked = lease.clone();
        let work = lease.run_blocking(move || verify_all(&working, chosen, &asked));
        work.await.map_err(|_| ReplicasError::Worker)?
    });
    Ok(handle.id())
}

fn of_vm(key: &str, vm: &Vm) -> Vec<(String, Arc<Kept>)> {
    vm.disks.iter().map(|(disk, kept)| (format!("{key}/{disk}"), kept.clone())).collect()
}

fn verify_all(
    handle: &JobHandle,
    chosen: Vec<(String, Arc<Kept>)>,
    lease: &Lease,
) -> Result<String, ReplicasError> {
    let total: u64 =
        chosen.iter().filter_map(|(_, kept)| kept.generation()).map(|generation| generation.size).sum();
    handle.update(|report| report.image_bytes = total);
    let counters = handle.counters();
    let watch = |bytes| {
        Counters::add(&counters.scanned, bytes);
        if lease.check().is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let (mut sound, mut damaged) = (0, Vec::new());
    for (name, kept) in &chosen {
        let unreadable = match &lock(&kept.state).damage {
            Some(Damage::Unreadable(damage)) => Some(damage.clone()),
            _ => None,
        };
        if let Some(damage) = unreadable {
            damaged.push(json!({ "replica": name, "damage": damage }));
            continue;
        }
        match kept.open().and_then(|replica| replica.verify(&watch)) {
            Ok(()) => sound += 1,
            Err(ReplicaError::Empty { .. }) => {}
            Err(ReplicaError::Stopped) => return Err(ReplicasError::Cancelled),
            Err(error) => {
                note(kept, &error);
                damaged.push(json!({ "replica": name, "damage": error.to_string() }));
            }
        }
    }
    let names: Vec<_> = damaged.iter().filter_map(|damaged| damaged["replica"].as_str()).collect();
    let names = names.join(", ");
    handle.update(|report| report.result = Some(json!({ "sound": sound, "damaged": damaged })));
    match names.is_empty() {
        true => Ok(format!("{sound} replicas are what their generations say")),
        false => Err(ReplicasError::Unsound { names }),
    }
}
