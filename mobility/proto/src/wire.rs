//! What mobility looks like on the wire: the Mobility Header (RFC 6275 section 6.1) with its messages and options, the Home
//! Address option, the type 2 routing header, and the IPv6 packet around them.
//!
//! ```text
//! Signalling          an IPv6 packet   --- Addresses, whose Endpoints the checksum covers
//!   MobilityHeader    a view of bytes
//!     Repr            what it says     --- Message, MobilityOption
//! ```
//!
//! A view's accessors never panic, for it exists only over bytes that are long enough. A [`Repr`] that was parsed is
//! valid, and is emitted with padding, lengths and checksum. Nothing is allocated for lengths that are not there.
//!
//! ```
//! use mobility_proto::wire::*;
//!
//! let ends = Endpoints { source: "2001:db8::1".parse()?, destination: "2001:db8::2".parse()? };
//! let message = Message::Heartbeat { response: false, unsolicited: false, sequence: 7 };
//! let repr = Repr { message, options: vec![MobilityOption::RestartCounter(3)] };
//! let bytes = repr.emit(ends)?;
//! assert_eq!(Repr::parse(&MobilityHeader::new_checked(&bytes)?, ends)?, repr);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! It never decides about a binding, and checks no authenticator: that is [`auth`](crate::auth).

mod bytes;
mod checksum;
mod error;
mod extension;
mod header;
mod layout;
mod message;
mod numbers;
mod option;
mod repr;
mod signalling;
mod units;

pub use error::{Answer, EmitError, ParseError};
pub use extension::{DestinationOptions, ExtensionError, RoutingHeader};
pub use header::MobilityHeader;
pub use message::{BindingAcknowledgement, BindingUpdate, Cookie, KeygenToken, Message, RoutabilityTest};
pub use numbers::*;
pub use option::{BINDING_AUTHENTICATOR_BYTES, ContextItem, MobilityOption};
pub use repr::Repr;
pub use signalling::{Addresses, Signalling, SignallingError};
pub use units::*;

use std::net::Ipv6Addr;

/// The two addresses of the pseudo header (RFC 6275 section 6.1.1). They are the home addresses where the packet has them:
/// `source` is the Home Address option's address, `destination` the one in the type 2 routing header; without these the
/// packet's own. [`Addresses::endpoints`] says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoints {
    /// Who sends.
    pub source: Ipv6Addr,
    /// To whom.
    pub destination: Ipv6Addr,
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vector_tests;
