//! The source of a migration: how one is begun or taken up again, and how the actions of the hand-off's source half are
//! carried out.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use longhaul_proto::JobId;
use longhaul_proto::handoff::{Limits, Message, Phase, Source, SourceAction, SourceInput};
use migrate_driver::{GuestStatus, Mode, VmName};
use tokio::sync::mpsc;

use super::driver::{Driver, DriverCx, Inbox, Role};
use super::link::Link;
use super::{Plan, PlanError, Port};
use crate::address;
use crate::error_kind::{Failure, HasKind, Kind};
use crate::lease::Lease;
use crate::migration::journal::{JournalFile, JournalFileError};
use crate::migration::outgoing::{Outgoing, OutgoingError};
use crate::service::disks::{self, Seen};
use crate::service::jobs::{self, JobHandle, JobKind};
use crate::service::platform::MigrationCx;
use crate::service::vms::{Hold, VmError};

/// How often the hand-off hears that memory still gets across.
const MEMORY_PROGRESS_EVERY: Duration = Duration::from_secs(5);
/// How long a cold migration's guest may stand still: all of its memory may be sent in that time.
const COLD_SWITCHOVER: Duration = Duration::from_secs(3600);

/// A migration that cannot even begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MigrateError {
    /// The VM.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The peer.
    #[error(transparent)]
    Peer(#[from] crate::service::peers::PeersError),
    /// The hypervisor.
    #[error(transparent)]
    Driver(#[from] migrate_driver::DriverError),
    /// The guest is in no state to be moved.
    #[error("VM '{vm}' is {status}; a migration wants it running: start it with `longhaul vm start {vm}`")]
    NotRunning { vm: String, status: GuestStatus },
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalFileError),
    /// What the peer is to be told.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A thread of ours broke.
    #[error("a worker of the migration ended unexpectedly")]
    Worker,
}

impl HasKind for MigrateError {
    fn kind(&self) -> Kind {
        match self {
            MigrateError::Vm(error) => error.kind(),
            MigrateError::Peer(error) => error.kind(),
            MigrateError::Driver(error) => error.kind(),
            MigrateError::NotRunning { .. } => Kind::Denied,
            MigrateError::Journal(error) => error.kind(),
            MigrateError::Plan(error) => error.kind(),
            MigrateError::Worker => Kind::Bug,
        }
    }
}

/// What a migration of `vm` would be, and its disks as the guest has them if it runs.
pub(crate) async fn plan(cx: &MigrationCx, vm: &str) -> Result<(Plan, Vec<Option<Seen>>), MigrateError> {
    let definition = cx.guests.vms.definition(vm)?;
    let hypervisor = &cx.guests.hypervisor;
    let is_running = hypervisor.status(&definition.name).await? == GuestStatus::Running;
    let (mut seen, mut facts) = (Vec::new(), None);
    if is_running {
        seen = disks::seen(&**hypervisor, &definition).await.map_err(PlanError::from)?;
        facts = Some(hypervisor.facts(&definition.name).await?);
    }
    let made = tokio::task::spawn_blocking(move || Ok((Plan::make(definition, &seen, facts)?, seen)));
    made.await.map_err(|_| MigrateError::Worker)?
}

/// Begins to migrate `vm` to `peer`. What can be known beforehand is checked here; the rest is the job's.
pub(crate) async fn start(
    cx: &Arc<MigrationCx>,
    vm: &str,
    peer: &str,
    mut limits: Limits,
    mode: Mode,
) -> Result<JobId, MigrateError> {
    if mode == Mode::Cold {
        limits.switchover_timeout = COLD_SWITCHOVER;
    }
    cx.reach.peers.get(peer)?;
    let job = jobs::new_id();
    let hold = cx.guests.vms.hold(vm, job, "migrate")?;
    let epoch = cx.guests.vms.owned(vm)?;
    let definition = cx.guests.vms.definition(vm)?;
    let name = definition.name.clone();
    cx.guests.hypervisor.check_movable(&definition, mode).await?;
    match cx.guests.hypervisor.status(&name).await? {
        GuestStatus::Running => {}
        status => return Err(MigrateError::NotRunning { vm: vm.to_owned(), status }),
    }
    let (mut plan, _) = plan(cx, vm).await?;
    let left_out = match address::plan(&cx.address, &plan.definition, peer, epoch.next()).await {
        Ok(address) => {
            plan.address = address;
            None
        }
        Err(error) => Some(format!("the address does not follow: {error}")),
    };
    let bytes = plan.encode()?;
    let dir = cx.guests.layout.journal();
    let created = tokio::task::spawn_blocking(move || JournalFile::create(&dir, job));
    let journal = created.await.map_err(|_| MigrateError::Worker)??;
    let handle = cx.jobs.begin(job, JobKind::MigrateOut, vm, Some(peer));
    handle.update(|report| {
        report.image_bytes = plan.image_bytes();
        report.notes.extend(left_out);
        if mode == Mode::Cold {
            report.notes.push("cold: the guest stands still while its memory is sent".to_owned());
        }
    });
    let machine = Source::new(vm.to_owned(), peer.to_owned(), epoch, bytes, limits);
    drive(
        cx,
        handle,
        journal,
        machine,
        name,
        peer,
        hold,
        Some((plan, mode)),
        limits,
        Some(SourceInput::Start),
    );
    Ok(job)
}

/// Goes on with a hand-off that a crash interrupted.
pub(crate) fn resume(
    cx: &Arc<MigrationCx>,
    job: JobId,
    journal: JournalFile,
    vm: VmName,
    peer: &str,
) -> Result<(), VmError> {
    let limits = Limits::default();
    let Some(mut machine) = Source::recover(journal.records(), limits) else { return Ok(()) };
    let hold = cx.guests.vms.hold(vm.as_str(), job, "recovery")?;
    let handle = cx.jobs.begin(job, JobKind::MigrateOut, vm.as_str(), Some(peer));
    handle.update(|report| {
        report.notes.push("recovered from its journal after the daemon was restarted".to_owned())
    });
    machine.restart(Duration::ZERO);
    drive(cx, handle, journal, machine, vm, peer, hold, None, limits, None);
    Ok(())
}

/// Spawns the driver of a source, and feeds it with `first`.
#[allow(clippy::too_many_arguments)]
fn drive(
    cx: &Arc<MigrationCx>,
    handle: JobHandle,
    journal: JournalFile,
    machine: Source,
    vm: VmName,
    peer: &str,
    hold: Hold,
    data: Option<(Plan, Mode)>,
    limits: Limits,
    first: Option<SourceInput>,
) {
    let inbox = Inbox::new();
    let (job, lost) = (handle.id(), inbox.lost.clone());
    let link = Link::new(cx.reach.network.clone(), peer.to_owned(), job, None, lost);
    let outgoing = Outgoing::new(cx.clone(), handle.clone(), vm.clone(), link.clone(), data, limits);
    let (inputs, moments) = (inbox.inputs.clone(), Mutex::default());
    let role = SourceRole { outgoing, handle: handle.clone(), inputs, vm, peer: peer.to_owned(), moments };
    if let Some(first) = first {
        // The inbox is empty.
        let _ = inbox.inputs.try_send(first);
    }
    cx.handoffs.register(job, Port::Source { inputs: inbox.inputs.clone(), link: link.clone() });
    let driver_cx = DriverCx { handoffs: cx.handoffs.clone(), vms: cx.guests.vms.clone() };
    let driver = Driver::new(driver_cx, Arc::new(role), machine, limits, journal, handle, link, inbox);
    cx.jobs.own(driver.run(hold));
}

/// Moments of the switchover.
#[derive(Default)]
struct Moments {
    paused: Option<Instant>,
    final_sent: Option<Instant>,
}

struct SourceRole {
    outgoing: Outgoing,
    handle: JobHandle,
    inputs: mpsc::Sender<SourceInput>,
    vm: VmName,
    peer: String,
    moments: Mutex<Moments>,
}

impl Role for SourceRole {
    type Machine = Source;

    async fn perform(self: Arc<Self>, action: SourceAction, lease: Lease) -> Result<SourceInput, Failure> {
        let performed = async {
            let outcome = perform(&self.outgoing, action, &lease).await;
            outcome.map_err(Failure::from)
        };
        if action != SourceAction::SendMemory {
            return performed.await;
        }
        tokio::select! {
            outcome = performed => outcome,
            never = self.report_memory_progress() => never,
        }
    }

    /// Keeps the moments that the report is made from.
    fn observe(&self, machine: &Source, input: &SourceInput) {
        let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        match input {
            SourceInput::GuestPaused => moments.paused = Some(Instant::now()),
            SourceInput::FinalSent { .. } => moments.final_sent = Some(Instant::now()),
            SourceInput::RoundDone { .. } => self.handle.update(|report| report.rounds += 1),
            SourceInput::Message(Message::Ready { sealed_us }) => {
                let ours = moments.paused.zip(moments.final_sent).map(|(a, b)| (b - a).as_secs_f64() * 1e3);
                let both = ours.map(|ms| ms + *sealed_us as f64 / 1e3);
                self.handle.update(|report| report.disk_switchover_ms = both);
            }
            SourceInput::Message(Message::Resumed) if !machine.owns() => {
                let stopped = self.outgoing.stopped().or(moments.paused);
                let downtime = stopped.map(|stopped| stopped.elapsed().as_secs_f64() * 1e3);
                self.handle.update(|report| report.downtime_ms = report.downtime_ms.or(downtime));
            }
            _ => {}
        }
    }

    fn entered(&self, phase: Phase) {
        if phase == Phase::Switchover {
            let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
            moments.paused.get_or_insert_with(Instant::now);
        }
    }

    fn never_began(&self, _: &str) -> Option<Message> {
        None
    }

    fn summary(&self) -> String {
        format!("VM '{}' runs on '{}', and only there", self.vm, self.peer)
    }
}

impl SourceRole {
    /// Says that memory still gets across, for as long as it is polled.
    async fn report_memory_progress<T>(&self) -> T {
        let mut before = self.handle.memory_bytes();
        loop {
            tokio::time::sleep(MEMORY_PROGRESS_EVERY).await;
            let bytes = self.handle.memory_bytes();
            if std::mem::replace(&mut before, bytes) != bytes {
                // A driver that has so much to do that this is lost hears it the next time.
                let _ = self.inputs.try_send(SourceInput::MemoryProgress);
            }
        }
    }
}

async fn perform(
    outgoing: &Outgoing,
    action: SourceAction,
    lease: &Lease,
) -> Result<SourceInput, OutgoingError> {
    Ok(match action {
        SourceAction::CopyDisks => {
            SourceInput::DisksCopied { dirty_bytes: outgoing.copy_disks(lease).await? }
        }
        SourceAction::RunRound => {
            let (sent_bytes, took, dirty_bytes) = outgoing.run_round(lease).await?;
            SourceInput::RoundDone { sent_bytes, took, dirty_bytes }
        }
        SourceAction::SendMemory => {
            outgoing.send_memory(lease).await?;
            SourceInput::GuestPaused
        }
        SourceAction::DrainDisks => {
            outgoing.drain_disks().await?;
            SourceInput::DisksDrained
        }
        SourceAction::SendFinal => SourceInput::FinalSent { roots: outgoing.send_final(lease).await? },
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
