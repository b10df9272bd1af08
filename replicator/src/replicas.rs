//! The replicas that this platform keeps of others' disks, opened when they are first used. One writer a replica at a time.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use chunkstore::{
    ChunkId, Generation, Group, ImageRoot, ImageTree, Manifest, ManifestWriter, Pass, ReadImage, Replica,
    ReplicaError, Seeds,
};
use longhaul_proto::handoff::Root;
use longhaul_proto::wire::{Refusal, RefusalKind, TargetStatus};
use serde::Serialize;

use crate::transfer::sink::{Assembly, Holdings, Sink, WriteImage};

/// The disk of a replica that was sent as an image, by `image send`.
pub const IMAGE_DISK: &str = "image";

/// A replica as it is listed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Listed {
    /// The VM, or the image's name.
    pub name: String,
    /// The disk.
    pub disk: String,
    /// Its generation.
    pub generation: u64,
    /// Size in bytes.
    pub size: u64,
    /// When the image was so, in milliseconds since the Unix epoch.
    pub taken_unix_ms: u64,
    /// The platform it came from.
    pub source: String,
    /// Root of the image.
    pub root: ImageRoot,
    /// Where it lies.
    pub path: PathBuf,
}

struct Kept {
    replica: Replica,
    /// Of the current generation; not known after a restart or a pass that failed: then the replica may have kept it.
    tree: Mutex<Option<ImageTree>>,
}

/// All replicas below one directory: `NAME/DISK/`.
pub struct Replicas {
    dir: PathBuf,
    open: Mutex<HashMap<(String, String), Arc<Kept>>>,
    seeds: Arc<Seeds>,
}

impl Replicas {
    /// Opens every replica there is: interrupted passes are finished or dropped, and their chunks become seeds.
    pub fn load(dir: &Path, seeds: Arc<Seeds>) -> Result<Self, ReplicaError> {
        let replicas = Replicas { dir: dir.to_owned(), open: Mutex::default(), seeds };
        for (name, disk) in subdirs(dir).into_iter().flat_map(|(name, path)| {
            subdirs(&path).into_iter().map(move |(disk, _)| (name.clone(), disk)).collect::<Vec<_>>()
        }) {
            let kept = replicas.get(&name, &disk)?;
            replicas.seed(&kept.replica);
        }
        Ok(replicas)
    }

    /// Those with a generation, by name and disk.
    pub fn list(&self) -> Vec<Listed> {
        let open: Vec<_> = self.lock().iter().map(|(key, kept)| (key.clone(), kept.clone())).collect();
        let mut listed: Vec<_> = open
            .into_iter()
            .filter_map(|((name, disk), kept)| {
                let Generation { number, size, root, taken_unix_ms, source, .. } = kept.replica.generation()?;
                let path = kept.replica.image_path();
                Some(Listed { name, disk, generation: number, size, taken_unix_ms, source, root, path })
            })
            .collect();
        listed.sort_by(|a, b| (&a.name, &a.disk).cmp(&(&b.name, &b.disk)));
        listed
    }

    /// The image of a replica's current generation.
    pub fn image(&self, name: &str, disk: &str) -> Option<PathBuf> {
        let kept = self.lock().get(&(name.to_owned(), disk.to_owned())).cloned()?;
        kept.replica.generation().map(|_| kept.replica.image_path())
    }

    /// What there is of a replica.
    pub fn status(&self, name: &str, disk: &str) -> TargetStatus {
        let kept = self.lock().get(&(name.to_owned(), disk.to_owned())).cloned();
        match kept.and_then(|kept| kept.replica.generation()) {
            Some(generation) => {
                TargetStatus { generation: generation.number, root: Some(*generation.root.as_bytes()) }
            }
            None => TargetStatus { generation: 0, root: None },
        }
    }

    /// Copies a replica's image to `path`, which must not exist.
    pub fn restore(&self, name: &str, disk: &str, path: &Path) -> Result<Generation, ReplicaError> {
        self.get(name, disk)?.replica.restore_to(path)
    }

    /// Begins the next generation of a replica, of `size` bytes, on behalf of the platform `source`.
    pub fn sink(
        &self,
        name: &str,
        disk: &str,
        size: u64,
        source: &str,
        holdings: Holdings,
    ) -> Result<ReplicaSink, ReplicaError> {
        let kept = self.get(name, disk)?;
        let pass = kept.replica.begin(size)?;
        let mut known = kept.tree.lock().unwrap_or_else(PoisonError::into_inner);
        // Taken out: it belongs to the pass, and comes back only when the pass is committed.
        let remembered = known.take();
        let tree = match pass.base() {
            None => ImageTree::new(size),
            Some(_) => remembered
                .filter(|tree| tree.size() == size)
                .or_else(|| kept.replica.tree())
                .unwrap_or_else(|| unread(size)),
        };
        drop(known);
        // Of another size it starts from nothing, and still follows the one there is.
        let generation = kept.replica.generation().map_or(0, |before| before.number);
        let fresh = pass.base().is_none();
        let extents = Some(kept.replica.manifest_writer()?);
        let assembly = Assembly::new(PassImage(pass), Arc::new(Mutex::new(tree)), holdings, extents);
        let seeds = self.seeds.clone();
        Ok(ReplicaSink {
            assembly: Some(assembly),
            kept,
            seeds,
            size,
            source: source.to_owned(),
            generation,
            fresh,
        })
    }

    fn get(&self, name: &str, disk: &str) -> Result<Arc<Kept>, ReplicaError> {
        let key = (name.to_owned(), disk.to_owned());
        let mut open = self.lock();
        if let Some(kept) = open.get(&key) {
            return Ok(kept.clone());
        }
        let replica = Replica::open(self.dir.join(name).join(disk))?;
        let kept = Arc::new(Kept { replica, tree: Mutex::new(None) });
        open.insert(key, kept.clone());
        Ok(kept)
    }

    fn seed(&self, replica: &Replica) {
        if let (Some(_), Some(manifest)) = (replica.generation(), replica.manifest()) {
            seed(&self.seeds, replica, &manifest);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), Arc<Kept>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The tree of an image of which nothing is known: it is read whole when the tree is refreshed.
fn unread(size: u64) -> ImageTree {
    let mut tree = ImageTree::new(size);
    tree.mark_all();
    tree
}

fn seed(seeds: &Seeds, replica: &Replica, manifest: &Manifest) {
    if let Err(error) = seeds.add_image(replica.image_path(), manifest) {
        tracing::warn!("{} cannot serve chunks: {error}", replica.image_path().display());
    }
}

fn subdirs(dir: &Path) -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .collect()
}

struct PassImage(Pass);

impl ReadImage for PassImage {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buf)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<std::ops::Range<u64>>> {
        self.0.next_data(offset)
    }
}

impl WriteImage for PassImage {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, bytes).map_err(to_io)
    }

    fn zero(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.0.zero(offset, len).map_err(to_io)
    }
}

fn to_io(error: ReplicaError) -> io::Error {
    let kind = if error.is_full() { io::ErrorKind::StorageFull } else { io::ErrorKind::Other };
    io::Error::new(kind, error)
}

/// The next generation of a replica. Dropped before its commit it leaves the one before.
pub struct ReplicaSink {
    assembly: Option<Assembly<PassImage>>,
    kept: Arc<Kept>,
    seeds: Arc<Seeds>,
    size: u64,
    source: String,
    /// The generation there is; 0 when there is none.
    generation: u64,
    /// The pass starts from nothing, so it must bring everything.
    fresh: bool,
}

impl ReplicaSink {
    /// Makes chunks of the new generation known. That this fails is no reason to give up the generation.
    fn keep_chunk_list(&self, extents: ManifestWriter, root: ImageRoot) {
        let kept = extents.finish(root).map_err(ReplicaError::from).and_then(|manifest| {
            seed(&self.seeds, &self.kept.replica, &manifest);
            self.kept.replica.save_manifest(&manifest)
        });
        if let Err(error) = kept {
            tracing::warn!("the replica is whole, but its chunk list cannot be kept: {error}");
        }
    }

    fn assembly(&mut self) -> Result<&mut Assembly<PassImage>, Refusal> {
        self.assembly.as_mut().ok_or_else(|| refusal(RefusalKind::Protocol, "the pass has ended".to_owned()))
    }
}

fn refusal(kind: RefusalKind, reason: String) -> Refusal {
    Refusal { kind, reason }
}

impl Sink for ReplicaSink {
    fn place(&mut self, offset: u64, len: u32, name: ChunkId) -> Result<bool, Refusal> {
        self.assembly()?.place(offset, len, name)
    }

    fn expect(&mut self, _offset: u64, len: u32, name: ChunkId) -> Result<(), Refusal> {
        self.assembly()?.expect(len, name)
    }

    fn hole(&mut self, offset: u64, len: u64) -> Result<(), Refusal> {
        self.assembly()?.hole(offset, len)
    }

    fn chunks(&mut self, group: &Group, offsets: &[Vec<u64>]) -> Result<(), Refusal> {
        self.assembly()?.chunks(group, offsets)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.assembly()?.put(offset, bytes)
    }

    fn sync(&mut self, _mark: u32) -> Result<(), Refusal> {
        Ok(())
    }

    fn commit(&mut self, root: Root, after: u64, taken_unix_ms: u64, whole: bool) -> Result<u64, Refusal> {
        if after != self.generation || (self.fresh && !whole) {
            let reason = format!("the replica is at generation {}, the pass is for {after}", self.generation);
            return Err(refusal(RefusalKind::Diverged, reason));
        }
        let found = self.assembly()?.refresh()?;
        let expected = ImageRoot::from_bytes(root);
        if found != expected {
            let reason = format!("after the pass the image's root would be {found}, not {expected}");
            return Err(refusal(RefusalKind::Diverged, reason));
        }
        let Some(Assembly { image, tree, extents, .. }) = self.assembly.take() else {
            return Err(refusal(RefusalKind::Protocol, "the pass has ended".to_owned()));
        };
        let number = self.generation + 1;
        let generation =
            Generation {
            number,
            size: self.size,
            root: found,
            taken_unix_ms,
            source: self.source.clone(),
            set: None,
        };
        image.0.commit(generation).map_err(|error| {
            let kind = if error.is_full() { RefusalKind::NoSpace } else { RefusalKind::Failed };
            refusal(kind, error.to_string())
        })?;
        if let (true, Some(extents)) = (whole, extents) {
            self.keep_chunk_list(extents, found);
        }
        let tree = Arc::try_unwrap(tree).ok().and_then(|tree| tree.into_inner().ok());
        if let Some(Err(error)) = tree.as_ref().map(|tree| self.kept.replica.save_tree(tree)) {
            tracing::warn!("the replica is whole, but it will be read again after a restart: {error}");
        }
        *self.kept.tree.lock().unwrap_or_else(PoisonError::into_inner) = tree;
        Ok(number)
    }
}

#[cfg(test)]
mod tests;
