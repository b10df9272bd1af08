//! The bytes of a pack file: its header, records of chunks, the index and the footer of a sealed pack. A record holds
//! chunks that are compressed together; those of version 1 hold one. Works on slices, and on what it is given to read with: it never
//! opens a file, never panics on what it reads and never allocates by a length it has not checked.

use std::io;

use bytes::Bytes;

use crate::encoded::{decode, encode_onto};
use crate::parse::{Fields, check8};
use crate::{Chunk, ChunkId, Codec, Encoded, MAX_CHUNK_BYTES, MAX_GROUP_BYTES};

/// The last byte is the version: this one is written, the other one is read.
const PACK_MAGIC: &[u8; 8] = b"LHPACK\x00\x02";
const PACK_MAGIC_1: &[u8; 8] = b"LHPACK\x00\x01";
pub(super) const PACK_HEADER_BYTES: u64 = 16;

const CHUNK_MAGIC: &[u8; 4] = b"LHCR";
pub(crate) const CHUNK_HEAD_BYTES: usize = 64;
const CHUNK_CHECKED_BYTES: usize = 56;

const GROUP_MAGIC: &[u8; 4] = b"LHGR";
pub(crate) const GROUP_HEAD_BYTES: usize = 48;
const GROUP_CHECKED_BYTES: usize = 40;
pub(super) const TABLE_ENTRY_BYTES: usize = 36;
/// More chunks are not compressed together.
pub(crate) const MAX_GROUP_CHUNKS: usize = 4096;

/// No record is shorter, and no head of one longer.
pub(super) const MAX_HEAD_BYTES: usize = CHUNK_HEAD_BYTES;

const INDEX_MAGIC: &[u8; 8] = b"LHINDX\x00\x02";
const INDEX_MAGIC_1: &[u8; 8] = b"LHINDX\x00\x01";
const SEAL_MAGIC: &[u8; 8] = b"LHSEALED";
pub(super) const INDEX_ENTRY_BYTES: usize = 52;
pub(super) const FOOTER_BYTES: usize = 64;
/// As much of the footer is covered by its check.
pub(super) const FOOTER_CHECKED_BYTES: usize = 24;

/// A chunk's place in its pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: ChunkId,
    /// Of the record that holds it.
    pub(crate) offset: u64,
    /// Where it starts in the record's plain bytes.
    pub(crate) start: u32,
    pub(crate) plain_len: u32,
    /// Its part of the record's stored bytes: in proportion, and such that all parts make up the whole.
    pub(crate) stored_len: u32,
}

impl Entry {
    /// By chunk, then place.
    pub(super) fn order(&self) -> (ChunkId, u64, u32) {
        (self.id, self.offset, self.start)
    }

    /// Numbers that a chunk can have in a pack whose records end there.
    fn fits(&self, records_end: u64) -> bool {
        let end_in_group = u64::from(self.start) + u64::from(self.plain_len);
        self.offset >= PACK_HEADER_BYTES
            && self.offset.saturating_add(MAX_HEAD_BYTES as u64) <= records_end
            && (1..=MAX_CHUNK_BYTES).contains(&(self.plain_len as usize))
            && end_in_group <= MAX_GROUP_BYTES as u64
            && self.stored_len <= self.plain_len
    }
}

pub(super) fn pack_header(number: u32) -> [u8; PACK_HEADER_BYTES as usize] {
    let mut header = [0; PACK_HEADER_BYTES as usize];
    header[..8].copy_from_slice(PACK_MAGIC);
    header[8..12].copy_from_slice(&number.to_le_bytes());
    header
}

/// What the header of a pack says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PackHeader {
    pub(super) number: u32,
    /// It is of this version; an older one takes no more records.
    pub(super) current: bool,
}

/// `None` when no pack of a version known here begins with these bytes.
pub(super) fn parse_pack_header(bytes: &[u8]) -> Option<PackHeader> {
    let mut fields = Fields::new(bytes.get(..PACK_HEADER_BYTES as usize)?);
    let magic = fields.take(8)?;
    let current = magic == PACK_MAGIC;
    let known = current || magic == PACK_MAGIC_1;
    known.then_some(PackHeader { number: fields.u32()?, current })
}

/// These bytes begin like a pack, of whatever version.
pub(super) fn is_some_pack(bytes: &[u8]) -> bool {
    bytes.starts_with(&PACK_MAGIC[..7])
}

fn codec_byte(codec: Codec) -> u8 {
    match codec {
        Codec::Raw => 0,
        Codec::Zstd => 1,
    }
}

fn codec_of(byte: u8) -> Option<Codec> {
    match byte {
        0 => Some(Codec::Raw),
        1 => Some(Codec::Zstd),
        _ => None,
    }
}

/// The record of one chunk, as version 1 had it.
#[cfg(any(test, fuzzing))]
pub(crate) fn encode_chunk(id: &ChunkId, codec: Codec, plain_len: u32, payload: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(CHUNK_HEAD_BYTES + payload.len());
    record.extend_from_slice(CHUNK_MAGIC);
    record.extend_from_slice(&[codec_byte(codec), 0, 0, 0]);
    record.extend_from_slice(&plain_len.to_le_bytes());
    record.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    record.extend_from_slice(id.as_bytes());
    record.extend_from_slice(&check8(&[payload]));
    let check = check8(&[&record]);
    record.extend_from_slice(&check);
    record.extend_from_slice(payload);
    record
}

/// One record, ready to be appended: chunks with their lengths, and their bytes.
pub(crate) fn encode_group(
    chunks: impl ExactSizeIterator<Item = (ChunkId, u32)>,
    encoded: &Encoded,
) -> Vec<u8> {
    let Encoded { codec, plain_len, bytes } = encoded;
    group_record(chunks, *plain_len, |record| {
        record.extend_from_slice(bytes);
        *codec
    })
}

/// [`encode_group`] of these chunks.
pub(super) fn encode_chunks(chunks: &[&Chunk], encoded: &Encoded) -> Vec<u8> {
    encode_group(names(chunks), encoded)
}

/// The record of these chunks, whose bytes are `plain`, compressed at zstd `level` where that pays.
pub(super) fn compress_chunks(chunks: &[&Chunk], plain: &[u8], level: i32) -> Vec<u8> {
    group_record(names(chunks), plain.len() as u32, |record| encode_onto(record, plain, level))
}

fn names(chunks: &[&Chunk]) -> impl ExactSizeIterator<Item = (ChunkId, u32)> {
    chunks.iter().map(|chunk| (chunk.id(), chunk.plain().len() as u32))
}

/// `append_payload` appends the payload and gives its codec.
fn group_record(
    chunks: impl ExactSizeIterator<Item = (ChunkId, u32)>,
    plain_len: u32,
    append_payload: impl FnOnce(&mut Vec<u8>) -> Codec,
) -> Vec<u8> {
    let count = chunks.len();
    let table_end = GROUP_HEAD_BYTES + count * TABLE_ENTRY_BYTES;
    let mut record = Vec::with_capacity(table_end + plain_len as usize);
    record.resize(GROUP_HEAD_BYTES, 0);
    for (id, len) in chunks {
        record.extend_from_slice(&len.to_le_bytes());
        record.extend_from_slice(id.as_bytes());
    }
    let codec = append_payload(&mut record);
    let (table, payload) = record[GROUP_HEAD_BYTES..].split_at(table_end - GROUP_HEAD_BYTES);
    let mut head = [0; GROUP_HEAD_BYTES];
    head[..4].copy_from_slice(GROUP_MAGIC);
    head[4] = codec_byte(codec);
    head[8..12].copy_from_slice(&(count as u32).to_le_bytes());
    head[12..16].copy_from_slice(&plain_len.to_le_bytes());
    head[16..20].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    head[24..32].copy_from_slice(&check8(&[table]));
    head[32..40].copy_from_slice(&check8(&[payload]));
    let check = check8(&[&head[..GROUP_CHECKED_BYTES]]);
    head[40..].copy_from_slice(&check);
    record[..GROUP_HEAD_BYTES].copy_from_slice(&head);
    record
}

/// How a record begins: what is behind that, and how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) holds: Holds,
    pub(crate) codec: Codec,
    pub(crate) plain_len: u32,
    pub(crate) stored_len: u32,
    payload_check: [u8; 8],
}

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holds {
    /// Version 1: this chunk.
    Chunk(ChunkId),
    /// So many chunks, named in a table.
    Group { chunks: u32, table_check: [u8; 8] },
}

impl Head {
    /// The head at the start of `bytes`, of which [`MAX_HEAD_BYTES`] are enough. Its lengths are bounded.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Head> {
        let mut fields = Fields::new(bytes);
        let magic = fields.take(4)?;
        let codec = codec_of(fields.u8()?)?;
        fields.take(3)?;
        let (head, checked) = if magic == CHUNK_MAGIC {
            let (plain_len, stored_len) = (fields.u32()?, fields.u32()?);
            let holds = Holds::Chunk(ChunkId::from_bytes(fields.array()?));
            (
                Head { holds, codec, plain_len, stored_len, payload_check: fields.array()? },
                CHUNK_CHECKED_BYTES,
            )
        } else if magic == GROUP_MAGIC {
            let (chunks, plain_len, stored_len) = (fields.u32()?, fields.u32()?, fields.u32()?);
            fields.take(4)?;
            let holds = Holds::Group { chunks, table_check: fields.array()? };
            (
                Head { holds, codec, plain_len, stored_len, payload_check: fields.array()? },
                GROUP_CHECKED_BYTES,
            )
        } else {
            return None;
        };
        let intact = fields.array()? == check8(&[bytes.get(..checked)?]);
        (intact && head.fits()).then_some(head)
    }

    /// Lengths that a record can have.
    fn fits(&self) -> bool {
        let longest = match self.holds {
            Holds::Chunk(_) => MAX_CHUNK_BYTES,
            Holds::Group { chunks, .. } if (1..=MAX_GROUP_CHUNKS).contains(&(chunks as usize)) => {
                MAX_GROUP_BYTES
            }
            Holds::Group { .. } => 0,
        };
        let payload_fits = match self.codec {
            Codec::Raw => self.stored_len == self.plain_len,
            Codec::Zstd => (1..self.plain_len).contains(&self.stored_len),
        };
        (1..=longest).contains(&(self.plain_len as usize)) && payload_fits
    }

    /// Bytes before the payload.
    fn payload_at(&self) -> usize {
        match self.holds {
            Holds::Chunk(_) => CHUNK_HEAD_BYTES,
            Holds::Group { chunks, .. } => GROUP_HEAD_BYTES + chunks as usize * TABLE_ENTRY_BYTES,
        }
    }

    /// Length of the record.
    pub(crate) fn record_bytes(&self) -> usize {
        self.payload_at() + self.stored_len as usize
    }
}

/// A record, all of which is there; its payload may have decayed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record<'a> {
    pub(crate) head: Head,
    /// All its bytes.
    pub(crate) bytes: &'a [u8],
    table: &'a [u8],
    pub(crate) payload: &'a [u8],
}

impl<'a> Record<'a> {
    /// The record at the start of `bytes`, if its head and table are sound.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Record<'a>> {
        let head = Head::parse(bytes)?;
        let bytes = bytes.get(..head.record_bytes())?;
        let (front, payload) = bytes.split_at(head.payload_at());
        let mut record = Record { head, bytes, table: &[], payload };
        if let Holds::Group { table_check, .. } = head.holds {
            record.table = &front[GROUP_HEAD_BYTES..];
            let fits = |len: u32| (1..=MAX_CHUNK_BYTES).contains(&(len as usize));
            let lengths = || record.chunks().map(|(_, len)| len);
            let sum: u64 = lengths().map(u64::from).sum();
            let sound = check8(&[record.table]) == table_check
                && lengths().all(fits)
                && sum == u64::from(head.plain_len);
            return sound.then_some(record);
        }
        Some(record)
    }

    /// It may be copied as it is: version 1's is written anew.
    pub(super) fn is_current(&self) -> bool {
        matches!(self.head.holds, Holds::Group { .. })
    }

    /// The payload is what was written.
    pub(crate) fn is_intact(&self) -> bool {
        check8(&[self.payload]) == self.head.payload_check
    }

    /// The chunks in it with their lengths, in their order.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = (ChunkId, u32)> + use<'a> {
        let alone = match self.head.holds {
            Holds::Chunk(id) => Some((id, self.head.plain_len)),
            Holds::Group { .. } => None,
        };
        let (entries, _) = self.table.as_chunks::<TABLE_ENTRY_BYTES>();
        let grouped = entries.iter().filter_map(|entry| {
            let mut fields = Fields::new(entry);
            let len = fields.u32()?;
            Some((ChunkId::from_bytes(fields.array()?), len))
        });
        alone.into_iter().chain(grouped)
    }

    /// The same with their places, the record lying at `offset`.
    pub(super) fn entries(&self, offset: u64) -> impl Iterator<Item = Entry> + use<'a> {
        let head = self.head;
        let stored_before = move |at: u64| at * u64::from(head.stored_len) / u64::from(head.plain_len);
        let mut start = 0;
        self.chunks().map(move |(id, plain_len)| {
            let end = start + plain_len;
            let stored_len = (stored_before(end.into()) - stored_before(start.into())) as u32;
            let entry = Entry { id, offset, start, plain_len, stored_len };
            start = end;
            entry
        })
    }

    /// The plain bytes of all its chunks, if they are stored as they are.
    pub(super) fn plain(&self) -> Option<&'a [u8]> {
        (self.head.codec == Codec::Raw).then_some(self.payload)
    }

    /// Its payload, to be passed on.
    pub(super) fn encoded(&self) -> Encoded {
        let Head { codec, plain_len, .. } = self.head;
        Encoded { codec, plain_len, bytes: Bytes::copy_from_slice(self.payload) }
    }

    /// As [`decode`](Record::decode); an error when it has not decayed and cannot be decoded all the same.
    pub(super) fn decode_intact(&self) -> io::Result<Option<Bytes>> {
        match self.decode() {
            None if self.is_intact() => Err(io::Error::other(
                "a record that is whole cannot be decompressed: is there enough memory?",
            )),
            decoded => Ok(decoded),
        }
    }

    /// The plain bytes of all its chunks; `None` when it has decayed.
    pub(super) fn decode(&self) -> Option<Bytes> {
        decode(self.head.codec, self.head.plain_len, self.payload, MAX_GROUP_BYTES).ok().map(Bytes::from)
    }
}

/// What an unsealed pack holds.
pub(super) struct Scan {
    pub(super) entries: Vec<Entry>,
    /// End of the last whole record: what follows is a torn tail.
    pub(super) end: u64,
}

/// Bytes read at once by a scan; no record is longer.
const SCAN_BYTES: usize = 8 << 20;

/// Finds every whole record of a pack of `len` bytes without its index. Damage between two records is stepped over, so that
/// a flipped bit costs one record and not the rest of the pack. `read` fills a buffer from an offset on.
pub(super) fn scan(len: u64, mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>) -> io::Result<Scan> {
    let mut found = Scan { entries: Vec::new(), end: PACK_HEADER_BYTES };
    let (mut at, mut window, mut window_at) = (PACK_HEADER_BYTES, Vec::new(), PACK_HEADER_BYTES);
    while at < len {
        let needed = (len - at).min(SCAN_BYTES as u64 / 2);
        if at + needed > window_at + window.len() as u64 {
            window.resize((len - at).min(SCAN_BYTES as u64) as usize, 0);
            window_at = at;
            read(at, &mut window)?;
        }
        let rest = &window[(at - window_at) as usize..];
        match Record::parse(rest).filter(Record::is_intact) {
            Some(record) => {
                found.entries.extend(record.entries(at));
                at += record.bytes.len() as u64;
                found.end = at;
            }
            None => {
                let behind = rest.get(1..).unwrap_or_default();
                // A magic may begin in this window and end in the next.
                let none_here = (behind.len() + 1).saturating_sub(CHUNK_MAGIC.len()).max(1);
                at += find_record(behind).map_or(none_here, |distance| 1 + distance) as u64;
            }
        }
    }
    Ok(found)
}

/// [`scan`] of a pack in memory.
#[cfg(any(test, fuzzing))]
pub(super) fn scan_bytes(pack: &[u8]) -> Scan {
    use crate::ReadImage;
    scan(pack.size(), |at, buffer| pack.read_at(at, buffer)).expect("memory can be read")
}

/// Where the next record may begin.
fn find_record(haystack: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        let start = from + haystack.get(from..)?.iter().position(|byte| *byte == CHUNK_MAGIC[0])?;
        let here = &haystack[start..];
        if here.starts_with(CHUNK_MAGIC) || here.starts_with(GROUP_MAGIC) {
            return Some(start);
        }
        from = start + 1;
    }
}

/// Index and footer that seal a pack whose records end at `index_offset`. Sorts the entries.
pub(super) fn encode_index(entries: &mut [Entry], index_offset: u64) -> Vec<u8> {
    entries.sort_unstable_by_key(Entry::order);
    let mut bytes = Vec::with_capacity(entries.len() * INDEX_ENTRY_BYTES + FOOTER_BYTES);
    for entry in entries.iter() {
        bytes.extend_from_slice(entry.id.as_bytes());
        bytes.extend_from_slice(&entry.offset.to_le_bytes());
        bytes.extend_from_slice(&entry.start.to_le_bytes());
        bytes.extend_from_slice(&entry.plain_len.to_le_bytes());
        bytes.extend_from_slice(&entry.stored_len.to_le_bytes());
    }
    bytes.extend_from_slice(INDEX_MAGIC);
    bytes.extend_from_slice(&(entries.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&index_offset.to_le_bytes());
    let check = blake3::hash(&bytes);
    bytes.extend_from_slice(check.as_bytes());
    bytes.extend_from_slice(SEAL_MAGIC);
    bytes
}

/// What the end of a sealed pack says of its index.
#[derive(Debug, Clone, Copy)]
pub(super) struct Footer {
    /// Where the index begins in the pack.
    pub(super) index_at: u64,
    pub(super) entries: u64,
    pub(super) check: [u8; 32],
    /// Of version 1.
    old: bool,
}

impl Footer {
    /// Of a pack of `pack_len` bytes that ends with `bytes`. `None` when it is not sealed, or this is damaged.
    pub(super) fn parse(bytes: &[u8; FOOTER_BYTES], pack_len: u64) -> Option<Footer> {
        let mut fields = Fields::new(bytes);
        let magic = fields.take(8)?;
        let old = magic == INDEX_MAGIC_1;
        if !old && magic != INDEX_MAGIC {
            return None;
        }
        let (entries, index_at) = (fields.u64()?, fields.u64()?);
        let check = fields.array()?;
        let end = index_at.checked_add(entries.checked_mul(INDEX_ENTRY_BYTES as u64)?)?;
        let fits = Some(end) == pack_len.checked_sub(FOOTER_BYTES as u64);
        (fields.take(8)? == SEAL_MAGIC && fits).then_some(Footer { index_at, entries, check, old })
    }

    /// An entry of the index; `None` for what is none.
    pub(super) fn entry(&self, bytes: &[u8]) -> Option<Entry> {
        let entry = if self.old { parse_entry_1(bytes)? } else { parse_entry(bytes)? };
        entry.fits(self.index_at).then_some(entry)
    }
}

fn parse_entry(bytes: &[u8]) -> Option<Entry> {
    let mut fields = Fields::new(bytes);
    Some(Entry {
        id: ChunkId::from_bytes(fields.array()?),
        offset: fields.u64()?,
        start: fields.u32()?,
        plain_len: fields.u32()?,
        stored_len: fields.u32()?,
    })
}

/// Of version 1: a record held one chunk.
fn parse_entry_1(bytes: &[u8]) -> Option<Entry> {
    let mut fields = Fields::new(bytes);
    let (id, offset) = (ChunkId::from_bytes(fields.array()?), fields.u64()?);
    let (plain_len, stored_len) = (fields.u32()?, fields.u32()?);
    codec_of(fields.u8()?)?;
    Some(Entry { id, offset, start: 0, plain_len, stored_len })
}
