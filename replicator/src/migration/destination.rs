//! The destination of a migration: which offers are taken up, and how the actions of the hand-off's destination half are
//! carried out.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use longhaul_proto::handoff::{
    Destination, DestinationAction, DestinationInput, Limits, Message, Phase, Record,
};
use longhaul_proto::{Epoch, JobId};
use migrate_driver::{ForeignError, GuestStatus, NameError, VmName, check_foreign};
use quinn::Connection;
use tokio::sync::mpsc;

use super::driver::{Driver, DriverCx, Inbox, Role};
use super::link::Link;
use super::{Plan, PlanError, Port};
use crate::address;
use crate::error_kind::{Failure, HasKind, Kind};
use crate::lease::Lease;
use crate::migration::incoming::{self, Incoming, IncomingError};
use crate::migration::journal::{Claim, JournalFile, JournalFileError};
use crate::service::config::HypervisorKind;
use crate::service::jobs::{JobHandle, JobKind};
use crate::service::platform::MigrationCx;
use crate::service::vms::{Hold, VmError};

/// How long an offer waits for the VM to be given back. Less than a source waits for its answer.
const GIVEN_UP: Duration = Duration::from_secs(30);

/// Where a running destination takes what comes in for it.
#[derive(Clone)]
pub(crate) struct DestinationPort {
    inputs: mpsc::Sender<DestinationInput>,
    pub(super) link: Arc<Link>,
    incoming: Arc<OnceLock<Arc<Incoming>>>,
    vm: String,
    /// The job's report, once there is one.
    handle: Arc<OnceLock<JobHandle>>,
    /// The kind of the first failure of a stream.
    failed: Arc<OnceLock<Kind>>,
}

/// As both ends report it.
fn at_destination(failure: Failure) -> Failure {
    Failure { reason: format!("at the destination: {}", failure.reason), ..failure }
}

impl DestinationPort {
    /// The images, once they stand ready.
    pub(crate) fn incoming(&self) -> Option<Arc<Incoming>> {
        self.incoming.get().cloned()
    }

    pub(super) fn concerns(&self, vm: &str) -> bool {
        self.vm == vm
    }

    /// Counts bytes of the memory stream.
    pub(crate) fn count_memory(&self, bytes: u64) {
        if let Some(handle) = self.handle.get() {
            handle.add_memory(bytes);
        }
    }

    /// The memory stream has been loaded, or a stream has failed.
    pub(crate) async fn input(&self, input: DestinationInput) {
        // A hand-off that has ended wants to know of nothing.
        let _ = self.inputs.send(input).await;
    }

    /// A stream of the job has failed.
    pub(crate) async fn fail(&self, failure: Failure) {
        let Failure { kind, reason } = at_destination(failure);
        // The first one counts.
        let _ = self.failed.set(kind);
        self.input(DestinationInput::Failed { reason }).await;
    }

    /// False when the hand-off has ended, or has too much to do.
    pub(super) fn try_input(&self, input: DestinationInput) -> bool {
        self.inputs.try_send(input).is_ok()
    }
}

/// An offer that is refused on the spot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OfferError {
    /// The VM is known here in a way that forbids it.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Its program.
    #[error(
        "VM '{vm}' is run by '{binary}', which a peer may not start here; if it is to be trusted, add it to \
         qemu_binaries in longhaul.toml and restart the daemon"
    )]
    Binary { vm: String, binary: String },
    /// What it asks of its program.
    #[error(
        "VM '{vm}' may not come here as it is: {source}; if every peer is to be trusted with that on this host, add it to \
         qemu_arguments in longhaul.toml and restart the daemon"
    )]
    Foreign { vm: String, source: ForeignError },
    /// Its hypervisor.
    #[error(
        "VM '{vm}' runs on another hypervisor; this platform's is {ours:?}, and neither can run the other's guests"
    )]
    Hypervisor {
        vm: String,
        /// What runs VMs here.
        ours: HypervisorKind,
    },
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalFileError),
    /// An older owner.
    #[error(
        "VM '{vm}' is offered at epoch {offered}, but epoch {known} is known here; its owner is '{owner}'"
    )]
    Stale {
        vm: String,
        offered: Epoch,
        /// The epoch known here.
        known: Epoch,
        /// Who owns it then.
        owner: String,
    },
    /// A guest of that name is here.
    #[error(
        "cannot take VM '{vm}': a guest of that name is {status} here, which is not known to be this VM; stop or rename it, \
         then try again"
    )]
    Runs {
        vm: String,
        /// How the guest stands.
        status: GuestStatus,
    },
    /// Its name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// It cannot come in.
    #[error(transparent)]
    Incoming(#[from] IncomingError),
    /// A thread of ours broke.
    #[error("a worker of the migration ended unexpectedly")]
    Worker,
}

impl HasKind for OfferError {
    fn kind(&self) -> Kind {
        match self {
            OfferError::Vm(error) => error.kind(),
            OfferError::Plan(error) => error.kind(),
            OfferError::Journal(error) => error.kind(),
            OfferError::Name(error) => error.kind(),
            OfferError::Incoming(error) => error.kind(),
            OfferError::Binary { .. }
            | OfferError::Foreign { .. }
            | OfferError::Hypervisor { .. }
            | OfferError::Stale { .. }
            | OfferError::Runs { .. } => Kind::Denied,
            OfferError::Worker => Kind::Bug,
        }
    }
}

/// Whether an offer would be taken up and could be carried out, as far as that can be known. Changes nothing.
pub(crate) async fn judge(
    cx: &Arc<MigrationCx>,
    vm: &str,
    epoch: Epoch,
    plan: &[u8],
) -> Result<(), OfferError> {
    let plan = check_plan(cx, vm, plan)?;
    check_owner(cx, vm, epoch)?;
    check_nobody_runs(cx, vm).await?;
    Ok(Incoming::judge(cx, &plan, &Lease::new(), || ()).await?)
}

/// Takes up an offer: from here on the hand-off decides. The same offer again is left alone.
pub(crate) async fn offered(
    cx: &Arc<MigrationCx>,
    job: JobId,
    peer: &str,
    connection: &Connection,
    (vm, epoch, plan_bytes): (String, Epoch, Vec<u8>),
) -> Result<(), OfferError> {
    let plan = check_plan(cx, &vm, &plan_bytes)?;
    // Before anything else of the job, so that an offer that comes twice is taken up once.
    let start = Some(DestinationInput::Start);
    let Some(entry) = Entry::new(cx, job, peer, &vm, Some(connection.clone()), start) else { return Ok(()) };
    let machine = Destination::new(vm.clone(), peer.to_owned(), epoch, plan_bytes);
    match admit(cx, job, &vm, epoch).await {
        Ok((hold, journal)) => {
            drive(cx, job, entry, journal, machine, plan, peer, hold);
            Ok(())
        }
        Err(error) => {
            cx.handoffs.remove(job);
            entry.port.link.close().await;
            Err(error)
        }
    }
}

/// The plan, if this platform may run what it describes.
fn check_plan(cx: &MigrationCx, vm: &str, bytes: &[u8]) -> Result<Plan, OfferError> {
    let (plan, vm) = (Plan::decode(vm, bytes)?, vm.to_owned());
    let (ours, binary) = (cx.rules.hypervisor, &plan.definition.qemu.binary);
    if (ours == HypervisorKind::Xen) != plan.definition.xen.is_some() {
        return Err(OfferError::Hypervisor { vm, ours });
    }
    if ours == HypervisorKind::Qemu && !cx.rules.qemu_binaries.contains(binary) {
        return Err(OfferError::Binary { vm, binary: binary.clone() });
    }
    if ours == HypervisorKind::Qemu {
        // What this platform has given it itself, or has let it have before, is no peer's wish.
        let known = cx.guests.vms.definition(&vm).ok();
        check_foreign(&plan.definition, known.as_ref(), &cx.rules.qemu_arguments)
            .map_err(|source| OfferError::Foreign { vm, source })?;
    }
    Ok(plan)
}

/// Takes hold of the VM, if this platform may take it, and makes the journal of its hand-off.
async fn admit(
    cx: &Arc<MigrationCx>,
    job: JobId,
    vm: &str,
    epoch: Epoch,
) -> Result<(Hold, JournalFile), OfferError> {
    // A try of before that has been given up may still be waiting for its last piece of work.
    let hold = cx.guests.vms.hold_within(vm, job, "incoming migration", GIVEN_UP).await?;
    check_owner(cx, vm, epoch)?;
    check_nobody_runs(cx, vm).await?;
    let dir = cx.guests.layout.journal();
    let created = tokio::task::spawn_blocking(move || JournalFile::create(&dir, job));
    Ok((hold, created.await.map_err(|_| OfferError::Worker)??))
}

/// A guest of that name that runs here is somebody else's, whom a migration that fails must not end.
async fn check_nobody_runs(cx: &MigrationCx, vm: &str) -> Result<(), OfferError> {
    let name = VmName::new(vm)?;
    match cx.guests.hypervisor.status(&name).await.map_err(IncomingError::from)? {
        GuestStatus::Stopped => Ok(()),
        status => Err(OfferError::Runs { vm: vm.to_owned(), status }),
    }
}

/// Whether this platform may take the VM from who owns it at `epoch`.
fn check_owner(cx: &MigrationCx, vm: &str, epoch: Epoch) -> Result<(), OfferError> {
    let vm = vm.to_owned();
    match cx.guests.vms.ownership(&vm) {
        None => {}
        Some(Claim::Removed(known)) if known < epoch => {}
        Some(Claim::Removed(known)) => {
            let owner = "nobody: it was removed here".to_owned();
            return Err(OfferError::Stale { vm, offered: epoch, known, owner });
        }
        Some(Claim::Unknown(_, file)) => return Err(VmError::InDoubt { vm, file }.into()),
        Some(Claim::Theirs(known, _)) if known <= epoch => {}
        Some(Claim::Theirs(known, owner)) => {
            return Err(OfferError::Stale { vm, offered: epoch, known, owner });
        }
        Some(Claim::Ours(epoch)) => return Err(VmError::Ours { vm, epoch }.into()),
        Some(Claim::Undecided(_, peer)) => return Err(VmError::Undecided { vm, peer }.into()),
    }
    Ok(())
}

/// Goes on with a hand-off that a crash interrupted.
pub(crate) fn resume(cx: &Arc<MigrationCx>, job: JobId, journal: JournalFile) -> Result<(), OfferError> {
    let Some(mut machine) = Destination::recover(journal.records()) else { return Ok(()) };
    let Some(Record::Accepted { vm, peer, plan, .. }) = journal.records().first().cloned() else {
        return Ok(());
    };
    let plan = Plan::decode(&vm, &plan)?;
    let hold = cx.guests.vms.hold(&vm, job, "recovery")?;
    let Some(entry) = Entry::new(cx, job, &peer, &vm, None, None) else { return Ok(()) };
    machine.restart(Duration::ZERO);
    let handle = drive(cx, job, entry, journal, machine, plan, &peer, hold);
    let note = "recovered from its journal after the daemon was restarted";
    handle.update(|report| report.notes.push(note.to_owned()));
    Ok(())
}

/// A job's place among the hand-offs, and what comes in for it meanwhile.
struct Entry {
    port: DestinationPort,
    inbox: Inbox<DestinationInput>,
}

impl Entry {
    /// `None` when the job has one already.
    fn new(
        cx: &Arc<MigrationCx>,
        job: JobId,
        peer: &str,
        vm: &str,
        connection: Option<Connection>,
        first: Option<DestinationInput>,
    ) -> Option<Self> {
        let inbox = Inbox::new();
        if let Some(first) = first {
            // Before anybody else knows of the inbox.
            let _ = inbox.inputs.try_send(first);
        }
        let link = Link::new(cx.reach.network.clone(), peer.to_owned(), job, connection, inbox.lost.clone());
        let (inputs, vm) = (inbox.inputs.clone(), vm.to_owned());
        let (incoming, handle, failed) = Default::default();
        let port = DestinationPort { inputs, link, incoming, vm, handle, failed };
        cx.handoffs.register(job, Port::Destination(port.clone())).then_some(Entry { port, inbox })
    }
}

/// Spawns the driver of a destination.
#[allow(clippy::too_many_arguments)]
fn drive(
    cx: &Arc<MigrationCx>,
    job: JobId,
    entry: Entry,
    journal: JournalFile,
    machine: Destination,
    plan: Plan,
    peer: &str,
    hold: Hold,
) -> JobHandle {
    let Entry { port, inbox } = entry;
    let handle = cx.jobs.begin(job, JobKind::MigrateIn, plan.definition.name.as_str(), Some(peer));
    handle.update(|report| report.image_bytes = plan.image_bytes());
    // It is set here only.
    let _ = port.handle.set(handle.clone());
    let link = port.link.clone();
    let role = DestinationRole { cx: cx.clone(), plan, port, handle: handle.clone() };
    let driver_cx = DriverCx { handoffs: cx.handoffs.clone(), vms: cx.guests.vms.clone() };
    let limits = Limits::default();
    let driver =
        Driver::new(driver_cx, Arc::new(role), machine, limits, journal, handle.clone(), link, inbox);
    cx.jobs.own(driver.run(hold));
    handle
}

struct DestinationRole {
    cx: Arc<MigrationCx>,
    plan: Plan,
    port: DestinationPort,
    handle: JobHandle,
}

impl Role for DestinationRole {
    type Machine = Destination;

    async fn perform(
        self: Arc<Self>,
        action: DestinationAction,
        lease: Lease,
    ) -> Result<DestinationInput, Failure> {
        self.act(action, lease).await.map_err(|error| at_destination(error.into()))
    }

    fn failed_beside(&self) -> Option<Kind> {
        self.port.failed.get().copied()
    }

    fn observe(&self, _: &Destination, _: &DestinationInput) {}

    fn entered(&self, _: Phase) {}

    fn never_began(&self, why: &str) -> Option<Message> {
        Some(Message::Abort { reason: why.to_owned() })
    }

    fn summary(&self) -> String {
        format!("VM '{}' runs here", self.plan.definition.name)
    }
}

impl DestinationRole {
    async fn act(&self, action: DestinationAction, lease: Lease) -> Result<DestinationInput, IncomingError> {
        let (cx, plan, job) = (&self.cx, &self.plan, self.handle.id());
        let open = || self.port.incoming().ok_or(IncomingError::NotOpen);
        Ok(match action {
            DestinationAction::PrepareDisks => {
                let inputs = self.port.inputs.clone();
                // What is lost of these while the driver has much to do, the next one says too.
                let progress = move || drop(inputs.try_send(DestinationInput::Preparing));
                let incoming =
                    Incoming::prepare(cx, self.port.link.peer(), plan, job, &lease, progress).await?;
                let _ = self.port.incoming.set(Arc::new(incoming));
                DestinationInput::DisksPrepared
            }
            DestinationAction::StartIncoming => {
                open()?.start_hypervisor().await?;
                address::expect(&cx.address, plan).await;
                DestinationInput::IncomingStarted
            }
            DestinationAction::SealDisks { roots } => {
                let started = Instant::now();
                open()?.seal(roots).await?;
                DestinationInput::DisksSealed { took: started.elapsed() }
            }
            DestinationAction::Resume => {
                let (definition, cold) = incoming::resume(cx, plan, job, &lease).await?;
                address::arrived(&cx.address, plan.definition.name.as_str()).await;
                incoming::keep_definition(cx, definition, &lease).await?;
                if cold {
                    self.handle.update(|report| {
                        let note = "the memory was lost after release: the guest was booted from its disks";
                        report.notes.push(note.to_owned());
                    });
                }
                DestinationInput::Resumed
            }
            DestinationAction::Rebind => {
                let note = address::rebind(&cx.address, plan).await;
                self.handle.update(|report| report.notes.push(note));
                DestinationInput::Rebound
            }
            DestinationAction::Discard => {
                address::discard(&cx.address, plan.definition.name.as_str()).await;
                incoming::take_back(cx, plan, job, &lease).await?;
                DestinationInput::Discarded
            }
        })
    }
}
