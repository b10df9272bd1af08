//! Whole images into a store and out of it. It never publishes: what an ingested image is called is its caller's
//! business.

use std::io;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;

use bytes::Bytes;

use crate::sync::lock;
use crate::{
    ChunkId, FileError, Manifest, ManifestExtent, PieceData, RawImage, ReadImage, Store, StoreError,
    TreeStream, pieces,
};

/// Chunks read ahead of the compressors.
const CHUNKS_AHEAD: usize = 32;

/// Why an image could not be brought into a store.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The image could not be read.
    #[error("could not read the image: {0}; nothing was published")]
    Read(io::Error),
    /// The store could not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why an image could not be written out of a store.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Another size than the manifest's.
    #[error("the target has {target_bytes} bytes, the image {image_bytes}: create it with the image's size")]
    Size {
        /// The target's.
        target_bytes: u64,
        /// The image's.
        image_bytes: u64,
    },
    /// A chunk could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The target could not be written. It is incomplete.
    #[error(transparent)]
    Write(#[from] FileError),
}

/// Puts all of an image's chunks into the store and gives its manifest. `progress` gets the bytes of the image that
/// are done. Hold a [`Pin`](crate::Pin) until the manifest is published.
pub fn ingest(store: &Store, image: &dyn ReadImage, progress: &dyn Fn(u64)) -> Result<Manifest, IngestError> {
    let workers = thread::available_parallelism().map_or(1, usize::from).min(8);
    let (sender, receiver) = sync_channel::<(ChunkId, Bytes)>(CHUNKS_AHEAD);
    let receiver = Arc::new(Mutex::new(receiver));
    thread::scope(|scope| {
        let workers: Vec<_> = (0..workers)
            .map(|_| {
                // The workers own the receiver, so that sending fails when all of them have given up.
                let receiver = receiver.clone();
                scope.spawn(move || put_all(store, &receiver))
            })
            .collect();
        drop(receiver);
        let mut failed = None;
        let manifest = describe(image, progress, |id, bytes| {
            if !store.contains(&id) && sender.send((id, bytes)).is_err() {
                failed = Some(());
            }
            failed.is_none()
        });
        drop(sender);
        for worker in workers {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        manifest.map_err(IngestError::Read)
    })
}

fn put_all(store: &Store, receiver: &Mutex<Receiver<(ChunkId, Bytes)>>) -> Result<(), StoreError> {
    loop {
        let Ok((id, bytes)) = lock(receiver).recv() else { return Ok(()) };
        store.put(&id, &bytes)?;
    }
}

/// Reads an image through, giving every chunk to `take` until that says to stop.
fn describe(
    image: &dyn ReadImage,
    progress: &dyn Fn(u64),
    mut take: impl FnMut(ChunkId, Bytes) -> bool,
) -> io::Result<Manifest> {
    let size = image.size();
    let mut tree = TreeStream::new(size);
    let mut extents = Vec::new();
    for piece in pieces(image) {
        let piece = piece?;
        match piece.data {
            PieceData::Hole => {
                tree.hole(piece.len);
                extents.push(ManifestExtent::Hole { len: piece.len });
            }
            PieceData::Chunk { id, bytes } => {
                tree.data(&bytes);
                extents.push(ManifestExtent::Data { len: bytes.len() as u32, id });
                if !take(id, bytes) {
                    return Err(io::Error::other("stopped"));
                }
            }
        }
        progress(piece.offset + piece.len);
    }
    Ok(Manifest { size, root: tree.finish().root(), extents })
}

/// Writes an image from the store over `target`, which has the image's size, and makes it durable. `progress` gets
/// the bytes of the image that are done.
pub fn restore(
    store: &Store,
    manifest: &Manifest,
    target: &RawImage,
    progress: &dyn Fn(u64),
) -> Result<(), RestoreError> {
    if target.size() != manifest.size {
        return Err(RestoreError::Size { target_bytes: target.size(), image_bytes: manifest.size });
    }
    let writing = || FileError::at("write the image to", target.path());
    for placed in manifest.placed() {
        match placed.extent {
            ManifestExtent::Hole { len } => target.zero(placed.offset, len).map_err(writing())?,
            ManifestExtent::Data { len, id } => {
                let bytes = store.get(&id)?;
                // The manifest's word on the length is not covered by the chunk's name.
                if bytes.len() != len as usize {
                    return Err(StoreError::WrongContent { id }.into());
                }
                target.write_at(placed.offset, &bytes).map_err(writing())?;
            }
        }
        progress(placed.offset + placed.extent.len());
    }
    target.sync_all().map_err(writing())?;
    Ok(())
}

#[cfg(test)]
mod tests;
