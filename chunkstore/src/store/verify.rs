//! Reading everything back. It never repairs: a bad chunk is forgotten, and fetched again by whoever needs it.

use super::{Store, StoreError};
use crate::ChunkId;
use crate::sync::read;

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct VerifyReport {
    /// Chunks read.
    pub chunks: u64,
    /// Their bytes as stored.
    pub stored_bytes: u64,
    /// Chunks whose bytes are not what their name says. The store has forgotten them.
    pub damaged: Vec<ChunkId>,
    /// References that lack chunks, or cannot be read.
    pub broken: Vec<BrokenReference>,
}

/// A reference that cannot be restored in full.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct BrokenReference {
    /// Its name.
    pub name: String,
    /// Extents whose chunk is not here.
    pub missing: u64,
    /// Why it could not be read at all.
    pub error: Option<String>,
}

impl VerifyReport {
    /// Nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.damaged.is_empty() && self.broken.is_empty()
    }
}

impl Store {
    /// Reads every chunk and every reference. `progress` gets the stored bytes read so far.
    pub fn verify(&self, progress: &dyn Fn(u64)) -> Result<VerifyReport, StoreError> {
        // Bad chunks are forgotten on the way; what is collected meanwhile would be taken for lost.
        let _pin = self.pin();
        let mut chunks: Vec<_> = read(&self.index).iter().map(|(id, location)| (*id, *location)).collect();
        chunks.sort_unstable_by_key(|(_, location)| (location.pack, location.offset));
        let mut report = VerifyReport::default();
        for (id, location) in chunks {
            match self.get(&id) {
                Ok(_) => {}
                Err(StoreError::Damaged { .. } | StoreError::File(_)) => {
                    self.forget(&id, location);
                    report.damaged.push(id);
                }
                Err(error) => return Err(error),
            }
            report.chunks += 1;
            report.stored_bytes += u64::from(location.stored_len);
            progress(report.stored_bytes);
        }
        for name in self.names()? {
            let (missing, error) = match self.manifest(&name) {
                Ok(manifest) => (manifest.chunks().filter(|id| !self.contains(id)).count() as u64, None),
                Err(error) => (0, Some(error.to_string())),
            };
            if missing > 0 || error.is_some() {
                report.broken.push(BrokenReference { name, missing, error });
            }
        }
        Ok(report)
    }
}
