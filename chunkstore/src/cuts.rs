//! The cutter: reads an image once, from its beginning to its end, and says where its holes are and its chunks end. What
//! chunks and holes are is said in [`pieces`](crate::pieces()). It hashes only what it is told to expect.
//!
//! # Expected chunks
//! Looking for cuts costs more than hashing. Where an image is like an earlier one, whose manifest has a chunk of some length
//! at this very place, those bytes are hashed first. If they are that chunk, there is no cut inside it, since there was none
//! when it was cut first, and the search begins at its end: where it finds one there, or the data run ends, the name is
//! known already. It does not matter why the earlier chunk ended where it did, so the cuts are the same in every case, with and
//! without an earlier manifest, as long as that was made by this cutter. A manifest of other making can move cuts; what is
//! stored is right all the same.

use std::io;
use std::ops::Range;

use bytes::Bytes;

use crate::pieces::MIN_HOLE_BYTES;
use crate::windows::{WINDOW_BYTES, Windows};
use crate::{
    BLOCK_BYTES, Chunk, ChunkId, GROUP_BYTES, LEAF_BYTES, MAX_CHUNK_BYTES, Manifest, ManifestExtent,
    PlacedExtent, ReadImage, gear, is_zero,
};

/// A batch takes no more cuts when it has so many bytes, which makes it a group if all of it is new, or so many of them.
pub(crate) const BATCH_BYTES: usize = GROUP_BYTES;
pub(crate) const BATCH_CUTS: usize = 1024;

/// A piece.
pub(crate) struct Cut {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) data: CutData,
}

pub(crate) enum CutData {
    Hole,
    /// Not hashed yet.
    Plain(Bytes),
    /// What was expected.
    Named(Chunk),
}

impl CutData {
    fn len(&self) -> usize {
        match self {
            CutData::Hole => 0,
            CutData::Plain(bytes) => bytes.len(),
            CutData::Named(chunk) => chunk.plain().len(),
        }
    }

    /// The chunk with its name; `None` for a hole.
    pub(crate) fn chunk(self) -> Option<Chunk> {
        match self {
            CutData::Hole => None,
            CutData::Plain(bytes) => Some(Chunk::of(bytes)),
            CutData::Named(chunk) => Some(chunk),
        }
    }
}

/// Some pieces in order, and what was read from the image to find them: it reads ahead of them, and no byte twice.
pub(crate) struct Batch {
    pub(crate) cuts: Vec<Cut>,
    pub(crate) reads: Vec<Read>,
}

/// Bytes as they came from the image, in its order. They end at the end of a leaf of the image's tree, or before
/// zeroes that reach at least as far; so do they begin. No leaf has parts in two of them. Some that are all zero are
/// left out.
pub(crate) struct Read {
    pub(crate) offset: u64,
    pub(crate) bytes: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Run {
    /// In data; its end when that is known.
    Data { end: Option<u64> },
    /// In zeroes that are a hole.
    Hole,
}

/// The cutter. `at <= scanned`; in data, the window holds everything from `at` to the data's end or `scanned`.
pub(crate) struct Cuts<'a> {
    image: &'a dyn ReadImage,
    end: u64,
    /// Next byte to come out.
    at: u64,
    run: Run,
    /// There is no cut within this many bytes from `at`.
    searched: usize,
    /// Up to here blocks are known to be zero or not.
    scanned: u64,
    /// Start of the zero blocks that end at `scanned`.
    zeroes_from: Option<u64>,
    expected: Option<Expected<'a>>,
    windows: Windows,
    window: Bytes,
    window_at: u64,
    reads: Vec<Read>,
    /// The data that the image told of last. Asking for every window anew would take some file systems through the
    /// whole file each time.
    data: Range<u64>,
    /// An error to come next.
    failed: Option<io::Error>,
    done: bool,
}

impl<'a> Cuts<'a> {
    pub(crate) fn new(image: &'a dyn ReadImage, range: Range<u64>) -> Cuts<'a> {
        let end = range.end.min(image.size());
        let at = range.start.min(end);
        Cuts {
            image,
            end,
            at,
            run: Run::Data { end: None },
            searched: 0,
            scanned: at,
            zeroes_from: None,
            expected: None,
            windows: Windows::default(),
            window: Bytes::new(),
            window_at: at,
            reads: Vec::new(),
            data: at..at,
            failed: None,
            done: false,
        }
    }

    /// All of an image that may be much like an earlier one.
    pub(crate) fn expecting(image: &'a dyn ReadImage, like: Option<&'a Manifest>) -> Cuts<'a> {
        Cuts { expected: like.map(Expected::of), ..Cuts::new(image, 0..image.size()) }
    }

    /// The next pieces, a MiB or so of them; `None` at the end.
    pub(crate) fn batch(&mut self) -> io::Result<Option<Batch>> {
        let (mut cuts, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH_BYTES && cuts.len() < BATCH_CUTS {
            match self.next() {
                Some(Ok(cut)) => {
                    bytes += cut.data.len();
                    cuts.push(cut);
                }
                Some(Err(error)) if cuts.is_empty() => return Err(error),
                // It comes again, after what was good.
                Some(Err(error)) => {
                    self.failed = Some(error);
                    break;
                }
                None => break,
            }
        }
        let reads = std::mem::take(&mut self.reads);
        Ok((!cuts.is_empty()).then_some(Batch { cuts, reads }))
    }

    /// For who does not use batches: reads keep their windows in memory.
    pub(crate) fn forget_reads(&mut self) {
        self.reads.clear();
    }

    fn step(&mut self) -> io::Result<Option<Cut>> {
        while self.at < self.end {
            let cut = match self.run {
                Run::Hole => self.hole()?,
                Run::Data { .. } => self.chunk()?,
            };
            if cut.is_some() {
                return Ok(cut);
            }
        }
        Ok(None)
    }

    /// The rest of the hole that `at` is in.
    fn hole(&mut self) -> io::Result<Option<Cut>> {
        while self.scanned < self.end {
            if self.scanned >= self.window_end() {
                self.fill()?;
            } else if is_zero(self.block()) {
                self.scanned = self.block_end();
            } else {
                break;
            }
        }
        let cut = Cut { offset: self.at, len: self.scanned - self.at, data: CutData::Hole };
        self.at = self.scanned;
        self.run = Run::Data { end: None };
        self.zeroes_from = None;
        Ok(Some(cut))
    }

    /// The next chunk of the data run that `at` is in; nothing at the end of the run.
    fn chunk(&mut self) -> io::Result<Option<Cut>> {
        let mut expected = self.expected.as_mut().and_then(|expected| expected.at(self.at));
        let mut named = None;
        let (start, len) = loop {
            let (solid, ends) = match self.run {
                Run::Data { end: Some(end) } => (end, true),
                _ => (self.zeroes_from.unwrap_or(self.scanned), false),
            };
            let start = (self.at - self.window_at) as usize;
            let data = &self.window[start..(solid - self.window_at) as usize];
            if let Some((len, _)) = expected
                && data.len() < len
                && !ends
            {
                self.look_on()?;
                continue;
            }
            if let Some((len, id)) = expected.take() {
                let found = (data.len() >= len).then(|| Chunk::of(self.window.slice(start..start + len)));
                named = found.filter(|chunk| chunk.id() == id);
                // An odd last byte, at the end of a run, no cutter has looked at; `gear::cut` looks there once more.
                self.searched = named.as_ref().map_or(0, |chunk| chunk.plain().len());
                self.expected.iter_mut().for_each(|expected| expected.found(named.is_some()));
            }
            match gear::cut(data, self.searched) {
                Some(len) => break (start, len),
                None if ends => break (start, data.len()),
                None => self.searched = data.len(),
            }
            self.look_on()?;
        };
        self.searched = 0;
        if len == 0 {
            self.run = Run::Hole;
            return Ok(None);
        }
        let data = match named.filter(|chunk| chunk.plain().len() == len) {
            Some(chunk) => CutData::Named(chunk),
            None => CutData::Plain(self.window.slice(start..start + len)),
        };
        let cut = Cut { offset: self.at, len: len as u64, data };
        self.at += len as u64;
        Ok(Some(cut))
    }

    /// Looks at the blocks of a data run up to the end of the window, reading on when there are none.
    fn look_on(&mut self) -> io::Result<()> {
        if self.scanned == self.end {
            self.run = Run::Data { end: Some(self.end) };
            return Ok(());
        }
        if self.scanned >= self.window_end() {
            self.fill()?;
        }
        while self.scanned < self.window_end() && matches!(self.run, Run::Data { end: None }) {
            let block_end = self.block_end();
            if is_zero(self.block()) {
                self.zeroes_to(block_end);
            } else {
                self.zeroes_from = None;
                self.scanned = block_end;
            }
        }
        Ok(())
    }

    /// Zeroes follow up to `end`: the run's end, when they are many enough.
    fn zeroes_to(&mut self, end: u64) {
        let from = *self.zeroes_from.get_or_insert(self.scanned);
        self.scanned = end;
        if end - from >= MIN_HOLE_BYTES {
            self.run = Run::Data { end: Some(from) };
        }
    }

    /// Reads on at `scanned`, which is the window's end or behind it; or skips a hole of the file without reading.
    fn fill(&mut self) -> io::Result<()> {
        let data = self.data_from(self.scanned)?;
        let gap = data.start - self.scanned;
        match self.run {
            Run::Hole if gap > 0 => {
                self.scanned = data.start;
                return Ok(());
            }
            Run::Data { .. } if gap >= MIN_HOLE_BYTES => {
                self.zeroes_to(data.start);
                return Ok(());
            }
            _ => {}
        }
        let read_end = self.read_end(data.end)?;
        let from = if self.run == Run::Hole { self.scanned } else { self.at };
        let kept = self.window.slice(self.window.len() - (self.scanned - from) as usize..);
        let (image, at) = (self.image, self.scanned);
        self.window =
            self.windows.read(&kept, (read_end - at) as usize, |buffer| image.read_at(at, buffer))?;
        self.window_at = from;
        // Nothing but zeroes, of which there may be any number: not kept.
        if self.run == Run::Hole && self.reads.last().is_some_and(|read| read.offset >= self.at) {
            self.reads.pop();
        }
        self.reads.push(Read { offset: at, bytes: self.window.slice(kept.len()..) });
        Ok(())
    }

    /// Where to stop reading: at the end of the data, or across short holes as far as a window reaches.
    fn read_end(&mut self, data_end: u64) -> io::Result<u64> {
        let reach = self.scanned - self.scanned % LEAF_BYTES + WINDOW_BYTES;
        let limit = self.end.min(reach);
        let mut read_end = data_end;
        while read_end < limit {
            let next = self.data_from(read_end)?;
            if next.start - read_end >= MIN_HOLE_BYTES {
                break;
            }
            read_end = next.end;
        }
        Ok(read_end.min(limit))
    }

    /// The next data at or after `offset`, in whole blocks; empty, at the range's end, when there is none.
    fn data_from(&mut self, offset: u64) -> io::Result<Range<u64>> {
        if !self.data.contains(&offset) {
            self.data = self.image.next_data(offset)?.map_or(self.end..self.end, |data| {
                let start = (data.start - data.start % BLOCK_BYTES).clamp(offset, self.end);
                let least = (start - start % BLOCK_BYTES).saturating_add(BLOCK_BYTES).min(self.end);
                let end = data.end.checked_next_multiple_of(BLOCK_BYTES).unwrap_or(self.end);
                start..end.clamp(least, self.end)
            });
        }
        Ok(self.data.start.max(offset)..self.data.end.max(offset))
    }

    fn window_end(&self) -> u64 {
        self.window_at + self.window.len() as u64
    }

    fn block_end(&self) -> u64 {
        (self.scanned - self.scanned % BLOCK_BYTES + BLOCK_BYTES).min(self.end)
    }

    /// The block at `scanned`. Windows end at block boundaries or the range's end, so it is all there.
    fn block(&self) -> &[u8] {
        let start = (self.scanned - self.window_at) as usize;
        let end = (self.block_end() - self.window_at) as usize;
        &self.window[start..end]
    }
}

impl Iterator for Cuts<'_> {
    type Item = io::Result<Cut>;

    fn next(&mut self) -> Option<io::Result<Cut>> {
        if let Some(error) = self.failed.take() {
            return Some(Err(error));
        }
        if self.done {
            return None;
        }
        let cut = self.step().transpose();
        self.done = !matches!(cut, Some(Ok(_)));
        cut
    }
}

/// The chunks of an earlier image, met in order.
struct Expected<'a> {
    extents: Box<dyn Iterator<Item = PlacedExtent> + Send + 'a>,
    next: Option<PlacedExtent>,
    /// How often in a row another chunk was found than was expected.
    misses: u32,
    /// So many chunks are not looked at: what has been written anew is not to be hashed twice all the time.
    passed: u32,
}

/// After so many misses in a row, one in 32 chunks is looked at.
const MAX_MISSES: u32 = 6;

impl<'a> Expected<'a> {
    fn of(like: &'a Manifest) -> Expected<'a> {
        Expected { extents: Box::new(like.placed()), next: None, misses: 0, passed: 0 }
    }

    /// The chunk that begins at `offset`, if one does.
    fn at(&mut self, offset: u64) -> Option<(usize, ChunkId)> {
        while self.next.is_none_or(|next| next.offset < offset) {
            self.next = Some(self.extents.next()?);
        }
        match self.next {
            // Longer ones there are none, unless somebody has written to the manifest's file.
            Some(PlacedExtent { offset: at, extent: ManifestExtent::Data { len, id } })
                if at == offset && len as usize <= MAX_CHUNK_BYTES =>
            {
                let pass = self.passed > 0;
                self.passed = self.passed.saturating_sub(1);
                (!pass).then_some((len as usize, id))
            }
            _ => None,
        }
    }

    /// What came of it.
    fn found(&mut self, found: bool) {
        self.misses = if found { 0 } else { (self.misses + 1).min(MAX_MISSES) };
        // None after the first: mostly one chunk has changed, and the next has not.
        self.passed = (1 << self.misses.saturating_sub(1)) - 1;
    }
}

#[cfg(test)]
mod tests;
