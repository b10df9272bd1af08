//! The source of a migration: the owner task that runs the hand-off's source half, and the actions it asks for.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chunkstore::{RawImage, ReadImage};
use longhaul_proto::JobId;
use longhaul_proto::handoff::{Event, Limits, Message, Output, Phase, Source, SourceAction, SourceInput};
use migrate_driver::{DiskDefinition, DiskFormat, GuestStatus, Mode, VmName};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use super::link::Link;
use super::{BootFile, Plan, PlanDisk, Port};
use crate::address;
use crate::failpoint;
use crate::jobs::{self, JobHandle, JobKind};
use crate::journal::{JournalFile, JournalFileError};
use crate::outgoing::{Outgoing, OutgoingError};
use crate::platform::Platform;
use crate::vms::{Hold, VmError};

/// How long a journal that cannot be written is left alone before the next try.
pub(super) const JOURNAL_RETRY: Duration = Duration::from_millis(500);

/// How often the hand-off hears that memory still gets across.
const MEMORY_PROGRESS_EVERY: Duration = Duration::from_secs(5);
/// How long a cold migration's guest may stand still: all of its memory may be sent in that time.
const COLD_SWITCHOVER: Duration = Duration::from_secs(3600);

/// A migration that cannot even begin.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The VM.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The peer.
    #[error(transparent)]
    Peer(#[from] crate::peers::PeersError),
    /// The hypervisor.
    #[error(transparent)]
    Driver(#[from] migrate_driver::DriverError),
    /// The guest is in no state to be moved.
    #[error("VM '{vm}' is {status}; a migration wants it running: start it with `longhaul vm start {vm}`")]
    NotRunning {
        /// The VM.
        vm: String,
        /// How it stands.
        status: GuestStatus,
    },
    /// A disk or boot file.
    #[error("planning the migration: {path}: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalFileError),
    /// The plan cannot be told.
    #[error("the plan of VM '{vm}' cannot be sent: {why}")]
    Plan {
        /// The VM.
        vm: String,
        /// Why.
        why: String,
    },
}

/// A disk's bytes as the guest sees it, and how many of them are data (of a qcow2 image, about).
fn extent(disk: &DiskDefinition) -> io::Result<(u64, u64)> {
    let image = RawImage::open_read(&disk.path)?;
    let size = match disk.format {
        DiskFormat::Raw => image.size(),
        DiskFormat::Qcow2 => qcow2_size(&image)?,
    };
    Ok((size, image.allocated_bytes()?))
}

/// What the header says (QEMU, docs/interop/qcow2.txt): magic, version, the size of the disk from byte 24 on.
fn qcow2_size(image: &RawImage) -> io::Result<u64> {
    const MAGIC: &[u8] = b"QFI\xfb";
    let mut header = [0; 32];
    if image.size() >= header.len() as u64 {
        image.read_at(0, &mut header)?;
    }
    let (rest, size) = header.split_at(24);
    match size.try_into().map(u64::from_be_bytes) {
        Ok(size) if rest.starts_with(MAGIC) && size > 0 => Ok(size),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "its definition says qcow2 and it is none; see `format` there",
        )),
    }
}

/// What a migration of `vm` would be.
pub fn plan(platform: &Platform, vm: &str) -> Result<Plan, MigrateError> {
    let definition = platform.vms.definition(vm)?;
    let file = |path: &Path, source| MigrateError::File { path: path.display().to_string(), source };
    let mut disks = Vec::new();
    for disk in &definition.disks {
        let (size, data_bytes) = extent(disk).map_err(|error| file(&disk.path, error))?;
        disks.push(PlanDisk { name: disk.name.clone(), size, data_bytes });
    }
    let mut boot_files = Vec::new();
    for path in definition.boot_files() {
        boot_files.push(BootFile::read(path).map_err(|error| file(path, error))?);
    }
    Ok(Plan { definition, disks, boot_files, address: None })
}

/// Begins to migrate `vm` to `peer`. What can be known beforehand is checked here; the rest is the job's.
pub async fn start(
    platform: &Arc<Platform>,
    vm: &str,
    peer: &str,
    mut limits: Limits,
    mode: Mode,
) -> Result<JobId, MigrateError> {
    if mode == Mode::Cold {
        limits.switchover_timeout = COLD_SWITCHOVER;
    }
    platform.peers.get(peer)?;
    let job = jobs::new_id();
    let hold = platform.vms.hold(vm, job, "migrate")?;
    let epoch = platform.vms.owned(vm)?;
    let mut plan = plan(platform, vm)?;
    let name = plan.definition.name.clone();
    platform.hypervisor.check_movable(&plan.definition, mode).await?;
    match platform.hypervisor.status(&name).await? {
        GuestStatus::Running => {}
        status => return Err(MigrateError::NotRunning { vm: vm.to_owned(), status }),
    }
    let left_out = match address::plan(platform, &plan.definition, peer, epoch.next()).await {
        Ok(address) => {
            plan.address = address;
            None
        }
        Err(error) => Some(format!("the address does not follow: {error}")),
    };
    let bytes = serde_json::to_vec(&plan)
        .map_err(|error| MigrateError::Plan { vm: vm.to_owned(), why: error.to_string() })?;
    if bytes.len() > longhaul_proto::wire::MAX_PLAN_BYTES {
        let why = format!("it has {} bytes, too many", bytes.len());
        return Err(MigrateError::Plan { vm: vm.to_owned(), why });
    }
    let journal = JournalFile::create(&platform.layout.journal(), job)?;
    let handle = platform.jobs.begin(job, JobKind::MigrateOut, vm, Some(peer));
    handle.update(|report| {
        report.image_bytes = plan.disks.iter().map(|disk| disk.size).sum();
        report.notes.extend(left_out);
        if mode == Mode::Cold {
            report.notes.push("cold: the guest stands still while its memory is sent".to_owned());
        }
    });
    let machine = Source::new(vm.to_owned(), peer.to_owned(), epoch, bytes, limits);
    let data = Some((&plan, mode));
    let owner = Owner::new(platform.clone(), handle, journal, machine, name, peer, hold, data, limits);
    owner.input(SourceInput::Start);
    tokio::spawn(owner.run());
    Ok(job)
}

/// Goes on with a hand-off that a crash interrupted.
pub fn resume(
    platform: &Arc<Platform>,
    job: JobId,
    journal: JournalFile,
    vm: VmName,
    peer: &str,
) -> Result<(), VmError> {
    let Some(mut machine) = Source::recover(journal.records(), Limits::default()) else { return Ok(()) };
    let hold = platform.vms.hold(vm.as_str(), job, "recovery")?;
    let handle = platform.jobs.begin(job, JobKind::MigrateOut, vm.as_str(), Some(peer));
    handle.update(|report| {
        report.notes.push("recovered from its journal after the daemon was restarted".to_owned())
    });
    machine.restart(Duration::ZERO);
    let owner =
        Owner::new(platform.clone(), handle, journal, machine, vm, peer, hold, None, Limits::default());
    tokio::spawn(owner.run());
    Ok(())
}

/// Moments of the switchover.
#[derive(Default)]
struct Moments {
    paused: Option<Instant>,
    final_sent: Option<Instant>,
}

struct Owner {
    platform: Arc<Platform>,
    handle: JobHandle,
    journal: JournalFile,
    machine: Source,
    vm: VmName,
    link: Arc<Link>,
    outgoing: Arc<Outgoing>,
    inbox: mpsc::UnboundedReceiver<SourceInput>,
    inputs: mpsc::UnboundedSender<SourceInput>,
    actions: JoinSet<()>,
    running: HashMap<&'static str, AbortHandle>,
    moments: Moments,
    origin: Instant,
    _hold: Hold,
}

impl Owner {
    #[allow(clippy::too_many_arguments)]
    fn new(
        platform: Arc<Platform>,
        handle: JobHandle,
        journal: JournalFile,
        machine: Source,
        vm: VmName,
        peer: &str,
        hold: Hold,
        data: Option<(&Plan, Mode)>,
        limits: Limits,
    ) -> Self {
        let (inputs, inbox) = mpsc::unbounded_channel();
        let lost = inputs.clone();
        let job = handle.id();
        let link = Link::new(platform.network.clone(), peer.to_owned(), job, None, move || {
            let _ = lost.send(SourceInput::LinkLost);
        });
        let outgoing =
            Arc::new(Outgoing::new(platform.clone(), handle.clone(), vm.clone(), link.clone(), data, limits));
        platform.handoffs.register(job, Port::Source { inbox: inputs.clone(), link: link.clone() });
        Owner {
            platform,
            handle,
            journal,
            machine,
            vm,
            link,
            outgoing,
            inbox,
            inputs,
            actions: JoinSet::new(),
            running: HashMap::new(),
            moments: Moments::default(),
            origin: Instant::now(),
            _hold: hold,
        }
    }

    fn input(&self, input: SourceInput) {
        // The receiver lives as long as the owner.
        let _ = self.inputs.send(input);
    }

    async fn run(mut self) {
        let outcome = loop {
            if let Err(error) = self.drain_outputs().await {
                break Err(error.to_string());
            }
            if self.machine.is_ended() {
                break match self.machine.failure() {
                    Some(reason) => Err(reason.to_owned()),
                    None => Ok(self.summary()),
                };
            }
            let deadline = self
                .machine
                .deadline()
                .map(|deadline| tokio::time::Instant::from_std(self.origin + deadline));
            let input = tokio::select! {
                Some(input) = self.inbox.recv() => input,
                () = sleep_until(deadline) => SourceInput::Tick,
                () = self.handle.cancelled() => SourceInput::Cancel,
            };
            self.note(&input);
            self.machine.handle_input(self.origin.elapsed(), input);
        };
        self.actions.shutdown().await;
        self.link.drain().await;
        self.platform.handoffs.remove(self.handle.id());
        // The hold is given back before the job is seen to have ended: whoever waits for it may begin another at once.
        let Owner { handle, _hold, .. } = self;
        drop(_hold);
        handle.finish(outcome);
    }

    async fn drain_outputs(&mut self) -> Result<(), JournalFileError> {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Journal(record) => {
                    failpoint::reach("source", "journal", record.label());
                    if let Err(error) = self.journal.append(&record) {
                        self.journal_failed(error).await?;
                        continue;
                    }
                    self.platform.vms.note(self.handle.id(), self.journal.records());
                    failpoint::reach("source", "journalled", record.label());
                }
                Output::Transmit(message) => {
                    failpoint::reach("source", "transmit", message.label());
                    self.link.transmit(message);
                }
                Output::Action(action) => {
                    failpoint::reach("source", "action", action.label());
                    self.act(action).await;
                }
                Output::Event(Event::Phase(phase)) => self.enter(phase),
                Output::Event(Event::Trouble(trouble)) => {
                    tracing::warn!(job = %self.handle.id(), "{trouble}")
                }
            }
        }
        Ok(())
    }

    /// A record that is certainly not in the journal did not happen: the hand-off is taken up again from those that are.
    async fn journal_failed(&mut self, error: JournalFileError) -> Result<(), JournalFileError> {
        if matches!(error, JournalFileError::Doubtful { .. }) {
            self.platform.handoffs.doubt(self.handle.id());
        }
        if matches!(error, JournalFileError::Doubtful { .. }) || self.journal.records().is_empty() {
            return Err(error);
        }
        tracing::error!(job = %self.handle.id(), "{error}");
        tokio::time::sleep(JOURNAL_RETRY).await;
        if let Some(mut machine) = Source::recover(self.journal.records(), Limits::default()) {
            machine.restart(self.origin.elapsed());
            self.machine = machine;
        }
        Ok(())
    }

    async fn act(&mut self, action: SourceAction) {
        if matches!(action, SourceAction::RollBack | SourceAction::Retire) {
            // What is still under way must not get in the way of the end.
            self.actions.shutdown().await;
        }
        if self.running.get(action.label()).is_some_and(|task| !task.is_finished()) {
            return; // asked for twice, done once
        }
        let (outgoing, inputs, job) = (self.outgoing.clone(), self.inputs.clone(), self.handle.id());
        let handle = self.handle.clone();
        let task = self.actions.spawn(async move {
            let progress = async {
                if action == SourceAction::SendMemory {
                    tell_memory_progress(&handle, &inputs).await;
                }
                std::future::pending().await
            };
            let outcome = tokio::select! {
                outcome = perform(&outgoing, action) => outcome,
                never = progress => never,
            };
            let input = match outcome {
                Ok(input) => input,
                Err(error) => SourceInput::Failed { action, reason: error.to_string() },
            };
            tracing::debug!(%job, "{} ended", action.label());
            let _ = inputs.send(input);
        });
        self.running.insert(action.label(), task);
    }

    fn enter(&mut self, phase: Phase) {
        self.handle.phase(phase_name(phase));
        if phase == Phase::Switchover {
            self.moments.paused.get_or_insert_with(Instant::now);
        }
    }

    /// Keeps the moments that the report is made from.
    fn note(&mut self, input: &SourceInput) {
        let since = |moment: Option<Instant>| moment.map(|moment| moment.elapsed().as_secs_f64() * 1e3);
        match input {
            SourceInput::GuestPaused => self.moments.paused = Some(Instant::now()),
            SourceInput::FinalSent { .. } => self.moments.final_sent = Some(Instant::now()),
            SourceInput::RoundDone { .. } => self.handle.update(|report| report.rounds += 1),
            SourceInput::Message(Message::Ready { sealed_us }) => {
                let ours = self
                    .moments
                    .paused
                    .zip(self.moments.final_sent)
                    .map(|(a, b)| (b - a).as_secs_f64() * 1e3);
                let both = ours.map(|ms| ms + *sealed_us as f64 / 1e3);
                self.handle.update(|report| report.disk_switchover_ms = both);
            }
            SourceInput::Message(Message::Resumed) if !self.machine.owns() => {
                let downtime = since(self.outgoing.stopped().or(self.moments.paused));
                self.handle.update(|report| report.downtime_ms = report.downtime_ms.or(downtime));
            }
            _ => {}
        }
    }

    fn summary(&self) -> String {
        let peer = self.link.peer();
        format!("VM '{}' runs on '{peer}', and only there", self.vm)
    }
}

/// Tells the hand-off that memory still gets across.
async fn tell_memory_progress(handle: &JobHandle, inputs: &mpsc::UnboundedSender<SourceInput>) {
    let mut told = handle.memory_bytes();
    while !inputs.is_closed() {
        tokio::time::sleep(MEMORY_PROGRESS_EVERY).await;
        let bytes = handle.memory_bytes();
        if std::mem::replace(&mut told, bytes) != bytes {
            let _ = inputs.send(SourceInput::MemoryProgress);
        }
    }
}

async fn perform(outgoing: &Outgoing, action: SourceAction) -> Result<SourceInput, OutgoingError> {
    Ok(match action {
        SourceAction::CopyDisks => SourceInput::DisksCopied { dirty_bytes: outgoing.copy_disks().await? },
        SourceAction::RunRound => {
            let (sent_bytes, took, dirty_bytes) = outgoing.run_round().await?;
            SourceInput::RoundDone { sent_bytes, took, dirty_bytes }
        }
        SourceAction::SendMemory => {
            outgoing.send_memory().await?;
            SourceInput::GuestPaused
        }
        SourceAction::DrainDisks => {
            outgoing.drain_disks().await?;
            SourceInput::DisksDrained
        }
        SourceAction::SendFinal => SourceInput::FinalSent { roots: outgoing.send_final().await? },
        SourceAction::FinishMemory => {
            outgoing.finish_memory().await?;
            SourceInput::MemorySent
        }
        SourceAction::RollBack => {
            outgoing.roll_back().await?;
            SourceInput::RolledBack
        }
        SourceAction::Retire => {
            outgoing.retire().await?;
            SourceInput::Retired
        }
    })
}

/// A phase's name in reports.
pub fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Prepare => "prepare",
        Phase::Bulk => "bulk",
        Phase::Precopy => "precopy",
        Phase::Memory => "memory",
        Phase::Switchover => "switchover",
        Phase::Release => "release",
        Phase::Resume => "resume",
        Phase::Rebind => "rebind",
        Phase::Done => "done",
        Phase::RollingBack => "rolling_back",
        Phase::RolledBack => "rolled_back",
    }
}

/// Sleeps until then, or for ever.
pub async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
