//! The proofs inside signalling: the authentication option between mobile node and home agent (RFC 4285), and the binding
//! authorization data that follows from a return-routability test (RFC 6275 section 5.2). Compares in constant time;
//! stores no key, chooses none, and makes no random numbers.
//!
//! Both proofs cover the Mobility Header with a checksum of zero up to the proof itself, which is the last option. So both
//! are made while the message is emitted, and checked on the bytes that came, never on what was parsed from them.

mod routability;
mod shared_key;

pub use routability::{BindingKey, CorrespondentKey};
pub use shared_key::{Algorithm, SharedKey};

use std::net::Ipv6Addr;

use hmac::digest::block_api::EagerHash;
use hmac::{Hmac, KeyInit, Mac};

use crate::wire::MobilityHeader;

/// The addresses that a proof covers, before the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Covered {
    /// The care-of address that the message registers: that of an Alternate Care-of Address option before the packet's
    /// source. The home address when it deregisters at home.
    pub care_of: Ipv6Addr,
    /// For RFC 4285 the home address; for RFC 6275 the correspondent's address, its home address if it has one.
    pub peer: Ipv6Addr,
}

/// Why a message is not accepted. Its sender is told no more than the status in the error's description.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// There is none, or something other than padding is behind it and would not be covered.
    #[error("the message's last option is not the proof that its receiver asks for")]
    Missing,
    /// Its SPI names another key than the one it is checked with.
    #[error("the message's proof was made with the key of SPI {0}, which is another")]
    OtherKey(u32),
    /// It was made for another message or with another key (RFC 4285: status 146).
    #[error("the message's proof is wrong: forged, changed on the way, or made with another key")]
    Wrong,
}

/// HMAC over the addresses and over what of a message comes before its proof, the checksum taken as zero.
fn hmac_of<H: EagerHash>(key: &[u8], covered: Covered, before_proof: &[u8]) -> Hmac<H>
where
    Hmac<H>: KeyInit + Mac,
{
    let zero_checksum = [0; 2];
    let (start, checksum_and_rest) = before_proof.split_at(MobilityHeader::CHECKSUM_AT);
    let mut mac = keyed::<H>(key);
    for part in [
        &covered.care_of.octets()[..],
        &covered.peer.octets(),
        start,
        &zero_checksum,
        &checksum_and_rest[zero_checksum.len()..],
    ] {
        Mac::update(&mut mac, part);
    }
    mac
}

fn keyed<H: EagerHash>(key: &[u8]) -> Hmac<H>
where
    Hmac<H>: KeyInit + Mac,
{
    <Hmac<H> as KeyInit>::new_from_slice(key).expect("HMAC takes keys of any length")
}

#[cfg(test)]
mod tests;
