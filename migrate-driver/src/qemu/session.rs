//! One operation's view of a VM: its monitor connection, and errors that say what was being done.
//!
//! Keeps one connection a VM (QEMU serves one monitor client at a time) and makes a new one when it is lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use super::log::log_tail;
use super::paths::VmPaths;
use crate::definition::VmName;
use crate::hypervisor::{DriverError, GuestStatus};
use crate::process::SocketId;
use crate::qmp::{Event, Events, Heard, Qmp, QmpError};

/// A daemon that was killed a moment ago still counts as QEMU's client until QEMU notices.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A socket tells of no event when there is room in its queue again.
const RECONNECT: Duration = Duration::from_millis(10);
/// For commands for which QEMU waits neither for the disk nor for the guest.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// For those for which it flushes or drains the disks.
pub(crate) const DISK_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a wait for an event goes before the state is queried again: a safety net, events are reliable.
const RECHECK: Duration = Duration::from_secs(1);

/// What is kept about one VM.
#[derive(Debug)]
pub(crate) struct Vm {
    pub(crate) name: VmName,
    pub(crate) paths: VmPaths,
    connection: Mutex<Option<Arc<Qmp>>>,
    /// Held while the process is started or ended.
    pub(crate) lifecycle: Arc<Mutex<()>>,
    /// The outgoing migration that this process has started last.
    pub(crate) outgoing: std::sync::Mutex<Outgoing>,
}

/// What is kept about an outgoing migration.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    /// When the guest was stopped for a cold one.
    pub(crate) stopped: Option<Instant>,
    /// How long the guest may stand still.
    pub(crate) max_downtime: Duration,
    /// The socket that its memory stream is read from.
    pub(crate) stream: Option<SocketId>,
}

impl Vm {
    pub(crate) fn new(name: VmName, paths: VmPaths) -> Vm {
        Vm {
            name,
            paths,
            connection: Mutex::default(),
            lifecycle: Arc::default(),
            outgoing: Default::default(),
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
                Err(QmpError::Connect { .. } | QmpError::NoGreeting { .. } | QmpError::Closed)
                    if Instant::now() < deadline =>
                {
                    sleep(RECONNECT).await;
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
            Ok(qmp) => Ok(Session { vm: self.clone(), qmp, doing, bound: COMMAND_TIMEOUT }),
            Err(QmpError::NotListening { .. }) => Err(DriverError::NotRunning { vm: self.name.clone() }),
            Err(QmpError::NoGreeting { after, .. } | QmpError::Timeout { after, .. }) => {
                Err(DriverError::Unresponsive { vm: self.name.clone(), doing, after })
            }
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
    /// How long QEMU may take for each answer.
    bound: Duration,
}

impl Session {
    /// The same, for a time in which QEMU may be busy with the disks or the rest of the memory.
    pub(crate) fn within(&self, bound: Duration) -> Session {
        Session { bound, ..self.clone() }
    }

    /// Runs a command, keeping QEMU's refusals apart so that the caller can judge them.
    pub(crate) async fn try_run(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let arguments = if arguments.is_null() { None } else { Some(arguments) };
        self.qmp.execute_within(self.bound, command, arguments).await
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
            QmpError::Timeout { after, .. } => DriverError::Unresponsive { vm, doing, after },
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
