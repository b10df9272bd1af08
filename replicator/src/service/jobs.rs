//! Jobs: everything that takes long. A job is a snapshot that changes until it ends, can be watched and cancelled, and is
//! kept as a report afterwards. A hand-off's journal is another thing (`journal`): this one never decides anything.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use longhaul_proto::JobId;
use serde::{Deserialize, Serialize};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error_kind::{Failure, HasKind, Kind};
use crate::files;
use crate::lease::Lease;
use crate::random::random;
use crate::transfer::Counters;

/// Reports kept, the latest ones.
const MAX_REPORTS: usize = 1000;

/// What a job is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum JobKind {
    /// `base add`
    BaseAdd,
    /// `base push`
    BasePush,
    /// `base restore`
    BaseRestore,
    /// `image send`
    ImageSend,
    /// `replicate`
    Replicate,
    /// `migrate`, at the source.
    MigrateOut,
    /// A peer's `migrate`, at the destination.
    MigrateIn,
    /// `replica verify`
    ReplicaVerify,
    /// `store gc`
    StoreGc,
    /// `store verify`
    StoreVerify,
    /// `store export`
    StoreExport,
    /// `store import`
    StoreImport,
}

/// How a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum JobState {
    /// It goes on.
    Running,
    /// It did what it was for.
    Done,
    /// It did not, and what it touched is as before.
    Failed,
}

/// How it was found what to send of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Found {
    /// The peer had nothing of it.
    FirstCopy,
    /// The hypervisor knew which blocks were written since the pass before.
    DirtyBlocks,
    /// All of it was read.
    WholeScan,
}

impl Found {
    /// For a sentence.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Found::FirstCopy => "first copy",
            Found::DirtyBlocks => "dirty blocks",
            Found::WholeScan => "whole scan",
        }
    }
}

/// A disk of a warm pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskReport {
    /// The disk.
    pub disk: String,
    /// Its generation at the peer.
    pub generation: u64,
    /// How it was found what to send.
    pub found: Found,
}

/// A phase of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PhaseReport {
    /// Its name, in the words of the hand-off.
    pub name: String,
    /// How long it took, in milliseconds.
    pub ms: f64,
    /// Bytes on the wire meanwhile, disk and memory.
    pub wire_bytes: u64,
}

/// A job, as it stands and as it is reported.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Its id.
    pub job: String,
    /// What it is for.
    pub kind: JobKind,
    /// The VM, base or image it works on.
    pub subject: String,
    /// The other platform.
    pub peer: Option<String>,
    /// How it stands.
    pub state: JobState,
    /// Why it failed.
    pub error: Option<String>,
    /// What kind of thing made it fail. Reports of older versions do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_kind: Option<Kind>,
    /// Whether `error_kind` is `busy`, for readers of older versions.
    #[serde(default)]
    pub busy: bool,
    /// One line that says what came of it.
    pub summary: Option<String>,
    /// When it began, in milliseconds since the Unix epoch.
    pub started_unix_ms: u64,
    /// How long it has taken, in milliseconds.
    pub total_ms: f64,
    /// Its phases so far; the last one is the current one.
    pub phases: Vec<PhaseReport>,
    /// Size of the images, in bytes.
    pub image_bytes: u64,
    /// Of those looked at so far.
    pub scanned_bytes: u64,
    /// Of those neither hole nor zero.
    pub data_bytes: u64,
    /// Disk bytes on the wire, both directions, framing included.
    pub wire_bytes_disk: u64,
    /// Memory bytes on the wire.
    pub wire_bytes_memory: u64,
    /// Rounds of dirty blocks.
    pub rounds: u32,
    /// Data bytes that were not sent because the other side held them.
    pub dedup_saved_bytes: u64,
    /// Bytes that compression took off what was sent.
    pub compression_saved_bytes: u64,
    /// How long the guest stood still, in milliseconds: from its pause here to its start there, as far as the source
    /// can tell (one message's way included).
    pub downtime_ms: Option<f64>,
    /// The disk's part of that: last blocks sent, applied, durable and compared.
    pub disk_switchover_ms: Option<f64>,
    /// What a migration left out.
    pub notes: Vec<String>,
    /// The disks of a warm pass.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskReport>,
    /// What a job of the store found or did, in full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<serde_json::Value>,
}

impl Report {
    fn new(job: JobId, kind: JobKind, subject: &str, peer: Option<&str>) -> Self {
        Report {
            job: job.to_string(),
            kind,
            subject: subject.to_owned(),
            peer: peer.map(str::to_owned),
            state: JobState::Running,
            error: None,
            error_kind: None,
            busy: false,
            summary: None,
            started_unix_ms: unix_ms(),
            total_ms: 0.0,
            phases: Vec::new(),
            image_bytes: 0,
            scanned_bytes: 0,
            data_bytes: 0,
            wire_bytes_disk: 0,
            wire_bytes_memory: 0,
            rounds: 0,
            dedup_saved_bytes: 0,
            compression_saved_bytes: 0,
            downtime_ms: None,
            disk_switchover_ms: None,
            notes: Vec::new(),
            disks: Vec::new(),
            result: None,
        }
    }
}

/// Milliseconds since the Unix epoch.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// A new id, random.
pub(crate) fn new_id() -> JobId {
    JobId(random())
}

struct Job {
    report: watch::Sender<Report>,
    counters: Arc<Counters>,
    memory: std::sync::atomic::AtomicU64,
    clock: Mutex<Clock>,
    cancel: CancellationToken,
    cancellable: bool,
}

struct Clock {
    started: Instant,
    phase_started: Instant,
    phase_wire: u64,
}

/// A running job's own hold on its report.
#[derive(Clone)]
pub(crate) struct JobHandle {
    id: JobId,
    job: Arc<Job>,
    jobs: Arc<Jobs>,
}

impl JobHandle {
    /// The job's id.
    pub(crate) fn id(&self) -> JobId {
        self.id
    }

    /// Makes sure that the job ends with the task that holds the guard.
    pub(crate) fn guard(&self) -> JobGuard {
        JobGuard(self.clone())
    }

    /// The transfers' counters, which the report is made from.
    pub(crate) fn counters(&self) -> Arc<Counters> {
        self.job.counters.clone()
    }

    /// Counts memory bytes on the wire.
    pub(crate) fn add_memory(&self, bytes: u64) {
        self.job.memory.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
    }

    /// Memory bytes counted so far.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.job.memory.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Ends the current phase and begins another.
    pub(crate) fn phase(&self, name: &str) {
        tracing::info!(job = %self.id, "{name}");
        self.close_phase();
        self.job.report.send_modify(|report| {
            report.phases.push(PhaseReport { name: name.to_owned(), ms: 0.0, wire_bytes: 0 });
        });
    }

    /// Changes the report; watchers see it.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Report)) {
        self.job.report.send_modify(change);
    }

    /// Brings the counters into the report.
    pub(crate) fn refresh(&self) {
        self.job.refresh();
    }

    /// Resolves when somebody cancels the job.
    pub(crate) async fn cancelled(&self) {
        self.job.cancel.cancelled().await;
    }

    /// Ends the job and keeps its report. A job ends once: a second outcome is dropped.
    pub(crate) fn finish(&self, outcome: Result<String, Failure>) -> Report {
        if self.job.report.borrow().state != JobState::Running {
            return self.job.report.borrow().clone();
        }
        self.close_phase();
        self.job.report.send_modify(|report| match outcome {
            Ok(summary) => {
                report.state = JobState::Done;
                report.summary = Some(summary);
            }
            Err(Failure { kind, reason }) => {
                tracing::warn!(job = %self.id, ?kind, "failed: {reason}");
                report.state = JobState::Failed;
                report.busy = kind == Kind::Busy;
                (report.error, report.error_kind) = (Some(reason), Some(kind));
            }
        });
        let report = self.job.report.borrow().clone();
        self.jobs.ended(self.id, &report);
        report
    }

    fn close_phase(&self) {
        self.job.refresh();
        let mut clock = self.job.clock.lock().unwrap_or_else(PoisonError::into_inner);
        let wire = self.job.wire();
        let (ms, bytes) = (millis(clock.phase_started), wire - clock.phase_wire);
        (clock.phase_started, clock.phase_wire) = (Instant::now(), wire);
        drop(clock);
        self.job.report.send_modify(|report| {
            if let Some(phase) = report.phases.last_mut() {
                (phase.ms, phase.wire_bytes) = (ms, bytes);
            }
        });
    }
}

/// A job that ends when this is dropped, if nothing has ended it before: whatever becomes of the task that works for it,
/// also a panic, its report is finished.
pub(crate) struct JobGuard(JobHandle);

impl JobGuard {
    /// Ends the job and keeps its report.
    pub(crate) fn finish(self, outcome: Result<String, Failure>) {
        self.0.finish(outcome);
    }
}

impl Drop for JobGuard {
    fn drop(&mut self) {
        let reason = "the job broke off; the daemon's log has the reason";
        self.0.finish(Err(Failure::new(Kind::Bug, reason)));
    }
}

impl Job {
    fn why_not(&self) -> &'static str {
        match self.report.borrow().kind {
            JobKind::MigrateIn => "it is the other platform's; cancel it there",
            _ => {
                "it reads an image into the store; what it has added is given back by `longhaul store gc` if it fails"
            }
        }
    }

    fn wire(&self) -> u64 {
        Counters::get(&self.counters.wire) + Counters::get(&self.memory)
    }

    fn refresh(&self) {
        let counters = &self.counters;
        let total_ms = millis(self.clock.lock().unwrap_or_else(PoisonError::into_inner).started);
        self.report.send_modify(|report| {
            report.total_ms = total_ms;
            report.scanned_bytes = Counters::get(&counters.scanned);
            report.data_bytes = Counters::get(&counters.data);
            report.wire_bytes_disk = Counters::get(&counters.wire);
            report.wire_bytes_memory = Counters::get(&self.memory);
            let (plain, packed) = (Counters::get(&counters.sent_plain), Counters::get(&counters.sent_packed));
            report.dedup_saved_bytes = Counters::get(&counters.dedup);
            report.compression_saved_bytes = plain.saturating_sub(packed);
        });
    }
}

/// Runs what waits for a disk without holding up the other tasks of the runtime, where there are any.
fn aside<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// All jobs of a platform.
pub(crate) struct Jobs {
    dir: PathBuf,
    /// The tasks of those that run.
    tasks: TaskTracker,
    /// Those that can be cancelled are: the daemon ends.
    ending: CancellationToken,
    running: Mutex<HashMap<JobId, Arc<Job>>>,
    reports: Mutex<HashMap<JobId, Report>>,
}

/// A job that is not there, or will not.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JobError {
    /// No job of that id.
    #[error("there is no job {0}; `longhaul job list` shows those there are")]
    Unknown(JobId),
    /// It has ended.
    #[error("job {0} has ended already")]
    Ended(JobId),
    /// It cannot be stopped half-way.
    #[error("job {job} cannot be cancelled: {why}")]
    NotCancellable {
        job: JobId,
        /// Why not, and what can be done.
        why: &'static str,
    },
}

impl HasKind for JobError {
    fn kind(&self) -> Kind {
        match self {
            JobError::Unknown(_) => Kind::NotFound,
            JobError::Ended(_) | JobError::NotCancellable { .. } => Kind::Denied,
        }
    }
}

impl Jobs {
    /// The reports kept in `dir`.
    pub(crate) fn load(dir: &Path) -> std::io::Result<Self> {
        let mut reports = HashMap::new();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            // Opening a pipe would wait for a writer.
            let is_file = std::fs::metadata(&path).is_ok_and(|meta| meta.is_file());
            let bytes = is_file.then(|| std::fs::read(&path).ok()).flatten();
            let parsed = bytes.and_then(|bytes| serde_json::from_slice::<Report>(&bytes).ok());
            match parsed.and_then(|report| Some((report.job.parse().ok()?, report))) {
                Some((id, report)) => drop(reports.insert(id, report)),
                None => tracing::warn!("ignoring {}: not a job report", path.display()),
            }
        }
        let (tasks, ending, running) = Default::default();
        Ok(Jobs { dir: dir.to_owned(), tasks, ending, running, reports: Mutex::new(reports) })
    }

    /// Begins a job.
    pub(crate) fn begin(
        self: &Arc<Self>,
        id: JobId,
        kind: JobKind,
        subject: &str,
        peer: Option<&str>,
    ) -> JobHandle {
        let now = Instant::now();
        let cancellable = !matches!(kind, JobKind::MigrateIn | JobKind::BaseAdd);
        let job = Arc::new(Job {
            report: watch::Sender::new(Report::new(id, kind, subject, peer)),
            counters: Arc::default(),
            memory: Default::default(),
            clock: Mutex::new(Clock { started: now, phase_started: now, phase_wire: 0 }),
            cancel: if cancellable { self.ending.child_token() } else { CancellationToken::new() },
            cancellable,
        });
        self.running().insert(id, job.clone());
        JobHandle { id, job, jobs: self.clone() }
    }

    /// Runs a task that ends its job by itself.
    pub(crate) fn own(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(work);
    }

    /// Runs a job's work. The work gets the job's lease, which is revoked when somebody cancels the job; the work then
    /// ends soon with an error of its own. Before the report is finished everything that runs under the lease has
    /// ended and `keep` (what the job holds meanwhile) is dropped.
    pub(crate) fn run<F, E>(
        &self,
        handle: &JobHandle,
        keep: impl Send + 'static,
        work: impl FnOnce(Lease) -> F + Send + 'static,
    ) where
        F: Future<Output = Result<String, E>> + Send + 'static,
        E: HasKind + Send + 'static,
    {
        let handle = handle.clone();
        self.tasks.spawn(async move {
            let guard = handle.guard();
            let lease = Lease::new();
            // A task of its own, so that a panic is an outcome too.
            let mut working = lease.spawn_to_end(work(lease.clone()));
            let ended = tokio::select! {
                ended = &mut working => ended,
                () = handle.cancelled() => {
                    lease.revoke();
                    working.await
                }
            };
            lease.end().await;
            drop(keep);
            guard.finish(match ended {
                Ok(outcome) => outcome.map_err(Failure::from),
                Err(broken) => {
                    let reason = format!("internal error, please report it with the daemon's log: {broken}");
                    Err(Failure::new(Kind::Bug, reason))
                }
            });
        });
    }

    /// A job's report as it stands.
    pub(crate) fn report(&self, id: JobId) -> Result<Report, JobError> {
        let running = self.running().get(&id).cloned();
        if let Some(job) = running {
            job.refresh();
            return Ok(job.report.borrow().clone());
        }
        self.reports().get(&id).cloned().ok_or(JobError::Unknown(id))
    }

    /// A running job's report, as it changes; `None` when the job has ended.
    pub(crate) fn watch(&self, id: JobId) -> Option<watch::Receiver<Report>> {
        self.running().get(&id).map(|job| job.report.subscribe())
    }

    /// All jobs known, oldest first.
    pub(crate) fn list(&self) -> Vec<Report> {
        let mut all: HashMap<JobId, Report> = self.reports().clone();
        let running: Vec<_> = self.running().iter().map(|(id, job)| (*id, job.clone())).collect();
        for (id, job) in running {
            job.refresh();
            all.insert(id, job.report.borrow().clone());
        }
        let mut all: Vec<_> = all.into_values().collect();
        all.sort_by_key(|report| report.started_unix_ms);
        all
    }

    /// Asks a job to end; it goes back to how things were.
    pub(crate) fn cancel(&self, id: JobId) -> Result<(), JobError> {
        match self.running().get(&id) {
            Some(job) if job.cancellable => {
                job.cancel.cancel();
                Ok(())
            }
            Some(job) => Err(JobError::NotCancellable { job: id, why: job.why_not() }),
            None if self.reports().contains_key(&id) => Err(JobError::Ended(id)),
            None => Err(JobError::Unknown(id)),
        }
    }

    /// Cancels what can be, now and from now on, and waits until that has gone back to how things were: a guest that stands
    /// still for its last step runs on, and nothing of ours is left in a hypervisor.
    pub(crate) async fn end(&self) {
        self.ending.cancel();
        let watched: Vec<_> = {
            let running = self.running();
            running.values().filter(|job| job.cancellable).map(|job| job.report.subscribe()).collect()
        };
        for mut report in watched {
            // An error is a job that is gone.
            let _ = report.wait_for(|report| report.state != JobState::Running).await;
        }
    }

    fn ended(&self, id: JobId, report: &Report) {
        let saved = serde_json::to_vec_pretty(report)
            .map_err(std::io::Error::other)
            .and_then(|bytes| aside(|| files::write_atomic(self.report_path(id), &bytes)));
        if let Err(error) = saved {
            tracing::warn!(job = %id, "its report cannot be kept: {error}");
        }
        let mut reports = self.reports();
        reports.insert(id, report.clone());
        if reports.len() > MAX_REPORTS {
            let oldest = reports.iter().min_by_key(|(_, report)| report.started_unix_ms).map(|(id, _)| *id);
            if let Some(oldest) = oldest {
                reports.remove(&oldest);
                let _ = std::fs::remove_file(self.report_path(oldest));
            }
        }
        drop(reports);
        self.running().remove(&id);
    }

    fn report_path(&self, id: JobId) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<JobId, Arc<Job>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reports(&self) -> std::sync::MutexGuard<'_, HashMap<JobId, Report>> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
