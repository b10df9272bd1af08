//! A set of numbers in pages: nothing for a page that is empty, and next to nothing for one that is full, so that "all of
//! it" and "hardly any of it" cost little however large "it" is. It never knows what the numbers stand for.

use std::collections::BTreeMap;
use std::ops::Range;

const WORDS: usize = 64;
const PAGE: u64 = WORDS as u64 * 64;

/// Numbers below a bound.
#[derive(Debug, Clone)]
pub(super) struct Bits {
    len: u64,
    pages: BTreeMap<u64, Page>,
}

#[derive(Debug, Clone)]
enum Page {
    /// As far as the bound lets it.
    Full,
    Some(Box<[u64; WORDS]>),
}

impl Page {
    /// The first bit at or after `from`, within the page.
    fn next(&self, from: u64) -> Option<u64> {
        let Page::Some(words) = self else { return Some(from) };
        let mut word = (from / 64) as usize;
        let mut bits = words[word] & (u64::MAX << (from % 64));
        while bits == 0 {
            word += 1;
            bits = *words.get(word)?;
        }
        Some(word as u64 * 64 + u64::from(bits.trailing_zeros()))
    }
}

impl Bits {
    /// None of the numbers below `len`.
    pub(super) fn new(len: u64) -> Bits {
        Bits { len, pages: BTreeMap::new() }
    }

    /// The range ends at `len` at the latest.
    pub(super) fn set(&mut self, range: Range<u64>) {
        let mut at = range.start;
        while at < range.end {
            let (number, start) = (at / PAGE, at - at % PAGE);
            let page_end = start + PAGE.min(self.len - start);
            let end = range.end.min(page_end);
            if at == start && end == page_end {
                self.pages.insert(number, Page::Full);
            } else if let Page::Some(words) =
                self.pages.entry(number).or_insert_with(|| Page::Some(Box::new([0; WORDS])))
            {
                set_words(words, (at - start) as usize..(end - start) as usize);
            }
            at = end;
        }
    }

    pub(super) fn clear(&mut self) {
        self.pages.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    pub(super) fn contains(&self, number: u64) -> bool {
        self.next(number) == Some(number)
    }

    /// The first of them at or after `from`.
    pub(super) fn next(&self, from: u64) -> Option<u64> {
        self.pages
            .range(from / PAGE..)
            .find_map(|(number, page)| {
                let start = number * PAGE;
                Some(start + page.next(from.saturating_sub(start))?)
            })
            .filter(|found| *found < self.len)
    }

    pub(super) fn count(&self) -> u64 {
        let counts = self.pages.iter().map(|(number, page)| match page {
            Page::Full => PAGE.min(self.len - number * PAGE),
            Page::Some(words) => words.iter().map(|word| u64::from(word.count_ones())).sum(),
        });
        counts.sum()
    }
}

fn set_words(words: &mut [u64; WORDS], range: Range<usize>) {
    let mut at = range.start;
    while at < range.end {
        let (word, bit) = (at / 64, at % 64);
        let count = (64 - bit).min(range.end - at);
        words[word] |= (u64::MAX >> (64 - count)) << bit;
        at += count;
    }
}

#[cfg(test)]
mod tests;
