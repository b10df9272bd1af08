//! Buffers to read an image into, used again when nobody looks at them any more: fresh memory costs a page fault for
//! every 4 KiB, which is as much as to hash them. It never looks at what is read.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::sync::lock;
use crate::{GROUP_BYTES, MAX_CHUNK_BYTES, MIN_HOLE_BYTES};

/// Bytes of the window before that may stay in view: an unfinished chunk and zeroes that are not a hole yet. A window reaches as far
/// beyond a batch's part of the image, so that its last chunk is in view with the others.
pub(crate) const KEPT_BYTES: usize = MAX_CHUNK_BYTES + MIN_HOLE_BYTES as usize;

/// Bytes read at once, at most: more is slower, since they leave the cache before they are hashed.
const WINDOW_BYTES: usize = GROUP_BYTES + KEPT_BYTES;

const PAGE_BYTES: usize = 4096;

type Free = Arc<Mutex<Vec<Vec<u8>>>>;

#[derive(Default)]
pub(crate) struct Windows {
    free: Free,
}

impl Windows {
    /// `kept`, at most [`KEPT_BYTES`], followed by `len` bytes, at most [`WINDOW_BYTES`], that `read` fills in.
    pub(crate) fn read(
        &self,
        kept: &[u8],
        len: usize,
        read: impl FnOnce(&mut [u8]) -> io::Result<()>,
    ) -> io::Result<Bytes> {
        let reused = lock(&self.free).pop();
        let buffer = reused.unwrap_or_else(|| vec![0; KEPT_BYTES + PAGE_BYTES + WINDOW_BYTES]);
        // The kernel copies several times faster to the beginning of a page than to right behind it.
        let start = KEPT_BYTES + buffer[KEPT_BYTES..].as_ptr().align_offset(PAGE_BYTES).min(PAGE_BYTES);
        let mut window = Window { buffer, range: start - kept.len()..start + len, free: self.free.clone() };
        window.buffer[start - kept.len()..start].copy_from_slice(kept);
        read(&mut window.buffer[start..start + len])?;
        Ok(Bytes::from_owner(window))
    }
}

struct Window {
    buffer: Vec<u8>,
    range: Range<usize>,
    free: Free,
}

impl AsRef<[u8]> for Window {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        lock(&self.free).push(std::mem::take(&mut self.buffer));
    }
}
