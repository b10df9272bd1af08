//! The next generation of a replica, as a transfer brings it: by itself, or with the other disks of its VM.

use std::io;
use std::sync::Arc;

use chunkstore::{
    ChunkId, Generation, Group, ImageRoot, ManifestWriter, Pass, ReadImage, Replica, ReplicaError, Seeds,
};
use longhaul_proto::handoff::Root;
use longhaul_proto::wire::{Refusal, RefusalKind, TargetStatus};

use super::sets::{Member, SetOf};
use super::{Kept, seed};
use crate::error_kind::HasKind;
use crate::transfer::sink::{Assembly, Sink, WriteImage};

pub(super) struct PassImage {
    pub(super) pass: Pass,
    /// A place that the disk cannot read.
    #[cfg(test)]
    pub(super) bad: Option<u64>,
}

impl PassImage {
    pub(super) fn new(pass: Pass) -> Self {
        PassImage {
            pass,
            #[cfg(test)]
            bad: None,
        }
    }
}

impl ReadImage for PassImage {
    fn size(&self) -> u64 {
        self.pass.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        #[cfg(test)]
        if self.bad.is_some_and(|bad| (offset..offset + buf.len() as u64).contains(&bad)) {
            return Err(rustix::io::Errno::IO.into());
        }
        self.pass.read_at(offset, buf)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<std::ops::Range<u64>>> {
        self.pass.next_data(offset)
    }
}

impl WriteImage for PassImage {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.pass.write_at(offset, bytes).map_err(to_io)
    }

    fn zero(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.pass.zero(offset, len).map_err(to_io)
    }
}

fn to_io(error: ReplicaError) -> io::Error {
    let kind = if error.is_full() { io::ErrorKind::StorageFull } else { io::ErrorKind::Other };
    io::Error::new(kind, error)
}

/// The next generation of a replica. Dropped before its commit it leaves the one before.
pub(crate) struct ReplicaSink {
    // In this order: the set is told first, and the replica is free for the next pass before it is closed.
    pub(super) member: Option<(SetOf, Member)>,
    pub(super) assembly: Option<Assembly<PassImage>>,
    pub(super) replica: Arc<Replica>,
    pub(super) kept: Arc<Kept>,
    pub(super) seeds: Arc<Seeds>,
    pub(super) size: u64,
    pub(super) source: String,
    /// The generation there is, if any.
    pub(super) before: Option<Generation>,
    /// The pass starts from nothing, so it must bring everything.
    pub(super) fresh: bool,
}

impl ReplicaSink {
    /// What the sender is told of the replica.
    pub(crate) fn status(&self) -> TargetStatus {
        super::status_of(self.before.as_ref())
    }

    /// Makes chunks of the new generation known. That this fails is no reason to give up the generation.
    fn keep_chunk_list(&self, extents: ManifestWriter, root: ImageRoot) {
        let kept = extents.finish(root).map_err(ReplicaError::from).and_then(|manifest| {
            seed(&self.seeds, &self.replica.image_path(), &manifest);
            self.replica.save_manifest(&manifest)
        });
        if let Err(error) = kept {
            tracing::warn!("the replica is whole, but its chunk list cannot be kept: {error}");
        }
    }

    fn assembly(&mut self) -> Result<&mut Assembly<PassImage>, Refusal> {
        if let Some((_, member)) = &self.member {
            member.heard();
        }
        self.assembly.as_mut().ok_or_else(|| refusal(RefusalKind::Protocol, "the pass has ended".to_owned()))
    }

    /// Looks at what has come; gives its generation, if it is what it should be.
    fn look(
        &mut self,
        root: Root,
        after: u64,
        taken_unix_ms: u64,
        whole: bool,
    ) -> Result<Generation, Refusal> {
        let before = self.before.as_ref().map_or(0, |before| before.number);
        if after != before || (self.fresh && !whole) {
            let reason = format!("the replica is at generation {before}, the pass is for {after}");
            return Err(refusal(RefusalKind::Diverged, reason));
        }
        let found = match self.assembly()?.refresh() {
            // What of the replica cannot be read, a whole scan writes anew.
            Err(unread) if before > 0 && !whole && unread.kind == RefusalKind::Failed => {
                let reason = format!("the replica cannot be read in full: {}", unread.reason);
                return Err(refusal(RefusalKind::Diverged, reason));
            }
            found => found?,
        };
        let expected = ImageRoot::from_bytes(root);
        if found != expected {
            let reason = format!("after the pass the image's root would be {found}, not {expected}");
            return Err(refusal(RefusalKind::Diverged, reason));
        }
        let set = self.member.as_ref().map(|(of, _)| of.id.0);
        let (number, source) = (before + 1, self.source.clone());
        Ok(Generation { number, size: self.size, root: found, taken_unix_ms, source, set })
    }

    fn publish(
        &mut self,
        assembly: Assembly<PassImage>,
        generation: Generation,
        whole: bool,
    ) -> Result<u64, Refusal> {
        let Assembly { image, tree, extents, .. } = assembly;
        let (number, root) = (generation.number, generation.root);
        match &self.member {
            None => image.pass.commit(generation.clone()).map_err(failed_commit)?,
            Some((_, member)) => {
                let prepared = image.pass.prepare(generation.clone()).map_err(failed_commit)?;
                member.commit(prepared)?;
            }
        }
        self.kept.committed(generation);
        if let (true, Some(extents)) = (whole, extents) {
            self.keep_chunk_list(extents, root);
        }
        let tree = Arc::try_unwrap(tree).ok().and_then(|tree| tree.into_inner().ok());
        if let Some(Err(error)) = tree.as_ref().map(|tree| self.replica.save_tree(tree)) {
            tracing::warn!("the replica is whole, but it will be read again by the next pass: {error}");
        }
        Ok(number)
    }
}

/// Why a generation did not become the present one, as the sender is told.
pub(super) fn failed_commit(error: ReplicaError) -> Refusal {
    refusal(error.kind().refusal(), error.to_string())
}

fn refusal(kind: RefusalKind, reason: String) -> Refusal {
    Refusal { kind, reason }
}

impl Sink for ReplicaSink {
    fn place(&mut self, offset: u64, len: u32, name: ChunkId) -> Result<bool, Refusal> {
        self.assembly()?.place(offset, len, name)
    }

    fn expect(&mut self, _offset: u64, len: u32, name: ChunkId) -> Result<(), Refusal> {
        self.assembly()?.expect(len, name)
    }

    fn hole(&mut self, offset: u64, len: u64) -> Result<(), Refusal> {
        self.assembly()?.hole(offset, len)
    }

    fn chunks(&mut self, group: &Group, offsets: &[Vec<u64>]) -> Result<(), Refusal> {
        self.assembly()?.chunks(group, offsets)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.assembly()?.put(offset, bytes)
    }

    fn sync(&mut self, _mark: u32) -> Result<(), Refusal> {
        Ok(())
    }

    fn commit(&mut self, root: Root, after: u64, taken_unix_ms: u64, whole: bool) -> Result<u64, Refusal> {
        if let Some((_, member)) = &self.member {
            member.arrive()?;
        }
        let looked = self.look(root, after, taken_unix_ms, whole);
        let Some(assembly) = self.assembly.take() else {
            return Err(refusal(RefusalKind::Protocol, "the pass has ended".to_owned()));
        };
        // A refused pass gives the replica free before its sender hears of it, which may begin another at once.
        let outcome = match looked {
            Ok(generation) => self.publish(assembly, generation, whole),
            Err(refusal) => {
                drop(assembly);
                Err(refusal)
            }
        };
        if outcome.is_err() {
            self.member = None;
        }
        outcome
    }
}
