//! Reading everything back, or some of it. What was read and is bad is marked, so that it is not served and counts as missing
//! until it is put again; see [`Store::broken`]. So is what the disk cannot read, or what is cut off, of a pack whose beginning it can read. A pack
//! of which it can read nothing is reported, and says nothing of what is there: its disk may be away. Any other failure to
//! read ends the verification. It never fetches anything: healing is putting.

use std::collections::{BTreeSet, HashSet};
use std::ops::ControlFlow;
use std::path::PathBuf;

use super::location::{Location, slice};
use super::pack::Pack;
use super::record::Record;
use super::{Store, StoreError};
use crate::sync::read;
use crate::{ChunkId, ManifestExtent};

/// Extents of a reference whose chunks are looked up together, to be read in the order in which they lie: 16 GiB of
/// average chunks, in 30 MiB. A chunk that comes again much later in the image is read once more.
const VERIFIED_AT_ONCE: usize = 1 << 18;

/// What is to be verified.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub enum Scope {
    /// Every chunk and every reference.
    #[default]
    Whole,
    /// One chunk in so many, another choice for every seed; every reference.
    Sample {
        /// At least 1.
        one_in: u32,
        /// Any number, for example the day.
        seed: u64,
    },
    /// The chunks of one reference.
    Reference(String),
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct VerifyReport {
    /// Chunks read.
    pub chunks: u64,
    /// Their bytes as stored.
    pub stored_bytes: u64,
    /// Chunks whose bytes are not what their name says, or cannot be read. They are marked as broken.
    pub damaged: Vec<ChunkId>,
    /// Of `damaged`, those that the disk cannot read.
    pub unreadable: u64,
    /// Packs that the disk cannot read at all. Nothing is known of their chunks.
    pub unreadable_packs: Vec<UnreadablePack>,
    /// References that lack chunks, or cannot be read.
    pub broken: Vec<BrokenReference>,
}

/// A reference that cannot be restored in full.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct BrokenReference {
    /// Its name.
    pub name: String,
    /// Extents whose chunk is not here, or has another length.
    pub missing: u64,
    /// Why it could not be read at all.
    pub error: Option<String>,
}

/// A pack file that the disk cannot read.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct UnreadablePack {
    /// The file.
    pub path: PathBuf,
    /// Why not.
    pub error: String,
}

impl VerifyReport {
    /// Nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.damaged.is_empty() && self.broken.is_empty() && self.unreadable_packs.is_empty()
    }
}

impl Store {
    /// Reads chunks and references. What the disk cannot read is reported, and the rest is read all the same; another failure
    /// ends it with that error. `watch` gets the stored bytes read so far after every chunk: it may take its time, to keep
    /// the disk free for others, and may stop it.
    pub fn verify(
        &self,
        scope: &Scope,
        watch: &dyn Fn(u64) -> ControlFlow<()>,
    ) -> Result<VerifyReport, StoreError> {
        // Bad chunks are marked on the way; what is collected meanwhile would be taken for lost.
        let _pin = self.pin();
        let mut report = VerifyReport::default();
        match scope {
            Scope::Reference(name) => {
                let manifest = self.manifest(name)?;
                let mut ids = manifest.chunks();
                loop {
                    let wanted: HashSet<ChunkId> = ids.by_ref().take(VERIFIED_AT_ONCE).collect();
                    if wanted.is_empty() {
                        break;
                    }
                    let mut chunks = Vec::with_capacity(wanted.len());
                    for id in wanted {
                        chunks.extend(self.index.get(&id)?.map(|location| (id, location)));
                    }
                    chunks.sort_unstable_by_key(|(_, location)| location.order());
                    self.verify_chunks(chunks, &mut report, watch)?;
                }
                self.verify_reference(name, &mut report)?;
            }
            Scope::Whole | Scope::Sample { .. } => {
                let packs: Vec<_> = read(&self.packs).values().cloned().collect();
                for pack in packs {
                    let mut chunks = self.listed(&pack)?;
                    chunks.retain(|(id, _)| scope.takes(id));
                    chunks.sort_unstable_by_key(|(_, location)| location.order());
                    self.verify_chunks(chunks, &mut report, watch)?;
                }
                for name in self.names()? {
                    self.verify_reference(&name, &mut report)?;
                }
            }
        }
        Ok(report)
    }

    /// Chunks that were found to be bad and have not been put again since.
    pub fn broken(&self) -> Result<Vec<ChunkId>, StoreError> {
        Ok(self.index.broken()?.into_iter().map(|(id, _)| id).collect())
    }

    /// Chunks that references need and that are not here, sorted.
    pub fn missing(&self) -> Result<Vec<ChunkId>, StoreError> {
        let mut missing = BTreeSet::new();
        for name in self.names()? {
            match self.manifest(&name) {
                Ok(manifest) => missing.extend(manifest.chunks().filter(|id| !self.contains(id))),
                // What it needs cannot be known; `verify` tells.
                Err(StoreError::BadReference { .. } | StoreError::UnknownName { .. }) => {}
                Err(StoreError::File(error)) if error.is_bad_medium() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(missing.into_iter().collect())
    }

    fn verify_chunks(
        &self,
        chunks: Vec<(ChunkId, Location)>,
        report: &mut VerifyReport,
        watch: &dyn Fn(u64) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        // What lies together is decoded once, from the disk: what was decoded before says nothing of that.
        for record in chunks.chunk_by(|(_, a), (_, b)| a.record() == b.record()) {
            let Some((_, first)) = record.first() else { continue };
            let Some(pack) = read(&self.packs).get(&first.pack).cloned() else { continue };
            if report.unreadable_packs.iter().any(|unreadable| unreadable.path == pack.path) {
                continue;
            }
            let mut is_unreadable = false;
            let decoded = pack.with_record(first.offset, |bytes| {
                Record::parse(bytes).map_or(Ok(None), |record| record.decode_intact())
            });
            let plain = match decoded {
                Ok(plain) => plain.unwrap_or_default(),
                // A collection has moved what is needed of it, and removed the pack.
                Err(error) if error.is_absent() && !read(&self.packs).contains_key(&first.pack) => continue,
                Err(error) if error.is_lost() => {
                    if let Err(error) = pack.read_beginning() {
                        let (path, error) = (pack.path.clone(), error.to_string());
                        report.unreadable_packs.push(UnreadablePack { path, error });
                        continue;
                    }
                    is_unreadable = true;
                    Default::default()
                }
                Err(error) => return Err(error.into()),
            };
            for (id, location) in record {
                if slice(&plain, location).is_none_or(|bytes| ChunkId::of(&bytes) != *id) {
                    self.decoded.forget(location.record());
                    self.index.set_broken(id, *location)?;
                    report.damaged.push(*id);
                    report.unreadable += u64::from(is_unreadable);
                }
                report.chunks += 1;
                report.stored_bytes += u64::from(location.stored_len);
                if watch(report.stored_bytes).is_break() {
                    return Err(StoreError::Stopped);
                }
            }
        }
        Ok(())
    }

    /// The chunks that lie in this pack. The index knows them too, where the disk cannot read the pack's own list.
    fn listed(&self, pack: &Pack) -> Result<Vec<(ChunkId, Location)>, StoreError> {
        match self.here(pack) {
            Ok((chunks, _)) => Ok(chunks),
            Err(StoreError::File(error)) if error.is_lost() => {
                let mut chunks = Vec::new();
                self.index.each(|id, location| {
                    if location.pack == pack.number {
                        chunks.push((*id, *location));
                    }
                })?;
                Ok(chunks)
            }
            Err(error) => Err(error),
        }
    }

    /// The extent's chunk is not here, or has another length.
    fn lacks(&self, extent: &ManifestExtent) -> Result<bool, StoreError> {
        let ManifestExtent::Data { len, id } = extent else { return Ok(false) };
        Ok(self.index.get(id)?.is_none_or(|found| found.plain_len != *len))
    }

    fn verify_reference(&self, name: &str, report: &mut VerifyReport) -> Result<(), StoreError> {
        let (mut missing, mut error) = (0, None);
        match self.manifest(name) {
            Ok(manifest) => {
                for extent in manifest.extents() {
                    missing += u64::from(self.lacks(&extent)?);
                }
            }
            // Removed meanwhile.
            Err(StoreError::UnknownName { .. }) => return Ok(()),
            Err(bad @ StoreError::BadReference { .. }) => error = Some(bad.to_string()),
            Err(StoreError::File(bad)) if bad.is_bad_medium() => error = Some(bad.to_string()),
            Err(error) => return Err(error),
        }
        if missing > 0 || error.is_some() {
            report.broken.push(BrokenReference { name: name.to_owned(), missing, error });
        }
        Ok(())
    }
}

impl Scope {
    fn takes(&self, id: &ChunkId) -> bool {
        match self {
            Scope::Whole | Scope::Reference(_) => true,
            Scope::Sample { one_in, seed } => {
                // The name is a hash: any part of it, shifted by the seed, chooses evenly.
                let (words, _) = id.as_bytes().as_chunks::<8>();
                let number = words.first().map_or(0, |word| u64::from_le_bytes(*word));
                let mixed =
                    (number ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xd6e8_feb8_6659_fd93);
                (mixed >> 32).is_multiple_of(u64::from((*one_in).max(1)))
            }
        }
    }
}
