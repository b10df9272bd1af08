//! The harness of the system tests: a lab with real guests, platforms running the real daemon, links that fail on
//! demand, and the proof that what a guest had acknowledged is on a disk.
//!
//! It stands outside the product: nothing in the product depends on it, and it reaches the daemon only as a user does,
//! through the command line. It never uses KVM and never touches a process that it did not start.

pub mod block_device;
pub mod collector;
pub mod delay_line;
pub mod files;
pub mod guest;
pub mod lab;
pub mod lines;
pub mod namespace;
pub mod plain;
pub mod platform;
pub mod relay;
pub mod shell;
pub mod verify;
pub mod xen;

pub use block_device::BlockDevice;
pub use collector::Collector;
pub use delay_line::{DelayLine, Direction, Way};
pub use guest::Guest;
pub use lab::Lab;
pub use namespace::Namespace;
pub use plain::PlainGuest;
pub use platform::{Platform, pair, pair_over};
pub use relay::{LinkSettings, Relay};
pub use verify::{RecordReport, verify_records};
pub use xen::{XenHost, XenPair};
