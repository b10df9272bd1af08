//! What a disk, or a person, does to a store: reads that fail, files that are not where they were, strangers among its files.
//! Nothing that cannot be read is taken for gone.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};

use rustix::fs::{CWD, FileType, Mode};
use rustix::io::Errno;

use super::tests::{GO_ON, gc, manifest_of, pack_path, put_all, verify};
use super::{GcOptions, OpenError, Scope, Store, StoreError, record};
use crate::ChunkId;
use crate::disk::hooked::{HookedDisk, Op};
use crate::testing::{noise, scratch};

fn chunks() -> Vec<Vec<u8>> {
    (0..40).map(|seed| noise(seed, 5000)).collect()
}

fn open(disk: &HookedDisk, dir: &Path) -> Result<Store, OpenError> {
    Store::open_on(Arc::new(disk.clone()), dir, 20_000)
}

/// With sealed packs of four chunks, half of which are needed; opened anew, so that nothing of them has been read.
fn half_needed(disk: &HookedDisk, dir: &Path) -> (Store, Vec<Vec<u8>>) {
    let store = open(disk, dir).unwrap();
    put_all(&store, &chunks());
    let kept: Vec<_> = chunks().into_iter().step_by(2).collect();
    store.publish("kept", &manifest_of(&kept)).unwrap();
    store.sync().unwrap();
    drop(store);
    (open(disk, dir).unwrap(), kept)
}

fn is_pack(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "pack")
}

fn packs(dir: &Path) -> usize {
    fs::read_dir(dir.join("packs")).unwrap().count()
}

fn collect_all() -> GcOptions {
    GcOptions { waste_percent: 1 }
}

#[test]
fn what_cannot_be_read_is_neither_broken_nor_collected() {
    let (disk, dir) = (HookedDisk::default(), scratch());
    let (store, kept) = half_needed(&disk, dir.path());
    let before = packs(dir.path());
    for errno in [Errno::MFILE, Errno::NOMEM, Errno::IO, Errno::NOENT, Errno::NFILE, Errno::ACCESS] {
        for failing in [Op::Open, Op::Read] {
            disk.hook(
                move |op, path| if op == failing && is_pack(path) { Err(errno.into()) } else { Ok(()) },
            );
            for scope in [Scope::Whole, Scope::Reference("kept".to_owned())] {
                let report = store.verify(&scope, &|_| GO_ON);
                if errno == Errno::IO {
                    let report = report.unwrap();
                    // The last pack is open.
                    assert!(report.unreadable_packs.len() >= before - 1, "{failing:?}: {report:?}");
                    assert!(report.damaged.is_empty() && !report.is_clean());
                    continue;
                }
                assert!(matches!(report, Err(StoreError::File(_))), "{errno}, {failing:?}: {report:?}");
            }
            assert!(matches!(store.gc(&collect_all(), &|_| GO_ON), Err(StoreError::File(_))));
            assert!(matches!(store.get(&ChunkId::of(&kept[0])), Err(StoreError::File(_))));
            assert_eq!(store.broken().unwrap(), []);
        }
    }
    disk.unhook();
    assert_eq!(packs(dir.path()), before);
    assert!(verify(&store).is_clean());
    store.gc(&collect_all(), &|_| GO_ON).unwrap();
    assert!(packs(dir.path()) < before);
    assert!(kept.iter().all(|chunk| store.get(&ChunkId::of(chunk)).unwrap() == chunk));
}

#[test]
fn a_bad_sector_costs_the_chunks_in_it_and_they_are_healed_by_putting_them_again() {
    let (disk, dir) = (HookedDisk::default(), scratch());
    let (store, kept) = half_needed(&disk, dir.path());
    let pack = pack_path(dir.path(), 2);
    let len = fs::metadata(&pack).unwrap().len();
    // In a chunk, and in the list of chunks at the end.
    for (bad, damaged) in [(5500..6012, 1..=2), (len - 1..len, 0..=0)] {
        disk.set_bad(&pack, bad.clone());
        let report = verify(&store);
        assert!(damaged.contains(&report.damaged.len()), "{bad:?}: {report:?}");
        assert_eq!((report.unreadable, report.chunks), (report.damaged.len() as u64, 40), "{bad:?}");
        assert_eq!(report.unreadable_packs, []);
        assert_eq!(store.broken().unwrap().len(), report.damaged.len());
        for chunk in chunks().iter().filter(|chunk| report.damaged.contains(&ChunkId::of(chunk))) {
            assert!(store.put(&ChunkId::of(chunk), chunk).unwrap());
        }
        assert!(verify(&store).is_clean());
        assert!(kept.iter().all(|chunk| store.get(&ChunkId::of(chunk)).unwrap() == chunk));
    }
}

#[test]
fn a_reference_that_cannot_be_read_is_broken_and_ends_a_collection() {
    let (disk, dir) = (HookedDisk::default(), scratch());
    let (store, _) = half_needed(&disk, dir.path());
    // The file is there and long enough to be mapped; its bytes are not to be had.
    disk.hook(|op, path| match op {
        Op::Read if path.ends_with("refs/kept") => Err(Errno::IO.into()),
        _ => Ok(()),
    });
    let report = verify(&store);
    assert_eq!(report.chunks, 40);
    assert!(matches!(&report.broken[..], [one] if one.name == "kept" && one.error.is_some()), "{report:?}");
    assert_eq!(store.missing().unwrap(), []);
    let before = packs(dir.path());
    assert!(matches!(store.gc(&collect_all(), &|_| GO_ON), Err(StoreError::CannotCollect { .. })));
    assert_eq!(packs(dir.path()), before);
}

/// A map of it would have taken the process down.
#[test]
fn a_pack_that_shrinks_is_an_error() {
    let (disk, dir) = (HookedDisk::default(), scratch());
    let (store, kept) = half_needed(&disk, dir.path());
    assert!(store.get(&ChunkId::of(&kept[0])).unwrap() == kept[0]);
    let pack = fs::OpenOptions::new().write(true).open(pack_path(dir.path(), 1)).unwrap();
    pack.set_len(30).unwrap();
    assert!(matches!(store.get(&ChunkId::of(&kept[1])), Err(StoreError::File(_))));
    assert_eq!(store.broken().unwrap(), []);
    let report = verify(&store);
    assert_eq!((report.damaged.len(), report.unreadable, report.chunks), (4, 4, 40));
    assert!(store.put(&ChunkId::of(&kept[0]), &kept[0]).unwrap());
}

#[test]
fn a_reader_goes_after_what_a_collection_moves_under_it() {
    let (disk, dir) = (HookedDisk::default(), scratch());
    let (store, kept) = half_needed(&disk, dir.path());
    let store = Arc::new(store);
    let collect_before_open = |store: &Arc<Store>| {
        let (store, at): (Weak<Store>, _) = (Arc::downgrade(store), Mutex::new(true));
        disk.hook(move |op, path| {
            if op == Op::Open && is_pack(path) && std::mem::take(&mut *at.lock().unwrap()) {
                let store = store.upgrade().unwrap();
                let report = store.gc(&collect_all(), &|_| GO_ON).unwrap();
                assert!(report.packs_removed > 0);
            }
            Ok(())
        });
    };
    collect_before_open(&store);
    assert!(store.get(&ChunkId::of(&kept[3])).unwrap() == kept[3]);

    store.publish("kept", &manifest_of(&kept[..15])).unwrap();
    collect_before_open(&store);
    let wanted = [(ChunkId::of(&kept[5]), 5000)];
    let (count, group) = store.group(&wanted, 1).unwrap();
    assert_eq!((count, group.plain_len), (1, 5000));
    disk.unhook();
    assert!(verify(&store).is_clean());
}

#[test]
fn one_bad_pack_keeps_no_others_from_being_used() {
    let (disk, dir) = (HookedDisk::default(), scratch());
    drop(half_needed(&disk, dir.path()));
    fs::remove_file(dir.path().join("index.redb")).unwrap();
    let first = pack_path(dir.path(), 1);
    let before = fs::read(&first).unwrap();
    let bad = |errno: Errno| {
        let first = first.clone();
        disk.hook(move |op, path| if op == Op::Read && path == first { Err(errno.into()) } else { Ok(()) });
    };
    // What will be over soon is no reason to do without a pack.
    bad(Errno::NOMEM);
    assert!(matches!(open(&disk, dir.path()), Err(OpenError::File(_))));
    // The first collection removes what is not needed of the others.
    for left in [36, 18] {
        bad(Errno::IO);
        let store = open(&disk, dir.path()).unwrap();
        assert!(
            store.warnings().iter().any(|warning| warning.contains("0001.pack")),
            "{:?}",
            store.warnings()
        );
        let there = chunks().iter().filter(|chunk| store.get(&ChunkId::of(chunk)).is_ok()).count();
        assert_eq!(there, left);
        gc(&store);
        assert_eq!(fs::read(&first).unwrap(), before);
    }
    disk.unhook();
    let store = open(&disk, dir.path()).unwrap();
    assert!(store.warnings().is_empty(), "{:?}", store.warnings());
    assert!(chunks().iter().step_by(2).all(|chunk| store.get(&ChunkId::of(chunk)).unwrap() == chunk));
}

#[test]
fn strangers_among_the_files_are_left_alone() {
    let dir = scratch();
    let store = Store::open(dir.path()).unwrap();
    put_all(&store, &chunks());
    store.publish("kept", &manifest_of(&chunks())).unwrap();
    drop(store);
    for place in ["", "packs", "refs"] {
        let place = dir.path().join(place);
        fs::create_dir(place.join("lost+found")).unwrap();
        fs::create_dir(place.join("0009.pack")).unwrap();
        fs::write(place.join(".hidden"), "x").unwrap();
        rustix::fs::mknodat(CWD, place.join("0007.pack"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .unwrap();
        fs::write(place.join("note (copy).txt"), "x").unwrap();
    }
    fs::write(dir.path().join("packs/note.txt"), "x").unwrap();
    fs::write(dir.path().join("note.txt"), "x").unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert!(store.warnings().is_empty(), "{:?}", store.warnings());
    assert_eq!(store.names().unwrap(), ["kept"]);
    assert!(verify(&store).is_clean());
    gc(&store);
    assert!(chunks().iter().all(|chunk| store.get(&ChunkId::of(chunk)).unwrap() == chunk));
    assert!(dir.path().join("packs/note.txt").exists());
}

#[test]
fn a_damaged_reference_is_said_and_keeps_everything() {
    let (disk, dir) = (HookedDisk::default(), scratch());
    drop(half_needed(&disk, dir.path()));
    let before = packs(dir.path());
    let refs = dir.path().join("refs");
    let good = fs::read(refs.join("kept")).unwrap();
    let other = [&good[..20], &[0; 60], &good[80..]].concat();
    for damage in [&b""[..], b"note", &good[..good.len() - 1], &other, &vec![0; good.len()]] {
        fs::write(refs.join("kept"), damage).unwrap();
        let store = open(&disk, dir.path()).unwrap();
        store.publish("new", &manifest_of(&chunks()[..1])).unwrap();
        let found = store.references().unwrap().into_iter();
        let found: Vec<_> = found.map(|found| (found.name, found.image.is_ok())).collect();
        assert_eq!(found, [("kept".to_owned(), false), ("new".to_owned(), true)]);
        let error = store.gc(&collect_all(), &|_| GO_ON).unwrap_err();
        assert!(error.to_string().contains("\"kept\" cannot be read"), "{error}");
        assert!(matches!(store.gc_plan(&collect_all(), &|_| GO_ON), Err(StoreError::CannotCollect { .. })));
        assert_eq!(packs(dir.path()), before);
        assert!(chunks().iter().all(|chunk| store.get(&ChunkId::of(chunk)).unwrap() == chunk));
    }
    // A link to where nothing is for now.
    fs::remove_file(refs.join("kept")).unwrap();
    symlink("/nonexistent/kept", refs.join("kept")).unwrap();
    let store = open(&disk, dir.path()).unwrap();
    assert!(matches!(store.gc(&collect_all(), &|_| GO_ON), Err(StoreError::CannotCollect { .. })));
    // Put back, or removed, it goes on.
    fs::remove_file(refs.join("kept")).unwrap();
    fs::write(refs.join("kept"), &good).unwrap();
    store.gc(&collect_all(), &|_| GO_ON).unwrap();
    assert!(packs(dir.path()) < before);
    fs::write(refs.join("kept"), b"").unwrap();
    store.remove("kept").unwrap();
    store.gc(&collect_all(), &|_| GO_ON).unwrap();
    assert_eq!(store.stats().unwrap().chunks, 1);
}

#[test]
fn an_index_that_cannot_be_used_is_made_again_and_said() {
    let (disk, dir) = (HookedDisk::default(), scratch());
    drop(half_needed(&disk, dir.path()));
    let index = dir.path().join("index.redb");
    for content in [None, Some(vec![]), Some(noise(1, 100_000)), Some(vec![0; 4096])] {
        match content {
            None => fs::remove_file(&index).unwrap(),
            Some(content) => fs::write(&index, content).unwrap(),
        }
        let store = open(&disk, dir.path()).unwrap();
        assert!(matches!(store.warnings(), [one] if one.contains("index.redb")), "{:?}", store.warnings());
        assert!(chunks().iter().all(|chunk| store.get(&ChunkId::of(chunk)).unwrap() == chunk));
        drop(store);
        assert!(open(&disk, dir.path()).unwrap().warnings().is_empty());
    }
    // Cut off in the middle of being made, it is not believed.
    fs::remove_file(&index).unwrap();
    disk.hook({
        let reads = Mutex::new(0);
        move |op, path| {
            let mut reads = reads.lock().unwrap();
            *reads += u32::from(op == Op::Read && is_pack(path));
            if *reads == 35 { Err(Errno::MFILE.into()) } else { Ok(()) }
        }
    });
    assert!(open(&disk, dir.path()).is_err());
    disk.unhook();
    assert!(!index.exists());
    let store = open(&disk, dir.path()).unwrap();
    assert_eq!(store.stats().unwrap().chunks, 40);
}

#[test]
fn a_scan_finds_what_lies_across_its_windows() {
    let record = |seed| {
        let chunk = crate::Chunk::of(noise(seed, 200_000 + seed as usize * 977 % 50_000).into());
        record::compress_chunks(&[&chunk], chunk.plain(), 1)
    };
    let mut pack = record::pack_header(1).to_vec();
    let mut starts = Vec::new();
    for seed in 0..120 {
        // Between some of them lies what begins like a record and is none, and once more than a window of it.
        match seed {
            60 => pack.extend(b"LHGR".repeat(2_300_000)),
            _ if seed % 7 == 0 => pack.extend(&record(seed)[..100_000]),
            _ => {}
        }
        starts.push(pack.len() as u64);
        pack.extend(record(seed));
    }
    let end = pack.len() as u64;
    pack.extend(b"LHG");
    let scan = record::scan_bytes(&pack);
    assert_eq!(scan.entries.iter().map(|entry| entry.offset).collect::<Vec<_>>(), starts);
    assert_eq!(scan.end, end);
    let failing = |at: u64, buffer: &mut [u8]| match at {
        0..16_000_000 => crate::ReadImage::read_at(&pack, at, buffer),
        _ => Err(Errno::IO.into()),
    };
    assert!(record::scan(pack.len() as u64, failing).is_err());
}
