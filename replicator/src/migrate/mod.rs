//! Migrations: an owner task each, which feeds the pure hand-off (`longhaul_proto::handoff`) with what happens and
//! carries out what it says, in order, the journal first. `source` and `destination` are the two ends; nothing here
//! decides who may run a VM.

pub mod destination;
pub mod link;
mod recover;
pub mod source;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use longhaul_proto::JobId;
use longhaul_proto::handoff::{DestinationInput, Message, SourceInput};
use migrate_driver::VmDefinition;
use quinn::Connection;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::address::PlanAddress;
use crate::incoming::Incoming;
use destination::DestinationPort;
use link::Link;
pub use recover::{answer_from_journal, recover_all, reply};

/// What the source tells the destination about a VM; travels as JSON in the offer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The VM, with the source's paths.
    pub definition: VmDefinition,
    /// Its disks, in the order in which roots are given.
    pub disks: Vec<PlanDisk>,
    /// Files it boots from that do not travel: they must be on the destination, the same.
    pub boot_files: Vec<BootFile>,
    /// How its address follows it, when it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<PlanAddress>,
}

/// A disk in a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanDisk {
    /// Its name in the definition.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes of it that take room.
    pub data_bytes: u64,
}

/// A kernel or an initial RAM disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootFile {
    /// Its path on both platforms.
    pub path: PathBuf,
    /// BLAKE3 of its content, hexadecimal.
    pub blake3: String,
}

impl BootFile {
    /// The file as it stands here.
    pub fn read(path: &Path) -> std::io::Result<Self> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(chunkstore::open_regular(path)?)?;
        Ok(BootFile { path: path.to_owned(), blake3: hasher.finalize().to_hex().to_string() })
    }
}

/// Where a running hand-off takes what comes in for it.
#[derive(Clone)]
enum Port {
    Source { inbox: mpsc::UnboundedSender<SourceInput>, link: Arc<Link> },
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
pub struct Handoffs {
    ports: Mutex<HashMap<JobId, Port>>,
    /// Jobs whose journals may hold a record that is not durable: nobody is told anything of them before a restart.
    doubtful: Mutex<HashSet<JobId>>,
}

impl Handoffs {
    /// Hands a message to its hand-off. False when there is none of that job with that peer.
    pub fn deliver(&self, job: JobId, peer: &str, message: Message, connection: &Connection) -> bool {
        let Some(port) = self.port(job, peer) else { return false };
        port.link().attach(connection.clone());
        match port {
            Port::Source { inbox, .. } => inbox.send(SourceInput::Message(message)).is_ok(),
            Port::Destination(port) => port.message(message),
        }
    }

    /// Decides in place of a source that will never answer. False when no promise about `vm` is open here.
    pub fn resolve(&self, vm: &str, keep: bool) -> bool {
        let ports: Vec<_> = self.lock().values().cloned().collect();
        ports.into_iter().any(|port| match port {
            Port::Destination(port) => port.concerns(vm) && port.input(DestinationInput::Resolve { keep }),
            Port::Source { .. } => false,
        })
    }

    /// Whether this job's journal is not to be believed.
    pub fn is_doubtful(&self, job: JobId) -> bool {
        self.doubtful.lock().unwrap_or_else(PoisonError::into_inner).contains(&job)
    }

    fn doubt(&self, job: JobId) {
        self.doubtful.lock().unwrap_or_else(PoisonError::into_inner).insert(job);
    }

    /// Whether the hand-off of this job is going on here.
    pub fn knows(&self, job: JobId) -> bool {
        self.lock().contains_key(&job)
    }

    /// What a destination's streams go to.
    pub fn incoming(&self, job: JobId, peer: &str) -> Option<(DestinationPort, Arc<Incoming>)> {
        match self.port(job, peer)? {
            Port::Destination(port) => {
                let incoming = port.incoming()?;
                Some((port, incoming))
            }
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

    fn register(&self, job: JobId, port: Port) {
        self.lock().insert(job, port);
    }

    fn remove(&self, job: JobId) {
        self.lock().remove(&job);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<JobId, Port>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
