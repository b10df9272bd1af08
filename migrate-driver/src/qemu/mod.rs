//! The QEMU adapter: [`Hypervisor`] over QMP, for QEMU 7.2 and later.
//!
//! Every VM has a directory RUN_DIR/NAME with its monitor socket `qmp.sock`, `pid`, `serial.log`, `qemu.log` and, for a
//! moment, `mem.sock`. All state lives there and in QEMU itself: a new [`Qemu`] after a crash of the daemon finds every
//! VM and everything it had begun. QEMU is daemonized and outlives us; under systemd the daemon's unit needs
//! `KillMode=process`.

pub(crate) mod blocks;
mod command;
mod migration;
pub(crate) mod mirror;
pub(crate) mod paths;
mod process;
pub(crate) mod session;
pub(crate) mod warm;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::definition::{VmDefinition, VmName};
use crate::hypervisor::{
    DriverError, GuestStatus, Hypervisor, MemoryParams, MemoryProgress, Mode, StopHow, TapKind,
};
use crate::process::{Process, io_error};
use command::Purpose;
use paths::VmPaths;
use session::{Session, Vm};

/// QEMU on this host.
#[derive(Debug)]
pub struct Qemu {
    run_dir: PathBuf,
    vms: Mutex<HashMap<VmName, Arc<Vm>>>,
}

impl Qemu {
    /// An adapter whose VMs live in `run_dir`/NAME. Makes nothing yet, finds what an earlier one started.
    pub fn new(run_dir: PathBuf) -> Qemu {
        Qemu { run_dir, vms: Mutex::new(HashMap::new()) }
    }

    /// The file the guest's serial port is written to.
    pub fn serial_log(&self, vm: &VmName) -> PathBuf {
        self.run_dir.join(vm.as_str()).join("serial.log")
    }

    fn vm(&self, name: &VmName) -> Result<Arc<Vm>, DriverError> {
        let mut vms = self.vms.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(vm) = vms.get(name) {
            return Ok(vm.clone());
        }
        let paths = VmPaths::new(&self.run_dir, name).map_err(io_error(name, "resolve", &self.run_dir))?;
        let vm = Arc::new(Vm::new(name.clone(), paths));
        vms.insert(name.clone(), vm.clone());
        Ok(vm)
    }

    async fn session(&self, vm: &VmName, doing: &'static str) -> Result<Session, DriverError> {
        self.vm(vm)?.session(doing).await
    }

    /// A start that is broken off goes on, and who stops the VM waits for it: else there would be a process that nobody has
    /// found.
    async fn launch(&self, def: &VmDefinition, purpose: Purpose) -> Result<(), DriverError> {
        let (vm, def) = (self.vm(&def.name)?, def.clone());
        let lifecycle = vm.lifecycle.clone().lock_owned().await;
        let name = vm.name.clone();
        let starting = tokio::spawn(async move {
            let _lifecycle = lifecycle;
            vm.disconnect().await;
            process::start(&def, &vm.paths, purpose).await
        });
        let broken =
            |error: tokio::task::JoinError| Err(DriverError::Start { vm: name, message: error.to_string() });
        starting.await.unwrap_or_else(broken)
    }
}

/// Ends taps and brings the guest back, in whatever order leaves it running soonest.
async fn roll_back(s: &Session) -> Result<GuestStatus, DriverError> {
    let status = migration::status(s).await?;
    if status == GuestStatus::Incoming || (status != GuestStatus::Running && migration::awaits_resume(s)) {
        return Ok(status);
    }
    migration::cancel(s).await?;
    // A tap that cannot be removed is reported, but must not keep the guest down.
    let removed = remove_all_taps(s).await;
    match migration::status(s).await? {
        GuestStatus::Paused | GuestStatus::PostMigrate | GuestStatus::Running => migration::resume(s).await?,
        GuestStatus::Other(state) if state == "io-error" => migration::resume(s).await?,
        _ => {}
    }
    removed?;
    migration::status(s).await
}

async fn remove_all_taps(s: &Session) -> Result<(), DriverError> {
    for disk in blocks::Nodes::query(s).await?.tapped_disks() {
        blocks::remove_tap(s, &blocks::Names::of(&disk)).await?;
    }
    Ok(())
}

#[async_trait]
impl Hypervisor for Qemu {
    async fn start(&self, def: &VmDefinition) -> Result<(), DriverError> {
        self.launch(def, Purpose::Boot).await
    }

    async fn start_incoming(&self, def: &VmDefinition) -> Result<(), DriverError> {
        self.launch(def, Purpose::Incoming).await
    }

    async fn open_incoming(&self, vm: &VmName) -> Result<UnixStream, DriverError> {
        migration::open_incoming(&self.session(vm, "open it for its memory").await?).await
    }

    async fn incoming_loaded(&self, vm: &VmName) -> Result<(), DriverError> {
        migration::incoming_loaded(&self.session(vm, "load its memory").await?).await
    }

    async fn send_memory(&self, vm: &VmName, params: &MemoryParams) -> Result<UnixStream, DriverError> {
        migration::send_memory(&self.session(vm, "send its memory").await?, params).await
    }

    /// QEMU stops the guest when the rest would take no longer than it may at the rate so far.
    fn memory_floor_bytes(&self) -> u64 {
        128 << 10
    }

    async fn wait_paused(&self, vm: &VmName) -> Result<Instant, DriverError> {
        migration::wait_paused(&self.session(vm, "send its memory").await?).await
    }

    async fn memory_progress(&self, vm: &VmName) -> Result<MemoryProgress, DriverError> {
        migration::progress(&self.session(vm, "ask for its migration").await?).await
    }

    async fn finish_memory(&self, vm: &VmName) -> Result<(), DriverError> {
        migration::finish_memory(&self.session(vm, "send the rest of its memory").await?).await
    }

    async fn resume(&self, vm: &VmName) -> Result<(), DriverError> {
        migration::resume(&self.session(vm, "resume the guest").await?).await
    }

    async fn pause(&self, vm: &VmName) -> Result<(), DriverError> {
        migration::pause(&self.session(vm, "pause the guest").await?).await
    }

    async fn rollback(&self, vm: &VmName) -> Result<GuestStatus, DriverError> {
        match self.session(vm, "roll back").await {
            Err(DriverError::NotRunning { .. }) => Ok(GuestStatus::Stopped),
            session => roll_back(&session?).await,
        }
    }

    async fn check_movable(&self, def: &VmDefinition, _: Mode) -> Result<(), DriverError> {
        match def.xen {
            None => Ok(()),
            Some(_) => Err(DriverError::NotMovable {
                vm: def.name.clone(),
                why: "it is defined as a Xen domain, and this platform runs QEMU".into(),
            }),
        }
    }

    async fn discover(&self, _: &VmName) -> Result<Option<VmDefinition>, DriverError> {
        Ok(None)
    }

    async fn status(&self, vm: &VmName) -> Result<GuestStatus, DriverError> {
        let session = match self.session(vm, "ask for its status").await {
            Err(DriverError::NotRunning { .. }) => return Ok(GuestStatus::Stopped),
            session => session?,
        };
        match migration::status(&session).await {
            // It ended while we asked.
            Err(DriverError::Died { .. }) => Ok(GuestStatus::Stopped),
            status => status,
        }
    }

    async fn stop(&self, vm: &VmName, how: StopHow) -> Result<(), DriverError> {
        let vm = self.vm(vm)?;
        let _lifecycle = vm.lifecycle.lock().await;
        let pid = vm.paths.pid();
        if let Some(process) = Process::find(&vm.name, &pid, &pid)? {
            match how {
                StopHow::Kill => process.kill(&vm.name, &pid).await?,
                StopHow::Powerdown(bound) => power_down(&vm, &process, bound).await?,
            }
        } else if process::is_listening(&vm.paths).await {
            // No pid file any more, but a monitor: end it the other way.
            quit(&vm).await?;
        } else {
            // A daemon that died has just started it, and it has not come to its pid file, far less to its guest.
            while let Some(process) = process::starting(&vm.name, &vm.paths)? {
                process.kill(&vm.name, &pid).await?;
            }
        }
        vm.disconnect().await;
        process::forget(&vm.paths);
        Ok(())
    }

    async fn tap(
        &self,
        vm: &VmName,
        disk: &str,
        nbd_socket: &Path,
        export: &str,
        kind: TapKind,
    ) -> Result<(), DriverError> {
        let s = self.session(vm, "tap a disk").await?;
        start_tap(&s, disk, nbd_socket, export, &kind).await
    }

    async fn drain(&self, vm: &VmName, disk: &str) -> Result<(), DriverError> {
        mirror::drain(&self.session(vm, "drain a disk's mirror").await?, disk).await
    }

    async fn finish_dirty(&self, vm: &VmName, disk: &str) -> Result<(), DriverError> {
        warm::finish_dirty(&self.session(vm, "copy a disk's dirty blocks").await?, disk).await
    }

    async fn untap(&self, vm: &VmName, disk: &str) -> Result<(), DriverError> {
        blocks::untap(&self.session(vm, "end a disk's tap").await?, disk).await
    }

    async fn bitmap_ok(&self, vm: &VmName, disk: &str, name: &str) -> Result<bool, DriverError> {
        warm::bitmap_ok(&self.session(vm, "look at a disk's bitmap").await?, disk, name).await
    }

    async fn bitmap_remove(&self, vm: &VmName, disk: &str, name: &str) -> Result<(), DriverError> {
        warm::bitmap_remove(&self.session(vm, "remove a disk's bitmap").await?, disk, name).await
    }
}

/// Starts a tap on a disk's node, whoever has started its QEMU.
pub(crate) async fn start_tap(
    s: &Session,
    disk: &str,
    nbd_socket: &Path,
    export: &str,
    kind: &TapKind,
) -> Result<(), DriverError> {
    match kind {
        TapKind::Mirror => mirror::start(s, disk, nbd_socket, export, false).await,
        TapKind::Copy => mirror::start(s, disk, nbd_socket, export, true).await,
        TapKind::CopyBefore { bitmap } => {
            warm::start_copy_before(s, disk, nbd_socket, export, bitmap.as_deref()).await
        }
        TapKind::Dirty { bitmap } => warm::start_dirty(s, disk, nbd_socket, export, bitmap).await,
    }
}

/// Presses the power button and waits for the process to end.
async fn power_down(vm: &Arc<Vm>, process: &Process, bound: Duration) -> Result<(), DriverError> {
    let session = match vm.session("power it down").await {
        Err(DriverError::NotRunning { .. }) => return Ok(()),
        session => session?,
    };
    session.query("system_powerdown").await?;
    if process.ended(bound).await {
        return Ok(());
    }
    Err(session.too_long("the guest's shutdown", bound, "the guest may ignore its power button; kill it"))
}

/// Asks QEMU to end and waits for its monitor to close.
async fn quit(vm: &Arc<Vm>) -> Result<(), DriverError> {
    let session = match vm.session("end it").await {
        // It ended while we looked.
        Err(DriverError::NotRunning { .. }) => return Ok(()),
        session => session?,
    };
    let mut events = session.events();
    match session.run("quit", Value::Null).await {
        Ok(_) | Err(DriverError::Died { .. }) => {}
        Err(error) => return Err(error),
    }
    while session.next(&mut events).await.is_ok() {}
    Ok(())
}
