use std::collections::HashMap;
use std::path::PathBuf;

use proptest::prelude::*;
use rustix::io::Errno;

use super::super::record::Entry;
use super::*;
use crate::disk::sim::SimDisk;

fn dir() -> PathBuf {
    PathBuf::from("/index")
}

fn id(number: u64) -> ChunkId {
    ChunkId::of(&number.to_le_bytes())
}

fn location(pack: u32, offset: u64) -> Location {
    Location { pack, offset, start: 7, plain_len: 1000, stored_len: 100 + pack }
}

fn entry(number: u64, offset: u64) -> Entry {
    Entry { id: id(number), offset, start: 0, plain_len: 10, stored_len: 10 }
}

fn sorted(mut entries: Vec<Entry>) -> Entries<'static> {
    entries.sort_unstable_by_key(|entry| (entry.id, entry.offset));
    Box::new(entries.into_iter().map(Ok))
}

#[test]
fn what_is_written_is_there_after_reopening_and_what_is_not_is_not() {
    let disk = SimDisk::default();
    let (index, new) = Index::open(&disk, &dir()).unwrap();
    assert!(matches!(new, Opened::Replaced(_)));
    (0..100).for_each(|number| index.set(&id(number), location(1, number)).unwrap());
    index.commit(&index.take_pending(), &[(1, PackState::Whole(77)), (2, PackState::Whole(78))]).unwrap();
    index.set(&id(100), location(2, 0)).unwrap();
    index.set_broken(&id(5), location(1, 5)).unwrap();
    assert_eq!(index.sums().chunks, 100);
    drop(index);

    let (index, new) = Index::open(&disk, &dir()).unwrap();
    assert_eq!(new, Opened::Loaded);
    assert_eq!(index.sums(), Sums { chunks: 100, plain_bytes: 100_000, stored_bytes: 10_100 });
    assert_eq!(index.get(&id(5)).unwrap(), Some(location(1, 5)));
    assert_eq!(index.get(&id(100)).unwrap(), None);
    assert_eq!(index.packs().unwrap(), HashMap::from([(1, 77), (2, 78)]));
    index.commit(&index.take_pending(), &[(2, PackState::Gone)]).unwrap();
    assert_eq!(index.packs().unwrap(), HashMap::from([(1, 77)]));
}

#[test]
fn a_broken_chunk_is_absent_and_remembered_until_it_is_put_again() {
    let disk = SimDisk::default();
    let (index, _) = Index::open(&disk, &dir()).unwrap();
    index.set(&id(1), location(1, 16)).unwrap();
    // Somebody put it again before its first copy was found to be bad.
    index.set_broken(&id(1), location(1, 400)).unwrap();
    assert_eq!(index.get(&id(1)).unwrap(), Some(location(1, 16)));
    index.set_broken(&id(1), location(1, 16)).unwrap();
    for _ in 0..2 {
        assert_eq!(index.get(&id(1)).unwrap(), None);
        assert_eq!(index.broken().unwrap(), [(id(1), 1)]);
        assert_eq!(index.sums(), Sums::default());
        index.commit(&index.take_pending(), &[]).unwrap();
    }
    index.set(&id(1), location(2, 16)).unwrap();
    assert_eq!(index.broken().unwrap(), []);
    index.commit(&index.take_pending(), &[]).unwrap();
    assert_eq!(index.broken().unwrap(), []);
}

#[test]
fn a_chunk_in_many_packs_lies_in_the_last() {
    let packs = || {
        vec![
            (3, sorted(vec![entry(1, 16), entry(2, 100), entry(2, 300), entry(2, 200)])),
            (1, sorted(vec![entry(1, 900), entry(3, 16)])),
            (7, sorted(vec![entry(4, 16), entry(1, 50)])),
        ]
    };
    let expected = [(1, 7, 50), (2, 3, 300), (3, 1, 16), (4, 7, 16)];
    let disk = SimDisk::default();
    let (filled, _) = Index::open(&disk, &dir()).unwrap();
    filled.fill(packs(), &[(7, PackState::Whole(1))]).unwrap();
    assert_eq!(filled.packs().unwrap(), HashMap::from([(7, 1)]));
    let disk = SimDisk::default();
    let (added, _) = Index::open(&disk, &dir()).unwrap();
    for (number, entries) in packs() {
        added.add_pack(number, entries).unwrap();
    }
    for index in [filled, added] {
        for (number, pack, offset) in expected {
            let found = index.get(&id(number)).unwrap().unwrap();
            assert_eq!((found.pack, found.offset), (pack, offset));
        }
        assert_eq!(index.sums().chunks, 4);
        let mut seen = 0;
        index.each(|_, _| seen += 1).unwrap();
        assert_eq!(seen, 4);
    }
}

#[test]
fn a_file_that_is_no_index_is_replaced() {
    let disk = SimDisk::default();
    let (index, _) = Index::open(&disk, &dir()).unwrap();
    (0..2000).for_each(|number| index.set(&id(number), location(1, number)).unwrap());
    index.commit(&index.take_pending(), &[]).unwrap();
    drop(index);
    let whole = disk.files()[&dir().join(FILE_NAME)].clone();
    let lies = [
        Vec::new(),
        b"something else".to_vec(),
        vec![0; 100_000],
        whole[..whole.len() / 2].to_vec(),
        whole[..1000].to_vec(),
    ];
    for lie in lies {
        let disk = SimDisk::default();
        disk.create(&dir().join(FILE_NAME)).unwrap().write_at(0, &lie).unwrap();
        let (index, new) = Index::open(&disk, &dir()).unwrap();
        // An index that cannot be read is new; one that can has nothing in it that was not there.
        assert!(new != Opened::Loaded || index.sums().chunks <= 2000);
        index.set(&id(1), location(9, 1)).unwrap();
        index.commit(&index.take_pending(), &[]).unwrap();
        assert_eq!(index.get(&id(1)).unwrap(), Some(location(9, 1)));
    }
}

/// The entry of a chunk that lies there.
fn entry_at(number: u64, location: Location) -> Entry {
    let Location { offset, start, plain_len, stored_len, .. } = location;
    Entry { id: id(number), offset, start, plain_len, stored_len }
}

#[test]
fn only_what_nobody_asks_for_is_collected() {
    for written in [None, Some(false), Some(true)] {
        let disk = SimDisk::default();
        let (index, _) = Index::open(&disk, &dir()).unwrap();
        (0..5).for_each(|number| index.set(&id(number), location(1, number)).unwrap());
        if written.is_some() {
            index.commit(&index.take_pending(), &[]).unwrap();
        }
        index.keep_in(Some(Arc::new(LiveSet::for_chunks(4))));
        let (there, seen) = index
            .counting(1, sorted((0..5).map(|number| entry_at(number, location(1, number))).collect()))
            .unwrap();
        assert_eq!(there.len(), 5, "asking so keeps nothing");
        index.get(&id(0)).unwrap();
        // Put again, and found to be bad, since then.
        index.set(&id(2), location(2, 0)).unwrap();
        index.set_broken(&id(4), location(1, 4)).unwrap();
        if written == Some(true) {
            index.commit(&index.take_pending(), &[]).unwrap();
        }
        index.relocate(&id(2), location(1, 2), location(3, 2), seen).unwrap();
        index.relocate(&id(3), location(1, 3), location(3, 3), seen).unwrap();
        index.relocate(&id(4), location(1, 4), location(3, 4), seen).unwrap();
        let candidates = [0, 1, 2, 3].map(|number| (id(number), location(1, number))).to_vec();
        assert_eq!(index.collect(candidates, seen).unwrap(), [(id(0), location(1, 0))]);
        let places = [0, 1, 2, 3, 4].map(|number| index.get(&id(number)).unwrap());
        assert_eq!(places, [Some(location(1, 0)), None, Some(location(2, 0)), Some(location(3, 3)), None]);
        assert_eq!(index.sums().chunks, 3);
    }
}

#[test]
fn many_are_found_as_each_alone_would_be() {
    let disk = SimDisk::default();
    let (index, _) = Index::open(&disk, &dir()).unwrap();
    (0..3000).for_each(|number| index.set(&id(number), location(1 + number as u32 % 2, number)).unwrap());
    index.commit(&index.take_pending(), &[]).unwrap();
    (0..3000).step_by(7).for_each(|number| index.set(&id(number), location(3, number)).unwrap());
    for step in [1, 2, 50, 701] {
        // Every second one counts elsewhere, some are not here at all, and some are in the pack twice.
        let entries = (0..4000).step_by(step).flat_map(|number| {
            let at = entry_at(number, location(1, number));
            [at, Entry { offset: at.offset + 1, ..at }]
        });
        let entries = entries.collect::<Vec<_>>();
        let (found, _) = index.counting(1, sorted(entries.clone())).unwrap();
        let alone = sorted(entries)
            .map(Result::unwrap)
            .filter(|entry| index.get(&entry.id).unwrap() == Some(Location::of(1, entry)));
        assert!(found.iter().map(|(id, _)| *id).eq(alone.map(|entry| entry.id)), "step {step}");
        assert!(!found.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// An index is a map, whatever is written when.
    #[test]
    fn an_index_is_a_map(steps in prop::collection::vec((0..6_u8, 0..20_u64, 1..5_u32), 1..80)) {
        let disk = SimDisk::default();
        let (mut index, _) = Index::open(&disk, &dir()).unwrap();
        let mut model: HashMap<ChunkId, Location> = HashMap::new();
        let mut written = model.clone();
        for (step, number, pack) in steps {
            let id = id(number);
            match step {
                0..=2 => {
                    index.set(&id, location(pack, number)).unwrap();
                    model.insert(id, location(pack, number));
                }
                3 => {
                    let known = model.remove(&id).unwrap_or(location(pack, number));
                    index.set_broken(&id, known).unwrap();
                }
                4 => {
                    let flush = index.take_pending();
                    prop_assert_eq!(index.get(&id).unwrap(), model.get(&id).copied());
                    index.commit(&flush, &[]).unwrap();
                    written.clone_from(&model);
                }
                _ => {
                    drop(index);
                    index = Index::open(&disk, &dir()).unwrap().0;
                    model.clone_from(&written);
                }
            }
            let mut all = HashMap::new();
            index.each(|id, location| all.extend([(*id, *location)])).unwrap();
            prop_assert_eq!(&all, &model);
            prop_assert_eq!(index.sums().chunks, model.len() as u64);
        }
    }
}

#[test]
fn an_index_on_a_full_disk_is_told_from_a_broken_one() {
    let disk = SimDisk::default();
    let (index, _) = Index::open(&disk, &dir()).unwrap();
    for (errno, is_full) in [(Errno::NOSPC, true), (Errno::DQUOT, true), (Errno::IO, false)] {
        let error = StoreError::from(index.error(redb::Error::Io(errno.into())));
        assert_eq!(error.is_full(), is_full, "{error}");
    }
    assert!(!index.error(redb::Error::DatabaseAlreadyOpen).is_full());
}
