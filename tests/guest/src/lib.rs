//! What the program inside a test guest shares with the harness that checks it: the workload's parameters
//! ([`workload`]), the format of the records it writes ([`record`]) and where things are.
//!
//! The library does no I/O; the binary `guest-init` beside it does.

pub mod record;
pub mod workload;

pub use record::{Record, RecordError};
pub use workload::Workload;

/// Where the workload's ring file is, inside the guest's root file system.
pub const RECORDS_PATH: &str = "/longhaul/records";

/// The file in the initramfs that lists the kernel modules to load, one file name a line, in order.
pub const MODULES_LIST: &str = "/lib/modules/order";

/// Meaning of the application words in the guest's probe packets.
pub mod word {
    /// The number of the last record that is durable on the guest's disk.
    pub const ACKED: usize = 0;
    /// The lowest record number that is certainly still in the ring.
    pub const FIRST: usize = 1;
    /// The random number this boot of the guest has given itself.
    pub const INSTANCE: usize = 2;
    /// The guest's uptime in milliseconds.
    pub const UPTIME_MS: usize = 3;
}

#[cfg(test)]
mod tests;
