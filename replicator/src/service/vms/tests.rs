//! Who may run a VM, and who has hold of it.

use super::*;

const JOB: JobId = JobId([1; 16]);
const LATER: JobId = JobId([2; 16]);

fn definition(name: &str) -> VmDefinition {
    let toml = format!("name = \"{name}\"\nmemory_mib = 64\n[[disks]]\nname = \"root\"\npath = \"/x.raw\"\n");
    VmDefinition::parse(&toml, Path::new("test.toml")).unwrap()
}

fn load(dir: &Path) -> Vms {
    let journal = dir.join("journal");
    std::fs::create_dir_all(&journal).unwrap();
    Vms::load(dir, &journal).unwrap()
}

fn vms(dir: &Path) -> Arc<Vms> {
    let vms = load(dir);
    vms.define(definition("web")).unwrap();
    Arc::new(vms)
}

fn left(epoch: u64) -> Vec<Record> {
    let started = Record::Started { vm: "web".into(), peer: "b".into(), epoch: Epoch(epoch) };
    vec![started, Record::Released { epoch: Epoch(epoch + 1) }, Record::Retired]
}

fn arrived(epoch: u64, last: Record) -> Vec<Record> {
    let accepted =
        Record::Accepted { vm: "web".into(), peer: "b".into(), epoch: Epoch(epoch), plan: Vec::new() };
    vec![accepted, Record::Ready, last]
}

#[test]
fn definitions_survive_a_restart_and_are_replaced_by_name() {
    let dir = tempfile::tempdir().unwrap();
    vms(dir.path()).define(definition("db")).unwrap();
    let again = load(dir.path());
    let mut larger = definition("web");
    larger.memory_mib = 128;
    again.define(larger.clone()).unwrap();
    assert_eq!(load(dir.path()).list(), [definition("db"), larger]);
}

#[test]
fn a_definition_that_cannot_be_read_is_left_out_and_named() {
    let dir = tempfile::tempdir().unwrap();
    vms(dir.path());
    std::fs::write(dir.path().join("bad.toml"), "name = 7\n").unwrap();
    std::fs::write(dir.path().join("empty.toml"), "").unwrap();
    std::fs::create_dir(dir.path().join("old.toml")).unwrap();
    std::fs::copy(dir.path().join("web.toml"), dir.path().join("web (copy).toml")).unwrap();
    std::fs::copy(dir.path().join("web.toml"), dir.path().join(".web.toml")).unwrap();
    std::fs::copy(dir.path().join("web.toml"), dir.path().join("web.toml.orig")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.path().join("pipe.toml"),
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    let vms = load(dir.path());
    assert_eq!(vms.list(), [definition("web")]);
    let damaged: Vec<_> = vms.damaged().into_iter().map(|damaged| damaged.name).collect();
    assert_eq!(damaged, ["bad", "empty", "old", "pipe", "web (copy)"]);
    let message = vms.definition("bad").unwrap_err().to_string();
    assert!(message.contains("bad.toml") && message.contains("vm define"), "{message}");
    assert_eq!(vms.owned("empty").unwrap(), Epoch::FIRST, "its name stays taken");
    vms.define(definition("empty")).unwrap();
    assert_eq!(vms.damaged().len(), 4, "defined again it is whole");
    vms.undefine("bad").unwrap();
    assert!(matches!(vms.definition("bad"), Err(VmError::Unknown { .. })));
    assert_eq!(load(dir.path()).damaged().len(), 3);
}

#[test]
fn a_vm_nobody_knows_is_an_error_that_names_those_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let vms = vms(dir.path());
    assert_eq!(vms.ownership("wbe"), None);
    for error in [vms.owned("wbe").unwrap_err(), vms.definition("wbe").unwrap_err()] {
        let message = error.to_string();
        assert!(message.contains("known: web") && message.contains("vm define"), "{message}");
    }
}

#[test]
fn one_job_has_hold_of_a_vm_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let vms = vms(dir.path());
    let hold = vms.hold("web", JOB, "replicate").unwrap();
    let message = vms.hold("web", LATER, "migrate").err().unwrap().to_string();
    assert!(message.contains("(replicate)"), "it says what the other one does: {message}");
    assert!(message.contains(&format!("longhaul job cancel {JOB}")), "and how to end it: {message}");
    let _other = vms.hold("db", LATER, "migrate").unwrap();
    drop(hold);
    vms.hold("web", LATER, "migrate").unwrap();
}

#[test]
fn a_vm_that_is_only_defined_is_ours() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(vms(dir.path()).owned("web").unwrap(), Epoch::FIRST);
}

#[test]
fn a_vm_that_moved_away_is_refused_with_its_owner_and_the_way_back() {
    let dir = tempfile::tempdir().unwrap();
    let vms = vms(dir.path());
    vms.note(JOB, &left(1));
    assert_eq!(vms.ownership("web"), Some(Claim::Theirs(Epoch(2), "b".into())));
    let message = vms.owned("web").unwrap_err().to_string();
    for part in ["'web'", "'b'", "epoch 2", "longhaul migrate"] {
        assert!(message.contains(part), "no {part} in: {message}");
    }
}

#[test]
fn of_several_claims_the_highest_epoch_counts_in_whatever_order_they_come() {
    let back = arrived(2, Record::Owned { epoch: Epoch(3) });
    for first in [JOB, LATER] {
        let dir = tempfile::tempdir().unwrap();
        let vms = vms(dir.path());
        let second = if first == JOB { LATER } else { JOB };
        vms.note(first, &left(1));
        vms.note(second, &back);
        assert_eq!(vms.owned("web").unwrap(), Epoch(3), "it went and came back");
        vms.note(JobId([3; 16]), &left(3));
        assert!(matches!(vms.owned("web"), Err(VmError::Moved { epoch: Epoch(4), .. })));
    }
}

#[test]
fn a_vm_in_doubt_may_not_be_run_and_the_doubt_ends_with_the_job() {
    let dir = tempfile::tempdir().unwrap();
    let vms = vms(dir.path());
    vms.note(LATER, &left(1));
    vms.note(JOB, &arrived(2, Record::Ready));
    let error = vms.owned("web").unwrap_err();
    assert!(matches!(&error, VmError::Undecided { peer, .. } if peer == "b"), "{error}");
    assert!(error.to_string().contains("longhaul resolve web"), "{error}");
    vms.note(JOB, &arrived(2, Record::Discarded { reason: "off".into() }));
    assert!(matches!(vms.owned("web"), Err(VmError::Moved { epoch: Epoch(2), .. })), "as before");
}

#[test]
fn a_vm_that_came_and_is_not_defined_is_owned_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let vms = load(dir.path());
    vms.note(JOB, &arrived(1, Record::Owned { epoch: Epoch(2) }));
    assert_eq!(vms.owned("web").unwrap(), Epoch(2));
}

#[tokio::test]
async fn who_waits_for_a_vm_gets_it_when_it_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let vms = vms(dir.path());
    let held = vms.hold("web", JOB, "test").unwrap();
    let waiting = vms.hold_within("web", LATER, "test", Duration::from_secs(60));
    let giving = async {
        tokio::task::yield_now().await;
        assert!(matches!(vms.hold("web", LATER, "test"), Err(VmError::Busy { job: JOB, .. })));
        drop(held);
    };
    let (later, ()) = tokio::join!(waiting, giving);
    let _later = later.unwrap();
    let refused = vms.hold_within("web", JOB, "test", Duration::ZERO).await;
    assert!(matches!(refused, Err(VmError::Busy { job: LATER, .. })));
}

#[test]
fn a_definition_that_cannot_be_settled_leaves_the_one_there_was() {
    let dir = tempfile::tempdir().unwrap();
    let vms = vms(dir.path());
    let fails = || Err(VmError::Io { path: "claims".into(), source: std::io::Error::other("full") });
    let mut larger = definition("web");
    larger.memory_mib = 128;
    vms.define_and(larger, fails).unwrap_err();
    vms.define_and(definition("db"), fails).unwrap_err();
    assert_eq!(vms.list(), [definition("web")]);
    assert_eq!(load(dir.path()).list(), [definition("web")]);
}
