//! The driver against a real QEMU (TCG). The guest is a boot sector, see `common/guest.rs`: no kernel, no network, no root.

// A step that fails fails the test.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod basics;
mod crash;
mod destination;
mod disks;
mod files;
mod migration;
mod mirror;
mod stuck;
mod warm;
