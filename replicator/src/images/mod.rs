//! Images that no VM runs on: bases in the chunk store, its upkeep, and restoring them.

pub(crate) mod bases;
pub(crate) mod origins;
pub(crate) mod restore;
pub(crate) mod targets;
pub(crate) mod upkeep;
