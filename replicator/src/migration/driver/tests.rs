//! The driver with the source's machine, a real journal, and actions that the tests let go on or break.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use longhaul_proto::handoff::{Source, SourceAction, SourceInput};
use longhaul_proto::{Epoch, JobId};
use tempfile::TempDir;
use tokio::sync::Semaphore;

use super::*;
use crate::service::jobs::{JobKind, JobState, Jobs, Report};
use crate::service::net::testing;
use crate::service::vms::VmError;

const JOB: JobId = JobId([7; 16]);
const OTHER: JobId = JobId([8; 16]);

/// What the tests' role does, and where it breaks.
#[derive(Default)]
struct Script {
    log: Mutex<Vec<String>>,
    /// Panics of `observe` that are still to come, at the input that says that the disks are copied.
    panics: AtomicU32,
    /// `observe` panics at the very first input.
    panics_first: bool,
    /// The copy waits for a permit on a blocking thread, and does not ask whether it is to go on.
    go_on: Option<Arc<Semaphore>>,
    /// The copy's action panics.
    copy_panics: bool,
    /// The copy's action finds no room.
    copy_is_full: bool,
}

impl Script {
    fn say(&self, what: impl Into<String>) {
        self.log.lock().unwrap().push(what.into());
    }

    fn said(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

impl Role for Script {
    type Machine = Source;

    async fn perform(self: Arc<Self>, action: SourceAction, lease: Lease) -> Result<SourceInput, Failure> {
        match action {
            SourceAction::CopyDisks => {
                assert!(!self.copy_panics, "the copy breaks");
                if self.copy_is_full {
                    return Err(Failure::new(Kind::Space, "no room"));
                }
                if let Some(go_on) = self.go_on.clone() {
                    let this = self.clone();
                    let runtime = tokio::runtime::Handle::current();
                    let written = lease.run_blocking(move || {
                        runtime.block_on(go_on.acquire()).unwrap().forget();
                        this.say("written");
                    });
                    self.say("copying");
                    written.await.unwrap();
                }
                Ok(SourceInput::DisksCopied { dirty_bytes: 0 })
            }
            SourceAction::RollBack => {
                self.say("rolled back");
                Ok(SourceInput::RolledBack)
            }
            other => Err(Failure::new(Kind::Bug, format!("{other:?} is not of this test"))),
        }
    }

    fn observe(&self, _: &Source, input: &SourceInput) {
        assert!(!self.panics_first, "no space left to log on");
        if matches!(input, SourceInput::DisksCopied { .. }) {
            let panics = self.panics.load(Ordering::SeqCst);
            if panics > 0 {
                self.panics.store(panics - 1, Ordering::SeqCst);
                panic!("no space left to log on");
            }
        }
    }

    fn entered(&self, _: Phase) {}

    fn never_began(&self, why: &str) -> Option<Message> {
        self.say(format!("never began: {why}"));
        None
    }

    fn summary(&self) -> String {
        "moved".to_owned()
    }
}

struct Stage {
    jobs: Arc<Jobs>,
    vms: Arc<Vms>,
    handoffs: Arc<Handoffs>,
    script: Arc<Script>,
    inputs: mpsc::Sender<SourceInput>,
    running: task::JoinHandle<()>,
    _network: (crate::service::net::Network, crate::service::net::Dialled, TempDir),
    dir: TempDir,
}

impl Stage {
    /// A migration of VM 'web' whose offer has been made.
    async fn new(script: Script, change: impl FnOnce(&mut JournalFile)) -> Stage {
        let dir = tempfile::tempdir().unwrap();
        let network = testing::alone();
        let jobs = Arc::new(Jobs::load(dir.path()).unwrap());
        let vms = Arc::new(Vms::load(dir.path(), dir.path()).unwrap());
        let (handoffs, script) = (Arc::<Handoffs>::default(), Arc::new(script));
        let hold = vms.hold("web", JOB, "migrate").unwrap();
        let mut journal = JournalFile::create(dir.path(), JOB).unwrap();
        change(&mut journal);
        let handle = jobs.begin(JOB, JobKind::MigrateOut, "web", Some("b"));
        let inbox = Inbox::new();
        let inputs = inbox.inputs.clone();
        // Nobody is lost who was never reached.
        let link = Link::new(network.0.clone(), "b".to_owned(), JOB, None, Arc::default());
        let limits = Limits::default();
        let machine = Source::new("web".to_owned(), "b".to_owned(), Epoch::FIRST, Vec::new(), limits);
        let cx = DriverCx { handoffs: handoffs.clone(), vms: vms.clone() };
        inputs.send(SourceInput::Start).await.unwrap();
        inputs.send(SourceInput::Message(Message::Accepted)).await.unwrap();
        let driver = Driver::new(cx, script.clone(), machine, limits, journal, handle, link, inbox);
        let running = tokio::spawn(driver.run(hold));
        Stage { jobs, vms, handoffs, script, inputs, running, _network: network, dir }
    }

    async fn ended(self) -> (Report, Vec<String>, Vec<Record>) {
        self.running.await.unwrap();
        let report = self.jobs.report(JOB).unwrap();
        assert_ne!(report.state, JobState::Running);
        let path = self.dir.path().join(format!("{JOB}.journal"));
        let records = JournalFile::open(&path).unwrap().records().to_vec();
        (report, self.script.said(), records)
    }
}

async fn until(happens: impl Fn() -> bool) {
    while !happens() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_undoes_a_job_waits_for_work_that_does_not_listen() {
    let go_on = Arc::new(Semaphore::new(0));
    let stage = Stage::new(Script { go_on: Some(go_on.clone()), ..Script::default() }, |_| {}).await;
    until(|| stage.script.said().contains(&"copying".to_owned())).await;
    stage.jobs.cancel(JOB).unwrap();
    until(|| stage.jobs.report(JOB).unwrap().phases.iter().any(|phase| phase.name == "rolling_back")).await;
    // The rollback has been asked for, and the copy still runs: its VM stays held.
    assert!(matches!(stage.vms.hold("web", OTHER, "test"), Err(VmError::Busy { .. })));
    go_on.add_permits(1);
    let vms = stage.vms.clone();
    let (report, said, records) = stage.ended().await;
    assert_eq!(said, ["copying", "written", "rolled back"]);
    assert_eq!((report.state, report.error_kind), (JobState::Failed, Some(Kind::Denied)));
    assert!(matches!(records[..], [Record::Started { .. }, Record::RolledBack { .. }]));
    assert!(vms.hold("web", OTHER, "test").is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_that_panics_has_failed() {
    let stage = Stage::new(Script { copy_panics: true, ..Script::default() }, |_| {}).await;
    let (report, said, records) = stage.ended().await;
    assert_eq!(said, ["rolled back"]);
    assert_eq!((report.state, report.error_kind), (JobState::Failed, Some(Kind::Bug)));
    assert!(matches!(records[..], [Record::Started { .. }, Record::RolledBack { .. }]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_panics_goes_on_from_its_journal() {
    let stage = Stage::new(Script { panics: 1.into(), ..Script::default() }, |_| {}).await;
    let vms = stage.vms.clone();
    let (report, said, records) = stage.ended().await;
    assert_eq!(said, ["rolled back"], "the guest is taken back without a restart of the daemon");
    assert_eq!((report.state, report.error_kind), (JobState::Failed, Some(Kind::Bug)));
    assert!(matches!(records[..], [Record::Started { .. }, Record::RolledBack { .. }]));
    assert!(vms.hold("web", OTHER, "test").is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_journal_is_in_doubt_keeps_its_vm() {
    let stage = Stage::new(Script::default(), JournalFile::break_off).await;
    let (vms, handoffs, inputs) = (stage.vms.clone(), stage.handoffs.clone(), stage.inputs.clone());
    let (report, said, _) = stage.ended().await;
    assert_eq!((report.state, report.error_kind), (JobState::Failed, Some(Kind::Io)));
    assert!(said.is_empty(), "nothing follows a record that may not be there: {said:?}");
    assert!(matches!(vms.hold("web", OTHER, "test"), Err(VmError::Busy { job: JOB, .. })));
    assert!(handoffs.is_left(JOB) && inputs.is_closed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_breaks_before_its_first_record_has_never_been() {
    let stage = Stage::new(Script { panics_first: true, ..Script::default() }, |_| {}).await;
    let vms = stage.vms.clone();
    let (report, said, records) = stage.ended().await;
    assert_eq!((report.state, report.error_kind), (JobState::Failed, Some(Kind::Bug)));
    assert!(matches!(&said[..], [one] if one.contains("no space left to log on")), "{said:?}");
    assert!(records.is_empty(), "nothing may follow a record that was never written: {records:?}");
    assert!(vms.hold("web", OTHER, "test").is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_report_has_the_kind_of_the_action_that_failed_first() {
    let stage = Stage::new(Script { copy_is_full: true, ..Script::default() }, |_| {}).await;
    let (report, said, _) = stage.ended().await;
    assert_eq!(said, ["rolled back"]);
    assert_eq!((report.error_kind, report.busy), (Some(Kind::Space), false));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_peer_ends_is_of_its_kind() {
    let go_on = Arc::new(Semaphore::new(0));
    let stage = Stage::new(Script { go_on: Some(go_on.clone()), ..Script::default() }, |_| {}).await;
    until(|| stage.script.said().contains(&"copying".to_owned())).await;
    let abort = Message::Abort { reason: "no room there".to_owned() };
    stage.inputs.send(SourceInput::Message(abort)).await.unwrap();
    go_on.add_permits(1);
    let (report, ..) = stage.ended().await;
    assert_eq!(report.error_kind, Some(Kind::Peer));
}
