//! A QEMU's further monitor, as another tool would have it: a guest is given one by its arguments. It is never the daemon's own.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{PATIENCE, wait_for};

/// A monitor, with its capabilities negotiated.
#[derive(Debug)]
pub struct Monitor {
    lines: BufReader<UnixStream>,
}

impl Monitor {
    /// Connects to a monitor's socket.
    ///
    /// # Errors
    /// When nobody listens there, or it is no monitor.
    pub fn connect(socket: &Path) -> Result<Monitor> {
        let stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut monitor = Monitor { lines: BufReader::new(stream) };
        monitor.execute("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    /// Executes a command and returns its answer.
    ///
    /// # Errors
    /// What QEMU says against it, or that it says nothing for longer than [`PATIENCE`].
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.lines.get_mut(), "{request}")?;
        loop {
            let mut line = String::new();
            ensure!(self.lines.read_line(&mut line)? > 0, "the monitor was closed");
            let answer: Value = serde_json::from_str(&line)?;
            if let Some(error) = answer.get("error") {
                bail!("{command}: {error}");
            }
            if let Some(said) = answer.get("return") {
                return Ok(said.clone());
            }
        }
    }

    /// The guest's devices of these disks.
    ///
    /// # Errors
    /// When a disk has none.
    pub fn devices<const N: usize>(&mut self, disks: [&str; N]) -> Result<[String; N]> {
        let blocks = self.execute("query-block", json!({}))?;
        let device = |disk: &str| {
            let found = blocks.as_array()?.iter().find(|block| block["inserted"]["node-name"] == disk)?;
            found["qdev"].as_str().map(str::to_owned)
        };
        let found: Option<Vec<String>> = disks.iter().map(|disk| device(disk)).collect();
        found.and_then(|found| found.try_into().ok()).with_context(|| format!("{disks:?} in {blocks}"))
    }

    /// Waits until the block job `job` has nothing left to do, then completes it.
    ///
    /// # Errors
    /// When it fails.
    pub fn finish(&mut self, job: &str) -> Result<()> {
        let state = |monitor: &mut Self| -> Result<Option<String>> {
            let jobs = monitor.execute("query-jobs", json!({}))?;
            let found = jobs.as_array().into_iter().flatten().find(|found| found["id"] == job);
            Ok(found.and_then(|found| found["status"].as_str()).map(str::to_owned))
        };
        wait_for("the block job to be ready", PATIENCE, || {
            Ok((state(self)?.context("a block job that did not fail")? == "ready").then_some(()))
        })?;
        self.execute("job-complete", json!({ "id": job }))?;
        wait_for("the end of the block job", PATIENCE, || Ok(state(self)?.is_none().then_some(())))
    }

    /// Writes a number where the guest would.
    ///
    /// # Errors
    /// When the write fails.
    pub fn write(&mut self, device: &str, number: u8) -> Result<()> {
        let line = format!("qemu-io -d {device} \"write -P {number} 0 512\"");
        let said = self.execute("human-monitor-command", json!({ "command-line": line }))?;
        // QEMU prints what it wrote to its own standard output, and says here only what failed.
        ensure!(said.as_str().is_some_and(|said| !said.contains("rror")), "{line}: {said}");
        Ok(())
    }
}
