//! What a guest's machine is at the source, and whether there can be one like it here: asked of a real QEMU that is started
//! as if the guest were to come in, and ended. It touches no disk of the VM and no socket but its own.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::command::{PID_OPTION, Purpose, arguments};
use super::log::log_tail;
use super::paths::VmPaths;
use super::process::{is_block_device, is_listening, with_absolute_paths};
use super::session::{Session, Vm};
use crate::definition::{VmDefinition, VmName};
use crate::facts::{FeatureWord, GuestFacts};
use crate::hypervisor::DriverError;
use crate::process::{Process, io_error};

/// How long QEMU may take to be there, and to tell of itself.
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);
/// QEMU tells of no event before its monitor is there.
const POLL: Duration = Duration::from_millis(20);
/// Begins the names of the directories of probes: no VM's name begins so.
const PREFIX: &str = ".probe-";

static PROBES: AtomicU64 = AtomicU64::new(0);

/// The machine of a guest that is here.
pub(crate) async fn facts(s: &Session) -> Result<GuestFacts, DriverError> {
    let get = async |path: &str, property: &str| {
        s.run("qom-get", json!({"path": path, "property": property})).await
    };
    let machine = get("/machine", "type").await?;
    let machine = machine.as_str().map(|name| name.strip_suffix("-machine").unwrap_or(name).to_owned());
    let cpus = s.query("query-cpus-fast").await?;
    let cpu = match cpus.pointer("/0/qom-path").and_then(Value::as_str) {
        // Other processors than x86 have no such words.
        Some(path) => get(path, "feature-words").await.ok(),
        None => None,
    };
    let words = cpu.as_ref().and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let number = |value: &Value, field: &str| value.pointer(field).and_then(Value::as_u64);
    let version = s.query("query-version").await?;
    let version = ["/qemu/major", "/qemu/minor", "/qemu/micro"].map(|part| number(&version, part));
    Ok(GuestFacts {
        machine,
        cpu: words.iter().filter_map(|word| FeatureWord::deserialize(word).ok()).collect(),
        version: match version {
            [Some(major), Some(minor), Some(micro)] => Some(format!("{major}.{minor}.{micro}")),
            _ => None,
        },
    })
}

/// Starts a QEMU as if the guest were to come in, compares, and ends it.
pub(crate) async fn probe(
    run_dir: &Path,
    def: &VmDefinition,
    disk_sizes: &[u64],
    facts: Option<&GuestFacts>,
) -> Result<(), DriverError> {
    let vm = &def.name;
    sweep(run_dir, vm).await?;
    let scratch = Scratch::new(run_dir, vm)?;
    scratch.paths.check(vm)?;
    let def = with_absolute_paths(&facts.map_or_else(|| def.clone(), |facts| facts.pinned(def)))?;
    let probing = async {
        let mut qemu = scratch.start(&def, disk_sizes)?;
        scratch.wait(vm, &mut qemu).await?;
        let here = scratch.ask(vm).await?;
        // It is ended here, so that nothing of it is left when the answer is known; a dropped one kills it, too.
        qemu.kill().await.map_err(io_error(vm, "end the probe in", &scratch.paths.dir))?;
        Ok(here)
    };
    let here = timeout(PROBE_TIMEOUT, probing).await.unwrap_or_else(|_| {
        let message = format!("nothing within {} s", PROBE_TIMEOUT.as_secs());
        Err(DriverError::CannotRunHere { vm: vm.clone(), message })
    })?;
    let missing = facts.map_or_else(Vec::new, |facts| facts.missing_in(&here));
    if missing.is_empty() { Ok(()) } else { Err(DriverError::LesserCpu { vm: vm.clone(), missing }) }
}

/// The directory of a probe; goes when it is dropped.
struct Scratch {
    paths: VmPaths,
}

impl Scratch {
    fn new(run_dir: &Path, vm: &VmName) -> Result<Scratch, DriverError> {
        let name = format!("{PREFIX}{}-{}", std::process::id(), PROBES.fetch_add(1, Ordering::Relaxed));
        let dir = std::path::absolute(run_dir.join(name)).map_err(io_error(vm, "resolve", run_dir))?;
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(io_error(vm, "create", &dir))?;
        Ok(Scratch { paths: VmPaths::within(dir) })
    }

    fn start(&self, def: &VmDefinition, disk_sizes: &[u64]) -> Result<Child, DriverError> {
        let log_path = self.paths.log();
        let log = fs::File::create(&log_path).map_err(io_error(&def.name, "create", &log_path))?;
        let mut command = Command::new(&def.qemu.binary);
        command
            .args(arguments(def, &self.paths, Purpose::Probe(disk_sizes), is_block_device))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true);
        command.spawn().map_err(|error| DriverError::CannotRunHere {
            vm: def.name.clone(),
            message: format!("nothing, for {} cannot be run: {error}", def.qemu.binary),
        })
    }

    /// Until its monitor listens or it has ended. The caller bounds this.
    async fn wait(&self, vm: &VmName, qemu: &mut Child) -> Result<(), DriverError> {
        while !is_listening(&self.paths).await {
            let ended = qemu.try_wait().map_err(io_error(vm, "wait for the probe in", &self.paths.dir))?;
            if ended.is_some() {
                return Err(DriverError::CannotRunHere { vm: vm.clone(), message: log_tail(&self.paths) });
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Its monitor is there before its machine is: what stops it afterwards, its log tells.
    async fn ask(&self, vm: &VmName) -> Result<GuestFacts, DriverError> {
        let monitor = Arc::new(Vm::new(vm.clone(), self.paths.clone()));
        let deadline = Instant::now() + PROBE_TIMEOUT;
        let asked = async { facts(&monitor.session("look at the machine it would have").await?).await };
        match tokio::time::timeout_at(deadline, asked).await {
            Ok(Err(DriverError::Died { .. } | DriverError::NotRunning { .. })) | Err(_) => {
                Err(DriverError::CannotRunHere { vm: vm.clone(), message: log_tail(&self.paths) })
            }
            Ok(facts) => facts,
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.paths.dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(dir = %self.paths.dir.display(), %error, "cannot remove the directory of a probe");
        }
    }
}

/// Removes the probes of daemons that have been killed, with their processes.
async fn sweep(run_dir: &Path, vm: &VmName) -> Result<(), DriverError> {
    let Ok(entries) = fs::read_dir(run_dir) else { return Ok(()) };
    let dead = |dir: &PathBuf| {
        let owner = dir.file_name()?.to_str()?.strip_prefix(PREFIX)?.split('-').next()?;
        (owner != std::process::id().to_string()).then_some(())
    };
    for dir in entries.flatten().map(|entry| entry.path()).filter(|dir| dead(dir).is_some()) {
        let dir = std::path::absolute(&dir).map_err(io_error(vm, "resolve", &dir))?;
        let scratch = Scratch { paths: VmPaths::within(dir) };
        let pid_path = scratch.paths.pid();
        while let Some(process) = Process::with_option(vm, PID_OPTION, &pid_path).await? {
            process.kill(vm, &pid_path).await?;
        }
    }
    Ok(())
}
