//! The power goes at every write of a scripted history, on a disk that then has lost, reordered and torn what was not
//! synced; and after every such crash every published image is there, whole.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::{GcOptions, Scope, Store, StoreError};
use crate::disk::Disk;
use crate::disk::sim::{Dice, SimDisk};
use crate::testing::{noise, text};
use crate::{Chunk, ChunkId, Group, ImageRoot, Manifest, ManifestExtent};

const GO_ON: ControlFlow<()> = ControlFlow::Continue(());

fn open(disk: &SimDisk) -> Result<Store, super::OpenError> {
    // Small packs, so that sealing and collecting have something to do.
    Store::open_on(Arc::new(disk.clone()), Path::new("/store"), 6000)
}

fn chunk(seed: u64) -> Vec<u8> {
    let len = 300 + (seed as usize * 37) % 1500;
    if seed.is_multiple_of(3) { text(seed, len) } else { noise(seed, len) }
}

fn extent(seed: &u64) -> ManifestExtent {
    let bytes = chunk(*seed);
    ManifestExtent::Data { len: bytes.len() as u32, id: ChunkId::of(&bytes) }
}

fn manifest(seeds: &[u64]) -> Manifest {
    Manifest::of(ImageRoot::from_bytes([7; 32]), seeds.iter().map(extent)).unwrap()
}

/// What is known to be published, and what may be.
#[derive(Clone, Default)]
struct Expected {
    /// Of each name, what it may stand for now; `None` for nothing.
    names: BTreeMap<String, BTreeSet<Option<Vec<u64>>>>,
}

impl Expected {
    fn begin(&mut self, name: &str, to: Option<Vec<u64>>) {
        self.names.entry(name.to_owned()).or_insert_with(|| BTreeSet::from([None])).insert(to);
    }

    fn end(&mut self, name: &str, to: Option<Vec<u64>>) {
        self.names.insert(name.to_owned(), BTreeSet::from([to]));
    }

    /// Every name stands for one of the things it may stand for, and all of that is there.
    fn check(&mut self, store: &Store, what: &str) {
        for (name, possible) in &mut self.names {
            let found = match store.manifest(name) {
                Ok(manifest) => Some(manifest),
                Err(StoreError::UnknownName { .. }) => None,
                Err(error) => panic!("{what}: {name}: {error}"),
            };
            let matches = |seeds: &Option<Vec<u64>>| seeds.as_deref().map(self::manifest) == found;
            let now = possible.iter().find(|seeds| matches(seeds)).cloned();
            let now = now.unwrap_or_else(|| panic!("{what}: {name} is {found:?}, not one of {possible:?}"));
            for seed in now.iter().flatten() {
                let bytes = chunk(*seed);
                let found = store.get(&ChunkId::of(&bytes));
                assert!(found.is_ok_and(|found| found == bytes), "{what}: {name} lacks chunk {seed}");
            }
            // What was found may be built on.
            *possible = BTreeSet::from([now]);
        }
    }
}

/// One history, chosen by a seed. Stops at the first error, which is the power cut.
fn play(disk: &SimDisk, seed: u64, expected: &mut Expected) -> Result<(), Box<dyn std::error::Error>> {
    let mut dice = Dice::new(seed);
    let mut store = open(disk)?;
    for _ in 0..14 {
        let name = format!("image{}", dice.below(3));
        let first = dice.below(12) as u64;
        let seeds: Vec<u64> = (first..first + 1 + dice.below(20) as u64).collect();
        match dice.below(10) {
            0..=3 => {
                let _pin = store.pin();
                let chunks = seeds.iter().map(|seed| Chunk::of(chunk(*seed).into()));
                if dice.below(2) == 0 {
                    store.put_group(&Group::of(chunks.collect()), 1)?;
                } else {
                    for chunk in chunks {
                        store.put(&chunk.id(), chunk.plain())?;
                    }
                }
                expected.begin(&name, Some(seeds.clone()));
                let mut written = store.manifest_writer()?;
                seeds.iter().try_for_each(|seed| written.push(extent(seed)))?;
                store.publish(&name, &written.finish(ImageRoot::from_bytes([7; 32]))?)?;
                expected.end(&name, Some(seeds));
            }
            4 => {
                // Not published: of no concern after a crash.
                let bytes = chunk(first + 50);
                store.put(&ChunkId::of(&bytes), &bytes)?;
            }
            5 => store.sync()?,
            6 if store.names()?.contains(&name) => {
                expected.begin(&name, None);
                store.remove(&name)?;
                expected.end(&name, None);
            }
            7 | 8 => {
                let options = GcOptions { waste_percent: 1 + dice.below(60) as u8 };
                store.gc(&options, &|_| GO_ON)?;
            }
            9 => {
                // The daemon ends and is started again, perhaps without its index; the system's cache goes on.
                drop(store);
                if dice.below(2) == 0 {
                    disk.remove(Path::new("/store/index.redb"))?;
                }
                store = open(disk)?;
            }
            _ => store.flush_index()?,
        }
    }
    Ok(())
}

impl Store {
    /// Writes the index however little there is to write.
    fn flush_index(&self) -> Result<(), StoreError> {
        self.make_durable(&mut crate::sync::lock(&self.syncing), 0, &[])
    }
}

/// Crashes everywhere in one history.
fn crash_everywhere(history: u64, step: u64) -> u64 {
    let whole = SimDisk::default();
    let mut expected = Expected::default();
    play(&whole, history, &mut expected).unwrap();
    expected.check(&open(&whole).unwrap(), "without a crash");
    let operations = whole.operations();
    for cut in (history % step..operations).step_by(step as usize) {
        let disk = SimDisk::default();
        disk.cut_power_at(cut);
        let mut expected = Expected::default();
        let _ = play(&disk, history, &mut expected);
        for crash in 0..2 {
            let what = format!("history {history}, cut at {cut} of {operations}, crash {crash}");
            let found = disk.after_crash(crash * 1000 + cut);
            let mut expected = expected.clone();
            {
                let store = open(&found).unwrap_or_else(|error| panic!("{what}: {error}"));
                expected.check(&store, &what);
                let report = store.verify(&Scope::Whole, &|_| GO_ON).unwrap();
                assert!(report.broken.is_empty(), "{what}: {report:?}");
            }
            // It goes on from there, and a second crash finds it whole as well.
            let before = found.operations();
            found.cut_power_at(before + cut % 97);
            let _ = play(&found, history + 1, &mut expected);
            let again = found.after_crash(cut);
            let store = open(&again).unwrap_or_else(|error| panic!("{what}, again: {error}"));
            expected.check(&store, &format!("{what}, again"));
            store.gc(&GcOptions::default(), &|_| GO_ON).unwrap();
            expected.check(&store, &format!("{what}, again, collected"));
        }
    }
    operations
}

#[test]
fn a_power_cut_anywhere_costs_nothing_that_was_published() {
    let operations: u64 = (0..6).map(|history| crash_everywhere(history, 1 + history % 3)).sum();
    assert!(operations > 500, "{operations} operations are no history");
}
