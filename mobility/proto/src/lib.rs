//! What the mobility pillar decides without a socket, a clock, a thread or a file.
//!
//! Today that is the measurement of reachability: the probe packet and the statistics of a stream of them. The crate
//! never reads the time (it is an argument, in nanoseconds) and never sends or receives a byte.

pub mod probe;
