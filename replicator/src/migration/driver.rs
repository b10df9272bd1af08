//! The owner of one running hand-off. It feeds the pure machine with what happens and carries out what the machine
//! says, in order, the journal first. Which actions there are and how each is carried out is its [`Role`]'s to know;
//! who may run the VM is the machine's.
//!
//! A driver ends when its machine has ended and nothing of the job runs any more. A panic on the way is handled as a
//! crash of the daemon would be: the hand-off goes on from its journal.

use std::collections::HashMap;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use longhaul_proto::handoff::{Event, Limits, Machine, Message, Output, Phase, Record};
use tokio::sync::{Notify, mpsc};
use tokio::task::{self, JoinSet};

use super::Handoffs;
use super::link::Link;
use crate::error_kind::{Failure, Kind};
use crate::failpoint;
use crate::lease::Lease;
use crate::migration::journal::{JournalFile, JournalFileError};
use crate::service::jobs::JobHandle;
use crate::service::vms::{Hold, Vms};

/// How long a journal that cannot be written is left alone before the next try.
const JOURNAL_RETRY: Duration = Duration::from_millis(500);
/// Inputs that wait for the driver; what peers send beyond that is lost, as messages may be.
const MAX_INPUTS: usize = 64;
/// Panics after which a hand-off is left to the next start of the daemon.
const MAX_PANICS: u32 = 3;

/// What one side of a hand-off does.
pub(super) trait Role: Send + Sync + 'static {
    /// The side's machine.
    type Machine: Machine;

    /// Carries out an action. Whatever it starts runs under `lease`.
    fn perform(
        self: Arc<Self>,
        action: <Self::Machine as Machine>::Action,
        lease: Lease,
    ) -> impl Future<Output = Result<<Self::Machine as Machine>::Input, Failure>> + Send;

    /// For the report: `input` is about to be fed to the machine.
    fn observe(&self, machine: &Self::Machine, input: &<Self::Machine as Machine>::Input);

    /// The kind of the failure that came in from work beside the actions, if there was one.
    fn failed_beside(&self) -> Option<Kind> {
        None
    }

    /// For the report: a phase begins.
    fn entered(&self, phase: Phase);

    /// What is said to the other end of a hand-off of which nothing could be written down here.
    fn never_began(&self, why: &str) -> Option<Message>;

    /// What came of it, when it did not fail.
    fn summary(&self) -> String;
}

type Input<R> = <<R as Role>::Machine as Machine>::Input;
type Action<R> = <<R as Role>::Machine as Machine>::Action;
/// Of an action; `None` when it was swept away.
type Outcome<R> = Option<Result<Input<R>, Failure>>;

/// Where a driver takes its inputs from; made before the driver, so that nothing that comes meanwhile is lost.
pub(super) struct Inbox<I> {
    /// Everything but the loss of a connection.
    pub(super) inputs: mpsc::Sender<I>,
    /// A connection has been lost.
    pub(super) lost: Arc<Notify>,
    receiver: mpsc::Receiver<I>,
}

impl<I> Inbox<I> {
    pub(super) fn new() -> Self {
        let (inputs, receiver) = mpsc::channel(MAX_INPUTS);
        Inbox { inputs, lost: Arc::default(), receiver }
    }
}

/// What a driver needs of the platform.
pub(super) struct DriverCx {
    pub(super) handoffs: Arc<Handoffs>,
    pub(super) vms: Arc<Vms>,
}

/// The owner of one hand-off.
pub(super) struct Driver<R: Role> {
    cx: DriverCx,
    role: Arc<R>,
    machine: R::Machine,
    limits: Limits,
    /// Out while a record is being written.
    journal: Option<JournalFile>,
    path: PathBuf,
    handle: JobHandle,
    link: Arc<Link>,
    inbox: Inbox<Input<R>>,
    actions: JoinSet<Outcome<R>>,
    running: HashMap<task::Id, Action<R>>,
    /// Of the actions that run and everything they have started.
    lease: Lease,
    cancelled: bool,
    /// What made the machine fail. It is not in the journal: a hand-off that goes on after a crash was ended by that.
    failed_as: Kind,
    origin: Instant,
}

/// Why a driver stops.
enum Ending {
    /// The machine has ended.
    Ended(Result<String, Failure>),
    /// The journal may hold a record that is not durable, or the driver is broken: nothing more is done with the job,
    /// and nothing with its VM, before the daemon is started again.
    Left(Failure),
}

impl<R: Role> Driver<R> {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new(
        cx: DriverCx,
        role: Arc<R>,
        machine: R::Machine,
        limits: Limits,
        journal: JournalFile,
        handle: JobHandle,
        link: Arc<Link>,
        inbox: Inbox<Input<R>>,
    ) -> Self {
        let path = journal.path().to_owned();
        Driver {
            cx,
            role,
            machine,
            limits,
            journal: Some(journal),
            path,
            handle,
            link,
            inbox,
            actions: JoinSet::new(),
            running: HashMap::new(),
            lease: Lease::new(),
            cancelled: false,
            failed_as: Kind::Io,
            origin: Instant::now(),
        }
    }

    /// Drives the hand-off to its end, then gives the VM back and finishes the job's report.
    pub(super) async fn run(mut self, hold: Hold) {
        let guard = self.handle.guard();
        let mut panics = 0;
        let ending = loop {
            match unpanicked(self.drive()).await {
                Ok(ending) => break ending,
                Err(panic) if panics < MAX_PANICS => {
                    panics += 1;
                    tracing::error!(job = %self.handle.id(), "the hand-off panicked ({panic}); it goes on from its journal");
                    if let Err(ending) = self.take_up_again(&panic).await {
                        break ending;
                    }
                }
                Err(panic) => {
                    let reason = format!("the hand-off panicks again and again ({panic})");
                    break Ending::Left(Failure::new(Kind::Bug, reason));
                }
            }
        };
        self.end_actions().await;
        self.link.close().await;
        let id = self.handle.id();
        // The hold is given back before the job is seen to have ended: whoever waits for it may begin another at once.
        let outcome = match ending {
            Ending::Ended(outcome) => {
                self.cx.handoffs.remove(id);
                drop(hold);
                outcome
            }
            Ending::Left(Failure { kind, reason }) => {
                self.cx.handoffs.leave(id, hold);
                self.cx.handoffs.remove(id);
                let reason = format!(
                    "{reason}. VM and job are left alone: restart the daemon, which goes on from the journal"
                );
                Err(Failure { kind, reason })
            }
        };
        guard.finish(outcome);
    }

    async fn drive(&mut self) -> Ending {
        loop {
            if let Err(left) = self.drain_outputs().await {
                return left;
            }
            if self.machine.ended() {
                return Ending::Ended(match self.machine.failure() {
                    Some(reason) => Err(Failure::new(self.failed_as, reason)),
                    None => Ok(self.role.summary()),
                });
            }
            if let Some((input, kind)) = self.next_input().await {
                self.role.observe(&self.machine, &input);
                let was_well = self.machine.failure().is_none();
                self.machine.input(self.origin.elapsed(), input);
                if was_well && self.machine.failure().is_some() {
                    self.failed_as = kind;
                }
            }
        }
    }

    /// The next thing that happens, and the kind of failure that it is if it makes the machine fail; `None` when it says
    /// nothing to the machine.
    async fn next_input(&mut self) -> Option<(Input<R>, Kind)> {
        let deadline = self.machine.due().map(|due| tokio::time::Instant::from_std(self.origin + due));
        tokio::select! {
            // In that order: what begins a hand-off is in the inbox before anything can be lost.
            biased;
            Some(input) = self.inbox.receiver.recv() => {
                Some((input, self.role.failed_beside().unwrap_or(Kind::Peer)))
            }
            Some(ended) = self.actions.join_next_with_id() => self.action_ended(ended),
            () = self.inbox.lost.notified() => Some((R::Machine::link_lost(), Kind::Peer)),
            () = sleep_until(deadline) => Some((R::Machine::tick(), Kind::Peer)),
            () = self.handle.cancelled(), if !self.cancelled => {
                self.cancelled = true;
                R::Machine::cancel().map(|input| (input, Kind::Denied))
            }
        }
    }

    fn action_ended(
        &mut self,
        ended: Result<(task::Id, Outcome<R>), task::JoinError>,
    ) -> Option<(Input<R>, Kind)> {
        let (id, outcome) = match ended {
            Ok((id, outcome)) => (id, outcome),
            Err(broken) => {
                (broken.id(), Some(Err(Failure::new(Kind::Bug, format!("internal error: {broken}")))))
            }
        };
        let action = self.running.remove(&id)?;
        tracing::debug!(job = %self.handle.id(), "{} ended", R::Machine::label(&action));
        match outcome {
            // It may say that the other side has taken less than it should.
            Some(Ok(input)) => Some((input, Kind::Peer)),
            Some(Err(Failure { kind, reason })) => Some((R::Machine::failed(&action, reason), kind)),
            None => None,
        }
    }

    async fn drain_outputs(&mut self) -> Result<(), Ending> {
        let side = R::Machine::SIDE;
        while let Some(output) = self.machine.poll() {
            match output {
                Output::Journal(record) => {
                    failpoint::reach(side, "journal", record.label());
                    let label = record.label();
                    match self.append(record).await {
                        Ok(()) => failpoint::reach(side, "journalled", label),
                        Err(error) => self.journal_failed(error).await?,
                    }
                }
                Output::Transmit(message) => {
                    failpoint::reach(side, "transmit", message.label());
                    self.link.transmit(message);
                }
                Output::Action(action) => {
                    failpoint::reach(side, "action", R::Machine::label(&action));
                    self.begin(action);
                }
                Output::Event(Event::Phase(phase)) => {
                    self.handle.phase(phase.label());
                    self.role.entered(phase);
                }
                Output::Event(Event::Trouble(trouble)) => {
                    tracing::warn!(job = %self.handle.id(), "{trouble}")
                }
            }
        }
        Ok(())
    }

    /// Writes a record on a blocking thread and takes note of what it says of the VM.
    async fn append(&mut self, record: Record) -> Result<(), JournalFileError> {
        let mut journal = match self.journal.take() {
            Some(journal) => journal,
            None => return Err(JournalFileError::lost(&self.path)),
        };
        let written = task::spawn_blocking(move || {
            let outcome = journal.append(&record);
            (journal, outcome)
        });
        let (journal, outcome) = written.await.map_err(|_| JournalFileError::lost(&self.path))?;
        if outcome.is_ok() {
            self.cx.vms.note(self.handle.id(), journal.records());
        }
        self.journal = Some(journal);
        outcome
    }

    /// A record that is certainly not in the journal did not happen: the hand-off is taken up again from those that are.
    async fn journal_failed(&mut self, error: JournalFileError) -> Result<(), Ending> {
        if matches!(error, JournalFileError::Doubtful { .. }) {
            return Err(Ending::Left(error.into()));
        }
        tracing::error!(job = %self.handle.id(), "{error}");
        self.end_actions().await;
        tokio::time::sleep(JOURNAL_RETRY).await;
        self.restart_machine(error.into())
    }

    /// Waits until nothing of the job runs any more; outcomes of what ran are dropped.
    async fn end_actions(&mut self) {
        std::mem::take(&mut self.lease).end().await;
        self.actions.shutdown().await;
        self.running.clear();
    }

    /// After a panic: nothing of the job runs any more, then it goes on from what its journal holds on disk.
    async fn take_up_again(&mut self, panic: &str) -> Result<(), Ending> {
        self.end_actions().await;
        let path = self.path.clone();
        let opened = task::spawn_blocking(move || JournalFile::open(&path)).await;
        let opened = opened.map_err(|_| JournalFileError::lost(&self.path)).and_then(|opened| opened);
        self.journal = Some(opened.map_err(|error| Ending::Left(error.into()))?);
        let reason = format!("the daemon broke before it could write the job down: {panic}");
        self.restart_machine(Failure::new(Kind::Bug, reason))
    }

    /// Goes on from the journal's records. Without any nothing has been touched, and nothing may be: the job ends.
    fn restart_machine(&mut self, why: Failure) -> Result<(), Ending> {
        let records = self.journal.as_ref().map_or(&[][..], JournalFile::records);
        let Some(mut machine) = R::Machine::recover(records, self.limits) else {
            if let Some(message) = self.role.never_began(&why.reason) {
                self.link.transmit(message);
            }
            return Err(Ending::Ended(Err(why)));
        };
        self.cx.vms.note(self.handle.id(), records);
        machine.restart(self.origin.elapsed());
        if self.machine.failure().is_none() {
            self.failed_as = why.kind;
        }
        self.machine = machine;
        Ok(())
    }

    /// Begins an action that does not run already. One that sweeps begins when nothing else of the job runs.
    fn begin(&mut self, action: Action<R>) {
        if self.running.values().any(|running| *running == action) {
            return;
        }
        let swept = R::Machine::sweeps(&action).then(|| std::mem::take(&mut self.lease));
        if let Some(swept) = &swept {
            swept.revoke();
        }
        let (role, lease, doing) = (self.role.clone(), self.lease.clone(), action.clone());
        let working = async move {
            if let Some(swept) = swept {
                swept.end().await;
            }
            lease.run(role.perform(doing, lease.clone())).await.ok()
        };
        let task = self.actions.spawn(self.lease.track(working));
        self.running.insert(task.id(), action);
    }
}

/// Runs a future; when it panics, gives what the panic said.
async fn unpanicked<T>(work: impl Future<Output = T>) -> Result<T, String> {
    let mut work = pin!(work);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(done)) => Poll::Ready(Ok(done)),
        Err(panic) => {
            let said = panic.downcast_ref::<&str>().map(|said| (*said).to_owned());
            let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
            Poll::Ready(Err(said.unwrap_or_else(|| "no message".to_owned())))
        }
    })
    .await
}

/// Sleeps until then, or for ever.
async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
