//! Chunks that already lie in image files on this machine, outside the store: so that an image which shares data
//! with one here need not come over the wire, nor be copied into a store first. An image may change under us, so
//! every chunk is checked as it is read; this module never trusts what it remembers, and never writes.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use bytes::Bytes;

use crate::sync::{read, write};
use crate::{ChunkId, Manifest, ManifestExtent, RawImage, ReadImage};

/// Image files with what is known of their content. All methods take `&self`.
#[derive(Default)]
pub struct Seeds {
    known: RwLock<Known>,
}

#[derive(Default)]
struct Known {
    images: HashMap<PathBuf, Arc<RawImage>>,
    chunks: HashMap<ChunkId, Place>,
}

#[derive(Clone)]
struct Place {
    image: Arc<RawImage>,
    offset: u64,
    len: u32,
}

impl Seeds {
    /// No seeds.
    pub fn new() -> Seeds {
        Seeds::default()
    }

    /// Adds the image at `path`, said to have the content of `manifest`, in place of what was known of that path.
    pub fn add_image(&self, path: impl AsRef<Path>, manifest: &Manifest) -> io::Result<()> {
        let path = path.as_ref();
        let image = Arc::new(RawImage::open_read(path)?);
        let mut known = write(&self.known);
        known.forget(path);
        for placed in manifest.placed() {
            if let ManifestExtent::Data { len, id } = placed.extent {
                let place = || Place { image: image.clone(), offset: placed.offset, len };
                known.chunks.entry(id).or_insert_with(place);
            }
        }
        known.images.insert(path.to_owned(), image);
        Ok(())
    }

    /// Is a copy of the chunk known? It may turn out to have changed when it is read.
    pub fn contains(&self, id: &ChunkId) -> bool {
        read(&self.known).chunks.contains_key(id)
    }

    /// The chunk's bytes, checked. A copy that has changed or cannot be read is forgotten.
    pub fn get(&self, id: &ChunkId) -> Option<Bytes> {
        let place = read(&self.known).chunks.get(id)?.clone();
        let mut bytes = vec![0; place.len as usize];
        let intact = place.image.read_at(place.offset, &mut bytes).is_ok() && ChunkId::of(&bytes) == *id;
        if !intact {
            let mut known = write(&self.known);
            if known.chunks.get(id).is_some_and(|now| Arc::ptr_eq(&now.image, &place.image)) {
                known.chunks.remove(id);
            }
            return None;
        }
        Some(bytes.into())
    }

    /// Forgets an image and closes its file.
    pub fn forget(&self, path: impl AsRef<Path>) {
        write(&self.known).forget(path.as_ref());
    }
}

impl Known {
    fn forget(&mut self, path: &Path) {
        if let Some(image) = self.images.remove(path) {
            self.chunks.retain(|_, place| !Arc::ptr_eq(&place.image, &image));
        }
    }
}

#[cfg(test)]
mod tests;
