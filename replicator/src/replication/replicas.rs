//! The replicas that this platform keeps of others' disks: one directory for each VM of each peer, one writer a replica at
//! a time. What they hold is known without opening them; a replica is open while a pass or a restore works on it.

mod owners;
mod restore;
mod sets;
mod sink;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use chunkstore::{Generation, ImageRoot, ImageTree, Manifest, Replica, ReplicaError, Seeds};
use longhaul_proto::wire::{Refusal, TargetStatus};
use serde::Serialize;

use crate::error_kind::{HasKind, Kind};
use crate::files;
use crate::images::targets::TargetError;
use crate::service::identity::Fingerprint;
use crate::service::jobs;
use crate::service::peers::Peers;
use crate::transfer::sink::{Assembly, Holdings};

use owners::Owner;
pub(crate) use owners::Source;
pub(crate) use restore::{LeftOut, RestoreRequest, verify};
pub(crate) use sets::SetOf;
use sets::Sets;
use sink::PassImage;
pub(crate) use sink::ReplicaSink;
use sink::failed_commit;

/// The disk of a replica that was sent as an image, by `image send`.
pub(crate) const IMAGE_DISK: &str = "image";

/// A replica as it is listed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Listed {
    /// The VM, or the image's name.
    pub name: String,
    /// The disk.
    pub disk: String,
    /// Its generation. This and what belongs to it is `None` when there is none that can be read.
    pub generation: Option<u64>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// When the image was so, in milliseconds since the Unix epoch.
    pub taken_unix_ms: Option<u64>,
    /// The peer it is of, by its name here; the name of its time where the peer is not known any more.
    pub source: Option<String>,
    /// Root of the image.
    pub root: Option<ImageRoot>,
    /// Where it lies.
    pub path: PathBuf,
    /// `ok`, or what is wrong with it.
    pub state: String,
}

/// Something that cannot be done with replicas.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub(crate) enum ReplicasError {
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The transfer is not of the protocol, or its set has ended.
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("there is no replica '{name}'; `longhaul replica list` shows those there are")]
    Unknown { name: String },
    #[error("replica '{name}' has no disk '{disk}', only {known}")]
    NoDisk { name: String, disk: String, known: String },
    #[error(
        "replica '{name}' is damaged: {damage}; run a new pass, which starts it anew and keeps what is there aside"
    )]
    Damaged { name: String, damage: String },
    #[error("several peers have a VM '{name}' here: give --from, one of {peers}")]
    Ambiguous { name: String, peers: String },
    #[error(
        "the disks of replica '{name}' are of different passes: run a new pass, or restore one of them with --disk, one of {disks}"
    )]
    Mixed { name: String, disks: String },
    #[error(
        "disk '{disk}' of replica '{name}' is being restored; try again when that has ended, since the pass could not be \
         committed before"
    )]
    Restoring { name: String, disk: String },
    #[error("{what} {path}: {source}", path = .path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    /// A verification found damage.
    #[error("damaged: {names}; run a new pass of each, which mends it")]
    Unsound { names: String },
    /// By a person.
    #[error("cancelled")]
    Cancelled,
    /// A thread of ours broke.
    #[error("the worker ended unexpectedly")]
    Worker,
}

impl HasKind for ReplicasError {
    fn kind(&self) -> Kind {
        match self {
            ReplicasError::Replica(error) => error.kind(),
            ReplicasError::Target(error) => error.kind(),
            ReplicasError::Refused(error) => error.kind(),
            ReplicasError::Unknown { .. } | ReplicasError::NoDisk { .. } => Kind::NotFound,
            ReplicasError::Ambiguous { .. } => Kind::Invalid,
            ReplicasError::Mixed { .. } | ReplicasError::Cancelled => Kind::Denied,
            ReplicasError::Restoring { .. } => Kind::Busy,
            ReplicasError::Damaged { .. } | ReplicasError::Unsound { .. } => Kind::Io,
            ReplicasError::Io { source, .. } => Kind::of_named_path(source),
            ReplicasError::Worker => Kind::Bug,
        }
    }
}

impl ReplicasError {
    /// As the sender of a pass is told it.
    pub(crate) fn refusal(&self) -> Refusal {
        if let ReplicasError::Refused(refusal) = self {
            return refusal.clone();
        }
        let kind = self.kind().refusal();
        Refusal { kind, reason: self.to_string() }
    }
}

/// A disk's replica.
struct Kept {
    dir: PathBuf,
    state: Mutex<State>,
    /// While somebody works on it.
    open: Mutex<Weak<Replica>>,
    /// How many restores read it. They hold its generation still, so a pass does not begin.
    restoring: AtomicUsize,
}

#[derive(Default)]
struct State {
    generation: Option<Generation>,
    damage: Option<Damage>,
}

enum Damage {
    /// What it holds is not what was written: it is started anew by the next pass.
    Unreadable(String),
    /// It could not be read when the daemon started. It may be whole, and is looked at again when it is used.
    OutOfReach(String),
    /// Bytes of its image are not what they should be. The next pass mends it.
    Rotten(String),
}

impl Kept {
    fn load(dir: PathBuf) -> Kept {
        let state = match Replica::look(&dir) {
            Ok(generation) => State { generation, damage: None },
            Err(error) => {
                tracing::warn!("{} is left out: {error}", dir.display());
                let what = error.to_string();
                let damage = match error {
                    ReplicaError::Damaged { .. } => Damage::Unreadable(what),
                    _ => Damage::OutOfReach(what),
                };
                State { generation: None, damage: Some(damage) }
            }
        };
        Kept { dir, state: Mutex::new(state), open: Mutex::default(), restoring: AtomicUsize::new(0) }
    }

    fn open(&self) -> Result<Arc<Replica>, ReplicaError> {
        let mut open = lock(&self.open);
        if let Some(replica) = open.upgrade() {
            return Ok(replica);
        }
        let opened = Replica::open(&self.dir).inspect_err(|error| {
            if matches!(error, ReplicaError::Damaged { .. }) {
                lock(&self.state).damage = Some(Damage::Unreadable(error.to_string()));
            }
        });
        let replica = Arc::new(opened?);
        *open = Arc::downgrade(&replica);
        let mut state = lock(&self.state);
        state.generation = replica.generation();
        state.damage.take_if(|damage| matches!(damage, Damage::OutOfReach(_)));
        drop(state);
        Ok(replica)
    }

    fn committed(&self, generation: Generation) {
        *lock(&self.state) = State { generation: Some(generation), damage: None };
    }

    fn generation(&self) -> Option<Generation> {
        lock(&self.state).generation.clone()
    }

    fn is_unreadable(&self) -> bool {
        matches!(lock(&self.state).damage, Some(Damage::Unreadable(_)))
    }
}

/// The replicas of one VM of one peer.
struct Vm {
    dir: PathBuf,
    name: String,
    /// `None`: whoever the generations came from by name; they are of before there were owners.
    owner: Option<Owner>,
    disks: BTreeMap<String, Arc<Kept>>,
}

impl Vm {
    fn load(dir: PathBuf, name: &str, peers: &Peers) -> Vm {
        let loaded = Owner::load(&dir).inspect_err(|error| {
            tracing::warn!("{}: whose replicas these are cannot be read: {error}", dir.display());
        });
        // Only what never had an owner is given one by a name.
        let is_of_before = matches!(loaded, Ok(None));
        let owner = loaded.unwrap_or(None);
        let disks =
            subdirs(&dir).into_iter().map(|(disk, path)| (disk, Arc::new(Kept::load(path)))).collect();
        let name = owner.as_ref().map_or(name, |owner| &owner.vm).to_owned();
        let mut vm = Vm { dir, name, owner, disks };
        if is_of_before
            && let [only] = &vm.sources()[..]
            && let Ok(peer) = peers.get(only)
        {
            let source = Source { name: only.clone(), fingerprint: peer.fingerprint };
            if let Err(error) = vm.adopt(&source) {
                tracing::warn!("{}: its owner cannot be noted: {error}", vm.dir.display());
            }
        }
        vm
    }

    /// Where the generations came from, by the names of their time.
    fn sources(&self) -> Vec<String> {
        let sources = self.disks.values().filter_map(|kept| kept.generation()).map(|held| held.source);
        sources.collect::<HashSet<_>>().into_iter().collect()
    }

    fn adopt(&mut self, source: &Source) -> Result<(), ReplicasError> {
        let owner = Owner::new(&self.name, source);
        let path = self.dir.clone();
        owner.save(&path).map_err(|source| ReplicasError::Io {
            what: "noting the owner of",
            path,
            source,
        })?;
        self.owner = Some(owner);
        Ok(())
    }

    /// Whether a pass of this peer goes here.
    fn is_of(&self, vm: &str, source: &Source) -> bool {
        self.name == vm
            && match &self.owner {
                Some(owner) => owner.fingerprint == source.fingerprint,
                None => self.sources().iter().all(|name| *name == source.name),
            }
    }

    /// The name of its peer here.
    fn peer(&self, peers: &Peers) -> String {
        match &self.owner {
            Some(owner) => peers.name_of(owner.fingerprint).unwrap_or_else(|| owner.peer.clone()),
            None => self.sources().join(", "),
        }
    }
}

/// All replicas below one directory: `NAME/DISK/`, or `NAME@PEER/DISK/` where another peer has that name already.
pub(crate) struct Replicas {
    dir: PathBuf,
    peers: Arc<Peers>,
    /// By the name of their directory.
    vms: Mutex<BTreeMap<String, Vm>>,
    sets: Sets,
    seeds: Arc<Seeds>,
    _seeding: Seeding,
}

impl Replicas {
    /// Looks at every replica there is: interrupted passes are finished or dropped. Their chunks become seeds, which takes
    /// its time and is not waited for. What cannot be read is left out and said.
    pub(crate) fn load(dir: &Path, seeds: Arc<Seeds>, peers: Arc<Peers>) -> Self {
        let vms: BTreeMap<_, _> = subdirs(dir)
            .into_iter()
            .map(|(name, path)| {
                let vm = Vm::load(path, name.split('@').next().unwrap_or(&name), &peers);
                (name, vm)
            })
            .collect();
        let known = vms.values().flat_map(|vm| vm.disks.values());
        let known = known.filter_map(|kept| Some((kept.dir.clone(), kept.generation()?))).collect();
        let _seeding = Seeding::start(known, seeds.clone());
        let (dir, sets) = (dir.to_owned(), Sets::default());
        Replicas { dir, peers, vms: Mutex::new(vms), sets, seeds, _seeding }
    }

    /// Those with a generation and those that are damaged, by name and disk.
    pub(crate) fn list(&self) -> Vec<Listed> {
        let vms = lock(&self.vms);
        let mut listed: Vec<_> = vms.values().flat_map(|vm| self.list_vm(vm)).collect();
        listed.sort_by(|a, b| (&a.name, &a.source, &a.disk).cmp(&(&b.name, &b.source, &b.disk)));
        listed
    }

    fn list_vm(&self, vm: &Vm) -> Vec<Listed> {
        let peer = vm.owner.as_ref().map(|_| vm.peer(&self.peers));
        let disks = vm.disks.iter().filter_map(|(disk, kept)| {
            let state = lock(&kept.state);
            let (held, damage) = (state.generation.as_ref(), state.damage.as_ref());
            if held.is_none() && damage.is_none() {
                return None;
            }
            let source = peer.clone().or_else(|| Some(held?.source.clone()));
            Some(Listed {
                name: vm.name.clone(),
                disk: disk.clone(),
                generation: held.map(|held| held.number),
                size: held.map(|held| held.size),
                taken_unix_ms: held.map(|held| held.taken_unix_ms),
                source,
                root: held.map(|held| held.root),
                path: Replica::image_in(&kept.dir),
                state: match damage {
                    None => "ok".to_owned(),
                    Some(Damage::Unreadable(what) | Damage::Rotten(what)) => format!("damaged: {what}"),
                    Some(Damage::OutOfReach(what)) => format!("out of reach: {what}"),
                },
            })
        });
        disks.collect()
    }

    /// The image of the latest generation there is of a VM's disk, whichever peer it is of.
    #[cfg(test)]
    pub(crate) fn image(&self, name: &str, disk: &str) -> Option<PathBuf> {
        self.latest(name, disk, |_| true)
    }

    /// The image of the latest generation there is of a peer's VM's disk.
    pub(crate) fn image_of(&self, peer: &Fingerprint, name: &str, disk: &str) -> Option<PathBuf> {
        self.latest(name, disk, |vm| vm.owner.as_ref().is_some_and(|owner| owner.fingerprint == *peer))
    }

    fn latest(&self, name: &str, disk: &str, wanted: impl Fn(&Vm) -> bool) -> Option<PathBuf> {
        let vms = lock(&self.vms);
        let kept =
            vms.values().filter(|vm| vm.name == name && wanted(vm)).filter_map(|vm| vm.disks.get(disk));
        let held = kept.filter_map(|kept| Some((kept.generation()?.taken_unix_ms, &kept.dir)));
        held.max_by_key(|(taken, _)| *taken).map(|(_, dir)| Replica::image_in(dir))
    }

    /// What there is of a peer's disk.
    pub(crate) fn status(&self, name: &str, disk: &str, source: &Source) -> TargetStatus {
        let vms = lock(&self.vms);
        let kept = vms.values().find(|vm| vm.is_of(name, source)).and_then(|vm| vm.disks.get(disk));
        status_of(kept.and_then(|kept| kept.generation()).as_ref())
    }

    /// Begins the next generation of a peer's disk, of `size` bytes; with `set`, as one disk of a pass of several, which are
    /// committed together.
    pub(crate) fn sink(
        &self,
        name: &str,
        disk: &str,
        size: u64,
        source: &Source,
        set: Option<SetOf>,
        holdings: Holdings,
    ) -> Result<ReplicaSink, ReplicasError> {
        let (dir, kept) = self.claim(name, disk, source)?;
        if kept.restoring.load(Ordering::Acquire) > 0 {
            return Err(ReplicasError::Restoring { name: name.to_owned(), disk: disk.to_owned() });
        }
        let replica = kept.open()?;
        let pass = replica.begin(size)?;
        let member = match set {
            Some(set) => Some((set, self.sets.join(&dir, set, disk)?)),
            None => None,
        };
        let tree = match pass.base() {
            None => ImageTree::new(size),
            Some(_) => replica.tree().unwrap_or_else(|| unread(size)),
        };
        // Of another size it starts from nothing, and still follows the one there is.
        let before = replica.generation();
        let fresh = pass.base().is_none();
        let extents = Some(replica.manifest_writer()?);
        let assembly = Assembly::new(PassImage::new(pass), Arc::new(Mutex::new(tree)), holdings, extents);
        let (seeds, source) = (self.seeds.clone(), source.name.clone());
        let assembly = Some(assembly);
        Ok(ReplicaSink { member, assembly, replica, kept, seeds, size, source, before, fresh })
    }

    /// The peer's directory for this VM, and the disk in it: made when there is none, started anew where it is damaged.
    fn claim(&self, name: &str, disk: &str, source: &Source) -> Result<(PathBuf, Arc<Kept>), ReplicasError> {
        let mut vms = lock(&self.vms);
        let held = vms.iter().find(|(_, vm)| vm.is_of(name, source)).map(|(key, _)| key.clone());
        let key = held.unwrap_or_else(|| self.free_name(name, source));
        let path = self.dir.join(&key);
        let io = |what| {
            let path = path.clone();
            move |source| ReplicasError::Io { what, path, source }
        };
        std::fs::create_dir_all(&path).map_err(io("creating"))?;
        let (dir, disks) = (path.clone(), BTreeMap::new());
        let vm = vms.entry(key).or_insert_with(|| Vm { dir, name: name.to_owned(), owner: None, disks });
        if vm.owner.is_none() {
            vm.adopt(source)?;
        }
        let place = path.join(disk);
        if vm.disks.get(disk).is_some_and(|kept| kept.is_unreadable()) {
            let aside = path.join(format!(".damaged-{disk}-{}", jobs::unix_ms()));
            std::fs::rename(&place, &aside).map_err(io("setting aside the damaged replica in"))?;
            tracing::warn!("the damaged replica {} is kept aside as {}", place.display(), aside.display());
            vm.disks.remove(disk);
        }
        if let Some(kept) = vm.disks.get(disk) {
            return Ok((path, kept.clone()));
        }
        // What is committed in there must not be lost with a name above it.
        std::fs::create_dir_all(&place)
            .and_then(|()| files::sync_dir(&path))
            .and_then(|()| files::sync_dir(&self.dir))
            .map_err(io("creating a replica in"))?;
        let kept = Arc::new(Kept::load(place));
        vm.disks.insert(disk.to_owned(), kept.clone());
        Ok((path, kept))
    }

    /// A name for a directory that nothing has.
    fn free_name(&self, name: &str, source: &Source) -> String {
        let key = source.fingerprint.to_string();
        let names =
            [name.to_owned(), format!("{name}@{}", source.name), format!("{name}@{}.{key}", source.name)];
        let free = |name: &&String| self.dir.join(name).symlink_metadata().is_err();
        let [.., last] = &names;
        names.iter().find(free).unwrap_or(last).clone()
    }
}

fn status_of(generation: Option<&Generation>) -> TargetStatus {
    match generation {
        Some(held) => TargetStatus { generation: held.number, root: Some(*held.root.as_bytes()) },
        None => TargetStatus { generation: 0, root: None },
    }
}

/// The tree of an image of which nothing is known: it is read whole when the tree is refreshed.
fn unread(size: u64) -> ImageTree {
    let mut tree = ImageTree::new(size);
    tree.mark_all();
    tree
}

fn seed(seeds: &Seeds, image: &Path, manifest: &Manifest) {
    if let Err(error) = seeds.add_image(image, manifest) {
        tracing::warn!("{} cannot serve chunks: {error}", image.display());
    }
}

/// Makes the chunks of replicas known, on a thread of its own.
struct Seeding {
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Seeding {
    fn start(replicas: Vec<(PathBuf, Generation)>, seeds: Arc<Seeds>) -> Seeding {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let work = move || {
            for (dir, generation) in replicas {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                if let Some(manifest) = Replica::manifest_in(&dir, &generation) {
                    seed(&seeds, &Replica::image_in(&dir), &manifest);
                }
            }
        };
        let thread = std::thread::Builder::new().name("seeds".to_owned()).spawn(work);
        let thread = thread.inspect_err(|error| tracing::warn!("replicas serve no chunks yet: {error}"));
        Seeding { stop, thread: Mutex::new(thread.ok()) }
    }

    /// Waits until all are known.
    fn wait(&self) {
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Seeding {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.wait();
    }
}

/// The directories in `dir` that can be of a VM or a disk, by name. Others are named in the log.
fn subdirs(dir: &Path) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir(dir).inspect_err(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            tracing::warn!("the replicas in {} are left out: {error}", dir.display());
        }
    });
    for entry in entries.into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(name) = entry.file_name().into_string() else {
            tracing::warn!("{} is not of a replica, and is left out", path.display());
            continue;
        };
        // Files of ours lie beside the disks; what begins with a dot was set aside.
        let is_ours = name.starts_with('.') || name == "set" || name == "owner";
        let (base, peer) = name.split_once('@').unwrap_or((&name, "peer"));
        let fits = files::check_name("replica", base).is_ok() && !peer.is_empty();
        if fits && path.is_dir() {
            found.push((name, path));
        } else if !is_ours && name != "lost+found" {
            tracing::warn!("{} is not of a replica, and is left out", path.display());
        }
    }
    found
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
