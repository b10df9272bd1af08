//! The mobility lab: a home agent, two platforms and a correspondent in network namespaces, joined by a line that takes time,
//! and a guest that moves between the platforms. The agents are the real ones, each in its own namespace; the guest is a
//! namespace too, which a move takes from one platform's link to the other's.
//!
//! ```text
//!   correspondent --- home agent ===(delay line)=== edge --- platform a --+
//!                                                       --- platform b --+-- guest
//! ```
//!
//! Nothing here is left behind: namespaces, interfaces and agents end with the value that holds them.

pub mod agents;
pub mod connections;
pub mod moves;
pub mod network;
pub mod ping;
pub mod raw;
pub mod roaming;
pub mod sites;
pub mod stream;
pub mod wires;

pub use agents::Running;
pub use connections::Connection;
pub use moves::Watch;
pub use network::{Network, Platform};
pub use ping::{Answers, Ping};
pub use raw::Raw;
pub use roaming::Roaming;
pub use sites::Sites;
pub use stream::{Heard, Stream};
pub use wires::Wires;
