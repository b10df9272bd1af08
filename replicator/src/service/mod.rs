//! The daemon around the rooms: who peers are and what they and local users ask, jobs, VM definitions, configuration.

pub(crate) mod config;
pub(crate) mod control;
pub(crate) mod daemon;
pub(crate) mod disks;
pub(crate) mod identity;
pub(crate) mod jobs;
pub(crate) mod net;
pub(crate) mod output;
pub(crate) mod peers;
pub(crate) mod platform;
pub(crate) mod serve;
pub(crate) mod state_version;
pub(crate) mod vms;
