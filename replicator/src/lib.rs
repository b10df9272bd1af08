//! `longhaul`: moves running virtual machines between sites that share no storage, and keeps warm copies of their disks.
//!
//! The daemon puts three pillars under one roof: what is on the disk (`chunkstore`), where the VM runs
//! (`migrate_driver`), where it is reached (`mobility`). What two platforms say to each other, and who may run a VM
//! when, is decided in the pure crate `longhaul_proto`; this crate has the sockets, the files and the clock.

// A print macro panics where its line cannot be written; `output` does not.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod address;
pub mod cli;
mod error_kind;
mod failpoint;
mod files;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod images;
mod lease;
mod migration;
mod random;
mod replication;
mod service;
mod transfer;

/// What this project's benchmarks measure by itself.
#[doc(hidden)]
pub mod measured {
    pub use crate::address::home_agent::bindings::Bindings;
}

// A plan has room for the disks of every definition, and for no more.
const _: () = assert!(longhaul_proto::wire::MAX_DISKS == migrate_driver::definition::MAX_DISKS);
