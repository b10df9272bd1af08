//! The QEMU adapter: [`Hypervisor`] over QMP, for QEMU 7.2 and later.
//!
//! Every VM has a directory RUN_DIR/NAME with its monitor socket `qmp.sock`, `pid`, `serial.log`, `qemu.log` and, for a
//! moment, `mem.sock`. All state lives there and in QEMU itself: a new [`Qemu`] after a crash of the daemon finds every
//! VM and everything it had begun. QEMU is daemonized and outlives us; under systemd the daemon's unit needs
//! `KillMode=process`.

pub(crate) mod blocks;
mod command;
mod convergence;
mod files;
mod log;
mod migration;
pub(crate) mod mirror;
pub(crate) mod paths;
mod probe;
mod process;
pub(crate) mod session;
pub(crate) mod tap;
pub(crate) mod warm;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::definition::{VmDefinition, VmName};
use crate::hypervisor::{
    DriverError, GuestDisk, GuestFacts, GuestStatus, Hypervisor, MemoryParams, MemoryProgress, Mode, StopHow,
    Tap,
};
use crate::process::{Process, io_error};
use command::Purpose;
use paths::VmPaths;
use session::{Session, Vm};
use tap::NodeTap;

/// Who asks for the status of many VMs does not wait longer for one of them.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

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
    async fn launch(&self, def: &VmDefinition, purpose: Purpose<'static>) -> Result<(), DriverError> {
        let (vm, def) = (self.vm(&def.name)?, def.clone());
        let lifecycle = vm.lifecycle.clone().lock_owned().await;
        let name = vm.name.clone();
        // Ends when QEMU has started or failed to; the lifecycle lock is held until then.
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
        GuestStatus::Paused | GuestStatus::PostMigrate | GuestStatus::Running | GuestStatus::DiskError => {
            migration::resume(s).await?;
        }
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
        match self.status(&def.name).await? {
            GuestStatus::DiskError => self.resume(&def.name).await,
            _ => self.launch(def, Purpose::Boot).await,
        }
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
        migration::sever(&*self.vm(vm)?);
        match self.session(vm, "roll back").await {
            Err(DriverError::NotRunning { .. }) => Ok(GuestStatus::Stopped),
            session => roll_back(&session?).await,
        }
    }

    async fn check_movable(&self, def: &VmDefinition, _: Mode) -> Result<(), DriverError> {
        let refuse = |why: String| Err(DriverError::NotMovable { vm: def.name.clone(), why });
        if def.xen.is_some() {
            return refuse("it is defined as a Xen domain, and this platform runs QEMU".into());
        }
        let session = match self.session(&def.name, "look whether it can move").await {
            Err(DriverError::NotRunning { .. }) => return Ok(()),
            session => session?,
        };
        if migration::status(&session).await? == GuestStatus::DiskError {
            return refuse(format!(
                "the host cannot read or write one of its disks (a file system that is full, for example), so it is \
                 paused; make room, let it run again with `longhaul vm start {}`, then retry",
                def.name
            ));
        }
        let names: Vec<blocks::Names> = def.disks.iter().map(|disk| blocks::Names::of(&disk.name)).collect();
        blocks::check_devices(&session, names.iter()).await
    }

    async fn discover(&self, _: &VmName) -> Result<Option<VmDefinition>, DriverError> {
        Ok(None)
    }

    async fn status(&self, vm: &VmName) -> Result<GuestStatus, DriverError> {
        let asked = async { migration::status(&self.session(vm, "ask for its status").await?).await };
        match timeout(STATUS_TIMEOUT, asked).await {
            // It ended while we asked, or before.
            Ok(Err(DriverError::Died { .. } | DriverError::NotRunning { .. })) => Ok(GuestStatus::Stopped),
            Ok(Err(DriverError::Unresponsive { .. })) | Err(_) => Ok(GuestStatus::Unresponsive),
            Ok(status) => status,
        }
    }

    async fn stop(&self, vm: &VmName, how: StopHow) -> Result<(), DriverError> {
        let vm = self.vm(vm)?;
        let _lifecycle = vm.lifecycle.lock().await;
        let pid = vm.paths.pid();
        if let Some(process) = Process::find(&vm.name, &pid, &pid).await? {
            match how {
                StopHow::Kill => process.kill(&vm.name, &pid).await?,
                StopHow::Powerdown(bound) => power_down(&vm, &process, bound).await?,
            }
        } else {
            // Its pid file is lost, or not written yet: a daemon that died has just started it.
            while let Some(process) = process::starting(&vm.name, &vm.paths).await? {
                process.kill(&vm.name, &pid).await?;
            }
        }
        vm.disconnect().await;
        process::forget(&vm.paths);
        Ok(())
    }

    async fn tap_all(&self, vm: &VmName, nbd_socket: &Path, taps: &[Tap]) -> Result<(), DriverError> {
        let s = self.session(vm, "tap its disks").await?;
        let taps: Vec<NodeTap> = taps.iter().map(|tap| NodeTap::new(&tap.disk, tap)).collect();
        tap::start_all(&s, nbd_socket, &taps, false).await
    }

    async fn facts(&self, vm: &VmName) -> Result<GuestFacts, DriverError> {
        probe::facts(&self.session(vm, "look at its machine").await?).await
    }

    async fn probe(
        &self,
        def: &VmDefinition,
        disk_sizes: &[u64],
        facts: Option<&GuestFacts>,
    ) -> Result<(), DriverError> {
        probe::probe(&self.run_dir, def, disk_sizes, facts).await
    }

    async fn disks(&self, def: &VmDefinition) -> Result<Vec<GuestDisk>, DriverError> {
        files::disks(&self.session(&def.name, "look at its disks").await?, def).await
    }

    async fn drain(&self, vm: &VmName, disk: &str) -> Result<(), DriverError> {
        mirror::drain(&self.session(vm, "drain a disk's mirror").await?, disk).await
    }

    async fn finish_dirty_all(&self, vm: &VmName, disks: &[&str]) -> Result<(), DriverError> {
        let names: Vec<blocks::Names> = disks.iter().map(|disk| blocks::Names::of(disk)).collect();
        warm::finish_dirty(&self.session(vm, "copy its disks' dirty blocks").await?, &names).await
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

/// Presses the power button and waits for the process to end.
async fn power_down(vm: &Arc<Vm>, process: &Process, bound: Duration) -> Result<(), DriverError> {
    let session = match vm.session("power it down").await {
        Err(DriverError::NotRunning { .. }) => return Ok(()),
        session => session?,
    };
    if migration::status(&session).await? == GuestStatus::DiskError {
        let hint =
            "make room on its disk and let it run again with `longhaul vm start`, or end it with --kill";
        return Err(session.wrong_state(GuestStatus::DiskError, hint));
    }
    session.query("system_powerdown").await?;
    if process.ended(bound).await {
        return Ok(());
    }
    Err(session.too_long("the guest's shutdown", bound, "the guest may ignore its power button; kill it"))
}
