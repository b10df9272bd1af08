//! The source's half of the hand-off: it owns the VM until its `Released` record is durable, and decides.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Deadline, Event, Message, Output, Phase, Record, Root, short};
use crate::ids::Epoch;
use crate::limits::{MAX_NAME_BYTES, MAX_PLAN_BYTES};

/// When to stop trying to do better, and how long to wait for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Switch over once the last disk round is predicted to fit into this.
    pub max_downtime: Duration,
    /// Rounds of dirty blocks before the memory is sent, at most.
    pub max_rounds: u32,
    /// The shortest pause between disk rounds while the memory is copied; it is never shorter than the round before it.
    pub round_pause: Duration,
    /// How long an answer to a message may take before the migration is rolled back. While the destination says that it
    /// gets ahead with its disks the answer to the offer may take longer.
    pub answer_timeout: Duration,
    /// How long the memory may be copied without [`SourceInput::MemoryProgress`] before the migration is rolled back.
    pub memory_stall: Duration,
    /// How long the guest may stand still before it is released; then the migration is rolled back.
    pub switchover_timeout: Duration,
    /// How often an unanswered `Release` is sent again.
    pub resend: Duration,
}

impl Limits {
    /// For a guest that may stand still this long. Its switchover is given up after ten times that, and not before 10 s:
    /// a disk that is slow to make the last blocks durable costs a longer pause, not the migration.
    pub fn with_max_downtime(max_downtime: Duration) -> Self {
        Limits {
            max_downtime,
            max_rounds: 20,
            round_pause: Duration::from_millis(50),
            answer_timeout: Duration::from_secs(60),
            memory_stall: Duration::from_secs(60),
            switchover_timeout: max_downtime.saturating_mul(10).max(Duration::from_secs(10)),
            resend: Duration::from_millis(500),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits::with_max_downtime(Duration::from_millis(300))
    }
}

/// What the source's service does. Each ends in the input of the same name, or in [`SourceInput::Failed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceAction {
    /// Begin to track writes, then copy every disk once.
    CopyDisks,
    /// Send the blocks written since the last round.
    RunRound,
    /// Start the hypervisor's migration stream; done when the guest is paused, its disks still ours.
    SendMemory,
    /// Guest paused: wait until every write has reached us.
    DrainDisks,
    /// Send the last blocks and compute the roots. The other side waits for the blocks before it compares.
    SendFinal,
    /// Let the hypervisor send its last state.
    FinishMemory,
    /// Undo everything; the guest runs here.
    RollBack,
    /// The VM runs elsewhere: end what is left of it here.
    Retire,
}

impl SourceAction {
    /// The action's name in logs and fault labels.
    pub fn label(self) -> &'static str {
        match self {
            SourceAction::CopyDisks => "copy_disks",
            SourceAction::RunRound => "run_round",
            SourceAction::SendMemory => "send_memory",
            SourceAction::DrainDisks => "drain_disks",
            SourceAction::SendFinal => "send_final",
            SourceAction::FinishMemory => "finish_memory",
            SourceAction::RollBack => "roll_back",
            SourceAction::Retire => "retire",
        }
    }
}

/// What may happen to the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceInput {
    /// Begin.
    Start,
    /// The other end says something.
    Message(Message),
    /// The connection is gone; messages will be lost until it is back.
    LinkLost,
    /// A person wants it to stop.
    Cancel,
    /// Time has passed.
    Tick,
    /// An action failed.
    Failed {
        /// Which.
        action: SourceAction,
        /// Why, for a person to read.
        reason: String,
    },
    /// [`SourceAction::CopyDisks`] is done and applied on the other side.
    DisksCopied {
        /// Bytes written by the guest meanwhile and not yet sent.
        dirty_bytes: u64,
    },
    /// [`SourceAction::RunRound`] is done and applied on the other side.
    RoundDone {
        /// Bytes of blocks sent.
        sent_bytes: u64,
        /// How long that took.
        took: Duration,
        /// Bytes written meanwhile and not yet sent.
        dirty_bytes: u64,
    },
    /// [`SourceAction::SendMemory`] goes on, and the other side has taken more than when this came last.
    MemoryProgress,
    /// [`SourceAction::SendMemory`]: the guest is paused.
    GuestPaused,
    /// [`SourceAction::DrainDisks`] is done.
    DisksDrained,
    /// [`SourceAction::SendFinal`] is done.
    FinalSent {
        /// One root a disk.
        roots: Vec<Root>,
    },
    /// [`SourceAction::FinishMemory`] is done.
    MemorySent,
    /// [`SourceAction::RollBack`] is done.
    RolledBack,
    /// [`SourceAction::Retire`] is done.
    Retired,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    New,
    Offered,
    Bulk,
    Precopy { round: u32, smallest: u64, stalled: u32 },
    AwaitMemoryReady { round_running: bool },
    Memory { round_running: bool, paused: bool },
    Draining,
    Final { sent: bool, memory: bool, ready: bool },
    Released { epoch: Epoch },
    Retiring { epoch: Epoch },
    Retired { epoch: Epoch },
    RollingBack { reason: String },
    RolledBack { reason: String },
}

/// The source's state machine.
#[derive(Debug)]
pub struct Source {
    vm: String,
    peer: String,
    epoch: Epoch,
    plan: Vec<u8>,
    limits: Limits,
    state: State,
    /// When to do the next thing: a round, a repetition.
    next: Deadline,
    /// When to give up waiting, and to roll back.
    limit: Deadline,
    outputs: VecDeque<Output<SourceAction>>,
}

impl Source {
    /// A new hand-off of `vm`, owned here at `epoch`, to `peer`. Nothing happens before [`SourceInput::Start`]. One
    /// whose names or `plan` are longer than [`crate::wire`] allows ends at once, with nothing touched or written.
    pub fn new(vm: String, peer: String, epoch: Epoch, plan: Vec<u8>, limits: Limits) -> Self {
        let (next, limit, outputs) = Default::default();
        Source { vm, peer, epoch, plan, limits, state: State::New, next, limit, outputs }
    }

    /// The hand-off as a journal tells it after a crash. `None` when the records are not a source's.
    ///
    /// Without `Released` the VM is ours and the guest is taken back; with it recovery goes forward.
    pub fn recover(records: &[Record], limits: Limits) -> Option<Self> {
        let Some(Record::Started { vm, peer, epoch }) = records.first() else { return None };
        let mut source = Source::new(vm.clone(), peer.clone(), *epoch, Vec::new(), limits);
        source.state = match &records[1..] {
            [] => State::Bulk,
            [Record::RolledBack { reason }] => State::RolledBack { reason: reason.clone() },
            [Record::Released { epoch }] => State::Released { epoch: *epoch },
            [Record::Released { epoch }, Record::Retired] => State::Retired { epoch: *epoch },
            _ => return None,
        };
        Some(source)
    }

    /// After [`Source::recover`]: go on from there. A hand-off that was rolled back says so once more, in case its owner
    /// was lost while it answered.
    pub fn restart(&mut self, now: Duration) {
        match self.state.clone() {
            State::Released { epoch } => self.release(now, epoch),
            State::Retired { .. } => {}
            State::RolledBack { reason } => self.transmit(Message::Abort { reason }),
            _ => self.roll_back("the daemon was restarted before the VM was released".to_owned()),
        }
    }

    /// One mutation; drain [`Source::poll_output`] afterwards.
    pub fn handle_input(&mut self, now: Duration, input: SourceInput) {
        match input {
            SourceInput::Start => self.start(now),
            SourceInput::Message(message) => self.handle_message(now, message),
            SourceInput::LinkLost => self.fail("the connection to the peer was lost".to_owned()),
            SourceInput::Cancel if self.state == State::New => self.end_untouched("cancelled".to_owned()),
            SourceInput::Cancel => self.fail("cancelled".to_owned()),
            SourceInput::Tick => self.tick(now),
            SourceInput::Failed { action, reason } => self.action_failed(now, action, reason),
            SourceInput::DisksCopied { dirty_bytes } => {
                if self.state == State::Bulk {
                    self.enter(Phase::Precopy);
                    self.state = State::Precopy { round: 1, smallest: dirty_bytes, stalled: 0 };
                    self.act(SourceAction::RunRound);
                }
            }
            SourceInput::RoundDone { sent_bytes, took, dirty_bytes } => {
                self.round_done(now, sent_bytes, took, dirty_bytes);
            }
            SourceInput::MemoryProgress => {
                if let State::Memory { paused: false, .. } = self.state {
                    self.limit = Some(now + self.limits.memory_stall);
                }
            }
            SourceInput::GuestPaused => self.guest_paused(now),
            SourceInput::DisksDrained => {
                if self.state == State::Draining {
                    self.state = State::Final { sent: false, memory: false, ready: false };
                    self.act(SourceAction::SendFinal);
                    self.act(SourceAction::FinishMemory);
                }
            }
            SourceInput::FinalSent { roots } => {
                if let State::Final { sent, .. } = &mut self.state {
                    *sent = true;
                    self.transmit(Message::Final { roots });
                }
            }
            SourceInput::MemorySent => {
                if let State::Final { memory, .. } = &mut self.state {
                    *memory = true;
                    self.maybe_release(now);
                }
            }
            SourceInput::RolledBack => {
                if let State::RollingBack { reason } = self.state.clone() {
                    self.next = None;
                    self.outputs.push_back(Output::Journal(Record::RolledBack { reason: reason.clone() }));
                    self.state = State::RolledBack { reason };
                    self.enter(Phase::RolledBack);
                }
            }
            SourceInput::Retired => {
                if let State::Retiring { epoch } = self.state {
                    self.next = None;
                    self.outputs.push_back(Output::Journal(Record::Retired));
                    self.state = State::Retired { epoch };
                    self.enter(Phase::Done);
                }
            }
        }
    }

    /// The next thing to carry out, or `None` when there is nothing until the next input or deadline.
    pub fn poll_output(&mut self) -> Option<Output<SourceAction>> {
        self.outputs.pop_front()
    }

    /// When [`SourceInput::Tick`] is due.
    pub fn deadline(&self) -> Deadline {
        self.next.into_iter().chain(self.limit).min()
    }

    /// Whether nothing more will happen unless the other end asks.
    pub fn is_ended(&self) -> bool {
        matches!(self.state, State::Retired { .. } | State::RolledBack { .. })
    }

    /// Whether the VM is ours to run: true until `Released` is written.
    pub fn owns(&self) -> bool {
        !matches!(self.state, State::Released { .. } | State::Retiring { .. } | State::Retired { .. })
    }

    /// Why it was rolled back, once it is.
    pub fn failure(&self) -> Option<&str> {
        match &self.state {
            State::RollingBack { reason } | State::RolledBack { reason } => Some(reason),
            _ => None,
        }
    }

    fn start(&mut self, now: Duration) {
        if self.state != State::New {
            return;
        }
        if self.plan.len() > MAX_PLAN_BYTES || self.vm.len().max(self.peer.len()) > MAX_NAME_BYTES {
            return self
                .end_untouched("the description or a name of the VM is too long to be offered".to_owned());
        }
        let (vm, peer, epoch) = (self.vm.clone(), self.peer.clone(), self.epoch);
        self.enter(Phase::Prepare);
        self.outputs.push_back(Output::Journal(Record::Started { vm: vm.clone(), peer, epoch }));
        let plan = std::mem::take(&mut self.plan);
        self.transmit(Message::Offer { vm, epoch, plan });
        self.state = State::Offered;
        self.limit = Some(now + self.limits.answer_timeout);
    }

    fn handle_message(&mut self, now: Duration, message: Message) {
        match (message, self.state.clone()) {
            (Message::Preparing, State::Offered) => self.limit = Some(now + self.limits.answer_timeout),
            (Message::Accepted, State::Offered) => {
                self.limit = None;
                self.enter(Phase::Bulk);
                self.state = State::Bulk;
                self.act(SourceAction::CopyDisks);
            }
            (Message::MemoryReady, State::AwaitMemoryReady { round_running }) => {
                self.limit = Some(now + self.limits.memory_stall);
                self.state = State::Memory { round_running, paused: false };
                self.act(SourceAction::SendMemory);
                self.continue_rounds();
            }
            // A destination asks only after it has promised: a `Query` tells as much as the `Ready` that was lost.
            (Message::Ready { .. } | Message::Query, State::Final { sent, memory, .. }) => {
                self.state = State::Final { sent, memory, ready: true };
                self.maybe_release(now);
            }
            (Message::Resumed, State::Released { epoch }) => {
                self.state = State::Retiring { epoch };
                self.next = None;
                self.act(SourceAction::Retire);
            }
            (
                Message::Query | Message::Ready { .. },
                State::Released { epoch } | State::Retiring { epoch } | State::Retired { epoch },
            ) => self.transmit(Message::Release { epoch }),
            // It prepares what is off: our `Abort` came before what it answers, or never.
            (
                Message::Preparing
                | Message::Accepted
                | Message::MemoryReady
                | Message::Ready { .. }
                | Message::Query,
                State::RollingBack { reason } | State::RolledBack { reason },
            ) => self.transmit(Message::Abort { reason }),
            // A wish that comes too late. It is not answered, the timer repeats the decision: a destination that has
            // lost its records says this to every `Release`.
            (Message::Abort { reason }, State::Released { .. }) => {
                let text = format!("the peer, which owns the VM now, wants to give it up: {}", short(reason));
                self.outputs.push_back(Output::Event(Event::Trouble(text)));
            }
            (Message::Resumed, State::RollingBack { .. } | State::RolledBack { .. }) => {
                let text = "the peer says that it runs the VM, which was never released: look at it there";
                self.outputs.push_back(Output::Event(Event::Trouble(text.to_owned())));
            }
            (Message::Abort { reason }, _) => self.fail(reason),
            _ => {}
        }
    }

    fn round_done(&mut self, now: Duration, sent_bytes: u64, took: Duration, dirty_bytes: u64) {
        match self.state.clone() {
            State::Precopy { round, smallest, stalled } => {
                // A round that leaves no less than the best one before brought nothing.
                let stalled = if round > 1 && dirty_bytes >= smallest { stalled + 1 } else { 0 };
                let fits = predicted(sent_bytes, took, dirty_bytes) <= self.limits.max_downtime / 2;
                if fits || stalled >= 3 || round >= self.limits.max_rounds {
                    self.enter(Phase::Memory);
                    self.state = State::AwaitMemoryReady { round_running: false };
                    self.limit = Some(now + self.limits.answer_timeout);
                    self.transmit(Message::StartMemory);
                } else {
                    let smallest = smallest.min(dirty_bytes);
                    self.state = State::Precopy { round: round + 1, smallest, stalled };
                    self.act(SourceAction::RunRound);
                }
            }
            State::Memory { paused: true, .. } => {
                self.state = State::Draining;
                self.act(SourceAction::DrainDisks);
            }
            State::Memory { paused: false, .. } => {
                self.state = State::Memory { round_running: false, paused: false };
                // Rounds take no more than half of the time: the memory needs processors and path too.
                self.next = Some(now + self.limits.round_pause.max(took));
            }
            _ => {}
        }
    }

    fn continue_rounds(&mut self) {
        if let State::Memory { round_running: false, paused: false } = self.state {
            self.next = None;
            self.state = State::Memory { round_running: true, paused: false };
            self.act(SourceAction::RunRound);
        }
    }

    fn guest_paused(&mut self, now: Duration) {
        let State::Memory { round_running, paused: false } = self.state else { return };
        self.next = None;
        self.limit = Some(now + self.limits.switchover_timeout);
        self.enter(Phase::Switchover);
        if round_running {
            self.state = State::Memory { round_running, paused: true };
        } else {
            self.state = State::Draining;
            self.act(SourceAction::DrainDisks);
        }
    }

    fn maybe_release(&mut self, now: Duration) {
        if let State::Final { sent: true, memory: true, ready: true } = self.state {
            let epoch = self.epoch.next();
            self.outputs.push_back(Output::Journal(Record::Released { epoch }));
            self.enter(Phase::Release);
            self.release(now, epoch);
        }
    }

    fn release(&mut self, now: Duration, epoch: Epoch) {
        self.state = State::Released { epoch };
        self.transmit(Message::Release { epoch });
        self.limit = None;
        self.next = Some(now + self.limits.resend);
    }

    fn tick(&mut self, now: Duration) {
        if self.limit.is_some_and(|limit| now >= limit) {
            return self.give_up();
        }
        if self.next.is_none_or(|next| now < next) {
            return;
        }
        self.next = None;
        match self.state.clone() {
            State::Released { epoch } => self.release(now, epoch),
            State::Retiring { .. } => self.act(SourceAction::Retire),
            State::RollingBack { .. } => self.act(SourceAction::RollBack),
            State::Memory { .. } => self.continue_rounds(),
            _ => {}
        }
    }

    fn give_up(&mut self) {
        let (what, time) = match self.state {
            State::Memory { paused: false, .. } => {
                ("the peer took nothing of the memory for", self.limits.memory_stall)
            }
            State::Memory { .. } | State::Draining | State::Final { .. } => (
                "the guest could not be handed over, and has stood still for",
                self.limits.switchover_timeout,
            ),
            _ => ("the peer has not answered for", self.limits.answer_timeout),
        };
        self.fail(format!("{what} {} s", time.as_secs_f64()));
    }

    fn action_failed(&mut self, now: Duration, action: SourceAction, reason: String) {
        match (action, &self.state) {
            // These two have no way out but trying again.
            (SourceAction::RollBack, State::RollingBack { .. })
            | (SourceAction::Retire, State::Retiring { .. }) => {
                self.outputs.push_back(Output::Event(Event::Trouble(short(reason))));
                self.next = Some(now + self.limits.resend);
            }
            (SourceAction::RollBack | SourceAction::Retire, _) => {}
            _ => self.fail(reason),
        }
    }

    /// Before release a failure rolls back; after it nothing does.
    fn fail(&mut self, reason: String) {
        let idle = matches!(self.state, State::New | State::RollingBack { .. } | State::RolledBack { .. });
        if self.owns() && !idle {
            self.roll_back(reason);
        }
    }

    /// Nothing was begun, so nothing is written or undone.
    fn end_untouched(&mut self, reason: String) {
        self.outputs.push_back(Output::Event(Event::Trouble(reason.clone())));
        self.state = State::RolledBack { reason };
        self.enter(Phase::RolledBack);
    }

    fn roll_back(&mut self, reason: String) {
        let reason = short(reason);
        (self.next, self.limit) = (None, None);
        self.outputs.push_back(Output::Event(Event::Trouble(reason.clone())));
        self.enter(Phase::RollingBack);
        self.transmit(Message::Abort { reason: reason.clone() });
        self.state = State::RollingBack { reason };
        self.act(SourceAction::RollBack);
    }

    fn enter(&mut self, phase: Phase) {
        self.outputs.push_back(Output::Event(Event::Phase(phase)));
    }

    fn transmit(&mut self, message: Message) {
        self.outputs.push_back(Output::Transmit(message));
    }

    fn act(&mut self, action: SourceAction) {
        self.outputs.push_back(Output::Action(action));
    }
}

/// How long the blocks left would take at the rate of the round just done. Small rounds are all overhead and say little
/// about the rate, so it is never taken below 1 MB/s.
fn predicted(sent_bytes: u64, took: Duration, dirty_bytes: u64) -> Duration {
    let rate = (sent_bytes as f64 / took.as_secs_f64().max(1e-6)).max(1e6);
    Duration::from_secs_f64(dirty_bytes as f64 / rate)
}
