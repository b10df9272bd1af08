//! One job's end in the simulation: a machine, its journal file, what it is doing. What differs between the two ends is
//! behind [`Simulated`].

use std::time::Duration;

use super::rng::Rng;
use super::world::World;
use crate::handoff::{Deadline, Limits, Machine, Record};
use crate::ids::Epoch;
use crate::journal;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    Source,
    Destination,
}

pub(super) const LIMITS: Limits = Limits {
    max_downtime: Duration::from_millis(300),
    max_rounds: 4,
    round_pause: Duration::from_millis(50),
    answer_timeout: Duration::from_secs(10),
    memory_stall: Duration::from_secs(10),
    switchover_timeout: Duration::from_secs(10),
    resend: Duration::from_millis(500),
};

/// How far a piece of an action brought it.
pub(super) enum Progress<I> {
    /// There is more to do, in so many microseconds.
    Again {
        after_us: u64,
        tell: Option<I>,
    },
    Ended(Result<I, String>),
}

/// What the simulation asks of a machine beyond what a driver does.
pub(super) trait Simulated: Machine {
    const END: Side;

    fn nodes(world: &mut World, at: usize) -> &mut std::collections::BTreeMap<usize, Node<Self>>;
    fn event(at: usize, job: usize, life: u32, input: Self::Input) -> super::world::Event;
    /// What an action does at once.
    fn begin(world: &mut World, at: usize, job: usize, action: &Self::Action);
    /// The next piece of an action.
    fn step(world: &mut World, at: usize, job: usize, work: &mut Work<Self::Action>)
    -> Progress<Self::Input>;
    /// Whether the flaw of this run lets this work go on when it is swept.
    fn outlives(world: &World, work: &Work<Self::Action>) -> bool;
}

/// What becomes of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Wanted,
    /// It ends with its next piece, done or not.
    Cancelled,
    /// Nobody waits for it, and it goes on.
    Loose,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Begun,
    /// A replica into this file.
    Copying {
        file: usize,
        next: usize,
    },
    /// Everything is sent; the other side writes.
    Sent,
    /// The memory.
    Streaming {
        left: u32,
    },
}

/// An action that runs.
#[derive(Debug)]
pub(super) struct Work<A> {
    pub(super) id: u64,
    pub(super) action: A,
    pub(super) began: Duration,
    /// The connection when it began, if there was one.
    pub(super) generation: Option<u64>,
    pub(super) stage: Stage,
    pub(super) fate: Fate,
    pub(super) fails: bool,
    pub(super) hangs: bool,
    /// The life of the machine that asked for it.
    pub(super) life: u32,
}

/// What journals say of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    Ours(Epoch),
    Theirs(Epoch),
    Undecided(Epoch),
}

impl Claim {
    pub(super) fn epoch(self) -> Epoch {
        match self {
            Claim::Ours(epoch) | Claim::Theirs(epoch) | Claim::Undecided(epoch) => epoch,
        }
    }

    /// What one job's records say, if anything.
    pub(super) fn of(records: &[Record]) -> Option<Claim> {
        let has = |label| records.iter().any(|record| record.label() == label);
        match records.first()? {
            Record::Started { epoch, .. } => {
                Some(if has("released") { Claim::Theirs(epoch.next()) } else { Claim::Ours(*epoch) })
            }
            Record::Accepted { epoch, .. } if has("owned") => Some(Claim::Ours(epoch.next())),
            Record::Accepted { epoch, .. } if has("ready") && !has("discarded") => {
                Some(Claim::Undecided(epoch.next()))
            }
            _ => None,
        }
    }
}

pub(super) struct Node<M: Machine> {
    pub(super) machine: Option<M>,
    pub(super) running: Vec<Work<M::Action>>,
    /// Asked for, and waits until all others have ended.
    pub(super) pending: Option<M::Action>,
    /// The machine is gone, and comes back from its records when all work has ended.
    pub(super) recovering: bool,
    /// A record may be in the file or not; nothing is done until the process has ended.
    pub(super) doubtful: bool,
    pub(super) life: u32,
    pub(super) timer: Deadline,
    file: Vec<u8>,
    /// Records as the daemon knows them.
    pub(super) records: Vec<Record>,
    /// Records as the file has them.
    pub(super) durable: Vec<Record>,
}

impl<M: Simulated> Node<M> {
    pub(super) fn new(machine: M) -> Self {
        Node {
            machine: Some(machine),
            running: Vec::new(),
            pending: None,
            recovering: false,
            doubtful: false,
            life: 0,
            timer: None,
            file: journal::HEADER.to_vec(),
            records: Vec::new(),
            durable: Vec::new(),
        }
    }

    pub(super) fn append(&mut self, record: Record) {
        self.file.extend(journal::encode(&record).unwrap());
        self.records.push(record.clone());
        self.durable.push(record);
    }

    /// A part of the record, never all.
    pub(super) fn append_torn(&mut self, record: &Record, rng: &mut Rng) {
        let bytes = journal::encode(record).unwrap();
        let part = rng.below(bytes.len() as u64) as usize;
        self.file.extend(&bytes[..part]);
    }

    /// The whole record or a part of it, and the daemon does not know which.
    pub(super) fn append_doubtfully(&mut self, record: &Record, rng: &mut Rng) {
        self.doubtful = true;
        if rng.percent(60) {
            self.file.extend(journal::encode(record).unwrap());
            self.durable.push(record.clone());
        } else {
            self.append_torn(record, rng);
        }
    }

    /// A disk that lies: the last record is not there after all.
    pub(super) fn lose_last_record(&mut self) {
        self.durable.pop();
        self.file = journal::HEADER.to_vec();
        for record in &self.durable {
            self.file.extend(journal::encode(record).unwrap());
        }
    }

    /// Reads the journal after a crash, as a starting daemon does.
    pub(super) fn reload(&mut self) -> Result<(), String> {
        let (records, good) = journal::decode(&self.file).map_err(|error| error.to_string())?;
        self.file.truncate(good);
        if records != self.durable {
            return Err(format!("the journal of the {} lost or gained a record: {records:?}", M::SIDE));
        }
        self.records = records;
        self.doubtful = false;
        Ok(())
    }

    /// The machine as its records tell it; `None` without records.
    pub(super) fn recovered(&self) -> Result<Option<M>, String> {
        if self.records.is_empty() {
            return Ok(None);
        }
        let machine = M::recover(&self.records, LIMITS);
        machine.map(Some).ok_or_else(|| format!("no {} comes of {:?}", M::SIDE, self.records))
    }

    /// Whether the job is over as far as its records say.
    pub(super) fn over(&self) -> bool {
        let last = self.records.last().map(Record::label);
        matches!(last, None | Some("retired" | "rolled_back" | "discarded" | "rebound"))
    }
}
