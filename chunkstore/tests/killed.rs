//! A real store in a real directory, used by a process that is killed at moments of no one's choosing (SIGKILL), again and
//! again: what it said was published is there and whole whenever the store is opened next. It shows the order of the steps;
//! what a crash of the machine takes is the subject of the store's own tests, on a simulated disk.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use chunkstore::{GcOptions, IngestOptions, Scope, Seeds, Store, ingest, restore_to};

const KILLS: u64 = 30;
/// From the start of the process: some are killed while they open the store.
const MOMENT_MS: std::ops::Range<u64> = 15..120;

/// Names that are published, replaced and removed.
const NAMES: u64 = 6;
/// The process is this program again, which finds its directory and its seed here.
const DIR: &str = "LONGHAUL_KILLED_DIR";
const SEED: &str = "LONGHAUL_KILLED_SEED";
/// What it says begins with this; the rest of its output is the test runner's.
const SAID: &str = "said ";

/// Numbers that look random, always the same for a seed (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    }
}

/// An image of ten pieces out of twenty-four, with holes between them: images share what they have in common, and a
/// collection finds in every pack something that is needed and something that is not.
fn image(seed: u64) -> Vec<u8> {
    const PIECE: usize = 60_000;
    const SLOT: usize = 128 << 10;
    let mut numbers = Numbers(seed);
    let mut bytes = vec![0; 10 * SLOT];
    for slot in bytes.chunks_exact_mut(SLOT) {
        let piece = numbers.next(24);
        blake3::Hasher::new().update(&piece.to_le_bytes()).finalize_xof().fill(&mut slot[..PIECE]);
    }
    bytes
}

/// What the killed process does. It says what it is about to do and what it has done.
#[test]
#[ignore = "runs as a process of its own, and is killed"]
fn uses_the_store_until_it_is_killed() {
    let (Some(dir), Ok(seed)) = (std::env::var_os(DIR), std::env::var(SEED)) else { return };
    let store = Store::open(dir).unwrap();
    let mut numbers = Numbers(seed.parse().unwrap());
    loop {
        let name = format!("image-{}", numbers.next(NAMES));
        match numbers.next(8) {
            0 => {
                let options = GcOptions { waste_percent: 1 };
                store.gc(&options, &|_| ControlFlow::Continue(())).unwrap();
            }
            1 if store.names().unwrap().contains(&name) => {
                println!("{SAID}removing {name} 0");
                store.remove(&name).unwrap();
                println!("{SAID}removed {name} 0");
            }
            _ => {
                let seed = numbers.next(u64::MAX);
                let pin = store.pin();
                let manifest = ingest(&store, &image(seed), &IngestOptions::default(), &|_| {}).unwrap();
                println!("{SAID}publishing {name} {seed}");
                store.publish(&name, &manifest).unwrap();
                println!("{SAID}published {name} {seed}");
                drop(pin);
            }
        }
    }
}

/// For every name what it may stand for: the seed of an image, or nothing.
type Expected = BTreeMap<String, Vec<Option<u64>>>;

/// Takes in what the process said; what was begun may have been done.
fn listen(expected: &mut Expected, output: &str) -> u32 {
    let mut heard = 0;
    // A line that was being written when it was killed has no end.
    for line in output.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        let Some(said) = line.split_once(SAID).map(|(_, said)| said) else { continue };
        let words: Vec<&str> = said.split(' ').collect();
        let [what, name, seed] = words[..] else { panic!("it said {line:?}") };
        let states = expected.entry(name.to_owned()).or_insert_with(|| vec![None]);
        let seed = Some(seed.parse().unwrap());
        match what {
            "publishing" => states.push(seed),
            "published" => *states = vec![seed],
            "removing" => states.push(None),
            "removed" => *states = vec![None],
            _ => panic!("it said {line:?}"),
        }
        heard += 1;
    }
    heard
}

/// Every name stands for what it may stand for, and all of it is there.
fn check(dir: &Path, scratch: &Path, expected: &mut Expected) {
    let store = Store::open(dir).unwrap();
    let verified = store.verify(&Scope::Whole, &|_| ControlFlow::Continue(())).unwrap();
    assert!(verified.is_clean(), "{verified:?}");
    let names = store.names().unwrap();
    assert!(names.iter().all(|name| expected.contains_key(name)), "{names:?}");
    for (name, states) in expected {
        if !names.contains(name) {
            assert!(states.contains(&None), "{name} is gone; it may be {states:?}");
            *states = vec![None];
            continue;
        }
        let manifest = store.manifest(name).unwrap();
        let path = scratch.join("restored");
        restore_to(&store, &Seeds::new(), &manifest, &path, None, &|_| ControlFlow::Continue(())).unwrap();
        let restored = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let state = states.iter().flatten().find(|seed| image(**seed) == restored).copied();
        assert!(state.is_some(), "{name} is none of {states:?}");
        *states = vec![state];
    }
}

#[test]
fn what_was_published_outlives_a_kill() {
    let work = tempfile::tempdir().unwrap();
    let dir = work.path().join("store");
    let start = Instant::now();
    let mut expected = Expected::new();
    let (mut numbers, mut heard) = (Numbers(2026), 0);
    for round in 0..KILLS {
        let said = work.path().join("said");
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "uses_the_store_until_it_is_killed", "--ignored", "--nocapture"])
            .env(DIR, &dir)
            .env(SEED, round.to_string())
            .stdin(Stdio::null())
            .stdout(File::create(&said).unwrap())
            .spawn()
            .unwrap();
        sleep(Duration::from_millis(MOMENT_MS.start + numbers.next(MOMENT_MS.end - MOMENT_MS.start)));
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), None, "it ended by itself: {status}");
        heard += listen(&mut expected, &fs::read_to_string(&said).unwrap());
        check(&dir, work.path(), &mut expected);
    }
    assert!(heard > 50, "it was hardly ever at work: {heard} steps");
    println!("{KILLS} kills, {heard} steps, {:.1} s", start.elapsed().as_secs_f64());
}
