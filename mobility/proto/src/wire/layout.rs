//! Where the fields of a Mobility Header are (RFC 6275 section 6.1.1), and how long it may be. Constants only.

/// The fixed part that all messages share, in bytes.
pub(super) const FIXED_BYTES: usize = 6;
/// What Header Len does not count.
pub(super) const UNCOUNTED_BYTES: usize = 8;
/// The longest Mobility Header, in bytes.
pub(super) const MAX_BYTES: usize = UNCOUNTED_BYTES + 8 * 255;
/// The only Payload Proto that is defined: no next header.
pub(super) const NO_NEXT_HEADER: u8 = 59;
/// Where the fields are.
pub(super) const PAYLOAD_PROTO_AT: usize = 0;
pub(super) const HEADER_LEN_AT: usize = 1;
pub(super) const TYPE_AT: usize = 2;
