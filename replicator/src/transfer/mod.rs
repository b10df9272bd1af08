//! One image on its way to another platform: a scan that sends only what the other side lacks, deltas of blocks written
//! since, and the check that both sides hold the same. PROTOCOL.md describes the stream; `sender` and `receiver` are
//! its two ends. Neither knows of VMs or jobs. `memory` is the other thing that
//! travels: a hypervisor's own stream, passed on as it is.

pub(crate) mod memory;
pub(crate) mod receiver;
pub(crate) mod sender;
pub(crate) mod sink;

use std::sync::atomic::{AtomicU64, Ordering};

use chunkstore::{ChunkId, Codec, Encoded};
use longhaul_proto::wire::{ChunkName, Packed, Refusal, RefusalKind};

use crate::error_kind::{HasKind, Kind};
use crate::service::net::NetError;

/// What a transfer has done so far, in bytes; read while it runs.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Of the image, looked at.
    pub scanned: AtomicU64,
    /// Of those, not hole or zero.
    pub data: AtomicU64,
    /// Data that was not sent because the other side held it.
    pub dedup: AtomicU64,
    /// On the wire, both ways.
    pub wire: AtomicU64,
    /// Plain bytes of what was sent: chunks and blocks.
    pub sent_plain: AtomicU64,
    /// The same after compression.
    pub sent_packed: AtomicU64,
}

impl Counters {
    /// Adds to one of them.
    pub(crate) fn add(counter: &AtomicU64, bytes: u64) {
        counter.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Reads one of them.
    pub(crate) fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

/// Why a transfer ended before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    /// Between the platforms.
    #[error(transparent)]
    Net(#[from] NetError),
    /// Our own image.
    #[error("reading {image}: {source}")]
    Image { image: String, source: std::io::Error },
    /// The other side will not.
    #[error("the other side refused: {0}")]
    Refused(#[from] Refusal),
    /// The other side said something that does not belong here.
    #[error("the other side broke the protocol: {0}")]
    Protocol(String),
    /// A part of our own pipeline ended without a word.
    #[error("a worker of the transfer ended unexpectedly")]
    Worker,
}

impl HasKind for TransferError {
    fn kind(&self) -> Kind {
        match self {
            TransferError::Net(error) => error.kind(),
            TransferError::Image { source, .. } => Kind::of_io(source),
            TransferError::Refused(refusal) => refusal.kind(),
            TransferError::Protocol(_) => Kind::Peer,
            TransferError::Worker => Kind::Bug,
        }
    }
}

impl TransferError {
    /// Whether the other side asks for a whole scan instead.
    pub(crate) fn is_divergence(&self) -> bool {
        matches!(self, TransferError::Refused(Refusal { kind: RefusalKind::Diverged, .. }))
    }
}

pub(crate) fn pack(encoded: Encoded) -> Packed {
    let codec = match encoded.codec {
        Codec::Raw => 0,
        Codec::Zstd => 1,
    };
    Packed { codec, plain_len: encoded.plain_len, bytes: encoded.bytes }
}

pub(crate) fn unpack(packed: Packed) -> Result<Encoded, Refusal> {
    let codec = match packed.codec {
        0 => Codec::Raw,
        1 => Codec::Zstd,
        other => return Err(refuse(RefusalKind::Protocol, format!("codec {other} is not known"))),
    };
    Ok(Encoded { codec, plain_len: packed.plain_len, bytes: packed.bytes })
}

fn refuse(kind: RefusalKind, reason: impl Into<String>) -> Refusal {
    Refusal { kind, reason: reason.into() }
}

fn id(name: ChunkName) -> ChunkId {
    ChunkId::from_bytes(name)
}
