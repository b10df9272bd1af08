//! What a migration does with the VM's address once ownership has been released: the `Rebind` phase.
//!
//! A [`Rebinder`] never decides whether a VM may run; it is called after that is settled.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

/// Which VM has moved where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rebind {
    /// The VM's name.
    pub vm: String,
    /// The platform it left.
    pub from: String,
    /// The platform it runs on now.
    pub to: String,
    /// The ownership epoch of the move: a later move has a higher one.
    pub epoch: u64,
}

/// What was done about the address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rebound {
    /// Whether traffic now follows the VM to its new platform.
    pub moved: bool,
    /// One sentence for the report: what was done, or what was left to others.
    pub note: String,
}

/// Why an address could not be moved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RebindError {
    /// The anchor that holds the binding gave no answer.
    #[error(
        "moving the address of {vm}: the anchor did not answer; the VM runs, its old address is not reachable yet"
    )]
    NoAnswer {
        /// The VM's name.
        vm: String,
    },
    /// The anchor refused.
    #[error(
        "moving the address of {vm}: the anchor refused ({reason}); the VM runs, its old address is not reachable"
    )]
    Refused {
        /// The VM's name.
        vm: String,
        /// What the anchor said.
        reason: String,
    },
}

/// Moves a VM's address after the VM.
#[async_trait]
pub trait Rebinder: Send + Sync {
    /// Makes traffic follow the VM. May be called again for the same move, with the same outcome.
    ///
    /// # Errors
    /// [`RebindError`]; the VM's ownership stays as it is either way.
    async fn rebind(&self, rebind: &Rebind) -> Result<Rebound, RebindError>;
}

/// No mobility is configured: the address is not moved.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unconfigured;

#[async_trait]
impl Rebinder for Unconfigured {
    async fn rebind(&self, rebind: &Rebind) -> Result<Rebound, RebindError> {
        Ok(Rebound {
            moved: false,
            note: format!(
                "no mobility configured: the address of {} was not moved; on a shared network segment the hypervisor's \
                 own announcement from {} suffices",
                rebind.vm, rebind.to
            ),
        })
    }
}

#[cfg(test)]
mod tests;
