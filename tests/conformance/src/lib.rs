//! The conformance suite of [`migrate_driver::Hypervisor`]: what a migration relies on, whatever the hypervisor is.
//!
//! [`suite::run`] needs two hosts that see one disk, and a collector that hears the guest. A host is a [`Site`]: its driver
//! in this process ([`Local`]), or, for a hypervisor that has a machine of its own, behind an agent there ([`agent`],
//! [`Remote`]). The suite knows neither.

pub mod agent;
mod local;
pub mod remote;
pub mod suite;

use anyhow::Result;
use async_trait::async_trait;
use migrate_driver::{GuestStatus, MemoryParams, Mode, StopHow};
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

pub use local::Local;
pub use remote::Remote;

/// What can be asked of a driver about its one guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// `start`
    Start,
    /// `start_incoming`
    StartIncoming,
    /// `incoming_loaded`
    IncomingLoaded,
    /// `wait_paused`
    WaitPaused,
    /// `finish_memory`
    FinishMemory,
    /// `resume`
    Resume,
    /// `pause`
    Pause,
    /// `rollback`
    Rollback,
    /// `status`
    Status,
    /// `stop` at once.
    Stop,
    /// `check_movable`; whether alive.
    CheckMovable(bool),
    /// A mirror of the disk into a new overlay.
    Tap,
    /// `drain`
    Drain,
    /// `untap`
    Untap,
    /// Another driver, as after a restart of the daemon.
    Restart,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// It is done; the guest's status where that was asked for, or the bytes of the guest's writes in the overlay.
    Done(Option<GuestStatus>, u64),
    /// There is no such guest here.
    NotRunning,
    /// There is one already.
    AlreadyRunning,
    /// It is in no state for that.
    WrongState,
    /// Any other failure.
    Failed(String),
}

/// A host under the suite.
#[async_trait]
pub trait Site: Send + Sync {
    /// Asks its driver.
    ///
    /// # Errors
    /// When the driver cannot be asked; that it refuses is an answer.
    async fn call(&self, call: Call) -> Result<Answer>;
    /// `send_memory`, which is to work.
    ///
    /// # Errors
    /// When it does not.
    async fn send_memory(&self, cold: bool) -> Result<UnixStream>;
    /// `open_incoming`, which is to work.
    ///
    /// # Errors
    /// When it does not.
    async fn open_incoming(&self) -> Result<UnixStream>;
}

fn memory_params(cold: bool) -> MemoryParams {
    let mode = if cold { Mode::Cold } else { Mode::Live };
    MemoryParams { mode, max_downtime: std::time::Duration::from_millis(300), max_bandwidth_bytes_s: None }
}

const KILL: StopHow = StopHow::Kill;
