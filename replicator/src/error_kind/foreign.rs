//! Kinds of the errors of other crates that are passed on as they are.

use chunkstore::{
    ExportError, FileError, ImportError, IndexError, IngestError, ReplicaError, RestoreError, StoreError,
};
use longhaul_proto::BadJobId;
use longhaul_proto::wire::{Refusal, RefusalKind};
use migrate_driver::{DefinitionError, DriverError, ForeignError, NameError};
use mobility::AgentError;
use tokio::task::JoinError;

use super::{HasKind, Kind};

impl HasKind for FileError {
    fn kind(&self) -> Kind {
        Kind::of_io(self.cause())
    }
}

impl HasKind for IndexError {
    fn kind(&self) -> Kind {
        if self.is_full() { Kind::Space } else { Kind::Io }
    }
}

impl HasKind for StoreError {
    fn kind(&self) -> Kind {
        match self {
            StoreError::UnknownName { .. } => Kind::NotFound,
            StoreError::Collecting => Kind::Busy,
            StoreError::BadName { .. } => Kind::Invalid,
            StoreError::Exists { .. } | StoreError::Stopped => Kind::Denied,
            StoreError::Missing { .. }
            | StoreError::Damaged { .. }
            | StoreError::WrongContent { .. }
            | StoreError::Undecodable { .. }
            | StoreError::OtherLength { .. }
            | StoreError::BadReference { .. }
            | StoreError::SyncFailed => Kind::Io,
            StoreError::BadLength { .. } => Kind::Bug,
            StoreError::CannotCollect { source, .. } => source.kind(),
            StoreError::Index(error) => error.kind(),
            StoreError::File(error) => error.kind(),
        }
    }
}

impl HasKind for IngestError {
    fn kind(&self) -> Kind {
        match self {
            IngestError::Read(error) => Kind::of_io(error),
            IngestError::Store(error) => error.kind(),
        }
    }
}

impl HasKind for RestoreError {
    fn kind(&self) -> Kind {
        match self {
            RestoreError::Size { .. } | RestoreError::Stopped => Kind::Denied,
            RestoreError::Store(error) => error.kind(),
            RestoreError::Target(error) => error.kind(),
        }
    }
}

impl HasKind for ExportError {
    fn kind(&self) -> Kind {
        match self {
            ExportError::BadCount { .. } => Kind::Invalid,
            ExportError::Store(error) => error.kind(),
            ExportError::Write { cause, .. } => Kind::of_io(cause),
            ExportError::Stopped { .. } => Kind::Denied,
        }
    }
}

impl HasKind for ImportError {
    fn kind(&self) -> Kind {
        match self {
            ImportError::NoArchive
            | ImportError::OtherVersion { .. }
            | ImportError::CutShort { .. }
            | ImportError::Damaged { .. } => Kind::Invalid,
            ImportError::Read { cause, .. } => Kind::of_io(cause),
            ImportError::Stopped { .. } => Kind::Denied,
            ImportError::Store(error) => error.kind(),
        }
    }
}

impl HasKind for ReplicaError {
    fn kind(&self) -> Kind {
        match self {
            ReplicaError::InUse { .. } | ReplicaError::Busy { .. } => Kind::Busy,
            ReplicaError::Empty { .. } => Kind::NotFound,
            ReplicaError::Damaged { .. }
            | ReplicaError::OtherVersion { .. }
            | ReplicaError::Rotten { .. }
            | ReplicaError::BadCopy { .. } => Kind::Io,
            ReplicaError::BadGeneration { .. } | ReplicaError::OutOfRange { .. } => Kind::Bug,
            ReplicaError::Exists { .. } | ReplicaError::Stopped => Kind::Denied,
            ReplicaError::Unfinished { cause, .. } => cause.kind(),
            ReplicaError::File(error) => error.kind(),
        }
    }
}

/// A refusal that came from a peer.
impl HasKind for Refusal {
    fn kind(&self) -> Kind {
        match self.kind {
            RefusalKind::Busy => Kind::Busy,
            RefusalKind::Unknown => Kind::NotFound,
            RefusalKind::NoSpace => Kind::Space,
            RefusalKind::Protocol | RefusalKind::Diverged | RefusalKind::Failed => Kind::Peer,
        }
    }
}

impl HasKind for BadJobId {
    fn kind(&self) -> Kind {
        Kind::Invalid
    }
}

impl HasKind for NameError {
    fn kind(&self) -> Kind {
        Kind::Invalid
    }
}

impl HasKind for DefinitionError {
    fn kind(&self) -> Kind {
        match self {
            DefinitionError::Toml { .. } | DefinitionError::TooLarge { .. } => Kind::Invalid,
            DefinitionError::Write { .. } => Kind::Bug,
        }
    }
}

impl HasKind for ForeignError {
    fn kind(&self) -> Kind {
        match self {
            ForeignError::Argument(_) | ForeignError::Setting { .. } => Kind::Denied,
        }
    }
}

impl HasKind for DriverError {
    fn kind(&self) -> Kind {
        match self {
            DriverError::UnknownDisk { .. } => Kind::NotFound,
            DriverError::NotRunning { .. }
            | DriverError::AlreadyRunning { .. }
            | DriverError::NotMovable { .. }
            | DriverError::WrongState { .. }
            | DriverError::ForeignGraph { .. }
            | DriverError::LostFile { .. }
            | DriverError::CannotRunHere { .. }
            | DriverError::LesserCpu { .. }
            | DriverError::NotConverging { .. } => Kind::Denied,
            DriverError::Io { source, .. } => Kind::of_io(source),
            DriverError::PathTooLong { .. }
            | DriverError::Start { .. }
            | DriverError::Died { .. }
            | DriverError::Xl { .. }
            | DriverError::Qmp { .. }
            | DriverError::Migration { .. }
            | DriverError::Tap { .. }
            | DriverError::Unresponsive { .. }
            | DriverError::NotEnding { .. }
            | DriverError::Timeout { .. } => Kind::Io,
        }
    }
}

impl HasKind for AgentError {
    fn kind(&self) -> Kind {
        match self {
            AgentError::Open { source, .. } => Kind::of_io(source),
            AgentError::Link(_) | AgentError::Ended => Kind::Io,
            AgentError::NoUserPlane
            | AgentError::TunnelSource(_)
            | AgentError::NoIpv4Forwarding
            | AgentError::ReversePath
            | AgentError::NoForwarding => Kind::Denied,
        }
    }
}

/// A thread of ours broke.
impl HasKind for JoinError {
    fn kind(&self) -> Kind {
        Kind::Bug
    }
}

/// An answer that cannot be written as JSON.
impl HasKind for serde_json::Error {
    fn kind(&self) -> Kind {
        Kind::Bug
    }
}
