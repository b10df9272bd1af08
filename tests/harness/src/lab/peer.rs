//! Debian's kernel as a peer: a guest that has nothing but busybox, a few programs of the host and a script. It has no disk;
//! its network is a tap interface in a namespace of the test.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Lab;
use super::initramfs::BUSYBOX;
use super::trial::{Content, PREPARE};
use crate::Namespace;

/// The running guest.
#[derive(Debug)]
pub struct KernelPeer {
    qemu: Child,
    console: PathBuf,
}

impl KernelPeer {
    /// Boots the lab's kernel with these modules and programs, which are in `/host`, and has it run `script`, in which
    /// `eth0` is joined to the interface `tap` of `namespace`. What it needs is kept in `dir`.
    ///
    /// # Errors
    /// When a module or program is missing, or QEMU cannot be started.
    pub fn boot(
        lab: &Lab,
        namespace: &Namespace,
        modules: &[&str],
        programs: &[&Path],
        script: &str,
        dir: &Path,
    ) -> Result<Self> {
        let initrd = dir.join("peer.cpio");
        let console = dir.join("peer.console");
        fs::write(&initrd, archive(lab, modules, programs, script)?)
            .context("writing the peer's initramfs")?;
        let output = File::create(&console).context("making the peer's console")?;
        let errors = output.try_clone()?;
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"])
            .args(["-machine", "q35", "-accel", "tcg", "-cpu", "qemu64", "-m", "128", "-kernel"])
            .arg(lab.kernel())
            .arg("-initrd")
            .arg(&initrd)
            .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off rdinit=/init net.ifnames=0"])
            .args(["-netdev", "tap,id=n0,ifname=tap,script=no,downscript=no"])
            .args(["-device", "virtio-net-pci,netdev=n0,romfile="])
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors);
        let qemu = namespace.spawn(&mut command)?;
        Ok(Self { qemu, console })
    }

    /// What it has printed.
    #[must_use]
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// Waits until it has printed `text`.
    ///
    /// # Errors
    /// When it does not in time, or has ended; the error shows the console.
    pub fn until(&mut self, text: &str, patience: Duration) -> Result<()> {
        let start = Instant::now();
        while !self.console().contains(text) {
            if let Some(status) = self.qemu.try_wait()? {
                bail!("QEMU ended with {status} before the console showed {text:?}:\n{}", self.console());
            }
            if start.elapsed() > patience {
                bail!("the console does not show {text:?}:\n{}", self.console());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for KernelPeer {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn archive(lab: &Lab, modules: &[&str], programs: &[&Path], script: &str) -> Result<Vec<u8>> {
    let mut content = Content::default();
    content.programs.push((PathBuf::from("/bin/busybox"), PathBuf::from(BUSYBOX)));
    for program in programs {
        let name = program.file_name().context("a program's file name")?;
        content.program(&Path::new("/host").join(name), &fs::canonicalize(program)?)?;
    }
    content.modules(&lab.modules, modules)?;
    content.finish(format!("{PREPARE}{script}\n").as_bytes())
}
