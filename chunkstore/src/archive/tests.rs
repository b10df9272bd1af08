use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::{self, Read};
use std::ops::ControlFlow;

use proptest::prelude::*;
use tempfile::TempDir;

use super::{ExportError, ImportError, ImportReport, encode_end, encode_header, export, import, parse_names};
use crate::parse::check8;
use crate::store::record::{Record, encode_chunk, encode_group};
use crate::testing::{noise, scratch, text};
use crate::{ChunkId, Codec, Encoded, ImageRoot, Manifest, ManifestExtent, Store, StoreError};

const GO_ON: ControlFlow<()> = ControlFlow::Continue(());

fn empty() -> (TempDir, Store) {
    let dir = scratch();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

fn manifest(chunks: &[&[u8]]) -> Manifest {
    let data = |chunk: &&[u8]| ManifestExtent::Data { len: chunk.len() as u32, id: ChunkId::of(chunk) };
    of([ManifestExtent::Hole { len: 65536 }].into_iter().chain(chunks.iter().map(data)))
}

fn of(extents: impl IntoIterator<Item = ManifestExtent>) -> Manifest {
    Manifest::of(ImageRoot::from_bytes([7; 32]), extents).unwrap()
}

fn publish(store: &Store, name: &str, chunks: &[&[u8]]) {
    for chunk in chunks {
        store.put(&ChunkId::of(chunk), chunk).unwrap();
    }
    store.publish(name, &manifest(chunks)).unwrap();
}

fn exported(store: &Store, names: &[&str]) -> Vec<u8> {
    let mut archive = Vec::new();
    let report = export(store, names, &mut archive, &|_| GO_ON).unwrap();
    assert_eq!(report.bytes, archive.len() as u64);
    archive
}

fn read(store: &Store, mut archive: &[u8]) -> Result<ImportReport, ImportError> {
    import(store, &mut archive, false, &|_| GO_ON)
}

/// Two images that share a chunk, one of which compresses; one chunk twice in an image.
fn sample() -> Vec<u8> {
    let (_dir, store) = empty();
    let (a, b, c) = (noise(1, 300), text(2, 900), noise(3, 100));
    publish(&store, "one", &[&a, &b, &a]);
    publish(&store, "two", &[&b, &c]);
    exported(&store, &["two", "one", "two"])
}

/// A header, images from parts as they come, and the right end mark.
fn archive_of(names: &[&str], parts: &[&[u8]], images: u64, chunks: u64) -> Vec<u8> {
    let mut archive = encode_header(&BTreeSet::from_iter(names.iter().copied())).unwrap();
    parts.iter().for_each(|part| archive.extend_from_slice(part));
    let end = encode_end(images, chunks, archive.len() as u64);
    archive.extend_from_slice(&end);
    let check = blake3::hash(&archive);
    archive.extend_from_slice(check.as_bytes());
    archive
}

fn manifest_part(manifest: &Manifest) -> Vec<u8> {
    let bytes = manifest.encode();
    let len = (bytes.len() as u64).to_le_bytes();
    [&len[..], &check8(&[&len]), &bytes].concat()
}

#[test]
fn images_travel_with_each_chunk_once() {
    let archive = sample();
    let (_dir, store) = empty();
    let report = read(&store, &archive).unwrap();
    let expected = ImportReport {
        names: vec!["one".to_owned(), "two".to_owned()],
        chunks: 3,
        chunks_new: 3,
        bytes: archive.len() as u64,
    };
    assert_eq!(report, expected);
    let (a, b, c) = (noise(1, 300), text(2, 900), noise(3, 100));
    assert_eq!(store.manifest("one").unwrap(), manifest(&[&a, &b, &a]));
    assert_eq!(store.manifest("two").unwrap(), manifest(&[&b, &c]));
    assert!([a, b, c].iter().all(|chunk| store.get(&ChunkId::of(chunk)).unwrap() == chunk));
    assert_eq!(exported(&store, &["one", "two"]), archive);
}

#[test]
fn the_bytes_are_those_of_the_document() {
    let (_dir, store) = empty();
    let chunk = noise(1, 300);
    publish(&store, "a", &[&chunk]);
    let archive = exported(&store, &["a"]);
    // Header.
    assert_eq!(archive[..14], *b"LHARCH\x00\x02\x02\x00\x00\x00\x01a");
    assert_eq!(archive[14..22], check8(&[&archive[..14]]));
    // Image: its manifest, then its chunk in a record as in a pack.
    let bytes = manifest(&[&chunk]).encode();
    assert_eq!(archive[22..30], (bytes.len() as u64).to_le_bytes());
    assert_eq!(archive[30..38], check8(&[&archive[22..30]]));
    let record_at = 38 + bytes.len();
    assert_eq!(archive[38..record_at], bytes);
    let record = Record::parse(&archive[record_at..]).unwrap();
    assert!(record.is_intact() && record.chunks().eq([(ChunkId::of(&chunk), 300)]));
    assert_eq!((record.head.codec, record.payload), (Codec::Raw, &chunk[..]));
    // End mark.
    let end = &archive[record_at + 48 + 36 + 300..];
    assert_eq!(end.len(), 64);
    assert_eq!(end[..8], *b"LHARCEND");
    let counts = [1_u64, 1, (archive.len() - 64) as u64].map(u64::to_le_bytes).concat();
    assert_eq!(end[8..32], counts);
    assert_eq!(end[32..], *blake3::hash(&archive[..archive.len() - 32]).as_bytes());
}

#[test]
fn what_is_here_is_passed_over_and_what_follows_the_end_is_left() {
    let archive = sample();
    let (_dir, store) = empty();
    store.put(&ChunkId::of(&text(2, 900)), &text(2, 900)).unwrap();
    let twice = [&archive[..], &archive[..]].concat();
    let mut reader = &twice[..];
    assert_eq!(import(&store, &mut reader, false, &|_| GO_ON).unwrap().chunks_new, 2);
    assert_eq!(reader.len(), archive.len());
    assert_eq!(import(&store, &mut reader, true, &|_| GO_ON).unwrap().chunks_new, 0);
    assert_eq!(store.stats().unwrap().chunks, 3);
}

#[test]
fn an_image_is_replaced_only_when_asked() {
    let archive = sample();
    let (_dir, store) = empty();
    let other = noise(9, 50);
    publish(&store, "two", &[&other]);
    let before = store.stats().unwrap();
    let error = read(&store, &archive).unwrap_err();
    assert!(matches!(&error, ImportError::Store(StoreError::Exists { name }) if name == "two"), "{error}");
    assert_eq!(store.stats().unwrap(), before);
    assert_eq!(store.manifest("two").unwrap(), manifest(&[&other]));

    import(&store, &mut &archive[..], true, &|_| GO_ON).unwrap();
    assert_eq!(store.manifest("two").unwrap(), manifest(&[&text(2, 900), &noise(3, 100)]));
}

#[test]
fn a_name_that_comes_up_during_the_import_is_not_replaced() {
    let archive = sample();
    let (_dir, store) = empty();
    let other = noise(9, 50);
    let watch = |done| {
        if done == archive.len() as u64 {
            publish(&store, "two", &[&other]);
        }
        GO_ON
    };
    let error = import(&store, &mut &archive[..], false, &watch).unwrap_err();
    assert!(matches!(error, ImportError::Store(StoreError::Exists { .. })), "{error}");
    assert_eq!(store.names().unwrap(), ["two"]);
    assert_eq!(store.manifest("two").unwrap(), manifest(&[&other]));
}

/// An archive that is not whole publishes nothing, and says what is the matter with it.
#[test]
fn cut_anywhere_it_is_refused() {
    let archive = sample();
    let (_dir, store) = empty();
    for len in 0..archive.len() {
        let error = read(&store, &archive[..len]).unwrap_err();
        assert!(
            matches!(error, ImportError::CutShort { offset, .. } if offset <= len as u64),
            "{len}: {error}"
        );
    }
    assert_eq!(store.names().unwrap(), [""; 0]);
}

#[test]
fn a_bit_flipped_anywhere_is_noticed() {
    let archive = sample();
    for fresh in [false, true] {
        let (_dir, store) = empty();
        for bit in (0..archive.len() * 8).filter(|bit| !fresh || bit % 97 == 0) {
            let mut bad = archive.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let error = if fresh { read(&empty().1, &bad) } else { read(&store, &bad) }.unwrap_err();
            match error {
                ImportError::NoArchive => assert!(bit < 56),
                ImportError::OtherVersion { version } => assert!(bit / 8 == 7 && version > 2 || version == 0),
                // Of a length: it reaches beyond the end.
                ImportError::CutShort { offset: 0, .. } => assert!((64..96).contains(&bit)),
                ImportError::Damaged { offset, .. } => assert!(offset <= bit as u64 / 8),
                error => panic!("bit {bit}: {error}"),
            }
        }
        assert_eq!(store.names().unwrap(), [""; 0]);
    }
}

#[test]
fn a_forged_archive_is_refused_where_it_is_wrong() {
    let (_dir, store) = empty();
    let (chunk, other) = (noise(1, 300), noise(2, 300));
    let (id, image) = (ChunkId::of(&chunk), manifest_part(&manifest(&[&chunk])));
    let group = |chunks: &[(ChunkId, u32)], codec, bytes: &[u8]| {
        let plain_len = chunks.iter().map(|(_, len)| len).sum();
        encode_group(chunks.iter().copied(), &Encoded { codec, plain_len, bytes: bytes.to_vec().into() })
    };
    let record = group(&[(id, 300)], Codec::Raw, &chunk);
    let at = archive_of(&["a"], &[], 0, 0).len() as u64 - 64;
    let chunk_at = at + image.len() as u64;
    let end_at = chunk_at + record.len() as u64;
    let huge = |len: u64| [len.to_le_bytes(), check8(&[&len.to_le_bytes()])].concat();
    let short = manifest_part(&of([ManifestExtent::Data { len: 299, id }]));
    let cases: &[(u64, &str, Vec<u8>)] = &[
        (at, "longer than there can be", archive_of(&["a"], &[&huge(u64::MAX)], 1, 0)),
        (at, "a manifest: cut short", archive_of(&["a"], &[&huge(0)], 1, 0)),
        (chunk_at, "the head", archive_of(&["a"], &[&image], 1, 0)),
        // Right in all its checksums, and not what its name says.
        (
            chunk_at,
            "the content",
            archive_of(&["a"], &[&image, &group(&[(id, 300)], Codec::Raw, &other)], 1, 1),
        ),
        (
            chunk_at,
            "the content",
            archive_of(&["a"], &[&image, &group(&[(id, 300)], Codec::Zstd, b"x")], 1, 1),
        ),
        (
            chunk_at,
            "other chunks",
            archive_of(&["a"], &[&image, &group(&[(ChunkId::of(&other), 300)], Codec::Raw, &other)], 1, 1),
        ),
        (at + short.len() as u64, "other chunks", archive_of(&["a"], &[&short, &record], 1, 1)),
        // A record of version 1, more chunks than are wanted.
        (
            chunk_at,
            "the head",
            archive_of(&["a"], &[&image, &encode_chunk(&id, Codec::Raw, 300, &chunk)], 1, 1),
        ),
        (
            chunk_at,
            "other chunks",
            archive_of(&["a"], &[&image, &group(&[(id, 300), (id, 300)], Codec::Raw, &[7; 600])], 1, 1),
        ),
        // A chunk twice, one that no image has, counts of something else.
        (end_at, "the end mark", archive_of(&["a"], &[&image, &record, &record], 1, 2)),
        (end_at, "the end mark", archive_of(&["a"], &[&image, &record], 1, 2)),
        (end_at, "the end mark", archive_of(&["a"], &[&image, &record], 2, 1)),
        (0, "contradicts itself", archive_of(&["../a"], &[&image, &record], 1, 1)),
    ];
    for (offset, reason, archive) in cases {
        let error = read(&store, archive).unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(error, ImportError::Damaged { offset: found, .. } if found == *offset),
            "{reason}: {text}"
        );
        assert!(text.contains(reason) && text.contains("again"), "{reason}: {text}");
    }
    assert!(!store.contains(&ChunkId::of(&other)));
    assert_eq!(store.names().unwrap(), [""; 0]);
    read(&store, &archive_of(&["a"], &[&image, &record], 1, 1)).unwrap();
}

#[test]
fn a_length_that_nothing_follows_is_not_allocated() {
    /// Asks never for more at once than may be allocated ahead.
    struct Steps<'a>(&'a [u8]);
    impl Read for Steps<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            assert!(buf.len() as u64 <= super::STEP_BYTES);
            self.0.read(buf)
        }
    }
    let (_dir, store) = empty();
    let len = (16_u64 << 30).to_le_bytes();
    let header = encode_header(&BTreeSet::from(["a"])).unwrap();
    let archive = [&header[..], &len, &check8(&[&len]), &[0; 5000]].concat();
    let error = import(&store, &mut Steps(&archive), false, &|_| GO_ON).unwrap_err();
    assert!(matches!(error, ImportError::CutShort { part: "a manifest", .. }), "{error}");
    assert_eq!(
        error.to_string(),
        "the archive ends within a manifest that begins at byte 22: it was cut short, copy it again"
    );
}

#[test]
fn names_are_in_order_and_fit_for_a_reference() {
    assert_eq!(parse_names(b"\x01a\x02ab").unwrap(), ["a", "ab"]);
    for bad in [&b""[..], b"\x01b\x01a", b"\x01a\x01a", b"\x00", b"\x02a", b"\x01/", b"\x02.a", b"\x01\xff"] {
        assert_eq!(parse_names(bad), None, "{bad:?}");
    }
}

#[test]
fn another_version_is_told_from_something_else() {
    let (_dir, store) = empty();
    let mut newer = sample();
    newer[7] = 3;
    let error = read(&store, &newer).unwrap_err();
    assert!(matches!(error, ImportError::OtherVersion { version: 3 }), "{error}");
    assert!(matches!(read(&store, &text(1, 100)), Err(ImportError::NoArchive)));
}

#[test]
fn both_ways_can_be_stopped_at_any_step() {
    let archive = sample();
    let (_dir, store) = empty();
    let (steps, last) = (Cell::new(0), Cell::new(0));
    let count = |done| {
        assert!(done > last.replace(done));
        steps.set(steps.get() + 1);
        GO_ON
    };
    import(&empty().1, &mut &archive[..], false, &count).unwrap();
    assert_eq!(last.get(), archive.len() as u64);
    for stop_at in 0..steps.get() {
        let left = Cell::new(stop_at);
        let watch = |_| if left.replace(left.get() - 1) == 0 { ControlFlow::Break(()) } else { GO_ON };
        let error = import(&store, &mut &archive[..], false, &watch).unwrap_err();
        assert!(matches!(error, ImportError::Stopped { .. }), "{error}");
        assert_eq!(store.names().unwrap(), [""; 0]);
    }
    read(&store, &archive).unwrap();
    let error = export(&store, &["one"], &mut io::sink(), &|_| ControlFlow::Break(())).unwrap_err();
    assert!(matches!(error, ExportError::Stopped { offset: 24 }), "{error}");
}

#[test]
fn an_export_that_cannot_be_says_why() {
    let (dir, store) = empty();
    let chunk = noise(1, 300);
    publish(&store, "a", &[&chunk]);
    let mut archive = Vec::new();
    let mut fails = |names: &[&str]| export(&store, names, &mut archive, &|_| GO_ON).unwrap_err();
    assert!(matches!(fails(&[]), ExportError::BadCount { images: 0 }));
    let error = fails(&["a", "b"]);
    assert!(matches!(&error, ExportError::Store(StoreError::UnknownName { name }) if name == "b"), "{error}");
    assert!(archive.is_empty());

    let mut room = [0; 100];
    let error = export(&store, &["a"], &mut &mut room[..], &|_| GO_ON).unwrap_err();
    assert!(matches!(error, ExportError::Write { offset: 38, .. }), "{error}");

    // A manifest's word on a length is not the chunk's.
    let lying = of([ManifestExtent::Data { len: 299, id: ChunkId::of(&chunk) }]);
    std::fs::write(dir.path().join("refs/lying"), lying.encode()).unwrap();
    let error = export(&store, &["lying"], &mut io::sink(), &|_| GO_ON).unwrap_err();
    assert!(matches!(error, ExportError::Store(StoreError::OtherLength { .. })), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever images share, they arrive as they were, wherever some of it is already.
    #[test]
    fn what_arrives_is_what_was_sent(
        images in prop::collection::btree_map("[a-c]{1,2}", prop::collection::vec(0..12_u64, 0..8), 1..5),
        here in prop::collection::btree_set(0..12_u64, 0..6),
    ) {
        let chunks: Vec<_> = (0..12).map(|seed| if seed % 3 == 0 { text(seed, 700) } else { noise(seed, 90) }).collect();
        let (_from_dir, from) = empty();
        for (name, image) in &images {
            publish(&from, name, &image.iter().map(|chunk| &chunks[*chunk as usize][..]).collect::<Vec<_>>());
        }
        let names: Vec<_> = images.keys().map(String::as_str).collect();
        let (_to_dir, to) = empty();
        for chunk in here.iter().map(|chunk| &chunks[*chunk as usize]) {
            to.put(&ChunkId::of(chunk), chunk).unwrap();
        }
        let report = read(&to, &exported(&from, &names)).unwrap();
        let sent: BTreeSet<_> = images.values().flatten().copied().collect();
        prop_assert_eq!(report.chunks, sent.len() as u64);
        prop_assert_eq!(report.chunks_new, sent.difference(&here).count() as u64);
        for name in names {
            let manifest = to.manifest(name).unwrap();
            prop_assert_eq!(&manifest, &from.manifest(name).unwrap());
            prop_assert!(manifest.chunks().all(|id| to.get(&id).unwrap() == from.get(&id).unwrap()));
        }
    }

    /// Bytes of an archive changed, cut out or put in: an error and nothing published, or what was sent.
    #[test]
    fn what_is_mangled_is_never_published(
        at in any::<prop::sample::Index>(),
        removed in 0..200_usize,
        put_in in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let archive = sample();
        let at = at.index(archive.len());
        let mut bad = archive.clone();
        bad.splice(at..(at + removed).min(archive.len()), put_in);
        let (_dir, store) = empty();
        match read(&store, &bad) {
            Ok(_) => prop_assert!(bad.starts_with(&archive)),
            Err(_) => prop_assert_eq!(store.names().unwrap(), [""; 0]),
        }
    }
}
