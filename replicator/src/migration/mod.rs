//! Migrations: a driver each (`driver`), which feeds the pure hand-off (`longhaul_proto::handoff`) with what happens and
//! carries out what it says, in order, the journal first. `source` and `destination` are the two ends; nothing here
//! decides who may run a VM.

pub(crate) mod claims;
pub(crate) mod destination;
mod driver;
pub(crate) mod estimate;
pub(crate) mod incoming;
pub(crate) mod journal;
pub(crate) mod landing;
pub(crate) mod link;
pub(crate) mod outgoing;
pub(crate) mod ownership;
pub(crate) mod plan;
mod recover;
pub(crate) mod source;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use longhaul_proto::JobId;
use longhaul_proto::handoff::{DestinationInput, Message, SourceInput};
use quinn::Connection;
use tokio::sync::mpsc;

use crate::service::vms::Hold;
use destination::DestinationPort;
use link::Link;
pub(crate) use plan::{BootFile, Plan, PlanDisk, PlanError};
pub(crate) use recover::{answer_from_journal, recover_all, reply};

/// Where a running hand-off takes what comes in for it.
#[derive(Clone)]
enum Port {
    Source { inputs: mpsc::Sender<SourceInput>, link: Arc<Link> },
    Destination(DestinationPort),
}

impl Port {
    fn link(&self) -> &Arc<Link> {
        match self {
            Port::Source { link, .. } => link,
            Port::Destination(port) => &port.link,
        }
    }
}

/// The hand-offs that are going on.
#[derive(Default)]
pub(crate) struct Handoffs {
    ports: Mutex<HashMap<JobId, Port>>,
    /// Jobs whose journals may hold a record that is not durable: nobody is told anything of them before a restart, and
    /// their VMs stay held.
    left: Mutex<HashMap<JobId, Hold>>,
}

impl Handoffs {
    /// Hands a message to its hand-off. False when there is none of that job with that peer. A message for a driver that
    /// is too busy to take it is lost, as messages may be.
    pub(crate) fn deliver(&self, job: JobId, peer: &str, message: Message, connection: &Connection) -> bool {
        let Some(port) = self.port(job, peer) else { return false };
        port.link().attach(connection.clone());
        let label = message.label();
        let is_taken = match port {
            Port::Source { inputs, .. } => inputs.try_send(SourceInput::Message(message)).is_ok(),
            Port::Destination(port) => port.try_input(DestinationInput::Message(message)),
        };
        if !is_taken {
            tracing::debug!(%job, "'{label}' is dropped: the hand-off has ended or is busy");
        }
        true
    }

    /// Decides in place of a source that will never answer. False when no promise about `vm` is open here.
    pub(crate) fn resolve(&self, vm: &str, keep: bool) -> bool {
        let ports: Vec<_> = self.lock().values().cloned().collect();
        ports.into_iter().any(|port| match port {
            Port::Destination(port) => {
                port.concerns(vm) && port.try_input(DestinationInput::Resolve { keep })
            }
            Port::Source { .. } => false,
        })
    }

    /// Ends a hand-off whose VM was released to a peer that will never say that it runs it. False when it is no source's.
    pub(crate) fn presume_resumed(&self, job: JobId) -> bool {
        match self.lock().get(&job) {
            Some(Port::Source { inputs, .. }) => {
                inputs.try_send(SourceInput::Message(Message::Resumed)).is_ok()
            }
            _ => false,
        }
    }

    /// Whether this job's journal is not to be believed.
    pub(crate) fn is_left(&self, job: JobId) -> bool {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&job)
    }

    /// Leaves a job and its VM alone until the daemon is started again.
    fn leave(&self, job: JobId, hold: Hold) {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).insert(job, hold);
    }

    /// What a destination's streams go to.
    pub(crate) fn incoming(&self, job: JobId, peer: &str) -> Option<DestinationPort> {
        match self.port(job, peer)? {
            Port::Destination(port) => Some(port),
            Port::Source { .. } => None,
        }
    }

    fn port(&self, job: JobId, peer: &str) -> Option<Port> {
        let port = self.lock().get(&job).cloned()?;
        if port.link().peer() == peer {
            return Some(port);
        }
        tracing::warn!(%job, "peer '{peer}' speaks of a job that is not with it; ignored");
        None
    }

    /// False when there is a hand-off of that job already.
    fn register(&self, job: JobId, port: Port) -> bool {
        match self.lock().entry(job) {
            Entry::Vacant(vacant) => {
                vacant.insert(port);
                true
            }
            Entry::Occupied(_) => false,
        }
    }

    fn remove(&self, job: JobId) {
        self.lock().remove(&job);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<JobId, Port>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
