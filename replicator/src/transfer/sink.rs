//! What becomes of a transferred image: chunks in the store (a base), or bytes in an image file (a VM on its way, a
//! replica). A sink is used from one blocking thread; what it is given has been verified.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use chunkstore::{
    ChunkId, Group, ImageRoot, ImageTree, LEVEL, ManifestExtent, ManifestWriter, Pin, RawImage, ReadImage,
    Seeds, Store, StoreError,
};
use longhaul_proto::handoff::Root;
use longhaul_proto::wire::{self, Refusal, RefusalKind};
use tokio::sync::watch;

use super::refuse;
use crate::lease::Leased;

/// Chunks of one transfer remembered by place, so that one that comes twice is sent once: 40 MiB at most.
const MAX_PLACED: usize = 1 << 20;

/// Where a receiver puts an image. Errors end the transfer with that refusal.
pub(crate) trait Sink: Send {
    /// Makes the chunk stand at `offset` from what is held here. False when it is not held.
    fn place(&mut self, offset: u64, len: u32, name: ChunkId) -> Result<bool, Refusal>;

    /// The chunk at `offset` has been asked for and will come by [`Sink::chunks`].
    fn expect(&mut self, offset: u64, len: u32, name: ChunkId) -> Result<(), Refusal>;

    /// Zero bytes.
    fn hole(&mut self, offset: u64, len: u64) -> Result<(), Refusal>;

    /// Chunks that were asked for, and for each of them all the places it is wanted at.
    fn chunks(&mut self, group: &Group, offsets: &[Vec<u64>]) -> Result<(), Refusal>;

    /// Blocks of a delta.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Refusal>;

    /// Everything before this is applied; make it durable where that is cheap to do now, and before the last mark is
    /// answered in any case.
    fn sync(&mut self, mark: u32) -> Result<(), Refusal>;

    /// The end: the image must have this root. `whole` when a scan has covered all of it. Gives its generation.
    fn commit(&mut self, root: Root, after: u64, taken_unix_ms: u64, whole: bool) -> Result<u64, Refusal>;
}

/// A base image: chunks into the store, then a reference to them.
pub(crate) struct BaseSink {
    store: Arc<Store>,
    _pin: Pin,
    name: String,
    size: u64,
    /// Until it is published.
    extents: Option<ManifestWriter>,
}

impl BaseSink {
    /// For the base `name` of `size` bytes.
    pub(crate) fn new(store: Arc<Store>, name: String, size: u64) -> Result<Self, StoreError> {
        let (pin, extents) = (store.pin(), Some(store.manifest_writer()?));
        Ok(BaseSink { store, _pin: pin, name, size, extents })
    }

    fn extend(&mut self, extent: ManifestExtent) -> Result<(), Refusal> {
        extend(&mut self.extents, extent)
    }
}

/// Adds an extent to a manifest that is being made, if one is.
fn extend(manifest: &mut Option<ManifestWriter>, extent: ManifestExtent) -> Result<(), Refusal> {
    let pushed = manifest.as_mut().map_or(Ok(()), |manifest| manifest.push(extent));
    pushed.map_err(|error| if error.is_full() { no_space(error) } else { failed(error) })
}

impl Sink for BaseSink {
    fn place(&mut self, offset: u64, len: u32, name: ChunkId) -> Result<bool, Refusal> {
        let held = self.store.contains(&name);
        if held {
            self.expect(offset, len, name)?;
        }
        Ok(held)
    }

    fn expect(&mut self, _offset: u64, len: u32, name: ChunkId) -> Result<(), Refusal> {
        self.extend(ManifestExtent::Data { len, id: name })
    }

    fn hole(&mut self, _offset: u64, len: u64) -> Result<(), Refusal> {
        self.extend(ManifestExtent::Hole { len })
    }

    fn chunks(&mut self, group: &Group, _offsets: &[Vec<u64>]) -> Result<(), Refusal> {
        match self.store.put_group(group, LEVEL) {
            Ok(_) => Ok(()),
            Err(error) if error.is_full() => Err(no_space(error)),
            Err(error) => Err(failed(error)),
        }
    }

    fn write(&mut self, _offset: u64, _bytes: &[u8]) -> Result<(), Refusal> {
        Err(refuse(RefusalKind::Protocol, "a base image takes no deltas"))
    }

    fn sync(&mut self, _mark: u32) -> Result<(), Refusal> {
        self.store.sync().map_err(failed)
    }

    fn commit(&mut self, root: Root, _after: u64, _taken_unix_ms: u64, whole: bool) -> Result<u64, Refusal> {
        let Some(extents) = self.extents.take().filter(|_| whole) else {
            return Err(refuse(RefusalKind::Protocol, "the base image is not whole"));
        };
        let manifest = extents.finish(ImageRoot::from_bytes(root)).map_err(failed)?;
        if manifest.size() != self.size {
            return Err(refuse(RefusalKind::Protocol, "the base image has another size"));
        }
        self.store.publish(&self.name, &manifest).map_err(failed)?;
        Ok(1)
    }
}

/// An image that can be written: a file, or a replica's next generation.
pub(crate) trait WriteImage: ReadImage {
    /// Writes at `offset`.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes a range zero, as a hole where that is possible.
    fn zero(&mut self, offset: u64, len: u64) -> io::Result<()>;
}

/// What this platform holds that may serve a chunk.
#[derive(Clone)]
pub(crate) struct Holdings {
    /// The chunk store.
    pub store: Arc<Store>,
    /// Images outside it.
    pub seeds: Arc<Seeds>,
}

/// The part that every image sink shares: chunks into places, each written only where the image differs.
pub(crate) struct Assembly<W> {
    /// The image.
    pub image: W,
    /// Its tree; what is written is marked in it.
    pub tree: Arc<Mutex<ImageTree>>,
    /// The state of a scan; for progress reports.
    pub extents: Option<ManifestWriter>,
    holdings: Holdings,
    /// An image that may hold the same bytes at the same places.
    like: Option<Arc<RawImage>>,
    _pin: Pin,
    placed: HashMap<ChunkId, u64>,
}

impl<W: WriteImage> Assembly<W> {
    /// For writing into `image`, whose content `tree` knows, or has marked. What a scan brings goes into `extents`.
    pub(crate) fn new(
        image: W,
        tree: Arc<Mutex<ImageTree>>,
        holdings: Holdings,
        extents: Option<ManifestWriter>,
    ) -> Self {
        let pin = holdings.store.pin();
        Assembly { image, tree, extents, holdings, like: None, _pin: pin, placed: HashMap::new() }
    }

    /// Takes from `like` what it holds of the same bytes at the same places, before anything is asked for.
    pub(crate) fn like(mut self, like: Option<Arc<RawImage>>) -> Self {
        self.like = like;
        self
    }

    /// See [`Sink::place`]: in place, in the store, elsewhere in this image, in another image.
    pub(crate) fn place(&mut self, offset: u64, len: u32, name: ChunkId) -> Result<bool, Refusal> {
        if self.holds(offset, len, name)? {
            self.remember(name, offset);
            self.expect(len, name)?;
            return Ok(true);
        }
        let found = self.placed.get(&name).copied().and_then(|at| self.read_verified(at, len, name));
        let found = found
            .or_else(|| self.like.as_ref().and_then(|like| verified(&**like, offset, len, name)))
            .or_else(|| {
                let stored = if self.holdings.store.contains(&name) {
                    self.holdings.store.get(&name).ok()
                } else {
                    None
                };
                stored.or_else(|| self.holdings.seeds.get(&name))
            });
        match found {
            Some(bytes) if bytes.len() == len as usize => {
                self.put(offset, &bytes)?;
                self.remember(name, offset);
                self.expect(len, name)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// See [`Sink::expect`].
    pub(crate) fn expect(&mut self, len: u32, name: ChunkId) -> Result<(), Refusal> {
        extend(&mut self.extents, ManifestExtent::Data { len, id: name })
    }

    /// See [`Sink::hole`].
    pub(crate) fn hole(&mut self, offset: u64, len: u64) -> Result<(), Refusal> {
        extend(&mut self.extents, ManifestExtent::Hole { len })?;
        let holds_data = match self.image.next_data(offset) {
            Ok(data) => data.is_some_and(|data| data.start < offset + len),
            Err(error) => return Err(io_refusal(&error)),
        };
        if holds_data {
            self.image.zero(offset, len).map_err(|error| io_refusal(&error))?;
            self.tree().mark(offset..offset + len);
        }
        Ok(())
    }

    /// Writes bytes and marks them.
    pub(crate) fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.image.write_at(offset, bytes).map_err(|error| io_refusal(&error))?;
        self.tree().mark(offset..offset + bytes.len() as u64);
        Ok(())
    }

    /// See [`Sink::chunks`].
    pub(crate) fn chunks(&mut self, group: &Group, offsets: &[Vec<u64>]) -> Result<(), Refusal> {
        for (chunk, offsets) in group.chunks().iter().zip(offsets) {
            for offset in offsets {
                self.put(*offset, chunk.plain())?;
                self.remember(chunk.id(), *offset);
            }
        }
        Ok(())
    }

    /// Brings the tree up to date and gives the root.
    pub(crate) fn refresh(&mut self) -> Result<ImageRoot, Refusal> {
        let mut tree = self.tree.lock().unwrap_or_else(PoisonError::into_inner);
        tree.refresh(&self.image).map_err(|error| io_refusal(&error))?;
        Ok(tree.root())
    }

    fn tree(&self) -> std::sync::MutexGuard<'_, ImageTree> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&mut self, name: ChunkId, offset: u64) {
        if self.placed.len() < MAX_PLACED {
            self.placed.insert(name, offset);
        }
    }

    fn holds(&self, offset: u64, len: u32, name: ChunkId) -> Result<bool, Refusal> {
        let data = self.image.next_data(offset).map_err(|error| io_refusal(&error))?;
        let some_data = data.is_some_and(|data| data.start < offset + u64::from(len));
        Ok(some_data && self.read_verified(offset, len, name).is_some())
    }

    fn read_verified(&self, offset: u64, len: u32, name: ChunkId) -> Option<Bytes> {
        verified(&self.image, offset, len, name)
    }
}

/// The chunk, if it is what stands there. What cannot be read is not held.
fn verified(image: &(impl ReadImage + ?Sized), offset: u64, len: u32, name: ChunkId) -> Option<Bytes> {
    if offset.checked_add(u64::from(len)).is_none_or(|end| end > image.size()) {
        return None;
    }
    let mut bytes = vec![0; len as usize];
    image.read_at(offset, &mut bytes).ok()?;
    (ChunkId::of(&bytes) == name).then(|| bytes.into())
}

/// A raw image file, written in place, for as long as the lease holds.
pub(crate) struct InPlace(pub Leased<Arc<RawImage>>);

impl ReadImage for InPlace {
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

impl WriteImage for InPlace {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.get()?.write_at(offset, bytes)
    }

    fn zero(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.0.get()?.zero(offset, len)
    }
}

/// A disk of a VM that is on its way: written in place, sealed by the hand-off.
pub(crate) struct MigrationSink {
    assembly: Assembly<InPlace>,
    applied: watch::Sender<bool>,
}

impl MigrationSink {
    /// `applied` turns true when everything up to the last mark is in the image, durable and hashed.
    pub(crate) fn new(assembly: Assembly<InPlace>, applied: watch::Sender<bool>) -> Self {
        MigrationSink { assembly, applied }
    }
}

impl Sink for MigrationSink {
    fn place(&mut self, offset: u64, len: u32, name: ChunkId) -> Result<bool, Refusal> {
        self.assembly.place(offset, len, name)
    }

    fn expect(&mut self, _offset: u64, len: u32, name: ChunkId) -> Result<(), Refusal> {
        self.assembly.expect(len, name)
    }

    fn hole(&mut self, offset: u64, len: u64) -> Result<(), Refusal> {
        self.assembly.hole(offset, len)
    }

    fn chunks(&mut self, group: &Group, offsets: &[Vec<u64>]) -> Result<(), Refusal> {
        self.assembly.chunks(group, offsets)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.assembly.put(offset, bytes)
    }

    /// Writes back and hashes what has come, so that little is left to do while the guest stands still.
    fn sync(&mut self, mark: u32) -> Result<(), Refusal> {
        let image = self.assembly.image.0.get().map_err(failed)?.clone();
        let assembly = &mut self.assembly;
        // The disk and a core, each busy with its own.
        let (synced, hashed) = std::thread::scope(|scope| {
            let syncing = scope.spawn(|| image.sync_data());
            let hashed = assembly.refresh();
            (syncing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), hashed)
        });
        synced.map_err(|error| io_refusal(&error))?;
        hashed?;
        if mark == wire::FINAL_MARK {
            self.applied.send_replace(true);
        }
        Ok(())
    }

    fn commit(
        &mut self,
        _root: Root,
        _after: u64,
        _taken_unix_ms: u64,
        _whole: bool,
    ) -> Result<u64, Refusal> {
        Err(refuse(RefusalKind::Protocol, "a migrated disk is sealed by the hand-off, not by the transfer"))
    }
}

/// What a transfer would find: takes note of nothing and writes nothing.
pub(crate) struct EstimateSink {
    holdings: Holdings,
    /// What the image would be made from.
    start: Option<RawImage>,
}

impl EstimateSink {
    /// An estimate for a disk whose image would be made from `start`.
    pub(crate) fn new(holdings: Holdings, start: Option<RawImage>) -> Self {
        EstimateSink { holdings, start }
    }
}

impl Sink for EstimateSink {
    fn place(&mut self, offset: u64, len: u32, name: ChunkId) -> Result<bool, Refusal> {
        let in_place = self.start.as_ref().is_some_and(|start| {
            let mut bytes = vec![0; len as usize];
            start.read_at(offset, &mut bytes).is_ok() && ChunkId::of(&bytes) == name
        });
        Ok(in_place || self.holdings.store.contains(&name) || self.holdings.seeds.contains(&name))
    }

    fn expect(&mut self, _offset: u64, _len: u32, _name: ChunkId) -> Result<(), Refusal> {
        Ok(())
    }

    fn hole(&mut self, _offset: u64, _len: u64) -> Result<(), Refusal> {
        Ok(())
    }

    fn chunks(&mut self, _group: &Group, _offsets: &[Vec<u64>]) -> Result<(), Refusal> {
        Err(refuse(RefusalKind::Protocol, "an estimate takes no bytes"))
    }

    fn write(&mut self, _offset: u64, _bytes: &[u8]) -> Result<(), Refusal> {
        Err(refuse(RefusalKind::Protocol, "an estimate takes no bytes"))
    }

    fn sync(&mut self, _mark: u32) -> Result<(), Refusal> {
        Ok(())
    }

    fn commit(
        &mut self,
        _root: Root,
        _after: u64,
        _taken_unix_ms: u64,
        _whole: bool,
    ) -> Result<u64, Refusal> {
        Err(refuse(RefusalKind::Protocol, "an estimate ends with its stream"))
    }
}

fn no_space(error: impl std::fmt::Display) -> Refusal {
    refuse(RefusalKind::NoSpace, error.to_string())
}

pub(super) fn failed(error: impl std::fmt::Display) -> Refusal {
    refuse(RefusalKind::Failed, error.to_string())
}

/// A local error as the other side is told it.
pub(crate) fn io_refusal(error: &io::Error) -> Refusal {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => refuse(
            RefusalKind::NoSpace,
            format!("the destination's disk is full ({error}); make room there and try again"),
        ),
        _ => refuse(RefusalKind::Failed, format!("writing the image: {error}")),
    }
}
