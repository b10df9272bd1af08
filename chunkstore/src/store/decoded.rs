//! The groups that were decoded last, so that who reads their chunks one after the other does not decode them anew for
//! each. Bounded; it holds plain bytes that nobody has checked.

use std::collections::VecDeque;
use std::sync::Mutex;

use bytes::Bytes;

use crate::sync::lock;

/// A group for every reader there may be, as groups usually are; the longest of them are few.
const MAX_BYTES: usize = 32 << 20;

/// Where a group lies: pack, offset.
type Place = (u32, u64);

/// The groups, the one that was used last at the end.
#[derive(Default)]
pub(super) struct Decoded(Mutex<VecDeque<(Place, Bytes)>>);

impl Decoded {
    pub(super) fn get(&self, place: Place) -> Option<Bytes> {
        let mut groups = lock(&self.0);
        let at = groups.iter().rposition(|(other, _)| *other == place)?;
        let found = groups.remove(at)?;
        groups.push_back(found.clone());
        Some(found.1)
    }

    pub(super) fn add(&self, place: Place, plain: Bytes) {
        let mut groups = lock(&self.0);
        groups.retain(|(other, _)| *other != place);
        groups.push_back((place, plain));
        let mut bytes: usize = groups.iter().map(|(_, plain)| plain.len()).sum();
        while bytes > MAX_BYTES
            && let Some((_, oldest)) = groups.pop_front()
        {
            bytes -= oldest.len();
        }
    }

    /// What was decoded from there turned out to be bad.
    pub(super) fn forget(&self, place: Place) {
        lock(&self.0).retain(|(other, _)| *other != place);
    }
}

#[cfg(test)]
mod tests;
