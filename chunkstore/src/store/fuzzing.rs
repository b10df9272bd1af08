//! A pack's bytes as a fuzz target sees them: what is read of them, by index and by scan, must be true of them.
//! Compiled for the fuzz targets only.

use super::record::{self, Entry, PACK_HEADER_BYTES, PackIndex};
use crate::encoded::{compress, decode};
use crate::{ChunkId, Codec, MAX_CHUNK_BYTES};

/// Reads `bytes` as a pack, by its index if it has one and by the recovery scan, as opening a store does.
pub fn pack(bytes: &[u8]) {
    let Some(number) = record::parse_pack_header(bytes) else { return };
    assert_eq!(record::parse_pack_header(&record::pack_header(number)), Some(number));
    if let Some(index) = PackIndex::parse(bytes) {
        indexed(bytes, index.entries().collect());
    }
    scanned(bytes);
}

/// Each entry lies before the index, and the index written from the entries reads the same.
fn indexed(bytes: &[u8], entries: Vec<Entry>) {
    let tail = record::encode_index(&mut [], 0).len() + entries.len() * 52;
    let index_at = bytes.len() - tail;
    for entry in &entries {
        let end = entry.offset as usize + entry.record_bytes();
        assert!(entry.offset >= PACK_HEADER_BYTES && end <= index_at, "{entry:?} is not before {index_at}");
        assert!((1..=MAX_CHUNK_BYTES).contains(&(entry.plain_len as usize)), "{entry:?}");
    }
    let mut sorted = entries.clone();
    let again = [&bytes[..index_at], &record::encode_index(&mut sorted, index_at as u64)].concat();
    assert_eq!(sorted, entries, "the index was not in order");
    // Bytes that are ignored may differ, and with them the checksum.
    let ignored = |entry: &[u8]| entry[49..] == [0; 3];
    let canonical = bytes[index_at..bytes.len() - 64].chunks_exact(52).all(ignored);
    assert!(again.len() == bytes.len() && (again == bytes || !canonical), "another index");
    assert_eq!(PackIndex::parse(&again).map(|index| index.entries().collect()), Some(entries));
}

/// The scan finds what a search at every byte finds, no more and no less, and finds it again when the tail is cut.
fn scanned(bytes: &[u8]) {
    let scan = record::scan(bytes);
    let mut at = PACK_HEADER_BYTES as usize;
    let mut found = Vec::new();
    let mut end = at;
    while at < bytes.len() {
        let Some((entry, payload)) = record::parse_record(&bytes[at..], at as u64) else {
            at += 1;
            continue;
        };
        let again = record::encode_record(&entry.id, entry.codec, entry.plain_len, payload);
        let canonical = bytes[at + 5..at + 8] == [0; 3];
        assert!(bytes[at..].starts_with(&again) || !canonical, "another record at {at}");
        assert_eq!(record::parse_record(&again, entry.offset), Some((entry, payload)));
        if let Ok(plain) = decode(entry.codec, entry.plain_len, payload, MAX_CHUNK_BYTES) {
            assert_eq!(plain.len(), entry.plain_len as usize);
        }
        at += entry.record_bytes();
        end = at;
        found.push(entry);
    }
    assert_eq!((&scan.entries, scan.end as usize), (&found, end));
    let cut = record::scan(&bytes[..end]);
    assert_eq!((cut.entries, cut.end), (scan.entries, scan.end));
}

/// Packs to begin with: empty, with records, torn, damaged in the middle, sealed.
pub fn packs() -> Vec<Vec<u8>> {
    let text = b"a chunk that compresses, a chunk that compresses, a chunk that compresses".as_slice();
    let plain = |data: &[u8]| record::encode_record(&ChunkId::of(data), Codec::Raw, data.len() as u32, data);
    let packed = compress(text, 1).expect("it compresses");
    let records = [
        plain(b"x"),
        record::encode_record(&ChunkId::of(text), Codec::Zstd, text.len() as u32, &packed),
        plain(&[7; 300]),
        plain(b"x"),
    ];
    let empty = record::pack_header(3).to_vec();
    let full = [&empty[..], &records.concat()].concat();
    let torn = full[..full.len() - 1].to_vec();
    let damaged = [&full[..40], b"LHCR", &full[20..]].concat();
    let sealed = |pack: &[u8]| {
        let mut entries = record::scan(pack).entries;
        [pack, &record::encode_index(&mut entries, pack.len() as u64)].concat()
    };
    vec![sealed(&empty), sealed(&full), empty, full, torn, damaged]
}
