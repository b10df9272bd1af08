//! The driver against a real QEMU (TCG). The guest is a boot sector, see `common/guest.rs`: no kernel, no network, no root.

#[path = "../common/mod.rs"]
mod common;

mod basics;
mod migration;
