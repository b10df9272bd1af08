//! The destination's half of the hand-off: it prepares, promises, and then does as the source decides.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Deadline, Event, Message, Output, Phase, Record, Root, short};
use crate::ids::Epoch;

/// How often an undecided destination asks, and an unacknowledged owner reports.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How often the source is told that the images are still being prepared, at most.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// How long the images may be prepared without progress. A source waits as long; but one that has given up may have said so
/// before its offer came.
const PREPARING_STALL: Duration = Duration::from_secs(60);

/// What the destination's service does. Each ends in the input of the same name, or in [`DestinationInput::Failed`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DestinationAction {
    /// Judge the offer; create the images.
    PrepareDisks,
    /// Start the hypervisor, waiting for memory.
    StartIncoming,
    /// Wait until the last blocks are applied, make the images durable, compare them with these roots.
    SealDisks {
        /// One root a disk.
        roots: Vec<Root>,
    },
    /// Start the guest. When its memory is lost, boot it from its disks: they hold everything it was promised.
    Resume,
    /// Move the address.
    Rebind,
    /// End and remove whatever there is of it.
    Discard,
}

impl DestinationAction {
    /// The action's name in logs and fault labels.
    pub fn label(&self) -> &'static str {
        match self {
            DestinationAction::PrepareDisks => "prepare_disks",
            DestinationAction::StartIncoming => "start_incoming",
            DestinationAction::SealDisks { .. } => "seal_disks",
            DestinationAction::Resume => "resume",
            DestinationAction::Rebind => "rebind",
            DestinationAction::Discard => "discard",
        }
    }
}

/// What may happen to the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DestinationInput {
    /// The offer came: begin.
    Start,
    /// The other end says something.
    Message(Message),
    /// The connection is gone; messages will be lost until it is back.
    LinkLost,
    /// The source will never answer again, and a person has decided in its place. Heeded only after `Ready`.
    Resolve {
        /// Whether the VM is ours; else it is discarded.
        keep: bool,
    },
    /// Time has passed.
    Tick,
    /// An action failed, or something that runs beside them: a disk's stream, the hypervisor.
    Failed {
        /// Why, for a person to read.
        reason: String,
    },
    /// [`DestinationAction::PrepareDisks`] goes on, and more of it is done than when this came last. As often as it likes.
    Preparing,
    /// [`DestinationAction::PrepareDisks`] is done.
    DisksPrepared,
    /// [`DestinationAction::StartIncoming`] is done.
    IncomingStarted,
    /// The whole memory stream has arrived and been loaded; the guest is paused.
    MemoryLoaded,
    /// [`DestinationAction::SealDisks`] is done and the roots were equal.
    DisksSealed {
        /// How long that took; for the source's report.
        took: Duration,
    },
    /// [`DestinationAction::Resume`] is done.
    Resumed,
    /// [`DestinationAction::Rebind`] is done.
    Rebound,
    /// [`DestinationAction::Discard`] is done.
    Discarded,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    New,
    /// The source hears of progress from then on.
    Preparing {
        tell_at: Duration,
    },
    Receiving {
        incoming: bool,
        seal: Seal,
        loaded: bool,
    },
    /// Promised, undecided.
    Ready,
    Resuming,
    /// Runs here; `Resumed` is journalled, and `Rebound` once it is.
    Running {
        rebound: bool,
    },
    Discarding {
        reason: String,
    },
    Discarded {
        reason: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seal {
    Open,
    Sealing,
    Sealed { took: Duration },
}

/// The destination's state machine.
#[derive(Debug)]
pub struct Destination {
    vm: String,
    peer: String,
    epoch: Epoch,
    plan: Vec<u8>,
    state: State,
    deadline: Deadline,
    outputs: VecDeque<Output<DestinationAction>>,
}

impl Destination {
    /// An offer of `vm` by `peer`, who owns it at `epoch`. Nothing happens before [`DestinationInput::Start`].
    pub fn new(vm: String, peer: String, epoch: Epoch, plan: Vec<u8>) -> Self {
        Destination { vm, peer, epoch, plan, state: State::New, deadline: None, outputs: VecDeque::new() }
    }

    /// The hand-off as a journal tells it after a crash. `None` when the records are not a destination's.
    ///
    /// Without `Ready` it is discarded; with it the source is asked; with `Owned` recovery goes forward.
    pub fn recover(records: &[Record]) -> Option<Self> {
        let Some(Record::Accepted { vm, peer, epoch, plan }) = records.first() else { return None };
        let mut destination = Destination::new(vm.clone(), peer.clone(), *epoch, plan.clone());
        destination.state = match &records[1..] {
            [] => State::Preparing { tell_at: Duration::ZERO },
            [Record::Discarded { reason }] | [Record::Ready, Record::Discarded { reason }] => {
                State::Discarded { reason: reason.clone() }
            }
            [Record::Ready] => State::Ready,
            [Record::Ready, Record::Owned { .. }] => State::Resuming,
            [Record::Ready, Record::Owned { .. }, Record::Resumed] => State::Running { rebound: false },
            [Record::Ready, Record::Owned { .. }, Record::Resumed, Record::Rebound] => {
                State::Running { rebound: true }
            }
            _ => return None,
        };
        Some(destination)
    }

    /// After [`Destination::recover`]: go on from there. Does nothing for a hand-off that has ended.
    pub fn restart(&mut self, now: Duration) {
        match self.state {
            State::Ready => self.ask(now),
            State::Resuming => self.act(DestinationAction::Resume),
            State::Running { rebound: false } => {
                self.transmit(Message::Resumed);
                self.act(DestinationAction::Rebind);
            }
            State::Running { rebound: true } | State::Discarded { .. } => {}
            _ => self.discard("the daemon was restarted before the VM was received".to_owned(), true),
        }
    }

    /// One mutation; drain [`Destination::poll_output`] afterwards.
    pub fn handle_input(&mut self, now: Duration, input: DestinationInput) {
        match (input, self.state.clone()) {
            (DestinationInput::Start, State::New) => {
                self.enter(Phase::Prepare);
                self.outputs.push_back(Output::Journal(Record::Accepted {
                    vm: self.vm.clone(),
                    peer: self.peer.clone(),
                    epoch: self.epoch,
                    plan: self.plan.clone(),
                }));
                self.state = State::Preparing { tell_at: now };
                self.deadline = Some(now + PREPARING_STALL);
                self.act(DestinationAction::PrepareDisks);
            }
            (DestinationInput::Preparing, State::Preparing { tell_at }) => {
                self.deadline = Some(now + PREPARING_STALL);
                if now >= tell_at {
                    self.state = State::Preparing { tell_at: now + TELL_EVERY };
                    self.transmit(Message::Preparing);
                }
            }
            (DestinationInput::Message(message), _) => self.handle_message(now, message),
            (DestinationInput::LinkLost, State::Ready) => self.ask(now),
            (DestinationInput::LinkLost, State::New | State::Preparing { .. } | State::Receiving { .. }) => {
                // Told, in case the source's own end of it lives.
                self.discard("the connection to the source was lost".to_owned(), true);
            }
            (DestinationInput::Resolve { keep: true }, State::Ready) => self.own(self.epoch.next()),
            (DestinationInput::Resolve { keep: false }, State::Ready) => {
                self.discard("a person decided that the VM stays with the source".to_owned(), false);
            }
            (DestinationInput::Tick, _) => self.tick(now),
            (DestinationInput::Failed { reason }, _) => self.failed(now, reason),
            (DestinationInput::DisksPrepared, State::Preparing { .. }) => {
                self.deadline = None;
                self.enter(Phase::Bulk);
                self.state = State::Receiving { incoming: false, seal: Seal::Open, loaded: false };
                self.transmit(Message::Accepted);
            }
            (DestinationInput::IncomingStarted, State::Receiving { .. }) => {
                self.transmit(Message::MemoryReady)
            }
            (DestinationInput::MemoryLoaded, State::Receiving { incoming, seal, .. }) => {
                self.state = State::Receiving { incoming, seal, loaded: true };
                self.maybe_ready(now);
            }
            (
                DestinationInput::DisksSealed { took },
                State::Receiving { incoming, seal: Seal::Sealing, loaded },
            ) => {
                self.state = State::Receiving { incoming, seal: Seal::Sealed { took }, loaded };
                self.maybe_ready(now);
            }
            (DestinationInput::Resumed, State::Resuming) => {
                self.deadline = None;
                self.outputs.push_back(Output::Journal(Record::Resumed));
                self.state = State::Running { rebound: false };
                self.transmit(Message::Resumed);
                self.enter(Phase::Rebind);
                self.act(DestinationAction::Rebind);
            }
            (DestinationInput::Rebound, State::Running { rebound: false }) => {
                self.deadline = None;
                self.outputs.push_back(Output::Journal(Record::Rebound));
                self.state = State::Running { rebound: true };
                self.enter(Phase::Done);
            }
            (DestinationInput::Discarded, State::Discarding { reason }) => {
                self.deadline = None;
                self.outputs.push_back(Output::Journal(Record::Discarded { reason: reason.clone() }));
                self.state = State::Discarded { reason };
                self.enter(Phase::RolledBack);
            }
            _ => {}
        }
    }

    /// The next thing to carry out, or `None` when there is nothing until the next input or deadline.
    pub fn poll_output(&mut self) -> Option<Output<DestinationAction>> {
        self.outputs.pop_front()
    }

    /// When [`DestinationInput::Tick`] is due.
    pub fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// Whether nothing more will happen unless the other end asks.
    pub fn is_ended(&self) -> bool {
        matches!(self.state, State::Running { rebound: true } | State::Discarded { .. })
    }

    /// Whether the VM is ours to run: true from the moment `Owned` is written.
    pub fn owns(&self) -> bool {
        matches!(self.state, State::Resuming | State::Running { .. })
    }

    /// Why it was discarded, once it is.
    pub fn failure(&self) -> Option<&str> {
        match &self.state {
            State::Discarding { reason } | State::Discarded { reason } => Some(reason),
            _ => None,
        }
    }

    fn handle_message(&mut self, now: Duration, message: Message) {
        match (message, self.state.clone()) {
            (Message::StartMemory, State::Receiving { incoming: false, seal, loaded }) => {
                self.state = State::Receiving { incoming: true, seal, loaded };
                self.enter(Phase::Memory);
                self.act(DestinationAction::StartIncoming);
            }
            (Message::Final { roots }, State::Receiving { incoming, seal: Seal::Open, loaded }) => {
                self.state = State::Receiving { incoming, seal: Seal::Sealing, loaded };
                self.enter(Phase::Switchover);
                self.act(DestinationAction::SealDisks { roots });
            }
            (Message::Release { epoch }, State::Ready) => self.own(epoch),
            (Message::Release { .. }, State::Running { .. }) => self.transmit(Message::Resumed),
            (
                Message::Abort { reason },
                State::Ready | State::New | State::Preparing { .. } | State::Receiving { .. },
            ) => {
                self.discard(reason, false);
            }
            // The source goes on with what is off here: it did not hear so.
            (
                Message::Offer { .. } | Message::StartMemory | Message::Final { .. },
                State::Discarding { reason } | State::Discarded { reason },
            ) => self.transmit(Message::Abort { reason }),
            (Message::Unknown, State::Preparing { .. } | State::Receiving { .. }) => {
                self.discard("the source knows nothing of this job".to_owned(), false);
            }
            (Message::Unknown, State::Ready) => {
                let text = "the source knows nothing of this job: not resuming. If the VM runs nowhere, decide with \
                            `longhaul resolve`";
                self.outputs.push_back(Output::Event(Event::Trouble(text.to_owned())));
                self.deadline = Some(now + ASK_EVERY * 20);
            }
            _ => {}
        }
    }

    fn maybe_ready(&mut self, now: Duration) {
        if let State::Receiving { seal: Seal::Sealed { took }, loaded: true, .. } = self.state {
            self.outputs.push_back(Output::Journal(Record::Ready));
            self.state = State::Ready;
            let sealed_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            self.transmit(Message::Ready { sealed_us });
            self.deadline = Some(now + ASK_EVERY);
        }
    }

    fn own(&mut self, epoch: Epoch) {
        self.outputs.push_back(Output::Journal(Record::Owned { epoch }));
        self.enter(Phase::Resume);
        self.deadline = None;
        self.state = State::Resuming;
        self.act(DestinationAction::Resume);
    }

    fn ask(&mut self, now: Duration) {
        self.transmit(Message::Query);
        self.deadline = Some(now + ASK_EVERY);
    }

    fn tick(&mut self, now: Duration) {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        self.deadline = None;
        match self.state {
            State::Preparing { .. } => {
                let seconds = PREPARING_STALL.as_secs();
                self.discard(format!("the images were prepared without progress for {seconds} s"), true);
            }
            State::Ready => self.ask(now),
            State::Resuming => self.act(DestinationAction::Resume),
            State::Running { rebound: false } => self.act(DestinationAction::Rebind),
            State::Discarding { .. } => self.act(DestinationAction::Discard),
            _ => {}
        }
    }

    fn failed(&mut self, now: Duration, reason: String) {
        let reason = short(reason);
        match self.state {
            State::New | State::Preparing { .. } | State::Receiving { .. } => self.discard(reason, true),
            // Promised: only the source can end it. Tell it, and wait for what it says.
            State::Ready => {
                self.transmit(Message::Abort { reason: reason.clone() });
                self.outputs.push_back(Output::Event(Event::Trouble(reason)));
            }
            State::Resuming | State::Running { rebound: false } | State::Discarding { .. } => {
                self.outputs.push_back(Output::Event(Event::Trouble(reason)));
                self.deadline = Some(now + ASK_EVERY);
            }
            State::Running { rebound: true } => self.outputs.push_back(Output::Event(Event::Trouble(reason))),
            State::Discarded { .. } => {}
        }
    }

    fn discard(&mut self, reason: String, tell: bool) {
        let reason = short(reason);
        self.deadline = None;
        if tell {
            self.transmit(Message::Abort { reason: reason.clone() });
        }
        self.outputs.push_back(Output::Event(Event::Trouble(reason.clone())));
        self.enter(Phase::RollingBack);
        self.state = State::Discarding { reason };
        self.act(DestinationAction::Discard);
    }

    fn enter(&mut self, phase: Phase) {
        self.outputs.push_back(Output::Event(Event::Phase(phase)));
    }

    fn transmit(&mut self, message: Message) {
        self.outputs.push_back(Output::Transmit(message));
    }

    fn act(&mut self, action: DestinationAction) {
        self.outputs.push_back(Output::Action(action));
    }
}
