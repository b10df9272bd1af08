//! One Xen host: an emulator with the hypervisor and its first domain, and a shell in it.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::lab::XenFiles;
use crate::{Namespace, files, shell};

const MEMORY_MIB: u32 = 768;
const DOM0_MIB: u32 = 384;
/// No other model works: `max` has SMAP, over which the first domain stumbles, and plain `qemu64` no nested paging.
const CPU: &str = "qemu64,+npt";
const SHELL_PORT: u16 = 2222;
const READY: &str = "DOM0-READY";
const BOOT_TIMEOUT: Duration = Duration::from_secs(180);
/// How long a script may take unless it says otherwise.
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(120);
const MARK: &str = "LONGHAUL-EXIT";

/// A running host. Its emulator dies with the value.
#[derive(Debug)]
pub struct XenHost {
    name: String,
    address: Ipv4Addr,
    namespace: Arc<Namespace>,
    console: PathBuf,
    qemu: Child,
}

impl XenHost {
    /// Starts one at 10.77.0.NUMBER on the tap `tap-NAME`; it is up after [`XenHost::wait_ready`].
    pub(super) fn boot(
        boot: &XenFiles,
        namespace: &Arc<Namespace>,
        dir: &Path,
        name: &str,
        number: u8,
        [own, shared]: [&Path; 2],
    ) -> Result<Self> {
        let address = Ipv4Addr::new(10, 77, 0, number);
        let console = dir.join(format!("{name}.console"));
        let log = File::create(dir.join(format!("{name}.qemu.log")))?;
        let xen = format!(
            "placeholder console=com1 com1=115200,8n1 dom0_mem={DOM0_MIB}M,max:{DOM0_MIB}M dom0_max_vcpus=1 \
             loglvl=warning guest_loglvl=warning spec-ctrl=no xpti=0 pv-l1tf=0"
        );
        let modules = format!(
            "{} console=hvc0 quiet net.ifnames=0 lab.name={name} lab.address={address},{}",
            boot.kernel.display(),
            boot.initrd.display()
        );
        let root = format!("file={},format=raw,if=virtio,snapshot=on,cache=unsafe", boot.root.display());
        let own = format!("file={},format=raw,if=virtio,cache=unsafe", own.display());
        // Both hosts have it open, as they would a LUN of a storage network.
        let shared = format!("file={},format=raw,if=virtio,cache=unsafe,file.locking=off", shared.display());
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-machine", "q35", "-accel", "tcg,thread=multi,tb-size=128", "-cpu", CPU, "-smp", "1"])
            .args(["-m", &MEMORY_MIB.to_string(), "-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-serial", &format!("file:{}", console.display())])
            .arg("-kernel")
            .arg(&boot.hypervisor)
            .args(["-append", &xen, "-initrd", &modules, "-drive", &root, "-drive", &own, "-drive", &shared])
            .args(["-netdev", &format!("tap,id=n0,ifname=tap-{name},script=no,downscript=no")])
            .args(["-device", &format!("virtio-net-pci,netdev=n0,mac=52:54:00:bb:00:{number:02x},romfile=")])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let qemu = namespace.spawn(&mut command)?;
        // Where whoever sweeps up after us looks for it.
        let run = dir.join("run/vm").join(name);
        files::create_dir(&run)?;
        files::write(&run.join("pid"), qemu.id().to_string())?;
        Ok(Self { name: name.to_owned(), address, namespace: namespace.clone(), console, qemu })
    }

    /// Waits until xl works.
    pub(super) fn wait_ready(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            let console = self.console();
            if console.contains(READY) {
                return Ok(());
            }
            let ended = self.qemu.try_wait()?.is_some();
            if ended || start.elapsed() > BOOT_TIMEOUT || console.contains("Panic on CPU") {
                bail!("Xen host {} did not come up:\n{}", self.name, shell::tail(console.as_bytes()));
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// What the host is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is reached.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Everything that hypervisor and first domain have printed.
    #[must_use]
    pub fn console(&self) -> String {
        fs::read(&self.console).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Runs a shell script in the first domain and returns what it printed.
    ///
    /// # Errors
    /// When it ends with another status than 0, or takes longer than two minutes.
    pub fn run(&self, script: &str) -> Result<String> {
        self.run_within(script, SCRIPT_TIMEOUT)
    }

    /// As [`XenHost::run`] with another time limit.
    ///
    /// # Errors
    /// When it ends with another status than 0, or takes longer.
    pub fn run_within(&self, script: &str, timeout: Duration) -> Result<String> {
        let (status, output) = self.status_within(script, timeout)?;
        if status != 0 {
            bail!(
                "on Xen host {}, `{script}` ended with {status}:\n{}",
                self.name,
                shell::tail(output.as_bytes())
            );
        }
        Ok(output)
    }

    /// Runs a shell script in the first domain; its status and what it printed on both outputs.
    ///
    /// # Errors
    /// When it takes longer than `timeout` or the host does not answer.
    pub fn status_within(&self, script: &str, timeout: Duration) -> Result<(i32, String)> {
        let doing = || format!("on Xen host {}, `{script}`", self.name);
        let target = SocketAddr::from((self.address, SHELL_PORT));
        let mut shell = self
            .namespace
            .enter(|| TcpStream::connect_timeout(&target, Duration::from_secs(10)))?
            .with_context(doing)?;
        shell.set_read_timeout(Some(Duration::from_millis(200)))?;
        // The script is an argument, so that nothing in it can read what follows it.
        let wrapped = format!(
            "bash -c \"$(cat <<'LONGHAUL-END'\n{script}\nLONGHAUL-END\n)\" </dev/null\necho \"\n{MARK} $?\"\nexit\n"
        );
        shell.write_all(wrapped.as_bytes()).with_context(doing)?;
        let (start, mut output, mut buffer) = (Instant::now(), Vec::new(), vec![0; 64 << 10]);
        loop {
            match shell.read(&mut buffer) {
                Ok(0) => bail!("{}: the shell ended early: {}", doing(), shell::tail(&output)),
                Ok(bytes) => output.extend_from_slice(&buffer[..bytes]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if start.elapsed() > timeout {
                        bail!("{} took longer than {timeout:?}: {}", doing(), shell::tail(&output));
                    }
                    continue;
                }
                Err(error) => return Err(error).with_context(doing),
            }
            let text = String::from_utf8_lossy(&output);
            if let Some((before, status)) = text.rsplit_once(&format!("\n{MARK} "))
                && let Some(status) = status.strip_suffix('\n')
            {
                let status = status.trim().parse().with_context(doing)?;
                return Ok((status, before.to_owned()));
            }
        }
    }

    /// Pulls the plug, as a power failure would.
    ///
    /// # Errors
    /// When the emulator cannot be ended.
    pub fn kill(mut self) -> Result<()> {
        self.qemu.kill()?;
        self.qemu.wait()?;
        Ok(())
    }

    /// Writes everything to its disk and ends.
    pub(super) fn power_off(self) -> Result<()> {
        self.run("sync; umount -l /var/lib/longhaul; mount -o remount,ro /lab || sync")?;
        self.kill()
    }
}

impl Drop for XenHost {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!(
                "--- end of the console of Xen host {}\n{}",
                self.name,
                shell::tail(self.console().as_bytes())
            );
        }
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
