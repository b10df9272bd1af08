//! Warm copies of VMs' disks: passes at the source, replicas and their generations at the destination.

pub mod replicas;
pub mod warm;
