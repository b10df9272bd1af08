//! Journal files as a crash, a full disk or a stranger leave them, and what every sequence of records claims.

use super::*;

const JOB: JobId = JobId([7; 16]);

fn started() -> Record {
    Record::Started { vm: "web".into(), peer: "b".into(), epoch: Epoch(3) }
}

fn accepted() -> Record {
    Record::Accepted { vm: "web".into(), peer: "a".into(), epoch: Epoch(3), plan: b"plan".to_vec() }
}

fn reason() -> String {
    "the link was lost".to_owned()
}

fn path(dir: &Path) -> PathBuf {
    dir.join(format!("{JOB}.journal"))
}

/// A journal with these records, closed.
fn written(dir: &Path, records: &[Record]) {
    let mut journal = JournalFile::create(dir, JOB).unwrap();
    records.iter().for_each(|record| journal.append(record).unwrap());
}

#[test]
fn what_was_appended_is_there_again_and_more_follows_it() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), &[started()]);
    let mut journal = JournalFile::open(&path(dir.path())).unwrap();
    assert_eq!(journal.records(), [started()]);
    let released = Record::Released { epoch: Epoch(4) };
    journal.append(&released).unwrap();
    assert_eq!(journal.records(), [started(), released.clone()]);
    drop(journal);
    assert_eq!(JournalFile::open(&path(dir.path())).unwrap().records(), [started(), released]);
}

#[test]
fn a_job_has_one_journal() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), &[started()]);
    assert!(matches!(JournalFile::create(dir.path(), JOB), Err(JournalFileError::Io { .. })));
    assert_eq!(JournalFile::open(&path(dir.path())).unwrap().records(), [started()], "untouched");
}

#[test]
fn a_tail_torn_anywhere_is_cut_and_written_over() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), &[started()]);
    let good = std::fs::read(path(dir.path())).unwrap();
    let next = journal::encode(&Record::RolledBack { reason: reason() }).unwrap();
    for torn in 1..next.len() {
        std::fs::write(path(dir.path()), [&good, &next[..torn]].concat()).unwrap();
        let mut journal = JournalFile::open(&path(dir.path())).unwrap();
        assert_eq!(journal.records(), [started()], "torn after {torn} bytes");
        assert_eq!(std::fs::read(path(dir.path())).unwrap(), good, "torn after {torn} bytes");
        journal.append(&Record::Retired).unwrap();
        let again = JournalFile::open(&path(dir.path())).unwrap();
        assert_eq!(again.records(), [started(), Record::Retired], "torn after {torn} bytes");
    }
}

#[test]
fn a_header_torn_anywhere_is_an_empty_journal_that_can_be_written() {
    for torn in 0..journal::HEADER.len() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(path(dir.path()), &journal::HEADER[..torn]).unwrap();
        let mut journal = JournalFile::open(&path(dir.path())).unwrap();
        assert!(journal.records().is_empty());
        journal.append(&started()).unwrap();
        assert_eq!(JournalFile::open(&path(dir.path())).unwrap().records(), [started()], "{torn} bytes");
    }
}

#[test]
fn a_journal_that_is_damaged_or_somebody_elses_is_left_alone_and_keeps_no_other_from_being_read() {
    let dir = tempfile::tempdir().unwrap();
    let other = JobId([8; 16]);
    JournalFile::create(dir.path(), other).unwrap().append(&started()).unwrap();
    written(dir.path(), &[started(), Record::Released { epoch: Epoch(4) }, Record::Retired]);
    let mut bytes = std::fs::read(path(dir.path())).unwrap();
    bytes[journal::HEADER.len() + 14] ^= 1;
    for content in [&bytes[..], b"#!/bin/sh\n"] {
        std::fs::write(path(dir.path()), content).unwrap();
        let journals = load_all(dir.path()).unwrap();
        assert_eq!(journals.open.len(), 1);
        let [damaged] = &journals.damaged[..] else { panic!("{:?}", journals.damaged) };
        assert_eq!((&damaged.path, &damaged.about), (&path(dir.path()), &None));
        assert_eq!(std::fs::read(path(dir.path())).unwrap(), content, "nothing was cut");
    }
}

#[test]
fn all_journals_are_found_and_nothing_else_is_taken_for_one() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), &[started()]);
    let other = JobId([8; 16]);
    JournalFile::create(dir.path(), other).unwrap();
    std::fs::write(dir.path().join(format!("{JOB}.json")), "{}").unwrap();
    std::fs::write(dir.path().join("notes.journal"), "by hand").unwrap();
    let journals = load_all(dir.path()).unwrap();
    let [(job, journal)] = &journals.open[..] else { panic!("{:?}", journals.open) };
    assert_eq!((*job, journal.records()), (JOB, &[started()][..]));
    assert_eq!(journals.ended, [(dir.path().join(format!("{other}.journal")), None)]);
}

#[test]
fn to_read_a_journal_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), &[started()]);
    let torn = [&std::fs::read(path(dir.path())).unwrap()[..], &[1, 0, 0]].concat();
    std::fs::write(path(dir.path()), &torn).unwrap();
    assert_eq!(read(&path(dir.path())).unwrap(), [started()]);
    assert_eq!(std::fs::read(path(dir.path())).unwrap(), torn);
}

#[test]
fn an_ended_job_is_told_again_without_plan_and_reason() {
    let (released, owned) = (Record::Released { epoch: Epoch(4) }, Record::Owned { epoch: Epoch(4) });
    let cases = [
        (vec![started(), released, Record::Retired], End::Retired),
        (vec![started(), Record::RolledBack { reason: reason() }], End::RolledBack),
        (vec![accepted(), Record::Ready, owned, Record::Resumed, Record::Rebound], End::Rebound),
        (vec![accepted(), Record::Discarded { reason: reason() }], End::Discarded),
        (vec![accepted(), Record::Ready, Record::Discarded { reason: reason() }], End::Discarded),
    ];
    for (records, end) in cases {
        let ended = EndedJob::of(JOB, &records, 7).unwrap();
        assert_eq!(ended.end, end);
        assert_eq!(claim(&ended.records()), claim(&records), "{records:?}");
        assert!(has_ended(&ended.records()));
        for shorter in 1..records.len() {
            assert_eq!(EndedJob::of(JOB, &records[..shorter], 7), None, "{records:?}");
        }
    }
}

#[test]
fn a_source_owns_its_vm_until_the_release_and_never_after() {
    let (ours, theirs) = (Claim::Ours(Epoch(3)), Claim::Theirs(Epoch(4), "b".into()));
    let released = Record::Released { epoch: Epoch(4) };
    let cases = [
        (vec![started()], &ours),
        (vec![started(), Record::RolledBack { reason: reason() }], &ours),
        (vec![started(), released.clone()], &theirs),
        (vec![started(), released, Record::Retired], &theirs),
    ];
    for (records, expected) in cases {
        let found = claim(&records);
        assert_eq!(found, Some(("web".to_owned(), expected.clone())), "{records:?}");
        assert_eq!(found.map(|(_, claim)| claim.epoch()), Some(expected.epoch()));
    }
}

#[test]
fn a_destination_owns_its_vm_only_once_it_was_told() {
    let undecided = Claim::Undecided(Epoch(4), "a".into());
    let ours = Claim::Ours(Epoch(4));
    let (ready, owned) = (Record::Ready, Record::Owned { epoch: Epoch(4) });
    let discarded = Record::Discarded { reason: reason() };
    let cases = [
        (vec![accepted()], None),
        (vec![accepted(), discarded.clone()], None),
        (vec![accepted(), ready.clone()], Some(&undecided)),
        (vec![accepted(), ready.clone(), discarded], None),
        (vec![accepted(), ready.clone(), owned.clone()], Some(&ours)),
        (vec![accepted(), ready.clone(), owned.clone(), Record::Resumed], Some(&ours)),
        (vec![accepted(), ready, owned, Record::Resumed, Record::Rebound], Some(&ours)),
    ];
    for (records, expected) in cases {
        let expected = expected.map(|claim| ("web".to_owned(), claim.clone()));
        assert_eq!(claim(&records), expected, "{records:?}");
    }
}

#[test]
fn no_records_and_records_without_a_beginning_claim_nothing() {
    assert_eq!(claim(&[]), None);
    assert_eq!(claim(&[Record::Ready, Record::Owned { epoch: Epoch(9) }]), None);
}
