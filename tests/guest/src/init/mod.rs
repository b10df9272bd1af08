//! The parts of `/init`: bringing the system up, writing records, sending probe packets.

pub(crate) mod boot;
pub(crate) mod probe;
pub(crate) mod writer;
