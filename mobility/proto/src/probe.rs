//! The probe: one UDP datagram, usually of 210 bytes, sent every few milliseconds, and what its arrivals tell.
//!
//! [`packet`] holds the layout, [`stats`] the running statistics of one stream, [`timeline`] what it looked like over
//! time and [`svg`] the picture of that. None opens a socket or reads a clock.

mod distribution;
pub mod packet;
pub mod stats;
pub mod svg;
pub mod timeline;

pub use distribution::Summary;
pub use packet::{PACKET_BYTES, Packet, ParseError, SIZES, WORDS, word};
pub use stats::{Gap, StreamSnapshot, StreamStats};
pub use timeline::Timeline;

#[cfg(test)]
mod tests;
