//! A platform under test: a root directory of its own, the real daemon in it, and the command line to talk to it.
//!
//! Everything a platform started is gone when the value is dropped: the daemon, the QEMU processes that outlive it, the
//! directory. It only ever ends processes whose command line names its own root.

mod cli;
mod disk;
pub(crate) mod process;
mod slow;

use std::fs::{self, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Once};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::guest::{self, DISK};
use crate::{Guest, LinkSettings, Namespace, Relay, files, shell};
pub use cli::{CliOutcome, CliRun};
pub use slow::SlowDisk;

/// How long a command line may take unless the test says otherwise.
pub const CLI_TIMEOUT: Duration = Duration::from_secs(300);
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Short, because unix socket paths below it are bounded to 107 bytes.
const ROOTS: &str = "/tmp";
const ROOT_PREFIX: &str = "lh-";
const DAEMON_PID: &str = "daemon.pid";
const LOG: &str = "daemon.log";

/// One platform.
#[derive(Debug)]
pub struct Platform {
    name: String,
    root: PathBuf,
    listen: SocketAddr,
    config: String,
    /// In place of the program under test.
    earlier: Option<PathBuf>,
    namespace: Option<Arc<Namespace>>,
    daemon: Option<Child>,
}

impl Platform {
    /// A new platform with its configuration; the daemon is not started yet.
    ///
    /// # Errors
    /// When the directory cannot be made or no port is free.
    pub fn new(name: &str) -> Result<Self> {
        Self::with_config(name, "")
    }

    /// As [`Platform::new`], with further lines for `longhaul.toml`.
    ///
    /// # Errors
    /// As for [`Platform::new`].
    pub fn with_config(name: &str, config: &str) -> Result<Self> {
        Self::create(name, config, free_port()?, None)
    }

    /// As [`Platform::with_config`], with its daemon and its guests in a network namespace, where it listens at `listen`.
    ///
    /// # Errors
    /// As for [`Platform::new`].
    pub fn within(namespace: &Arc<Namespace>, listen: SocketAddr, name: &str, config: &str) -> Result<Self> {
        Self::create(name, config, listen, Some(Arc::clone(namespace)))
    }

    fn create(
        name: &str,
        config: &str,
        listen: SocketAddr,
        namespace: Option<Arc<Namespace>>,
    ) -> Result<Self> {
        static SWEEP: Once = Once::new();
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        SWEEP.call_once(sweep);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let root = Path::new(ROOTS).join(format!("{ROOT_PREFIX}{}-{number}", std::process::id()));
        files::remove(&root)?;
        files::create_dir(&root)?;
        let (name, config) = (name.to_owned(), config.to_owned());
        let mut platform = Self { name, root, listen, config, earlier: None, namespace, daemon: None };
        platform.use_program(None)?;
        Ok(platform)
    }

    /// From now on runs an earlier version of the program, or again the one under test. A daemon that runs is left alone.
    ///
    /// # Errors
    /// When the configuration cannot be written.
    pub fn use_program(&mut self, earlier: Option<&Path>) -> Result<()> {
        let Self { name, listen, config, .. } = &*self;
        let mut text = format!("name = \"{name}\"\nlisten = \"{listen}\"\n");
        // Earlier versions do not know the key, and take all arguments.
        if earlier.is_none() {
            let arguments = guest::NETWORK.each_ref().map(|pair| pair.join(" "));
            text += &format!("qemu_arguments = {arguments:?}\n");
        }
        files::write(&self.root.join("longhaul.toml"), text + config + "\n")?;
        self.earlier = earlier.map(Path::to_owned);
        Ok(())
    }

    fn program(&self) -> Result<PathBuf> {
        self.earlier.clone().map_or_else(binary, Ok)
    }

    /// What the platform is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its root directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where it listens for its peers.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listen
    }

    /// Where the platform keeps the image of a VM's disk that came to it. The harness puts a VM's first image there too.
    #[must_use]
    pub fn image(&self, vm: &str, disk: &str) -> PathBuf {
        self.root.join("images").join(vm).join(format!("{disk}.raw"))
    }

    /// The end of the daemon's log.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(self.root.join(LOG)).map(|bytes| shell::tail(&bytes)).unwrap_or_default()
    }

    /// All of the daemon's log.
    #[must_use]
    pub fn full_log(&self) -> String {
        let log = fs::read(self.root.join(LOG)).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Starts the daemon and waits until it answers.
    ///
    /// # Errors
    /// When it cannot be started or does not come up; the error holds the end of its log.
    pub fn start(&mut self) -> Result<()> {
        self.start_with(&[])
    }

    /// As [`Platform::start`], with environment variables such as `LONGHAUL_CRASH_AT`.
    ///
    /// # Errors
    /// As for [`Platform::start`].
    pub fn start_with(&mut self, environment: &[(&str, &str)]) -> Result<()> {
        if self.is_running() {
            bail!("the daemon of platform {} runs already", self.name);
        }
        let log = OpenOptions::new().create(true).append(true).open(self.root.join(LOG))?;
        let mut command = Command::new(self.program()?);
        command.arg("--root").arg(&self.root).arg("daemon").envs(environment.iter().copied());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = match &self.namespace {
            Some(namespace) => namespace.spawn(&mut command)?,
            None => command.spawn().with_context(|| format!("starting `{}`", shell::line(&command)))?,
        };
        files::write(&self.root.join(DAEMON_PID), child.id().to_string())?;
        self.daemon = Some(child);
        let socket = self.root.join("run/longhaul.sock");
        let start = Instant::now();
        while UnixStream::connect(&socket).is_err() {
            if !self.is_running() || start.elapsed() > START_TIMEOUT {
                bail!("the daemon of platform {} did not come up:\n{}", self.name, self.log());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Whether the daemon runs.
    pub fn is_running(&mut self) -> bool {
        self.daemon.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Kills the daemon as a crash would. Its guests run on.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill9(&mut self) -> Result<()> {
        let mut child = self.daemon.take().with_context(|| format!("no daemon on platform {}", self.name))?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Waits until the daemon has ended by itself, as one with a crash point does.
    ///
    /// # Errors
    /// When it does not within `timeout`.
    pub fn wait_ended(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let child = self.daemon.as_mut().with_context(|| format!("no daemon on platform {}", self.name))?;
        let start = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                self.daemon = None;
                return Ok(status);
            }
            if start.elapsed() > timeout {
                bail!("the daemon of platform {} did not end within {timeout:?}", self.name);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends the daemon a signal.
    ///
    /// # Errors
    /// When there is no daemon.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(self.pid()?, signal)?)
    }

    /// Whether a signal has halted the daemon.
    ///
    /// # Errors
    /// When there is no daemon.
    pub fn is_halted(&self) -> Result<bool> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()?.as_raw_nonzero()))?;
        // Behind the program's name, which is in parentheses.
        Ok(stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')))
    }

    fn pid(&self) -> Result<Pid> {
        let child = self.daemon.as_ref().with_context(|| format!("no daemon on platform {}", self.name))?;
        i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("the daemon's process id")
    }

    /// Kills the daemon if it runs and starts it again, without any crash point.
    ///
    /// # Errors
    /// As for [`Platform::start`].
    pub fn restart(&mut self) -> Result<()> {
        if self.is_running() {
            self.kill9()?;
        }
        self.start()
    }

    /// Runs `longhaul --json ARGUMENTS` to its end and returns what it printed.
    ///
    /// # Errors
    /// When it fails, takes longer than [`CLI_TIMEOUT`] or prints no JSON.
    pub fn cli(&self, arguments: &[&str]) -> Result<Value> {
        self.begin_json(arguments)?.wait(CLI_TIMEOUT)?.json()
    }

    /// Runs `longhaul ARGUMENTS` to its end and returns its text.
    ///
    /// # Errors
    /// When it fails or takes longer than [`CLI_TIMEOUT`].
    pub fn cli_text(&self, arguments: &[&str]) -> Result<String> {
        self.begin(arguments)?.wait(CLI_TIMEOUT)?.text()
    }

    /// Runs `longhaul ARGUMENTS` to its end, expecting it to fail.
    ///
    /// # Errors
    /// When it succeeds or takes longer than [`CLI_TIMEOUT`].
    pub fn cli_fails(&self, arguments: &[&str]) -> Result<CliOutcome> {
        let outcome = self.begin(arguments)?.wait(CLI_TIMEOUT)?;
        if outcome.code == Some(0) {
            bail!("`longhaul {}` was to fail and did not:\n{}", arguments.join(" "), outcome.stdout);
        }
        Ok(outcome)
    }

    /// Starts `longhaul --json ARGUMENTS` and does not wait.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn begin_json(&self, arguments: &[&str]) -> Result<CliRun> {
        self.begin(&[&["--json"], arguments].concat())
    }

    /// Starts `longhaul ARGUMENTS` and does not wait.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn begin(&self, arguments: &[&str]) -> Result<CliRun> {
        let mut command = Command::new(self.program()?);
        CliRun::start(command.arg("--root").arg(&self.root).args(arguments))
    }

    /// The platform's key fingerprint. Works before the daemon runs.
    ///
    /// # Errors
    /// When `longhaul identity` fails.
    pub fn fingerprint(&self) -> Result<String> {
        let identity = self.cli(&["identity"])?;
        let text =
            identity["fingerprint"].as_str().context("`longhaul --json identity` names no fingerprint")?;
        Ok(text.to_owned())
    }

    /// Adds `peer` to the platforms this one trusts, reached at `address`.
    ///
    /// # Errors
    /// When `longhaul peer add` fails.
    pub fn trust(&self, peer: &Platform, address: SocketAddr) -> Result<()> {
        let fingerprint = peer.fingerprint()?;
        self.cli(&["peer", "add", peer.name(), &address.to_string(), &fingerprint]).map(drop)
    }

    /// Copies `base` to where this platform keeps the disk of `vm`, and returns that path.
    ///
    /// # Errors
    /// When the copy fails.
    pub fn place_disk(&self, vm: &str, base: &Path) -> Result<PathBuf> {
        let image = self.image(vm, DISK);
        files::create_dir(image.parent().context("an image's directory")?)?;
        files::copy_sparse(base, &image)?;
        Ok(image)
    }

    /// Gives the directory `below` the root a disk of its own, of `mib` MiB. Needs root. To be called before the daemon
    /// starts; it is gone with the platform.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn small_disk(&self, below: &str, mib: u32) -> Result<PathBuf> {
        let dir = self.root.join(below);
        disk::mount(&dir, mib)?;
        Ok(dir)
    }

    /// As [`Platform::small_disk`], with a file system whose files can share blocks; at least 300 MiB.
    ///
    /// # Errors
    /// When it cannot be made or mounted.
    pub fn reflink_disk(&self, below: &str, mib: u32) -> Result<PathBuf> {
        let dir = self.root.join(below);
        disk::mount_reflink(&dir, &dir.with_extension("xfs"), mib)?;
        Ok(dir)
    }

    /// As [`Platform::small_disk`], with an ext4 that can be made to read slowly.
    ///
    /// # Errors
    /// When it cannot be made or mounted.
    pub fn slow_disk(&self, below: &str, mib: u32) -> Result<SlowDisk> {
        let dir = self.root.join(below);
        SlowDisk::mount(&dir, &dir.with_extension("ext4"), mib)
    }

    /// Defines a guest as a VM and starts it.
    ///
    /// # Errors
    /// When `longhaul vm define` or `vm start` fails.
    pub fn start_guest(&self, guest: &Guest) -> Result<()> {
        let file = self.root.join(format!("{}.definition.toml", guest.name));
        guest.boot_spec(&file)?;
        self.cli(&["vm", "define", &file.display().to_string()])?;
        self.cli(&["vm", "start", &guest.name]).map(drop)
    }

    /// The process id of the QEMU that runs `vm` here, if there is one alive.
    #[must_use]
    pub fn qemu(&self, vm: &str) -> Option<i32> {
        process::from_pid_file(&self.root.join("run/vm").join(vm).join("pid"), &self.root)
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!(
                "--- end of the log of platform {} ({})\n{}",
                self.name,
                self.root.display(),
                self.log()
            );
        }
        if self.daemon.is_some() {
            let _ = self.kill9();
        }
        // LONGHAUL_KEEP leaves the directory for a look; the processes end all the same.
        process::end_all(&self.root);
        disk::unmount_all(&self.root);
        if std::env::var_os("LONGHAUL_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.root);
        }
    }
}

/// Two running platforms `a` and `b` that trust each other.
///
/// # Errors
/// When one of them does not come up.
pub fn pair() -> Result<(Platform, Platform)> {
    let (mut a, mut b) = (Platform::new("a")?, Platform::new("b")?);
    a.start()?;
    b.start()?;
    a.trust(&b, b.address())?;
    b.trust(&a, a.address())?;
    Ok((a, b))
}

/// As [`pair`], with a relay in front of each: the first stands before `b`, the second before `a`.
///
/// # Errors
/// As for [`pair`].
pub fn pair_over(link: LinkSettings) -> Result<(Platform, Platform, [Relay; 2])> {
    let (mut a, mut b) = (Platform::new("a")?, Platform::new("b")?);
    let relays = [Relay::start(b.address(), link)?, Relay::start(a.address(), link)?];
    a.start()?;
    b.start()?;
    a.trust(&b, relays[0].address())?;
    b.trust(&a, relays[1].address())?;
    Ok((a, b, relays))
}

/// The program under test: `LONGHAUL_BIN`, else the one cargo has built beside this program.
///
/// # Errors
/// When there is none.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("LONGHAUL_BIN") {
        return Ok(path.into());
    }
    let here = std::env::current_exe().context("finding this program")?;
    here.ancestors().skip(1).take(2).map(|dir| dir.join("longhaul")).find(|path| path.is_file()).with_context(
        || {
            format!(
                "there is no longhaul beside {}: build it first (`cargo build --bin longhaul`), or set LONGHAUL_BIN",
                here.display()
            )
        },
    )
}

fn free_port() -> Result<SocketAddr> {
    Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("finding a free UDP port")?.local_addr()?)
}

/// Cleans up after harnesses that were killed before they could: their roots carry their process id.
fn sweep() {
    let Ok(entries) = fs::read_dir(ROOTS) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner =
            name.strip_prefix(ROOT_PREFIX).and_then(|rest| rest.split_once('-')?.0.parse::<i32>().ok());
        if owner.is_some_and(|pid| !process::exists(pid)) && entry.path().join("longhaul.toml").exists() {
            process::end_all(&entry.path());
            disk::unmount_all(&entry.path());
            if std::env::var_os("LONGHAUL_KEEP").is_none() {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests;
