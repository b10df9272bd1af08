//! `longhaul`: moves running virtual machines between sites that share no storage, and keeps warm copies of their disks.
//!
//! The daemon puts three pillars under one roof: what is on the disk (`chunkstore`), where the VM runs
//! (`migrate_driver`), where it is reached (`mobility`). What two platforms say to each other, and who may run a VM
//! when, is decided in the pure crate `longhaul_proto`; this crate has the sockets, the files and the clock.

// A print macro panics where its line cannot be written; `output` does not.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod address;
pub mod bases;
pub mod claims;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod disks;
pub mod estimate;
pub mod failpoint;
pub mod files;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
pub mod home_agent;
pub mod identity;
pub mod incoming;
pub mod jobs;
pub mod journal;
pub mod landing;
pub mod lease;
pub mod migrate;
pub mod mobile_node;
pub mod net;
pub mod origins;
pub mod outgoing;
pub mod output;
pub mod ownership;
pub mod peers;
pub mod platform;
mod random;
pub mod replicas;
pub mod restore;
pub mod serve;
pub mod state_version;
pub mod targets;
pub mod transfer;
pub mod upkeep;
pub mod vms;
pub mod warm;

// A plan has room for the disks of every definition, and for no more.
const _: () = assert!(longhaul_proto::wire::MAX_DISKS == migrate_driver::definition::MAX_DISKS);
