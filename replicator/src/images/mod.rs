//! Images that no VM runs on: bases in the chunk store, its upkeep, and restoring them.

pub mod bases;
pub mod origins;
pub mod restore;
pub mod targets;
pub mod upkeep;
