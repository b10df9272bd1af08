//! A replica's image compared with what its generation says of it: before it is handed out, and when somebody wants to
//! know. Damage is remembered by forgetting the tree, so that the next pass reads the whole image and mends it. A place
//! that the disk cannot read is damage too.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::RwLockReadGuard;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use super::place::Place;
use super::shared::State;
use super::{Generation, Replica, ReplicaError, TREE_BUFFER_BYTES, names, tree};
use crate::disk::RealDisk;
use crate::file_error::is_bad_medium;
use crate::sync::{lock, read};
use crate::tree::Hash;
use crate::{FileError, ImageTree, LEAF_BYTES, RawImage, ReadImage, copy_sparse, files};

/// Bytes that are compared while commits wait.
const PIECE_BYTES: u64 = 64 << 20;
/// How often, and how long between, the tree of a generation that has just come into place is looked for.
const TREE_TRIES: u32 = 100;
const BETWEEN_TREE_TRIES: Duration = Duration::from_millis(100);

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

    /// Reads the whole image and compares it with its tree, piece by piece: a pass that is committed meanwhile comes into place
    /// between two of them, and what follows is compared with its generation. Without a tree it is compared with the root,
    /// as [`Still::verify`], and commits wait. `watch` gets the bytes of each read, and may stop it.
    pub fn verify(&self, watch: &Watch<'_>) -> Result<(), ReplicaError> {
        let mut known: Option<(Generation, ImageTree)> = None;
        let mut at = 0;
        loop {
            let still = self.hold_still()?;
            if known.as_ref().is_none_or(|(generation, _)| *generation != still.generation) {
                let is_new_size = known.as_ref().is_none_or(|(old, _)| old.size != still.generation.size);
                let number = still.generation.number;
                let was_known = known.is_some();
                match still.kept_tree() {
                    Some(tree) => known = Some((still.generation.clone(), tree)),
                    None if !was_known => return still.verify(watch),
                    None => {
                        drop(still);
                        if !self.waits_for_tree(number)? {
                            return self.hold_still()?.verify(watch);
                        }
                        continue;
                    }
                }
                at = if is_new_size { 0 } else { at };
            }
            let Some((_, tree)) = &known else { continue };
            if at >= still.generation.size {
                return Ok(());
            }
            let end = at.saturating_add(PIECE_BYTES).min(still.generation.size);
            still.verify_piece(tree, at..end, watch)?;
            at = end;
        }
    }

    /// Waits for the tree that a pass keeps after it is committed. `false`: it does not come.
    fn waits_for_tree(&self, number: u64) -> Result<bool, ReplicaError> {
        for _ in 0..TREE_TRIES {
            let still = self.hold_still()?;
            if still.generation.number != number || still.kept_tree().is_some() {
                return Ok(true);
            }
            drop(still);
            thread::sleep(BETWEEN_TREE_TRIES);
        }
        Ok(false)
    }

    /// Forgets what is known of the image's content: the next pass reads all of it.
    pub fn distrust(&self) -> Result<(), ReplicaError> {
        Ok(files::remove(&RealDisk, &self.shared.path(names::TREE))?)
    }
}

impl Still<'_> {
    /// The generation.
    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    /// Copies the image to `path`, holes as holes, and reads back what is there: it is the generation, or it is an error
    /// and a new file is gone again. `path` must not exist, or be a block device that is large enough. That the target
    /// cannot be written or reads back wrong says nothing of the replica, which is then looked at itself.
    pub fn restore_to(&self, path: impl AsRef<Path>) -> Result<(), ReplicaError> {
        let path = path.as_ref();
        let is_device = fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device());
        if let Err(error) = copy_sparse(self.replica.image_path(), path) {
            if error.kind() == io::ErrorKind::AlreadyExists {
                return Err(ReplicaError::Exists { path: path.to_owned() });
            }
            // Either of the two disks may have said so.
            if is_bad_medium(&error) {
                self.verify(&go_on)?;
            }
            return Err(FileError::at("write the image to", path)(error).into());
        }
        let checked = self.check_copy(path);
        if checked.is_err() && !is_device {
            let _ = fs::remove_file(path);
        }
        checked
    }

    pub(super) fn check_copy(&self, path: &Path) -> Result<(), ReplicaError> {
        let copy = RawImage::open_read(path).map_err(FileError::at("read back", path))?;
        match self.first_damage(&copy, &go_on).map_err(|failure| failure.of(path))? {
            None => Ok(()),
            Some(place) => {
                self.verify(&go_on)?;
                Err(ReplicaError::BadCopy { path: path.to_owned(), place })
            }
        }
    }

    /// Reads the whole image and compares it with the generation's root. `watch` gets the bytes of each read, and may stop
    /// it.
    pub fn verify(&self, watch: &Watch<'_>) -> Result<(), ReplicaError> {
        let (path, image) = self.open_image()?;
        let damage = self.first_damage(&image, watch).map_err(|failure| failure.of(&path))?;
        damage.map_or(Ok(()), |place| self.rotten(place))
    }

    /// As [`Still::verify`], only these bytes, and by what `kept` says of them.
    fn verify_piece(
        &self,
        kept: &ImageTree,
        bytes: Range<u64>,
        watch: &Watch<'_>,
    ) -> Result<(), ReplicaError> {
        let (path, image) = self.open_image()?;
        let leaves = bytes.start / LEAF_BYTES..bytes.end.div_ceil(LEAF_BYTES);
        let mut found = ImageTree::new(self.generation.size);
        found.mark(bytes);
        let unreadable = self.read_marked(&mut found, &image, watch).map_err(|failure| failure.of(&path))?;
        let wrong = || {
            let leaf = { leaves }.find(|leaf| kept.leaf(*leaf) != found.leaf(*leaf))?;
            Some(Place { offset: Some(leaf * LEAF_BYTES), unreadable: false })
        };
        unreadable.or_else(wrong).map_or(Ok(()), |place| self.rotten(place))
    }

    fn open_image(&self) -> Result<(PathBuf, RawImage), ReplicaError> {
        let path = self.replica.image_path();
        let image = RawImage::open_read(&path).map_err(FileError::at("open the image", &path))?;
        Ok((path, image))
    }

    pub(super) fn rotten(&self, place: Place) -> Result<(), ReplicaError> {
        self.replica.distrust()?;
        let (dir, number) = (self.replica.shared.dir.clone(), self.generation.number);
        Err(ReplicaError::Rotten { dir, number, place })
    }

    /// Where this image, the replica's or a copy of it, is not the generation.
    pub(super) fn first_damage(
        &self,
        image: &dyn ReadImage,
        watch: &Watch<'_>,
    ) -> Result<Option<Place>, Failure> {
        let mut found = ImageTree::new(self.generation.size);
        found.mark_all();
        let unreadable = self.read_marked(&mut found, image, watch)?;
        if unreadable.is_some() || found.root() == self.generation.root {
            return Ok(unreadable);
        }
        let offset = self.kept_tree().and_then(|kept| first_difference(&kept, &found));
        Ok(Some(Place { offset, unreadable: false }))
    }

    /// Reads what is marked. Gives the place that the disk cannot read, which ends it.
    fn read_marked(
        &self,
        found: &mut ImageTree,
        image: &dyn ReadImage,
        watch: &Watch<'_>,
    ) -> Result<Option<Place>, Failure> {
        let (stopped, failed_at) = (AtomicBool::new(false), AtomicU64::new(u64::MAX));
        let size = self.generation.size;
        let read = found.refresh(&Beginning { image, size, watch, stopped: &stopped, failed_at: &failed_at });
        if stopped.into_inner() {
            return Err(Failure::Stopped);
        }
        match read {
            Ok(_) => Ok(None),
            Err(error) if is_bad_medium(&error) => {
                let offset = Some(failed_at.into_inner()).filter(|offset| *offset != u64::MAX);
                Ok(Some(Place { offset, unreadable: true }))
            }
            Err(error) => Err(Failure::Read(error)),
        }
    }

    /// The tree kept for this generation, whoever has touched the image since: its root vouches for its leaves.
    fn kept_tree(&self) -> Option<ImageTree> {
        let open = || File::open(self.replica.shared.path(names::TREE)).ok();
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

/// Why an image was not compared.
#[derive(Debug)]
pub(super) enum Failure {
    Stopped,
    Read(io::Error),
}

impl Failure {
    fn of(self, path: &Path) -> ReplicaError {
        match self {
            Failure::Stopped => ReplicaError::Stopped,
            Failure::Read(error) => FileError::at("read", path)(error).into(),
        }
    }
}

fn go_on(_: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
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
    image: &'a dyn ReadImage,
    size: u64,
    watch: &'a Watch<'a>,
    stopped: &'a AtomicBool,
    failed_at: &'a AtomicU64,
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
        self.image.read_at(offset, buf).inspect_err(|_| {
            self.failed_at.fetch_min(offset, Ordering::Relaxed);
        })
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let data = self.image.next_data(offset)?;
        Ok(data.filter(|data| data.start < self.size).map(|data| data.start..data.end.min(self.size)))
    }
}
