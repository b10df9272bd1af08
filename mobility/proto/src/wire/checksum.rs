//! The Internet checksum over a Mobility Header and its pseudo header. Which addresses belong in it is said by
//! [`Endpoints`](super::Endpoints).

use super::Endpoints;

/// The protocol number of the Mobility Header.
pub(super) const MOBILITY_HEADER: u8 = 135;

/// The checksum of `message` (RFC 6275 section 6.1.1), which is 0 when the one in it is right.
pub(super) fn checksum(ends: Endpoints, message: &[u8]) -> u16 {
    let mut sum = message.len() as u64 + u64::from(MOBILITY_HEADER);
    for part in [&ends.source.octets()[..], &ends.destination.octets()[..], message] {
        let words = part.chunks_exact(2);
        if let [last] = words.remainder() {
            sum += u64::from(*last) << 8;
        }
        sum += words.map(|word| u64::from(u16::from_be_bytes([word[0], word[1]]))).sum::<u64>();
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
