//! Published images with all their chunks as one stream, to be carried to a site by other means than the network: a
//! disk, an object store. FORMAT.md has the bytes. It never seeks, never believes what it reads, and publishes nothing
//! of an archive that is not whole.
//!
//! Memory: some 50 MiB, and one bit for each extent of an image (2 MiB for a TiB of average chunks).

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::io::{self, Read, Write};
use std::ops::ControlFlow;

use crate::manifest::MAX_MANIFEST_BYTES;
use crate::parse::{Fields, check8};
use crate::spool::Spool;
use crate::store::check_name;
use crate::store::record::{self, CHUNK_HEAD_BYTES, GROUP_HEAD_BYTES, Head, Holds, MAX_GROUP_CHUNKS, Record};
use crate::{
    ChunkId, Encoded, FileError, Group, LEVEL, Manifest, ManifestError, ManifestExtent, Store, StoreError,
};

/// The last byte is the version: this one is written, the one before is read too.
const MAGIC: &[u8; 8] = b"LHARCH\x00\x02";
const VERSION_1: u8 = 1;
const END_MAGIC: &[u8; 8] = b"LHARCEND";

/// The list of names is not longer than this: room for 8,000 of the longest.
const MAX_NAMES_BYTES: usize = 1 << 20;

/// No more is allocated at once for what has not arrived yet.
const STEP_BYTES: u64 = 1 << 20;

/// Names of chunks that are compared with each other at a time. A test's images are small.
const NAMES_AT_ONCE: usize = if cfg!(test) { 3 } else { 1 << 19 };

/// Gets the bytes of the archive that are done; may stop it.
type Watch<'a> = &'a dyn Fn(u64) -> ControlFlow<()>;

/// What an archive was made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct ExportReport {
    /// Images.
    pub images: u64,
    /// Chunks, each once.
    pub chunks: u64,
    /// Length of the archive.
    pub bytes: u64,
}

/// What came out of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct ImportReport {
    /// The images, all of them published now.
    pub names: Vec<String>,
    /// Chunks in the archive.
    pub chunks: u64,
    /// Of those, the ones that the store did not have.
    pub chunks_new: u64,
    /// Length of the archive.
    pub bytes: u64,
}

/// Why images could not be written into an archive. What was written of it is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// None, or too many.
    #[error(
        "an archive holds at least 1 image and at most 1 MiB of names, not {images} images: name one, or make several archives"
    )]
    BadCount {
        /// How many.
        images: usize,
    },
    /// An image could not be read from the store.
    #[error("the archive was not finished: {0}")]
    Store(#[from] StoreError),
    /// The archive could not be written.
    #[error("could not write the archive at byte {offset}: {cause}; remove it, and export again")]
    Write {
        /// Where in the archive.
        offset: u64,
        /// What the operating system said.
        cause: io::Error,
    },
    /// The caller had it stop.
    #[error("the export was stopped at byte {offset} of the archive: remove it, and export again")]
    Stopped {
        /// How far it was.
        offset: u64,
    },
}

/// Why an archive could not be brought into a store. Nothing was published, unless the disk failed while that was being
/// done; chunks that were stored stay until the next collection, and a second try passes over them.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Something else.
    #[error("this is no archive of longhaul: it begins with other bytes")]
    NoArchive,
    /// Of another version.
    #[error(
        "this archive is of format version {version}, not 1 or 2: import it with the longhaul that wrote it, or a newer one"
    )]
    OtherVersion {
        /// The version it says it has.
        version: u8,
    },
    /// It ends too early.
    #[error("the archive ends within {part} that begins at byte {offset}: it was cut short, copy it again")]
    CutShort {
        /// Where the part begins that is not all there.
        offset: u64,
        /// What is there.
        part: &'static str,
    },
    /// It is not what was written.
    #[error("the archive is damaged at byte {offset} ({reason}): copy it again, or export it again")]
    Damaged {
        /// Where the part begins that is wrong.
        offset: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// The archive could not be read.
    #[error("could not read the archive at byte {offset}: {cause}")]
    Read {
        /// Where in the archive.
        offset: u64,
        /// What the operating system said.
        cause: io::Error,
    },
    /// The caller had it stop.
    #[error(
        "the import was stopped at byte {offset} of the archive; the next one passes over the chunks that came in"
    )]
    Stopped {
        /// How far it was.
        offset: u64,
    },
    /// The store could not take it, or has an image of that name ([`StoreError::Exists`]).
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Writes the images published under `names`, with all their chunks, as one archive. Flushes the writer; making a file
/// durable is the caller's business.
pub fn export(
    store: &Store,
    names: &[impl AsRef<str>],
    writer: &mut dyn Write,
    watch: Watch<'_>,
) -> Result<ExportReport, ExportError> {
    let _pin = store.pin();
    let names: BTreeSet<&str> = names.iter().map(AsRef::as_ref).collect();
    let known: BTreeSet<String> = store.names()?.into_iter().collect();
    if let Some(name) = names.iter().find(|name| !known.contains(**name)) {
        return Err(StoreError::UnknownName { name: (*name).to_owned() }.into());
    }
    let header = encode_header(&names).ok_or(ExportError::BadCount { images: names.len() })?;
    let mut output = Output { writer, watch, hasher: blake3::Hasher::new(), at: 0 };
    output.write(&header)?;
    let (mut manifests, mut chunks) = (Vec::with_capacity(names.len()), 0);
    for name in &names {
        let manifest = store.manifest(name)?;
        output.manifest(&manifest)?;
        let firsts = Firsts::of(&manifest, &manifests);
        chunks += firsts.count();
        let mut ahead = Ahead::new(firsts.chunks(&manifest));
        while let Some(next) = ahead.fill() {
            let (count, encoded) = store.group(next, LEVEL)?;
            output.write(&record::encode_group(next[..count].iter().copied(), &encoded))?;
            ahead.pass(count);
        }
        manifests.push(manifest.clone());
    }
    let images = names.len() as u64;
    output.end(images, chunks)?;
    Ok(ExportReport { images, chunks, bytes: output.at })
}

/// Reads an archive to its end mark and no further. Stores the chunks that are not here, each checked against its name,
/// and then publishes all images. An image that has the name of one that is here replaces it if `replace` says so; if
/// not, nothing is stored at all.
pub fn import(
    store: &Store,
    reader: &mut dyn Read,
    replace: bool,
    watch: Watch<'_>,
) -> Result<ImportReport, ImportError> {
    let _pin = store.pin();
    let mut input = Input { reader, watch, hasher: blake3::Hasher::new(), at: 0, old: false };
    let names = input.names()?;
    if !replace {
        store.check_free(names.iter().map(String::as_str))?;
    }
    let mut report = ImportReport::default();
    let mut manifests = Vec::with_capacity(names.len());
    for _ in &names {
        let manifest = input.manifest(store.spool())?;
        let firsts = Firsts::of(&manifest, &manifests);
        report.chunks += firsts.count();
        let mut ahead = Ahead::new(firsts.chunks(&manifest));
        while let Some(next) = ahead.fill() {
            let group = input.group(next)?;
            report.chunks_new += store.put_group(&group, LEVEL)? as u64;
            ahead.pass(group.chunks().len());
        }
        manifests.push(manifest.clone());
    }
    input.end(names.len() as u64, report.chunks)?;
    report.bytes = input.at;
    let images: Vec<_> = names.iter().map(String::as_str).zip(&manifests).collect();
    store.publish_all(&images, replace)?;
    report.names = names;
    Ok(report)
}

/// Which extents of an image are the first with their chunk, in it and in the images before it: one bit for each extent.
struct Firsts(Vec<u64>);

impl Firsts {
    /// Looks at the chunks in parts, chosen by their names, so that no more than [`NAMES_AT_ONCE`] or so of them are in
    /// memory at a time.
    fn of(manifest: &Manifest, before: &[Manifest]) -> Firsts {
        let mut firsts = Firsts(vec![0; manifest.extents().count().div_ceil(64)]);
        let parts = manifest.chunks().count().div_ceil(NAMES_AT_ONCE) as u64;
        for part in 0..parts {
            let in_part = |id: &ChunkId| {
                let (words, _) = id.as_bytes().as_chunks::<8>();
                words.last().is_some_and(|word| u64::from_le_bytes(*word) % parts == part)
            };
            let mut new: HashSet<ChunkId> = manifest.chunks().filter(in_part).collect();
            for id in before.iter().flat_map(Manifest::chunks).filter(in_part) {
                new.remove(&id);
            }
            for (at, extent) in manifest.extents().enumerate() {
                if let ManifestExtent::Data { id, .. } = extent
                    && in_part(&id)
                    && new.remove(&id)
                {
                    firsts.0[at / 64] |= 1 << (at % 64);
                }
            }
        }
        firsts
    }

    fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Those chunks, with their lengths, in order.
    fn chunks<'a>(&'a self, manifest: &'a Manifest) -> impl Iterator<Item = (ChunkId, u32)> + 'a {
        manifest.extents().enumerate().filter_map(|(at, extent)| match extent {
            ManifestExtent::Data { len, id } => (self.0[at / 64] >> (at % 64) & 1 == 1).then_some((id, len)),
            ManifestExtent::Hole { .. } => None,
        })
    }
}

/// The next of many chunks, as many as a group may hold.
struct Ahead<Chunks> {
    chunks: Chunks,
    next: VecDeque<(ChunkId, u32)>,
}

impl<Chunks: Iterator<Item = (ChunkId, u32)>> Ahead<Chunks> {
    fn new(chunks: Chunks) -> Self {
        Ahead { chunks, next: VecDeque::new() }
    }

    /// `None` at the end.
    fn fill(&mut self) -> Option<&[(ChunkId, u32)]> {
        let lacking = MAX_GROUP_CHUNKS.saturating_sub(self.next.len());
        self.next.extend(self.chunks.by_ref().take(lacking));
        let next: &[_] = self.next.make_contiguous();
        (!next.is_empty()).then_some(next)
    }

    /// The first of them are done.
    fn pass(&mut self, count: usize) {
        self.next.drain(..count);
    }
}

/// `None`: there are no names, or too many.
fn encode_header(names: &BTreeSet<&str>) -> Option<Vec<u8>> {
    let mut list = Vec::new();
    for name in names {
        list.push(u8::try_from(name.len()).ok()?);
        list.extend_from_slice(name.as_bytes());
    }
    if list.is_empty() || list.len() > MAX_NAMES_BYTES {
        return None;
    }
    let mut header = MAGIC.to_vec();
    header.extend_from_slice(&(list.len() as u32).to_le_bytes());
    header.extend_from_slice(&list);
    header.extend_from_slice(&check8(&[&header]));
    Some(header)
}

/// The names in a header's list: at least one, ascending, none twice.
fn parse_names(list: &[u8]) -> Option<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    let mut fields = Fields::new(list);
    while !fields.rest().is_empty() {
        let len = usize::from(fields.u8()?);
        let name = std::str::from_utf8(fields.take(len)?).ok()?;
        check_name(name).ok()?;
        if names.last().is_some_and(|last| last.as_str() >= name) {
            return None;
        }
        names.push(name.to_owned());
    }
    (!names.is_empty()).then_some(names)
}

/// The first half of an end mark; the second is a hash over everything before it.
fn encode_end(images: u64, chunks: u64, bytes: u64) -> Vec<u8> {
    [*END_MAGIC, images.to_le_bytes(), chunks.to_le_bytes(), bytes.to_le_bytes()].concat()
}

/// An archive being written.
struct Output<'a> {
    writer: &'a mut dyn Write,
    watch: Watch<'a>,
    hasher: blake3::Hasher,
    at: u64,
}

impl Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), ExportError> {
        self.writer.write_all(bytes).map_err(|cause| ExportError::Write { offset: self.at, cause })?;
        self.hasher.update(bytes);
        self.at += bytes.len() as u64;
        match (self.watch)(self.at) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(ExportError::Stopped { offset: self.at }),
        }
    }

    fn manifest(&mut self, manifest: &Manifest) -> Result<(), ExportError> {
        let len = manifest.encoded_bytes().to_le_bytes();
        self.write(&[len, check8(&[&len])].concat())?;
        manifest.parts().try_for_each(|part| self.write(part))
    }

    fn end(&mut self, images: u64, chunks: u64) -> Result<(), ExportError> {
        self.write(&encode_end(images, chunks, self.at))?;
        let check = self.hasher.finalize();
        self.write(check.as_bytes())?;
        self.writer.flush().map_err(|cause| ExportError::Write { offset: self.at, cause })
    }
}

/// An archive being read.
struct Input<'a> {
    reader: &'a mut dyn Read,
    watch: Watch<'a>,
    hasher: blake3::Hasher,
    at: u64,
    /// It is of version 1.
    old: bool,
}

impl Input<'_> {
    /// The next `len` bytes, which are of the part that begins at `offset`. Allocates as they arrive.
    fn take(&mut self, len: u64, offset: u64, part: &'static str) -> Result<Vec<u8>, ImportError> {
        let mut bytes = Vec::new();
        self.pass(len, offset, part, |step| {
            bytes.extend_from_slice(step);
            Ok(())
        })?;
        Ok(bytes)
    }

    /// As [`take`](Input::take), into `sink`, a MiB at a time.
    fn pass(
        &mut self,
        len: u64,
        offset: u64,
        part: &'static str,
        mut sink: impl FnMut(&[u8]) -> Result<(), FileError>,
    ) -> Result<(), ImportError> {
        let end = self.at + len;
        let mut step = vec![0; len.min(STEP_BYTES) as usize];
        while self.at < end {
            step.truncate((end - self.at).min(STEP_BYTES) as usize);
            self.reader.read_exact(&mut step).map_err(|cause| match cause.kind() {
                io::ErrorKind::UnexpectedEof => ImportError::CutShort { offset, part },
                _ => ImportError::Read { offset: self.at, cause },
            })?;
            self.hasher.update(&step);
            sink(&step).map_err(StoreError::from)?;
            self.at += step.len() as u64;
            if (self.watch)(self.at).is_break() {
                return Err(ImportError::Stopped { offset: self.at });
            }
        }
        Ok(())
    }

    fn names(&mut self) -> Result<Vec<String>, ImportError> {
        let part = "the header";
        let damaged = |reason: &str| ImportError::Damaged { offset: 0, reason: reason.to_owned() };
        let magic = self.take(MAGIC.len() as u64, 0, part)?;
        let Some(version) = magic.strip_prefix(&MAGIC[..MAGIC.len() - 1]).and_then(<[u8]>::first) else {
            return Err(ImportError::NoArchive);
        };
        self.old = *version == VERSION_1;
        if !self.old && magic != MAGIC {
            return Err(ImportError::OtherVersion { version: *version });
        }
        let len = self.take(4, 0, part)?;
        let list_len = Fields::new(&len).u32().unwrap_or_default();
        if list_len as usize > MAX_NAMES_BYTES {
            return Err(damaged("its list of names is longer than there can be"));
        }
        let list = self.take(list_len.into(), 0, part)?;
        if self.take(8, 0, part)? != check8(&[&magic, &len, &list]) {
            return Err(damaged("the header's checksum"));
        }
        parse_names(&list).ok_or_else(|| damaged("its list of names contradicts itself"))
    }

    fn manifest(&mut self, mut spool: Spool) -> Result<Manifest, ImportError> {
        let (offset, part) = (self.at, "a manifest");
        let damaged = |reason: &str| ImportError::Damaged { offset, reason: reason.to_owned() };
        let head = self.take(16, offset, part)?;
        let mut fields = Fields::new(&head);
        let (len, check) = (fields.u64().unwrap_or_default(), fields.rest());
        if check != check8(&[&head[..8]]) {
            return Err(damaged("the checksum of a manifest's length"));
        }
        if len > MAX_MANIFEST_BYTES {
            return Err(damaged("a manifest is longer than there can be"));
        }
        self.pass(len, offset, part, |step| spool.write(step))?;
        Manifest::parse(spool.finish().map_err(StoreError::from)?).map_err(|error| match error {
            ManifestError::Unknown => damaged("a manifest of another version"),
            ManifestError::Damaged { reason } => damaged(&format!("a manifest: {reason}")),
        })
    }

    /// The next group, which must hold the first of these chunks.
    fn group(&mut self, wanted: &[(ChunkId, u32)]) -> Result<Group, ImportError> {
        let (offset, part) = (self.at, "a group of chunks");
        let damaged = |what: &str| {
            let id = wanted.first().map(|(id, _)| id.to_string()).unwrap_or_default();
            ImportError::Damaged {
                offset,
                reason: format!("{what} of the group that begins with chunk {id}"),
            }
        };
        let head_bytes = if self.old { CHUNK_HEAD_BYTES } else { GROUP_HEAD_BYTES };
        let mut bytes = self.take(head_bytes as u64, offset, part)?;
        let of_version = |head: &Head| self.old == matches!(head.holds, Holds::Chunk(_));
        let head = Head::parse(&bytes).filter(of_version).ok_or_else(|| damaged("the head"))?;
        bytes.extend(self.take((head.record_bytes() - head_bytes) as u64, offset, part)?);
        let record = Record::parse(&bytes).ok_or_else(|| damaged("the table"))?;
        let lens: Vec<u32> = record.chunks().map(|(_, len)| len).collect();
        let wanted = wanted.get(..lens.len()).unwrap_or_default();
        if !record.chunks().eq(wanted.iter().copied()) {
            return Err(damaged("other chunks in the place"));
        }
        if !record.is_intact() {
            return Err(damaged("the checksum"));
        }
        let payload = record.payload.to_vec();
        let encoded = Encoded { codec: head.codec, plain_len: head.plain_len, bytes: payload.into() };
        let group = Group::decode(encoded, &lens).map_err(|_| damaged("the content"))?;
        let named = group.chunks().iter().map(|chunk| chunk.id()).eq(wanted.iter().map(|(id, _)| *id));
        if named { Ok(group) } else { Err(damaged("the content")) }
    }

    fn end(&mut self, images: u64, chunks: u64) -> Result<(), ImportError> {
        let (offset, part) = (self.at, "the end mark");
        let damaged = |reason: &str| ImportError::Damaged { offset, reason: reason.to_owned() };
        let mark = self.take(32, offset, part)?;
        let check = self.hasher.finalize();
        let found = self.take(32, offset, part)?;
        if mark != encode_end(images, chunks, offset) {
            return Err(damaged("the end mark is not that of what came before"));
        }
        if found != check.as_bytes() {
            return Err(damaged("the checksum over all of it"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
