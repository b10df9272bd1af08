//! The bytes of a pack file: its header, one record for each chunk, the index and the footer of a sealed pack. Works
//! on slices only: it never opens a file, never panics on what it reads and never allocates by a length it has not
//! checked.

use crate::parse::{Fields, check8};
use crate::{ChunkId, Codec, MAX_CHUNK_BYTES};

pub(super) const PACK_MAGIC: &[u8; 8] = b"LHPACK\x00\x01";
pub(super) const PACK_HEADER_BYTES: u64 = 16;
const RECORD_MAGIC: &[u8; 4] = b"LHCR";
pub(crate) const RECORD_HEADER_BYTES: usize = 64;
const CHECKED_HEADER_BYTES: usize = 56;
const INDEX_MAGIC: &[u8; 8] = b"LHINDX\x00\x01";
const SEAL_MAGIC: &[u8; 8] = b"LHSEALED";
const INDEX_ENTRY_BYTES: usize = 52;
const FOOTER_BYTES: usize = 64;

/// A record's place in its pack and the shape of what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: ChunkId,
    /// Of the record's header.
    pub(crate) offset: u64,
    pub(crate) codec: Codec,
    pub(crate) plain_len: u32,
    pub(crate) stored_len: u32,
}

impl Entry {
    pub(super) fn record_bytes(&self) -> usize {
        RECORD_HEADER_BYTES + self.stored_len as usize
    }

    fn end(&self) -> u64 {
        self.offset.saturating_add(self.record_bytes() as u64)
    }

    /// Lengths that a record can have.
    fn lengths_fit(&self) -> bool {
        let payload_fits = match self.codec {
            Codec::Raw => self.stored_len == self.plain_len,
            Codec::Zstd => (1..self.plain_len).contains(&self.stored_len),
        };
        (1..=MAX_CHUNK_BYTES).contains(&(self.plain_len as usize)) && payload_fits
    }
}

pub(super) fn pack_header(number: u32) -> [u8; PACK_HEADER_BYTES as usize] {
    let mut header = [0; PACK_HEADER_BYTES as usize];
    header[..8].copy_from_slice(PACK_MAGIC);
    header[8..12].copy_from_slice(&number.to_le_bytes());
    header
}

/// The number of the pack that begins with these bytes; `None` when no pack of this version does.
pub(super) fn parse_pack_header(bytes: &[u8]) -> Option<u32> {
    let mut fields = Fields::new(bytes.get(..PACK_HEADER_BYTES as usize)?);
    if fields.take(8)? != PACK_MAGIC {
        return None;
    }
    fields.u32()
}

pub(super) fn codec_byte(codec: Codec) -> u8 {
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

/// One record, ready to be appended.
pub(crate) fn encode_record(id: &ChunkId, codec: Codec, plain_len: u32, payload: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(RECORD_HEADER_BYTES + payload.len());
    record.extend_from_slice(RECORD_MAGIC);
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

/// The record header at the start of `bytes`, said to be at `offset`, with its payload's checksum.
pub(crate) fn parse_header(bytes: &[u8], offset: u64) -> Option<(Entry, [u8; 8])> {
    let mut fields = Fields::new(bytes.get(..RECORD_HEADER_BYTES)?);
    if fields.take(4)? != RECORD_MAGIC {
        return None;
    }
    let codec = codec_of(fields.u8()?)?;
    fields.take(3)?;
    let (plain_len, stored_len) = (fields.u32()?, fields.u32()?);
    let id = ChunkId::from_bytes(fields.array()?);
    let payload_check = fields.array()?;
    let header_check: [u8; 8] = fields.array()?;
    let entry = Entry { id, offset, codec, plain_len, stored_len };
    let intact = check8(&[&bytes[..CHECKED_HEADER_BYTES]]) == header_check;
    (intact && entry.lengths_fit()).then_some((entry, payload_check))
}

/// The record at the start of `bytes`, if all of it is there and whole.
pub(super) fn parse_record(bytes: &[u8], offset: u64) -> Option<(Entry, &[u8])> {
    let (entry, payload_check) = parse_header(bytes, offset)?;
    let payload = bytes.get(RECORD_HEADER_BYTES..entry.record_bytes())?;
    (check8(&[payload]) == payload_check).then_some((entry, payload))
}

/// What an unsealed pack holds.
pub(super) struct Scan {
    pub(super) entries: Vec<Entry>,
    /// End of the last whole record: what follows is a torn tail.
    pub(super) end: u64,
}

/// Finds every whole record of a pack without an index. Damage between two records is stepped over, so that a
/// flipped bit costs one chunk and not the rest of the pack.
pub(super) fn scan(pack: &[u8]) -> Scan {
    let mut found = Scan { entries: Vec::new(), end: PACK_HEADER_BYTES };
    let mut at = PACK_HEADER_BYTES as usize;
    while let Some(rest) = pack.get(at..) {
        match parse_record(rest, at as u64) {
            Some((entry, _)) => {
                at += entry.record_bytes();
                found.end = at as u64;
                found.entries.push(entry);
            }
            None => match find(rest.get(1..).unwrap_or_default(), RECORD_MAGIC) {
                Some(distance) => at += 1 + distance,
                None => break,
            },
        }
    }
    found
}

fn find(haystack: &[u8], needle: &[u8; 4]) -> Option<usize> {
    let mut from = 0;
    loop {
        let start = from + haystack.get(from..)?.iter().position(|byte| *byte == needle[0])?;
        if haystack[start..].starts_with(needle) {
            return Some(start);
        }
        from = start + 1;
    }
}

/// Index and footer that seal a pack whose records end at `index_offset`. Sorts the entries.
pub(super) fn encode_index(entries: &mut [Entry], index_offset: u64) -> Vec<u8> {
    entries.sort_unstable_by_key(|entry| (entry.id, entry.offset));
    let mut bytes = Vec::with_capacity(entries.len() * INDEX_ENTRY_BYTES + FOOTER_BYTES);
    for entry in entries.iter() {
        bytes.extend_from_slice(entry.id.as_bytes());
        bytes.extend_from_slice(&entry.offset.to_le_bytes());
        bytes.extend_from_slice(&entry.plain_len.to_le_bytes());
        bytes.extend_from_slice(&entry.stored_len.to_le_bytes());
        bytes.extend_from_slice(&[codec_byte(entry.codec), 0, 0, 0]);
    }
    bytes.extend_from_slice(INDEX_MAGIC);
    bytes.extend_from_slice(&(entries.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&index_offset.to_le_bytes());
    let check = blake3::hash(&bytes);
    bytes.extend_from_slice(check.as_bytes());
    bytes.extend_from_slice(SEAL_MAGIC);
    bytes
}

/// The index of a sealed pack: whole, and every entry in it possible.
#[derive(Clone, Copy)]
pub(super) struct PackIndex<'a> {
    entries: &'a [u8],
    index_offset: u64,
}

impl<'a> PackIndex<'a> {
    /// `None` when the pack is not sealed, or its index is damaged.
    pub(super) fn parse(pack: &'a [u8]) -> Option<PackIndex<'a>> {
        let footer = pack.get(pack.len().checked_sub(FOOTER_BYTES)?..)?;
        let mut fields = Fields::new(footer);
        if fields.take(8)? != INDEX_MAGIC {
            return None;
        }
        let count = usize::try_from(fields.u64()?).ok()?;
        let index_offset = fields.u64()?;
        let check: [u8; 32] = fields.array()?;
        let start = usize::try_from(index_offset).ok()?;
        let end = start.checked_add(count.checked_mul(INDEX_ENTRY_BYTES)?)?;
        if fields.take(8)? != SEAL_MAGIC || end != pack.len() - FOOTER_BYTES {
            return None;
        }
        if *blake3::hash(pack.get(start..end + 24)?).as_bytes() != check {
            return None;
        }
        let index = PackIndex { entries: pack.get(start..end)?, index_offset };
        let in_order = index.entries().is_sorted_by(|a, b| (a.id, a.offset) < (b.id, b.offset));
        (in_order && index.entries().count() == count).then_some(index)
    }

    /// The entries, sorted by chunk, then offset.
    pub(super) fn entries(self) -> impl Iterator<Item = Entry> + 'a {
        let entries = self.entries.chunks_exact(INDEX_ENTRY_BYTES);
        entries.map_while(move |entry| parse_entry(entry, self.index_offset))
    }
}

fn parse_entry(bytes: &[u8], index_offset: u64) -> Option<Entry> {
    let mut fields = Fields::new(bytes);
    let id = ChunkId::from_bytes(fields.array()?);
    let offset = fields.u64()?;
    let (plain_len, stored_len) = (fields.u32()?, fields.u32()?);
    let entry = Entry { id, offset, codec: codec_of(fields.u8()?)?, plain_len, stored_len };
    (entry.lengths_fit() && offset >= PACK_HEADER_BYTES && entry.end() <= index_offset).then_some(entry)
}
