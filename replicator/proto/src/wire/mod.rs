//! The messages on QUIC streams, and how they are framed. Pure; PROTOCOL.md is the same in prose.
//!
//! Every stream carries frames: a length (4 bytes, little endian) and that many bytes of bincode 2 in its standard
//! configuration. The first frame of a stream is an [`Open`], which says what the stream is for. A length is checked
//! against [`MAX_FRAME_BYTES`] before anything is allocated, and a frame must be used up by its message.
//!
//! Image bytes are known here as offsets, lengths and 32-byte BLAKE3 names only.

use std::fmt;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::bounded;
use crate::handoff::{Message, Root};
use crate::ids::{Epoch, JobId};
pub use crate::limits::{
    MAX_BATCH_EXTENTS, MAX_CHUNK_BYTES, MAX_DELTA_BYTES, MAX_DISKS, MAX_FRAME_BYTES, MAX_GROUP_BYTES,
    MAX_IMAGE_BYTES, MAX_LANES, MAX_NAME_BYTES, MAX_PIECE_BYTES, MAX_PLAN_BYTES,
};

/// The version of everything in this module; PROTOCOL.md names the same. Also in the ALPN name.
pub const PROTOCOL_VERSION: u16 = 2;

/// The ALPN protocol name of this version.
pub const ALPN: &[u8] = b"longhaul/2";

/// The ALPN protocol name of the version before. It has no [`Open::Striped`], no [`Open::Lane`], no [`ToReceiver::Alive`] and
/// no [`ToSender::Working`]. Platforms that have neither name in common do not get past the handshake.
pub const ALPN_BEFORE: &[u8] = b"longhaul/1";

/// Bytes of a striped direction that follow each other on one lane.
pub const CELL_BYTES: u32 = 24 << 10;

/// The mark of the last [`ToReceiver::Sync`] of a migrated disk: nothing may follow it.
pub const FINAL_MARK: u32 = u32::MAX;

/// The name of a chunk: BLAKE3-256 of its plain bytes.
pub type ChunkName = [u8; 32];

/// The first frame of every stream: what it is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Open {
    /// Bidirectional. One image, from the opener to the other side: then [`ToReceiver`] and [`ToSender`].
    Transfer {
        /// What becomes of it.
        target: Target,
        /// The image's size in bytes.
        size: u64,
    },
    /// Bidirectional. A hypervisor's memory stream as it is, unframed, until the end of the stream; back come
    /// [`Taken`] frames.
    Memory {
        /// The migration.
        job: JobId,
    },
    /// Unidirectional. One message of a hand-off.
    Handoff {
        /// The migration.
        job: JobId,
        /// The message.
        message: Message,
    },
    /// Bidirectional. A question; the answer is one [`PeerStatus`] frame.
    Status,
    /// Bidirectional. Chunks by name, for a store that has lost them; the answer is one [`Fetched`] frame for each, in order.
    Fetch {
        /// 1 to [`MAX_BATCH_EXTENTS`].
        #[serde(deserialize_with = "bounded::vec::<_, _, MAX_BATCH_EXTENTS>")]
        names: Vec<ChunkName>,
    },
    /// Bidirectional. To a home agent: may a gateway register this VM; the answer is one [`PermitAnswer`] frame.
    Permit(PermitRequest),
    /// Bidirectional. What the other side knows of who owns a VM of this name; the answer is one [`ClaimAnswer`] frame.
    Claim {
        /// The VM.
        #[serde(deserialize_with = "bounded::name")]
        vm: String,
    },
    /// Bidirectional. Would the other side take this VM, offered so; the answer is one [`Judgement`] frame. Changes nothing.
    Judge {
        /// The VM.
        #[serde(deserialize_with = "bounded::name")]
        vm: String,
        /// The epoch at which the asking platform owns it.
        epoch: Epoch,
        /// As in [`Message::Offer`].
        #[serde(deserialize_with = "bounded::vec::<_, _, MAX_PLAN_BYTES>")]
        plan: Vec<u8>,
    },
    /// Everything after this frame, in this direction, is dealt in cells of [`CELL_BYTES`] over several streams: cell `k` is on
    /// lane `k` modulo `lanes`. Lane 0 is this stream. The next frame is the `Open` that says what the stream is for.
    Striped {
        /// Names the set on its connection; chosen at random.
        token: [u8; 16],
        /// 1 to [`MAX_LANES`].
        lanes: u16,
    },
    /// Unidirectional. A lane of the set with this token; cells follow, not framed.
    Lane {
        /// The set.
        token: [u8; 16],
        /// 1 to `lanes` - 1.
        index: u16,
    },
}

/// Whether a platform would take a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Judgement {
    /// As far as can be known before anything moves.
    Fit,
    /// It would not.
    Unfit {
        /// Why, for a person to read.
        reason: String,
    },
}

/// What a platform knows of who owns a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimAnswer {
    /// The highest epoch known there; 0 where the VM is not known.
    pub epoch: Epoch,
    /// What the VM is to that platform at this epoch.
    pub relation: Relation,
}

/// What a VM is to a platform that is asked about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Relation {
    /// Not known.
    Stranger,
    /// It owns it.
    Owner,
    /// Another platform owns it.
    Elsewhere,
    /// It has promised to do as another platform decides, or cannot read its own records.
    Undecided,
    /// It owned it last, and it was removed there.
    Removed,
}

/// A request that a platform's gateway may register a VM in one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PermitRequest {
    /// The VM.
    #[serde(deserialize_with = "bounded::name")]
    pub vm: String,
    /// The VM's home network prefix: its lowest address.
    pub prefix: [u8; 16],
    /// Its length in bits.
    pub prefix_len: u8,
    /// The VM's IPv4 home address, if it has one, and the length of its network's prefix.
    pub ipv4: Option<([u8; 4], u8)>,
    /// The ownership epoch in which the VM is there.
    pub epoch: Epoch,
    /// The gateway's address.
    pub gateway: [u8; 16],
    /// The fingerprint of the platform that will own the VM in that epoch: the asker's own, or its successor's.
    pub holder: [u8; 32],
}

/// What a home agent says to a [`PermitRequest`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PermitAnswer {
    /// It may.
    Permitted {
        /// The number of the key.
        spi: u32,
        /// The key of the registrations (HMAC-SHA-256).
        key: [u8; 32],
    },
    /// It may not.
    Refused {
        /// Why.
        reason: String,
    },
}

/// Without the key.
impl fmt::Debug for PermitAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Permitted { spi, key: _ } => write!(f, "Permitted {{ spi: {spi} }}"),
            Self::Refused { reason } => write!(f, "Refused {{ reason: {reason:?} }}"),
        }
    }
}

/// Where a transferred image goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Target {
    /// Into the chunk store, under this name.
    Base {
        /// The base image's name.
        #[serde(deserialize_with = "bounded::name")]
        name: String,
    },
    /// The next generation of a VM's disk.
    Replica {
        /// The VM.
        #[serde(deserialize_with = "bounded::name")]
        vm: String,
        /// The disk.
        #[serde(deserialize_with = "bounded::name")]
        disk: String,
    },
    /// The disk of a VM that is on its way, in place.
    Migration {
        /// The migration.
        job: JobId,
        /// The disk's place in the plan.
        disk: u32,
    },
    /// Nowhere: the receiver says what it would want if this disk were migrated to it, and takes no bytes. Ends with
    /// the stream.
    Estimate {
        /// The VM.
        #[serde(deserialize_with = "bounded::name")]
        vm: String,
        /// The disk.
        #[serde(deserialize_with = "bounded::name")]
        disk: String,
    },
    /// The next generation of one of a VM's disks, which become the present ones together: the receiver answers
    /// [`ToReceiver::Commit`] of none of them before all have come.
    ReplicaSet {
        /// The VM.
        #[serde(deserialize_with = "bounded::name")]
        vm: String,
        /// The disk.
        #[serde(deserialize_with = "bounded::name")]
        disk: String,
        /// The pass, the same for all of its disks and for no other.
        set: JobId,
        /// How many disks it has, 1 to [`MAX_DISKS`].
        disks: u32,
    },
}

/// How much of a memory stream its receiver has given to the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// Bytes, from the beginning of the memory on.
    pub bytes: u64,
}

/// What a platform says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its own name for itself.
    #[serde(deserialize_with = "bounded::name")]
    pub name: String,
    /// `CARGO_PKG_VERSION`.
    #[serde(deserialize_with = "bounded::name")]
    pub version: String,
    /// Bytes free where its images are.
    pub free_bytes: u64,
    /// The address of its mobile access gateway, when it has one.
    pub gateway: Option<[u8; 16]>,
}

/// What a receiver holds of a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetStatus {
    /// The generation of what stands there; 0 when there is nothing.
    pub generation: u64,
    /// Its root, when known.
    pub root: Option<Root>,
}

/// A run of an image, as its sender sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Extent {
    /// This many bytes of this chunk.
    Chunk {
        /// Length in bytes, 1 to [`MAX_CHUNK_BYTES`].
        len: u32,
        /// The chunk.
        name: ChunkName,
    },
    /// This many zero bytes.
    Hole {
        /// Length in bytes.
        len: u64,
    },
}

impl Extent {
    /// The extent's length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Extent::Chunk { len, .. } => u64::from(*len),
            Extent::Hole { len } => *len,
        }
    }

    /// Whether it has no bytes, which no extent of a valid batch has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Plain bytes as they travel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed {
    /// `chunkstore::Codec` as its number: 0 as they are, 1 zstd.
    pub codec: u8,
    /// Length before compression.
    pub plain_len: u32,
    /// The bytes.
    pub bytes: Bytes,
}

/// A chunk that was asked for by [`Open::Fetch`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetched {
    /// Its bytes, when they are held.
    pub data: Option<Packed>,
}

/// One run of blocks in a delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Where it stands in the image, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u32,
    /// Whether it is all zero, and so not among the bytes.
    pub zero: bool,
}

/// What a sender says on a transfer's stream. Everything applies in the order it is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToReceiver {
    /// The next extents of a scan. Batches are numbered from 0 and cover the image without gap or overlap.
    Extents {
        /// The batch's number.
        batch: u32,
        /// 1 to [`MAX_BATCH_EXTENTS`].
        #[serde(deserialize_with = "bounded::vec::<_, _, MAX_BATCH_EXTENTS>")]
        extents: Vec<Extent>,
    },
    /// Chunks that the receiver has asked for, compressed together: their bytes follow each other in `data`.
    Chunks {
        /// The batch.
        batch: u32,
        /// Their places in the batch, 1 to [`MAX_BATCH_EXTENTS`].
        #[serde(deserialize_with = "bounded::vec::<_, _, MAX_BATCH_EXTENTS>")]
        indices: Vec<u32>,
        /// Their bytes, at most [`MAX_GROUP_BYTES`] plain.
        data: Packed,
    },
    /// Blocks written since. Runs follow each other in `data`, zero runs left out.
    Delta {
        /// The runs, 1 to [`MAX_BATCH_EXTENTS`].
        #[serde(deserialize_with = "bounded::vec::<_, _, MAX_BATCH_EXTENTS>")]
        runs: Vec<Run>,
        /// Their bytes, at most [`MAX_DELTA_BYTES`] plain.
        data: Packed,
    },
    /// Say [`ToSender::Synced`] when everything before this is applied.
    Sync {
        /// Any number; comes back.
        mark: u32,
    },
    /// That was all: this must be the image. For every target but a migration, where the hand-off compares.
    Commit {
        /// The root of the whole image.
        root: Root,
        /// The generation this is to follow, as [`TargetStatus`] gave it; a replica at another one refuses.
        after: u64,
        /// When the image was so, in milliseconds since the Unix epoch.
        taken_unix_ms: u64,
    },
    /// The sender is there, and has nothing to send at the moment. May stand anywhere.
    Alive,
}

/// What a receiver says on a transfer's stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToSender {
    /// Go on.
    Accepted(TargetStatus),
    /// It will not be, or is no more.
    Refused(Refusal),
    /// The places of a batch that the receiver lacks, ascending.
    Want {
        /// The batch.
        batch: u32,
        /// Places in it.
        #[serde(deserialize_with = "bounded::vec::<_, _, MAX_BATCH_EXTENTS>")]
        indices: Vec<u32>,
    },
    /// Everything before the mark is applied.
    Synced {
        /// The mark.
        mark: u32,
    },
    /// The image is there, durable, and its root is the one named.
    Committed {
        /// Its generation.
        generation: u64,
    },
    /// The receiver is there, and at work on what it was sent. May stand anywhere.
    Working,
}

/// Why a receiver will not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// To match on.
    pub kind: RefusalKind,
    /// For a person to read.
    pub reason: String,
}

/// The kinds of refusal that a sender may treat differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalKind {
    /// Something else works on that target.
    Busy,
    /// There is no such job, or name.
    Unknown,
    /// No room.
    NoSpace,
    /// The message is not of the protocol, or out of place.
    Protocol,
    /// The replica stands at another generation, or its content is not what the sender took it for: send a whole scan.
    Diverged,
    /// Anything else.
    Failed,
}

/// A frame that cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Its length is out of bounds.
    #[error("a frame of {0} bytes is longer than {MAX_FRAME_BYTES}")]
    TooLong(usize),
    /// Its bytes are no message.
    #[error("a frame is no message of protocol {PROTOCOL_VERSION}: {0}")]
    Malformed(String),
}

/// A message's bytes without the frame's length.
pub(crate) fn to_bytes<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    bincode::serde::encode_to_vec(message, bincode::config::standard())
        .map_err(|error| FrameError::Malformed(error.to_string()))
}

/// The message that these bytes are, all of them.
pub fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    let config = bincode::config::standard().with_limit::<MAX_FRAME_BYTES>();
    let (message, used) = bincode::serde::decode_from_slice(bytes, config)
        .map_err(|error| FrameError::Malformed(error.to_string()))?;
    if used != bytes.len() {
        return Err(FrameError::Malformed(format!("{} bytes too many", bytes.len() - used)));
    }
    Ok(message)
}

/// A message as a frame.
pub fn frame<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; 4];
    frame.extend_from_slice(&to_bytes(message)?);
    let length = frame.len() - 4;
    if length > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong(length));
    }
    frame[..4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(frame)
}

/// The length of the frame that begins with these 4 bytes, within bounds.
pub fn frame_len(prefix: [u8; 4]) -> Result<usize, FrameError> {
    let length = u32::from_le_bytes(prefix) as usize;
    if length > MAX_FRAME_BYTES { Err(FrameError::TooLong(length)) } else { Ok(length) }
}

#[cfg(test)]
pub(crate) mod tests;
