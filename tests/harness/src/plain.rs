//! A guest in a plain QEMU, without the product: for tests of the lab itself, and to make images with something on
//! them. The emulator is this process's child and dies with the value.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::Guest;

/// A running emulator.
#[derive(Debug)]
pub struct PlainGuest {
    qemu: Child,
    console: PathBuf,
}

impl PlainGuest {
    /// Starts `guest`; its console goes to a file in `dir`.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn boot(guest: &Guest, dir: &Path) -> Result<Self> {
        let console = dir.join(format!("{}.console", guest.name));
        let output = File::create(&console).with_context(|| format!("creating {}", console.display()))?;
        let errors = output.try_clone()?;
        let qemu = Command::new("qemu-system-x86_64")
            .args(guest.qemu_arguments())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .context("starting qemu-system-x86_64 (package qemu-system-x86)")?;
        Ok(Self { qemu, console })
    }

    /// What the guest has printed.
    #[must_use]
    pub fn console(&self) -> String {
        std::fs::read(&self.console)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Waits until the console shows `text`; returns how long that took.
    ///
    /// # Errors
    /// When it does not appear in time or QEMU ends; the error shows the console.
    pub fn wait_console(&mut self, text: &str, timeout: Duration) -> Result<Duration> {
        let start = Instant::now();
        loop {
            let console = self.console();
            if console.contains(text) {
                return Ok(start.elapsed());
            }
            if let Some(status) = self.qemu.try_wait()? {
                bail!("QEMU ended with {status} before the console showed {text:?}:\n{console}");
            }
            if start.elapsed() > timeout {
                bail!("no {text:?} on the console within {timeout:?}:\n{console}");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Pulls the plug.
    ///
    /// # Errors
    /// When the emulator cannot be waited for.
    pub fn kill(mut self) -> Result<()> {
        self.qemu.kill()?;
        self.qemu.wait()?;
        Ok(())
    }
}

impl Drop for PlainGuest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
