//! Warm copies of VMs' disks: passes at the source, replicas and their generations at the destination.

pub(crate) mod replicas;
pub(crate) mod warm;
