//! Chunks that are compressed together: how they lie, leave, are collected and decay.

use std::fs;

use bytes::Bytes;

use super::tests::{GO_ON, gc, manifest_of, overwrite, pack_path, put_all, verify};
use super::{GcOptions, Store, StoreError};
use crate::testing::{noise, scratch, text};
use crate::{Chunk, ChunkId, Encoded, GROUP_BYTES, Group, MAX_GROUP_BYTES};

fn group_of(chunks: &[Vec<u8>]) -> Group {
    Group::of(chunks.iter().map(|chunk| Chunk::of(chunk.clone().into())).collect())
}

fn wanted(chunks: &[Vec<u8>]) -> Vec<(ChunkId, u32)> {
    chunks.iter().map(|chunk| (ChunkId::of(chunk), chunk.len() as u32)).collect()
}

/// The plain bytes of the groups that the store makes of these chunks, and how many they are.
fn groups(store: &Store, chunks: &[Vec<u8>]) -> Vec<(usize, Vec<u8>)> {
    let (wanted, mut at) = (wanted(chunks), 0);
    let mut groups = Vec::new();
    while at < wanted.len() {
        let (count, encoded) = store.group(&wanted[at..], 1).unwrap();
        groups.push((count, encoded.decode(MAX_GROUP_BYTES).unwrap().to_vec()));
        at += count;
    }
    assert!(groups.iter().flat_map(|(_, plain)| plain).eq(chunks.iter().flatten()));
    groups
}

#[test]
fn a_group_lies_and_leaves_as_it_came() {
    let chunks: Vec<_> = (0..6).map(|seed| text(seed, 3000)).collect();
    let together = Encoded::encode(chunks.concat().into(), 9);
    let group = Group::decode(together.clone(), &[3000; 6]).unwrap();
    let dir = scratch();
    for sealed in [false, true] {
        let store = Store::open_with(dir.path(), if sealed { 1 } else { 1 << 20 }).unwrap();
        assert_eq!(store.put_group(&group, 1).unwrap(), if sealed { 0 } else { 6 });
        assert_eq!(store.group(&wanted(&chunks), 1).unwrap(), (6, together.clone()));
        assert!(chunks.iter().all(|chunk| store.get(&ChunkId::of(chunk)).unwrap() == chunk));
        let stats = store.stats().unwrap();
        assert_eq!((stats.chunks, stats.plain_bytes), (6, 18_000));
        assert_eq!(stats.stored_bytes, together.bytes.len() as u64);
        // What is wanted otherwise is put together anew.
        let counts =
            |chunks: &[Vec<u8>]| groups(&store, chunks).iter().map(|(count, _)| *count).collect::<Vec<_>>();
        assert_eq!(counts(&chunks[..5]), [5]);
        assert_eq!(counts(&[&chunks[3..], &chunks[..]].concat()), [3, 6]);
        assert_eq!(counts(&[&chunks[..], &chunks[..1]].concat()), [6, 1]);
        store.sync().unwrap();
    }
}

#[test]
fn of_a_group_only_what_is_new_is_stored_in_groups_of_their_size() {
    let chunks: Vec<_> = (0..80).map(|seed| noise(seed, 60_000)).collect();
    let dir = scratch();
    let store = Store::open(dir.path()).unwrap();
    put_all(&store, &chunks[10..12]);
    let twice = [&chunks[..], &chunks[..5]].concat();
    assert_eq!(store.put_group(&group_of(&twice), 1).unwrap(), 78);
    assert_eq!(store.stats().unwrap().plain_bytes, 80 * 60_000);
    assert!(chunks.iter().all(|chunk| store.get(&ChunkId::of(chunk)).unwrap() == chunk));
    let at_once = GROUP_BYTES.div_ceil(60_000);
    let new = [&chunks[..10], &chunks[12..]].concat();
    let counts: Vec<_> = groups(&store, &new).iter().map(|(count, _)| *count).collect();
    assert_eq!(counts, [at_once, 78 - at_once], "what fits into one group stays together");
    // Nearly two groups, and more than one takes.
    let more: Vec<_> = (100..).take(2 * at_once - 3).map(|seed| noise(seed, 60_000)).collect();
    assert_eq!(store.put_group(&group_of(&more), 1).unwrap(), more.len());
    let counts: Vec<_> = groups(&store, &more).iter().map(|(count, _)| *count).collect();
    assert_eq!(counts, [at_once, at_once - 3]);
    assert_eq!(store.put_group(&Group::of(Vec::new()), 1).unwrap(), 0);
    // More chunks than a record takes.
    let small: Vec<_> = (0..5000).map(|seed| noise(seed, 40)).collect();
    assert_eq!(store.put_group(&group_of(&small), 1).unwrap(), 5000);
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert!(chunks.iter().chain(&small).all(|chunk| store.get(&ChunkId::of(chunk)).unwrap() == chunk));
    let empty = Group::of(vec![Chunk::of(Bytes::new())]);
    assert!(matches!(store.put_group(&empty, 1), Err(StoreError::BadLength { len: 0 })));
}

#[test]
fn a_collection_takes_groups_apart_and_puts_what_is_left_together() {
    let chunks: Vec<_> = (0..90).map(|seed| text(seed, 2000)).collect();
    let dir = scratch();
    let store = Store::open_with(dir.path(), 3000).unwrap();
    for group in chunks.chunks(10) {
        store.put_group(&group_of(group), 1).unwrap();
    }
    // All of every third group, one chunk in four of the others.
    let kept: Vec<_> =
        (0..90).filter(|at| at / 10 % 3 == 0 || at % 4 == 0).map(|at| chunks[at].clone()).collect();
    store.publish("kept", &manifest_of(&kept)).unwrap();
    let report = store.gc(&GcOptions { waste_percent: 1 }, &|_| GO_ON).unwrap();
    assert_eq!(report.chunks_removed as usize, 90 - kept.len());
    let check = |store: &Store| {
        assert_eq!(store.stats().unwrap().chunks as usize, kept.len());
        assert!(kept.iter().all(|chunk| store.get(&ChunkId::of(chunk)).unwrap() == chunk));
        assert!(verify(store).is_clean());
        // Whole groups stayed what they were.
        for whole in chunks.chunks(10).step_by(3) {
            assert_eq!(groups(store, whole).len(), 1);
        }
    };
    check(&store);
    drop(store);
    check(&Store::open_with(dir.path(), 3000).unwrap());
}

#[test]
fn damage_in_a_group_costs_what_it_touches() {
    let chunks: Vec<_> = (0..6).map(|seed| noise(seed, 3000)).collect();
    let dir = scratch();
    let store = Store::open(dir.path()).unwrap();
    store.put_group(&group_of(&chunks), 1).unwrap();
    store.publish("base", &manifest_of(&chunks)).unwrap();
    // Stored as they are, since they do not compress: the fourth one.
    overwrite(&pack_path(dir.path(), 1), 16 + 48 + 6 * 36 + 3 * 3000 + 77, b"rot");
    assert_eq!(groups(&store, &chunks[..3]).len(), 1);
    let bad = ChunkId::of(&chunks[3]);
    assert!(matches!(store.group(&wanted(&chunks), 1), Err(StoreError::Damaged { id, .. }) if id == bad));
    assert_eq!(store.missing().unwrap(), [bad]);
    // A collection saves the others out of it.
    store.remove("base").unwrap();
    store.publish("rest", &manifest_of(&[&chunks[..3], &chunks[4..]].concat())).unwrap();
    gc(&store);
    assert_eq!(store.stats().unwrap().chunks, 5);
    assert!(verify(&store).is_clean());
    // One that compresses is lost as a whole, and what was decoded of it before does not hide that.
    let texts: Vec<_> = (0..6).map(|seed| text(seed, 3000)).collect();
    store.put_group(&group_of(&texts), 1).unwrap();
    store.publish("texts", &manifest_of(&texts)).unwrap();
    assert!(texts.iter().all(|chunk| store.get(&ChunkId::of(chunk)).unwrap() == chunk));
    let pack = pack_path(dir.path(), 2);
    let len = fs::metadata(&pack).unwrap().len();
    overwrite(&pack, len - 900, &[0x55; 900]);
    let damaged = verify(&store).damaged.len();
    assert!(damaged > 0);
    assert_eq!(store.missing().unwrap().len(), damaged);
    assert_eq!(store.put_group(&group_of(&texts), 1).unwrap(), damaged);
    assert!(verify(&store).is_clean());
}
