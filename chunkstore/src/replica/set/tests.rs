//! Sets of disks: the power goes at every step of a history of them, and what a failure leaves is decided by the record.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::super::tests::generation;
use super::*;
use crate::ReadImage;
use crate::disk::sim::SimDisk;
use crate::replica::guard::write_guard;
use crate::replica::{Pass, Replica, names};
use crate::testing::{noise, scratch};

const DISKS: [&str; 2] = ["root", "data"];

/// What the disks of the history's sets hold: both from zeroes, both by a redo log, one of each, and one disk alone.
fn contents() -> [[Option<Vec<u8>>; 2]; 4] {
    let first = [noise(1, 6000), noise(2, 5000)];
    let mut second = first.clone();
    second[0][1000..2500].fill(0);
    second[1][..700].copy_from_slice(&noise(3, 700));
    let mut third = [second[0].clone(), noise(4, 7000)];
    third[0][5000..6000].copy_from_slice(&noise(5, 1000));
    let mut fourth = third[0].clone();
    fourth[10] ^= 1;
    let both = |[root, data]: [Vec<u8>; 2]| [Some(root), Some(data)];
    [both(first), both(second), both(third), [Some(fourth), None]]
}

fn open(disk: &SimDisk, name: &str) -> Result<Replica, ReplicaError> {
    Replica::open_on(Arc::new(disk.clone()), &Path::new("/vm").join(name), None)
}

/// Writes what differs.
fn write(pass: &Pass, bytes: &[u8]) -> Result<(), ReplicaError> {
    let mut before = vec![0; bytes.len()];
    if pass.read_at(0, &mut before).is_err() {
        // The power is gone, as the write will find.
        before.fill(0);
    }
    for (index, (block, old)) in bytes.chunks(500).zip(before.chunks(500)).enumerate() {
        if block.iter().all(|byte| *byte == 0) {
            pass.zero(index as u64 * 500, block.len() as u64)?;
        } else if block != old {
            pass.write_at(index as u64 * 500, block)?;
        }
    }
    Ok(())
}

fn commit(replicas: &[Replica; 2], number: u8, content: &[Option<Vec<u8>>; 2]) -> Result<(), ReplicaError> {
    let mut prepared = Vec::new();
    for (replica, bytes) in replicas.iter().zip(content) {
        let Some(bytes) = bytes else { continue };
        let pass = replica.begin(bytes.len() as u64)?;
        write(&pass, bytes)?;
        let of_the_set = Generation { set: Some([number; 16]), ..generation(number.into(), bytes) };
        prepared.push(pass.prepare(of_the_set)?);
    }
    commit_set(prepared)
}

/// Runs the history. Gives the sets that were begun and that were committed.
fn run(disk: &SimDisk) -> (usize, usize) {
    let (mut begun, mut done) = (0, 0);
    let mut all = || {
        let replicas = [open(disk, DISKS[0])?, open(disk, DISKS[1])?];
        for content in contents() {
            begun += 1;
            commit(&replicas, begun as u8, &content)?;
            done = begun;
        }
        Ok::<_, ReplicaError>(())
    };
    let _ = all();
    (begun, done)
}

/// What the disks hold after this many sets.
fn after(sets: usize) -> Found {
    [0, 1].map(|disk| {
        let contents = contents();
        let latest =
            contents[..sets].iter().enumerate().rev().find_map(|(number, content)| {
                content[disk].clone().map(|bytes| (Some(number as u8 + 1), bytes))
            });
        latest.unwrap_or((None, Vec::new()))
    })
}

/// Of each disk: the generation there is, and the bytes.
type Found = [(Option<u8>, Vec<u8>); 2];

fn found(disk: &SimDisk) -> (Found, [Replica; 2]) {
    let replicas = DISKS.map(|name| open(disk, name).unwrap());
    let files = disk.files();
    let found = [0, 1].map(|index| {
        let Some(generation) = replicas[index].generation() else { return (None, Vec::new()) };
        assert_eq!(generation.set, Some([generation.number as u8; 16]));
        (Some(generation.number as u8), files[&Path::new("/vm").join(DISKS[index]).join("image.raw")].clone())
    });
    (found, replicas)
}

#[test]
fn a_crash_at_any_step_leaves_all_disks_at_one_set() {
    let whole = SimDisk::default();
    assert_eq!(run(&whole), (4, 4));
    assert!(found(&whole).0 == after(4));
    let (mut rolled_forward, mut undone) = (0, 0);
    for power in 0..whole.operations() {
        let disk = SimDisk::default();
        disk.cut_power_at(power);
        let (begun, done) = run(&disk);
        for seed in 0..12 {
            let crashed = disk.after_crash(seed * 1000 + power);
            let (disks, replicas) = found(&crashed);
            let sets = (done..=begun).find(|sets| disks == after(*sets));
            let Some(sets) = sets else {
                let numbers = disks.map(|(number, _)| number);
                panic!("power off at {power}, seed {seed}: {numbers:?} is none of sets {done} to {begun}");
            };
            *(if sets > done { &mut rolled_forward } else { &mut undone }) += 1;
            // It goes on: with both disks, whatever was left behind.
            let next = [Some(noise(9, 6000)), Some(noise(10, 100))];
            commit(&replicas, 9, &next).unwrap();
            drop(replicas);
            let expected = next.map(|bytes| (Some(9), bytes.unwrap()));
            assert!(found(&crashed).0 == expected, "after power off at {power}, seed {seed}");
        }
    }
    assert!(rolled_forward > 20 && undone > 20, "{rolled_forward} rolled forward, {undone} undone");
}

/// Two replicas of a VM in a real directory, at set 1.
fn real(dir: &Path) -> [Replica; 2] {
    let replicas = DISKS.map(|name| Replica::open(dir.join(name)).unwrap());
    commit(&replicas, 1, &contents()[0]).unwrap();
    replicas
}

fn numbers(replicas: &[Replica; 2]) -> [u64; 2] {
    [0, 1].map(|index| {
        let _settled = replicas[index].begin(1);
        replicas[index].generation().unwrap().number
    })
}

#[test]
fn a_set_that_lacks_a_disk_is_undone() {
    let dir = scratch();
    let replicas = real(dir.path());
    let [root, _] = &contents()[1];
    let bytes = root.clone().unwrap();
    let pass = replicas[0].begin(bytes.len() as u64).unwrap();
    write(&pass, &bytes).unwrap();
    let of_the_set = Generation { set: Some([2; 16]), ..generation(2, &bytes) };
    let prepared = pass.prepare(of_the_set).unwrap();
    assert!(matches!(replicas[0].begin(1), Err(ReplicaError::Busy { .. })));
    drop(prepared);
    for left in [names::GUARD, names::LOG] {
        assert!(!dir.path().join(DISKS[0]).join(left).exists(), "{left}");
    }
    assert_eq!(numbers(&replicas), [1, 1]);
}

#[test]
fn a_disk_that_could_not_be_put_into_place_keeps_its_set_while_others_go_on() {
    let dir = scratch();
    let replicas = real(dir.path());
    let (image, away) = (dir.path().join("data/image.raw"), dir.path().join("data/away"));
    let [_, second, ..] = contents();
    // Found open by the pass, and gone when it is to be applied.
    let mut prepared = Vec::new();
    for (replica, bytes) in replicas.iter().zip(second.iter().flatten()) {
        let pass = replica.begin(bytes.len() as u64).unwrap();
        write(&pass, bytes).unwrap();
        prepared.push(pass.prepare(Generation { set: Some([2; 16]), ..generation(2, bytes) }).unwrap());
    }
    fs::rename(&image, &away).unwrap();
    let error = commit_set(prepared).unwrap_err();
    assert!(matches!(error, ReplicaError::Unfinished { number: 2, .. }), "{error}");
    commit(&replicas, 3, &[second[0].clone(), None]).unwrap();
    fs::rename(&away, &image).unwrap();
    assert_eq!(numbers(&replicas), [3, 2]);
    assert!(fs::read(&image).unwrap() == *second[1].as_ref().unwrap());
}

#[test]
fn disks_of_different_sets_or_none_are_not_committed_together() {
    let dir = scratch();
    let replicas = real(dir.path());
    let prepare = |index: usize, set: Option<SetId>| {
        let bytes = contents()[1][index].clone().unwrap();
        let pass = replicas[index].begin(bytes.len() as u64).unwrap();
        write(&pass, &bytes).unwrap();
        pass.prepare(Generation { set, ..generation(2, &bytes) })
    };
    assert!(matches!(prepare(0, None), Err(ReplicaError::BadGeneration { .. })));
    let mixed = vec![prepare(0, Some([2; 16])).unwrap(), prepare(1, Some([3; 16])).unwrap()];
    assert!(matches!(commit_set(mixed), Err(ReplicaError::BadGeneration { .. })));
    assert_eq!(numbers(&replicas), [1, 1]);
}

#[test]
fn a_record_that_cannot_be_read_decides_nothing_and_is_replaced() {
    let dir = scratch();
    let replicas = real(dir.path());
    fs::write(dir.path().join("set"), b"rot").unwrap();
    commit(&replicas, 2, &contents()[1]).unwrap();
    drop(replicas);
    // A guarded commit beside a damaged record is named, and left for a person.
    fs::write(dir.path().join("set"), b"rot").unwrap();
    write_guard(&crate::disk::RealDisk, &dir.path().join("root"), &[2; 16]).unwrap();
    assert!(matches!(Replica::open(dir.path().join("root")), Err(ReplicaError::Damaged { .. })));
    assert_eq!(Replica::look(dir.path().join("data")).unwrap().unwrap().number, 2);
}
