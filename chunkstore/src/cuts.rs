//! The cutter: reads an image once, from its beginning to its end, and says where its holes are and its chunks end. What
//! chunks and holes are is said in [`pieces`](crate::pieces()). It never hashes.

use std::io;
use std::ops::Range;

use bytes::Bytes;

use crate::windows::{KEPT_BYTES, Windows};
use crate::{
    BLOCK_BYTES, GROUP_BYTES, MAX_BATCH_EXTENTS, MAX_CHUNK_BYTES, MAX_GROUP_BYTES, MIN_HOLE_BYTES, ReadImage,
    gear, is_zero,
};

/// A batch is what begins in so many bytes of the image, one part after the other: a group, if all of it is new.
pub(crate) const BATCH_BYTES: u64 = GROUP_BYTES as u64;
/// With less than this, what begins in the next part belongs to it too.
const LEAST_BYTES: u64 = BATCH_BYTES / 2;
/// So a batch fits into a group.
const _: () = assert!(LEAST_BYTES + BATCH_BYTES + MAX_CHUNK_BYTES as u64 <= MAX_GROUP_BYTES as u64);

/// Which pieces make up a batch. That follows from their places, so that who writes an image back can take together what was
/// brought in together.
#[derive(Debug, Default)]
pub(crate) struct BatchEnd {
    pieces: usize,
    data_bytes: u64,
    last_at: u64,
}

impl BatchEnd {
    /// The next piece, with its bytes of data, belongs to the next batch.
    pub(crate) fn is_before(&mut self, offset: u64, data_bytes: u64) -> bool {
        let other_part = offset / BATCH_BYTES != self.last_at / BATCH_BYTES;
        if self.pieces == MAX_BATCH_EXTENTS || (other_part && self.data_bytes >= LEAST_BYTES) {
            return true;
        }
        self.pieces += 1;
        self.data_bytes += data_bytes;
        self.last_at = offset;
        false
    }
}

/// A piece.
pub(crate) struct Cut {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) data: CutData,
}

pub(crate) enum CutData {
    Hole,
    Chunk(Bytes),
}

impl CutData {
    fn len(&self) -> usize {
        match self {
            CutData::Hole => 0,
            CutData::Chunk(bytes) => bytes.len(),
        }
    }
}

/// Some pieces in order, and what was read from the image to find them: it reads ahead of them, and no byte twice.
pub(crate) struct Batch {
    pub(crate) cuts: Vec<Cut>,
    /// The bytes of all chunks, one behind the other, where they were read so.
    pub(crate) together: Option<Bytes>,
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
    /// Up to here blocks are known to be zero or not.
    scanned: u64,
    /// Start of the zero blocks that end at `scanned`.
    zeroes_from: Option<u64>,
    windows: Windows,
    window: Bytes,
    window_at: u64,
    /// A cut that no longer belonged to the batch before. The window is still the one that it is in.
    ahead: Option<Cut>,
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
            scanned: at,
            zeroes_from: None,
            windows: Windows::default(),
            window: Bytes::new(),
            window_at: at,
            ahead: None,
            reads: Vec::new(),
            data: at..at,
            failed: None,
            done: false,
        }
    }

    /// The next pieces, of a group's bytes or so; `None` at the end.
    pub(crate) fn batch(&mut self) -> io::Result<Option<Batch>> {
        let (mut cuts, mut end) = (Vec::new(), BatchEnd::default());
        // That of the first chunk.
        let mut window = None;
        loop {
            let cut = match self.next() {
                Some(Ok(cut)) => cut,
                Some(Err(error)) if cuts.is_empty() => return Err(error),
                // It comes again, after what was good.
                Some(Err(error)) => {
                    self.failed = Some(error);
                    break;
                }
                None => break,
            };
            if end.is_before(cut.offset, cut.data.len() as u64) {
                self.ahead = Some(cut);
                break;
            }
            if cut.data.len() > 0 {
                window.get_or_insert_with(|| (self.window.clone(), self.window_at));
            }
            cuts.push(cut);
        }
        let together = window.and_then(|(window, at)| together(&window, at, &cuts));
        let reads = std::mem::take(&mut self.reads);
        Ok((!cuts.is_empty()).then_some(Batch { cuts, together, reads }))
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
        let goes_on = self.run == Run::Data { end: None } && self.scanned == self.window_end();
        if goes_on && self.scanned < self.end && self.at / BATCH_BYTES != self.window_at / BATCH_BYTES {
            // What is compressed together is to be in view together.
            self.fill()?;
        }
        let mut searched = 0;
        let (start, len) = loop {
            let (solid, ends) = match self.run {
                Run::Data { end: Some(end) } => (end, true),
                _ => (self.zeroes_from.unwrap_or(self.scanned), false),
            };
            let start = (self.at - self.window_at) as usize;
            let data = &self.window[start..(solid - self.window_at) as usize];
            match gear::cut(self.at, data, searched) {
                Some(len) => break (start, len),
                None if ends => break (start, data.len()),
                None => searched = (data.len() + 1).saturating_sub(gear::SIGHT_BYTES),
            }
            self.look_on()?;
        };
        if len == 0 {
            self.run = Run::Hole;
            return Ok(None);
        }
        let data = CutData::Chunk(self.window.slice(start..start + len));
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
        let from = if self.run == Run::Hole { self.scanned } else { self.at };
        let read_end = self.read_end(from, data.end)?;
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

    /// Where to stop reading, in a window that begins at `from`: at the end of the data, or across short holes as far as it reaches.
    fn read_end(&mut self, from: u64, data_end: u64) -> io::Result<u64> {
        let reach = from - from % BATCH_BYTES + BATCH_BYTES + KEPT_BYTES as u64;
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
        if let Some(cut) = self.ahead.take() {
            return Some(Ok(cut));
        }
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

/// The bytes of the chunks among `cuts`, where they are next to each other in `window`, in which the first of them begins. What
/// lies in the next window too was copied there.
fn together(window: &Bytes, window_at: u64, cuts: &[Cut]) -> Option<Bytes> {
    let mut chunks = cuts.iter().filter(|cut| cut.data.len() > 0);
    let first = chunks.next()?;
    let end = chunks
        .try_fold(first.offset + first.len, |end, cut| (cut.offset == end).then_some(cut.offset + cut.len))?;
    let range = (first.offset - window_at) as usize..(end - window_at) as usize;
    (range.end <= window.len()).then(|| window.slice(range))
}

#[cfg(test)]
mod tests;
