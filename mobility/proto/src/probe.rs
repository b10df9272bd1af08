//! The probe: one UDP datagram of 210 bytes sent every few milliseconds, and what its arrivals tell.
//!
//! [`packet`] holds the layout, [`stats`] the running statistics of one stream. Neither opens a socket or reads a
//! clock.

pub mod packet;
pub mod stats;

pub use packet::{PACKET_BYTES, Packet, ParseError, WORDS};
pub use stats::{Gap, StreamSnapshot, StreamStats};

#[cfg(test)]
mod tests;
