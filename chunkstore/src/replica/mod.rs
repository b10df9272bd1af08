//! One disk's replica: an image that is always one whole generation. A pass writes beside it, the first one a new
//! image, a later one a redo log; only its commit replaces the generation, in one step that a crash cannot halve.
//! FORMAT.md has the bytes and the order of the steps. It never looks at what the image means.

mod error;
mod extents;
mod format;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod generation;
mod guard;
mod names;
mod pass;
mod place;
mod recover;
mod set;
mod shared;
mod tree;
mod verify;

use std::fs;
use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};

pub use error::ReplicaError;
pub use generation::{Generation, SetId};
pub use pass::Pass;
pub use place::Place;
pub use set::{Prepared, commit_set};
pub use verify::Still;

use crate::disk::{Disk, RealDisk};
use crate::files::{self, DirLock, LockError};
use crate::manifest::MAX_MANIFEST_BYTES;
use crate::sync::{lock, read};
use crate::{FileError, ImageTree, Manifest, ManifestWriter, RawImage};
use shared::{Shared, State};

/// A replica, open. Clones are the same replica; the directory is free again when the last one and its pass are gone.
#[derive(Clone)]
pub struct Replica {
    shared: Arc<Shared>,
}

impl Replica {
    /// Opens the replica in `dir`, creating an empty one if need be. Finishes a pass that was committed before a
    /// crash, drops one that was not.
    pub fn open(dir: impl AsRef<Path>) -> Result<Replica, ReplicaError> {
        let dir = dir.as_ref();
        fs::create_dir_all(dir).map_err(FileError::at("create the directory", dir))?;
        let lock = DirLock::acquire(dir).map_err(|error| match error {
            LockError::InUse { pid } => ReplicaError::InUse { dir: dir.to_owned(), pid },
            LockError::File(error) => ReplicaError::File(error),
        })?;
        Replica::open_on(Arc::new(RealDisk), dir, Some(lock))
    }

    fn open_on(disk: Arc<dyn Disk>, dir: &Path, lock: Option<DirLock>) -> Result<Replica, ReplicaError> {
        let generation = recover::recover(&*disk, dir)?;
        let state = Mutex::new(State { generation, ..State::default() });
        let shared = Shared { disk, dir: dir.to_owned(), state, image: RwLock::new(()), _lock: lock };
        Ok(Replica { shared: Arc::new(shared) })
    }

    /// The generation that the replica in `dir` holds. Reads only the state and opens the replica for no longer than it
    /// takes to finish or drop an interrupted pass.
    pub fn look(dir: impl AsRef<Path>) -> Result<Option<Generation>, ReplicaError> {
        let dir = dir.as_ref();
        let left = [names::GUARD, names::NEXT_STATE, names::PARTIAL, names::LOG];
        if left.iter().any(|name| fs::symlink_metadata(dir.join(name)).is_ok()) {
            return Ok(Replica::open(dir)?.generation());
        }
        let generation = recover::read_state(&RealDisk, &dir.join(names::STATE))?;
        if let Some(generation) = &generation {
            recover::check_image(&RealDisk, &dir.join(names::IMAGE), generation)?;
        }
        Ok(generation)
    }

    /// Where the replica in `dir` has its image.
    pub fn image_in(dir: &Path) -> PathBuf {
        dir.join(names::IMAGE)
    }

    /// The generation it holds, if any.
    pub fn generation(&self) -> Option<Generation> {
        lock(&self.shared.state).generation.clone()
    }

    /// Where the image is. The file is replaced or changed when a pass commits.
    pub fn image_path(&self) -> PathBuf {
        self.shared.path(names::IMAGE)
    }

    /// The image of the present generation, to be read; `None` without a generation. It holds still until the next
    /// commit.
    pub fn image(&self) -> Result<Option<RawImage>, ReplicaError> {
        let state = self.shared.settled()?;
        if state.generation.is_none() {
            return Ok(None);
        }
        let path = self.image_path();
        Ok(Some(RawImage::open_read(&path).map_err(FileError::at("open the image", &path))?))
    }

    /// Starts a pass for an image of `size` bytes. When there is a generation of that size, the pass starts from it;
    /// otherwise from zeroes ([`Pass::base`] tells).
    pub fn begin(&self, size: u64) -> Result<Pass, ReplicaError> {
        let mut state = self.shared.settled()?;
        if state.in_pass {
            return Err(ReplicaError::Busy { dir: self.shared.dir.clone() });
        }
        let base = state.generation.clone().filter(|generation| generation.size == size);
        let pass = Pass::start(self.shared.clone(), base, size)?;
        state.in_pass = true;
        Ok(pass)
    }

    /// Begins the manifest of an image that becomes the next generation.
    pub fn manifest_writer(&self) -> Result<ManifestWriter, ReplicaError> {
        Ok(ManifestWriter::new(Arc::new(RealDisk), &self.shared.dir)?)
    }

    /// Keeps the manifest of the present generation beside the image, so that its chunks can be found in it.
    pub fn save_manifest(&self, manifest: &Manifest) -> Result<(), ReplicaError> {
        Ok(files::replace(&RealDisk, &self.shared.dir, names::MANIFEST, manifest.parts())?)
    }

    /// The manifest kept for the present generation; `None` when there is none that can be read and matches it.
    pub fn manifest(&self) -> Option<Manifest> {
        Replica::manifest_in(&self.shared.dir, &self.generation()?)
    }

    /// The manifest that the replica in `dir` keeps for this generation.
    pub fn manifest_in(dir: &Path, generation: &Generation) -> Option<Manifest> {
        let path = dir.join(names::MANIFEST);
        let manifest =
            Manifest::parse(files::load_bounded(&RealDisk, &path, MAX_MANIFEST_BYTES).ok()?).ok()?;
        (manifest.root() == generation.root && manifest.size() == generation.size).then_some(manifest)
    }

    /// Keeps the hash tree of the present generation beside the image, for who opens the replica next. One that is not
    /// that, or not up to date, is not kept, which is no failure.
    pub fn save_tree(&self, tree: &ImageTree) -> Result<(), ReplicaError> {
        // The image's file must not change between the look at it and the writing.
        let _still = read(&self.shared.image);
        let Some(subject) = self.subject().filter(|of| of.root == tree.root() && tree.is_settled()) else {
            return Ok(());
        };
        let (path, temporary) = (self.shared.path(names::TREE), self.shared.path(".tree.tmp"));
        let write = || {
            let mut out = BufWriter::with_capacity(TREE_BUFFER_BYTES, File::create(&temporary)?);
            tree::write(&mut out, &subject, tree)?;
            out.flush()?;
            // Not synced: what a crash tears is not whole, and costs one look at the image.
            fs::rename(&temporary, &path)
        };
        let written = write();
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        Ok(written.map_err(FileError::at("write", &path))?)
    }

    /// The tree kept for the present generation; `None` when there is none that can be read and matches it, or when
    /// somebody else has touched the image since.
    pub fn tree(&self) -> Option<ImageTree> {
        let _still = read(&self.shared.image);
        let subject = self.subject()?;
        let file = File::open(self.shared.path(names::TREE)).ok()?;
        let tree = tree::read(&mut BufReader::with_capacity(TREE_BUFFER_BYTES, file), &subject)?;
        (tree.root() == subject.root).then_some(tree)
    }

    /// What a tree of the present generation is of; the caller holds the image still.
    fn subject(&self) -> Option<tree::Subject> {
        let state = lock(&self.shared.state);
        let generation = state.generation.as_ref().filter(|_| !state.unfinished)?;
        let image = fs::metadata(self.image_path()).ok()?;
        let changed = (image.ctime() as u64, image.ctime_nsec() as u32);
        Some(tree::Subject { size: generation.size, root: generation.root, changed })
    }
}

/// For a file that is read or written once, from its beginning to its end.
const TREE_BUFFER_BYTES: usize = 1 << 18;

#[cfg(test)]
mod tests;
