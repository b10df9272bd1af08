//! The destination of a migration: the owner task that runs the hand-off's destination half, and the actions it asks for.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use longhaul_proto::handoff::{
    Destination, DestinationAction, DestinationInput, Event, Message, Output, Phase,
};
use longhaul_proto::{Epoch, JobId};
use quinn::Connection;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use super::link::Link;
use super::source::{JOURNAL_RETRY, phase_name, sleep_until};
use super::{Plan, Port};
use crate::address;
use crate::config::HypervisorKind;
use crate::failpoint;
use crate::incoming::{self, Incoming, IncomingError};
use crate::jobs::{JobHandle, JobKind};
use crate::journal::{Claim, JournalFile, JournalFileError};
use crate::platform::Platform;
use crate::vms::{Hold, VmError};

/// Where a running destination takes what comes in for it.
#[derive(Clone)]
pub struct DestinationPort {
    inbox: mpsc::UnboundedSender<DestinationInput>,
    pub(super) link: Arc<Link>,
    incoming: Arc<OnceLock<Arc<Incoming>>>,
    handle: JobHandle,
}

impl DestinationPort {
    pub(super) fn message(&self, message: Message) -> bool {
        self.input(DestinationInput::Message(message))
    }

    /// The images, once they stand ready.
    pub(super) fn incoming(&self) -> Option<Arc<Incoming>> {
        self.incoming.get().cloned()
    }

    pub(super) fn concerns(&self, vm: &str) -> bool {
        self.handle.subject() == vm
    }

    /// Counts bytes of the memory stream.
    pub fn count_memory(&self, bytes: u64) {
        self.handle.add_memory(bytes);
    }

    /// The memory stream has been loaded, or a stream has failed.
    pub fn input(&self, input: DestinationInput) -> bool {
        self.inbox.send(input).is_ok()
    }
}

/// An offer that is refused on the spot.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// The VM is known here in a way that forbids it.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The plan.
    #[error("the plan of VM '{vm}' cannot be understood: {why}")]
    Plan {
        /// The VM.
        vm: String,
        /// Why.
        why: String,
    },
    /// Its program.
    #[error(
        "VM '{vm}' is run by '{binary}', which a peer may not start here; if it is to be trusted, add it to          qemu_binaries in longhaul.toml and restart the daemon"
    )]
    Binary {
        /// The VM.
        vm: String,
        /// The program.
        binary: String,
    },
    /// Its hypervisor.
    #[error(
        "VM '{vm}' runs on another hypervisor; this platform's is {ours:?}, and neither can run the other's guests"
    )]
    Hypervisor {
        /// The VM.
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
        /// The VM.
        vm: String,
        /// The offer's epoch.
        offered: Epoch,
        /// The epoch known here.
        known: Epoch,
        /// Who owns it then.
        owner: String,
    },
}

/// Takes up an offer: from here on the hand-off decides.
pub fn offered(
    platform: &Arc<Platform>,
    job: JobId,
    peer: &str,
    connection: &Connection,
    (vm, epoch, plan_bytes): (String, Epoch, Vec<u8>),
) -> Result<(), OfferError> {
    let plan = parse_plan(&vm, &plan_bytes)?;
    let (ours, binary) = (platform.config.hypervisor, &plan.definition.qemu.binary);
    if (ours == HypervisorKind::Xen) != plan.definition.xen.is_some() {
        return Err(OfferError::Hypervisor { vm, ours });
    }
    if ours == HypervisorKind::Qemu && !platform.config.qemu_binaries.contains(binary) {
        return Err(OfferError::Binary { vm, binary: binary.clone() });
    }
    if platform.handoffs.knows(job) {
        return Ok(()); // the same offer again
    }
    let hold = platform.vms.hold(&vm, job, "incoming migration")?;
    match platform.vms.ownership(&vm) {
        None => {}
        Some(Claim::Theirs(known, _)) if known <= epoch => {}
        Some(Claim::Theirs(known, owner)) => {
            return Err(OfferError::Stale { vm, offered: epoch, known, owner });
        }
        Some(Claim::Ours(epoch)) => return Err(VmError::Ours { vm, epoch }.into()),
        Some(Claim::Undecided(_, peer)) => return Err(VmError::Undecided { vm, peer }.into()),
    }
    let journal = JournalFile::create(&platform.layout.journal(), job)?;
    let machine = Destination::new(vm.clone(), peer.to_owned(), epoch, plan_bytes);
    let owner = Owner::new(platform, job, journal, machine, plan, peer, Some(connection.clone()), hold);
    owner.port.input(DestinationInput::Start);
    tokio::spawn(owner.run());
    Ok(())
}

pub(crate) fn parse_plan(vm: &str, bytes: &[u8]) -> Result<Plan, OfferError> {
    let wrong = |why: String| OfferError::Plan { vm: vm.to_owned(), why };
    let plan: Plan = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
    if plan.definition.name.as_str() != vm {
        return Err(wrong(format!("it describes VM '{}'", plan.definition.name)));
    }
    let names = plan.disks.iter().map(|disk| &disk.name);
    if !names.eq(plan.definition.disks.iter().map(|disk| &disk.name)) {
        return Err(wrong("its disks are not those of the definition".to_owned()));
    }
    if let Some(disk) = plan.disks.iter().find(|disk| disk.size > longhaul_proto::wire::MAX_IMAGE_BYTES) {
        return Err(wrong(format!("disk '{}' has {} bytes, too many", disk.name, disk.size)));
    }
    Ok(plan)
}

/// Goes on with a hand-off that a crash interrupted.
pub fn resume(platform: &Arc<Platform>, job: JobId, journal: JournalFile) -> Result<(), OfferError> {
    let Some(mut machine) = Destination::recover(journal.records()) else { return Ok(()) };
    let Some(longhaul_proto::handoff::Record::Accepted { vm, peer, plan, .. }) =
        journal.records().first().cloned()
    else {
        return Ok(());
    };
    let plan = parse_plan(&vm, &plan)?;
    let hold = platform.vms.hold(&vm, job, "recovery")?;
    machine.restart(Duration::ZERO);
    let owner = Owner::new(platform, job, journal, machine, plan, &peer, None, hold);
    let note = "recovered from its journal after the daemon was restarted";
    owner.handle.update(|report| report.notes.push(note.to_owned()));
    tokio::spawn(owner.run());
    Ok(())
}

struct Owner {
    platform: Arc<Platform>,
    handle: JobHandle,
    journal: JournalFile,
    machine: Destination,
    plan: Arc<Plan>,
    port: DestinationPort,
    inbox: mpsc::UnboundedReceiver<DestinationInput>,
    actions: JoinSet<()>,
    running: HashMap<&'static str, AbortHandle>,
    origin: Instant,
    _hold: Hold,
}

impl Owner {
    #[allow(clippy::too_many_arguments)]
    fn new(
        platform: &Arc<Platform>,
        job: JobId,
        journal: JournalFile,
        machine: Destination,
        plan: Plan,
        peer: &str,
        connection: Option<Connection>,
        hold: Hold,
    ) -> Self {
        let (inputs, inbox) = mpsc::unbounded_channel();
        let lost = inputs.clone();
        let link = Link::new(platform.network.clone(), peer.to_owned(), job, connection, move || {
            let _ = lost.send(DestinationInput::LinkLost);
        });
        let vm = plan.definition.name.as_str();
        let handle = platform.jobs.begin(job, JobKind::MigrateIn, vm, Some(peer));
        let port = DestinationPort { inbox: inputs, link, incoming: Arc::default(), handle: handle.clone() };
        platform.handoffs.register(job, Port::Destination(port.clone()));
        handle.update(|report| report.image_bytes = plan.disks.iter().map(|disk| disk.size).sum());
        Owner {
            platform: platform.clone(),
            handle,
            journal,
            machine,
            plan: Arc::new(plan),
            port,
            inbox,
            actions: JoinSet::new(),
            running: HashMap::new(),
            origin: Instant::now(),
            _hold: hold,
        }
    }

    async fn run(mut self) {
        let outcome = loop {
            if let Err(error) = self.drain_outputs().await {
                break Err(error.to_string());
            }
            if self.machine.is_ended() {
                break match self.machine.failure() {
                    Some(reason) => Err(reason.to_owned()),
                    None => Ok(format!("VM '{}' runs here", self.plan.definition.name)),
                };
            }
            let deadline = self
                .machine
                .deadline()
                .map(|deadline| tokio::time::Instant::from_std(self.origin + deadline));
            let input = tokio::select! {
                Some(input) = self.inbox.recv() => input,
                () = sleep_until(deadline) => DestinationInput::Tick,
            };
            self.machine.handle_input(self.origin.elapsed(), input);
        };
        self.actions.shutdown().await;
        self.port.link.drain().await;
        self.platform.handoffs.remove(self.handle.id());
        let Owner { handle, _hold, .. } = self;
        drop(_hold);
        handle.finish(outcome);
    }

    async fn drain_outputs(&mut self) -> Result<(), JournalFileError> {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Journal(record) => {
                    failpoint::reach("dest", "journal", record.label());
                    if let Err(error) = self.journal.append(&record) {
                        self.journal_failed(error).await?;
                        continue;
                    }
                    self.platform.vms.note(self.handle.id(), self.journal.records());
                    failpoint::reach("dest", "journalled", record.label());
                }
                Output::Transmit(message) => {
                    failpoint::reach("dest", "transmit", message.label());
                    self.port.link.transmit(message);
                }
                Output::Action(action) => {
                    failpoint::reach("dest", "action", action.label());
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
            self.port.link.transmit(Message::Abort { reason: error.to_string() });
            return Err(error);
        }
        tracing::error!(job = %self.handle.id(), "{error}");
        tokio::time::sleep(JOURNAL_RETRY).await;
        if let Some(mut machine) = Destination::recover(self.journal.records()) {
            machine.restart(self.origin.elapsed());
            self.machine = machine;
        }
        Ok(())
    }

    fn enter(&self, phase: Phase) {
        self.handle.phase(phase_name(phase));
    }

    async fn act(&mut self, action: DestinationAction) {
        if action == DestinationAction::Discard {
            self.actions.shutdown().await;
        }
        let label = action.label();
        if self.running.get(label).is_some_and(|task| !task.is_finished()) {
            return; // asked for twice, done once
        }
        let (platform, plan, port) = (self.platform.clone(), self.plan.clone(), self.port.clone());
        let handle = self.handle.clone();
        let task = self.actions.spawn(async move {
            let input = match perform(&platform, &plan, &port, &handle, action).await {
                Ok(input) => input,
                Err(error) => DestinationInput::Failed { reason: format!("at the destination: {error}") },
            };
            tracing::debug!(job = %handle.id(), "{label} ended");
            port.input(input);
        });
        self.running.insert(label, task);
    }
}

async fn perform(
    platform: &Arc<Platform>,
    plan: &Plan,
    port: &DestinationPort,
    handle: &JobHandle,
    action: DestinationAction,
) -> Result<DestinationInput, IncomingError> {
    let open = || port.incoming().ok_or(IncomingError::NotOpen);
    Ok(match action {
        DestinationAction::PrepareDisks => {
            let incoming = Incoming::prepare(platform, plan).await?;
            let _ = port.incoming.set(Arc::new(incoming));
            DestinationInput::DisksPrepared
        }
        DestinationAction::StartIncoming => {
            open()?.start_hypervisor().await?;
            address::expect(platform, plan).await;
            DestinationInput::IncomingStarted
        }
        DestinationAction::SealDisks { roots } => {
            let started = Instant::now();
            open()?.seal(roots).await?;
            DestinationInput::DisksSealed { took: started.elapsed() }
        }
        DestinationAction::Resume => {
            let cold = incoming::resume(platform, plan).await?;
            address::arrived(platform, plan.definition.name.as_str()).await;
            if cold {
                handle.update(|report| {
                    let note = "the memory was lost after release: the guest was booted from its disks";
                    report.notes.push(note.to_owned());
                });
            }
            DestinationInput::Resumed
        }
        DestinationAction::Rebind => {
            let note = address::rebind(platform, plan).await;
            handle.update(|report| report.notes.push(note));
            DestinationInput::Rebound
        }
        DestinationAction::Discard => {
            address::discard(platform, plan.definition.name.as_str()).await;
            incoming::take_back(platform, plan).await?;
            DestinationInput::Discarded
        }
    })
}
