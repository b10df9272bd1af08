//! Either half of the hand-off, as the one who drives it sees it: what a driver feeds, what it carries out, and what it
//! may ask. It decides nothing of its own.

use std::fmt::Debug;
use std::time::Duration;

use super::{
    Deadline, Destination, DestinationAction, DestinationInput, Limits, Message, Output, Record, Source,
    SourceAction, SourceInput,
};

/// Either half of the hand-off. See the module above for what a driver must hold to.
pub trait Machine: Sized + Send + 'static {
    /// What it asks its driver to do.
    type Action: Clone + Debug + PartialEq + Send + Sync + 'static;
    /// What may happen to it.
    type Input: Clone + Debug + Send + 'static;

    /// Its name in logs and fault labels: `source` or `destination`.
    const SIDE: &'static str;

    /// The hand-off as a journal tells it. `None` when the records are not of this side. Only a source has `limits`.
    fn recover(records: &[Record], limits: Limits) -> Option<Self>;
    /// After [`Machine::recover`]: go on from there. A hand-off that has ended says at most how.
    fn restart(&mut self, now: Duration);
    /// One mutation; drain [`Machine::poll`] afterwards.
    fn input(&mut self, now: Duration, input: Self::Input);
    /// The next thing to carry out, or `None` when there is nothing until the next input or deadline.
    fn poll(&mut self) -> Option<Output<Self::Action>>;
    /// When [`Machine::tick`] is to be fed at the latest.
    fn due(&self) -> Deadline;
    /// Whether nothing more will happen unless the other end asks.
    fn ended(&self) -> bool;
    /// Whether the VM is ours to run.
    fn owns(&self) -> bool;
    /// Why it was rolled back or discarded, once it is.
    fn failure(&self) -> Option<&str>;

    /// The other end says something.
    fn message(message: Message) -> Self::Input;
    /// The connection is gone.
    fn link_lost() -> Self::Input;
    /// Time has passed.
    fn tick() -> Self::Input;
    /// A person wants it to stop. `None` at the destination, which only its source can stop.
    fn cancel() -> Option<Self::Input>;
    /// This action failed.
    fn failed(action: &Self::Action, reason: String) -> Self::Input;

    /// Whether every other action of the job must have ended, with all that it does to images and hypervisor, before
    /// this one begins.
    fn sweeps(action: &Self::Action) -> bool;
    /// The action's name in logs and fault labels.
    fn label(action: &Self::Action) -> &'static str;
}

impl Machine for Source {
    type Action = SourceAction;
    type Input = SourceInput;

    const SIDE: &'static str = "source";

    fn recover(records: &[Record], limits: Limits) -> Option<Self> {
        Source::recover(records, limits)
    }
    fn restart(&mut self, now: Duration) {
        Source::restart(self, now);
    }
    fn input(&mut self, now: Duration, input: SourceInput) {
        self.handle_input(now, input);
    }
    fn poll(&mut self) -> Option<Output<SourceAction>> {
        self.poll_output()
    }
    fn due(&self) -> Deadline {
        self.deadline()
    }
    fn ended(&self) -> bool {
        self.is_ended()
    }
    fn owns(&self) -> bool {
        Source::owns(self)
    }
    fn failure(&self) -> Option<&str> {
        Source::failure(self)
    }
    fn message(message: Message) -> SourceInput {
        SourceInput::Message(message)
    }
    fn link_lost() -> SourceInput {
        SourceInput::LinkLost
    }
    fn tick() -> SourceInput {
        SourceInput::Tick
    }
    fn cancel() -> Option<SourceInput> {
        Some(SourceInput::Cancel)
    }
    fn failed(action: &SourceAction, reason: String) -> SourceInput {
        SourceInput::Failed { action: *action, reason }
    }
    fn sweeps(action: &SourceAction) -> bool {
        matches!(action, SourceAction::RollBack | SourceAction::Retire)
    }
    fn label(action: &SourceAction) -> &'static str {
        action.label()
    }
}

impl Machine for Destination {
    type Action = DestinationAction;
    type Input = DestinationInput;

    const SIDE: &'static str = "destination";

    fn recover(records: &[Record], _: Limits) -> Option<Self> {
        Destination::recover(records)
    }
    fn restart(&mut self, now: Duration) {
        Destination::restart(self, now);
    }
    fn input(&mut self, now: Duration, input: DestinationInput) {
        self.handle_input(now, input);
    }
    fn poll(&mut self) -> Option<Output<DestinationAction>> {
        self.poll_output()
    }
    fn due(&self) -> Deadline {
        self.deadline()
    }
    fn ended(&self) -> bool {
        self.is_ended()
    }
    fn owns(&self) -> bool {
        Destination::owns(self)
    }
    fn failure(&self) -> Option<&str> {
        Destination::failure(self)
    }
    fn message(message: Message) -> DestinationInput {
        DestinationInput::Message(message)
    }
    fn link_lost() -> DestinationInput {
        DestinationInput::LinkLost
    }
    fn tick() -> DestinationInput {
        DestinationInput::Tick
    }
    fn cancel() -> Option<DestinationInput> {
        None
    }
    fn failed(_: &DestinationAction, reason: String) -> DestinationInput {
        DestinationInput::Failed { reason }
    }
    fn sweeps(action: &DestinationAction) -> bool {
        *action == DestinationAction::Discard
    }
    fn label(action: &DestinationAction) -> &'static str {
        action.label()
    }
}
