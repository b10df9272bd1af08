//! The Xen adapter: [`Hypervisor`] over xl, for Xen 4.17, with the disks' QEMU (qdisk) as their source of writes.
//!
//! A domain that moves has a directory RUN_DIR/NAME with the socket of its keeper, marks, and a log; all other state is
//! in Xen. A new [`Xen`] after a crash of the daemon finds every domain and everything it had begun. Keepers outlive us;
//! under systemd the daemon's unit needs `KillMode=process`.
//!
//! What the two ends of xl's handshake become here stands in `handshake`.

mod board;
mod configuration;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod handshake;
pub mod keeper;
mod migration;
mod outgoing;
mod receive;
mod save;
mod stream;
mod transport;
mod xl;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use crate::definition::{DiskFormat, VmDefinition, VmName};
use crate::hypervisor::{
    DiskFile, DriverError, GuestDisk, GuestStatus, Hypervisor, MemoryParams, MemoryProgress, Mode, StopHow,
    Tap, TapKind,
};
use crate::process::io_error;
use crate::qemu::paths::VmPaths;
use crate::qemu::session::{Session, Vm};
use crate::qemu::tap::{self, NodeTap};
use crate::qemu::{blocks, mirror, warm};
use board::KeeperPaths;
use configuration::Rules;
use migration::Move;

/// How often a domain is asked for that is to end.
const POLL: Duration = Duration::from_millis(200);

/// Who asks for the status of many VMs does not wait longer for one of them; xl takes its time on a busy host.
const STATUS_TIMEOUT: Duration = Duration::from_secs(10);

/// The state of a domain that came in and is not whole.
const INCOMPLETE: &str = "incomplete";

/// What connects an incoming domain's interface to its bridge, unless another script is asked for.
const VIF_BRIDGE_SCRIPT: &str = include_str!("vif-bridge.sh");

/// Where things are on this host.
#[derive(Debug, Clone, Default)]
pub struct XenSettings {
    /// Each domain's files are in RUN_DIR/NAME.
    pub run_dir: PathBuf,
    /// For what xl is to run; made if need be. Its file system must let programs run, as /run often does not.
    pub scripts_dir: PathBuf,
    /// Runs the keepers (`PROGRAM xl-transport DIR`, see [`keeper::run`]).
    pub program: PathBuf,
    /// Which of this host's bridges stands for another's.
    pub bridges: BTreeMap<String, String>,
    /// What connects the interfaces of domains that are started here or come in; without it, our short form of vif-bridge.
    pub vif_script: Option<PathBuf>,
}

/// The monitors of domains whose disks are tapped, each with its domain's number.
type Monitors = HashMap<VmName, (u32, Arc<Vm>)>;

/// Xen on this host.
#[derive(Debug)]
pub struct Xen {
    settings: XenSettings,
    monitors: Mutex<Monitors>,
}

impl Xen {
    /// An adapter; touches nothing yet.
    pub fn new(settings: XenSettings) -> Xen {
        Xen { settings, monitors: Mutex::default() }
    }

    /// How a domain's configuration is adapted to this host.
    fn rules(&self, def: &VmDefinition) -> Result<Rules, DriverError> {
        let script = match &self.settings.vif_script {
            Some(script) => script.clone(),
            None => self.own_script(&def.name)?,
        };
        // xl would find out while the guest stands still.
        let runs = rustix::fs::access(&script, rustix::fs::Access::EXEC_OK);
        runs.map_err(|error| {
            io_error(&def.name, "run the vif_script (see longhaul.toml)", &script)(error.into())
        })?;
        Ok(Rules::of(def, &self.settings.bridges, script))
    }

    /// Our short form of vif-bridge. It is put in its place whole: another domain's xl may be about to run it.
    fn own_script(&self, vm: &VmName) -> Result<PathBuf, DriverError> {
        let dir = &self.settings.scripts_dir;
        fs::create_dir_all(dir).map_err(io_error(vm, "create", dir))?;
        let script = dir.join(configuration::VIF_BRIDGE);
        if fs::read(&script).is_ok_and(|text| text == VIF_BRIDGE_SCRIPT.as_bytes()) {
            return Ok(script);
        }
        let new = dir.join(format!(".{vm}"));
        let written = fs::write(&new, VIF_BRIDGE_SCRIPT)
            .and_then(|()| fs::set_permissions(&new, fs::Permissions::from_mode(0o755)))
            .and_then(|()| fs::rename(&new, &script));
        written.map_err(io_error(vm, "write", &script))?;
        Ok(script)
    }

    /// The move of a VM, whether there is one or not.
    fn moving(&self, vm: &VmName) -> Result<Move, DriverError> {
        let run_dir = &self.settings.run_dir;
        let dir = std::path::absolute(run_dir.join(vm.as_str())).map_err(io_error(vm, "resolve", run_dir))?;
        Ok(Move { vm: vm.clone(), paths: KeeperPaths { dir }, program: self.settings.program.clone() })
    }

    /// The directory of a VM, made.
    fn directory(&self, vm: &VmName) -> Result<KeeperPaths, DriverError> {
        let paths = self.moving(vm)?.paths;
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&paths.dir);
        made.map_err(io_error(vm, "create", &paths.dir))?;
        Ok(paths)
    }

    /// The monitor of a domain's QEMU. The domain's number, which a reboot changes, is asked for unless a monitor is known
    /// and `known` says that it is the right one: in the switchover it is.
    async fn monitor(&self, vm: &VmName, doing: &'static str, known: bool) -> Result<Session, DriverError> {
        let before = self.lock().get(vm).cloned();
        let id = match &before {
            Some((id, _)) if known => *id,
            _ => {
                let domains = xl::domains(vm).await?;
                domains.own.or(domains.away).ok_or(DriverError::NotRunning { vm: vm.clone() })?.id
            }
        };
        if let Some((_, monitor)) = before.filter(|(before, _)| *before == id) {
            return monitor.session(doing).await;
        }
        let qmp = PathBuf::from(format!("/var/run/xen/qmp-libxenstat-{id}"));
        let log = PathBuf::from(format!("/var/log/xen/qemu-dm-{vm}.log"));
        let monitor = Arc::new(Vm::new(vm.clone(), VmPaths::foreign(self.moving(vm)?.paths.dir, qmp, log)));
        self.lock().insert(vm.clone(), (id, monitor.clone()));
        monitor.session(doing).await
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Monitors> {
        self.monitors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The monitor, and the node that a disk of the guest sits on: QEMU calls it DEVICE-FORMAT.
    async fn disk(
        &self,
        vm: &VmName,
        disk: &str,
        doing: &'static str,
        known: bool,
    ) -> Result<(Session, String), DriverError> {
        let monitor = self.monitor(vm, doing, known).await?;
        let nodes = blocks::Nodes::query(&monitor).await?;
        let mut named = [DiskFormat::Raw, DiskFormat::Qcow2]
            .map(|format| format!("{disk}-{}", format.as_str()))
            .into_iter();
        let node = named.find(|node| nodes.has(node));
        let node = node.ok_or_else(|| DriverError::UnknownDisk { vm: vm.clone(), disk: disk.into() })?;
        Ok((monitor, node))
    }

    /// Removes whatever is tapped. A domain without a QEMU has nothing to be removed.
    async fn remove_taps(&self, vm: &VmName) -> Result<(), DriverError> {
        let monitor = match self.monitor(vm, "end the taps of its disks", false).await {
            Err(DriverError::NotRunning { .. }) => return Ok(()),
            monitor => monitor?,
        };
        for disk in blocks::Nodes::query(&monitor).await?.tapped_disks() {
            blocks::remove_tap(&monitor, &blocks::Names::of(&disk)).await?;
        }
        Ok(())
    }

    /// Where the guest stands, however long xl takes to tell.
    async fn current(&self, vm: &VmName) -> Result<GuestStatus, DriverError> {
        let moving = self.moving(vm)?;
        match moving.status().await? {
            Some(status) => Ok(status),
            None => self.status_of_domains(vm, &moving.paths).await,
        }
    }

    /// Where the guest stands by its domains alone, with no keeper at work.
    async fn status_of_domains(&self, vm: &VmName, paths: &KeeperPaths) -> Result<GuestStatus, DriverError> {
        let domains = xl::domains(vm).await?;
        Ok(match (domains.own, domains.away, domains.incoming) {
            (Some(domain), ..) if domain.dead => GuestStatus::Other("shut down or crashed".into()),
            // Left suspended by an xl that was killed: whole, and to be taken back.
            (Some(domain), ..) if domain.suspended => GuestStatus::PostMigrate,
            (Some(domain), ..) if domain.paused => GuestStatus::Paused,
            (Some(_), ..) => GuestStatus::Running,
            (None, Some(_), _) => GuestStatus::PostMigrate,
            (None, None, Some(_)) if paths.loaded_mark().exists() => GuestStatus::Paused,
            (None, None, Some(_)) => GuestStatus::Other(INCOMPLETE.into()),
            (None, None, None) => GuestStatus::Stopped,
        })
    }

    fn forget(&self, vm: &VmName) {
        self.lock().remove(vm);
    }
}

#[async_trait]
impl Hypervisor for Xen {
    async fn start(&self, def: &VmDefinition) -> Result<(), DriverError> {
        let vm = &def.name;
        let Some(xen) = &def.xen else {
            let message = "it has no [xen] part, and this platform runs Xen".into();
            return Err(DriverError::Start { vm: vm.clone(), message });
        };
        if self.current(vm).await? != GuestStatus::Stopped {
            return Err(DriverError::AlreadyRunning { vm: vm.clone() });
        }
        let paths = self.directory(vm)?;
        self.forget(vm);
        let rules = self.rules(def)?;
        let text = configuration::for_create(def, xen, &rules)
            .map_err(|message| DriverError::Start { vm: vm.clone(), message })?;
        let file = paths.configuration();
        fs::write(&file, text).map_err(io_error(vm, "write", &file))?;
        xl::xl(vm, "create its domain", &["create", "-q", &file.to_string_lossy()]).await.map(drop)
    }

    async fn start_incoming(&self, def: &VmDefinition) -> Result<(), DriverError> {
        let rules = self.rules(def)?;
        match self.current(&def.name).await? {
            GuestStatus::Stopped => {}
            // Left by an xl that was killed: its name would be in the way.
            GuestStatus::Other(state) if state == INCOMPLETE => self.stop(&def.name, StopHow::Kill).await?,
            _ => return Err(DriverError::AlreadyRunning { vm: def.name.clone() }),
        }
        self.directory(&def.name)?;
        self.forget(&def.name);
        self.moving(&def.name)?.start_receiver(&rules).await
    }

    async fn open_incoming(&self, vm: &VmName) -> Result<UnixStream, DriverError> {
        self.moving(vm)?.open_incoming().await
    }

    async fn incoming_loaded(&self, vm: &VmName) -> Result<(), DriverError> {
        self.moving(vm)?.incoming_loaded().await
    }

    /// xl decides by itself when to stop the guest: of `params` only the mode counts.
    async fn send_memory(&self, vm: &VmName, params: &MemoryParams) -> Result<UnixStream, DriverError> {
        match self.current(vm).await? {
            GuestStatus::Running => {}
            status => {
                let (doing, hint) = ("send its memory", "roll back first");
                return Err(DriverError::WrongState { vm: vm.clone(), doing, status, hint });
            }
        }
        self.directory(vm)?;
        let moving = self.moving(vm)?;
        // It runs, so it is ours, whatever a crash has left of its way here.
        moving.clear_marks()?;
        moving.send_memory(params.mode).await
    }

    /// xl stops the guest after so many rounds or at so few pages, at whatever rate they go: whatever is under way then, the
    /// guest waits for, and compressed as it is it stands for several times as much.
    fn memory_floor_bytes(&self) -> u64 {
        64 << 10
    }

    async fn wait_paused(&self, vm: &VmName) -> Result<Instant, DriverError> {
        self.moving(vm)?.wait_paused().await
    }

    async fn memory_progress(&self, vm: &VmName) -> Result<MemoryProgress, DriverError> {
        let transferred = self.moving(vm)?.answer().await?.map_or(0, |answer| answer.bytes);
        Ok(MemoryProgress { transferred, ..MemoryProgress::default() })
    }

    async fn finish_memory(&self, vm: &VmName) -> Result<(), DriverError> {
        self.moving(vm)?.finish_memory().await
    }

    async fn resume(&self, vm: &VmName) -> Result<(), DriverError> {
        let moving = self.moving(vm)?;
        match self.current(vm).await? {
            GuestStatus::Running => {}
            GuestStatus::Paused => moving.unpause().await?,
            GuestStatus::PostMigrate => moving.take_back().await?,
            status => {
                let hint = match status {
                    GuestStatus::Incoming => "wait until its memory is loaded",
                    GuestStatus::PreSwitchover => "roll back",
                    GuestStatus::Stopped => return Err(DriverError::NotRunning { vm: vm.clone() }),
                    _ => "stop it and start it again",
                };
                return Err(DriverError::WrongState {
                    vm: vm.clone(),
                    doing: "resume the guest",
                    status,
                    hint,
                });
            }
        }
        moving.clear_marks()
    }

    async fn pause(&self, vm: &VmName) -> Result<(), DriverError> {
        match self.current(vm).await? {
            GuestStatus::Running => xl::xl(vm, "pause the guest", &["pause", vm.as_str()]).await.map(drop),
            GuestStatus::Stopped => Err(DriverError::NotRunning { vm: vm.clone() }),
            _ => Ok(()),
        }
    }

    async fn rollback(&self, vm: &VmName) -> Result<GuestStatus, DriverError> {
        let moving = self.moving(vm)?;
        if moving.paths.incoming_mark().exists() {
            match self.current(vm).await? {
                GuestStatus::Running => moving.clear_marks()?,
                status => return Ok(status),
            }
        }
        moving.take_back().await?;
        let removed = self.remove_taps(vm).await;
        if self.current(vm).await? == GuestStatus::Paused {
            moving.unpause().await?;
        }
        removed?;
        self.current(vm).await
    }

    async fn check_movable(&self, def: &VmDefinition, mode: Mode) -> Result<(), DriverError> {
        let refuse = |why: String| DriverError::NotMovable { vm: def.name.clone(), why };
        if def.xen.is_none() {
            return Err(refuse("it is defined for QEMU, and this platform runs Xen".into()));
        }
        if self.current(&def.name).await? != GuestStatus::Running {
            return Ok(());
        }
        let text = xl::xl(&def.name, "look at its domain", &["list", "-l", def.name.as_str()]).await?;
        let found = configuration::found(&def.name, &text).map_err(refuse)?;
        if let Some(why) = found.obstacle {
            return Err(refuse(why));
        }
        if mode == Mode::Live && found.is_pv() && !xl::has_shadow_paging(&def.name).await? {
            let why = "Xen moves a paravirtual domain alive only where it was built with shadow paging, which this one (as \
                       Debian's) is not; move it with `longhaul migrate --cold`, or let it run as PVH";
            return Err(refuse(why.into()));
        }
        if found.definition.disks != def.disks {
            let why = "its disks are not those of its definition; adopt it anew with `longhaul vm adopt`";
            return Err(refuse(why.into()));
        }
        Ok(())
    }

    async fn discover(&self, vm: &VmName) -> Result<Option<VmDefinition>, DriverError> {
        if let Some(owner) = xl::moving_of(vm) {
            let why = format!(
                "it is what a migration has left of {owner}; if it is whole and the only one, `xl rename` it to that first"
            );
            return Err(DriverError::NotMovable { vm: vm.clone(), why });
        }
        if xl::domains(vm).await?.own.is_none() {
            return Ok(None);
        }
        let text = xl::xl(vm, "look at its domain", &["list", "-l", vm.as_str()]).await?;
        let found = configuration::found(vm, &text).map_err(|message| DriverError::Xl {
            vm: vm.clone(),
            doing: "understand its domain",
            message,
        })?;
        Ok(Some(found.definition))
    }

    async fn status(&self, vm: &VmName) -> Result<GuestStatus, DriverError> {
        timeout(STATUS_TIMEOUT, self.current(vm)).await.unwrap_or(Ok(GuestStatus::Unresponsive))
    }

    async fn stop(&self, vm: &VmName, how: StopHow) -> Result<(), DriverError> {
        if let StopHow::Powerdown(bound) = how {
            return self.power_down(vm, bound).await;
        }
        let moving = self.moving(vm)?;
        moving.end_processes().await?;
        let domains = xl::domains(vm).await?;
        for domain in [domains.own, domains.incoming, domains.away].into_iter().flatten() {
            let destroyed = xl::xl(vm, "destroy its domain", &["destroy", &domain.id.to_string()]).await;
            // One that was ending by itself may have been quicker.
            if destroyed.is_err() && xl::domains(vm).await?.has(domain.id) {
                return destroyed.map(drop);
            }
        }
        self.forget(vm);
        moving.clear_marks()
    }

    async fn tap_all(&self, vm: &VmName, nbd_socket: &Path, taps: &[Tap]) -> Result<(), DriverError> {
        let mut nodes = Vec::new();
        for tap in taps {
            nodes.push(NodeTap::new(&self.disk(vm, &tap.disk, "tap its disks", false).await?.1, tap));
        }
        let monitor = self.monitor(vm, "tap its disks", true).await?;
        // xl's QEMU puts one filter in after the other: the domain stands still meanwhile, so that they show one moment.
        let is_warm = |tap: &Tap| !matches!(tap.kind, TapKind::Mirror | TapKind::Copy);
        let held =
            taps.len() > 1 && taps.iter().any(is_warm) && self.current(vm).await? == GuestStatus::Running;
        let still = match held {
            true => Some(Still::begin(vm).await?),
            false => None,
        };
        let tapped = tap::start_all(&monitor, nbd_socket, &nodes, true).await;
        if let Some(still) = still {
            still.end().await?;
        }
        tapped
    }

    /// By their paths: the disks' QEMU is not a child of ours, and xl names no file but by its path.
    async fn disks(&self, def: &VmDefinition) -> Result<Vec<GuestDisk>, DriverError> {
        let mut disks = Vec::new();
        for disk in &def.disks {
            let (monitor, node) = self.disk(&def.name, &disk.name, "look at its disks", false).await?;
            let size = blocks::Nodes::query(&monitor).await?.size(&blocks::Names::of(&node)).unwrap_or(0);
            let file = DiskFile::at(&disk.path).map_err(io_error(&def.name, "look at", &disk.path))?;
            disks.push(GuestDisk {
                name: disk.name.clone(),
                file,
                descriptor: disk.path.clone(),
                path: disk.path.clone(),
                is_replaced: false,
                size_bytes: size,
                format: disk.format,
            });
        }
        Ok(disks)
    }

    async fn drain(&self, vm: &VmName, disk: &str) -> Result<(), DriverError> {
        let (monitor, node) = self.disk(vm, disk, "drain a disk's mirror", true).await?;
        mirror::drain(&monitor, &node).await
    }

    async fn finish_dirty_all(&self, vm: &VmName, disks: &[&str]) -> Result<(), DriverError> {
        let doing = "copy its disks' dirty blocks";
        let mut names = Vec::new();
        for disk in disks {
            names.push(blocks::Names::of(&self.disk(vm, disk, doing, false).await?.1));
        }
        warm::finish_dirty(&self.monitor(vm, doing, true).await?, &names).await
    }

    async fn untap(&self, vm: &VmName, disk: &str) -> Result<(), DriverError> {
        let (monitor, node) = self.disk(vm, disk, "end a disk's tap", false).await?;
        blocks::untap(&monitor, &node).await
    }

    async fn bitmap_ok(&self, vm: &VmName, disk: &str, name: &str) -> Result<bool, DriverError> {
        let (monitor, node) = self.disk(vm, disk, "look at a disk's bitmap", false).await?;
        warm::bitmap_ok(&monitor, &node, name).await
    }

    async fn bitmap_remove(&self, vm: &VmName, disk: &str, name: &str) -> Result<(), DriverError> {
        let (monitor, node) = self.disk(vm, disk, "remove a disk's bitmap", false).await?;
        warm::bitmap_remove(&monitor, &node, name).await
    }
}

impl Xen {
    async fn power_down(&self, vm: &VmName, bound: Duration) -> Result<(), DriverError> {
        if self.current(vm).await? == GuestStatus::Stopped {
            return Ok(());
        }
        xl::xl(vm, "power it down", &["shutdown", "-F", vm.as_str()]).await?;
        let deadline = Instant::now() + bound;
        while self.current(vm).await? != GuestStatus::Stopped {
            if Instant::now() > deadline {
                return Err(DriverError::Timeout {
                    vm: vm.clone(),
                    doing: "the guest's shutdown",
                    after: bound,
                    hint: "the guest may ignore its power button; kill it",
                });
            }
            sleep(POLL).await;
        }
        self.forget(vm);
        Ok(())
    }
}

/// A domain that stands still for a step of ours. It runs on also when whoever waits for the step has been cancelled.
struct Still(Option<VmName>);

impl Still {
    async fn begin(vm: &VmName) -> Result<Still, DriverError> {
        let still = Still(Some(vm.clone()));
        xl::xl(vm, "pause the guest", &["pause", vm.as_str()]).await?;
        Ok(still)
    }

    async fn end(mut self) -> Result<(), DriverError> {
        let Some(vm) = &self.0 else { return Ok(()) };
        xl::xl(vm, "let the guest run", &["unpause", vm.as_str()]).await?;
        self.0 = None;
        Ok(())
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        let Some(vm) = self.0.take() else { return };
        // Ends with xl. Nobody is left to wait for it.
        std::thread::spawn(move || std::process::Command::new("xl").args(["unpause", vm.as_str()]).status());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xen(dir: &Path, vif_script: Option<PathBuf>) -> Xen {
        Xen::new(XenSettings { scripts_dir: dir.join("scripts"), vif_script, ..XenSettings::default() })
    }

    fn definition() -> VmDefinition {
        VmDefinition::parse("name = 'u1'\nmemory_mib = 80\n", Path::new("u1.toml")).unwrap()
    }

    #[test]
    fn our_script_is_put_in_its_place_and_mended() {
        let dir = tempfile::tempdir().unwrap();
        let xen = xen(dir.path(), None);
        let script = dir.path().join("scripts/vif-bridge");
        for _ in 0..2 {
            assert_eq!(xen.rules(&definition()).unwrap().script, script);
            assert_eq!(fs::read_to_string(&script).unwrap(), VIF_BRIDGE_SCRIPT);
            assert_eq!(fs::metadata(&script).unwrap().permissions().mode() & 0o777, 0o755);
            assert_eq!(fs::read_dir(dir.path().join("scripts")).unwrap().count(), 1, "nothing beside it");
            fs::write(&script, "an older one").unwrap();
        }
    }

    #[test]
    fn a_script_that_cannot_run_is_refused_before_anything_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("mine");
        let refused = || xen(dir.path(), Some(script.clone())).rules(&definition()).unwrap_err().to_string();
        assert!(refused().contains("vif_script") && refused().contains("mine"), "{}", refused());
        fs::write(&script, "#!/bin/sh\n").unwrap();
        assert!(refused().contains("ermission"), "{}", refused());
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(xen(dir.path(), Some(script.clone())).rules(&definition()).unwrap().script, script);
    }
}
