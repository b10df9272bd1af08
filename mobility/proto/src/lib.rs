//! What the mobility pillar decides without a socket, a clock, a thread or a file.
//!
//! [`wire`] is the codec of the Mobility Header, [`auth`] the proofs inside it, [`anchor`] the binding cache of a home agent
//! and local mobility anchor, [`gateway`] a mobile access gateway, [`inner`] what the tunnels between them carry, [`received`] what both are sent, [`probe`] the measurement of reachability: the probe packet and the statistics of a stream of
//! them. The crate never reads the time (it is an argument), never sends or receives a byte, and makes no random numbers.

pub mod anchor;
pub mod auth;
pub mod gateway;
pub mod inner;
pub mod probe;
pub mod received;
pub mod wire;
