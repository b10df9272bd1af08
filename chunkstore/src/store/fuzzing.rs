//! A pack's bytes as a fuzz target sees them: what is read of them, by index and by scan, must be true of them.
//! Compiled for the fuzz targets only.

use super::pack_index;
use super::record::{self, Entry, Holds, PACK_HEADER_BYTES, Record};
use crate::encoded::compress;
use crate::{ChunkId, Codec, Encoded, MAX_CHUNK_BYTES, MAX_GROUP_BYTES};

/// Reads `bytes` as a pack, by its index if it has one and by the recovery scan, as opening a store does.
pub fn pack(bytes: &[u8]) {
    let Some(header) = record::parse_pack_header(bytes) else { return };
    let again = record::parse_pack_header(&record::pack_header(header.number));
    assert_eq!(again.map(|again| (again.number, again.current)), Some((header.number, true)));
    if let Some(entries) = pack_index::of_bytes(bytes) {
        indexed(bytes, entries);
    }
    scanned(bytes);
}

/// Each entry lies before the index, and the index written from the entries reads the same.
fn indexed(bytes: &[u8], entries: Vec<Entry>) {
    let tail = record::encode_index(&mut [], 0).len() + entries.len() * 52;
    let index_at = bytes.len() - tail;
    for entry in &entries {
        assert!(entry.offset >= PACK_HEADER_BYTES && entry.offset < index_at as u64, "{entry:?}");
        assert!((1..=MAX_CHUNK_BYTES).contains(&(entry.plain_len as usize)), "{entry:?}");
        assert!(entry.start as usize + entry.plain_len as usize <= MAX_GROUP_BYTES, "{entry:?}");
        // What it points to may be anything, and is read with care.
        let record = Record::parse(&bytes[entry.offset as usize..]);
        let _ = record.and_then(|record| record.decode());
    }
    let mut sorted = entries.clone();
    let again = [&bytes[..index_at], &record::encode_index(&mut sorted, index_at as u64)].concat();
    assert_eq!(sorted, entries, "the index was not in order");
    let old = bytes[bytes.len() - 57] == 1;
    assert!(again.len() == bytes.len() && (again == bytes || old), "another index");
    assert_eq!(pack_index::of_bytes(&again), Some(entries));
}

/// The scan finds what a search at every byte finds, no more and no less, and finds it again when the tail is cut.
fn scanned(bytes: &[u8]) {
    let scan = record::scan_bytes(bytes);
    let mut at = PACK_HEADER_BYTES as usize;
    let mut found = Vec::new();
    let mut end = at;
    while at < bytes.len() {
        let Some(record) = Record::parse(&bytes[at..]).filter(Record::is_intact) else {
            at += 1;
            continue;
        };
        let entries: Vec<_> = record.entries(at as u64).collect();
        let (plain, stored) = entries.iter().fold((0, 0), |(plain, stored), entry| {
            assert_eq!(entry.start, plain);
            (plain + entry.plain_len, stored + entry.stored_len)
        });
        assert_eq!((plain, stored), (record.head.plain_len, record.head.stored_len));
        let again = match record.head.holds {
            Holds::Chunk(id) => record::encode_chunk(&id, record.head.codec, plain, record.payload),
            Holds::Group { .. } => {
                let chunks: Vec<_> = record.chunks().collect();
                record::encode_group(chunks.into_iter(), &record.encoded())
            }
        };
        let same = Record::parse(&again).expect("what was read can be written");
        assert!(same.is_intact() && same.entries(at as u64).eq(entries.iter().copied()));
        if let Some(plain) = record.decode() {
            assert_eq!(plain.len(), record.head.plain_len as usize);
        }
        at += record.bytes.len();
        end = at;
        found.extend(entries);
    }
    assert_eq!((&scan.entries, scan.end as usize), (&found, end));
    let cut = record::scan_bytes(&bytes[..end]);
    assert_eq!((cut.entries, cut.end), (scan.entries, scan.end));
}

/// Packs to begin with: empty, with records, torn, damaged in the middle, sealed, and of version 1.
pub fn packs() -> Vec<Vec<u8>> {
    let text = b"a chunk that compresses, a chunk that compresses, a chunk that compresses".as_slice();
    let group = |chunks: &[&[u8]], encoded: Encoded| {
        record::encode_group(chunks.iter().map(|chunk| (ChunkId::of(chunk), chunk.len() as u32)), &encoded)
    };
    let together = |chunks: &[&[u8]]| group(chunks, Encoded::encode(chunks.concat().into(), 1));
    let packed = compress(text, 1).expect("it compresses");
    let records = [
        together(&[b"x"]),
        together(&[text, b"between", text]),
        together(&[&[7; 300]]),
        record::encode_chunk(&ChunkId::of(b"x"), Codec::Raw, 1, b"x"),
        record::encode_chunk(&ChunkId::of(text), Codec::Zstd, text.len() as u32, &packed),
        together(&[b"x", b"x"]),
    ];
    let empty = record::pack_header(3).to_vec();
    let full = [&empty[..], &records.concat()].concat();
    let torn = full[..full.len() - 1].to_vec();
    let damaged = [&full[..40], b"LHGR", &full[20..]].concat();
    let sealed = |pack: &[u8]| {
        let mut entries = record::scan_bytes(pack).entries;
        [pack, &record::encode_index(&mut entries, pack.len() as u64)].concat()
    };
    let mut old = sealed(&full);
    let footer = old.len() - 64;
    (old[7], old[footer + 7]) = (1, 1);
    vec![sealed(&empty), sealed(&full), empty, full, torn, damaged, old]
}
