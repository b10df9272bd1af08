//! What the mobility pillar decides without a socket, a clock, a thread or a file.
//!
//! [`wire`] is the codec of the Mobility Header, [`auth`] the proofs inside it, [`anchor`] the binding cache of a home agent
//! and local mobility anchor, [`gateway`] a mobile access gateway, [`node`] a mobile node, [`movement`] where it is, by what
//! it hears of routers ([`discovery`]), [`routability`] what lets a node and its correspondent do without a home agent,
//! [`inner`] what the tunnels between them carry, [`received`] what they are sent,
//! [`probe`] the measurement of reachability: the probe packet and the statistics of a stream of
//! them. The crate never reads the time (it is an argument), never sends or receives a byte, and makes no random numbers.

pub mod anchor;
pub mod auth;
pub mod discovery;
pub mod gateway;
pub mod inner;
pub mod movement;
pub mod node;
pub mod probe;
pub mod received;
pub mod routability;
pub mod wire;
