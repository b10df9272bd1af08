//! One run of the command line: started, waited for within a time, read. Its output goes to unnamed files, so that
//! nothing it prints can make it wait.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::shell;

/// A command line that runs. Killed when dropped before its end.
#[derive(Debug)]
pub struct CliRun {
    line: String,
    child: Child,
    stdout: File,
    stderr: File,
}

/// How a command line ended.
#[derive(Debug, Clone)]
pub struct CliOutcome {
    /// What was run.
    pub line: String,
    /// Its exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl CliRun {
    pub(super) fn start(command: &mut Command) -> Result<Self> {
        let (stdout, stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let line = shell::line(command);
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout.try_clone()?)
            .stderr(stderr.try_clone()?)
            .spawn()
            .with_context(|| format!("starting `{line}`"))?;
        Ok(Self { line, child, stdout, stderr })
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it has printed on standard error so far.
    ///
    /// # Errors
    /// When the file behind it cannot be read.
    pub fn progress(&self) -> Result<String> {
        read(&self.stderr)
    }

    /// Waits for its end, however it ends.
    ///
    /// # Errors
    /// When that takes longer than `timeout`; it is killed then.
    pub fn wait(mut self, timeout: Duration) -> Result<CliOutcome> {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if start.elapsed() > timeout {
                bail!(
                    "`{}` did not end within {timeout:?}: {}",
                    self.line,
                    shell::tail(self.progress()?.as_bytes())
                );
            }
            thread::sleep(Duration::from_millis(5));
        };
        Ok(CliOutcome {
            line: self.line.clone(),
            code: status.code(),
            stdout: read(&self.stdout)?,
            stderr: read(&self.stderr)?,
        })
    }
}

impl Drop for CliRun {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl CliOutcome {
    /// Its standard output, if it succeeded.
    ///
    /// # Errors
    /// When it failed; the error holds the end of what it printed.
    pub fn text(self) -> Result<String> {
        if self.code != Some(0) {
            let code = self.code.map_or_else(|| "a signal".to_owned(), |code| format!("exit code {code}"));
            let [stderr, stdout] = [&self.stderr, &self.stdout].map(|text| shell::tail(text.as_bytes()));
            bail!("`{}` ended with {code}: {stderr}{stdout}", self.line);
        }
        Ok(self.stdout)
    }

    /// Its standard output as one JSON value, if it succeeded.
    ///
    /// # Errors
    /// When it failed or printed something else.
    pub fn json(self) -> Result<Value> {
        let line = self.line.clone();
        let text = self.text()?;
        serde_json::from_str(text.trim()).with_context(|| format!("`{line}` printed no JSON but {text:?}"))
    }
}

/// Reads without moving the position, which the file shares with the running program.
fn read(file: &File) -> Result<String> {
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len())?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
