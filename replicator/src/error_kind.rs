//! Kinds of errors. A kind decides the HTTP status of an answer, the exit code of a command and what a job's report says;
//! an error's text is for people only. Every error that reaches the control API or ends a job has a kind. Nothing here
//! looks into a text, and each `match` lists all variants, so that a new one must decide.

mod foreign;

use std::io;

use axum::http::StatusCode;
use longhaul_proto::wire::RefusalKind;
use serde::{Deserialize, Serialize};

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// The VM, peer, base, replica, job or file that was named does not exist.
    NotFound,
    /// Another job uses it: the same request can succeed later.
    Busy,
    /// The request cannot be right, whatever the state of things.
    Invalid,
    /// The state of things or a rule forbids it, or a person cancelled it.
    Denied,
    /// Another platform, or the way to it, failed or refused.
    Peer,
    /// A file system or a quota is full, here or at the peer.
    Space,
    /// This host failed: its operating system, its hypervisor, or damaged data on its disks.
    Io,
    /// A fault of this program.
    Bug,
}

impl Kind {
    /// The status of an answer of the control API.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Kind::NotFound => StatusCode::NOT_FOUND,
            // RFC 4918, section 11.3.
            Kind::Busy => StatusCode::LOCKED,
            Kind::Invalid => StatusCode::BAD_REQUEST,
            Kind::Denied => StatusCode::FORBIDDEN,
            Kind::Peer => StatusCode::BAD_GATEWAY,
            Kind::Space => StatusCode::INSUFFICIENT_STORAGE,
            Kind::Io | Kind::Bug => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The exit code of a command that failed so.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Kind::Busy => 4,
            Kind::NotFound
            | Kind::Invalid
            | Kind::Denied
            | Kind::Peer
            | Kind::Space
            | Kind::Io
            | Kind::Bug => 1,
        }
    }

    /// As a peer is told it that wants to send something here.
    pub(crate) fn refusal(self) -> RefusalKind {
        match self {
            Kind::Busy => RefusalKind::Busy,
            Kind::Space => RefusalKind::NoSpace,
            // A peer may send again what is refused as unknown; none of these is over soon.
            Kind::NotFound | Kind::Invalid | Kind::Denied | Kind::Peer | Kind::Io | Kind::Bug => {
                RefusalKind::Failed
            }
        }
    }

    /// Of a file of this platform.
    pub(crate) fn of_io(error: &io::Error) -> Kind {
        if is_full(error) { Kind::Space } else { Kind::Io }
    }

    /// Of a file that a person named.
    pub(crate) fn of_named_path(error: &io::Error) -> Kind {
        match error.kind() {
            io::ErrorKind::NotFound => Kind::NotFound,
            io::ErrorKind::AlreadyExists
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::ReadOnlyFilesystem => Kind::Denied,
            io::ErrorKind::InvalidInput
            | io::ErrorKind::InvalidFilename
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::NotADirectory => Kind::Invalid,
            _ => Kind::of_io(error),
        }
    }
}

/// ENOSPC and EDQUOT.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// An error that has a kind.
pub(crate) trait HasKind: std::error::Error {
    /// Its kind; of an error that only passes on another one, the kind of that.
    fn kind(&self) -> Kind;
}

/// An error as it leaves the place where it happened: its kind to decide by, and its text for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Its kind.
    pub kind: Kind,
    /// What was being done, why it failed, and what can be done.
    pub reason: String,
}

impl Failure {
    /// A failure of this kind.
    pub(crate) fn new(kind: Kind, reason: impl Into<String>) -> Self {
        Failure { kind, reason: reason.into() }
    }
}

impl<E: HasKind> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure { kind: error.kind(), reason: error.to_string() }
    }
}

#[cfg(test)]
mod tests;
