//! Whole images into a store and out of it. It never publishes: what an ingested image is called is its caller's
//! business.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::Path;
use std::{fs, io};

use crate::cuts::{Batch, CutData, Cuts};
use crate::pipeline::{RESULTS_AHEAD, all_cores, in_order};
use crate::tree::{Hash, RootStream, leaf_hashes};
use crate::writeback;
use crate::{
    BLOCK_BYTES, Chunk, ChunkId, FileError, Group, LEVEL, MAX_CHUNK_BYTES, Manifest, ManifestExtent,
    PlacedExtent, RawImage, ReadImage, Seeds, Store, StoreError,
};
use chunks::Chunks;
pub use outcome::{IngestError, RestoreError, Restored};

/// How an image is brought into a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngestOptions {
    /// zstd level, of [`GROUP_BYTES`](crate::GROUP_BYTES) at a time. Negative ones are the fastest.
    pub level: i32,
    /// Threads that read, cut, hash and compress.
    pub threads: NonZeroUsize,
}

impl Default for IngestOptions {
    fn default() -> IngestOptions {
        IngestOptions { level: LEVEL, threads: all_cores() }
    }
}

/// Threads beside those that keep the cores busy: some wait for their turn at the image or the pack.
const WAITING_THREADS: usize = 1;

/// Puts all of an image's chunks into the store and gives its manifest. `progress` gets the bytes of the image that
/// are done. Hold a [`Pin`](crate::Pin) until the manifest is published.
///
/// Needs, beside the store, whatever the image's size: 2 MiB for the manifest, 8 MiB for the pack that grows, and for each thread
/// and one more about 8 MiB (two windows of 2.7 MiB, one of them with a group in it, and that compressed) and what zstd takes for it
/// at that level.
pub fn ingest(
    store: &Store,
    image: &dyn ReadImage,
    options: &IngestOptions,
    progress: &dyn Fn(u64),
) -> Result<Manifest, IngestError> {
    let size = image.size();
    let mut cuts = Cuts::new(image, 0..size);
    let mut root = RootStream::new(size);
    let (mut manifest, mut done) = (store.manifest_writer()?, 0);
    writeback::beside(
        || store.sync(),
        |written| {
            in_order(
                options.threads.saturating_add(WAITING_THREADS),
                RESULTS_AHEAD,
                || cuts.batch().map_err(IngestError::Read),
                |batch| Ok(store_batch(store, options.level, size, batch)?),
                |stored| {
                    stored.leaves.into_iter().for_each(|(number, hash)| root.leaf(number, hash));
                    done += stored.extents.iter().map(ManifestExtent::len).sum::<u64>();
                    for extent in stored.extents {
                        manifest.push(extent).map_err(StoreError::from)?;
                    }
                    written(stored.new_bytes);
                    progress(done);
                    Ok(())
                },
            )
        },
    )?;
    Ok(manifest.finish(root.finish()).map_err(StoreError::from)?)
}

struct Stored {
    extents: Vec<ManifestExtent>,
    /// Bytes of chunks, if some of them are new.
    new_bytes: u64,
    leaves: Vec<(u64, Hash)>,
}

fn store_batch(store: &Store, level: i32, size: u64, batch: Batch) -> Result<Stored, StoreError> {
    let leaves =
        batch.reads.into_iter().flat_map(|read| leaf_hashes(size, read.offset, &read.bytes)).collect();
    let mut extents = Vec::with_capacity(batch.cuts.len());
    let mut chunks = Vec::new();
    for cut in batch.cuts {
        extents.push(match cut.data {
            CutData::Hole => ManifestExtent::Hole { len: cut.len },
            CutData::Chunk(bytes) => {
                let chunk = Chunk::of(bytes);
                let extent = ManifestExtent::Data { len: chunk.plain().len() as u32, id: chunk.id() };
                chunks.push(chunk);
                extent
            }
        });
    }
    let bytes = chunks.iter().map(|chunk| chunk.plain().len() as u64).sum();
    let group = match batch.together {
        Some(plain) => Group::cut_from(plain, chunks),
        None => Group::of(chunks),
    };
    let new = store.put_group(&group, level)?;
    Ok(Stored { extents, new_bytes: if new > 0 { bytes } else { 0 }, leaves })
}

/// Makes `target`, which has the image's size, the image, and makes that durable. Only blocks that differ are
/// written: what the target holds already is read and checked instead. Chunks come from `seeds` where they have them,
/// from the store otherwise, on all cores; each is checked against its name. A file that is one hole is written past the
/// page cache where that is possible. `watch` gets the bytes of the image
/// that are done, and may stop it.
pub fn restore(
    store: &Store,
    seeds: &Seeds,
    manifest: &Manifest,
    target: &RawImage,
    watch: &dyn Fn(u64) -> ControlFlow<()>,
) -> Result<Restored, RestoreError> {
    if target.size() != manifest.size() {
        return Err(RestoreError::Size { target_bytes: target.size(), image_bytes: manifest.size() });
    }
    let chunks = Chunks { store, seeds };
    let total = match target.direct_if_hole() {
        Some(direct) => fresh::restore(&chunks, manifest, target, &direct, watch)?,
        None => restore_changes(&chunks, manifest, target, watch)?,
    };
    target.sync_all().map_err(FileError::at("write the image to", target.path()))?;
    Ok(total)
}

/// Into an image that holds something.
fn restore_changes(
    chunks: &Chunks,
    manifest: &Manifest,
    target: &RawImage,
    watch: &dyn Fn(u64) -> ControlFlow<()>,
) -> Result<Restored, RestoreError> {
    let restorer = Restorer { chunks, target };
    let mut batches = manifest.batches();
    let (mut total, mut done) = (Restored::default(), 0);
    let sync = || target.sync_data().map_err(FileError::at("write the image to", target.path()));
    let work = |written: &dyn Fn(u64)| {
        in_order(
            all_cores(),
            RESULTS_AHEAD,
            || Ok(batches.next()),
            |batch| restorer.batch(&batch),
            |(bytes, restored)| {
                total.written_bytes += restored.written_bytes;
                total.zeroed_bytes += restored.zeroed_bytes;
                written(restored.written_bytes);
                done += bytes;
                if watch(done).is_break() { Err(RestoreError::Stopped) } else { Ok(()) }
            },
        )
    };
    writeback::beside(sync, work)?;
    Ok(total)
}

/// [`restore`] into a new file at `path`, which must not exist. With `like`, an image on the same file system that has
/// much in common with this one, the two share their equal blocks where the file system can do that. A half-made
/// file is removed.
pub fn restore_to(
    store: &Store,
    seeds: &Seeds,
    manifest: &Manifest,
    path: &Path,
    like: Option<&RawImage>,
    watch: &dyn Fn(u64) -> ControlFlow<()>,
) -> Result<Restored, RestoreError> {
    let target = RawImage::create_like(path, manifest.size(), like)
        .map_err(FileError::at("create the image at", path))?;
    let restored = restore(store, seeds, manifest, &target, watch);
    if restored.is_err() {
        let _ = fs::remove_file(path);
    }
    restored
}

struct Restorer<'a> {
    chunks: &'a Chunks<'a>,
    target: &'a RawImage,
}

impl Restorer<'_> {
    /// Restores extents; gives their length too.
    fn batch(&self, batch: &[PlacedExtent]) -> Result<(u64, Restored), RestoreError> {
        let mut present = vec![0; MAX_CHUNK_BYTES];
        let (mut bytes, mut restored) = (0, Restored::default());
        for placed in batch {
            match placed.extent {
                ManifestExtent::Hole { len } => restored.zeroed_bytes += self.hole(placed.offset, len)?,
                ManifestExtent::Data { len, id } => {
                    let Some(present) = present.get_mut(..len as usize) else {
                        return Err(StoreError::BadLength { len: len as usize }.into());
                    };
                    restored.written_bytes += self.chunk(placed.offset, id, present)?;
                }
            }
            bytes += placed.extent.len();
        }
        Ok((bytes, restored))
    }

    /// Gives the bytes of data that were there.
    fn hole(&self, offset: u64, len: u64) -> Result<u64, FileError> {
        let end = offset + len;
        let (mut at, mut zeroed) = (offset, 0);
        while let Some(data) = self.target.next_data(at).map_err(self.reading())? {
            let data = data.start..data.end.min(end);
            if data.start >= end {
                break;
            }
            self.target.zero(data.start, data.end - data.start).map_err(self.writing())?;
            zeroed += data.end - data.start;
            at = data.end;
        }
        Ok(zeroed)
    }

    /// Gives the bytes written. `present` has the chunk's length, and is for what is there.
    fn chunk(&self, offset: u64, id: ChunkId, present: &mut [u8]) -> Result<u64, RestoreError> {
        let end = offset + present.len() as u64;
        // Its first and last block may be there because of its neighbours: that is no reason to hash it.
        let head = offset.next_multiple_of(BLOCK_BYTES).min(end);
        let tail = (end - end % BLOCK_BYTES).max(head);
        let data = self.target.data_start(head).map_err(self.reading())?;
        if data.is_some_and(|start| start < tail) {
            self.target.read_at(offset, present).map_err(self.reading())?;
            if ChunkId::of(present) == id {
                return Ok(0);
            }
        } else {
            present.fill(0);
            let (head_len, tail_at) = ((head - offset) as usize, (tail - offset) as usize);
            self.target.read_at(offset, &mut present[..head_len]).map_err(self.reading())?;
            self.target.read_at(tail, &mut present[tail_at..]).map_err(self.reading())?;
        }
        let wanted = self.chunks.get(id, present.len() as u32)?;
        Ok(self.write_changes(offset, present, &wanted).map_err(self.writing())?)
    }

    /// Writes the blocks of `wanted` that differ from those of `present`; gives their bytes.
    fn write_changes(&self, offset: u64, present: &[u8], wanted: &[u8]) -> io::Result<u64> {
        let mut written = 0;
        let mut write = |changed: std::ops::Range<usize>| {
            written += changed.len() as u64;
            self.target.write_at(offset + changed.start as u64, &wanted[changed])
        };
        let (mut changed, mut at) = (0..0, 0);
        while at < wanted.len() {
            let in_block = (offset + at as u64) % BLOCK_BYTES;
            let end = wanted.len().min(at + (BLOCK_BYTES - in_block) as usize);
            if present[at..end] != wanted[at..end] {
                if changed.end != at {
                    write(changed)?;
                    changed = at..at;
                }
                changed.end = end;
            }
            at = end;
        }
        write(changed)?;
        Ok(written)
    }

    fn reading(&self) -> impl FnOnce(io::Error) -> FileError {
        FileError::at("read the image at", self.target.path())
    }

    fn writing(&self) -> impl FnOnce(io::Error) -> FileError {
        FileError::at("write the image to", self.target.path())
    }
}

mod chunks;
mod fresh;
mod outcome;
#[cfg(test)]
mod tests;
