//! The bytes of a replica's state file and redo log. Works on slices and one reader: it never panics on what it
//! reads and never allocates by a length it has not checked.

use std::io::{self, Read};
use std::ops::Range;

use super::extents::{Extents, Source};
use super::generation::{Generation, SetId};
use crate::ImageRoot;
use crate::parse::{Fields, check8};

/// A generation that belongs to no set.
const STATE_MAGIC: &[u8; 8] = b"LHREPL\x00\x01";
/// A generation of a set.
const SET_STATE_MAGIC: &[u8; 8] = b"LHREPL\x00\x02";
/// Commits generations that belong to no set.
const OLD_LOG_MAGIC: &[u8; 8] = b"LHREDO\x00\x01";
const LOG_MAGIC: &[u8; 8] = b"LHREDO\x00\x02";
const GUARD_MAGIC: &[u8; 8] = b"LHPREP\x00\x01";
const RECORD_OF_SET_MAGIC: &[u8; 8] = b"LHRSET\x00\x01";
const RECORD_MAGIC: &[u8; 4] = b"LHRD";
pub(super) const LOG_HEADER_BYTES: usize = 40;
pub(super) const RECORD_HEADER_BYTES: usize = 40;

/// Longest payload of one record: longer writes are several records.
pub(super) const MAX_PAYLOAD_BYTES: usize = 1 << 20;

/// Longest source name kept in a generation.
pub(super) const MAX_SOURCE_BYTES: usize = 1024;

/// Longest encoded generation.
pub(super) const MAX_GENERATION_BYTES: usize = 8 + 8 + 32 + 8 + 2 + MAX_SOURCE_BYTES + SET_BYTES;

const SET_BYTES: usize = 16;

/// Length of a guard, and of the record of a set.
pub(super) const SET_FILE_BYTES: usize = 8 + SET_BYTES + 32;

/// Longest state file.
pub(super) const MAX_STATE_BYTES: usize = 8 + MAX_GENERATION_BYTES + 32;

/// Begins like a state file or a redo log, but of another version.
pub(super) fn is_other_version(bytes: &[u8]) -> bool {
    let known = [STATE_MAGIC, SET_STATE_MAGIC, OLD_LOG_MAGIC, LOG_MAGIC, GUARD_MAGIC, RECORD_OF_SET_MAGIC];
    let ours = known.iter().any(|magic| bytes.starts_with(&magic[..6]));
    bytes.len() >= 8 && ours && !known.iter().any(|magic| bytes.starts_with(*magic))
}

fn encode_generation(generation: &Generation) -> Vec<u8> {
    let source = generation.source.as_bytes();
    let mut bytes = Vec::with_capacity(MAX_GENERATION_BYTES);
    bytes.extend_from_slice(&generation.number.to_le_bytes());
    bytes.extend_from_slice(&generation.size.to_le_bytes());
    bytes.extend_from_slice(generation.root.as_bytes());
    bytes.extend_from_slice(&generation.taken_unix_ms.to_le_bytes());
    bytes.extend_from_slice(&(source.len() as u16).to_le_bytes());
    bytes.extend_from_slice(source);
    bytes.extend_from_slice(generation.set.as_ref().map_or(&[], |set| &set[..]));
    bytes
}

fn parse_generation(bytes: &[u8]) -> Option<Generation> {
    let mut fields = Fields::new(bytes);
    let (number, size) = (fields.u64()?, fields.u64()?);
    let root = ImageRoot::from_bytes(fields.array()?);
    let taken_unix_ms = fields.u64()?;
    let len = usize::from(fields.u16()?);
    let source = std::str::from_utf8(fields.take(len)?).ok()?.to_owned();
    let set = if fields.rest().is_empty() { None } else { Some(fields.array()?) };
    let whole = len <= MAX_SOURCE_BYTES && fields.rest().is_empty();
    whole.then_some(Generation { number, size, root, taken_unix_ms, source, set })
}

pub(super) fn encode_state(generation: &Generation) -> Vec<u8> {
    let mut bytes = state_magic(generation).to_vec();
    bytes.extend_from_slice(&encode_generation(generation));
    let check = blake3::hash(&bytes);
    bytes.extend_from_slice(check.as_bytes());
    bytes
}

pub(super) fn parse_state(bytes: &[u8]) -> Option<Generation> {
    let (body, check) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
    if blake3::hash(body).as_bytes() != check {
        return None;
    }
    let generation = parse_generation(body.get(8..)?)?;
    body.starts_with(state_magic(&generation)).then_some(generation)
}

fn state_magic(generation: &Generation) -> &'static [u8; 8] {
    if generation.set.is_some() { SET_STATE_MAGIC } else { STATE_MAGIC }
}

/// The file beside a commit that counts only once its set is decided.
pub(super) fn encode_guard(set: &SetId) -> Vec<u8> {
    encode_set_file(GUARD_MAGIC, set)
}

pub(super) fn parse_guard(bytes: &[u8]) -> Option<SetId> {
    parse_set_file(GUARD_MAGIC, bytes)
}

/// The file that decides for all disks of a set.
pub(super) fn encode_set_record(set: &SetId) -> Vec<u8> {
    encode_set_file(RECORD_OF_SET_MAGIC, set)
}

pub(super) fn parse_set_record(bytes: &[u8]) -> Option<SetId> {
    parse_set_file(RECORD_OF_SET_MAGIC, bytes)
}

fn encode_set_file(magic: &[u8; 8], set: &SetId) -> Vec<u8> {
    let body = [&magic[..], set].concat();
    [&body[..], blake3::hash(&body).as_bytes()].concat()
}

fn parse_set_file(magic: &[u8; 8], bytes: &[u8]) -> Option<SetId> {
    let (body, check) = bytes.split_at_checked(8 + SET_BYTES)?;
    let set = body.strip_prefix(magic)?.try_into().ok()?;
    (blake3::hash(body).as_bytes() == check).then_some(set)
}

/// The head of a redo log: it turns generation `base` of an image of `size` bytes into the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogHeader {
    pub(super) size: u64,
    pub(super) base: u64,
}

impl LogHeader {
    pub(super) fn encode(&self) -> [u8; LOG_HEADER_BYTES] {
        let mut bytes = [0; LOG_HEADER_BYTES];
        bytes[..8].copy_from_slice(LOG_MAGIC);
        bytes[8..16].copy_from_slice(&self.size.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.base.to_le_bytes());
        let check = check8(&[&bytes[..32]]);
        bytes[32..].copy_from_slice(&check);
        bytes
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<LogHeader> {
        let mut fields = Fields::new(bytes.get(..LOG_HEADER_BYTES)?);
        let magic = fields.take(8)?;
        if magic != LOG_MAGIC && magic != OLD_LOG_MAGIC {
            return None;
        }
        let header = LogHeader { size: fields.u64()?, base: fields.u64()? };
        (check8(&[&bytes[..32]]) == bytes[32..LOG_HEADER_BYTES]).then_some(header)
    }
}

const KIND_DATA: u8 = 1;
const KIND_ZERO: u8 = 2;
const KIND_COMMIT: u8 = 3;

fn encode_record(kind: u8, offset: u64, len: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(RECORD_HEADER_BYTES + payload.len());
    bytes.extend_from_slice(RECORD_MAGIC);
    bytes.extend_from_slice(&[kind, 0, 0, 0]);
    bytes.extend_from_slice(&offset.to_le_bytes());
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    let check = check8(&[&bytes, payload]);
    bytes.extend_from_slice(&check);
    bytes.extend_from_slice(payload);
    bytes
}

/// `data` is at most [`MAX_PAYLOAD_BYTES`] long.
pub(super) fn encode_data(offset: u64, data: &[u8]) -> Vec<u8> {
    encode_record(KIND_DATA, offset, data.len() as u64, data)
}

pub(super) fn encode_zero(offset: u64, len: u64) -> Vec<u8> {
    encode_record(KIND_ZERO, offset, len, &[])
}

/// `records`: how many come before.
pub(super) fn encode_commit(generation: &Generation, records: u64) -> Vec<u8> {
    encode_record(KIND_COMMIT, records, 0, &encode_generation(generation))
}

/// A redo log with its commit record.
#[derive(Debug)]
pub(super) struct Committed {
    pub(super) header: LogHeader,
    pub(super) generation: Generation,
    pub(super) extents: Extents,
}

/// Reads a redo log from its beginning. `None`: there is no commit record that only whole records lead to, so what
/// is in it never happened.
pub(super) fn read_log(log: &mut dyn Read) -> io::Result<Option<Committed>> {
    let mut head = [0; LOG_HEADER_BYTES];
    if !fill(log, &mut head)? {
        return Ok(None);
    }
    let Some(header) = LogHeader::parse(&head) else { return Ok(None) };
    let mut extents = Extents::default();
    let mut records = 0_u64;
    let mut at = LOG_HEADER_BYTES as u64;
    let mut payload = Vec::new();
    loop {
        let mut head = [0; RECORD_HEADER_BYTES];
        if !fill(log, &mut head)? {
            return Ok(None);
        }
        let Some(record) = RecordHeader::parse(&head) else { return Ok(None) };
        payload.resize(record.payload_len, 0);
        if !fill(log, &mut payload)? || check8(&[&head[..32], &payload]) != head[32..] {
            return Ok(None);
        }
        if record.kind == KIND_COMMIT {
            let generation = record.commit(&payload, &header, records);
            return Ok(generation.map(|generation| Committed { header, generation, extents }));
        }
        let payload_at = at + RECORD_HEADER_BYTES as u64;
        let Some((range, source)) = record.change(&header, payload_at) else { return Ok(None) };
        extents.insert(range, source);
        at = payload_at + record.payload_len as u64;
        records += 1;
    }
}

struct RecordHeader {
    kind: u8,
    offset: u64,
    len: u64,
    payload_len: usize,
}

impl RecordHeader {
    /// Only lengths that may be allocated; the checksum is not looked at, since it covers the payload too.
    fn parse(bytes: &[u8; RECORD_HEADER_BYTES]) -> Option<RecordHeader> {
        let mut fields = Fields::new(bytes);
        if fields.take(4)? != RECORD_MAGIC {
            return None;
        }
        let kind = fields.u8()?;
        fields.take(3)?;
        let (offset, len) = (fields.u64()?, fields.u64()?);
        let payload_len = fields.u32()? as usize;
        (payload_len <= MAX_PAYLOAD_BYTES).then_some(RecordHeader { kind, offset, len, payload_len })
    }

    fn commit(&self, payload: &[u8], header: &LogHeader, records_before: u64) -> Option<Generation> {
        let generation = parse_generation(payload)?;
        let follows = generation.size == header.size && generation.number > header.base;
        (follows && self.offset == records_before && self.len == 0).then_some(generation)
    }

    fn change(&self, header: &LogHeader, payload_at: u64) -> Option<(Range<u64>, Source)> {
        let range = self.offset..self.offset.checked_add(self.len)?;
        if range.is_empty() || range.end > header.size {
            return None;
        }
        match self.kind {
            KIND_DATA if self.payload_len as u64 == self.len => Some((range, Source::Log(payload_at))),
            KIND_ZERO if self.payload_len == 0 => Some((range, Source::Zero)),
            _ => None,
        }
    }
}

/// `false` at the end of the input.
fn fill(log: &mut dyn Read, buffer: &mut [u8]) -> io::Result<bool> {
    match log.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}
