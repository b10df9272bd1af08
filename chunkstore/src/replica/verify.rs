//! A replica's image compared with what its generation says of it: before it is handed out, and when somebody wants to
//! know. Damage is remembered by forgetting the tree, so that the next pass reads the whole image and mends it.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::RwLockReadGuard;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Generation, Replica, ReplicaError, State, TREE_BUFFER_BYTES, recover, tree};
use crate::disk::RealDisk;
use crate::sync::{lock, read};
use crate::tree::Hash;
use crate::{FileError, ImageTree, LEAF_BYTES, RawImage, ReadImage, copy_sparse, files};

/// Gets the bytes of each read of a comparison, and may stop it. Called from several threads.
pub(super) type Watch<'a> = dyn Fn(u64) -> ControlFlow<()> + Sync + 'a;

/// A replica that keeps its generation for as long as this value lives: commits wait.
pub struct Still<'a> {
    replica: &'a Replica,
    generation: Generation,
    _image: RwLockReadGuard<'a, ()>,
}

impl Replica {
    /// Holds the present generation still.
    pub fn hold_still(&self) -> Result<Still<'_>, ReplicaError> {
        drop(self.shared.settled()?);
        let image = read(&self.shared.image);
        let generation = match &*lock(&self.shared.state) {
            State { generation: Some(generation), unfinished: false, .. } => generation.clone(),
            State { unfinished: true, .. } => {
                return Err(ReplicaError::Busy { dir: self.shared.dir.clone() });
            }
            _ => return Err(ReplicaError::Empty { dir: self.shared.dir.clone() }),
        };
        Ok(Still { replica: self, generation, _image: image })
    }

    /// Copies the image to `path`, as [`Still::restore_to`].
    pub fn restore_to(&self, path: impl AsRef<Path>) -> Result<Generation, ReplicaError> {
        let still = self.hold_still()?;
        still.restore_to(path)?;
        Ok(still.generation.clone())
    }

    /// Forgets what is known of the image's content: the next pass reads all of it.
    pub fn distrust(&self) -> Result<(), ReplicaError> {
        Ok(files::remove(&RealDisk, &self.shared.path(recover::TREE))?)
    }
}

impl Still<'_> {
    /// The generation.
    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    /// Copies the image to `path`, holes as holes, and reads back what is there: it is the generation, or it is an error
    /// and a new file is gone again. `path` must not exist, or be a block device that is large enough.
    pub fn restore_to(&self, path: impl AsRef<Path>) -> Result<(), ReplicaError> {
        let path = path.as_ref();
        let is_device = fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device());
        copy_sparse(self.replica.image_path(), path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => ReplicaError::Exists { path: path.to_owned() },
            _ => FileError::at("write the image to", path)(error).into(),
        })?;
        let checked = RawImage::open_read(path)
            .map_err(|error| FileError::at("read back", path)(error).into())
            .and_then(|image| self.compare(&image, path, &|_| ControlFlow::Continue(())));
        if checked.is_err() && !is_device {
            let _ = fs::remove_file(path);
        }
        checked
    }

    /// Reads the whole image and compares it with the generation's root. `watch` gets the bytes of each read, and may stop
    /// it.
    pub fn verify(&self, watch: &Watch<'_>) -> Result<(), ReplicaError> {
        let path = self.replica.image_path();
        let image = RawImage::open_read(&path).map_err(FileError::at("open the image", &path))?;
        self.compare(&image, &path, watch)
    }

    fn compare(&self, image: &RawImage, path: &Path, watch: &Watch<'_>) -> Result<(), ReplicaError> {
        let size = self.generation.size;
        let mut found = ImageTree::new(size);
        found.mark_all();
        let stopped = AtomicBool::new(false);
        let read = found.refresh(&Beginning { image, size, watch, stopped: &stopped });
        if stopped.into_inner() {
            return Err(ReplicaError::Stopped);
        }
        read.map_err(FileError::at("read", path))?;
        if found.root() == self.generation.root {
            return Ok(());
        }
        let offset = self.kept_tree().and_then(|kept| first_difference(&kept, &found));
        self.replica.distrust()?;
        let (dir, number) = (self.replica.shared.dir.clone(), self.generation.number);
        Err(ReplicaError::Rotten { dir, number, place: Place { offset } })
    }

    /// The tree kept for this generation, whoever has touched the image since: its root vouches for its leaves.
    fn kept_tree(&self) -> Option<ImageTree> {
        let open = || File::open(self.replica.shared.path(recover::TREE)).ok();
        let mut header = [0; tree::HEADER_BYTES];
        open()?.read_exact(&mut header).ok()?;
        let subject = tree::Subject::parse(&header)?;
        if (subject.size, subject.root) != (self.generation.size, self.generation.root) {
            return None;
        }
        let kept = tree::read(&mut BufReader::with_capacity(TREE_BUFFER_BYTES, open()?), &subject)?;
        (kept.root() == self.generation.root).then_some(kept)
    }
}

/// Where an image is not what it should be, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Of the first leaf that does not match.
    pub offset: Option<u64>,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.offset {
            Some(offset) => write!(f, "the leaf at offset {offset} does not match its hash"),
            None => f.write_str("the image does not have the generation's root hash"),
        }
    }
}

/// Where the first leaf is that differs.
fn first_difference(kept: &ImageTree, found: &ImageTree) -> Option<u64> {
    let (mut kept, mut found) = (leaves(kept), leaves(found));
    loop {
        let leaf = match (kept.next(), found.next()) {
            (kept, found) if kept == found => {
                kept?;
                continue;
            }
            // Where one of them has zeroes, the other one's leaf comes first.
            (Some((kept, _)), Some((found, _))) => kept.min(found),
            (Some((leaf, _)), None) | (None, Some((leaf, _))) => leaf,
            (None, None) => return None,
        };
        return Some(leaf * LEAF_BYTES);
    }
}

/// The leaves that are not zero, with their numbers.
fn leaves(tree: &ImageTree) -> impl Iterator<Item = (u64, &Hash)> {
    tree.leaf_runs().flat_map(|(first, hashes)| (first..).zip(hashes))
}

/// The beginning of a device that may be larger than what was written to it.
struct Beginning<'a> {
    image: &'a RawImage,
    size: u64,
    watch: &'a Watch<'a>,
    stopped: &'a AtomicBool,
}

impl ReadImage for Beginning<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if (self.watch)(buf.len() as u64).is_break() {
            self.stopped.store(true, Ordering::Relaxed);
            return Err(io::ErrorKind::Other.into());
        }
        self.image.read_at(offset, buf)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let data = self.image.next_data(offset)?;
        Ok(data.filter(|data| data.start < self.size).map(|data| data.start..data.end.min(self.size)))
    }
}
