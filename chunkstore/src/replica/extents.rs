//! What a redo log changes, as disjoint ranges of the image: the latest word on every byte. Pure; it never reads the
//! log.

use std::collections::BTreeMap;
use std::ops::Range;

/// Where the bytes of a changed range are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// In the log, from this offset on.
    Log(u64),
    /// Nowhere: they are zeroes.
    Zero,
}

impl Source {
    fn skip(self, bytes: u64) -> Source {
        match self {
            Source::Log(at) => Source::Log(at + bytes),
            Source::Zero => Source::Zero,
        }
    }
}

/// Changed ranges by their start.
#[derive(Debug, Default)]
pub(super) struct Extents {
    by_start: BTreeMap<u64, (u64, Source)>,
}

impl Extents {
    /// `range` now comes from `source`, whatever was said before.
    pub(super) fn insert(&mut self, range: Range<u64>, source: Source) {
        if range.is_empty() {
            return;
        }
        // One that begins before may reach in, or even over.
        if let Some((&start, &(end, before))) = self.by_start.range(..range.start).next_back()
            && end > range.start
        {
            self.by_start.insert(start, (range.start, before));
            if end > range.end {
                self.by_start.insert(range.end, (end, before.skip(range.end - start)));
            }
        }
        while let Some((&start, &(end, before))) = self.by_start.range(range.clone()).next() {
            self.by_start.remove(&start);
            if end > range.end {
                self.by_start.insert(range.end, (end, before.skip(range.end - start)));
            }
        }
        self.by_start.insert(range.start, (range.end, source));
    }

    /// The changed range that `offset` is in, or the next one behind it; clipped to start at `offset`.
    pub(super) fn next(&self, offset: u64) -> Option<(Range<u64>, Source)> {
        if let Some((&start, &(end, source))) = self.by_start.range(..=offset).next_back()
            && end > offset
        {
            return Some((offset..end, source.skip(offset - start)));
        }
        self.by_start.range(offset..).next().map(|(&start, &(end, source))| (start..end, source))
    }

    /// All changed ranges in the order of the image.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Range<u64>, Source)> {
        self.by_start.iter().map(|(&start, &(end, source))| (start..end, source))
    }
}
