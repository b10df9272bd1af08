//! One operation's view of a VM: its monitor connection, and errors that say what was being done.
//!
//! Keeps one connection a VM (QEMU serves one monitor client at a time) and makes a new one when it is lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use super::paths::VmPaths;
use super::process::log_tail;
use crate::definition::VmName;
use crate::hypervisor::{DriverError, GuestStatus};
use crate::qmp::{Event, Events, Heard, Qmp, QmpError};

/// A daemon that was killed a moment ago still counts as QEMU's client until QEMU notices.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// QEMU's main loop may wait for the disk (a flush) before it answers.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a wait for an event goes without asking for the state. Events are reliable; this is the belt.
const RECHECK: Duration = Duration::from_secs(1);

/// What is kept about one VM.
#[derive(Debug)]
pub(crate) struct Vm {
    pub(crate) name: VmName,
    pub(crate) paths: VmPaths,
    connection: Mutex<Option<Arc<Qmp>>>,
    /// Held while the process is started or ended.
    pub(crate) lifecycle: Arc<Mutex<()>>,
    /// When the guest was stopped for a cold migration.
    pub(crate) stopped: std::sync::Mutex<Option<Instant>>,
}

impl Vm {
    pub(crate) fn new(name: VmName, paths: VmPaths) -> Vm {
        Vm {
            name,
            paths,
            connection: Mutex::default(),
            lifecycle: Arc::default(),
            stopped: Default::default(),
        }
    }

    /// The kept connection, or a new one.
    async fn connect(&self) -> Result<Arc<Qmp>, QmpError> {
        let mut kept = self.connection.lock().await;
        if let Some(qmp) = kept.as_ref().filter(|qmp| !qmp.is_closed()) {
            return Ok(qmp.clone());
        }
        *kept = None;
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        loop {
            match Qmp::connect(&self.paths.qmp(), CONNECT_TIMEOUT, COMMAND_TIMEOUT).await {
                Ok(qmp) => {
                    let qmp = Arc::new(qmp);
                    *kept = Some(qmp.clone());
                    return Ok(qmp);
                }
                // The listen queue is full for a moment, or QEMU is just ending.
                Err(QmpError::Connect { .. } | QmpError::Closed) if Instant::now() < deadline => {
                    sleep(Duration::from_millis(2)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Forgets the connection, after the process has ended.
    pub(crate) async fn disconnect(&self) {
        *self.connection.lock().await = None;
    }

    /// Begins an operation; `doing` is a verb phrase for its errors.
    pub(crate) async fn session(self: &Arc<Vm>, doing: &'static str) -> Result<Session, DriverError> {
        match self.connect().await {
            Ok(qmp) => Ok(Session { vm: self.clone(), qmp, doing }),
            Err(QmpError::NotListening { .. }) => Err(DriverError::NotRunning { vm: self.name.clone() }),
            Err(source) => Err(DriverError::Qmp { vm: self.name.clone(), doing, source }),
        }
    }
}

/// An operation under way.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) vm: Arc<Vm>,
    qmp: Arc<Qmp>,
    doing: &'static str,
}

impl Session {
    /// Runs a command, keeping QEMU's refusals apart so that the caller can judge them.
    pub(crate) async fn try_run(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let arguments = if arguments.is_null() { None } else { Some(arguments) };
        self.qmp.execute(command, arguments).await
    }

    /// Runs a command; any refusal is an error.
    pub(crate) async fn run(&self, command: &str, arguments: Value) -> Result<Value, DriverError> {
        self.try_run(command, arguments).await.map_err(|error| self.error(error))
    }

    /// Runs a command that changes nothing.
    pub(crate) async fn query(&self, command: &str) -> Result<Value, DriverError> {
        self.run(command, Value::Null).await
    }

    /// Listens to the events from now on.
    pub(crate) fn events(&self) -> Events {
        self.qmp.events()
    }

    /// The next event; `None` when the state should be asked for again.
    pub(crate) async fn next(&self, events: &mut Events) -> Result<Option<Event>, DriverError> {
        match timeout(RECHECK, events.next()).await {
            Ok(Ok(Heard::Event(event))) => Ok(Some(event)),
            Ok(Ok(Heard::Missed)) | Err(_) => Ok(None),
            Ok(Err(error)) => Err(self.error(error)),
        }
    }

    /// The error for a failed command.
    pub(crate) fn error(&self, source: QmpError) -> DriverError {
        let (vm, doing) = (self.vm.name.clone(), self.doing);
        match source {
            QmpError::Closed => DriverError::Died { vm, doing, log: log_tail(&self.vm.paths) },
            source => DriverError::Qmp { vm, doing, source },
        }
    }

    /// The error for a guest in the wrong state.
    pub(crate) fn wrong_state(&self, status: GuestStatus, hint: &'static str) -> DriverError {
        DriverError::WrongState { vm: self.vm.name.clone(), doing: self.doing, status, hint }
    }

    /// The error for a failed push from a disk.
    pub(crate) fn tap_error(&self, disk: &str, reason: impl Into<String>) -> DriverError {
        DriverError::Tap { vm: self.vm.name.clone(), disk: disk.into(), reason: reason.into() }
    }

    /// The error for a bound that was reached.
    pub(crate) fn too_long(&self, doing: &'static str, after: Duration, hint: &'static str) -> DriverError {
        DriverError::Timeout { vm: self.vm.name.clone(), doing, after, hint }
    }
}
