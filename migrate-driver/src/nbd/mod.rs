//! Where a hypervisor pushes a guest's disk writes: an NBD server on a unix socket over an [`Overlay`].
//!
//! Accepts every write at once into page cache, never waits for the network, keeps nothing after it is dropped.
//! Offers what QEMU's NBD client uses and nothing else (no TLS, no structured replies, no block status).

mod codec;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod overlay;
mod server;

pub use overlay::{BLOCK_BYTES, Overlay};
pub use server::NbdServer;
