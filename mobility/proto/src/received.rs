//! Signalling as it comes to an agent: read, found to be for it, and by whose key it is to be proved. Believes nothing.

use std::net::Ipv6Addr;

use crate::auth::VerifyError;
use crate::wire::*;

/// Why nothing of a packet was believed. Its sender is told nothing: the packet may be anybody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is no packet with a Mobility Header.
    #[error("no signalling: {0}")]
    Packet(#[from] SignallingError),
    /// Its Mobility Header is invalid.
    #[error("an invalid message: {0}")]
    Message(#[from] ParseError),
    /// It is for another node.
    #[error("the packet is for {0}")]
    Destination(Ipv6Addr),
    /// It is none that this agent is sent.
    #[error("no agent of this kind takes a message of the type: {0}")]
    Type(MhType),
    /// No key is known by its SPI.
    #[error("no key is known by SPI {0}")]
    UnknownKey(u32),
    /// Its proof is missing or wrong.
    #[error("{0}")]
    Proof(#[from] VerifyError),
    /// Its sender has a key, but for another address.
    #[error("the key belongs to another address than {0}")]
    Address(Ipv6Addr),
}

/// A message that an agent has received. Its proof is still to be checked.
pub(crate) struct Received<'a> {
    pub(crate) addresses: Addresses,
    pub(crate) header: MobilityHeader<'a>,
    pub(crate) repr: Repr,
    /// Which key it says it is proved with.
    pub(crate) spi: u32,
}

impl<'a> Received<'a> {
    /// Reads an IPv6 packet that is to be for `own`.
    pub(crate) fn parse(packet: &'a [u8], own: Ipv6Addr) -> Result<Self, Refusal> {
        let Signalling { addresses, message, .. } = Signalling::parse(packet)?;
        if addresses.destination != own {
            return Err(Refusal::Destination(addresses.destination));
        }
        let header = MobilityHeader::new_checked(message)?;
        let repr = Repr::parse(&header, addresses.endpoints())?;
        match repr.options.last() {
            Some(MobilityOption::Authentication { spi, .. }) => {
                let spi = *spi;
                Ok(Self { addresses, header, repr, spi })
            }
            _ => Err(VerifyError::Missing.into()),
        }
    }
}
