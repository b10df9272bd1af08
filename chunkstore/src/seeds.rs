//! Chunks that already lie in image files on this machine, outside the store: so that an image which shares data
//! with one here need not come over the wire, nor be copied into a store first. An image may change under us, so
//! every chunk is checked as it is read; this module never trusts what it remembers, and never writes.

mod places;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use bytes::Bytes;

use crate::sync::{read, write};
use crate::{ChunkId, Manifest, ManifestExtent, RawImage, ReadImage};

use places::{Place, Places, prefix};

/// Image files with what is known of their content, in 16 bytes for each chunk of each image: 256 MiB for a TiB of
/// average chunks. All methods take `&self`.
///
/// Of a chunk's name only the beginning is remembered. A chunk that begins like one that is here but is another costs
/// a read in vain, and the place where it was looked for; what is given out is always compared with the whole name.
#[derive(Default)]
pub struct Seeds {
    /// In the order in which they were added. A few dozen: each is asked in turn.
    images: RwLock<Vec<Arc<SeedImage>>>,
}

/// Opened for each read: there may be more images than a process may have files open.
struct SeedImage {
    path: PathBuf,
    places: Places,
}

impl Seeds {
    /// No seeds.
    pub fn new() -> Seeds {
        Seeds::default()
    }

    /// Adds the image at `path`, said to have the content of `manifest`, in place of what was known of that path.
    /// Chunks that end beyond the first 64 TiB are left out.
    pub fn add_image(&self, path: impl AsRef<Path>, manifest: &Manifest) -> io::Result<()> {
        let path = RawImage::open_read(path)?.path().to_owned();
        let places = Places::new(manifest.placed().filter_map(|placed| match placed.extent {
            ManifestExtent::Data { len, id } => Some((prefix(&id), Place::new(placed.offset, len)?)),
            ManifestExtent::Hole { .. } => None,
        }));
        self.add(SeedImage { path, places });
        Ok(())
    }

    fn add(&self, added: SeedImage) {
        let mut images = write(&self.images);
        images.retain(|known| known.path != added.path);
        images.push(Arc::new(added));
    }

    /// Is a copy of the chunk known? A hint: it may turn out to have changed when it is read, or, seldom beyond
    /// measure, to be of another chunk whose name begins with the same 8 bytes.
    pub fn contains(&self, id: &ChunkId) -> bool {
        read(&self.images).iter().any(|known| known.places.find(prefix(id)).is_some())
    }

    /// The chunk's bytes, checked. A copy that has changed or cannot be read is forgotten, and the next image asked.
    pub fn get(&self, id: &ChunkId) -> Option<Bytes> {
        let prefix = prefix(id);
        // Reading takes its time: not under the lock.
        let found: Vec<(Arc<SeedImage>, Place)> = read(&self.images)
            .iter()
            .filter_map(|known| Some((known.clone(), known.places.find(prefix)?)))
            .collect();
        found.into_iter().find_map(|(known, place)| {
            let bytes = known.read(place).filter(|bytes| ChunkId::of(bytes) == *id);
            if bytes.is_none() {
                known.places.forget(prefix);
            }
            bytes.map(Bytes::from)
        })
    }

    /// Forgets an image.
    pub fn forget(&self, path: impl AsRef<Path>) {
        write(&self.images).retain(|known| known.path != path.as_ref());
    }
}

impl SeedImage {
    fn read(&self, place: Place) -> Option<Vec<u8>> {
        let mut bytes = vec![0; place.len()];
        RawImage::open_read(&self.path).ok()?.read_at(place.offset(), &mut bytes).ok()?;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests;
