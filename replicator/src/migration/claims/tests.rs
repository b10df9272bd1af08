//! Claims by VM, folded journals, and files that cannot be read.

use longhaul_proto::journal::{HEADER as JOURNAL_HEADER, encode as encode_record};

use super::*;

fn job(number: u8) -> JobId {
    JobId([number; 16])
}

fn left(vm: &str, epoch: u64) -> Vec<Record> {
    let started = Record::Started { vm: vm.into(), peer: "b".into(), epoch: Epoch(epoch) };
    vec![started, Record::Released { epoch: Epoch(epoch + 1) }, Record::Retired]
}

fn rolled_back(vm: &str, epoch: u64) -> Vec<Record> {
    vec![left(vm, epoch).remove(0), Record::RolledBack { reason: "off".into() }]
}

/// A journal with these records, as a daemon that has ended left it.
fn write_journal(dir: &Path, job: JobId, records: &[Record]) -> PathBuf {
    let mut bytes = JOURNAL_HEADER.to_vec();
    records.iter().for_each(|record| bytes.extend(encode_record(record).unwrap()));
    let path = dir.join(format!("{job}.journal"));
    std::fs::write(&path, bytes).unwrap();
    path
}

fn journals(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).unwrap().flatten();
    entries.filter(|entry| entry.path().extension().is_some_and(|ext| ext == "journal")).count()
}

fn started(dir: &Path) -> (Claims, Vec<JobId>) {
    let claims = Claims::load(dir).unwrap();
    let open = claims.take_up_journals().unwrap().into_iter().map(|(job, _)| job).collect();
    (claims, open)
}

#[test]
fn ended_journals_are_folded_once_and_say_the_same_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    write_journal(dir.path(), job(1), &left("web", 1));
    write_journal(dir.path(), job(2), &rolled_back("db", 7));
    write_journal(dir.path(), job(3), &[]);
    write_journal(dir.path(), job(4), &left("mail", 1)[..2]);
    for start in 0..3 {
        let (claims, open) = started(dir.path());
        assert_eq!((journals(dir.path()), open), (1, vec![job(4)]), "start {start}");
        assert_eq!(claims.of("web", true), Some(Claim::Theirs(Epoch(2), "b".into())));
        assert_eq!(claims.of("db", true), Some(Claim::Ours(Epoch(7))));
        assert_eq!(claims.of("mail", true), Some(Claim::Theirs(Epoch(2), "b".into())));
        assert_eq!(claims.ended(job(1)).unwrap().records(), left("web", 1));
        assert!(matches!(claims.ended(job(2)).unwrap().records()[1], Record::RolledBack { .. }));
        assert_eq!(claims.ended(job(4)), None);
    }
}

#[test]
fn a_crash_before_the_journals_are_deleted_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = write_journal(dir.path(), job(1), &left("web", 1));
    let (kept, written) =
        (std::fs::read(&path).unwrap(), std::fs::metadata(&path).unwrap().modified().unwrap());
    let folded = {
        started(dir.path());
        std::fs::read(dir.path().join(FILE)).unwrap()
    };
    std::fs::write(&path, &kept).unwrap();
    File::options().write(true).open(&path).unwrap().set_modified(written).unwrap();
    let (claims, _) = started(dir.path());
    assert_eq!(claims.of("web", true), Some(Claim::Theirs(Epoch(2), "b".into())));
    assert_eq!(journals(dir.path()), 0);
    assert_eq!(read(&dir.path().join(FILE)).unwrap().len(), 2, "a line for the VM and one for the job");
    assert_eq!(folded, std::fs::read(dir.path().join(FILE)).unwrap());
}

#[test]
fn only_so_many_ends_are_kept_and_every_claim_stays() {
    let mut state = State::default();
    for number in 0..MAX_ENDED_JOBS as u64 + 500 {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&number.to_le_bytes());
        let vm = if number == 0 { "oldest" } else { "web" };
        let ended = EndedJob::of(JobId(id), &left(vm, number + 1), number).unwrap();
        state.add(Line::Ended(ended));
    }
    state.forget_oldest();
    assert_eq!(state.ended.len(), MAX_ENDED_JOBS);
    assert_eq!(state.settled.len(), 2);
}

#[test]
fn of_two_claims_at_one_epoch_the_stricter_counts() {
    let dir = tempfile::tempdir().unwrap();
    let (claims, _) = started(dir.path());
    let theirs = Claim::Theirs(Epoch(2), "b".into());
    claims.settle("web", theirs.clone()).unwrap();
    claims.settle("web", Claim::Ours(Epoch(2))).unwrap();
    assert_eq!(claims.of("web", true), Some(theirs));
    claims.settle("web", Claim::Removed(Epoch(2))).unwrap();
    assert_eq!(claims.of("web", false), Some(Claim::Removed(Epoch(2))));
    assert_eq!(claims.of("web", true), Some(Claim::Ours(Epoch(3))), "defined anew");
    claims.settle("web", Claim::Ours(Epoch(9))).unwrap();
    let (again, _) = started(dir.path());
    assert_eq!(again.of("web", false), Some(Claim::Ours(Epoch(9))));
}

#[test]
fn a_damaged_journal_puts_only_its_own_vm_in_doubt() {
    let dir = tempfile::tempdir().unwrap();
    write_journal(dir.path(), job(1), &left("db", 1));
    let path = write_journal(dir.path(), job(2), &left("web", 4));
    let mut bytes = std::fs::read(&path).unwrap();
    let second = JOURNAL_HEADER.len() + encode_record(&left("web", 4)[0]).unwrap().len();
    bytes[second + 13] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let (claims, _) = started(dir.path());
    assert_eq!(claims.of("web", true), Some(Claim::Unknown(Epoch(4), path.clone())));
    assert_eq!(claims.of("web", false), Some(Claim::Unknown(Epoch(4), path.clone())), "nor may it come here");
    assert_eq!(claims.of("mail", true), Some(Claim::Ours(Epoch::FIRST)));
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "it is left as it is");
    let (claims, _) = started(dir.path());
    claims.settle("web", Claim::Ours(Epoch(6))).unwrap();
    let (again, _) = started(dir.path());
    assert_eq!(again.of("web", true), Some(Claim::Ours(Epoch(6))), "a decision ends the doubt");
}

#[test]
fn a_damaged_journal_without_a_name_puts_every_vm_that_has_not_answered_it_in_doubt() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(format!("{}.journal", job(9)));
    std::fs::write(&path, b"#!/bin/sh\n").unwrap();
    write_journal(dir.path(), job(1), &rolled_back("older", 3));
    write_journal(dir.path(), job(3), &left("gone", 3));
    write_journal(dir.path(), job(4), &rolled_back("moving", 3)[..1]);
    let (claims, _) = started(dir.path());
    assert_eq!(claims.of("older", true), Some(Claim::Unknown(Epoch(3), path.clone())));
    assert_eq!(claims.of("never moved", true), Some(Claim::Unknown(Epoch::FIRST, path.clone())));
    assert_eq!(
        claims.of("gone", true),
        Some(Claim::Theirs(Epoch(4), "b".into())),
        "it does not run here anyway"
    );
    assert_eq!(claims.of("moving", true), Some(Claim::Ours(Epoch(3))), "its job goes on");
    assert_eq!(claims.of("unheard of", false), None, "it may come here");
    claims.note(job(4), &rolled_back("moving", 3));
    assert_eq!(claims.of("moving", true), Some(Claim::Ours(Epoch(3))), "its job was newer");
    // Ended while the file was known to be damaged.
    write_journal(dir.path(), job(4), &rolled_back("moving", 3));
    write_journal(dir.path(), job(5), &rolled_back("newer", 3));
    claims.settle_defined("defined", Claim::Ours(Epoch::FIRST)).unwrap();
    for start in 0..2 {
        let (claims, _) = started(dir.path());
        for vm in ["moving", "newer"] {
            assert_eq!(claims.of(vm, true), Some(Claim::Ours(Epoch(3))), "start {start}: {vm}");
        }
        assert_eq!(claims.of("defined", true), Some(Claim::Ours(Epoch::FIRST)), "start {start}");
        assert_eq!(claims.of("older", true), Some(Claim::Unknown(Epoch(3), path.clone())), "start {start}");
    }
    let (claims, _) = started(dir.path());
    std::fs::rename(&path, dir.path().join("moved away")).unwrap();
    assert_eq!(claims.of("older", true), Some(Claim::Ours(Epoch(3))));
}

#[test]
fn times_of_files_decide_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(format!("{}.journal", job(9)));
    let set_time = |unix_s: u64| {
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(unix_s);
        File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    };
    std::fs::write(&path, b"#!/bin/sh\n").unwrap();
    set_time(4_000_000_000);
    let (claims, _) = started(dir.path());
    claims.settle("answered", Claim::Ours(Epoch(3))).unwrap();
    assert_eq!(claims.of("answered", true), Some(Claim::Ours(Epoch(3))));
    // Another one, that seems to be of long before the decision.
    let later = dir.path().join(format!("{}.journal", job(8)));
    std::fs::rename(&path, &later).unwrap();
    std::fs::copy(&later, &path).unwrap();
    File::options().write(true).open(&later).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    let (claims, _) = started(dir.path());
    assert_eq!(claims.of("answered", true), Some(Claim::Unknown(Epoch(3), later)));
}

#[test]
fn a_journal_that_was_folded_or_put_back_answers_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let journal = write_journal(dir.path(), job(1), &rolled_back("web", 3));
    let kept = std::fs::read(&journal).unwrap();
    std::fs::write(dir.path().join(format!("{}.journal", job(2))), b"#!/bin/sh\n").unwrap();
    let damaged = dir.path().join(format!("{}.journal", job(9)));
    std::fs::write(&damaged, b"#!/bin/sh\n").unwrap();
    started(dir.path());
    // A crash, or a person, has left them.
    std::fs::write(&journal, kept).unwrap();
    write_journal(dir.path(), job(2), &rolled_back("db", 3));
    let (claims, _) = started(dir.path());
    for vm in ["web", "db"] {
        assert_eq!(claims.of(vm, true), Some(Claim::Unknown(Epoch(3), damaged.clone())), "{vm}");
    }
}

#[test]
fn damaged_claims_are_set_aside_and_stay_a_doubt_at_every_start() {
    let dir = tempfile::tempdir().unwrap();
    started(dir.path()).0.settle("web", Claim::Theirs(Epoch(2), "b".into())).unwrap();
    let path = dir.path().join(FILE);
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    for _ in 0..2 {
        let (claims, _) = started(dir.path());
        assert!(matches!(claims.of("web", true), Some(Claim::Unknown(Epoch::FIRST, _))));
    }
    let (claims, _) = started(dir.path());
    claims.settle("web", Claim::Ours(Epoch(3))).unwrap();
    assert_eq!(started(dir.path()).0.of("web", true), Some(Claim::Ours(Epoch(3))));
}

#[test]
fn what_is_no_journal_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("lost+found")).unwrap();
    std::fs::create_dir(dir.path().join(format!("{}.journal", job(1)))).unwrap();
    std::fs::write(dir.path().join("notes.journal"), "by hand").unwrap();
    std::fs::write(dir.path().join(format!("{}.journal", job(2))), [0; 4096]).unwrap();
    std::fs::write(dir.path().join(format!("{}.journal", job(3))), []).unwrap();
    let (claims, open) = started(dir.path());
    assert!(open.is_empty());
    assert_eq!(claims.of("web", true), Some(Claim::Ours(Epoch::FIRST)), "zeroes claim nothing");
}
