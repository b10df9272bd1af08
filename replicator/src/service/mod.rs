//! The daemon around the rooms: who peers are and what they and local users ask, jobs, VM definitions, configuration.

pub mod config;
pub mod control;
pub mod daemon;
pub mod disks;
pub mod identity;
pub mod jobs;
pub mod net;
pub mod output;
pub mod peers;
pub mod platform;
pub mod serve;
pub mod state_version;
pub mod vms;
