//! Where a VM is reached: what happens to its address when it moves, and how long it was out of reach.
//!
//! This pillar knows nothing of disks and hypervisors. It adapts sockets and clocks to what `mobility-proto` decides.

pub mod probe;
pub mod rebind;

pub use rebind::{Rebind, RebindError, Rebinder, Rebound, Unconfigured};
