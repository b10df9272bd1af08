use std::fs::{self, OpenOptions};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use tempfile::TempDir;

use super::{
    GcOptions, GcProgress, GcReport, OpenError, Scope, Store, StoreError, VerifyReport, pack_index, record,
};
use crate::testing::{SmallDisk, noise, scratch, snapshot, text};
use crate::{ChunkId, Codec, Encoded, ImageRoot, MAX_CHUNK_BYTES, Manifest, ManifestExtent};

pub(super) fn manifest_of(chunks: &[Vec<u8>]) -> Manifest {
    let data = |chunk: &Vec<u8>| ManifestExtent::Data { len: chunk.len() as u32, id: ChunkId::of(chunk) };
    Manifest::of(ImageRoot::from_bytes([1; 32]), chunks.iter().map(data)).unwrap()
}

pub(super) const GO_ON: ControlFlow<()> = ControlFlow::Continue(());

pub(super) fn verify(store: &Store) -> VerifyReport {
    store.verify(&Scope::Whole, &|_| GO_ON).unwrap()
}

pub(super) fn gc(store: &Store) -> GcReport {
    store.gc(&GcOptions::default(), &|_| GO_ON).unwrap()
}

pub(super) fn put_all(store: &Store, chunks: &[Vec<u8>]) {
    for chunk in chunks {
        store.put(&ChunkId::of(chunk), chunk).unwrap();
    }
}

pub(super) fn pack_path(dir: &Path, number: u32) -> PathBuf {
    dir.join("packs").join(format!("{number:04}.pack"))
}

pub(super) fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

/// A store with some chunks of either kind, closed.
fn closed_store(chunks: &[Vec<u8>]) -> TempDir {
    let dir = scratch();
    let store = Store::open(dir.path()).unwrap();
    put_all(&store, chunks);
    store.sync().unwrap();
    dir
}

fn some_chunks(count: u64, len: usize) -> Vec<Vec<u8>> {
    (0..count).map(|seed| if seed % 2 == 0 { noise(seed, len) } else { text(seed, len) }).collect()
}

#[test]
fn chunks_come_back_after_reopening() {
    let chunks = some_chunks(20, 5000);
    let dir = closed_store(&chunks);
    let store = Store::open(dir.path()).unwrap();
    for chunk in &chunks {
        let id = ChunkId::of(chunk);
        assert!(store.contains(&id));
        assert_eq!(store.get(&id).unwrap(), chunk);
        assert!(!store.put(&id, chunk).unwrap());
    }
    let stats = store.stats().unwrap();
    assert_eq!((stats.chunks, stats.plain_bytes, stats.packs), (20, 100_000, 1));
    assert!(stats.stored_bytes < 60_000);
    let absent = ChunkId::of(b"absent");
    assert!(matches!(store.get(&absent), Err(StoreError::Missing { id }) if id == absent));
}

#[test]
fn full_packs_are_sealed_and_read_through_their_index() {
    let chunks = some_chunks(60, 5000);
    let dir = scratch();
    let store = Store::open_with(dir.path(), 20_000).unwrap();
    put_all(&store, &chunks);
    assert!(chunks.iter().all(|chunk| store.get(&ChunkId::of(chunk)).unwrap() == chunk));
    store.sync().unwrap();
    assert!(chunks.iter().all(|chunk| store.get(&ChunkId::of(chunk)).unwrap() == chunk));
    let packs = store.stats().unwrap().packs as u32;
    assert!(packs > 5);
    drop(store);
    for number in 1..packs {
        assert!(pack_index::of_bytes(&fs::read(pack_path(dir.path(), number)).unwrap()).is_some());
    }
    let store = Store::open_with(dir.path(), 20_000).unwrap();
    assert!(chunks.iter().all(|chunk| store.get(&ChunkId::of(chunk)).unwrap() == chunk));
    assert!(verify(&store).is_clean());
}

#[test]
fn a_second_opening_is_refused_with_the_holder() {
    let dir = scratch();
    let store = Store::open(dir.path()).unwrap();
    let Err(error @ OpenError::InUse { .. }) = Store::open(dir.path()) else { panic!("opened twice") };
    let text = error.to_string();
    assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
    assert!(text.contains(dir.path().to_str().unwrap()), "{text}");
    drop(store);
    Store::open(dir.path()).unwrap();
}

#[test]
fn a_record_torn_anywhere_is_cut_and_the_rest_stays() {
    let chunks = some_chunks(4, 300);
    let dir = closed_store(&chunks[..3]);
    let pack = pack_path(dir.path(), 1);
    let good = fs::read(&pack).unwrap();
    let store = Store::open(dir.path()).unwrap();
    put_all(&store, &chunks);
    drop(store);
    let whole = fs::read(&pack).unwrap();
    for len in good.len()..whole.len() {
        for filler in [0, 0xff] {
            // A crash leaves a shorter file, or one with other bytes where the record should be.
            let mut torn = whole[..len].to_vec();
            if filler == 0 {
                torn.resize(whole.len() + 100, 0);
            }
            fs::write(&pack, &torn).unwrap();
            let store = Store::open(dir.path()).unwrap();
            assert_eq!(store.stats().unwrap().chunks, 3, "torn at {len}");
            assert_eq!(fs::metadata(&pack).unwrap().len(), good.len() as u64);
            assert!(store.put(&ChunkId::of(&chunks[3]), &chunks[3]).unwrap());
            assert_eq!(store.get(&ChunkId::of(&chunks[3])).unwrap(), chunks[3]);
            drop(store);
            assert_eq!(fs::read(&pack).unwrap(), whole);
        }
    }
}

#[test]
fn every_length_of_a_pack_opens() {
    let chunks = some_chunks(3, 200);
    let dir = scratch();
    let store = Store::open_with(dir.path(), 300).unwrap();
    put_all(&store, &chunks);
    store.sync().unwrap();
    drop(store);
    let pack = pack_path(dir.path(), 1);
    let whole = fs::read(&pack).unwrap();
    assert!(pack_index::of_bytes(&whole).is_some());
    for len in 0..whole.len() {
        fs::write(&pack, &whole[..len]).unwrap();
        let store = Store::open(dir.path()).unwrap();
        put_all(&store, &chunks);
        assert!(chunks.iter().all(|chunk| store.get(&ChunkId::of(chunk)).unwrap() == chunk));
    }
}

#[test]
fn a_flipped_bit_costs_one_chunk_at_most_and_can_be_repaired() {
    let chunks = some_chunks(4, 150);
    let dir = scratch();
    for sealed in [false, true] {
        let store = Store::open(dir.path()).unwrap();
        put_all(&store, &chunks);
        drop(store);
        if sealed {
            Store::open_with(dir.path(), 1).unwrap().sync().unwrap();
        }
        let pack = pack_path(dir.path(), 1);
        let whole = fs::read(&pack).unwrap();
        for at in record::PACK_HEADER_BYTES as usize..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 1 << (at % 8);
            fs::write(&pack, &bad).unwrap();
            let store = Store::open(dir.path()).unwrap();
            let lost = chunks.iter().filter(|chunk| store.get(&ChunkId::of(chunk)).is_err()).count();
            assert!(lost <= 1, "{lost} chunks lost for a bit at {at}");
            put_all(&store, &chunks);
            assert!(chunks.iter().all(|chunk| store.get(&ChunkId::of(chunk)).unwrap() == chunk));
            drop(store);
            // Reopened, the later copy holds.
            let store = Store::open(dir.path()).unwrap();
            assert!(chunks.iter().all(|chunk| store.get(&ChunkId::of(chunk)).unwrap() == chunk));
            drop(store);
            let _ = fs::remove_file(pack_path(dir.path(), 2));
        }
        fs::remove_dir_all(dir.path()).unwrap();
    }
}

#[test]
fn a_pack_of_another_version_is_named() {
    let dir = closed_store(&some_chunks(1, 100));
    overwrite(&pack_path(dir.path(), 1), 0, b"LHPACK\x00\x03");
    let Err(error) = Store::open(dir.path()) else { panic!("opened") };
    let text = error.to_string();
    assert!(text.contains("0001.pack") && text.contains("another version"), "{text}");
}

#[test]
fn a_file_that_is_no_pack_is_left_alone_and_named() {
    let chunks = some_chunks(2, 100);
    let dir = closed_store(&chunks[..1]);
    overwrite(&pack_path(dir.path(), 1), 0, b"something else");
    let garbage = fs::read(pack_path(dir.path(), 1)).unwrap();
    for _ in 0..2 {
        let store = Store::open(dir.path()).unwrap();
        let [warning] = store.warnings() else { panic!("{:?}", store.warnings()) };
        assert!(warning.contains("0001.pack") && warning.contains("not a pack"), "{warning}");
        assert!(!store.contains(&ChunkId::of(&chunks[0])));
        put_all(&store, &chunks[1..]);
        store.sync().unwrap();
        gc(&store);
        assert_eq!(fs::read(pack_path(dir.path(), 1)).unwrap(), garbage);
    }
}

#[test]
fn hostile_packs_neither_panic_nor_fill_memory() {
    let id = ChunkId::of(b"x");
    let header = record::pack_header(1);
    let mut cases = Vec::new();
    // Groups whose tables lie, with good checksums.
    let group = |lens: &[u32], codec, plain_len, bytes: &'static [u8]| {
        let bytes = Bytes::from_static(bytes);
        record::encode_group(lens.iter().map(|len| (id, *len)), &Encoded { codec, plain_len, bytes })
    };
    for lie in [
        group(&[], Codec::Zstd, 10, b"x"),
        group(&[0], Codec::Raw, 0, b""),
        group(&[0, 1], Codec::Raw, 1, b"x"),
        group(&[1, 1], Codec::Raw, 1, b"x"),
        group(&[1], Codec::Raw, 2, b"xx"),
        group(&[u32::MAX, 2], Codec::Raw, 1, b"x"),
        group(&[MAX_CHUNK_BYTES as u32 + 1], Codec::Zstd, MAX_CHUNK_BYTES as u32 + 1, b"x"),
        group(&[MAX_CHUNK_BYTES as u32; 17], Codec::Zstd, 17 * MAX_CHUNK_BYTES as u32, b"x"),
        group(&[1; record::MAX_GROUP_CHUNKS + 1], Codec::Zstd, record::MAX_GROUP_CHUNKS as u32 + 1, b"x"),
        group(&[1], Codec::Zstd, 1, b"x"),
    ] {
        cases.push([&header[..], &lie].concat());
    }
    let mut huge = group(&[1], Codec::Raw, 1, b"x");
    for (at, value) in [(8, u32::MAX), (12, u32::MAX), (16, u32::MAX)] {
        huge[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let check = crate::parse::check8(&[&huge[..40]]);
        huge[40..48].copy_from_slice(&check);
        cases.push([&header[..], &huge].concat());
    }
    // A record and an index that claim huge lengths, with good checksums.
    let mut lie = record::encode_chunk(&id, Codec::Zstd, u32::MAX, b"payload");
    cases.push([&header[..], &lie].concat());
    lie[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    cases.push([&header[..], &lie].concat());
    for (count, offset) in [(u64::MAX, 16), (1 << 40, 16), (1, u64::MAX), (u64::MAX / 52, 16), (0, 17)] {
        let mut footer = b"LHINDX\x00\x01".to_vec();
        footer.extend_from_slice(&u64::to_le_bytes(count));
        footer.extend_from_slice(&u64::to_le_bytes(offset));
        let check = blake3::hash(&footer);
        footer.extend_from_slice(check.as_bytes());
        footer.extend_from_slice(b"LHSEALED");
        cases.push([&header[..], &footer].concat());
    }
    for offset in [0, 15, 16, 1 << 40, u64::MAX] {
        let entry = record::Entry { id, offset, start: 0, plain_len: 1, stored_len: 1 };
        cases.push([&header[..], &record::encode_index(&mut [entry], 16)].concat());
    }
    for case in cases {
        let dir = scratch();
        fs::create_dir_all(dir.path().join("packs")).unwrap();
        fs::write(pack_path(dir.path(), 1), case).unwrap();
        assert_eq!(Store::open(dir.path()).unwrap().stats().unwrap().chunks, 0);
    }
}

#[test]
fn bytes_called_zero_are_ignored() {
    let chunks = some_chunks(2, 100);
    let dir = closed_store(&chunks);
    overwrite(&pack_path(dir.path(), 1), 12, &[1, 2, 3, 4]);
    let store = Store::open(dir.path()).unwrap();
    for chunk in &chunks {
        assert_eq!(store.get(&ChunkId::of(chunk)).unwrap(), chunk);
    }
}

#[test]
fn an_index_out_of_order_is_no_index() {
    let entry =
        |offset| record::Entry { id: ChunkId::of(b"x"), offset, start: 0, plain_len: 1, stored_len: 1 };
    let pack = vec![0; 400];
    let sealed = |entries: &mut [record::Entry]| {
        [&pack[..], &record::encode_index(entries, pack.len() as u64)].concat()
    };
    let read = pack_index::of_bytes;
    let mut good = sealed(&mut [entry(16), entry(81)]);
    assert_eq!(read(&good), Some(vec![entry(16), entry(81)]));
    assert_eq!(read(&sealed(&mut [entry(16), entry(16)])), None);
    let (first, second) = (400..452, 452..504);
    let swapped = [&good[second], &good[first]].concat();
    good[400..504].copy_from_slice(&swapped);
    let footer = good.len() - 64;
    let check = blake3::hash(&good[400..footer + 24]);
    good[footer + 24..footer + 56].copy_from_slice(check.as_bytes());
    assert_eq!(read(&good), None);
}

#[test]
fn only_what_the_name_says_is_taken() {
    let dir = scratch();
    let store = Store::open(dir.path()).unwrap();
    let (id, other) = (ChunkId::of(b"this"), ChunkId::of(b"that"));
    assert!(matches!(store.put(&other, b"this"), Err(StoreError::WrongContent { .. })));
    let encoded = Encoded::encode(Bytes::from_static(b"this"), 1);
    assert!(matches!(store.put_encoded(&other, encoded.clone()), Err(StoreError::WrongContent { .. })));
    assert!(store.put_encoded(&id, encoded).unwrap());
    let huge = Encoded { codec: Codec::Raw, plain_len: u32::MAX, bytes: Bytes::new() };
    assert!(matches!(store.put_encoded(&other, huge), Err(StoreError::Undecodable { .. })));
    let bad = Encoded { codec: Codec::Zstd, plain_len: 10, bytes: Bytes::from_static(b"no frame") };
    assert!(matches!(store.put_encoded(&other, bad), Err(StoreError::Undecodable { .. })));
    for len in [0, MAX_CHUNK_BYTES + 1] {
        let data = vec![1; len];
        assert!(matches!(store.put(&ChunkId::of(&data), &data), Err(StoreError::BadLength { .. })));
    }
    // A frame larger than its content is legal on the wire.
    let noise = noise(5, 1000);
    let frame = zstd::bulk::compress(&noise, 1).unwrap();
    assert!(frame.len() > noise.len());
    let loose = Encoded { codec: Codec::Zstd, plain_len: 1000, bytes: frame.into() };
    assert!(store.put_encoded(&ChunkId::of(&noise), loose).unwrap());
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.get(&ChunkId::of(&noise)).unwrap(), noise);
}

/// In tests a manifest of so many chunks is not held in memory.
#[test]
fn a_manifest_outlives_its_reference() {
    let chunks = some_chunks(50, 100);
    let dir = closed_store(&chunks);
    let store = Store::open(dir.path()).unwrap();
    store.publish("base", &manifest_of(&chunks)).unwrap();
    let first = store.manifest("base").unwrap();
    store.publish("base", &manifest_of(&chunks[..40])).unwrap();
    let second = store.manifest("base").unwrap();
    store.remove("base").unwrap();
    assert_eq!((first.clone(), second), (manifest_of(&chunks), manifest_of(&chunks[..40])));
    store.publish("again", &first).unwrap();
    assert_eq!(store.manifest("again").unwrap(), first);
}

#[test]
fn references_are_published_in_one_step() {
    let chunks = some_chunks(3, 1000);
    let dir = closed_store(&chunks[..2]);
    let store = Store::open(dir.path()).unwrap();
    let incomplete = manifest_of(&chunks);
    assert!(matches!(store.publish("base", &incomplete), Err(StoreError::Missing { .. })));
    let wrong = ManifestExtent::Data { len: 999, id: ChunkId::of(&chunks[0]) };
    let wrong = Manifest::of(incomplete.root(), manifest_of(&chunks[..2]).extents().chain([wrong])).unwrap();
    let error = store.publish("base", &wrong).unwrap_err();
    assert!(matches!(error, StoreError::OtherLength { len: 1000, claimed: 999, .. }), "{error}");
    store.publish("base", &manifest_of(&chunks[..1])).unwrap();
    store.publish("base", &manifest_of(&chunks[..2])).unwrap();
    fs::write(dir.path().join("refs/.other.tmp"), b"half").unwrap();
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert!(!dir.path().join("refs/.other.tmp").exists());
    assert_eq!(store.names().unwrap(), ["base"]);
    assert_eq!(store.manifest("base").unwrap(), manifest_of(&chunks[..2]));
    for name in ["", ".", "..", "a/b", ".hidden", "a b", "\0", &"x".repeat(129)] {
        assert!(
            matches!(store.publish(name, &manifest_of(&[])), Err(StoreError::BadName { .. })),
            "{name:?}"
        );
        assert!(matches!(store.manifest(name), Err(StoreError::BadName { .. })));
    }
    assert!(matches!(store.manifest("none"), Err(StoreError::UnknownName { .. })));
    assert!(matches!(store.remove("none"), Err(StoreError::UnknownName { .. })));
    store.remove("base").unwrap();
    assert!(store.names().unwrap().is_empty());
}

#[test]
fn verification_finds_what_is_bad() {
    let chunks = some_chunks(3, 1000);
    let dir = closed_store(&chunks);
    let store = Store::open(dir.path()).unwrap();
    store.publish("base", &manifest_of(&chunks)).unwrap();
    assert!(verify(&store).is_clean());
    overwrite(&pack_path(dir.path(), 1), 16 + 48 + 36 + 500, b"rot");
    fs::write(dir.path().join("refs/bad"), b"no manifest").unwrap();
    let report = verify(&store);
    assert_eq!(report.damaged, [ChunkId::of(&chunks[0])]);
    let broken: Vec<_> = report.broken.iter().map(|broken| (broken.name.as_str(), broken.missing)).collect();
    assert_eq!(broken, [("bad", 0), ("base", 1)]);
    // A collection that cannot know what is needed does nothing.
    assert!(matches!(store.gc(&GcOptions::default(), &|_| GO_ON), Err(StoreError::CannotCollect { .. })));
}

#[test]
fn collection_gives_room_back_and_keeps_what_is_named() {
    let chunks = some_chunks(40, 5000);
    let dir = scratch();
    let store = Store::open_with(dir.path(), 20_000).unwrap();
    put_all(&store, &chunks);
    let kept: Vec<_> = chunks.iter().step_by(5).cloned().collect();
    store.publish("kept", &manifest_of(&kept)).unwrap();
    let report = gc(&store);
    assert!(
        report.bytes_freed > 60_000 && report.chunks_removed == 32 && report.packs_rewritten > 0,
        "{report:?}"
    );
    let check = |store: &Store| {
        assert!(kept.iter().all(|chunk| store.get(&ChunkId::of(chunk)).unwrap() == chunk));
        assert_eq!(store.stats().unwrap().chunks, 8);
        assert!(verify(store).is_clean());
    };
    // Or it would not be believed when it is opened next.
    let known = store.index.packs().unwrap();
    assert!(known.keys().all(|number| pack_path(dir.path(), *number).exists()), "{known:?}");
    check(&store);
    drop(store);
    let store = Store::open_with(dir.path(), 20_000).unwrap();
    check(&store);
    let report = gc(&store);
    assert_eq!(report.chunks_removed, 0);
    store.remove("kept").unwrap();
    gc(&store);
    assert_eq!(store.stats().unwrap(), super::Stats::default());
    assert_eq!(fs::read_dir(dir.path().join("packs")).unwrap().count(), 0);
    put_all(&store, &chunks);
    assert_eq!(store.stats().unwrap().chunks, 40);
}

#[test]
fn a_collection_waits_for_older_pins_and_for_no_others() {
    let chunks = some_chunks(3, 1000);
    let dir = closed_store(&chunks);
    let store = Store::open(dir.path()).unwrap();
    let old = Mutex::new(Some(store.pin()));
    let waited = AtomicBool::new(false);
    let report = store.gc(&GcOptions::default(), &|progress| {
        if let GcProgress::Waiting(jobs) = progress {
            assert_eq!(jobs, 1);
            waited.store(true, Ordering::SeqCst);
            // A job that begins now is not waited for, and what it finds is kept.
            let pin = store.pin();
            assert!(store.contains(&ChunkId::of(&chunks[1])));
            assert!(store.put(&ChunkId::of(b"new"), b"new").unwrap());
            std::mem::forget(pin);
            drop(old.lock().unwrap().take());
        }
        GO_ON
    });
    assert!(waited.load(Ordering::SeqCst));
    assert_eq!(report.unwrap().chunks_removed, 2);
    let there =
        [&chunks[0], &chunks[1], &chunks[2], &b"new".to_vec()].map(|c| store.contains(&ChunkId::of(c)));
    assert_eq!(there, [false, true, false, true]);
}

#[test]
fn a_reference_that_goes_during_a_collection_keeps_its_chunks_until_the_next() {
    let chunks = some_chunks(4, 1000);
    let dir = closed_store(&chunks);
    let store = Store::open(dir.path()).unwrap();
    store.publish("gone", &manifest_of(&chunks[..2])).unwrap();
    store.publish("kept", &manifest_of(&chunks[2..3])).unwrap();
    let report = store.gc(&GcOptions { waste_percent: 1 }, &|progress| {
        if progress == GcProgress::Marking(0, 2) {
            // Somebody has read the manifest and is about to read the chunks.
            store.remove("gone").unwrap();
        }
        GO_ON
    });
    assert_eq!(report.unwrap().chunks_removed, 1);
    assert!(chunks[..3].iter().all(|chunk| store.get(&ChunkId::of(chunk)).unwrap() == chunk));
    assert_eq!(gc(&store).chunks_removed, 2);
}

#[test]
fn a_collection_does_what_its_plan_says_and_can_be_stopped_anywhere() {
    let chunks = some_chunks(60, 5000);
    let dir = scratch();
    let store = Store::open_with(dir.path(), 20_000).unwrap();
    put_all(&store, &chunks);
    let kept: Vec<_> = chunks.iter().step_by(4).cloned().collect();
    store.publish("kept", &manifest_of(&kept)).unwrap();
    let plan = store.gc_plan(&GcOptions::default(), &|_| GO_ON).unwrap();
    assert_eq!((plan.chunks, plan.chunks_dead), (60, 45));
    let before = store.stats().unwrap();
    assert_eq!(before.chunks, 60, "a plan changes nothing");
    let mut steps = 0;
    for stop_at in 0.. {
        let step = AtomicU32::new(0);
        let outcome = store.gc(&GcOptions::default(), &|_| match step.fetch_add(1, Ordering::SeqCst) {
            now if now == stop_at => ControlFlow::Break(()),
            _ => GO_ON,
        });
        steps = stop_at;
        match outcome {
            Err(StoreError::Stopped) => {}
            outcome => {
                outcome.unwrap();
                break;
            }
        }
        assert!(kept.iter().all(|chunk| store.get(&ChunkId::of(chunk)).unwrap() == chunk));
    }
    assert!(steps > 2, "{steps}");
    assert_eq!(store.stats().unwrap().chunks, 15);
    assert!(verify(&store).is_clean());
    assert!(store.gc_plan(&GcOptions::default(), &|_| GO_ON).unwrap().packs.is_empty());
    // Two at once is one too many.
    let second = store.gc(&GcOptions::default(), &|_| {
        assert!(matches!(store.gc(&GcOptions::default(), &|_| GO_ON), Err(StoreError::Collecting)));
        GO_ON
    });
    second.unwrap();
}

#[test]
fn nothing_is_lost_when_images_come_while_collections_run() {
    let dir = scratch();
    let store = Store::open_with(dir.path(), 30_000).unwrap();
    let done = AtomicBool::new(false);
    let collections = AtomicU32::new(0);
    thread::scope(|scope| {
        let ingests: Vec<_> = (0..2_u64)
            .map(|writer| {
                let (store, collections) = (&store, &collections);
                scope.spawn(move || {
                    for round in 0..=40_u64 {
                        let before = collections.load(Ordering::SeqCst);
                        for _ in 0..5000 {
                            if round % 8 == 7 && collections.load(Ordering::SeqCst) == before {
                                thread::sleep(Duration::from_millis(2));
                            }
                        }
                        // Half of it is what an image just removed was made of: found, or just collected.
                        let first = (round * 7 + writer * 3) % 50;
                        let chunks: Vec<_> = (first..first + 12).map(|seed| noise(seed, 2000)).collect();
                        let name = format!("image{writer}");
                        let pin = store.pin();
                        for chunk in &chunks {
                            store.put(&ChunkId::of(chunk), chunk).unwrap();
                        }
                        store.publish(&name, &manifest_of(&chunks)).unwrap();
                        drop(pin);
                        for chunk in &chunks {
                            assert!(store.get(&ChunkId::of(chunk)).unwrap() == chunk, "round {round}");
                        }
                        if round % 3 == 0 {
                            store.remove(&name).unwrap();
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                store.gc(&GcOptions { waste_percent: 1 }, &|_| GO_ON).unwrap();
                collections.fetch_add(1, Ordering::SeqCst);
            }
        });
        let outcomes: Vec<_> = ingests.into_iter().map(|ingest| ingest.join()).collect();
        done.store(true, Ordering::SeqCst);
        outcomes.into_iter().for_each(|outcome| outcome.unwrap());
    });
    assert!(collections.load(Ordering::SeqCst) > 3);
    assert!(verify(&store).is_clean());
    drop(store);
    let store = Store::open_with(dir.path(), 30_000).unwrap();
    assert!(verify(&store).is_clean());
    store.gc(&GcOptions { waste_percent: 1 }, &|_| GO_ON).unwrap();
    // What the last rounds made: noise 30 to 41, and 33 to 44.
    assert_eq!(store.stats().unwrap().chunks, 15);
}

#[test]
fn an_index_that_is_lost_or_lies_is_made_again_from_the_packs() {
    let chunks = some_chunks(60, 5000);
    let dir = scratch();
    let index = dir.path().join("index.redb");
    let store = Store::open_with(dir.path(), 20_000).unwrap();
    put_all(&store, &chunks);
    store.publish("all", &manifest_of(&chunks)).unwrap();
    store.remove("all").unwrap();
    store.publish("some", &manifest_of(&chunks[..30])).unwrap();
    gc(&store);
    let whole = store.stats().unwrap();
    drop(store);
    let good = fs::read(&index).unwrap();
    let old = {
        // An index of before, which knows packs that are gone.
        let store = Store::open_with(dir.path(), 20_000).unwrap();
        put_all(&store, &chunks);
        store.publish("all", &manifest_of(&chunks)).unwrap();
        gc(&store);
        store.remove("all").unwrap();
        drop(store);
        fs::read(&index).unwrap()
    };
    let store = Store::open_with(dir.path(), 20_000).unwrap();
    gc(&store);
    drop(store);
    for lie in [None, Some(&b"nonsense"[..]), Some(&good), Some(&old), Some(&good[..good.len() / 2])] {
        match lie {
            None => fs::remove_file(&index).unwrap(),
            Some(bytes) => fs::write(&index, bytes).unwrap(),
        }
        let store = Store::open_with(dir.path(), 20_000).unwrap();
        assert!(chunks[..30].iter().all(|chunk| store.get(&ChunkId::of(chunk)).unwrap() == chunk));
        assert!(verify(&store).is_clean());
        gc(&store);
        let stats = store.stats().unwrap();
        assert_eq!((stats.chunks, stats.plain_bytes), (whole.chunks, whole.plain_bytes));
    }
}

#[test]
fn verification_can_be_partial_slow_and_stopped() {
    let chunks = some_chunks(40, 1000);
    let dir = closed_store(&chunks);
    let store = Store::open(dir.path()).unwrap();
    store.publish("few", &manifest_of(&chunks[..3])).unwrap();
    let read = |scope: Scope| store.verify(&scope, &|_| GO_ON).unwrap().chunks;
    assert_eq!(read(Scope::Reference("few".to_owned())), 3);
    let samples: Vec<_> = (0..20).map(|seed| read(Scope::Sample { one_in: 4, seed })).collect();
    let all: u64 = samples.iter().sum();
    assert!((120..280).contains(&all) && samples.iter().any(|sample| *sample != samples[0]), "{samples:?}");
    assert_eq!(read(Scope::Sample { one_in: 0, seed: 1 }), 40);
    assert!(matches!(
        store.verify(&Scope::Reference("none".to_owned()), &|_| GO_ON),
        Err(StoreError::UnknownName { .. })
    ));
    let seen = AtomicU32::new(0);
    let stopped = store.verify(&Scope::Whole, &|_| {
        seen.fetch_add(1, Ordering::SeqCst);
        ControlFlow::Break(())
    });
    assert!(matches!(stopped, Err(StoreError::Stopped)) && seen.load(Ordering::SeqCst) == 1);
}

#[test]
fn what_is_broken_is_remembered_and_healed_by_putting_it_again() {
    let chunks = some_chunks(4, 1000);
    let dir = closed_store(&chunks);
    let store = Store::open(dir.path()).unwrap();
    store.publish("base", &manifest_of(&chunks[..2])).unwrap();
    overwrite(&pack_path(dir.path(), 1), 16 + 48 + 36 + 500, b"rot");
    assert_eq!(verify(&store).damaged, [ChunkId::of(&chunks[0])]);
    let bad = ChunkId::of(&chunks[0]);
    assert_eq!((store.broken().unwrap(), store.missing().unwrap()), (vec![bad], vec![bad]));
    assert!(!store.contains(&bad));
    assert_eq!(store.stats().unwrap().broken, 1);
    // A collection keeps what is sound, and remembers what is needed.
    gc(&store);
    assert_eq!(store.missing().unwrap(), [bad]);
    assert!(store.put(&bad, &chunks[0]).unwrap());
    assert_eq!((store.broken().unwrap(), store.missing().unwrap()), (vec![], vec![]));
    assert!(verify(&store).is_clean());
    drop(store);
    assert!(verify(&Store::open(dir.path()).unwrap()).is_clean());
}

#[test]
fn reads_go_on_beside_puts_syncs_and_collections() {
    let chunks = some_chunks(200, 3000);
    let dir = scratch();
    let store = Store::open_with(dir.path(), 50_000).unwrap();
    put_all(&store, &chunks[..20]);
    store.publish("kept", &manifest_of(&chunks[..20])).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for start in 0..2 {
            let (store, chunks) = (&store, &chunks);
            scope.spawn(move || {
                let pin = store.pin();
                // Both threads put every chunk; only one of them may store it.
                put_all(store, &chunks[start * 5..]);
                drop(pin);
            });
        }
        let reader = scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                for chunk in &chunks[..20] {
                    assert_eq!(store.get(&ChunkId::of(chunk)).unwrap(), chunk);
                }
            }
        });
        for _ in 0..5 {
            store.sync().unwrap();
            gc(&store);
        }
        done.store(true, Ordering::SeqCst);
        reader.join().unwrap();
    });
    assert!(verify(&store).is_clean());
}

#[test]
fn a_full_disk_is_a_clear_error_and_costs_nothing() {
    let Some(disk) = SmallDisk::mount(1 << 20) else {
        eprintln!("skipped: not allowed to mount a tmpfs");
        return;
    };
    let chunks: Vec<_> = (0..100).map(|seed| noise(seed, 30_000)).collect();
    let dir = disk.path().join("store");
    let store = Store::open_with(&dir, 200_000).unwrap();
    let mut stored = 0;
    let error = loop {
        match store.put(&ChunkId::of(&chunks[stored]), &chunks[stored]) {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
    };
    assert!(error.is_full() && error.to_string().contains("free some space"), "{error}");
    assert!(stored > 25);
    store.sync().unwrap();
    let huge = manifest_of(&vec![chunks[0].clone(); 20_000]);
    assert!(store.publish("huge", &huge).unwrap_err().is_full());
    assert_eq!(store.names().unwrap(), Vec::<String>::new());
    assert_eq!(fs::read_dir(dir.join("refs")).unwrap().count(), 0);

    let away = scratch();
    snapshot(&dir, away.path());
    for store in [store, Store::open(away.path()).unwrap()] {
        assert!(chunks[..stored].iter().all(|chunk| store.get(&ChunkId::of(chunk)).unwrap() == chunk));
        assert!(verify(&store).is_clean());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// A store is a set of chunks, whatever is done to it in between.
    #[test]
    fn a_store_is_a_set(steps in prop::collection::vec((0..6_u8, 0..30_u64), 1..60)) {
        let dir = scratch();
        let mut store = Store::open_with(dir.path(), 8000).unwrap();
        let mut there = std::collections::BTreeSet::new();
        for (step, seed) in steps {
            let chunk = if seed % 2 == 0 { noise(seed, 700) } else { text(seed, 3000) };
            let id = ChunkId::of(&chunk);
            match step {
                0..=2 => prop_assert_eq!(store.put(&id, &chunk).unwrap(), there.insert(seed)),
                3 => store.sync().unwrap(),
                4 => {
                    drop(store);
                    store = Store::open_with(dir.path(), 8000).unwrap();
                }
                _ => match store.get(&id) {
                    Ok(bytes) => prop_assert!(there.contains(&seed) && bytes == chunk),
                    Err(StoreError::Missing { .. }) => prop_assert!(!there.contains(&seed)),
                    Err(error) => panic!("{error}"),
                },
            }
            prop_assert_eq!(store.stats().unwrap().chunks, there.len() as u64);
        }
    }

    #[test]
    fn garbage_packs_open(garbage in prop::collection::vec(any::<u8>(), 0..300)) {
        let dir = scratch();
        fs::create_dir_all(dir.path().join("packs")).unwrap();
        fs::write(pack_path(dir.path(), 1), [&record::pack_header(1)[..], &garbage].concat()).unwrap();
        prop_assert_eq!(Store::open(dir.path()).unwrap().stats().unwrap().chunks, 0);
    }
}
