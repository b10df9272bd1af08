//! What two platforms say to each other, and who may run a VM when: the pure core of `longhaul`.
//!
//! * [`handoff`]: the ownership of a VM passing from one platform to another, as two state machines and a journal;
//! * [`journal`]: how the journal's records stand in a file, byte by byte;
//! * [`wire`]: the messages on QUIC streams and their framing.
//!
//! This crate never opens a socket or a file, never starts a thread and never reads a clock: inputs go in, outputs
//! come out, time is an argument. So a whole migration runs in a test on virtual time, from a seed.

mod bounded;
pub mod handoff;
pub mod ids;
pub mod journal;
mod limits;
pub mod wire;

pub use ids::{BadJobId, Epoch, JobId};
pub use wire::PROTOCOL_VERSION;
