//! The hand-off: how the right to run a VM passes from a source to a destination, so that at every moment exactly one
//! platform may run it and every write the guest was promised is there.
//!
//! ```text
//!  source                                          destination
//!    Offer                       ->  Accepted*       PrepareDisks
//!                                <-  Preparing       as long as that makes progress
//!    CopyDisks, RunRound ...     <-  Accepted
//!    StartMemory                 ->                  StartIncoming
//!    SendMemory, RunRound ...    <-  MemoryReady
//!    (guest paused) DrainDisks
//!    SendFinal | FinishMemory
//!    Final{roots}                ->                  SealDisks: fsync, compare roots; memory loaded
//!                                <-  Ready           Ready*    from here the destination is in doubt
//!    Released*                                                 the point of no return
//!    Release                     ->                  Owned*, Resume, Rebind
//!    Retire                      <-  Resumed         Resumed*
//!    Retired*                                        Rebound*
//!                                                    (* = journal record, durable before what follows)
//! ```
//!
//! The source decides. Until its `Released` record is durable it owns the VM, and any failure rolls back: the guest
//! goes on where it was. From that record on only the destination may run the VM, and recovery goes forward only. A
//! destination that has said `Ready` asks and waits; it never decides by itself. Messages may be lost, repeated or
//! late: every one of them names the job, and what no longer fits the state is answered or ignored.
//!
//! Both machines are pure. The caller feeds `handle_input(now, input)` and then drains `poll_output()`; outputs are to
//! be carried out in order, and a [`Output::Journal`] must be durable before the next output is looked at. Actions may
//! take long; their outcomes come back as inputs. Nothing else feeds back.
//!
//! What the machines rely on, so what their caller must hold to:
//! * A record that is certainly not durable did not happen: nothing that follows it in the queue is carried out, and the
//!   job goes on from its records, as after a crash of the daemon. So it does when its owner panics. A job without any
//!   durable record ends: its machine is neither fed nor drained any more.
//! * A record of which nobody can say whether it is durable ends the job's work in this process: nothing that follows it is
//!   carried out, and nothing is answered. The job keeps its hold of the VM until the process has ended and the journal has
//!   been read again, for the record may be the one that gives the VM away.
//! * An action asked for while it still runs is not begun a second time.
//! * An action for which [`Machine::sweeps`] holds (`RollBack`, `Retire`, `Discard`) begins only when every other action of
//!   the job has ended: not only its outcome is given up, but nothing of it can write to an image or speak to a hypervisor
//!   any more, be it a thread, a stream, a queue or a child process, and be it of an earlier life of the machine. They
//!   are cancelled and waited for. What such an action still reports is not fed.
//! * The same holds before a machine that was recovered in a living process is restarted: everything of the job has ended, and
//!   no outcome of an action that an earlier life began is fed to it. So an outcome needs no name of its life. Messages that
//!   come meanwhile may be dropped.
//! * A job gives its hold of the VM back only when all its work has ended, and so only one job at a time works on a VM here.
//! * Every action ends: whatever it waits for, a stream or a hypervisor's answer, has a bound on its silence. `PrepareDisks`
//!   and `SendMemory` may take long; [`DestinationInput::Preparing`] and [`SourceInput::MemoryProgress`] say that they
//!   get ahead.
//! * `RollBack`, `Retire`, `Resume`, `Rebind` and `Discard` may be asked for again after a crash that let them happen, and
//!   after one that did not; each ends the same way.
//! * Every loss of a connection is told, as `LinkLost`, to every machine that talks to that peer and is not ended; when
//!   in doubt once too often, and also when the offer itself came by that connection.
//! * A message is fed only when it comes from the job's peer. For a job with records, ended or not, it goes to the machine
//!   recovered from them; for one without, [`Message::answer_for_unknown_job`] is the answer. Records are therefore kept
//!   as long as the other end may ask.
//! * Once a destination has said `Ready`, a stream that ends is no failure: the source closes its streams.

mod destination;
mod machine;
mod source;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use destination::{Destination, DestinationAction, DestinationInput};
pub use machine::Machine;
pub use source::{Limits, Source, SourceAction, SourceInput};

use crate::bounded;
use crate::ids::Epoch;
use crate::limits::{MAX_DISKS, MAX_PLAN_BYTES};

/// The root of one disk's image, as `chunkstore::ImageRoot` holds it.
pub type Root = [u8; 32];

/// What the two ends say to each other about one job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Source to destination: will you take this VM? `plan` is the service's own description of it.
    Offer {
        /// The VM's name, at most [`MAX_NAME_BYTES`](crate::wire::MAX_NAME_BYTES).
        #[serde(deserialize_with = "bounded::name")]
        vm: String,
        /// The epoch at which the source owns it.
        epoch: Epoch,
        /// What the destination needs to judge and prepare: opaque here. At most [`MAX_PLAN_BYTES`].
        #[serde(deserialize_with = "bounded::vec::<_, _, { MAX_PLAN_BYTES }>")]
        plan: Vec<u8>,
    },
    /// Destination to source: the disks' images stand ready to be written.
    Accepted,
    /// Source to destination: start the hypervisor that will take the memory.
    StartMemory,
    /// Destination to source: it waits for the stream.
    MemoryReady,
    /// Source to destination: the guest is paused, everything is sent, this is what the disks must be.
    Final {
        /// One root a disk, in the order of the plan; at most [`MAX_DISKS`].
        #[serde(deserialize_with = "bounded::vec::<_, _, { MAX_DISKS }>")]
        roots: Vec<Root>,
    },
    /// Destination to source: memory loaded, disks durable and equal; I will do as you decide.
    Ready {
        /// How long it took to make the disks durable and to compare them, in microseconds; for the report.
        sealed_us: u64,
    },
    /// Source to destination: the VM is yours, at this epoch.
    Release {
        /// The new owner's epoch.
        epoch: Epoch,
    },
    /// Destination to source: it runs here.
    Resumed,
    /// Either way, before release: it is off. From the destination after `Ready` it is only a wish.
    Abort {
        /// Why, for a person to read.
        reason: String,
    },
    /// Destination to source: I said `Ready` and heard no decision. What is it?
    Query,
    /// Source to destination: I know of no such job. After `Ready` only a person can say.
    Unknown,
    /// Destination to source: the images are still being prepared, and more of them is done than when I last said so.
    Preparing,
}

impl Message {
    /// The message's name in logs and fault labels.
    pub fn label(&self) -> &'static str {
        match self {
            Message::Offer { .. } => "offer",
            Message::Accepted => "accepted",
            Message::StartMemory => "start_memory",
            Message::MemoryReady => "memory_ready",
            Message::Final { .. } => "final",
            Message::Ready { .. } => "ready",
            Message::Release { .. } => "release",
            Message::Resumed => "resumed",
            Message::Abort { .. } => "abort",
            Message::Query => "query",
            Message::Unknown => "unknown",
            Message::Preparing => "preparing",
        }
    }

    /// What a daemon answers that has no records of the job this message is about, if anything. A destination that may
    /// have promised is never told `Abort` by somebody who does not know what was decided; and what is itself such an
    /// answer gets none, or two forgetful daemons would talk for ever. (To an offer this is the answer of one who does
    /// not want it.)
    pub fn answer_for_unknown_job(&self) -> Option<Message> {
        match self {
            Message::Offer { .. }
            | Message::StartMemory
            | Message::Final { .. }
            | Message::Release { .. } => {
                Some(Message::Abort { reason: "the peer knows nothing of this job".to_owned() })
            }
            Message::Preparing
            | Message::Accepted
            | Message::MemoryReady
            | Message::Ready { .. }
            | Message::Query => Some(Message::Unknown),
            Message::Resumed | Message::Abort { .. } | Message::Unknown => None,
        }
    }
}

/// What each end writes down. A record is durable before anything that follows from it happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// Source: this VM is being offered to that peer. Written before anything is touched.
    Started {
        /// The VM's name.
        vm: String,
        /// The peer's name here.
        peer: String,
        /// The epoch at which we own it.
        epoch: Epoch,
    },
    /// Source: the point of no return. The VM is the peer's at this epoch.
    Released {
        /// The peer's epoch.
        epoch: Epoch,
    },
    /// Source: the peer runs it, and nothing of it is left running here.
    Retired,
    /// Source: it is off, the guest goes on here.
    RolledBack {
        /// Why.
        reason: String,
    },
    /// Destination: a peer offers us this VM.
    Accepted {
        /// The VM's name.
        vm: String,
        /// The peer's name here.
        peer: String,
        /// The epoch at which the peer owns it.
        epoch: Epoch,
        /// The service's own description, as offered.
        plan: Vec<u8>,
    },
    /// Destination: we promised to do as the source decides.
    Ready,
    /// Destination: the VM is ours at this epoch.
    Owned {
        /// Our epoch.
        epoch: Epoch,
    },
    /// Destination: it runs here.
    Resumed,
    /// Destination: it is off, nothing of it runs here.
    Discarded {
        /// Why.
        reason: String,
    },
    /// Destination: the address has followed; nothing is left to do.
    Rebound,
}

impl Record {
    /// The record's name in logs and fault labels.
    pub fn label(&self) -> &'static str {
        match self {
            Record::Started { .. } => "started",
            Record::Released { .. } => "released",
            Record::Retired => "retired",
            Record::RolledBack { .. } => "rolled_back",
            Record::Accepted { .. } => "accepted",
            Record::Ready => "ready",
            Record::Owned { .. } => "owned",
            Record::Resumed => "resumed",
            Record::Discarded { .. } => "discarded",
            Record::Rebound => "rebound",
        }
    }
}

/// Where a migration stands, in the words of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The peer is asked, images are created, write tracking begins.
    Prepare,
    /// The whole disk, less what the other side holds.
    Bulk,
    /// Rounds of blocks written meanwhile.
    Precopy,
    /// The hypervisor's own memory pre-copy; disk rounds go on.
    Memory,
    /// The guest is paused: last blocks, device state, roots compared.
    Switchover,
    /// Ownership passes.
    Release,
    /// The guest is started on the other side.
    Resume,
    /// The address follows.
    Rebind,
    /// It runs on the other side, and only there.
    Done,
    /// It failed; the source takes the guest back.
    RollingBack,
    /// It failed; the guest runs at the source, as if nothing had been tried.
    RolledBack,
}

impl Phase {
    /// The phase's name in reports.
    pub fn label(self) -> &'static str {
        match self {
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
}

/// Something to carry out, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output<A> {
    /// Append to the journal and make durable before looking at the next output.
    Journal(Record),
    /// Send to the other end; it may get lost.
    Transmit(Message),
    /// Begin this; its outcome comes back as an input.
    Action(A),
    /// Tell whoever watches. Feeds nothing back.
    Event(Event),
}

/// What a watcher is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A phase begins.
    Phase(Phase),
    /// Something went wrong; what follows from it comes as phases.
    Trouble(String),
}

/// When to call `handle_input` with `Tick` at the latest, as a duration since the caller's own origin.
pub type Deadline = Option<Duration>;

/// The longest reason that is kept, sent or written, in bytes.
pub const MAX_REASON_BYTES: usize = 1024;

/// A reason that fits every message and record, whoever gave it.
fn short(mut reason: String) -> String {
    if reason.len() > MAX_REASON_BYTES {
        let end = (0..=MAX_REASON_BYTES).rev().find(|&end| reason.is_char_boundary(end)).unwrap_or(0);
        reason.truncate(end);
    }
    reason
}
