//! One platform's daemon in the simulation: a machine, its journal file, what it is doing, and where it is to fail. What
//! differs between the two ends is behind [`Simulated`].

use std::time::Duration;

use super::rng::Rng;
use super::services::Services;
use crate::handoff::{
    Deadline, Destination, DestinationAction, DestinationInput, Limits, Machine, Record, Source,
    SourceAction, SourceInput,
};
use crate::journal;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    Source,
    Destination,
}

impl Side {
    pub(super) fn other(self) -> Side {
        match self {
            Side::Source => Side::Destination,
            Side::Destination => Side::Source,
        }
    }
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

/// What the simulation asks of a machine beyond what a driver does.
pub(super) trait Simulated: Machine {
    const END: Side;

    fn begin(services: &mut Services, action: &Self::Action, rng: &mut Rng);
    fn finish(
        services: &mut Services,
        action: &Self::Action,
        linked: bool,
        took: Duration,
        rng: &mut Rng,
    ) -> Result<Self::Input, String>;
    /// Whether this action brings the guest's memory to the other side.
    fn brings_memory(action: &Self::Action) -> bool;
}

impl Simulated for Source {
    const END: Side = Side::Source;

    fn begin(services: &mut Services, action: &SourceAction, rng: &mut Rng) {
        services.begin_source(*action, rng);
    }
    fn finish(
        services: &mut Services,
        action: &SourceAction,
        linked: bool,
        took: Duration,
        rng: &mut Rng,
    ) -> Result<SourceInput, String> {
        services.finish_source(*action, linked, took, rng)
    }
    fn brings_memory(action: &SourceAction) -> bool {
        *action == SourceAction::FinishMemory
    }
}

impl Simulated for Destination {
    const END: Side = Side::Destination;

    fn begin(_: &mut Services, _: &DestinationAction, _: &mut Rng) {}
    fn finish(
        services: &mut Services,
        action: &DestinationAction,
        _linked: bool,
        _took: Duration,
        _rng: &mut Rng,
    ) -> Result<DestinationInput, String> {
        services.finish_destination(action)
    }
    fn brings_memory(_: &DestinationAction) -> bool {
        false
    }
}

/// An action that runs.
#[derive(Debug)]
pub(super) struct Running<A> {
    pub(super) id: u64,
    pub(super) action: A,
    pub(super) began: Duration,
    /// The connection when it began, if there was one.
    pub(super) generation: Option<u64>,
}

pub(super) struct Node<M: Simulated> {
    pub(super) machine: Option<M>,
    pub(super) running: Vec<Running<M::Action>>,
    pub(super) up: bool,
    /// Outputs carried out, over all its lives.
    pub(super) outputs: usize,
    pub(super) timer: Deadline,
    file: Vec<u8>,
    records: Vec<Record>,
}

impl<M: Simulated> Node<M> {
    pub(super) fn new(machine: Option<M>) -> Self {
        Node {
            machine,
            running: Vec::new(),
            up: true,
            outputs: 0,
            timer: None,
            file: journal::HEADER.to_vec(),
            records: Vec::new(),
        }
    }

    /// The durable records.
    pub(super) fn records(&self) -> &[Record] {
        &self.records
    }

    pub(super) fn append(&mut self, record: Record) {
        self.file.extend(journal::encode(&record).unwrap());
        self.records.push(record);
    }

    /// A crash while a record is written leaves a part of it, never all.
    pub(super) fn append_torn(&mut self, record: &Record, rng: &mut Rng) {
        let bytes = journal::encode(record).unwrap();
        let part = rng.below(bytes.len() as u64) as usize;
        self.file.extend(&bytes[..part]);
    }

    /// Reads the journal after a crash, as a starting daemon does.
    pub(super) fn reload(&mut self) -> Result<(), String> {
        let (records, good) = journal::decode(&self.file).map_err(|error| error.to_string())?;
        self.file.truncate(good);
        if records != self.records {
            return Err(format!("the journal of the {:?} lost or gained a record: {records:?}", M::END));
        }
        Ok(())
    }

    /// The machine as its records tell it; `None` without records.
    pub(super) fn recovered(&self) -> Result<Option<M>, String> {
        if self.records.is_empty() {
            return Ok(None);
        }
        let machine = M::recover(&self.records, LIMITS);
        machine.map(Some).ok_or_else(|| format!("no {:?} comes of {:?}", M::END, self.records))
    }
}
