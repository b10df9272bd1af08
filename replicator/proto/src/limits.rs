//! The bounds on what one message holds, for those who write it and those who read it. Constants only.

/// The most lanes of one striped direction, the main stream included.
pub const MAX_LANES: u16 = 1024;

/// The longest piece of a memory stream.
pub const MAX_PIECE_BYTES: u32 = 256 << 10;

/// The longest frame. A delta of 1 MiB that does not compress, and its list of blocks, fit.
pub const MAX_FRAME_BYTES: usize = 4 << 20;

/// The longest plan in an offer.
pub const MAX_PLAN_BYTES: usize = 256 << 10;

/// The most disks a VM on its way may have: as many as a definition may.
pub const MAX_DISKS: usize = 16;

/// The longest name of a VM, a disk, an image or a platform.
pub const MAX_NAME_BYTES: usize = 255;

/// The most extents in one batch, places in one want, runs in one delta.
pub const MAX_BATCH_EXTENTS: usize = 1024;

/// The most plain bytes in one delta.
pub const MAX_DELTA_BYTES: usize = 1 << 20;

/// The longest chunk, before compression: `chunkstore::MAX_CHUNK_BYTES`.
pub const MAX_CHUNK_BYTES: usize = 256 << 10;

/// The most plain bytes of chunks that travel together: `chunkstore::MAX_GROUP_BYTES`. One frame holds them even where they do not compress.
pub const MAX_GROUP_BYTES: usize = MAX_FRAME_BYTES - (256 << 10);

/// The largest image: 64 TiB.
pub const MAX_IMAGE_BYTES: u64 = 64 << 40;
