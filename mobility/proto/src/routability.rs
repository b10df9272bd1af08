//! Return routability (RFC 6275 section 5.2): a mobile node shows a correspondent that it is reached at its home address and at
//! its care-of address, and from then on packets go between them without the home agent. Both ends, each a state machine on
//! virtual time. [`Correspondent`] is the correspondent's, [`Initiator`] the mobile node's towards one correspondent.
//!
//! ```text
//! mobile node -- Home Test Init, through the tunnel --> correspondent     <-- Home Test --
//!             -- Care-of Test Init, directly ---------> correspondent     <-- Care-of Test --
//!             -- Binding Update, proved by both tokens > correspondent     <-- Binding Acknowledgement --
//! ```
//!
//! It makes no random numbers: nonces, secrets and keys are given to it. It sends nothing itself.

mod correspondent;
mod initiator;

pub use correspondent::{Config as CorrespondentConfig, Correspondent};
pub use initiator::{Config as InitiatorConfig, Happened, Initiator, Output};

use std::time::Duration;

/// How long a nonce is taken (RFC 6275 section 12, MAX_NONCE_LIFETIME).
const NONCE_LIFETIME: Duration = Duration::from_secs(240);
/// How long a token is used (MAX_TOKEN_LIFETIME).
const TOKEN_LIFETIME: Duration = Duration::from_secs(210);
/// The longest binding (MAX_RR_BINDING_LIFETIME), in seconds.
const BINDING_LIFETIME_S: u32 = 420;

#[cfg(test)]
mod tests;
